//! The devices that a document gives, as arguments of `vol-bind`, and whether it limits them at all.

use crate::refuse::refused;
use chain::document::Document;
use chain::{Error, Result};
use nix::sys::stat::{major, minor};
use serde_json::Value;
use std::ffi::OsString;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// What every container has, by number: those of `vol-bind --api`, the console, pseudo-terminals.
const USUAL: [(i64, i64); 9] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, -1)];

/// `linux.devices`: nodes of the machine are given as they are. Error: one that the machine has not, or has as another.
pub fn of_document(document: &Document) -> Result<Vec<OsString>> {
    let argument = |entry: &Value| {
        let path = entry["path"].as_str().ok_or_else(|| Error::new("linux.devices: an entry without a path"))?;
        if USUAL.contains(&number(entry)) {
            return Ok(None);
        }
        if on_machine(Path::new(path)) != Some((entry["type"].as_str() == Some("b"), number(entry))) {
            return Err(refused("linux/devices").hint(format_args!("the machine has no such device at {path:?}")));
        }
        Ok(Some(format!("--device={path}").into()))
    };
    document.list("linux/devices")?.iter().filter_map(|entry| argument(entry).transpose()).collect()
}

/// Whether only what is given may be used, as `linux.resources.devices` has it; without rules, it is so. Error: a rule that
/// allows a device that is not given.
pub fn limited(document: &Document) -> Result<bool> {
    let given: Vec<(i64, i64)> = document.list("linux/devices")?.iter().map(number).collect();
    for rule in document.list("linux/resources/devices")?.iter().filter(|rule| rule["allow"].as_bool() == Some(true)) {
        let access = rule["access"].as_str().unwrap_or("rwm");
        let number = number(rule);
        let every = number == (-1, -1);
        if every && access.contains(['r', 'w']) {
            return Ok(false);
        }
        // Nodes can be made anyway, if the capability is there.
        let fine = access == "m" || USUAL.contains(&number) || given.contains(&number);
        if !fine {
            return Err(refused("linux/resources/devices").hint("--device gives devices"));
        }
    }
    Ok(true)
}

/// Major and minor number, -1 for any.
fn number(entry: &Value) -> (i64, i64) {
    let of = |name: &str| entry[name].as_i64().unwrap_or(-1);
    (of("major"), of("minor"))
}

/// Whether it is a block device, and its number.
fn on_machine(path: &Path) -> Option<(bool, (i64, i64))> {
    let metadata = path.metadata().ok()?;
    let kind = metadata.file_type();
    let number = (i64::try_from(major(metadata.rdev())).ok()?, i64::try_from(minor(metadata.rdev())).ok()?);
    (kind.is_block_device() || kind.is_char_device()).then(|| (kind.is_block_device(), number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        Document::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn devices_of_the_machine_are_given() {
        let text = r#"{"linux":{"devices":[{"path":"/dev/kmsg","type":"c","major":1,"minor":11},{"path":"/dev/null","type":"c","major":1,"minor":3}]}}"#;
        assert_eq!(of_document(&document(text)).unwrap(), ["--device=/dev/kmsg"]);
        let other = document(&text.replace("11", "12"));
        assert!(of_document(&other).unwrap_err().to_string().contains("linux.devices"));
    }

    #[test]
    fn rules_say_whether_devices_are_limited() {
        let rules =
            |rules: &str| limited(&document(&format!(r#"{{"linux":{{"resources":{{"devices":[{rules}]}}}}}}"#)));
        assert!(rules("").unwrap());
        assert!(rules(r#"{"allow":false,"access":"rwm"}"#).unwrap());
        assert!(
            rules(
                r#"{"allow":true,"type":"c","access":"m"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}"#
            )
            .unwrap()
        );
        assert!(!rules(r#"{"allow":true,"access":"rwm"}"#).unwrap());
        assert!(rules(r#"{"allow":true,"type":"b","major":8,"minor":0,"access":"r"}"#).is_err());
    }
}
