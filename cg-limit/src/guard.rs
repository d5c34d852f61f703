//! A tiny process that empties and removes a group when the process that waits for COMMAND is killed with SIGKILL.
//!
//! The kernel then kills COMMAND, but not what COMMAND has started. Inside a PID namespace it kills those too, so only where
//! there is none is a guard needed.

use crate::group::Group;
use chain::sys::process::{self, Side};
use chain::{Result, ResultExt};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2, read, setsid};
use std::os::fd::OwnedFd;

/// The guard, as seen by the process that it watches.
pub struct Guard {
    pid: Pid,
    pidfd: OwnedFd,
    _lifeline: OwnedFd,
}

impl Guard {
    /// Starts a guard over `group`, which watches this process.
    pub fn start(group: &Group) -> Result<Guard> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).call(format_args!("pipe2()"))?;
        match process::clone3(0).call(format_args!("clone3(0)"))? {
            Side::Parent(pid, pidfd) => Ok(Guard { pid, pidfd, _lifeline: writer }),
            Side::Child => {
                drop(writer);
                watch(reader, group);
                process::leave(0)
            }
        }
    }

    /// Sends it away: nothing of the group is left that could run. Follow with [`Guard::reap`].
    pub fn stop(&self) {
        let _ = process::pidfd_send_signal(&self.pidfd, Signal::SIGKILL as i32);
    }

    /// Waits until it has gone.
    pub fn reap(self) {
        let _ = waitpid(self.pid, None);
    }
}

/// Waits until the other end of `lifeline` is closed, which the kernel does when its process ends.
fn watch(lifeline: OwnedFd, group: &Group) {
    // What a terminal or a shell sends to the group of processes is not meant for the guard.
    let _ = setsid();
    let _ = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None);
    while read(&lifeline, &mut [0u8]) == Err(Errno::EINTR) {}
    if group.kill().is_ok() {
        let _ = group.remove();
    }
}
