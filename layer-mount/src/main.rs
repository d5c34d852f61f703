//! `layer-mount`: see the library.
#![no_main]

chain::main!(layer_mount::TOOL);
