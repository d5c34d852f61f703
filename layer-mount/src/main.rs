//! `layer-mount`: see the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    chain::tool::main(&layer_mount::TOOL, &[])
}
