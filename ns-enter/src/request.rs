//! What was asked for: arguments and document, checked, and nothing done yet.

use crate::capability;
use crate::create::Setup;
use crate::environment::Changes;
use crate::limits::Limit;
use crate::namespace::{Kind, Origin, Selection};
use crate::seccomp::Profile;
use crate::user::Wanted;
use chain::link::Stopping;
use chain::userns::{Maps, Range};
use chain::{Error, Result};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::path::PathBuf;

/// What to do.
#[derive(Debug, Default)]
pub struct Request {
    /// Namespaces to be in.
    pub namespaces: Selection,
    /// Whether `--all` adds what it stands for.
    pub all: bool,
    /// Whose namespaces are meant.
    pub target: Option<Pid>,
    /// The ids of a new user namespace.
    pub map: Option<Map>,
    /// What new namespaces hold.
    pub setup: Setup,
    /// Where to keep them.
    pub keep: Option<PathBuf>,
    /// The root directory to enter, and how.
    pub root: Option<PathBuf>,
    /// Whether the root is read-only.
    pub read_only: bool,
    /// Whether device nodes of the root cannot be used.
    pub nodev: bool,
    /// The working directory inside.
    pub workdir: Option<PathBuf>,
    /// Whether the working directory is made if it is missing.
    pub make_workdir: bool,
    /// Whether the session stays the caller's although a root is entered.
    pub keep_session: bool,
    /// Who COMMAND runs as.
    pub user: Option<Wanted>,
    /// Whether the ids stay the caller's where a user namespace is joined.
    pub keep_ids: bool,
    /// COMMAND's capabilities.
    pub capabilities: Option<capability::Wanted>,
    /// No program may give more privileges.
    pub no_new_privs: bool,
    /// The system calls that COMMAND may make.
    pub seccomp: Option<Profile>,
    /// Whether an init stays as COMMAND's parent.
    pub init: bool,
    /// Whether COMMAND gets a terminal of its own.
    pub tty: bool,
    /// How COMMAND is asked to end.
    pub stop: Option<Stopping>,
    /// Where the process number of the child that COMMAND runs in is written.
    pub pid_file: Option<PathBuf>,
    /// Resource limits.
    pub limits: Vec<Limit>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Preference of the out-of-memory killer.
    pub oom_score: Option<i32>,
    /// Descriptors that are kept where others are closed.
    pub keep_fds: Vec<i32>,
    /// COMMAND's environment.
    pub environment: Changes,
    /// COMMAND.
    pub command: Vec<OsString>,
}

/// The ids of a new user namespace, as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Map {
    /// The caller's own ids alone, as these (user, group) inside.
    Own(u32, u32),
    /// The caller's own ids as these inside, and all its subordinate ids around them from 0 up.
    Auto(u32, u32),
    /// The caller's own ids and all its subordinate ids as themselves, so that what maps them again inside finds them.
    Same,
    /// The caller's own ids, if given, and these ranges.
    Ranges {
        /// The caller's own ids, as these inside.
        own: Option<(u32, u32)>,
        /// Users.
        users: Vec<Range>,
        /// Groups.
        groups: Vec<Range>,
    },
}

impl Map {
    /// The ranges. Errors: subordinate ids cannot be read; ranges overlap.
    pub fn resolve(&self) -> Result<Maps> {
        let maps = match self {
            Map::Own(user, group) => Maps::own(*user, *group),
            Map::Auto(0, 0) => Maps::auto()?,
            Map::Auto(user, group) => {
                let mut maps = Maps::auto()?;
                maps.users = around(&maps.users, *user);
                maps.groups = around(&maps.groups, *group);
                maps
            }
            Map::Same => {
                let mut maps = Maps::auto()?;
                for range in maps.users.iter_mut().chain(&mut maps.groups) {
                    range.inner = range.outer;
                }
                maps
            }
            Map::Ranges { own, users, groups } => {
                let mut maps = own.map_or_else(Maps::default, |(user, group)| Maps::own(user, group));
                maps.users.extend(users);
                maps.groups.extend(groups);
                maps
            }
        };
        maps.check()?;
        Ok(maps)
    }
}

/// Ranges that begin with the caller's own id as `inner`, the rest one after the other in what is free from 0 up.
fn around(ranges: &[Range], inner: u32) -> Vec<Range> {
    let Some((own, rest)) = ranges.split_first() else { return Vec::new() };
    let mut result = vec![Range { inner, ..*own }];
    let mut next = 0;
    for range in rest {
        let before = if next < inner { range.count.min(inner - next) } else { 0 };
        if before > 0 {
            result.push(Range { inner: next, outer: range.outer, count: before });
            next += before;
        }
        if next == inner {
            next += 1;
        }
        let after = range.count - before;
        if after > 0 {
            result.push(Range { inner: next, outer: range.outer + before, count: after });
            next += after;
        }
    }
    result
}

impl Request {
    /// Adds what other options imply, and refuses what cannot be.
    pub fn complete(&mut self) -> Result<()> {
        if self.command.is_empty() && self.keep.is_none() {
            return Err(Error::usage("no COMMAND").hint("write -- COMMAND, or --keep DIR to keep new namespaces"));
        }
        let setup = &self.setup;
        if self.map.is_some() {
            self.namespaces.imply(Kind::User);
        }
        if setup.hostname.is_some() || setup.domainname.is_some() {
            self.namespaces.imply(Kind::Uts);
        }
        if setup.proc.is_some() {
            self.namespaces.imply(Kind::Mount);
        }
        if setup.pasta.is_some() {
            self.namespaces.imply(Kind::Net);
            if !self.namespaces.makes(Kind::Net) {
                return Err(Error::usage("--pasta: only a new network is connected, not one that is joined"));
            }
        }
        if setup.monotonic.is_some() || setup.boottime.is_some() {
            self.namespaces.imply(Kind::Time);
            if !self.namespaces.makes(Kind::Time) {
                return Err(Error::usage("clock offsets: only a new time namespace takes them"));
            }
        }
        if self.map.is_some() && !self.namespaces.makes(Kind::User) {
            return Err(Error::usage("id maps: only a new user namespace takes them, not one that is joined"));
        }
        for (name, _) in &self.setup.sysctls {
            check_sysctl(name, &self.namespaces, self.all)?;
        }
        Ok(())
    }
}

impl Request {
    /// Whether a new process comes before anything that changes this one.
    pub fn splits_first(&self) -> bool {
        let joins = self.target.is_some() || self.namespaces.iter().any(|(_, origin)| *origin != Origin::New);
        (self.all || self.namespaces.makes(Kind::Pid)) && !joins && !self.namespaces.makes(Kind::Time)
    }
}

fn check_sysctl(name: &str, namespaces: &Selection, all: bool) -> Result<()> {
    match crate::create::sysctl_namespace(name) {
        None => Err(Error::usage(format_args!(
            "sysctl {name:?}: it belongs to no namespace, so it would change the machine"
        ))),
        Some(kind) if !all && !namespaces.has(kind) => Err(Error::usage(format_args!(
            "sysctl {name:?}: it belongs to the {0} namespace; add --{0}",
            kind.option()
        ))),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(inner: u32, outer: u32, count: u32) -> Range {
        Range { inner, outer, count }
    }

    #[test]
    fn subordinate_ids_fill_around_the_own_one() {
        let ranges = [range(0, 1000, 1), range(1, 100000, 10)];
        assert_eq!(around(&ranges, 3), [range(3, 1000, 1), range(0, 100000, 3), range(4, 100003, 7)]);
        assert_eq!(around(&ranges, 0), [range(0, 1000, 1), range(1, 100000, 10)]);
        assert_eq!(around(&ranges, 50), [range(50, 1000, 1), range(0, 100000, 10)]);
        assert_eq!(around(&ranges, 10), [range(10, 1000, 1), range(0, 100000, 10)]);
        let two = [range(0, 1000, 1), range(1, 100, 2), range(3, 200, 5)];
        assert_eq!(around(&two, 2), [range(2, 1000, 1), range(0, 100, 2), range(3, 200, 5)]);
    }

    #[test]
    fn options_imply_namespaces() {
        let mut request = Request { map: Some(Map::Own(0, 0)), command: vec!["x".into()], ..Request::default() };
        request.setup.hostname = Some("x".into());
        request.complete().unwrap();
        assert!(request.namespaces.makes(Kind::User) && request.namespaces.makes(Kind::Uts));
    }

    #[test]
    fn parameters_of_the_machine_are_refused() {
        let mut request = Request { command: vec!["x".into()], ..Request::default() };
        request.setup.sysctls = vec![("kernel.panic".into(), "1".into())];
        assert!(request.complete().unwrap_err().to_string().contains("would change the machine"));
        request.setup.sysctls = vec![("net.ipv4.ip_forward".into(), "1".into())];
        assert!(request.complete().unwrap_err().to_string().contains("add --net"));
        request.all = true;
        request.complete().unwrap();
    }
}
