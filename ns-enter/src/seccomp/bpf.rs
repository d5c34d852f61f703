//! Rules to BPF: for each architecture a binary search over the numbers of its system calls, then the rules of that call.
//!
//! The crate seccompiler cannot express what the profiles say: it makes filters for one architecture only, with one action
//! for all rules, and asks for one call after the other. So the few instructions are put together here. No dependency, since
//! the build script uses this file too.

use std::collections::BTreeMap;

/// `SECCOMP_RET_ALLOW` (seccomp(2)).
pub const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_ERRNO`, to be joined with an errno.
pub const ERRNO: u32 = 0x0005_0000;
/// `SECCOMP_RET_KILL_PROCESS`.
pub const KILL_PROCESS: u32 = 0x8000_0000;

/// The kernel takes no longer filter (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    /// Equal after the argument is masked with this.
    Masked(u64),
}

/// One condition on an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, from 0 to 5.
    pub argument: u8,
    pub test: Test,
    pub value: u64,
    /// All 64 bits, or only the low 32.
    pub wide: bool,
}

/// What happens if all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub conditions: Vec<Condition>,
    /// A `SECCOMP_RET_…` value.
    pub verdict: u32,
}

/// What a system call meets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// The first that matches counts.
    pub rules: Vec<Rule>,
    /// The verdict if none does.
    pub otherwise: u32,
    /// A mask of capabilities: who keeps one of them may make the call, whatever the rules say. 0 for none.
    pub gate: u64,
}

/// The calls of one architecture as the kernel tells it to filters.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// `AUDIT_ARCH_…`.
    pub audit: u32,
    /// The calls with rules, by number.
    pub calls: BTreeMap<u32, Call>,
    /// The verdict on all other numbers, from each of these on. The first is for 0.
    pub others: Vec<(u32, u32)>,
}

/// Instructions, each as its eight bytes (`struct sock_filter`, little-endian), and where they depend on capabilities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    pub code: Vec<[u8; 8]>,
    /// Position, mask of capabilities: who keeps one of them gets [`ALLOW_NOW`] there.
    pub gates: Vec<(u16, u64)>,
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Where `struct seccomp_data` has the call's number, the architecture and the first argument.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The instruction that allows the call.
pub const ALLOW_NOW: [u8; 8] = instruction(RETURN, 0, 0, ALLOW);

const fn instruction(code: u16, if_true: u8, if_false: u8, k: u32) -> [u8; 8] {
    let [c0, c1] = code.to_le_bytes();
    let [k0, k1, k2, k3] = k.to_le_bytes();
    [c0, c1, if_true, if_false, k0, k1, k2, k3]
}

/// The filter for `machines`; calls of an architecture that is not among them meet `foreign`.
pub fn compile(machines: &[Machine], foreign: u32) -> Program {
    let mut program = Program::default();
    program.push(LOAD, 0, 0, ARCHITECTURE);
    for machine in machines {
        let mut section = Program::default();
        section.push(LOAD, 0, 0, NUMBER);
        section.append(search(&ranges(machine)));
        program.push(JUMP_EQUAL, 1, 0, machine.audit);
        program.push(JUMP, 0, 0, section.code.len() as u32);
        program.append(section);
    }
    program.push(RETURN, 0, 0, foreign);
    program
}

/// All numbers, as ranges with the same treatment: where each starts.
fn ranges(machine: &Machine) -> Vec<(u32, Call)> {
    let other = |number: u32| {
        let verdict =
            machine.others.iter().rev().find(|(from, _)| *from <= number).map_or(KILL_PROCESS, |other| other.1);
        Call { otherwise: verdict, ..Call::default() }
    };
    let mut starts: BTreeMap<u32, Call> = machine.others.iter().map(|(from, _)| (*from, other(*from))).collect();
    starts.entry(0).or_insert_with(|| other(0));
    for (&number, call) in &machine.calls {
        starts.insert(number, call.clone());
        if let Some(next) = number.checked_add(1).filter(|next| !machine.calls.contains_key(next)) {
            starts.insert(next, other(next));
        }
    }
    let mut merged: Vec<(u32, Call)> = Vec::new();
    for (start, call) in starts {
        if merged.last().is_none_or(|(_, last)| *last != call) {
            merged.push((start, call));
        }
    }
    merged
}

/// Finds the range that the number in the accumulator is in.
fn search(ranges: &[(u32, Call)]) -> Program {
    let mut program = Program::default();
    let (low, high) = ranges.split_at(ranges.len() / 2);
    if low.is_empty() {
        if let Some((_, call)) = high.first() {
            program.call(call);
        }
        return program;
    }
    let left = search(low);
    match u8::try_from(left.code.len()) {
        Ok(length) => program.push(JUMP_GREATER_EQUAL, length, 0, high[0].0),
        Err(_) => {
            program.push(JUMP_GREATER_EQUAL, 0, 1, high[0].0);
            program.push(JUMP, 0, 0, left.code.len() as u32);
        }
    }
    program.append(left);
    program.append(search(high));
    program
}

impl Program {
    fn push(&mut self, code: u16, if_true: u8, if_false: u8, k: u32) {
        self.code.push(instruction(code, if_true, if_false, k));
    }

    fn append(&mut self, other: Program) {
        let base = self.code.len() as u16;
        self.code.extend(other.code);
        self.gates.extend(other.gates.into_iter().map(|(at, mask)| (base.wrapping_add(at), mask)));
    }

    fn call(&mut self, call: &Call) {
        if call.gate != 0 {
            self.gates.push((self.code.len() as u16, call.gate));
        }
        for rule in &call.rules {
            let mut failing = Vec::new();
            for condition in &rule.conditions {
                self.condition(condition, &mut failing);
            }
            self.push(RETURN, 0, 0, rule.verdict);
            // At most six conditions of six instructions each: the distance fits.
            let end = self.code.len();
            for (at, side) in failing {
                self.code[at][side] = (end - at - 1) as u8;
            }
        }
        self.push(RETURN, 0, 0, call.otherwise);
    }

    /// Goes on where `condition` holds. Where it does not: a jump noted in `failing` as instruction and byte.
    fn condition(&mut self, condition: &Condition, failing: &mut Vec<(usize, usize)>) {
        const TRUE: usize = 2;
        const FALSE: usize = 3;
        let low_at = ARGUMENTS + 8 * u32::from(condition.argument);
        let (low, high) = (condition.value as u32, (condition.value >> 32) as u32);
        let mut fails = |program: &Program, side| failing.push((program.code.len() - 1, side));
        if condition.wide {
            self.push(LOAD, 0, 0, low_at + 4);
            match condition.test {
                Test::Equal => {
                    self.push(JUMP_EQUAL, 0, 0, high);
                    fails(self, FALSE);
                }
                // Past the two instructions for the low half: it holds already.
                Test::NotEqual => self.push(JUMP_EQUAL, 0, 2, high),
                Test::Greater | Test::GreaterEqual => {
                    self.push(JUMP_GREATER, 3, 0, high);
                    self.push(JUMP_EQUAL, 0, 0, high);
                    fails(self, FALSE);
                }
                Test::Less | Test::LessEqual => {
                    self.push(JUMP_GREATER, 0, 0, high);
                    fails(self, TRUE);
                    self.push(JUMP_EQUAL, 0, 2, high);
                }
                Test::Masked(mask) => {
                    self.push(AND, 0, 0, (mask >> 32) as u32);
                    self.push(JUMP_EQUAL, 0, 0, high);
                    fails(self, FALSE);
                }
            }
        }
        self.push(LOAD, 0, 0, low_at);
        if let Test::Masked(mask) = condition.test {
            self.push(AND, 0, 0, mask as u32);
        }
        let (code, side) = match condition.test {
            Test::Equal | Test::Masked(_) => (JUMP_EQUAL, FALSE),
            Test::NotEqual => (JUMP_EQUAL, TRUE),
            Test::Greater => (JUMP_GREATER, FALSE),
            Test::GreaterEqual => (JUMP_GREATER_EQUAL, FALSE),
            Test::Less => (JUMP_GREATER_EQUAL, TRUE),
            Test::LessEqual => (JUMP_GREATER, TRUE),
        };
        self.push(code, 0, 0, low);
        fails(self, side);
    }
}
