//! Who uses a directory as a layer: found in the mount tables of all processes, since a mount is the record that vanishes
//! with its last user.

use super::{Mount, parse, unescape};
use crate::error::{Result, ResultExt};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What a directory is to a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// One of an overlay's read-only layers.
    Layer,
    /// An overlay's writable layer.
    Upper,
    /// What an overlay's kernel side works in.
    Work,
    /// Mounted itself.
    Bind,
}

/// A mount that uses a directory, in some mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// A process in that mount namespace (the first found).
    pub pid: u32,
    /// Its name (proc_pid_comm(5)).
    pub command: String,
    /// Where, as that process sees it.
    pub point: PathBuf,
    /// What the directory is to the mount.
    pub role: Role,
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let role = match self.role {
            Role::Layer => "a layer",
            Role::Upper => "the writable layer",
            Role::Work => "the work directory",
            Role::Bind => "what is mounted",
        };
        write!(f, "{role} at {:?} of process {} ({})", self.point, self.pid, self.command)
    }
}

/// The mounts that use `dir` (absolute, without links): overlays in all mount namespaces of the processes that can be seen,
/// and in others than this one also bind mounts of it. A mount that was detached lazily is not seen any more.
///
/// Errors: /proc cannot be read.
pub fn overlays_using(dir: &Path) -> Result<Vec<User>> {
    let needle = dir.file_name().unwrap_or(OsStr::new("/")).as_bytes();
    let inside = inside_its_file_system(&super::read("self")?, dir);
    let mut seen = HashSet::new();
    let mut users = Vec::new();
    for entry in fs::read_dir("/proc").call(format_args!("open(\"/proc\")"))?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that ends meanwhile has no mounts any more.
        let Some(table) = table_of(pid, &mut seen) else { continue };
        let escaped = needle.iter().any(|byte| !byte.is_ascii_alphanumeric() && !b"-_./".contains(byte));
        if !escaped && !table.windows(needle.len()).any(|window| window == needle) {
            continue;
        }
        for mount in parse(&table) {
            let role = role_in_overlay(&mount, dir).or_else(|| {
                let (device, root) = inside.as_ref()?;
                (mount.device == *device && mount.root == *root && mount.point != dir).then_some(Role::Bind)
            });
            users.extend(role.map(|role| User { pid, command: command_of(pid), point: mount.point, role }));
        }
    }
    Ok(users)
}

/// The mount table of process `pid`, if no process with the same one was asked before.
fn table_of(pid: u32, seen: &mut HashSet<OsString>) -> Option<Vec<u8>> {
    // Only who may trace a process sees its namespace's name.
    if let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt"))
        && !seen.insert(namespace.into_os_string())
    {
        return None;
    }
    let mut file = File::open(format!("/proc/{pid}/mountinfo")).ok()?;
    let mut table = vec![0; 16 << 10];
    let length = file.read(&mut table).ok()?;
    table.truncate(length);
    // A mount's id is unique over all namespaces, so the first one names the table as well.
    let first = table.split(|&b| b == b' ').next()?.to_vec();
    if !seen.insert(OsString::from_vec(first)) {
        return None;
    }
    file.read_to_end(&mut table).ok()?;
    Some(table)
}

fn command_of(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_string()
}

/// The device and the path inside its file system of `dir`, from the table of this process.
fn inside_its_file_system(mounts: &[Mount], dir: &Path) -> Option<(String, PathBuf)> {
    // The deepest mount point, and of several on one another the last.
    let mount = mounts
        .iter()
        .filter(|mount| dir.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.as_os_str().len())?;
    let rest = dir.strip_prefix(&mount.point).ok()?;
    let root = if rest.as_os_str().is_empty() { mount.root.clone() } else { mount.root.join(rest) };
    Some((mount.device.clone(), root))
}

fn role_in_overlay(mount: &Mount, dir: &Path) -> Option<Role> {
    if mount.fs_type != "overlay" {
        return None;
    }
    mount.super_options.as_bytes().split(|&b| b == b',').find_map(|option| {
        let at = option.iter().position(|&b| b == b'=')?;
        let (key, value) = (&option[..at], unescape(&option[at + 1..]));
        let same = |name: &[u8]| Path::new(OsStr::from_bytes(name)) == dir;
        match key {
            // KERNEL(6.8): one option a layer, names as they are.
            b"lowerdir+" => same(value.as_bytes()).then_some(Role::Layer),
            b"lowerdir" => layers(value.as_bytes()).iter().any(|name| same(name)).then_some(Role::Layer),
            b"upperdir" => same(value.as_bytes()).then_some(Role::Upper),
            b"workdir" => same(value.as_bytes()).then_some(Role::Work),
            _ => None,
        }
    })
}

/// The names in `lowerdir=`: between colons; a backslash makes a colon or itself part of the name.
fn layers(value: &[u8]) -> Vec<Vec<u8>> {
    let mut names = vec![Vec::new()];
    let mut bytes = value.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b':' => names.push(Vec::new()),
            b'\\' => names.last_mut().into_iter().for_each(|name| name.extend(bytes.next())),
            _ => names.last_mut().into_iter().for_each(|name| name.push(byte)),
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(options: &str) -> Mount {
        parse(format!("9 1 0:9 / /m rw - overlay x {options}\n").as_bytes()).remove(0)
    }

    #[test]
    fn the_kernels_ways_of_writing_layers() {
        let new = overlay(r"rw,lowerdir+=/a,lowerdir+=/b\072c\054\134,upperdir=/u\040p,workdir=/w");
        let old = overlay(r"rw,lowerdir=/a:/b\134:c\054\134\134,upperdir=/u\040p,workdir=/w");
        for mount in [new, old] {
            let role = |dir: &str| role_in_overlay(&mount, Path::new(dir));
            assert_eq!(role("/a"), Some(Role::Layer), "{mount:?}");
            assert_eq!(role(r"/b:c,\"), Some(Role::Layer), "{mount:?}");
            assert_eq!(role("/u p"), Some(Role::Upper));
            assert_eq!(role("/w"), Some(Role::Work));
            assert_eq!(role("/b"), None);
        }
    }

    #[test]
    fn the_path_inside_a_file_system() {
        let table = b"1 0 8:1 / / rw - ext4 x rw\n2 1 8:2 /sub /mnt rw - ext4 x rw\n";
        let mounts = parse(table);
        let inside = |dir: &str| inside_its_file_system(&mounts, Path::new(dir)).unwrap();
        assert_eq!(inside("/mnt/x"), ("8:2".into(), "/sub/x".into()));
        assert_eq!(inside("/mnt"), ("8:2".into(), "/sub".into()));
        assert_eq!(inside("/mnt2"), ("8:1".into(), "/mnt2".into()));
    }

    #[test]
    fn nobody_uses_a_new_directory() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(overlays_using(&dir.path().canonicalize().unwrap()).unwrap(), []);
    }
}
