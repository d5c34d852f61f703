//! `vol-bind`: see the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    chain::tool::main(&vol_bind::TOOL, &[])
}
