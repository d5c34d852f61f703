//! `--init`: a small process that stays and does what is expected of process 1.
//!
//! Programs that were not written to be process 1 neither reap what their children leave behind nor are ended by signals they
//! have no handler for. The init is the last thing that is made, so it has COMMAND's root, identity, capabilities and filter,
//! and is no way out for COMMAND. It passes all signals on, real-time ones too, reaps all that loses its parent, stops and goes
//! on as COMMAND does, and ends with COMMAND's status, 128+N for signal N. Where it is not the first process of a PID
//! namespace, it is the reaper of what descends from it (PR_SET_CHILD_SUBREAPER).
//!
//! COMMAND stays in the init's process group: what a terminal sends reaches it directly, and is not passed on again.

use chain::link::Forked;
use chain::{Chain, Outcome, Result};

/// Splits; the parent is the init. Gives an outcome only there.
///
/// Errors: a filter that allows neither clone3 nor clone.
pub fn stay(chain: &mut Chain) -> Result<Option<Outcome>> {
    match chain.stay_as_init()? {
        Forked::Parent(outcome) => Ok(Some(outcome)),
        Forked::Child => Ok(None),
    }
}
