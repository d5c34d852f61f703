//! `ns-enter`: see the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    chain::tool::main(&ns_enter::TOOL, &[])
}
