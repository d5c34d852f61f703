//! Limits, as arguments of `cg-limit`.

use crate::cli::Cli;
use chain::{Document, Error, Result};
use serde_json::Value;
use std::ffi::{OsStr, OsString};

/// From the flags.
pub fn of_flags(cli: &Cli) -> Result<Vec<OsString>> {
    let mut out: Vec<OsString> = Vec::new();
    let mut push = |option: &str, value: Option<String>| {
        if let Some(value) = value {
            out.push(format!("{option}={value}").into());
        }
    };
    // As with `docker run`, 0 is no limit.
    let limit = |value: &Option<String>| value.clone().filter(|value| value.parse() != Ok(0.0));
    push("--memory", limit(&cli.memory));
    push("--memory-swap", cli.memory_swap.clone());
    push("--cpus", limit(&cli.cpus));
    push("--cpu-shares", cli.cpu_shares.map(|shares| shares.to_string()));
    push("--cpuset-cpus", cli.cpuset_cpus.clone());
    push("--pids", cli.pids_limit.clone().map(|pids| if pids == "-1" || pids == "0" { "max".into() } else { pids }));
    for (option, values) in [
        ("--device-read-bps=", &cli.device_read_bps),
        ("--device-write-bps=", &cli.device_write_bps),
        ("--device-read-iops=", &cli.device_read_iops),
        ("--device-write-iops=", &cli.device_write_iops),
    ] {
        out.extend(values.iter().map(|value| joined(option, value)));
    }
    Ok(out)
}

/// From `linux.resources` and `linux.cgroupsPath`. Errors: members of the wrong type.
pub fn of_document(document: &Document) -> Result<Vec<OsString>> {
    let mut out: Vec<OsString> = Vec::new();
    let resources = |path: &str| format!("linux/resources/{path}");
    let mut push = |option: &str, value: String| out.push(format!("{option}={value}").into());
    if let Some(path) = document.text("linux/cgroupsPath")?.filter(|path| !path.is_empty()) {
        push("--name", path.trim_start_matches('/').to_string());
    }
    for (member, option) in [
        ("memory/limit", "--memory"),
        ("memory/swap", "--memory-swap"),
        ("memory/reservation", "--memory-low"),
        ("pids/limit", "--pids"),
    ] {
        if let Some(limit) = signed(document, &resources(member))? {
            push(option, if limit < 0 { "max".into() } else { limit.to_string() });
        }
    }
    if let Some(quota) = signed(document, &resources("cpu/quota"))?.filter(|&quota| quota > 0) {
        let period = document.number(&resources("cpu/period"))?.unwrap_or(100_000).max(1);
        push("--cpus", (quota as f64 / period as f64).to_string());
    }
    if let Some(shares) = document.number(&resources("cpu/shares"))? {
        push("--cpu-shares", shares.to_string());
    }
    for (member, option) in [("cpu/cpus", "--cpuset-cpus"), ("cpu/mems", "--cpuset-mems")] {
        if let Some(list) = document.text(&resources(member))?.filter(|list| !list.is_empty()) {
            push(option, list.to_string());
        }
    }
    if let Some(weight) = document.number(&resources("blockIO/weight"))?.filter(|&weight| weight > 0) {
        push("--io-weight", weight.to_string());
    }
    for (member, option) in RATES {
        for entry in document.list(&resources(&format!("blockIO/{member}")))? {
            let number = |name: &str| entry[name].as_u64().ok_or_else(|| wrong(&format!("blockIO/{member}")));
            push(option, format!("{}:{}:{}", number("major")?, number("minor")?, number("rate")?));
        }
    }
    for entry in document.list(&resources("hugepageLimits"))? {
        let (Some(size), Some(limit)) = (entry["pageSize"].as_str(), entry["limit"].as_u64()) else {
            return Err(wrong("hugepageLimits"));
        };
        push("--hugetlb", format!("{size}:{limit}"));
    }
    for (file, value) in document.get(&resources("unified")).and_then(Value::as_object).into_iter().flatten() {
        push("--set", format!("{file}={}", value.as_str().ok_or_else(|| wrong("unified"))?));
    }
    Ok(out)
}

const RATES: [(&str, &str); 4] = [
    ("throttleReadBpsDevice", "--device-read-bps"),
    ("throttleWriteBpsDevice", "--device-write-bps"),
    ("throttleReadIOPSDevice", "--device-read-iops"),
    ("throttleWriteIOPSDevice", "--device-write-iops"),
];

/// Members of `linux.resources` that become limits; devices are not a group's matter here.
pub const KNOWN: [(&str, &[&str]); 7] = [
    ("memory", &["limit", "swap", "reservation", "checkBeforeUpdate", "useHierarchy"]),
    ("cpu", &["shares", "quota", "period", "cpus", "mems"]),
    ("pids", &["limit"]),
    ("blockIO", &["weight", RATES[0].0, RATES[1].0, RATES[2].0, RATES[3].0]),
    ("hugepageLimits", &[]),
    ("unified", &[]),
    ("devices", &[]),
];

fn wrong(member: &str) -> Error {
    Error::new(format_args!(
        "linux.resources.{}: not of the form that the OCI runtime specification gives",
        member.replace('/', ".")
    ))
}

/// A whole number, -1 for no limit.
fn signed(document: &Document, path: &str) -> Result<Option<i64>> {
    let wrong = || Error::new(format_args!("{}: not a whole number", path.replace('/', ".")));
    document.get(path).map(|value| value.as_i64().ok_or_else(wrong)).transpose()
}

/// `option` (with its `=`) and `value` in one argument.
pub fn joined(option: &str, value: &OsStr) -> OsString {
    let mut out = OsString::from(option);
    out.push(value);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_becomes_flags() {
        let text = br#"{"linux":{"cgroupsPath":"/web","resources":{"memory":{"limit":67108864,"swap":-1},
            "cpu":{"quota":50000,"period":100000,"shares":512,"cpus":"0-1"},"pids":{"limit":100},
            "blockIO":{"weight":20,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1024}]},
            "hugepageLimits":[{"pageSize":"2MB","limit":4194304}],"unified":{"cpu.idle":"1"}}}}"#;
        let got = of_document(&Document::parse(text).unwrap()).unwrap();
        let want = [
            "--name=web",
            "--memory=67108864",
            "--memory-swap=max",
            "--pids=100",
            "--cpus=0.5",
            "--cpu-shares=512",
            "--cpuset-cpus=0-1",
            "--io-weight=20",
            "--device-read-bps=8:0:1024",
            "--hugetlb=2MB:4194304",
            "--set=cpu.idle=1",
        ];
        assert_eq!(got, want.map(OsString::from));
        assert!(of_document(&Document::new()).unwrap().is_empty());
    }
}
