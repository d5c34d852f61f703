//! `linux.seccomp` of the OCI runtime-spec (config-linux.md, "Seccomp") to a filter.
//!
//! * Rules of one call are asked in the order of the file, those without conditions last. Two without conditions that
//!   contradict each other are an error.
//! * Conditions of one rule must all hold; but several on the same argument are alternatives, as in runc and crun.
//! * A name that is no call on any architecture is left out (and told under `-v`) where the rule allows, as runc does: a
//!   profile may be newer than this program. Where the rule forbids, it is an error: what cannot be forbidden is not.
//! * This machine's own architecture is always included. Calls of an architecture that is not listed end the process.

use super::bpf::{self, ALLOW, Call, Condition, ERRNO, KILL_PROCESS, Machine, Program, Rule, Test};
use super::calls::{self, Architecture, Numbers, X32_BIT};
use chain::error::{Error, Result};
use chain::trace;
use serde_json::{Map, Value};

/// errno numbers above this are none (`MAX_ERRNO`).
const MAX_ERRNO: u64 = 4095;
const EPERM: u64 = 1;

/// The filter and the flags for seccomp(2).
pub fn compile(profile: &Value) -> Result<(Program, u64)> {
    let profile = profile.as_object().ok_or_else(|| Error::new("no JSON object"))?;
    refuse_other_forms(profile)?;
    let default = verdict(profile, "defaultAction", "defaultErrnoRet")?;
    let architectures = architectures(profile)?;
    let mut machines = machines(&architectures, default);
    for (index, rule) in list(profile, "syscalls")?.iter().enumerate() {
        let rule = rule.as_object().ok_or_else(|| Error::new(format_args!("syscalls[{index}]: no JSON object")))?;
        let names = texts(rule, "names").map_err(|error| error.within(format_args!("syscalls[{index}]")))?;
        let place = format!("syscalls[{index}] ({})", shortened(&names));
        add_rule(&mut machines, &architectures, rule, &names, default).map_err(|error| error.within(&place))?;
    }
    let program = bpf::compile(&machines, KILL_PROCESS);
    match program.code.len() {
        length if length > bpf::MAX_INSTRUCTIONS => {
            let most = bpf::MAX_INSTRUCTIONS;
            Err(Error::new(format_args!("too many rules: {length} instructions, and the kernel takes {most}")))
        }
        _ => Ok((program, flags(profile)?)),
    }
}

fn refuse_other_forms(profile: &Map<String, Value>) -> Result<()> {
    let docker = ["archMap", "includes", "excludes"];
    let of_docker = |rule: &Value| docker.iter().any(|name| rule.get(name).is_some_and(|value| !value.is_null()));
    // Other members that are not known are left alone, as the specification asks.
    if profile.contains_key("archMap") || list(profile, "syscalls")?.iter().any(of_docker) {
        return Err(Error::new("this is a profile in Docker's own form (archMap, includes, excludes)").hint(
            "it must be in the OCI runtime-spec's form (linux.seccomp): `--seccomp default` is Docker's default",
        ));
    }
    if profile.get("listenerPath").is_some_and(|path| path.as_str() != Some("")) {
        return Err(Error::new("listenerPath: there is no agent for SCMP_ACT_NOTIFY here"));
    }
    Ok(())
}

fn machines(architectures: &[Architecture], default: u32) -> Vec<Machine> {
    let mut machines: Vec<Machine> = Vec::new();
    for architecture in architectures.iter().filter(|&&architecture| architecture != Architecture::X32) {
        let mut others = vec![(0, default)];
        if *architecture == Architecture::X86_64 && !architectures.contains(&Architecture::X32) {
            // -1 is no call: a tracer took the call away.
            others.extend([(X32_BIT, KILL_PROCESS), (u32::MAX, default)]);
        }
        machines.push(Machine { audit: architecture.audit(), others, ..Machine::default() });
    }
    machines
}

/// Those of the list that programs here can be of, the machine's own first.
fn architectures(profile: &Map<String, Value>) -> Result<Vec<Architecture>> {
    // What the specification lists, and which of them is known here.
    let known = |name: &str| -> Option<Option<Architecture>> {
        Some(match name {
            "X86_64" => Some(Architecture::X86_64),
            "X86" => Some(Architecture::X86),
            "X32" => Some(Architecture::X32),
            "AARCH64" => Some(Architecture::Aarch64),
            "ARM" => Some(Architecture::Arm),
            "MIPS" | "MIPS64" | "MIPS64N32" | "MIPSEL" | "MIPSEL64" | "MIPSEL64N32" | "PPC" | "PPC64" | "PPC64LE"
            | "S390" | "S390X" | "PARISC" | "PARISC64" | "RISCV64" | "LOONGARCH64" | "M68K" | "SH" | "SHEB" => None,
            _ => return None,
        })
    };
    let here = Architecture::of_machine(std::env::consts::ARCH);
    let Some(own) = here.first() else {
        return Err(Error::new(format_args!("no numbers of system calls are known for {}", std::env::consts::ARCH)));
    };
    let mut architectures = vec![*own];
    for name in texts(profile, "architectures")? {
        let found = name.strip_prefix("SCMP_ARCH_").and_then(known);
        let found = found.ok_or_else(|| Error::new(format_args!("architectures: {name:?} is none")))?;
        architectures.extend(found.filter(|found| here.contains(found) && !architectures.contains(found)));
    }
    Ok(architectures)
}

fn flags(profile: &Map<String, Value>) -> Result<u64> {
    // runc's default too.
    if profile.get("flags").is_none_or(Value::is_null) {
        return Ok(super::SPEC_ALLOW);
    }
    let mut flags = 0;
    for name in texts(profile, "flags")? {
        flags |= match name {
            // One thread is all there is, so there is nothing to synchronise.
            "SECCOMP_FILTER_FLAG_TSYNC" => 0,
            "SECCOMP_FILTER_FLAG_LOG" => 2,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => super::SPEC_ALLOW,
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => {
                return Err(Error::new(format_args!(
                    "flags: {name} is for SCMP_ACT_NOTIFY, and there is no agent here"
                )));
            }
            _ => return Err(Error::new(format_args!("flags: {name:?} is none"))),
        };
    }
    Ok(flags)
}

/// The action in member `action`, with the number in member `number`, as a `SECCOMP_RET_…` value.
fn verdict(members: &Map<String, Value>, action: &str, number: &str) -> Result<u32> {
    let name = members.get(action).and_then(Value::as_str).ok_or_else(|| Error::new(format_args!("no {action}")))?;
    let given = match members.get(number).filter(|value| !value.is_null()) {
        Some(value) => Some(
            value
                .as_u64()
                .filter(|&n| n <= MAX_ERRNO)
                .ok_or_else(|| Error::new(format_args!("{number}: {value} is no errno (0 to {MAX_ERRNO})")))?,
        ),
        None => None,
    };
    let plain = |verdict: u32| match given {
        Some(_) => Err(Error::new(format_args!("{action}: {name} has no {number}"))),
        None => Ok(verdict),
    };
    match name {
        "SCMP_ACT_ALLOW" => plain(ALLOW),
        "SCMP_ACT_LOG" => plain(0x7ffc_0000),
        "SCMP_ACT_ERRNO" => Ok(ERRNO | given.unwrap_or(EPERM) as u32),
        "SCMP_ACT_TRACE" => Ok(0x7ff0_0000 | given.unwrap_or(EPERM) as u32),
        "SCMP_ACT_TRAP" => plain(0x0003_0000),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => plain(0),
        "SCMP_ACT_KILL_PROCESS" => plain(KILL_PROCESS),
        "SCMP_ACT_NOTIFY" => Err(Error::new(format_args!("{action}: {name} needs an agent, and there is none here"))),
        _ => Err(Error::new(format_args!("{action}: {name:?} is none"))),
    }
}

fn add_rule(
    machines: &mut [Machine],
    architectures: &[Architecture],
    rule: &Map<String, Value>,
    names: &[&str],
    default: u32,
) -> Result<()> {
    let verdict = verdict(rule, "action", "errnoRet")?;
    if names.is_empty() {
        return Err(Error::new("no names"));
    }
    let conditions = list(rule, "args")?
        .iter()
        .enumerate()
        .map(|(at, condition)| self::condition(condition).map_err(|error| error.within(format_args!("args[{at}]"))))
        .collect::<Result<Vec<_>>>()?;
    for name in names {
        let Some(numbers) = known_call(name, verdict)? else { continue };
        for &architecture in architectures {
            let Some(number) = numbers.on(architecture) else { continue };
            let Some(machine) = machines.iter_mut().find(|machine| machine.audit == architecture.audit()) else {
                continue;
            };
            let call = machine.calls.entry(number).or_insert(Call { otherwise: default, ..Call::default() });
            if conditions.is_empty() {
                if call.otherwise != default && call.otherwise != verdict {
                    return Err(Error::new(format_args!("an earlier rule says something else of {name}")));
                }
                call.otherwise = verdict;
            } else {
                call.rules.extend(alternatives(&conditions, verdict));
            }
        }
    }
    Ok(())
}

fn known_call(name: &str, verdict: u32) -> Result<Option<Numbers<'static>>> {
    match calls::find(name) {
        Some(numbers) => Ok(Some(numbers)),
        None if verdict == ALLOW => {
            trace::note(format_args!("seccomp: {name:?} is no system call that is known here: left out"));
            Ok(None)
        }
        None => Err(Error::new(format_args!("{name:?} is no system call that is known here"))
            .hint("it would not be stopped; correct the name, or take it out")),
    }
}

/// All conditions at once, or one at a time if two are on the same argument.
fn alternatives(conditions: &[Condition], verdict: u32) -> Vec<Rule> {
    let repeated = (0..6).any(|n| conditions.iter().filter(|condition| condition.argument == n).count() > 1);
    if repeated {
        conditions.iter().map(|condition| Rule { conditions: vec![condition.clone()], verdict }).collect()
    } else {
        vec![Rule { conditions: conditions.to_vec(), verdict }]
    }
}

fn condition(condition: &Value) -> Result<Condition> {
    let number = |name: &str| condition.get(name).and_then(Value::as_u64);
    let missing = |name: &str| Error::new(format_args!("no {name}, or no whole number"));
    let argument = number("index").ok_or_else(|| missing("index"))?;
    let argument = u8::try_from(argument).ok().filter(|argument| *argument < 6);
    let argument = argument.ok_or_else(|| Error::new("index: a system call has arguments 0 to 5"))?;
    let value = number("value").ok_or_else(|| missing("value"))?;
    let second = number("valueTwo").unwrap_or(0);
    let name = condition.get("op").and_then(Value::as_str).ok_or_else(|| Error::new("no op"))?;
    let (test, value) = match name {
        "SCMP_CMP_EQ" => (Test::Equal, value),
        "SCMP_CMP_NE" => (Test::NotEqual, value),
        "SCMP_CMP_LT" => (Test::Less, value),
        "SCMP_CMP_LE" => (Test::LessEqual, value),
        "SCMP_CMP_GT" => (Test::Greater, value),
        "SCMP_CMP_GE" => (Test::GreaterEqual, value),
        // `value` is the mask, as in libseccomp.
        "SCMP_CMP_MASKED_EQ" => (Test::Masked(value), second & value),
        _ => return Err(Error::new(format_args!("op: {name:?} is none"))),
    };
    Ok(Condition { argument, test, value, wide: true })
}

fn list<'a>(members: &'a Map<String, Value>, name: &str) -> Result<&'a [Value]> {
    match members.get(name).filter(|value| !value.is_null()) {
        None => Ok(&[]),
        Some(value) => {
            value.as_array().map(Vec::as_slice).ok_or_else(|| Error::new(format_args!("{name}: not a list")))
        }
    }
}

fn texts<'a>(members: &'a Map<String, Value>, name: &str) -> Result<Vec<&'a str>> {
    let text = |value: &'a Value| value.as_str().ok_or_else(|| Error::new(format_args!("{name}: not a list of texts")));
    list(members, name)?.iter().map(text).collect()
}

/// For a message: which calls, but not hundreds.
fn shortened(names: &[&str]) -> String {
    match names {
        [first, second, _, _, ..] => format!("{first}, {second} and {} more", names.len() - 2),
        [] => "no names".into(),
        few => few.join(", "),
    }
}
