//! Where things live, and the locks on them.
//!
//! ```text
//! layers/sha256/CHAINID/   one applied layer: the directory that overlayfs uses as a lower
//! images/                  references and manifests
//! containers/NAME/         writable layer (upper, work) and lock of a container
//! spare/                   directories of an ended container, without its writable layer, for the next one
//! volumes/NAME/            named volumes
//! staging/                 what is being made; nothing here is ever used
//! ```
//!
//! The store is 0700, since layers hold set-user-id programs. Locks are flock(2) locks on a descriptor, so they vanish with
//! their holder.

use crate::error::{Error, Result, ResultExt};
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A store of layers, images, containers and volumes.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
}

impl Store {
    /// The store at `option` (`--store`), else `$CTR_STORE`, else `/var/lib/ctr` for root and `$XDG_DATA_HOME/ctr`
    /// (`~/.local/share/ctr`) for others. Root of a user namespace that an ordinary user made is an ordinary user.
    /// Nothing is made yet. Error: no home directory.
    pub fn at(option: Option<&Path>) -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let path = if let Some(path) = option.map(Path::to_path_buf).or_else(|| variable("CTR_STORE")) {
            path
        } else if crate::userns::is_real_root() {
            "/var/lib/ctr".into()
        } else if let Some(data) = variable("XDG_DATA_HOME").filter(|data| data.is_absolute()) {
            data.join("ctr")
        } else if let Some(home) = variable("HOME").filter(|home| home.is_absolute()) {
            home.join(".local/share/ctr")
        } else {
            return Err(Error::new("no store: neither CTR_STORE, XDG_DATA_HOME nor HOME is set")
                .hint("name one with --store DIR"));
        };
        let path = std::path::absolute(&path).call(format_args!("getcwd()"))?;
        Ok(Store { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where layers are, by chain ID.
    pub fn layers(&self) -> PathBuf {
        self.path.join("layers/sha256")
    }

    /// Where references and manifests are.
    pub fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    /// Where containers' writable layers are.
    pub fn containers(&self) -> PathBuf {
        self.path.join("containers")
    }

    /// What an ended container leaves to the next one.
    pub fn spare(&self) -> PathBuf {
        self.path.join("spare")
    }

    /// Where named volumes are.
    pub fn volumes(&self) -> PathBuf {
        self.path.join("volumes")
    }

    /// Where things are made before they are renamed into place.
    pub fn staging(&self) -> PathBuf {
        self.path.join("staging")
    }

    /// Makes a directory of the store (0700) and its parents, if they are not there.
    pub fn make(&self, dir: &Path) -> Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).call(format_args!("mkdir({dir:?}, 0700)"))
    }
}

/// Whether `name` may name a container, a volume or a group: letters, digits, `_`, `.`, `-`, not first `.` or `-`, at most
/// 128 bytes.
pub fn check_name(name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if name.is_empty() || name.len() > 128 || name.starts_with(['.', '-']) || !name.chars().all(fine) {
        return Err(Error::usage(format_args!(
            "name {name:?}: not of letters, digits, \"_\", \".\" and \"-\", beginning with a letter, a digit or \"_\""
        )));
    }
    Ok(())
}

/// An advisory lock on a file or directory; it ends with the last descriptor of it, so with its holder.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Shared with others; waits for an exclusive holder.
    pub fn shared(path: &Path) -> Result<Self> {
        loop {
            let file = Self::open(path)?;
            file.lock_shared().call(format_args!("flock({path:?}, LOCK_SH)"))?;
            if let Some(lock) = Self::still_there(file, path)? {
                return Ok(lock);
            }
        }
    }

    /// Alone; waits for all others.
    pub fn exclusive(path: &Path) -> Result<Self> {
        loop {
            let file = Self::open(path)?;
            file.lock().call(format_args!("flock({path:?}, LOCK_EX)"))?;
            if let Some(lock) = Self::still_there(file, path)? {
                return Ok(lock);
            }
        }
    }

    /// Shared, if no one holds it alone; else `None`, at once.
    pub fn try_shared(path: &Path) -> Result<Option<Self>> {
        Self::attempt(path, "LOCK_SH|LOCK_NB", File::try_lock_shared)
    }

    /// Alone, if no one else holds it; else `None`, at once.
    pub fn try_exclusive(path: &Path) -> Result<Option<Self>> {
        Self::attempt(path, "LOCK_EX|LOCK_NB", File::try_lock)
    }

    /// The locked file or directory.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn attempt(path: &Path, how: &str, lock: fn(&File) -> Result<(), TryLockError>) -> Result<Option<Self>> {
        loop {
            let file = Self::open(path)?;
            match lock(&file) {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => {
                    return Err(Error::call(format_args!("flock({path:?}, {how})"), error));
                }
            }
            if let Some(lock) = Self::still_there(file, path)? {
                return Ok(Some(lock));
            }
        }
    }

    fn open(path: &Path) -> Result<File> {
        File::open(path).call(format_args!("open({path:?})"))
    }

    /// Who removed or replaced the file while we waited left us a lock on nothing: `None`, to be tried again.
    fn still_there(file: File, path: &Path) -> Result<Option<Self>> {
        let held = file.metadata().call(format_args!("fstat({path:?})"))?;
        let now = fs::symlink_metadata(path).call(format_args!("stat({path:?})"))?;
        Ok(((now.dev(), now.ino()) == (held.dev(), held.ino())).then_some(Lock { file }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["a", "web-1", "_x.y"] {
            check_name(name).unwrap();
        }
        for name in ["", ".", "..", "-x", "a/b", "a b", "ä", "a\n", &"x".repeat(129)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn locks_exclude_and_vanish() {
        let dir = tempfile::tempdir().unwrap();
        let one = Lock::shared(dir.path()).unwrap();
        let two = Lock::try_shared(dir.path()).unwrap();
        assert!(two.is_some());
        assert!(Lock::try_exclusive(dir.path()).unwrap().is_none());
        drop((one, two));
        assert!(Lock::try_exclusive(dir.path()).unwrap().is_some());
        assert!(Lock::try_exclusive(&dir.path().join("none")).is_err());
    }
}
