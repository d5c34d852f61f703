//! Mounts in a document, and a document's mounts as ours.

use crate::api;
use crate::devices;
use crate::mount::{Mount, Source};
use crate::request::Place;
use crate::spec;
use crate::volume::Volumes;
use chain::document::path_text;
use chain::store::Store;
use chain::{Document, Error, Result, ResultExt};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::path::Path;

/// Adds what is mounted to `document`: `mounts`, `linux.maskedPaths`, `linux.readonlyPaths`, and for every device of the
/// machine `linux.devices`.
///
/// Error: a path that is not UTF-8.
pub fn record(document: &mut Document, place: &Place, store: Option<&Path>) -> Result<()> {
    let mut mounts = document.list("mounts")?.to_vec();
    if let Some(api) = place.api {
        let taken: Vec<&Path> = place.mounts.iter().map(|mount| mount.target.as_path()).collect();
        mounts.extend(api::documented(api, &taken));
        if api.all_devices {
            document.set("linux/devices", devices::documented()?);
            document.set("linux/resources/devices", json!([{"allow": true, "access": "rwm"}]));
        }
    }
    for mount in &place.mounts {
        mounts.push(of_mount(mount, store)?);
    }
    if !mounts.is_empty() {
        document.set("mounts", mounts);
    }
    for (path, paths) in [("linux/maskedPaths", &place.masked), ("linux/readonlyPaths", &place.read_only)] {
        if !paths.is_empty() {
            document.set(path, paths.iter().map(path_text).collect::<Result<Vec<_>>>()?);
        }
    }
    Ok(())
}

fn of_mount(mount: &Mount, store: Option<&Path>) -> Result<Value> {
    let (kind, source) = match &mount.source {
        Source::Path(path) | Source::Device(path) => {
            ("bind", path_text(std::path::absolute(path).call(format_args!("getcwd()"))?)?)
        }
        Source::Volume(name) => {
            let data = Volumes::of(&Store::at(store)?).data(name);
            let below = mount.options.subpath.as_deref().map_or(data.clone(), |subpath| data.join(subpath));
            ("bind", path_text(below)?)
        }
        Source::FileSystem(kind, source) => (kind.as_str(), path_text(source)?),
        Source::Content(_) => return Err(Error::new("a file without a source")),
    };
    let mut options = mount.options.words.clone();
    if kind == "bind" {
        if mount.options.propagation.is_none() {
            options.insert(0, "rprivate".into());
        }
        options.retain(|word| !matches!(word.as_str(), "bind" | "rbind") && !word.starts_with("subpath="));
        options.insert(0, if mount.options.top_only { "bind" } else { "rbind" }.into());
    }
    let mut value =
        json!({"destination": path_text(&mount.target)?, "type": kind, "source": source, "options": options});
    if !mount.options.idmap.is_empty() {
        let ranges: Vec<Value> = (mount.options.idmap.iter())
            .map(|range| json!({"containerID": range.inner, "hostID": range.outer, "size": range.count}))
            .collect();
        value["uidMappings"] = ranges.clone().into();
        value["gidMappings"] = ranges.into();
    }
    Ok(value)
}

/// The `mounts` of `document`, in their order, for taking them away: where, of which type, and (of a bind) from where.
pub fn mounts(document: &Document) -> Result<Vec<Mount>> {
    let read = |value: &Value| {
        let text = |name: &str| value[name].as_str();
        let target = text("destination").ok_or_else(|| Error::new(format_args!("mounts: {value}: no destination")))?;
        let options = value["options"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let bind = options.clone().any(|word| matches!(word, "bind" | "rbind"));
        let source = match (text("type"), text("source")) {
            (kind, Some(source)) if bind || kind == Some("bind") => Source::Path(source.into()),
            (kind, source) => {
                let kind = kind.unwrap_or("none");
                Source::FileSystem(kind.into(), source.unwrap_or(kind).into())
            }
        };
        let target = spec::target_path(OsStr::new(target).as_encoded_bytes())?;
        Ok(Mount { source, target, options: Default::default() })
    };
    document.list("mounts")?.iter().map(read).collect()
}
