//! The filters' verdicts, by running their instructions as the kernel does.

use super::bpf::{self, ALLOW, ERRNO, KILL_PROCESS};
use super::calls::{self, Architecture};
use super::{Filter, oci, profile};
use serde_json::json;

const EPERM: u32 = ERRNO | 1;
const ENOSYS: u32 = ERRNO | 38;
const SYS_ADMIN: u64 = 1 << 21;

/// What the kernel's interpreter does with the instructions that we use. Panics where the kernel would refuse the filter.
fn run(code: &[[u8; 8]], audit: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(audit.to_le_bytes());
    data.extend(0u64.to_le_bytes());
    arguments.iter().for_each(|argument| data.extend(argument.to_le_bytes()));
    let (mut at, mut accumulator) = (0usize, 0u32);
    loop {
        let [c0, c1, if_true, if_false, k0, k1, k2, k3] = code[at];
        let k = u32::from_le_bytes([k0, k1, k2, k3]);
        let branch = |holds: bool| usize::from(if holds { if_true } else { if_false });
        at += 1;
        match u16::from_le_bytes([c0, c1]) {
            0x20 => accumulator = u32::from_le_bytes(data[k as usize..k as usize + 4].try_into().unwrap()),
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += branch(accumulator == k),
            0x25 => at += branch(accumulator > k),
            0x35 => at += branch(accumulator >= k),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// The default profile for programs of `machine`.
fn default_for(machine: &str) -> Filter {
    let machines =
        profile::machines(include_str!("default.txt"), Architecture::of_machine(machine)).expect("default.txt");
    Filter { program: bpf::compile(&machines, KILL_PROCESS), flags: 0, name: String::new() }
}

#[test]
fn the_table_has_the_kernels_numbers() {
    use nix::libc::*;
    let own = Architecture::of_machine(std::env::consts::ARCH)[0];
    let some = [
        ("read", SYS_read),
        ("clone3", SYS_clone3),
        ("mount", SYS_mount),
        ("keyctl", SYS_keyctl),
        ("openat2", SYS_openat2),
        ("unshare", SYS_unshare),
        ("memfd_secret", SYS_memfd_secret),
        ("mseal", SYS_mseal),
    ];
    for (name, number) in some {
        assert_eq!(calls::find(name).unwrap().on(own), Some(number as u32), "{name}");
    }
    assert!(calls::find("no_such_call").is_none());
}

#[test]
fn the_default_profile_is_dockers_on_all_architectures() {
    for (machine, on) in [
        ("x86_64", Architecture::X86_64),
        ("x86_64", Architecture::X86),
        ("x86_64", Architecture::X32),
        ("aarch64", Architecture::Aarch64),
        ("aarch64", Architecture::Arm),
    ] {
        let filter = default_for(machine);
        let ask = |kept, call: &str, argument| {
            let number = calls::find(call).and_then(|numbers| numbers.on(on));
            let number = number.unwrap_or_else(|| panic!("{call} on {on:?}"));
            run(&filter.code(kept), on.audit(), number, [argument, 0, 0, 0, 0, 0])
        };
        for call in ["read", "openat", "execve", "futex", "ptrace", "exit_group", "seccomp", "ioctl"] {
            assert_eq!(ask(0, call, 0), ALLOW, "{call} on {on:?}");
        }
        for call in ["mount", "unshare", "setns", "keyctl", "bpf", "swapon", "kexec_load", "umount2", "io_uring_setup"]
        {
            assert_eq!(ask(0, call, 0), EPERM, "{call} on {on:?}");
        }
        assert_eq!(ask(0, "clone3", 0), ENOSYS);
        assert_eq!(ask(SYS_ADMIN, "clone3", 0), ALLOW);
        assert_eq!(ask(0, "clone", 0x0100_0011), ALLOW);
        assert_eq!(ask(0, "clone", 0x1000_0011), EPERM);
        assert_eq!(ask(SYS_ADMIN, "clone", 0x1000_0011), ALLOW);
        assert_eq!(ask(SYS_ADMIN, "mount", 0), ALLOW);
        assert_eq!(ask(SYS_ADMIN, "keyctl", 0), EPERM);
        assert_eq!(ask(1 << 39, "bpf", 0), ALLOW);
        assert_eq!(ask(1 << 18, "chroot", 0), ALLOW);
        assert_eq!(ask(!(1 << 18), "chroot", 0), EPERM);
        for (family, expected) in [(1, ALLOW), (2, ALLOW), (16, ALLOW), (38, EPERM), (40, EPERM), (1 << 32 | 40, EPERM)]
        {
            assert_eq!(ask(0, "socket", family), expected, "family {family}");
        }
        for (persona, expected) in [(0, ALLOW), (8, ALLOW), (0x0040_0000, EPERM), (0xffff_ffff, ALLOW)] {
            assert_eq!(ask(0, "personality", persona), expected);
        }
    }
}

#[test]
fn the_build_made_what_this_code_makes() {
    let filter = Filter::default_profile().unwrap();
    assert_eq!(filter.program, default_for(std::env::consts::ARCH).program);
    assert!(filter.program.code.len() < 1500, "{}", filter.program.code.len());
    let foreign = if cfg!(target_arch = "x86_64") { Architecture::Aarch64 } else { Architecture::X86_64 };
    assert_eq!(run(&filter.code(0), foreign.audit(), 0, [0; 6]), KILL_PROCESS);
}

/// The verdict of a profile in the runtime-spec's form on a call of this machine's own architecture.
fn judge(profile: &serde_json::Value, call: &str, arguments: [u64; 6]) -> u32 {
    let (program, _) = oci::compile(profile).unwrap();
    let own = Architecture::of_machine(std::env::consts::ARCH)[0];
    run(&program.code, own.audit(), calls::find(call).unwrap().on(own).unwrap(), arguments)
}

#[test]
fn every_comparison_sees_all_64_bits() {
    let limit: u64 = 0x1_0000_0005;
    let below = [0, 5, 0xffff_ffff, limit - 1];
    let above = [limit + 1, 0x2_0000_0000, u64::MAX];
    type Comparison = fn(u64, u64) -> bool;
    let cases: [(&str, Comparison); 6] = [
        ("EQ", |a, b| a == b),
        ("NE", |a, b| a != b),
        ("LT", |a, b| a < b),
        ("LE", |a, b| a <= b),
        ("GT", |a, b| a > b),
        ("GE", |a, b| a >= b),
    ];
    for (op, holds) in cases {
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["dup"],
            "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
            "args": [{"index": 2, "value": limit, "op": format!("SCMP_CMP_{op}")}]}]});
        for value in below.into_iter().chain(above).chain([limit]) {
            let expected = if holds(value, limit) { ERRNO | 7 } else { ALLOW };
            assert_eq!(judge(&profile, "dup", [0, 0, value, 0, 0, 0]), expected, "{value:#x} {op} {limit:#x}");
        }
    }
    let masked = json!({"defaultAction": "SCMP_ACT_KILL", "syscalls": [{"names": ["dup"], "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": 0xf_0000_000fu64, "valueTwo": 0x1_0000_0002u64, "op": "SCMP_CMP_MASKED_EQ"}]}]});
    assert_eq!(judge(&masked, "dup", [0x71_0000_00f2, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(judge(&masked, "dup", [0x02, 0, 0, 0, 0, 0]), 0);
}

#[test]
fn rules_of_one_call_are_asked_in_order_and_the_unconditional_last() {
    let on = |value: u64, errno: u64| {
        json!({"names": ["dup"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno,
               "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]})
    };
    let profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 99, "syscalls": [
        {"names": ["dup"], "action": "SCMP_ACT_ALLOW"}, on(1, 11), on(2, 12), on(1, 13)]});
    assert_eq!(judge(&profile, "dup", [1, 0, 0, 0, 0, 0]), ERRNO | 11);
    assert_eq!(judge(&profile, "dup", [2, 0, 0, 0, 0, 0]), ERRNO | 12);
    assert_eq!(judge(&profile, "dup", [3, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(judge(&profile, "read", [0; 6]), ERRNO | 99);
    // Two on one argument are alternatives.
    let either = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["dup"], "action": "SCMP_ACT_TRAP",
        "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]}]});
    assert_eq!([1, 2, 3].map(|n| judge(&either, "dup", [n, 0, 0, 0, 0, 0])), [0x0003_0000, 0x0003_0000, ALLOW]);
}

#[test]
fn only_listed_architectures_may_call() {
    let profile = |list: serde_json::Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": list});
    if cfg!(target_arch = "x86_64") {
        let ask = |list, on: Architecture, number| {
            run(&oci::compile(&profile(list)).unwrap().0.code, on.audit(), number, [0; 6])
        };
        assert_eq!(ask(json!(null), Architecture::X86_64, 5), ALLOW);
        assert_eq!(ask(json!(null), Architecture::X86, 5), KILL_PROCESS);
        assert_eq!(ask(json!(null), Architecture::X32, calls::X32_BIT | 5), KILL_PROCESS);
        assert_eq!(ask(json!(null), Architecture::X86_64, u32::MAX), ALLOW);
        assert_eq!(ask(json!(["SCMP_ARCH_X86", "SCMP_ARCH_S390X"]), Architecture::X86, 5), ALLOW);
        assert_eq!(ask(json!(["SCMP_ARCH_X32"]), Architecture::X32, calls::X32_BIT | 5), ALLOW);
    }
    assert!(oci::compile(&profile(json!(["SCMP_ARCH_PDP11"]))).unwrap_err().to_string().contains("PDP11"));
}

#[test]
fn errors_name_the_rule() {
    let with = |rule: serde_json::Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}, rule]});
    let cases = [
        (json!([]), "no JSON object"),
        (json!({}), "no defaultAction"),
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "needs an agent"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}), "flags: \"X\""),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "archMap": []}), "Docker's own form"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 5}), "SCMP_ACT_ALLOW has no defaultErrnoRet"),
        (
            with(json!({"names": ["mount", "swapon"], "action": "SCMP_ACT_FOO"})),
            "syscalls[1] (mount, swapon): action: \"SCMP_ACT_FOO\"",
        ),
        (
            with(json!({"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5000})),
            "syscalls[1] (mount): errnoRet: 5000",
        ),
        (
            with(
                json!({"names": ["mount"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}),
            ),
            "args[0]: index",
        ),
        (
            with(
                json!({"names": ["mount"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 1, "op": "="}]}),
            ),
            "args[0]: op: \"=\"",
        ),
        (
            with(json!({"names": ["keyclt"], "action": "SCMP_ACT_ERRNO"})),
            "syscalls[1] (keyclt): \"keyclt\" is no system call",
        ),
        (with(json!({"names": ["dup", "dup2", "dup3", "mount"]})), "syscalls[1] (dup, dup2 and 2 more): no action"),
    ];
    for (profile, words) in cases {
        let error = oci::compile(&profile).unwrap_err().to_string();
        assert!(error.contains(words), "{words:?} is not in: {error}");
    }
    let contradiction = json!({"defaultAction": "SCMP_ACT_TRAP", "syscalls": [{"names": ["dup"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["dup"], "action": "SCMP_ACT_ERRNO"}]});
    assert!(oci::compile(&contradiction).unwrap_err().to_string().contains("syscalls[1] (dup): an earlier rule"));
    // A newer profile than this program, and one that names another architecture's calls.
    assert!(oci::compile(&with(json!({"names": ["call_of_2040"], "action": "SCMP_ACT_ALLOW"}))).is_ok());
    assert!(oci::compile(&with(json!({"names": ["s390_sthyi"], "action": "SCMP_ACT_ERRNO"}))).is_ok());
}
