//! `ctr-run`: see the library.
#![no_main]

chain::main!(ctr_run::TOOL, &ctr_run::LINKS);
