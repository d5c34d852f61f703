//! /proc/PID/mountinfo (proc_pid_mountinfo(5)).

mod users;

pub use users::{Role, User, overlays_using};

use crate::error::{Result, ResultExt};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One mount of a mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The mount's id, unique while it lives.
    pub id: u32,
    /// The id of the mount that it is on.
    pub parent: u32,
    /// Device of the file system, `major:minor`.
    pub device: String,
    /// What part of the file system is mounted, as a path inside it.
    pub root: PathBuf,
    /// Where, relative to the process's root.
    pub point: PathBuf,
    /// Options of this mount (`ro,nosuid,…`).
    pub options: String,
    /// Optional fields (`shared:1`, `master:2`).
    pub propagation: Vec<String>,
    /// The type of the file system.
    pub fs_type: String,
    /// What was mounted, as the file system names it.
    pub source: OsString,
    /// Options of the file system (`lowerdir=…`), with the kernel's octal escapes left in.
    pub super_options: OsString,
}

/// The mounts of `/proc/PID/mountinfo`; `self` is this process's.
pub fn read(pid: &str) -> Result<Vec<Mount>> {
    let path = format!("/proc/{pid}/mountinfo");
    // The kernel makes the text anew for each read, and tells no size beforehand.
    let mut bytes = Vec::with_capacity(16 << 10);
    File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)).call(format_args!("read({path:?})"))?;
    Ok(parse(&bytes))
}

/// A mount namespace that some process is in.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// The processes in it that this one may look at.
    pub pids: Vec<i32>,
    /// What is mounted in it.
    pub mounts: Vec<Mount>,
}

/// The mount namespaces of all processes that this one may look at, each once. One that only a file keeps, without a
/// process, is not found.
pub fn namespaces() -> Result<Vec<Namespace>> {
    let mut found: BTreeMap<PathBuf, Namespace> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").call(format_args!("open(\"/proc\")"))?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // Processes end meanwhile, and those of others may not be looked at.
        let Ok(name) = std::fs::read_link(entry.path().join("ns/mnt")) else { continue };
        if let Some(namespace) = found.get_mut(&name) {
            namespace.pids.push(pid);
        } else if let Ok(mounts) = read(&pid.to_string()) {
            found.insert(name, Namespace { pids: vec![pid], mounts });
        }
    }
    Ok(found.into_values().collect())
}

/// Parses the file's lines; one that is not of the form is left out.
pub fn parse(bytes: &[u8]) -> Vec<Mount> {
    bytes.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
    let mut words = line.split(|&b| b == b' ');
    let id = text(words.next()?).parse().ok()?;
    let parent = text(words.next()?).parse().ok()?;
    let device = text(words.next()?);
    let root = PathBuf::from(unescape(words.next()?));
    let point = PathBuf::from(unescape(words.next()?));
    let options = text(words.next()?);
    let propagation = words.by_ref().take_while(|word| *word != b"-").map(text).collect();
    let fs_type = text(words.next()?);
    let source = unescape(words.next()?);
    let super_options = OsString::from_vec(words.next().unwrap_or_default().to_vec());
    Some(Mount { id, parent, device, root, point, options, propagation, fs_type, source, super_options })
}

/// Undoes the kernel's octal escapes (`\040` is a space).
pub fn unescape(word: &[u8]) -> OsString {
    if !word.contains(&b'\\') {
        return OsString::from_vec(word.to_vec());
    }
    let mut out = Vec::with_capacity(word.len());
    let mut at = 0;
    while at < word.len() {
        let octal = word
            .get(at + 1..at + 4)
            .filter(|digits| word[at] == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        if let Some(digits) = octal {
            out.push(digits.iter().fold(0u8, |n, d| n.wrapping_mul(8).wrapping_add(d - b'0')));
            at += 4;
        } else {
            out.push(word[at]);
            at += 1;
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_namespace_is_found_once() {
        let own = std::process::id() as i32;
        let namespaces = namespaces().unwrap();
        assert_eq!(namespaces.iter().filter(|namespace| namespace.pids.contains(&own)).count(), 1);
    }

    #[test]
    fn fields_and_escapes() {
        let mounts = parse(
            b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\nnonsense\n",
        );
        assert_eq!(mounts.len(), 1);
        let mount = &mounts[0];
        assert_eq!((mount.id, mount.parent, mount.device.as_str()), (36, 35, "98:0"));
        assert_eq!(mount.point, PathBuf::from("/mnt 2"));
        assert_eq!(mount.propagation, ["master:1", "shared:2"]);
        assert_eq!((mount.fs_type.as_str(), mount.super_options.to_str().unwrap()), ("ext3", "rw,errors=continue"));
    }
}
