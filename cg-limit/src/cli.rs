//! Arguments to request, without effects.

use crate::device;
use crate::limits::{Bound, Cpus, DeviceRule, Flow, Limits, Share};
use crate::name::Name;
use chain::{Error, Result};
use clap::{CommandFactory, Parser};
use std::ffi::OsString;
use std::path::PathBuf;

/// The grammar.
pub fn command() -> clap::Command {
    Cli::command()
}

const GROUP: &str = "Group";
const CPU: &str = "CPU";
const MEMORY: &str = "Memory";
const DISK: &str = "Disk (DEVICE: a node, or any path on it; RATE a second)";
const OTHER: &str = "Other limits";
const LATER: &str = "A group that is there";

/// Limits on CPU, memory, disk and processes, for COMMAND or for a group
#[derive(Parser, Debug)]
#[command(
    name = "cg-limit",
    version,
    override_usage = "cg-limit [--name NAME] LIMITS [-- COMMAND [ARG]...]\n       cg-limit --name NAME -- COMMAND [ARG]...\n       cg-limit --undo|--show|--freeze|--thaw|--kill NAME",
    after_help = "Example: cg-limit --memory 64M --cpus 0.5 --pids 100 -- make -j8"
)]
pub struct Cli {
    /// Make or change this group, which stays; without limits: join it
    #[arg(long, help_heading = GROUP, value_name = "NAME")]
    name: Option<String>,
    /// Limits and group of an OCI runtime configuration (- is stdin)
    #[arg(long, help_heading = GROUP, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Write what COMMAND has used to FILE, as JSON
    #[arg(long, help_heading = GROUP, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Say whether these limits can be had here, without setting them
    #[arg(long, help_heading = GROUP)]
    check: bool,

    /// So many CPUs' time (0.5, 2, max)
    #[arg(long, help_heading = CPU, value_name = "N", allow_hyphen_values = true)]
    cpus: Option<String>,
    /// Share under contention, 1 to 10000 (default 100)
    #[arg(long, help_heading = CPU, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10000))]
    cpu_weight: Option<u64>,
    /// The same on cgroup v1's scale, 2 to 262144 (default 1024); 0 leaves it as it is
    #[arg(long, help_heading = CPU, value_name = "N", conflicts_with = "cpu_weight")]
    cpu_shares: Option<u64>,
    /// On these CPUs only (0-1,3)
    #[arg(long, help_heading = CPU, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// With memory of these nodes only
    #[arg(long, help_heading = CPU, value_name = "LIST")]
    cpuset_mems: Option<String>,

    /// No more memory; what exceeds it is killed
    #[arg(long, help_heading = MEMORY, value_name = "SIZE", allow_hyphen_values = true)]
    memory: Option<String>,
    /// No more memory and swap together; as much as --memory is no swap
    #[arg(long, help_heading = MEMORY, value_name = "SIZE", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Slow down and reclaim above this (cgroup v2)
    #[arg(long, help_heading = MEMORY, value_name = "SIZE", allow_hyphen_values = true)]
    memory_high: Option<String>,
    /// Keep this much from reclaim as far as possible
    #[arg(long, help_heading = MEMORY, value_name = "SIZE", allow_hyphen_values = true)]
    memory_low: Option<String>,
    /// Out of memory: kill the whole group (cgroup v2)
    #[arg(long, help_heading = MEMORY)]
    oom_group: bool,

    /// Bytes read
    #[arg(long, help_heading = DISK, value_name = "DEVICE:RATE")]
    device_read_bps: Vec<String>,
    /// Bytes written
    #[arg(long, help_heading = DISK, value_name = "DEVICE:RATE")]
    device_write_bps: Vec<String>,
    /// Reads
    #[arg(long, help_heading = DISK, value_name = "DEVICE:RATE")]
    device_read_iops: Vec<String>,
    /// Writes
    #[arg(long, help_heading = DISK, value_name = "DEVICE:RATE")]
    device_write_iops: Vec<String>,
    /// Share under contention, 1 to 10000 (default 100)
    #[arg(long, help_heading = DISK, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10000))]
    io_weight: Option<u64>,

    /// So many processes and threads
    #[arg(long, help_heading = OTHER, value_name = "N", allow_hyphen_values = true)]
    pids: Option<String>,
    /// Memory in huge pages of SIZE (2M:64M); repeatable
    #[arg(long, help_heading = OTHER, value_name = "SIZE:LIMIT")]
    hugetlb: Vec<String>,
    /// Allow a device after the denials ("c 1:3 rwm", all); repeatable
    #[arg(long, help_heading = OTHER, value_name = "RULE")]
    device_allow: Vec<String>,
    /// Deny a device; repeatable
    #[arg(long, help_heading = OTHER, value_name = "RULE")]
    device_deny: Vec<String>,
    /// Any file of the kernel's (cpu.idle=1); repeatable
    #[arg(long, help_heading = OTHER, value_name = "FILE=VALUE")]
    set: Vec<String>,

    /// Remove the group; with --kill, its members first
    #[arg(long, help_heading = LATER, value_name = "NAME", group = "action")]
    undo: Option<String>,
    /// Print limits and use
    #[arg(long, help_heading = LATER, value_name = "NAME", group = "action")]
    show: Option<String>,
    /// With --show: as JSON
    #[arg(long, help_heading = LATER, requires = "show")]
    json: bool,
    /// With --show: again every second, or so many seconds
    #[arg(long, help_heading = LATER, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "1", requires = "show")]
    watch: Option<f64>,
    /// Stop all members
    #[arg(long, help_heading = LATER, value_name = "NAME", group = "action")]
    freeze: Option<String>,
    /// Let them go on
    #[arg(long, help_heading = LATER, value_name = "NAME", group = "action")]
    thaw: Option<String>,
    /// Kill all members
    #[arg(long, help_heading = LATER, value_name = "NAME", num_args = 0..=1)]
    kill: Option<Option<String>>,

    #[command(flatten)]
    pub(crate) common: chain::args::Common,

    /// What to run in the group
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What is asked for.
#[derive(Debug, PartialEq)]
pub enum Request {
    /// Limits for a group, which COMMAND (if there is one) is run in.
    Limit(Limit),
    /// Whether these limits can be had.
    Check(Limits),
    /// Remove a group; kill its members first if `kill`.
    Undo {
        /// Which.
        name: Name,
        /// Whether members are killed.
        kill: bool,
    },
    /// Print figures of a group; again every so many seconds.
    Show {
        /// Which.
        name: Name,
        /// As JSON.
        json: bool,
        /// Every so many seconds.
        watch: Option<f64>,
    },
    /// Stop the members of a group.
    Freeze(Name),
    /// Let them go on.
    Thaw(Name),
    /// Kill them.
    Kill(Name),
}

/// Limits for a group.
#[derive(Debug, PartialEq)]
pub struct Limit {
    /// The group that stays. None: one of COMMAND's own.
    pub name: Option<Name>,
    /// Over those of the document.
    pub limits: Limits,
    /// The document.
    pub from: Option<PathBuf>,
    /// Where figures go.
    pub stats: Option<PathBuf>,
    /// What is run.
    pub command: Vec<OsString>,
}

impl Cli {
    /// The request. Errors: values that cannot be right, and a device that is no disk.
    pub fn request(self) -> Result<Request> {
        let name = |text: &Option<String>| text.as_deref().map(Name::parse).transpose();
        let of_group = [
            name(&self.freeze)?.map(Request::Freeze),
            name(&self.thaw)?.map(Request::Thaw),
            name(&self.show)?.map(|name| Request::Show { name, json: self.json, watch: self.watch }),
            name(&self.undo)?.map(|name| Request::Undo { name, kill: self.kill.is_some() }),
            name(&self.kill.clone().flatten())?.filter(|_| self.undo.is_none()).map(Request::Kill),
        ];
        let limits = self.limits()?;
        let mut of_group = of_group.into_iter().flatten();
        if let Some(request) = of_group.next() {
            if of_group.next().is_some() || !limits.is_empty() || !self.command.is_empty() || self.name.is_some() {
                return Err(Error::usage("one of --undo, --show, --freeze, --thaw and --kill, alone"));
            }
            return Ok(request);
        }
        if self.kill.is_some() {
            return Err(Error::usage("--kill without NAME"));
        }
        if self.check {
            return Ok(Request::Check(limits));
        }
        let name = name(&self.name)?;
        if limits.is_empty()
            && self.from.is_none()
            && self.stats.is_none()
            && (name.is_none() || self.command.is_empty())
        {
            return Err(Error::usage("no limit given").hint("--help lists them"));
        }
        if self.stats.is_some() && self.command.is_empty() {
            return Err(Error::usage("--stats without COMMAND").hint("--show NAME prints the figures of a group"));
        }
        Ok(Request::Limit(Limit { name, limits, from: self.from, stats: self.stats, command: self.command }))
    }

    fn limits(&self) -> Result<Limits> {
        let size = |text: &Option<String>| text.as_deref().map(Bound::size).transpose();
        let mut rates = Vec::new();
        for (flow, texts) in Flow::ALL.into_iter().zip([
            &self.device_read_bps,
            &self.device_write_bps,
            &self.device_read_iops,
            &self.device_write_iops,
        ]) {
            for text in texts {
                rates.push(device::rate(flow, text)?);
            }
        }
        let rule = |allow: bool| move |text: &String| DeviceRule::parse(allow, text);
        let denied = self.device_deny.iter().map(rule(false));
        Ok(Limits {
            memory: size(&self.memory)?,
            memory_swap: size(&self.memory_swap)?,
            memory_high: size(&self.memory_high)?,
            memory_low: size(&self.memory_low)?,
            oom_group: self.oom_group.then_some(true),
            cpus: self.cpus.as_deref().map(Cpus::parse).transpose()?,
            share: match (self.cpu_weight, self.cpu_shares) {
                (Some(weight), _) => Some(Share::Weight(weight)),
                (None, shares) => shares.filter(|&shares| shares > 0).map(Share::Shares),
            },
            cpuset_cpus: self.cpuset_cpus.clone(),
            cpuset_mems: self.cpuset_mems.clone(),
            pids: self.pids.as_deref().map(|text| Bound::count("processes", text)).transpose()?,
            rates,
            io_weight: self.io_weight,
            hugetlb: self.hugetlb.iter().map(|text| hugetlb(text)).collect::<Result<_>>()?,
            devices: denied.chain(self.device_allow.iter().map(rule(true))).collect::<Result<_>>()?,
            set: self.set.iter().map(|text| set(text)).collect::<Result<_>>()?,
        })
    }
}

/// `2M:64M`: the page size as the kernel writes it (`2MB`), and bytes.
fn hugetlb(text: &str) -> Result<(String, Bound)> {
    let wrong = || Error::usage(format_args!("huge pages {text:?}")).hint("write SIZE:LIMIT, as in 2M:64M");
    let (page, limit) = text.split_once(':').ok_or_else(wrong)?;
    let bytes = chain::size::parse(page)?;
    let units = [(1u64 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")];
    let page = units.iter().find(|(unit, _)| bytes > 0 && bytes % unit == 0).ok_or_else(wrong)?;
    Ok((format!("{}{}", bytes / page.0, page.1), Bound::size(limit)?))
}

/// `cpu.idle=1`.
fn set(text: &str) -> Result<(String, String)> {
    let (file, value) = text.split_once('=').unwrap_or((text, ""));
    let plain = file.contains('.') && !file.contains('/') && !file.starts_with('.') && text.contains('=');
    if !plain {
        return Err(Error::usage(format_args!("{text:?}: not FILE=VALUE")).hint("as in cpu.idle=1"));
    }
    // Values of several words go on one line each.
    Ok((file.into(), value.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Request> {
        let words = std::iter::once("cg-limit").chain(words.split_whitespace());
        Cli::try_parse_from(words).map_err(Error::usage)?.request()
    }

    fn limits(words: &str) -> Limits {
        match parse(words).unwrap() {
            Request::Limit(limit) => limit.limits,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn limits_are_parsed() {
        let got = limits("--memory 64M --cpus 0.5 --pids max --hugetlb 2M:64M --set cpu.idle=1 -- sh");
        assert_eq!(got.memory, Some(Bound::At(64 << 20)));
        assert_eq!(got.cpus, Some(Cpus::Quota(50_000, 100_000)));
        assert_eq!(got.pids, Some(Bound::Max));
        assert_eq!(got.hugetlb, [("2MB".to_string(), Bound::At(64 << 20))]);
        assert_eq!(got.set, [("cpu.idle".to_string(), "1".to_string())]);
        assert_eq!(limits("--cpu-shares 0 --memory -1"), Limits { memory: Some(Bound::Max), ..Limits::default() });
        assert_eq!(limits("--device-deny all --device-allow c:1:3:rw").devices.len(), 2);
    }

    #[test]
    fn one_action_at_a_time() {
        assert_eq!(
            parse("--undo web --kill").unwrap(),
            Request::Undo { name: Name::parse("web").unwrap(), kill: true }
        );
        assert_eq!(parse("--kill web").unwrap(), Request::Kill(Name::parse("web").unwrap()));
        for words in [
            "",
            "-- sh",
            "--kill",
            "--freeze a --thaw b",
            "--freeze a --kill b",
            "--undo a --memory 5M",
            "--undo a -- sh",
            "--memory 64X",
            "--cpu-weight 5 --cpu-shares 5",
            "--cpu-weight 0",
            "--set cpu.idle",
            "--set ../x.y=1",
            "--stats f --memory 5M",
            "--name .. --memory 5M",
        ] {
            assert!(parse(words).is_err(), "{words}");
        }
    }
}
