//! A layer of any bytes, applied on top of another: never a panic, nothing outside its directory, and what it made can be
//! listed. Header checksums are put right, so that the fuzzer gets past them.
#![no_main]

use img_unpack::apply::{Target, apply};
use img_unpack::archive::Archive;
use img_unpack::merged::Merged;
use img_unpack::node::{Owners, Policy, open_dir};
use libfuzzer_sys::fuzz_target;
use std::fs;
use std::path::Path;

const POLICY: Policy = Policy { owners: Owners::Single, opaque: "user.overlay.opaque" };

fuzz_target!(|data: &[u8]| {
    let top = tempfile::tempdir_in("/dev/shm").expect("tempdir");
    let canary = top.path().join("canary");
    fs::write(&canary, "untouched").expect("write");
    let (lower, upper) = data.split_at(data.len() / 2 / 512 * 512);
    let first = top.path().join("1");
    let second = top.path().join("2");
    layer(lower, &first, &[]);
    layer(upper, &second, &[&first]);
    assert_eq!(fs::read(&canary).expect("canary"), b"untouched");
    assert_eq!(fs::read_dir(top.path()).expect("top").count(), 3);
    let _ = chain::remove::remove_tree(&first);
    let _ = chain::remove::remove_tree(&second);
});

fn layer(data: &[u8], dir: &Path, below: &[&Path]) {
    fs::create_dir(dir).expect("mkdir");
    let mut bytes = data.to_vec();
    for block in bytes.chunks_exact_mut(512) {
        let sum: u32 = block.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { b.into() }).sum();
        if block[148] == b'!' {
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    let merged = || Ok(Merged::root(below.iter().map(|path| open_dir(path)).collect::<Result<_, _>>()?, POLICY.opaque));
    let holes = |size: u64| if size > 1 << 20 { Err(chain::Error::new("large")) } else { Ok(()) };
    let target = Target { dir: open_dir(dir).expect("open"), below: &merged, policy: POLICY, holes: &holes };
    let applied = apply(&mut Archive::new(&bytes[..]), target);
    if let Ok(applied) = applied {
        let root = open_dir(dir).expect("open");
        img_unpack::listing::make(&root, |stat, _| applied.content(stat.st_ino), &mut std::io::sink()).expect("list");
    }
}
