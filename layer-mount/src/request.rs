//! What the arguments ask for.

use std::ffi::OsString;
use std::path::PathBuf;

/// What to do.
#[derive(Debug)]
pub enum Action {
    /// Mount, and become COMMAND if there is one.
    Mount(Request),
    /// Say whether that could be done.
    Check(Request),
    /// List what a writable layer changed.
    Changes(Changes),
    /// Unmount.
    Undo(Undo),
}

/// An unmount.
#[derive(Debug)]
pub struct Undo {
    /// What is mounted here.
    pub at: PathBuf,
    /// Even if it is busy; it goes when the last user does.
    pub lazy: bool,
    /// The document with the layers of the mount, to know a bind mount by.
    pub from: Option<PathBuf>,
    /// Its layers above those of the document, base first.
    pub lower: Vec<PathBuf>,
}

/// A mount.
#[derive(Debug)]
pub struct Request {
    /// The document with layers, `-` for stdin.
    pub from: Option<PathBuf>,
    /// Layers above those of the document, base first.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: Upper,
    /// Never sync the writable layer.
    pub volatile: bool,
    /// With fuse-overlayfs.
    pub fuse: bool,
    /// Where.
    pub at: PathBuf,
    /// What to become; empty for nothing.
    pub command: Vec<OsString>,
}

/// A writable layer.
#[derive(Debug, PartialEq, Eq)]
pub enum Upper {
    /// None: the mount is read-only.
    None,
    /// Directories of the caller.
    Directory {
        /// The writable layer.
        upper: PathBuf,
        /// The kernel's, on the same mount.
        work: PathBuf,
    },
    /// In memory, of at most so many bytes (`None`: half of the machine's).
    Scratch(Option<u64>),
}

/// A list of changes.
#[derive(Debug)]
pub struct Changes {
    /// The writable layer.
    pub upper: PathBuf,
    /// The document with the layers below it.
    pub from: Option<PathBuf>,
    /// Layers above those of the document, base first.
    pub lower: Vec<PathBuf>,
    /// As JSON.
    pub json: bool,
}
