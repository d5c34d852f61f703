//! The user namespace of a container: none, one with ids of its own, or one that is there.

use crate::limits::joined;
use chain::document::{Document, path_text};
use chain::userns::{Maps, Range, is_initial};
use chain::{Error, Result};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::PathBuf;

/// A user namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// A new one: the caller is root inside, and the caller's subordinate ids are the others.
    Auto,
    /// A new one with these ids.
    Given(Maps),
    /// A new one with these ids, and the owners of all that the image has are shifted to them: root's own, where the caller
    /// is root of the machine.
    Shifted(Vec<Range>),
    /// The one at that path.
    Path(PathBuf),
}

impl Mapping {
    /// What a document says; an ordinary user has one anyway. `None`: the caller's. Errors: members of the wrong type.
    pub fn of_document(document: &Document, root_of_machine: bool) -> Result<Option<Self>> {
        let listed = document.list("linux/namespaces")?;
        let entry = listed.iter().find(|entry| entry["type"].as_str() == Some("user"));
        if let Some(path) = entry.and_then(|entry| entry["path"].as_str()) {
            return Ok(Some(Mapping::Path(path.into())));
        }
        let maps =
            Maps { users: ranges(document, "linux/uidMappings")?, groups: ranges(document, "linux/gidMappings")? };
        Ok(match (maps.users.is_empty(), entry) {
            (false, _) => Some(Mapping::Given(maps)),
            (true, None) if root_of_machine => None,
            (true, Some(_)) if root_of_machine => {
                return Err(Error::new("the document wants a user namespace, and linux.uidMappings says no ids"));
            }
            (true, _) => Some(Mapping::Auto),
        })
    }

    /// What `--userns` means. Error: none of its values; an ordinary user who wants none.
    pub fn of_flag(value: &str, root_of_machine: bool) -> Result<Option<Self>> {
        match value {
            "host" if root_of_machine => Ok(None),
            "host" => Err(Error::usage("--userns=host: an ordinary user needs a user namespace")
                .hint("leave the option out, or run as root")),
            "auto" if root_of_machine && is_initial() => shifted().map(Some),
            "auto" => Ok(Some(Mapping::Auto)),
            path if path.starts_with('/') => Ok(Some(Mapping::Path(path.into()))),
            other => Err(Error::usage(format_args!("--userns={other:?}: not host, auto or a path"))),
        }
    }

    /// As arguments of `ns-enter`.
    pub fn arguments(&self) -> Vec<OsString> {
        let maps = match self {
            Mapping::Auto => return vec!["--user".into(), "--map-auto".into()],
            Mapping::Path(path) => return vec![joined("--user=", path.as_os_str())],
            Mapping::Given(maps) => maps,
            Mapping::Shifted(ranges) => &Maps { users: ranges.clone(), groups: ranges.clone() },
        };
        let kinds = [("--map-users", &maps.users), ("--map-groups", &maps.groups)];
        let ranges = kinds.iter().flat_map(|(option, ranges)| {
            ranges.iter().map(move |range| format!("{option}={}:{}:{}", range.inner, range.outer, range.count).into())
        });
        // Whose ids are not mapped is no one inside, until it becomes root there.
        let root = matches!(self, Mapping::Shifted(_)).then(|| "--as=0:0".into());
        std::iter::once("--user".into()).chain(ranges).chain(root).collect()
    }

    /// Its ids; `None` for those of a namespace that is there. Errors: as for [`Maps::auto`].
    pub fn maps(&self) -> Result<Option<Maps>> {
        Ok(match self {
            Mapping::Auto => Some(Maps::auto()?),
            Mapping::Given(maps) => Some(maps.clone()),
            Mapping::Shifted(ranges) => Some(Maps { users: ranges.clone(), groups: ranges.clone() }),
            Mapping::Path(_) => None,
        })
    }

    /// Puts it into a document: the entry of `linux.namespaces` is given back. Errors: as for [`Mapping::maps`], a path that
    /// is not UTF-8.
    pub fn write_to(&self, document: &mut Document) -> Result<Value> {
        if let Mapping::Path(path) = self {
            return Ok(json!({"type": "user", "path": path_text(path)?}));
        }
        if let Some(maps) = self.maps()? {
            let range = |r: &Range| json!({"containerID": r.inner, "hostID": r.outer, "size": r.count});
            document.set("linux/uidMappings", maps.users.iter().map(range).collect::<Vec<_>>());
            document.set("linux/gidMappings", maps.groups.iter().map(range).collect::<Vec<_>>());
        }
        Ok(json!({"type": "user"}))
    }
}

/// Root's subordinate ids. Errors: there are none; users' and groups' differ, and what is mounted can be shifted by one only.
fn shifted() -> Result<Mapping> {
    let advice = "add a line such as root:1000000:65536, of ids that no one else has, to both";
    let maps = Maps::of_root()?.ok_or_else(|| {
        Error::new("--userns=auto: neither root nor containers has lines in /etc/subuid and /etc/subgid").hint(advice)
    })?;
    if maps.users != maps.groups {
        return Err(Error::new("--userns=auto: root's ids in /etc/subuid and /etc/subgid differ").hint(advice));
    }
    Ok(Mapping::Shifted(maps.users))
}

fn ranges(document: &Document, path: &str) -> Result<Vec<Range>> {
    let range = |entry: &Value| {
        let number = |name: &str| entry[name].as_u64().and_then(|number| u32::try_from(number).ok());
        match (number("containerID"), number("hostID"), number("size")) {
            (Some(inner), Some(outer), Some(count)) => Ok(Range { inner, outer, count }),
            _ => Err(Error::new(format_args!("{}: not containerID, hostID and size", path.replace('/', ".")))),
        }
    };
    document.list(path)?.iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, root: bool) -> Option<Mapping> {
        Mapping::of_document(&Document::parse(text.as_bytes()).unwrap(), root).unwrap()
    }

    #[test]
    fn a_document_says_which() {
        assert_eq!(of("{}", true), None);
        assert_eq!(of("{}", false), Some(Mapping::Auto));
        assert_eq!(of(r#"{"linux":{"namespaces":[{"type":"user"}]}}"#, false), Some(Mapping::Auto));
        let path = r#"{"linux":{"namespaces":[{"type":"user","path":"/p"}]}}"#;
        assert_eq!(of(path, true), Some(Mapping::Path("/p".into())));
        let maps = r#"{"linux":{"uidMappings":[{"containerID":0,"hostID":7,"size":1}],
            "gidMappings":[{"containerID":0,"hostID":8,"size":1}]}}"#;
        assert_eq!(of(maps, false).unwrap().arguments(), ["--user", "--map-users=0:7:1", "--map-groups=0:8:1"]);
    }

    #[test]
    fn who_is_shifted_becomes_root_inside() {
        let range = Range { inner: 0, outer: 100_000, count: 65536 };
        let want = ["--user", "--map-users=0:100000:65536", "--map-groups=0:100000:65536", "--as=0:0"];
        assert_eq!(Mapping::Shifted(vec![range]).arguments(), want);
    }

    #[test]
    fn a_flag_wins() {
        let of = |value, root| Mapping::of_flag(value, root);
        assert_eq!(of("host", true).unwrap(), None);
        assert!(of("host", false).unwrap_err().to_string().contains("needs a user namespace"));
        assert_eq!(of("auto", false).unwrap(), Some(Mapping::Auto));
        assert_eq!(of("/proc/1/ns/user", true).unwrap(), Some(Mapping::Path("/proc/1/ns/user".into())));
        assert!(of("keep", true).is_err());
    }
}
