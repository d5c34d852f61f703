//! `img-unpack`: who attacks the target while it is written, images without measure, and archives whose members lie.

use ctr_tests::image::{Image, Layer, digest, gzip, header, hex};
use ctr_tests::{Output, Scratch, Who, finish};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tar::EntryType;

/// Exchanges the directory `dir` for a link to `outside` and back, until told to stop; how often it did.
fn attack(dir: &Path, outside: &Path, stop: &AtomicBool) -> u32 {
    let away = dir.with_extension("away");
    let mut times = 0;
    while !stop.load(Ordering::Relaxed) {
        if fs::rename(dir, &away).is_ok() {
            times += u32::from(symlink(outside, dir).is_ok());
            std::thread::yield_now();
            let _ = fs::remove_file(dir);
            let _ = fs::rename(&away, dir);
        }
    }
    times
}

#[test]
fn who_exchanges_directories_of_the_target_for_links_gets_nothing_written_outside() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let mut layer = Layer::new().dir("a").dir("a/b");
        for number in 0..100 {
            layer = layer
                .dir(&format!("a/b/{number}"))
                .file(&format!("a/b/{number}/file"), "x")
                .symlink(&format!("a/b/l{number}"), "..");
            layer = layer.link(&format!("a/hard{number}"), &format!("a/b/{number}/file"));
        }
        let image = scratch.write("image.tar", Image::new(vec![layer]).docker_archive());
        let outside = scratch.mkdir("outside");
        scratch.write("outside/b", "not a directory");
        let before = (outside.metadata().unwrap(), scratch.path("outside/b").metadata().unwrap());
        let mut attacks = 0;
        for round in 0..3 {
            let target = scratch.mkdir(format!("target{round}"));
            let stop = Arc::new(AtomicBool::new(false));
            let attacker = {
                let (dir, outside, stop) = (target.join("a"), outside.clone(), Arc::clone(&stop));
                std::thread::spawn(move || attack(&dir, &outside, &stop))
            };
            let output = finish(scratch.command("img-unpack").arg("--flat").arg(&target).arg(&image));
            stop.store(true, Ordering::Relaxed);
            attacks += attacker.join().unwrap();
            assert!(matches!(output.status, 0 | 125), "{output:?}");
            let after = (outside.metadata().unwrap(), scratch.path("outside/b").metadata().unwrap());
            let seen =
                |meta: &fs::Metadata| (meta.mode(), meta.uid(), meta.mtime_nsec(), meta.ctime_nsec(), meta.nlink());
            assert_eq!(seen(&after.0), seen(&before.0));
            assert_eq!(seen(&after.1), seen(&before.1));
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        }
        assert!(attacks > 0, "the attacker never got its turn");
    }
}

/// Runs the tool with so much address space, in KiB.
fn within(scratch: &Scratch, kib: u32, args: &[&str]) -> Output {
    let tool = ctr_tests::bin_dir().join("img-unpack");
    let script = format!("ulimit -v {kib}; exec \"$0\" \"$@\"");
    finish(scratch.command("sh").args(["-c", &script]).arg(tool).args(args))
}

#[test]
fn a_million_empty_entries_take_no_more_memory_than_a_few() {
    let scratch = Scratch::new(Who::all()[0]);
    // In one archive of 512 MB that is never on a disk as a whole.
    let mut blob = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut hash = sha2::Sha256::default();
    let mut put = |bytes: &[u8]| {
        sha2::Digest::update(&mut hash, bytes);
        blob.write_all(bytes).unwrap();
    };
    let blocks: Vec<u8> = (0..1000).flat_map(|number| block(&format!("d{number}/")).as_bytes().to_vec()).collect();
    (0..1000).for_each(|_| put(&blocks));
    put(&[0; 1024]);
    let (blob, diff_id) = (blob.finish().unwrap(), format!("{:x}", sha2::Digest::finalize(hash)));
    layout(&scratch.path("layout"), &blob, &diff_id, "amd64");
    let output = within(&scratch, 300_000, &["layout"]).ok();
    let document: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(fs::read_dir(document["layers"][0].as_str().unwrap()).unwrap().count(), 1000);
}

/// The header of an empty directory.
fn block(name: &str) -> tar::Header {
    let mut header = header(EntryType::Directory, 0o755);
    header.set_path(name).unwrap();
    header.set_cksum();
    header
}

/// An OCI layout with one gzipped layer.
fn layout(dir: &Path, blob: &[u8], diff_id: &str, architecture: &str) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], kind: &str| {
        fs::write(blobs.join(hex(bytes)), bytes).unwrap();
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest(bytes), "size": bytes.len()})
    };
    let layer = put(blob, "layer.v1.tar+gzip");
    let config = json!({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]}});
    let config = put(config.to_string().as_bytes(), "config.v1+json");
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let entry = put(manifest.to_string().as_bytes(), "manifest.v1+json");
    fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

#[test]
fn directories_a_thousand_deep_are_stored_and_removed() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        // Without an entry for any of the parents, and longer than a path may be (PATH_MAX).
        let name = format!("{}file", "deep/".repeat(1000));
        let mut path = format!("30 path={name}\n");
        path = format!("{} path={name}\n", path.len() + 2);
        let mut pax = header(EntryType::XHeader, 0o644);
        pax.set_size(path.len() as u64);
        pax.set_path("pax").unwrap();
        pax.set_cksum();
        let mut file = header(EntryType::Regular, 0o644);
        file.set_size(1);
        file.set_path("short").unwrap();
        file.set_cksum();
        let image = Image::new(vec![Layer::new().raw(&pax, path.as_bytes()).raw(&file, b"x")]);
        scratch.write("image.tar", image.docker_archive());
        let layer = within(&scratch, 300_000, &["image.tar"]).json()["layers"][0].as_str().unwrap().to_string();
        let mut place: OwnedFd = fs::File::open(&layer).unwrap().into();
        for name in ["deep"; 1000].into_iter().chain(["file"]) {
            place = nix::fcntl::openat(&place, name, OFlag::O_RDONLY, Mode::empty()).unwrap();
        }
        assert_eq!(std::io::read_to_string(fs::File::from(place)).unwrap(), "x");
        scratch.run("img-unpack", ["--verify"]).ok();
        scratch.run("img-unpack", ["--remove", "test:latest"]).ok();
        assert!(!Path::new(&layer).exists());
    }
}

/// A `docker save` archive of these members, and a manifest that names `layers`.
fn archive(members: &[(&str, &[u8])], links: &[(&str, &str)], layers: &[&str], diff_ids: &[String]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string();
    let manifest = json!([{"Config": "config.json", "RepoTags": ["links:1"], "Layers": layers}]).to_string();
    for (name, target) in links {
        archive.append_link(&mut header(EntryType::Symlink, 0o777), name, target).unwrap();
    }
    let own = [("config.json", config.as_bytes()), ("manifest.json", manifest.as_bytes())];
    for (name, content) in members.iter().chain(&own) {
        let mut header = header(EntryType::Regular, 0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, *content).unwrap();
    }
    archive.into_inner().unwrap()
}

#[test]
fn a_layer_may_be_a_link_to_another_member_and_to_nothing_else() {
    let scratch = Scratch::new(Who::all()[0]);
    let layer = Layer::new().file("file", "x").bytes();
    let twice = [digest(&layer), digest(&layer)];
    let run = |links: &[(&str, &str)]| {
        let bytes = archive(&[("one/layer.tar", &layer)], links, &["one/layer.tar", "two/layer.tar"], &twice);
        scratch.write("image.tar", bytes);
        let from_file = scratch.run("img-unpack", ["image.tar"]);
        let pipe = finish(scratch.command("sh").args(["-c", "cat image.tar | img-unpack --store piped -"]));
        assert_eq!(from_file.status, pipe.status, "{pipe:?}");
        from_file
    };
    for target in ["../one/layer.tar", "/one/layer.tar"] {
        assert_eq!(run(&[("two/layer.tar", target)]).json()["layers"].as_array().unwrap().len(), 2);
    }
    scratch.write("secret", Layer::new().file("secret", "s").bytes());
    for target in ["../../secret", "../two/layer.tar", "../no/layer.tar", &scratch.path("secret").to_string_lossy()] {
        run(&[("two/layer.tar", target)]).fails(125, &["two/layer.tar"]);
    }
    run(&[("two/layer.tar", "../three/layer.tar"), ("three/layer.tar", "../two/layer.tar")]).fails(125, &["layer.tar"]);
}

#[test]
fn archives_of_before_there_were_manifests_are_refused_by_name() {
    let scratch = Scratch::new(Who::all()[0]);
    let mut archive = tar::Builder::new(Vec::new());
    let layer = Layer::new().file("file", "x").bytes();
    for (name, content) in [
        ("repositories", &br#"{"old":{"latest":"abc"}}"#[..]),
        ("abc/VERSION", b"1.0"),
        ("abc/json", br#"{"id":"abc"}"#),
        ("abc/layer.tar", &layer),
    ] {
        let mut header = header(EntryType::Regular, 0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content).unwrap();
    }
    let bytes = archive.into_inner().unwrap();
    scratch.write("old.tar", &bytes);
    scratch.write("old.tar.gz", gzip(&bytes));
    for name in ["old.tar", "old.tar.gz"] {
        scratch.run("img-unpack", [name]).fails(125, &["Docker before 1.10", "save it again"]);
    }
}

#[test]
fn whiteouts_in_directories_without_an_entry_are_applied() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let base = Layer::new().dir("usr").dir("usr/share").file("usr/share/x", "x").file("usr/share/y", "y");
        let above = Layer::new().file("usr/share/.wh.x", "").file("new/dir/.wh..wh..opq", "").file("gone/.wh.z", "");
        let image = scratch.write("image.tar", Image::new(vec![base, above]).docker_archive());
        finish(scratch.command("img-unpack").arg("--flat").arg(scratch.path("flat")).arg(image)).ok();
        assert!(!scratch.path("flat/usr/share/x").exists() && scratch.path("flat/usr/share/y").exists());
        assert!(scratch.path("flat/new/dir").is_dir(), "an opaque marker is a directory's");
        assert_eq!(fs::read_dir(scratch.path("flat/new/dir")).unwrap().count(), 0);
    }
}

#[test]
fn an_image_of_another_architecture_is_told() {
    let scratch = Scratch::new(Who::all()[0]);
    let layer = Layer::new().file("file", "x").bytes();
    layout(&scratch.path("layout"), &gzip(&layer), &hex(&layer), "s390x");
    let told = "img-unpack: the image is for linux/s390x, and this machine is linux/";
    assert!(scratch.run("img-unpack", ["layout"]).stderr.starts_with(told));
    for options in
        [&["--store", "quiet", "--quiet", "layout"][..], &["--store", "asked", "--platform", "linux/s390x", "layout"]]
    {
        let output = scratch.run("img-unpack", options);
        assert!(output.status == 0 && !output.stderr.contains("s390x"), "{output:?}");
    }
}
