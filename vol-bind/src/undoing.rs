//! What was done so far, to be taken back if a later step fails: never half of what was asked for.

use chain::root::Root;
use chain::sys::mount::{RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, openat2};
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Mounts, and mount points that were made for them, oldest first.
#[derive(Default)]
pub struct Undoing {
    steps: Vec<Step>,
}

enum Step {
    Mounted(OwnedFd),
    Made(PathBuf),
}

impl Undoing {
    /// `mount` is in its place now.
    pub fn mounted(&mut self, mount: OwnedFd) {
        self.steps.push(Step::Mounted(mount));
    }

    /// `path` (relative to the root) was made.
    pub fn made(&mut self, path: PathBuf) {
        self.steps.push(Step::Made(path));
    }

    /// Takes all back, last first. What cannot be is left: there is an error to report already.
    pub fn undo(self, root: &Root) {
        for step in self.steps.into_iter().rev() {
            match step {
                // The descriptor keeps the mount busy, so it is detached.
                Step::Mounted(mount) => {
                    let _ = umount2(format!("/proc/self/fd/{}", mount.as_raw_fd()).as_str(), MntFlags::MNT_DETACH);
                }
                Step::Made(path) => remove_if_empty(root, &path),
            }
        }
    }
}

/// Removes an empty directory or file that was made as a mount point. Links that someone put there meanwhile are not
/// followed.
fn remove_if_empty(root: &Root, path: &Path) {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let Ok(dir) = openat2(root.fd(), parent, flags.bits(), 0, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS) else { return };
    let empty = chain::root::stat_at(&dir, name).ok().flatten().is_some_and(|stat| stat.st_size == 0);
    if unlinkat(&dir, name, UnlinkatFlags::RemoveDir).is_err() && empty {
        let _ = unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir);
    }
}
