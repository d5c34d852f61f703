//! What the store knows: layers, images, and which name or file means which image.
//!
//! ```text
//! layers/sha256/CHAINID          the layer's directory, as overlayfs takes it
//! layers/sha256/CHAINID.json     what it is: diff ID, parent, size, owners, form of whiteouts
//! layers/sha256/CHAINID.list     all that is in it, for --verify
//! images/sha256-ID.json          an image: its names, layers and document
//! images/names/HASH.json         the image that a reference means
//! images/files/HASH.json         the image that a file was when it was unpacked
//! ```
//!
//! Every file is made beside its place and renamed into it.

use crate::digest::Digest;
use crate::manifest::{Choice, Image, familiar};
use chain::document::path_text;
use chain::store::Store;
use chain::{Document, Error, Result, ResultExt};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The kernel stamps a change with a clock that ticks: a file changed more lately than this may change again unseen.
const TICK: Duration = Duration::from_millis(50);

/// Writes `value` to `path` at once or not at all.
pub fn write(path: &Path, value: &Value) -> Result<()> {
    let mut text = value.to_string();
    text.push('\n');
    write_bytes(path, text.as_bytes())
}

/// Writes `bytes` to `path` at once or not at all.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| file.write_all(bytes).call(format_args!("write({path:?})")))
}

/// Writes what `fill` writes to `path` at once, or nothing if that fails; gives what `fill` gives.
pub fn write_with<T>(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<T>) -> Result<T> {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let unique = format!("new-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
    let beside = path.with_added_extension(unique);
    let write = || {
        let mut file = File::create(&beside).map(BufWriter::new).call(format_args!("open({beside:?}, O_CREAT)"))?;
        let filled = fill(&mut file)?;
        file.flush().call(format_args!("write({beside:?})"))?;
        fs::rename(&beside, path).call(format_args!("rename({beside:?}, {path:?})"))?;
        Ok(filled)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })
}

/// The JSON in `path`; `None` if it is not there. Error: cannot be read, no JSON.
pub fn read(path: &Path) -> Result<Option<Value>> {
    match fs::read(path) {
        Ok(text) => {
            serde_json::from_slice(&text).map(Some).map_err(|error| Error::new(format_args!("{path:?}: {error}")))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::call(format_args!("read({path:?})"), error)),
    }
}

/// Where the layer `chain_id` is, or comes.
pub fn layer_path(store: &Store, chain_id: &str) -> PathBuf {
    store.layers().join(chain_id.strip_prefix("sha256:").unwrap_or(chain_id).replace(['/', ':'], "-"))
}

/// Where the image `id` is recorded.
pub fn image_path(store: &Store, id: &str) -> PathBuf {
    store.images().join(format!("{}.json", id.replace(['/', ':'], "-")))
}

/// Where it is recorded which image `name` means.
pub fn name_path(store: &Store, name: &str) -> PathBuf {
    store.images().join("names").join(format!("{}.json", Digest::of(familiar(name).as_bytes()).hex()))
}

fn file_path(store: &Store, image: &Path, choice: &Choice) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let mut key = image.as_os_str().as_bytes().to_vec();
    key.extend_from_slice(format!("\0{:?}", choice).as_bytes());
    store.images().join("files").join(format!("{}.json", Digest::of(&key).hex()))
}

/// The identity of a file at one moment: changed content changes it. A directory goes by the document that names all else.
pub fn identity(image: &Path) -> Option<Value> {
    let mut meta = fs::metadata(image).ok()?;
    if meta.is_dir() {
        meta = ["index.json", "manifest.json"].iter().find_map(|name| fs::metadata(image.join(name)).ok())?;
    }
    let changed = SystemTime::UNIX_EPOCH + Duration::new(meta.ctime().try_into().ok()?, meta.ctime_nsec() as u32);
    let settled = changed.elapsed().is_ok_and(|age| age > TICK);
    (meta.is_file() && settled).then(|| {
        let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
        json!([meta.dev(), meta.ino(), meta.size(), times])
    })
}

/// Records that `image` is in the store, under its names, and as the file `file` that had the identity `seen`.
pub fn add(
    store: &Store,
    image: &Image,
    document: &Document,
    file: Option<(&Path, Value)>,
    choice: &Choice,
) -> Result<()> {
    for dir in [store.images(), store.images().join("names"), store.images().join("files")] {
        store.make(&dir)?;
    }
    let id = image.id.to_string();
    let path = image_path(store, &id);
    let mut names: Vec<Value> = image.names.iter().map(|name| Value::from(familiar(name))).collect();
    if let Some(earlier) = read(&path).ok().flatten() {
        names.extend(
            earlier["names"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|name| !names.contains(name))
                .cloned()
                .collect::<Vec<_>>(),
        );
    }
    let layers: Vec<String> = image.layers.iter().map(|layer| layer.chain_id.to_string()).collect();
    let platform = image.platform.to_string();
    write(
        &path,
        &json!({"id": id, "names": names, "platform": platform, "layers": layers, "document": document.members()}),
    )?;
    for name in &image.names {
        write(&name_path(store, name), &json!({"name": familiar(name), "image": id}))?;
    }
    if let Some((file, seen)) = file {
        write(
            &file_path(store, file, choice),
            &json!({"file": file.to_string_lossy(), "identity": seen, "image": id}),
        )?;
    }
    Ok(())
}

/// The document of `image` without unpacking: if it is a file (or directory) that is as it was when it was unpacked, or no
/// file and a reference that the store knows, and all its layers are there. Else `None`.
///
/// Reads a few small files; no threads, no user namespace.
pub fn stored(store: &Store, image: &OsStr, choice: &Choice) -> Result<Option<Document>> {
    if image == "-" {
        return Ok(None);
    }
    let path = std::path::absolute(image).call(format_args!("getcwd()"))?;
    let id = if path.exists() {
        let Some(seen) = identity(&path) else { return Ok(None) };
        let record = read(&file_path(store, &path, choice)).ok().flatten();
        record.filter(|record| record["identity"] == seen).map(|record| record["image"].clone())
    } else {
        let name = image.to_str().filter(|name| !name.starts_with(['/', '.']) && choice.reference.is_none());
        name.and_then(|name| read(&name_path(store, name)).ok().flatten()).map(|record| record["image"].clone())
    };
    let Some(id) = id else { return Ok(None) };
    let Some(record) = read(&image_path(store, id.as_str().unwrap_or_default())).ok().flatten() else {
        return Ok(None);
    };
    let platform = record["platform"].as_str().and_then(|text| crate::manifest::Platform::parse(text).ok());
    if choice.platform.as_ref().is_some_and(|wanted| !platform.is_some_and(|platform| platform.serves(wanted))) {
        return Ok(None);
    }
    finished(store, &record)
}

/// The document of a recorded image; `None` if one of its layers is not in the store.
fn finished(store: &Store, record: &Value) -> Result<Option<Document>> {
    let mut layers = Vec::new();
    for chain_id in record["layers"].as_array().into_iter().flatten() {
        let path = layer_path(store, chain_id.as_str().unwrap_or_default());
        if !path.is_dir() || unsettled(&path) {
            return Ok(None);
        }
        layers.push(Value::from(path_text(path)?));
    }
    let mut document = Document::parse(record["document"].to_string().as_bytes())?;
    document.set("layers", layers);
    Ok(Some(document))
}

/// This boot of the machine.
pub fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_string()
}

/// Whether a layer was made in an earlier boot that may have ended before its files reached the disk.
pub fn unsettled(layer: &Path) -> bool {
    let mark = layer.with_added_extension("boot");
    fs::read_to_string(mark).is_ok_and(|made| made != boot())
}
