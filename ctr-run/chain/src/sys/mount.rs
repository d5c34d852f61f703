//! The mount API by descriptor (Linux 5.2; open_tree(2), move_mount(2), fsopen(2), mount_setattr(2)), and openat2(2).

use super::{c_string, check};
use nix::errno::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::ptr;

/// open_tree: a new, detached mount instead of the one that is there.
pub const OPEN_TREE_CLONE: u32 = 1;
/// Whole tree instead of the top mount only.
pub const AT_RECURSIVE: u32 = 0x8000;
/// The descriptor itself is meant.
pub const AT_EMPTY_PATH: u32 = 0x1000;
/// The last component is not followed.
pub const AT_SYMLINK_NOFOLLOW: u32 = 0x100;

/// Mount attributes (mount_setattr(2)).
pub const ATTR_RDONLY: u64 = 0x1;
/// No set-user-id programs.
pub const ATTR_NOSUID: u64 = 0x2;
/// No device nodes.
pub const ATTR_NODEV: u64 = 0x4;
/// No programs.
pub const ATTR_NOEXEC: u64 = 0x8;
/// No access times.
pub const ATTR_NOATIME: u64 = 0x10;
/// Owners mapped by a user namespace.
pub const ATTR_IDMAP: u64 = 0x0010_0000;
/// The mask of the access time settings, cleared before one of them is set.
pub const ATTR_ATIME_MASK: u64 = 0x70;

/// openat2: `..` and absolute links stay inside the directory.
pub const RESOLVE_IN_ROOT: u64 = 0x10;
/// openat2: no /proc/PID/fd links.
pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
/// openat2: no symbolic links at all.
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;
/// openat2: no way out, not even by an absolute link.
pub const RESOLVE_BENEATH: u64 = 0x08;

fn descriptor(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = check(result)?;
    // SAFETY: the kernel has just made this descriptor for us; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A descriptor (close-on-exec) for the mount at `path`, relative to `dir`; with [`OPEN_TREE_CLONE`] for a detached copy.
pub fn open_tree(dir: Option<BorrowedFd>, path: &Path, flags: u32) -> Result<OwnedFd, Errno> {
    let path = c_string(path)?;
    let dir = dir.map_or(libc::AT_FDCWD, |fd| fd.as_raw_fd());
    let flags = flags | libc::O_CLOEXEC as u32;
    // SAFETY: `path` is a C string that outlives the call.
    descriptor(unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags) })
}

/// Puts the mount `mount` at the object that `to` is.
pub fn move_mount(mount: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    const F_EMPTY_PATH: u32 = 0x4;
    const T_EMPTY_PATH: u32 = 0x40;
    let (from, to) = (mount.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    // SAFETY: both paths are the static empty C string.
    check(unsafe {
        libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, c"".as_ptr(), F_EMPTY_PATH | T_EMPTY_PATH)
    })?;
    Ok(())
}

/// Puts the mount `mount` at the name `path` in the directory `dir`; a symbolic link there is not followed.
pub fn move_mount_at(mount: impl AsFd, dir: impl AsFd, path: impl AsRef<OsStr>) -> Result<(), Errno> {
    const F_EMPTY_PATH: u32 = 0x4;
    let path = c_string(path)?;
    let (from, to) = (mount.as_fd().as_raw_fd(), dir.as_fd().as_raw_fd());
    // SAFETY: both paths are C strings that outlive the call.
    check(unsafe { libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, path.as_ptr(), F_EMPTY_PATH) })?;
    Ok(())
}

/// A new file system of type `fs_type`, to be configured.
pub fn fsopen(fs_type: &str) -> Result<OwnedFd, Errno> {
    const FSOPEN_CLOEXEC: u32 = 1;
    let fs_type = c_string(fs_type)?;
    // SAFETY: `fs_type` is a C string that outlives the call.
    descriptor(unsafe { libc::syscall(libc::SYS_fsopen, fs_type.as_ptr(), FSOPEN_CLOEXEC) })
}

/// Sets `key=value` of a file system in the making. The kernel takes at most 255 bytes of `value`.
pub fn fsconfig_string(fs: impl AsFd, key: &str, value: impl AsRef<OsStr>) -> Result<(), Errno> {
    const SET_STRING: u32 = 1;
    let (key, value) = (c_string(key)?, c_string(value)?);
    // SAFETY: `key` and `value` are C strings that outlive the call.
    check(unsafe {
        libc::syscall(libc::SYS_fsconfig, fs.as_fd().as_raw_fd(), SET_STRING, key.as_ptr(), value.as_ptr(), 0)
    })?;
    Ok(())
}

/// Sets `key` of a file system in the making to a descriptor (overlay layers: Linux 6.13).
pub fn fsconfig_fd(fs: impl AsFd, key: &str, value: impl AsFd) -> Result<(), Errno> {
    const SET_FD: u32 = 5;
    let key = c_string(key)?;
    let (fs, value) = (fs.as_fd().as_raw_fd(), value.as_fd().as_raw_fd());
    // SAFETY: `key` is a C string that outlives the call; the value is the descriptor.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fs, SET_FD, key.as_ptr(), ptr::null::<u8>(), value) })?;
    Ok(())
}

/// Sets the flag `key` of a file system in the making.
pub fn fsconfig_flag(fs: impl AsFd, key: &str) -> Result<(), Errno> {
    const SET_FLAG: u32 = 0;
    let key = c_string(key)?;
    // SAFETY: `key` is a C string that outlives the call.
    check(unsafe {
        libc::syscall(libc::SYS_fsconfig, fs.as_fd().as_raw_fd(), SET_FLAG, key.as_ptr(), ptr::null::<u8>(), 0)
    })?;
    Ok(())
}

/// Makes the configured file system.
pub fn fsconfig_create(fs: impl AsFd) -> Result<(), Errno> {
    const CMD_CREATE: u32 = 6;
    let nothing = ptr::null::<u8>();
    // SAFETY: this command takes no key and no value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_fd().as_raw_fd(), CMD_CREATE, nothing, nothing, 0) })?;
    Ok(())
}

/// A detached mount of the file system `fs`, with attributes ([`ATTR_NOSUID`] …).
pub fn fsmount(fs: impl AsFd, attributes: u64) -> Result<OwnedFd, Errno> {
    const FSMOUNT_CLOEXEC: u32 = 1;
    // SAFETY: no pointers.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_fd().as_raw_fd(), FSMOUNT_CLOEXEC, attributes as u32) })
}

/// What the kernel said about a file system in the making: its messages, oldest first, without the level.
pub fn fs_log(fs: impl AsFd) -> Vec<String> {
    let mut lines = Vec::new();
    let mut buffer = [0u8; 4096];
    while let Ok(length @ 1..) = nix::unistd::read(fs.as_fd(), &mut buffer) {
        let line = String::from_utf8_lossy(&buffer[..length]).trim_end().to_string();
        lines.push(line.get(2..).unwrap_or(&line).to_string());
    }
    lines
}

/// Changes to the attributes of a mount (mount_setattr(2), Linux 5.12).
#[derive(Clone, Copy, Debug, Default)]
pub struct Change<'a> {
    /// Attributes to set.
    pub set: u64,
    /// Attributes to clear.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED` or `MS_UNBINDABLE`, or 0 to leave the propagation.
    pub propagation: u64,
    /// The user namespace whose map [`ATTR_IDMAP`] uses.
    pub user_namespace: Option<BorrowedFd<'a>>,
}

/// Changes the attributes of the mount that `mount` is; of all below it too, if `recursive`.
pub fn mount_setattr(mount: impl AsFd, recursive: bool, change: Change) -> Result<(), Errno> {
    mount_setattr_at(
        Some(mount.as_fd()),
        Path::new(""),
        AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 },
        change,
    )
}

/// As [`mount_setattr`], for the mount at `path` relative to `dir`, with `AT_` flags.
pub fn mount_setattr_at(dir: Option<BorrowedFd>, path: &Path, flags: u32, change: Change) -> Result<(), Errno> {
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let attributes = Attributes {
        set: change.set,
        clear: change.clear,
        propagation: change.propagation,
        user_namespace: change.user_namespace.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let path = c_string(path)?;
    let dir = dir.map_or(libc::AT_FDCWD, |fd| fd.as_raw_fd());
    // SAFETY: `path` and `attributes` outlive the call, and the size passed is that of `attributes`.
    check(unsafe {
        libc::syscall(libc::SYS_mount_setattr, dir, path.as_ptr(), flags, &attributes, size_of::<Attributes>())
    })?;
    Ok(())
}

/// Opens `path` relative to `dir`, resolved as `resolve` (`RESOLVE_…`) says. Linux 5.6. Tries again if a rename elsewhere
/// disturbed the resolution (EAGAIN).
pub fn openat2(dir: impl AsFd, path: &Path, flags: i32, mode: u32, resolve: u64) -> Result<OwnedFd, Errno> {
    #[repr(C)]
    struct How {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    let how = How { flags: (flags | libc::O_CLOEXEC) as u64, mode: mode.into(), resolve };
    let path = c_string(path)?;
    let dir = dir.as_fd().as_raw_fd();
    for _ in 0..1000 {
        // SAFETY: `path` and `how` outlive the call, and the size passed is that of `how`.
        let result =
            descriptor(unsafe { libc::syscall(libc::SYS_openat2, dir, path.as_ptr(), &how, size_of::<How>()) });
        if result.as_ref().err() != Some(&Errno::EAGAIN) {
            return result;
        }
    }
    Err(Errno::EAGAIN)
}

/// Sets the extended attribute `name` of `path` itself, never of what a link at `path` points to (lsetxattr(2)).
pub fn lsetxattr(path: &Path, name: &OsStr, value: &[u8]) -> Result<(), Errno> {
    let (path, name) = (c_string(path)?, c_string(name)?);
    // SAFETY: all three buffers outlive the call, and the size passed is that of `value`.
    check(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }.into())?;
    Ok(())
}

/// The extended attribute `name` of `path` itself; `None` if it has none of that name (lgetxattr(2)).
pub fn lgetxattr(path: &Path, name: &OsStr) -> Result<Option<Vec<u8>>, Errno> {
    let (path, name) = (c_string(path)?, c_string(name)?);
    let mut value = vec![0u8; 1 << 16];
    // SAFETY: all three buffers outlive the call, and the size passed is that of `value`.
    let result = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    match check(result as libc::c_long) {
        Ok(length) => {
            value.truncate(length as usize);
            Ok(Some(value))
        }
        Err(Errno::ENODATA) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Takes the extended attribute `name` of `path` itself away (lremovexattr(2)).
pub fn lremovexattr(path: &Path, name: &OsStr) -> Result<(), Errno> {
    let (path, name) = (c_string(path)?, c_string(name)?);
    // SAFETY: both buffers outlive the call.
    check(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) }.into())?;
    Ok(())
}

/// The names of the extended attributes of `path` itself (llistxattr(2)).
pub fn llistxattr(path: &Path) -> Result<Vec<OsString>, Errno> {
    let path = c_string(path)?;
    // SAFETY: `path` outlives the call; with the size 0 the kernel writes nothing. Most files have none.
    if check(unsafe { libc::llistxattr(path.as_ptr(), ptr::null_mut(), 0) } as libc::c_long)? == 0 {
        return Ok(Vec::new());
    }
    let mut names = vec![0u8; 1 << 16];
    // SAFETY: both buffers outlive the call, and the size passed is that of `names`.
    let length =
        check(unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) } as libc::c_long)?;
    names.truncate(length as usize);
    Ok(names.split(|&b| b == 0).filter(|name| !name.is_empty()).map(|name| OsString::from_vec(name.to_vec())).collect())
}

/// Sets the extended attribute `name` of what `fd` is (fsetxattr(2)). Not for `O_PATH` descriptors.
pub fn fsetxattr(fd: impl AsFd, name: &str, value: &[u8]) -> Result<(), Errno> {
    let name = c_string(name)?;
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: both buffers outlive the call, and the size passed is that of `value`.
    check(unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }.into())?;
    Ok(())
}

/// Whether what `fd` is has the extended attribute `name` (fgetxattr(2)). Not for `O_PATH` descriptors.
pub fn has_xattr(fd: impl AsFd, name: &str) -> Result<bool, Errno> {
    let name = c_string(name)?;
    // SAFETY: `name` outlives the call; with the size 0 the kernel writes no value.
    let result = unsafe { libc::fgetxattr(fd.as_fd().as_raw_fd(), name.as_ptr(), ptr::null_mut(), 0) };
    match check(result as libc::c_long) {
        Ok(_) => Ok(true),
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// What chattr(1) and quotas give a file, which neither its status nor its extended attributes show: flags, extent sizes,
/// project (`struct fsxattr`, ioctl_xfs_fsgetxattr(2)), but how many extents it has. `None` where there is none of it.
pub fn inode_attributes(fd: impl AsFd) -> Option<[u32; 7]> {
    const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;
    let mut attributes = [0u32; 7];
    // SAFETY: the kernel writes the 28 bytes that `attributes` has.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_FSGETXATTR as _, attributes.as_mut_ptr()) };
    attributes[2] = 0;
    (result == 0).then_some(attributes)
}
