//! A tool of ours in a child of its own, for what must not happen to the process that becomes COMMAND: threads, memory, a
//! user namespace.

use crate::error::{Error, FAILED, Result, ResultExt};
use crate::sys::process::{self, Side};
use crate::tool::{self, Tool};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stdout};
use std::ffi::OsString;
use std::os::fd::AsFd;

/// A tool that runs in a child.
#[must_use = "a child has to be waited for"]
pub struct Apart {
    pid: Pid,
    name: &'static str,
}

/// Starts `tool` with `args` in a child whose stdout is `stdout`.
pub fn start(tool: &Tool, args: &[OsString], stdout: impl AsFd) -> Result<Apart> {
    match process::clone3(0).call(format_args!("clone3(0)"))? {
        Side::Child => {
            let status = dup2_stdout(stdout).map_or(FAILED, |()| tool::run(tool, &[], args));
            std::process::exit(status.into());
        }
        Side::Parent(pid, _) => Ok(Apart { pid, name: tool.name }),
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
    }

    /// Waits for its end. Errors: it failed (and has said why), or a signal ended it.
    pub fn wait(self) -> Result<()> {
        match waitpid(self.pid, None).call(format_args!("waitpid({})", self.pid))? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(..) => Err(Error::said()),
            other => Err(Error::new(format_args!("{} ended: {other:?}", self.name))),
        }
    }
}
