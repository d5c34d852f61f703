//! Unmounting: what this tool mounted, and nothing else; and who keeps it busy.

use crate::layers::real_path;
use chain::mountinfo::{self, Mount, Role, overlays_using};
use chain::remove::remove_tree;
use chain::trace::{note, op};
use chain::{Error, Result, ResultExt};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How many of those who keep a mount busy are named.
const NAMED: usize = 5;

/// Unmounts what is at `at`; nothing there is fine. With `lazy` also what is busy: it goes when its last user does.
///
/// What the kernel left in the work directory is removed, the upper never is. Errors: something else is mounted there; busy,
/// with who uses it.
pub fn undo(at: &Path, lazy: bool) -> Result<()> {
    let Some(mount) = mounted(at)? else { return Ok(()) };
    if !ours(&mount) {
        return Err(Error::new(format_args!(
            "what is mounted at {:?} is {} ({:?}), not a mount of layer-mount",
            mount.point, mount.fs_type, mount.source
        ))
        .hint("umount takes it away"));
    }
    let (upper, work) = (option(&mount, b"upperdir"), option(&mount, b"workdir"));
    unmount(&mount, lazy)?;
    match (upper, work) {
        (Some(upper), Some(work)) if upper.is_absolute() && work.is_absolute() => tidy(&upper, &work, &mount),
        _ => Ok(()),
    }
}

/// The mount whose root is at `at`.
fn mounted(at: &Path) -> Result<Option<Mount>> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let fd = match nix::fcntl::open(at, flags, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(None),
        other => other.call(format_args!("open({at:?}, O_PATH|O_DIRECTORY)"))?,
    };
    let point = real_path(&fd)?;
    // Of mounts on one another the last is seen.
    Ok(mountinfo::read("self")?.into_iter().rfind(|mount| mount.point == point))
}

/// Unions bear our name; of a single layer all that is left is a read-only mount of a directory.
fn ours(mount: &Mount) -> bool {
    let read_only = mount.options.split(',').any(|option| option == "ro");
    match mount.fs_type.as_str() {
        "overlay" => mount.source == "layer-mount",
        "fuse.fuse-overlayfs" => true,
        "proc" | "sysfs" | "cgroup" | "cgroup2" | "devpts" => false,
        _ => read_only,
    }
}

fn option(mount: &Mount, key: &[u8]) -> Option<PathBuf> {
    mount.super_options.as_bytes().split(|&b| b == b',').find_map(|option| {
        let value = option.strip_prefix(key)?.strip_prefix(b"=")?;
        Some(mountinfo::unescape(value).into())
    })
}

fn unmount(mount: &Mount, lazy: bool) -> Result<()> {
    let point = &mount.point;
    let (flags, shown) = match lazy {
        true => (MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH, "UMOUNT_NOFOLLOW|MNT_DETACH"),
        false => (MntFlags::UMOUNT_NOFOLLOW, "UMOUNT_NOFOLLOW"),
    };
    let users = if lazy { users(point) } else { Vec::new() };
    op(format_args!("umount2({point:?}, {shown})"), || umount2(point, flags)).map_err(|error| match error.errno() {
        Some(Errno::EBUSY) => busy(error, mount),
        Some(Errno::EINVAL) => error.hint("it came from outside this namespace, and cannot be taken away inside"),
        _ => crate::explain::not_permitted(error),
    })?;
    if !users.is_empty() {
        note(format_args!("{point:?} is used until these end: {}", users.join(", ")));
    }
    Ok(())
}

fn busy(error: Error, mount: &Mount) -> Error {
    let below = mountinfo::read("self").unwrap_or_default();
    let mut below: Vec<String> =
        below.iter().filter(|other| other.parent == mount.id).map(|other| format!("{:?}", other.point)).collect();
    let mut users = users(&mount.point);
    for list in [&mut below, &mut users] {
        let more = list.len().saturating_sub(NAMED);
        list.truncate(NAMED);
        if more > 0 {
            list.push(format!("{more} more"));
        }
    }
    match (below.is_empty(), users.is_empty()) {
        (false, _) => error.hint(format_args!(
            "mounted below it: {}; unmount them first (vol-bind --undo), or use --lazy",
            below.join(", ")
        )),
        (true, false) => error.hint(format_args!("used by {}; end them, or use --lazy", users.join(", "))),
        (true, true) => error.hint("its users are hidden from this one; ask as root, or use --lazy"),
    }
}

/// The processes that have something below `point` open, as `process PID (NAME): what`.
fn users(point: &Path) -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    processes
        .filter_map(|pid| Some((pid, use_of(pid, point)?)))
        .map(|(pid, what)| {
            if pid == std::process::id() {
                return format!("this process itself: {what}");
            }
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("process {pid} ({}): {what}", name.trim_end())
        })
        .collect()
}

/// How process `pid` uses something below `point`.
fn use_of(pid: u32, point: &Path) -> Option<&'static str> {
    let inside = |link: PathBuf| fs::read_link(link).is_ok_and(|path| path.starts_with(point));
    let process = PathBuf::from(format!("/proc/{pid}"));
    for (name, what) in [("cwd", "working directory"), ("root", "root"), ("exe", "program")] {
        if inside(process.join(name)) {
            return Some(what);
        }
    }
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    if descriptors.map(|entry| entry.path()).any(inside) {
        return Some("open file");
    }
    // The name is the sixth field, and may have spaces.
    let maps = fs::read(process.join("maps")).unwrap_or_default();
    let mapped = maps.split(|&b| b == b'\n').any(|line| {
        let start = line.iter().position(|&b| b == b'/').unwrap_or(line.len());
        Path::new(OsStr::from_bytes(&line[start..])).starts_with(point)
    });
    mapped.then_some("mapped file")
}

/// Removes what the kernel left in `work`, once no mount uses it: a directory of mode 000, and with --volatile its mark that
/// the upper may not be written; so that is written first.
fn tidy(upper: &Path, work: &Path, mount: &Mount) -> Result<()> {
    let in_use = |dir: &Path| -> Result<bool> {
        Ok(overlays_using(dir)?.iter().any(|user| matches!(user.role, Role::Upper | Role::Work)))
    };
    if in_use(upper)? || in_use(work)? {
        note(format_args!("{work:?} stays: another mount uses it"));
        return Ok(());
    }
    // (The second since Linux 6.18.)
    if option_is_set(mount, b"volatile") || option_is_set(mount, b"fsync=volatile") {
        match fs::File::open(upper) {
            Ok(file) => op(format_args!("syncfs({upper:?})"), || nix::unistd::syncfs(&file))?,
            // Nothing to be saved where there is no upper.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::call(format_args!("open({upper:?})"), error)),
        }
    }
    ["work", "index"].iter().try_for_each(|name| {
        let path = work.join(name);
        if path.symlink_metadata().is_ok() {
            note(format_args!("remove({path:?})"));
            remove_tree(&path)?;
        }
        Ok(())
    })
}

fn option_is_set(mount: &Mount, name: &[u8]) -> bool {
    mount.super_options.as_bytes().split(|&b| b == b',').any(|option| option == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(line: &str) -> Mount {
        mountinfo::parse(line.as_bytes()).remove(0)
    }

    #[test]
    fn only_our_mounts() {
        assert!(ours(&mount("1 1 0:9 / /m rw - overlay layer-mount rw")));
        assert!(!ours(&mount("1 1 0:9 / /m ro - overlay overlay ro")));
        assert!(ours(&mount("1 1 8:1 /layer /m ro,relatime - ext4 /dev/sda rw")));
        assert!(!ours(&mount("1 1 8:1 /layer /m rw,relatime - ext4 /dev/sda rw")));
        assert!(!ours(&mount("1 1 0:5 / /m ro - proc proc rw")));
    }

    #[test]
    fn options_with_escapes() {
        let mount = mount(r"1 1 0:9 / /m rw - overlay layer-mount rw,upperdir=/a\040b\054,workdir=/w,volatile");
        assert_eq!(option(&mount, b"upperdir"), Some("/a b,".into()));
        assert_eq!(option(&mount, b"work"), None);
        assert!(option_is_set(&mount, b"volatile") && !option_is_set(&mount, b"vol"));
    }

    #[test]
    fn nothing_there_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        undo(dir.path(), false).unwrap();
        undo(&dir.path().join("none"), false).unwrap();
    }
}
