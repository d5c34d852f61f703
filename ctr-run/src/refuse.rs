//! What a document may ask for that no link of the chain does. To leave it out in silence would run something else than what
//! was asked for, often something weaker: it is an error that names the member.

use chain::document::Document;
use chain::{Error, Result};
use serde_json::Value;

/// Members that must be absent or empty.
const UNSUPPORTED: [&str; 16] = [
    "hooks",
    "process/apparmorProfile",
    "process/selinuxLabel",
    "process/ioPriority",
    "process/scheduler",
    "process/execCPUAffinity",
    "process/oomScoreAdj",
    "process/user/umask",
    "linux/devices",
    "linux/intelRdt",
    "linux/mountLabel",
    "linux/timeOffsets",
    "linux/resources/blockIO",
    "linux/resources/hugepageLimits",
    "linux/resources/rdma",
    "linux/resources/network",
];

/// Errors: a member that is not supported and says something. `root_of_machine`: no user namespace will be made.
pub fn unsupported(document: &Document, root_of_machine: bool) -> Result<()> {
    if let Some(path) = UNSUPPORTED.iter().find(|path| document.get(path).is_some_and(|value| !is_empty(value))) {
        return Err(refused(path));
    }
    let namespaces = document.list("linux/namespaces")?;
    let has = |kind: &str| namespaces.iter().any(|entry| entry["type"].as_str() == Some(kind));
    // An ordinary user's container always has one, with all ids that the user has.
    if root_of_machine && (has("user") || document.get("linux/uidMappings").is_some_and(|value| !is_empty(value))) {
        return Err(refused("linux/uidMappings").hint("as an ordinary user a user namespace is always made"));
    }
    if has("time") {
        return Err(refused("linux/namespaces (time)"));
    }
    // Only devices that are asked for can be used anyway; more than the usual ones are not given.
    let rules = document.list("linux/resources/devices")?;
    if rules.iter().any(|rule| rule["allow"].as_bool() != Some(false)) {
        return Err(refused("linux/resources/devices").hint("--device gives devices"));
    }
    // An image's come from its own /etc/group, where they are looked up again.
    if document.get("layers").is_none() && !document.list("process/user/additionalGids")?.is_empty() {
        return Err(refused("process/user/additionalGids"));
    }
    match document.text("linux/rootfsPropagation")? {
        None | Some("" | "private" | "rprivate" | "slave" | "rslave") => Ok(()),
        Some(_) => Err(refused("linux/rootfsPropagation")),
    }
}

fn refused(path: &str) -> Error {
    Error::new(format_args!("the document's {} is not supported", path.replace('/', ".")))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(members) => members.values().all(is_empty),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_done_is_named() {
        for (text, name) in [
            (r#"{"hooks":{"prestart":[{"path":"/x"}]}}"#, "hooks"),
            (r#"{"process":{"apparmorProfile":"p"}}"#, "process.apparmorProfile"),
            (r#"{"linux":{"namespaces":[{"type":"user"}]}}"#, "linux.uidMappings"),
            (r#"{"linux":{"resources":{"devices":[{"allow":true,"access":"rwm"}]}}}"#, "linux.resources.devices"),
            (r#"{"process":{"user":{"additionalGids":[5]}}}"#, "process.user.additionalGids"),
            (r#"{"linux":{"rootfsPropagation":"shared"}}"#, "linux.rootfsPropagation"),
        ] {
            let document = Document::parse(text.as_bytes()).unwrap();
            let error = unsupported(&document, true).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn what_says_nothing_is_no_hindrance() {
        let text = r#"{"hooks":{},"layers":["/l"],"process":{"oomScoreAdj":0,"apparmorProfile":"","user":{"additionalGids":[1]}},
            "linux":{"resources":{"devices":[{"allow":false,"access":"rwm"}],"blockIO":{}},"namespaces":[{"type":"user"}]}}"#;
        let document = Document::parse(text.as_bytes()).unwrap();
        assert!(unsupported(&document, false).is_ok());
    }
}
