//! Limits as values, from arguments and from `linux.resources` of an OCI runtime configuration, and back.

use chain::{Document, Error, Result, size};
use serde_json::{Value, json};

/// A limit in bytes or pieces, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// No limit.
    Max,
    /// So many.
    At(u64),
}

impl Bound {
    /// A size (`64M`, `max`, `-1`), in bytes. Error: no size.
    pub fn size(text: &str) -> Result<Self> {
        size::parse_limit(text).map(|limit| limit.map_or(Bound::Max, Bound::At))
    }

    /// A count (`100`, `max`, `-1`). Error: no whole number.
    pub fn count(what: &str, text: &str) -> Result<Self> {
        match text {
            "max" | "-1" => Ok(Bound::Max),
            _ => text
                .parse()
                .map(Bound::At)
                .map_err(|_| Error::usage(format!("{what} {text:?}: not a whole number")).hint("or max for no limit")),
        }
    }

    /// As OCI writes it: -1 is no limit.
    fn to_oci(self) -> Value {
        match self {
            Bound::Max => json!(-1),
            Bound::At(number) => json!(number),
        }
    }
}

/// CPU time: so many microseconds in each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpus {
    /// No limit.
    Max,
    /// Microseconds in each period of microseconds.
    Quota(u64, u64),
}

/// The kernel's own default period.
pub const PERIOD: u64 = 100_000;
/// The kernel takes no smaller quota, and no period outside 1000 to 1000000.
const SMALLEST: u64 = 1_000;
const LONGEST: u64 = 1_000_000;

impl Cpus {
    /// From a number of CPUs (`1.5`, `max`). The period is the kernel's default, and longer where the quota would fall below
    /// the kernel's smallest. Errors: no number, negative, less than the kernel can.
    pub fn parse(text: &str) -> Result<Self> {
        if matches!(text, "max" | "-1") {
            return Ok(Cpus::Max);
        }
        let number = text.parse::<f64>().ok().filter(|cpus| cpus.is_finite() && *cpus >= 0.0 && *cpus < 1e6);
        let cpus =
            number.ok_or_else(|| Error::usage(format!("CPUs {text:?}: not a number")).hint("write 0.5, 2 or max"))?;
        let period = if cpus * (PERIOD as f64) < SMALLEST as f64 { LONGEST } else { PERIOD };
        let quota = (cpus * period as f64).round() as u64;
        if quota < SMALLEST {
            return Err(Error::usage(format!("CPUs {text:?}: too few for the kernel")).hint("the smallest is 0.001"));
        }
        Ok(Cpus::Quota(quota, period))
    }
}

/// The share of CPU time under contention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// 1 to 10000, 100 by default (cgroup v2).
    Weight(u64),
    /// 2 to 262144, 1024 by default (cgroup v1).
    Shares(u64),
}

impl Share {
    /// As cgroup v2's `cpu.weight`.
    pub fn weight(self) -> u64 {
        match self {
            Share::Weight(weight) => weight,
            Share::Shares(shares) => weight_of(shares),
        }
    }

    /// As cgroup v1's `cpu.shares`.
    pub fn shares(self) -> u64 {
        match self {
            Share::Shares(shares) => shares.clamp(2, 262_144),
            Share::Weight(weight) => shares_of(weight),
        }
    }
}

/// The formula that OCI runtimes use since 2025: both defaults (1024 and 100) and both ends meet, logarithmically between.
fn weight_of(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    match shares {
        2 => 1,
        262_144 => 10_000,
        _ => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

/// The fewest shares that [`weight_of`] makes this weight, but the default for the default.
fn shares_of(weight: u64) -> u64 {
    if weight == 100 {
        return 1024;
    }
    // The fewest shares with at least this weight: the formula never falls.
    let (mut low, mut high) = (2, 262_144);
    while low < high {
        let middle = (low + high) / 2;
        if weight_of(middle) < weight { low = middle + 1 } else { high = middle }
    }
    low
}

/// What a disk is limited in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flow {
    /// Bytes read a second.
    ReadBytes,
    /// Bytes written a second.
    WriteBytes,
    /// Reads a second.
    Reads,
    /// Writes a second.
    Writes,
}

impl Flow {
    /// All of them.
    pub const ALL: [Flow; 4] = [Flow::ReadBytes, Flow::WriteBytes, Flow::Reads, Flow::Writes];

    const fn oci(self) -> &'static str {
        match self {
            Flow::ReadBytes => "throttleReadBpsDevice",
            Flow::WriteBytes => "throttleWriteBpsDevice",
            Flow::Reads => "throttleReadIOPSDevice",
            Flow::Writes => "throttleWriteIOPSDevice",
        }
    }
}

/// A disk's limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The whole disk.
    pub device: (u64, u64),
    /// What of it.
    pub flow: Flow,
    /// How much a second.
    pub rate: Bound,
}

/// Whether a device may be used, in the words of cgroup v1: `c 1:3 rwm`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// Allowed or denied.
    pub allow: bool,
    /// `a` (all), `b` or `c`.
    pub kind: char,
    /// None is all.
    pub major: Option<u64>,
    /// None is all.
    pub minor: Option<u64>,
    /// Of `r`, `w` and `m` (mknod).
    pub access: String,
}

impl DeviceRule {
    /// From `all`, `c:1:3:rwm`, `c 1:3 rwm` or `b 8:* r`. Error: not of the form.
    pub fn parse(allow: bool, text: &str) -> Result<Self> {
        let wrong = || Error::usage(format!("device rule {text:?}")).hint("write \"c 1:3 rwm\", \"b 8:* r\" or all");
        if matches!(text, "all" | "a") {
            return Ok(DeviceRule { allow, kind: 'a', major: None, minor: None, access: "rwm".into() });
        }
        let words: Vec<&str> = text.split([' ', ':']).filter(|word| !word.is_empty()).collect();
        let [kind @ ("a" | "b" | "c"), major, minor, rest @ ..] = words.as_slice() else { return Err(wrong()) };
        let number = |word: &str| if word == "*" { Ok(None) } else { word.parse().map(Some).map_err(|_| wrong()) };
        let access = match rest {
            [] => "rwm",
            [access] if !access.is_empty() && access.chars().all(|c| "rwm".contains(c)) => access,
            _ => return Err(wrong()),
        };
        let kind = kind.chars().next().unwrap_or('a');
        Ok(DeviceRule { allow, kind, major: number(major)?, minor: number(minor)?, access: access.into() })
    }

    /// Whether it is about all devices and accesses, so that no rule before it matters.
    pub fn is_all(&self) -> bool {
        self.kind == 'a'
            && self.major.is_none()
            && self.minor.is_none()
            && "rwm".chars().all(|c| self.access.contains(c))
    }

    /// As cgroup v1's `devices.allow` and `devices.deny` take it: its word for both kinds is for all devices and accesses.
    pub fn to_v1(&self) -> Vec<String> {
        let number = |number: Option<u64>| number.map_or("*".into(), |number| number.to_string());
        let rule = |kind: char| format!("{kind} {}:{} {}", number(self.major), number(self.minor), self.access);
        match self.kind {
            'a' if self.is_all() => vec!["a".into()],
            'a' => vec![rule('b'), rule('c')],
            kind => vec![rule(kind)],
        }
    }
}

/// All limits of a group. What is `None` or empty stays as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    /// Memory in bytes.
    pub memory: Option<Bound>,
    /// Memory and swap together in bytes, as `docker run` and OCI count it.
    pub memory_swap: Option<Bound>,
    /// Memory above which the kernel reclaims and slows the group down (v2 only).
    pub memory_high: Option<Bound>,
    /// Memory that is kept from reclaim as far as possible.
    pub memory_low: Option<Bound>,
    /// Whether the OOM killer takes the whole group (v2 only).
    pub oom_group: Option<bool>,
    /// CPU time.
    pub cpus: Option<Cpus>,
    /// Share of CPU time.
    pub share: Option<Share>,
    /// CPUs that may be used (`0-1,3`).
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that may be used.
    pub cpuset_mems: Option<String>,
    /// Number of processes and threads.
    pub pids: Option<Bound>,
    /// Limits of disks.
    pub rates: Vec<Rate>,
    /// Share of disk time, 100 by default.
    pub io_weight: Option<u64>,
    /// Huge pages: page size as the kernel writes it (`2MB`), and bytes.
    pub hugetlb: Vec<(String, Bound)>,
    /// Devices, in order.
    pub devices: Vec<DeviceRule>,
    /// Files of the kernel and what is written to them.
    pub set: Vec<(String, String)>,
}

impl Limits {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Limits::default()
    }

    /// These, with those of `other` where these say nothing. Lists are joined, `other`'s first, so that these win.
    pub fn or(self, other: Limits) -> Limits {
        let join_rates = other.rates.into_iter().chain(self.rates).collect();
        Limits {
            memory: self.memory.or(other.memory),
            memory_swap: self.memory_swap.or(other.memory_swap),
            memory_high: self.memory_high.or(other.memory_high),
            memory_low: self.memory_low.or(other.memory_low),
            oom_group: self.oom_group.or(other.oom_group),
            cpus: self.cpus.or(other.cpus),
            share: self.share.or(other.share),
            cpuset_cpus: self.cpuset_cpus.or(other.cpuset_cpus),
            cpuset_mems: self.cpuset_mems.or(other.cpuset_mems),
            pids: self.pids.or(other.pids),
            rates: join_rates,
            io_weight: self.io_weight.or(other.io_weight),
            hugetlb: other.hugetlb.into_iter().chain(self.hugetlb).collect(),
            devices: other.devices.into_iter().chain(self.devices).collect(),
            set: other.set.into_iter().chain(self.set).collect(),
        }
    }

    /// From `linux.resources`. Errors: members of the wrong type, and what cannot be applied.
    pub fn of_document(document: &Document) -> Result<Limits> {
        let at = |path: &str| format!("linux/resources/{path}");
        refuse_unknown(document)?;
        let text =
            |path: &str| Ok::<_, Error>(document.text(&at(path))?.filter(|text| !text.is_empty()).map(str::to_string));
        let mut limits = Limits {
            memory: bound(document, &at("memory/limit"))?,
            memory_swap: bound(document, &at("memory/swap"))?,
            memory_low: bound(document, &at("memory/reservation"))?,
            cpus: cpus_of(document)?,
            share: document.number(&at("cpu/shares"))?.filter(|&shares| shares > 0).map(Share::Shares),
            cpuset_cpus: text("cpu/cpus")?,
            cpuset_mems: text("cpu/mems")?,
            pids: bound(document, &at("pids/limit"))?,
            io_weight: document.number(&at("blockIO/weight"))?.filter(|&weight| weight > 0),
            ..Limits::default()
        };
        for flow in Flow::ALL {
            for entry in document.list(&at(&format!("blockIO/{}", flow.oci())))? {
                limits.rates.push(rate_of(flow, entry)?);
            }
        }
        for entry in document.list(&at("hugepageLimits"))? {
            let (size, limit) = (entry["pageSize"].as_str(), entry["limit"].as_u64());
            let (Some(size), Some(limit)) = (size, limit) else { return Err(wrong("hugepageLimits")) };
            limits.hugetlb.push((size.to_string(), Bound::At(limit)));
        }
        for entry in document.list(&at("devices"))? {
            limits.devices.push(device_of(entry)?);
        }
        if let Some(unified) = document.get(&at("unified")) {
            for (file, value) in unified.as_object().ok_or_else(|| wrong("unified"))? {
                limits.set.push((file.clone(), value.as_str().ok_or_else(|| wrong("unified"))?.to_string()));
            }
        }
        Ok(limits)
    }

    /// Puts these into `linux.resources`, over what is there.
    pub fn write_to(&self, document: &mut Document) {
        let mut put = |path: &str, value: Option<Value>| {
            if let Some(value) = value {
                document.set(&format!("linux/resources/{path}"), value);
            }
        };
        put("memory/limit", self.memory.map(Bound::to_oci));
        put("memory/swap", self.memory_swap.map(Bound::to_oci));
        put("memory/reservation", self.memory_low.map(Bound::to_oci));
        match self.cpus {
            Some(Cpus::Quota(quota, period)) => {
                put("cpu/quota", Some(quota.into()));
                put("cpu/period", Some(period.into()));
            }
            Some(Cpus::Max) => put("cpu/quota", Some(json!(-1))),
            None => {}
        }
        put("cpu/shares", self.share.map(|share| share.shares().into()));
        put("cpu/cpus", self.cpuset_cpus.clone().map(Value::from));
        put("cpu/mems", self.cpuset_mems.clone().map(Value::from));
        put("pids/limit", self.pids.map(Bound::to_oci));
        put("blockIO/weight", self.io_weight.map(Value::from));
        for flow in Flow::ALL {
            let of_flow = self.rates.iter().filter(|rate| rate.flow == flow);
            // The specification has no word for "no limit" here; 0 is what the kernel takes for it on v1.
            let entries: Vec<Value> = of_flow
                .map(|Rate { device: (major, minor), rate, .. }| {
                    json!({"major": major, "minor": minor, "rate": if let Bound::At(rate) = rate { *rate } else { 0 }})
                })
                .collect();
            put(&format!("blockIO/{}", flow.oci()), (!entries.is_empty()).then(|| entries.into()));
        }
        let pages: Vec<Value> = self
            .hugetlb
            .iter()
            .map(|(size, bound)| json!({"pageSize": size, "limit": if let Bound::At(n) = bound { *n } else { i64::MAX as u64 }}))
            .collect();
        put("hugepageLimits", (!pages.is_empty()).then(|| pages.into()));
        let devices: Vec<Value> = self.devices.iter().map(device_to_oci).collect();
        put("devices", (!devices.is_empty()).then(|| devices.into()));
        let max = |bound: Bound| match bound {
            Bound::Max => "max".to_string(),
            Bound::At(number) => number.to_string(),
        };
        let mut unified: Vec<(String, String)> = self.set.clone();
        unified.extend(self.memory_high.map(|high| ("memory.high".into(), max(high))));
        unified.extend(self.oom_group.map(|all| ("memory.oom.group".into(), u8::from(all).to_string())));
        if !unified.is_empty() {
            put(
                "unified",
                Some(
                    unified
                        .into_iter()
                        .map(|(file, value)| (file, value.into()))
                        .collect::<serde_json::Map<_, _>>()
                        .into(),
                ),
            );
        }
    }
}

fn wrong(member: &str) -> Error {
    Error::new(format_args!("linux.resources.{member}: not of the form that the OCI runtime specification gives"))
}

/// Never fail open: a limit that we would not apply is refused.
fn refuse_unknown(document: &Document) -> Result<()> {
    let Some(resources) = document.get("linux/resources") else { return Ok(()) };
    let resources = resources.as_object().ok_or_else(|| Error::new("linux.resources: not an object"))?;
    const KNOWN: [(&str, &[&str]); 7] = [
        ("memory", &["limit", "swap", "reservation", "kernel", "kernelTCP", "checkBeforeUpdate", "useHierarchy"]),
        ("cpu", &["shares", "quota", "period", "cpus", "mems"]),
        ("pids", &["limit"]),
        ("blockIO", &["weight", Flow::ALL[0].oci(), Flow::ALL[1].oci(), Flow::ALL[2].oci(), Flow::ALL[3].oci()]),
        ("hugepageLimits", &[]),
        ("devices", &[]),
        ("unified", &[]),
    ];
    for (group, value) in resources.iter().filter(|(_, value)| !is_nothing(value)) {
        let Some((_, members)) = KNOWN.iter().find(|(name, _)| name == group) else {
            return Err(Error::new(format_args!("linux.resources.{group}: cannot be applied here"))
                .hint("take it out of the document"));
        };
        let (false, Some(inner)) = (members.is_empty(), value.as_object()) else { continue };
        if let Some((name, _)) =
            inner.iter().find(|(name, value)| !is_nothing(value) && !members.contains(&name.as_str()))
        {
            return Err(Error::new(format_args!("linux.resources.{group}.{name}: cannot be applied here"))
                .hint("take it out of the document, or use --set FILE=VALUE"));
        }
    }
    Ok(())
}

/// Null, empty, false and 0 ask for nothing.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(members) => members.is_empty(),
        Value::Array(entries) => entries.is_empty(),
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) => false,
    }
}

fn bound(document: &Document, path: &str) -> Result<Option<Bound>> {
    let Some(value) = document.get(path) else { return Ok(None) };
    let number =
        value.as_i64().ok_or_else(|| Error::new(format_args!("{}: not a whole number", path.replace('/', "."))))?;
    Ok(Some(u64::try_from(number).map_or(Bound::Max, Bound::At)))
}

fn cpus_of(document: &Document) -> Result<Option<Cpus>> {
    let period = document.number("linux/resources/cpu/period")?.filter(|&period| period > 0);
    Ok(match (bound(document, "linux/resources/cpu/quota")?, period) {
        (Some(Bound::At(quota)), period) if quota > 0 => Some(Cpus::Quota(quota, period.unwrap_or(PERIOD))),
        (Some(Bound::Max), _) => Some(Cpus::Max),
        _ => None,
    })
}

fn rate_of(flow: Flow, entry: &Value) -> Result<Rate> {
    let number = |name: &str| entry[name].as_u64().ok_or_else(|| wrong(&format!("blockIO.{}", flow.oci())));
    let rate = number("rate")?;
    let rate = if rate == 0 { Bound::Max } else { Bound::At(rate) };
    Ok(Rate { device: (number("major")?, number("minor")?), flow, rate })
}

fn device_of(entry: &Value) -> Result<DeviceRule> {
    let allow = entry["allow"].as_bool().ok_or_else(|| wrong("devices"))?;
    let number = |name: &str| entry[name].as_i64().and_then(|number| u64::try_from(number).ok());
    let kind = match entry["type"].as_str().unwrap_or("a") {
        "a" => 'a',
        "b" => 'b',
        "c" | "u" => 'c',
        _ => return Err(wrong("devices")),
    };
    let access = entry["access"].as_str().filter(|access| !access.is_empty()).unwrap_or("rwm").to_string();
    Ok(DeviceRule { allow, kind, major: number("major"), minor: number("minor"), access })
}

fn device_to_oci(rule: &DeviceRule) -> Value {
    let mut entry = json!({"allow": rule.allow, "type": rule.kind.to_string(), "access": rule.access});
    for (name, number) in [("major", rule.major), ("minor", rule.minor)] {
        if let Some(number) = number {
            entry[name] = number.into();
        }
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_become_quotas_that_the_kernel_takes() {
        assert_eq!(Cpus::parse("1.5").unwrap(), Cpus::Quota(150_000, 100_000));
        assert_eq!(Cpus::parse("0.005").unwrap(), Cpus::Quota(5_000, 1_000_000));
        assert_eq!(Cpus::parse("max").unwrap(), Cpus::Max);
        for text in ["", "x", "-2", "nan", "inf", "0", "0.0005", "1e9"] {
            assert!(Cpus::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn weights_and_shares_convert_both_ways() {
        for (shares, weight) in [
            (0, 1),
            (2, 1),
            (3, 2),
            (10, 4),
            (100, 17),
            (512, 59),
            (1024, 100),
            (2000, 170),
            (2048, 174),
            (262_144, 10_000),
        ] {
            assert_eq!(Share::Shares(shares).weight(), weight, "{shares}");
        }
        for weight in 1..=10_000 {
            assert_eq!(weight_of(shares_of(weight)), weight, "{weight}");
        }
        assert_eq!(Share::Weight(100).shares(), 1024);
    }

    #[test]
    fn a_document_says_what_the_arguments_said() {
        let limits = Limits {
            memory: Some(Bound::At(64 << 20)),
            memory_swap: Some(Bound::Max),
            memory_low: Some(Bound::At(1 << 20)),
            cpus: Some(Cpus::Quota(50_000, 100_000)),
            share: Some(Share::Shares(512)),
            cpuset_cpus: Some("0-1".into()),
            pids: Some(Bound::At(0)),
            rates: vec![Rate { device: (8, 0), flow: Flow::WriteBytes, rate: Bound::At(1 << 20) }],
            hugetlb: vec![("2MB".into(), Bound::At(4 << 20))],
            devices: vec![DeviceRule::parse(false, "all").unwrap(), DeviceRule::parse(true, "c 1:3 rw").unwrap()],
            set: vec![("cpu.idle".into(), "1".into())],
            ..Limits::default()
        };
        let mut document = Document::new();
        limits.write_to(&mut document);
        assert_eq!(Limits::of_document(&document).unwrap(), limits);
        assert_eq!(document.number("linux/resources/memory/limit").unwrap(), Some(64 << 20));
    }

    #[test]
    fn what_would_not_be_applied_is_refused() {
        let limits = |resources: &str| {
            let text = format!("{{\"linux\":{{\"resources\":{resources}}}}}");
            Limits::of_document(&Document::parse(text.as_bytes()).unwrap())
        };
        assert!(limits(r#"{"memory":{"disableOOMKiller":true}}"#).is_err());
        assert!(limits(r#"{"rdma":{"mlx5_1":{"hcaHandles":3}}}"#).is_err());
        assert!(limits(r#"{"network":{"classID":5}}"#).is_err());
        assert!(limits(r#"{"memory":{"limit":"64M"}}"#).is_err());
        assert!(limits(r#"{"memory":{"disableOOMKiller":false},"network":{},"cpu":{"quota":0}}"#).unwrap().is_empty());
    }

    #[test]
    fn device_rules() {
        assert_eq!(DeviceRule::parse(true, "c 1:3 rwm").unwrap().to_v1(), ["c 1:3 rwm"]);
        assert_eq!(DeviceRule::parse(true, "b:8:*:r").unwrap().to_v1(), ["b 8:* r"]);
        assert_eq!(DeviceRule::parse(false, "all").unwrap().to_v1(), ["a"]);
        assert_eq!(DeviceRule::parse(false, "a 1:3 r").unwrap().to_v1(), ["b 1:3 r", "c 1:3 r"]);
        for text in ["", "c", "c 1", "x 1:3 r", "c 1:3 q", "c a:b r"] {
            assert!(DeviceRule::parse(true, text).is_err(), "{text}");
        }
    }
}
