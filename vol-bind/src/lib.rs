//! `vol-bind`: whatever is mounted inside a root: host directories, named volumes, new file systems, /proc, /sys and /dev,
//! and what is hidden there.
//!
//! * `cli`, [`spec`], [`options`]: arguments to a [`request`], which holds [`mount`]s.
//! * [`source`]: each mount's source as a detached mount; [`volume`] and [`copy`]: named volumes; [`filesystem`]: new file
//!   systems; [`idmap`], [`names`].
//! * [`place`]: the order in which they are put in their places inside the root; [`api`], [`devices`], [`mask`].
//! * [`undoing`]: taking back what a failed call did; [`undo`]: `--undo`.
//! * [`oci`]: the document; [`check`]: `--check`.
#![forbid(unsafe_code)]

mod api;
mod check;
mod cli;
mod copy;
mod devices;
mod filesystem;
mod idmap;
mod mask;
mod mount;
mod names;
mod oci;
mod options;
mod place;
mod request;
mod source;
mod spec;
mod undo;
mod undoing;
mod volume;

pub use api::{MASKED, READ_ONLY};

use chain::args::Stop;
use chain::root::Root;
use chain::store::Store;
use chain::{Chain, Document, Outcome, Result, size};
use request::{Action, Place, Request};
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use volume::Volumes;

/// The tool.
pub const TOOL: chain::Tool = chain::Tool { name: "vol-bind", command: cli::command, run };

fn run(chain: &mut Chain, args: &[OsString]) -> Result<Outcome, Stop> {
    let cli = chain::args::parse::<cli::Cli>(args)?;
    cli.common.apply();
    let Request { action, store, command } = cli.request()?;
    let document = match action {
        Action::Mount(place) => mount(place, store.as_deref(), command.is_empty())?,
        Action::Undo(place) => {
            undo(place, store.as_deref())?;
            None
        }
        Action::Check { mut place, json } => {
            if let Some(document) = place.from.as_deref().map(Document::read).transpose()? {
                place.root = Some(place::root_of(&place, Some(&document))?);
            }
            let report = check::Report::make(&place)?;
            report.satisfies()?;
            return Ok(Outcome::Text(if json { report.to_json() } else { report.to_text() }));
        }
        Action::Create(name) => {
            Volumes::of(&Store::at(store.as_deref())?).create(&name)?;
            None
        }
        Action::Remove(name) => {
            Volumes::of(&Store::at(store.as_deref())?).remove(&name)?;
            None
        }
        Action::List { json } => return Ok(Outcome::Text(list(store.as_deref(), json)?)),
    };
    if !command.is_empty() {
        return Ok(chain.exec(&command)?);
    }
    Ok(document.map_or(Outcome::Done, Outcome::Document))
}

/// Mounts, and gives the document that says so, if it is wanted.
fn mount(place: Place, store: Option<&Path>, documented: bool) -> Result<Option<Document>> {
    let mut document = place.from.as_deref().map(Document::read).transpose()?;
    let path = place::root_of(&place, document.as_ref())?;
    // Before anything is done: what cannot be written down afterwards.
    if documented {
        let document = document.get_or_insert_with(Document::new);
        document.set("root/path", chain::document::path_text(&path)?);
        oci::record(document, &place, store)?;
    }
    place::mount(&Root::open(&path)?, &place, store)?;
    Ok(document.filter(|_| documented))
}

/// What these arguments mount and hide, as a document: `mounts`, `linux.maskedPaths`, `linux.readonlyPaths`. Nothing is
/// mounted. Errors: arguments that cannot be right; files that only this program makes (`--dns` and the like); paths that
/// are not UTF-8.
pub fn documented(args: &[OsString]) -> Result<Document> {
    let cli = chain::args::parse::<cli::Cli>(args).map_err(Stop::into_error)?;
    let mut document = Document::new();
    if let Request { action: Action::Mount(place), store, .. } = cli.request()? {
        oci::record(&mut document, &place, store.as_deref())?;
    }
    Ok(document)
}

/// Every device of the machine that `--all-devices` brings along, as `linux.devices` of a document.
pub fn all_devices() -> Result<Vec<Value>> {
    devices::documented()
}

fn undo(place: Place, store: Option<&Path>) -> Result<()> {
    let document = place.from.as_deref().map(Document::read).transpose()?;
    let root = Root::open(&place::root_of(&place, document.as_ref())?)?;
    let mut mounts = document.as_ref().map(oci::mounts).transpose()?.unwrap_or_default();
    if let Some(api) = place.api {
        let mut made = Document::new();
        made.set("mounts", api::documented(api, &[]));
        mounts.extend(oci::mounts(&made)?);
    }
    mounts.extend(place.mounts);
    mounts.extend(place.names.mounts()?);
    if let Some(document) = &document {
        for paths in ["linux/readonlyPaths", "linux/maskedPaths"] {
            let paths: Vec<PathBuf> = document.texts(paths)?.into_iter().map(PathBuf::from).collect();
            mounts.extend(undo::hidden(&paths));
        }
    }
    mounts.extend(undo::hidden(&place.read_only));
    mounts.extend(undo::hidden(&place.masked));
    undo::unmount(&root, &mounts, store)
}

fn list(store: Option<&Path>, json: bool) -> Result<String> {
    let entries = Volumes::of(&Store::at(store)?).list()?;
    if json {
        let entries: Vec<Value> = entries.iter().map(volume::Entry::to_json).collect();
        return Ok(format!("{}\n", Value::from(entries)));
    }
    let mut text = format!("{:<24} {:>10}  USED BY\n", "NAME", "SIZE");
    for entry in entries {
        let users: Vec<String> = entry.users.iter().map(|(pid, name)| format!("{pid} ({name})")).collect();
        let users = chain::error::escape(&users.join(", "));
        text += format!("{:<24} {:>10}  {users}", entry.name, size::display(entry.bytes)).trim_end();
        text.push('\n');
    }
    Ok(text)
}
