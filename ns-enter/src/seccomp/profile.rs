//! The default profile's text to rules. Only the build script does this, so that it costs nothing when a command starts.

use super::bpf::{ALLOW, Call, Condition, ERRNO, Machine, Rule, Test};
use super::calls::{self, Architecture};

const EPERM: u32 = ERRNO | 1;
const ENOSYS: u32 = ERRNO | 38;

/// The names of the capabilities that the profile has sections for, and their numbers (linux/capability.h).
const CAPABILITIES: [(&str, u32); 12] = [
    ("CAP_DAC_READ_SEARCH", 2),
    ("CAP_SYS_MODULE", 16),
    ("CAP_SYS_RAWIO", 17),
    ("CAP_SYS_CHROOT", 18),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_PACCT", 20),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_SYS_BOOT", 22),
    ("CAP_SYS_NICE", 23),
    ("CAP_SYS_TIME", 25),
    ("CAP_SYS_TTY_CONFIG", 26),
    ("CAP_SYSLOG", 34),
];
/// Those that came later.
const LATER_CAPABILITIES: [(&str, u32); 2] = [("CAP_PERFMON", 38), ("CAP_BPF", 39)];

/// The rules of `text` for all of `architectures`. A mistake in the text is an error that quotes the line.
pub fn machines(text: &str, architectures: &[Architecture]) -> Result<Vec<Machine>, String> {
    let mut machines: Vec<Machine> = Vec::new();
    for &architecture in architectures {
        if machines.iter().all(|machine| machine.audit != architecture.audit()) {
            machines.push(Machine { audit: architecture.audit(), others: vec![(0, EPERM)], ..Machine::default() });
        }
    }
    let mut section = String::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_string();
            continue;
        }
        let wrong = |what: &str| format!("{what}: {line:?}");
        let words: Vec<&str> = line.split_whitespace().collect();
        let (names, words) = if section == "arguments" { words.split_at(1) } else { (&words[..], &words[..0]) };
        for name in names {
            let numbers = calls::find(name).ok_or_else(|| wrong(name))?;
            for &architecture in architectures {
                let Some(number) = numbers.on(architecture) else { continue };
                let machine = machines.iter_mut().find(|machine| machine.audit == architecture.audit());
                let calls = &mut machine.ok_or_else(|| wrong("architecture"))?.calls;
                let call = calls.entry(number).or_insert(Call { otherwise: EPERM, ..Call::default() });
                match section.as_str() {
                    "always" => call.otherwise = ALLOW,
                    "ENOSYS" => call.otherwise = ENOSYS,
                    "arguments" => call.rules.extend(conditions(words).ok_or_else(|| wrong("condition"))?),
                    capability => call.gate |= mask(capability).ok_or_else(|| wrong(capability))?,
                }
            }
        }
    }
    Ok(machines)
}

fn mask(capability: &str) -> Option<u64> {
    let known = CAPABILITIES.iter().chain(&LATER_CAPABILITIES);
    known.into_iter().find(|(name, _)| *name == capability).map(|(_, number)| 1 << number)
}

/// `ARGUMENT in RANGES` or `ARGUMENT without MASK`.
fn conditions(words: &[&str]) -> Option<Vec<Rule>> {
    let argument = words.first()?.parse().ok()?;
    let condition = |test, value| Condition { argument, test, value, wide: false };
    let allow = |conditions| Rule { conditions, verdict: ALLOW };
    match *words.get(1)? {
        "without" => Some(vec![allow(vec![condition(Test::Masked(number(words.get(2)?)?), 0)])]),
        "in" => words[2..]
            .iter()
            .map(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                let (first, last) = (number(first)?, number(last)?);
                Some(allow(if first == last {
                    vec![condition(Test::Equal, first)]
                } else {
                    vec![condition(Test::GreaterEqual, first), condition(Test::LessEqual, last)]
                }))
            })
            .collect(),
        _ => None,
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
