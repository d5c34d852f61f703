//! tar streams as members: ustar, GNU and PAX headers (POSIX.1 pax; GNU tar manual, "Basic Tar Format").
//!
//! Nothing here touches a file system. Memory is bounded whatever the stream says: by [`MAX_PAX`], [`MAX_EXTENSIONS`],
//! [`MAX_NAME`] and [`MAX_SEGMENTS`]. Whatever is malformed is an error; what a header says is never believed without data.

use chain::{Error, Result, ResultExt};
use std::io::{self, BufRead};

const BLOCK: usize = 512;
/// The largest PAX header that is taken, in bytes: extended attributes of several times the kernel's 64 KiB.
pub const MAX_PAX: u64 = 1 << 20;
/// The most bytes of all extension headers of one member together, repeated ones included: several times what a member
/// with the kernel's largest set of attributes (64 KiB) and two longest names needs.
pub const MAX_EXTENSIONS: u64 = 4 << 20;
/// The longest name or link target that is taken, in bytes.
pub const MAX_NAME: u64 = 64 << 10;
/// The most data segments of a sparse file that are taken.
pub const MAX_SEGMENTS: usize = 1 << 17;

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of the file `link`.
    Link,
    /// A symbolic link to `link`.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// Something else, by its type flag.
    Unknown(u8),
}

/// A member, as all its headers together describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name, as it stands there.
    pub path: Vec<u8>,
    /// Target of a hard or symbolic link.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size of the file, holes included.
    pub size: u64,
    /// Modification time, in seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes, in order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Device number, major and minor.
    pub device: (u32, u32),
    /// Where the data of a sparse file belongs, as (offset, length); `None` if the file has no holes.
    pub segments: Option<Vec<(u64, u64)>>,
}

/// Members of a stream, one after the other.
pub struct Archive<R> {
    input: R,
    /// Bytes of the current member's data that have not been read, and of the padding after it.
    data: u64,
    padding: u64,
    position: u64,
    ended: bool,
}

impl<R: BufRead> Archive<R> {
    /// The members of `input`, which is plain.
    pub fn new(input: R) -> Self {
        Archive { input, data: 0, padding: 0, position: 0, ended: false }
    }

    /// The next member; what was not read of the one before is skipped. `None` at the end of the archive; what comes after
    /// that is no member.
    ///
    /// Errors: cut short, a wrong checksum, what no number is, over the limits of this module.
    pub fn next_member(&mut self) -> Result<Option<Member>> {
        let at = self.position;
        self.advance().map_err(|error| error.within(format_args!("tar header at byte {at}")))
    }

    /// Where in the stream the next unread byte is.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How many bytes of the current member's data follow.
    pub fn remaining(&self) -> u64 {
        self.data
    }

    /// The next piece of the current member's data; empty at its end.
    pub fn data(&mut self) -> Result<&[u8]> {
        if self.data == 0 {
            return Ok(&[]);
        }
        let limit = usize::try_from(self.data).unwrap_or(usize::MAX);
        let buffer = self.input.fill_buf().call(format_args!("read(archive)"))?;
        if buffer.is_empty() {
            return Err(cut());
        }
        Ok(&buffer[..buffer.len().min(limit)])
    }

    /// Marks `length` bytes of the current member's data as read.
    pub fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.data = self.data.saturating_sub(length as u64);
        self.position += length as u64;
    }

    /// Reads what is left of the stream.
    pub fn drain(&mut self) -> Result<()> {
        loop {
            let length = self.input.fill_buf().call(format_args!("read(archive)"))?.len();
            if length == 0 {
                return Ok(());
            }
            self.input.consume(length);
            self.position += length as u64;
        }
    }

    fn advance(&mut self) -> Result<Option<Member>> {
        if self.ended {
            return Ok(None);
        }
        let mut extended = Extended::default();
        loop {
            self.skip()?;
            let Some(header) = self.block()? else {
                self.ended = true;
                return if extended.seen { Err(cut()) } else { Ok(None) };
            };
            let size = number(&header[124..136]).ok_or_else(|| wrong("size"))?;
            if matches!(header[156], b'x' | b'L' | b'K') {
                extended.spend(size)?;
            }
            match header[156] {
                b'x' => self.pax(size, &mut extended)?,
                b'g' => self.expect(size)?,
                b'L' => extended.long_path = Some(self.long(size)?),
                b'K' => extended.long_link = Some(self.long(size)?),
                b'V' => self.expect(size)?,
                _ => return self.member(&header, size, extended).map(Some),
            }
            extended.seen |= !matches!(header[156], b'g' | b'V');
        }
    }

    /// A header block whose checksum is right; `None` at the end.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let length = self.fill(&mut block)?;
        if length == 0 || (length == BLOCK && block.iter().all(|&byte| byte == 0)) {
            return Ok(None);
        }
        if length < BLOCK {
            return Err(cut());
        }
        let stated = number(&block[148..156]).ok_or_else(|| wrong("checksum"))?;
        let sum = |value: fn(u8) -> i128| -> i128 {
            block.iter().enumerate().map(|(i, &byte)| if (148..156).contains(&i) { 32 } else { value(byte) }).sum()
        };
        if stated != sum(i128::from) && stated != sum(|byte| i128::from(byte as i8)) {
            return Err(Error::new("wrong checksum: not a tar archive, or damaged"));
        }
        Ok(Some(block))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut length = 0;
        while length < buffer.len() {
            match self.input.read(&mut buffer[length..]) {
                Ok(0) => break,
                Ok(more) => length += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::call(format_args!("read(archive)"), error)),
            }
        }
        self.position += length as u64;
        Ok(length)
    }

    /// Makes `size` bytes the current data.
    fn expect(&mut self, size: i128) -> Result<()> {
        let size = u64::try_from(size).ok().filter(|&size| size <= i64::MAX as u64).ok_or_else(|| wrong("size"))?;
        (self.data, self.padding) = (size, (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64);
        Ok(())
    }

    fn skip(&mut self) -> Result<()> {
        while self.data > 0 {
            let length = self.data()?.len();
            self.consume(length);
        }
        // The padding of a last member may be missing: other programs take that too.
        (self.data, self.padding) = (self.padding, 0);
        while self.data > 0 && !self.input.fill_buf().call(format_args!("read(archive)"))?.is_empty() {
            let length = self.data()?.len();
            self.consume(length);
        }
        self.data = 0;
        Ok(())
    }

    fn whole(&mut self, size: i128, limit: u64, what: &str) -> Result<Vec<u8>> {
        self.expect(size)?;
        if self.data > limit {
            return Err(Error::new(format_args!("{what} of {} bytes; at most {limit} are taken", self.data)));
        }
        let mut bytes = Vec::new();
        while self.data > 0 {
            let piece = self.data()?;
            let length = piece.len();
            bytes.extend_from_slice(piece);
            self.consume(length);
        }
        Ok(bytes)
    }

    fn long(&mut self, size: i128) -> Result<Vec<u8>> {
        let mut name = self.whole(size, MAX_NAME, "name")?;
        name.truncate(name.iter().position(|&byte| byte == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn pax(&mut self, size: i128, extended: &mut Extended) -> Result<()> {
        let bytes = self.whole(size, MAX_PAX, "PAX header")?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (key, value, after) = record(rest).ok_or_else(|| Error::new("malformed PAX record"))?;
            extended.set(key, value)?;
            rest = after;
        }
        Ok(())
    }

    fn member(&mut self, header: &[u8; BLOCK], size: i128, extended: Extended) -> Result<Member> {
        let ustar = &header[257..263] == b"ustar\0";
        let mut path = text(&header[..100]).to_vec();
        let prefix = text(&header[345..500]);
        if ustar && !prefix.is_empty() {
            path = [prefix, b"/", &path].concat();
        }
        let pick = |pax: Option<Vec<u8>>, long: Option<Vec<u8>>, short: Vec<u8>| pax.or(long).unwrap_or(short);
        let named = extended.sparse.name.clone().or(extended.path);
        let path = pick(named, extended.long_path, path);
        let link = pick(extended.link, extended.long_link, text(&header[157..257]).to_vec());
        let id = |pax: Option<i128>, field: &[u8], what: &str| {
            let value = pax.or_else(|| number(field)).ok_or_else(|| wrong(what))?;
            u32::try_from(value).ok().filter(|&id| id != u32::MAX).ok_or_else(|| wrong(what))
        };
        let device = |field: &[u8]| number(field).and_then(|n| u32::try_from(n).ok());
        let kind = match header[156] {
            0 | b'0' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::Link,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' | b'D' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => Kind::Unknown(other),
        };
        self.expect(extended.size.map_or(size, i128::from))?;
        let mut member = Member {
            path,
            link,
            kind,
            mode: number(&header[100..108]).ok_or_else(|| wrong("mode"))? as u32 & 0o7777,
            uid: id(extended.uid, &header[108..116], "uid")?,
            gid: id(extended.gid, &header[116..124], "gid")?,
            size: self.data,
            mtime: extended.mtime.unwrap_or_else(|| (whole_seconds(number(&header[136..148])), 0)),
            xattrs: extended.xattrs,
            device: (device(&header[329..337]).unwrap_or(0), device(&header[337..345]).unwrap_or(0)),
            segments: None,
        };
        if matches!(kind, Kind::Char | Kind::Block) {
            let both = device(&header[329..337]).zip(device(&header[337..345]));
            member.device = both.ok_or_else(|| wrong("device number"))?;
        }
        if header[156] == b'S' {
            self.old_gnu_sparse(header, &mut member)?;
        } else if kind == Kind::File && extended.sparse.is_there() {
            self.pax_sparse(extended.sparse, &mut member)?;
        }
        Ok(member)
    }

    /// GNU's old form: the map is in the header and in blocks after it, which the size does not count.
    fn old_gnu_sparse(&mut self, header: &[u8; BLOCK], member: &mut Member) -> Result<()> {
        let mut segments = Vec::new();
        let mut more = header[482] != 0;
        old_segments(&header[386..482], &mut segments)?;
        while more {
            let mut block = [0; BLOCK];
            if self.fill(&mut block)? < BLOCK {
                return Err(cut());
            }
            old_segments(&block[..504], &mut segments)?;
            more = block[504] != 0;
        }
        let size = number(&header[483..495]).and_then(|size| u64::try_from(size).ok());
        self.sparse(member, segments, size.ok_or_else(|| wrong("size of a sparse file"))?)
    }

    fn pax_sparse(&mut self, sparse: Sparse, member: &mut Member) -> Result<()> {
        let size = sparse.size.ok_or_else(|| Error::new("a sparse file without its size"))?;
        let segments = if sparse.major == Some(1) { self.map_in_data()? } else { sparse.segments };
        self.sparse(member, segments, size)
    }

    /// PAX form 1.0: decimal numbers on lines of their own, padded to a block, before the data.
    fn map_in_data(&mut self) -> Result<Vec<(u64, u64)>> {
        let mut numbers = Vec::new();
        let (mut digits, mut count, mut read) = (String::new(), None, 0u64);
        while count.is_none_or(|count: usize| numbers.len() < 2 * count) {
            let byte = *self.data()?.first().ok_or_else(cut)?;
            self.consume(1);
            read += 1;
            match byte {
                b'0'..=b'9' if digits.len() < 20 => digits.push(byte.into()),
                b'\n' => {
                    let value: u64 = digits.parse().map_err(|_| wrong("sparse map"))?;
                    digits.clear();
                    match count {
                        None => count = Some(bounded(value)?),
                        Some(_) => numbers.push(value),
                    }
                }
                _ => return Err(wrong("sparse map")),
            }
        }
        for _ in 0..(BLOCK as u64 - read % BLOCK as u64) % BLOCK as u64 {
            self.data()?.first().ok_or_else(cut)?;
            self.consume(1);
        }
        Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn sparse(&self, member: &mut Member, mut segments: Vec<(u64, u64)>, size: u64) -> Result<()> {
        segments.retain(|&(_, length)| length > 0);
        let mut end = 0;
        let mut sum = 0;
        for &(offset, length) in &segments {
            if offset < end || offset.checked_add(length).is_none_or(|to| to > size) {
                return Err(wrong("sparse map"));
            }
            end = offset + length;
            sum += length;
        }
        if sum != self.data || size > i64::MAX as u64 {
            return Err(wrong("sparse map"));
        }
        member.size = size;
        member.segments = Some(segments);
        Ok(())
    }
}

/// What extension headers say about the member after them.
#[derive(Default)]
struct Extended {
    seen: bool,
    /// How large the headers were together.
    bytes: u64,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<i128>,
    gid: Option<i128>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Sparse,
}

#[derive(Default)]
struct Sparse {
    major: Option<u64>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    segments: Vec<(u64, u64)>,
    offset: Option<u64>,
}

impl Sparse {
    fn is_there(&self) -> bool {
        self.size.is_some() || self.major.is_some() || !self.segments.is_empty()
    }
}

impl Extended {
    /// Takes `size` bytes from the member's budget.
    fn spend(&mut self, size: i128) -> Result<()> {
        let size = u64::try_from(size).map_err(|_| wrong("size"))?;
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > MAX_EXTENSIONS {
            return Err(Error::new(format_args!(
                "extension headers of one member of more than {MAX_EXTENSIONS} bytes together"
            )));
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let decimal = || {
            std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<u64>().ok())
                .ok_or_else(|| Error::new(format_args!("PAX {}: not a number", String::from_utf8_lossy(key))))
        };
        let name = || {
            if value.contains(&0) || value.len() as u64 > MAX_NAME {
                return Err(wrong("name in a PAX record"));
            }
            // A record without a value takes an earlier one back (POSIX.1, pax Extended Header).
            Ok((!value.is_empty()).then(|| value.to_vec()))
        };
        match key {
            b"path" => self.path = name()?,
            b"linkpath" => self.link = name()?,
            b"size" => self.size = Some(decimal()?),
            b"uid" => self.uid = Some(decimal()?.into()),
            b"gid" => self.gid = Some(decimal()?.into()),
            b"mtime" => self.mtime = Some(time(value).ok_or_else(|| wrong("PAX mtime"))?),
            b"GNU.sparse.major" => self.sparse.major = Some(decimal()?),
            b"GNU.sparse.name" => self.sparse.name = name()?,
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.size = Some(decimal()?),
            b"GNU.sparse.offset" => self.sparse.offset = Some(decimal()?),
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take().ok_or_else(|| wrong("sparse map"))?;
                self.sparse.segments.push((offset, decimal()?));
                bounded(self.sparse.segments.len() as u64)?;
            }
            b"GNU.sparse.map" => self.sparse.segments = comma_map(value).ok_or_else(|| wrong("sparse map"))?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.").filter(|name| !name.is_empty()) {
                    if name.contains(&0) {
                        return Err(wrong("name of an extended attribute"));
                    }
                    self.xattrs.retain(|(earlier, _)| earlier != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

fn cut() -> Error {
    Error::new("the archive is cut short")
}

fn wrong(what: &str) -> Error {
    Error::new(format_args!("malformed {what}"))
}

fn bounded(count: u64) -> Result<usize> {
    usize::try_from(count)
        .ok()
        .filter(|&count| count <= MAX_SEGMENTS)
        .ok_or_else(|| Error::new(format_args!("a sparse file of {count} segments; at most {MAX_SEGMENTS} are taken")))
}

fn old_segments(bytes: &[u8], segments: &mut Vec<(u64, u64)>) -> Result<()> {
    for pair in bytes.chunks_exact(24) {
        if pair[0] == 0 && pair[12] == 0 {
            continue;
        }
        let value = |field: &[u8]| number(field).and_then(|n| u64::try_from(n).ok()).ok_or_else(|| wrong("sparse map"));
        segments.push((value(&pair[..12])?, value(&pair[12..])?));
        bounded(segments.len() as u64)?;
    }
    Ok(())
}

fn comma_map(value: &[u8]) -> Option<Vec<(u64, u64)>> {
    let text = std::str::from_utf8(value).ok()?;
    let numbers: Vec<u64> = text.split(',').map(|n| n.parse().ok()).collect::<Option<_>>()?;
    numbers.len().is_multiple_of(2).then(|| numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// `LENGTH KEY=VALUE\n` at the beginning of `bytes`: key, value, what follows.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    if length > bytes.len() || length < space + 3 || bytes[length - 1] != b'\n' {
        return None;
    }
    let body = &bytes[space + 1..length - 1];
    let equals = body.iter().position(|&byte| byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &bytes[length..]))
}

/// A header's text: up to the first zero byte.
fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&byte| byte == 0).unwrap_or(field.len())]
}

/// A header's number: octal digits, or a two's complement number to the base of 256 (GNU). An empty field is 0.
fn number(field: &[u8]) -> Option<i128> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let start: i128 = if first & 0x40 != 0 { i128::from(first as i8) } else { i128::from(first & 0x7f) };
        return rest.iter().try_fold(start, |n, &byte| n.checked_mul(256)?.checked_add(byte.into()));
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0i128, |n, &byte| match byte {
        b'0'..=b'7' => n.checked_mul(8)?.checked_add((byte - b'0').into()),
        _ => None,
    })
}

fn whole_seconds(value: Option<i128>) -> i64 {
    value.unwrap_or(0).clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

/// A PAX time: decimal, perhaps negative, perhaps with a fraction. What is out of range is taken to its nearest.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let seconds = whole.parse::<i64>().unwrap_or(i64::MAX);
    let nanoseconds: u32 = format!("{fraction:0<9}")[..9].parse().ok()?;
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => ((-seconds).saturating_sub(1), 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
