//! All that is in a layer's directory, as text: made when it is unpacked, compared by `--verify`.
//!
//! A line for each name, in the order of the names: type and mode in octal, owner, group, size, time, a hash of the content
//! and of the attributes, the name escaped. The hash (XXH3, 128 bits) finds damage; against someone who can write to the
//! store no list in that same store would help.

use crate::apply::link_text;
use crate::merged::{entries, is};
use crate::node::{Attributes, handle, open_dir, open_dir_at};
use chain::root::stat_at;
use chain::sys::mount::lgetxattr;
use chain::{Error, Result, ResultExt};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

const SPARSE: &str = "sparse:";
const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// What is known of a file's content.
#[derive(Clone, Copy, Debug)]
pub enum Content {
    /// Its hash.
    Hash(u128),
    /// It is read.
    Unknown,
    /// Mostly holes, which can be larger than can be read in any time: its size and time must do.
    Sparse,
}

/// The list of the tree `root`, and the size of its files, each once. `known` tells of the content of a file, by its status and path.
pub fn make(root: &OwnedFd, known: impl Fn(&FileStat, &[u8]) -> Content) -> Result<(Vec<u8>, u64)> {
    let mut list = Vec::new();
    let mut size = 0;
    let mut linked = HashSet::new();
    let mut here = open_dir_at(root, OsStr::new("."))?;
    let stat = fstat(&here).call(format_args!("fstat()"))?;
    line(&mut list, here.as_fd(), OsStr::new("."), &stat, b"", &known)?;
    // Names that are still to be seen, of each directory on the way down; one descriptor, whatever the depth.
    let mut path: Vec<OsString> = Vec::new();
    let mut todo = vec![names(&here)?];
    while let Some(level) = todo.last_mut() {
        let Some(name) = level.pop() else {
            todo.pop();
            if path.pop().is_some() {
                // Nobody else moves directories of a layer.
                here = openat(&here, "..", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                    .call(format_args!("openat(..)"))?;
            }
            continue;
        };
        let stat = stat_at(&here, &name)?.ok_or_else(|| Error::new(format_args!("{name:?} vanished")))?;
        let mut whole: Vec<u8> = path.iter().flat_map(|part| [part.as_bytes(), b"/"].concat()).collect();
        whole.extend_from_slice(name.as_bytes());
        line(&mut list, here.as_fd(), &name, &stat, &whole, &known)?;
        if is(&stat, SFlag::S_IFDIR) {
            here = open_dir_at(&here, &name)?;
            todo.push(names(&here)?);
            path.push(name);
        } else if is(&stat, SFlag::S_IFREG) && (stat.st_nlink == 1 || linked.insert(stat.st_ino)) {
            size += stat.st_size as u64;
        }
    }
    Ok((list, size))
}

/// In reverse order, to be taken from the end.
fn names(dir: &OwnedFd) -> Result<Vec<OsString>> {
    let mut names = entries(dir)?;
    names.sort_by(|a, b| b.cmp(a));
    Ok(names)
}

fn line(
    list: &mut Vec<u8>,
    dir: std::os::fd::BorrowedFd<'_>,
    name: &OsStr,
    stat: &FileStat,
    path: &[u8],
    known: &impl Fn(&FileStat, &[u8]) -> Content,
) -> Result<()> {
    let mut hash = Xxh3::new();
    let mut mark = "";
    let held = dir.try_clone_to_owned().call(format_args!("dup()"))?;
    if is(stat, SFlag::S_IFREG) && stat.st_size > 0 {
        match known(stat, path) {
            Content::Hash(content) => hash.update(&content.to_le_bytes()),
            Content::Unknown => hash.update(&content(&held, name)?.to_le_bytes()),
            Content::Sparse => mark = SPARSE,
        }
    } else if is(stat, SFlag::S_IFLNK) {
        hash.update(&xxh3_128(&link_text(&held, name)?).to_le_bytes());
    }
    for (name, value) in Attributes::of_node(dir, name, stat)?.xattrs {
        hash.update(&(name.len() as u64).to_le_bytes());
        hash.update(&name);
        hash.update(&(value.len() as u64).to_le_bytes());
        hash.update(&value);
    }
    if is(stat, SFlag::S_IFDIR)
        && OPAQUE.iter().any(|key| matches!(lgetxattr(&handle(dir, name), OsStr::new(key)), Ok(Some(_))))
    {
        mark = "opaque:";
    }
    let size = if is(stat, SFlag::S_IFREG) { stat.st_size as u64 } else { stat.st_rdev };
    let (seconds, nanoseconds) = (stat.st_mtime, stat.st_mtime_nsec);
    let (mode, uid, gid) = (stat.st_mode, stat.st_uid, stat.st_gid);
    let _ = writeln!(
        list,
        "{mode:06o} {uid} {gid} {size} {seconds}.{nanoseconds:09} {mark}{:032x} {}",
        hash.digest128(),
        path.escape_ascii()
    );
    Ok(())
}

fn content(dir: &OwnedFd, name: &OsStr) -> Result<u128> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = openat(dir, name, flags, Mode::empty()).map(File::from).call(format_args!("openat({name:?})"))?;
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        let length = file.read(&mut buffer).call(format_args!("read({name:?})"))?;
        if length == 0 {
            return Ok(hash.digest128());
        }
        hash.update(&buffer[..length]);
    }
}

/// The name (as it stands in the list) in a line about a sparse file.
fn sparse_name(line: &[u8]) -> Option<Vec<u8>> {
    let mut fields = line.splitn(7, |&byte| byte == b' ');
    fields.nth(5)?.starts_with(SPARSE.as_bytes()).then(|| fields.next().unwrap_or_default().to_vec())
}

/// What differs between the layer at `path` and its list: names, `-` before those that are as they should not be.
pub fn compare(path: &Path) -> Result<Vec<String>> {
    let list = path.with_added_extension("list");
    let wanted = match fs::read(&list) {
        Ok(wanted) => wanted,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(vec!["no list of what was unpacked".into()]);
        }
        Err(error) => return Err(Error::call(format_args!("read({list:?})"), error)),
    };
    let sparse: HashSet<Vec<u8>> = wanted.split(|&byte| byte == b'\n').filter_map(sparse_name).collect();
    let known = |_: &FileStat, path: &[u8]| {
        if sparse.contains(path.escape_ascii().to_string().as_bytes()) { Content::Sparse } else { Content::Unknown }
    };
    let (actual, _) = make(&open_dir(path)?, known)?;
    if actual == wanted {
        return Ok(Vec::new());
    }
    let lines = |text: &[u8]| -> std::collections::BTreeSet<String> {
        String::from_utf8_lossy(text).lines().map(str::to_string).collect()
    };
    let (wanted, actual) = (lines(&wanted), lines(&actual));
    let name = |line: &String| line.splitn(7, ' ').nth(6).unwrap_or_default().to_string();
    let mut names: Vec<String> = wanted.symmetric_difference(&actual).map(name).collect();
    names.sort();
    names.dedup();
    Ok(names)
}
