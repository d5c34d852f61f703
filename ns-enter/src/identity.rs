//! Identity and privileges, dropped last and in the one order that works: what needs privileges first, then ids with the
//! capabilities kept over the change, then the capabilities, then no_new_privs and the filter.

use crate::capability::{self, Sets};
use crate::user::Ids;
use chain::sys::process;
use chain::trace::{note, op};
use chain::{Chain, Error, Result};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

/// What to become.
#[derive(Debug, Default)]
pub struct Identity {
    /// User and groups; `None` leaves them.
    pub ids: Option<Ids>,
    /// Capabilities; `None` leaves them.
    pub capabilities: Option<capability::Wanted>,
    /// Whether programs may not give more privileges from here on.
    pub no_new_privs: bool,
}

/// Becomes `identity`. `as_user` is done between the two halves, with the new ids; `filter` loads the system call filter,
/// where it can be loaded with the fewest calls of ours after it.
///
/// Errors: ids that are not mapped here; capabilities that this process does not have.
pub fn assume(
    chain: &Chain,
    identity: &Identity,
    as_user: impl FnOnce() -> Result<()>,
    filter: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let wanted = sets(identity)?;
    if let Some((now, then)) = &wanted {
        capability::limit(now.bounding, then.bounding)?;
    }
    if let Some(ids) = &identity.ids {
        let death_signal = op(format_args!("prctl(PR_GET_PDEATHSIG)"), process::parent_death_signal)?;
        op(format_args!("prctl(PR_SET_KEEPCAPS, 1)"), || process::prctl(libc::PR_SET_KEEPCAPS, [1, 0, 0, 0]))?;
        change_ids(ids)?;
        // The new user's rights decide what it can reach, until the capabilities are set.
        chain.renew_parent_death_signal(death_signal)?;
    }
    as_user()?;
    if identity.no_new_privs {
        if let Some((_, then)) = wanted {
            capability::set(then)?;
        }
        op(format_args!("prctl(PR_SET_NO_NEW_PRIVS, 1)"), || process::prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0]))?;
        return filter();
    }
    // Without no_new_privs the filter needs CAP_SYS_ADMIN, which is kept, but not in force, after a change of ids.
    if identity.ids.is_some() {
        let kept = op(format_args!("capget()"), process::capget)?;
        process::capset(process::Capabilities { effective: kept.permitted, ..kept })
            .map_err(|errno| Error::call(format_args!("capset()"), errno))?;
    }
    filter()?;
    if let Some((_, then)) = wanted {
        capability::set(then)?;
    }
    Ok(())
}

/// The capabilities before and after; `None` leaves them.
fn sets(identity: &Identity) -> Result<Option<(Sets, Sets)>> {
    let unchanged = capability::Wanted::Change { drop: 0, add: 0, ambient: 0 };
    let wanted = match (&identity.capabilities, &identity.ids) {
        (Some(wanted), _) => *wanted,
        // New ids alone take what is inheritable or ambient away, too.
        (None, Some(_)) => unchanged,
        (None, None) => return Ok(None),
    };
    let now = capability::current()?;
    let user = identity.ids.as_ref().map_or_else(|| geteuid().as_raw(), |ids| ids.user);
    Ok(Some((now, wanted.resolve(now, user)?)))
}

fn change_ids(ids: &Ids) -> Result<()> {
    set_groups(ids)?;
    let (user, group) = (Uid::from_raw(ids.user), Gid::from_raw(ids.group));
    op(format_args!("setresgid({group}, {group}, {group})"), || setresgid(group, group, group))
        .map_err(|error| explain(error, "group", "gid", ids.group))?;
    op(format_args!("setresuid({user}, {user}, {user})"), || setresuid(user, user, user))
        .map_err(|error| explain(error, "user", "uid", ids.user))
}

fn set_groups(ids: &Ids) -> Result<()> {
    let set = |groups: &[u32]| {
        let list: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
        op(format_args!("setgroups({groups:?})"), || setgroups(&list))
    };
    match set(&ids.groups) {
        Err(error) if error.errno() == Some(Errno::EINVAL) => {
            // The kernel knows, also where there is no /proc.
            let is_mapped = |id: &&u32| setgroups(&[Gid::from_raw(**id)]).is_ok();
            let (mapped, rest): (Vec<u32>, Vec<u32>) = ids.groups.iter().partition(is_mapped);
            // A process cannot be in a group that does not exist for it; in those that were asked for it must be.
            if let Some(id) = rest.iter().find(|id| ids.asked.contains(id) || **id == ids.group) {
                return Err(explain(error, "group", "gid", *id));
            }
            note(format_args!("groups {rest:?} of /etc/group are not mapped in this user namespace, and left out"));
            set(&mapped)
        }
        Err(error) if error.errno() == Some(Errno::EPERM) && holds_setgid() && !ids.asked.is_empty() => {
            Err(error.hint("setgroups is denied in this user namespace for good; make it with --map-auto, or as root"))
        }
        Err(error) if error.errno() == Some(Errno::EPERM) && holds_setgid() => {
            // user_namespaces(7): where setgroups is denied, it is so for good; the caller's groups show as nogroup.
            note(format_args!("setgroups is denied in this user namespace; supplementary groups stay as they are"));
            Ok(())
        }
        Err(error) if error.errno() == Some(Errno::EPERM) => {
            Err(error.hint("CAP_SETGID is needed; --user makes a user namespace that gives it"))
        }
        other => other,
    }
}

fn holds_setgid() -> bool {
    const SETGID: u64 = 1 << 6;
    process::capget().is_ok_and(|sets| sets.effective & SETGID != 0)
}

fn explain(error: Error, kind: &str, name: &str, id: u32) -> Error {
    match error.errno() {
        Some(Errno::EINVAL) => {
            let map = std::fs::read_to_string(format!("/proc/self/{name}_map")).unwrap_or_default();
            let ranges: Vec<String> =
                map.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(":")).collect();
            let shown = if ranges.is_empty() { String::new() } else { format!(" (mapped: {})", ranges.join(" ")) };
            error.hint(format_args!(
                "{kind} {id} is not mapped in this user namespace{shown}; make it with --map-auto, or map it with --map-{kind}s"
            ))
        }
        Some(Errno::EPERM) => error.hint(format_args!(
            "CAP_SET{} is needed; --user makes a user namespace that gives it",
            name.to_ascii_uppercase()
        )),
        Some(Errno::EAGAIN) => error.hint("that user has as many processes as its limit (ulimit nproc) allows"),
        _ => error,
    }
}

/// Becomes root of a user namespace that was just joined, where that has a root; else the ids stay.
pub fn become_root_of_joined() -> Result<()> {
    match change_ids(&Ids::default()) {
        Err(error) if error.errno() == Some(Errno::EINVAL) => {
            note(format_args!("the user namespace has no root; the ids stay as they are"));
            Ok(())
        }
        other => other,
    }
}
