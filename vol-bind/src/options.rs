//! The option words of a mount: attributes, propagation, and what is ours. No effects.

use crate::mount::{Create, Options, ReadOnly};
use chain::sys::mount::{ATTR_ATIME_MASK, ATTR_NOATIME, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID};
use chain::userns::Range;
use chain::{Error, Result};
use nix::mount::MsFlags;
use std::path::{Component, Path, PathBuf};

const ATTR_STRICTATIME: u64 = 0x20;
const ATTR_NODIRATIME: u64 = 0x80;
/// No symbolic links are followed (Linux 5.14).
const ATTR_NOSYMFOLLOW: u64 = 0x0020_0000;

impl Options {
    /// Takes `word` in. `false` if it is not known: then it may be one of the file system's own.
    ///
    /// Errors: a value that cannot be right.
    pub fn word(&mut self, word: &str) -> Result<bool> {
        let known = self.attribute(word) || self.spread(word) || self.ours(word)?;
        if known && !matches!(word, "nocopy" | "rro") && !word.starts_with("create") && !word.starts_with("idmap=") {
            self.words.push(if word == "ro-top" { "ro".into() } else { word.into() });
        }
        if word == "ro" {
            self.words.push("rro".into());
        }
        Ok(known)
    }

    fn attribute(&mut self, word: &str) -> bool {
        // OCI's recursive forms (rro, rnosuid …) are what the plain words mean here.
        let word = match word.strip_prefix('r') {
            Some(rest @ ("ro" | "rw" | "nosuid" | "suid" | "nodev" | "dev" | "noexec" | "exec" | "noatime")) => rest,
            _ => word,
        };
        match word {
            "ro" | "readonly" => self.read_only = ReadOnly::All,
            "ro-top" => self.read_only = ReadOnly::Top,
            "rw" => self.read_only = ReadOnly::No,
            "nosuid" => self.set |= ATTR_NOSUID,
            "suid" => self.clear |= ATTR_NOSUID,
            "nodev" => self.set |= ATTR_NODEV,
            "dev" => self.clear |= ATTR_NODEV,
            "noexec" => self.set |= ATTR_NOEXEC,
            "exec" => self.clear |= ATTR_NOEXEC,
            "nodiratime" => self.set |= ATTR_NODIRATIME,
            "nosymfollow" => self.set |= ATTR_NOSYMFOLLOW,
            "noatime" | "relatime" | "strictatime" => {
                self.clear |= ATTR_ATIME_MASK;
                self.set &= !ATTR_ATIME_MASK;
                self.set |= match word {
                    "noatime" => ATTR_NOATIME,
                    "strictatime" => ATTR_STRICTATIME,
                    _ => 0,
                };
            }
            "defaults" | "async" => {}
            _ => return false,
        }
        true
    }

    fn spread(&mut self, word: &str) -> bool {
        let kind = |word: &str| match word {
            "private" => Some(MsFlags::MS_PRIVATE.bits()),
            "slave" => Some(MsFlags::MS_SLAVE.bits()),
            "shared" => Some(MsFlags::MS_SHARED.bits()),
            "unbindable" => Some(MsFlags::MS_UNBINDABLE.bits()),
            _ => None,
        };
        let found = match kind(word) {
            Some(flag) => Some((flag, false)),
            None => word.strip_prefix('r').and_then(kind).map(|flag| (flag, true)),
        };
        if let Some((flag, recursive)) = found {
            self.propagation = Some((flag, recursive));
        }
        found.is_some()
    }

    fn ours(&mut self, word: &str) -> Result<bool> {
        match word {
            "bind" => self.top_only = true,
            "rbind" => self.top_only = false,
            "nocopy" => self.no_copy = true,
            "create" | "create=dir" => self.create = Some(Create::Directory),
            "create=file" => self.create = Some(Create::File),
            // Docker's hints for other machines' file systems.
            "cached" | "delegated" | "consistent" => {}
            "z" | "Z" => self.relabel(word)?,
            "idmap" => return Err(Error::usage("option \"idmap\": no map").hint("write idmap=INNER:OUTER:COUNT")),
            _ => match word.split_once('=') {
                Some(("idmap", map)) => self.idmap.push(Range::parse(map)?),
                Some(("subpath", path)) => self.subpath = Some(subpath(path)?),
                _ => return Ok(false),
            },
        }
        Ok(true)
    }

    /// Labels cannot be changed here; where there are none, nothing is to be done.
    fn relabel(&mut self, word: &str) -> Result<()> {
        if Path::new("/sys/fs/selinux/enforce").exists() {
            return Err(Error::usage(format_args!("option {word:?}: SELinux labels are not changed by this tool"))
                .hint("chcon -R -t container_file_t SRC does it"));
        }
        Ok(())
    }

    /// What cannot go together. `what` is the mount as it was given.
    pub fn check(&self, what: &str) -> Result<()> {
        if self.set & self.clear & !ATTR_ATIME_MASK != 0 {
            return Err(Error::usage(format_args!("{what}: an attribute is both set and cleared")));
        }
        let receives = self
            .propagation
            .is_some_and(|(flag, _)| flag == MsFlags::MS_SLAVE.bits() || flag == MsFlags::MS_SHARED.bits());
        if self.read_only == ReadOnly::All && receives {
            return Err(Error::usage(format_args!("{what}: what is mounted below the source later would be writable"))
                .hint("write ro-top if that is meant, or leave the propagation private"));
        }
        Ok(())
    }
}

/// A path below a volume's directory. Errors: absolute, or with `..`.
fn subpath(text: &str) -> Result<PathBuf> {
    let path = Path::new(text);
    match path.components().all(|component| matches!(component, Component::Normal(_) | Component::CurDir)) {
        true => Ok(path.to_path_buf()),
        false => Err(Error::usage(format_args!("subpath {text:?}: not below the volume"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Options {
        let mut options = Options::default();
        for word in words {
            assert!(options.word(word).unwrap(), "{word}");
        }
        options
    }

    #[test]
    fn read_only_is_recursive_unless_top() {
        assert_eq!(options(&["ro"]).read_only, ReadOnly::All);
        assert_eq!(options(&["ro"]).words, ["ro", "rro"]);
        assert_eq!(options(&["rro"]).read_only, ReadOnly::All);
        assert_eq!(options(&["ro-top"]).read_only, ReadOnly::Top);
        assert_eq!(options(&["ro", "rw"]).read_only, ReadOnly::No);
    }

    #[test]
    fn attributes_and_propagation() {
        let got = options(&["nosuid", "dev", "noatime", "rslave", "idmap=0:1000:1", "bind"]);
        assert_eq!((got.set, got.clear), (ATTR_NOSUID | ATTR_NOATIME, ATTR_NODEV | ATTR_ATIME_MASK));
        assert_eq!(got.propagation, Some((MsFlags::MS_SLAVE.bits(), true)));
        assert!(got.top_only && got.idmap.len() == 1);
        assert_eq!(options(&["shared"]).propagation, Some((MsFlags::MS_SHARED.bits(), false)));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut plain = Options::default();
        assert!(!plain.word("size=1m").unwrap() && !plain.word("rubbish").unwrap());
        assert!(plain.word("idmap=1").is_err() && plain.word("idmap").is_err());
        assert!(plain.word("subpath=../x").is_err() && plain.word("subpath=/x").is_err());
        assert!(options(&["exec", "noexec"]).check("x").is_err());
        assert!(options(&["ro", "rslave"]).check("x").is_err());
        assert!(options(&["ro-top", "rslave", "noatime"]).check("x").is_ok());
    }
}
