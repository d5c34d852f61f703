//! Device rules on cgroup v2, which has no files for them: a BPF program that the kernel asks before a device is opened or
//! made (BPF_PROG_TYPE_CGROUP_DEVICE).

use crate::limits::DeviceRule;
use chain::sys::bpf;
use chain::trace::op;
use chain::{Error, Result, ResultExt};
use nix::errno::Errno;
use std::fs::File;
use std::path::Path;

/// By which a group's program is known as ours.
const NAME: &str = "ctr_devices";

/// Puts `rules` in force for the group with this directory, in the place of those that it had from us.
///
/// Errors: rules that add to what is there, which a program does not tell; not root of the machine.
pub fn attach(dir: &Path, rules: &[DeviceRule]) -> Result<()> {
    let group = File::open(dir).call(format_args!("open({dir:?}, O_DIRECTORY)"))?;
    let old =
        op(format_args!("bpf(BPF_PROG_QUERY, {dir:?})"), || bpf::device_programs(&group, NAME)).map_err(explain)?;
    if !old.is_empty() && !rules.iter().any(DeviceRule::is_all) {
        return Err(Error::usage("the group has device rules already")
            .hint("on cgroup v2 they are replaced, not added to: begin with --device-deny all or --device-allow all"));
    }
    let code = program(rules);
    let new = op(format_args!("bpf(BPF_PROG_LOAD, {} instructions of {} rules)", code.len(), rules.len()), || {
        bpf::load_device_program(&code, NAME)
    })
    .map_err(explain)?;
    op(format_args!("bpf(BPF_PROG_ATTACH, {dir:?})"), || bpf::attach_device_program(&group, &new, old.first()))
        .map_err(explain)?;
    // There are more only if two runs changed the group at once.
    for program in old.iter().skip(1) {
        op(format_args!("bpf(BPF_PROG_DETACH, {dir:?})"), || bpf::detach_device_program(&group, program))?;
    }
    Ok(())
}

fn explain(error: Error) -> Error {
    match error.errno() {
        Some(Errno::EPERM) => error.hint(
            "device rules of cgroup v2 are BPF programs, which only root of the machine may load (CAP_BPF, CAP_NET_ADMIN); \
             ns-enter and vol-bind --api give few devices",
        ),
        Some(Errno::ENOSYS | Errno::EINVAL) => error.hint("this kernel lacks CONFIG_CGROUP_BPF"),
        _ => error,
    }
}

/// What a rule is about, as `struct bpf_cgroup_dev_ctx` has it: the kind of device and the accesses.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// Opcodes: class, operation and source together (the kernel's instruction-set.rst).
const LOAD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const SET: u8 = 0xb7;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP: u8 = 0x05;
const JUMP_IF_SET: u8 = 0x45;
const JUMP_NOT_EQUAL: u8 = 0x55;
/// Of the low 32 bits.
const JUMP_NOT_EQUAL_32: u8 = 0x56;
const EXIT: u8 = 0x95;

/// Registers: the verdict, the context, and what is taken from it.
const VERDICT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    let [o0, o1] = offset.to_ne_bytes();
    let [n0, n1, n2, n3] = number.to_ne_bytes();
    let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
    u64::from_ne_bytes([code, registers, o0, o1, n0, n1, n2, n3])
}

/// The program. Each access that is asked for is decided by the last rule about it, and by none: allowed. A device may be
/// opened if all accesses are.
fn program(rules: &[DeviceRule]) -> Vec<u64> {
    let mut code = vec![
        instruction(LOAD, KIND, CONTEXT, 0, 0),
        instruction(MOVE, ACCESS, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        code.extend(rule_code(rule));
        if rule.is_all() {
            break;
        }
    }
    code.extend(verdict(1));
    code
}

fn verdict(allow: i32) -> [u64; 2] {
    [instruction(SET, VERDICT, 0, 0, allow), instruction(EXIT, 0, 0, 0, 0)]
}

/// Decides what the rule is about, and goes on with the rest. Nothing if there can be no such device.
fn rule_code(rule: &DeviceRule) -> Vec<u64> {
    let number = |number: Option<u64>| number.map(u32::try_from).transpose();
    let (Ok(major), Ok(minor)) = (number(rule.major), number(rule.minor)) else { return Vec::new() };
    let bit = |letter, bit| if rule.access.contains(letter) { bit } else { 0 };
    let mask = bit('m', MKNOD) | bit('r', READ) | bit('w', WRITE);
    let mut decide = match rule.allow {
        // The rest is for the rules before; if there is no rest, the device is allowed.
        true => vec![instruction(AND, ACCESS, 0, 0, !mask), instruction(JUMP_NOT_EQUAL, ACCESS, 0, 2, 0)],
        false => vec![instruction(JUMP_IF_SET, ACCESS, 0, 1, mask), instruction(JUMP, 0, 0, 2, 0)],
    };
    decide.extend(verdict(rule.allow.into()));
    let kind = match rule.kind {
        'b' => Some((JUMP_NOT_EQUAL, KIND, BLOCK)),
        'c' => Some((JUMP_NOT_EQUAL, KIND, CHARACTER)),
        _ => None,
    };
    let major = major.map(|major| (JUMP_NOT_EQUAL_32, MAJOR, major as i32));
    let minor = minor.map(|minor| (JUMP_NOT_EQUAL_32, MINOR, minor as i32));
    let tests: Vec<_> = [kind, major, minor].into_iter().flatten().collect();
    let past = |index: usize| (tests.len() - index - 1 + decide.len()) as i16;
    let skip = tests
        .iter()
        .enumerate()
        .map(|(index, (code, register, value))| instruction(*code, *register, 0, past(index), *value));
    skip.chain(decide.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel's interpreter makes of the instructions that we use.
    fn run(code: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u64; 6];
        let mut at = 0;
        loop {
            let [code, names, o0, o1, number @ ..] = code[at].to_le_bytes();
            let (to, from) = (usize::from(names & 15), usize::from(names >> 4));
            let (offset, number) = (i16::from_le_bytes([o0, o1]), i32::from_le_bytes(number));
            let wide = i64::from(number) as u64;
            at += 1;
            let jumps = match code {
                LOAD => {
                    registers[to] = context[usize::try_from(offset).unwrap() / 4].into();
                    false
                }
                MOVE => {
                    registers[to] = registers[from];
                    false
                }
                SET => {
                    registers[to] = wide;
                    false
                }
                AND => {
                    registers[to] &= wide;
                    false
                }
                SHIFT_RIGHT => {
                    registers[to] >>= number;
                    false
                }
                JUMP => true,
                JUMP_IF_SET => registers[to] & wide != 0,
                JUMP_NOT_EQUAL => registers[to] != wide,
                JUMP_NOT_EQUAL_32 => registers[to] as u32 != number as u32,
                EXIT => return registers[0] == 1,
                other => panic!("{other:#x}"),
            };
            if jumps {
                at += usize::try_from(offset).unwrap();
            }
        }
    }

    /// The same by the words of the rules.
    fn meant(rules: &[DeviceRule], kind: char, access: &str, major: u64, minor: u64) -> bool {
        access.chars().all(|letter| {
            let about = |rule: &&DeviceRule| {
                (rule.kind == 'a' || rule.kind == kind)
                    && rule.major.is_none_or(|number| number == major)
                    && rule.minor.is_none_or(|number| number == minor)
                    && rule.access.contains(letter)
            };
            rules.iter().rev().find(about).is_none_or(|rule| rule.allow)
        })
    }

    #[test]
    fn the_program_decides_as_the_rules_say() {
        let rule = |text: &str| DeviceRule::parse(text.starts_with('+'), &text[1..]).unwrap();
        for rules in [
            &[][..],
            &["-all"],
            &["-all", "+c 1:3 rwm"],
            &["-all", "+c 1:3 r", "+c 1:3 w", "-c 1:* m"],
            &["-c 1:3 rw", "+c *:3 r", "-b 8:* w"],
            &["-all", "+c *:* rwm", "-c 5:1 r", "+all", "-b 8:0 rw"],
            &["-a 7:* rw", "+b 7:1 rw"],
            &["-c 4294967295:3 r", "+c 99999999999:3 r"],
        ] {
            let rules: Vec<DeviceRule> = rules.iter().map(|text| rule(text)).collect();
            let code = program(&rules);
            for (kind, letter) in [(1, 'b'), (2, 'c')] {
                for major in [1, 5, 7, 8, u32::MAX] {
                    for minor in [0, 1, 3] {
                        for access in ["r", "w", "m", "rw", "rwm"] {
                            let bits = [('m', 1), ('r', 2), ('w', 4)];
                            let mask = bits.iter().filter(|(name, _)| access.contains(*name)).map(|(_, bit)| bit).sum();
                            let want = meant(&rules, letter, access, major.into(), minor.into());
                            assert_eq!(
                                run(&code, kind, mask, major, minor),
                                want,
                                "{rules:?}: {letter} {major}:{minor} {access}"
                            );
                        }
                    }
                }
            }
        }
    }
}
