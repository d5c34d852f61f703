//! What is asked for, after the arguments are read. No effects.

use crate::api::Api;
use crate::mount::Mount;
use crate::names::Names;
use std::ffi::OsString;
use std::path::PathBuf;

/// All that was asked for.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub action: Action,
    /// Where the store is (`--store`).
    pub store: Option<PathBuf>,
    /// What to run then; empty for nothing.
    pub command: Vec<OsString>,
}

/// What to do.
#[derive(Debug)]
pub enum Action {
    /// Mount.
    Mount(Place),
    /// Take mounts away.
    Undo(Place),
    /// Say whether it can be done.
    Check {
        /// What would be mounted; the root may be missing.
        place: Place,
        /// As JSON.
        json: bool,
    },
    /// Make a named volume.
    Create(String),
    /// Tell of the named volumes.
    List {
        /// As JSON.
        json: bool,
    },
    /// Remove a named volume.
    Remove(String),
}

/// A root and what is mounted in it.
#[derive(Debug)]
pub struct Place {
    /// The root; else the document's.
    pub root: Option<PathBuf>,
    /// The document.
    pub from: Option<PathBuf>,
    /// The API file systems.
    pub api: Option<Api>,
    /// Whether device nodes can be used only where a device was asked for.
    pub nodev: bool,
    /// Files for the resolution of names.
    pub names: Names,
    /// Mounts, in the order of mounting.
    pub mounts: Vec<Mount>,
    /// Paths to hide.
    pub masked: Vec<PathBuf>,
    /// Paths to make read-only.
    pub read_only: Vec<PathBuf>,
}
