//! All that is in a layer's directory, as text: made when it is unpacked, compared by `--verify`.
//!
//! A line for each name, in the order of the names: type and mode in octal, owner, group, size, time, a hash of the content
//! and of the attributes, the name escaped. The hash (XXH3, 128 bits) finds damage; against someone who can write to the
//! store no list in that same store would help.

use crate::apply::{components, link_text};
use crate::merged::{each_entry, is};
use crate::node::{Attributes, open_dir, open_dir_at};
use chain::root::stat_at;
use chain::sys::mount::has_xattr;
use chain::{Error, Result, ResultExt};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// The most memory for names of one directory that are held at a time; for all together, three times that.
const MAX_NAMES: usize = if cfg!(test) { 4 << 10 } else { 8 << 20 };
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

/// Writes the list of the tree `root` to `out`; gives the size of its files, each once. `known` tells of the content of a
/// file, by its status and path. Memory is bounded, whatever the tree.
pub fn make(root: &OwnedFd, known: impl Fn(&FileStat, &[u8]) -> Content, out: &mut impl Write) -> Result<u64> {
    // Every name of a file has its part of the size, in units small enough that they add up to bytes.
    let mut size = 0_u128;
    walk(root, known, |stat, _, line| {
        if is(stat, SFlag::S_IFREG) {
            size += ((stat.st_size as u128) << 32) / u128::from(stat.st_nlink.max(1));
        }
        out.write_all(line).call(format_args!("write(list)"))
    })?;
    Ok(((size + (1 << 31)) >> 32) as u64)
}

/// Names of a directory on the way down that are still to be seen.
#[derive(Default)]
struct Level {
    /// In reverse order, to be taken from the end.
    names: Vec<OsString>,
    /// What they took when they were read, in bytes.
    held: usize,
    /// The last that was seen.
    seen: OsString,
    /// Whether there are more than those in `names`.
    more: bool,
}

/// Calls `see` with the status, the path and the line of all that is in `root`, in order.
fn walk(
    root: &OwnedFd,
    known: impl Fn(&FileStat, &[u8]) -> Content,
    mut see: impl FnMut(&FileStat, &[u8], &[u8]) -> Result<()>,
) -> Result<()> {
    // One descriptor, whatever the depth.
    let mut here = open_dir_at(root, OsStr::new("."))?;
    let mut path: Vec<u8> = Vec::new();
    let mut text: Vec<u8> = Vec::new();
    let mut levels: Vec<Level> = Vec::new();
    let stat = fstat(&here).call(format_args!("fstat()"))?;
    line(&mut text, &here, OsStr::new("."), &stat, b"", &known)?;
    see(&stat, b"", &text)?;
    levels.push(Level { more: true, ..Level::default() });
    while let Some(level) = levels.last_mut() {
        if level.names.is_empty() && level.more {
            *level = names_after(&here, std::mem::take(&mut level.seen))?;
            forget_some(&mut levels);
            continue;
        }
        let Some(name) = level.names.pop() else {
            levels.pop();
            if !levels.is_empty() {
                path.truncate(path.iter().rposition(|&byte| byte == b'/').unwrap_or(0));
                // Nobody else moves directories of a layer.
                here = openat(&here, "..", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                    .call(format_args!("openat(..)"))?;
            }
            continue;
        };
        let stat = stat_at(&here, &name)?.ok_or_else(|| Error::new(format_args!("{name:?} vanished")))?;
        let parent = path.len();
        if parent > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        text.clear();
        if is(&stat, SFlag::S_IFDIR) {
            here = open_dir_at(&here, &name)?;
            line(&mut text, &here, OsStr::new("."), &stat, &path, &known)?;
            see(&stat, &path, &text)?;
            levels.push(Level { more: true, ..Level::default() });
        } else {
            line(&mut text, &here, &name, &stat, &path, &known)?;
            see(&stat, &path, &text)?;
            path.truncate(parent);
        }
        if let Some(level) = levels.iter_mut().rev().nth(usize::from(is(&stat, SFlag::S_IFDIR))) {
            level.seen = name;
        }
    }
    Ok(())
}

/// The first names in `dir` after `seen`.
fn names_after(dir: &OwnedFd, seen: OsString) -> Result<Level> {
    let mut first = BinaryHeap::<OsString>::new();
    let (mut held, mut more) = (0, false);
    each_entry(dir, |name| {
        if name <= seen.as_os_str() || (more && first.peek().is_some_and(|last| name > last.as_os_str())) {
            return;
        }
        first.push(name.to_os_string());
        held += cost(name);
        while held > MAX_NAMES && first.len() > 1 {
            held -= first.pop().map_or(0, |last| cost(&last));
            more = true;
        }
    })?;
    let mut names = first.into_sorted_vec();
    names.reverse();
    Ok(Level { names, held, seen, more })
}

/// What holding a name takes, in bytes, about.
fn cost(name: &OsStr) -> usize {
    name.len() + 48
}

/// If too many names are held, those of the outermost directory that has some are read again later.
fn forget_some(levels: &mut [Level]) {
    let held: usize = levels.iter().filter(|level| !level.names.is_empty()).map(|level| level.held).sum();
    let count = levels.len();
    if held > 2 * MAX_NAMES
        && let Some(level) = levels[..count - 1].iter_mut().find(|level| !level.names.is_empty())
    {
        (level.names, level.more) = (Vec::new(), true);
    }
}

/// Appends the line about `name` in `dir` (`.`: the directory itself), which is at `path`.
fn line(
    list: &mut Vec<u8>,
    dir: &OwnedFd,
    name: &OsStr,
    stat: &FileStat,
    path: &[u8],
    known: &impl Fn(&FileStat, &[u8]) -> Content,
) -> Result<()> {
    let mut hash = Xxh3::new();
    let mut mark = "";
    if is(stat, SFlag::S_IFREG) && stat.st_size > 0 {
        match known(stat, path) {
            Content::Hash(content) => hash.update(&content.to_le_bytes()),
            Content::Unknown => hash.update(&content(dir, name)?.to_le_bytes()),
            Content::Sparse => mark = SPARSE,
        }
    } else if is(stat, SFlag::S_IFLNK) {
        hash.update(&xxh3_128(&link_text(dir, name)?).to_le_bytes());
    }
    for (name, value) in Attributes::of_node(dir.as_fd(), name, stat)?.xattrs {
        hash.update(&(name.len() as u64).to_le_bytes());
        hash.update(&name);
        hash.update(&(value.len() as u64).to_le_bytes());
        hash.update(&value);
    }
    if is(stat, SFlag::S_IFDIR) && OPAQUE.iter().any(|key| has_xattr(dir, key).unwrap_or(false)) {
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

/// A line of a list: the mark before its hash, and its path.
fn parse(line: &[u8]) -> (bool, Vec<u8>) {
    let mut fields = line.splitn(7, |&byte| byte == b' ').skip(5);
    let sparse = fields.next().is_some_and(|hash| hash.starts_with(SPARSE.as_bytes()));
    (sparse, unescape(fields.next().unwrap_or_default().trim_ascii_end()))
}

/// What `escape_ascii` made this of.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let (byte, length) = match rest {
            [b'\\', b'n', ..] => (b'\n', 2),
            [b'\\', b'r', ..] => (b'\r', 2),
            [b'\\', b't', ..] => (b'\t', 2),
            [b'\\', b'x', high, low, ..] => {
                let digit = |digit: u8| char::from(digit).to_digit(16).unwrap_or(0) as u8;
                (digit(*high) << 4 | digit(*low), 4)
            }
            [b'\\', other, ..] => (*other, 2),
            _ => (byte, rest.len() - after.len()),
        };
        plain.push(byte);
        rest = &rest[length..];
    }
    plain
}

/// A list that is read.
struct Wanted {
    input: BufReader<File>,
    line: Vec<u8>,
    sparse: bool,
    path: Vec<u8>,
}

impl Wanted {
    fn next(&mut self) -> Result<()> {
        self.line.clear();
        self.input.read_until(b'\n', &mut self.line).call(format_args!("read(list)"))?;
        (self.sparse, self.path) = parse(&self.line);
        Ok(())
    }

    /// How the path of the line compares to `path`, in the order of lists; the end is after everything.
    fn order(&self, path: &[u8]) -> Ordering {
        if self.line.is_empty() {
            return Ordering::Greater;
        }
        components(&self.path).cmp(components(path))
    }
}

/// What differs between the layer at `path` and its list: names, as they stand there.
pub fn compare(path: &Path) -> Result<Vec<String>> {
    let list = path.with_added_extension("list");
    let input = match File::open(&list) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(vec!["no list of what was unpacked".into()]);
        }
        Err(error) => return Err(Error::call(format_args!("open({list:?})"), error)),
    };
    let wanted = RefCell::new(Wanted { input, line: Vec::new(), sparse: false, path: Vec::new() });
    wanted.borrow_mut().next()?;
    let differ = RefCell::new(Vec::new());
    let shown = |path: &[u8]| differ.borrow_mut().push(path.escape_ascii().to_string());
    // Both are in the same order: what the list has before this name is not in the tree.
    let skip_to = |path: Option<&[u8]>| -> Result<()> {
        let mut wanted = wanted.borrow_mut();
        while !wanted.line.is_empty() && path.is_none_or(|path| wanted.order(path) == Ordering::Less) {
            shown(&wanted.path);
            wanted.next()?;
        }
        Ok(())
    };
    let known = |_: &FileStat, path: &[u8]| {
        let here = skip_to(Some(path)).is_ok() && wanted.borrow().order(path) == Ordering::Equal;
        if here && wanted.borrow().sparse { Content::Sparse } else { Content::Unknown }
    };
    walk(&open_dir(path)?, known, |_, path, line| {
        skip_to(Some(path))?;
        let mut wanted = wanted.borrow_mut();
        let there = wanted.order(path) == Ordering::Equal;
        if !there || wanted.line != line {
            shown(path);
        }
        if there { wanted.next() } else { Ok(()) }
    })?;
    skip_to(None)?;
    Ok(differ.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn list(root: &Path) -> String {
        let mut out = Vec::new();
        make(&open_dir(root).unwrap(), |_, _| Content::Unknown, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lists_are_in_order_whatever_is_forgotten_on_the_way() {
        const COUNT: usize = MAX_NAMES / 48;
        let dir = tempfile::tempdir().unwrap();
        // More names than are held, in directories inside each other.
        for at in ["", "m", "m/m"] {
            let at = dir.path().join(at);
            fs::create_dir_all(at.join("m")).unwrap();
            for i in 0..COUNT {
                fs::write(at.join(format!("{}{i}", if i % 2 == 0 { "a" } else { "z" })), "").unwrap();
            }
        }
        let text = list(dir.path());
        let paths: Vec<Vec<u8>> = text.lines().map(|line| parse(line.as_bytes()).1).collect();
        assert_eq!(paths.len(), 3 * (COUNT + 1) + 1);
        assert!(paths.windows(2).all(|pair| components(&pair[0]).lt(components(&pair[1]))));
    }

    #[test]
    fn differences_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("layer");
        fs::create_dir_all(layer.join("d/e")).unwrap();
        for name in ["a b", "d/\n\\x41'\u{e9}", "d/e/f", "d-", "z"] {
            fs::write(layer.join(name), name).unwrap();
        }
        symlink("to", layer.join("l")).unwrap();
        fs::write(layer.with_added_extension("list"), list(&layer)).unwrap();
        assert_eq!(compare(&layer).unwrap(), Vec::<String>::new());
        fs::remove_dir_all(layer.join("d/e")).unwrap();
        fs::write(layer.join("d-"), "D-").unwrap();
        fs::write(layer.join("new"), "").unwrap();
        fs::remove_file(layer.join("z")).unwrap();
        let mut found = compare(&layer).unwrap();
        // The time of a directory too.
        found.retain(|name| !matches!(name.as_str(), "" | "d"));
        assert_eq!(found, ["d/e", "d/e/f", "d-", "new", "z"]);
    }

    #[test]
    fn size_counts_files_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("0"), vec![1; 1001]).unwrap();
        for i in 1..7 {
            fs::hard_link(dir.path().join("0"), dir.path().join(i.to_string())).unwrap();
        }
        let root = open_dir(dir.path()).unwrap();
        assert_eq!(make(&root, |_, _| Content::Unknown, &mut Vec::new()).unwrap(), 1001);
    }
}
