//! Unmounting: what this tool mounted, and nothing else; and who keeps it busy.

use crate::layers::real_path;
use crate::request::Undo;
use chain::mountinfo::{self, Mount, Role, overlays_using};
use chain::trace::{note, op};
use chain::{Error, Result, ResultExt};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How many of those who keep a mount busy are named.
const NAMED: usize = 5;

/// Unmounts what is at AT; nothing there is fine. With `lazy` also what is busy: it goes when its last user does.
///
/// What the kernel left in the work directory is removed, the upper never is. Errors: something else is mounted there, or what
/// cannot be known as ours; busy, with who uses it.
pub fn undo(request: &Undo) -> Result<()> {
    let Some(mount) = mounted(&request.at)? else { return Ok(()) };
    if !is_union(&mount) {
        expect_layer(&mount, request)?;
    }
    let (upper, work) = (option(&mount, b"upperdir"), option(&mount, b"workdir"));
    unmount(&mount, request.lazy)?;
    match (upper, work) {
        (Some(upper), Some(work)) if is_union(&mount) && upper.is_absolute() && work.is_absolute() => {
            tidy(&upper, &work, &mount)
        }
        _ => Ok(()),
    }
}

/// The mount whose root is at `at`.
fn mounted(at: &Path) -> Result<Option<Mount>> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let fd = match nix::fcntl::open(at, flags, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(None),
        other => other.call(format_args!("open({at:?}, O_PATH|O_DIRECTORY)"))?,
    };
    let mut point = real_path(&fd)?;
    // The kernel marks the path of a mount whose layer was removed.
    if let Some(unmarked) = point.as_os_str().as_bytes().strip_suffix(b" (deleted)")
        && point.symlink_metadata().is_err()
    {
        point = OsStr::from_bytes(unmarked).into();
    }
    // Of mounts on one another the last is seen.
    Ok(mountinfo::read("self")?.into_iter().rfind(|mount| mount.point == point))
}

/// Whether this is a union of ours: it bears our name, which fuse-overlayfs cannot be given. A part of one is someone's bind.
fn is_union(mount: &Mount) -> bool {
    let named = match mount.fs_type.as_str() {
        "overlay" => mount.source == "layer-mount",
        other => other == "fuse.fuse-overlayfs",
    };
    named && mount.root == Path::new("/")
}

/// A bind mount of a single layer bears no name: it is ours if it is read-only, and of the layer that is given.
fn expect_layer(mount: &Mount, request: &Undo) -> Result<()> {
    let point = &mount.point;
    let foreign = |what: &str| {
        let (kind, source) = (&mount.fs_type, &mount.source);
        Error::new(format_args!("what is mounted at {point:?} is {kind} ({source:?}), {what}"))
    };
    if !mount.options.split(',').any(|option| option == "ro") {
        return Err(foreign("not a mount of layer-mount").hint("umount takes it away"));
    }
    let (layers, _) = crate::layers_of(request.from.as_deref(), &request.lower)?;
    let Some(layer) = layers.last() else {
        return Err(foreign("read-only, and bears no name to know whose it is")
            .hint("name its layer with --lower or --from, or umount it"));
    };
    let identity = |path: &Path| -> Result<(u64, u64)> {
        let stat = fs::metadata(path).call(format_args!("stat({path:?})"))?;
        Ok((stat.dev(), stat.ino()))
    };
    match identity(layer)? == identity(point)? {
        true => Ok(()),
        false => Err(foreign(&format!("not a mount of layer-mount of {layer:?}")).hint("umount takes it away")),
    }
}

fn option(mount: &Mount, key: &[u8]) -> Option<PathBuf> {
    mount.super_options.as_bytes().split(|&b| b == b',').find_map(|option| {
        let value = option.strip_prefix(key)?.strip_prefix(b"=")?;
        Some(mountinfo::unescape(value).into())
    })
}

fn unmount(mount: &Mount, lazy: bool) -> Result<()> {
    let point = &mount.point;
    let (flags, shown) = match lazy {
        true => (MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH, "UMOUNT_NOFOLLOW|MNT_DETACH"),
        false => (MntFlags::UMOUNT_NOFOLLOW, "UMOUNT_NOFOLLOW"),
    };
    let users = if lazy { users(point) } else { Vec::new() };
    op(format_args!("umount2({point:?}, {shown})"), || umount2(point, flags)).map_err(|error| match error.errno() {
        Some(Errno::EBUSY) => busy(error, mount),
        Some(Errno::EINVAL) => error.hint("it came from outside this namespace, and cannot be taken away inside"),
        _ => crate::explain::not_permitted(error),
    })?;
    if !users.is_empty() {
        note(format_args!("{point:?} is used until these end: {}", users.join(", ")));
    }
    Ok(())
}

fn busy(error: Error, mount: &Mount) -> Error {
    let below = mountinfo::read("self").unwrap_or_default();
    let mut below: Vec<String> =
        below.iter().filter(|other| other.parent == mount.id).map(|other| format!("{:?}", other.point)).collect();
    let mut users = users(&mount.point);
    for list in [&mut below, &mut users] {
        let more = list.len().saturating_sub(NAMED);
        list.truncate(NAMED);
        if more > 0 {
            list.push(format!("{more} more"));
        }
    }
    match (below.is_empty(), users.is_empty()) {
        (false, _) => error.hint(format_args!(
            "mounted below it: {}; unmount them first (vol-bind --undo), or use --lazy",
            below.join(", ")
        )),
        (true, false) => error.hint(format_args!("used by {}; end them, or use --lazy", users.join(", "))),
        (true, true) => error.hint("its users are hidden from this one; ask as root, or use --lazy"),
    }
}

/// The processes that have something below `point` open, as `process PID (NAME): what`.
fn users(point: &Path) -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    processes
        .filter_map(|pid| Some((pid, use_of(pid, point)?)))
        .map(|(pid, what)| {
            if pid == std::process::id() {
                return format!("this process itself: {what}");
            }
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("process {pid} ({}): {what}", name.trim_end())
        })
        .collect()
}

/// How process `pid` uses something below `point`.
fn use_of(pid: u32, point: &Path) -> Option<&'static str> {
    let inside = |link: PathBuf| fs::read_link(link).is_ok_and(|path| path.starts_with(point));
    let process = PathBuf::from(format!("/proc/{pid}"));
    for (name, what) in [("cwd", "working directory"), ("root", "root"), ("exe", "program")] {
        if inside(process.join(name)) {
            return Some(what);
        }
    }
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    if descriptors.map(|entry| entry.path()).any(inside) {
        return Some("open file");
    }
    // The name is the sixth field, and may have spaces.
    let maps = fs::read(process.join("maps")).unwrap_or_default();
    let mapped = maps.split(|&b| b == b'\n').any(|line| {
        let start = line.iter().position(|&b| b == b'/').unwrap_or(line.len());
        Path::new(OsStr::from_bytes(&line[start..])).starts_with(point)
    });
    mapped.then_some("mapped file")
}

/// Removes what the kernel left in `work`, once no mount uses it: a directory of mode 000 with a whiteout, and with --volatile
/// its mark that the upper may not be written; so that is written first. The path may lead elsewhere since it was mounted, so
/// nothing goes that has content; what stays, the next mount clears.
fn tidy(upper: &Path, work: &Path, mount: &Mount) -> Result<()> {
    let in_use = |dir: &Path| -> Result<bool> {
        Ok(overlays_using(dir)?.iter().any(|user| matches!(user.role, Role::Upper | Role::Work)))
    };
    if in_use(upper)? || in_use(work)? {
        note(format_args!("{work:?} stays: another mount uses it"));
        return Ok(());
    }
    // (The second since Linux 6.18.)
    let volatile = option_is_set(mount, b"volatile") || option_is_set(mount, b"fsync=volatile");
    if volatile {
        match fs::File::open(upper) {
            Ok(file) => op(format_args!("syncfs({upper:?})"), || nix::unistd::syncfs(&file))?,
            // Nothing to be saved where there is no upper.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::call(format_args!("open({upper:?})"), error)),
        }
    }
    let kernels = work.join("work");
    for entry in fs::read_dir(&kernels).into_iter().flatten().flatten() {
        // The kernel shares one whiteout between all that is removed, and leaves it.
        if entry.metadata().is_ok_and(|stat| stat.file_type().is_char_device() && stat.rdev() == 0) {
            remove(&entry.path(), |path| fs::remove_file(path))?;
        }
    }
    if volatile {
        let mark = kernels.join("incompat/volatile/dirty");
        if mark.symlink_metadata().is_ok_and(|stat| stat.is_file() && stat.len() == 0) {
            remove(&mark, |path| fs::remove_file(path))?;
        }
        remove(&kernels.join("incompat/volatile"), remove_kernels)?;
        remove(&kernels.join("incompat"), remove_kernels)?;
    }
    remove(&kernels, remove_kernels)?;
    remove(&work.join("index"), remove_kernels)
}

/// Removes `path` with `how`; what is not there, not the kernel's or not empty is left.
fn remove(path: &Path, how: fn(&Path) -> std::io::Result<()>) -> Result<()> {
    use std::io::ErrorKind::{DirectoryNotEmpty, NotADirectory, NotFound};
    match how(path) {
        Ok(()) => note(format_args!("remove({path:?})")),
        Err(error) if error.kind() == DirectoryNotEmpty => note(format_args!("{path:?} stays: it is not empty")),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => {}
        Err(error) => return Err(Error::call(format_args!("remove({path:?})"), error)),
    }
    Ok(())
}

/// Removes an empty directory that has the mode 000 of those that the kernel makes.
fn remove_kernels(path: &Path) -> std::io::Result<()> {
    match path.symlink_metadata()?.mode() & 0o777 {
        0 => fs::remove_dir(path),
        _ => Ok(()),
    }
}

fn option_is_set(mount: &Mount, name: &[u8]) -> bool {
    mount.super_options.as_bytes().split(|&b| b == b',').any(|option| option == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(line: &str) -> Mount {
        mountinfo::parse(line.as_bytes()).remove(0)
    }

    #[test]
    fn only_our_unions() {
        assert!(is_union(&mount("1 1 0:9 / /m rw - overlay layer-mount rw")));
        assert!(!is_union(&mount("1 1 0:9 /part /m ro - overlay layer-mount rw")));
        assert!(!is_union(&mount("1 1 0:9 / /m ro - overlay overlay ro")));
        assert!(!is_union(&mount("1 1 8:1 /layer /m ro,relatime - ext4 /dev/sda rw")));
    }

    #[test]
    fn a_bind_is_known_by_its_layer() {
        let dir = tempfile::tempdir().unwrap();
        let [layer, other] = ["layer", "other"].map(|name| dir.path().join(name));
        std::fs::create_dir(&layer).unwrap();
        std::fs::create_dir(&other).unwrap();
        let at = |options: &str, lower: &[&PathBuf]| {
            let mount = mount(&format!("1 1 8:1 /layer {} {options} - ext4 /dev/sda rw", layer.display()));
            let lower = lower.iter().map(PathBuf::from).collect();
            let request = Undo { at: layer.clone(), lazy: false, from: None, lower };
            expect_layer(&mount, &request).map_err(|error| error.to_string())
        };
        at("ro,relatime", &[&layer]).unwrap();
        assert!(at("rw,relatime", &[&layer]).unwrap_err().contains("not a mount of layer-mount"));
        assert!(at("ro,relatime", &[]).unwrap_err().contains("--lower"));
        assert!(at("ro,relatime", &[&other]).unwrap_err().contains("not a mount of layer-mount of"));
    }

    #[test]
    fn options_with_escapes() {
        let mount = mount(r"1 1 0:9 / /m rw - overlay layer-mount rw,upperdir=/a\040b\054,workdir=/w,volatile");
        assert_eq!(option(&mount, b"upperdir"), Some("/a b,".into()));
        assert_eq!(option(&mount, b"work"), None);
        assert!(option_is_set(&mount, b"volatile") && !option_is_set(&mount, b"vol"));
    }

    #[test]
    fn nothing_there_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        for at in [dir.path().to_path_buf(), dir.path().join("none")] {
            undo(&Undo { at, lazy: false, from: None, lower: Vec::new() }).unwrap();
        }
    }
}
