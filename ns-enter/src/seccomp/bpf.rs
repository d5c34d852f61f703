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
    let mut code = Assembler::default();
    let mut next = code.verdict(foreign);
    for machine in machines.iter().rev() {
        let found = code.search(&ranges(machine));
        code.fall_into(found);
        let section = code.put(LOAD, 0, 0, NUMBER);
        next = code.branch(JUMP_EQUAL, machine.audit, section, next);
    }
    code.fall_into(next);
    code.put(LOAD, 0, 0, ARCHITECTURE);
    code.finish()
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

/// A place in a program: how many instructions follow the one that is meant.
type Label = usize;

/// Puts a program together from its end: jumps go forward only, so what they lead to is there already, and can be shared.
#[derive(Default)]
struct Assembler {
    /// The last instruction first.
    code: Vec<[u8; 8]>,
    gates: Vec<(Label, u64)>,
    /// For each verdict the instruction that gave it last.
    verdicts: BTreeMap<u32, Label>,
}

/// How far back a verdict is shared: short jumps (up to 255) from some way on still reach it.
const NEAR: usize = 128;

impl Assembler {
    fn put(&mut self, code: u16, if_true: u8, if_false: u8, k: u32) -> Label {
        self.code.push(instruction(code, if_true, if_false, k));
        self.code.len() - 1
    }

    /// An instruction that gives `verdict`, which others may lead to too.
    fn verdict(&mut self, verdict: u32) -> Label {
        match self.verdicts.get(&verdict) {
            Some(label) if self.code.len() - label < NEAR => *label,
            _ => {
                let label = self.put(RETURN, 0, 0, verdict);
                self.verdicts.insert(verdict, label);
                label
            }
        }
    }

    /// What is put next goes on at `label`.
    fn fall_into(&mut self, label: Label) {
        if label + 1 != self.code.len() {
            self.put(JUMP, 0, 0, (self.code.len() - label - 1) as u32);
        }
    }

    /// A comparison with the accumulator that goes on at one of two places.
    fn branch(&mut self, code: u16, k: u32, if_true: Label, if_false: Label) -> Label {
        // One more, for the other's long jump.
        let far = |assembler: &Self, label: Label| assembler.code.len() - label > 255;
        let mut near =
            |label| if far(self, label) { self.put(JUMP, 0, 0, (self.code.len() - label - 1) as u32) } else { label };
        let (if_true, if_false) = (near(if_true), near(if_false));
        let at = self.code.len();
        self.put(code, (at - if_true - 1) as u8, (at - if_false - 1) as u8, k)
    }

    /// Finds the range that the number in the accumulator is in.
    fn search(&mut self, ranges: &[(u32, Call)]) -> Label {
        match ranges {
            [] => self.verdict(KILL_PROCESS),
            [(_, call)] => self.call(call),
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let (below, from) = (self.search(low), self.search(high));
                self.branch(JUMP_GREATER_EQUAL, high[0].0, from, below)
            }
        }
    }

    fn call(&mut self, call: &Call) -> Label {
        let gated = call.gate != 0;
        let mut label = match gated && call.rules.is_empty() {
            // Not shared: who has the capability gets another verdict here.
            true => self.put(RETURN, 0, 0, call.otherwise),
            false => self.verdict(call.otherwise),
        };
        for rule in call.rules.iter().rev() {
            let next = label;
            label = self.put(RETURN, 0, 0, rule.verdict);
            for condition in rule.conditions.iter().rev() {
                label = self.condition(condition, next);
            }
        }
        if gated {
            self.gates.push((label, call.gate));
        }
        label
    }

    /// Goes on with what was put last where `condition` holds, and else at `fails`.
    fn condition(&mut self, condition: &Condition, fails: Label) -> Label {
        let holds = self.code.len() - 1;
        let low_at = ARGUMENTS + 8 * u32::from(condition.argument);
        let (low, high) = (condition.value as u32, (condition.value >> 32) as u32);
        match condition.test {
            Test::Equal | Test::Masked(_) => self.branch(JUMP_EQUAL, low, holds, fails),
            Test::NotEqual => self.branch(JUMP_EQUAL, low, fails, holds),
            Test::Greater => self.branch(JUMP_GREATER, low, holds, fails),
            Test::GreaterEqual => self.branch(JUMP_GREATER_EQUAL, low, holds, fails),
            Test::Less => self.branch(JUMP_GREATER_EQUAL, low, fails, holds),
            Test::LessEqual => self.branch(JUMP_GREATER, low, fails, holds),
        };
        if let Test::Masked(mask) = condition.test {
            self.put(AND, 0, 0, mask as u32);
        }
        let low_half = self.put(LOAD, 0, 0, low_at);
        if !condition.wide {
            return low_half;
        }
        match condition.test {
            Test::Equal | Test::Masked(_) => self.branch(JUMP_EQUAL, high, low_half, fails),
            Test::NotEqual => self.branch(JUMP_EQUAL, high, low_half, holds),
            Test::Greater | Test::GreaterEqual => {
                let equal = self.branch(JUMP_EQUAL, high, low_half, fails);
                self.branch(JUMP_GREATER, high, holds, equal)
            }
            Test::Less | Test::LessEqual => {
                let equal = self.branch(JUMP_EQUAL, high, low_half, holds);
                self.branch(JUMP_GREATER, high, fails, equal)
            }
        };
        if let Test::Masked(mask) = condition.test {
            self.put(AND, 0, 0, (mask >> 32) as u32);
        }
        self.put(LOAD, 0, 0, low_at + 4)
    }

    fn finish(self) -> Program {
        let last = self.code.len() - 1;
        let gates = self.gates.into_iter().map(|(label, mask)| ((last - label) as u16, mask)).collect();
        Program { code: self.code.into_iter().rev().collect(), gates }
    }
}
