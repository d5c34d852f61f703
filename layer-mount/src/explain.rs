//! Why the kernel refused: its own messages, and facts that are looked up after the failure.

use crate::layers::{Layer, real_path};
use crate::overlay::Overlay;
use crate::writable::Writable;
use chain::{Error, mountinfo, userns};
use nix::errno::Errno;
use nix::sys::statfs::{self, FsType, fstatfs};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::geteuid;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

const UPPER_ELSEWHERE: &str = "put --upper and --work on a disk's or tmpfs's file system, or use --scratch";

/// File systems that cannot hold a writable layer (no whiteouts, attributes or d_type), with their names.
const UNFIT: [(FsType, &str); 8] = [
    (statfs::OVERLAYFS_SUPER_MAGIC, "overlay"),
    (statfs::NFS_SUPER_MAGIC, "NFS"),
    (statfs::FUSE_SUPER_MAGIC, "FUSE"),
    (statfs::MSDOS_SUPER_MAGIC, "FAT"),
    (FsType(0xff53_4d42), "CIFS"),
    (FsType(0xfe53_4d42), "SMB"),
    (FsType(0x0102_1997), "9p"),
    (FsType(0x0BD0_0BD0), "Lustre"),
];

/// A mount call that was refused: whether for lack of privileges.
pub fn not_permitted(error: Error) -> Error {
    match error.errno() {
        Some(Errno::EPERM) if geteuid().is_root() => {
            error.hint("this process lacks CAP_SYS_ADMIN over its mounts; run it in a new namespace: ns-enter --user --map-auto --mount -- …")
        }
        Some(Errno::EPERM) => {
            error.hint("only root may mount, or a user in a namespace of their own: ns-enter --user --map-auto --mount -- …")
        }
        _ => error,
    }
}

/// fsopen that failed: whether the kernel has no overlay.
pub fn no_overlay(error: Error) -> Error {
    match error.errno() {
        Some(Errno::ENODEV) => error.hint("this kernel has no overlay; modprobe overlay loads it, or use --fuse"),
        _ => not_permitted(error),
    }
}

/// Overlay's parameters that the kernel refused, with its messages `log`.
pub fn refused(mut error: Error, log: &[String], overlay: &Overlay) -> Error {
    let mut said: Vec<&str> = log.iter().map(|line| line.trim_start_matches("overlay: ")).collect();
    said.dedup();
    if !said.is_empty() {
        error = error.hint(format_args!("kernel: {}", said.join(", ")));
    }
    match error.errno() {
        Some(Errno::EINVAL) => invalid(error, overlay),
        Some(Errno::ELOOP) => match nested(overlay) {
            Some((inner, outer)) => {
                error.hint(format_args!("{inner:?} is inside {outer:?}: directories of one union may not overlap"))
            }
            None => error,
        },
        Some(Errno::ESTALE) => error.hint("this upper belongs to other layers; use the ones it was made with"),
        Some(Errno::EPERM) => not_permitted(error),
        _ => error,
    }
}

fn invalid(error: Error, overlay: &Overlay) -> Error {
    if let Some(writable) = overlay.writable
        && let Some(why) = misfit(writable)
    {
        return error.hint(why);
    }
    match overlay.layers.all().iter().find(|layer| below(layer).is_some()) {
        Some(layer) if !overlay.initial => locked(error, layer),
        _ => error,
    }
}

/// A layer with mounts below it, which a user namespace must not uncover.
pub fn locked(error: Error, layer: &Layer) -> Error {
    let Some(point) = below(layer) else { return error };
    error.hint(format_args!(
        "{point:?} is mounted below the layer {:?}, and a user namespace may not look below it; use directories without mounts, one union each, or ctr-run rootfs:DIR, which does that",
        layer.path
    ))
}

/// The first mount point below `layer`.
fn below(layer: &Layer) -> Option<PathBuf> {
    let path = real_path(layer).ok()?;
    let mounts = mountinfo::read("self").ok()?;
    mounts.into_iter().map(|mount| mount.point).find(|point| *point != path && point.starts_with(&path))
}

/// Why a writable layer cannot be one.
pub fn misfit(writable: &Writable) -> Option<String> {
    unfit(writable).or_else(|| misplaced(writable))
}

/// Why a writable layer cannot be where it is, from its file system.
fn unfit(writable: &Writable) -> Option<String> {
    let path = &writable.upper_path;
    let kind = fstatfs(&writable.upper).ok()?.filesystem_type();
    if let Some((_, name)) = UNFIT.iter().find(|(magic, _)| *magic == kind) {
        return Some(format!(
            "--upper {path:?} is on {name}, which cannot hold a writable layer; {UPPER_ELSEWHERE}, or --fuse"
        ));
    }
    read_only(&writable.upper)
        .then(|| format!("--upper {path:?} is on a file system that is mounted read-only; {UPPER_ELSEWHERE}"))
}

fn read_only(file: impl AsFd) -> bool {
    fstatvfs(file).is_ok_and(|stat| stat.flags().contains(FsFlags::ST_RDONLY))
}

/// Why upper and work do not go together, from where they are and what is in them.
fn misplaced(writable: &Writable) -> Option<String> {
    let (upper, work) = (real_path(&writable.upper).ok()?, real_path(&writable.work).ok()?);
    if work.starts_with(&upper) || upper.starts_with(&work) {
        return Some(format!("--work {work:?} and --upper {upper:?} are inside one another; put them side by side"));
    }
    if work.join("work/incompat/volatile").exists() {
        return Some(format!(
            "this upper was mounted with --volatile and not undone, so the machine may have stopped before it was written; if it did not, remove {:?}",
            work.join("work")
        ));
    }
    let mounts = mountinfo::read("self").ok()?;
    let point = |path: &Path| {
        mounts
            .iter()
            .map(|mount| mount.point.clone())
            .filter(|point| path.starts_with(point))
            .max_by_key(|point| point.as_os_str().len())
    };
    let (above, beside) = (point(&upper)?, point(&work)?);
    (above != beside).then(|| {
        format!("--upper is on the mount {above:?} and --work on {beside:?}; the kernel wants both on one mount")
    })
}

/// Two directories of the union, one inside the other.
fn nested(overlay: &Overlay) -> Option<(PathBuf, PathBuf)> {
    let mut paths: Vec<PathBuf> = overlay.layers.all().iter().filter_map(|layer| real_path(layer).ok()).collect();
    paths.extend(overlay.writable.and_then(|writable| real_path(&writable.upper).ok()));
    paths.extend(overlay.writable.and_then(|writable| real_path(&writable.work).ok()));
    // In order, what is inside a directory follows it.
    paths.sort();
    paths.windows(2).find(|pair| pair[1].starts_with(&pair[0])).map(|pair| (pair[1].clone(), pair[0].clone()))
}

/// An upper whose file system does not take overlay's attributes.
pub fn unfit_upper(error: Error, writable: &Writable) -> Error {
    match error.errno() {
        Some(Errno::EOPNOTSUPP) if writable.memory.is_some() && !userns::is_initial() => {
            // KERNEL(6.6): `user.` attributes on tmpfs.
            error.hint("tmpfs takes attributes of a user namespace from Linux 6.6 on; use --upper and --work on a disk")
        }
        Some(Errno::EOPNOTSUPP | Errno::EROFS | Errno::EINVAL | Errno::EPERM | Errno::EACCES) => match unfit(writable) {
            Some(why) => error.hint(why),
            None => error.hint("overlay keeps what was deleted in attributes of the upper, which can be set only by its owner, on a file system that has them"),
        },
        _ => error,
    }
}
