//! The read-only layers: held open, locked, and each once.

use chain::{Error, Result, ResultExt};
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode, fstat};
use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The kernel takes no more (OVL_MAX_STACK).
const MAX_LAYERS: usize = 500;

/// One layer.
pub struct Layer {
    /// As it was given.
    pub path: PathBuf,
    /// Its status.
    pub stat: FileStat,
    file: File,
}

impl Layer {
    /// Holds the directory `path`, with a shared lock where it may be read: who removes layers locks them alone.
    ///
    /// Errors: no such directory, one that is being removed.
    fn open(path: &Path) -> Result<Self> {
        let (file, readable) = open_directory(path)?;
        if readable {
            match file.try_lock_shared() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(removed(path)),
                Err(TryLockError::Error(error)) => {
                    return Err(Error::call(format_args!("flock({path:?}, LOCK_SH|LOCK_NB)"), error));
                }
            }
        }
        let stat = fstat(&file).call(format_args!("fstat({path:?})"))?;
        if stat.st_nlink == 0 {
            return Err(removed(path));
        }
        Ok(Layer { path: path.to_path_buf(), stat, file })
    }

    /// What tells this directory from all others.
    pub fn identity(&self) -> (u64, u64) {
        (self.stat.st_dev, self.stat.st_ino)
    }
}

impl AsFd for Layer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// All layers of a mount, base first.
pub struct Layers(Vec<Layer>);

impl Layers {
    /// Holds the directories `paths`, base first. One that comes twice is kept where it is topmost: the lower one could show
    /// nothing that the upper one does not.
    ///
    /// Errors: as for a layer; none; more than the kernel takes.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut seen = HashSet::new();
        let mut layers = Vec::with_capacity(paths.len());
        for path in paths.iter().rev() {
            let layer = Layer::open(path)?;
            if seen.insert(layer.identity()) {
                layers.push(layer);
            }
            if layers.len() > MAX_LAYERS {
                return Err(Error::new(format_args!(
                    "{} layers: the kernel's overlay takes at most {MAX_LAYERS}",
                    paths.len()
                ))
                .hint("merge some, by copying one mount of them into a new layer"));
            }
        }
        if layers.is_empty() {
            return Err(Error::new("the document has no layers").hint("name them with --lower, base first"));
        }
        layers.reverse();
        Ok(Layers(layers))
    }

    /// The topmost layer.
    pub fn top(&self) -> Option<&Layer> {
        self.0.last()
    }

    /// All, base first.
    pub fn all(&self) -> &[Layer] {
        &self.0
    }
}

/// Opens a directory for reading, or if that is not permitted, only to name it; whether it may be read.
pub fn open_directory(path: &Path) -> Result<(File, bool)> {
    let mut options = File::options();
    options.read(true);
    match options.custom_flags(libc_flags(OFlag::O_DIRECTORY)).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let fd = nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .call(format_args!("open({path:?}, O_PATH|O_DIRECTORY)"))?;
            Ok((File::from(fd), false))
        }
        other => other.call(format_args!("open({path:?}, O_DIRECTORY)")).map(|file| (file, true)),
    }
}

fn libc_flags(flags: OFlag) -> i32 {
    flags.bits()
}

/// The absolute path of what is held, without links.
pub fn real_path(fd: impl AsFd) -> Result<PathBuf> {
    let link = descriptor_path(fd);
    std::fs::read_link(&link).call(format_args!("readlink({link:?})"))
}

/// A name of what is held, as long as it is.
pub fn descriptor_path(fd: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()).into()
}

fn removed(path: &Path) -> Error {
    Error::new(format_args!("layer {path:?} is being removed by another process"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_of_equal_layers_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["a", "b"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        std::os::unix::fs::symlink("a", path("link")).unwrap();
        let layers = Layers::open(&[path("a"), path("b"), path("link")]).unwrap();
        let got: Vec<&Path> = layers.all().iter().map(|layer| layer.path.as_path()).collect();
        assert_eq!(got, [path("b"), path("link")]);
        assert_eq!(real_path(layers.top().unwrap()).unwrap(), path("a").canonicalize().unwrap());
    }

    #[test]
    fn what_is_no_layer() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let errno = |name: &str| Layers::open(&[dir.path().join(name)]).err().unwrap().errno();
        assert_eq!(errno("none"), Some(nix::errno::Errno::ENOENT));
        assert_eq!(errno("file"), Some(nix::errno::Errno::ENOTDIR));
        let held = File::open(dir.path()).unwrap();
        held.lock().unwrap();
        let error = Layers::open(&[dir.path().to_path_buf()]).err().unwrap().to_string();
        assert!(error.contains("being removed"), "{error}");
    }
}
