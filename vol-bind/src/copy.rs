//! A directory's copy, as it was: owners, modes, times, extended attributes and hard links.
//!
//! Everything is reached from held directories, one name at a time, so that a tree that changes meanwhile cannot lead
//! anywhere else. Depth is a list, not a recursion.

use chain::sys::mount::{lgetxattr, llistxattr, lsetxattr};
use chain::trace::note;
use chain::{Result, ResultExt};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, fstatat, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat, syncfs};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Copies the directory `from` to `to`, which must not be there; with `only_top` its owner, mode and attributes without
/// what is in it. It is on disk when this returns. Sockets and devices are left out, and a line tells.
pub fn directory(from: OwnedFd, to: &Path, only_top: bool) -> Result<()> {
    std::fs::DirBuilder::new().mode(0o700).create(to).call(format_args!("mkdir({to:?}, 0700)"))?;
    let top = nix::fcntl::open(to, DIRECTORY, Mode::empty()).call(format_args!("open({to:?})"))?;
    let again = openat(&top, ".", DIRECTORY, Mode::empty()).call(format_args!("open({to:?})"))?;
    let mut copy = Copy { top, links: HashMap::new(), levels: Vec::new() };
    copy.enter(PathBuf::new(), from, again)?;
    if only_top && let Some(level) = copy.levels.last_mut() {
        level.left.clear();
    }
    let empty = copy.levels.iter().all(|level| level.left.is_empty());
    copy.run()?;
    // An empty directory is not worth waiting for the disk.
    if empty {
        return Ok(());
    }
    syncfs(&copy.top).call(format_args!("syncfs({to:?})"))
}

struct Copy {
    top: OwnedFd,
    /// Where a file with several names went first, by device and number.
    links: HashMap<(u64, u64), PathBuf>,
    levels: Vec<Level>,
}

/// A directory in the middle of its copy.
struct Level {
    path: PathBuf,
    from: OwnedFd,
    to: OwnedFd,
    left: Vec<OsString>,
}

impl Copy {
    fn run(&mut self) -> Result<()> {
        while let Some(level) = self.levels.last_mut() {
            match level.left.pop() {
                Some(name) => self.entry(&name)?,
                None => {
                    let Some(level) = self.levels.pop() else { break };
                    let stat = fstat(&level.from).call(format_args!("fstat({:?})", level.path))?;
                    // The directory itself, as "." of its own descriptors.
                    attributes(&level.from, &level.to, OsStr::new("."), &stat)
                        .call(format_args!("attributes({:?})", level.path))?;
                }
            }
        }
        Ok(())
    }

    fn enter(&mut self, path: PathBuf, from: OwnedFd, to: OwnedFd) -> Result<()> {
        let left = names(&from).call(format_args!("getdents({path:?})"))?;
        self.levels.push(Level { path, from, to, left });
        Ok(())
    }

    /// Copies one name of the deepest level; a directory becomes the next level.
    fn entry(&mut self, name: &OsStr) -> Result<()> {
        let Some(level) = self.levels.last() else { return Ok(()) };
        let path = level.path.join(name);
        let stat = fstatat(&level.from, name, AtFlags::AT_SYMLINK_NOFOLLOW).call(format_args!("stat({path:?})"))?;
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        if kind == SFlag::S_IFDIR {
            mkdirat(&level.to, name, Mode::S_IRWXU).call(format_args!("mkdir({path:?})"))?;
            let from = openat(&level.from, name, DIRECTORY, Mode::empty()).call(format_args!("open({path:?})"))?;
            let to = openat(&level.to, name, DIRECTORY, Mode::empty()).call(format_args!("open({path:?})"))?;
            return self.enter(path, from, to);
        }
        if stat.st_nlink > 1 {
            let first = self.links.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.clone());
            if *first != path {
                return linkat(&self.top, first.as_path(), &level.to, name, AtFlags::empty())
                    .call(format_args!("link({first:?}, {path:?})"));
            }
        }
        if make(level, name, &stat, kind).call(format_args!("copy({path:?})"))? {
            attributes(&level.from, &level.to, name, &stat).call(format_args!("attributes({path:?})"))
        } else {
            self.links.remove(&(stat.st_dev, stat.st_ino));
            note(format_args!("{path:?} is left out: a socket or a device"));
            Ok(())
        }
    }
}

/// Makes what is no directory; `false` if it is left out.
fn make(level: &Level, name: &OsStr, stat: &FileStat, kind: SFlag) -> io::Result<bool> {
    match kind {
        SFlag::S_IFREG => {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            let mut from = File::from(openat(&level.from, name, flags, Mode::empty())?);
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mut to = File::from(openat(&level.to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
            // In the kernel, and shared on disk where the file system can.
            io::copy(&mut from, &mut to)?;
        }
        SFlag::S_IFLNK => symlinkat(readlinkat(&level.from, name)?.as_os_str(), &level.to, name)?,
        SFlag::S_IFIFO => mknodat(&level.to, name, SFlag::S_IFIFO, Mode::S_IRUSR, stat.st_rdev)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// Owner, extended attributes, mode and times, in the order in which none undoes another.
fn attributes(from: &OwnedFd, to: &OwnedFd, name: &OsStr, stat: &FileStat) -> Result<(), Errno> {
    let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    fchownat(to, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let through = |dir: &OwnedFd| Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    let (source, copy) = (through(from), through(to));
    let listed = match llistxattr(&source) {
        Err(Errno::EOPNOTSUPP) => Vec::new(),
        other => other?,
    };
    // What belongs to a union of layers, or to the machine's policy, means nothing in a copy.
    let ours = |name: &&OsString| {
        let name = name.as_bytes();
        !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay.") && name != b"security.selinux"
    };
    for attribute in listed.iter().filter(ours) {
        if let Some(value) = lgetxattr(&source, attribute)? {
            match lsetxattr(&copy, attribute, &value) {
                Err(Errno::EOPNOTSUPP) => {
                    note(format_args!("{attribute:?} of {name:?} is left out: this file system has none"))
                }
                other => other?,
            }
        }
    }
    if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFLNK.bits() {
        fchmodat(to, name, Mode::from_bits_truncate(stat.st_mode), FchmodatFlags::FollowSymlink)?;
    }
    let times = (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec));
    utimensat(to, name, &times.0, &times.1, UtimensatFlags::NoFollowSymlink)
}

fn names(dir: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let again = openat(dir, ".", DIRECTORY, Mode::empty())?;
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
