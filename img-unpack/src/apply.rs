//! A layer's members applied to a directory of their own, knowing what lies below (image-spec, layer.md).
//!
//! Every name is walked one component at a time from held descriptors, no link is followed by the kernel: links are
//! followed here, inside the image. A parent that the layer does not bring itself takes the attributes of the directory
//! below. Hard links whose target is not there yet, whiteouts and the attributes of directories wait for the end.

use crate::archive::{Archive, Kind, Member};
use crate::listing::Content;
use crate::merged::{Found, Merged, is, make_whiteout};
use crate::node::{Attributes, Notes, Policy, clear, open_dir_at};
use chain::root::stat_at;
use chain::sys::mount::{RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, fsetxattr, openat2};
use chain::trace::{is_verbose, note};
use chain::{Error, Result, ResultExt};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, makedev, mkdirat, mknodat};
use nix::unistd::{linkat, symlinkat};
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use xxhash_rust::xxh3::Xxh3;

/// As many links as the kernel follows in one name (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// The most components that resolving one name may take, links included.
const MAX_STEPS: u32 = 1 << 16;
/// The most components of a member's name: a name of PATH_MAX, the longest that programs can use, has at most 2,048.
const MAX_DEPTH: usize = 2048;
/// The most bytes of names that are remembered for a layer: directories, whiteouts, links. Real layers have a few MiB.
const MAX_REMEMBERED: usize = 64 << 20;
/// How much of that a layer may take while layers below it are not finished. So the layers that are made at the same time
/// together take little more than one does, and in the end it does not matter which these are.
const MAX_EARLY: usize = 8 << 20;
/// The most files whose hashes are remembered; others are read again for the list.
const MAX_HASHES: usize = 100_000;
/// What a remembered name takes besides its bytes, about: its entry in one or two maps.
const ENTRY: usize = 128;
/// How many directories are held open.
const MAX_HELD: usize = 64;
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What an applied layer was found to be.
#[derive(Debug, Default)]
pub struct Applied {
    /// How many members it had.
    pub members: u64,
    /// What could not be done and is no error.
    pub notes: Notes,
    /// Hashes of files' contents, by inode number; of those that are not empty, `None` of sparse ones. Not of all, if there
    /// are very many.
    pub hashes: HashMap<u64, Option<u128>>,
}

impl Applied {
    /// What is known of the content of the file with this inode number.
    pub fn content(&self, inode: u64) -> Content {
        match self.hashes.get(&inode) {
            None => Content::Unknown,
            Some(None) => Content::Sparse,
            Some(Some(hash)) => Content::Hash(*hash),
        }
    }
}

/// Where a layer's files go, and under what limits.
pub struct Target<'a> {
    /// The layer's own directory, empty.
    pub dir: OwnedFd,
    /// Gives the layers below, waiting for them if need be.
    pub below: &'a dyn Fn() -> Result<Merged>,
    /// What this process can do.
    pub policy: Policy,
    /// Told of bytes that files seem to have beyond the stream's: holes. Its error ends the work.
    pub holes: &'a dyn Fn(u64) -> Result<()>,
}

/// Applies the members of `archive` to `target`.
///
/// Errors: what the archive's reader says, names that leave the image, what the kernel refuses, with the member named.
pub fn apply(archive: &mut Archive<impl BufRead>, target: Target<'_>) -> Result<Applied> {
    let root = Rc::new(Dir {
        fd: target.dir.try_clone().call(format_args!("dup()"))?,
        path: Vec::new(),
        hidden: false,
        below: OnceCell::new(),
    });
    let mut layer = Layer {
        target,
        root,
        below: OnceCell::new(),
        held: HashMap::new(),
        last: None,
        directories: BTreeMap::new(),
        hidden: HashSet::new(),
        opaque: HashSet::new(),
        whiteouts: Vec::new(),
        links: BTreeMap::new(),
        skipped: HashSet::new(),
        remembered: 0,
        done: Applied::default(),
    };
    while let Some(member) = archive.next_member()? {
        let name = member.path.clone();
        layer.done.members += 1;
        layer
            .member(member, archive)
            .map_err(|error| error.within(format_args!("member {:?}", OsStr::from_bytes(&name))))?;
    }
    archive.drain()?;
    layer.finish()?;
    Ok(layer.done)
}

/// A directory of the layer.
struct Dir {
    fd: OwnedFd,
    /// Its name from the layer's root, without links.
    path: Vec<u8>,
    /// Whether nothing below shows through.
    hidden: bool,
    below: OnceCell<Option<Merged>>,
}

/// What is put on a directory at the end.
#[derive(Default)]
struct Record {
    attributes: Attributes,
    opaque: bool,
    /// Whether the attributes are those of the directory below, since the layer does not bring the directory.
    copied: bool,
}

/// What to do about parents that are nowhere.
#[derive(Clone, Copy, PartialEq)]
enum Missing {
    Make,
    Tell,
}

struct Layer<'a> {
    target: Target<'a>,
    root: Rc<Dir>,
    below: OnceCell<Merged>,
    held: HashMap<Vec<u8>, Rc<Dir>>,
    last: Option<(Vec<u8>, Rc<Dir>)>,
    directories: BTreeMap<Vec<u8>, Record>,
    /// Names that whiteouts met so far hide, and directories that opaque markers do.
    hidden: HashSet<Vec<u8>>,
    opaque: HashSet<Vec<u8>>,
    /// Parent, and the name that is hidden in it; `None`: all of it.
    whiteouts: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Hard links whose target was not there: name and target.
    links: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Device nodes that could not be made.
    skipped: HashSet<Vec<u8>>,
    /// How many bytes of names all of these were given.
    remembered: usize,
    done: Applied,
}

impl Layer<'_> {
    /// Takes a name of `length` bytes from the layer's budget.
    fn remember(&mut self, length: usize) -> Result<()> {
        self.remembered = self.remembered.saturating_add(length + ENTRY);
        if self.remembered > MAX_REMEMBERED {
            return Err(Error::new(format_args!(
                "names of directories, whiteouts and links of more than {MAX_REMEMBERED} bytes in one layer"
            )));
        }
        if self.remembered > MAX_EARLY {
            // Waits for them.
            self.below_root()?;
        }
        Ok(())
    }

    fn member(&mut self, mut member: Member, archive: &mut Archive<impl BufRead>) -> Result<()> {
        if is_verbose() {
            note(format_args!(
                "{:?}({:?}, {:04o}, {}:{})",
                member.kind,
                OsStr::from_bytes(&member.path),
                member.mode,
                member.uid,
                member.gid
            ));
        }
        if member.path.is_empty() {
            self.done.notes.add("members without a name skipped", b"");
            return Ok(());
        }
        let path = clean(&member.path)?;
        let depth = components(&path).count();
        if depth > MAX_DEPTH {
            return Err(Error::new(format_args!("a name of {depth} components; at most {MAX_DEPTH} are taken")));
        }
        if path.is_empty() {
            if member.kind != Kind::Directory {
                return Err(Error::new("the root of an image can only be a directory"));
            }
            let attributes = Attributes::of_member(&mut member, &mut self.done.notes);
            self.directories.entry(path).or_default().attributes = attributes;
            return Ok(());
        }
        let (parent, name) = split(&path);
        if name.starts_with(b".wh.") {
            return self.whiteout(parent, name);
        }
        let attributes = Attributes::of_member(&mut member, &mut self.done.notes);
        let dir = self.enter(parent, Missing::Make)?.ok_or_else(|| Error::new("no parent"))?;
        let real = join(&dir.path, name);
        match member.kind {
            Kind::Directory => self.directory(&dir, name, attributes),
            Kind::File => self.file(&dir, name, &member, &attributes, archive),
            Kind::Symlink => self.node(&dir, name, &real, &attributes, true, |dir, name| {
                symlinkat(OsStr::from_bytes(&member.link), dir, name)
            }),
            Kind::Link => self.link(&dir, name, &member.link),
            Kind::Fifo => self.node(&dir, name, &real, &attributes, false, |dir, name| {
                mknodat(dir, name, SFlag::S_IFIFO, Mode::S_IRUSR | Mode::S_IWUSR, 0)
            }),
            Kind::Char | Kind::Block => self.device(&dir, name, &real, &attributes, &member),
            Kind::Unknown(flag) => {
                self.done
                    .notes
                    .add(format!("members of the unknown type {:?} skipped", char::from(flag)), &member.path);
                Ok(())
            }
        }
    }

    fn whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<()> {
        self.remember(2 * (parent.len() + name.len()))?;
        if name == OPAQUE {
            // A directory that is opaque is there.
            if self.has_room(parent)? {
                self.enter(parent, Missing::Make)?;
            }
            self.opaque.insert(parent.to_vec());
            self.whiteouts.push((parent.to_vec(), None));
        } else if !name.starts_with(b".wh..wh.") {
            let hidden = &name[b".wh.".len()..];
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(Error::new("a whiteout of no name"));
            }
            self.hidden.insert(join(parent, hidden));
            self.whiteouts.push((parent.to_vec(), Some(hidden.to_vec())));
        }
        // Other names of that form are AUFS's own, and mean nothing here.
        self.last = None;
        Ok(())
    }

    fn directory(&mut self, dir: &Rc<Dir>, name: &[u8], attributes: Attributes) -> Result<()> {
        let path = join(&dir.path, name);
        if !self.directories.contains_key(&path) {
            self.remember(path.len())?;
        }
        let replaced = match stat_at(&dir.fd, OsStr::from_bytes(name))? {
            Some(stat) if is(&stat, SFlag::S_IFDIR) => false,
            found => {
                if found.is_some() {
                    self.remove(dir, name)?;
                }
                make_dir(&dir.fd, name)?;
                found.is_some()
            }
        };
        let record = self.directories.entry(path).or_default();
        record.attributes = attributes;
        record.opaque |= replaced;
        record.copied = false;
        Ok(())
    }

    fn file(
        &mut self,
        dir: &Rc<Dir>,
        name: &[u8],
        member: &Member,
        attributes: &Attributes,
        archive: &mut Archive<impl BufRead>,
    ) -> Result<()> {
        let mut file = self.create(dir, name, attributes.mode & 0o777 | 0o600)?;
        let hash = match &member.segments {
            None => {
                let mut hasher = Hasher::default();
                copy(archive, &mut file, &mut hasher, member.size)?;
                hasher.finish()
            }
            Some(segments) => {
                (self.target.holes)(member.size.saturating_sub(archive.remaining()))?;
                self.remember(0)?;
                sparse(archive, &mut file, segments, member.size)?;
                None
            }
        };
        let stat = fstat(&file).call(format_args!("fstat()"))?;
        // Holes can be more than can be read: these are remembered always.
        if hash.is_some() && self.done.hashes.len() >= MAX_HASHES {
            self.done.hashes.remove(&stat.st_ino);
        } else if member.size > 0 {
            self.done.hashes.insert(stat.st_ino, hash);
        }
        attributes.put(file.as_fd(), &stat, self.target.policy, &member.path, &mut self.done.notes)
    }

    fn create(&mut self, dir: &Rc<Dir>, name: &[u8], mode: u32) -> Result<File> {
        let name = OsStr::from_bytes(name);
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = || openat(&dir.fd, name, flags, Mode::from_bits_truncate(mode));
        let file = match open() {
            Err(Errno::EEXIST) => {
                self.remove(dir, name.as_bytes())?;
                open()
            }
            other => other,
        };
        file.map(File::from).call(format_args!("openat({name:?}, O_CREAT|O_EXCL)"))
    }

    fn node(
        &mut self,
        dir: &Rc<Dir>,
        name: &[u8],
        path: &[u8],
        attributes: &Attributes,
        is_link: bool,
        make: impl Fn(&OwnedFd, &OsStr) -> std::result::Result<(), Errno>,
    ) -> Result<()> {
        let name = OsStr::from_bytes(name);
        let made = match make(&dir.fd, name) {
            Err(Errno::EEXIST) => {
                self.remove(dir, name.as_bytes())?;
                make(&dir.fd, name)
            }
            other => other,
        };
        made.call(format_args!("{}({name:?})", if is_link { "symlinkat" } else { "mknodat" }))?;
        attributes.put_at(&dir.fd, name, is_link, self.target.policy, path, &mut self.done.notes)
    }

    fn device(
        &mut self,
        dir: &Rc<Dir>,
        name: &[u8],
        path: &[u8],
        attributes: &Attributes,
        member: &Member,
    ) -> Result<()> {
        let (major, minor) = member.device;
        let kind = if member.kind == Kind::Char { SFlag::S_IFCHR } else { SFlag::S_IFBLK };
        let skip = |layer: &mut Self, why: &str| {
            layer.remove(dir, name)?;
            layer.remember(path.len())?;
            layer.skipped.insert(path.to_vec());
            layer.done.notes.add(why, path);
            Ok(())
        };
        if kind == SFlag::S_IFCHR && (major, minor) == (0, 0) {
            return skip(self, "character devices 0:0 skipped, which overlayfs would take for whiteouts");
        }
        let number = makedev(major.into(), minor.into());
        let made = self.node(dir, name, path, attributes, false, |dir, name| {
            mknodat(dir, name, kind, Mode::S_IRUSR | Mode::S_IWUSR, number)
        });
        match made {
            Err(error) if error.errno() == Some(Errno::EPERM) => {
                skip(self, "device nodes skipped, which only root of the machine can make")
            }
            other => other,
        }
    }

    fn link(&mut self, dir: &Rc<Dir>, name: &[u8], target: &[u8]) -> Result<()> {
        let target =
            clean(target).map_err(|error| error.within(format_args!("link to {:?}", OsStr::from_bytes(target))))?;
        if target.is_empty() {
            return Err(Error::new("a hard link to the root"));
        }
        if self.link_own(dir, name, &target)? {
            return Ok(());
        }
        // Later members may bring the target.
        self.remove(dir, name)?;
        self.remember(dir.path.len() + name.len() + target.len())?;
        self.links.insert(join(&dir.path, name), target);
        Ok(())
    }

    /// Links `name` to `target`, if this layer has it.
    fn link_own(&mut self, dir: &Rc<Dir>, name: &[u8], target: &[u8]) -> Result<bool> {
        let (parent, target_name) = split(target);
        let Some(from) = self.enter(parent, Missing::Tell)? else { return Ok(false) };
        let (old, new) = (OsStr::from_bytes(target_name), OsStr::from_bytes(name));
        let Some(stat) = stat_at(&from.fd, old)? else { return Ok(false) };
        if is(&stat, SFlag::S_IFDIR) {
            return Err(Error::new(format_args!("a hard link to the directory {:?}", OsStr::from_bytes(target))));
        }
        if let Some(there) = stat_at(&dir.fd, new)? {
            if there.st_ino == stat.st_ino {
                return Ok(true);
            }
            self.remove(dir, name)?;
        }
        linkat(&from.fd, old, &dir.fd, new, AtFlags::empty()).call(format_args!("linkat({old:?}, {new:?})"))?;
        Ok(true)
    }

    /// Removes what this layer has at `name`.
    fn remove(&mut self, dir: &Rc<Dir>, name: &[u8]) -> Result<()> {
        if stat_at(&dir.fd, OsStr::from_bytes(name))?.is_some_and(|stat| is(&stat, SFlag::S_IFDIR)) {
            // Held descriptors, and attributes for the end, of what was in it.
            self.held.clear();
            self.last = None;
            let path = join(&dir.path, name);
            let inside = [&path[..], b"/"].concat();
            take_below(&mut self.directories, &inside);
            self.directories.remove(&path);
            take_below(&mut self.links, &inside);
        }
        clear(&dir.fd, OsStr::from_bytes(name))
    }

    /// The layer's directory that `path` names, in the tree as it is with the layers below, following links inside it.
    /// Directories that the layer lacks are made: with the attributes of those below, or as `missing` says.
    fn enter(&mut self, path: &[u8], missing: Missing) -> Result<Option<Rc<Dir>>> {
        if let Some((_, dir)) = self.last.as_ref().filter(|(last, _)| last == path) {
            return Ok(Some(dir.clone()));
        }
        let mut todo: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        let mut here = self.root.clone();
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = todo.pop_front() {
            steps += 1;
            if steps > MAX_STEPS {
                return Err(Error::call(format_args!("resolve({:?})", OsStr::from_bytes(path)), Errno::ELOOP));
            }
            if name == b".." {
                // A real name has no links, so its parent is the name without its last component.
                let parent = split(&here.path).0.to_vec();
                for component in components(&parent).rev() {
                    todo.push_front(component.to_vec());
                }
                here = self.root.clone();
                continue;
            }
            match self.step(&here, &name, missing)? {
                Step::Into(dir) => here = dir,
                Step::Nowhere => return Ok(None),
                Step::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Error::call(format_args!("resolve({:?})", OsStr::from_bytes(path)), Errno::ELOOP));
                    }
                    if target.starts_with(b"/") {
                        here = self.root.clone();
                    }
                    for component in components(&target).rev() {
                        todo.push_front(component.to_vec());
                    }
                }
            }
        }
        self.last = Some((path.to_vec(), here.clone()));
        Ok(Some(here))
    }

    fn step(&mut self, here: &Rc<Dir>, name: &[u8], missing: Missing) -> Result<Step> {
        let path = join(&here.path, name);
        if let Some(dir) = self.held.get(&path) {
            return Ok(Step::Into(dir.clone()));
        }
        let text = OsStr::from_bytes(name);
        match stat_at(&here.fd, text)? {
            Some(stat) if is(&stat, SFlag::S_IFDIR) => self.hold(here, name).map(Step::Into),
            Some(stat) if is(&stat, SFlag::S_IFLNK) => link_text(&here.fd, text).map(Step::Link),
            Some(_) if missing == Missing::Tell => Ok(Step::Nowhere),
            Some(_) => {
                // What is under a file replaces it by a directory.
                self.directory(here, name, Attributes::implied())?;
                self.hold(here, name).map(Step::Into)
            }
            None => {
                let below = match self.below(here)? {
                    Some(below) if !self.hidden.contains(&path) => below.child(text)?,
                    _ => Found::Absent,
                };
                let copied = matches!(below, Found::Dir(..));
                let attributes = match below {
                    Found::Dir(dir, stat) => match dir.top() {
                        Some(top) => Attributes::of_node(top.as_fd(), OsStr::new("."), &stat)?,
                        None => Attributes::implied(),
                    },
                    Found::Other(dir, stat) if is(&stat, SFlag::S_IFLNK) => {
                        return link_text(&dir, text).map(Step::Link);
                    }
                    _ if missing == Missing::Tell => return Ok(Step::Nowhere),
                    _ => Attributes::implied(),
                };
                self.directory(here, name, attributes)?;
                self.directories.entry(path).or_default().copied = copied;
                self.hold(here, name).map(Step::Into)
            }
        }
    }

    fn hold(&mut self, parent: &Rc<Dir>, name: &[u8]) -> Result<Rc<Dir>> {
        let path = join(&parent.path, name);
        let hidden = parent.hidden
            || self.directories.get(&path).is_some_and(|record| record.opaque)
            || self.opaque.contains(&parent.path);
        let fd = open_dir_at(&parent.fd, OsStr::from_bytes(name))?;
        let dir = Rc::new(Dir { fd, path: path.clone(), hidden, below: OnceCell::new() });
        if self.held.len() >= MAX_HELD {
            self.held.clear();
        }
        self.held.insert(path, dir.clone());
        Ok(dir)
    }

    /// The directory below `dir`; `None` if there is none, or it does not show through.
    fn below(&self, dir: &Dir) -> Result<Option<Merged>> {
        if dir.hidden || self.opaque.contains(&dir.path) {
            return Ok(None);
        }
        if let Some(below) = dir.below.get() {
            return Ok(below.clone());
        }
        let found = self.below_root()?.walk(components(&dir.path))?;
        Ok(dir.below.get_or_init(|| found).clone())
    }

    fn below_root(&self) -> Result<&Merged> {
        if let Some(below) = self.below.get() {
            return Ok(below);
        }
        let below = (self.target.below)()?;
        Ok(self.below.get_or_init(|| below))
    }

    fn finish(&mut self) -> Result<()> {
        self.late_links()?;
        let mut whiteouts = std::mem::take(&mut self.whiteouts);
        // Opaque markers first: what they hide needs no whiteout of its own.
        whiteouts.sort();
        whiteouts.dedup();
        for (parent, name) in &whiteouts {
            self.hide(parent, name.as_deref())
                .map_err(|error| error.within(format_args!("whiteout in {:?}", OsStr::from_bytes(parent))))?;
        }
        self.finish_directories()
    }

    /// Links to members that came later, or to files of the layers below, which are copied up.
    fn late_links(&mut self) -> Result<()> {
        let mut links: Vec<(Vec<u8>, Vec<u8>)> = std::mem::take(&mut self.links).into_iter().collect();
        for from_below in [false, true, false] {
            // Links to links: in order or in reverse order it takes one pass, in any order a few; the number of passes is
            // limited so that no order of many links takes for ever.
            for _ in 0..MAX_LINKS {
                let before = links.len();
                let mut left = Vec::new();
                for (path, target) in links {
                    if !self.late_link(&path, &target, from_below)? {
                        left.push((path, target));
                    }
                }
                left.reverse();
                links = left;
                if links.is_empty() || links.len() == before {
                    break;
                }
            }
        }
        let Some((path, target)) = links.into_iter().next() else { return Ok(()) };
        let (path, target) = (OsStr::from_bytes(&path), OsStr::from_bytes(&target));
        Err(Error::new(format_args!(
            "member {path:?}: hard link to {target:?}, which neither this layer nor those below have"
        )))
    }

    fn late_link(&mut self, path: &[u8], target: &[u8], from_below: bool) -> Result<bool> {
        let (parent, name) = split(path);
        let dir = self.enter(parent, Missing::Make)?.ok_or_else(|| Error::new("no parent"))?;
        // A member of the same name that came later stands.
        if stat_at(&dir.fd, OsStr::from_bytes(name))?.is_some() || self.link_own(&dir, name, target)? {
            return Ok(true);
        }
        if self.skipped.contains(target) {
            self.done.notes.add("links to skipped device nodes skipped", path);
            return Ok(true);
        }
        if !from_below {
            return Ok(false);
        }
        let (target_parent, target_name) = split(target);
        let Some(from) = self.enter(target_parent, Missing::Tell)? else { return Ok(false) };
        let Some(below) = self.below(&from)? else { return Ok(false) };
        let Found::Other(lower, stat) = below.child(OsStr::from_bytes(target_name))? else { return Ok(false) };
        if self.hidden.contains(target) {
            self.copy_up(&lower, (OsStr::from_bytes(target_name), &stat), &dir, OsStr::from_bytes(name))?;
            return Ok(true);
        }
        let target_name = OsStr::from_bytes(target_name);
        self.copy_up(&lower, (target_name, &stat), &from, target_name)?;
        self.link_own(&dir, name, target)
    }

    /// Copies what a layer below has in `lower` to `name` in `dir`.
    fn copy_up(&mut self, lower: &OwnedFd, from: (&OsStr, &FileStat), dir: &Dir, name: &OsStr) -> Result<()> {
        copy_node(lower, from.0, from.1, &dir.fd, name, self.target.policy)?;
        // Its inode may be one that a member had which was replaced.
        if let Some(stat) = stat_at(&dir.fd, name)? {
            self.done.hashes.remove(&stat.st_ino);
        }
        Ok(())
    }

    /// Hides `name` of the layers below in `parent`, or all that is there. What this layer brings stays.
    fn hide(&mut self, parent: &[u8], name: Option<&[u8]>) -> Result<()> {
        // What is not there below needs no hiding.
        let Some((real, below)) = self.below_root()?.resolve(parent)? else { return Ok(()) };
        let names = match name {
            None if real.is_empty() => below.names()?.into_iter().map(|name| name.as_bytes().to_vec()).collect(),
            None => {
                if let Some(dir) = self.shadow(&real)? {
                    self.directories.entry(dir.path.clone()).or_default().opaque = true;
                    self.forget_copies(&dir.path, false);
                    self.held.clear();
                }
                return Ok(());
            }
            Some(name) => vec![name.to_vec()],
        };
        for name in names {
            let text = OsStr::from_bytes(&name);
            let found = below.child(text)?;
            if matches!(found, Found::Absent) {
                continue;
            }
            let Some(dir) = self.shadow(&real)? else { return Ok(()) };
            match stat_at(&dir.fd, text)? {
                None => make_whiteout(&dir.fd, text)?,
                Some(stat) if is(&stat, SFlag::S_IFDIR) => {
                    let path = join(&dir.path, &name);
                    self.directories.entry(path.clone()).or_default().opaque = true;
                    self.forget_copies(&path, true);
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Whether the directory `path` is there, or could be without replacing anything of this layer.
    fn has_room(&mut self, path: &[u8]) -> Result<bool> {
        let mut rest = path;
        while !rest.is_empty() {
            let (parent, name) = split(rest);
            if let Some(dir) = self.enter(parent, Missing::Tell)? {
                return Ok(stat_at(&dir.fd, OsStr::from_bytes(name))?.is_none_or(|stat| is(&stat, SFlag::S_IFDIR)));
            }
            rest = parent;
        }
        Ok(true)
    }

    /// What lies below `path` turned out to be hidden: directories that took their attributes from there are new ones.
    fn forget_copies(&mut self, path: &[u8], with_itself: bool) {
        let inside = [path, b"/"].concat();
        for (name, record) in self.directories.range_mut(path.to_vec()..) {
            if !name.starts_with(path) {
                break;
            }
            if record.copied && (name.starts_with(&inside) || (with_itself && name == path)) {
                record.attributes = Attributes::implied();
            }
        }
    }

    /// The layer's own directory at the real name `path` of a directory below; made if the layer has nothing there, `None`
    /// if the layer hides that directory.
    fn shadow(&mut self, path: &[u8]) -> Result<Option<Rc<Dir>>> {
        let mut here = self.root.clone();
        for name in components(path) {
            let child = join(&here.path, name);
            let opaque = self.directories.get(&child).is_some_and(|record| record.opaque);
            let text = OsStr::from_bytes(name);
            here = if let Some(dir) = self.held.get(&child) {
                dir.clone()
            } else {
                match stat_at(&here.fd, text)? {
                    Some(stat) if !is(&stat, SFlag::S_IFDIR) => return Ok(None),
                    Some(_) => {}
                    None => {
                        let walked = self.below_root()?.walk(components(&child))?;
                        let Some(top) = walked.as_ref().and_then(Merged::top) else { return Ok(None) };
                        let stat = fstat(top.as_ref()).call(format_args!("fstat()"))?;
                        let attributes = Attributes::of_node(top.as_fd(), OsStr::new("."), &stat)?;
                        self.directory(&here, name, attributes)?;
                    }
                }
                self.hold(&here, name)?
            };
            if opaque {
                return Ok(None);
            }
        }
        Ok(Some(here))
    }

    /// Owners, modes, attributes and times of directories, deepest first, the root last.
    fn finish_directories(&mut self) -> Result<()> {
        self.held.clear();
        self.last = None;
        if !self.directories.contains_key(&b""[..]) {
            let attributes = match self.below_root()?.top() {
                Some(top) => {
                    let stat = fstat(top.as_ref()).call(format_args!("fstat()"))?;
                    Attributes::of_node(top.as_fd(), OsStr::new("."), &stat)?
                }
                None => Attributes::implied(),
            };
            self.directories.insert(Vec::new(), Record { attributes, ..Record::default() });
        }
        let directories = std::mem::take(&mut self.directories);
        for (path, record) in directories.iter().rev() {
            let fd = open_real(&self.root.fd, path)?;
            if record.opaque && self.below_root()?.walk(components(path))?.is_some_and(|below| below.top().is_some()) {
                fsetxattr(&fd, self.target.policy.opaque, b"y").call(format_args!(
                    "fsetxattr({:?}, {:?})",
                    OsStr::from_bytes(path),
                    self.target.policy.opaque
                ))?;
            }
            let stat = fstat(&fd).call(format_args!("fstat()"))?;
            record.attributes.put(fd.as_fd(), &stat, self.target.policy, path, &mut self.done.notes)?;
        }
        Ok(())
    }
}

/// Takes away what is under a name; `inside` is that name with its slash.
fn take_below<V>(map: &mut BTreeMap<Vec<u8>, V>, inside: &[u8]) {
    let names = map.range(inside.to_vec()..).map(|(name, _)| name.clone());
    let names: Vec<Vec<u8>> = names.take_while(|name| name.starts_with(inside)).collect();
    for name in names {
        map.remove(&name);
    }
}

enum Step {
    Into(Rc<Dir>),
    Link(Vec<u8>),
    Nowhere,
}

/// Copies what is at `name` in `from` (no directory) to `to_name` in `to`, with all its attributes.
pub fn copy_node(
    from: &OwnedFd,
    name: &OsStr,
    stat: &FileStat,
    to: &OwnedFd,
    to_name: &OsStr,
    policy: Policy,
) -> Result<()> {
    let attributes = Attributes::of_node(from.as_fd(), name, stat)?;
    let mut notes = Notes::default();
    let path = to_name.as_bytes();
    if is(stat, SFlag::S_IFREG) {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut source =
            openat(from, name, flags, Mode::empty()).map(File::from).call(format_args!("openat({name:?})"))?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let mut file =
            openat(to, to_name, flags, mode).map(File::from).call(format_args!("openat({to_name:?}, O_CREAT)"))?;
        std::io::copy(&mut source, &mut file).call(format_args!("copy({name:?})"))?;
        let stat = fstat(&file).call(format_args!("fstat()"))?;
        return attributes.put(file.as_fd(), &stat, policy, path, &mut notes);
    }
    let is_link = is(stat, SFlag::S_IFLNK);
    if is_link {
        let target = link_text(from, name)?;
        symlinkat(OsStr::from_bytes(&target), to, to_name).call(format_args!("symlinkat({to_name:?})"))?;
    } else {
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        mknodat(to, to_name, kind, Mode::S_IRUSR | Mode::S_IWUSR, stat.st_rdev)
            .call(format_args!("mknodat({to_name:?})"))?;
    }
    attributes.put_at(to, to_name, is_link, policy, path, &mut notes)
}

/// The directory at `path` below `root`: real names only, however long in all.
fn open_real(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd> {
    let mut here = open_dir_at(root, OsStr::new("."))?;
    let mut rest = path;
    while !rest.is_empty() {
        // As many whole components as one call takes (PATH_MAX).
        let cut = if rest.len() < 4000 {
            rest.len()
        } else {
            rest[..4000].iter().rposition(|&b| b == b'/').unwrap_or(rest.len())
        };
        let (piece, after) = rest.split_at(cut);
        let piece = Path::new(OsStr::from_bytes(piece));
        let flags = (OFlag::O_RDONLY | OFlag::O_DIRECTORY).bits();
        here = openat2(&here, piece, flags, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
            .call(format_args!("openat2({piece:?})"))?;
        rest = after.strip_prefix(b"/").unwrap_or(after);
    }
    Ok(here)
}

fn make_dir(dir: &OwnedFd, name: &[u8]) -> Result<()> {
    let name = OsStr::from_bytes(name);
    mkdirat(dir, name, Mode::S_IRWXU).call(format_args!("mkdirat({name:?}, 0700)"))
}

/// What a symbolic link says.
pub fn link_text(dir: &OwnedFd, name: &OsStr) -> Result<Vec<u8>> {
    Ok(readlinkat(dir, name).call(format_args!("readlinkat({name:?})"))?.as_bytes().to_vec())
}

/// A hash of the pieces of a file.
#[derive(Default)]
struct Hasher(Option<Box<Xxh3>>);

impl Hasher {
    fn update(&mut self, bytes: &[u8]) {
        self.0.get_or_insert_default().update(bytes);
    }

    fn finish(self) -> Option<u128> {
        self.0.map(|hasher| hasher.digest128())
    }
}

fn copy(archive: &mut Archive<impl BufRead>, file: &mut File, hasher: &mut Hasher, mut length: u64) -> Result<()> {
    while length > 0 {
        let piece = archive.data()?;
        let piece = &piece[..piece.len().min(usize::try_from(length).unwrap_or(usize::MAX))];
        if piece.is_empty() {
            return Err(Error::new("the archive is cut short"));
        }
        file.write_all(piece).call(format_args!("write()"))?;
        hasher.update(piece);
        let read = piece.len();
        archive.consume(read);
        length -= read as u64;
    }
    Ok(())
}

fn sparse(archive: &mut Archive<impl BufRead>, file: &mut File, segments: &[(u64, u64)], size: u64) -> Result<()> {
    let mut unused = Hasher::default();
    for &(offset, length) in segments {
        file.seek(SeekFrom::Start(offset)).call(format_args!("lseek()"))?;
        copy(archive, file, &mut unused, length)?;
    }
    file.set_len(size).call(format_args!("ftruncate({size})"))
}

/// A member's name without what says nothing: `/`, `.`, doubled slashes. Error: `..`.
fn clean(path: &[u8]) -> Result<Vec<u8>> {
    let mut clean = Vec::with_capacity(path.len());
    for component in components(path) {
        if component == b".." {
            return Err(Error::new("\"..\" in a name, which would leave the image"));
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(component);
    }
    Ok(clean)
}

/// The components of a name; `.` and empty ones left out.
pub fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/').filter(|component| !matches!(*component, b"" | b"."))
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}
