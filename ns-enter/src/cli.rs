//! Arguments to request, without effects.

use crate::capability;
use crate::create::{Propagation, Setup};
use crate::environment::Changes;
use crate::limits::Limit;
use crate::namespace::{Kind, Origin};
use crate::pasta::Port;
use crate::request::{Map, Request};
use crate::seccomp::Profile;
use crate::stop;
use crate::user::Wanted;
use chain::userns::Range;
use chain::{Error, Result};
use clap::{CommandFactory, Parser};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::path::PathBuf;

/// The grammar.
pub fn command() -> clap::Command {
    Cli::command()
}

const NEW: &str = "Namespaces (a new one; with =PATH or --target, one that exists)";
const MAPS: &str = "Ids of a new user namespace";
const SETUP: &str = "What new namespaces hold";
const ROOT: &str = "Root and working directory";
const WHO: &str = "Identity and privileges";
const PROCESS: &str = "COMMAND's process";

/// New or existing namespaces, and entering them: root, identity, privileges
#[derive(Parser, Debug)]
#[command(
    name = "ns-enter",
    version,
    override_usage = "ns-enter [OPTIONS] -- COMMAND [ARG]...",
    after_help = "Example: ns-enter --all --map-auto --mount-proc -- sh -c 'id; ps ax; ip link'"
)]
pub struct Cli {
    /// New mount namespace
    #[arg(long, help_heading = NEW, num_args = 0..=1, require_equals = true, value_name = "PATH")]
    mount: Option<Option<PathBuf>>,
    /// Process numbers; COMMAND is the first process of a new one
    #[arg(long, help_heading = NEW, num_args = 0..=1, require_equals = true, value_name = "PATH")]
    pid: Option<Option<PathBuf>>,
    /// Network, with lo up
    #[arg(long, help_heading = NEW, num_args = 0..=1, require_equals = true, value_name = "PATH")]
    net: Option<Option<PathBuf>>,
    /// System V IPC and POSIX message queues
    #[arg(long, help_heading = NEW, num_args = 0..=1, require_equals = true, value_name = "PATH")]
    ipc: Option<Option<PathBuf>>,
    /// Host and domain name
    #[arg(long, help_heading = NEW, num_args = 0..=1, require_equals = true, value_name = "PATH")]
    uts: Option<Option<PathBuf>>,
    /// Users, groups and capabilities
    #[arg(long, help_heading = NEW, num_args = 0..=1, require_equals = true, value_name = "PATH")]
    user: Option<Option<PathBuf>>,
    /// The caller's cgroups as the root of all
    #[arg(long, help_heading = NEW, num_args = 0..=1, require_equals = true, value_name = "PATH")]
    cgroup: Option<Option<PathBuf>>,
    /// Clocks with offsets
    #[arg(long, help_heading = NEW, num_args = 0..=1, require_equals = true, value_name = "PATH")]
    time: Option<Option<PathBuf>>,
    /// mount, pid, net, ipc, uts, cgroup, and user if the caller is not privileged; with --target, all of its
    #[arg(long, help_heading = NEW)]
    all: bool,
    /// Join the namespaces of this process
    #[arg(long, help_heading = NEW, value_name = "PID")]
    target: Option<i32>,
    /// Keep the namespaces as files in DIR
    #[arg(long, help_heading = NEW, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Take away what --keep left in DIR
    #[arg(long, help_heading = NEW, value_name = "DIR")]
    undo: Option<PathBuf>,

    /// The caller as root (default)
    #[arg(long, help_heading = MAPS)]
    map_root: bool,
    /// The caller as N
    #[arg(long, help_heading = MAPS, value_name = "N", conflicts_with = "map_root")]
    map_user: Option<u32>,
    /// The caller's group as N (default: as the user)
    #[arg(long, help_heading = MAPS, value_name = "N", conflicts_with = "map_root")]
    map_group: Option<u32>,
    /// All subordinate ids of the caller too
    #[arg(long, help_heading = MAPS, conflicts_with_all = ["map_users", "map_groups"])]
    map_auto: bool,
    /// The caller's own and subordinate ids as themselves
    #[arg(long, help_heading = MAPS, conflicts_with_all = ["map_root", "map_user", "map_group", "map_auto", "map_users", "map_groups"])]
    map_same: bool,
    /// These users; repeatable
    #[arg(long, help_heading = MAPS, value_name = "INNER:OUTER:COUNT")]
    map_users: Vec<String>,
    /// These groups; repeatable
    #[arg(long, help_heading = MAPS, value_name = "INNER:OUTER:COUNT")]
    map_groups: Vec<String>,

    /// slave (default): mounts of outside appear inside; private: they do not
    #[arg(long, help_heading = SETUP, value_name = "MODE", value_parser = ["slave", "private"])]
    propagation: Option<String>,
    /// Leave lo down
    #[arg(long, help_heading = SETUP)]
    no_lo: bool,
    /// Connect the new network with the machine's through pasta(1)
    #[arg(long, help_heading = SETUP, conflicts_with = "keep")]
    pasta: bool,
    /// A port of the machine that leads into the new network; repeatable
    #[arg(long, help_heading = SETUP, value_name = "[ADDRESS:]OUTER:INNER[/udp]", requires = "pasta")]
    publish: Vec<String>,
    /// Host name
    #[arg(long, help_heading = SETUP, value_name = "NAME")]
    hostname: Option<OsString>,
    /// NIS domain name
    #[arg(long, help_heading = SETUP, value_name = "NAME")]
    domainname: Option<OsString>,
    /// Kernel parameter of a namespace; repeatable
    #[arg(long, help_heading = SETUP, value_name = "NAME=VALUE")]
    sysctl: Vec<String>,
    /// Mount the new pid namespace's /proc (at PATH)
    #[arg(long, help_heading = SETUP, num_args = 0..=1, require_equals = true, value_name = "PATH")]
    mount_proc: Option<Option<PathBuf>>,
    /// Offset of the monotonic clock
    #[arg(long, help_heading = SETUP, value_name = "SECONDS", allow_hyphen_values = true)]
    monotonic: Option<String>,
    /// Offset of the boot-time clock
    #[arg(long, help_heading = SETUP, value_name = "SECONDS", allow_hyphen_values = true)]
    boottime: Option<String>,

    /// Make DIR the root directory
    #[arg(long, help_heading = ROOT, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Make the root read-only
    #[arg(long, help_heading = ROOT, requires = "root")]
    read_only: bool,
    /// No device nodes of the root itself can be used
    #[arg(long, help_heading = ROOT, requires = "root")]
    nodev: bool,
    /// Working directory, inside the root
    #[arg(long, help_heading = ROOT, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Make the working directory if it is missing
    #[arg(long, help_heading = ROOT, requires_all = ["workdir", "root"])]
    make_workdir: bool,
    /// Stay in the caller's session and terminal although a root is entered
    #[arg(long, help_heading = ROOT)]
    keep_session: bool,

    /// User and group by name or number
    #[arg(long = "as", help_heading = WHO, value_name = "USER[:GROUP]")]
    as_user: Option<String>,
    /// A supplementary group besides, by name or number; repeatable
    #[arg(long, help_heading = WHO, value_name = "GROUP", requires = "as_user")]
    group_add: Vec<String>,
    /// Keep the caller's ids where a user namespace is joined, instead of becoming its root
    #[arg(long, help_heading = WHO, conflicts_with = "as_user")]
    keep_ids: bool,
    /// Take a capability away, or all; repeatable
    #[arg(long, help_heading = WHO, value_name = "CAP", value_delimiter = ',')]
    cap_drop: Vec<String>,
    /// Keep a capability in spite of --cap-drop, or all; repeatable
    #[arg(long, help_heading = WHO, value_name = "CAP", value_delimiter = ',')]
    cap_add: Vec<String>,
    /// As --cap-add, and in force for a user other than root; repeatable
    #[arg(long, help_heading = WHO, value_name = "CAP", value_delimiter = ',')]
    cap_ambient: Vec<String>,
    /// No program gives more privileges
    #[arg(long, help_heading = WHO)]
    no_new_privs: bool,
    /// System calls that COMMAND may make: default (Docker's), none (all), or a file (linux.seccomp of an OCI configuration)
    #[arg(long, help_heading = WHO, value_name = "default|none|FILE")]
    seccomp: Option<OsString>,

    /// A small init as parent of COMMAND, that reaps what is left behind and passes signals on
    #[arg(long, help_heading = PROCESS)]
    init: bool,
    /// A terminal of its own, relayed to and from the caller's
    #[arg(long, help_heading = PROCESS)]
    tty: bool,
    /// What COMMAND gets when this process is told to end (SIGTERM)
    #[arg(long, help_heading = PROCESS, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Kill COMMAND if it has not ended so long after that
    #[arg(long, help_heading = PROCESS, value_name = "SECONDS", allow_hyphen_values = true)]
    stop_timeout: Option<String>,
    /// Write the number, outside, of the first process of COMMAND's to FILE
    #[arg(long, help_heading = PROCESS, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Set, or take over, a variable; repeatable
    #[arg(long, help_heading = PROCESS, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Variables from a file, one a line; repeatable
    #[arg(long, help_heading = PROCESS, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Start from an empty environment
    #[arg(long, help_heading = PROCESS)]
    clear_env: bool,
    /// Resource limit; repeatable
    #[arg(long, help_heading = PROCESS, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// File mode creation mask, octal
    #[arg(long, help_heading = PROCESS, value_name = "MODE")]
    umask: Option<String>,
    /// Preference of the out-of-memory killer, -1000 to 1000
    #[arg(long, help_heading = PROCESS, value_name = "N", allow_hyphen_values = true, value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    oom_score_adj: Option<i32>,
    /// Close all descriptors from 3 on but N (as --root does); repeatable
    #[arg(long, help_heading = PROCESS, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    keep_fd: Vec<i32>,

    /// Read an OCI runtime configuration (- is stdin) for what is not given here
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Say what this caller can have here, and why not the rest
    #[arg(long)]
    check: bool,
    /// With --check: as JSON
    #[arg(long, requires = "check")]
    json: bool,
    #[command(flatten)]
    common: chain::args::Common,
    /// What to run
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What the arguments ask for.
pub enum Action {
    /// Enter; with the document that fills in what was not given.
    Enter(Box<Request>, Option<PathBuf>),
    /// Take away what was kept in a directory.
    Undo(PathBuf),
    /// Report whether this could be had; as JSON, if so.
    Check(Box<Request>, bool),
}

/// Parses `args`. Errors: what cannot be right.
pub fn parse(args: &[OsString]) -> Result<Action, chain::args::Stop> {
    let cli = chain::args::parse::<Cli>(args)?;
    cli.common.apply();
    Ok(cli.action()?)
}

impl Cli {
    fn action(self) -> Result<Action> {
        if self.check {
            let json = self.json;
            return Ok(Action::Check(Box::new(self.request()?), json));
        }
        if let Some(dir) = self.undo {
            return match self.command.is_empty() {
                true => Ok(Action::Undo(dir)),
                false => Err(Error::usage("--undo takes no COMMAND")),
            };
        }
        let from = self.from.clone();
        let request = self.request()?;
        Ok(Action::Enter(Box::new(request), from))
    }

    fn request(self) -> Result<Request> {
        let map = self.map()?;
        let capabilities = self.capabilities()?;
        let mut request = Request {
            all: self.all,
            target: self.target.map(target).transpose()?,
            map,
            keep: self.keep,
            root: self.root,
            read_only: self.read_only,
            nodev: self.nodev,
            workdir: self.workdir,
            make_workdir: self.make_workdir,
            keep_session: self.keep_session,
            user: (self.as_user.as_deref().map(Wanted::parse).transpose()?)
                .map(|user| user.with_groups(self.group_add)),
            keep_ids: self.keep_ids,
            capabilities,
            no_new_privs: self.no_new_privs,
            seccomp: self.seccomp.map(Profile::parse),
            init: self.init,
            tty: self.tty,
            stop: stop::parse(self.stop_signal.as_deref(), self.stop_timeout.as_deref())?,
            pid_file: self.pid_file,
            limits: self.ulimit.iter().map(|text| Limit::parse(text)).collect::<Result<_>>()?,
            umask: self.umask.as_deref().map(umask).transpose()?,
            oom_score: self.oom_score_adj,
            keep_fds: self.keep_fd,
            environment: Changes { clear: self.clear_env, base: Vec::new(), files: self.env_file, entries: self.env },
            command: self.command,
            ..Request::default()
        };
        let kinds = [
            (Kind::User, self.user),
            (Kind::Mount, self.mount),
            (Kind::Pid, self.pid),
            (Kind::Net, self.net),
            (Kind::Ipc, self.ipc),
            (Kind::Uts, self.uts),
            (Kind::Cgroup, self.cgroup),
            (Kind::Time, self.time),
        ];
        for (kind, option) in kinds {
            match option {
                None => {}
                Some(Some(path)) => request.namespaces.add(kind, Origin::Path(path))?,
                Some(None) if request.target.is_some() => request.namespaces.add(kind, Origin::Target)?,
                Some(None) => request.namespaces.add(kind, Origin::New)?,
            }
        }
        if request.target.is_some() && request.namespaces.is_empty() && !request.all {
            return Err(Error::usage("--target without a kind of namespace").hint("add --all for all of its"));
        }
        request.setup = Setup {
            propagation: match self.propagation.as_deref() {
                Some("private") => Propagation::Private,
                _ => Propagation::Slave,
            },
            no_loopback: self.no_lo,
            pasta: match self.pasta {
                true => Some(self.publish.iter().map(|text| Port::parse(text)).collect::<Result<_>>()?),
                false => None,
            },
            hostname: self.hostname,
            domainname: self.domainname,
            sysctls: self.sysctl.iter().map(|text| sysctl(text)).collect::<Result<_>>()?,
            proc: self.mount_proc.map(|path| path.unwrap_or_else(|| "/proc".into())),
            monotonic: self.monotonic.as_deref().map(offset).transpose()?,
            boottime: self.boottime.as_deref().map(offset).transpose()?,
        };
        Ok(request)
    }

    fn map(&self) -> Result<Option<Map>> {
        let ranges = |texts: &[String]| texts.iter().map(|text| Range::parse(text)).collect::<Result<Vec<_>>>();
        let (users, groups) = (ranges(&self.map_users)?, ranges(&self.map_groups)?);
        let own = match (self.map_user, self.map_group) {
            (None, None) => None,
            (Some(user), group) => Some((user, group.unwrap_or(user))),
            (None, Some(group)) => Some((0, group)),
        };
        if !users.is_empty() || !groups.is_empty() {
            let own = own.or(self.map_root.then_some((0, 0)));
            if own.is_none() && (users.is_empty() || groups.is_empty()) {
                return Err(Error::usage("--map-users without --map-groups, or the reverse")
                    .hint("map both, or add --map-root for the caller's own"));
            }
            return Ok(Some(Map::Ranges { own, users, groups }));
        }
        if self.map_same {
            return Ok(Some(Map::Same));
        }
        let (user, group) = own.unwrap_or((0, 0));
        Ok(match self.map_auto {
            true => Some(Map::Auto(user, group)),
            false => (own.is_some() || self.map_root).then_some(Map::Own(user, group)),
        })
    }

    fn capabilities(&self) -> Result<Option<capability::Wanted>> {
        let set = |names: &[String]| names.iter().try_fold(0, |set, name| Ok(set | capability::parse(name)?));
        let (drop, add, ambient) = (set(&self.cap_drop)?, set(&self.cap_add)?, set(&self.cap_ambient)?);
        let any = !(self.cap_drop.is_empty() && self.cap_add.is_empty() && self.cap_ambient.is_empty());
        Ok(any.then_some(capability::Wanted::Change { drop, add, ambient }))
    }
}

fn target(pid: i32) -> Result<Pid> {
    if pid <= 0 {
        return Err(Error::usage(format_args!("--target {pid}: not a process number")));
    }
    Ok(Pid::from_raw(pid))
}

fn umask(text: &str) -> Result<u32> {
    match u32::from_str_radix(text, 8) {
        Ok(mask) if mask <= 0o777 => Ok(mask),
        _ => Err(Error::usage(format_args!("umask {text:?}: not octal, 0 to 777"))),
    }
}

fn sysctl(text: &str) -> Result<(String, String)> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| Error::usage(format_args!("sysctl {text:?}: no =")).hint("write NAME=VALUE"))?;
    let name = name.trim().replace('/', ".");
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if !plain || name.split('.').any(str::is_empty) {
        return Err(Error::usage(format_args!("sysctl {name:?}: not the name of a kernel parameter")));
    }
    Ok((name, value.trim().to_string()))
}

/// Seconds, with a sign and a fraction, as the kernel takes them: whole seconds rounded down, and nanoseconds.
fn offset(text: &str) -> Result<(i64, u32)> {
    let wrong = || Error::usage(format_args!("offset {text:?}: not a number of seconds"));
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !plain(whole) || !plain(fraction) || fraction.len() > 9 {
        return Err(wrong());
    }
    let seconds: i64 = whole.parse().map_err(|_| wrong())?;
    let nanos: u32 = format!("{fraction:0<9}").parse().map_err(|_| wrong())?;
    Ok(match (negative, nanos) {
        (false, nanos) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, nanos) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(args: &[&str]) -> Result<Request> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        match parse(&args) {
            Ok(Action::Enter(request, _)) => Ok(*request),
            Ok(_) => panic!("{args:?}: not entering"),
            Err(chain::args::Stop::Fail(error)) => Err(error),
            Err(chain::args::Stop::Show(text)) => panic!("{text}"),
        }
    }

    #[test]
    fn the_grammar_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn namespaces_are_new_a_file_or_the_targets() {
        let made = request(&["--mount", "--net=/run/net", "--", "x"]).unwrap();
        assert_eq!(made.namespaces.origin(Kind::Mount), Some(&Origin::New));
        assert_eq!(made.namespaces.origin(Kind::Net), Some(&Origin::Path("/run/net".into())));
        let joined = request(&["--target", "7", "--pid", "--", "x"]).unwrap();
        assert_eq!(joined.namespaces.origin(Kind::Pid), Some(&Origin::Target));
        assert!(request(&["--target", "7", "--", "x"]).is_err());
        assert!(request(&["--target", "0", "--all", "--", "x"]).is_err());
    }

    #[test]
    fn maps() {
        let map = |args: &[&str]| request(args).map(|request| request.map);
        assert_eq!(map(&["--user"]).unwrap(), None);
        assert_eq!(map(&["--map-root"]).unwrap(), Some(Map::Own(0, 0)));
        assert_eq!(map(&["--map-user", "5"]).unwrap(), Some(Map::Own(5, 5)));
        assert_eq!(map(&["--map-user", "5", "--map-group", "6", "--map-auto"]).unwrap(), Some(Map::Auto(5, 6)));
        assert!(map(&["--map-users", "0:1000:1"]).is_err());
        assert!(map(&["--map-users", "0:1000"]).is_err());
        let ranges = map(&["--map-users", "0:1:2", "--map-users", "5:6:7", "--map-groups", "0:1:2"]).unwrap();
        assert!(matches!(ranges, Some(Map::Ranges { own: None, users, .. }) if users.len() == 2));
    }

    #[test]
    fn clock_offsets_have_signs_and_fractions() {
        assert_eq!(offset("86400").unwrap(), (86400, 0));
        assert_eq!(offset("-1.5").unwrap(), (-2, 500_000_000));
        assert_eq!(offset("+0.000000001").unwrap(), (0, 1));
        for text in ["", "-", "1.", ".5", "1s", "1.0000000001", "99999999999999999999"] {
            assert!(offset(text).is_err(), "{text}");
        }
    }

    #[test]
    fn seccomp_is_a_word_or_a_file() {
        let seccomp = |text: &str| request(&["--seccomp", text, "--", "x"]).unwrap().seccomp;
        assert_eq!(seccomp("none"), Some(Profile::All));
        assert_eq!(seccomp("default"), Some(Profile::Default));
        assert_eq!(seccomp("./none"), Some(Profile::File("./none".into())));
    }

    #[test]
    fn small_things() {
        assert_eq!(umask("0022").unwrap(), 0o22);
        assert!(umask("9").is_err() && umask("1000").is_err());
        assert_eq!(sysctl("net/ipv4/ip_forward= 1").unwrap(), ("net.ipv4.ip_forward".into(), "1".into()));
        assert!(sysctl("net..x=1").is_err() && sysctl("net.x").is_err());
        assert_eq!(request(&["--oom-score-adj", "-5"]).unwrap().oom_score, Some(-5));
        assert_eq!(request(&["--", "a\nb", "--root"]).unwrap().command, ["a\nb", "--root"].map(OsString::from));
    }
}
