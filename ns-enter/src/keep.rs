//! Namespaces that outlive their processes, as files in a directory (`--keep`, `--undo`).
//!
//! The files are bind mounts of /proc/PID/ns/NAME. They are made by a process that stays where the caller is, since a mount
//! in the new mount namespace would vanish with it; and on a private mount, since the kernel refuses to mount a mount
//! namespace where the mount would propagate into that same namespace.

use crate::namespace::{Kind, Selection};
use chain::sys::process::{self, Side};
use chain::trace::op;
use chain::{Document, Error, Result, ResultExt};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{Pid, read, write};
use serde_json::{Value, json};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The process that keeps namespaces: told first which process they are of, then that they are ready.
pub struct Keeper(OwnedFd);

impl Keeper {
    /// Makes `dir` a place for namespaces and starts the process that puts those of `kinds` there.
    ///
    /// Errors: no CAP_SYS_ADMIN where the caller is; namespaces are kept there already.
    pub fn start(dir: &Path, kinds: Vec<Kind>) -> Result<Self> {
        let made = !dir.exists();
        if made {
            op(format_args!("mkdir({dir:?})"), || fs::create_dir(dir))?;
        }
        let dir = prepare(dir).inspect_err(|_| {
            if made {
                let _ = fs::remove_dir(dir);
            }
        })?;
        let kind = SockType::Stream;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).call(format_args!("socketpair()"))?;
        match process::clone3(0).call(format_args!("clone3(0)"))? {
            Side::Parent(..) => Ok(Keeper(ours)),
            Side::Child => {
                drop(ours);
                std::process::exit(serve(&theirs, &dir, &kinds).into())
            }
        }
    }

    /// Says which process is, or will be, in the namespaces.
    pub fn process_is(&self, pid: Pid) -> Result<()> {
        write(&self.0, &pid.as_raw().to_ne_bytes()).call(format_args!("write(keeper)")).map(drop)
    }

    /// Keeps the namespaces of that process, as they are now.
    pub fn keep(self) -> Result<()> {
        write(&self.0, b"k").call(format_args!("write(keeper)"))?;
        let mut answer = [0u8; 1];
        match read(&self.0, &mut answer) {
            Ok(1) if answer[0] == 0 => Ok(()),
            // The keeper has said why.
            _ => Err(Error::new("the namespaces could not be kept")),
        }
    }
}

fn serve(channel: &OwnedFd, dir: &Path, kinds: &[Kind]) -> u8 {
    let mut pid = [0u8; 4];
    let mut ready = [0u8; 1];
    if read(channel, &mut pid) != Ok(4) || read(channel, &mut ready) != Ok(1) {
        // Whoever was to be kept is dead, and has said why.
        let _ = undo(dir);
        return 0;
    }
    let kept = kinds.iter().try_for_each(|kind| keep_one(dir, Pid::from_raw(i32::from_ne_bytes(pid)), *kind));
    let status = kept.map_or_else(|error| chain::tool::report(&error), |()| 0);
    if status != 0 {
        let _ = undo(dir);
    }
    let _ = write(channel, &[status]);
    status
}

fn keep_one(dir: &Path, pid: Pid, kind: Kind) -> Result<()> {
    let from = format!("/proc/{pid}/ns/{}", kind.file());
    let to = dir.join(kind.file());
    op(format_args!("open({to:?}, O_CREAT, 0)"), || {
        fs::OpenOptions::new().create(true).append(true).mode(0o000).open(&to)
    })?;
    op(format_args!("mount({from:?}, {to:?}, MS_BIND)"), || {
        mount(Some(from.as_str()), &to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    })
}

/// Makes `dir` a private mount of its own. Gives its absolute path.
fn prepare(dir: &Path) -> Result<PathBuf> {
    let dir = fs::canonicalize(dir).call(format_args!("realpath({dir:?})"))?;
    let kept = kept_in(&dir)?;
    if let Some(kind) = kept.first() {
        return Err(Error::new(format_args!("{dir:?} keeps a {} namespace already", kind.option()))
            .hint(format_args!("take it away with ns-enter --undo {dir:?}")));
    }
    if !is_mount(&dir)? {
        let bind = op(format_args!("mount({dir:?}, {dir:?}, MS_BIND)"), || {
            mount(Some(&dir), &dir, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        });
        bind.map_err(|error| match error.errno() {
            Some(Errno::EPERM) => error.hint(
                "keeping namespaces takes a mount, and so CAP_SYS_ADMIN here; an ordinary user can do it inside \
                 ns-enter --user --mount -- sh",
            ),
            _ => error,
        })?;
    }
    op(format_args!("mount({dir:?}, MS_PRIVATE)"), || {
        mount(None::<&str>, &dir, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)
    })?;
    Ok(dir)
}

/// Takes away what was kept in `dir`, and `dir` if it is empty then. What is gone already is no error.
pub fn undo(dir: &Path) -> Result<()> {
    let dir = match fs::canonicalize(dir) {
        Ok(dir) => dir,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::call(format_args!("realpath({dir:?})"), error)),
    };
    for kind in Kind::ALL {
        let path = dir.join(kind.file());
        if is_mount(&path)? {
            op(format_args!("umount2({path:?}, MNT_DETACH)"), || umount2(&path, MntFlags::MNT_DETACH))?;
        }
        // Only such a file can be one of ours.
        if fs::symlink_metadata(&path).is_ok_and(|file| file.is_file() && file.len() == 0 && file.mode() & 0o7777 == 0)
        {
            op(format_args!("unlink({path:?})"), || fs::remove_file(&path))?;
        }
    }
    if is_mount(&dir)? {
        op(format_args!("umount2({dir:?}, MNT_DETACH)"), || umount2(&dir, MntFlags::MNT_DETACH))?;
    }
    match fs::remove_dir(&dir) {
        Err(error) if !matches!(error.raw_os_error(), Some(nix::libc::ENOTEMPTY | nix::libc::ENOENT)) => {
            Err(Error::call(format_args!("rmdir({dir:?})"), error))
        }
        _ => Ok(()),
    }
}

fn is_mount(path: &Path) -> Result<bool> {
    Ok(chain::mountinfo::read("self")?.iter().any(|mount| mount.point == path))
}

fn kept_in(dir: &Path) -> Result<Vec<Kind>> {
    let mounts = chain::mountinfo::read("self")?;
    let kept = |kind: &Kind| mounts.iter().any(|mount| mount.fs_type == "nsfs" && mount.point == dir.join(kind.file()));
    Ok(Kind::ALL.into_iter().filter(kept).collect())
}

/// What was kept, as a document that joins it.
pub fn document(dir: &Path, selection: &Selection) -> Result<Document> {
    let dir = fs::canonicalize(dir).call(format_args!("realpath({dir:?})"))?;
    let entries: Result<Vec<Value>> = selection
        .iter()
        .map(|(kind, _)| Ok(json!({"type": kind.oci(), "path": chain::document::path_text(dir.join(kind.file()))?})))
        .collect();
    let mut document = Document::new();
    document.set("linux/namespaces", entries?);
    Ok(document)
}
