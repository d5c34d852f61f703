//! Any sequence of layers gives the tree that a small model of the specification (layer.md) gives.

use img_unpack::apply::{Target, apply};
use img_unpack::archive::Archive;
use img_unpack::merged::{Found, Merged};
use img_unpack::node::{Owners, Policy, open_dir};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Dir(u32),
    File(u8),
    Link(String),
}

#[derive(Clone, Debug)]
enum Entry {
    Put(String, Node),
    HardLink(String, String),
    Whiteout(String),
    /// A directory of this mode, of which nothing below shows.
    Opaque(String, u32),
}

type Tree = BTreeMap<String, Node>;

fn parent(path: &str) -> Option<&str> {
    path.rsplit_once('/').map(|(parent, _)| parent)
}

fn remove(tree: &mut Tree, path: &str) {
    let below = format!("{path}/");
    tree.retain(|name, _| name != path && !name.starts_with(&below));
}

/// Parents that are no directories become directories.
fn parents(tree: &mut Tree, path: &str) {
    if let Some(parent) = parent(path) {
        parents(tree, parent);
        if !matches!(tree.get(parent), Some(Node::Dir(_))) {
            remove(tree, parent);
            tree.insert(parent.into(), Node::Dir(0o755));
        }
    }
}

fn is_reachable(tree: &Tree, path: &str) -> bool {
    parent(path).is_none_or(|parent| matches!(tree.get(parent), Some(Node::Dir(_))) && is_reachable(tree, parent))
}

/// Whiteouts first, whatever their place; then the others, in order.
fn model(layers: &[Vec<Entry>]) -> Tree {
    let mut tree = Tree::new();
    for layer in layers {
        for entry in layer {
            match entry {
                Entry::Whiteout(path) if is_reachable(&tree, path) => remove(&mut tree, path),
                Entry::Opaque(path, _) if matches!(tree.get(path), Some(Node::Dir(_))) => {
                    let below = format!("{path}/");
                    tree.retain(|name, _| !name.starts_with(&below));
                }
                _ => {}
            }
        }
        for entry in layer {
            match entry {
                Entry::Put(path, Node::Dir(mode)) | Entry::Opaque(path, mode) => {
                    parents(&mut tree, path);
                    if !matches!(tree.get(path), Some(Node::Dir(_))) {
                        remove(&mut tree, path);
                    }
                    tree.insert(path.clone(), Node::Dir(*mode));
                }
                Entry::Put(path, node) => {
                    parents(&mut tree, path);
                    remove(&mut tree, path);
                    tree.insert(path.clone(), node.clone());
                }
                Entry::HardLink(path, target) => {
                    let node = tree[target].clone();
                    parents(&mut tree, path);
                    remove(&mut tree, path);
                    tree.insert(path.clone(), node);
                }
                Entry::Whiteout(_) => {}
            }
        }
    }
    tree
}

/// Each name once in a layer, as the specification wants, and hard links only to what is there whatever the order.
fn sound(layers: Vec<Vec<Entry>>) -> Vec<Vec<Entry>> {
    let mut out: Vec<Vec<Entry>> = Vec::new();
    for layer in layers {
        let mut seen: Vec<String> = Vec::new();
        let mut kept: Vec<Entry> = Vec::new();
        let below = model(&out);
        for entry in layer {
            let path = match &entry {
                Entry::Put(path, _) | Entry::HardLink(path, _) | Entry::Opaque(path, _) => path.clone(),
                Entry::Whiteout(path) => format!("{path} "),
            };
            let usable = match &entry {
                Entry::HardLink(path, target) => {
                    let untouched = |other: &Entry| match other {
                        Entry::Put(name, _)
                        | Entry::HardLink(name, _)
                        | Entry::Whiteout(name)
                        | Entry::Opaque(name, _) => {
                            !target.starts_with(name.as_str()) && !name.starts_with(target.as_str())
                        }
                    };
                    matches!(below.get(target), Some(Node::File(_)))
                        && !path.starts_with(target.as_str())
                        && !target.starts_with(path.as_str())
                        && kept.iter().all(untouched)
                }
                _ => true,
            };
            let disturbs_link = kept.iter().any(|other| match other {
                Entry::HardLink(_, target) => target.starts_with(path.trim_end()) || path.starts_with(target.as_str()),
                _ => false,
            });
            if usable && !disturbs_link && !seen.contains(&path) {
                seen.push(path);
                kept.push(entry);
            }
        }
        out.push(kept);
    }
    out
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|names| names.join("/"))
}

fn mode() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![0o755, 0o700, 0o1777, 0o555, 0o0])
}

fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        4 => (path(), any::<u8>()).prop_map(|(path, byte)| Entry::Put(path, Node::File(byte))),
        3 => (path(), mode()).prop_map(|(path, mode)| Entry::Put(path, Node::Dir(mode))),
        // Names of links are no one's parents, so that the model need not follow them.
        1 => path().prop_map(|path| Entry::Put(format!("{path}/l"), Node::Link("../..".into()))),
        1 => (path(), path()).prop_map(|(path, target)| Entry::HardLink(path, target)),
        3 => path().prop_map(Entry::Whiteout),
        1 => (path(), mode()).prop_map(|(path, mode)| Entry::Opaque(path, mode)),
    ]
}

fn stream(layer: &[Entry]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, link: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(data.len() as u64);
        if link.is_empty() {
            builder.append_data(&mut header, path, data).expect("tar");
        } else {
            builder.append_link(&mut header, path, link).expect("tar");
        }
    };
    let whiteout = |path: &str| match path.rsplit_once('/') {
        Some((parent, name)) => format!("{parent}/.wh.{name}"),
        None => format!(".wh.{path}"),
    };
    for entry in layer {
        match entry {
            Entry::Put(path, Node::Dir(mode)) => add(path, tar::EntryType::Directory, *mode, "", b""),
            Entry::Put(path, Node::File(byte)) => add(path, tar::EntryType::Regular, 0o644, "", &[*byte]),
            Entry::Put(path, Node::Link(target)) => add(path, tar::EntryType::Symlink, 0o777, target, b""),
            Entry::HardLink(path, target) => add(path, tar::EntryType::Link, 0o644, target, b""),
            Entry::Whiteout(path) => add(&whiteout(path), tar::EntryType::Regular, 0o644, "", b""),
            Entry::Opaque(path, mode) => {
                add(path, tar::EntryType::Directory, *mode, "", b"");
                add(&format!("{path}/.wh..wh..opq"), tar::EntryType::Regular, 0o644, "", b"");
            }
        }
    }
    builder.into_inner().expect("tar")
}

fn walk(tree: &Merged, path: &str, found: &mut Tree) {
    for name in tree.names().expect("names") {
        let whole =
            if path.is_empty() { name.to_str().expect("name").into() } else { format!("{path}/{}", name.display()) };
        match tree.child(&name).expect("child") {
            Found::Absent => unreachable!("names are there"),
            Found::Dir(inner, stat) => {
                found.insert(whole.clone(), Node::Dir(stat.st_mode & 0o7777));
                walk(&inner, &whole, found);
            }
            Found::Other(part, stat) if stat.st_mode & 0o170000 == 0o120000 => {
                let target = nix::fcntl::readlinkat(part.as_ref(), name.as_os_str()).expect("readlink");
                found.insert(whole, Node::Link(target.to_str().expect("target").into()));
            }
            Found::Other(part, _) => {
                let flags = nix::fcntl::OFlag::O_RDONLY;
                let file = nix::fcntl::openat(part.as_ref(), name.as_os_str(), flags, nix::sys::stat::Mode::empty());
                let mut byte = [0];
                File::from(file.expect("open")).read_exact(&mut byte).expect("read");
                found.insert(whole, Node::File(byte[0]));
            }
        }
    }
}

fn unpacked(top: &Path, layers: &[Vec<Entry>]) -> Tree {
    let policy = Policy { owners: Owners::Exact, opaque: "trusted.overlay.opaque" };
    let mut dirs: Vec<PathBuf> = Vec::new();
    let merged = |dirs: &[PathBuf]| {
        Merged::root(dirs.iter().rev().map(|dir| open_dir(dir).expect("open")).collect(), policy.opaque)
    };
    for (i, layer) in layers.iter().enumerate() {
        let dir = top.join(i.to_string());
        fs::create_dir(&dir).expect("mkdir");
        let below = || Ok(merged(&dirs));
        let target = Target { dir: open_dir(&dir).expect("open"), below: &below, policy, holes: &|_| Ok(()) };
        apply(&mut Archive::new(&stream(layer)[..]), target).expect("apply");
        dirs.push(dir);
    }
    let mut found = Tree::new();
    walk(&merged(&dirs), "", &mut found);
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers_are_what_the_model_says(layers in prop::collection::vec(prop::collection::vec(entry(), 0..8), 1..4)) {
        let top = tempfile::tempdir().expect("tempdir");
        // Whiteouts are device nodes, which root can make, and an ordinary user in a user namespace: tests/ has that.
        if fs::metadata(top.path()).expect("stat").uid() != 0 {
            return Ok(());
        }
        let layers = sound(layers);
        prop_assert_eq!(unpacked(top.path(), &layers), model(&layers), "{:?}", layers);
    }
}
