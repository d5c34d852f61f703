//! The kinds of namespaces (namespaces(7)): one table that making, joining, keeping and checking walk.

use chain::{Error, Result};
use nix::libc;
use std::path::PathBuf;

/// A kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Users, groups and capabilities.
    User,
    /// Mounts.
    Mount,
    /// Process numbers.
    Pid,
    /// Network devices, addresses, ports.
    Net,
    /// System V IPC, POSIX message queues.
    Ipc,
    /// Host and domain name.
    Uts,
    /// What is the root of the cgroups.
    Cgroup,
    /// Offsets of the monotonic and the boot-time clock.
    Time,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 8] =
        [Kind::User, Kind::Mount, Kind::Pid, Kind::Net, Kind::Ipc, Kind::Uts, Kind::Cgroup, Kind::Time];

    /// The `CLONE_NEW…` flag.
    pub fn flag(self) -> i32 {
        match self {
            Kind::User => libc::CLONE_NEWUSER,
            Kind::Mount => libc::CLONE_NEWNS,
            Kind::Pid => libc::CLONE_NEWPID,
            Kind::Net => libc::CLONE_NEWNET,
            Kind::Ipc => libc::CLONE_NEWIPC,
            Kind::Uts => libc::CLONE_NEWUTS,
            Kind::Cgroup => libc::CLONE_NEWCGROUP,
            Kind::Time => 0x80,
        }
    }

    /// The name in /proc/PID/ns.
    pub fn file(self) -> &'static str {
        match self {
            Kind::User => "user",
            Kind::Mount => "mnt",
            Kind::Pid => "pid",
            Kind::Net => "net",
            Kind::Ipc => "ipc",
            Kind::Uts => "uts",
            Kind::Cgroup => "cgroup",
            Kind::Time => "time",
        }
    }

    /// The name in /proc/PID/ns of the namespace that the process's next child is in.
    pub fn file_for_children(self) -> &'static str {
        match self {
            Kind::Pid => "pid_for_children",
            Kind::Time => "time_for_children",
            other => other.file(),
        }
    }

    /// The option, without dashes.
    pub fn option(self) -> &'static str {
        match self {
            Kind::Mount => "mount",
            other => other.file(),
        }
    }

    /// The name in an OCI runtime configuration.
    pub fn oci(self) -> &'static str {
        match self {
            Kind::Net => "network",
            other => other.option(),
        }
    }

    /// The kind that an OCI runtime configuration calls `name`.
    pub fn from_oci(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.oci() == name)
    }
}

/// Where a namespace comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is made.
    New,
    /// It is the target process's.
    Target,
    /// It is this file (/proc/PID/ns/NAME, or one that `--keep` made).
    Path(PathBuf),
}

/// Which namespaces to be in: at most one of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection(Vec<(Kind, Origin)>);

impl Selection {
    /// Adds a kind. Error: it is there already, from elsewhere.
    pub fn add(&mut self, kind: Kind, origin: Origin) -> Result<()> {
        match self.origin(kind) {
            None => self.0.push((kind, origin)),
            Some(other) if *other == origin => {}
            Some(_) => return Err(Error::usage(format_args!("--{}: given twice", kind.option()))),
        }
        Ok(())
    }

    /// Adds a kind, to be made, unless it comes from somewhere already.
    pub fn imply(&mut self, kind: Kind) {
        if !self.has(kind) {
            self.0.push((kind, Origin::New));
        }
    }

    /// Where `kind` comes from, if it was asked for.
    pub fn origin(&self, kind: Kind) -> Option<&Origin> {
        self.0.iter().find(|(other, _)| *other == kind).map(|(_, origin)| origin)
    }

    /// Whether `kind` was asked for.
    pub fn has(&self, kind: Kind) -> bool {
        self.origin(kind).is_some()
    }

    /// Whether `kind` is to be made.
    pub fn makes(&self, kind: Kind) -> bool {
        self.origin(kind) == Some(&Origin::New)
    }

    /// Whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All that was asked for.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, &Origin)> {
        self.0.iter().map(|(kind, origin)| (*kind, origin))
    }

    /// The flags of those of `kinds` that are to be made.
    pub fn new_flags(&self) -> i32 {
        self.0.iter().filter(|(_, origin)| *origin == Origin::New).fold(0, |flags, (kind, _)| flags | kind.flag())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_comes_from_one_place() {
        let mut selection = Selection::default();
        selection.add(Kind::Net, Origin::Path("/a".into())).unwrap();
        assert!(selection.add(Kind::Net, Origin::New).is_err());
        selection.imply(Kind::Net);
        selection.imply(Kind::Uts);
        assert_eq!(selection.origin(Kind::Net), Some(&Origin::Path("/a".into())));
        assert_eq!(selection.new_flags(), libc::CLONE_NEWUTS);
    }

    #[test]
    fn names_as_the_specification_has_them() {
        assert_eq!(Kind::from_oci("network"), Some(Kind::Net));
        assert_eq!(Kind::from_oci("mount"), Some(Kind::Mount));
        assert_eq!(Kind::from_oci("mnt"), None);
    }
}
