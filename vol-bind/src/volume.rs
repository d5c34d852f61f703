//! Named volumes: directories of the store that outlive every container.
//!
//! ```text
//! volumes/NAME/         locked (flock) while its state changes or it is being mounted
//! volumes/NAME/_data    what is mounted
//! volumes/NAME/filled   there once the first use has decided what the volume begins with
//! volumes/NAME/_new     a copy in the making; never used
//! ```
//!
//! A mounted volume has no process of ours that would hold a lock, so who uses it is found in the kernel's mount tables.

use crate::copy;
use chain::mountinfo;
use chain::remove::remove_tree;
use chain::root::Root;
use chain::store::{Lock, Store};
use chain::trace::{note, op};
use chain::{Error, Result, ResultExt};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use serde_json::{Value, json};
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The named volumes of a store.
pub struct Volumes<'a> {
    store: &'a Store,
}

/// A volume that is being mounted: nobody removes it meanwhile.
pub struct Used {
    dir: PathBuf,
    fresh: bool,
    _lock: Lock,
}

/// What `--list` tells of a volume.
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Bytes that its data takes on disk, as far as this user may look.
    pub bytes: u64,
    /// Processes in whose mount namespace it is mounted, the first of each namespace, with their names.
    pub users: Vec<(i32, String)>,
}

impl Entry {
    /// As JSON.
    pub fn to_json(&self) -> Value {
        let users: Vec<Value> = self.users.iter().map(|(pid, name)| json!({"pid": pid, "command": name})).collect();
        json!({"name": self.name, "bytes": self.bytes, "users": users})
    }
}

impl<'a> Volumes<'a> {
    /// Those of `store`.
    pub fn of(store: &'a Store) -> Self {
        Volumes { store }
    }

    /// The directory that is mounted for the volume `name`.
    pub fn data(&self, name: &str) -> PathBuf {
        self.dir(name).join("_data")
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.store.volumes().join(name)
    }

    /// Makes the volume `name`, if it is not there.
    pub fn create(&self, name: &str) -> Result<()> {
        self.lock(name).map(drop)
    }

    /// Takes the volume `name` into use, made if it is not there. If this is its first use, nobody else uses it until this
    /// ends ([`Used::fill`] then says what it begins with).
    pub fn take(&self, name: &str) -> Result<Used> {
        let dir = self.dir(name);
        let filled = dir.join("filled");
        loop {
            if filled.exists() {
                match Lock::shared(&dir) {
                    Ok(lock) => return Ok(Used { dir, fresh: false, _lock: lock }),
                    // Removed meanwhile: made anew.
                    Err(error) if error.errno() == Some(Errno::ENOENT) => continue,
                    Err(error) => return Err(error),
                }
            }
            let lock = self.lock(name)?;
            if !filled.exists() {
                return Ok(Used { dir, fresh: true, _lock: lock });
            }
        }
    }

    /// The volume alone, complete.
    fn lock(&self, name: &str) -> Result<Lock> {
        let dir = self.dir(name);
        self.store.make(&self.store.volumes())?;
        loop {
            make(&dir, 0o700)?;
            match Lock::exclusive(&dir) {
                Ok(lock) => {
                    make(&dir.join("_data"), 0o755)?;
                    return Ok(lock);
                }
                Err(error) if error.errno() == Some(Errno::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes the volume `name` with its data. Errors: there is none; it is in use.
    pub fn remove(&self, name: &str) -> Result<()> {
        let dir = self.dir(name);
        let lock = match Lock::try_exclusive(&dir) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => {
                return Err(Error::new(format_args!("no volume {name:?}")).hint("--list lists them"));
            }
            other => other?,
        };
        let Some(_lock) = lock else {
            return Err(Error::new(format_args!("volume {name:?} is in use: it is being mounted or listed now")));
        };
        let users = users(&dir.join("_data"), &mountinfo::namespaces()?);
        if !users.is_empty() {
            let shown: Vec<String> = users.iter().map(|(pid, name)| format!("{pid} ({name})")).collect();
            return Err(Error::new(format_args!(
                "volume {name:?} is in use: mounted where these processes are: {}",
                shown.join(", ")
            ))
            .hint("end them, or take the mount away with --undo"));
        }
        self.store.make(&self.store.staging())?;
        let away = self.store.staging().join(format!("volume-{name}-{}", std::process::id()));
        op(format_args!("rename({dir:?}, {away:?})"), || fs::rename(&dir, &away))?;
        remove_tree(&away)
    }

    /// All volumes, by name.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let path = self.store.volumes();
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.call(format_args!("open({path:?})"))?,
        };
        let namespaces = mountinfo::namespaces()?;
        let mut list: Vec<Entry> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| chain::store::check_name(name).is_ok())
            .map(|name| {
                let data = self.dir(&name).join("_data");
                Entry { bytes: size(&data), users: users(&data, &namespaces), name }
            })
            .collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }
}

impl Used {
    /// The directory that is mounted.
    pub fn data(&self) -> PathBuf {
        self.dir.join("_data")
    }

    /// On first use of an empty volume: what `root` has at `target` is copied there; with `no_copy` only the directory's
    /// owner and mode. All or nothing, exactly once.
    pub fn fill(&mut self, root: &Root, target: &Path, no_copy: bool) -> Result<()> {
        if !self.fresh {
            return Ok(());
        }
        self.fresh = false;
        let data = self.data();
        let empty = fs::read_dir(&data).call(format_args!("open({data:?})"))?.next().is_none();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK;
        let content = match root.open_at(target, flags) {
            Ok(content) => Some(content),
            Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)) => None,
            Err(error) => return Err(error),
        };
        if content.is_none() && empty {
            give(root, &data)?;
        }
        if let Some(content) = content.filter(|_| empty) {
            let new = self.dir.join("_new");
            remove_tree(&new)?;
            note(format_args!("copy({target:?} of {:?}, {data:?})", root.path()));
            let copied = copy::directory(content, &new, no_copy)
                .and_then(|()| op(format_args!("rename({new:?}, {data:?})"), || fs::rename(&new, &data)));
            if let Err(error) = copied {
                let _ = remove_tree(&new);
                return Err(error.within(format_args!("filling a new volume from {target:?} of {:?}", root.path())));
            }
        }
        let filled = self.dir.join("filled");
        fs::write(&filled, "").call(format_args!("open({filled:?}, O_CREAT)"))
    }
}

/// A volume for a place that the root does not have belongs to the root's owner: with owners shifted, that is not the caller.
fn give(root: &Root, data: &Path) -> Result<()> {
    let owner = fstat(root.fd()).call(format_args!("fstat({:?})", root.path()))?;
    let own = fs::metadata(data).call(format_args!("stat({data:?})"))?;
    if (own.uid(), own.gid()) == (owner.st_uid, owner.st_gid) {
        return Ok(());
    }
    let call = format_args!("chown({data:?}, {}, {})", owner.st_uid, owner.st_gid);
    match std::os::unix::fs::chown(data, Some(owner.st_uid), Some(owner.st_gid)) {
        // An owner that is none here, or that this user may not give to: then it stays the caller's.
        Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EPERM | nix::libc::EINVAL)) => {
            note(format_args!("{call}: {error}"));
            Ok(())
        }
        other => other.call(call),
    }
}

fn make(dir: &Path, mode: u32) -> Result<()> {
    match DirBuilder::new().mode(mode).create(dir) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other.call(format_args!("mkdir({dir:?}, {mode:#o})")),
    }
}

/// Bytes on disk of `path` and all below it. What cannot be read is left out.
fn size(path: &Path) -> u64 {
    let mut bytes = 0;
    let mut todo = vec![path.to_path_buf()];
    while let Some(path) = todo.pop() {
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        bytes += found.blocks() * 512;
        if found.is_dir() {
            todo.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    bytes
}

/// In which of `namespaces` the directory `data`, or something below it, is mounted: their first process and its name.
fn users(data: &Path, namespaces: &[mountinfo::Namespace]) -> Vec<(i32, String)> {
    let Some((device, root)) = in_file_system(data) else { return Vec::new() };
    let mounted = |namespace: &&mountinfo::Namespace| {
        namespace.mounts.iter().any(|mount| mount.device == device && mount.root.starts_with(&root))
    };
    let first = |namespace: &mountinfo::Namespace| {
        let pid = *namespace.pids.iter().min()?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Some((pid, name.trim_end().to_string()))
    };
    namespaces.iter().filter(mounted).filter_map(first).collect()
}

/// The device of the file system that `path` is on, and its path inside that, as mountinfo shows the root of a bind.
fn in_file_system(path: &Path) -> Option<(String, PathBuf)> {
    let path = path.canonicalize().ok()?;
    let mounts = mountinfo::read("self").ok()?;
    let holder = mounts
        .into_iter()
        .rev()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())?;
    let rest = path.strip_prefix(&holder.point).ok()?;
    Some((holder.device, holder.root.join(rest)))
}
