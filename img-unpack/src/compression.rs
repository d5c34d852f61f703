//! Compression, told by content and never by a label.

use flate2::bufread::GzDecoder;
use std::io::{self, BufRead, Read};

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// gzip (RFC 1952), any number of members.
    Gzip,
    /// Zstandard (RFC 8878), any number of frames.
    Zstd,
}

/// The bytes that a beginning is told by.
pub const MAGIC_BYTES: usize = 6;

/// What the first bytes tell. Error: a compression that is not supported, named.
pub fn detect(start: &[u8]) -> io::Result<Compression> {
    let unsupported = |name: &str, program: &str| {
        Err(io::Error::other(format!("compressed with {name}, which is not supported; {program} -dc it first")))
    };
    match start {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
        // A skippable frame, which zstd:chunked begins with.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => unsupported("xz", "xz"),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41] => unsupported("bzip2", "bzip2"),
        [0x04, 0x22, 0x4d, 0x18, ..] => unsupported("lz4", "lz4"),
        _ => Ok(Compression::Plain),
    }
}

/// The plain content of `input`, and how it is compressed.
pub fn decoder<'a>(mut input: impl BufRead + Send + 'a) -> io::Result<(Box<dyn Read + Send + 'a>, Compression)> {
    // A buffer has more than the magic, or all there is, but for a reader that trickles: a pipe.
    let compression = detect(peek(&mut input)?)?;
    let reader: Box<dyn Read + Send + 'a> = match compression {
        Compression::Plain => Box::new(input),
        Compression::Gzip => Box::new(Members(Some(Member::Data(Box::new(GzDecoder::new(input)))))),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
    };
    Ok((reader, compression))
}

fn peek(input: &mut impl BufRead) -> io::Result<&[u8]> {
    let buffer = input.fill_buf()?;
    Ok(&buffer[..buffer.len().min(MAGIC_BYTES)])
}

/// The members of a gzip stream, one after the other, and zero bytes after the last, which some builders append.
struct Members<R: BufRead>(Option<Member<R>>);

enum Member<R: BufRead> {
    Data(Box<GzDecoder<R>>),
    Between(R),
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while let Some(member) = self.0.take() {
            match member {
                Member::Data(mut decoder) => {
                    let length = decoder.read(buffer)?;
                    self.0 = Some(match length {
                        0 => Member::Between(decoder.into_inner()),
                        _ => Member::Data(decoder),
                    });
                    if length > 0 {
                        return Ok(length);
                    }
                }
                Member::Between(mut input) => match input.fill_buf()?.first() {
                    None => {}
                    Some(0x1f) => self.0 = Some(Member::Data(Box::new(GzDecoder::new(input)))),
                    Some(0) => padding(&mut input)?,
                    Some(_) => return Err(io::Error::other("gzip: other bytes after the compressed data")),
                },
            }
        }
        Ok(0)
    }
}

fn padding(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        let length = buffer.len();
        if length == 0 {
            return Ok(());
        }
        if buffer.iter().any(|&byte| byte != 0) {
            return Err(io::Error::other("gzip: other bytes after the compressed data"));
        }
        input.consume(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn plain(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decoder(io::BufReader::with_capacity(7, bytes))?.0.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn gzip_members_padding_and_damage() {
        let two = [gzip(b"one,"), gzip(b""), gzip(b"two")].concat();
        assert_eq!(plain(&two).unwrap(), b"one,two");
        assert_eq!(plain(&[&two[..], &[0; 1000]].concat()).unwrap(), b"one,two");
        assert!(plain(&[&two[..], b"x"].concat()).is_err());
        assert!(plain(&[&two[..], &[0; 1000], b"x"].concat()).is_err());
        assert!(plain(&two[..two.len() - 1]).is_err());
        let mut wrong_sum = gzip(b"data");
        let at = wrong_sum.len() - 8;
        wrong_sum[at] ^= 1;
        assert!(plain(&wrong_sum).is_err());
    }

    #[test]
    fn zstd_frames_and_skippable_ones() {
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let frame = |bytes: &[u8]| zstd::stream::encode_all(bytes, 1).unwrap();
        let all = [skippable.clone(), frame(b"one,"), skippable.clone(), frame(b"two"), skippable].concat();
        assert_eq!(plain(&all).unwrap(), b"one,two");
        let cut = frame(&[7; 5000]);
        assert!(plain(&cut[..cut.len() - 3]).is_err());
    }

    #[test]
    fn others_are_named() {
        let error = plain(b"\xfd7zXZ\0......").unwrap_err().to_string();
        assert!(error.contains("xz -dc"), "{error}");
        assert!(plain(b"BZh91AY&SY").unwrap_err().to_string().contains("bzip2"));
        assert_eq!(plain(b"").unwrap(), b"");
        assert_eq!(plain(b"BZ").unwrap(), b"BZ");
    }
}
