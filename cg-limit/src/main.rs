//! `cg-limit`: see the library.
#![no_main]

chain::main!(cg_limit::TOOL);
