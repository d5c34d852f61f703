//! Arguments to request, without effects.

/// The grammar.
pub fn command() -> clap::Command {
    clap::Command::new("ns-enter")
}
