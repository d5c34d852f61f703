//! `--api`: /proc, /sys and /dev, as programs expect them.
//!
//! On the way to every container's start, so with as few system calls as it takes; what may fail is tried, not probed.

use crate::devices::{self, Node};
use crate::filesystem::{self, attach, attach_at, create};
use crate::undoing::Undoing;
use chain::root::Root;
use chain::sys::mount::{
    self as kernel, AT_RECURSIVE, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, Change, OPEN_TREE_CLONE,
};
use chain::trace::{note, op};
use chain::{Error, Result, ResultExt, mountinfo};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag, makedev, mkdirat};
use nix::unistd::symlinkat;
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

const SECURE: u64 = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;

/// Paths that `--mask default` hides: what tells of the machine or lets its memory be read.
pub const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths that `--readonly default` protects: the kernel's settings.
pub const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Device nodes: name, major and minor number.
const NODES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// How the API file systems are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Api {
    /// Size of /dev/shm in bytes.
    pub shm_size: u64,
    /// Whether /dev has every device of the machine.
    pub all_devices: bool,
    /// Whether /sys, and the groups in /sys/fs/cgroup, can be written.
    pub writable_sys: bool,
}

/// Mounts what belongs at /dev, /proc and /sys of `root`, but for the `taken` targets, which something else comes to. With
/// `nodev`, no nodes can be used in /dev but those that are made here.
///
/// Errors: /dev, /proc or /sys is a symbolic link; the PID namespace is another's. What only shows a namespace that is
/// another's (/sys, mqueue, cgroup) is replaced or left out, and `-v` tells.
pub fn mount(root: &Root, api: Api, nodev: bool, taken: &[&Path], undoing: &mut Undoing) -> Result<()> {
    let wanted = |target: &str| !taken.contains(&Path::new(target));
    if wanted("/dev") {
        dev(root, api, nodev, &wanted, undoing)?;
    }
    if wanted("/proc") {
        let at = directory(root, "proc", undoing)?;
        let proc = create("proc", OsStr::new("proc"), &[], SECURE).map_err(explain_proc)?;
        attach(&proc, &at, "/proc")?;
        undoing.mounted(proc);
    }
    if wanted("/sys") {
        let at = directory(root, "sys", undoing)?;
        let access = if api.writable_sys { 0 } else { ATTR_RDONLY };
        if let Some(sys) = sysfs(access)? {
            attach(&sys, &at, "/sys")?;
            if wanted("/sys/fs/cgroup") {
                cgroup(&sys, access)?;
            }
            undoing.mounted(sys);
        }
    }
    Ok(())
}

/// A directory in the root itself, made if it is missing. An image with a link there would lead everything that follows
/// elsewhere.
fn directory(root: &Root, name: &str, undoing: &mut Undoing) -> Result<OwnedFd> {
    let open = || {
        openat(
            root.fd(),
            name,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
    };
    let found = match open() {
        Err(Errno::ENOENT) => {
            op(format_args!("mkdirat({:?}, {name:?}, 0755)", root.path()), || {
                mkdirat(root.fd(), name, Mode::from_bits_truncate(0o755))
            })?;
            undoing.made(PathBuf::from(name));
            open()
        }
        other => other,
    };
    found.call(format_args!("openat({:?}, {name:?}, O_DIRECTORY|O_NOFOLLOW)", root.path())).map_err(|error| match error
        .errno()
    {
        Some(Errno::ENOTDIR | Errno::ELOOP) => {
            error.hint(format_args!("/{name} of this root is a symbolic link or a file, which is refused"))
        }
        _ => error,
    })
}

fn dev(root: &Root, api: Api, nodev: bool, wanted: &impl Fn(&str) -> bool, undoing: &mut Undoing) -> Result<()> {
    let at = directory(root, "dev", undoing)?;
    let attributes = if nodev { ATTR_NOSUID | ATTR_NODEV } else { ATTR_NOSUID };
    let dev = create("tmpfs", OsStr::new("tmpfs"), &[("mode", Some("755")), ("size", Some("65536k"))], attributes)?;
    attach(&dev, &at, "/dev")?;
    nodes(&dev, nodev)?;
    for (name, target) in LINKS {
        link(&dev, name, target)?;
    }
    if Path::new("/proc/kcore").exists() {
        link(&dev, "core", "/proc/kcore")?;
    }
    if api.all_devices {
        devices::all(&dev, nodev)?;
    }
    if wanted("/dev/pts") {
        attach_new(&dev, "pts", devpts()?)?;
    }
    if wanted("/dev/shm") {
        let data = [("mode", Some("1777")), ("size", Some(&*api.shm_size.to_string()))];
        attach_new(&dev, "shm", create("tmpfs", OsStr::new("shm"), &data, SECURE)?)?;
    }
    if wanted("/dev/mqueue") {
        match create("mqueue", OsStr::new("mqueue"), &[], SECURE) {
            Ok(mqueue) => attach_new(&dev, "mqueue", mqueue)?,
            Err(error) if error.errno() == Some(Errno::EPERM) && filesystem::belongs_elsewhere("ipc") => {
                note(format_args!("/dev/mqueue is left out: this IPC namespace belongs to another user namespace"));
            }
            // A kernel without message queues.
            Err(error) if error.errno() == Some(Errno::ENODEV) => {
                note(format_args!("/dev/mqueue is left out: {error}"))
            }
            Err(error) => return Err(error),
        }
    }
    undoing.mounted(dev);
    Ok(())
}

fn attach_new(dev: &OwnedFd, name: &str, mount: OwnedFd) -> Result<()> {
    op(format_args!("mkdirat(\"/dev\", {name:?}, 0755)"), || mkdirat(dev, name, Mode::from_bits_truncate(0o755)))?;
    attach_at(mount, dev, name)
}

fn link(dev: &OwnedFd, name: &str, target: &str) -> Result<()> {
    op(format_args!("symlinkat({target:?}, \"/dev\", {name:?})"), || symlinkat(target, dev, name))
}

/// The six nodes.
fn nodes(dev: &OwnedFd, nodev: bool) -> Result<()> {
    for (name, major, minor) in NODES {
        let node = Node { kind: SFlag::S_IFCHR, mode: 0o666, owner: None, number: makedev(major, minor) };
        devices::node(dev, Path::new(name), &node, nodev)?;
    }
    Ok(())
}

/// An instance of its own. Group 5 is `tty` by tradition; where it is not mapped, the kernel refuses it.
fn devpts() -> Result<OwnedFd> {
    let data = [("newinstance", None), ("ptmxmode", Some("0666")), ("mode", Some("0620")), ("gid", Some("5"))];
    let attributes = ATTR_NOSUID | ATTR_NOEXEC;
    match create("devpts", OsStr::new("devpts"), &data, attributes) {
        Err(error) if error.errno() == Some(Errno::EINVAL) => {
            create("devpts", OsStr::new("devpts"), &data[..3], attributes)
        }
        other => other,
    }
}

/// Adds to a /proc that was refused what else may be done.
pub fn explain_proc(error: Error) -> Error {
    if error.errno() != Some(Errno::EPERM) {
        return error;
    }
    if filesystem::belongs_elsewhere("pid") {
        return error.hint("or bind the machine's with /proc:/proc");
    }
    let mounts = mountinfo::read("self").unwrap_or_default();
    match mounts.iter().find(|mount| mount.point.starts_with("/proc/")) {
        Some(over) => error.hint(format_args!(
            "the container that this runs in hides parts of /proc ({:?}), and a new one would show them; run that container unmasked, or bind its /proc with /proc:/proc",
            over.point
        )),
        None => error,
    }
}

/// A sysfs of this network namespace; else the machine's /sys with all below it; else none. `access` is `ATTR_RDONLY`, or 0
/// for one that can be written, as far as the kernel lets this user namespace.
fn sysfs(access: u64) -> Result<Option<OwnedFd>> {
    match create("sysfs", OsStr::new("sysfs"), &[], SECURE | access) {
        Err(error) if error.errno() == Some(Errno::EPERM) => {}
        other => return other.map(Some),
    }
    if access == 0 && !filesystem::belongs_elsewhere("net") {
        note(format_args!("/sys is read-only: so is the one around this user namespace"));
        return sysfs(ATTR_RDONLY);
    }
    let shown = if access == 0 { "writable" } else { "read-only" };
    note(format_args!("/sys is the machine's, {shown}: a new one needs an own network namespace"));
    let flags = OPEN_TREE_CLONE | AT_RECURSIVE;
    let bound = op(format_args!("open_tree(\"/sys\", OPEN_TREE_CLONE|AT_RECURSIVE)"), || {
        kernel::open_tree(None, Path::new("/sys"), flags)
    })
    .and_then(|sys| {
        let change = Change { set: SECURE | access, propagation: MsFlags::MS_PRIVATE.bits(), ..Change::default() };
        op(format_args!("mount_setattr(\"/sys\", {:#x}, AT_RECURSIVE)", change.set), || {
            kernel::mount_setattr(&sys, true, change)
        })?;
        Ok(sys)
    });
    match bound {
        Ok(sys) => Ok(Some(sys)),
        Err(error) => {
            chain::trace::say(format_args!("/sys is left out: {error}"));
            Ok(None)
        }
    }
}

/// /sys/fs/cgroup: of version 2, or of version 1 with one mount for each hierarchy; `access` as for [`sysfs`]. Left out where
/// this cgroup namespace is another's.
fn cgroup(sys: &OwnedFd, access: u64) -> Result<()> {
    const PLACE: &str = "fs/cgroup";
    let unified = |attributes| create("cgroup2", OsStr::new("cgroup"), &[], attributes);
    let hierarchies = hierarchies()?;
    let mounted = if hierarchies.is_empty() {
        unified(SECURE | access).and_then(|cgroup| attach_at(cgroup, sys, PLACE))
    } else {
        version_1(sys, PLACE, &hierarchies, access)
    };
    match mounted {
        Err(error) if matches!(error.errno(), Some(Errno::EPERM | Errno::ENOENT | Errno::EBUSY | Errno::ENODEV)) => {
            note(format_args!("/sys/fs/cgroup is left out: {error}"));
            Ok(())
        }
        other => other,
    }
}

/// The version 1 hierarchies as /proc/self/cgroup lists them: `memory`, `cpu,cpuacct`, `name=systemd`.
fn hierarchies() -> Result<Vec<String>> {
    let path = "/proc/self/cgroup";
    let text = fs::read_to_string(path).call(format_args!("read({path:?})"))?;
    let controllers =
        |line: &str| line.split(':').nth(1).filter(|controllers| !controllers.is_empty()).map(str::to_string);
    Ok(text.lines().filter_map(controllers).collect())
}

fn version_1(sys: &OwnedFd, place: &str, hierarchies: &[String], access: u64) -> Result<()> {
    // The first is made before anything is mounted: if it cannot be had, nothing is.
    let mut first = Some(hierarchy(&hierarchies[0], access)?);
    let top = create("tmpfs", OsStr::new("tmpfs"), &[("mode", Some("755")), ("size", Some("64k"))], SECURE)?;
    attach_at(&top, sys, place)?;
    for controllers in hierarchies {
        let mount = match first.take() {
            Some(mount) => mount,
            None => hierarchy(controllers, access)?,
        };
        let name = controllers.strip_prefix("name=").unwrap_or(controllers);
        op(format_args!("mkdirat(\"/sys/fs/cgroup\", {name:?}, 0755)"), || {
            mkdirat(&top, name, Mode::from_bits_truncate(0o755))
        })?;
        attach_at(mount, &top, name)?;
        for single in name.split(',').filter(|_| name.contains(',')) {
            op(format_args!("symlinkat({name:?}, \"/sys/fs/cgroup\", {single:?})"), || symlinkat(name, &top, single))?;
        }
    }
    let change = Change { set: ATTR_RDONLY, ..Change::default() };
    op(format_args!("mount_setattr(\"/sys/fs/cgroup\", ro)"), || kernel::mount_setattr(top.as_fd(), false, change))
}

fn hierarchy(controllers: &str, access: u64) -> Result<OwnedFd> {
    let data: Vec<(&str, Option<&str>)> = match controllers.strip_prefix("name=") {
        Some(name) => vec![("none", None), ("name", Some(name))],
        None => controllers.split(',').map(|controller| (controller, None)).collect(),
    };
    create("cgroup", OsStr::new("cgroup"), &data, SECURE | access)
}

/// What [`mount`] does, as a document's `mounts`.
pub fn documented(api: Api, taken: &[&Path]) -> Vec<Value> {
    let access = if api.writable_sys { "rw" } else { "ro" };
    let size = format!("size={}", api.shm_size);
    let of = |target: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": source, "options": options});
    let all = [
        of("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        of("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        of("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        of("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &size]),
        of("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        of("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        of("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ];
    let wanted = |mount: &Value| {
        let target = Path::new(mount["destination"].as_str().unwrap_or_default());
        !taken.iter().any(|taken| target.starts_with(taken))
    };
    all.into_iter().filter(wanted).collect()
}
