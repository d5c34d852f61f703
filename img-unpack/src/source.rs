//! Where an image comes from: a directory, or an archive in a file or on stdin. All are a set of named contents.

use crate::apply::components;
use crate::archive::{Archive, Kind};
use crate::compression::{Compression, MAGIC_BYTES, decoder, detect};
use chain::trace::op;
use chain::{Error, Result, ResultExt};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The most members of an archive of images that are taken.
const MAX_MEMBERS: usize = 1 << 18;
/// The most bytes that their names and links have together: an image's names have about a hundred bytes.
const MAX_NAMES: usize = 16 << 20;

/// Named contents.
pub struct Source {
    name: OsString,
    contents: Contents,
}

enum Contents {
    Directory(PathBuf),
    Archive(Arc<File>, HashMap<Vec<u8>, Place>),
}

enum Place {
    Data(u64, u64),
    /// Another member, by its name.
    Alias(Vec<u8>),
}

impl Source {
    /// Opens `image`: a directory, a file, or stdin (`-`). What cannot be read at will (a pipe, a compressed archive) is
    /// written to an unnamed file in the directory `spool`, of at most `limit` bytes.
    ///
    /// Errors: not there, neither file nor directory, no tar archive, cut short.
    pub fn open(image: &OsStr, spool: &Path, limit: Option<u64>) -> Result<Self> {
        let contents = if image == "-" {
            let stdin = BufReader::with_capacity(1 << 16, io::stdin());
            archive(Arc::new(spooled(stdin, spool, limit).map_err(|error| error.within("image on stdin"))?))
        } else {
            let file = op(format_args!("open({image:?})"), || {
                fs::OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(image)
            })?;
            let meta = file.metadata().call(format_args!("fstat({image:?})"))?;
            if meta.is_dir() {
                let path = std::path::absolute(image).call(format_args!("getcwd()"))?;
                return Ok(Source { name: image.to_os_string(), contents: Contents::Directory(path) });
            }
            let mut start = [0; MAGIC_BYTES];
            let length =
                if meta.is_file() { file.read_at(&mut start, 0).call(format_args!("read({image:?})"))? } else { 0 };
            let place = |error: Error| error.within(format_args!("image {image:?}"));
            let plain = detect(&start[..length]).call(format_args!("image {image:?}"))? == Compression::Plain;
            if meta.is_file() && plain {
                archive(Arc::new(file))
            } else if meta.is_file() {
                archive(Arc::new(spooled(BufReader::with_capacity(1 << 16, file), spool, limit).map_err(place)?))
            } else {
                // A pipe or device by name, which is to be waited for.
                let file = File::open(image).call(format_args!("open({image:?})"))?;
                archive(Arc::new(spooled(BufReader::with_capacity(1 << 16, file), spool, limit).map_err(place)?))
            }
        };
        let name = if image == "-" { "stdin".into() } else { image.to_os_string() };
        let contents = contents.map_err(|error| error.within(format_args!("image {name:?}")))?;
        Ok(Source { name, contents })
    }

    /// The plain archive in `file`, called `name`. Errors: as for [`Source::open`].
    pub fn of_archive(name: &OsStr, file: File) -> Result<Self> {
        Ok(Source { name: name.to_os_string(), contents: archive(Arc::new(file))? })
    }

    /// What to call it in messages.
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// The content called `name`, to read; `None` if there is none. Errors: a link that leads out or in circles.
    pub fn content(&self, name: &str) -> Result<Option<Section>> {
        match &self.contents {
            Contents::Directory(dir) => {
                if components(name.as_bytes()).any(|component| component == b"..") {
                    return Err(Error::new(format_args!("{name:?} leads out of the image")));
                }
                let path = dir.join(name.trim_start_matches('/'));
                let flags = OFlag::O_NONBLOCK.bits();
                match fs::OpenOptions::new().read(true).custom_flags(flags).open(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(Error::call(format_args!("open({path:?})"), error)),
                    Ok(file) => {
                        let meta = file.metadata().call(format_args!("fstat({path:?})"))?;
                        if !meta.is_file() {
                            return Ok(None);
                        }
                        Ok(Some(Section { file: Arc::new(file), at: 0, end: meta.len() }))
                    }
                }
            }
            Contents::Archive(file, members) => {
                let mut name = resolve(&[], name.as_bytes())?;
                for _ in 0..40 {
                    match members.get(&name) {
                        None => return Ok(None),
                        Some(&Place::Data(at, size)) => {
                            return Ok(Some(Section { file: file.clone(), at, end: at + size }));
                        }
                        Some(Place::Alias(target)) => name = target.clone(),
                    }
                }
                Err(Error::new(format_args!("{:?}: links in a circle", OsStr::from_bytes(&name))))
            }
        }
    }

    /// The whole content called `name`, of at most `limit` bytes.
    pub fn document(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(mut section) = self.content(name)? else { return Ok(None) };
        if section.size() > limit {
            return Err(Error::new(format_args!("{name:?} has {} bytes; at most {limit} are taken", section.size())));
        }
        let mut bytes = Vec::new();
        section.read_to_end(&mut bytes).call(format_args!("read({name:?})"))?;
        Ok(Some(bytes))
    }

    /// Whether a name begins with `prefix`.
    pub fn has_any(&self, prefix: &str) -> bool {
        match &self.contents {
            Contents::Directory(dir) => dir.join(prefix).exists(),
            Contents::Archive(_, members) => members.keys().any(|name| name.starts_with(prefix.as_bytes())),
        }
    }
}

/// A part of a file.
pub struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Section {
    /// How many bytes are left to read.
    pub fn size(&self) -> u64 {
        self.end - self.at
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = usize::try_from(self.size()).unwrap_or(usize::MAX).min(buffer.len());
        let length = self.file.read_at(&mut buffer[..limit], self.at)?;
        if length == 0 && limit > 0 {
            return Err(io::Error::other("the archive is cut short"));
        }
        self.at += length as u64;
        Ok(length)
    }
}

fn spooled(input: impl io::BufRead + Send, dir: &Path, limit: Option<u64>) -> Result<File> {
    let mut file = unnamed(dir)?;
    let (mut plain, _) = decoder(input).call(format_args!("read()"))?;
    let mut buffer = vec![0; 1 << 16];
    let mut total = 0;
    loop {
        let length = plain.read(&mut buffer).call(format_args!("read()"))?;
        if length == 0 {
            return Ok(file);
        }
        total += length as u64;
        if limit.is_some_and(|limit| total > limit) {
            return Err(too_large(limit));
        }
        file.write_all(&buffer[..length]).call(format_args!("write({dir:?})"))?;
    }
}

/// The error of `--max-size`.
pub fn too_large(limit: Option<u64>) -> Error {
    Error::new(format_args!("larger than --max-size allows ({} bytes)", limit.unwrap_or(u64::MAX)))
}

/// A file in `dir` that has no name, and vanishes with its last descriptor.
fn unnamed(dir: &Path) -> Result<File> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    match openat(nix::fcntl::AT_FDCWD, dir, flags, mode) {
        Ok(fd) => Ok(fd.into()),
        // File systems without O_TMPFILE.
        Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::EISDIR) => {
            let path = dir.join(format!("spool-{}", std::process::id()));
            let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
            let file = file.call(format_args!("open({path:?}, O_CREAT|O_EXCL)"))?;
            fs::remove_file(&path).call(format_args!("unlink({path:?})"))?;
            Ok(file)
        }
        Err(errno) => Err(Error::call(format_args!("open({dir:?}, O_TMPFILE)"), errno)),
    }
}

/// The members of a plain archive, by name. Their contents are passed over.
fn archive(file: Arc<File>) -> Result<Contents> {
    let end = file.metadata().call(format_args!("fstat()"))?.len();
    let mut members = HashMap::new();
    let (mut at, mut names) = (0, 0);
    loop {
        let section = Section { file: file.clone(), at, end };
        let mut archive = Archive::new(BufReader::with_capacity(2048, section));
        let member = archive.next_member().map_err(|error| {
            if at == 0 {
                error.hint("an image is an archive of docker save, or an OCI layout or archive")
            } else {
                error
            }
        })?;
        let Some(member) = member else { return Ok(Contents::Archive(file, members)) };
        let (start, size) = (at + archive.position(), archive.remaining());
        let next = start.saturating_add(size.div_ceil(512).saturating_mul(512));
        if start.saturating_add(size) > end {
            return Err(Error::new(format_args!(
                "member {:?}: the archive is cut short",
                OsStr::from_bytes(&member.path)
            )));
        }
        at = next.min(end);
        let name = resolve(&[], &member.path)?;
        let place = match member.kind {
            Kind::File if member.segments.is_none() => Place::Data(start, size),
            Kind::Symlink => {
                let parent = name.iter().rposition(|&byte| byte == b'/').map_or(&[][..], |slash| &name[..slash]);
                match resolve(parent, &member.link) {
                    Ok(target) => Place::Alias(target),
                    // Matters only if that member is the image's.
                    Err(_) => Place::Alias(b"..".to_vec()),
                }
            }
            Kind::Link => Place::Alias(resolve(&[], &member.link)?),
            _ => continue,
        };
        if members.len() >= MAX_MEMBERS {
            return Err(Error::new(format_args!("more than {MAX_MEMBERS} members: not an archive of images")));
        }
        names += name.len() + if let Place::Alias(target) = &place { target.len() } else { 0 };
        if names > MAX_NAMES {
            return Err(Error::new(format_args!(
                "names of more than {MAX_NAMES} bytes together: not an archive of images"
            )));
        }
        members.insert(name, place);
    }
}

/// `name` seen from `parent`, without `.`; an error if `..` leads out.
fn resolve(parent: &[u8], name: &[u8]) -> Result<Vec<u8>> {
    let mut stack: Vec<&[u8]> = if name.starts_with(b"/") { Vec::new() } else { components(parent).collect() };
    for component in components(name) {
        match component {
            b".." => {
                stack.pop().ok_or_else(|| {
                    Error::new(format_args!("{:?} leads out of the archive", OsStr::from_bytes(name)))
                })?;
            }
            _ => stack.push(component),
        }
    }
    Ok(stack.join(&b'/'))
}
