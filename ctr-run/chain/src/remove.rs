//! Taking a directory tree away, whatever is in it.
//!
//! Trees that containers and images made can be deeper than a recursion, than the open descriptors and than PATH_MAX, and
//! have directories without permissions. So there is no recursion: a directory that is not empty is moved up to the top,
//! until all are flat. A tree with owners of a user's subordinate ids is removed inside that user namespace.

use crate::error::{Error, FAILED, Result, ResultExt};
use crate::sys::process::{self, Side};
use crate::userns::{self, Maps};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, openat, renameat2};
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Removes `path` and all below it; nothing there is fine. Symbolic links are not followed.
///
/// Only for single-threaded processes where owners may be subordinate ids. Errors: what cannot be removed, a file system
/// mounted below (EBUSY).
pub fn remove_tree(path: &Path) -> Result<()> {
    match remove_here(path) {
        Err(error) if matches!(error.errno(), Some(Errno::EACCES | Errno::EPERM)) && !geteuid().is_root() => {
            remove_in_user_namespace(path)
        }
        other => other,
    }
}

fn remove_here(path: &Path) -> Result<()> {
    match fstatat(AT_FDCWD, path, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(Error::call(format_args!("stat({path:?})"), errno)),
        Ok(stat) if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFDIR.bits() => {
            return std::fs::remove_file(path).call(format_args!("unlink({path:?})"));
        }
        Ok(_) => {}
    }
    let top = open_dir(AT_FDCWD, path.as_os_str()).call(format_args!("open({path:?})"))?;
    let mut moved = 0;
    loop {
        let names = entries(&top).call(format_args!("getdents({path:?})"))?;
        if names.is_empty() {
            break;
        }
        for name in names {
            flatten(&top, &name, &mut moved).map_err(|(inside, errno)| {
                Error::call(format_args!("remove({:?})", path.join(&name).join(inside)), errno)
            })?;
        }
    }
    std::fs::remove_dir(path).call(format_args!("rmdir({path:?})"))
}

/// Removes `name` in `top`; directories in it that are not empty are moved into `top`.
fn flatten(top: &OwnedFd, name: &OsStr, moved: &mut u64) -> Result<(), (OsString, Errno)> {
    let whole = |errno| (OsString::new(), errno);
    if remove_one(top, name).map_err(whole)? {
        return Ok(());
    }
    let dir = open_dir(top, name).map_err(whole)?;
    for child in entries(&dir).map_err(whole)? {
        let at_child = |errno| (child.clone(), errno);
        if remove_one(&dir, &child).map_err(at_child)? {
            continue;
        }
        // Moving a directory changes its "..", for which it has to be writable.
        let _ = fchmodat(&dir, child.as_os_str(), Mode::S_IRWXU, FchmodatFlags::FollowSymlink);
        loop {
            *moved += 1;
            let place = format!(".removed-{moved}");
            match renameat2(&dir, child.as_os_str(), top, place.as_str(), RenameFlags::RENAME_NOREPLACE) {
                Err(Errno::EEXIST) => {}
                other => break other.map_err(at_child)?,
            }
        }
    }
    unlinkat(top, name, UnlinkatFlags::RemoveDir).map_err(whole)
}

/// Removes a file or an empty directory; `false` if it is a directory with something in it.
fn remove_one(dir: &OwnedFd, name: &OsStr) -> Result<bool, Errno> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(true),
        Err(Errno::EISDIR) => {}
        Err(errno) => return Err(errno),
    }
    match unlinkat(dir, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Opens a directory for reading, giving its owner (us) the permission first if need be.
fn open_dir(at: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    if !geteuid().is_root() {
        // Without write and search permission nothing in it can be removed. (A directory, so no link is followed.)
        fchmodat(&at, name, Mode::S_IRWXU, FchmodatFlags::FollowSymlink)?;
    }
    openat(at, name, flags, Mode::empty())
}

fn entries(dir: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let again = openat(dir, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::from_fd(again)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_os_string());
        }
    }
    Ok(names)
}

fn remove_in_user_namespace(path: &Path) -> Result<()> {
    let maps = Maps::auto()?;
    // With an inherited "ignore" there would be nothing to wait for.
    let child_ended = process::default_action(Signal::SIGCHLD);
    let ended = match process::clone3(0).call(format_args!("clone3(0)"))? {
        Side::Child => {
            let removed = userns::enter(CloneFlags::CLONE_NEWUSER, &maps).and_then(|()| remove_here(path));
            std::process::exit(removed.map_or_else(|error| crate::tool::report(&error), |()| 0).into());
        }
        Side::Parent(pid, _) => waitpid(pid, None).call(format_args!("waitpid({pid})")),
    };
    child_ended.restore();
    match ended? {
        WaitStatus::Exited(_, 0) => Ok(()),
        // It has said why.
        WaitStatus::Exited(_, status) if status == i32::from(FAILED) => Err(Error::said()),
        other => Err(Error::new(format_args!("the helper that removes {path:?} ended: {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn deep_trees_links_and_closed_directories_go() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::write(&outside, "stays").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c/d")).unwrap();
        symlink(&outside, tree.join("a/link")).unwrap();
        fs::write(tree.join(".removed-1"), "in the way").unwrap();
        let mut at = nix::fcntl::open(&tree, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        for _ in 0..3000 {
            nix::sys::stat::mkdirat(&at, "component", Mode::S_IRWXU).unwrap();
            at = openat(&at, "component", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        }
        fs::set_permissions(tree.join("a/b/c"), fs::Permissions::from_mode(0o0)).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(outside).unwrap(), "stays");
        remove_tree(&tree).unwrap();
    }
}
