//! From IMAGE to a document.

use crate::cli::{Cli, Source};
use chain::document::{Document, path_text};
use chain::link::apart;
use chain::store::Store;
use chain::{Result, ResultExt};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use serde_json::json;
use std::ffi::OsString;
use std::fs::File;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// The document of what is to run. An image is unpacked if it is not in the store yet.
///
/// Errors: those of `img-unpack`; a directory, document or bundle that cannot be read.
pub fn document(source: &Source, cli: &Cli, store: &Store) -> Result<Document> {
    match source {
        Source::Image(image) => unpack(image, cli, store),
        Source::Rootfs(dir) => rootfs(dir),
        Source::Document(path) => Document::read(path),
        Source::Bundle(dir) => bundle(dir),
    }
}

/// A directory as the one read-only layer, and what is mounted below it, bound read-only.
fn rootfs(dir: &Path) -> Result<Document> {
    let path = crate::rootfs::directory(dir)?;
    let mut mounts = Vec::new();
    for point in crate::rootfs::mounts_below(&path)? {
        let (source, destination) = (path_text(path.join(&point))?, path_text(Path::new("/").join(&point))?);
        mounts.push(json!({"type": "bind", "source": source, "destination": destination, "options": ["rbind", "ro"]}));
    }
    let mut document = Document::new();
    document.set("layers", json!([path_text(&path)?]));
    document.set("mounts", mounts);
    document.set("process/args", json!(["/bin/sh"]));
    Ok(document)
}

/// `config.json` of a bundle, with its root made absolute.
fn bundle(dir: &Path) -> Result<Document> {
    let mut document = Document::read(&dir.join("config.json"))?;
    let root: PathBuf = document.text("root/path")?.unwrap_or("rootfs").into();
    let root = dir.join(root);
    let root = root.canonicalize().call(format_args!("open({root:?})"))?;
    document.set("root/path", path_text(&root)?);
    Ok(document)
}

/// The file that the document of `source` is in, absolute, for what a link has to read itself; `None` if it is in none.
pub fn file(source: &Source) -> Result<Option<PathBuf>> {
    let path = match source {
        Source::Bundle(dir) => dir.join("config.json"),
        // A pipe, or what is read but once, is no file to come back to.
        Source::Document(path) if path.is_file() => path.clone(),
        _ => return Ok(None),
    };
    path.canonicalize().call(format_args!("open({path:?})")).map(Some)
}

/// What `img-unpack` prints. It runs in a child, since it has threads, needs memory and, for an ordinary user, enters a user
/// namespace; the process that starts COMMAND must have nothing of that.
fn unpack(image: &OsString, cli: &Cli, store: &Store) -> Result<Document> {
    let platform = cli.platform.as_deref().map(img_unpack::manifest::Platform::parse).transpose()?;
    let choice = img_unpack::Choice { reference: cli.reference.clone(), platform };
    if let Some(document) = img_unpack::stored(store, image, &choice)? {
        return Ok(document);
    }
    let mut args: Vec<OsString> = vec![crate::limits::joined("--store=", store.path().as_os_str())];
    args.extend(cli.reference.iter().map(|name| format!("--ref={name}").into()));
    args.extend(cli.platform.iter().map(|platform| format!("--platform={platform}").into()));
    if !std::io::stderr().is_terminal() {
        args.push("--quiet".into());
    }
    args.push(image.clone());
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).call(format_args!("pipe2()"))?;
    let unpacking = apart::start(&img_unpack::TOOL, &args, &writer)?;
    drop(writer);
    let text = std::io::read_to_string(File::from(reader)).call(format_args!("read(pipe)"));
    unpacking.wait()?;
    Document::parse(text?.as_bytes())
}
