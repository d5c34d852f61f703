//! What a group has used, and how its limits bit: read from the kernel's files on either version, in the same units.

use crate::group::{Group, Part};
use crate::layout::Version;
use chain::size;
use serde_json::{Map, Value, json};
use std::fs;

/// Figures of a group. None: the kernel (or this group's hierarchies) does not tell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// CPU time in microseconds.
    pub cpu: Option<u64>,
    /// Periods in which the group ran, and those in which it was throttled.
    pub periods: Option<(u64, u64)>,
    /// For how long it was throttled, in microseconds.
    pub throttled: Option<u64>,
    /// Bytes of memory now.
    pub memory: Option<u64>,
    /// The most bytes of memory.
    pub memory_peak: Option<u64>,
    /// Limit in bytes, if there is one.
    pub memory_limit: Option<u64>,
    /// Processes that the OOM killer took.
    pub oom_kills: Option<u64>,
    /// Whether the group's own limit was hit, rather than one above it.
    pub own_limit_hit: bool,
    /// Processes and threads now.
    pub pids: Option<u64>,
    /// The most of them.
    pub pids_peak: Option<u64>,
    /// How often a fork was refused.
    pub pids_refused: Option<u64>,
    /// Bytes read from disks.
    pub read: Option<u64>,
    /// Bytes written to disks.
    pub written: Option<u64>,
    /// Share of time that some members waited for a resource, in percent over ten seconds: cpu, memory, io.
    pub pressure: Vec<(&'static str, f64)>,
}

impl Usage {
    /// Of `group`, now.
    pub fn read(group: &Group) -> Self {
        let mut usage = Usage::memory(group);
        for part in &group.parts {
            usage.add_cpu(part);
            usage.add_pids(part);
            usage.add_disk(part);
            for resource in ["cpu", "memory", "io"] {
                let average = part.text(&format!("{resource}.pressure")).and_then(|text| pressure(&text));
                usage.pressure.extend(average.map(|average| (resource, average)));
            }
        }
        usage
    }

    /// Memory only.
    fn memory(group: &Group) -> Self {
        let mut usage = Usage::default();
        for part in &group.parts {
            if let Some(control) = part.text("memory.oom_control") {
                usage.oom_kills = field(&control, "oom_kill");
                usage.memory = part.number("memory.usage_in_bytes");
                usage.memory_peak = part.number("memory.max_usage_in_bytes");
                // v1 has the largest number for "no limit".
                usage.memory_limit = part.number("memory.limit_in_bytes").filter(|&limit| limit < 1 << 60);
                usage.own_limit_hit = part.number("memory.failcnt").is_some_and(|count| count > 0);
            } else if let Some(events) = part.text("memory.events") {
                usage.oom_kills = field(&events, "oom_kill");
                usage.memory = part.number("memory.current");
                // KERNEL(5.19): memory.peak.
                usage.memory_peak = part.number("memory.peak");
                usage.memory_limit = part.number("memory.max");
                usage.own_limit_hit = field(&events, "oom").is_some_and(|count| count > 0);
            }
        }
        usage
    }

    /// Memory of `group` if the OOM killer struck in it. Reads one file if it did not.
    pub fn after_oom(group: &Group) -> Option<Self> {
        let part = group.parts.iter().find(|part| part.controllers.iter().any(|name| name == "memory"))?;
        let file = if part.version == Version::V1 { "memory.oom_control" } else { "memory.events" };
        field(&part.text(file)?, "oom_kill").filter(|&kills| kills > 0).map(|_| Usage::memory(group))
    }

    fn add_cpu(&mut self, part: &Part) {
        if let Some(nanoseconds) = part.number("cpuacct.usage") {
            self.cpu = Some(nanoseconds / 1000);
        }
        let Some(stat) = part.text("cpu.stat") else { return };
        self.cpu = self.cpu.or(field(&stat, "usage_usec"));
        if let (Some(periods), Some(throttled)) = (field(&stat, "nr_periods"), field(&stat, "nr_throttled")) {
            self.periods = Some((periods, throttled));
        }
        let v1 = field(&stat, "throttled_time").map(|nanoseconds| nanoseconds / 1000);
        self.throttled = field(&stat, "throttled_usec").or(v1).or(self.throttled);
    }

    fn add_pids(&mut self, part: &Part) {
        self.pids = part.number("pids.current").or(self.pids);
        // KERNEL(6.1): pids.peak.
        self.pids_peak = part.number("pids.peak").or(self.pids_peak);
        self.pids_refused = part.text("pids.events").and_then(|events| field(&events, "max")).or(self.pids_refused);
    }

    fn add_disk(&mut self, part: &Part) {
        if let Some(stat) = part.text("io.stat") {
            let sum = |name: &str| {
                stat.split_whitespace().filter_map(|word| word.strip_prefix(name)?.parse::<u64>().ok()).sum()
            };
            (self.read, self.written) = (Some(sum("rbytes=")), Some(sum("wbytes=")));
        }
        if let Some(table) = part.text("blkio.throttle.io_service_bytes_recursive") {
            let sum = |name: &str| {
                let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
                lines
                    .filter(|words| words.get(1) == Some(&name))
                    .filter_map(|words| words.get(2)?.parse::<u64>().ok())
                    .sum()
            };
            (self.read, self.written) = (Some(sum("Read")), Some(sum("Write")));
        }
    }

    /// The share of periods in which the group was throttled, in percent.
    pub fn throttled_share(&self) -> Option<u64> {
        self.periods.filter(|(periods, _)| *periods > 0).map(|(periods, throttled)| throttled * 100 / periods)
    }

    /// One line if the OOM killer struck.
    pub fn oom_report(&self) -> Option<String> {
        let kills = self.oom_kills.filter(|&kills| kills > 0)?;
        let amount = |bytes: Option<u64>, none: &str| {
            bytes.map_or(none.into(), |bytes| format!("{bytes} bytes ({})", size::display(bytes)))
        };
        let whose =
            if self.own_limit_hit { "" } else { "; not this limit was hit, but one above it or the machine's memory" };
        Some(format!(
            "out of memory: the kernel killed {kills} process{}; limit {}, peak {}{whose}",
            if kills == 1 { "" } else { "es" },
            amount(self.memory_limit, "none"),
            amount(self.memory_peak, "unknown"),
        ))
    }

    /// All figures, those that are unknown left out. Times are in microseconds, sizes in bytes.
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        let mut put = |group: &str, name: &str, value: Option<Value>| {
            if let Some(value) = value {
                let members = out.entry(group).or_insert_with(|| json!({}));
                members[name] = value;
            }
        };
        put("cpu", "usage_usec", self.cpu.map(Value::from));
        put("cpu", "periods", self.periods.map(|(periods, _)| periods.into()));
        put("cpu", "throttled_periods", self.periods.map(|(_, throttled)| throttled.into()));
        put("cpu", "throttled_usec", self.throttled.map(Value::from));
        put("memory", "current", self.memory.map(Value::from));
        put("memory", "peak", self.memory_peak.map(Value::from));
        put("memory", "limit", self.memory_limit.map(Value::from));
        put("memory", "oom_kills", self.oom_kills.map(Value::from));
        put("pids", "current", self.pids.map(Value::from));
        put("pids", "peak", self.pids_peak.map(Value::from));
        put("pids", "refused", self.pids_refused.map(Value::from));
        put("io", "read_bytes", self.read.map(Value::from));
        put("io", "written_bytes", self.written.map(Value::from));
        for (resource, average) in &self.pressure {
            put("pressure", resource, Some(json!(average)));
        }
        out.into()
    }
}

impl Part {
    /// A file's text, if it is there.
    pub fn text(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.dir.join(file)).ok()
    }

    /// A file's number, if it is there and one (`max` is none).
    pub fn number(&self, file: &str) -> Option<u64> {
        self.text(file)?.trim().parse().ok()
    }
}

/// The number after `name` on its line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `some avg10=` of a pressure file.
fn pressure(text: &str) -> Option<f64> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    some.split_whitespace().find_map(|word| word.strip_prefix("avg10=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_whole_words() {
        assert_eq!(field("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(field("max 5\n", "oom_kill"), None);
        assert_eq!(pressure("some avg10=1.50 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.00\n"), Some(1.5));
    }

    #[test]
    fn the_report_names_limit_and_peak() {
        let usage = Usage {
            oom_kills: Some(1),
            memory_limit: Some(64 << 20),
            memory_peak: Some(64 << 20),
            own_limit_hit: true,
            ..Usage::default()
        };
        assert_eq!(
            usage.oom_report().unwrap(),
            "out of memory: the kernel killed 1 process; limit 67108864 bytes (64.0 MiB), peak 67108864 bytes (64.0 MiB)"
        );
        assert_eq!(Usage { oom_kills: Some(0), ..usage.clone() }.oom_report(), None);
        assert!(Usage { own_limit_hit: false, ..usage }.oom_report().unwrap().contains("above"));
    }
}
