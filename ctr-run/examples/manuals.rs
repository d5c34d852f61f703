//! Writes manual pages and shell completions of all six tools, from their grammars and their README's:
//! `cargo run -p ctr-run --example manuals DIR` fills `DIR/man1`, `DIR/bash`, `DIR/zsh` and `DIR/fish`.

use clap_complete::Shell;
use std::fs;
use std::io::{self, Error};
use std::path::PathBuf;

const TOOLS: [&chain::Tool; 6] =
    [&img_unpack::TOOL, &layer_mount::TOOL, &vol_bind::TOOL, &cg_limit::TOOL, &ns_enter::TOOL, &ctr_run::TOOL];

fn main() -> io::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let (Some(dir), None) = (args.next().map(PathBuf::from), args.next()) else {
        return Err(Error::other("usage: manuals DIR"));
    };
    for folder in ["man1", "bash", "zsh", "fish"] {
        fs::create_dir_all(dir.join(folder))?;
    }
    for tool in TOOLS {
        let mut page = Vec::new();
        clap_mangen::Man::new((tool.command)()).render(&mut page)?;
        fs::write(dir.join("man1").join(format!("{}.1", tool.name)), page)?;
        for (shell, folder) in [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")] {
            clap_complete::generate_to(shell, &mut (tool.command)(), tool.name, dir.join(folder))?;
        }
    }
    Ok(())
}
