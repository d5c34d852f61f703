//! Names resolved inside a root, from a held descriptor; never as cleaned strings.
//!
//! Absolute links and `..` stay inside, as after chroot. What has to be made on the way is made one component at a time,
//! in a directory that is held open, so that nobody who changes the tree meanwhile can lead us outside.

use crate::error::{Error, Result, ResultExt};
use crate::sys::mount::{RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2};
use crate::trace::op;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// As many links as the kernel follows in one name (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// A directory that stands for `/`.
pub struct Root {
    dir: OwnedFd,
    path: PathBuf,
}

/// What to make at a name that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    /// A directory, mode 0755.
    Directory,
    /// An empty file, mode 0644.
    File,
}

impl Root {
    /// Holds the directory `path`. Errors: not there, not a directory.
    pub fn open(path: &Path) -> Result<Self> {
        let dir = nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .call(format_args!("open({path:?})"))?;
        Ok(Root { dir, path: path.to_path_buf() })
    }

    /// The root's directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The path it was opened by, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens what `path` names inside the root, following links, with `flags` (`O_PATH`, `O_RDONLY` …).
    pub fn open_at(&self, path: &Path, flags: OFlag) -> Result<OwnedFd> {
        let inside = relative(path);
        openat2(&self.dir, &inside, flags.bits(), 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
            .call(format_args!("openat2({:?}, {path:?}, RESOLVE_IN_ROOT)", self.path))
    }

    /// The object that `path` names inside the root (as an `O_PATH` descriptor), made as `make` says if it is missing, with
    /// its parents, and the paths (relative to the root) of what was made, outermost first.
    ///
    /// A dangling link is followed, and what it names is made inside the root.
    ///
    /// Errors: ENOTDIR on the way, too many links, a file where a directory is wanted or the reverse, what mkdirat(2) says.
    pub fn make(&self, path: &Path, make: Make) -> Result<(OwnedFd, Vec<PathBuf>)> {
        let mut walk =
            Walk { root: self, stack: Vec::new(), todo: components(path.as_os_str()), links: 0, made: Vec::new() };
        let found = walk.run(path, make)?;
        let stat = fstat(&found).call(format_args!("fstat({path:?})"))?;
        match (is(&stat, SFlag::S_IFDIR), make) {
            (false, Make::Directory) => Err(Error::new(format_args!(
                "{path:?} in {:?} is not a directory, and what comes there is one",
                self.path
            ))),
            (true, Make::File) => {
                Err(Error::new(format_args!("{path:?} in {:?} is a directory, and what comes there is not", self.path)))
            }
            _ => Ok((found, walk.made)),
        }
    }
}

/// Resolution by hand: a stack of held directories, and what is left of the name.
struct Walk<'a> {
    root: &'a Root,
    stack: Vec<(OsString, OwnedFd)>,
    todo: VecDeque<OsString>,
    links: u32,
    made: Vec<PathBuf>,
}

impl Walk<'_> {
    fn here(&self) -> BorrowedFd<'_> {
        self.stack.last().map_or(self.root.fd(), |(_, dir)| dir.as_fd())
    }

    fn run(&mut self, path: &Path, make: Make) -> Result<OwnedFd> {
        while let Some(name) = self.todo.pop_front() {
            if name == ".." {
                self.stack.pop();
                continue;
            }
            let last = self.todo.is_empty();
            let found = self.step(path, &name, if last { make } else { Make::Directory })?;
            let stat = fstat(&found).call(format_args!("fstat({path:?})"))?;
            if is(&stat, SFlag::S_IFLNK) {
                self.follow(path, &found)?;
            } else if last {
                return Ok(found);
            } else {
                self.stack.push((name, found));
            }
        }
        // The name ended in the root, "." or "..".
        openat(self.here(), ".", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .call(format_args!("openat({path:?})"))
    }

    /// One component: what is there, or what was made there.
    fn step(&mut self, path: &Path, name: &OsStr, make: Make) -> Result<OwnedFd> {
        // A name that appears or vanishes between two calls is tried again; an attacker cannot keep us for ever.
        for _ in 0..100 {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            match openat(self.here(), name, flags, Mode::empty()) {
                Err(Errno::ENOENT) => {}
                other => return other.call(format_args!("openat({:?}, {path:?})", self.root.path)),
            }
            let made = match make {
                Make::Directory => op(format_args!("mkdirat({:?}, {name:?}, 0755)", self.root.path), || {
                    mkdirat(self.here(), name, Mode::from_bits_truncate(0o755))
                }),
                Make::File => op(format_args!("openat({:?}, {name:?}, O_CREAT|O_EXCL, 0644)", self.root.path), || {
                    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                    openat(self.here(), name, flags, Mode::from_bits_truncate(0o644)).map(drop)
                }),
            };
            match made {
                Ok(()) => self.made.push(self.stack.iter().map(|(name, _)| name.as_os_str()).chain([name]).collect()),
                Err(error) if error.errno() == Some(Errno::EEXIST) => {}
                Err(error) => return Err(error.within(format_args!("{path:?}"))),
            }
        }
        Err(Error::call(format_args!("openat({:?}, {path:?})", self.root.path), Errno::EAGAIN))
    }

    fn follow(&mut self, path: &Path, link: &OwnedFd) -> Result<()> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Error::call(format_args!("openat({:?}, {path:?})", self.root.path), Errno::ELOOP));
        }
        let target = readlinkat(link, "").call(format_args!("readlinkat({path:?})"))?;
        if target.as_bytes().starts_with(b"/") {
            self.stack.clear();
        }
        for component in components(&target).into_iter().rev() {
            self.todo.push_front(component);
        }
        Ok(())
    }
}

fn components(path: &OsStr) -> VecDeque<OsString> {
    Path::new(path)
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_os_string()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

/// `path` as openat2 with RESOLVE_IN_ROOT takes it: never empty.
fn relative(path: &Path) -> PathBuf {
    let path: PathBuf = path.components().filter(|c| !matches!(c, Component::RootDir | Component::Prefix(_))).collect();
    if path.as_os_str().is_empty() { ".".into() } else { path }
}

fn is(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

/// The file status of `name` in `dir`, not following a link; `None` if it is not there.
pub fn stat_at(dir: impl AsFd, name: &OsStr) -> Result<Option<FileStat>> {
    match nix::sys::stat::fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(Error::call(format_args!("fstatat({name:?})"), errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn tree() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        (dir, root)
    }

    #[test]
    fn links_and_dots_stay_inside() {
        let (dir, root) = tree();
        let inside = dir.path().join("root");
        symlink("/abs", inside.join("a")).unwrap();
        symlink("../../../../up/x", inside.join("b")).unwrap();
        for name in ["a", "/b", "../../c", "/../d/../e/f"] {
            root.make(Path::new(name), Make::File).unwrap();
        }
        for name in ["abs", "up/x", "c", "e/f"] {
            assert!(inside.join(name).is_file(), "{name}");
        }
        assert!(!inside.join("d").exists() || inside.join("d").is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_was_made_is_told_and_the_kind_is_checked() {
        let (_dir, root) = tree();
        let (_, made) = root.make(Path::new("/x/y/z"), Make::Directory).unwrap();
        assert_eq!(made, ["x", "x/y", "x/y/z"].map(PathBuf::from));
        assert_eq!(root.make(Path::new("/x/y/z"), Make::Directory).unwrap().1, Vec::<PathBuf>::new());
        assert!(root.make(Path::new("/x/y"), Make::File).is_err());
        root.make(Path::new("/x/file"), Make::File).unwrap();
        assert!(root.make(Path::new("/x/file"), Make::Directory).is_err());
        assert_eq!(root.make(Path::new("/x/file/deep"), Make::Directory).err().unwrap().errno(), Some(Errno::ENOTDIR));
    }

    #[test]
    fn loops_end() {
        let (dir, root) = tree();
        symlink("loop", dir.path().join("root/loop")).unwrap();
        assert_eq!(root.make(Path::new("loop"), Make::File).err().unwrap().errno(), Some(Errno::ELOOP));
        assert!(root.make(Path::new("/"), Make::Directory).is_ok());
    }
}
