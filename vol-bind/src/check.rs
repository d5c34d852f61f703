//! `--check`: what can be mounted here, and whether what was asked for can. Everything is tried as a detached mount, which
//! nobody sees and which is gone at once.

use crate::api;
use crate::filesystem::{create, explain};
use crate::idmap;
use crate::mount::Source;
use crate::request::Place;
use crate::source::Sources;
use chain::root::Root;
use chain::sys::mount::{AT_RECURSIVE, ATTR_IDMAP, ATTR_RDONLY, Change, OPEN_TREE_CLONE, mount_setattr, open_tree};
use chain::trace::op;
use chain::userns::Range;
use chain::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// What was looked at.
pub struct Report(Vec<Row>);

struct Row {
    group: &'static str,
    name: String,
    /// Why it cannot be had; `None` if it can.
    why: Option<String>,
    /// Whether it was asked for.
    wanted: bool,
}

impl Report {
    /// Looks at what this caller can mount, and at what `place` asks for.
    ///
    /// Errors: no root where one is asked for.
    pub fn make(place: &Place) -> Result<Self> {
        let mut rows = Vec::new();
        let mut add = |group, name: &str, wanted, tried: Result<()>| {
            rows.push(Row { group, name: name.into(), why: tried.err().map(|error| error.to_string()), wanted });
        };
        add("mounts", "bind", false, bind());
        for kind in ["tmpfs", "overlay"] {
            // An overlay without layers is refused only after the question of rights is answered.
            add("mounts", kind, false, file_system(kind));
        }
        add("mounts", "idmap", false, owners());
        for kind in ["proc", "sysfs", "devpts", "mqueue", "cgroup2"] {
            // What only shows a namespace is replaced or left out where it cannot be had; /proc is needed.
            add("api", kind, kind == "proc" && place.api.is_some(), file_system(kind));
        }
        if let Some(path) = &place.root {
            let root = Root::open(path)?;
            let volumes = BTreeMap::new();
            let mut sources = Sources::new(&root, &volumes);
            // A volume is made on first use: nothing of it needs to be there.
            for mount in place.mounts.iter().filter(|mount| !matches!(mount.source, Source::Volume(_))) {
                let mut mount = mount.clone();
                let made = mount.options.create.take();
                let tried = match &mount.source {
                    Source::Path(path) if made.is_some() && !path.exists() => bind(),
                    _ => sources.ready(&mount).map(drop),
                };
                add("given", &mount.target.to_string_lossy(), true, tried);
            }
        }
        Ok(Report(rows))
    }

    /// Error: something that was asked for cannot be had; it says what and why.
    pub fn satisfies(&self) -> Result<()> {
        match self.0.iter().filter(|row| row.wanted).find_map(|row| row.why.as_ref().map(|why| (row, why))) {
            Some((row, why)) => Err(Error::new(format_args!("{} {}: cannot be had here: {why}", row.group, row.name))),
            None => Ok(()),
        }
    }

    /// A line for each.
    pub fn to_text(&self) -> String {
        let line = |row: &Row| {
            let answer = row.why.as_ref().map_or("yes".into(), |why| format!("no: {why}"));
            chain::error::escape(&format!("{:<10} {:<8} {answer}", row.group, row.name)) + "\n"
        };
        self.0.iter().map(line).collect()
    }

    /// An object of objects: group, name, `available`, `why`.
    pub fn to_json(&self) -> String {
        let mut groups = Map::new();
        for row in &self.0 {
            let mut entry = json!({"available": row.why.is_none()});
            if let Some(why) = &row.why {
                entry["why"] = why.as_str().into();
            }
            groups.entry(row.group).or_insert_with(|| json!({}))[row.name.as_str()] = entry;
        }
        format!("{:#}\n", Value::Object(groups))
    }
}

fn bind() -> Result<()> {
    whole().map(drop)
}

/// A detached copy of all that is mounted.
fn whole() -> Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | AT_RECURSIVE;
    op(format_args!("open_tree(\"/\", OPEN_TREE_CLONE|AT_RECURSIVE)"), || open_tree(None, Path::new("/"), flags))
        .map_err(explain)
}

fn file_system(kind: &str) -> Result<()> {
    use nix::errno::Errno;
    match create(kind, OsStr::new(kind), &[], if kind == "sysfs" { ATTR_RDONLY } else { 0 }) {
        Err(error) if kind == "overlay" && error.errno() == Some(Errno::EINVAL) => Ok(()),
        Err(error) if kind == "proc" => Err(api::explain_proc(error)),
        other => other.map(drop),
    }
}

/// Whether owners can be mapped, on the file system of the root.
fn owners() -> Result<()> {
    let tree = whole()?;
    let namespace = idmap::namespace(&[Range { inner: 0, outer: 0, count: 1 }])?;
    let change = Change { set: ATTR_IDMAP, user_namespace: Some(namespace.as_fd()), ..Change::default() };
    op(format_args!("mount_setattr(\"/\", MOUNT_ATTR_IDMAP)"), || mount_setattr(&tree, false, change))
}
