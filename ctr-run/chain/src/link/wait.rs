//! Splitting in two, and the half that waits.
//!
//! The parent blocks all signals before it splits, so that none is lost, and waits for them in one place. It forwards what
//! was sent to it alone; what a terminal sends to the whole foreground group has reached a child in that group already. It
//! stops when the child stops. When it dies, the kernel kills the child (PR_SET_PDEATHSIG), and a PID namespace with its
//! first process.

use super::Chain;
use crate::error::{Error, Result, ResultExt};
use crate::sys::process::{self, Disposition, Side};
use crate::tool::Outcome;
use crate::trace;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask, raise};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpgid, getpgrp, pipe2};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Which half goes on.
pub enum Forked {
    /// The child: go on with the chain.
    Child,
    /// The parent: COMMAND has ended, and this is its status.
    Parent(Outcome),
}

/// What the child puts back before it goes on.
struct Blocked {
    mask: SigSet,
    child_ended: Disposition,
}

impl Blocked {
    /// Blocks what will be forwarded. SIGCHLD gets its default action, since with an inherited "ignore" there would be
    /// nothing to wait for.
    fn all() -> Result<Self> {
        let mut mask = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&process::forwardable()), Some(&mut mask))
            .call(format_args!("sigprocmask()"))?;
        Ok(Blocked { mask, child_ended: process::default_action(Signal::SIGCHLD) })
    }

    fn restore(&self) {
        self.child_ended.restore();
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.mask), None);
    }
}

impl Chain {
    /// Splits. The child is in new namespaces if `flags` has `CLONE_NEW…`, and goes on when `prepare` (which has the
    /// child's process number) has succeeded in the parent. The parent waits for the child, does what was asked for with
    /// [`Chain::after`], and gives COMMAND's status.
    pub fn fork(&mut self, flags: u64, prepare: impl FnOnce(Pid) -> Result<()>) -> Result<Forked> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).call(format_args!("pipe2()"))?;
        let blocked = Blocked::all()?;
        let side = trace::op(format_args!("clone3({})", clone_flags(flags)), || process::clone3(flags));
        let (pid, pidfd) = match side {
            Err(error) => {
                blocked.restore();
                return Err(error);
            }
            Ok(Side::Child) => {
                drop(writer);
                self.begin_child(reader, &blocked)?;
                return Ok(Forked::Child);
            }
            Ok(Side::Parent(pid, pidfd)) => (pid, pidfd),
        };
        drop(reader);
        let go = || prepare(pid).and_then(|()| nix::unistd::write(&writer, b"g").call(format_args!("write(pipe)")));
        if let Err(error) = go() {
            let _ = process::pidfd_send_signal(&pidfd, Signal::SIGKILL as i32);
            let _ = waitpid(pid, None);
            blocked.restore();
            return Err(error);
        }
        self.before.clear();
        let status = wait(pid, &pidfd);
        self.run_after(status.as_ref().ok().copied());
        blocked.restore();
        Ok(Forked::Parent(Outcome::Status(status?)))
    }

    fn begin_child(&mut self, reader: OwnedFd, blocked: &Blocked) -> Result<()> {
        // What the parent does afterwards is not this process's business; not even dropping it, which could have effects.
        std::mem::forget(std::mem::take(&mut self.after));
        die_with_parent()?;
        let mut go = [0u8; 1];
        let told = loop {
            match nix::unistd::read(&reader, &mut go) {
                Err(Errno::EINTR) => {}
                other => break other,
            }
        };
        self.lifeline = Some(reader);
        if told != Ok(1) {
            // The parent has said why, or is dead.
            std::process::exit(crate::error::FAILED.into());
        }
        self.check_parent();
        blocked.restore();
        for hook in std::mem::take(&mut self.before) {
            hook()?;
        }
        Ok(())
    }

    /// Asks once more to die with the parent: the kernel forgets it when ids or capabilities change.
    ///
    /// `wanted` is what [`process::parent_death_signal`] said before the change. KERNEL(all): a parent that dies between
    /// the change and this call is noticed only if it split in this same process (the pipe to it tells).
    pub fn renew_parent_death_signal(&self, wanted: i32) -> Result<()> {
        if wanted != 0 {
            process::prctl(nix::libc::PR_SET_PDEATHSIG, [wanted as u64, 0, 0, 0])
                .call(format_args!("prctl(PR_SET_PDEATHSIG, {wanted})"))?;
            self.check_parent();
        }
        Ok(())
    }

    /// Ends this process if the parent that it split from is dead.
    fn check_parent(&self) {
        let Some(lifeline) = &self.lifeline else { return };
        let mut fds = [PollFd::new(lifeline.as_fd(), PollFlags::POLLIN)];
        let hung_up = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
            && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP));
        if hung_up {
            std::process::exit(128 + Signal::SIGKILL as i32);
        }
    }
}

fn die_with_parent() -> Result<()> {
    process::prctl(nix::libc::PR_SET_PDEATHSIG, [Signal::SIGKILL as u64, 0, 0, 0])
        .call(format_args!("prctl(PR_SET_PDEATHSIG, SIGKILL)"))?;
    Ok(())
}

/// Waits until `pid` has ended; forwards signals meanwhile. Gives its status, 128+N for signal N.
fn wait(pid: Pid, pidfd: &OwnedFd) -> Result<u8> {
    let set = process::forwardable();
    let mut ended_by = None;
    // A signal that the child blocked when it was sent, and until when it matters whether it still does.
    let mut doubtful: Option<(i32, Instant)> = None;
    loop {
        let signal = match process::sigwait(&set, doubtful.map(|_| DOUBT_INTERVAL)) {
            Ok((signal, _)) if signal == Signal::SIGCHLD as i32 => {
                if let Some(status) = reap(pid, pidfd)? {
                    return Ok(ended_by.unwrap_or(status));
                }
                continue;
            }
            Ok((signal, code)) => {
                if !(code == SI_KERNEL && in_own_group(pid)) && signal != Signal::SIGWINCH as i32 {
                    trace::note(format_args!("pidfd_send_signal({pid}, {})", signal_name(signal)));
                    let _ = process::pidfd_send_signal(pidfd, signal);
                }
                doubtful = None;
                signal
            }
            Err(Errno::EAGAIN) => match doubtful {
                Some((signal, end)) if Instant::now() < end => signal,
                _ => {
                    doubtful = None;
                    continue;
                }
            },
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(Error::call(format_args!("sigtimedwait()"), errno)),
        };
        match fate_in_first_process(pid, signal) {
            Fate::Taken => doubtful = None,
            Fate::Blocked => {
                doubtful = doubtful.or_else(|| Some((signal, Instant::now() + DOUBT)));
            }
            Fate::Dropped(Default::End) => {
                ended_by = Some(128 + signal as u8);
                let _ = process::pidfd_send_signal(pidfd, Signal::SIGKILL as i32);
                doubtful = None;
            }
            Fate::Dropped(Default::Stop) => {
                let _ = process::pidfd_send_signal(pidfd, Signal::SIGSTOP as i32);
                doubtful = None;
            }
        }
    }
}

/// `si_code` of what the kernel sends, such as a terminal to its whole foreground group.
const SI_KERNEL: i32 = 0x80;
/// A child blocks everything for the moment between its making and its start, and a signal that comes then is dropped by
/// the kernel once it no longer blocks it. So it is looked at again, this often, for so long.
const DOUBT_INTERVAL: Duration = Duration::from_millis(5);
const DOUBT: Duration = Duration::from_secs(2);

/// Whether `pid` is in this process's group, and so gets what a terminal sends to the group.
fn in_own_group(pid: Pid) -> bool {
    getpgid(Some(pid)) == Ok(getpgrp())
}

/// Takes note of what happened to children; the status if it was the end of `pid`.
fn reap(pid: Pid, pidfd: &OwnedFd) -> Result<Option<u8>> {
    loop {
        let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WCONTINUED;
        let status = waitid(Id::Pid(pid), flags).call(format_args!("waitid({pid})"))?;
        match status {
            WaitStatus::Exited(_, code) => return Ok(Some(code as u8)),
            WaitStatus::Signaled(_, signal, _) => return Ok(Some(128 + signal as u8)),
            WaitStatus::Stopped(..) => {
                // Stop as the child has, so that the shell sees it; go on when it does.
                let _ = raise(Signal::SIGSTOP);
                let _ = process::pidfd_send_signal(pidfd, Signal::SIGCONT as i32);
            }
            WaitStatus::StillAlive => return Ok(None),
            _ => {}
        }
    }
}

/// What a signal does to a process that neither catches nor ignores it.
enum Default {
    End,
    Stop,
}

/// What became of a signal for a child that may be the first process of a PID namespace.
enum Fate {
    /// The child catches, ignores or has it, or is an ordinary process.
    Taken,
    /// It waits until the child no longer blocks it.
    Blocked,
    /// The kernel dropped it, and with it what the default action would have done.
    Dropped(Default),
}

/// The kernel drops a signal without a handler for the first process of a PID namespace (pid_namespaces(7)). People expect
/// Ctrl-C and SIGTERM to work all the same, so we do what the default action would have done.
fn fate_in_first_process(pid: Pid, signal: i32) -> Fate {
    let action = match Signal::try_from(signal) {
        Ok(Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTERM | Signal::SIGALRM) => Default::End,
        Ok(Signal::SIGPIPE | Signal::SIGUSR1 | Signal::SIGUSR2 | Signal::SIGXCPU | Signal::SIGXFSZ) => Default::End,
        Ok(Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU) => Default::Stop,
        _ => return Fate::Taken,
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map_or("", str::trim);
    let ids: Vec<&str> = field("NSpid:").split_whitespace().collect();
    if ids.len() < 2 || ids.last() != Some(&"1") {
        return Fate::Taken;
    }
    let has = |name: &str| u64::from_str_radix(field(name), 16).is_ok_and(|set| set & 1 << (signal - 1) != 0);
    match (has("SigCgt:") || has("SigIgn:"), has("SigBlk:")) {
        (true, _) => Fate::Taken,
        (false, true) => Fate::Blocked,
        (false, false) => Fate::Dropped(action),
    }
}

fn signal_name(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |signal| signal.as_str().to_string())
}

/// The names of `CLONE_NEW…` flags, as in clone(2).
pub fn clone_flags(flags: u64) -> String {
    const NAMES: [(i32, &str); 8] = [
        (nix::libc::CLONE_NEWUSER, "CLONE_NEWUSER"),
        (nix::libc::CLONE_NEWNS, "CLONE_NEWNS"),
        (nix::libc::CLONE_NEWPID, "CLONE_NEWPID"),
        (nix::libc::CLONE_NEWNET, "CLONE_NEWNET"),
        (nix::libc::CLONE_NEWIPC, "CLONE_NEWIPC"),
        (nix::libc::CLONE_NEWUTS, "CLONE_NEWUTS"),
        (nix::libc::CLONE_NEWCGROUP, "CLONE_NEWCGROUP"),
        (0x80, "CLONE_NEWTIME"),
    ];
    let names: Vec<&str> = NAMES.iter().filter(|(flag, _)| flags & *flag as u64 != 0).map(|(_, name)| *name).collect();
    if names.is_empty() { "0".into() } else { names.join("|") }
}
