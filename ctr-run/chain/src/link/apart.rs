//! A tool of ours in a child of its own, for what must not happen to the process that becomes COMMAND: threads, memory, a
//! user namespace.

use super::wait::die_with_parent;
use crate::error::{Error, FAILED, Result, ResultExt};
use crate::sys::process::{self, Disposition, Side};
use crate::tool::{self, Tool};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stdout, getpid, getppid};
use std::ffi::OsString;
use std::os::fd::AsFd;

/// A tool that runs in a child.
#[must_use = "a child has to be waited for"]
pub struct Apart {
    pid: Pid,
    name: &'static str,
    child_ended: Disposition,
}

/// Starts `tool` with `args` in a child whose stdout is `stdout`.
pub fn start(tool: &Tool, args: &[OsString], stdout: impl AsFd) -> Result<Apart> {
    let parent = getpid();
    // With an inherited "ignore" there would be nothing to wait for.
    let child_ended = process::default_action(Signal::SIGCHLD);
    match process::clone3(0).call(format_args!("clone3(0)"))? {
        Side::Child => {
            let bound = die_with_parent().is_ok() && getppid() == parent;
            let ready = bound && dup2_stdout(stdout).is_ok();
            std::process::exit(if ready { tool::run(tool, &[], args) } else { FAILED }.into());
        }
        Side::Parent(pid, _) => Ok(Apart { pid, name: tool.name, child_ended }),
    }
}

impl Apart {
    /// Its process number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Kills it, if it has not ended, and waits for its end.
    pub fn end(self) {
        let _ = nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
        self.child_ended.restore();
    }

    /// Waits for its end. Errors: it failed (and has said why), or a signal ended it.
    pub fn wait(self) -> Result<()> {
        let ended = waitpid(self.pid, None).call(format_args!("waitpid({})", self.pid));
        self.child_ended.restore();
        match ended? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(..) => Err(Error::said()),
            other => Err(Error::new(format_args!("{} ended: {other:?}", self.name))),
        }
    }
}
