//! `-v`: each kernel operation before it is done, on stderr, in the form of the error.

use crate::error::{Cause, Error, Result, escape};
use std::fmt;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

static VERBOSE: AtomicBool = AtomicBool::new(false);
static TOOL: Mutex<&str> = Mutex::new("ctr");

/// Names the tool that speaks from here on; `verbose` is its `-v`. `CTR_VERBOSE=1` turns it on for a whole chain.
pub fn speak_as(tool: &'static str) {
    let chain = std::env::var_os("CTR_VERBOSE").is_some_and(|value| !value.is_empty() && value != "0");
    Voice(tool, chain).resume();
}

/// Who speaks, and whether with `-v`.
#[derive(Clone, Copy, Debug)]
pub struct Voice(&'static str, bool);

/// The tool that speaks now.
pub fn voice() -> Voice {
    Voice(*TOOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner()), is_verbose())
}

impl Voice {
    /// Lets it speak again.
    pub fn resume(self) {
        *TOOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = self.0;
        VERBOSE.store(self.1, Relaxed);
    }
}

/// Turns `-v` on for the tool that speaks now.
pub fn verbose() {
    VERBOSE.store(true, Relaxed);
}

/// Whether `-v` is on.
pub fn is_verbose() -> bool {
    VERBOSE.load(Relaxed)
}

/// Does `call`, telling of it first under `-v`; its failure names it. `what` is `name(arguments)`.
pub fn op<T, C: Into<Cause>>(what: fmt::Arguments<'_>, call: impl FnOnce() -> std::result::Result<T, C>) -> Result<T> {
    note(what);
    call().map_err(|cause| Error::call(what, cause))
}

/// One line on stderr under `-v`.
pub fn note(what: fmt::Arguments<'_>) {
    if is_verbose() {
        say(what);
    }
}

/// One line on stderr, always: `TOOL: what`. Written at once, so that lines of several processes do not mix.
pub fn say(what: fmt::Arguments<'_>) {
    let Voice(tool, _) = voice();
    let line = format!("{tool}: {}\n", escape(&what.to_string()));
    let _ = std::io::stderr().write_all(line.as_bytes());
}
