//! What limits COMMAND as a process: resource limits (getrlimit(2)), umask, and the out-of-memory killer's preference.

use chain::sys::process;
use chain::trace::op;
use chain::{Error, Result, size};
use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use std::fs;

/// One resource limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Which.
    pub resource: Resource,
    /// The value in force, `RLIM_INFINITY` for none.
    pub soft: u64,
    /// What a process may raise the value in force to.
    pub hard: u64,
}

const NAMES: [(&str, Resource); 16] = [
    ("as", Resource::RLIMIT_AS),
    ("core", Resource::RLIMIT_CORE),
    ("cpu", Resource::RLIMIT_CPU),
    ("data", Resource::RLIMIT_DATA),
    ("fsize", Resource::RLIMIT_FSIZE),
    ("locks", Resource::RLIMIT_LOCKS),
    ("memlock", Resource::RLIMIT_MEMLOCK),
    ("msgqueue", Resource::RLIMIT_MSGQUEUE),
    ("nice", Resource::RLIMIT_NICE),
    ("nofile", Resource::RLIMIT_NOFILE),
    ("nproc", Resource::RLIMIT_NPROC),
    ("rss", Resource::RLIMIT_RSS),
    ("rtprio", Resource::RLIMIT_RTPRIO),
    ("rttime", Resource::RLIMIT_RTTIME),
    ("sigpending", Resource::RLIMIT_SIGPENDING),
    ("stack", Resource::RLIMIT_STACK),
];

/// The resource called `name` (`nofile`, or `RLIMIT_NOFILE`).
pub fn resource(name: &str) -> Result<Resource> {
    let lower = name.to_ascii_lowercase();
    let bare = lower.strip_prefix("rlimit_").unwrap_or(&lower);
    NAMES.iter().find(|(known, _)| *known == bare).map(|(_, resource)| *resource).ok_or_else(|| {
        let known: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        Error::usage(format_args!("limit {name:?}: unknown")).hint(format_args!("one of {}", known.join(", ")))
    })
}

impl Limit {
    /// From `NAME=SOFT[:HARD]`; the values are numbers, sizes, or `max`. Errors: unknown name, soft above hard.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong =
            |why: &str| Error::usage(format_args!("limit {text:?}: {why}")).hint("write NAME=SOFT or NAME=SOFT:HARD");
        let (name, values) = text.split_once('=').ok_or_else(|| wrong("no ="))?;
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let value = |text: &str| match text {
            "unlimited" => Ok(RLIM_INFINITY),
            other => size::parse_limit(other).map(|limit| limit.unwrap_or(RLIM_INFINITY)),
        };
        let limit = Limit { resource: resource(name)?, soft: value(soft)?, hard: value(hard)? };
        if limit.soft > limit.hard {
            return Err(wrong("the soft limit is above the hard one"));
        }
        Ok(limit)
    }

    /// Sets it. Error: the hard limit would go up without CAP_SYS_RESOURCE.
    pub fn set(&self) -> Result<()> {
        let name = NAMES.iter().find(|(_, resource)| *resource == self.resource).map_or("?", |(name, _)| name);
        let show = |value: u64| if value == RLIM_INFINITY { "max".into() } else { value.to_string() };
        let call = format_args!("setrlimit({name}, {}:{})", show(self.soft), show(self.hard));
        op(call, || setrlimit(self.resource, self.soft, self.hard)).map_err(|error| match error.errno() {
            Some(Errno::EPERM) => match getrlimit(self.resource) {
                Ok((soft, hard)) => error.hint(format_args!(
                    "it is {}:{} here, and only root of the machine may raise the hard one",
                    show(soft),
                    show(hard)
                )),
                Err(_) => error,
            },
            _ => error,
        })
    }
}

/// Sets this process's /proc/self/oom_score_adj, -1000 to 1000.
pub fn set_oom_score(value: i32) -> Result<()> {
    let path = "/proc/self/oom_score_adj";
    op(format_args!("write({path:?}, \"{value}\")"), || fs::write(path, value.to_string())).map_err(|error| match error
        .errno()
    {
        Some(Errno::EACCES | Errno::EPERM) => {
            let now = fs::read_to_string(path).unwrap_or_default();
            error.hint(format_args!(
                "it is {} here, and only root of the machine may go below what root has set",
                now.trim()
            ))
        }
        _ => error,
    })
}

/// Closes all descriptors but the standard ones and `keep` when COMMAND is executed.
///
/// Error: one to keep is not open, or not the caller's.
pub fn close_descriptors(keep: &[i32]) -> Result<()> {
    for fd in keep {
        // What the caller passed is not marked so; what this process opened is.
        let flags = process::descriptor_flags(*fd).map_err(|errno| {
            Error::call(format_args!("fcntl({fd}, F_GETFD)"), errno).hint("no such descriptor came from the caller")
        })?;
        if *fd > 2 && flags & libc::FD_CLOEXEC != 0 {
            return Err(Error::call(format_args!("fcntl({fd}, F_GETFD)"), Errno::EBADF)
                .hint("no such descriptor came from the caller"));
        }
    }
    op(format_args!("close_range(3, max, CLOSE_RANGE_CLOEXEC)"), || process::close_on_exec_from(3))?;
    for fd in keep.iter().filter(|fd| **fd > 2) {
        op(format_args!("fcntl({fd}, F_SETFD, 0)"), || process::set_descriptor_flags(*fd, 0))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_parse() {
        let limit = Limit::parse("nofile=1024:2048").unwrap();
        assert_eq!((limit.resource, limit.soft, limit.hard), (Resource::RLIMIT_NOFILE, 1024, 2048));
        let limit = Limit::parse("RLIMIT_AS=1G:unlimited").unwrap();
        assert_eq!((limit.soft, limit.hard), (1 << 30, RLIM_INFINITY));
        assert_eq!(Limit::parse("core=-1").unwrap().soft, RLIM_INFINITY);
        for text in ["nofile", "nofile=", "nofile=2:1", "files=1", "nofile=a", "nofile=max:5"] {
            assert!(Limit::parse(text).is_err(), "{text}");
        }
    }
}
