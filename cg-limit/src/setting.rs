//! Limits as the kernel's files and what is written to them: pure.

use crate::layout::Version;
use crate::limits::{Bound, Cpus, Flow, Limits, PERIOD, Rate, Share};
use chain::{Error, Result};

/// One write to one of a group's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The controller whose directory has the file.
    pub controller: String,
    /// The file, and others that a kernel may have in its place.
    pub files: Vec<String>,
    /// What is written.
    pub value: String,
    /// How the file shows that it was taken.
    pub proof: Proof,
}

/// How a file shows what was written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// As it was written, or as a number near it.
    Same,
    /// A list of numbers and ranges, perhaps written otherwise.
    List,
    /// On one of its lines.
    Line,
    /// Not at all.
    None,
}

impl Setting {
    fn new(controller: &str, file: impl Into<String>, value: impl ToString) -> Self {
        let files = vec![file.into()];
        Setting { controller: controller.into(), files, value: value.to_string(), proof: Proof::Same }
    }

    fn or(mut self, file: &str) -> Self {
        self.files.push(file.into());
        self
    }

    fn proof(mut self, proof: Proof) -> Self {
        self.proof = proof;
        self
    }
}

/// The controllers that `limits` need, as the version that `version` tells names them: v1's `blkio` is v2's `io`.
pub fn controllers(limits: &Limits) -> Vec<&str> {
    let mut needed = Vec::new();
    let memory = [limits.memory, limits.memory_swap, limits.memory_high, limits.memory_low];
    if memory.iter().any(Option::is_some) || limits.oom_group.is_some() {
        needed.push("memory");
    }
    if limits.cpus.is_some() || limits.share.is_some() {
        needed.push("cpu");
    }
    if limits.cpuset_cpus.is_some() || limits.cpuset_mems.is_some() {
        needed.push("cpuset");
    }
    if limits.pids.is_some() {
        needed.push("pids");
    }
    if !limits.rates.is_empty() || limits.io_weight.is_some() {
        needed.push("io");
    }
    if !limits.hugetlb.is_empty() {
        needed.push("hugetlb");
    }
    if !limits.devices.is_empty() {
        needed.push("devices");
    }
    for (file, _) in &limits.set {
        let controller = controller_of(file);
        if !needed.contains(&controller) {
            needed.push(controller);
        }
    }
    needed
}

/// The controller that a file belongs to.
fn controller_of(file: &str) -> &str {
    match file.split('.').next().unwrap_or_default() {
        "blkio" => "io",
        name => name,
    }
}

/// With less, the kernel kills every program while it starts it.
const SMALLEST_MEMORY: u64 = 512 << 10;

/// The writes for `controller`, in an order that the kernel takes for a new group. `fresh`: the group is new, so what is the
/// kernel's default need not be written. Errors: what that version cannot do.
pub fn settings(limits: &Limits, controller: &str, version: Version, fresh: bool) -> Result<Vec<Setting>> {
    if let Some(Bound::At(bytes)) = limits.memory
        && bytes < SMALLEST_MEMORY
    {
        return Err(Error::usage(format_args!("--memory={bytes}: too little to start any program"))
            .hint("the smallest is 512K"));
    }
    let mut out = match (controller, version) {
        ("memory", Version::V1) => memory_v1(limits)?,
        ("memory", Version::V2) => memory_v2(limits)?,
        ("cpu", _) => cpu(limits, version, fresh),
        ("cpuset", _) => [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)]
            .into_iter()
            .filter_map(|(file, list)| Some(Setting::new(controller, file, list.as_ref()?).proof(Proof::List)))
            .collect(),
        ("pids", _) => limits.pids.map(|pids| Setting::new("pids", "pids.max", word(pids))).into_iter().collect(),
        ("io", _) => io(limits, version),
        ("hugetlb", _) => hugetlb(limits, version),
        ("devices", Version::V1) => limits
            .devices
            .iter()
            .flat_map(|rule| {
                let file = if rule.allow { "devices.allow" } else { "devices.deny" };
                rule.to_v1().into_iter().map(move |line| Setting::new(controller, file, line).proof(Proof::None))
            })
            .collect(),
        _ => Vec::new(),
    };
    let named = limits.set.iter().filter(|(file, _)| controller_of(file) == controller);
    out.extend(named.map(|(file, value)| Setting::new(controller, file, value).proof(Proof::None)));
    Ok(out)
}

/// The kernel's word for a limit on v2.
fn word(bound: Bound) -> String {
    match bound {
        Bound::Max => "max".into(),
        Bound::At(number) => number.to_string(),
    }
}

/// The kernel's word for a limit on v1.
fn number(bound: Bound) -> String {
    match bound {
        Bound::Max => "-1".into(),
        Bound::At(number) => number.to_string(),
    }
}

fn memory_v1(limits: &Limits) -> Result<Vec<Setting>> {
    let only_v2 = |option: &str| {
        Err(Error::new(format_args!("{option}: the memory controller is on cgroup v1, which has no such limit"))
            .hint("boot with systemd.unified_cgroup_hierarchy=1 for cgroup v2"))
    };
    if limits.memory_high.is_some() {
        return only_v2("--memory-high");
    }
    if limits.oom_group == Some(true) {
        return only_v2("--oom-group");
    }
    check_swap(limits)?;
    let files = [
        ("memory.limit_in_bytes", limits.memory),
        ("memory.memsw.limit_in_bytes", limits.memory_swap),
        ("memory.soft_limit_in_bytes", limits.memory_low),
    ];
    let setting = |(file, bound): (&str, Option<Bound>)| Some(Setting::new("memory", file, number(bound?)));
    Ok(files.into_iter().filter_map(setting).collect())
}

fn memory_v2(limits: &Limits) -> Result<Vec<Setting>> {
    // v1 counts memory and swap together, v2 swap alone; the option means the former on both.
    let swap = match (check_swap(limits)?, limits.memory) {
        (Some(Bound::At(both)), Some(Bound::At(memory))) => Some(Bound::At(both - memory)),
        (swap, _) => swap,
    };
    let files = [
        ("memory.max", limits.memory),
        ("memory.swap.max", swap),
        ("memory.high", limits.memory_high),
        ("memory.low", limits.memory_low),
    ];
    let setting = |(file, bound): (&str, Option<Bound>)| Some(Setting::new("memory", file, word(bound?)));
    let mut out: Vec<Setting> = files.into_iter().filter_map(setting).collect();
    out.extend(limits.oom_group.map(|all| Setting::new("memory", "memory.oom.group", u8::from(all))));
    Ok(out)
}

/// A limit of memory and swap together makes sense only beside one of memory, and not below it. Gives it.
fn check_swap(limits: &Limits) -> Result<Option<Bound>> {
    match (limits.memory_swap, limits.memory) {
        (Some(Bound::At(both)), Some(Bound::At(memory))) if both < memory => {
            Err(Error::usage(format_args!("--memory-swap={both} is less than --memory={memory}"))
                .hint("it is memory and swap together; as much as --memory is no swap"))
        }
        (Some(Bound::At(_)), None | Some(Bound::Max)) => {
            Err(Error::usage("--memory-swap without --memory").hint("it is memory and swap together"))
        }
        (swap, _) => Ok(swap),
    }
}

fn cpu(limits: &Limits, version: Version, fresh: bool) -> Vec<Setting> {
    let set = |file: &str, value: String| Setting::new("cpu", file, value);
    let mut out = Vec::new();
    match (limits.share, version) {
        (Some(Share::Weight(_) | Share::Shares(_)), Version::V1) => {
            out.extend(limits.share.map(|share| set("cpu.shares", share.shares().to_string())));
        }
        (share, _) => out.extend(share.map(|share| set("cpu.weight", share.weight().to_string()))),
    }
    match (limits.cpus, version) {
        (Some(Cpus::Quota(quota, period)), Version::V1) => {
            if !fresh || period != PERIOD {
                out.push(set("cpu.cfs_period_us", period.to_string()));
            }
            out.push(set("cpu.cfs_quota_us", quota.to_string()));
        }
        (Some(Cpus::Max), Version::V1) => out.push(set("cpu.cfs_quota_us", "-1".into())),
        (Some(Cpus::Quota(quota, period)), Version::V2) => out.push(set("cpu.max", format!("{quota} {period}"))),
        (Some(Cpus::Max), Version::V2) => out.push(set("cpu.max", format!("max {PERIOD}"))),
        (None, _) => {}
    }
    out
}

fn io(limits: &Limits, version: Version) -> Vec<Setting> {
    let mut out: Vec<Setting> = limits
        .rates
        .iter()
        .map(|rate| {
            let (major, minor) = rate.device;
            let (file, value) = flow(rate, version);
            Setting::new("io", file, format!("{major}:{minor} {value}")).proof(match rate.rate {
                Bound::Max => Proof::None,
                Bound::At(_) => Proof::Line,
            })
        })
        .collect();
    out.extend(limits.io_weight.map(|weight| match version {
        Version::V1 => {
            Setting::new("io", "blkio.weight", weight.clamp(1, 1000)).or("blkio.bfq.weight").proof(Proof::None)
        }
        Version::V2 => Setting::new("io", "io.weight", weight).or("io.bfq.weight").proof(Proof::None),
    }));
    out
}

fn flow(rate: &Rate, version: Version) -> (String, String) {
    let (v1, v2) = match rate.flow {
        Flow::ReadBytes => ("read_bps", "rbps"),
        Flow::WriteBytes => ("write_bps", "wbps"),
        Flow::Reads => ("read_iops", "riops"),
        Flow::Writes => ("write_iops", "wiops"),
    };
    match (version, rate.rate) {
        (Version::V1, Bound::Max) => (format!("blkio.throttle.{v1}_device"), "0".into()),
        (Version::V1, Bound::At(rate)) => (format!("blkio.throttle.{v1}_device"), rate.to_string()),
        (Version::V2, bound) => ("io.max".into(), format!("{v2}={}", word(bound))),
    }
}

fn hugetlb(limits: &Limits, version: Version) -> Vec<Setting> {
    let setting = |(size, bound): &(String, Bound)| match version {
        Version::V1 => Setting::new("hugetlb", format!("hugetlb.{size}.limit_in_bytes"), number(*bound)),
        Version::V2 => Setting::new("hugetlb", format!("hugetlb.{size}.max"), word(*bound)),
    };
    limits.hugetlb.iter().map(setting).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(limits: &Limits, controller: &str, version: Version, fresh: bool) -> Vec<String> {
        let settings = settings(limits, controller, version, fresh).unwrap();
        settings.into_iter().map(|setting| format!("{}={}", setting.files[0], setting.value)).collect()
    }

    #[test]
    fn the_same_limits_on_both_versions() {
        let limits = Limits {
            memory: Some(Bound::At(1 << 20)),
            memory_swap: Some(Bound::At(3 << 20)),
            cpus: Some(Cpus::Quota(50_000, PERIOD)),
            share: Some(Share::Shares(1024)),
            pids: Some(Bound::Max),
            ..Limits::default()
        };
        assert_eq!(controllers(&limits), ["memory", "cpu", "pids"]);
        let v1 = |controller| written(&limits, controller, Version::V1, true);
        assert_eq!(v1("memory"), ["memory.limit_in_bytes=1048576", "memory.memsw.limit_in_bytes=3145728"]);
        assert_eq!(v1("cpu"), ["cpu.shares=1024", "cpu.cfs_quota_us=50000"]);
        assert_eq!(v1("pids"), ["pids.max=max"]);
        let v2 = |controller| written(&limits, controller, Version::V2, true);
        assert_eq!(v2("memory"), ["memory.max=1048576", "memory.swap.max=2097152"]);
        assert_eq!(v2("cpu"), ["cpu.weight=100", "cpu.max=50000 100000"]);
        assert_eq!(written(&limits, "cpu", Version::V1, false)[1], "cpu.cfs_period_us=100000");
    }

    #[test]
    fn swap_needs_memory_and_no_less() {
        let refused = |memory, memory_swap| {
            let limits = Limits { memory, memory_swap, ..Limits::default() };
            [Version::V1, Version::V2].map(|version| settings(&limits, "memory", version, true).is_err())
        };
        assert_eq!(refused(None, Some(Bound::At(5))), [true, true]);
        assert_eq!(refused(Some(Bound::At(2 << 20)), Some(Bound::At(1 << 20))), [true, true]);
        assert_eq!(refused(Some(Bound::At(1 << 20)), Some(Bound::At(1 << 20))), [false, false]);
        assert_eq!(refused(None, Some(Bound::Max)), [false, false]);
    }

    #[test]
    fn disks() {
        let rate = |flow, rate| Rate { device: (8, 0), flow, rate };
        let limits = Limits {
            rates: vec![rate(Flow::WriteBytes, Bound::At(1024)), rate(Flow::Reads, Bound::Max)],
            io_weight: Some(50),
            ..Limits::default()
        };
        let v1 =
            ["blkio.throttle.write_bps_device=8:0 1024", "blkio.throttle.read_iops_device=8:0 0", "blkio.weight=50"];
        assert_eq!(written(&limits, "io", Version::V1, true), v1);
        assert_eq!(
            written(&limits, "io", Version::V2, true),
            ["io.max=8:0 wbps=1024", "io.max=8:0 riops=max", "io.weight=50"]
        );
    }
}
