//! Capabilities (capabilities(7)): names, and what the five sets become.

use chain::sys::process;
use chain::trace::op;
use chain::{Error, Result};
use nix::errno::Errno;
use nix::libc;

/// Names in the order of their numbers, without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A set of capabilities: bit N is capability N.
pub type Set = u64;

/// All that a set can hold.
pub const ALL: Set = u64::MAX;

/// The set that `name` means: one, with or without `CAP_`, in either case, or `all`. Error: no such capability.
pub fn parse(name: &str) -> Result<Set> {
    let upper = name.to_ascii_uppercase();
    if upper == "ALL" {
        return Ok(ALL);
    }
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    match NAMES.iter().position(|known| *known == bare) {
        Some(number) => Ok(1 << number),
        None => Err(Error::usage(format_args!("capability {name:?}: not one of capabilities(7)"))),
    }
}

/// The names of a set, for messages.
pub fn names(set: Set) -> String {
    let names: Vec<String> = (0..64)
        .filter(|number| set & 1 << number != 0)
        .map(|number| NAMES.get(number).map_or_else(|| format!("{number}"), |name| format!("CAP_{name}")))
        .collect();
    if names.is_empty() { "none".into() } else { names.join(",") }
}

/// What COMMAND's sets are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// What there is now, without what is dropped, with what is added; a user other than root has only the ambient ones.
    Change {
        /// Taken out of all sets.
        drop: Set,
        /// Kept in spite of that.
        add: Set,
        /// Inheritable and ambient too, and kept.
        ambient: Set,
    },
    /// Exactly these.
    Exactly(Sets),
}

/// The five sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// The limit for programs that are executed.
    pub bounding: Set,
    /// In force.
    pub effective: Set,
    /// May be put in force.
    pub permitted: Set,
    /// Kept over execve if the file has it too.
    pub inheritable: Set,
    /// Kept over execve.
    pub ambient: Set,
}

impl Wanted {
    /// The sets that a process gets whose sets are `now` and whose user id becomes `user`.
    ///
    /// Error: one that was asked for is not in `now`.
    pub fn resolve(&self, now: Sets, user: u32) -> Result<Sets> {
        match *self {
            Wanted::Exactly(sets) => {
                available("bounding", sets.bounding, now.bounding)?;
                let most = sets.effective | sets.permitted | sets.ambient;
                available("permitted", most, now.permitted)?;
                available("inheritable", sets.inheritable, now.permitted | now.inheritable | now.bounding)?;
                if sets.effective & !sets.permitted != 0 {
                    return Err(Error::usage(format_args!(
                        "capabilities effective but not permitted: {}",
                        names(sets.effective & !sets.permitted)
                    )));
                }
                if sets.ambient & !(sets.inheritable & sets.permitted) != 0 {
                    return Err(Error::usage(format_args!(
                        "capabilities ambient but not inheritable and permitted: {}",
                        names(sets.ambient & !(sets.inheritable & sets.permitted))
                    )));
                }
                Ok(sets)
            }
            Wanted::Change { drop, add, ambient } => {
                let ambient = if ambient == ALL { now.permitted & now.bounding } else { ambient };
                let add = (if add == ALL { now.bounding } else { add }) | ambient;
                available("bounding", add, now.bounding)?;
                available("permitted", ambient, now.permitted)?;
                let bounding = (now.bounding & !drop) | add;
                let permitted = if user == 0 { now.permitted & bounding } else { ambient };
                Ok(Sets { bounding, effective: permitted, permitted, inheritable: ambient, ambient })
            }
        }
    }
}

fn available(set: &str, wanted: Set, has: Set) -> Result<()> {
    match wanted & !has {
        0 => Ok(()),
        missing => Err(Error::new(format_args!(
            "capabilities {}: not in this process's {set} set, so they cannot be given",
            names(missing)
        ))),
    }
}

/// This process's sets.
pub fn current() -> Result<Sets> {
    let sets = op(format_args!("capget()"), process::capget)?;
    let mut bounding = 0;
    let mut ambient = 0;
    for number in 0..64 {
        match process::prctl(libc::PR_CAPBSET_READ, [number, 0, 0, 0]) {
            Ok(value) => bounding |= (value as Set) << number,
            // Past the last capability that this kernel knows.
            Err(_) => break,
        }
        if sets.inheritable & 1 << number != 0 {
            let is_set = process::prctl(libc::PR_CAP_AMBIENT, [libc::PR_CAP_AMBIENT_IS_SET as u64, number, 0, 0]);
            ambient |= is_set.map_or(0, |value| value as Set) << number;
        }
    }
    Ok(Sets { bounding, effective: sets.effective, permitted: sets.permitted, inheritable: sets.inheritable, ambient })
}

/// Takes out of the bounding set what is not in `keep`. Needs CAP_SETPCAP.
pub fn limit(now: Set, keep: Set) -> Result<()> {
    let dropped = now & !keep;
    if dropped == 0 {
        return Ok(());
    }
    let drop = |number: u64| process::prctl(libc::PR_CAPBSET_DROP, [number, 0, 0, 0]).map(drop);
    op(format_args!("prctl(PR_CAPBSET_DROP, {})", names(dropped)), || {
        (0..64).filter(|number| dropped & 1 << number != 0).try_for_each(drop)
    })
    .map_err(|error| match error.errno() {
        Some(Errno::EPERM) => error.hint("dropping capabilities for good takes CAP_SETPCAP; --user gives it"),
        _ => error,
    })
}

/// Sets all but the bounding set. What is not wanted in the ambient set leaves it with the inheritable set.
pub fn set(sets: Sets) -> Result<()> {
    let Sets { effective, permitted, inheritable, ambient, .. } = sets;
    op(
        format_args!(
            "capset(effective {}, permitted {}, inheritable {})",
            names(effective),
            names(permitted),
            names(inheritable)
        ),
        || process::capset(process::Capabilities { effective, permitted, inheritable }),
    )?;
    for number in (0..64u64).filter(|number| ambient & 1 << number != 0) {
        op(format_args!("prctl(PR_CAP_AMBIENT_RAISE, {})", names(1 << number)), || {
            process::prctl(libc::PR_CAP_AMBIENT, [libc::PR_CAP_AMBIENT_RAISE as u64, number, 0, 0])
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Sets = Sets { bounding: 0xff, effective: 0xff, permitted: 0xff, inheritable: 0x1, ambient: 0x1 };

    #[test]
    fn names_in_all_spellings() {
        assert_eq!(parse("CAP_CHOWN").unwrap(), 1);
        assert_eq!(parse("net_raw").unwrap(), 1 << 13);
        assert_eq!(parse("Cap_Checkpoint_Restore").unwrap(), 1 << 40);
        assert_eq!(parse("ALL").unwrap(), ALL);
        assert!(parse("CAP_CAP_CHOWN").is_err() && parse("").is_err());
        assert_eq!(names(1 | 1 << 63), "CAP_CHOWN,63");
    }

    #[test]
    fn drop_then_add() {
        let wanted = Wanted::Change { drop: ALL, add: 0x3, ambient: 0 };
        let sets = Sets { bounding: 3, effective: 3, permitted: 3, inheritable: 0, ambient: 0 };
        assert_eq!(wanted.resolve(NOW, 0).unwrap(), sets);
        let plain = Sets { bounding: 3, ..Sets::default() };
        assert_eq!(wanted.resolve(NOW, 1000).unwrap(), plain);
        let ambient = Wanted::Change { drop: ALL, add: 0, ambient: 0x2 };
        let sets = Sets { bounding: 2, effective: 2, permitted: 2, inheritable: 2, ambient: 2 };
        assert_eq!(ambient.resolve(NOW, 1000).unwrap(), sets);
        let all = Wanted::Change { drop: 0, add: 0, ambient: ALL }.resolve(NOW, 1000).unwrap();
        assert_eq!(all, Sets { bounding: 0xff, effective: 0xff, permitted: 0xff, inheritable: 0xff, ambient: 0xff });
    }

    #[test]
    fn what_is_not_there_cannot_be_given() {
        let error = Wanted::Change { drop: 0, add: 0x100, ambient: 0 }.resolve(NOW, 0).unwrap_err().to_string();
        assert!(error.contains("CAP_SETPCAP") && error.contains("bounding"), "{error}");
        let exact = Sets { bounding: 0xff, ambient: 2, ..Sets::default() };
        assert!(Wanted::Exactly(exact).resolve(NOW, 0).is_err());
    }
}
