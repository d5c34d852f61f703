//! Making namespaces, and what belongs to a new one: id maps, clock offsets, mount propagation, `lo`, names, /proc.
//!
//! A PID namespace always means a new process: all namespaces are made in the one clone3(2) that makes it, and this process
//! stays behind to wait. Without one this process itself moves.

use crate::keep::Keeper;
use crate::namespace::{Kind, Origin, Selection};
use crate::pasta::{self, Port};
use chain::link::{Forked, clone_flags};
use chain::sys::{mount, process};
use chain::trace::op;
use chain::userns::{self, Maps};
use chain::{Chain, Error, Outcome, Result, ResultExt};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, chroot, fchdir};
use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What new mount namespaces have to do with the mounts that they are copies of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// Mounts made and removed outside come and go inside; never the reverse.
    #[default]
    Slave,
    /// Neither sees the other's.
    Private,
}

impl Propagation {
    /// The `MS_…` flag.
    pub fn flag(self) -> MsFlags {
        match self {
            Propagation::Slave => MsFlags::MS_SLAVE,
            Propagation::Private => MsFlags::MS_PRIVATE,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Propagation::Slave => "MS_SLAVE",
            Propagation::Private => "MS_PRIVATE",
        }
    }
}

/// What new namespaces are to hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Setup {
    /// Mount propagation.
    pub propagation: Propagation,
    /// Whether `lo` stays down in a new network namespace.
    pub no_loopback: bool,
    /// Whether pasta connects the new network with the machine's, with these ports.
    pub pasta: Option<Vec<Port>>,
    /// The host name.
    pub hostname: Option<OsString>,
    /// The NIS domain name.
    pub domainname: Option<OsString>,
    /// Kernel parameters that belong to a namespace, as (name with dots, value).
    pub sysctls: Vec<(String, String)>,
    /// Where a /proc of the new PID namespace is mounted.
    pub proc: Option<PathBuf>,
    /// Offset of the monotonic clock, as time_namespaces(7) writes it: seconds and nanoseconds.
    pub monotonic: Option<(i64, u32)>,
    /// Offset of the boot-time clock.
    pub boottime: Option<(i64, u32)>,
}

/// Makes what `selection` says is new, with `maps` if that has a user namespace, and keeps it with `keeper`. Goes on in the
/// process that is in the namespaces: gives an outcome only in one that stayed behind and waited.
pub fn create(
    chain: &mut Chain,
    selection: &Selection,
    maps: Option<&Maps>,
    setup: &Setup,
    keeper: Option<Keeper>,
) -> Result<Option<Outcome>> {
    let mut flags = selection.new_flags();
    let cgroup = flags & Kind::Cgroup.flag();
    let time = flags & Kind::Time.flag();
    flags &= !(cgroup | time);
    if time != 0 {
        // The offsets are set from inside the user namespace and before any process is in the new time namespace.
        if flags & libc::CLONE_NEWUSER != 0 {
            enter(chain, libc::CLONE_NEWUSER, maps)?;
            flags &= !libc::CLONE_NEWUSER;
        }
        enter(chain, time, None)?;
        set_clocks(setup)?;
    }
    let splits = time != 0 || selection.has(Kind::Pid) || setup.pasta.is_some();
    if splits {
        let network = Rc::new(RefCell::new(None));
        if setup.pasta.is_some() {
            let network = Rc::clone(&network);
            chain.after(move |_| drop(network.take()));
        }
        let prepare = |child: &dyn Fn() -> Pid| {
            let maps = maps.filter(|_| flags & libc::CLONE_NEWUSER != 0);
            if let Some(maps) = maps {
                maps.write(child())?;
            }
            if let Some(ports) = &setup.pasta {
                *network.borrow_mut() = Some(pasta::start(child(), maps.is_some(), ports)?);
            }
            keeper.as_ref().map_or(Ok(()), |keeper| keeper.process_is(child()))
        };
        let forked = chain.fork(flags as u64, prepare).map_err(|error| explain(error, flags, selection))?;
        if let Forked::Parent(outcome) = forked {
            return Ok(Some(outcome));
        }
    } else if flags != 0 {
        enter(chain, flags, maps)?;
    }
    if cgroup != 0 {
        enter(chain, cgroup, None)?;
    }
    fill(selection, setup)?;
    if let Some(keeper) = keeper {
        if !splits {
            keeper.process_is(nix::unistd::getpid())?;
        }
        keeper.keep()?;
    }
    Ok(None)
}

/// Moves this process.
fn enter(chain: &Chain, flags: i32, maps: Option<&Maps>) -> Result<()> {
    let set = CloneFlags::from_bits_retain(flags);
    match maps.filter(|_| flags & libc::CLONE_NEWUSER != 0) {
        Some(maps) => {
            let death_signal = process::parent_death_signal().call(format_args!("prctl(PR_GET_PDEATHSIG)"))?;
            userns::enter(set, maps)?;
            // The kernel forgets it where a process gains capabilities.
            chain.renew_parent_death_signal(death_signal)
        }
        None => op(format_args!("unshare({})", clone_flags(flags as u64)), || unshare(set))
            .map_err(|error| explain(error, flags, &Selection::default())),
    }
}

/// One write of both clocks.
fn set_clocks(setup: &Setup) -> Result<()> {
    let line = |name: &str, offset: Option<(i64, u32)>| {
        offset.map(|(seconds, nanos)| format!("{name} {seconds} {nanos}\n")).unwrap_or_default()
    };
    let text = line("monotonic", setup.monotonic) + &line("boottime", setup.boottime);
    if text.is_empty() {
        return Ok(());
    }
    let path = "/proc/self/timens_offsets";
    op(format_args!("write({path:?}, {text:?})"), || fs::write(path, &text)).map_err(|error| match error.errno() {
        Some(Errno::ERANGE) => error.hint("the clocks may be neither negative nor past 146 years"),
        Some(Errno::EACCES | Errno::EPERM) => error.hint("CAP_SYS_TIME in the user namespace is needed"),
        _ => error,
    })
}

/// Sets up what is new.
fn fill(selection: &Selection, setup: &Setup) -> Result<()> {
    if selection.makes(Kind::Mount) {
        propagate(setup.propagation)?;
    }
    if selection.makes(Kind::Net) && !setup.no_loopback {
        op(format_args!("ioctl(SIOCSIFFLAGS, \"lo\", IFF_UP)"), process::loopback_up)?;
    }
    if let Some(name) = &setup.hostname {
        op(format_args!("sethostname({name:?})"), || nix::unistd::sethostname(name)).map_err(explain_name)?;
    }
    if let Some(name) = &setup.domainname {
        op(format_args!("setdomainname({name:?})"), || process::setdomainname(name)).map_err(explain_name)?;
    }
    for (name, value) in &setup.sysctls {
        write_sysctl(name, value)?;
    }
    if let Some(path) = &setup.proc {
        mount_proc(path)?;
    }
    Ok(())
}

fn explain_name(error: Error) -> Error {
    match error.errno() {
        Some(Errno::EINVAL) => error.hint("at most 64 bytes"),
        Some(Errno::EPERM) => error.hint("CAP_SYS_ADMIN in the user namespace that owns the uts namespace is needed"),
        _ => error,
    }
}

/// Cuts the new mounts from those that they are copies of, before the first mount is made.
pub fn propagate(propagation: Propagation) -> Result<()> {
    let set = || {
        op(format_args!("mount(\"/\", MS_REC|{})", propagation.name()), || {
            mount(None::<&str>, "/", None::<&str>, propagation.flag() | MsFlags::MS_REC, None::<&str>)
        })
    };
    match set() {
        Err(error) if error.errno() == Some(Errno::EINVAL) => outside_of_chroot(set),
        other => other,
    }
}

/// Does `work` with the root of the mount namespace as the root directory. In a chroot, the mount that its root is on has
/// no name; and joining the mount namespace that one is in leads to its root.
fn outside_of_chroot(work: impl FnOnce() -> Result<()>) -> Result<()> {
    let hold = |path: &str| {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        op(format_args!("open({path:?})"), || nix::fcntl::open(path, flags, Mode::empty()))
    };
    let (root, here) = (hold("/")?, hold(".")?);
    let this = op(format_args!("pidfd_open(self)"), || process::pidfd_open(nix::unistd::getpid()))?;
    op(format_args!("setns(self, CLONE_NEWNS)"), || setns(&this, CloneFlags::CLONE_NEWNS))?;
    let done = work();
    op(format_args!("fchdir(root)"), || fchdir(&root))?;
    op(format_args!("chroot(\".\")"), || chroot("."))?;
    op(format_args!("fchdir(here)"), || fchdir(&here))?;
    done
}

/// The namespace that the kernel parameter `name` (with dots) belongs to.
pub fn sysctl_namespace(name: &str) -> Option<Kind> {
    const IPC: [&str; 9] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.auto_msgmni",
    ];
    match name {
        "kernel.hostname" | "kernel.domainname" => Some(Kind::Uts),
        _ if name.starts_with("net.") => Some(Kind::Net),
        _ if name.starts_with("fs.mqueue.") || IPC.contains(&name) => Some(Kind::Ipc),
        _ if name.starts_with("user.max_") => Some(Kind::User),
        _ => None,
    }
}

fn write_sysctl(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    op(format_args!("write({path:?}, {value:?})"), || {
        // Never made: a parameter that does not exist is an error.
        let mut file = fs::OpenOptions::new().write(true).open(&path)?;
        std::io::Write::write_all(&mut file, value.as_bytes())
    })
    .map_err(|error| match error.errno() {
        Some(Errno::ENOENT) => error.hint("this kernel has no such parameter in this namespace"),
        Some(Errno::EACCES | Errno::EPERM) => {
            error.hint("this kernel lets only root of the machine set it (KERNEL(6.2): ipc parameters)")
        }
        Some(Errno::EROFS) => error.hint("/proc/sys is read-only here"),
        Some(Errno::EINVAL) => error.hint("the kernel does not take this value; ids in it must be mapped"),
        _ => error,
    })
}

/// Mounts the process file system of this process's PID namespace.
pub fn mount_proc(path: &Path) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let call = format_args!("mount(\"proc\", {path:?}, \"proc\", MS_NOSUID|MS_NODEV|MS_NOEXEC)");
    op(call, || mount(Some("proc"), path, Some("proc"), flags, None::<&str>)).map_err(|error| match error.errno() {
        Some(Errno::EPERM) => error.hint(why_no_proc()),
        _ => error,
    })
}

/// Why a new /proc is refused in a user namespace, from /proc/self/mountinfo (user_namespaces(7): it may not reveal more
/// than what is mounted already).
fn why_no_proc() -> String {
    let mounts = chain::mountinfo::read("self").unwrap_or_default();
    let proc = |point: &Path| mounts.iter().any(|mount| mount.fs_type == "proc" && mount.point == point);
    if !mounts.iter().any(|mount| mount.fs_type == "proc") {
        return "no /proc is visible here, so the kernel gives none".into();
    }
    let over: Vec<String> = mounts
        .iter()
        .filter(|mount| mount.point.ancestors().skip(1).any(proc))
        .map(|mount| format!("{:?}", mount.point))
        .collect();
    if over.is_empty() {
        return "a /proc is for a PID namespace of this user namespace: add --pid".into();
    }
    format!(
        "parts of the /proc here are covered ({}), so the kernel gives no whole one; run the outer container with its /proc unmasked",
        over.join(", ")
    )
}

/// Adds to a refused clone or unshare what causes it on this machine.
pub fn explain(error: Error, flags: i32, selection: &Selection) -> Error {
    // Only the call that made the namespaces is meant, not what was done for the child.
    let call = error.to_string();
    if !call.starts_with("clone3(") && !call.starts_with("unshare(") {
        return error;
    }
    match error.errno() {
        Some(Errno::EPERM) if flags & libc::CLONE_NEWUSER == 0 && flags != 0 => {
            error.hint("CAP_SYS_ADMIN is needed; --user makes a user namespace that gives it")
        }
        Some(Errno::ENOSPC) => match exhausted(flags) {
            Some(hint) => error.hint(hint),
            None => userns::explain(error),
        },
        Some(Errno::ENOMEM) if matches!(selection.origin(Kind::Pid), Some(Origin::Target | Origin::Path(_))) => {
            error.hint("the first process of that pid namespace has ended, and no other can start in it")
        }
        Some(Errno::EINVAL) => error.hint("this kernel may lack one of these kinds (see /proc/self/ns)"),
        _ => userns::explain(error),
    }
}

/// The parameters that forbid one of `flags` altogether.
fn exhausted(flags: i32) -> Option<String> {
    let names: Vec<String> = Kind::ALL
        .iter()
        .filter(|kind| flags & kind.flag() != 0)
        .map(|kind| format!("user.max_{}_namespaces", kind.file()))
        .filter(|name| {
            let path = format!("/proc/sys/{}", name.replacen('.', "/", 1));
            fs::read_to_string(path).is_ok_and(|text| text.trim() == "0")
        })
        .collect();
    match names.as_slice() {
        [] => None,
        names => Some(format!("0 here: {}; an administrator can raise it with sysctl", names.join(", "))),
    }
}

/// Mounts a copy of the root directory's tree over it, so that it is a mount with a parent: on an initramfs, and in a
/// chroot, it is not, and pivot_root(2) then has nothing to turn around.
pub fn remount_root() -> Result<()> {
    let slash = Path::new("/");
    let copy = op(format_args!("open_tree(\"/\", OPEN_TREE_CLONE|AT_RECURSIVE)"), || {
        mount::open_tree(None, slash, mount::OPEN_TREE_CLONE | mount::AT_RECURSIVE)
    })?;
    let place = op(format_args!("open_tree(\"/\")"), || mount::open_tree(None, slash, 0))?;
    op(format_args!("move_mount(\"/\", \"/\")"), || mount::move_mount(&copy, &place))?;
    op(format_args!("fchdir(\"/\")"), || fchdir(&copy))?;
    op(format_args!("chroot(\".\")"), || chroot("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_belong_to_namespaces() {
        assert_eq!(sysctl_namespace("net.ipv4.ip_forward"), Some(Kind::Net));
        assert_eq!(sysctl_namespace("kernel.shmmax"), Some(Kind::Ipc));
        assert_eq!(sysctl_namespace("kernel.panic"), None);
        assert_eq!(sysctl_namespace("vm.swappiness"), None);
    }
}
