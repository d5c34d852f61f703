//! `ctr-run`: see the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    chain::tool::main(&ctr_run::TOOL, &ctr_run::LINKS)
}
