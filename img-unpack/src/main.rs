//! `img-unpack`: see the library.
#![no_main]

chain::main!(img_unpack::TOOL);
