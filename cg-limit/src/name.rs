//! Names of groups.

use chain::{Error, Result};
use std::fmt;
use std::path::{Component, Path};

/// A group's name: a relative path, `web` or `team/web`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// From an argument or from `linux.cgroupsPath`. Errors: empty, `..`, control characters, and systemd's form
    /// `slice:prefix:name`, which is no path.
    pub fn parse(text: &str) -> Result<Self> {
        let name = text.trim_start_matches('/').trim_end_matches('/');
        let wrong = |why: &str| Err(Error::usage(format_args!("group {text:?}: {why}")));
        if name.is_empty() {
            return wrong("no name");
        }
        if name.contains(':') {
            return wrong("systemd's form of a group; give a path, as in /web");
        }
        let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || name.chars().any(char::is_control) || name.split('/').any(str::is_empty) {
            return wrong("not a name");
        }
        Ok(Name(name.into()))
    }

    /// A name that nobody has.
    pub fn random() -> Self {
        // The standard library's hash keys are the kernel's random numbers, without opening a file.
        let number = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
        Name(format!("ctr-{:012x}", number >> 16))
    }

    /// One for a group that is a COMMAND's own, and goes with it.
    pub fn own() -> Self {
        Name(Name::random().0.replacen("ctr-", "ctr-own-", 1))
    }

    /// Whether `text` is a name that [`Name::own`] gives.
    pub fn is_own(text: &str) -> bool {
        text.strip_prefix("ctr-own-").is_some_and(|hex| hex.len() == 12 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
    }

    /// As a path below the top of a hierarchy.
    pub fn path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// As `linux.cgroupsPath`.
    pub fn to_oci(&self) -> String {
        format!("/{}", self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_top() {
        for (text, name) in [("web", "web"), ("/web", "web"), ("/a/b/", "a/b"), ("...", "...")] {
            assert_eq!(Name::parse(text).unwrap().path(), Path::new(name), "{text}");
        }
        for text in ["", "/", "..", "a/../b", "a//b", "./a", "a\nb", "system.slice:docker:x"] {
            assert!(Name::parse(text).is_err(), "{text:?}");
        }
        assert_ne!(Name::random(), Name::random());
        let text = |name: Name| name.path().to_str().unwrap().to_string();
        assert!(Name::is_own(&text(Name::own())) && !Name::is_own(&text(Name::random())) && !Name::is_own("ctr-own-x"));
    }
}
