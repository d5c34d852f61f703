//! The one `main`.

use crate::args::Stop;
use crate::document::Document;
use crate::error::{Error, FAILED};
use crate::link::Chain;
use crate::sys::process;
use crate::trace;
use std::ffi::{OsString, c_char};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStringExt;

/// A tool: a name, its arguments' grammar, and what it does with them.
pub struct Tool {
    /// The program's name, as in messages and in a chain.
    pub name: &'static str,
    /// The grammar, for help, manuals and completions.
    pub command: fn() -> clap::Command,
    /// Arguments (without the name) to effects. Returns only where no COMMAND took this process over.
    pub run: fn(&mut Chain, &[OsString]) -> std::result::Result<Outcome, Stop>,
}

/// How a tool ended that did not become COMMAND.
#[derive(Debug)]
pub enum Outcome {
    /// The effect stays; the document goes to stdout.
    Document(Document),
    /// The effect stays; this text goes to stdout.
    Text(String),
    /// Nothing to print.
    Done,
    /// COMMAND ran in a child and ended with this status (128+N: of signal N).
    Status(u8),
}

/// The one `main`: runs the tool on this process's arguments. The tools in the links, if given, run in this same process when
/// they come next in the chain; all other commands are executed.
///
/// The C library calls it, not Rust's runtime: that one prepares for threads and deep stacks, with twenty system calls that a
/// program which mostly becomes another one has no use for.
#[macro_export]
macro_rules! main {
    ($tool:expr) => {
        $crate::main!($tool, &[]);
    };
    ($tool:expr, $links:expr) => {
        #[unsafe(no_mangle)]
        extern "C" fn main(_: i32, arguments: *const *const std::ffi::c_char) -> i32 {
            // SAFETY: the C library's start code calls this once, with the arguments that the kernel gave.
            unsafe { $crate::tool::start(&$tool, $links, arguments) }
        }
    };
}

/// What [`main!`](crate::main!) does: prepares this process, runs, gives the exit status.
///
/// # Safety
///
/// `arguments` is what a `main` of the C language gets. There is no other thread.
pub unsafe fn start(tool: &Tool, links: &'static [&'static Tool], arguments: *const *const c_char) -> i32 {
    process::begin();
    // SAFETY: as this function asks.
    let arguments = unsafe { process::strings(arguments) };
    let words: Vec<OsString> =
        arguments.into_iter().skip(1).map(|word| OsString::from_vec(word.into_bytes())).collect();
    run(tool, links, &words).into()
}

/// Runs `tool` with `args` and prints what it gives; the exit status.
pub fn run(tool: &Tool, links: &'static [&'static Tool], args: &[OsString]) -> u8 {
    let mut chain = Chain::new(links);
    let status = match chain.enter(tool, args) {
        Ok(outcome) => finish(outcome),
        Err(Stop::Show(text)) => print(&text),
        Err(Stop::Fail(error)) => {
            chain.tell_not_started();
            report(&error)
        }
    };
    // A link that fails after others asked for cleaning up must not leave their work behind.
    chain.unwind();
    status
}

/// Prints `error` as the contract's one line, unless a process of ours has said it already; gives its exit status.
pub fn report(error: &Error) -> u8 {
    if !error.is_said() {
        trace::say(format_args!("{error}"));
    }
    error.exit_status()
}

fn finish(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Document(document) => print(&document.to_text()),
        Outcome::Text(text) => print(&text),
        Outcome::Done => 0,
        Outcome::Status(status) => status,
    }
}

/// Whole to stdout, or an error. A reader that went away has read enough.
fn print(text: &str) -> u8 {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => 0,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => 0,
        Err(error) => {
            report(&Error::call(format_args!("write(stdout)"), error));
            FAILED
        }
    }
}
