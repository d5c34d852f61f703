//! `--pasta`: a new network namespace gets an address and routes from pasta(1), which needs no privilege outside.
//!
//! It runs beside the process that waits for COMMAND, outside of the new namespaces, and ends with it. The namespace is its
//! stdin: it drops the capability that another process's /proc would take before it opens anything.

use chain::args::Stop;
use chain::link::apart::{self, Apart};
use chain::sys::process;
use chain::trace::note;
use chain::{Chain, Error, Outcome, Result, ResultExt, Tool, userns};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::unistd::{Pid, getpid, getppid, pipe2, setsid};
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A port of the machine that leads into the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    address: Option<IpAddr>,
    outer: u16,
    inner: u16,
    udp: bool,
}

impl Port {
    /// From `[ADDRESS:]OUTER:INNER[/tcp|/udp]`; an IPv6 address stands in brackets. Errors: no such ports.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::usage(format_args!("port {text:?}: {why}")).hint("write [ADDRESS:]OUTER:INNER[/udp]: 8080:80")
        };
        let (ports, udp) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), false),
            Some((ports, "udp")) => (ports, true),
            Some(_) => return Err(wrong("neither tcp nor udp")),
        };
        let (rest, inner) = ports.rsplit_once(':').ok_or_else(|| wrong("the port outside is missing"))?;
        let (address, outer) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((address, outer)) => {
                let bare = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
                (Some(bare.parse().map_err(|_| wrong("no such address"))?), outer)
            }
        };
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        let port = |text: &str| number(text).ok_or_else(|| wrong("ports are numbers from 1 to 65535, one at a time"));
        Ok(Port { address, outer: port(outer)?, inner: port(inner)?, udp })
    }

    /// As pasta reads it.
    fn argument(&self) -> String {
        let address = self.address.map_or(String::new(), |address| format!("{address}/"));
        format!("{address}{}:{}", self.outer, self.inner)
    }

    /// Whether it can be had. pasta would not say why not.
    fn check(&self) -> Result<()> {
        let address = self.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let bound = if self.udp {
            UdpSocket::bind((address, self.outer)).map(drop)
        } else {
            TcpListener::bind((address, self.outer)).map(drop)
        };
        bound.call(format_args!("bind({address}, port {})", self.outer)).map_err(|error| match error.errno() {
            Some(Errno::EADDRINUSE) => error.hint("another program has this port here; choose another"),
            Some(Errno::EACCES) => error.hint(format_args!(
                "ports below {} are root's; sysctl net.ipv4.ip_unprivileged_port_start={} opens this one",
                first_free_for_all(),
                self.outer
            )),
            Some(Errno::EADDRNOTAVAIL) => error.hint("this machine does not have this address"),
            _ => error,
        })
    }
}

fn first_free_for_all() -> String {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    text.map_or("1024".into(), |text| text.trim().to_string())
}

/// A pasta that runs; it ends when this is dropped.
pub struct Running(Option<Apart>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pasta) = self.0.take() {
            pasta.end();
        }
    }
}

/// Connects the network namespace of `child` with the machine's, and `ports` of the machine with it; `user`: the child is in
/// a new user namespace, which owns it. Returns when the network is set up.
///
/// Errors: a port that cannot be had, pasta missing, what pasta says.
pub fn start(child: Pid, user: bool, ports: &[Port]) -> Result<Running> {
    ports.iter().try_for_each(Port::check)?;
    installed()?;
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).call(format_args!("pipe2()"))?;
    let mut said = File::from(memfd_create("pasta", MFdFlags::MFD_CLOEXEC).call(format_args!("memfd_create()"))?);
    let mut args: Vec<OsString> = vec![
        getpid().to_string().into(),
        format!("/proc/{child}/ns/net").into(),
        format!("/proc/self/fd/{}", said.as_raw_fd()).into(),
    ];
    args.extend(arguments(child, user, ports));
    note(format_args!("pasta {:?} <{:?}", &args[3..], args[1]));
    let pasta = Running(Some(apart::start(&PASTA, &args, &writer)?));
    drop(writer);
    let mut ready = String::new();
    BufReader::new(File::from(reader)).read_line(&mut ready).call(format_args!("read(pipe)"))?;
    if pasta.0.as_ref().is_some_and(|pasta| ready.trim() == pasta.pid().to_string()) {
        return Ok(pasta);
    }
    drop(pasta);
    let mut text = String::new();
    said.rewind().and_then(|()| said.read_to_string(&mut text)).call(format_args!("read(memfd)"))?;
    Err(explain(&text))
}

fn arguments(child: Pid, user: bool, ports: &[Port]) -> Vec<OsString> {
    let mut args = ["--config-net", "--quiet", "--foreground", "--no-map-gw", "--no-netns-quit", "--pid=/dev/stdout"]
        .map(String::from)
        .to_vec();
    if userns::is_initial() && nix::unistd::geteuid().is_root() {
        args.push("--runas=0".into());
    }
    args.push(if user { format!("--userns=/proc/{child}/ns/user") } else { "--netns-only".into() });
    args.push("--netns=/proc/self/fd/0".into());
    for (option, udp) in [("--tcp-ports", false), ("--udp-ports", true)] {
        let wanted: Vec<String> = ports.iter().filter(|port| port.udp == udp).map(Port::argument).collect();
        args.extend(wanted.iter().map(|port| format!("{option}={port}")));
        if wanted.is_empty() {
            args.push(format!("{option}=none"));
        }
    }
    // Otherwise every port that is open inside would lead to the machine's loopback.
    args.extend(["--tcp-ns=none".into(), "--udp-ns=none".into()]);
    args.into_iter().map(OsString::from).collect()
}

fn installed() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| chain::link::DEFAULT_PATH.into());
    match chain::link::candidates(&"pasta".into(), path.as_bytes()).iter().any(|candidate| candidate.is_file()) {
        true => Ok(()),
        false => Err(Error::call(format_args!("execve(\"pasta\")"), Errno::ENOENT)
            .hint(format_args!("not in PATH {path:?}; the package is called passt"))),
    }
}

/// What pasta said, in one line.
fn explain(text: &str) -> Error {
    // It complains on stderr where there is no system logger.
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Failed to send "));
    let words = lines.collect::<Vec<_>>().join(": ");
    let error = Error::new(format_args!("pasta: {}", if words.is_empty() { "ended early" } else { &words }));
    match File::options().read(true).write(true).open("/dev/net/tun") {
        Err(cause) if words.contains("tap") || words.contains("tun") || words.is_empty() => {
            error.hint(format_args!("it needs /dev/net/tun, and here open says: {cause}"))
        }
        _ if words.contains("external interface") || words.contains("routable") => {
            error.hint("this machine has no default route, so there is no address to lend")
        }
        _ => error,
    }
}

/// Becomes pasta. Arguments: the parent, the file of its stdin, that of its stderr, and pasta's own.
const PASTA: Tool = Tool { name: "ns-enter", command: crate::cli::command, run: become_pasta };

fn become_pasta(_: &mut Chain, args: &[OsString]) -> Result<Outcome, Stop> {
    let [parent, network, said, rest @ ..] = args else { return Ok(Outcome::Done) };
    let open = |path: &OsString, write: bool| {
        File::options().read(!write).write(write).open(path).call(format_args!("open({path:?})"))
    };
    let (network, said) = (open(network, false)?, open(said, true)?);
    process::prctl(nix::libc::PR_SET_PDEATHSIG, [Signal::SIGKILL as u64, 0, 0, 0])
        .call(format_args!("prctl(PR_SET_PDEATHSIG, SIGKILL)"))?;
    if parent.to_str() != Some(&getppid().to_string()) {
        return Ok(Outcome::Done);
    }
    // Ctrl-C is for COMMAND.
    setsid().call(format_args!("setsid()"))?;
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).call(format_args!("sigprocmask()"))?;
    let error = Command::new("pasta").args(rest).stdin(network).stderr(said).exec();
    Err(Error::call(format_args!("execve(\"pasta\")"), error).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_addresses_and_protocols() {
        for (text, argument, udp) in [
            ("8080:80", "8080:80", false),
            ("127.0.0.1:8080:80/tcp", "127.0.0.1/8080:80", false),
            ("[::1]:53:5353/udp", "::1/53:5353", true),
        ] {
            let port = Port::parse(text).unwrap();
            assert_eq!((port.argument().as_str(), port.udp), (argument, udp), "{text}");
        }
        for text in ["80", "", ":80", "80:", "0:80", "80:65536", "80:80/sctp", "host:80:80", "80-82:80-82"] {
            assert!(Port::parse(text).unwrap_err().to_string().contains("OUTER:INNER"), "{text}");
        }
    }

    #[test]
    fn its_complaints_become_one_line() {
        let error = explain("Failed to send 12 bytes to syslog\nCouldn't do it\n\nreally\n").to_string();
        assert!(error.starts_with("pasta: Couldn't do it: really"), "{error}");
    }
}
