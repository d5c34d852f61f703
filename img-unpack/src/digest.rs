//! Digests (image-spec, descriptor.md): `sha256:HEX` and `sha512:HEX`, checked before they become names of files.

use chain::{Error, Result};
use sha2::{Digest as _, Sha256, Sha512};
use std::fmt;

/// A digest of a known algorithm, in its one right form.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

/// The algorithms that the image-spec registers and that are supported here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Digest {
    /// From `ALGORITHM:HEX`. Errors: not of the specification's form, an algorithm that is not supported.
    pub fn parse(text: &str) -> Result<Self> {
        let shown: String = text.chars().take(140).collect();
        let wrong = |why: &str| Error::new(format_args!("digest {shown:?}: {why}"));
        let (algorithm, hex) = text.split_once(':').ok_or_else(|| wrong("not ALGORITHM:HEX"))?;
        let (algorithm, length) = match algorithm {
            "sha256" => (Algorithm::Sha256, 64),
            "sha512" => (Algorithm::Sha512, 128),
            other if is_algorithm(other) => return Err(wrong("unsupported algorithm").hint("sha256 and sha512 are")),
            _ => return Err(wrong("not ALGORITHM:HEX")),
        };
        if hex.len() != length || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong(&format!("not {length} lower-case hexadecimal digits")));
        }
        Ok(Digest { algorithm, hex: hex.to_string() })
    }

    /// The digest of `bytes` by SHA-256.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Its algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Its hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The first digits, for people.
    pub fn short(&self) -> &str {
        &self.hex[..12]
    }

    /// Where a layout has the blob: `blobs/sha256/HEX`.
    pub fn blob(&self) -> String {
        format!("blobs/{}/{}", self.algorithm, self.hex)
    }
}

fn is_algorithm(text: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    text.len() <= 32 && text.split(['+', '.', '_', '-']).all(plain)
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, self.hex)
    }
}

/// The identity of each layer applied on those below it (image-spec, config.md, "Layer ChainID"), base first.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::new();
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => diff_id.clone(),
            Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
        });
    }
    chain
}

/// A digest in the making.
pub enum Hasher {
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-512.
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// Of nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Box::new(Sha512::new())),
        }
    }

    /// And of `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all that went in.
    pub fn finish(self) -> Digest {
        let (algorithm, bytes) = match self {
            Hasher::Sha256(hasher) => (Algorithm::Sha256, hasher.finalize().to_vec()),
            Hasher::Sha512(hasher) => (Algorithm::Sha512, hasher.finalize().to_vec()),
        };
        Digest { algorithm, hex: hex(&bytes) }
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        text.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
        text.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_specification_s_form_is_taken() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(Digest::parse(&good).unwrap().to_string(), good);
        assert!(Digest::parse(&format!("sha512:{}", "0a".repeat(64))).is_ok());
        let a = "a".repeat(63);
        let traversal = [
            "sha256:../../x",
            &format!("sha256:{a}"),
            &format!("sha256:{a}A"),
            &format!("sha256:{a}/"),
            "../x:aa",
            "sha256:a/b",
            "",
            ":",
            "sha256",
            "sha256:",
            &format!("sha256:{}", "a".repeat(10_000)),
            "SHA256:aa",
        ];
        for text in traversal {
            assert!(Digest::parse(text).is_err(), "{text}");
        }
        for text in ["md5:aa", "sha256+b64u:aGk"] {
            assert!(Digest::parse(text).unwrap_err().to_string().contains("unsupported algorithm"), "{text}");
        }
    }

    #[test]
    fn chains_are_the_specification_s() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let ids = chain_ids(&[a.clone(), b.clone()]);
        assert_eq!(ids[0], a);
        assert_eq!(ids[1], Digest::of(format!("{a} {b}").as_bytes()));
    }
}
