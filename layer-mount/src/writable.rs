//! The writable layer: a directory of the caller, used by one mount at a time, or one in memory.
//!
//! The lasting record of who uses an upper is the kernel's mount table; a lock is held only while we look and mount. A mark
//! among overlay's own attributes, which the union does not show, says that an upper has been mounted before: only then
//! the mount tables have to be searched.

use crate::layers::{Layer, open_directory, real_path};
use crate::target::Target;
use chain::mountinfo::{Role, overlays_using};
use chain::sys::mount;
use chain::trace::op;
use chain::{Error, Result, ResultExt};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown};
use std::fs::{File, TryLockError};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What an id outside the user namespace looks like inside (/proc/sys/kernel/overflowuid).
const OVERFLOW_ID: u32 = 65534;

/// The two directories that overlayfs wants for writing, held open.
pub struct Writable {
    /// The writable layer, with an exclusive lock.
    pub upper: File,
    /// The kernel's own.
    pub work: File,
    /// Their names, for messages.
    pub upper_path: PathBuf,
    /// See `upper_path`.
    pub work_path: PathBuf,
    /// The file system in memory that they are on, if they are.
    pub memory: Option<OwnedFd>,
}

impl Writable {
    /// The caller's directories, for the kernel's overlay.
    ///
    /// Errors: not there, on different file systems, in use by another mount, on a file system without the attributes that
    /// overlayfs needs, written under the other kind of attributes.
    pub fn directories(upper: &Path, work: &Path, top: &Layer, initial: bool) -> Result<Self> {
        let writable = Self::hold(upper, work)?;
        let mark = mark(initial);
        let marked = mount::has_xattr(&writable.upper, mark).call(format_args!("fgetxattr({upper:?}, {mark:?})"))?;
        let empty = is_empty(upper)?;
        if marked || !empty {
            refuse_second("--upper", &writable.upper, upper)?;
        }
        // While it is used, the kernel has something in it.
        if !is_empty(work)? {
            refuse_second("--work", &writable.work, work)?;
        }
        if marked {
            return Ok(writable);
        }
        match empty {
            true => adopt(&writable.upper, upper, &top.stat, initial)?,
            false if initial => writable.refuse_mismatch()?,
            false => {}
        }
        writable.set_mark(mark)?;
        Ok(writable)
    }

    /// The caller's directories, for another program than the kernel, that has its own marks.
    pub fn unmarked(upper: &Path, work: &Path, top: &Layer, initial: bool) -> Result<Self> {
        let writable = Self::hold(upper, work)?;
        writable.refuse_second()?;
        if is_empty(upper)? {
            adopt(&writable.upper, upper, &top.stat, initial)?;
        }
        Ok(writable)
    }

    /// Holds and locks what there is, without changing it.
    pub fn hold(upper: &Path, work: &Path) -> Result<Self> {
        let (upper_file, readable) = open_directory(upper)?;
        if !readable {
            return Err(Error::call(format_args!("open({upper:?}, O_DIRECTORY)"), Errno::EACCES));
        }
        match upper_file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(format_args!("writable layer {upper:?} is locked by another process")));
            }
            Err(TryLockError::Error(error)) => {
                return Err(Error::call(format_args!("flock({upper:?}, LOCK_EX|LOCK_NB)"), error));
            }
        }
        let (work_file, _) = open_directory(work)?;
        let [above, below] = [(&upper_file, upper), (&work_file, work)]
            .map(|(file, path)| fstat(file).call(format_args!("fstat({path:?})")));
        let (above, below) = (above?, below?);
        if above.st_dev != below.st_dev {
            return Err(Error::new(format_args!("--work {work:?} is on another file system than --upper {upper:?}"))
                .hint("the kernel moves files from one to the other: put them side by side"));
        }
        if above.st_ino == below.st_ino {
            return Err(Error::new(format_args!("--work {work:?} is the same directory as --upper"))
                .hint("use an empty one beside it"));
        }
        Ok(Writable {
            upper: upper_file,
            work: work_file,
            upper_path: upper.to_path_buf(),
            work_path: work.to_path_buf(),
            memory: None,
        })
    }

    /// In memory: a tmpfs of at most `size` bytes that is mounted nowhere, so that it vanishes with the union.
    pub fn scratch(size: Option<u64>, top: &Layer, initial: bool) -> Result<Self> {
        let fs =
            op(format_args!("fsopen(\"tmpfs\")"), || mount::fsopen("tmpfs")).map_err(crate::explain::not_permitted)?;
        let set = |key: &str, value: &str| {
            op(format_args!("fsconfig({key:?}, {value:?})"), || mount::fsconfig_string(&fs, key, value))
        };
        set("source", "layer-mount")?;
        set("mode", "0700")?;
        if let Some(size) = size {
            set("size", &size.to_string())?;
        }
        op(format_args!("fsconfig(tmpfs, FSCONFIG_CMD_CREATE)"), || mount::fsconfig_create(&fs))?;
        let memory = op(format_args!("fsmount(tmpfs)"), || mount::fsmount(&fs, 0))?;
        let make = |name: &str| -> Result<File> {
            op(format_args!("mkdirat(tmpfs, {name:?}, 0755)"), || {
                mkdirat(&memory, name, Mode::from_bits_truncate(0o755))
            })?;
            openat(&memory, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .map(File::from)
                .call(format_args!("openat(tmpfs, {name:?})"))
        };
        // The mount table shows these from the top of the memory: no other upper is called so.
        let names = ["layer-mount.upper", "layer-mount.work"];
        let writable = Writable {
            upper: make(names[0])?,
            work: make(names[1])?,
            upper_path: names[0].into(),
            work_path: names[1].into(),
            memory: Some(memory),
        };
        adopt(&writable.upper, &writable.upper_path, &top.stat, initial)?;
        writable.set_mark(mark(initial))?;
        Ok(writable)
    }

    /// Whether an overlay uses the upper or the work directory already: an error that names it.
    pub fn refuse_second(&self) -> Result<()> {
        refuse_second("--upper", &self.upper, &self.upper_path)?;
        refuse_second("--work", &self.work, &self.work_path)
    }

    /// Attributes of the kind that this mount does not read would make deleted files come back.
    fn refuse_mismatch(&self) -> Result<()> {
        let (path, other) = (&self.upper_path, mark(false));
        if mount::has_xattr(&self.upper, other).call(format_args!("fgetxattr({path:?}, {other:?})"))? {
            return Err(Error::new(format_args!("--upper {path:?} was written in a user namespace")).hint(
                "what it deleted would come back here; mount it in one: ns-enter --user --map-auto --mount -- …",
            ));
        }
        Ok(())
    }

    fn set_mark(&self, mark: &str) -> Result<()> {
        let path = &self.upper_path;
        op(format_args!("fsetxattr({path:?}, {mark:?})"), || mount::fsetxattr(&self.upper, mark, b"y"))
            .map_err(|error| crate::explain::unfit_upper(error, self))
    }

    /// Does `work` while the file system in memory is mounted at `at`, for kernels that take layers only from there.
    pub fn while_attached<T>(&self, at: &Target, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(memory) = &self.memory else { return work() };
        at.attach(memory)?;
        let done = work();
        at.remove()?;
        done
    }
}

fn refuse_second(option: &str, file: &File, path: &Path) -> Result<()> {
    let users = overlays_using(&real_path(file)?)?;
    match users.iter().find(|user| matches!(user.role, Role::Upper | Role::Work)) {
        None => Ok(()),
        Some(user) => Err(Error::new(format_args!("{option} {path:?} is in use: it is {user}"))
            .hint("one mount at a time can write to it; unmount that one, or use another directory")),
    }
}

/// Overlay's attributes are `trusted.` in the initial user namespace and `user.` in others.
fn mark(initial: bool) -> &'static str {
    if initial { "trusted.overlay.layer-mount" } else { "user.overlay.layer-mount" }
}

/// The union's root shows the upper's attributes, and should show the topmost layer's: owner, mode and times.
fn adopt(upper: impl AsFd, path: &Path, top: &FileStat, initial: bool) -> Result<()> {
    let now = fstat(&upper).call(format_args!("fstat({path:?})"))?;
    // An owner from outside the namespace cannot be given to anything.
    let owner = |id: u32, now: u32| (id != now && (initial || id != OVERFLOW_ID)).then_some(id);
    let (uid, gid) = (owner(top.st_uid, now.st_uid), owner(top.st_gid, now.st_gid));
    if uid.is_some() || gid.is_some() {
        op(format_args!("fchown({path:?}, {uid:?}, {gid:?})"), || {
            fchown(&upper, uid.map(Uid::from_raw), gid.map(Gid::from_raw))
        })?;
    }
    let mode = Mode::from_bits_truncate(top.st_mode & 0o7777);
    if mode.bits() != now.st_mode & 0o7777 {
        op(format_args!("fchmod({path:?}, {mode:04o})", mode = mode.bits()), || fchmod(&upper, mode))?;
    }
    let time = |seconds, nanoseconds| TimeSpec::new(seconds, nanoseconds);
    let (read, written) = (time(top.st_atime, top.st_atime_nsec), time(top.st_mtime, top.st_mtime_nsec));
    futimens(&upper, &read, &written).call(format_args!("futimens({path:?})"))
}

fn is_empty(path: &Path) -> Result<bool> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let dir = openat(AT_FDCWD, path, flags, Mode::empty()).and_then(nix::dir::Dir::from_fd);
    let mut dir = dir.call(format_args!("open({path:?})"))?;
    for entry in dir.iter() {
        let entry = entry.call(format_args!("getdents({path:?})"))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn a_fresh_upper_takes_mode_and_times() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["top", "upper"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        std::fs::set_permissions(path("top"), std::fs::Permissions::from_mode(0o1711)).unwrap();
        let top = File::open(path("top")).unwrap();
        top.set_times(std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH)).unwrap();
        adopt(File::open(path("upper")).unwrap(), &path("upper"), &fstat(&top).unwrap(), true).unwrap();
        let got = path("upper").metadata().unwrap();
        assert_eq!((got.mode() & 0o7777, got.mtime()), (0o1711, 0));
    }

    #[test]
    fn upper_and_work_belong_together() {
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path().join("upper");
        std::fs::create_dir(&upper).unwrap();
        let error = |work: &Path| Writable::hold(&upper, work).err().unwrap().to_string();
        assert!(error(&upper).contains("same directory"));
        assert!(error(Path::new("/proc")).contains("another file system"));
        let held = File::open(&upper).unwrap();
        held.lock().unwrap();
        assert!(error(dir.path()).contains("locked by another process"));
    }
}
