//! Arguments to request, without effects. The names and meanings are those of `docker run`.

use chain::args::Stop;
use chain::{Error, Result};
use clap::{CommandFactory, Parser, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

const EXAMPLE: &str = "\
Examples:
  ctr-run alpine.tar.gz cat /etc/os-release
  ctr-run --memory 64M --cpus 0.5 -v data:/data alpine.tar.gz sh
  ctr-run --print alpine.tar.gz sh        the same as a shell script, tool by tool
  ctr-run rootfs:/ sh                     a copy-on-write look at this system";

/// Run an image as a container: the chain of the five other tools in one command
#[derive(Parser, Debug)]
#[command(name = "ctr-run", version, after_help = EXAMPLE, disable_help_flag = true)]
#[command(
    override_usage = "ctr-run [OPTIONS] IMAGE [COMMAND [ARG]...]\n       ctr-run [OPTIONS] --from DOC|--bundle DIR [COMMAND [ARG]...]\n       ctr-run --list | --remove NAME"
)]
pub struct Cli {
    /// Print help
    #[arg(long, action = clap::ArgAction::HelpShort)]
    help: Option<bool>,

    /// Print each kernel operation before it is done
    #[arg(long)]
    pub verbose: bool,

    /// An archive, a layout, `-` (stdin), a reference in the store, or rootfs:DIR; then what to run instead of its default
    // Options end here, as with `docker run`: what looks like one after it is COMMAND's.
    #[arg(trailing_var_arg = true, value_name = "IMAGE")]
    words: Vec<OsString>,

    /// Read an OCI configuration instead of an image (`-` is stdin)
    #[arg(long, value_name = "DOC", help_heading = "What to run")]
    pub from: Option<PathBuf>,

    /// Run an OCI bundle that another program made
    #[arg(long, value_name = "DIR", conflicts_with = "from", help_heading = "What to run")]
    pub bundle: Option<PathBuf>,

    /// The image of that name, where an archive holds several
    #[arg(long = "ref", value_name = "NAME", help_heading = "What to run")]
    pub reference: Option<String>,

    /// Platform, where an image has several
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", help_heading = "What to run")]
    pub platform: Option<String>,

    /// Program to run instead of the image's entrypoint
    #[arg(long, value_name = "PROGRAM", help_heading = "What to run")]
    pub entrypoint: Option<String>,

    /// Set a variable, or take it over from the caller
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = "What to run")]
    pub env: Vec<OsString>,

    /// Read variables from a file
    #[arg(long, value_name = "FILE", help_heading = "What to run")]
    pub env_file: Vec<PathBuf>,

    /// Working directory inside
    #[arg(short, long, value_name = "DIR", help_heading = "What to run")]
    pub workdir: Option<OsString>,

    /// User inside, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]", help_heading = "What to run")]
    pub user: Option<String>,

    /// A supplementary group, by name or number
    #[arg(long, value_name = "GROUP", help_heading = "What to run")]
    pub group_add: Vec<String>,

    /// A terminal of its own
    #[arg(short, long, help_heading = "What to run")]
    pub tty: bool,

    /// No terminal, whatever the document says: what `--tty=false` means
    #[arg(long, hide = true)]
    pub no_tty: bool,

    /// Keep stdin open (always so)
    #[arg(short, long, help_heading = "What to run")]
    pub interactive: bool,

    /// A small init as process 1, that forwards signals and reaps
    #[arg(long, help_heading = "What to run")]
    pub init: bool,

    /// Name of the container; its writable layer stays for the next run
    #[arg(long, value_name = "NAME", help_heading = "The container")]
    pub name: Option<String>,

    /// Remove the writable layer afterwards (always so without --name)
    #[arg(long, help_heading = "The container")]
    pub rm: bool,

    /// Make the root read-only
    #[arg(long, help_heading = "The container")]
    pub read_only: bool,

    /// Host name inside
    #[arg(short = 'h', long, value_name = "NAME", help_heading = "The container")]
    pub hostname: Option<String>,

    /// A label, for the document's annotations
    #[arg(short, long, value_name = "KEY=VALUE", help_heading = "The container")]
    pub label: Vec<String>,

    /// Write the container's name to a file that must not exist
    #[arg(long, value_name = "FILE", help_heading = "The container")]
    pub cidfile: Option<PathBuf>,

    /// Write the process number (outside) of the container's first process to a file
    #[arg(long, value_name = "FILE", help_heading = "The container")]
    pub pidfile: Option<PathBuf>,

    /// Where layers, volumes and containers are
    #[arg(long, value_name = "DIR", help_heading = "The container")]
    pub store: Option<PathBuf>,

    /// Memory limit: 64M, 1G
    #[arg(short, long, value_name = "SIZE", help_heading = "Limits")]
    pub memory: Option<String>,

    /// Memory and swap together; -1 is no limit
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, help_heading = "Limits")]
    pub memory_swap: Option<String>,

    /// CPUs' worth of time: 0.5, 2
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub cpus: Option<String>,

    /// Share of CPU time relative to others (1024 is the usual)
    #[arg(short, long, value_name = "N", help_heading = "Limits")]
    pub cpu_shares: Option<u64>,

    /// CPUs to run on: 0-2,4
    #[arg(long, value_name = "LIST", help_heading = "Limits")]
    pub cpuset_cpus: Option<String>,

    /// How many processes; -1 is no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true, help_heading = "Limits")]
    pub pids_limit: Option<String>,

    /// Read rate from a device, bytes a second
    #[arg(long, value_name = "DEVICE:RATE", help_heading = "Limits")]
    pub device_read_bps: Vec<OsString>,

    /// Write rate to a device, bytes a second
    #[arg(long, value_name = "DEVICE:RATE", help_heading = "Limits")]
    pub device_write_bps: Vec<OsString>,

    /// Reads from a device a second
    #[arg(long, value_name = "DEVICE:RATE", help_heading = "Limits")]
    pub device_read_iops: Vec<OsString>,

    /// Writes to a device a second
    #[arg(long, value_name = "DEVICE:RATE", help_heading = "Limits")]
    pub device_write_iops: Vec<OsString>,

    /// Resource limit of processes
    #[arg(long, value_name = "NAME=SOFT[:HARD]", help_heading = "Limits")]
    pub ulimit: Vec<String>,

    /// A host directory or file, or a named volume
    #[arg(short, long, value_name = "SRC:DST[:OPTIONS]", allow_hyphen_values = true, help_heading = "Files")]
    pub volume: Vec<OsString>,

    /// A mount, in words
    #[arg(long, value_name = "type=…,src=…,dst=…", help_heading = "Files")]
    pub mount: Vec<OsString>,

    /// A directory in memory
    #[arg(long, value_name = "DST[:OPTIONS]", help_heading = "Files")]
    pub tmpfs: Vec<OsString>,

    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE", help_heading = "Files")]
    pub shm_size: Option<String>,

    /// A device of the host
    #[arg(long, value_name = "PATH[:DST]", help_heading = "Files")]
    pub device: Vec<OsString>,

    /// Network: new, none, host, pasta, or the path of one
    #[arg(long, visible_alias = "network", value_name = "NETWORK", default_value = "new", help_heading = "Isolation")]
    pub net: String,

    /// A port that leads inside, [ADDRESS:]HOST:INSIDE[/udp] (needs --net pasta)
    #[arg(short, long, value_name = "HOST:INSIDE", help_heading = "Isolation")]
    pub publish: Vec<String>,

    /// A line for /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS", help_heading = "Isolation")]
    pub add_host: Vec<String>,

    /// A name server
    #[arg(long, value_name = "ADDRESS", help_heading = "Isolation")]
    pub dns: Vec<String>,

    /// Process namespace: host, or a path
    #[arg(long, value_name = "host|PATH", help_heading = "Isolation")]
    pub pid: Option<String>,

    /// IPC namespace: host, or a path
    #[arg(long, value_name = "host|PATH", help_heading = "Isolation")]
    pub ipc: Option<String>,

    /// UTS namespace: host, or a path
    #[arg(long, value_name = "host|PATH", help_heading = "Isolation")]
    pub uts: Option<String>,

    /// User namespace
    #[arg(long, value_name = "host|auto|PATH", help_heading = "Isolation")]
    pub userns: Option<String>,

    /// A kernel setting inside
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Isolation")]
    pub sysctl: Vec<String>,

    /// Give a capability
    #[arg(long, value_name = "CAP", help_heading = "Security")]
    pub cap_add: Vec<String>,

    /// Take a capability away
    #[arg(long, value_name = "CAP", help_heading = "Security")]
    pub cap_drop: Vec<String>,

    /// All capabilities and devices, /sys writable, no filter, no masks, new privileges
    #[arg(long, help_heading = "Security")]
    pub privileged: bool,

    /// seccomp=default|unconfined|FILE, no-new-privileges[=false], systempaths=unconfined
    #[arg(long, value_name = "OPTION", help_heading = "Security")]
    pub security_opt: Vec<String>,

    /// Signal that asks COMMAND to end
    #[arg(long, value_name = "SIGNAL", help_heading = "Ending")]
    pub stop_signal: Option<String>,

    /// Seconds after the stop signal until it is killed
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true, help_heading = "Ending")]
    pub stop_timeout: Option<i64>,

    /// Print the chain instead: as a shell script, or as an OCI configuration
    #[arg(long, value_name = "sh|oci", num_args = 0..=1, require_equals = true, default_missing_value = "sh", hide_possible_values = true, help_heading = "Instead of running")]
    pub print: Option<Print>,

    /// List the named containers
    #[arg(long, conflicts_with_all = ["from", "bundle", "print"], help_heading = "Instead of running")]
    pub list: bool,

    /// Remove a container's writable layer
    #[arg(long, value_name = "NAME", conflicts_with_all = ["from", "bundle", "print", "list"], help_heading = "Instead of running")]
    pub remove: Option<String>,
}

/// How `--print` shows the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Print {
    /// A shell script.
    Sh,
    /// An OCI runtime configuration.
    Oci,
}

/// What to run.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// An archive, layout, reference, or `-`.
    Image(OsString),
    /// A directory as the one read-only layer.
    Rootfs(PathBuf),
    /// A document.
    Document(PathBuf),
    /// A bundle's directory.
    Bundle(PathBuf),
}

/// The grammar.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the arguments. Errors say what to use instead of an option that `docker run` has and this does not.
pub fn parse(args: &[OsString]) -> Result<Cli, Stop> {
    match chain::args::parse::<Cli>(args) {
        Err(Stop::Fail(error)) => match without_value(&error.to_string(), args) {
            Some(args) => parse(&args),
            None => Err(Stop::Fail(crate::elsewhere::explain(error))),
        },
        other => other,
    }
}

/// As with `docker run`, flags may have a value: the arguments without the one that `error` is about, if it is true or false.
/// A false flag is one that is not there, but for a document's terminal.
fn without_value(error: &str, args: &[OsString]) -> Option<Vec<OsString>> {
    let (value, rest) = error.strip_prefix("unexpected value '")?.split_once("' for '")?;
    // The flag may have a short form beside it.
    let flag = rest.split_once('\'')?.0.split(", ").last()?;
    let instead = match value.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" => Some(flag),
        "false" | "f" | "0" => (flag == "--tty").then_some("--no-tty"),
        _ => return None,
    };
    let word = OsString::from(format!("{flag}={value}"));
    let at = args.iter().position(|arg| *arg == word)?;
    let instead = instead.map(OsString::from);
    Some(args[..at].iter().cloned().chain(instead).chain(args[at + 1..].iter().cloned()).collect())
}

impl Cli {
    /// What to run, and COMMAND (empty: the image's own). Errors: nothing to run, a `rootfs:` without a directory.
    pub fn source(&self) -> Result<(Source, Vec<OsString>)> {
        // Without IMAGE, the first word is COMMAND's.
        let (source, command) = match (&self.from, &self.bundle, self.words.split_first()) {
            (Some(document), ..) => (Source::Document(document.clone()), self.words.as_slice()),
            (_, Some(bundle), _) => (Source::Bundle(bundle.clone()), self.words.as_slice()),
            (_, _, Some((image, command))) => (source_of(image)?, command),
            _ => return Err(Error::usage("no IMAGE").hint("--help lists what it can be")),
        };
        // A "--" before COMMAND is a matter of taste.
        let command = match command.split_first() {
            Some((first, rest)) if first == "--" => rest,
            _ => command,
        };
        Ok((source, command.to_vec()))
    }
}

fn source_of(image: &OsString) -> Result<Source> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    match image.as_bytes().strip_prefix(b"rootfs:") {
        Some(b"") => Err(Error::usage("IMAGE \"rootfs:\" names no directory").hint("write rootfs:DIR")),
        Some(dir) => Ok(Source::Rootfs(OsString::from_vec(dir.to_vec()).into())),
        None => Ok(Source::Image(image.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Cli, Stop> {
        parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn options_end_at_the_image() {
        let cli = parsed(&["--memory", "64M", "img.tar", "sh", "--memory", "-c", "x"]).unwrap();
        let (source, command) = cli.source().unwrap();
        assert_eq!(source, Source::Image("img.tar".into()));
        assert_eq!(command, ["sh", "--memory", "-c", "x"].map(OsString::from));
        assert_eq!(cli.memory.as_deref(), Some("64M"));
    }

    #[test]
    fn dashes_around_the_image_are_allowed() {
        let cli = parsed(&["img.tar", "--", "sh"]).unwrap();
        assert_eq!(cli.source().unwrap().1, ["sh"].map(OsString::from));
        let cli = parsed(&["--", "img.tar", "-x"]).unwrap();
        assert_eq!(cli.source().unwrap(), (Source::Image("img.tar".into()), vec!["-x".into()]));
        let cli = parsed(&["--from", "-", "sh", "-c", "x"]).unwrap();
        assert_eq!(
            cli.source().unwrap(),
            (Source::Document("-".into()), ["sh", "-c", "x"].map(OsString::from).to_vec())
        );
    }

    #[test]
    fn values_of_options_are_not_the_image() {
        for (words, image) in [
            (&["-e", "A=1", "-itw", "/x", "img", "-x", "--tty"][..], "img"),
            (&["--print", "img", "-c"], "img"),
            (&["--print=oci", "--net", "host", "-m64M", "img"], "img"),
            (&["-v", "--odd", "-"], "-"),
        ] {
            let cli = parsed(words).unwrap();
            assert_eq!(cli.source().unwrap().0, Source::Image(image.into()), "{words:?}");
        }
        assert!(!parsed(&["img", "-t"]).unwrap().tty);
    }

    #[test]
    fn flags_may_have_values() {
        let cli = parsed(&["--rm=true", "--init=0", "--tty=false", "-e", "A=--rm=x", "img", "--rm=y"]).unwrap();
        assert!(cli.rm && !cli.init && !cli.tty && cli.no_tty);
        assert_eq!(cli.env, ["A=--rm=x"]);
        assert_eq!(cli.source().unwrap().1, ["--rm=y"].map(OsString::from));
        let Err(Stop::Fail(error)) = parsed(&["--rm=maybe", "img"]) else { panic!() };
        assert!(error.to_string().contains("unexpected value 'maybe'"), "{error}");
    }

    #[test]
    fn what_is_not_supported_says_what_to_use() {
        let Err(Stop::Fail(error)) = parsed(&["--restart=always", "img"]) else { panic!() };
        assert!(error.to_string().contains("--restart is not supported; a service manager"), "{error}");
        let Err(Stop::Fail(error)) = parsed(&["--nonsense", "img"]) else { panic!() };
        assert!(error.to_string().contains("--nonsense"), "{error}");
    }

    #[test]
    fn rootfs_is_a_directory() {
        let cli = parsed(&["rootfs:/", "sh"]).unwrap();
        assert_eq!(cli.source().unwrap().0, Source::Rootfs("/".into()));
        assert!(parsed(&["rootfs:"]).unwrap().source().is_err());
        assert!(parsed(&[]).unwrap().source().is_err());
    }
}
