//! What is mounted besides the API file systems, as arguments of `vol-bind`.

use crate::cli::Cli;
use crate::limits::joined;
use chain::{Document, Error, Result};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// From the flags.
pub fn of_flags(cli: &Cli) -> Vec<OsString> {
    let mut out = Vec::new();
    for (option, values) in [("--mount=", &cli.mount), ("--tmpfs=", &cli.tmpfs), ("--device=", &cli.device)] {
        out.extend(values.iter().map(|value| joined(option, value)));
    }
    out.extend(cli.volume.iter().cloned());
    out
}

/// Mount points that `vol-bind --api` provides.
const API: [&str; 7] = ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"];

/// From `linux.maskedPaths` and `linux.readonlyPaths`: all, or with `defaults` what these do not have.
pub fn of_paths(document: &Document, defaults: bool) -> Result<Vec<OsString>> {
    let mut out = Vec::new();
    for (member, option, default) in [
        ("linux/maskedPaths", "--mask", &vol_bind::MASKED[..]),
        ("linux/readonlyPaths", "--readonly", &vol_bind::READ_ONLY[..]),
    ] {
        let more = document.texts(member)?.into_iter().filter(|path| !defaults || !default.contains(path));
        out.extend(more.map(|path| format!("{option}={path}").into()));
    }
    Ok(out)
}

/// What `mounts` says of what `--api` provides: the size of /dev/shm, and whether /sys can be written.
pub fn of_api(document: &Document) -> Result<(Option<String>, bool)> {
    let mounts = document.list("mounts")?;
    let options = |at: &str| {
        let mount = mounts.iter().find(|mount| mount["destination"].as_str() == Some(at));
        mount.map(|mount| mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str))
    };
    let size = options("/dev/shm").and_then(|mut all| all.find_map(|option| option.strip_prefix("size=")));
    let writable = options("/sys").is_some_and(|mut all| !all.any(|option| option == "ro"));
    Ok((size.map(str::to_string), writable))
}

/// From `mounts`, without what `--api` provides anyway. Errors: a mount without a destination, or that cannot be written as
/// an argument.
pub fn of_document(document: &Document) -> Result<Vec<OsString>> {
    let mounts = document.list("mounts")?.iter();
    let ours =
        mounts.filter(|mount| !mount["destination"].as_str().is_some_and(|at| API.contains(&at.trim_end_matches('/'))));
    ours.map(mount_argument).collect()
}

fn mount_argument(mount: &Value) -> Result<OsString> {
    let text = |name: &str| mount[name].as_str().unwrap_or_default();
    let destination = text("destination");
    if destination.is_empty() {
        return Err(Error::new(format_args!("mounts: {mount}: no destination")));
    }
    let options: Vec<&str> = mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let bind =
        options.iter().any(|option| matches!(*option, "bind" | "rbind")) || matches!(text("type"), "bind" | "none");
    let kind = if bind { "bind" } else { text("type") };
    let mut fields = vec![format!("type={kind}")];
    if bind {
        fields.push(format!("src={}", text("source")));
    }
    fields.push(format!("dst={destination}"));
    fields.extend(options.iter().map(|option| option.to_string()));
    let quoted: Vec<String> = fields.into_iter().map(quote).collect();
    Ok(format!("--mount={}", quoted.join(",")).into())
}

/// As [`quote`], of bytes that may be no text.
pub fn quoted(field: &OsStr) -> OsString {
    let bytes = field.as_bytes();
    if !bytes.iter().any(|byte| b",\"\n".contains(byte)) {
        return field.to_os_string();
    }
    let doubled = bytes.iter().flat_map(|&byte| std::iter::repeat_n(byte, if byte == b'"' { 2 } else { 1 }));
    OsString::from_vec(std::iter::once(b'"').chain(doubled).chain([b'"']).collect())
}

/// A field of a comma-separated list, as `--mount` reads it: with commas or quotes in it, in quotes, those doubled.
fn quote(field: String) -> String {
    if field.contains([',', '"', '\n']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_become_arguments_without_the_api() {
        let text = br#"{"mounts":[{"destination":"/proc","type":"proc"},
            {"destination":"/data","type":"none","source":"/srv/a,b","options":["rbind","ro"]},
            {"destination":"/t","type":"tmpfs","options":["size=1m"]}]}"#;
        let got = of_document(&Document::parse(text).unwrap()).unwrap();
        assert_eq!(
            got,
            ["--mount=type=bind,\"src=/srv/a,b\",dst=/data,rbind,ro", "--mount=type=tmpfs,dst=/t,size=1m"]
                .map(OsString::from)
        );
        let text =
            br#"{"mounts":[{"destination":"/dev/shm","options":["size=1m"]},{"destination":"/sys","options":["rw"]}]}"#;
        assert_eq!(of_api(&Document::parse(text).unwrap()).unwrap(), (Some("1m".into()), true));
        assert_eq!(of_api(&Document::new()).unwrap(), (None, false));
        assert!(of_document(&Document::parse(br#"{"mounts":[{"type":"tmpfs"}]}"#).unwrap()).is_err());
    }
}
