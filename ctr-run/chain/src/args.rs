//! Arguments: what all tools parse alike.

use crate::error::{Error, Result};
use crate::trace;
use clap::Parser;
use std::ffi::OsString;

/// Options that every tool has, with the same meaning.
#[derive(clap::Args, Debug, Default)]
pub struct Common {
    /// Print each kernel operation before it is done
    #[arg(short = 'v', long)]
    pub verbose: bool,
}

/// Parses `args` (without the tool's name) as `P`. `--help` and `--version` are the error [`Stop::Show`].
pub fn parse<P: Parser>(args: &[OsString]) -> Result<P, Stop> {
    // The grammar is built once: of what a tool does before COMMAND runs, this takes the most time and memory.
    let mut grammar = P::command();
    let words = std::iter::once(OsString::from(grammar.get_name())).chain(args.iter().cloned()).collect::<Vec<_>>();
    let parsed = grammar.try_get_matches_from_mut(words).and_then(|mut matches| P::from_arg_matches_mut(&mut matches));
    parsed.map_err(|error| {
        let error = error.format(&mut grammar);
        use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
        match error.kind() {
            DisplayHelp | DisplayVersion => Stop::Show(error.render().to_string()),
            _ => Stop::Fail(Error::usage(one_line(&error.render().to_string())).hint("--help lists the options")),
        }
    })
}

/// Why there is no request to carry out.
#[derive(Debug)]
pub enum Stop {
    /// Text that was asked for (`--help`, `--version`).
    Show(String),
    /// Arguments that cannot be right.
    Fail(Error),
}

impl Stop {
    /// As an error, where nobody is there to be shown anything.
    pub fn into_error(self) -> Error {
        match self {
            Stop::Fail(error) => error,
            Stop::Show(text) => Error::usage(text),
        }
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Fail(error)
    }
}

impl Common {
    /// Turns on what was asked for.
    pub fn apply(&self) {
        if self.verbose {
            trace::verbose();
        }
    }
}

/// clap's first paragraph on one line, without its own frame and tips.
fn one_line(text: &str) -> String {
    let paragraph = text.split("\n\n").next().unwrap_or(text);
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    words.join(" ").trim_start_matches("error: ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Parser, Debug)]
    #[command(name = "probe", version)]
    struct Probe {
        #[arg(long)]
        root: OsString,
        #[arg(last = true)]
        command: Vec<OsString>,
    }

    #[test]
    fn errors_are_one_line_and_help_is_not_an_error() {
        let stop = parse::<Probe>(&["--nonsense".into()]).unwrap_err();
        let Stop::Fail(error) = stop else { panic!("{stop:?}") };
        assert_eq!(error.to_string(), "unexpected argument '--nonsense' found; --help lists the options");
        assert!(matches!(parse::<Probe>(&["--help".into()]), Err(Stop::Show(_))));
        let Err(Stop::Fail(error)) = parse::<Probe>(&[]) else { panic!() };
        assert!(!error.to_string().contains('\n') && error.to_string().contains("--root"), "{error}");
    }

    #[test]
    fn everything_after_the_dashes_is_opaque() {
        let probe =
            parse::<Probe>(&["--root".into(), "/".into(), "--".into(), "a\nb".into(), "--".into(), "--help".into()]);
        assert_eq!(probe.unwrap().command, ["a\nb", "--", "--help"].map(OsString::from));
    }
}
