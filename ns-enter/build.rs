//! Makes the default seccomp profile into BPF, so that no command has to.

// Files of the library; the build uses a part of each.
#[allow(dead_code)]
#[path = "src/seccomp/bpf.rs"]
mod bpf;
#[allow(dead_code)]
#[path = "src/seccomp/calls.rs"]
mod calls;
#[path = "src/seccomp/profile.rs"]
mod profile;

use calls::Architecture;
use std::path::PathBuf;

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/seccomp");
    let variable = |name: &str| std::env::var(name).map_err(|error| format!("{name}: {error}"));
    let architectures = Architecture::of_machine(&variable("CARGO_CFG_TARGET_ARCH")?);
    let program = if architectures.is_empty() {
        bpf::Program::default()
    } else {
        let machines = profile::machines(include_str!("src/seccomp/default.txt"), architectures)?;
        bpf::compile(&machines, bpf::KILL_PROCESS)
    };
    if program.code.len() > bpf::MAX_INSTRUCTIONS {
        return Err(format!("the default profile is too long: {} instructions", program.code.len()));
    }
    let text =
        format!("const CODE: &[[u8; 8]] = &{:?};\nconst GATES: &[(u16, u64)] = &{:?};\n", program.code, program.gates);
    let out = PathBuf::from(variable("OUT_DIR")?).join("default.rs");
    std::fs::write(&out, text).map_err(|error| format!("{}: {error}", out.display()))
}
