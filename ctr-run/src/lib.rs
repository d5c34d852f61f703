//! `ctr-run`: the chain of the five other tools in one command.
//!
//! Flags and an image make a document, the document a [`plan`], and the plan is carried out as one chain. The links run in
//! this process (see [`chain::link`]); `--print` shows them as they would be run one by one.
#![forbid(unsafe_code)]

mod capabilities;
mod cli;
mod container;
mod devices;
mod elsewhere;
mod limits;
mod mapping;
mod network;
mod oci;
mod place;
mod plan;
mod print;
mod refuse;
mod rootfs;
mod source;
mod volumes;

use chain::args::Stop;
use chain::store::Store;
use chain::{Chain, Outcome, Result, ResultExt, Tool, trace, userns};
use cli::{Cli, Print, Source};
use container::{Container, Root, Seccomp};
use mapping::Mapping;
use print::Directories;
use serde_json::Value;
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

/// The tool.
pub const TOOL: Tool = Tool { name: "ctr-run", command: cli::command, run };

/// The tools that run in `ctr-run`'s own process when they come next in its chain.
pub const LINKS: [&Tool; 4] = [&cg_limit::TOOL, &ns_enter::TOOL, &layer_mount::TOOL, &vol_bind::TOOL];

fn run(chain: &mut Chain, args: &[OsString]) -> Result<Outcome, Stop> {
    let cli = cli::parse(args)?;
    if cli.verbose {
        trace::verbose();
    }
    let store = Store::at(cli.store.as_deref())?;
    if cli.list {
        return Ok(list(&store));
    }
    if let Some(name) = &cli.remove {
        place::remove(&store, name)?;
        return Ok(Outcome::Done);
    }
    Ok(start(chain, &cli, &store)?)
}

fn start(chain: &mut Chain, cli: &Cli, store: &Store) -> Result<Outcome> {
    let (source, command) = cli.source()?;
    let name = match &cli.name {
        Some(name) => name.clone(),
        None => place::random_name()?,
    };
    let document = source::document(&source, cli, store)?;
    let mut container = Container::new(document, name, nix::unistd::geteuid().is_root())?;
    if container.document.get("linux/seccomp").is_some() {
        container.seccomp = match source::file(&source)? {
            Some(path) => Seccomp::File(path.into()),
            None => Seccomp::Given(container.document.get("linux/seccomp").map(Value::to_string).unwrap_or_default()),
        };
    }
    container.keep = cli.name.is_some() && !cli.rm;
    if container.hostname.is_none() && cli.hostname.is_none() {
        // No longer than the kernel takes (sethostname(2)).
        container.hostname = Some(container.name.chars().take(64).collect());
    }
    container.apply(cli, &command)?;
    if let (Source::Rootfs(dir), true) = (&source, container.mapping.is_some() || !userns::is_initial()) {
        let dir = rootfs::directory(dir)?;
        let mounts = rootfs::mounts_below(&dir)?;
        let shifted = matches!(container.mapping, Some(Mapping::Shifted(_)));
        if !shifted && (!mounts.is_empty() || dir == Path::new("/")) {
            let parts = rootfs::parts(&dir, &mounts)?;
            container.root = Root::Parts(dir, parts);
        }
    }
    match cli.print {
        Some(Print::Sh) => Ok(Outcome::Text(script(cli, &container, store))),
        Some(Print::Oci) => oci::document(&container, store.path()).map(Outcome::Document),
        None => execute(chain, cli, container, store),
    }
}

/// Carries the plan out.
fn execute(chain: &mut Chain, cli: &Cli, container: Container, store: &Store) -> Result<Outcome> {
    let layers = match &container.root {
        Root::Layers(layers) => layers.clone(),
        Root::Parts(dir, _) => vec![dir.clone()],
        Root::Directory(_) => Vec::new(),
    };
    let mut place = plan::Place { dir: store.containers().join(&container.name) };
    if let Some(skeleton) = plan::skeleton(&container) {
        place::sweep(store);
        let held = place::take(store, &container.name, container.keep, &layers, &skeleton)?;
        place = held.place.clone();
        if cli.name.is_some() {
            held.note_owner();
        }
        let keep = container.keep;
        // Kept or not, the lock is held until the container has ended.
        chain.after(move |status| {
            // A new one that never started has nothing to keep.
            let keep = keep && (held.was_kept || status.is_some());
            if !keep && let Err(error) = held.remove() {
                chain::tool::report(&error);
            }
        });
    }
    note(chain, cli, &container.name)?;
    let command = plan::command(&plan::links(&container, &place, store.path()), &container.args);
    drop(container);
    chain.exec(&command)
}

/// Writes the container's name where it was asked for. A container that never starts leaves neither that nor its process
/// number. Error: the file is there already.
fn note(chain: &mut Chain, cli: &Cli, name: &str) -> Result<()> {
    if let Some(file) = cli.cidfile.clone() {
        std::fs::File::create_new(&file)
            .and_then(|mut opened| opened.write_all(name.as_bytes()))
            .call(format_args!("open({file:?}, O_CREAT|O_EXCL)"))?;
        chain.after(move |status| {
            if status.is_none() {
                let _ = std::fs::remove_file(&file);
            }
        });
    }
    if let Some(file) = cli.pidfile.clone() {
        chain.after(move |status| {
            let number = std::fs::read_to_string(&file).unwrap_or_default();
            let gone = !number.is_empty() && !Path::new("/proc").join(number.trim()).exists();
            if status.is_none() && gone {
                let _ = std::fs::remove_file(&file);
            }
        });
    }
    Ok(())
}

fn script(cli: &Cli, container: &Container, store: &Store) -> String {
    let place = plan::Place { dir: store.containers().join(&container.name) };
    let directories = match plan::skeleton(container) {
        None => Directories::None,
        Some(skeleton) if container.keep => Directories::Named(skeleton),
        Some(skeleton) => Directories::Own { store: store.path(), mapped: !userns::is_real_root(), skeleton },
    };
    let note = cli.cidfile.as_deref().map(|file| (file, container.name.as_str()));
    print::script(&plan::links(container, &place, store.path()), &container.args, &place, &directories, note)
}

fn list(store: &Store) -> Outcome {
    let mut text = String::new();
    for kept in place::kept(store) {
        let state = kept.pid.map_or_else(|| "stopped".to_string(), |pid| format!("running (process {pid})"));
        text.push_str(&format!("{:<24} {state}\n", kept.name));
    }
    Outcome::Text(text)
}
