//! New file systems as detached mounts, and mounts put in their place.

use chain::sys::{mount as kernel, process};
use chain::trace::op;
use chain::{Error, Result};
use nix::errno::Errno;
use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Options of a file system itself: `key=value`, or `key` alone.
pub type Data<'a> = &'a [(&'a str, Option<&'a str>)];

/// A detached mount of a new file system `kind`, with attributes (`MOUNT_ATTR_…`).
///
/// Errors: as the kernel gives them, with what it said about the options and what privilege is missing.
pub fn create(kind: &str, source: &OsStr, data: Data, attributes: u64) -> Result<OwnedFd> {
    let mut said = Vec::new();
    let what = Shown { kind, data };
    op(format_args!("fsmount({what}, {attributes:#x})"), || {
        let fs = kernel::fsopen(kind)?;
        let made = configure(&fs, source, data)
            .and_then(|()| kernel::fsconfig_create(&fs))
            .and_then(|()| kernel::fsmount(&fs, attributes));
        if made.is_err() {
            said = kernel::fs_log(&fs);
        }
        made
    })
    .map_err(|error| {
        let error = explain_shown(explain(error), kind);
        if said.is_empty() { error } else { error.hint(format_args!("the kernel says: {}", said.join(", "))) }
    })
}

fn configure(fs: &OwnedFd, source: &OsStr, data: Data) -> Result<(), Errno> {
    if !source.is_empty() {
        kernel::fsconfig_string(fs, "source", source)?;
    }
    for (key, value) in data {
        match value {
            // The kernel takes at most 255 bytes of a value: layers one by one, where it can (Linux 6.5).
            Some(value) if *key == "lowerdir" && value.len() > 255 => {
                for layer in value.split(':') {
                    kernel::fsconfig_string(fs, "lowerdir+", layer)?;
                }
            }
            Some(value) => kernel::fsconfig_string(fs, key, value)?,
            None => kernel::fsconfig_flag(fs, key)?,
        }
    }
    Ok(())
}

/// `"tmpfs", "size=64m,mode=755"`.
struct Shown<'a> {
    kind: &'a str,
    data: Data<'a>,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self
            .data
            .iter()
            .map(|(key, value)| value.map_or_else(|| key.to_string(), |value| format!("{key}={value}")))
            .collect();
        write!(f, "{:?}, {:?}", self.kind, words.join(","))
    }
}

/// Puts the detached `mount` at the object `at`; `target` is its name for messages.
pub fn attach(mount: impl AsFd, at: impl AsFd, target: &(impl fmt::Debug + ?Sized)) -> Result<()> {
    op(format_args!("move_mount({target:?})"), || kernel::move_mount(mount, at)).map_err(explain)
}

/// Puts the detached `mount` at `name` in the directory `dir`.
pub fn attach_at(mount: impl AsFd, dir: impl AsFd, name: impl AsRef<Path>) -> Result<()> {
    let name = name.as_ref();
    op(format_args!("move_mount({name:?})"), || kernel::move_mount_at(mount, dir, name.as_os_str())).map_err(explain)
}

/// Adds to a mount that was refused which privilege is missing.
pub fn explain(error: Error) -> Error {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    if error.errno() != Some(Errno::EPERM) {
        return error;
    }
    if process::capget().is_ok_and(|sets| sets.effective & CAP_SYS_ADMIN == 0) {
        return error.hint(
            "mounting needs CAP_SYS_ADMIN; as an ordinary user, begin with: ns-enter --user --map-auto --mount --",
        );
    }
    if belongs_elsewhere("mnt") {
        return error
            .hint("this mount namespace belongs to another user namespace; make one with: ns-enter --mount --");
    }
    error
}

/// Adds to a file system that was refused which namespace it shows, if that is why.
fn explain_shown(error: Error, kind: &str) -> Error {
    let namespace = match kind {
        "proc" => "pid",
        "sysfs" => "net",
        "mqueue" => "ipc",
        "cgroup" | "cgroup2" => "cgroup",
        _ => return error,
    };
    if error.errno() != Some(Errno::EPERM) || !belongs_elsewhere(namespace) {
        return error;
    }
    error.hint(format_args!(
        "it shows the {namespace} namespace, which belongs to another user namespace; make one with: ns-enter --{namespace} --"
    ))
}

/// Whether this process's namespace `kind` (`pid`, `net` …) belongs to another user namespace than its own, so that it may
/// not mount what shows it.
pub fn belongs_elsewhere(kind: &str) -> bool {
    let own = nix::sys::stat::stat("/proc/self/ns/user").ok().map(|stat| (stat.st_dev, stat.st_ino));
    let owner = std::fs::File::open(format!("/proc/self/ns/{kind}"))
        .ok()
        .and_then(|namespace| process::owning_user_namespace(namespace).ok())
        .and_then(|owner| nix::sys::stat::fstat(owner).ok())
        .map(|stat| (stat.st_dev, stat.st_ino));
    own.is_some() && owner != own
}
