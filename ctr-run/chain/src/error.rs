//! What went wrong, as one line.
//!
//! There is no `From<io::Error>` and no `From<Errno>`: a bare `?` on a system call does not compile, so the call and
//! its arguments cannot be left out. Use [`ResultExt::call`], or [`crate::trace::op`] for what `-v` shows.

use nix::errno::Errno;
use std::fmt::{self, Write};
use std::io;

/// A result whose error is the contract's one line.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The tool itself failed, usage included.
pub const FAILED: u8 = 125;
/// COMMAND was found but could not be run.
pub const NOT_RUNNABLE: u8 = 126;
/// COMMAND was not found.
pub const NOT_FOUND: u8 = 127;

/// A failure: the call with its arguments (or a sentence), the cause, and what would help.
#[derive(Debug)]
pub struct Error(Box<Parts>);

#[derive(Debug)]
struct Parts {
    what: String,
    cause: Option<Cause>,
    hint: Option<String>,
    status: u8,
    said: bool,
}

/// Why a call failed: an errno where the kernel gave one, else words.
#[derive(Debug)]
pub enum Cause {
    /// The kernel's answer.
    Errno(Errno),
    /// A library's answer.
    Words(String),
}

impl From<Errno> for Cause {
    fn from(errno: Errno) -> Self {
        Cause::Errno(errno)
    }
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) => Cause::Errno(Errno::from_raw(number)),
            None => Cause::Words(error.to_string()),
        }
    }
}

impl From<serde_json::Error> for Cause {
    fn from(error: serde_json::Error) -> Self {
        Cause::Words(error.to_string())
    }
}

impl Error {
    /// A failure in words, without a system call.
    pub fn new(what: impl fmt::Display) -> Self {
        Error(Box::new(Parts { what: what.to_string(), cause: None, hint: None, status: FAILED, said: false }))
    }

    /// A failure that a child of ours has already told the user about.
    pub fn said() -> Self {
        let mut error = Error::new("a child of this process has failed");
        error.0.said = true;
        error
    }

    /// Whether the user knows already (see [`Error::said`]).
    pub fn is_said(&self) -> bool {
        self.0.said
    }

    /// A call that failed, as `name(arguments)`, and why.
    pub fn call(call: fmt::Arguments<'_>, cause: impl Into<Cause>) -> Self {
        let mut error = Error::new(call);
        error.0.cause = Some(cause.into());
        error
    }

    /// Arguments that cannot be right.
    pub fn usage(what: impl fmt::Display) -> Self {
        Error::new(what)
    }

    /// The same failure with what would help. A later hint is added to an earlier one.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.0.hint = Some(match self.0.hint.take() {
            Some(earlier) => format!("{earlier}; {hint}"),
            None => hint.to_string(),
        });
        self
    }

    /// The same failure with where it happened put before it: `where: what`.
    #[must_use]
    pub fn within(mut self, place: impl fmt::Display) -> Self {
        self.0.what = format!("{place}: {}", self.0.what);
        self
    }

    /// The same failure with another exit status (see [`NOT_RUNNABLE`], [`NOT_FOUND`]).
    #[must_use]
    pub fn status(mut self, status: u8) -> Self {
        self.0.status = status;
        self
    }

    /// The exit status that a tool ends with when it fails so.
    pub fn exit_status(&self) -> u8 {
        self.0.status
    }

    /// The kernel's answer, where a call failed.
    pub fn errno(&self) -> Option<Errno> {
        match self.0.cause {
            Some(Cause::Errno(errno)) => Some(errno),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)?;
        match &self.0.cause {
            Some(Cause::Errno(errno)) => write!(f, ": {} ({errno:?})", errno.desc())?,
            Some(Cause::Words(words)) => write!(f, ": {words}")?,
            None => {}
        }
        match &self.0.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Names the call of a failed result.
pub trait ResultExt<T> {
    /// On failure: the error that names `call`, as `name(arguments)`.
    fn call(self, call: fmt::Arguments<'_>) -> Result<T>;
}

impl<T, C: Into<Cause>> ResultExt<T> for std::result::Result<T, C> {
    fn call(self, call: fmt::Arguments<'_>) -> Result<T> {
        self.map_err(|cause| Error::call(call, cause))
    }
}

/// Text for a terminal: control characters, and what else could forge a line or hide text, are shown as escapes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let hidden =
            matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if c.is_control() || hidden {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_names_call_errno_and_hint() {
        let error = Error::call(format_args!("mount({:?}, {:?})", "/a", "/b"), Errno::ENOENT).hint("make \"/b\" first");
        assert_eq!(error.to_string(), "mount(\"/a\", \"/b\"): No such file or directory (ENOENT); make \"/b\" first");
        assert_eq!(error.exit_status(), 125);
        assert_eq!(error.errno(), Some(Errno::ENOENT));
    }

    #[test]
    fn io_errors_keep_their_errno() {
        let error = Error::call(format_args!("open()"), io::Error::from_raw_os_error(libc::EROFS));
        assert!(error.to_string().ends_with("(EROFS)"), "{error}");
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(escape("a\nb\u{1b}[31m\u{202e}é"), "a\\nb\\u{1b}[31m\\u{202e}é");
    }
}
