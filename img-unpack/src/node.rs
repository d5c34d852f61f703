//! Attributes of what a layer holds, and setting them: owner, mode, extended attributes, times, in this order, since each
//! can undo a later one (chown(2) clears set-user-id bits and file capabilities).

use crate::archive::Member;
use crate::merged::is;
use chain::sys::mount::{fsetxattr, lgetxattr, llistxattr, lsetxattr};
use chain::{Error, Result, ResultExt};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The attribute that holds the image's owner and mode where files cannot have them, as `UID:GID:OCTAL-MODE`; the name and
/// form that fuse-overlayfs and podman use.
pub const OVERRIDE: &str = "user.containers.override_stat";

/// How owners come to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// As the image says.
    Exact,
    /// All belong to the caller, who has one id only; what the image says is in [`OVERRIDE`].
    Single,
}

/// What this process can do on the store's file system.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// How owners come to disk.
    pub owners: Owners,
    /// The attribute of an opaque directory, as overlayfs reads it where we are: root's `trusted.` or `user.`.
    pub opaque: &'static str,
}

/// Everything of an inode but its type and content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, in seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What could not be done and is no error, by kind: how often, and where first.
#[derive(Debug, Default)]
pub struct Notes(BTreeMap<String, (u64, String)>);

impl Notes {
    /// One more `what`, at `path`.
    pub fn add(&mut self, what: impl Into<String>, path: &[u8]) {
        let entry = self.0.entry(what.into()).or_insert_with(|| (0, format!("{:?}", OsStr::from_bytes(path))));
        entry.0 += 1;
    }

    /// A line for each kind.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(what, (count, first))| match count {
            1 => format!("{what}: {first}"),
            _ => format!("{what}: {first} and {} more", count - 1),
        })
    }
}

impl Attributes {
    /// Those of a directory that a layer needs and does not have, and that is not below it either.
    pub fn implied() -> Self {
        Attributes { mode: 0o755, ..Attributes::default() }
    }

    /// Those that `member` is to have. Attributes that would speak to overlayfs, or to a reader of [`OVERRIDE`], and
    /// labels of another machine's security policy are left out.
    pub fn of_member(member: &mut Member, notes: &mut Notes) -> Self {
        let mut xattrs = std::mem::take(&mut member.xattrs);
        xattrs.retain(|(name, _)| match refusal(name) {
            None => true,
            Some("") => false,
            Some(why) => {
                notes.add(why, &member.path);
                false
            }
        });
        Attributes { mode: member.mode, uid: member.uid, gid: member.gid, mtime: member.mtime, xattrs }
    }

    /// Those of `name` in `dir` (`.` is `dir` itself), whose status is `stat`, without what is overlayfs's own.
    pub fn of_node(dir: BorrowedFd<'_>, name: &OsStr, stat: &FileStat) -> Result<Self> {
        let mut xattrs = Vec::new();
        let path = handle(dir, name);
        let names = match llistxattr(&path) {
            Err(Errno::EOPNOTSUPP) => Vec::new(),
            names => names.call(format_args!("llistxattr({name:?})"))?,
        };
        for key in names.into_iter().filter(|key| !is_overlay(key.as_bytes())) {
            if let Some(value) = lgetxattr(&path, &key).call(format_args!("lgetxattr({name:?}, {key:?})"))? {
                xattrs.push((key.into_vec(), value));
            }
        }
        xattrs.sort();
        Ok(Attributes {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            xattrs,
        })
    }

    /// Puts them on an open file or directory of ours, that is new and has the status `now`.
    pub fn put(
        &self,
        file: BorrowedFd<'_>,
        now: &FileStat,
        policy: Policy,
        path: &[u8],
        notes: &mut Notes,
    ) -> Result<()> {
        let (uid, gid) = self.owner(policy);
        // Most files are as they should be, and each of these calls costs as much as making one.
        if (uid, gid) != (now.st_uid, now.st_gid) {
            fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(|errno| self.chown_error(path, errno))?;
        }
        let mode = self.mode(policy, is(now, SFlag::S_IFDIR));
        if mode != now.st_mode & 0o7777 {
            fchmod(file, Mode::from_bits_truncate(mode))
                .call(format_args!("fchmod({:?}, {mode:o})", OsStr::from_bytes(path)))?;
        }
        for (name, value) in &self.xattrs {
            let set =
                std::str::from_utf8(name).map_err(|_| Errno::EINVAL).and_then(|name| fsetxattr(file, name, value));
            note_refused(set, name, path, notes)?;
        }
        if let Some(value) = self.record(policy) {
            note_refused(fsetxattr(file, OVERRIDE, value.as_bytes()), OVERRIDE.as_bytes(), path, notes)?;
        }
        let time = self.time();
        futimens(file, &time, &time).call(format_args!("futimens({:?})", OsStr::from_bytes(path)))
    }

    /// Puts them on `name` in `dir`, which is no file and no directory.
    pub fn put_at(
        &self,
        dir: &OwnedFd,
        name: &OsStr,
        is_link: bool,
        policy: Policy,
        path: &[u8],
        notes: &mut Notes,
    ) -> Result<()> {
        let (uid, gid) = self.owner(policy);
        fchownat(dir, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| self.chown_error(path, errno))?;
        if !is_link {
            // A node that we have just made in a directory of our own, and no link, so there is nothing to follow.
            let mode = Mode::from_bits_truncate(self.mode(policy, false));
            fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)
                .call(format_args!("fchmodat({:?})", OsStr::from_bytes(path)))?;
        }
        for (key, value) in &self.xattrs {
            note_refused(lsetxattr(&handle(dir.as_fd(), name), OsStr::from_bytes(key), value), key, path, notes)?;
        }
        let time = self.time();
        utimensat(dir, name, &time, &time, UtimensatFlags::NoFollowSymlink)
            .call(format_args!("utimensat({:?})", OsStr::from_bytes(path)))
    }

    fn owner(&self, policy: Policy) -> (u32, u32) {
        match policy.owners {
            Owners::Exact => (self.uid, self.gid),
            Owners::Single => (0, 0),
        }
    }

    /// A program that would run as another user must not run as this one. A directory's bits mean something else.
    fn mode(&self, policy: Policy, is_dir: bool) -> u32 {
        let mut mode = self.mode;
        if policy.owners == Owners::Single && !is_dir {
            mode &= if self.uid != 0 { !0o4000 } else { !0 } & if self.gid != 0 { !0o2000 } else { !0 };
        }
        mode
    }

    fn record(&self, policy: Policy) -> Option<String> {
        let differs = policy.owners == Owners::Single && (self.uid, self.gid) != (0, 0);
        let kept = self.xattrs.iter().any(|(name, _)| name == OVERRIDE.as_bytes());
        (differs && !kept).then(|| format!("{}:{}:{:o}", self.uid, self.gid, self.mode))
    }

    fn time(&self) -> TimeSpec {
        TimeSpec::new(self.mtime.0, self.mtime.1.into())
    }

    fn chown_error(&self, path: &[u8], errno: Errno) -> Error {
        let call = format_args!("fchown({:?}, {}, {})", OsStr::from_bytes(path), self.uid, self.gid);
        let error = Error::call(call, errno);
        match errno {
            Errno::EINVAL => error.hint(format_args!(
                "this user namespace maps no such id; give the user more subordinate ids in /etc/subuid and /etc/subgid (this image needs {} and up)",
                self.uid.max(self.gid)
            )),
            _ => error,
        }
    }
}

/// `name` in `dir` as a path that leads nowhere else: the last component is not followed by the calls that take it.
pub fn handle(dir: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    let mut path = OsString::from(format!("/proc/self/fd/{}/", dir.as_raw_fd()));
    path.push(name);
    path.into()
}

/// Attributes that overlayfs gives a meaning.
pub fn is_overlay(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Why the attribute `name` of a layer is not put on disk; `""` where that is no one's loss.
fn refusal(name: &[u8]) -> Option<&'static str> {
    if is_overlay(name) {
        return Some("overlayfs's own attributes dropped");
    }
    match name {
        b"security.selinux" => Some(""),
        b"user.containers.override_stat" | b"user.fuseoverlayfs.override_stat" | b"user.rootlesscontainers" => {
            Some("records of owners dropped")
        }
        _ => None,
    }
}

fn note_refused(set: std::result::Result<(), Errno>, name: &[u8], path: &[u8], notes: &mut Notes) -> Result<()> {
    let name = OsStr::from_bytes(name);
    match set {
        Ok(()) => Ok(()),
        Err(
            errno @ (Errno::EOPNOTSUPP | Errno::EPERM | Errno::EACCES | Errno::EINVAL | Errno::E2BIG | Errno::ERANGE),
        ) => {
            notes.add(format!("attributes {name:?} not set ({errno:?})"), path);
            Ok(())
        }
        Err(errno) => Err(Error::call(format_args!("setxattr({:?}, {name:?})", OsStr::from_bytes(path)), errno)),
    }
}

/// Removes `name` in `dir`, whatever it is; nothing there is fine.
pub fn clear(dir: &OwnedFd, name: &OsStr) -> Result<()> {
    use nix::unistd::{UnlinkatFlags, unlinkat};
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => chain::remove::remove_tree(&handle(dir.as_fd(), name)),
        Err(errno) => Err(Error::call(format_args!("unlinkat({name:?})"), errno)),
    }
}

/// The directory `path`, to hold.
pub fn open_dir(path: &std::path::Path) -> Result<OwnedFd> {
    open_dir_at(AT_FDCWD, path.as_os_str())
}

/// The directory `name` in `dir`, to hold; no link is followed.
pub fn open_dir_at(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd> {
    use nix::fcntl::{OFlag, openat};
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(dir, name, flags, Mode::empty()).call(format_args!("openat({name:?}, O_DIRECTORY|O_NOFOLLOW)"))
}
