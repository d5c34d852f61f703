//! The contract that all six tools keep, once.
//!
//! * [`error`]: what went wrong, as one line: `TOOL: CALL(ARGS): words (ERRNAME); hint`.
//! * [`trace`]: `-v`, each kernel operation in the form of the error, before it is done.
//! * [`tool`]: the one `main`: arguments in, exit status out.
//! * [`link`]: becoming the next COMMAND, and waiting for it where a tool has to stay behind.
//! * [`sys`]: the system calls that nix does not wrap; all `unsafe` code of the project is there.
//! * [`root`]: names resolved inside a root, from a held descriptor.
//! * [`document`]: what flows through pipes, an OCI runtime configuration.
//! * [`remove`]: taking a tree away, whatever is in it.
//! * [`store`]: where layers, images, containers and volumes live, and the locks on them.
//! * [`userns`]: id maps, subordinate ids and user namespaces.
//! * [`mountinfo`], [`size`]: parsers that several tools need.

pub mod args;
pub mod document;
pub mod error;
pub mod link;
pub mod mountinfo;
pub mod remove;
pub mod root;
pub mod size;
pub mod store;
pub mod sys;
pub mod tool;
pub mod trace;
pub mod userns;

pub use document::Document;
pub use error::{Error, Result, ResultExt};
pub use link::Chain;
pub use tool::{Outcome, Tool};
