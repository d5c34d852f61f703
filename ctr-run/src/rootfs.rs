//! `rootfs:DIR`: a directory as the one read-only layer, with the file systems that are mounted below it.
//!
//! Overlayfs does not show mounts below a layer, and in a user namespace it refuses a layer that has mounts below it which
//! came from outside ("locked", mount_namespaces(7)). So what is mounted below DIR is bound in its place, read-only; and an
//! ordinary user's root is assembled: a union for each directory of DIR that has no mounts below it.

use chain::{Error, Result, ResultExt, mountinfo};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// What [`parts`] finds in a directory that cannot be one layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Names of the directories that get a union of their own.
    pub unions: Vec<OsString>,
    /// Symbolic links: name and target.
    pub links: Vec<(OsString, PathBuf)>,
}

/// Replaced by the API file systems, whatever is mounted there.
const API: [&str; 3] = ["proc", "sys", "dev"];

/// What is mounted below `dir` (absolute), by its path there, outermost first; without what the API file systems replace.
pub fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(below(&mountinfo::read("self")?, dir))
}

fn below(mounts: &[mountinfo::Mount], dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut points: Vec<&Path> = mounts.iter().filter_map(|mount| mount.point.strip_prefix(dir).ok()).collect();
    points.sort_by_key(|point| point.components().count());
    for point in points {
        let api = point.components().next().is_none_or(|first| API.iter().any(|name| first.as_os_str() == *name));
        // A recursive bind of the outer one has the inner ones with it.
        if !api && !found.iter().any(|outer| point.starts_with(outer)) {
            found.push(point.to_path_buf());
        }
    }
    found
}

/// The parts of `dir` for a root that is assembled; `mounts` is what [`mounts_below`] found. Directories that are mounts, or
/// have some below them, are not among them: they are bound whole.
pub fn parts(dir: &Path, mounts: &[PathBuf]) -> Result<Parts> {
    let mut parts = Parts::default();
    for entry in fs::read_dir(dir).call(format_args!("open({dir:?})"))? {
        let entry = entry.call(format_args!("getdents({dir:?})"))?;
        let name = entry.file_name();
        let kind = entry.file_type().call(format_args!("stat({:?})", entry.path()))?;
        if kind.is_symlink() {
            let target = fs::read_link(entry.path()).call(format_args!("readlink({:?})", entry.path()))?;
            parts.links.push((name, target));
        } else if kind.is_dir()
            && !API.iter().any(|api| name == *api)
            && !mounts.iter().any(|mount| mount.starts_with(&name))
        {
            // What this user may not read cannot be a layer.
            if fs::read_dir(entry.path()).is_ok() {
                parts.unions.push(name);
            }
        }
    }
    parts.unions.sort();
    parts.links.sort();
    Ok(parts)
}

/// The directory, absolute and without links. Error: it is none.
pub fn directory(dir: &Path) -> Result<PathBuf> {
    let path = dir.canonicalize().call(format_args!("open({dir:?})"))?;
    if path.is_dir() { Ok(path) } else { Err(Error::call(format_args!("open({dir:?})"), nix::errno::Errno::ENOTDIR)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_outermost_mounts_count_and_not_the_api() {
        let line = |point: &str| format!("1 1 0:1 / {point} rw - ext4 x rw\n");
        let text: String =
            ["/", "/proc", "/dev/pts", "/home/a/b", "/home/a", "/mnt", "/sys/fs/cgroup"].map(line).concat();
        let got = below(&mountinfo::parse(text.as_bytes()), Path::new("/"));
        assert_eq!(got, ["mnt", "home/a"].map(PathBuf::from));
        assert_eq!(below(&mountinfo::parse(text.as_bytes()), Path::new("/home")), ["a"].map(PathBuf::from));
    }

    #[test]
    fn parts_are_directories_and_links() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["usr", "proc", "mnt", "home"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("usr/bin", dir.path().join("bin")).unwrap();
        let got = parts(dir.path(), &[PathBuf::from("mnt/x")]).unwrap();
        assert_eq!(got.unions, ["home", "usr"].map(OsString::from));
        assert_eq!(got.links, [("bin".into(), PathBuf::from("usr/bin"))]);
    }
}
