//! The kernel's overlayfs, configured by descriptor; and by mount(2) where the kernel is older.

use crate::explain;
use crate::layers::{Layers, descriptor_path, real_path};
use crate::target::Target;
use crate::writable::Writable;
use chain::sys::mount::{self, ATTR_RDONLY};
use chain::trace::op;
use chain::{Error, Result, ResultExt};
use nix::errno::Errno;
use nix::mount::MsFlags;
use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// fsconfig(2) takes no longer text, its zero byte included.
const MAX_VALUE: usize = 255;
/// mount(2) takes no longer options, and cuts what is longer without a word.
const MAX_OPTIONS: usize = 4095;

/// A union of layers, to be mounted.
pub struct Overlay<'a> {
    /// The read-only layers.
    pub layers: &'a Layers,
    /// The writable one.
    pub writable: Option<&'a Writable>,
    /// Without syncing.
    pub volatile: bool,
    /// Whether this is the initial user namespace.
    pub initial: bool,
}

impl Overlay<'_> {
    /// Mounts the union at `at`. Errors: the kernel's, with its messages and what in the facts explains them.
    pub fn mount(&self, at: &Target) -> Result<()> {
        let error = match self.detached() {
            Ok(mount) => return at.attach(mount),
            Err(error) => error,
        };
        if error.errno() != Some(Errno::EINVAL) {
            return Err(error);
        }
        match self.writable.filter(|writable| writable.memory.is_some()) {
            _ if !takes_layers_apart() => self.mount_the_old_way(at),
            Some(writable) if !takes_layers_nowhere() => at.attach(writable.while_attached(at, || self.detached())?),
            _ => Err(error),
        }
    }

    /// Whether this kernel makes the union before it has a place ([`Overlay::detached`]).
    pub fn can_be_nowhere(&self) -> bool {
        let in_memory = self.writable.is_some_and(|writable| writable.memory.is_some());
        takes_layers_apart() && (!in_memory || takes_layers_nowhere())
    }

    fn mount_the_old_way(&self, at: &Target) -> Result<()> {
        let Some(writable) = self.writable.filter(|writable| writable.memory.is_some()) else {
            return self.by_mount(at);
        };
        // Mounted on the memory, taken off it, and put where that was.
        let mount = writable.while_attached(at, || {
            self.by_mount(at)?;
            at.detach()
        })?;
        at.attach(mount)
    }

    /// The union as a mount that is nowhere yet.
    pub fn detached(&self) -> Result<OwnedFd> {
        let fs = op(format_args!("fsopen(\"overlay\")"), || mount::fsopen("overlay")).map_err(explain::no_overlay)?;
        self.configure(&fs).map_err(|error| explain::refused(error, &mount::fs_log(&fs), self))?;
        let read_only = if self.writable.is_none() { ATTR_RDONLY } else { 0 };
        op(format_args!("fsmount(overlay)"), || mount::fsmount(&fs, read_only))
    }

    fn configure(&self, fs: &OwnedFd) -> Result<()> {
        let set = Setter { fs, by_descriptor: Cell::new(true) };
        set.text("source", "layer-mount")?;
        for layer in self.layers.all().iter().rev() {
            set.directory("lowerdir+", layer, &layer.path)?;
        }
        if let Some(writable) = self.writable {
            set.directory("upperdir", &writable.upper, &writable.upper_path)?;
            set.directory("workdir", &writable.work, &writable.work_path)?;
        }
        for option in self.options() {
            match option.split_once('=') {
                Some((key, value)) => set.text(key, value)?,
                None => op(format_args!("fsconfig({option:?})"), || mount::fsconfig_flag(fs, option))?,
            }
        }
        op(format_args!("fsconfig(overlay, FSCONFIG_CMD_CREATE)"), || mount::fsconfig_create(fs))
    }

    /// Explicit, since modules and kernels differ in their defaults. Layers are not trusted: what a directory's attributes
    /// say about other places is not followed.
    fn options(&self) -> Vec<&'static str> {
        let mut options = vec!["redirect_dir=nofollow", "metacopy=off"];
        if self.writable.is_some() {
            options.push("index=off");
        }
        // Without it, removing a directory that a layer has fails in a user namespace.
        if !self.initial {
            options.push("userxattr");
        }
        if self.volatile {
            options.push("volatile");
        }
        options
    }

    /// With mount(2), at `at`.
    fn by_mount(&self, at: &Target) -> Result<()> {
        let named = |name: fn(&dyn Held) -> Result<PathBuf>| -> Result<OsString> {
            let lowers = self.layers.all().iter().rev().map(|layer| name(layer)).collect::<Result<Vec<_>>>()?;
            let writable = self.writable.map(|writable| Ok((name(&writable.upper)?, name(&writable.work)?)));
            Ok(option_text(&lowers, writable.transpose()?.as_ref(), &self.options()))
        };
        let flags = if self.writable.is_none() { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        let target = descriptor_path(at);
        let mount = |options: &OsStr| {
            op(format_args!("mount(\"layer-mount\", {target:?}, \"overlay\", {options:?})"), || {
                nix::mount::mount(Some("layer-mount"), &target, Some("overlay"), flags, Some(options))
            })
            .map_err(|error| explain::refused(error, &[], self))
        };
        let options = named(|held| real_path(held.as_fd()))?;
        if options.len() <= MAX_OPTIONS {
            return mount(&options);
        }
        // Too long: the descriptors' numbers, seen from where they are listed.
        let options = named(|held| Ok(descriptor_path(held.as_fd()).file_name().unwrap_or_default().into()))?;
        if options.len() > MAX_OPTIONS {
            return Err(Error::new(format_args!("{} layers do not fit mount(2)'s one page", self.layers.all().len()))
                .hint("Linux 6.5 and later take them one by one"));
        }
        let here = nix::fcntl::open(
            ".",
            nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        )
        .call(format_args!("open(\".\")"))?;
        nix::unistd::chdir("/proc/self/fd").call(format_args!("chdir(\"/proc/self/fd\")"))?;
        let mounted = mount(&options);
        nix::unistd::fchdir(&here).call(format_args!("fchdir(\".\")"))?;
        mounted
    }
}

/// A directory that is held open.
trait Held {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_>;
}

impl<T: AsFd> Held for T {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        AsFd::as_fd(self)
    }
}

/// Sets parameters of a file system in the making.
struct Setter<'a> {
    fs: &'a OwnedFd,
    by_descriptor: Cell<bool>,
}

impl Setter<'_> {
    fn text(&self, key: &str, value: impl AsRef<OsStr>) -> Result<()> {
        let value = value.as_ref();
        op(format_args!("fsconfig({key:?}, {value:?})"), || mount::fsconfig_string(self.fs, key, value))
    }

    /// A directory that is held, so that no one can put another one at its name meanwhile.
    fn directory(&self, key: &str, held: &impl AsFd, path: &Path) -> Result<()> {
        if self.by_descriptor.get() {
            let set = op(format_args!("fsconfig({key:?}, {path:?})"), || mount::fsconfig_fd(self.fs, key, held));
            match set {
                // KERNEL(6.13): directories by descriptor.
                // Before 6.5 overlayfs takes no such parameter (EINVAL), or the kernel no descriptor for it (EOPNOTSUPP).
                Err(error)
                    if matches!(error.errno(), Some(Errno::EINVAL | Errno::EOPNOTSUPP)) && kernel_before(6, 13) => {}
                // KERNEL(6.14): descriptors that only name something.
                Err(error) if error.errno() == Some(Errno::EBADF) => {}
                other => return other,
            }
            self.by_descriptor.set(false);
        }
        let path = real_path(held)?;
        // The kernel takes a layer as it stands, and undoes backslashes in the other two.
        let value = if key == "lowerdir+" { path.into_os_string() } else { escaped(path.as_os_str(), b"\\") };
        if value.len() <= MAX_VALUE { self.text(key, value) } else { self.text(key, descriptor_path(held)) }
    }
}

/// mount(2)'s options; `lowers` with the topmost first.
fn option_text(lowers: &[PathBuf], writable: Option<&(PathBuf, PathBuf)>, options: &[&str]) -> OsString {
    let mut text = b"lowerdir=".to_vec();
    for (i, lower) in lowers.iter().enumerate() {
        if i > 0 {
            text.push(b':');
        }
        text.extend(escaped(lower.as_os_str(), b":,\\").as_bytes());
    }
    if let Some((upper, work)) = writable {
        for (key, path) in [(",upperdir=", upper), (",workdir=", work)] {
            text.extend(key.as_bytes());
            text.extend(escaped(path.as_os_str(), b",\\").as_bytes());
        }
    }
    for option in options {
        text.push(b',');
        text.extend(option.as_bytes());
    }
    OsString::from_vec(text)
}

/// `text` with a backslash before each of the bytes `special`.
pub fn escaped(text: &OsStr, special: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(text.len());
    for &byte in text.as_bytes() {
        if special.contains(&byte) {
            out.push(b'\\');
        }
        out.push(byte);
    }
    OsString::from_vec(out)
}

/// KERNEL(6.5): `lowerdir+`, one layer a call.
fn takes_layers_apart() -> bool {
    !kernel_before(6, 5)
}

/// KERNEL(6.15): layers on a mount that is nowhere.
fn takes_layers_nowhere() -> bool {
    !kernel_before(6, 15)
}

/// Whether the running kernel says to be older than `major.minor`.
pub fn kernel_before(major: u32, minor: u32) -> bool {
    let release = nix::sys::utsname::uname().map(|names| names.release().to_os_string()).unwrap_or_default();
    version(&release.to_string_lossy()).is_some_and(|version| version < (major, minor))
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_mount_escape_what_separates() {
        let lowers = [r"/a:b", r"/c,d", r"/e\f", "/g h"].map(PathBuf::from);
        let writable = ("/u:,".into(), r"/w\".into());
        let text = option_text(&lowers, Some(&writable), &["index=off", "userxattr"]);
        let want = r"lowerdir=/a\:b:/c\,d:/e\\f:/g h,upperdir=/u:\,,workdir=/w\\,index=off,userxattr";
        assert_eq!(text.to_str().unwrap(), want);
        assert_eq!(option_text(&lowers[3..], None, &[]).to_str().unwrap(), "lowerdir=/g h");
    }

    #[test]
    fn releases() {
        assert_eq!(version("6.18.44-fc-v782"), Some((6, 18)));
        assert_eq!(version("5.15-rc1"), Some((5, 15)));
        assert_eq!(version("strange"), None);
        assert!(kernel_before(1000, 0) && !kernel_before(2, 6));
    }
}
