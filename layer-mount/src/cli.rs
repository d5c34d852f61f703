//! Arguments to request, without effects.

use crate::request::{Action, Changes, Request, Undo, Upper};
use chain::{Error, Result};
use clap::{CommandFactory, Parser};
use std::ffi::OsString;
use std::path::PathBuf;

/// The grammar.
pub fn command() -> clap::Command {
    Cli::command()
}

const LAYERS: &str = "Layers";
const WRITABLE: &str = "Writable layer (without one, the mount is read-only)";
const HOW: &str = "How";
const OTHER: &str = "Instead of mounting";

/// A union of read-only layers and one writable layer
#[derive(Parser, Debug)]
#[command(
    name = "layer-mount",
    version,
    override_usage = "layer-mount [OPTIONS] AT [-- COMMAND [ARG]...]\n       layer-mount --undo [--lazy] [--from DOC] [--lower DIR]... AT\n       \
                      layer-mount --changes UPPER [--from DOC] [--lower DIR]... [--json]",
    after_help = "Example: layer-mount --lower base --lower app --scratch root -- ls root"
)]
pub struct Cli {
    /// Take the layers of this document (- is stdin)
    #[arg(long, help_heading = LAYERS, value_name = "DOC")]
    from: Option<PathBuf>,
    /// A read-only layer, above those before it
    #[arg(long, help_heading = LAYERS, value_name = "DIR")]
    lower: Vec<PathBuf>,

    /// The writable layer
    #[arg(long, help_heading = WRITABLE, value_name = "DIR", requires = "work", conflicts_with_all = ["scratch", "read_only"])]
    upper: Option<PathBuf>,
    /// An empty directory beside it, for the kernel
    #[arg(long, help_heading = WRITABLE, value_name = "DIR", requires = "upper")]
    work: Option<PathBuf>,
    /// A writable layer in memory, that vanishes with the mount
    #[arg(long, help_heading = WRITABLE, value_name = "SIZE", num_args = 0..=1, require_equals = true)]
    scratch: Option<Option<String>>,
    /// No writable layer (default)
    #[arg(long, help_heading = WRITABLE, conflicts_with = "scratch")]
    read_only: bool,

    /// Never sync the writable layer: faster, and lost if the machine stops
    #[arg(long, help_heading = HOW)]
    volatile: bool,
    /// Use fuse-overlayfs instead of the kernel's overlay
    #[arg(long, help_heading = HOW, conflicts_with = "volatile")]
    fuse: bool,

    /// Say whether this can be done, and if not, why
    #[arg(long, help_heading = OTHER, conflicts_with_all = ["undo", "command"])]
    check: bool,
    /// Unmount what is at AT; the writable layer stays
    #[arg(long, help_heading = OTHER, conflicts_with = "command")]
    undo: bool,
    /// With --undo: do not wait for those who use it
    #[arg(long, help_heading = OTHER, requires = "undo")]
    lazy: bool,
    /// List what this writable layer changed
    #[arg(long, help_heading = OTHER, value_name = "UPPER",
        conflicts_with_all = ["at", "undo", "check", "command", "upper", "scratch", "read_only", "volatile", "fuse"])]
    changes: Option<PathBuf>,
    /// With --changes: as JSON
    #[arg(long, help_heading = OTHER)]
    json: bool,

    #[command(flatten)]
    common: chain::args::Common,
    /// Where to mount: a directory
    #[arg(value_name = "AT", required_unless_present = "changes")]
    at: Option<PathBuf>,
    /// Become this command
    #[arg(last = true, hide = true)]
    command: Vec<OsString>,
}

/// Parses `args`. Errors: what cannot be right.
pub fn parse(args: &[OsString]) -> Result<Action, chain::args::Stop> {
    let cli = chain::args::parse::<Cli>(args)?;
    cli.common.apply();
    Ok(cli.action()?)
}

impl Cli {
    fn action(self) -> Result<Action> {
        if let Some(upper) = self.changes {
            return Ok(Action::Changes(Changes { upper, from: self.from, lower: self.lower, json: self.json }));
        }
        // (clap does not require what the others exclude.)
        if self.json {
            return Err(Error::usage("--json without --changes"));
        }
        let at = self.at.ok_or_else(|| Error::usage("no AT"))?;
        if self.undo {
            return Ok(Action::Undo(Undo { at, lazy: self.lazy, from: self.from, lower: self.lower }));
        }
        let upper = match (self.upper, self.work, self.scratch) {
            (Some(upper), Some(work), _) => Upper::Directory { upper, work },
            (_, _, Some(size)) => Upper::Scratch(size.as_deref().map(chain::size::parse).transpose()?),
            _ => Upper::None,
        };
        if self.volatile && upper == Upper::None {
            return Err(
                Error::usage("--volatile without a writable layer").hint("add --upper and --work, or --scratch")
            );
        }
        if self.from.is_none() && self.lower.is_empty() {
            return Err(Error::usage("no layers").hint("name them with --lower, base first, or with --from"));
        }
        let request = Request {
            from: self.from,
            lower: self.lower,
            upper,
            volatile: self.volatile,
            fuse: self.fuse,
            at,
            command: self.command,
        };
        Ok(if self.check { Action::Check(request) } else { Action::Mount(request) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(words: &[&str]) -> Result<Action, String> {
        let args: Vec<OsString> = words.iter().map(OsString::from).collect();
        parse(&args).map_err(|stop| match stop {
            chain::args::Stop::Fail(error) => error.to_string(),
            chain::args::Stop::Show(text) => text,
        })
    }

    fn request(words: &[&str]) -> Request {
        match action(words) {
            Ok(Action::Mount(request)) => request,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    #[test]
    fn each_kind_of_writable_layer() {
        assert_eq!(request(&["--lower", "a", "at"]).upper, Upper::None);
        assert_eq!(request(&["--lower", "a", "--read-only", "at"]).upper, Upper::None);
        assert_eq!(request(&["--lower", "a", "--scratch", "at"]).upper, Upper::Scratch(None));
        assert_eq!(request(&["--lower", "a", "--scratch=1M", "at"]).upper, Upper::Scratch(Some(1 << 20)));
        let upper = Upper::Directory { upper: "u".into(), work: "w".into() };
        assert_eq!(request(&["--lower=a", "--lower=b", "--upper=u", "--work=w", "at"]).upper, upper);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (words, want) in [
            (&["at"][..], "no layers"),
            (&["--lower", "a"], "<AT>"),
            (&["--lower", "a", "--upper", "u", "at"], "--work"),
            (&["--lower", "a", "--work", "w", "at"], "--upper"),
            (&["--lower", "a", "--upper", "u", "--work", "w", "--scratch", "at"], "--scratch"),
            (&["--lower", "a", "--read-only", "--scratch", "at"], "--scratch"),
            (&["--lower", "a", "--scratch=64X", "at"], "64X"),
            (&["--lower", "a", "--volatile", "at"], "--volatile without"),
            (&["--lower", "a", "--lazy", "at"], "--undo"),
            (&["--undo", "at", "--", "true"], "--undo"),
            (&["--changes", "u", "at"], "--changes"),
            (&["--lower", "a", "--json", "at"], "--changes"),
        ] {
            let error = action(words).unwrap_err();
            assert!(error.contains(want) && !error.contains('\n'), "{words:?}: {error}");
        }
    }

    #[test]
    fn undo_takes_the_words_of_the_mount() {
        let words = ["--undo", "--lower", "a", "--scratch", "at"];
        assert!(matches!(action(&words), Ok(Action::Undo(Undo { lazy: false, .. }))));
        assert!(matches!(action(&["--undo", "--lazy", "at"]), Ok(Action::Undo(Undo { lazy: true, .. }))));
    }

    #[test]
    fn command_is_opaque() {
        assert_eq!(request(&["--lower", "a", "at", "--", "--help", "x"]).command, ["--help", "x"].map(OsString::from));
    }
}
