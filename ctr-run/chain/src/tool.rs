//! The one `main`.

use crate::args::Stop;
use crate::document::Document;
use crate::error::{Error, FAILED};
use crate::link::Chain;
use crate::trace;
use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

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

/// Runs `tool` on this process's arguments. The tools in `links` run in this same process when they come next in the
/// chain; all other commands are executed.
pub fn main(tool: &'static Tool, links: &'static [&'static Tool]) -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    ExitCode::from(run(tool, links, &args))
}

/// Runs `tool` with `args` and prints what it gives; the exit status.
pub fn run(tool: &Tool, links: &'static [&'static Tool], args: &[OsString]) -> u8 {
    let mut chain = Chain::new(links);
    let status = match chain.enter(tool, args) {
        Ok(outcome) => finish(outcome),
        Err(Stop::Show(text)) => print(&text),
        Err(Stop::Fail(error)) => report(&error),
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
