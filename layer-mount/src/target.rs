//! The mount point, held open.

use crate::layers::real_path;
use chain::sys::mount;
use chain::trace::op;
use chain::{Error, Result, ResultExt};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, fstatfs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The directory to mount at.
pub struct Target {
    fd: OwnedFd,
    path: PathBuf,
}

impl Target {
    /// Holds the directory `path`. Errors: not there, not a directory, a mount of ours already.
    pub fn open(path: &Path) -> Result<Self> {
        let fd = nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .call(format_args!("open({path:?}, O_PATH|O_DIRECTORY)"))
            .map_err(|error| match error.errno() {
                Some(Errno::ENOENT) => error.hint("the mount point has to exist; mkdir makes it"),
                _ => error,
            })?;
        let target = Target { fd, path: path.to_path_buf() };
        target.refuse_second()?;
        Ok(target)
    }

    /// One on the other would need to be undone twice. (Only an overlay has to be looked at closely.)
    fn refuse_second(&self) -> Result<()> {
        let stat = fstatfs(&self.fd).call(format_args!("fstatfs({:?})", self.path))?;
        if stat.filesystem_type() != OVERLAYFS_SUPER_MAGIC {
            return Ok(());
        }
        let path = self.real_path()?;
        if path != Path::new("/") && chain::mountinfo::read("self")?.iter().any(|mount| mount.point == path) {
            return Err(Error::new(format_args!("{path:?} is a mounted union already"))
                .hint(format_args!("layer-mount --undo {path:?} unmounts it")));
        }
        Ok(())
    }

    /// The absolute path, without links.
    pub fn real_path(&self) -> Result<PathBuf> {
        real_path(&self.fd)
    }

    /// Takes the mount on top off again: it is then nowhere.
    pub fn detach(&self) -> Result<OwnedFd> {
        let path = self.real_path()?;
        let mount = op(format_args!("open_tree({path:?}, OPEN_TREE_CLONE)"), || {
            mount::open_tree(None, &path, mount::OPEN_TREE_CLONE)
        })?;
        self.remove()?;
        Ok(mount)
    }

    /// Unmounts the mount on top.
    pub fn remove(&self) -> Result<()> {
        let path = self.real_path()?;
        op(format_args!("umount2({path:?}, MNT_DETACH)"), || {
            umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
        })
    }

    /// Puts a detached mount here.
    pub fn attach(&self, mount: impl AsFd) -> Result<()> {
        op(format_args!("move_mount(mount, {:?})", self.path), || mount::move_mount(mount, &self.fd))
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
