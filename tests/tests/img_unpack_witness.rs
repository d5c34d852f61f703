//! `img-unpack` beside umoci, on every real image there is: each entry's type, mode, owner, time, links, attributes and content.
//!
//! `$CTR_BENCH_IMAGE` (`DIR:REF`, an OCI layout) is one image more.

use ctr_tests::image::digest;
use ctr_tests::{Scratch, Who, finish, finish_with, has, is_root, real_image};
use nix::libc;
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// An archive of docker save, the place of an image in it, and its name if there are several.
const IMAGES: [(&str, u32, &str); 8] = [
    ("alpine-3.10.docker.tar.gz", 0, ""),
    ("busybox-layers.docker.tar", 0, ""),
    ("hello-world-v25.docker-oci.tar", 0, ""),
    ("whiteout.docker.tar", 0, ""),
    ("basic.docker.tar", 0, ""),
    ("symlinks.docker.tar", 0, ""),
    ("two-images.docker.tar", 1, "test_image_1"),
    ("two-images.docker.tar", 0, "test_image_2"),
];

/// What is known of an entry, in the order in which it is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// Type, and what goes with it: content, target, device number.
    what: String,
    mode: u32,
    owner: (u32, u32),
    /// The first of the names that the file has.
    name: PathBuf,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    time: (i64, i64),
}

type Tree = BTreeMap<PathBuf, Entry>;

fn tree(root: &Path) -> Tree {
    let mut paths = vec![PathBuf::new()];
    let mut todo = paths.clone();
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(root.join(&dir)).expect("read_dir").map(|entry| entry.expect("entry")) {
            let path = dir.join(entry.file_name());
            if entry.file_type().expect("type").is_dir() {
                todo.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    let mut names = HashMap::new();
    let mut entry = |path: PathBuf| {
        let full = root.join(&path);
        let meta = fs::symlink_metadata(&full).expect("lstat");
        let kind = meta.file_type();
        let what = if kind.is_dir() {
            "directory".into()
        } else if kind.is_symlink() {
            format!("link to {:?}", fs::read_link(&full).expect("readlink"))
        } else if kind.is_file() {
            format!("file of {} bytes, {}", meta.len(), digest(&fs::read(&full).expect("read")))
        } else {
            let kind = (kind.is_fifo(), kind.is_char_device(), kind.is_block_device());
            format!("node {kind:?} {:x}", meta.rdev())
        };
        let name = names.entry(meta.ino()).or_insert_with(|| path.clone()).clone();
        let entry = Entry {
            what,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            name,
            attributes: attributes(&full),
            time: (meta.mtime(), meta.mtime_nsec()),
        };
        (path, entry)
    };
    paths.into_iter().map(&mut entry).collect()
}

/// Extended attributes of `path` itself.
fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("name");
    let mut names = vec![0; 65536];
    // SAFETY: the buffer has that length; the kernel writes no more.
    let length = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(length).unwrap_or(0));
    let names = names.split_inclusive(|&byte| byte == 0).map(|name| CStr::from_bytes_with_nul(name).expect("name"));
    let value = |name: &CStr| {
        let mut value = vec![0; 65536];
        // SAFETY: as above.
        let length = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        value.truncate(usize::try_from(length).expect("lgetxattr"));
        value
    };
    names.map(|name| (name.to_bytes().to_vec(), value(name))).collect()
}

/// An image as `img-unpack` and as umoci take it.
struct Pair {
    arguments: Vec<String>,
    layout: String,
}

/// All images, as files that both programs take: umoci takes layouts only, so skopeo makes one of each archive.
fn pairs(scratch: &Scratch) -> Vec<Pair> {
    if !has("umoci") || !has("skopeo") {
        return Vec::new();
    }
    let mut pairs = Vec::new();
    for (i, (file, at, name)) in IMAGES.iter().enumerate() {
        let Some(path) = real_image(file) else { return Vec::new() };
        // skopeo does not take archives that are compressed as a whole.
        scratch.sh(&format!("zcat --force {path:?} >archive.tar")).ok();
        let from = format!("docker-archive:archive.tar:@{at}");
        let layout = format!("layout{i}:t");
        let to = format!("oci:{layout}");
        scratch.run("skopeo", ["--insecure-policy", "copy", "--quiet", &from, &to]).ok();
        let mut arguments = vec![path.display().to_string()];
        if !name.is_empty() {
            arguments.extend(["--ref".into(), name.to_string()]);
        }
        pairs.push(Pair { arguments, layout });
    }
    // A layer by itself, two archives one after the other: as an image of one layer.
    if let Some(path) = real_image("concat-layer.tar") {
        let make = format!(
            "umoci init --layout concat; umoci new --image concat:t; umoci raw add-layer --image concat:t {path:?}"
        );
        scratch.sh(&make).ok();
        pairs.push(Pair { arguments: vec!["concat".into()], layout: "concat:t".into() });
    }
    if let Some((layout, reference)) = std::env::var("CTR_BENCH_IMAGE").iter().find_map(|image| image.rsplit_once(':'))
    {
        let arguments = vec!["--ref".into(), reference.into(), layout.into()];
        pairs.push(Pair { arguments, layout: format!("{layout}:{reference}") });
    }
    pairs
}

/// All entries of `ours` are umoci's, but for what `excused` says of one of ours, if there is one, and umoci's.
#[track_caller]
fn assert_same(what: &str, ours: &Tree, theirs: &Tree, excused: impl Fn(Option<&Entry>, &Entry) -> bool) {
    let mut differences = Vec::new();
    for path in ours.keys().chain(theirs.keys().filter(|path| !ours.contains_key(*path))) {
        let (a, b) = (ours.get(path), theirs.get(path));
        if a != b && !b.is_some_and(|b| excused(a, b)) {
            differences.push(format!(
                "{path:?}
    ours {a:?}
  umoci's {b:?}"
            ));
        }
    }
    let count = differences.len();
    differences.truncate(20);
    assert!(count == 0, "{what}: {count} of {} entries differ:\n{}", ours.len(), differences.join("\n"));
}

/// umoci's fault, without the right to make device nodes: it makes empty files of their names. Image-spec, layer.md, "File
/// Types": entries are regular files and character devices, "where supported". What is not supported is not something else.
fn is_false_device(ours: Option<&Entry>, theirs: &Entry) -> bool {
    ours.is_none()
        && theirs.what.starts_with("file of 0 bytes, ")
        && theirs.mode == 0o666
        && theirs.name.starts_with("dev")
}

/// umoci's fault, with one id for all files: it sets set-id bits of files whose owner it does not set. Image-spec, layer.md,
/// "File Attributes": an entry has its "User ID", "Group ID" and "Mode". The bits say to run as these ids, and so mean nothing
/// without them; as they are, anyone who reaches the file runs it as the user who unpacked it.
fn is_of_another_owner(ours: Option<&Entry>, theirs: &Entry) -> bool {
    let Some(ours) = ours else { return false };
    let same = Entry { mode: theirs.mode & 0o1777, ..theirs.clone() };
    theirs.what.starts_with("file") && theirs.mode & 0o6000 != 0 && *ours == same
}

/// The tree that overlayfs shows of the image's layers, in a mount namespace that ends with this.
fn mounted(scratch: &Scratch, arguments: &[String]) -> Tree {
    scratch.mkdir("at");
    let look = || {
        unshare(CloneFlags::CLONE_NEWNS).expect("unshare");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect("private");
        let document = finish(scratch.command("img-unpack").args(arguments)).ok();
        finish_with(scratch.command("layer-mount").args(["--from", "-", "at"]), document.as_bytes()).ok();
        let tree = tree(&scratch.path("at"));
        umount(&scratch.path("at")).expect("umount");
        tree
    };
    std::thread::scope(|scope| scope.spawn(look).join().expect("the mounted tree"))
}

#[test]
fn every_entry_of_root_s_tree_is_umoci_s() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new(Who::Root);
    for (i, pair) in pairs(&scratch).iter().enumerate() {
        scratch.sh(&format!("umoci unpack --image {} bundle{i}", pair.layout)).ok();
        let theirs = tree(&scratch.path(format!("bundle{i}/rootfs")));
        let flat = format!("flat{i}");
        finish(scratch.command("img-unpack").args(["--flat", &flat]).args(&pair.arguments)).ok();
        let what = |how: &str| format!("{:?} {how}", pair.arguments);
        assert_same(&what("merged"), &tree(&scratch.path(&flat)), &theirs, |_, _| false);
        assert_same(&what("mounted"), &mounted(&scratch, &pair.arguments), &theirs, |_, _| false);
    }
}

#[test]
fn every_entry_of_a_user_s_tree_is_umoci_s() {
    let scratch = Scratch::new(Who::User);
    for (i, pair) in pairs(&scratch).iter().enumerate() {
        // umoci knows nothing of subordinate ids, but is root in a user namespace that has them.
        scratch.sh(&format!("ns-enter --user --map-auto -- umoci unpack --image {} bundle{i}", pair.layout)).ok();
        let theirs = tree(&scratch.path(format!("bundle{i}/rootfs")));
        let flat = format!("flat{i}");
        finish(scratch.command("img-unpack").args(["--flat", &flat]).args(&pair.arguments)).ok();
        assert_same(&format!("{:?} of a user", pair.arguments), &tree(&scratch.path(&flat)), &theirs, is_false_device);
    }
}

#[test]
fn every_entry_of_a_tree_with_one_id_is_umoci_s() {
    let scratch = Scratch::new(Who::User);
    for (i, pair) in pairs(&scratch).iter().enumerate() {
        scratch.sh(&format!("umoci unpack --rootless --image {} bundle{i}", pair.layout)).ok();
        let mut theirs = tree(&scratch.path(format!("bundle{i}/rootfs")));
        scratch
            .sh(&format!(
                "unshare --map-root-user img-unpack --store single --flat flat{i} {}",
                pair.arguments.join(" ")
            ))
            .ok();
        let mut ours = tree(&scratch.path(format!("flat{i}")));
        // Both record the image's owners, each in its own form.
        for entry in ours.values_mut().chain(theirs.values_mut()) {
            entry
                .attributes
                .retain(|name, _| !matches!(&name[..], b"user.containers.override_stat" | b"user.rootlesscontainers"));
        }
        let what = format!("{:?} with one id", pair.arguments);
        assert_same(&what, &ours, &theirs, |a, b| is_false_device(a, b) || is_of_another_owner(a, b));
    }
}
