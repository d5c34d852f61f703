//! `img-unpack`: see the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    chain::tool::main(&img_unpack::TOOL, &[])
}
