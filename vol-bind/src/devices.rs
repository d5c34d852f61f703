//! Device nodes in a /dev of its own: made, or the machine's bound where this user namespace may not make any.

use crate::filesystem::{self, attach_at};
use chain::document::path_text;
use chain::sys::mount::{self as kernel, Change, OPEN_TREE_CLONE};
use chain::trace::{note, op};
use chain::{Result, ResultExt};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag, major, minor, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, fchownat};
use serde_json::{Value, json};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What a node is.
pub struct Node {
    /// `S_IFCHR` or `S_IFBLK`.
    pub kind: SFlag,
    /// Permissions.
    pub mode: u32,
    /// User and group; the maker's if there are none.
    pub owner: Option<(u32, u32)>,
    /// The device's number.
    pub number: u64,
}

/// What in /dev is each container's own, or leads to the caller: `docker run --privileged` leaves the same out.
const OWN: [&str; 6] = ["pts", "shm", "fd", "mqueue", "console", "ptmx"];

/// Every device of the machine's /dev in `dev`, with its owner and permissions; what is there already stays.
pub fn all(dev: &OwnedFd, nodev: bool) -> Result<()> {
    let mut found = Vec::new();
    find(Path::new(""), &mut found)?;
    for (path, device) in found {
        match node(dev, &path, &device, nodev) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => {}
            // In a directory that this user may not search: then the device is not the user's to use, either.
            Err(error) if error.errno() == Some(Errno::EACCES) => note(format_args!("left out: {error}")),
            other => other?,
        }
    }
    Ok(())
}

/// What [`all`] makes, as `linux.devices` of a document. Error: a name that is not UTF-8.
pub fn documented() -> Result<Vec<Value>> {
    let mut found = Vec::new();
    find(Path::new(""), &mut found)?;
    let value = |(path, node): &(PathBuf, Node)| {
        let (user, group) = node.owner.unwrap_or_default();
        Ok(json!({
            "path": path_text(Path::new("/dev").join(path))?,
            "type": if node.kind == SFlag::S_IFBLK { "b" } else { "c" },
            "major": major(node.number), "minor": minor(node.number),
            "fileMode": node.mode, "uid": user, "gid": group,
        }))
    };
    found.iter().map(value).collect()
}

/// The nodes in the directory `below` of the machine's /dev.
fn find(below: &Path, found: &mut Vec<(PathBuf, Node)>) -> Result<()> {
    let dir = Path::new("/dev").join(below);
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return Ok(()),
        other => other.call(format_args!("open({dir:?})"))?,
    };
    // Devices come and go: what is gone by now is left out.
    for entry in entries.flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        let (name, kind) = (entry.file_name(), metadata.file_type());
        if OWN.iter().any(|own| name == *own) {
            continue;
        }
        let path = below.join(&name);
        if kind.is_dir() {
            find(&path, found)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            let kind = if kind.is_char_device() { SFlag::S_IFCHR } else { SFlag::S_IFBLK };
            let owner = Some((metadata.uid(), metadata.gid()));
            found.push((path, Node { kind, mode: metadata.mode() & 0o7777, owner, number: metadata.rdev() }));
        }
    }
    Ok(())
}

/// One node at `path` of `dev`, with the directories on the way. With `nodev`, where no node would work, and where none can
/// be made, the machine's own of the same path is bound.
pub fn node(dev: &OwnedFd, path: &Path, node: &Node, nodev: bool) -> Result<()> {
    directories(dev, path)?;
    if nodev {
        return bind(dev, path);
    }
    let (major, minor) = (major(node.number), minor(node.number));
    let made =
        op(format_args!("mknodat(\"/dev\", {path:?}, {:?}|0{:o}, {major}:{minor})", node.kind, node.mode), || {
            mknodat(dev, path, node.kind, Mode::from_bits_truncate(node.mode), node.number)
        });
    match (made, node.owner) {
        (Err(error), _) if error.errno() == Some(Errno::EPERM) => bind(dev, path),
        (Ok(()), Some((user, group))) if (user, group) != (0, 0) => {
            op(format_args!("fchownat(\"/dev\", {path:?}, {user}, {group})"), || {
                let owner = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
                fchownat(dev, path, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)
            })
        }
        (other, _) => other,
    }
}

fn directories(dev: &OwnedFd, path: &Path) -> Result<()> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()).collect();
    above.reverse();
    for dir in above {
        match mkdirat(dev, dir, Mode::from_bits_truncate(0o755)) {
            Err(Errno::EEXIST) => {}
            other => other.call(format_args!("mkdirat(\"/dev\", {dir:?}, 0755)"))?,
        }
    }
    Ok(())
}

fn bind(dev: &OwnedFd, path: &Path) -> Result<()> {
    let source = Path::new("/dev").join(path);
    let node = op(format_args!("open_tree({source:?}, OPEN_TREE_CLONE)"), || {
        kernel::open_tree(None, &source, OPEN_TREE_CLONE)
    })
    .map_err(filesystem::explain)?;
    op(format_args!("openat(\"/dev\", {path:?}, O_CREAT|O_EXCL, 0666)"), || {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(dev, path, flags, Mode::from_bits_truncate(0o666)).map(drop)
    })?;
    private(&node)?;
    attach_at(node, dev, path)
}

/// Mounts of a copy of what others have go to no one else.
fn private(mount: &OwnedFd) -> Result<()> {
    let change = Change { propagation: MsFlags::MS_PRIVATE.bits(), ..Change::default() };
    op(format_args!("mount_setattr(MS_PRIVATE)"), || kernel::mount_setattr(mount, true, change))
}
