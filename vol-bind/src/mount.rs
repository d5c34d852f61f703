//! What is to be mounted, as the arguments say it. No effects.

use chain::userns::Range;
use std::ffi::OsString;
use std::path::PathBuf;

/// One mount inside the root.
#[derive(Clone, Debug, PartialEq)]
pub struct Mount {
    /// What.
    pub source: Source,
    /// Where: absolute inside the root, without `.`, `..` and repeated slashes.
    pub target: PathBuf,
    /// How.
    pub options: Options,
}

/// Where what is mounted comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A file or directory of the machine.
    Path(PathBuf),
    /// A device node (or directory of nodes) of the machine.
    Device(PathBuf),
    /// A named volume of the store.
    Volume(String),
    /// A new file system of this type, with a name for its source.
    FileSystem(String, OsString),
    /// A file with this content, that nothing outside the root has.
    Content(Vec<u8>),
}

/// What to make where a host source is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    /// A directory with its parents.
    Directory,
    /// An empty file with its parent directories.
    File,
}

/// How it is mounted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Attributes to set (`MOUNT_ATTR_…`), but for read-only.
    pub set: u64,
    /// Attributes to clear.
    pub clear: u64,
    /// Read-only, if at all.
    pub read_only: ReadOnly,
    /// Only the mount at the source, without those below it.
    pub top_only: bool,
    /// `MS_PRIVATE` …, and whether for the mounts below too. `None` is the default: all private.
    pub propagation: Option<(u64, bool)>,
    /// Owners on disk (inner) as they are seen at the mount (outer).
    pub idmap: Vec<Range>,
    /// The root's content is not copied into a new volume.
    pub no_copy: bool,
    /// A missing host source is made.
    pub create: Option<Create>,
    /// Only this directory of a named volume.
    pub subpath: Option<PathBuf>,
    /// Options of a new file system itself.
    pub data: Vec<(String, Option<String>)>,
    /// The words that another runtime understands too, for the document.
    pub words: Vec<String>,
}

/// How much is read-only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadOnly {
    /// Nothing.
    #[default]
    No,
    /// The mount and all below it.
    All,
    /// The mount itself; those below it stay as they are.
    Top,
}

impl Mount {
    /// How deep the target is, for the order of mounting.
    pub fn depth(&self) -> usize {
        self.target.components().count()
    }
}
