//! Files that make names resolve in the container: /etc/resolv.conf, /etc/hosts and /etc/hostname.
//!
//! The container gets copies: a bind of the machine's file would go stale when that is replaced by a rename.

use crate::mount::{Mount, Options, Source};
use chain::trace::note;
use chain::{Error, Result, ResultExt};
use std::fs;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// More than any such file has.
const MAX_BYTES: u64 = 1 << 20;

/// What /etc/hosts begins with if it is not a copy.
const LOCALHOST: &[u8] = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// `NAME:ADDRESS` or `NAME=ADDRESS`; an IPv6 address may stand in brackets. Errors: no such name, no such address.
pub fn host(text: &str) -> Result<(String, IpAddr)> {
    let wrong = || Error::usage(format_args!("--add-host {text:?}: not NAME:ADDRESS"));
    let (name, address) = text.split_once([':', '=']).ok_or_else(wrong)?;
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '#';
    if name.is_empty() || !name.chars().all(plain) {
        return Err(wrong());
    }
    let bare = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
    Ok((name.to_string(), bare.parse().map_err(|_| wrong().hint("an address in numbers is needed"))?))
}

/// The address of a name server. Error: it is none.
pub fn server(text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| Error::usage(format_args!("--dns {text:?}: not an address in numbers")))
}

/// Which of the files are wanted.
#[derive(Debug, Default)]
pub struct Names {
    /// What /etc/resolv.conf is a copy of; `auto` is the machine's, edited, `host` the machine's as it is.
    pub resolv_conf: Option<PathBuf>,
    /// The servers that /etc/resolv.conf names instead.
    pub servers: Vec<IpAddr>,
    /// What /etc/hosts is a copy of, one after the other.
    pub hosts: Vec<PathBuf>,
    /// What /etc/hosts says then: names and their addresses.
    pub added: Vec<(String, IpAddr)>,
    /// What /etc/hostname says.
    pub hostname: Option<String>,
}

impl Names {
    /// The files as mounts. Errors: a file that cannot be read, or is larger than 1 MiB.
    pub fn mounts(&self) -> Result<Vec<Mount>> {
        let mut mounts = Vec::new();
        let mut add = |target: &str, content: Vec<u8>| {
            mounts.push(Mount { source: Source::Content(content), target: target.into(), options: Options::default() });
        };
        match &self.resolv_conf {
            Some(auto) if auto == Path::new("auto") => match machines_servers() {
                Some(text) => add("/etc/resolv.conf", text.into_bytes()),
                None => note(format_args!("/etc/resolv.conf stays the root's: only this machine reaches its servers")),
            },
            Some(host) if host == Path::new("host") => match read(Path::new("/etc/resolv.conf")) {
                Ok(text) => add("/etc/resolv.conf", text),
                Err(error) => note(format_args!("/etc/resolv.conf stays the root's: {error}")),
            },
            Some(path) => add("/etc/resolv.conf", read(path)?),
            None if self.servers.is_empty() => {}
            None => {
                let lines: String = self.servers.iter().map(|server| format!("nameserver {server}\n")).collect();
                add("/etc/resolv.conf", lines.into_bytes());
            }
        }
        if !self.hosts.is_empty() || !self.added.is_empty() {
            let mut content = if self.hosts.is_empty() { LOCALHOST.to_vec() } else { Vec::new() };
            for path in &self.hosts {
                content.extend(read(path)?);
                if content.last().is_some_and(|&last| last != b'\n') {
                    content.push(b'\n');
                }
            }
            for (name, address) in &self.added {
                content.extend(format!("{address}\t{name}\n").into_bytes());
            }
            add("/etc/hosts", content);
        }
        if let Some(name) = &self.hostname {
            add("/etc/hostname", format!("{name}\n").into_bytes());
        }
        Ok(mounts)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut content))
        .call(format_args!("read({path:?})"))?;
    if content.len() as u64 > MAX_BYTES {
        return Err(Error::new(format_args!("{path:?} is larger than 1 MiB")));
    }
    Ok(content)
}

/// The machine's resolv.conf, whatever links lead to it; where all its servers are loopback, what a local resolver
/// (systemd-resolved) says it asks itself. `None` if no server is left.
fn machines_servers() -> Option<String> {
    ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .find_map(|text| without_loopback(&text))
}

/// `text` without the servers on loopback addresses; `None` if no server is left.
fn without_loopback(text: &str) -> Option<String> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next().unwrap_or_default().to_string())
    };
    // An address may have a zone: fe80::1%eth0.
    let loopback = |address: &str| {
        let address = address.split('%').next().unwrap_or_default();
        address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback() || address.is_unspecified())
    };
    let kept: Vec<&str> = text.lines().filter(|line| !server(line).is_some_and(|at| loopback(&at))).collect();
    kept.iter().any(|line| server(line).is_some()).then(|| kept.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_only_the_machine_reaches_go() {
        let text = "# by hand\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nnameserver ::1\nsearch example.org\n";
        assert_eq!(without_loopback(text).unwrap(), "# by hand\nnameserver 9.9.9.9\nsearch example.org\n");
        assert_eq!(without_loopback("nameserver 127.0.0.1\nsearch x\n"), None);
        assert_eq!(without_loopback(""), None);
        assert!(without_loopback("nameserver fe80::1%eth0").is_some());
    }

    fn content(names: &Names) -> Vec<(String, String)> {
        let of = |mount: Mount| match mount.source {
            Source::Content(content) => (mount.target.display().to_string(), String::from_utf8(content).unwrap()),
            other => panic!("{other:?}"),
        };
        names.mounts().unwrap().into_iter().map(of).collect()
    }

    #[test]
    fn names_and_servers_are_written_down() {
        let added = ["db:10.0.0.7", "six:::1", "six2=[fe80::1]"].map(|text| host(text).unwrap()).to_vec();
        let names = Names { servers: vec![server("9.9.9.9").unwrap()], added, ..Names::default() };
        let want =
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.7\tdb\n::1\tsix\nfe80::1\tsix2\n";
        let files = content(&names);
        assert_eq!(files[0], ("/etc/resolv.conf".into(), "nameserver 9.9.9.9\n".into()));
        assert_eq!(files[1], ("/etc/hosts".into(), want.into()));
        for text in ["db", ":1.2.3.4", "db:host-gateway", "a b:1.2.3.4", "a\nb:1.2.3.4", "db:1.2.3"] {
            assert!(host(text).unwrap_err().to_string().contains("NAME:ADDRESS"), "{text}");
        }
        assert!(server("localhost").is_err());
    }
}
