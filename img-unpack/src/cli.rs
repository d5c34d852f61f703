//! Arguments to request, without effects.

use crate::manifest::{Choice, Platform};
use chain::args::{Common, Stop, parse};
use chain::{Error, Result};
use clap::{CommandFactory, Parser};
use std::ffi::OsString;
use std::path::PathBuf;

/// Unpack an image into the store, and print what it runs as a document.
#[derive(Parser, Debug)]
#[command(
    name = "img-unpack",
    version,
    override_usage = "img-unpack [OPTIONS] IMAGE [-- COMMAND [ARG]...]\n       img-unpack --list|--verify|--remove REF|--prune [OPTIONS]",
    after_help = "IMAGE is an archive of docker save, an OCI layout or archive, compressed or not, - for stdin,\nor the name of an image in the store.\n\nExample: docker save alpine | img-unpack - | jq .process.args"
)]
struct Cli {
    #[command(flatten)]
    common: Common,
    /// Archive, layout directory, - for stdin, or the name of a stored image
    #[arg(value_name = "IMAGE")]
    image: Option<OsString>,
    /// Where layers are kept (else $CTR_STORE, else /var/lib/ctr or ~/.local/share/ctr)
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// The image of this name or digest, of several
    #[arg(long = "ref", value_name = "NAME", help_heading = "Which image")]
    reference: Option<String>,
    /// The image for this platform (else the machine's own)
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", help_heading = "Which image")]
    platform: Option<String>,
    /// Fail if the image has more plain bytes than this
    #[arg(long, value_name = "SIZE", help_heading = "How")]
    max_size: Option<String>,
    /// Write one merged tree to the empty directory DIR instead
    #[arg(long, value_name = "DIR", help_heading = "How", conflicts_with_all = ["list", "verify", "remove", "prune"])]
    flat: Option<PathBuf>,
    /// Say whether this could be done here, without doing it
    #[arg(long, help_heading = "How", conflicts_with_all = ["list", "verify", "remove", "prune", "flat"])]
    check: bool,
    /// Show the images of IMAGE, or of the store
    #[arg(long, help_heading = "The store", conflicts_with_all = ["verify", "remove", "prune"])]
    list: bool,
    /// With --list: as JSON
    #[arg(long, requires = "list", help_heading = "The store")]
    json: bool,
    /// Compare the stored layers (of IMAGE) with what was unpacked; with IMAGE, unpack damaged ones again
    #[arg(long, help_heading = "The store", conflicts_with_all = ["remove", "prune"])]
    verify: bool,
    /// Forget the image REF, and remove layers that no other has
    #[arg(long, value_name = "REF", help_heading = "The store", conflicts_with_all = ["prune", "image"])]
    remove: Option<String>,
    /// Remove layers that no image has
    #[arg(long, help_heading = "The store", conflicts_with = "image")]
    prune: bool,
    /// What to run then
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// `--store`.
    pub store: Option<PathBuf>,
    /// Only errors are told.
    pub quiet: bool,
    /// What to do.
    pub action: Action,
    /// What to run then.
    pub command: Vec<OsString>,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Unpack an image, or check whether that can be done.
    Unpack(Unpack),
    /// Show the images of a source (`None`: of the store).
    List(Option<OsString>, bool),
    /// Compare what is stored with what was unpacked, and mend it from an image.
    Verify(Option<Unpack>),
    /// Forget an image.
    Remove(String),
    /// Remove layers that no image has.
    Prune,
}

/// An image to unpack.
#[derive(Debug, PartialEq, Eq)]
pub struct Unpack {
    /// Archive, directory, `-`, or a name.
    pub image: OsString,
    /// Which of several.
    pub choice: Choice,
    /// The most plain bytes.
    pub limit: Option<u64>,
    /// Where one merged tree goes.
    pub flat: Option<PathBuf>,
    /// Only say whether it can be done.
    pub check: bool,
}

/// The grammar.
pub fn command() -> clap::Command {
    Cli::command()
}

/// The request that `args` make. Errors: unknown options, no IMAGE where one is needed, no size, no platform.
pub fn request(args: &[OsString]) -> Result<Request, Stop> {
    let cli = parse::<Cli>(args)?;
    cli.common.apply();
    let choice =
        Choice { reference: cli.reference, platform: cli.platform.as_deref().map(Platform::parse).transpose()? };
    let limit = cli.max_size.as_deref().map(chain::size::parse).transpose()?;
    let unpack = cli.image.clone().map(|image| Unpack { image, choice, limit, flat: cli.flat, check: cli.check });
    let action = if cli.list {
        Action::List(cli.image, cli.json)
    } else if cli.verify {
        Action::Verify(unpack)
    } else if let Some(name) = cli.remove {
        Action::Remove(name)
    } else if cli.prune {
        Action::Prune
    } else {
        let none = || {
            Error::usage("no IMAGE")
                .hint("name an archive, a layout directory, or - for stdin; --help lists the options")
        };
        Action::Unpack(unpack.ok_or_else(none)?)
    };
    Ok(Request { store: cli.store, quiet: cli.quiet, action, command: cli.command })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(args: &[&str]) -> Result<Request, Stop> {
        request(&args.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn an_image_and_which() {
        let request = of(&["-q", "--ref", "a:1", "--platform", "linux/arm64", "--max-size", "1M", "x.tar"]).unwrap();
        let Action::Unpack(unpack) = request.action else { panic!() };
        assert_eq!((unpack.image, unpack.limit, request.quiet), ("x.tar".into(), Some(1 << 20), true));
        assert_eq!(unpack.choice.platform.unwrap().to_string(), "linux/arm64");
    }

    #[test]
    fn one_action_at_a_time() {
        for args in [
            &[][..],
            &["--list", "--prune"],
            &["--remove", "a", "b"],
            &["--json", "a"],
            &["--max-size", "x", "a"],
            &["--platform", "x", "a"],
            &["--prune", "a"],
            &["--flat", "d", "--verify", "a"],
        ] {
            assert!(of(args).is_err(), "{args:?}");
        }
        assert_eq!(of(&["--list"]).unwrap().action, Action::List(None, false));
        assert_eq!(of(&["--verify"]).unwrap().action, Action::Verify(None));
    }

    #[test]
    fn the_grammar_is_sound() {
        command().debug_assert();
    }
}
