//! What a document (an OCI runtime configuration) says, for what the arguments leave open.

use crate::capability::{self, Sets};
use crate::create::Propagation;
use crate::limits::{self, Limit};
use crate::namespace::{Kind, Origin};
use crate::request::{Map, Request};
use crate::seccomp::Profile;
use crate::user::{Ids, Wanted};
use chain::userns::Range;
use chain::{Document, Error, Result};
use serde_json::Value;
use std::ffi::OsString;

/// Fills `request` in from `document`. Errors: a member of the wrong type or with a value that cannot be.
pub fn fill(request: &mut Request, document: &Document) -> Result<()> {
    namespaces(request, document)?;
    setup(request, document)?;
    root(request, document)?;
    process(request, document)
}

fn namespaces(request: &mut Request, document: &Document) -> Result<()> {
    for entry in document.list("linux/namespaces")? {
        let name = entry.get("type").and_then(Value::as_str).ok_or_else(|| wrong("linux.namespaces", "types"))?;
        let kind =
            Kind::from_oci(name).ok_or_else(|| Error::new(format_args!("linux.namespaces: no type {name:?}")))?;
        if request.namespaces.has(kind) {
            continue;
        }
        let origin = match entry.get("path").filter(|path| !path.is_null()) {
            Some(path) => Origin::Path(path.as_str().ok_or_else(|| wrong("linux.namespaces", "paths"))?.into()),
            None => Origin::New,
        };
        request.namespaces.add(kind, origin)?;
    }
    if request.map.is_none() && request.namespaces.makes(Kind::User) {
        let users = ranges(document, "linux/uidMappings")?;
        let groups = ranges(document, "linux/gidMappings")?;
        if !users.is_empty() || !groups.is_empty() {
            request.map = Some(Map::Ranges { own: None, users, groups });
        }
    }
    Ok(())
}

fn ranges(document: &Document, path: &str) -> Result<Vec<Range>> {
    let range = |entry: &Value| {
        let number = |name: &str| entry.get(name)?.as_u64()?.try_into().ok();
        Some(Range { inner: number("containerID")?, outer: number("hostID")?, count: number("size")? })
    };
    let name = path.replace('/', ".");
    document
        .list(path)?
        .iter()
        .map(|entry| range(entry).ok_or_else(|| wrong(&name, "containerID, hostID and size")))
        .map(|range| range.and_then(|r| Range::parse(&format!("{}:{}:{}", r.inner, r.outer, r.count))))
        .collect()
}

fn setup(request: &mut Request, document: &Document) -> Result<()> {
    let setup = &mut request.setup;
    setup.hostname =
        setup.hostname.take().or(document.text("hostname")?.filter(|name| !name.is_empty()).map(Into::into));
    setup.domainname =
        setup.domainname.take().or(document.text("domainname")?.filter(|name| !name.is_empty()).map(Into::into));
    if let Some(sysctls) = document.get("linux/sysctl") {
        for (name, value) in sysctls.as_object().ok_or_else(|| wrong("linux.sysctl", "an object"))? {
            let value = value.as_str().ok_or_else(|| wrong("linux.sysctl", "texts"))?;
            if !setup.sysctls.iter().any(|(given, _)| given == name) {
                setup.sysctls.push((name.clone(), value.to_string()));
            }
        }
    }
    for (name, clock) in [("monotonic", &mut setup.monotonic), ("boottime", &mut setup.boottime)] {
        let at = format!("linux/timeOffsets/{name}");
        if clock.is_none() && document.get(&at).is_some() {
            let seconds = document.get(&format!("{at}/secs")).and_then(Value::as_i64).unwrap_or(0);
            let nanos = document.number(&format!("{at}/nanosecs"))?.unwrap_or(0);
            let nanos = u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
            *clock = Some((seconds, nanos.ok_or_else(|| wrong("linux.timeOffsets", "nanoseconds below a second"))?));
        }
    }
    if let Some(text) = document.text("linux/rootfsPropagation")?.filter(|text| !text.is_empty()) {
        setup.propagation = match text {
            "private" | "rprivate" => Propagation::Private,
            "slave" | "rslave" => Propagation::Slave,
            other => return Err(Error::new(format_args!("linux.rootfsPropagation: {other:?} would let mounts out"))),
        };
    }
    Ok(())
}

fn root(request: &mut Request, document: &Document) -> Result<()> {
    if request.root.is_none() {
        request.root = document.root()?;
        request.read_only |= request.root.is_some() && document.flag("root/readonly")?.unwrap_or(false);
    }
    if request.workdir.is_none() {
        request.workdir = document.text("process/cwd")?.filter(|cwd| !cwd.is_empty()).map(Into::into);
        // As images expect: their working directory need not be in a layer.
        request.make_workdir |= request.root.is_some() && request.workdir.is_some();
    }
    Ok(())
}

fn process(request: &mut Request, document: &Document) -> Result<()> {
    if request.command.is_empty() {
        request.command = document.texts("process/args")?.into_iter().map(OsString::from).collect();
    }
    if document.get("process/env").is_some() {
        request.environment.clear = true;
        request.environment.base = document.texts("process/env")?.into_iter().map(OsString::from).collect();
    }
    if request.user.is_none() && document.get("process/user").is_some() {
        request.user = Some(user(document)?);
    }
    if request.umask.is_none() {
        request.umask = document.number("process/user/umask")?.map(|mask| mask as u32 & 0o777);
    }
    request.no_new_privs |= document.flag("process/noNewPrivileges")?.unwrap_or(false);
    if request.oom_score.is_none() {
        let score = document
            .get("process/oomScoreAdj")
            .map(|value| value.as_i64().ok_or_else(|| wrong("process.oomScoreAdj", "a number")));
        request.oom_score = score.transpose()?.map(|score| score.clamp(-1000, 1000) as i32);
    }
    if request.capabilities.is_none() && document.get("process/capabilities").is_some() {
        request.capabilities = Some(capability::Wanted::Exactly(capabilities(document)?));
    }
    for entry in document.list("process/rlimits")? {
        let limit = rlimit(entry)?;
        if !request.limits.iter().any(|given| given.resource == limit.resource) {
            request.limits.push(limit);
        }
    }
    request.tty |= document.flag("process/terminal")?.unwrap_or(false);
    if request.seccomp.is_none() {
        request.seccomp = document.get("linux/seccomp").cloned().map(Profile::Given);
    }
    Ok(())
}

/// `username` is who the image names; else the numbers.
fn user(document: &Document) -> Result<Wanted> {
    if let Some(name) = document.text("process/user/username")?.filter(|name| !name.is_empty()) {
        return Wanted::parse(name);
    }
    let id = |path: &str| -> Result<u32> {
        let number = document.number(path)?.unwrap_or(0);
        u32::try_from(number).ok().filter(|id| *id != u32::MAX).ok_or_else(|| wrong(&path.replace('/', "."), "an id"))
    };
    let groups = document.list("process/user/additionalGids")?.iter().map(|value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| wrong("process.user.additionalGids", "ids"))
    });
    let groups: Vec<u32> = groups.collect::<Result<_>>()?;
    let asked = groups.clone();
    Ok(Wanted::Numbers(Ids { user: id("process/user/uid")?, group: id("process/user/gid")?, groups, asked }))
}

fn capabilities(document: &Document) -> Result<Sets> {
    let set = |name: &str| {
        let names = document.texts(&format!("process/capabilities/{name}"))?;
        names.into_iter().try_fold(0, |set, name| Ok::<_, Error>(set | capability::parse(name)?))
    };
    Ok(Sets {
        bounding: set("bounding")?,
        effective: set("effective")?,
        permitted: set("permitted")?,
        inheritable: set("inheritable")?,
        ambient: set("ambient")?,
    })
}

fn rlimit(entry: &Value) -> Result<Limit> {
    let name = entry.get("type").and_then(Value::as_str).ok_or_else(|| wrong("process.rlimits", "types"))?;
    let number = |name: &str| {
        let value = entry.get(name).and_then(Value::as_u64);
        value.ok_or_else(|| wrong("process.rlimits", "soft and hard numbers"))
    };
    Ok(Limit { resource: limits::resource(name)?, soft: number("soft")?, hard: number("hard")? })
}

fn wrong(name: &str, what: &str) -> Error {
    Error::new(format_args!("{name}: not {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn filled(request: Request, text: &str) -> Result<Request> {
        let mut request = request;
        fill(&mut request, &Document::parse(text.as_bytes()).unwrap())?;
        Ok(request)
    }

    const DOCUMENT: &str = r#"{"hostname":"web","root":{"path":"/mnt/web","readonly":true},
        "process":{"args":["sh"],"env":["A=1"],"cwd":"/srv","user":{"uid":5,"gid":6,"additionalGids":[7]},
            "noNewPrivileges":true,"rlimits":[{"type":"RLIMIT_NOFILE","soft":5,"hard":6}],
            "capabilities":{"bounding":["CAP_CHOWN"]}},
        "linux":{"namespaces":[{"type":"network","path":"/run/net"},{"type":"mount"},{"type":"user"}],
            "uidMappings":[{"containerID":0,"hostID":1000,"size":1}],
            "gidMappings":[{"containerID":0,"hostID":1000,"size":1}]}}"#;

    #[test]
    fn what_is_not_given_comes_from_the_document() {
        let request = filled(Request::default(), DOCUMENT).unwrap();
        assert_eq!(request.namespaces.origin(Kind::Net), Some(&Origin::Path("/run/net".into())));
        assert!(request.namespaces.makes(Kind::User) && request.map.is_some());
        assert_eq!(request.root.as_deref(), Some(Path::new("/mnt/web")));
        assert!(request.read_only && request.no_new_privs && request.make_workdir && request.environment.clear);
        let ids = Ids { user: 5, group: 6, groups: vec![7], asked: vec![7] };
        assert_eq!(request.user, Some(Wanted::Numbers(ids)));
        assert_eq!(request.command, ["sh"].map(OsString::from));
        assert_eq!(request.limits[0].hard, 6);
    }

    #[test]
    fn what_is_given_wins() {
        let mut given = Request { command: vec!["ls".into()], workdir: Some("/".into()), ..Request::default() };
        given.namespaces.add(Kind::Net, Origin::New).unwrap();
        given.setup.hostname = Some("mine".into());
        let request = filled(given, DOCUMENT).unwrap();
        assert!(request.namespaces.makes(Kind::Net) && !request.make_workdir);
        assert_eq!((request.command[0].to_str(), request.setup.hostname), (Some("ls"), Some("mine".into())));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            r#"{"linux":{"namespaces":[{"type":"world"}]}}"#,
            r#"{"linux":{"namespaces":[{}]}}"#,
            r#"{"linux":{"namespaces":[{"type":"user"}],"uidMappings":[{"containerID":-1,"hostID":0,"size":1}]}}"#,
            r#"{"process":{"user":{"uid":4294967295}}}"#,
            r#"{"process":{"rlimits":[{"type":"RLIMIT_FOO","soft":1,"hard":1}]}}"#,
            r#"{"process":{"args":"sh"}}"#,
            r#"{"linux":{"rootfsPropagation":"shared"}}"#,
            r#"{"process":{"capabilities":{"bounding":["CAP_FLY"]}}}"#,
        ] {
            assert!(filled(Request::default(), text).is_err(), "{text}");
        }
    }
}
