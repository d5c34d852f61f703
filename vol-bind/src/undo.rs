//! `--undo`: exactly the mounts that were asked for, last first.

use crate::mount::{Mount, Options, Source};
use crate::volume::Volumes;
use chain::mountinfo;
use chain::root::Root;
use chain::store::Store;
use chain::sys::mount::{RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, openat2};
use chain::trace::{note, op};
use chain::{Error, Result, ResultExt};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{fstat, makedev, stat};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The kind of a "mount" that only hides a path or makes it read-only.
const HIDDEN: &str = "(hidden or read-only)";

/// What hides `paths` or makes them read-only, to be taken away.
pub fn hidden(paths: &[PathBuf]) -> impl Iterator<Item = Mount> {
    paths.iter().map(|path| Mount {
        source: Source::FileSystem(HIDDEN.into(), HIDDEN.into()),
        target: path.clone(),
        options: Options::default(),
    })
}

/// Takes `mounts` of `root` away, the last one first. What is not mounted is gone already; something else that is mounted
/// there stays, and `-v` tells.
///
/// Errors: a mount is busy (EBUSY), with who keeps it so; the source is gone, and nothing tells whether the mount is of it.
pub fn unmount(root: &Root, mounts: &[Mount], store: Option<&Path>) -> Result<()> {
    for mount in mounts.iter().rev() {
        take(root, mount, store)?;
    }
    Ok(())
}

fn take(root: &Root, mount: &Mount, store: Option<&Path>) -> Result<()> {
    let found = match root.open_at(&mount.target, OFlag::O_PATH) {
        Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::ENOTDIR)) => return Ok(()),
        other => other?,
    };
    let real = real_path(&found)?;
    if !is_ours(mount, &found, &real, store)? {
        return Ok(());
    }
    // A descriptor of the mount would keep it busy; one of the directory above does not.
    drop(found);
    let inside = real
        .strip_prefix(real_path_of(root)?)
        .map_err(|_| Error::new(format_args!("{:?} is not inside {:?}", mount.target, root.path())))?;
    let (Some(parent), Some(name)) = (inside.parent(), inside.file_name()) else { return Ok(()) };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let dir = openat2(root.fd(), parent, flags.bits(), 0, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)
        .call(format_args!("openat2({:?}, {parent:?}, RESOLVE_IN_ROOT|RESOLVE_NO_SYMLINKS)", root.path()))?;
    let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    // What `--api` mounts there is more than one mount.
    let tree = ["/dev", "/sys", "/sys/fs/cgroup"].iter().any(|at| mount.target == Path::new(at));
    let flags = if tree { MntFlags::MNT_DETACH } else { MntFlags::empty() } | MntFlags::UMOUNT_NOFOLLOW;
    match op(format_args!("umount2({real:?}, UMOUNT_NOFOLLOW)"), || umount2(&path, flags)) {
        Err(error) if error.errno() == Some(Errno::EBUSY) => Err(busy(error, &real)),
        Err(error) if error.errno() == Some(Errno::EINVAL) => {
            Err(error.hint("it is locked: it came from the namespace around this one, and only that can take it away"))
        }
        other => other.map_err(crate::filesystem::explain),
    }
}

/// Whether what is mounted at `real` is what `mount` says.
fn is_ours(mount: &Mount, found: &OwnedFd, real: &Path, store: Option<&Path>) -> Result<bool> {
    let mounts = mountinfo::read("self")?;
    // The last one is on top.
    let Some(there) = mounts.iter().rev().find(|mount| mount.point == real) else {
        note(format_args!("{real:?} is not mounted"));
        return Ok(false);
    };
    let source = match &mount.source {
        Source::Path(path) | Source::Device(path) => Some(path.clone()),
        Source::Volume(name) => {
            let data = Volumes::of(&Store::at(store)?).data(name);
            Some(mount.options.subpath.as_ref().map_or(data.clone(), |subpath| data.join(subpath)))
        }
        _ => None,
    };
    let same = match (&source, &mount.source) {
        (Some(path), _) => match stat(path) {
            Ok(source) => {
                let top = fstat(found).call(format_args!("fstat({real:?})"))?;
                (top.st_dev, top.st_ino) == (source.st_dev, source.st_ino)
            }
            Err(_) if was_of(&there.root, path) => true,
            Err(errno) => {
                return Err(Error::call(format_args!("stat({path:?})"), errno).hint(format_args!(
                    "so nothing tells whether what is mounted at {real:?} is from there: left alone; umount takes it away"
                )));
            }
        },
        (None, Source::FileSystem(kind, _)) if kind == HIDDEN => {
            let read_only = there.options.split(',').any(|option| option == "ro");
            read_only || fstat(found).is_ok_and(|stat| stat.st_rdev == makedev(1, 3))
        }
        (None, Source::FileSystem(kind, _)) => there.fs_type == *kind || kind == "none" || kind == "cgroup",
        _ => true,
    };
    if !same {
        note(format_args!("what is mounted at {real:?} is not {:?}: left alone", mount.source));
    }
    Ok(same)
}

/// Whether `root`, the part of its file system that is mounted, is or was at `source`, which is gone or out of reach: what is
/// mounted of the file system at all is an end of the source's path.
fn was_of(root: &Path, source: &Path) -> bool {
    let Ok(source) = std::path::absolute(source) else { return false };
    // Links on the way, as far as it is still there.
    let source = match (source.parent().map(fs::canonicalize), source.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => source,
    };
    let root = root.as_os_str().as_bytes();
    // (The kernel's mark on what was removed.)
    let root = root.strip_suffix(b"//deleted").unwrap_or(root);
    let end = Path::new(OsStr::from_bytes(root.strip_prefix(b"/").unwrap_or(root)));
    !end.as_os_str().is_empty() && source.ends_with(end)
}

fn busy(error: Error, path: &Path) -> Error {
    match holders(path) {
        holders if holders.is_empty() => {
            error.hint("something is mounted below it, or a process has a file of it open")
        }
        holders => error.hint(format_args!("used by {}", holders.join(", "))),
    }
}

/// Processes with a working directory, root or open file at or below `path`, as far as this user may look.
fn holders(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let links = ["cwd", "root"].iter().map(|name| process.path().join(name));
        let files = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten().map(|file| file.path());
        if links.chain(files).any(|link| fs::read_link(link).is_ok_and(|to| to.starts_with(path))) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{pid} ({})", name.trim_end()));
        }
        if found.len() == 5 {
            break;
        }
    }
    found
}

/// Where `fd` is. (The kernel marks a mount whose source was removed.)
fn real_path(fd: &OwnedFd) -> Result<PathBuf> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let path = fs::read_link(&link).call(format_args!("readlink({link:?})"))?;
    Ok(match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(unmarked) if path.symlink_metadata().is_err() => PathBuf::from(OsStr::from_bytes(unmarked)),
        _ => path,
    })
}

fn real_path_of(root: &Root) -> Result<PathBuf> {
    let link = format!("/proc/self/fd/{}", root.fd().as_raw_fd());
    fs::read_link(&link).call(format_args!("readlink({link:?})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_is_gone_is_known_by_its_path() {
        let was = |root: &str, source: &str| was_of(Path::new(root), Path::new(source));
        assert!(was("/gone/src", "/gone/src") && was("/src//deleted", "/gone/src"));
        assert!(!was("/other", "/gone/src") && !was("/rc", "/gone/src") && !was("/", "/gone/src"));
    }
}
