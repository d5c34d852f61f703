//! `layer-mount`: a union of read-only layers and one writable layer.
//!
//! Everything is held open before anything is mounted: the layers ([`layers`]), the writable layer ([`writable`]) and the
//! mount point ([`target`]). The mount is made where no one sees it, and put in place last.
#![forbid(unsafe_code)]

mod bind;
mod changes;
mod check;
mod cli;
mod explain;
mod fuse;
mod layers;
mod overlay;
mod request;
mod target;
mod undo;
mod writable;

use chain::args::Stop;
use chain::document::path_text;
use chain::{Chain, Document, Outcome, Result, ResultExt, userns};
use layers::Layers;
use overlay::Overlay;
use request::{Action, Request, Upper};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use target::Target;
use writable::Writable;

/// The tool.
pub const TOOL: chain::Tool = chain::Tool { name: "layer-mount", command: cli::command, run };

fn run(chain: &mut Chain, args: &[OsString]) -> Result<Outcome, Stop> {
    match cli::parse(args)? {
        Action::Mount(request) => Ok(mount(chain, &request)?),
        Action::Check(request) => Ok(check::check(&request)?),
        Action::Changes(request) => Ok(changes::list(&request)?),
        Action::Undo(request) => {
            undo::undo(&request)?;
            Ok(Outcome::Done)
        }
    }
}

fn mount(chain: &mut Chain, request: &Request) -> Result<Outcome> {
    let (paths, document) = layers(request)?;
    let held = Layers::open(&paths)?;
    let at = Target::open(&request.at)?;
    // What cannot be said about the mount has to fail before it is there.
    let document = match request.command.is_empty() {
        true => Some(describe(document, &paths, request, &at)?),
        false => None,
    };
    attach(request, &held, &at)?;
    // Locks end here: from now on the mount itself says who uses what.
    drop((held, at));
    match document {
        Some(document) => Ok(Outcome::Document(document)),
        None => chain.exec(&request.command),
    }
}

fn attach(request: &Request, layers: &Layers, at: &Target) -> Result<()> {
    let Some(top) = layers.top() else { return Ok(()) };
    let initial = userns::is_initial();
    let writable = match &request.upper {
        Upper::None if layers.all().len() == 1 && !request.fuse => return bind::mount(top, at),
        Upper::None => None,
        Upper::Directory { upper, work } if request.fuse => Some(Writable::unmarked(upper, work, top, initial)?),
        Upper::Directory { upper, work } => Some(Writable::directories(upper, work, top, initial)?),
        Upper::Scratch(size) => Some(Writable::scratch(*size, top, initial)?),
    };
    if request.fuse {
        return fuse::mount(layers, writable.as_ref(), at);
    }
    Overlay { layers, writable: writable.as_ref(), volatile: request.volatile, initial }.mount(at)
}

fn layers(request: &Request) -> Result<(Vec<PathBuf>, Document)> {
    layers_of(request.from.as_deref(), &request.lower)
}

/// The layers, base first and absolute, and the document that they come from.
fn layers_of(from: Option<&Path>, lower: &[PathBuf]) -> Result<(Vec<PathBuf>, Document)> {
    let document = from.map(Document::read).transpose()?.unwrap_or_default();
    let mut paths = document.layers()?;
    for path in lower {
        paths.push(std::path::absolute(path).call(format_args!("--lower {path:?}"))?);
    }
    Ok((paths, document))
}

/// The document with what is mounted where.
fn describe(mut document: Document, paths: &[PathBuf], request: &Request, at: &Target) -> Result<Document> {
    document.set("layers", paths.iter().map(path_text).collect::<Result<Vec<_>>>()?);
    // Who wants a root that is still to come read-only (`ctr-run --read-only --print=oci`) gets it so.
    let wished = document.get("root/path").is_none() && document.flag("root/readonly")? == Some(true);
    document.set("root/path", path_text(at.real_path()?)?);
    document.set("root/readonly", wished || request.upper == Upper::None);
    Ok(document)
}
