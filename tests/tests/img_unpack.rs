//! `img-unpack`, end to end: hostile and odd images, the trees they become, the store.

use ctr_tests::image::{Image, Layer, digest, gzip, header, hex};
use ctr_tests::terminal::Terminal;
use ctr_tests::{DEADLINE, Output, Scratch, Who, finish, finish_with, has, real_image, wait};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use tar::EntryType;

/// A header block of any kind and name, with its checksum.
fn block(name: &[u8], kind: u8, link: &[u8], size: usize, mode: u32) -> tar::Header {
    let mut header = header(EntryType::new(kind), mode);
    let bytes = header.as_mut_bytes();
    bytes[..100].fill(0);
    bytes[..name.len()].copy_from_slice(name);
    bytes[157..157 + link.len()].copy_from_slice(link);
    header.set_size(size as u64);
    header.set_cksum();
    header
}

trait Odd {
    fn odd(self, name: &[u8], kind: u8, link: &[u8]) -> Self;
    fn odd_file(self, name: &[u8], data: &[u8]) -> Self;
    fn dir_mode(self, name: &str, mode: u32) -> Self;
    fn pax(self, records: &[(&str, &[u8])]) -> Self;
}

impl Odd for Layer {
    fn odd(self, name: &[u8], kind: u8, link: &[u8]) -> Self {
        self.raw(&block(name, kind, link, 0, 0o777), b"")
    }

    fn odd_file(self, name: &[u8], data: &[u8]) -> Self {
        self.raw(&block(name, b'0', b"", data.len(), 0o644), data)
    }

    fn dir_mode(self, name: &str, mode: u32) -> Self {
        self.raw(&block(name.as_bytes(), b'5', b"", 0, mode), b"")
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.raw(&block(b"pax", b'x', b"", body.len(), 0o644), &body)
    }
}

fn unpack(scratch: &Scratch, image: &Image) -> Output {
    let path = scratch.write("image.tar", image.docker_archive());
    scratch.run("img-unpack", [path])
}

/// The merged tree of an image of these layers, name to a short description.
fn flat(scratch: &Scratch, layers: Vec<Layer>) -> BTreeMap<String, String> {
    let path = scratch.write("image.tar", Image::new(layers).docker_archive());
    let dir = scratch.path("flat");
    let _ = fs::remove_dir_all(&dir);
    finish(scratch.command("img-unpack").arg("--flat").arg(&dir).arg(path)).ok();
    described(&dir)
}

fn described(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(below) = todo.pop() {
        for entry in fs::read_dir(dir.join(&below)).expect("read_dir").flatten() {
            let name = below.join(entry.file_name());
            let meta = fs::symlink_metadata(entry.path()).expect("stat");
            let text = if meta.is_dir() {
                todo.push(name.clone());
                "dir".into()
            } else if meta.is_symlink() {
                format!("-> {}", fs::read_link(entry.path()).expect("link").display())
            } else if meta.is_file() {
                String::from_utf8_lossy(&fs::read(entry.path()).expect("read")).into_owned()
            } else if meta.file_type().is_fifo() {
                "fifo".into()
            } else {
                format!("device {:x}", meta.rdev())
            };
            found.insert(name.to_string_lossy().into_owned(), text);
        }
    }
    found
}

fn tree(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect()
}

fn layers_of(output: &Output) -> Vec<PathBuf> {
    output.json()["layers"].as_array().expect("layers").iter().map(|path| path.as_str().expect("text").into()).collect()
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, |entries| entries.flatten().count())
}

#[test]
fn the_document_is_the_configuration_s() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let config = json!({"Entrypoint": ["/bin/a"], "Cmd": ["b c"], "Env": ["X=1"], "WorkingDir": "/w", "User": "ann",
            "Labels": {"l": "v"}, "StopSignal": "SIGINT", "ExposedPorts": {"80/tcp": {}}});
        let layer = Layer::new().file("etc/passwd", "root:x:0:0::/:\nann:x:7:8::/:\n").file("etc/group", "g:x:9:ann\n");
        let document = unpack(&scratch, &Image::new(vec![layer]).config(config)).json();
        assert_eq!(document["process"]["args"], json!(["/bin/a", "b c"]));
        assert_eq!(document["process"]["cwd"], "/w");
        let user = json!({"uid": 7, "gid": 8, "additionalGids": [9], "username": "ann"});
        assert_eq!(document["process"]["user"], user);
        assert_eq!(document["annotations"]["l"], "v");
        assert_eq!(document["annotations"]["org.opencontainers.image.stopSignal"], "SIGINT");
        assert_eq!(document["annotations"]["org.opencontainers.image.exposedPorts"], "80/tcp");
    }
}

#[test]
fn odd_configurations() {
    let scratch = Scratch::new(Who::User);
    let image = |config| Image::new(vec![Layer::new().file("a", "1")]).config(config);
    let document = unpack(&scratch, &image(json!({"Env": ["=x", "", "A=1"], "Cmd": null}))).json();
    assert_eq!(document["process"]["env"], json!(["A=1"]));
    for name in ["Cmd", "Entrypoint"] {
        unpack(&scratch, &image(json!({name: "sh -c x"}))).fails(125, &[&format!("config.{name} is not a list")]);
    }
}

#[test]
fn archives_layouts_pipes_and_compressions_are_one_image() {
    for who in Who::all() {
        let image = Image::new(vec![Layer::new().file("a", "1"), Layer::new().file("b", "2")]);
        let mut stores = Vec::new();
        let scratch = Scratch::new(who);
        let layout = scratch.mkdir("layout");
        image.oci_layout(&layout);
        scratch.write("d.tar", image.docker_archive());
        scratch.write("d.tgz", gzip(&image.docker_archive()));
        scratch.write("o.tar", image.oci_archive());
        for (i, name) in ["layout", "d.tar", "d.tgz", "o.tar"].iter().enumerate() {
            let store = scratch.path(format!("s{i}"));
            let output = finish(scratch.command("img-unpack").arg("--store").arg(&store).arg(name));
            output.ok();
            stores.push(
                layers_of(&output).iter().map(|path| path.file_name().expect("name").to_owned()).collect::<Vec<_>>(),
            );
        }
        let piped = finish_with(scratch.command("img-unpack").arg("-"), &gzip(&image.oci_archive()));
        piped.ok();
        assert!(stores.iter().all(|layers| *layers == stores[0] && layers.len() == 2), "{stores:?}");
    }
}

#[test]
fn whiteouts_hide_what_is_below_and_nothing_else() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let below = || {
            Layer::new()
                .dir("d")
                .file("d/old", "o")
                .file("d/foobar", "f")
                .file("foo", "1")
                .file("foobar", "2")
                .dir("e")
                .file("e/x", "x")
        };
        let above = Layer::new()
            .file("foo", "new")
            .file(".wh.foo", "")
            .file("d/.wh.old", "")
            .file("e/y", "y")
            .file("e/.wh..wh..opq", "");
        let merged = flat(&scratch, vec![below(), above]);
        assert_eq!(
            merged,
            tree(&[("d", "dir"), ("d/foobar", "f"), ("foo", "new"), ("foobar", "2"), ("e", "dir"), ("e/y", "y")])
        );
        // Removed and made again: nothing old comes back.
        let again = Layer::new().file(".wh.d", "").dir("d").file("d/new", "n");
        assert_eq!(flat(&scratch, vec![below(), again])["d/new"], "n");
        assert!(!scratch.path("flat/d/old").exists());
        // Of nothing: no node. Of a directory component, of the root, AUFS's own.
        let nothing = Layer::new().dir("n").file("n/.wh.none", "").file(".wh..wh.plnk", "").file("usr/share/.wh.x", "");
        let output = unpack(&scratch, &Image::new(vec![below(), nothing]));
        let top = layers_of(&output).pop().expect("layers");
        assert_eq!(described(&top), tree(&[("n", "dir")]));
        let root = Layer::new().file(".wh..wh..opq", "").file("only", "1").dir("d");
        assert_eq!(flat(&scratch, vec![below(), root]), tree(&[("d", "dir"), ("only", "1")]));
    }
}

#[test]
fn whiteouts_of_no_name_are_errors() {
    let scratch = Scratch::new(Who::User);
    for name in [".wh.", ".wh..", ".wh...", "etc/.wh.", "etc/.wh..", "etc/.wh..."] {
        let output = unpack(
            &scratch,
            &Image::new(vec![Layer::new().dir("etc").file("etc/a", ""), Layer::new().odd_file(name.as_bytes(), b"")]),
        );
        output.fails(125, &["whiteout of no name", "layer 2 of 2"]);
    }
}

#[test]
fn everything_replaces_everything() {
    type Make = fn(Layer) -> Layer;
    let kinds: [(&str, Make); 4] = [
        ("file", |layer| layer.file("x", "file")),
        ("dir", |layer| layer.dir("x").file("x/in", "in")),
        ("-> t", |layer| layer.symlink("x", "t")),
        ("fifo", |layer| layer.odd(b"x", b'6', b"")),
    ];
    let scratch = Scratch::new(Who::User);
    for (_, first) in kinds {
        for (expected, second) in kinds {
            for merged in [
                flat(&scratch, vec![second(first(Layer::new()))]),
                flat(&scratch, vec![first(Layer::new()), second(Layer::new())]),
            ] {
                assert_eq!(merged["x"], expected);
                assert_eq!(merged.contains_key("x/in"), expected == "dir");
            }
        }
    }
}

#[test]
fn what_is_under_a_file_replaces_it() {
    let scratch = Scratch::new(Who::User);
    for layers in [
        vec![Layer::new().file("a", "f").file("a/b", "1")],
        vec![Layer::new().file("a", "f"), Layer::new().file("a/b", "1")],
    ] {
        assert_eq!(flat(&scratch, layers), tree(&[("a", "dir"), ("a/b", "1")]));
    }
    // Whiteouts under what is no directory any more do nothing.
    let layers =
        vec![Layer::new().dir("d").file("d/old", ""), Layer::new().symlink("d", "other").file("d/.wh.old", "")];
    assert_eq!(flat(&scratch, layers), tree(&[("d", "-> other")]));
}

#[test]
fn links_never_lead_out() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let outside = scratch.mkdir("outside");
        scratch.write("outside/file", "untouched");
        let out = outside.to_str().expect("utf-8").to_string();
        let mode = fs::metadata(&outside).expect("stat").mode();
        let deep = format!("../../../../../../../../../../{out}");
        for target in [&out, &deep] {
            for apart in [false, true] {
                let first = Layer::new().symlink("l", target).symlink("p", &format!("{target}/file"));
                let second = |layer: Layer| {
                    layer
                        .file("l/new", "in the image")
                        .file("l/.wh.file", "")
                        .file("l/.wh..wh..opq", "")
                        .odd(b"q", b'1', b"p")
                        .dir_mode("z", 0o700)
                };
                let layers = if apart { vec![first, second(Layer::new())] } else { vec![second(first)] };
                let merged = flat(&scratch, layers);
                assert_eq!(merged[&format!("{}/new", out.trim_start_matches('/'))], "in the image");
                assert!(merged["q"].starts_with("-> "), "{merged:?}");
            }
        }
        // A directory in place of a link, whose target keeps its mode.
        assert_eq!(flat(&scratch, vec![Layer::new().symlink("d", &out).dir_mode("d", 0o700)]), tree(&[("d", "dir")]));
        let stolen = unpack(&scratch, &Image::new(vec![Layer::new().symlink("l", &out).odd(b"h", b'1', b"l/file")]));
        stolen.fails(125, &["hard link", "neither this layer nor those below"]);
        assert_eq!(fs::metadata(&outside).expect("stat").mode(), mode);
        assert_eq!(fs::read_to_string(outside.join("file")).expect("read"), "untouched");
        assert_eq!(count(&outside), 1);
    }
}

#[test]
fn names_that_lead_out_are_errors_and_publish_nothing() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        for (name, kind) in [
            (&b"../evil"[..], b'0'),
            (b"x/../y", b'0'),
            (b"..", b'2'),
            (b".", b'2'),
            (b"/", b'2'),
            (b"./", b'2'),
            (b"/.", b'0'),
        ] {
            unpack(
                &scratch,
                &Image::new(vec![Layer::new().file("a", ""), Layer::new().odd(name, kind, b"/tmp/target")]),
            )
            .fails(125, &["layer 2 of 2", "member"]);
        }
        unpack(&scratch, &Image::new(vec![Layer::new().odd(b"h", b'1', b"../../etc/passwd")]))
            .fails(125, &["\"..\" in a name"]);
        // The harmless first layer may stay; nothing half-made does.
        assert_eq!(count(&scratch.path("store/staging")), 0);
        assert!(count(&scratch.path("store/layers/sha256")) <= 4);
    }
}

#[test]
fn odd_names_are_kept_and_empty_ones_skipped() {
    let scratch = Scratch::new(Who::User);
    let long = "c".repeat(255);
    let deep: String = (0..40).map(|_| format!("{}/", "p".repeat(200))).collect();
    let layer = Layer::new()
        .odd_file(b"caf\xe9", b"1")
        .odd_file(b".//a", b"2")
        .odd_file(b"/abs", b"3")
        .odd_file(b"", b"4")
        .file(&long, "5")
        .dir(&deep)
        .file(&format!("{deep}end"), "6")
        .dir_mode("/", 0o711);
    let output = unpack(&scratch, &Image::new(vec![layer]));
    output.ok();
    assert!(output.stderr.contains("members without a name skipped"), "{}", output.stderr);
    let layer = layers_of(&output).remove(0);
    let names: Vec<_> = fs::read_dir(&layer).expect("read_dir").flatten().map(|entry| entry.file_name()).collect();
    use std::os::unix::ffi::OsStrExt;
    assert!(names.iter().any(|name| name.as_bytes() == b"caf\xe9"), "{names:?}");
    assert_eq!((names.len(), fs::metadata(&layer).expect("stat").mode() & 0o7777), (5, 0o711));
    let too_long = Layer::new().pax(&[("path", "x".repeat(256).as_bytes())]).odd_file(b"short", b"");
    unpack(&scratch, &Image::new(vec![too_long])).fails(125, &["ENAMETOOLONG"]);
}

#[test]
fn hard_links_of_all_kinds() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let first = Layer::new().file("low", "below").symlink("lib", "usr/lib").file("usr/lib/x", "x");
        let second = Layer::new()
            .odd(b"before", b'1', b"target")
            .file("target", "t")
            .odd(b"abs", b'1', b"/target")
            .symlink("s", "nowhere")
            .odd(b"hs", b'1', b"s")
            .odd(b"up", b'1', b"low")
            .odd(b"through", b'1', b"lib/x")
            .odd(b"self", b'0', b"")
            .odd(b"self", b'1', b"self")
            .file("a", "old")
            .odd(b"b", b'1', b"a")
            .file("a", "new")
            .odd(b"c2", b'1', b"c1")
            .odd(b"c1", b'1', b"target");
        let merged = flat(&scratch, vec![first, second]);
        for (name, text) in [
            ("before", "t"),
            ("abs", "t"),
            ("hs", "-> nowhere"),
            ("up", "below"),
            ("through", "x"),
            ("a", "new"),
            ("b", "old"),
            ("c2", "t"),
            ("self", ""),
        ] {
            assert_eq!(merged[name], text, "{name}");
        }
        let inode = |name: &str| fs::symlink_metadata(scratch.path("flat").join(name)).expect("stat").ino();
        assert_eq!(inode("up"), inode("low"));
        assert_eq!((inode("before"), inode("c2")), (inode("target"), inode("abs")));
        unpack(&scratch, &Image::new(vec![Layer::new().odd(b"l", b'1', b"missing")]))
            .fails(125, &["\"l\"", "\"missing\""]);
    }
}

#[test]
fn implied_parents_are_those_below() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let first = Layer::new()
            .dir_mode("root", 0o700)
            .dir("usr/lib")
            .file("usr/lib/libc", "c")
            .symlink("lib", "usr/lib")
            .symlink("abs", "/usr/lib");
        let second = Layer::new().file("root/f", "").file("lib/foo", "1").file("abs/bar", "2").file("new/x", "");
        let output = unpack(&scratch, &Image::new(vec![first, second]));
        output.ok();
        let top = layers_of(&output).pop().expect("layer");
        let mode = |name: &str| fs::symlink_metadata(top.join(name)).expect("stat").mode() & 0o7777;
        assert_eq!((mode("root"), mode("new")), (0o700, 0o755));
        assert_eq!(fs::read_to_string(top.join("usr/lib/foo")).expect("read"), "1");
        assert_eq!(fs::read_to_string(top.join("usr/lib/bar")).expect("read"), "2");
        assert!(!top.join("lib").exists() && !top.join("abs").exists());
        assert_eq!(fs::metadata(top.join("root")).expect("stat").mtime(), 1_000_000_000);
    }
}

#[test]
fn attributes_owners_and_times_are_exact() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let mut owned = block(b"owned", b'0', b"", 1, 0o6755);
        owned.set_uid(5);
        owned.set_gid(6);
        owned.set_cksum();
        let capability = b"\x01\0\0\x02\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let layer = Layer::new()
            .dir_mode("d", 0o1777)
            .file("d/late", "")
            .pax(&[
                ("mtime", b"-1.25"),
                ("SCHILY.xattr.user.v", b"a\nb=c\0d"),
                ("SCHILY.xattr.security.capability", capability),
            ])
            .raw(&owned, b"x")
            .pax(&[
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("SCHILY.xattr.user.overlay.opaque", b"y"),
                ("SCHILY.xattr.security.selinux", b"l"),
            ])
            .dir_mode("etc", 0o555)
            .file("etc/f", "");
        let output = unpack(&scratch, &Image::new(vec![layer]));
        output.ok();
        assert!(output.stderr.contains("overlayfs's own attributes dropped"), "{}", output.stderr);
        let root = layers_of(&output).remove(0);
        let meta = fs::metadata(root.join("owned")).expect("stat");
        let owner = if who == Who::Root { (5, 6) } else { (100_004, 100_005) };
        if who == Who::Root || meta.uid() >= 100_000 {
            assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (owner.0, owner.1, 0o6755));
        }
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (-2, 750_000_000));
        assert_eq!(fs::metadata(root.join("d")).expect("stat").mtime(), 1_000_000_000);
        assert_eq!(fs::metadata(root.join("etc")).expect("stat").mode() & 0o7777, 0o555);
        let attributes = finish(std::process::Command::new("python3").args(["-c",
            "import os,sys; print(os.getxattr(sys.argv[1]+'/owned','user.v'), len(os.getxattr(sys.argv[1]+'/owned','security.capability')) if os.geteuid()==0 else 20, os.listxattr(sys.argv[1]+'/etc'))"]).arg(&root));
        assert!(attributes.text().starts_with("b'a\\nb=c\\x00d' 2"), "{attributes:?}");
        assert!(attributes.text().trim().ends_with("[]"), "{attributes:?}");
    }
}

#[test]
fn devices_are_made_by_root_and_skipped_for_a_user() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let mut null = block(b"null", b'3', b"", 0, 0o666);
        null.set_device_major(1).expect("major");
        null.set_device_minor(3).expect("minor");
        null.set_cksum();
        let mut whiteout = block(b"zero", b'3', b"", 0, 0o666);
        whiteout.set_device_major(0).expect("major");
        whiteout.set_device_minor(0).expect("minor");
        whiteout.set_cksum();
        let layer = Layer::new()
            .raw(&null, b"")
            .raw(&whiteout, b"")
            .odd(b"link", b'1', b"null")
            .odd(b"pipe", b'6', b"")
            .odd(b"odd", b'!', b"");
        let output = unpack(&scratch, &Image::new(vec![layer]));
        output.ok();
        assert!(output.stderr.contains("character devices 0:0 skipped"), "{}", output.stderr);
        assert!(output.stderr.contains("unknown type"), "{}", output.stderr);
        let names = described(&layers_of(&output)[0]);
        assert_eq!(names["pipe"], "fifo");
        assert!(!names.contains_key("zero") && !names.contains_key("odd"));
        assert_eq!(names.contains_key("null"), who == Who::Root);
        assert_eq!(names.contains_key("link"), who == Who::Root);
        if who == Who::User {
            assert!(
                output.stderr.contains("device nodes skipped") && output.stderr.contains("owners are exact"),
                "{}",
                output.stderr
            );
        }
    }
}

#[test]
fn damaged_images_publish_nothing() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let image = Image::new(vec![Layer::new().file("a", vec![7; 100_000])]);
        let layout = |change: &dyn Fn(&Path)| {
            let dir = scratch.mkdir("layout");
            let _ = fs::remove_dir_all(&dir);
            scratch.mkdir("layout");
            image.oci_layout(&dir);
            change(&dir);
            scratch.run("img-unpack", ["layout"])
        };
        let blob = |dir: &Path| dir.join("blobs/sha256").join(hex(&gzip(&image.layers[0])));
        let edit = |dir: &Path, change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = fs::read(blob(dir)).expect("read");
            change(&mut bytes);
            fs::write(blob(dir), bytes).expect("write");
        };
        layout(&|dir| edit(dir, &|bytes| bytes.push(0))).fails(125, &["bytes", "are stated", "layer 1 of 1"]);
        layout(&|dir| edit(dir, &|bytes| bytes.truncate(bytes.len() - 1))).fails(125, &["are stated"]);
        // The operating system byte of gzip's header: the same content, another digest.
        layout(&|dir| edit(dir, &|bytes| bytes[9] ^= 1)).fails(125, &["content has the digest"]);
        layout(&|dir| {
            edit(dir, &|bytes| {
                let at = bytes.len() - 8;
                bytes[at] ^= 1
            })
        })
        .fails(125, &["layer 1 of 1"]);
        layout(&|dir| fs::remove_file(blob(dir)).expect("rm")).fails(125, &["is not in the image"]);
        let mut archive = image.docker_archive();
        archive.truncate(5000);
        let path = scratch.write("cut.tar", &archive);
        scratch.run("img-unpack", [path]).fails(125, &["cut short"]);
        scratch.run("img-unpack", ["missing.tar"]).fails(125, &["open(\"missing.tar\")", "ENOENT"]);
        let path = scratch.write("empty.tar", "");
        scratch.run("img-unpack", [path]).fails(125, &["no image in it"]);
        let path = scratch.write("noise.tar", [1; 2000]);
        scratch.run("img-unpack", [path]).fails(125, &["docker save"]);
        assert_eq!((count(&scratch.path("store/layers/sha256")), count(&scratch.path("store/staging"))), (0, 0));
    }
}

#[test]
fn manifests_that_lie() {
    let scratch = Scratch::new(Who::User);
    let layer = Layer::new().file("a", "").bytes();
    let archive = |config: serde_json::Value, manifest: serde_json::Value| {
        let config = config.to_string();
        let mut archive = Layer::new().file("c.json", &config).file("l.tar", &layer);
        archive = archive.file("manifest.json", manifest.to_string());
        let path = scratch.write("m.tar", archive.bytes());
        scratch.run("img-unpack", [path])
    };
    let good = json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}});
    let manifest = |layers: &[&str]| json!([{"Config": "c.json", "RepoTags": null, "Layers": layers}]);
    archive(good.clone(), manifest(&["l.tar"])).ok();
    archive(good.clone(), manifest(&[])).fails(125, &["1 diff_ids for 0 layers"]);
    archive(good.clone(), manifest(&["l.tar", "l.tar"])).fails(125, &["1 diff_ids for 2 layers"]);
    archive(good.clone(), manifest(&[""])).fails(125, &["1 of 1 layers are not in the image"]);
    archive(good.clone(), manifest(&["../../etc/passwd"])).fails(125, &["not in the image"]);
    archive(good.clone(), json!([{"Config": "../c.json", "Layers": []}])).fails(125, &["leads out"]);
    archive(good.clone(), json!({"Config": "c.json"})).fails(125, &["not a list"]);
    let mut other = good.clone();
    other["rootfs"]["type"] = "trees".into();
    archive(other, manifest(&["l.tar"])).fails(125, &["rootfs.type"]);
    let mut other = good.clone();
    other["rootfs"]["diff_ids"] = json!(["sha256:../../x"]);
    archive(other, manifest(&["l.tar"])).fails(125, &["diff_ids", "sha256:../../x"]);
    let mut other = good.clone();
    other["os"] = "windows".into();
    archive(other, manifest(&["l.tar"])).fails(125, &["only linux"]);
    let mut other = good;
    other["rootfs"]["diff_ids"] = json!([digest(b"something else")]);
    archive(other, manifest(&["l.tar"])).fails(125, &["diff_ids states"]);
    let empty = json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
    assert_eq!(archive(empty, manifest(&[])).json()["layers"], json!([]));
}

#[test]
fn one_of_several_by_name_and_platform() {
    let Some(two) = real_image("two-images.docker.tar") else { return };
    let scratch = Scratch::new(Who::User);
    finish(scratch.command("img-unpack").arg(&two))
        .fails(125, &["choose one with --ref", "test_image_1", "test_image_2"]);
    finish(scratch.command("img-unpack").args(["--ref", "test_image_1"]).arg(&two)).ok();
    finish(scratch.command("img-unpack").args(["--ref", "none"]).arg(&two))
        .fails(125, &["no image is called \"none\"", "test_image_1"]);
    finish(scratch.command("img-unpack").args(["--platform", "linux/s390x"]).arg(&two))
        .fails(125, &["no image for linux/s390x"]);
    let list = finish(scratch.command("img-unpack").args(["--list", "--json"]).arg(&two)).json();
    assert_eq!(list.as_array().expect("list").len(), 2);
}

#[test]
fn a_stored_image_is_found_by_name_and_by_file() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let image = Image::new(vec![Layer::new().file("a", "1")]).name("web:1");
        let path = scratch.write("w.tar", image.docker_archive());
        let first = scratch.run("img-unpack", ["w.tar"]);
        let again = scratch.run("img-unpack", ["w.tar"]);
        assert_eq!(first.ok(), again.ok());
        assert_eq!(scratch.run("img-unpack", ["web:1"]).ok(), first.ok());
        assert_eq!(scratch.run("img-unpack", ["docker.io/library/web:1"]).ok(), first.ok());
        fs::remove_file(path).expect("rm");
        assert!(scratch.run("img-unpack", ["--list"]).ok().contains("web:1"));
        let layer = layers_of(&first).remove(0);
        scratch.run("img-unpack", ["--remove", "nothing"]).fails(125, &["no image \"nothing\""]);
        scratch.run("img-unpack", ["--remove", "web:1"]).ok();
        assert!(!layer.exists());
        scratch.run("img-unpack", ["web:1"]).fails(125, &["ENOENT", "no image of that name"]);
        assert_eq!((count(&scratch.path("store/layers/sha256")), count(&scratch.path("store/staging"))), (0, 0));
    }
}

#[test]
fn a_layer_in_use_is_not_removed() {
    let scratch = Scratch::new(Who::all()[0]);
    let output = unpack(&scratch, &Image::new(vec![Layer::new().file("a", "1")]));
    let layer = layers_of(&output).remove(0);
    let held = fs::File::open(&layer).expect("open");
    held.lock_shared().expect("lock");
    scratch.run("img-unpack", ["--remove", "test:latest"]).fails(125, &["in use"]);
    assert!(layer.join("a").exists());
    // Not by closing it alone: a child that another test starts now may have a copy for a moment.
    held.unlock().expect("unlock");
    scratch.run("img-unpack", ["--remove", "test:latest"]).ok();
}

#[test]
fn layers_under_a_mount_are_not_removed() {
    for who in Who::all() {
        // A user mounts in a namespace of their own; who removes sees it from outside.
        let inside = if who == Who::User { "ns-enter --user --map-auto --mount --" } else { "" };
        let scratch = Scratch::new(who);
        let output = unpack(&scratch, &Image::new(vec![Layer::new().file("a", "1")]));
        scratch.write("doc.json", output.ok());
        scratch.mkdir("at");
        let layer = layers_of(&output).remove(0);
        // Without its records the layer is no image's; the mount still has it.
        let script = format!(
            "mkfifo ready end
            {inside} layer-mount --from doc.json --scratch at -- sh -c 'echo > ready; read x < end; cat at/a > seen' &
            timeout 30 cat ready > started
            img-unpack --remove test:latest 2> removed; status=$?
            rm -r store/images; img-unpack --prune 2> pruned || status=1
            timeout 30 sh -c 'echo > end'; wait $!; umount at 2> /dev/null; exit $status"
        );
        let output = scratch.run("sh", ["-c", &script]);
        let read = |name: &str| fs::read_to_string(scratch.path(name)).expect("read");
        assert_eq!((output.status, read("seen").as_str()), (125, "1"), "{output:?}");
        for word in ["is in use", "a layer at", "of process"] {
            assert!(read("removed").contains(word), "{}", read("removed"));
        }
        assert!(read("pruned").contains("is in use and stays: it is a layer at"), "{}", read("pruned"));
        assert!(layer.join("a").exists());
        scratch.run("img-unpack", ["--prune"]).ok();
        assert!(!layer.exists());
    }
}

#[test]
fn names_without_measure_are_errors() {
    let scratch = Scratch::new(Who::User);
    let deep = Layer::new().dir(&"a/".repeat(3000));
    unpack(&scratch, &Image::new(vec![deep])).fails(125, &["layer 1 of 1", "member \"a/a/", "3000 components"]);
    let long = format!("{}/", "n".repeat(200)).repeat(300);
    let many = (0..600).fold(Layer::new(), |layer, i| layer.file(&format!("{long}.wh.{i}"), ""));
    unpack(&scratch, &Image::new(vec![many])).fails(125, &["layer 1 of 1", "in one layer"]);
    let many = (0..300).fold(Layer::new(), |layer, i| layer.file(&format!("{long}{i}"), ""));
    let path = scratch.write("names.tar", many.bytes());
    scratch.run("img-unpack", [path]).fails(125, &["not an archive of images"]);
}

#[test]
fn damage_is_found_and_mended() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let image = Image::new(vec![Layer::new().file("a", "1111"), Layer::new().file("b", "2")]);
        scratch.write("i.tar", image.docker_archive());
        let layer = layers_of(&scratch.run("img-unpack", ["i.tar"])).remove(0);
        scratch.run("img-unpack", ["--verify"]).ok();
        let time = fs::metadata(layer.join("a")).expect("stat").modified().expect("time");
        let file = fs::File::options().write(true).open(layer.join("a"));
        // A user's layers are the user's, root's are root's: whoever runs the tests as root may damage both.
        let Ok(mut file) = file else { continue };
        std::io::Write::write_all(&mut file, b"1112").expect("write");
        file.set_modified(time).expect("utimens");
        drop(file);
        let found = scratch.run("img-unpack", ["--verify"]);
        assert_eq!(found.status, 125);
        assert!(found.stderr.contains("1 names differ: a"), "{}", found.stderr);
        scratch.run("img-unpack", ["--verify", "i.tar"]).ok();
        assert_eq!(fs::read_to_string(layer.join("a")).expect("read"), "1111");
        scratch.run("img-unpack", ["--verify"]).ok();
    }
}

#[test]
fn many_at_once_make_each_layer_once() {
    let scratch = Scratch::new(Who::all()[0]);
    let layers = (0..6).map(|i| Layer::new().file(&format!("f{i}"), vec![i; 300_000])).collect();
    scratch.write("i.tar", Image::new(layers).docker_archive());
    let children: Vec<_> = (0..6)
        .map(|_| {
            scratch.command("img-unpack").arg("i.tar").stdout(std::process::Stdio::piped()).spawn().expect("spawn")
        })
        .collect();
    let outputs: Vec<_> = children.into_iter().map(|child| child.wait_with_output().expect("wait")).collect();
    assert!(outputs.iter().all(|output| output.status.success() && output.stdout == outputs[0].stdout), "{outputs:?}");
    scratch.run("img-unpack", ["--verify"]).ok();
    assert_eq!(count(&scratch.path("store/staging")), 0);
}

#[test]
fn killed_at_any_moment_the_next_run_is_right() {
    let scratch = Scratch::new(Who::all()[0]);
    let layers = (0..4)
        .map(|l| (0..60).fold(Layer::new(), |layer, i| layer.file(&format!("d{l}/f{i}"), vec![i; 20_000])))
        .collect();
    scratch.write("i.tar", Image::new(layers).docker_archive());
    let start = std::time::Instant::now();
    scratch.run("img-unpack", ["i.tar"]).ok();
    let whole = start.elapsed();
    for i in 0..100u32 {
        let _ = fs::remove_dir_all(scratch.path("store/layers"));
        let _ = fs::remove_dir_all(scratch.path("store/images"));
        let mut child =
            scratch.command("img-unpack").arg("i.tar").stdout(std::process::Stdio::null()).spawn().expect("spawn");
        // Moments spread over the whole run: time is what is under test here.
        std::thread::sleep(whole * i / 100);
        let _ = child.kill();
        let _ = child.wait();
        for entry in fs::read_dir(scratch.path("store/layers/sha256")).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                assert_eq!(
                    fs::read_dir(entry.path()).expect("layer").flatten().map(|dir| count(&dir.path())).sum::<usize>(),
                    60
                );
            }
        }
    }
    let output = scratch.run("img-unpack", ["i.tar"]);
    assert_eq!(layers_of(&output).len(), 4);
    scratch.run("img-unpack", ["--verify"]).ok();
    scratch.run("img-unpack", ["--prune"]).ok();
    assert_eq!(count(&scratch.path("store/staging")), 0);
}

#[test]
fn bombs_end_at_the_limit() {
    let scratch = Scratch::new(Who::User);
    let image = Image::new(vec![Layer::new().file("zeros", vec![0; 8 << 20])]);
    scratch.mkdir("layout");
    image.oci_layout(&scratch.path("layout"));
    finish(scratch.command("img-unpack").args(["--max-size", "1M", "layout"])).fails(125, &["larger than --max-size"]);
    finish(scratch.command("img-unpack").args(["--max-size", "9M", "layout"])).ok();
    let hole =
        Layer::new().pax(&[("GNU.sparse.size", b"1099511627776"), ("GNU.sparse.map", b"0,0")]).odd_file(b"hole", b"");
    let hole = Image::new(vec![hole]);
    unpack(&scratch, &hole).ok();
    let path = scratch.write("hole.tar", hole.name("other:1").docker_archive());
    finish(scratch.command("img-unpack").args(["--store", "s2", "--max-size", "1G"]).arg(path))
        .fails(125, &["--max-size"]);
}

#[test]
fn much_of_everything_takes_little_time_and_memory() {
    let scratch = Scratch::new(Who::all()[0]);
    let below = (0..20_000).fold(Layer::new().dir("d"), |layer, i| layer.file(&format!("d/{i}"), ""));
    let above = (0..20_000).fold(Layer::new(), |layer, i| {
        let layer = if i % 20 == 0 { layer.file("d/.wh..wh..opq", "") } else { layer };
        layer.file(&format!("d/.wh.{i}"), "")
    });
    scratch.write("i.tar", Image::new(vec![below, above]).docker_archive());
    let start = std::time::Instant::now();
    let output = finish(scratch.command("sh").args([
        "-c",
        "ulimit -v 400000; exec \"$0\" i.tar",
        ctr_tests::bin_dir().join("img-unpack").to_str().expect("utf-8"),
    ]));
    output.ok();
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
    assert_eq!(described(&layers_of(&output)[1]), tree(&[("d", "dir")]));
}

#[test]
fn real_images_have_the_entries_umoci_finds() {
    for (name, entries) in [
        ("alpine-3.10.docker.tar.gz", 483),
        ("busybox-layers.docker.tar", 424),
        ("hello-world-v25.docker-oci.tar", 2),
        ("whiteout.docker.tar", 2),
        ("basic.docker.tar", 3),
        ("symlinks.docker.tar", 15),
    ] {
        let Some(path) = real_image(name) else { return };
        for who in Who::all() {
            let scratch = Scratch::new(who);
            finish(scratch.command("img-unpack").args(["--flat", "flat"]).arg(&path)).ok();
            assert_eq!(described(&scratch.path("flat")).len() + 1, entries, "{name}");
        }
    }
}

#[test]
fn trees_equal_umoci_s() {
    if !has("umoci") || !ctr_tests::is_root() {
        return;
    }
    let scratch = Scratch::new(Who::Root);
    // Times of directories that the image does not bring are umoci's own time; there is no right one, so it brings all.
    let first = Layer::new()
        .dir_mode("./", 0o755)
        .dir("usr")
        .dir_mode("root", 0o700)
        .dir("usr/lib")
        .file("usr/lib/a", "a")
        .file("gone", "")
        .dir("d")
        .file("d/old", "")
        .odd(b"h", b'1', b"usr/lib/a");
    let second = Layer::new()
        .file(".wh.gone", "")
        .dir("d")
        .file("d/.wh..wh..opq", "")
        .file("d/new", "n")
        .symlink("s", "usr/lib")
        .file("root/f", "");
    let image = Image::new(vec![first, second]).name("t");
    scratch.mkdir("layout");
    image.oci_layout(&scratch.path("layout"));
    scratch.run("umoci", ["unpack", "--image", "layout:t", "bundle"]).ok();
    scratch.run("img-unpack", ["--flat", "flat", "layout"]).ok();
    let listing = |dir: &Path| {
        let script = "cd \"$1\" && find . -printf '%P %y %m %U %G %n %l %T@\\n' | sort";
        finish(std::process::Command::new("sh").args(["-c", script, "sh"]).arg(dir)).ok()
    };
    assert_eq!(listing(&scratch.path("flat")), listing(&scratch.path("bundle/rootfs")));
}

#[test]
fn a_full_store_says_so_and_keeps_nothing() {
    if !ctr_tests::is_root() {
        return;
    }
    let scratch = Scratch::new(Who::Root);
    scratch.mkdir("small");
    scratch.mkdir("layout");
    let layer = Layer::new().file("a", "1").file("big", vec![1; 8 << 20]);
    Image::new(vec![layer]).oci_layout(&scratch.path("layout"));
    // The mount vanishes with its namespace.
    let script = "mount -t tmpfs -o size=4M none small; img-unpack --store small/s layout && exit 1; echo left: $(find small/s/layers/sha256 small/s/staging -mindepth 1)";
    let output = scratch.run("unshare", ["-m", "sh", "-c", script]);
    assert_eq!(output.ok().trim(), "left:");
    assert!(output.stderr.contains("ENOSPC") && output.stderr.contains("make room"), "{}", output.stderr);
}

/// An OCI layout whose index is made of these descriptors' documents: (document, members of its descriptor).
fn layout(
    scratch: &Scratch,
    image: &Image,
    index: impl Fn(
        &dyn Fn(&serde_json::Value, serde_json::Value) -> serde_json::Value,
        serde_json::Value,
    ) -> serde_json::Value,
) -> Output {
    let dir = scratch.path("layout");
    let _ = fs::remove_dir_all(&dir);
    scratch.mkdir("layout");
    image.oci_layout(&dir);
    let text = fs::read(dir.join("index.json")).expect("read");
    let own: serde_json::Value = serde_json::from_slice(&text).expect("json");
    let put = |document: &serde_json::Value, mut descriptor: serde_json::Value| {
        let text = document.to_string();
        fs::write(dir.join("blobs/sha256").join(hex(text.as_bytes())), &text).expect("write");
        descriptor["digest"] = digest(text.as_bytes()).into();
        descriptor["size"] = text.len().into();
        descriptor
    };
    let index = index(&put, own["manifests"][0].clone());
    fs::write(dir.join("index.json"), index.to_string()).expect("write");
    scratch.run("img-unpack", ["layout"])
}

#[test]
fn indexes_of_all_shapes() {
    let scratch = Scratch::new(Who::User);
    let image = Image::new(vec![Layer::new().file("a", "1")]);
    let kind = "application/vnd.oci.image.index.v1+json";
    let manifest_kind = "application/vnd.oci.image.manifest.v1+json";
    // Attestations first, unknown types, other platforms, an index in an index.
    layout(&scratch, &image, |put, mut own| {
        own["platform"] = json!({"os": "linux", "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }});
        let attestation = put(&json!({"schemaVersion": 2, "layers": []}), json!({"mediaType": manifest_kind,
            "platform": {"os": "unknown", "architecture": "unknown"}, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}}));
        let other = put(&json!({"schemaVersion": 2}), json!({"mediaType": manifest_kind, "platform": {"os": "linux", "architecture": "s390x"}}));
        let inner = put(&json!({"schemaVersion": 2, "mediaType": kind, "manifests": [attestation, other, own]}), json!({"mediaType": kind}));
        json!({"schemaVersion": 2, "manifests": [inner, {"mediaType": "application/xml", "digest": "x", "size": 1}], "annotations": null})
    })
    .ok();
    type Put<'a> = dyn Fn(&serde_json::Value, serde_json::Value) -> serde_json::Value + 'a;
    let words = |index: fn(&Put<'_>, serde_json::Value) -> serde_json::Value, words: &[&str]| {
        layout(&scratch, &image, index).fails(125, words);
    };
    words(|_, own| json!({"schemaVersion": 2, "manifests": [own], "layers": []}), &["both an index and a manifest"]);
    words(
        |put, _| {
            let both = put(
                &json!({"manifests": [], "config": {}}),
                json!({"mediaType": "application/vnd.oci.image.manifest.v1+json"}),
            );
            json!({"schemaVersion": 2, "manifests": [both]})
        },
        &["both an index and a manifest"],
    );
    words(
        |_, mut own| {
            own["size"] = (-1).into();
            json!({"manifests": [own]})
        },
        &["size -1"],
    );
    words(
        |_, mut own| {
            own["digest"] = "sha256:../../../etc/passwd".into();
            json!({"manifests": [own]})
        },
        &["digest"],
    );
    words(
        |_, mut own| {
            own["data"] = "aGk=".into();
            json!({"manifests": [own]})
        },
        &["differs from the data"],
    );
    words(
        |put, _| {
            let lying = put(
                &json!({"mediaType": "application/vnd.docker.distribution.manifest.v2+json"}),
                json!({"mediaType": "application/vnd.oci.image.manifest.v1+json"}),
            );
            json!({"manifests": [lying]})
        },
        &["is of type"],
    );
    words(
        |put, _| {
            let artifact = put(
                &json!({"config": {"mediaType": "application/vnd.oci.empty.v1+json"}}),
                json!({"mediaType": "application/vnd.oci.image.manifest.v1+json"}),
            );
            json!({"manifests": [artifact]})
        },
        &["not an image"],
    );
    words(|_, _| json!({"schemaVersion": 2, "manifests": []}), &["no image in it"]);
    words(
        |put, own| {
            let kind = "application/vnd.oci.image.index.v1+json";
            (0..20).fold(
                json!({"manifests": [own]}),
                |inner, _| json!({"manifests": [put(&inner, json!({"mediaType": kind}))]}),
            )
        },
        &["nested"],
    );
}

#[test]
fn progress_is_shown_on_a_terminal_and_nowhere_else() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let layers = (0..4).map(|i| Layer::new().file(&format!("{i}"), vec![i; 3 << 20])).collect();
        Image::new(layers).oci_layout(&scratch.path("layout"));
        let terminal = Terminal::new(&scratch, 24, 80);
        let mut child = terminal.spawn(&scratch, "sh", &["-c", "img-unpack layout >/dev/null; echo en''ded"]);
        terminal.expect("ended");
        wait(&mut child, DEADLINE).expect("it does not end");
        let shown = terminal.shown();
        assert!(
            shown.contains("img-unpack: ") && shown.contains(" of ") && shown.contains("/s\x1b[K\r\x1b[K"),
            "{shown:?}"
        );
        for args in [&["--store", "piped", "layout"][..], &["--store", "quiet", "--quiet", "layout"]] {
            let output = scratch.run("img-unpack", args);
            assert!(output.status == 0 && !output.stderr.contains("/s"), "{output:?}");
        }
    }
}
