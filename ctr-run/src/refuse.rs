//! What a document may ask for that no link of the chain does. To leave it out in silence would run something else than what
//! was asked for, often something weaker: it is an error that names the member.

use crate::limits::KNOWN;
use chain::document::Document;
use chain::{Error, Result};
use serde_json::Value;

/// Members that must be absent or empty.
const UNSUPPORTED: [&str; 9] = [
    "hooks",
    "process/apparmorProfile",
    "process/selinuxLabel",
    "process/ioPriority",
    "process/scheduler",
    "process/execCPUAffinity",
    "linux/intelRdt",
    "linux/mountLabel",
    "linux/timeOffsets",
];

/// Errors: a member that is not supported and says something.
pub fn unsupported(document: &Document) -> Result<()> {
    if let Some(path) = UNSUPPORTED.iter().find(|path| document.get(path).is_some_and(|value| !is_empty(value))) {
        return Err(refused(path));
    }
    let namespaces = document.list("linux/namespaces")?;
    let has = |kind: &str| namespaces.iter().any(|entry| entry["type"].as_str() == Some(kind));
    if has("time") {
        return Err(refused("linux/namespaces (time)"));
    }
    for (group, value) in document.get("linux/resources").and_then(Value::as_object).into_iter().flatten() {
        let known = KNOWN.iter().find(|(name, _)| name == group).map(|(_, members)| *members);
        let members = value.as_object().filter(|_| known.is_some_and(|members| !members.is_empty()));
        match (known, members) {
            (None, _) if !is_empty(value) => return Err(refused(&format!("linux/resources/{group}"))),
            (Some(known), Some(members)) => {
                let more = members.iter().find(|(name, value)| !known.contains(&name.as_str()) && !is_empty(value));
                if let Some((name, _)) = more {
                    return Err(refused(&format!("linux/resources/{group}/{name}")));
                }
            }
            _ => {}
        }
    }
    match document.text("linux/rootfsPropagation")? {
        None | Some("" | "private" | "rprivate" | "slave" | "rslave") => Ok(()),
        Some(_) => Err(refused("linux/rootfsPropagation")),
    }
}

/// The error for a member that is not supported.
pub fn refused(path: &str) -> Error {
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
            (r#"{"linux":{"resources":{"rdma":{"mlx5_1":{"hcaHandles":3}}}}}"#, "linux.resources.rdma"),
            (r#"{"linux":{"resources":{"memory":{"swappiness":5}}}}"#, "linux.resources.memory.swappiness"),
            (r#"{"linux":{"rootfsPropagation":"shared"}}"#, "linux.rootfsPropagation"),
        ] {
            let document = Document::parse(text.as_bytes()).unwrap();
            let error = unsupported(&document).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn what_says_nothing_is_no_hindrance() {
        let text = r#"{"hooks":{},"layers":["/l"],"process":{"oomScoreAdj":0,"apparmorProfile":"","user":{"additionalGids":[1]}},
            "linux":{"resources":{"devices":[{"allow":false,"access":"rwm"}],"blockIO":{}},"namespaces":[{"type":"user"}]}}"#;
        let document = Document::parse(text.as_bytes()).unwrap();
        assert!(unsupported(&document).is_ok());
    }
}
