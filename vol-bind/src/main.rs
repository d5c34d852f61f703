//! `vol-bind`: see the library.
#![no_main]

chain::main!(vol_bind::TOOL);
