//! One merged tree instead of layers, for chroot, rsync and image building.

use crate::apply::copy_node;
use crate::merged::{Found, Merged, entries};
use crate::node::{Attributes, Notes, Policy, open_dir, open_dir_at};
use chain::{Error, Result, ResultExt};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::unistd::linkat;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Copies `tree` to `dir`, which is made if it is not there. Hard links stay, within a layer.
///
/// Errors: not empty, what the kernel says. What was written stays then, for who wants to look.
pub fn write(tree: &Merged, dir: &Path, policy: Policy) -> Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        other => other.call(format_args!("mkdir({dir:?})"))?,
    }
    let top = open_dir(dir)?;
    if !entries(&top)?.is_empty() {
        return Err(
            Error::call(format_args!("unpack({dir:?})"), Errno::ENOTEMPTY).hint("name an empty or a new directory")
        );
    }
    let Some(part) = tree.top() else { return Ok(()) };
    let stat = fstat(part.as_ref()).call(format_args!("fstat()"))?;
    let mut copy = Copy { top, policy, links: HashMap::new(), notes: Notes::default() };
    let root = open_dir_at(&copy.top, OsStr::new("."))?;
    let attributes = Attributes::of_node(part.as_fd(), OsStr::new("."), &stat)?;
    copy.directory(tree, &root, &mut Vec::new())?;
    let now = fstat(&root).call(format_args!("fstat()"))?;
    attributes.put(root.as_fd(), &now, policy, b".", &mut copy.notes)
}

struct Copy {
    top: OwnedFd,
    policy: Policy,
    /// Where a file with several names was copied to.
    links: HashMap<(u64, u64), Vec<OsString>>,
    notes: Notes,
}

impl Copy {
    fn directory(&mut self, tree: &Merged, to: &OwnedFd, path: &mut Vec<OsString>) -> Result<()> {
        if path.len() > 400 {
            return Err(Error::new("directories nested more than 400 deep; --flat does not take that"));
        }
        for name in tree.names()? {
            let place = |error: Error| error.within(format_args!("{name:?}"));
            path.push(name.clone());
            match tree.child(&name)? {
                Found::Absent => {}
                Found::Dir(inner, stat) => {
                    mkdirat(to, name.as_os_str(), Mode::S_IRWXU).call(format_args!("mkdirat({name:?})"))?;
                    let made = open_dir_at(to, &name)?;
                    self.directory(&inner, &made, path)?;
                    if let Some(part) = inner.top() {
                        let attributes = Attributes::of_node(part.as_fd(), OsStr::new("."), &stat)?;
                        let now = fstat(&made).call(format_args!("fstat()"))?;
                        let notes = &mut self.notes;
                        attributes.put(made.as_fd(), &now, self.policy, name.as_bytes(), notes).map_err(place)?;
                    }
                }
                Found::Other(part, stat) => {
                    let inode = (stat.st_dev, stat.st_ino);
                    match self.links.get(&inode) {
                        Some(earlier) => self.link(&earlier.clone(), to, &name)?,
                        None => {
                            copy_node(&part, &name, &stat, to, &name, self.policy).map_err(place)?;
                            if stat.st_nlink > 1 {
                                self.links.insert(inode, path.clone());
                            }
                        }
                    }
                }
            }
            path.pop();
        }
        Ok(())
    }

    fn link(&self, earlier: &[OsString], to: &OwnedFd, name: &OsStr) -> Result<()> {
        let Some((last, parents)) = earlier.split_last() else { return Ok(()) };
        let mut from = open_dir_at(&self.top, OsStr::new("."))?;
        for parent in parents {
            from = open_dir_at(&from, parent)?;
        }
        linkat(&from, last.as_os_str(), to, name, AtFlags::empty()).call(format_args!("linkat({last:?}, {name:?})"))
    }
}
