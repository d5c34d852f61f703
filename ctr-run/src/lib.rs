//! `ctr-run`.
#![forbid(unsafe_code)]

mod cli;

/// The tool.
pub const TOOL: chain::Tool = chain::Tool { name: "ctr-run", command: cli::command, run };

fn run(_chain: &mut chain::Chain, _args: &[std::ffi::OsString]) -> Result<chain::Outcome, chain::args::Stop> {
    Ok(chain::Outcome::Done)
}
