//! What is mounted, as detached mounts that are ready to be put in their place.

use crate::filesystem::{attach, create, explain};
use crate::idmap;
use crate::mount::{Create, Mount, ReadOnly, Source};
use crate::volume::Used;
use chain::root::Root;
use chain::sys::mount::{
    self as kernel, AT_EMPTY_PATH, AT_RECURSIVE, ATTR_IDMAP, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, Change,
    OPEN_TREE_CLONE,
};
use chain::trace::op;
use chain::{Error, Result, ResultExt, mountinfo};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::{Mode, SFlag, fstat};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A detached mount, not read-only yet.
pub struct Ready {
    /// The mount.
    pub mount: OwnedFd,
    /// Whether its root is a directory.
    pub directory: bool,
}

/// Makes detached mounts.
pub struct Sources<'a> {
    root: &'a Root,
    volumes: &'a BTreeMap<String, Used>,
    files: Option<OwnedFd>,
}

impl<'a> Sources<'a> {
    /// For `root`, with the named volumes that are in use.
    pub fn new(root: &'a Root, volumes: &'a BTreeMap<String, Used>) -> Self {
        Sources { root, volumes, files: None }
    }

    /// The detached mount of `mount`, with all its attributes but read-only.
    ///
    /// Errors: the source is missing or may not be reached, a file system that cannot be had, attributes that are refused.
    pub fn ready(&mut self, mount: &Mount) -> Result<Ready> {
        let options = &mount.options;
        let tree = match &mount.source {
            Source::FileSystem(kind, source) => {
                let data: Vec<(&str, Option<&str>)> =
                    options.data.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
                let made = create(kind, source, &data, options.set)?;
                if let Some((propagation, _)) = options.propagation {
                    let change = Change { propagation, ..Change::default() };
                    op(format_args!("mount_setattr({:?}, propagation {propagation:#x})", mount.target), || {
                        kernel::mount_setattr(&made, false, change)
                    })?;
                }
                return Ok(Ready { mount: made, directory: true });
            }
            Source::Content(content) => {
                return Ok(Ready { mount: self.file(&mount.target, content)?, directory: false });
            }
            Source::Path(path) | Source::Device(path) => host(path, options.top_only, options.create)?,
            Source::Volume(name) => {
                let data = self.volumes.get(name).map(Used::data).unwrap_or_default();
                below(clone(&data, options.top_only)?, &data, options.subpath.as_deref())?
            }
        };
        let kind = fstat(&tree).call(format_args!("fstat({:?})", mount.source))?.st_mode & SFlag::S_IFMT.bits();
        let device = kind == SFlag::S_IFCHR.bits() || kind == SFlag::S_IFBLK.bits();
        let directory = kind == SFlag::S_IFDIR.bits();
        if let Source::Device(path) = &mount.source
            && !(device || directory)
        {
            return Err(Error::new(format_args!("--device {path:?}: not a device")));
        }
        spread(mount, &tree)?;
        Ok(Ready { mount: tree, directory })
    }

    /// A file with `content` that is in no other place: on a small file system of this call's own.
    fn file(&mut self, target: &Path, content: &[u8]) -> Result<OwnedFd> {
        let files = match self.files.take() {
            Some(files) => files,
            None => {
                let data = [("mode", Some("700")), ("size", Some("4m"))];
                create("tmpfs", OsStr::new("tmpfs"), &data, ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC)?
            }
        };
        let files = &*self.files.insert(files);
        let name = target.file_name().unwrap_or_default();
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        openat(files, name, flags, Mode::from_bits_truncate(0o644))
            .map_err(std::io::Error::from)
            .and_then(|file| File::from(file).write_all(content))
            .call(format_args!("write({target:?})"))?;
        let copy = || kernel::open_tree(Some(files.as_fd()), Path::new(name), OPEN_TREE_CLONE);
        match op(format_args!("open_tree({target:?}, OPEN_TREE_CLONE)"), copy) {
            // KERNEL(6.15): before, only what is mounted can be copied; once detached, it cannot be mounted again.
            Err(error) if error.errno() == Some(Errno::EINVAL) => {
                attach(files, self.root.fd(), "/")?;
                let copied = op(format_args!("open_tree({target:?}, OPEN_TREE_CLONE)"), copy);
                let mount = format!("/proc/self/fd/{}", files.as_raw_fd());
                op(format_args!("umount2(\"/\", MNT_DETACH)"), || umount2(mount.as_str(), MntFlags::MNT_DETACH))?;
                self.files = None;
                copied
            }
            other => other,
        }
    }
}

/// What is at `path` of the machine. Links are followed.
fn host(path: &Path, top_only: bool, create: Option<Create>) -> Result<OwnedFd> {
    let first = clone(path, top_only);
    let Err(error) = first else { return first };
    match (error.errno(), create) {
        (Some(Errno::ENOENT), Some(create)) => {
            make(path, create)?;
            clone(path, top_only)
        }
        (Some(Errno::ENOENT), None) if !path.exists() => {
            Err(error.hint("the source is missing; make it, or add the option create"))
        }
        (Some(Errno::EACCES), _) if nix::unistd::geteuid().is_root() => {
            Err(error.hint("this user namespace has no right to a directory on the way"))
        }
        _ => Err(error),
    }
}

fn make(path: &Path, create: Create) -> Result<()> {
    let directory = |dir: &Path| {
        op(format_args!("mkdir({dir:?}, 0755)"), || fs::DirBuilder::new().recursive(true).mode(0o755).create(dir))
    };
    match create {
        Create::Directory => directory(path),
        Create::File => {
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                directory(parent)?;
            }
            op(format_args!("open({path:?}, O_CREAT)"), || File::options().create(true).append(true).open(path))
                .map(drop)
        }
    }
}

fn clone(path: &Path, top_only: bool) -> Result<OwnedFd> {
    let (flags, shown) = match top_only {
        true => (OPEN_TREE_CLONE, "OPEN_TREE_CLONE"),
        false => (OPEN_TREE_CLONE | AT_RECURSIVE, "OPEN_TREE_CLONE|AT_RECURSIVE"),
    };
    op(format_args!("open_tree({path:?}, {shown})"), || kernel::open_tree(None, path, flags)).map_err(|error| {
        let error = explain(error);
        match error.errno() {
            Some(Errno::EINVAL) if top_only => match mount_below(path) {
                Some(below) => error.hint(format_args!(
                    "{below:?} below it is locked by the namespace around this one; leave the option bind out"
                )),
                None => error,
            },
            Some(Errno::EINVAL) => error.hint("what is mounted there is unbindable, or of another mount namespace"),
            _ => error,
        }
    })
}

fn mount_below(path: &Path) -> Option<PathBuf> {
    let path = path.canonicalize().ok()?;
    let mounts = mountinfo::read("self").ok()?;
    mounts.into_iter().map(|mount| mount.point).find(|point| point != &path && point.starts_with(&path))
}

/// The directory `subpath` of a volume's detached mount, as a mount.
fn below(tree: OwnedFd, data: &Path, subpath: Option<&Path>) -> Result<OwnedFd> {
    let Some(subpath) = subpath else { return Ok(tree) };
    // A link in a volume must not lead out of it.
    let found = kernel::openat2(&tree, subpath, OFlag::O_PATH.bits(), 0, kernel::RESOLVE_IN_ROOT)
        .call(format_args!("openat2({data:?}, {subpath:?}, RESOLVE_IN_ROOT)"))?;
    op(format_args!("open_tree({:?}, OPEN_TREE_CLONE)", data.join(subpath)), || {
        kernel::open_tree(Some(found.as_fd()), Path::new(""), OPEN_TREE_CLONE | AT_EMPTY_PATH)
    })
    .map_err(explain)
}

/// Propagation, attributes and owners of a copied tree. Private unless else was asked for, so that nothing that is mounted
/// in the root comes to the source's other places.
fn spread(mount: &Mount, tree: &OwnedFd) -> Result<()> {
    let options = &mount.options;
    let (kind, deep) = options.propagation.unwrap_or((MsFlags::MS_PRIVATE.bits(), true));
    if kind == MsFlags::MS_SLAVE.bits() || kind == MsFlags::MS_SHARED.bits() {
        check_shared(mount, kind)?;
    }
    let attributes = (options.set, options.clear);
    let all = |propagation| Change { set: attributes.0, clear: attributes.1, propagation, ..Change::default() };
    let change = |deep: bool, change: Change| {
        op(
            format_args!(
                "mount_setattr({:?}, set {:#x}, clear {:#x}, propagation {:#x})",
                mount.target, change.set, change.clear, change.propagation
            ),
            || kernel::mount_setattr(tree, deep, change),
        )
        .map_err(|error| match error.errno() {
            Some(Errno::EPERM) => {
                error.hint("the namespace around this one has locked an attribute of the source's mount")
            }
            _ => error,
        })
    };
    if deep {
        change(true, all(kind))?;
    } else {
        change(true, all(MsFlags::MS_PRIVATE.bits()))?;
        change(false, Change { propagation: kind, ..Change::default() })?;
    }
    if !options.idmap.is_empty() {
        let namespace = idmap::namespace(&options.idmap)?;
        let change = Change { set: ATTR_IDMAP, user_namespace: Some(namespace.as_fd()), ..Change::default() };
        op(format_args!("mount_setattr({:?}, MOUNT_ATTR_IDMAP)", mount.target), || {
            kernel::mount_setattr(tree, !options.top_only, change)
        })
        .map_err(|error| match error.errno() {
            Some(Errno::EPERM) => error.hint("only root of the machine may map owners of a file system that belongs to it; change the owners instead (chown -R)"),
            Some(Errno::EINVAL) => error.hint("the source's file system cannot map owners; change them instead (chown -R)"),
            _ => error,
        })?;
    }
    Ok(())
}

/// Asking for mounts to come in from a source that sends none is an error, not a silence.
fn check_shared(mount: &Mount, kind: u64) -> Result<()> {
    let Source::Path(path) = &mount.source else { return Ok(()) };
    let path = path.canonicalize().call(format_args!("realpath({path:?})"))?;
    let mounts = mountinfo::read("self")?;
    let Some(holder) =
        mounts.iter().rev().filter(|m| path.starts_with(&m.point)).max_by_key(|m| m.point.components().count())
    else {
        return Ok(());
    };
    let has = |tag: &str| holder.propagation.iter().any(|field| field.starts_with(tag));
    let fine = has("shared:") || (kind == MsFlags::MS_SLAVE.bits() && has("master:"));
    if fine {
        return Ok(());
    }
    Err(Error::new(format_args!(
        "{:?}: mounts cannot come in: {:?}, where the source is, is mounted private",
        mount.target, holder.point
    ))
    .hint(format_args!("mount --make-rshared {:?}", holder.point)))
}

/// Makes a mount read-only, as far as was asked for.
pub fn make_read_only(mount: &Mount, tree: &OwnedFd) -> Result<()> {
    if mount.options.read_only == ReadOnly::No {
        return Ok(());
    }
    let deep = mount.options.read_only == ReadOnly::All;
    let change = Change { set: ATTR_RDONLY, ..Change::default() };
    let shown = if deep { "AT_RECURSIVE" } else { "0" };
    op(format_args!("mount_setattr({:?}, MOUNT_ATTR_RDONLY, {shown})", mount.target), || {
        kernel::mount_setattr(tree, deep, change)
    })
}
