//! An archive whose documents are any bytes: never a panic, and an image that is taken has as many layers as its
//! configuration says. Documents are separated by 0xff; `@1` in one stands for the digest of the first one after it, and
//! `#1` for its size, so that the fuzzer gets past the checks.
#![no_main]

use img_unpack::digest::Digest;
use img_unpack::manifest::{Choice, candidates, choose};
use img_unpack::source::Source;
use libfuzzer_sys::fuzz_target;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Seek, Write};

fuzz_target!(|data: &[u8]| {
    let mut documents: Vec<Vec<u8>> = data.split(|&byte| byte == 0xff).take(10).map(<[u8]>::to_vec).collect();
    for at in (0..documents.len()).rev() {
        for later in (at + 1..documents.len()).rev() {
            let digest = Digest::of(&documents[later]).to_string();
            let size = documents[later].len().to_string();
            documents[at] = replace(&documents[at], format!("@{}", later - at).as_bytes(), digest.as_bytes());
            documents[at] = replace(&documents[at], format!("#{}", later - at).as_bytes(), size.as_bytes());
        }
    }
    let mut archive = Vec::new();
    add(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    for (at, document) in documents.iter().enumerate() {
        match at {
            0 => add(&mut archive, "index.json", document),
            1 if !document.is_empty() => add(&mut archive, "manifest.json", document),
            _ => add(&mut archive, &Digest::of(document).blob(), document),
        }
    }
    let mut file: File = tempfile::tempfile_in("/dev/shm").expect("tempfile");
    file.write_all(&archive).expect("write");
    file.rewind().expect("rewind");
    let Ok(source) = Source::of_archive(OsStr::new("fuzz"), file) else { return };
    for candidate in candidates(&source).into_iter().flatten() {
        let _ = candidate.title();
        if let Ok(image) = candidate.load(&source) {
            let stated = image.config["rootfs"]["diff_ids"].as_array().map_or(0, Vec::len);
            assert_eq!(image.layers.len(), stated);
        }
    }
    let _ = choose(&source, &Choice::default());
});

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
    out
}

fn add(archive: &mut Vec<u8>, name: &str, data: &[u8]) {
    let mut header = [0u8; 512];
    header[..name.len().min(100)].copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    header[156] = b'0';
    let sum: u32 = header.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { b.into() }).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    archive.extend_from_slice(&header);
    archive.extend_from_slice(data);
    archive.resize(archive.len().div_ceil(512) * 512, 0);
}
