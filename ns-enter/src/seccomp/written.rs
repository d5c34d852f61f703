//! The default profile as `linux.seccomp` of the OCI runtime-spec, for runtimes that are not ours.

use chain::{Error, Result};
use serde_json::{Value, json};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The default profile, for a command that keeps the capabilities `kept` (`CAP_…`). Error: there is none for this machine.
pub fn default_profile(kept: &[String]) -> Result<Value> {
    let architectures = match std::env::consts::ARCH {
        "x86_64" => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        "aarch64" => json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        machine => return Err(Error::new(format_args!("there is no default seccomp profile for {machine}"))),
    };
    let (mut allowed, mut missing, mut rules) = (Vec::new(), Vec::new(), Vec::new());
    let mut section = "";
    for line in include_str!("default.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(name) => section = name,
            None if section == "arguments" => rules.extend(conditions(line)),
            None if section == "ENOSYS" => missing.extend(line.split_whitespace()),
            None if section == "always" || kept.iter().any(|kept| kept == section) => {
                allowed.extend(line.split_whitespace())
            }
            None => {}
        }
    }
    let named = |rule: &Value| rule["names"][0].as_str().is_some_and(|name| allowed.contains(&name));
    rules.retain(|rule| !named(rule));
    missing.retain(|name| !allowed.contains(name));
    rules.push(json!({"names": allowed, "action": "SCMP_ACT_ALLOW"}));
    rules.push(json!({"names": missing, "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    rules.retain(|rule| rule["names"].as_array().is_some_and(|names| !names.is_empty()));
    Ok(
        json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": EPERM, "architectures": architectures, "syscalls": rules}),
    )
}

/// One rule for each value, since conditions on the same argument cannot be joined everywhere.
fn conditions(line: &str) -> Vec<Value> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [name, argument, kind, values @ ..] = words.as_slice() else { return Vec::new() };
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).unwrap_or(0),
        None => text.parse().unwrap_or(0),
    };
    let index = number(argument);
    let rule = |test: Value| json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [test]});
    if *kind == "without" {
        let mask = values.first().map_or(0, |mask| number(mask));
        return vec![rule(json!({"index": index, "value": mask, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}))];
    }
    let ranges = values.iter().flat_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        number(first)..=number(last)
    });
    ranges.map(|value| rule(json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"}))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back_as_a_profile() {
        for kept in [&[][..], &["CAP_SYS_ADMIN".to_string(), "CAP_SYS_CHROOT".into()]] {
            let profile = default_profile(kept).unwrap();
            crate::seccomp::oci::compile(&profile).unwrap();
            let allows = |name: &str| {
                let rules = profile["syscalls"].as_array().unwrap().iter();
                let whole = rules.filter(|rule| rule["action"] == "SCMP_ACT_ALLOW" && rule["args"].is_null());
                whole.flat_map(|rule| rule["names"].as_array().unwrap()).any(|found| found == name)
            };
            assert!(allows("read") && !allows("kexec_load"));
            assert_eq!(
                (allows("clone"), allows("mount"), allows("chroot")),
                (!kept.is_empty(), !kept.is_empty(), !kept.is_empty())
            );
        }
    }
}
