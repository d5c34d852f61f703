//! `--print=oci`: the container as an OCI runtime configuration, for any runtime.
//!
//! The layers are in our member `layers`; `layer-mount --from - DIR` mounts them and writes `root`.

use crate::container::{Container, Namespace, Root, Seccomp};
use crate::mapping::Mapping;
use chain::document::{Document, path_text};
use chain::{Error, Result, ResultExt, size};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::Path;

/// The configuration of `container`: what its document said, with the flags in it.
///
/// Errors: arguments that are not UTF-8, which JSON cannot hold; a user by name that is not in the document; id maps that
/// cannot be read.
pub fn document(container: &Container, store: &Path) -> Result<Document> {
    let own_name = |option: &&OsString| option.to_string_lossy().ends_with(":127.0.1.1");
    let names = container.names.iter().filter(|option| !own_name(option));
    let names = names.filter(|option| !option.to_string_lossy().starts_with("--resolv-conf"));
    let given = container.connection.iter().chain(&container.waiting).chain(names).filter_map(|option| option.to_str());
    if let Some(option) = given.into_iter().find(|option| !option.starts_with("--stop-signal")) {
        let option = option.split('=').next().unwrap_or(option);
        return Err(Error::usage(format_args!("--print=oci: {option} has no place in an OCI configuration"))
            .hint("it takes files or processes beside the runtime: leave it out"));
    }
    if matches!(container.mapping, Some(Mapping::Shifted(_))) {
        return Err(Error::usage(
            "--print=oci: --userns=auto shifts owners, which an OCI configuration cannot say of layers",
        )
        .hint("leave it out, or run this as an ordinary user"));
    }
    let mut document = container.document.clone();
    process(container, &mut document)?;
    document.set("root/readonly", container.read_only);
    if let Root::Directory(path) = &container.root {
        document.set("root/path", path_text(path)?);
    }
    match container.hostname.as_ref().filter(|_| container.namespace("uts") == &Namespace::New) {
        Some(hostname) => document.set("hostname", hostname.as_str()),
        None => drop(document.remove("hostname")),
    }
    mounts(container, &mut document, store)?;
    namespaces(container, &mut document)?;
    if container.nodev {
        // Runtimes that know it allow the usual devices besides.
        document.set("linux/resources/devices", json!([{"allow": false, "access": "rwm"}]));
    }
    match &container.seccomp {
        Seccomp::None => drop(document.remove("linux/seccomp")),
        Seccomp::Default => {
            let kept = crate::capabilities::listed(&container.capabilities);
            document.set("linux/seccomp", ns_enter::default_seccomp(&kept)?);
        }
        Seccomp::Given(_) => {}
        Seccomp::File(file) => {
            let file = Document::read(Path::new(file))?;
            let profile = file.get("linux/seccomp").cloned();
            document.set("linux/seccomp", profile.unwrap_or_else(|| file.members().clone().into()));
        }
    }
    for sysctl in &container.sysctls {
        let (name, value) = sysctl.split_once('=').unwrap_or((sysctl, ""));
        let mut all = document.remove("linux/sysctl").unwrap_or_else(|| json!({}));
        all[name] = value.into();
        document.set("linux/sysctl", all);
    }
    resources(container, &mut document)?;
    Ok(document)
}

fn process(container: &Container, document: &mut Document) -> Result<()> {
    let texts = |list: &[OsString]| list.iter().map(path_text).collect::<Result<Vec<_>>>();
    document.set("process/args", texts(&container.args)?);
    document.set("process/env", texts(&container.env)?);
    document.set("process/cwd", path_text(&container.cwd)?);
    document.set("process/terminal", container.tty);
    document.set("process/noNewPrivileges", container.no_new_privileges);
    user(container, document)?;
    let mut kept = crate::capabilities::listed(&container.capabilities);
    if container.capabilities.first().is_some_and(|first| first == "all") && container.mapping.is_none() {
        // All that there are here: others would make a runtime fail.
        let status = std::fs::read_to_string("/proc/self/status").call(format_args!("read(\"/proc/self/status\")"))?;
        kept = crate::capabilities::bounded(kept, &status);
    }
    // As Docker: a user other than root starts with none in force.
    let root = document.number("process/user/uid")? == Some(0);
    let in_force = if root { kept.clone() } else { Vec::new() };
    document.set(
        "process/capabilities",
        json!({"bounding": kept, "effective": in_force, "permitted": in_force, "ambient": container.ambient}),
    );
    let wrong = |limit: &String| Error::usage(format_args!("limit {limit:?}: not NAME=SOFT[:HARD]"));
    let limits = container.ulimits.iter().map(|limit| rlimit(limit).ok_or_else(|| wrong(limit)));
    let limits: Vec<Value> = limits.collect::<Result<_>>()?;
    if !limits.is_empty() {
        document.set("process/rlimits", limits);
    }
    Ok(())
}

fn user(container: &Container, document: &mut Document) -> Result<()> {
    if document.text("process/user/username")? == Some(&container.user) && document.get("process/user/uid").is_some() {
        document.remove("process/user/username");
        return groups(container, document);
    }
    let (user, group) = container.user.split_once(':').unwrap_or((&container.user, "0"));
    match (user.parse::<u32>(), group.parse::<u32>()) {
        // As Docker: the group is among the others, too.
        (Ok(uid), Ok(gid)) => document.set("process/user", json!({"uid": uid, "gid": gid, "additionalGids": [gid]})),
        _ => {
            return Err(Error::usage(format_args!("--print=oci: user {:?} is a name", container.user))
                .hint("an OCI configuration takes numbers: -u UID:GID"));
        }
    }
    groups(container, document)
}

/// Groups besides, after those that the document has.
fn groups(container: &Container, document: &mut Document) -> Result<()> {
    let mut all: Vec<Value> = document.list("process/user/additionalGids")?.to_vec();
    for group in &container.groups {
        let id: u32 = group.parse().map_err(|_| {
            Error::usage(format_args!("--print=oci: group {group:?} is a name"))
                .hint("an OCI configuration takes numbers")
        })?;
        if !all.contains(&id.into()) {
            all.push(id.into());
        }
    }
    if !all.is_empty() {
        document.set("process/user/additionalGids", all);
    }
    Ok(())
}

fn rlimit(limit: &str) -> Option<Value> {
    let (name, values) = limit.split_once('=')?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let number = |text: &str| match text {
        "unlimited" | "-1" => Some(u64::MAX),
        other => size::parse_limit(other).ok().map(|limit| limit.unwrap_or(u64::MAX)),
    };
    Some(json!({"type": format!("RLIMIT_{}", name.to_ascii_uppercase()), "soft": number(soft)?, "hard": number(hard)?}))
}

/// What the link that mounts would do, as that link writes it down.
fn mounts(container: &Container, document: &mut Document, store: &Path) -> Result<()> {
    // Names were refused above, or are this machine's own.
    let container = Container { names: Vec::new(), ..container.clone() };
    let link = crate::plan::mounts(&container, Path::new("/"), store);
    let made = vol_bind::documented(&link[1..])?;
    for member in ["mounts", "linux/maskedPaths", "linux/readonlyPaths", "linux/devices", "linux/resources/devices"] {
        document.remove(member);
        if let Some(value) = made.get(member) {
            document.set(member, value.clone());
        }
    }
    let mut mounts = document.remove("mounts").unwrap_or_default();
    for mount in mounts.as_array_mut().into_iter().flatten() {
        adapt(mount, &container)?;
    }
    // What shows a namespace can be mounted only by who owns it.
    let own = |name: &str| container.namespace(name) == &Namespace::New;
    if let Some(all) = mounts.as_array_mut() {
        all.retain(|mount| mount["type"] != "cgroup" || own("cgroup"));
        all.retain(|mount| mount["type"] != "mqueue" || own("ipc") || container.mapping.is_none());
    }
    document.set("mounts", mounts);
    Ok(())
}

/// What other runtimes do not find out themselves in a user namespace: whose /sys it can be, and that group 5 is not there.
fn adapt(mount: &mut Value, container: &Container) -> Result<()> {
    let Some(mapping) = &container.mapping else { return Ok(()) };
    let groups = mapping.maps()?.map(|maps| maps.groups).unwrap_or_default();
    if mount["type"] == "sysfs" && container.namespace("network") == &Namespace::Host {
        let access = if container.writable_sys { "rw" } else { "ro" };
        *mount = json!({"destination": "/sys", "type": "none", "source": "/sys",
            "options": ["rbind", "nosuid", "noexec", "nodev", access]});
    }
    if mount["type"] == "devpts"
        && !groups.iter().any(|range| range.inner <= 5 && 5 - range.inner < range.count)
        && let Some(options) = mount["options"].as_array_mut()
    {
        options.retain(|option| option != "gid=5");
    }
    Ok(())
}

fn namespaces(container: &Container, document: &mut Document) -> Result<()> {
    let mut list = vec![json!({"type": "mount"})];
    for (name, namespace) in &container.namespaces {
        match namespace {
            Namespace::New => list.push(json!({"type": name})),
            Namespace::Path(path) => list.push(json!({"type": name, "path": path_text(path)?})),
            Namespace::Host => {}
        }
    }
    document.remove("linux/uidMappings");
    document.remove("linux/gidMappings");
    if let Some(mapping) = &container.mapping {
        list.push(mapping.write_to(document)?);
    }
    document.set("linux/namespaces", list);
    Ok(())
}

/// The limits as the link that sets them writes them down.
fn resources(container: &Container, document: &mut Document) -> Result<()> {
    let limits: Vec<OsString> =
        container.limits.iter().filter(|limit| !limit.to_string_lossy().starts_with("--name=")).cloned().collect();
    if limits.is_empty() {
        return Ok(());
    }
    let made = cg_limit::documented(&limits)?;
    let made = made.get("linux/resources").and_then(Value::as_object);
    for (name, value) in made.into_iter().flatten() {
        document.set(&format!("linux/resources/{name}"), value.clone());
    }
    Ok(())
}
