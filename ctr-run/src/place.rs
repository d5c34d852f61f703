//! A container's directories in the store: writable layer, lock, mount point; and what runs that were killed left there.

use crate::plan::{Place, Skeleton};
use chain::document::Document;
use chain::remove::remove_tree;
use chain::store::{Lock, Store, check_name};
use chain::sys::mount::{inode_attributes, llistxattr, lremovexattr};
use chain::{Error, Result, ResultExt};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::mount::{MntFlags, umount2};
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The file that marks a container whose writable layer stays. It holds the layers that the writable one belongs to.
const KEPT: &str = "kept";

/// A container's directories, for this process alone while it lives.
#[derive(Debug)]
pub struct Held {
    /// Where they are.
    pub place: Place,
    _lock: Lock,
    layers: Vec<Lock>,
    spare: PathBuf,
    /// Whether an earlier run left it.
    pub was_kept: bool,
}

/// A name that no one else has: 12 hexadecimal digits.
pub fn random_name() -> Result<String> {
    let mut bytes = [0u8; 6];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .call(format_args!("read(\"/dev/urandom\")"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Makes (or, for a kept one, takes) the directories of the container `name`.
///
/// Errors: it runs already; kept, and made from other layers.
pub fn take(store: &Store, name: &str, keep: bool, layers: &[PathBuf], skeleton: &Skeleton) -> Result<Held> {
    check_name(name)?;
    store.make(&store.containers())?;
    let place = Place { dir: store.containers().join(name) };
    let spare = store.spare();
    let lock = match take_spare(&spare, &place.dir) {
        Some(lock) => lock,
        None => make(&place.dir, name)?,
    };
    let kept = place.dir.join(KEPT);
    let was_kept = kept.exists();
    if keep || was_kept {
        check_layers(&kept, name, layers)?;
    }
    build(&place.dir, skeleton)?;
    if let Some(group) = skeleton.group {
        open_to(store, &place.dir, group)?;
    }
    // Layers that only their own user namespace may open are still protected by the mount table.
    let layers = layers.iter().filter_map(|layer| Lock::try_shared(layer).ok().flatten()).collect();
    Ok(Held { place, _lock: lock, layers, spare, was_kept })
}

/// Makes and locks the directory `dir`, if it is not there yet. Error: the container `name` runs.
fn make(dir: &Path, name: &str) -> Result<Lock> {
    let patience = Instant::now() + Duration::from_secs(1);
    let mut made = false;
    loop {
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => made = true,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::call(format_args!("mkdir({dir:?}, 0700)"), error)),
        }
        match Lock::try_exclusive(dir) {
            Ok(Some(lock)) => return Ok(lock),
            // Another run sweeps what we just made, and has it out of the way in a moment; or had the same name in mind.
            Ok(None) if made && Instant::now() < patience => std::thread::sleep(Duration::from_millis(1)),
            Ok(None) => return Err(running(dir, name)),
            // Another run swept it between the two calls.
            Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The directories that a container left ([`Held::leave_spare`]), as `dir`: making new ones, and taking them away again,
/// is what starting a container costs on a disk. `None` if there are none, or if `dir` is there already.
fn take_spare(spare: &Path, dir: &Path) -> Option<Lock> {
    // Who holds the lock is the only one to move it.
    let lock = Lock::try_exclusive(spare).ok().flatten()?;
    lock.file().metadata().ok().filter(fs::Metadata::is_dir)?;
    renameat2(AT_FDCWD, spare, AT_FDCWD, dir, RenameFlags::RENAME_NOREPLACE).ok().map(|()| lock)
}

/// Makes what is not there yet of the skeleton.
fn build(dir: &Path, skeleton: &Skeleton) -> Result<()> {
    let there = |error: &std::io::Error| error.kind() == std::io::ErrorKind::AlreadyExists;
    for path in skeleton.directories.iter().map(|name| dir.join(name)) {
        match fs::DirBuilder::new().mode(0o755).create(&path) {
            Err(error) if !there(&error) => return Err(Error::call(format_args!("mkdir({path:?})"), error)),
            _ => {}
        }
    }
    for (name, content) in &skeleton.files {
        let path = dir.join(name);
        fs::write(&path, content).call(format_args!("write({path:?})"))?;
    }
    for (name, target) in &skeleton.links {
        let path = dir.join(name);
        match symlink(target, &path) {
            Err(error) if !there(&error) => {
                return Err(Error::call(format_args!("symlink({target:?}, {path:?})"), error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Lets `group` reach what is in `dir`: others may pass through the store, which shows them nothing, up to there.
fn open_to(store: &Store, dir: &Path, group: u32) -> Result<()> {
    for above in [store.path(), &store.containers()] {
        let mode = fs::metadata(above).call(format_args!("stat({above:?})"))?.mode();
        let open = fs::Permissions::from_mode(mode & 0o7777 | 0o001);
        fs::set_permissions(above, open).call(format_args!("chmod({above:?}, o+x)"))?;
    }
    chown(dir, None, Some(group)).call(format_args!("chown({dir:?}, -1, {group})"))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o710)).call(format_args!("chmod({dir:?}, 0710)"))
}

/// A writable layer belongs to the layers below it: with others it would show what no one made.
fn check_layers(kept: &Path, name: &str, layers: &[PathBuf]) -> Result<()> {
    let mut document = Document::new();
    let texts = layers.iter().map(chain::document::path_text).collect::<Result<Vec<_>>>()?;
    document.set("layers", texts);
    match Document::read(kept) {
        Ok(before) if before.layers()? == layers => Ok(()),
        Ok(_) => Err(Error::new(format_args!("container {name:?} was made from another image"))
            .hint(format_args!("ctr-run --remove {name} removes it; or choose another name"))),
        Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => {
            fs::write(kept, document.to_text()).call(format_args!("write({kept:?})"))
        }
        Err(error) => Err(error),
    }
}

impl Held {
    /// Notes the process that waits for the container, for messages.
    pub fn note_owner(&self) {
        let _ = fs::write(self.place.dir.join("pid"), std::process::id().to_string());
    }

    /// Removes the directories, with the writable layer.
    pub fn remove(mut self) -> Result<()> {
        self.layers.clear();
        self.unmount();
        if !self.is_as_new() {
            remove_tree(&self.place.upper())?;
        }
        remove_tree(&self.place.work().join("work"))?;
        if !self.leave_spare() {
            remove_tree(&self.place.dir)?;
        }
        Ok(())
    }

    /// Where owners are shifted, root of the machine has mounted all that itself, in the mount namespace that it is in.
    fn unmount(&self) {
        let layers = fs::read_dir(self.place.layers()).into_iter().flatten().flatten().map(|entry| entry.path());
        let all: Vec<PathBuf> = layers.collect();
        if !all.is_empty() {
            for mount in std::iter::once(self.place.root()).chain(all) {
                let _ = umount2(&mount, MntFlags::MNT_DETACH);
            }
        }
    }

    /// Whether nothing is left of what the container may have given its writable layer, but owner, mode and times, which
    /// every mount of an empty one sets anew. A directory that stays saves the disk two changes and often a discard.
    fn is_as_new(&self) -> bool {
        let upper = self.place.upper();
        let inode = |path: &Path| Some(inode_attributes(fs::File::open(path).ok()?));
        let bare = || llistxattr(&upper)?.iter().try_for_each(|name| lremovexattr(&upper, name));
        entries(&upper) == 0
            && inode(&upper).is_some_and(|own| inode(&self.place.work()) == Some(own))
            && bare().is_ok()
    }

    /// Leaves the directories for the next container, if they are as they were made: the kernel's and the mount's own, that
    /// nothing in a container can reach, and a writable layer that is as new. One container's are kept.
    fn leave_spare(&self) -> bool {
        let as_new = match entries(&self.place.dir) {
            2 => true,
            3 => self.place.upper().is_dir(),
            _ => false,
        };
        as_new
            && entries(&self.place.root()) == 0
            && entries(&self.place.work()) == 0
            && fs::rename(&self.place.dir, &self.spare).is_ok()
    }
}

/// How many entries a directory has; no one knows of one that cannot be read.
fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(usize::MAX, Iterator::count)
}

fn running(dir: &Path, name: &str) -> Error {
    let error = Error::new(format_args!("container {name:?} is running"));
    match fs::read_to_string(dir.join("pid")) {
        Ok(pid) => error.hint(format_args!("process {} holds it", pid.trim())),
        Err(_) => error,
    }
}

/// Removes what killed runs left: directories that are not kept and that no one holds.
pub fn sweep(store: &Store) {
    for dir in directories(store) {
        if dir.join(KEPT).exists() {
            continue;
        }
        if let Ok(Some(_lock)) = Lock::try_exclusive(&dir) {
            // Taken between our listing and our lock, and kept meanwhile?
            if !dir.join(KEPT).exists() {
                // Out of the way first: who wants the name need not wait until all is removed.
                let gone = out_of_the_way(&dir);
                let moved = fs::rename(&dir, &gone).is_ok();
                let _ = remove_tree(if moved { &gone } else { &dir });
            }
        }
    }
}

/// Where what is being removed is meanwhile: no container has such a name.
fn out_of_the_way(dir: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(dir.file_name().unwrap_or_default());
    dir.with_file_name(name)
}

/// A kept container.
pub struct Kept {
    /// Its name.
    pub name: String,
    /// The process that runs it, if it runs.
    pub pid: Option<String>,
}

/// The kept containers, by name.
pub fn kept(store: &Store) -> Vec<Kept> {
    let mut out: Vec<Kept> = directories(store)
        .into_iter()
        .filter(|dir| dir.join(KEPT).exists())
        .map(|dir| {
            let running = matches!(Lock::try_shared(&dir), Ok(None));
            let pid = running.then(|| fs::read_to_string(dir.join("pid")).unwrap_or_default().trim().to_string());
            Kept { name: dir.file_name().unwrap_or_default().to_string_lossy().into_owned(), pid }
        })
        .collect();
    out.sort_by(|a, b| a.name.cmp(&b.name));
    out
}

/// Removes the kept container `name`; one that is gone already is fine. Error: it runs.
pub fn remove(store: &Store, name: &str) -> Result<()> {
    check_name(name)?;
    let dir = store.containers().join(name);
    if fs::symlink_metadata(&dir).is_err() {
        return Ok(());
    }
    let Some(_lock) = Lock::try_exclusive(&dir)? else { return Err(running(&dir, name)) };
    remove_tree(&dir)
}

fn directories(store: &Store) -> Vec<PathBuf> {
    fs::read_dir(store.containers()).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use chain::sys::mount::lsetxattr;
    use std::os::unix::fs::MetadataExt;

    fn taken(store: &Store, name: &str) -> Held {
        let directories = ["upper", "work", "root"].map(PathBuf::from).to_vec();
        take(store, name, false, &[], &Skeleton { directories, ..Skeleton::default() }).unwrap()
    }

    fn inode(path: PathBuf) -> u64 {
        path.metadata().unwrap().ino()
    }

    #[test]
    fn what_a_container_cannot_reach_serves_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(Some(dir.path())).unwrap();
        let [one, two] = ["one", "two"].map(|name| taken(&store, name));
        fs::write(one.place.upper().join("file"), "").unwrap();
        fs::create_dir(one.place.work().join("work")).unwrap();
        let used = inode(one.place.work());
        one.remove().unwrap();
        two.remove().unwrap();
        assert_eq!(directories(&store), Vec::<PathBuf>::new());

        let next = taken(&store, "next");
        assert_eq!(inode(next.place.work()), used);
        assert_eq!(entries(&next.place.upper()), 0);
        assert!(take(&store, "next", false, &[], &Skeleton::default()).is_err(), "it is held");
        fs::write(next.place.root().join("odd"), "").unwrap();
        next.remove().unwrap();
        assert!(!store.spare().exists());
    }

    #[test]
    fn a_writable_layer_that_is_used_again_has_nothing_of_before() {
        // On a disk, not in memory.
        let dir = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let store = Store::at(Some(dir.path())).unwrap();
        let first = taken(&store, "first");
        let upper = first.place.upper();
        let used = inode(upper.clone());
        lsetxattr(&upper, "user.of-before".as_ref(), b"x").unwrap();
        first.remove().unwrap();

        let second = taken(&store, "second");
        assert_eq!(inode(second.place.upper()), used);
        assert_eq!(llistxattr(&second.place.upper()).unwrap(), Vec::<OsString>::new());
        fs::create_dir(second.place.upper().join("of-before")).unwrap();
        second.remove().unwrap();

        let third = taken(&store, "third");
        assert_eq!(entries(&third.place.upper()), 0);
    }
}
