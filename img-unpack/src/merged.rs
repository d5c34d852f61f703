//! Layers on top of each other, as overlayfs shows them: what a layer's author saw below it.

use crate::apply::{components, link_text};
use crate::node::open_dir_at;
use chain::root::stat_at;
use chain::sys::mount::has_xattr;
use chain::{Result, ResultExt};
use nix::dir::Dir;
use nix::sys::stat::{FileStat, Mode, SFlag};
use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

/// A directory of the merged tree: the directories of that name in the layers, topmost first; none: it does not exist.
#[derive(Clone, Debug)]
pub struct Merged {
    parts: Vec<Rc<OwnedFd>>,
    opaque: &'static str,
}

/// What a name is in the merged tree.
pub enum Found {
    /// Nothing.
    Absent,
    /// A directory, and the status of its topmost part, which decides.
    Dir(Merged, FileStat),
    /// Something else, in this directory of a layer.
    Other(Rc<OwnedFd>, FileStat),
}

impl Merged {
    /// The root of `layers`, topmost first, whose opaque directories have the attribute `opaque`.
    pub fn root(layers: Vec<OwnedFd>, opaque: &'static str) -> Self {
        Merged { parts: layers.into_iter().map(Rc::new).collect(), opaque }
    }

    /// The topmost part, which has the directory's attributes; `None` if there is no layer.
    pub fn top(&self) -> Option<&Rc<OwnedFd>> {
        self.parts.first()
    }

    /// What `name` is in this directory. No link is followed.
    pub fn child(&self, name: &OsStr) -> Result<Found> {
        let mut parts: Vec<Rc<OwnedFd>> = Vec::new();
        let mut first = None;
        for part in &self.parts {
            let Some(stat) = stat_at(part.as_ref(), name)? else { continue };
            if !is(&stat, SFlag::S_IFDIR) {
                if !parts.is_empty() || is_whiteout(&stat) {
                    break;
                }
                return Ok(Found::Other(part.clone(), stat));
            }
            let dir = open_dir_at(part.as_ref(), name)?;
            let opaque = has_xattr(&dir, self.opaque).call(format_args!("fgetxattr({name:?}, {:?})", self.opaque))?;
            parts.push(Rc::new(dir));
            first.get_or_insert(stat);
            if opaque {
                break;
            }
        }
        Ok(match first {
            None => Found::Absent,
            Some(stat) => Found::Dir(Merged { parts, opaque: self.opaque }, stat),
        })
    }

    /// The directory at `path`, whose components are plain names; `None` if one of them is no directory.
    pub fn walk<'a>(&self, path: impl Iterator<Item = &'a [u8]>) -> Result<Option<Merged>> {
        let mut here = self.clone();
        for name in path {
            match here.child(OsStr::from_bytes(name))? {
                Found::Dir(dir, _) => here = dir,
                _ => return Ok(None),
            }
        }
        Ok(Some(here))
    }

    /// The directory that `path` names, following links inside this root, and its real name; `None` if there is none.
    pub fn resolve(&self, path: &[u8]) -> Result<Option<(Vec<u8>, Merged)>> {
        let mut todo: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        let mut stack: Vec<(Vec<u8>, Merged)> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                stack.pop();
                continue;
            }
            let here = stack.last().map_or(self, |(_, dir)| dir);
            let text = OsStr::from_bytes(&name);
            match here.child(text)? {
                Found::Dir(dir, _) => stack.push((name, dir)),
                Found::Other(dir, stat) if is(&stat, SFlag::S_IFLNK) && links < 40 => {
                    links += 1;
                    let target = link_text(&dir, text)?;
                    if target.starts_with(b"/") {
                        stack.clear();
                    }
                    for component in components(&target).rev() {
                        todo.push_front(component.to_vec());
                    }
                }
                _ => return Ok(None),
            }
        }
        let dir = stack.last().map_or(self, |(_, dir)| dir).clone();
        let names: Vec<Vec<u8>> = stack.into_iter().map(|(name, _)| name).collect();
        Ok(dir.top().is_some().then(|| (names.join(&b'/'), dir)))
    }

    /// The names in this directory, whiteouts and what they hide left out, in order.
    pub fn names(&self) -> Result<Vec<OsString>> {
        let mut seen = BTreeSet::new();
        for part in &self.parts {
            seen.extend(entries(part)?);
        }
        let mut names = Vec::new();
        for name in seen {
            if !matches!(self.child(&name)?, Found::Absent) {
                names.push(name);
            }
        }
        Ok(names)
    }
}

/// The names in a directory, in the order of the file system.
pub fn entries(dir: &OwnedFd) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    each_entry(dir, |name| names.push(name.to_os_string()))?;
    Ok(names)
}

/// Calls `see` with each name in a directory, in the order of the file system.
pub fn each_entry(dir: &OwnedFd, mut see: impl FnMut(&OsStr)) -> Result<()> {
    let again = open_dir_at(dir.as_fd(), OsStr::new("."))?;
    for entry in Dir::from_fd(again).call(format_args!("getdents()"))? {
        let entry = entry.call(format_args!("getdents()"))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            see(OsStr::from_bytes(name));
        }
    }
    Ok(())
}

/// Whether this is of that kind.
pub fn is(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

/// Whether this is overlayfs's whiteout: a character device 0:0.
pub fn is_whiteout(stat: &FileStat) -> bool {
    is(stat, SFlag::S_IFCHR) && stat.st_rdev == 0
}

/// Makes a whiteout.
pub fn make_whiteout(dir: &OwnedFd, name: &OsStr) -> Result<()> {
    nix::sys::stat::mknodat(dir, name, SFlag::S_IFCHR, Mode::empty(), 0)
        .call(format_args!("mknodat({name:?}, S_IFCHR, 0:0)"))
        .map_err(|error| match error.errno() {
            Some(nix::errno::Errno::EPERM) => {
                error.hint("this file system, or a container without CAP_MKNOD, forbids overlayfs's whiteouts")
            }
            _ => error,
        })
}
