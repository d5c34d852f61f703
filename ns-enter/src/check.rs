//! `--check`: which namespaces, maps and filters this caller can have here, tried out in children that end at once.

use crate::create;
use crate::namespace::{Kind, Selection};
use crate::request::{Map, Request};
use chain::sys::process::{self, Side};
use chain::userns::Maps;
use chain::{Error, Result, ResultExt};
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{pipe2, read, write};
use serde_json::{Map as Object, Value, json};
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

/// What was looked at.
pub struct Report(Vec<Row>);

struct Row {
    group: &'static str,
    name: &'static str,
    /// Why it cannot be had; `None` if it can.
    why: Option<String>,
    /// What more there is to say.
    detail: Option<String>,
}

impl Report {
    /// Looks at everything.
    pub fn make() -> Result<Self> {
        // With an inherited "ignore" there would be no children to wait for.
        let child_ended = process::default_action(Signal::SIGCHLD);
        let report = Report::look();
        child_ended.restore();
        report
    }

    fn look() -> Result<Self> {
        let privileged = crate::is_privileged()?;
        let mut rows = Vec::new();
        for kind in Kind::ALL {
            rows.push(Row {
                group: "namespaces",
                name: kind.option(),
                why: namespace(kind, privileged)?,
                detail: None,
            });
        }
        for (name, map) in [("root", Map::Own(0, 0)), ("auto", Map::Auto(0, 0))] {
            rows.push(ids(name, &map)?);
        }
        let user = if privileged { 0 } else { libc::CLONE_NEWUSER };
        let proc = || create::mount_proc(Path::new("/proc"));
        let why = probe(user | libc::CLONE_NEWNS | libc::CLONE_NEWPID, &Maps::own(0, 0), proc)?;
        rows.push(Row { group: "mounts", name: "proc", why, detail: None });
        rows.push(filters());
        Ok(Report(rows))
    }

    /// Error: something that `request` asks for cannot be had; it says what and why.
    pub fn satisfies(&self, request: &Request) -> Result<()> {
        let find = |group: &str, name: &str| self.0.iter().find(|row| row.group == group && row.name == name);
        let mut wanted: Vec<Option<&Row>> =
            made(&request.namespaces).into_iter().map(|kind| find("namespaces", kind.option())).collect();
        wanted.push(match request.map {
            Some(Map::Auto(..)) => find("maps", "auto"),
            Some(_) => find("maps", "root"),
            None => None,
        });
        wanted.push(request.setup.proc.as_ref().and_then(|_| find("mounts", "proc")));
        wanted.push(request.seccomp.as_ref().and_then(|_| find("filters", "seccomp")));
        match wanted.into_iter().flatten().find_map(|row| row.why.as_ref().map(|why| (row, why))) {
            Some((row, why)) => Err(Error::new(format_args!("{} {}: cannot be had here: {why}", row.group, row.name))),
            None => Ok(()),
        }
    }

    /// A line for each.
    pub fn to_text(&self) -> String {
        let line = |row: &Row| {
            let detail = row.detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default();
            let answer = row.why.as_ref().map_or("yes".into(), |why| format!("no: {why}"));
            format!("{:<10} {:<8} {answer}{detail}\n", row.group, row.name)
        };
        self.0.iter().map(line).collect()
    }

    /// An object of objects: group, name, `available`, `why`, `detail`.
    pub fn to_json(&self) -> String {
        let mut groups = Object::new();
        for row in &self.0 {
            let mut entry = json!({"available": row.why.is_none()});
            for (name, text) in [("why", &row.why), ("detail", &row.detail)] {
                if let Some(text) = text {
                    entry[name] = text.as_str().into();
                }
            }
            groups.entry(row.group).or_insert_with(|| json!({}))[row.name] = entry;
        }
        format!("{:#}\n", Value::Object(groups))
    }
}

fn made(selection: &Selection) -> Vec<Kind> {
    Kind::ALL.into_iter().filter(|kind| selection.makes(*kind)).collect()
}

fn namespace(kind: Kind, privileged: bool) -> Result<Option<String>> {
    if !Path::new("/proc/self/ns").join(kind.file()).exists() {
        return Ok(Some("this kernel has no such namespaces".into()));
    }
    let user = if privileged || kind == Kind::User { 0 } else { libc::CLONE_NEWUSER };
    probe(user | kind.flag(), &Maps::own(0, 0), || Ok(()))
}

fn ids(name: &'static str, map: &Map) -> Result<Row> {
    let row = |why, detail| Row { group: "maps", name, why, detail };
    let maps = match map.resolve() {
        Ok(maps) => maps,
        Err(error) => return Ok(row(Some(error.to_string()), None)),
    };
    if matches!(map, Map::Auto(..)) && !maps.has_subordinates() {
        return Ok(row(Some("no line for this user in /etc/subuid and /etc/subgid".into()), None));
    }
    let count: u64 = maps.users.iter().map(|range| u64::from(range.count)).sum();
    let detail = format!("{count} user id{}", if count == 1 { "" } else { "s" });
    Ok(row(probe(libc::CLONE_NEWUSER, &maps, || Ok(()))?, Some(detail)))
}

fn filters() -> Row {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let detail = (!actions.is_empty()).then(|| actions.trim().to_string());
    let why = detail.is_none().then(|| "this kernel has no seccomp filters".to_string());
    Row { group: "filters", name: "seccomp", why, detail }
}

/// Whether a process in new namespaces `flags`, with `maps` if there is a user namespace among them, can do `work`: `None`,
/// or why it cannot.
fn probe(flags: i32, maps: &Maps, work: impl FnOnce() -> Result<()>) -> Result<Option<String>> {
    let (go_reader, go_writer) = pipe2(OFlag::O_CLOEXEC).call(format_args!("pipe2()"))?;
    let (said_reader, said_writer) = pipe2(OFlag::O_CLOEXEC).call(format_args!("pipe2()"))?;
    let call = format!("clone3({})", chain::link::clone_flags(flags as u64));
    match process::clone3(flags as u64).call(format_args!("{call}")) {
        Err(error) => Ok(Some(create::explain(error, flags, &Selection::default()).to_string())),
        Ok(Side::Child) => {
            drop(go_writer);
            let error = may_go(&go_reader).then(work).and_then(Result::err);
            let _ = write(&said_writer, error.map(|error| error.to_string()).unwrap_or_default().as_bytes());
            std::process::exit(0)
        }
        Ok(Side::Parent(pid, _)) => {
            drop((go_reader, said_writer));
            let mapped = if flags & libc::CLONE_NEWUSER != 0 { maps.write(pid) } else { Ok(()) };
            if mapped.is_ok() {
                let _ = write(&go_writer, b"g");
            }
            drop(go_writer);
            let mut said = String::new();
            let _ = fs::File::from(said_reader).read_to_string(&mut said);
            waitpid(pid, None).call(format_args!("waitpid({pid})"))?;
            Ok(mapped.err().map(|error| error.to_string()).or((!said.is_empty()).then_some(said)))
        }
    }
}

/// Waits for the word to go on; whether it came.
fn may_go(reader: &OwnedFd) -> bool {
    read(reader, &mut [0u8; 1]) == Ok(1)
}
