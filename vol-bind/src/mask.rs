//! Paths hidden and made read-only, after all else is mounted. What is not there is skipped, never made.

use crate::filesystem::{attach, create, explain};
use chain::root::Root;
use chain::sys::mount::{
    self as kernel, AT_EMPTY_PATH, AT_RECURSIVE, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, Change,
    OPEN_TREE_CLONE, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2,
};
use chain::trace::{note, op};
use chain::{Error, Result, ResultExt};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::sys::stat::{SFlag, fstat, major, minor};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

const SECURE: u64 = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;

/// Makes each of `paths` read-only with all that is mounted below it.
pub fn read_only(root: &Root, paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        let Some(at) = find(root, path)? else { continue };
        let tree = clone(&at, path)?;
        let change = Change { set: ATTR_RDONLY, propagation: MsFlags::MS_PRIVATE.bits(), ..Change::default() };
        op(format_args!("mount_setattr({path:?}, ro, AT_RECURSIVE)"), || kernel::mount_setattr(&tree, true, change))?;
        attach(&tree, &at, path)?;
    }
    Ok(())
}

/// Hides each of `paths`: a directory behind an empty read-only one, another file behind /dev/null.
pub fn hide(root: &Root, paths: &[PathBuf]) -> Result<()> {
    // One empty directory serves for all: a bind of it costs less than a new file system.
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let Some(at) = find(root, path)? else { continue };
        let stat = fstat(&at).call(format_args!("fstat({path:?})"))?;
        if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFDIR.bits() {
            attach(null()?, &at, path)?;
        } else if let Some(empty) = &empty {
            attach(clone(empty, path)?, &at, path)?;
        } else {
            let data = [("mode", Some("755")), ("size", Some("4k"))];
            let mount = create("tmpfs", OsStr::new("tmpfs"), &data, SECURE | ATTR_RDONLY)?;
            attach(&mount, &at, path)?;
            empty = Some(mount);
        }
    }
    Ok(())
}

/// The machine's /dev/null, and nothing else that may be at that path.
fn null() -> Result<OwnedFd> {
    let path = Path::new("/dev/null");
    let mount =
        op(format_args!("open_tree({path:?}, OPEN_TREE_CLONE)"), || kernel::open_tree(None, path, OPEN_TREE_CLONE))
            .map_err(explain)?;
    let stat = fstat(&mount).call(format_args!("fstat({path:?})"))?;
    let character = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits();
    if !character || (major(stat.st_rdev), minor(stat.st_rdev)) != (1, 3) {
        return Err(Error::new("/dev/null is not the null device, so nothing can be hidden behind it"));
    }
    let change = Change { propagation: MsFlags::MS_PRIVATE.bits(), ..Change::default() };
    op(format_args!("mount_setattr({path:?}, MS_PRIVATE)"), || kernel::mount_setattr(&mount, false, change))?;
    Ok(mount)
}

/// What `path` names inside the root; `None` if it is not there.
fn find(root: &Root, path: &Path) -> Result<Option<OwnedFd>> {
    let inside = path.strip_prefix("/").unwrap_or(path);
    match openat2(root.fd(), inside, OFlag::O_PATH.bits(), 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => {
            note(format_args!("{path:?} is not there: skipped"));
            Ok(None)
        }
        Err(errno) => Err(Error::call(format_args!("openat2({:?}, {path:?}, RESOLVE_IN_ROOT)", root.path()), errno)),
    }
}

/// A detached copy of what is mounted at and below `at`.
fn clone(at: &OwnedFd, path: &Path) -> Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | AT_RECURSIVE | AT_EMPTY_PATH;
    op(format_args!("open_tree({path:?}, OPEN_TREE_CLONE|AT_RECURSIVE)"), || {
        use std::os::fd::AsFd;
        kernel::open_tree(Some(at.as_fd()), Path::new(""), flags)
    })
    .map_err(explain)
}
