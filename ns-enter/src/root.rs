//! Entering a root: pivot_root(2), whatever the directory is, and the old root gone.

use crate::create::{Propagation, propagate, remount_root};
use chain::root::{Make, Root};
use chain::sys::mount::{self, Change};
use chain::trace::op;
use chain::{Error, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, fchdir, getcwd, pivot_root};
use std::path::Path;

/// Makes `dir` the root directory of this process, which gets a mount namespace of its own for it: pivot_root(2) changes
/// the root of all who share one. The working directory is the new root then.
///
/// Errors: no such directory; no CAP_SYS_ADMIN; what pivot_root(2) says, with its cause.
pub fn enter(dir: &Path, has_own_mounts: bool, propagation: Propagation) -> Result<()> {
    if !has_own_mounts {
        op(format_args!("unshare(CLONE_NEWNS)"), || unshare(CloneFlags::CLONE_NEWNS)).map_err(|error| {
            match error.errno() {
                Some(Errno::EPERM) => {
                    error.hint("--root needs CAP_SYS_ADMIN; --user makes a user namespace that gives it")
                }
                _ => error,
            }
        })?;
        propagate(propagation)?;
    }
    op(format_args!("chdir({dir:?})"), || chdir(dir))?;
    match pivot(dir) {
        // EBUSY: it is on the mount that is the root now.
        Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::EBUSY)) => enter_directory(dir),
        other => other,
    }?;
    // The old root is on top of the new one, and the working directory is in it.
    op(format_args!("umount2(\".\", MNT_DETACH)"), || umount2(".", MntFlags::MNT_DETACH))?;
    op(format_args!("chdir(\"/\")"), || chdir("/"))
}

fn pivot(dir: &Path) -> Result<()> {
    op(format_args!("pivot_root({dir:?}, {dir:?})"), || pivot_root(".", "."))
}

/// A directory that is no mount becomes one, and so does the present root if it is none.
fn enter_directory(dir: &Path) -> Result<()> {
    mount_on_itself(dir)?;
    match pivot(dir) {
        Err(error) if error.errno() == Some(Errno::EINVAL) => {}
        other => return other,
    }
    // By its path from the root, since the root is about to be another mount with the same content.
    let here = getcwd().map_err(|errno| Error::call(format_args!("getcwd()"), errno))?;
    remount_root()?;
    op(format_args!("chdir({here:?})"), || chdir(&here))?;
    pivot(dir).map_err(|error| match error.errno() {
        Some(Errno::EINVAL) => error.hint(why_invalid(&here)),
        _ => error,
    })
}

fn mount_on_itself(dir: &Path) -> Result<()> {
    let copy = op(format_args!("open_tree({dir:?}, OPEN_TREE_CLONE|AT_RECURSIVE)"), || {
        mount::open_tree(None, Path::new("."), mount::OPEN_TREE_CLONE | mount::AT_RECURSIVE)
    })?;
    let place = op(format_args!("open_tree({dir:?})"), || mount::open_tree(None, Path::new("."), 0))?;
    op(format_args!("move_mount({dir:?}, {dir:?})"), || mount::move_mount(&copy, &place))?;
    op(format_args!("fchdir({dir:?})"), || fchdir(&copy))
}

/// Which of pivot_root(2)'s reasons for EINVAL it is.
fn why_invalid(dir: &Path) -> String {
    let mounts = chain::mountinfo::read("self").unwrap_or_default();
    let on = |path: &Path| mounts.iter().rev().find(|mount| mount.point == path);
    let Some(new) = on(dir) else { return format!("{dir:?} is no mount point") };
    let shared = |mount: &chain::mountinfo::Mount| mount.propagation.iter().any(|field| field.starts_with("shared:"));
    if mounts.iter().any(|mount| mount.id == new.parent && shared(mount)) {
        return format!("the mount that {dir:?} is on is shared");
    }
    match on(Path::new("/")) {
        None => "the present root is no mount point (a chroot)".into(),
        Some(root) if shared(root) => "the present root's mount is shared".into(),
        Some(root) if root.fs_type == "rootfs" => "the present root is the kernel's initial one (an initramfs)".into(),
        Some(_) => "the mounts do not allow it".into(),
    }
}

/// Makes the root's own mount read-only, and its device nodes useless, as asked for; what is mounted below it stays as it
/// is.
pub fn restrict(read_only: bool, nodev: bool) -> Result<()> {
    let wanted = [(read_only, mount::ATTR_RDONLY, "RDONLY"), (nodev, mount::ATTR_NODEV, "NODEV")];
    let wanted = wanted.iter().filter(|(wanted, ..)| *wanted);
    let set = wanted.clone().fold(0, |all, (_, attribute, _)| all | attribute);
    if set == 0 {
        return Ok(());
    }
    let names: Vec<&str> = wanted.map(|(.., name)| *name).collect();
    op(format_args!("mount_setattr(\"/\", {})", names.join("|")), || {
        mount::mount_setattr_at(None, Path::new("/"), 0, Change { set, ..Change::default() })
    })
}

/// Makes the directory `path` inside the root `dir`, with its parents, if it is missing.
pub fn make_directory(dir: &Path, path: &Path) -> Result<()> {
    // The caller's umask is for COMMAND's files.
    let root = Root::open(dir)?;
    let mask = umask(Mode::from_bits_truncate(0o022));
    let made = root.make(path, Make::Directory);
    umask(mask);
    made.map(drop)
}

/// Changes to `path`, and sees that it is inside the root: a link to a descriptor of a directory outside may lead there
/// (CVE-2024-21626).
pub fn change_directory(path: &Path) -> Result<()> {
    op(format_args!("chdir({path:?})"), || chdir(path))?;
    // The C library finds no name for what the kernel calls unreachable.
    match getcwd() {
        Ok(here) if here.is_absolute() => Ok(()),
        Ok(_) | Err(Errno::ENOENT) => {
            let _ = chdir("/");
            Err(Error::new(format_args!("chdir({path:?}): it leads outside of the root directory")))
        }
        Err(errno) => Err(Error::call(format_args!("getcwd(in {path:?})"), errno)),
    }
}
