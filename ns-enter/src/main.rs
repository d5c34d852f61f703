//! `ns-enter`: see the library.
#![no_main]

chain::main!(ns_enter::TOOL);
