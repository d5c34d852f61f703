//! `--show` and `--check`: facts for people and programs.

use crate::group::Group;
use crate::layout::{Layout, Version};
use crate::limits::Limits;
use crate::name::Name;
use crate::setting;
use crate::usage::Usage;
use chain::{Error, Outcome, Result, size};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

/// The files that hold limits, on either version; those that a group has are shown.
const LIMITS: [&str; 20] = [
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.soft_limit_in_bytes",
    "memory.max",
    "memory.swap.max",
    "memory.high",
    "memory.low",
    "memory.oom.group",
    "cpu.cfs_quota_us",
    "cpu.cfs_period_us",
    "cpu.shares",
    "cpu.max",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
    "pids.max",
    "io.max",
    "blkio.throttle.read_bps_device",
    "blkio.throttle.write_bps_device",
    "freezer.state",
];

/// Prints limits and use of a group, once or for as long as the group is there.
pub fn show(name: Name, json: bool, watch: Option<f64>) -> Result<Outcome> {
    let layout = Layout::read()?;
    let group = Group::open(&layout, name.clone())?;
    let Some(seconds) = watch else { return Ok(Outcome::Text(text(&group, json))) };
    let pause = Duration::try_from_secs_f64(seconds).ok().filter(|pause| !pause.is_zero());
    let pause = pause.ok_or_else(|| Error::usage(format_args!("--watch={seconds}: not a number of seconds")))?;
    while let Ok(group) = Group::open(&layout, name.clone()) {
        let mut out = std::io::stdout().lock();
        if out.write_all(text(&group, json).as_bytes()).and_then(|()| out.flush()).is_err() {
            break;
        }
        drop(out);
        std::thread::sleep(pause);
    }
    Ok(Outcome::Done)
}

fn text(group: &Group, as_json: bool) -> String {
    let usage = Usage::read(group);
    let members: Vec<i32> = group.members().into_iter().collect();
    let limits = group.parts.iter().flat_map(|part| LIMITS.iter().filter_map(|file| Some((*file, part.text(file)?))));
    let limits: Vec<(&str, String)> = limits.map(|(file, text)| (file, text.trim().replace('\n', "; "))).collect();
    if as_json {
        let limits: serde_json::Map<String, Value> =
            limits.into_iter().map(|(file, text)| (file.to_string(), text.into())).collect();
        let mut out = usage.to_json();
        out["name"] = group.name.to_oci().into();
        out["limits"] = limits.into();
        out["members"] = json!(members);
        return format!("{out}\n");
    }
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<32} {value}");
    };
    row("group", group.name.to_oci());
    for (file, text) in limits.iter().filter(|(_, text)| !text.is_empty()) {
        row(file, text.clone());
    }
    for (name, value) in figures(&usage) {
        row(name, value);
    }
    let pids: Vec<String> = members.iter().map(i32::to_string).collect();
    row("members", pids.join(" "));
    out
}

fn figures(usage: &Usage) -> Vec<(&'static str, String)> {
    let time = |microseconds: u64| format!("{:.3} s", microseconds as f64 / 1e6);
    let rows = [
        ("CPU time", usage.cpu.map(time)),
        ("throttled for", usage.throttled.map(time)),
        ("throttled in", usage.throttled_share().map(|share| format!("{share} % of its periods"))),
        ("memory now", usage.memory.map(size::display)),
        ("memory at most", usage.memory_peak.map(size::display)),
        ("killed for lack of memory", usage.oom_kills.map(|kills| kills.to_string())),
        ("processes now", usage.pids.map(|pids| pids.to_string())),
        ("processes at most", usage.pids_peak.map(|pids| pids.to_string())),
        ("forks refused", usage.pids_refused.map(|refused| refused.to_string())),
        ("read from disks", usage.read.map(size::display)),
        ("written to disks", usage.written.map(size::display)),
    ];
    let mut out: Vec<(&str, String)> = rows.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    for (resource, average) in &usage.pressure {
        let name = match *resource {
            "cpu" => "waiting for CPU",
            "memory" => "waiting for memory",
            _ => "waiting for disks",
        };
        out.push((name, format!("{average} % of the last 10 s")));
    }
    out
}

/// Where each controller is that `limits` need. Error: one cannot be had.
pub fn check(layout: &Layout, limits: &Limits) -> Result<Outcome> {
    let mut out = String::new();
    for controller in setting::controllers(limits) {
        let (version, hierarchy) = layout.find(controller)?;
        setting::settings(limits, controller, version, true)?;
        let version = if version == Version::V1 { "v1" } else { "v2" };
        let place = Group::check(hierarchy, controller)?;
        let _ = writeln!(out, "{controller}: cgroup {version}, groups go into {place:?}");
    }
    Ok(Outcome::Text(out))
}
