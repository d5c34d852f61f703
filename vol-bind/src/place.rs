//! Mounts put in their places inside a root.

use crate::api;
use crate::filesystem::attach;
use crate::mask;
use crate::mount::{Mount, ReadOnly, Source};
use crate::request::Place;
use crate::source::{Ready, Sources, make_read_only};
use crate::undoing::Undoing;
use crate::volume::{Used, Volumes};
use chain::root::{Make, Root};
use chain::store::Store;
use chain::sys::mount::{Change, mount_setattr};
use chain::{Error, Result, ResultExt};
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, umask};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file mode mask off, for what is made in a root: its modes are not the caller's concern. COMMAND gets it as it was.
pub struct NoMask(Mode);

impl NoMask {
    /// Takes it off until this goes.
    pub fn new() -> Self {
        NoMask(umask(Mode::empty()))
    }
}

impl Drop for NoMask {
    fn drop(&mut self) {
        umask(self.0);
    }
}

/// Mounts all that `place` says in `root`: all of it, or (after an error) nothing.
pub fn mount(root: &Root, place: &Place, store: Option<&Path>) -> Result<()> {
    let _mask = NoMask::new();
    let mut undoing = Undoing::default();
    let done = keep_inside(root).and_then(|()| all(root, place, store, &mut undoing));
    if done.is_err() {
        undoing.undo(root);
    }
    done
}

/// If the root is a mount, what is mounted in it stays with it: nothing comes to the places that its mount came from. The
/// machine's own root stays as it is.
fn keep_inside(root: &Root) -> Result<()> {
    if root.path() == Path::new("/") {
        return Ok(());
    }
    let change = Change { propagation: MsFlags::MS_PRIVATE.bits(), ..Change::default() };
    match mount_setattr(root.fd(), false, change) {
        // A plain directory; or nothing may be mounted here, which the first mount says better.
        Ok(()) | Err(Errno::EINVAL | Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno).call(format_args!("mount_setattr({:?}, MS_PRIVATE)", root.path())),
    }
}

fn all(root: &Root, place: &Place, store: Option<&Path>, undoing: &mut Undoing) -> Result<()> {
    let mut mounts: Vec<Mount> = place.names.mounts()?;
    mounts.retain(|file| place.mounts.iter().all(|mount| mount.target != file.target));
    mounts.extend(place.mounts.iter().cloned());
    mounts.sort_by_key(Mount::depth);

    // Volumes first: what they are filled from is the root's own, before anything covers it.
    let volumes = take_volumes(root, &mounts, store)?;
    if let Some(api) = place.api {
        let taken: Vec<&Path> = mounts.iter().map(|mount| mount.target.as_path()).collect();
        api::mount(root, api, place.nodev, &taken, undoing)?;
    }
    let mut sources = Sources::new(root, &volumes);
    let ready = mounts.iter().map(|mount| sources.ready(mount)).collect::<Result<Vec<_>>>()?;
    drop(sources);
    put(root, &mounts, ready, undoing)?;
    mask::read_only(root, &place.read_only)?;
    mask::hide(root, &place.masked)
}

/// Locks the volumes that `mounts` name, in the order of their names so that no two calls wait for each other, and fills
/// those that are new.
fn take_volumes(root: &Root, mounts: &[Mount], store: Option<&Path>) -> Result<BTreeMap<String, Used>> {
    let mut wanted: BTreeMap<&str, &Mount> = BTreeMap::new();
    for mount in mounts {
        if let Source::Volume(name) = &mount.source {
            wanted.entry(name).or_insert(mount);
        }
    }
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let store = Store::at(store)?;
    let volumes = Volumes::of(&store);
    let mut used = BTreeMap::new();
    for (name, mount) in wanted {
        let mut volume = volumes.take(name)?;
        volume.fill(root, &mount.target, mount.options.no_copy)?;
        used.insert(name.to_string(), volume);
    }
    Ok(used)
}

/// Puts `mounts` (those above before those below) in their places. A mount becomes read-only when the places of those
/// inside it are made, and before they are mounted: so they keep what they were given.
fn put(root: &Root, mounts: &[Mount], ready: Vec<Ready>, undoing: &mut Undoing) -> Result<()> {
    let kinds: Vec<Make> = ready.iter().map(|r| if r.directory { Make::Directory } else { Make::File }).collect();
    for (i, (mount, ready)) in mounts.iter().zip(ready).enumerate() {
        let (at, made) = root.make(&mount.target, kinds[i]).map_err(|error| explain_target(error, mount))?;
        made.into_iter().for_each(|path| undoing.made(path));
        attach(&ready.mount, &at, &mount.target)?;
        if mount.options.read_only != ReadOnly::No {
            for (inner, kind) in inside(mounts, i) {
                let (_, made) = root.make(&inner.target, kinds[kind]).map_err(|error| explain_target(error, inner))?;
                made.into_iter().for_each(|path| undoing.made(path));
            }
            make_read_only(mount, &ready.mount)?;
        }
        undoing.mounted(ready.mount);
    }
    Ok(())
}

/// The mounts whose place is in the mount number `outer` itself, with their numbers.
fn inside(mounts: &[Mount], outer: usize) -> Vec<(&Mount, usize)> {
    let target = &mounts[outer].target;
    let below: Vec<(&Mount, usize)> = mounts
        .iter()
        .enumerate()
        .filter(|(i, m)| *i != outer && m.target.starts_with(target))
        .map(|(i, m)| (m, i))
        .collect();
    let direct = |inner: &Mount| {
        below.iter().all(|(other, _)| other.target == inner.target || !inner.target.starts_with(&other.target))
    };
    below.iter().filter(|(inner, _)| direct(inner)).copied().collect()
}

fn explain_target(error: Error, mount: &Mount) -> Error {
    match error.errno() {
        Some(Errno::EROFS) => error.hint(format_args!(
            "the root is read-only there and has no {:?}; put it into the image, or mount with a writable layer (layer-mount --scratch)",
            mount.target
        )),
        Some(Errno::EACCES | Errno::EPERM) => error.hint("the root's owner is not mapped here, or nothing may be made there"),
        _ => error,
    }
}

/// Where the root is: `--root`, else the document's. Error: neither.
pub fn root_of(place: &Place, document: Option<&chain::Document>) -> Result<PathBuf> {
    let given = match (&place.root, document) {
        (Some(root), _) => Some(root.clone()),
        (None, Some(document)) => document.root()?,
        (None, None) => None,
    };
    let given = given.ok_or_else(|| {
        Error::usage("the document has no root.path").hint("layer-mount writes it, or say --root DIR")
    })?;
    std::path::absolute(&given).call(format_args!("getcwd()"))
}
