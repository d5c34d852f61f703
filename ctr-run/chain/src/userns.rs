//! User namespaces: id maps (user_namespaces(7)), the ids that /etc/subuid gives a user (subuid(5)), and why making one may
//! be forbidden here.

use crate::error::{Error, FAILED, Result, ResultExt};
use crate::link::clone_flags;
use crate::sys::process::{self, Side};
use crate::trace::{note, op};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, Uid, getegid, geteuid, pipe2};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// One line of a map: `count` ids from `inner` (inside) are `outer` (outside) and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First id inside.
    pub inner: u32,
    /// First id outside.
    pub outer: u32,
    /// How many.
    pub count: u32,
}

impl Range {
    /// From `INNER:OUTER:COUNT`. Errors: not three numbers, a count of 0, past the last id (2^32-2).
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| Error::usage(format_args!("map {text:?}: {why}")).hint("write INNER:OUTER:COUNT");
        let numbers: Vec<u32> =
            text.split(':').map(str::parse).collect::<Result<_, _>>().map_err(|_| wrong("not three numbers"))?;
        let [inner, outer, count] = numbers[..] else { return Err(wrong("not three numbers")) };
        let range = Range { inner, outer, count };
        if count == 0 {
            return Err(wrong("a count of 0"));
        }
        if inner.checked_add(count).is_none() || outer.checked_add(count).is_none() {
            return Err(wrong("past the last id"));
        }
        Ok(range)
    }

    fn overlaps(&self, other: &Range) -> bool {
        let apart = |a: u32, b: u32| a.abs_diff(b) >= if a < b { self.count } else { other.count };
        !(apart(self.inner, other.inner) && apart(self.outer, other.outer))
    }
}

/// The maps of a user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maps {
    /// User ids.
    pub users: Vec<Range>,
    /// Group ids.
    pub groups: Vec<Range>,
}

impl Maps {
    /// Only the caller's own ids, as `user` and `group` inside.
    pub fn own(user: u32, group: u32) -> Self {
        Maps {
            users: vec![Range { inner: user, outer: geteuid().as_raw(), count: 1 }],
            groups: vec![Range { inner: group, outer: getegid().as_raw(), count: 1 }],
        }
    }

    /// The caller's own ids as root, and all its subordinate ids from 1 up; only its own where it has none.
    pub fn auto() -> Result<Self> {
        let mut maps = Maps::own(0, 0);
        maps.users.extend(stacked(1, subordinate("/etc/subuid")?));
        maps.groups.extend(stacked(1, subordinate("/etc/subgid")?));
        // One kind alone is of no use: owners come in pairs.
        if maps.users.len() == 1 || maps.groups.len() == 1 {
            maps.users.truncate(1);
            maps.groups.truncate(1);
        }
        Ok(maps)
    }

    /// Root's subordinate ids from 0 up, or if there are none those that /etc/subuid gives to `containers`: for a root inside
    /// who is not root outside. `None`: there are none. Errors: the files cannot be read.
    pub fn of_root() -> Result<Option<Self>> {
        let of = |path: &str| {
            let text = read_subordinate(path)?;
            let roots = ranges_of(&text, Some("root"), Uid::from_raw(0));
            let found =
                if roots.is_empty() { ranges_of(&text, Some("containers"), Uid::from_raw(u32::MAX)) } else { roots };
            Ok::<_, Error>(stacked(0, found))
        };
        let maps = Maps { users: of("/etc/subuid")?, groups: of("/etc/subgid")? };
        Ok((!maps.users.is_empty() && !maps.groups.is_empty()).then_some(maps))
    }

    /// Whether more than the caller's own ids are mapped.
    pub fn has_subordinates(&self) -> bool {
        self.users.iter().map(|range| u64::from(range.count)).sum::<u64>() > 1
    }

    /// Whether ranges overlap, or are more than the kernel takes (340, Linux 4.15): an error that names them.
    pub fn check(&self) -> Result<()> {
        for (kind, ranges) in [("user", &self.users), ("group", &self.groups)] {
            if ranges.len() > 340 {
                return Err(Error::usage(format_args!("{} {kind} ranges: the kernel takes at most 340", ranges.len())));
            }
            for (i, range) in ranges.iter().enumerate() {
                if let Some(other) = ranges[i + 1..].iter().find(|other| range.overlaps(other)) {
                    let show = |r: &Range| format!("{}:{}:{}", r.inner, r.outer, r.count);
                    return Err(Error::usage(format_args!("{kind} maps {} and {} overlap", show(range), show(other))));
                }
            }
        }
        Ok(())
    }

    /// Writes the maps of process `pid`, which has just entered a new user namespace, from outside it: directly where the
    /// kernel lets us, else with newuidmap(1) and newgidmap(1).
    ///
    /// Errors: ids that are not the caller's, newuidmap missing or without its set-user-id bit.
    pub fn write(&self, pid: Pid) -> Result<()> {
        self.check()?;
        let own = |ranges: &[Range], id: u32| matches!(ranges, [range] if range.count == 1 && range.outer == id);
        let privileged = privileged_over_maps();
        if privileged || (own(&self.users, geteuid().as_raw()) && own(&self.groups, getegid().as_raw())) {
            // A group may be dropped for good only by who could have taken it: see user_namespaces(7) and CVE-2014-8989.
            if !privileged {
                write_file(&format!("/proc/{pid}/setgroups"), "deny")?;
            }
            write_file(&format!("/proc/{pid}/uid_map"), &lines(&self.users))?;
            return write_file(&format!("/proc/{pid}/gid_map"), &lines(&self.groups));
        }
        // Both at once: they take as long as all else that a user's container needs to start.
        let users = Helper::start("newuidmap", pid, &self.users)?;
        let groups = Helper::start("newgidmap", pid, &self.groups);
        users.finish().and(groups.and_then(Helper::finish))
    }
}

/// Whether this process may write any map: CAP_SETUID and CAP_SETGID where it is now.
fn privileged_over_maps() -> bool {
    const BOTH: u64 = 1 << 6 | 1 << 7;
    process::capget().is_ok_and(|sets| sets.effective & BOTH == BOTH)
}

/// Whether this is root, and root of the machine as far as can be told: a user namespace that an ordinary user made maps
/// its root to that user.
pub fn is_real_root() -> bool {
    geteuid().is_root() && !in_user_namespace_of_a_user()
}

/// Whether this process is in a user namespace whose root is not root outside.
pub fn in_user_namespace_of_a_user() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    outer_of_root(&map).is_some_and(|outer| outer != 0)
}

/// Whether this process is in the machine's first user namespace: all ids map to themselves.
pub fn is_initial() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn outer_of_root(map: &str) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (inner, outer) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        (inner == 0).then_some(outer)
    })
}

/// Enters new namespaces (`flags`; a user namespace among them) with `maps`. Only for single-threaded processes.
///
/// The maps are written from outside, by a child that stays there. Errors: as for [`Maps::write`]; the kernel's refusal,
/// with what on this machine causes it.
pub fn enter(flags: CloneFlags, maps: &Maps) -> Result<()> {
    maps.check()?;
    // With an inherited "ignore" there would be no helper to wait for.
    let child_ended = process::default_action(Signal::SIGCHLD);
    let entered = enter_with_helper(flags, maps);
    child_ended.restore();
    entered
}

fn enter_with_helper(flags: CloneFlags, maps: &Maps) -> Result<()> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).call(format_args!("pipe2()"))?;
    let target = process::own_number_in_proc();
    let helper = match process::clone3(0).call(format_args!("clone3(0)"))? {
        Side::Child => {
            drop(writer);
            let mut go = [0u8; 1];
            let told = nix::unistd::read(&reader, &mut go);
            let status = match told {
                Ok(1) => maps.write(target).map_or_else(|error| crate::tool::report(&error), |()| 0),
                _ => FAILED,
            };
            std::process::exit(status.into());
        }
        Side::Parent(pid, _) => pid,
    };
    drop(reader);
    let entered = op(format_args!("unshare({})", clone_flags(flags.bits() as u64)), || unshare(flags)).map_err(explain);
    if entered.is_ok() {
        let _ = nix::unistd::write(&writer, b"g");
    }
    drop(writer);
    let ended = waitpid(helper, None).call(format_args!("waitpid({helper})"))?;
    entered?;
    match ended {
        WaitStatus::Exited(_, 0) => Ok(()),
        // The helper has said why.
        WaitStatus::Exited(..) => Err(Error::said()),
        other => Err(Error::new(format_args!("the helper that writes the id maps ended: {other:?}"))),
    }
}

/// Adds to a failed clone or unshare with CLONE_NEWUSER what on this machine forbids it (user_namespaces(7); facts read
/// now, never guessed).
pub fn explain(error: Error) -> Error {
    let cause = match error.errno() {
        Some(errno @ (Errno::EPERM | Errno::EACCES | Errno::ENOSPC | Errno::EUSERS)) => {
            cause(errno, |path| fs::read_to_string(path).ok())
        }
        _ => None,
    };
    match cause {
        Some(cause) => error.hint(cause),
        None => error,
    }
}

/// Why user namespaces are refused with `errno`, from files that `read` reads.
fn cause(errno: Errno, read: impl Fn(&str) -> Option<String>) -> Option<&'static str> {
    let is = |path: &str, value: &str| read(path).is_some_and(|text| text.trim() == value);
    if is("/proc/sys/user/max_user_namespaces", "0") {
        return Some("user.max_user_namespaces is 0 here; an administrator can raise it with sysctl");
    }
    if matches!(errno, Errno::ENOSPC | Errno::EUSERS) {
        return Some("the limit of user.max_user_namespaces, or of 32 nested user namespaces, is reached");
    }
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        return Some("kernel.unprivileged_userns_clone is 0 here; an administrator can set it to 1 with sysctl");
    }
    if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        return Some(
            "kernel.apparmor_restrict_unprivileged_userns is 1 here; an administrator can give this program an AppArmor \
             profile with \"userns,\", or set it to 0",
        );
    }
    let mounts = read("/proc/self/mountinfo")?;
    if !crate::mountinfo::parse(mounts.as_bytes()).iter().any(|mount| mount.point == Path::new("/")) {
        return Some("this process is in a chroot, where the kernel makes no user namespaces; pivot_root instead");
    }
    if read("/proc/self/status")?.lines().any(|line| line.starts_with("Seccomp:") && line.ends_with('2')) {
        return Some("a seccomp filter is in force here; an outer container's may be what forbids it");
    }
    None
}

/// The ranges of the caller in /etc/subuid or /etc/subgid, as (first id, count). A missing file has none.
fn subordinate(path: &str) -> Result<Vec<(u32, u32)>> {
    let text = read_subordinate(path)?;
    let uid = nix::unistd::getuid();
    Ok(ranges_of(&text, user_name(uid).as_deref(), uid))
}

fn read_subordinate(path: &str) -> Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        other => other.call(format_args!("read({path:?})")),
    }
}

/// The lines of a subuid(5) file that are for the user called `name` or numbered `uid`. Both files go by user.
fn ranges_of(text: &str, name: Option<&str>, uid: Uid) -> Vec<(u32, u32)> {
    let parse = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let (first, count): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let ours = Some(owner) == name || owner.parse() == Ok(uid.as_raw());
        (ours && count > 0 && first.checked_add(count).is_some()).then_some((first, count))
    };
    text.lines().filter_map(parse).collect()
}

/// Ranges one after the other inside, from `inner` up; ids that come twice are left out.
fn stacked(mut inner: u32, ranges: Vec<(u32, u32)>) -> Vec<Range> {
    let mut out: Vec<Range> = Vec::new();
    for (outer, count) in ranges {
        let range = Range { inner, outer, count };
        if inner.checked_add(count).is_none() || out.iter().any(|earlier| earlier.overlaps(&range)) {
            continue;
        }
        out.push(range);
        inner += count;
    }
    out
}

/// The name of `uid` in /etc/passwd.
pub fn user_name(uid: Uid) -> Option<String> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid.as_raw())).then(|| name.to_string())
    })
}

fn lines(ranges: &[Range]) -> String {
    ranges.iter().fold(String::new(), |mut text, range| {
        let _ = writeln!(text, "{} {} {}", range.inner, range.outer, range.count);
        text
    })
}

/// One write at offset 0, as the kernel wants it for maps.
fn write_file(path: &str, text: &str) -> Result<()> {
    op(format_args!("write({path:?}, {text:?})"), || fs::write(path, text)).map_err(|error| match error.errno() {
        Some(Errno::EPERM) => {
            explain(error).hint("these ids may not be mapped by this user: /etc/subuid and /etc/subgid say which may")
        }
        _ => error,
    })
}

/// A set-user-id program that writes one of the maps.
struct Helper {
    program: &'static str,
    shown: String,
    child: Child,
}

impl Helper {
    fn start(program: &'static str, pid: Pid, ranges: &[Range]) -> Result<Self> {
        let mut arguments = vec![pid.to_string()];
        arguments.extend(
            ranges.iter().flat_map(|range| [range.inner, range.outer, range.count]).map(|number| number.to_string()),
        );
        let shown = arguments.join(" ");
        note(format_args!("{program} {shown}"));
        let mut command = Command::new(program);
        command.args(&arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().call(format_args!("{program}({shown})")).map_err(|error| match error.errno() {
            Some(Errno::ENOENT) => {
                error.hint("install newuidmap and newgidmap (package uidmap), or use --map-root for a single id")
            }
            _ => error,
        })?;
        Ok(Helper { program, shown, child })
    }

    fn finish(self) -> Result<()> {
        let Helper { program, shown, child } = self;
        let output = child.wait_with_output().call(format_args!("{program}({shown})"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
        Err(Error::new(format_args!("{program}({shown}): {}: {said}", output.status)).hint(format_args!(
            "{program} needs its set-user-id bit, and a line for this user in /etc/sub{}",
            &program[3..6]
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_parse_or_say_what_is_wanted() {
        assert_eq!(Range::parse("0:1000:1").unwrap(), Range { inner: 0, outer: 1000, count: 1 });
        for text in ["0:1000", "a:b:c", "0:0:0", "1:4294967295:2", "", "0:1:2:3", "-1:0:1"] {
            let error = Range::parse(text).unwrap_err().to_string();
            assert!(error.contains("INNER:OUTER:COUNT"), "{error}");
        }
    }

    #[test]
    fn overlap_on_either_side_is_refused() {
        let range = |inner, outer, count| Range { inner, outer, count };
        let maps = |a, b| Maps { users: vec![a, b], groups: vec![] };
        assert!(maps(range(0, 1000, 1), range(1, 100000, 65536)).check().is_ok());
        assert!(maps(range(0, 1000, 2), range(1, 100000, 1)).check().is_err());
        assert!(maps(range(0, 1000, 1), range(5, 900, 101)).check().is_err());
    }

    #[test]
    fn subordinate_ids_by_name_or_number() {
        let text = "# comment\nann:100000:65536\n1000:300000:10\nbob:1:1\nann:bad:1\n\nann:200000:5";
        assert_eq!(ranges_of(text, Some("ann"), Uid::from_raw(1000)), [(100000, 65536), (300000, 10), (200000, 5)]);
        assert_eq!(ranges_of(text, None, Uid::from_raw(7)), []);
    }

    #[test]
    fn a_single_subordinate_id_is_kept_and_repeats_are_dropped() {
        assert_eq!(stacked(1, vec![(5, 1)]), [Range { inner: 1, outer: 5, count: 1 }]);
        let twice = stacked(1, vec![(100, 10), (105, 10), (200, 1)]);
        assert_eq!(twice, [Range { inner: 1, outer: 100, count: 10 }, Range { inner: 11, outer: 200, count: 1 }]);
    }

    #[test]
    fn what_forbids_user_namespaces_is_read() {
        let told = |errno, files: &[(&str, &str)]| {
            let all =
                [("/proc/self/mountinfo", "1 1 0:1 / / rw - ext4 /dev/a rw"), ("/proc/self/status", "Seccomp:\t0")];
            let read = |path: &str| {
                files.iter().chain(&all).find(|(name, _)| path.ends_with(name)).map(|(_, text)| text.to_string())
            };
            cause(errno, read).unwrap_or_default()
        };
        assert_eq!(told(Errno::EPERM, &[]), "");
        assert!(told(Errno::ENOSPC, &[("max_user_namespaces", "0\n")]).contains("is 0 here"));
        assert!(told(Errno::ENOSPC, &[("max_user_namespaces", "5\n")]).contains("32 nested"));
        assert!(told(Errno::EPERM, &[("unprivileged_userns_clone", "0\n")]).contains("unprivileged_userns_clone"));
        assert!(told(Errno::EACCES, &[("apparmor_restrict_unprivileged_userns", "1\n")]).contains("AppArmor"));
        assert!(told(Errno::EPERM, &[("mountinfo", "")]).contains("chroot"));
        assert!(told(Errno::EPERM, &[("status", "Name:\tx\nSeccomp:\t2\n")]).contains("seccomp"));
    }

    #[test]
    fn who_is_root_outside() {
        assert_eq!(outer_of_root("         0       1000          1\n         1     100000      65536\n"), Some(1000));
        assert_eq!(outer_of_root("1000 1000 1\n"), None);
    }
}
