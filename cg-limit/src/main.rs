//! `cg-limit`: see the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    chain::tool::main(&cg_limit::TOOL, &[])
}
