//! Images made on the spot: layers of chosen entries, as `docker save` archives and OCI layouts.

use crate::{Scratch, Who};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::path::Path;

/// A layer's tar stream in the making.
pub struct Layer(tar::Builder<Vec<u8>>);

impl Default for Layer {
    fn default() -> Self {
        Layer::new()
    }
}

impl Layer {
    /// An empty layer.
    pub fn new() -> Self {
        Layer(tar::Builder::new(Vec::new()))
    }

    /// A regular file of root's, mode 0644.
    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.file_mode(path, content, 0o644)
    }

    /// A regular file of root's.
    pub fn file_mode(mut self, path: &str, content: impl AsRef<[u8]>, mode: u32) -> Self {
        let content = content.as_ref();
        let mut header = header(tar::EntryType::Regular, mode);
        header.set_size(content.len() as u64);
        self.0.append_data(&mut header, path, content).expect("tar");
        self
    }

    /// A directory of root's, mode 0755.
    pub fn dir(mut self, path: &str) -> Self {
        let mut header = header(tar::EntryType::Directory, 0o755);
        self.0.append_data(&mut header, format!("{path}/"), &b""[..]).expect("tar");
        self
    }

    /// A symbolic link.
    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        let mut header = header(tar::EntryType::Symlink, 0o777);
        self.0.append_link(&mut header, path, target).expect("tar");
        self
    }

    /// A hard link.
    pub fn link(mut self, path: &str, target: &str) -> Self {
        let mut header = header(tar::EntryType::Link, 0o644);
        self.0.append_link(&mut header, path, target).expect("tar");
        self
    }

    /// An entry as its header and data say, for what the other functions refuse to make.
    pub fn raw(mut self, header: &tar::Header, data: &[u8]) -> Self {
        self.0.append(header, data).expect("tar");
        self
    }

    /// Busybox with its applets, and the files of a test root (see [`crate::rootfs`]).
    pub fn busybox(mut self) -> Self {
        for dir in ["bin", "etc", "proc", "sys", "dev", "root", "home", "home/app", "mnt"] {
            self = self.dir(dir);
        }
        let mut tmp = header(tar::EntryType::Directory, 0o1777);
        self.0.append_data(&mut tmp, "tmp/", &b""[..]).expect("tar");
        self = self.file_mode("bin/busybox", fs::read(crate::rootfs::busybox()).expect("busybox"), 0o755);
        for applet in crate::rootfs::APPLETS {
            self = self.symlink(&format!("bin/{applet}"), "busybox");
        }
        for (path, text) in crate::rootfs::files() {
            self = self.file(path, text);
        }
        self
    }

    /// The tar stream.
    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().expect("tar")
    }
}

/// A header of root's with a fixed time.
pub fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(0);
    header
}

/// An image in the making.
pub struct Image {
    /// The layers' tar streams, base first.
    pub layers: Vec<Vec<u8>>,
    /// The configuration's `config` member.
    pub config: Value,
    /// Its name, as in `docker save` (`name:tag`).
    pub name: String,
}

impl Image {
    /// An image of `layers`, base first, that runs `/bin/sh`.
    pub fn new(layers: Vec<Layer>) -> Self {
        Image {
            layers: layers.into_iter().map(Layer::bytes).collect(),
            config: json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin", "FROM_IMAGE=yes"]}),
            name: "test:latest".into(),
        }
    }

    /// An image with busybox.
    pub fn busybox() -> Self {
        Image::new(vec![Layer::new().busybox()])
    }

    /// The same with another `config` member.
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// The same with another name.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// The configuration: platform, `config` and diff IDs.
    pub fn configuration(&self) -> Vec<u8> {
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| digest(layer)).collect();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let text = json!({"architecture": architecture, "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        text.to_string().into_bytes()
    }

    /// A `docker save` archive (manifest.json, plain layers).
    pub fn docker_archive(&self) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut add = |path: &str, content: &[u8]| {
            let mut header = header(tar::EntryType::Regular, 0o644);
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, path, content).expect("tar");
        };
        let configuration = self.configuration();
        let config_name = format!("{}.json", hex(&configuration));
        let mut names = Vec::new();
        for layer in &self.layers {
            let name = format!("{}/layer.tar", hex(layer));
            if !names.contains(&name) {
                add(&name, layer);
            }
            names.push(name);
        }
        add(&config_name, &configuration);
        add(
            "manifest.json",
            json!([{"Config": config_name, "RepoTags": [self.name], "Layers": names}]).to_string().as_bytes(),
        );
        archive.into_inner().expect("tar")
    }

    /// An OCI layout in the directory `dir`, layers gzipped.
    pub fn oci_layout(&self, dir: &Path) {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("mkdir");
        let put = |bytes: &[u8], media_type: &str| -> Value {
            fs::write(blobs.join(hex(bytes)), bytes).expect("write");
            json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
        };
        let layers: Vec<Value> =
            self.layers.iter().map(|layer| put(&gzip(layer), "application/vnd.oci.image.layer.v1.tar+gzip")).collect();
        let config = put(&self.configuration(), "application/vnd.oci.image.config.v1+json");
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": layers});
        let mut entry = put(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": self.name});
        fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string())
            .expect("write");
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write");
    }

    /// The same layout as one tar archive.
    pub fn oci_archive(&self) -> Vec<u8> {
        let dir = tempfile::tempdir().expect("tempdir");
        self.oci_layout(dir.path());
        let mut archive = tar::Builder::new(Vec::new());
        archive.append_dir_all(".", dir.path()).expect("tar");
        archive.into_inner().expect("tar")
    }
}

/// A scratch for `who` with the image of busybox in it, and the image's path.
pub fn busybox(who: Who) -> (Scratch, String) {
    let scratch = Scratch::new(who);
    let path = scratch.write("image.tar", Image::busybox().docker_archive());
    (scratch, path.to_string_lossy().into_owned())
}

/// `sha256:…` of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

/// The SHA-256 of `bytes` as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `bytes` gzipped.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("gzip");
    encoder.finish().expect("gzip")
}
