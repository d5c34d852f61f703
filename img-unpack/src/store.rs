//! What is done to the store as a whole: showing, verifying, removing.

use crate::listing;
use crate::manifest::familiar;
use crate::record;
use chain::mountinfo::overlays_using;
use chain::remove::remove_tree;
use chain::size::display;
use chain::store::{Lock, Store};
use chain::trace::op;
use chain::{Error, Result, ResultExt};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Layers that mounts use, which hold no lock.
#[derive(Debug, Default)]
pub struct Used(HashMap<PathBuf, String>);

impl Used {
    /// Those of `paths` that the mounts of all processes that can be seen use. From inside a new user namespace those of
    /// other processes cannot be seen, so this is to be asked before one is entered.
    pub fn among(paths: impl IntoIterator<Item = PathBuf>) -> Result<Self> {
        let mut used = HashMap::new();
        for path in paths {
            let Ok(real) = path.canonicalize() else { continue };
            // The mount has the name that it was given, which may lead over links.
            let mut users = overlays_using(&real)?;
            if users.is_empty() && real != path {
                users = overlays_using(&path)?;
            }
            if let Some(user) = users.first() {
                used.insert(path, user.to_string());
            }
        }
        Ok(Used(used))
    }

    /// Those of the store's layers that may be found damaged when they are used again: written before the last boot.
    pub fn unsettled(store: &Store) -> Result<Self> {
        Used::among(layer_dirs(store).into_iter().filter(|path| record::unsettled(path)))
    }

    fn by(&self, path: &Path) -> Option<&str> {
        self.0.get(path).map(String::as_str)
    }
}

/// The layers that nobody locks, locked: who mounts one has it locked while it does, so that what the mount table says
/// of these stays true. Some can be opened only in a user namespace, from which the mount table cannot be seen.
fn hold(paths: &[PathBuf]) -> HashMap<&Path, Lock> {
    paths.iter().filter_map(|path| Some((path.as_path(), Lock::try_exclusive(path).ok()??))).collect()
}

/// All recorded images.
fn images(store: &Store) -> Result<Vec<Value>> {
    let mut images = Vec::new();
    for path in json_files(&store.images()) {
        images.extend(record::read(&path).ok().flatten().filter(|record| record["id"].is_string()));
    }
    images.sort_by_key(|image| image["names"].to_string());
    Ok(images)
}

fn json_files(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect()
}

/// The names that mean the image `id` now: a later image may have taken one over.
fn names(store: &Store, image: &Value) -> Vec<String> {
    let names = image["names"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let means = |name: &&str| {
        record::read(&record::name_path(store, name))
            .ok()
            .flatten()
            .is_some_and(|record| record["image"] == image["id"])
    };
    names.filter(means).map(str::to_string).collect()
}

fn chain(image: &Value) -> impl Iterator<Item = &str> {
    image["layers"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The images in the store with their sizes: what each has alone, and what it shares.
pub fn list(store: &Store, as_json: bool) -> Result<String> {
    let images = images(store)?;
    let mut users: BTreeMap<&str, usize> = BTreeMap::new();
    for image in &images {
        for layer in chain(image).collect::<BTreeSet<_>>() {
            *users.entry(layer).or_default() += 1;
        }
    }
    let size = |layer: &str| -> u64 {
        let path = record::layer_path(store, layer).with_added_extension("json");
        record::read(&path).ok().flatten().and_then(|record| record["size"].as_u64()).unwrap_or(0)
    };
    let mut rows = Vec::new();
    for image in &images {
        let layers: BTreeSet<&str> = chain(image).collect();
        let own: u64 = layers.iter().filter(|layer| users[*layer] == 1).map(|layer| size(layer)).sum();
        let all: u64 = layers.iter().map(|layer| size(layer)).sum();
        rows.push(json!({"names": names(store, image), "id": image["id"], "platform": image["platform"],
            "layers": chain(image).count(), "size": all, "own": own, "shared": all - own}));
    }
    if as_json {
        return Ok(format!("{:#}\n", Value::from(rows)));
    }
    let mut table = vec![["NAME", "ID", "PLATFORM", "LAYERS", "OWN", "SHARED"].map(str::to_string)];
    for row in &rows {
        let names: Vec<&str> = row["names"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        table.push([
            if names.is_empty() { "-".to_string() } else { names.join(",") },
            row["id"].as_str().unwrap_or_default().chars().take(19).collect(),
            row["platform"].as_str().unwrap_or_default().to_string(),
            row["layers"].to_string(),
            display(row["own"].as_u64().unwrap_or(0)),
            display(row["shared"].as_u64().unwrap_or(0)),
        ]);
    }
    Ok(columns(&table))
}

/// Rows as a table, escaped for a terminal.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
            line.push_str(&format!("{:width$}  ", chain::error::escape(cell)));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Compares all layers, or those of the layer paths given, with their lists: the damaged ones, and what differs in them.
pub fn damaged(store: &Store, only: Option<&[PathBuf]>) -> Result<Vec<(PathBuf, Vec<String>)>> {
    let all: Vec<PathBuf> = match only {
        Some(paths) => paths.to_vec(),
        None => layer_dirs(store),
    };
    let mut found = Vec::new();
    for path in all {
        let _lock = match Lock::shared(&path) {
            Ok(lock) => lock,
            Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => continue,
            Err(error) => return Err(error),
        };
        let differences = listing::compare(&path)?;
        if !differences.is_empty() {
            found.push((path, differences));
        }
    }
    Ok(found)
}

/// The directories of all layers.
pub fn layer_dirs(store: &Store) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = fs::read_dir(store.layers())
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    dirs.sort();
    dirs
}

/// Forgets the image called `name` (or with that ID), and removes the layers that no other has.
/// `enter` is called before anything is locked or changed, after it was seen who uses what.
///
/// Errors: no such image; a layer is in use, then nothing is changed.
pub fn remove(store: &Store, name: &str, enter: impl FnOnce() -> Result<()>) -> Result<Vec<String>> {
    let images = images(store)?;
    let by_name = record::read(&record::name_path(store, name))?.map(|record| record["image"].clone());
    let wanted = by_name.unwrap_or_else(|| name.into());
    let id = wanted.as_str().unwrap_or_default();
    let Some(image) = images.iter().find(|image| image["id"] == id) else {
        return Err(Error::new(format_args!("no image {name:?} in the store")).hint("--list shows what is there"));
    };
    let names = names(store, image);
    let by_id = name == id;
    if !by_id && names.len() > 1 {
        // Another name still means it.
        let path = record::name_path(store, name);
        fs::remove_file(&path).call(format_args!("unlink({path:?})"))?;
        return Ok(vec![format!(
            "{} is forgotten; {} still means it",
            familiar(name),
            names.iter().filter(|other| **other != familiar(name)).cloned().collect::<Vec<_>>().join(", ")
        )]);
    }
    let others: BTreeSet<&str> = images.iter().filter(|other| other["id"] != id).flatten_chain();
    let own: Vec<PathBuf> =
        chain(image).filter(|layer| !others.contains(layer)).map(|layer| record::layer_path(store, layer)).collect();
    let mut held = hold(&own);
    let used = Used::among(own.iter().cloned())?;
    enter()?;
    for path in own.iter().filter(|path| path.is_dir()) {
        if let Some(user) = used.by(path) {
            return Err(Error::new(format_args!("image {name:?} is in use: layer {path:?} is {user}"))
                .hint("end what runs there, or unmount it, first"));
        }
        if !held.contains_key(path.as_path()) && Lock::try_exclusive(path)?.is_none() {
            return Err(Error::new(format_args!("image {name:?} is in use: layer {path:?} is locked"))
                .hint("end the containers that run it first"));
        }
    }
    for name in &names {
        let _ = fs::remove_file(record::name_path(store, name));
    }
    let path = record::image_path(store, id);
    fs::remove_file(&path).call(format_args!("unlink({path:?})"))?;
    drop(others);
    let mut said = vec![format!("{name} is removed")];
    // From the top down, so that what is left is always whole chains.
    for path in own.iter().rev() {
        take(store, path, held.remove(path.as_path()), &used, &mut said)?;
    }
    Ok(said)
}

trait FlattenChain<'a> {
    fn flatten_chain(self) -> BTreeSet<&'a str>;
}

impl<'a, I: Iterator<Item = &'a Value>> FlattenChain<'a> for I {
    fn flatten_chain(self) -> BTreeSet<&'a str> {
        self.flat_map(chain).collect()
    }
}

/// Removes layers that no image has and no one uses, and what killed processes left. `enter` is as for
/// [`remove`].
pub fn prune(store: &Store, enter: impl FnOnce() -> Result<()>) -> Result<Vec<String>> {
    let images = images(store)?;
    let kept: BTreeSet<PathBuf> = images.iter().flat_map(chain).map(|layer| record::layer_path(store, layer)).collect();
    let ours = |path: &Path| path.file_name().is_some_and(|name| name.len() == 64 || name.len() == 135);
    let unneeded: Vec<PathBuf> =
        layer_dirs(store).into_iter().filter(|path| ours(path) && !kept.contains(path)).collect();
    let mut held = hold(&unneeded);
    let used = Used::among(unneeded.iter().cloned())?;
    enter()?;
    crate::unpack::sweep(store);
    let mut said = Vec::new();
    for path in &unneeded {
        take(store, path, held.remove(path.as_path()), &used, &mut said)?;
    }
    for path in json_files(&store.images().join("files")) {
        let dead = record::read(&path)
            .ok()
            .flatten()
            .is_none_or(|record| !record::image_path(store, record["image"].as_str().unwrap_or_default()).exists());
        if dead {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(said)
}

/// Removes a layer, which may be [held](hold) already, if no one uses it.
fn take(store: &Store, path: &Path, held: Option<Lock>, used: &Used, said: &mut Vec<String>) -> Result<()> {
    if !path.is_dir() {
        return Ok(());
    }
    if let Some(user) = used.by(path) {
        said.push(format!("layer {:?} is in use and stays: it is {user}", path.file_name().unwrap_or_default()));
        return Ok(());
    }
    let Some(lock) = held.map_or_else(|| Lock::try_exclusive(path), |lock| Ok(Some(lock)))? else {
        said.push(format!("layer {:?} is in use and stays", path.file_name().unwrap_or_default()));
        return Ok(());
    };
    move_away(store, path)?;
    drop(lock);
    Ok(())
}

/// Removes a damaged layer, which is locked or one of `used` if it is in use; then this is an error.
pub fn discard(path: &Path, used: &Used) -> Result<()> {
    if let Some(user) = used.by(path) {
        return Err(Error::new(format_args!("layer {path:?} is damaged and in use: it is {user}"))
            .hint("end what runs there, or unmount it, first"));
    }
    let Some(lock) = Lock::try_exclusive(path)? else {
        return Err(Error::new(format_args!("layer {path:?} is damaged and in use"))
            .hint("end the containers that run it first"));
    };
    let store = path.ancestors().nth(3).ok_or_else(|| Error::new(format_args!("{path:?} is not in a store")))?;
    move_away(&Store::at(Some(store))?, path)?;
    drop(lock);
    Ok(())
}

/// Out of its place first, at once, so that no half of it can be found there; then away.
fn move_away(store: &Store, path: &Path) -> Result<()> {
    store.make(&store.staging())?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let away = store.staging().join(format!("removed-{name}-{}", std::process::id()));
    op(format_args!("rename({path:?}, {away:?})"), || fs::rename(path, &away))?;
    for extension in ["json", "list", "boot"] {
        let _ = fs::remove_file(path.with_added_extension(extension));
    }
    remove_tree(&away)
}
