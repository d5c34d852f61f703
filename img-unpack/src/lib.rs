//! `img-unpack`: an image, from an archive or layout, into a store of layers.
//!
//! * [`source`]: the image's contents by name, [`manifest`]: what of them is meant;
//! * [`archive`]: tar streams as members, [`compression`], [`digest`];
//! * [`apply`]: a layer's members as files, on top of [`merged`] layers below, with their attributes ([`node`]);
//! * [`unpack`]: layers into the store; [`record`], [`listing`]: what the store knows of them;
//! * [`config`]: the document.
#![forbid(unsafe_code)]

pub mod apply;
pub mod archive;
mod cli;
pub mod compression;
pub mod config;
pub mod digest;
pub mod flat;
pub mod listing;
pub mod manifest;
pub mod merged;
pub mod node;
pub mod progress;
pub mod record;
pub mod source;
pub mod store;
pub mod unpack;

pub use manifest::Choice;
pub use record::stored;

use chain::args::Stop;
use chain::document::path_text;
use chain::link::apart;
use chain::store::Store;
use chain::trace::say;
use chain::userns::{self, Maps};
use chain::{Chain, Error, Outcome, Result, ResultExt};
use cli::{Action, Request, Unpack};
use manifest::{Image, Platform};
use merged::Merged;
use nix::sched::CloneFlags;
use node::{Owners, Policy, open_dir};
use serde_json::{Value, json};
use source::Source;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use store::Used;
use unpack::Unpacking;

/// The tool.
pub const TOOL: chain::Tool = chain::Tool { name: "img-unpack", command: cli::command, run };

fn run(chain: &mut Chain, args: &[OsString]) -> Result<Outcome, Stop> {
    let request = cli::request(args)?;
    if !request.command.is_empty() {
        // Threads, memory and a user namespace are not for COMMAND.
        let own = &args[..args.len() - request.command.len() - 1];
        let nowhere = File::options().write(true).open("/dev/null").call(format_args!("open(\"/dev/null\")"))?;
        apart::start(&TOOL, own, nowhere)?.wait()?;
        return Ok(chain.exec(&request.command)?);
    }
    let store = Store::at(request.store.as_deref())?;
    Ok(match &request.action {
        Action::Unpack(unpack) if unpack.check => check(&store, unpack)?,
        Action::Unpack(unpack) => self::unpack(&store, unpack, request.quiet)?,
        Action::List(None, as_json) => Outcome::Text(store::list(&store, *as_json)?),
        Action::List(Some(image), as_json) => list(&store, image, *as_json)?,
        Action::Verify(unpack) => verify(&store, unpack.as_ref(), &request)?,
        Action::Remove(name) => told(store::remove(&store, name, enter_user_namespace)?, request.quiet),
        Action::Prune => told(store::prune(&store, enter_user_namespace)?, request.quiet),
    })
}

fn told(lines: Vec<String>, quiet: bool) -> Outcome {
    for line in lines.iter().filter(|_| !quiet) {
        say(format_args!("{line}"));
    }
    Outcome::Done
}

/// An ordinary user needs a user namespace to give files to others and to hide names; root needs nothing.
fn enter_user_namespace() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    userns::enter(CloneFlags::CLONE_NEWUSER, &Maps::auto()?)
}

/// What this process can do, once it is where it works.
fn policy() -> Result<Policy> {
    let initial = userns::is_initial();
    let owners = if initial || mapped_ids() > 1 { Owners::Exact } else { Owners::Single };
    let opaque = if initial { "trusted.overlay.opaque" } else { "user.overlay.opaque" };
    Ok(Policy { owners, opaque })
}

fn mapped_ids() -> u64 {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum()
}

fn unpack(store: &Store, request: &Unpack, quiet: bool) -> Result<Outcome> {
    if request.flat.is_none()
        && let Some(document) = stored(store, &request.image, &request.choice)?
    {
        return Ok(Outcome::Document(document));
    }
    if request.image != "-" && !Path::new(&request.image).exists() && request.flat.is_none() {
        // The error of the file, and what the store has to say.
        let name = &request.image;
        return Err(chain::trace::op(format_args!("open({name:?})"), || std::fs::File::open(name))
            .err()
            .unwrap_or_else(|| Error::new("gone"))
            .hint("no file, and no image of that name is in the store"));
    }
    store.make(store.path())?;
    let used = Used::unsettled(store)?;
    enter_user_namespace()?;
    let policy = policy()?;
    let (source, image, file) = open(store, request)?;
    let (of_image, own) = (&image.platform, Platform::own());
    if !quiet && request.choice.platform.is_none() && !of_image.architecture.is_empty() && !of_image.serves(&own) {
        say(format_args!("the image is for {of_image}, and this machine is {own}"));
    }
    let unpacked = bring(store, (&source, &image), policy, request.limit, &used, quiet)?;
    let tree = tree(store, &image, policy)?;
    let mut document = config::document(&image.config, &tree)?;
    if let Some(dir) = &request.flat {
        flat::write(&tree, dir, policy)?;
        let dir = std::path::absolute(dir).map_err(|error| Error::call(format_args!("getcwd()"), error))?;
        document.set("root/path", path_text(&dir)?);
        return Ok(Outcome::Document(document));
    }
    let file = file.as_ref().map(|(path, seen)| (path.as_path(), seen.clone()));
    record::add(store, &image, &document, file, &request.choice)?;
    document.set("layers", layer_paths(store, &image)?);
    drop(unpacked);
    Ok(Outcome::Document(document))
}

type Opened = (Source, Image, Option<(PathBuf, Value)>);

/// The source, the image in it that is meant, and the file it was, if it can be recognised later.
fn open(store: &Store, request: &Unpack) -> Result<Opened> {
    store.make(&store.staging())?;
    let path = std::path::absolute(&request.image).map_err(|error| Error::call(format_args!("getcwd()"), error))?;
    let seen = if request.image == "-" { None } else { record::identity(&path) };
    let source = Source::open(&request.image, &store.staging(), request.limit)?;
    let place = |error: Error| error.within(format_args!("image {:?}", source.name()));
    let image = manifest::choose(&source, &request.choice).map_err(place)?;
    Ok((source, image, seen.map(|seen| (path, seen))))
}

/// All layers of `image` into the store, and what is to be said about that.
fn bring(
    store: &Store,
    (source, image): (&Source, &Image),
    policy: Policy,
    limit: Option<u64>,
    used: &Used,
    quiet: bool,
) -> Result<unpack::Unpacked> {
    let total = image.layers.iter().map(|layer| layer.blob.as_ref().map_or(0, |(_, size)| *size)).sum();
    let progress = progress::Progress::new(total, quiet);
    let job = Unpacking { store, source, image, policy, limit, used, progress: &progress };
    let unpacked = unpack::layers(&job).map_err(|error| error.within(format_args!("image {:?}", source.name())))?;
    if unpacked.made > 0 && !quiet {
        for line in &unpacked.notes {
            say(format_args!("{line}"));
        }
        if !userns::is_initial() {
            let how = match policy.owners {
                Owners::Exact => "owners are exact, by subordinate ids".to_string(),
                Owners::Single => format!(
                    "all files belong to this user, who has no subordinate ids; the image's owners are recorded in {}",
                    node::OVERRIDE
                ),
            };
            say(format_args!("{how}"));
        }
    }
    Ok(unpacked)
}

fn tree(store: &Store, image: &Image, policy: Policy) -> Result<Merged> {
    let open = |path: &Value| open_dir(Path::new(path.as_str().unwrap_or_default()));
    let layers = layer_paths(store, image)?.iter().rev().map(open).collect::<Result<_>>()?;
    Ok(Merged::root(layers, policy.opaque))
}

fn layer_paths(store: &Store, image: &Image) -> Result<Vec<Value>> {
    image
        .layers
        .iter()
        .map(|layer| path_text(record::layer_path(store, &layer.chain_id.to_string())).map(Value::from))
        .collect()
}

/// Everything but the unpacking: the image is read and chosen, ids are mapped, a whiteout is tried.
fn check(store: &Store, request: &Unpack) -> Result<Outcome> {
    store.make(store.path())?;
    enter_user_namespace()?;
    let policy = policy()?;
    let (_, image, _) = open(store, request)?;
    let probe = store.staging().join(format!("layer-check-{}", std::process::id()));
    store.make(&probe)?;
    let tried = open_dir(&probe).and_then(|dir| {
        merged::make_whiteout(&dir, std::ffi::OsStr::new("probe"))?;
        chain::sys::mount::fsetxattr(&dir, policy.opaque, b"y")
            .map_err(|errno| Error::call(format_args!("fsetxattr({probe:?}, {:?})", policy.opaque), errno))
    });
    let removed = chain::remove::remove_tree(&probe);
    tried.map_err(|error| {
        error.hint("the store's file system cannot hold overlayfs layers; name another place with --store")
    })?;
    removed?;
    let present =
        image.layers.iter().filter(|layer| record::layer_path(store, &layer.chain_id.to_string()).is_dir()).count();
    let owners = if policy.owners == Owners::Exact { "exact" } else { "recorded only" };
    Ok(Outcome::Text(format!(
        "{} for {}: {} layers, {present} of them stored; owners {owners}; store {}\n",
        image.names.first().map_or(image.id.to_string(), Clone::clone),
        image.platform,
        image.layers.len(),
        store.path().display()
    )))
}

/// The images of a source.
fn list(store: &Store, image: &std::ffi::OsStr, as_json: bool) -> Result<Outcome> {
    store.make(&store.staging())?;
    let source = Source::open(image, &store.staging(), None)?;
    let place = |error: Error| error.within(format_args!("image {:?}", source.name()));
    let mut rows = Vec::new();
    for candidate in manifest::candidates(&source).map_err(place)? {
        let loaded = candidate.load(&source);
        let size: u64 = loaded
            .iter()
            .flat_map(|image| &image.layers)
            .map(|layer| match &layer.blob {
                Some((_, size)) => *size,
                None => source.content(&layer.content).ok().flatten().map_or(0, |content| content.size()),
            })
            .sum();
        let platform = loaded.as_ref().ok().map(|image| image.platform.to_string());
        let platform = platform.or_else(|| candidate.platform.as_ref().map(|platform| platform.to_string()));
        let digest = candidate.digest.as_ref().map(|digest| digest.to_string());
        let digest = digest.or_else(|| loaded.as_ref().ok().map(|image| image.id.to_string()));
        rows.push(json!({"names": candidate.names, "digest": digest, "platform": platform, "size": size}));
    }
    if as_json {
        return Ok(Outcome::Text(format!("{:#}\n", Value::from(rows))));
    }
    let mut table = vec![["REFERENCE", "DIGEST", "PLATFORM", "SIZE"].map(str::to_string)];
    for row in &rows {
        let names: Vec<&str> = row["names"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let text = |name: &str| row[name].as_str().unwrap_or("-").to_string();
        let size = chain::size::display(row["size"].as_u64().unwrap_or(0));
        table.push([
            if names.is_empty() { "-".into() } else { names.join(",") },
            text("digest"),
            text("platform"),
            size,
        ]);
    }
    Ok(Outcome::Text(store::columns(&table)))
}

/// Compares layers with their lists; with an image, damaged ones are removed and unpacked again.
fn verify(store: &Store, unpack: Option<&Unpack>, request: &Request) -> Result<Outcome> {
    // Only an archive mends, which is when layers are removed.
    let used = Used::among(unpack.iter().flat_map(|_| store::layer_dirs(store)))?;
    enter_user_namespace()?;
    // An archive mends; the name of a stored image only says which layers.
    let (archive, only) = match unpack {
        None => (None, None),
        Some(unpack) if unpack.image == "-" || Path::new(&unpack.image).exists() => {
            let (source, image, _) = open(store, unpack)?;
            let path = |layer: &manifest::Layer| record::layer_path(store, &layer.chain_id.to_string());
            let only = image.layers.iter().map(path).collect();
            (Some((source, image, unpack.limit)), Some(only))
        }
        Some(unpack) => {
            let document = stored(store, &unpack.image, &unpack.choice)?;
            let none = || Error::new(format_args!("no file and no stored image {:?}", unpack.image));
            (None, Some(document.ok_or_else(none)?.layers()?))
        }
    };
    let damaged = store::damaged(store, only.as_deref())?;
    for (path, differences) in damaged.iter().filter(|_| !request.quiet) {
        let shown = differences.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
        let name = path.file_name().unwrap_or_default();
        say(format_args!("layer {name:?}: {} names differ: {shown}", differences.len()));
    }
    let Some((source, image, limit)) = archive else {
        return match damaged.len() {
            0 => Ok(Outcome::Done),
            count => Err(Error::new(format_args!("{count} damaged layers"))
                .hint("give the archive to mend them: img-unpack --verify ARCHIVE")),
        };
    };
    for (path, _) in &damaged {
        store::discard(path, &used)?;
    }
    bring(store, (&source, &image), policy()?, limit, &used, request.quiet)?;
    Ok(Outcome::Done)
}
