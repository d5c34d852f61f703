//! An image's configuration as a runtime configuration (image-spec, conversion.md).

use crate::merged::{Found, Merged, is};
use chain::trace::note;
use chain::{Document, Error, Result};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag};
use serde_json::{Map, Value, json};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;

/// The largest /etc/passwd or /etc/group that is read.
const MAX_ACCOUNTS: u64 = 4 << 20;

/// The annotation that keeps the image's Entrypoint, as JSON text.
pub const ENTRYPOINT: &str = "ctr.entrypoint";

/// The document of an image with this configuration and tree, without its layers.
///
/// Errors: `Entrypoint` or `Cmd` is no list, so that what to run would be a guess.
pub fn document(config: &Value, tree: &Merged) -> Result<Document> {
    let inner = &config["config"];
    for name in ["Entrypoint", "Cmd"] {
        if !inner[name].is_array() && !inner[name].is_null() {
            return Err(Error::new(format_args!("configuration: config.{name} is not a list: {}", inner[name])));
        }
    }
    let mut document = Document::new();
    let args: Vec<&str> = texts(&inner["Entrypoint"]).chain(texts(&inner["Cmd"])).collect();
    document.set("process/args", json!(args));
    document.set("process/env", json!(env(&inner["Env"])));
    let cwd = inner["WorkingDir"].as_str().filter(|dir| !dir.is_empty()).unwrap_or("/");
    document.set("process/cwd", if cwd.starts_with('/') { cwd.to_string() } else { format!("/{cwd}") });
    document.set("process/user", user(inner["User"].as_str().unwrap_or_default(), tree));
    let mut annotations = annotations(config);
    // Where Entrypoint ends and Cmd begins, the arguments alone do not say.
    let entrypoint: Vec<&str> = texts(&inner["Entrypoint"]).collect();
    annotations.remove(ENTRYPOINT);
    if !entrypoint.is_empty() {
        annotations.insert(ENTRYPOINT.into(), json!(entrypoint).to_string().into());
    }
    if !annotations.is_empty() {
        document.set("annotations", annotations);
    }
    Ok(document)
}

/// The variables; what has no name is none, and no runtime would take it.
fn env(value: &Value) -> Vec<&str> {
    let named = |text: &&str| {
        let named = !text.is_empty() && !text.starts_with('=');
        if !named {
            note(format_args!("the image's variable {text:?} has no name, and is left out"));
        }
        named
    };
    texts(value).filter(named).collect()
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// What the specification makes of other members, and the labels, which win.
fn annotations(config: &Value) -> Map<String, Value> {
    let mut annotations = Map::new();
    let members = [
        ("os", &config["os"]),
        ("architecture", &config["architecture"]),
        ("variant", &config["variant"]),
        ("os.version", &config["os.version"]),
        ("author", &config["author"]),
        ("created", &config["created"]),
        ("stopSignal", &config["config"]["StopSignal"]),
    ];
    for (name, value) in members {
        if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
            annotations.insert(format!("org.opencontainers.image.{name}"), text.into());
        }
    }
    if let Some(ports) = config["config"]["ExposedPorts"].as_object().filter(|ports| !ports.is_empty()) {
        let ports: Vec<&str> = ports.keys().map(String::as_str).collect();
        annotations.insert("org.opencontainers.image.exposedPorts".into(), ports.join(",").into());
    }
    for (name, value) in config["config"]["Labels"].as_object().into_iter().flatten() {
        if let Some(text) = value.as_str() {
            annotations.insert(name.clone(), text.into());
        }
    }
    annotations
}

/// `User` (`USER[:GROUP]`, names or numbers) by the image's own accounts: `uid` and `gid` as far as they are known, and the
/// text itself where it is a name, for who resolves it in the finished root.
fn user(text: &str, tree: &Merged) -> Value {
    let mut found = Map::new();
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let user = if user.is_empty() { "0" } else { user };
    let number = |text: &str| text.parse::<u32>().ok().filter(|&id| id != u32::MAX);
    let accounts = read(tree, "etc/passwd");
    let account = accounts.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.len() >= 4 && (fields[0] == user || (number(user).is_some() && number(fields[2]) == number(user)))
    });
    let uid = number(user).or_else(|| account.as_ref().and_then(|fields| number(fields[2])));
    let groups = read(tree, "etc/group");
    let groups: Vec<Vec<&str>> = groups.lines().map(|line| line.split(':').collect()).collect();
    let gid = match group.filter(|group| !group.is_empty()) {
        Some(group) => number(group).or_else(|| {
            groups.iter().find(|fields| fields.len() >= 3 && fields[0] == group).and_then(|fields| number(fields[2]))
        }),
        None => account.as_ref().map_or(Some(0), |fields| number(fields[3])),
    };
    if let Some((uid, gid)) = uid.zip(gid) {
        found.insert("uid".into(), uid.into());
        found.insert("gid".into(), gid.into());
        let name = account.as_ref().map(|fields| fields[0]).filter(|_| group.is_none());
        let more: Vec<u32> = groups
            .iter()
            .filter(|fields| {
                fields.len() >= 4 && name.is_some_and(|name| fields[3].split(',').any(|member| member == name))
            })
            .filter_map(|fields| number(fields[2]))
            .collect();
        if !more.is_empty() {
            found.insert("additionalGids".into(), json!(more));
        }
    }
    let named = number(user).is_none() || group.is_some_and(|group| !group.is_empty() && number(group).is_none());
    if named {
        found.insert("username".into(), text.into());
    }
    Value::Object(found)
}

/// A file of the tree as text, whatever is wrong with it: then nothing. Links stay inside the tree.
fn read(tree: &Merged, path: &str) -> String {
    let mut path = path.as_bytes().to_vec();
    for _ in 0..10 {
        let slash = path.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
        let (parent, name) = path.split_at(slash);
        let name = OsStr::from_bytes(name);
        let Ok(Some((real, dir))) = tree.resolve(parent) else { return String::new() };
        match dir.child(name) {
            Ok(Found::Other(part, stat)) if is(&stat, SFlag::S_IFLNK) => {
                let Ok(target) = crate::apply::link_text(&part, name) else { return String::new() };
                path = if target.starts_with(b"/") { target } else { [&real[..], b"/", &target].concat() };
            }
            Ok(Found::Other(part, stat)) if is(&stat, SFlag::S_IFREG) => {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let mut bytes = Vec::new();
                let file = openat(part.as_ref(), name, flags, Mode::empty()).map(File::from);
                let read = file.is_ok_and(|file| file.take(MAX_ACCOUNTS).read_to_end(&mut bytes).is_ok());
                return if read { String::from_utf8_lossy(&bytes).into_owned() } else { String::new() };
            }
            _ => return String::new(),
        }
    }
    String::new()
}
