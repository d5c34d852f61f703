//! Splitting in two, and the half that waits.
//!
//! The parent blocks all signals before it splits, so that none is lost, and waits for them in one place. It forwards what
//! was sent to it alone; what a terminal sends to the whole foreground group has reached a child in that group already. It
//! stops when the child stops. When it dies, the kernel kills the child (PR_SET_PDEATHSIG), and a PID namespace with its
//! first process.
//!
//! Until the child becomes COMMAND, the two are joined by a pair of sockets. It tells the child to go on, and by its end that
//! the other is dead; on it the child hands over COMMAND's terminal ([`Chain::hand_over_terminal`]), and an init that is the
//! first process of its PID namespace, which nobody inside can stop, says that COMMAND has stopped.

use super::Chain;
use super::relay::{self, Relay};
use crate::error::{Error, Result, ResultExt};
use crate::sys::descriptor;
use crate::sys::process::{self, Disposition, Side};
use crate::tool::Outcome;
use crate::trace;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, killpg, pthread_sigmask, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpgid, getpgrp, getpid, getsid};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Which half goes on.
pub enum Forked {
    /// The child: go on with the chain.
    Child,
    /// The parent: COMMAND has ended, and this is its status.
    Parent(Outcome),
}

/// How COMMAND is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopping {
    /// What it gets instead of SIGTERM: a signal's number.
    pub signal: i32,
    /// How long it then has until it is killed; without, for ever.
    pub timeout: Option<Duration>,
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

/// What the child says: COMMAND has stopped; it will never start; here is its terminal (with the two sides of it).
const STOPPED: u8 = b's';
const NOT_STARTED: u8 = b'n';
const TERMINAL: u8 = b't';

impl Chain {
    /// Splits. The child is in new namespaces if `flags` has `CLONE_NEW…`, and goes on when `prepare` (which can ask for the
    /// child's process number, as /proc has it) has succeeded in the parent. The parent waits for the child, does what was
    /// asked for with [`Chain::after`], and gives COMMAND's status.
    pub fn fork(&mut self, flags: u64, prepare: impl FnOnce(&dyn Fn() -> Pid) -> Result<()>) -> Result<Forked> {
        self.split(false, flags, prepare)
    }

    /// Splits. The parent is COMMAND's init: as in [`Chain::fork`], and it reaps all processes that lose their parents, and
    /// closes all descriptors but the standard ones and what it waits with.
    pub fn stay_as_init(&mut self) -> Result<Forked> {
        // What COMMAND starts has the init's identity: it shall not reach the init's program, a file of the host
        // (CVE-2019-5736), nor its environment, the caller's. Executing COMMAND undoes this for COMMAND.
        trace::op(format_args!("prctl(PR_SET_DUMPABLE, 0)"), || process::prctl(nix::libc::PR_SET_DUMPABLE, [0; 4]))?;
        if getpid().as_raw() != 1 {
            trace::op(format_args!("prctl(PR_SET_CHILD_SUBREAPER, 1)"), || {
                process::prctl(nix::libc::PR_SET_CHILD_SUBREAPER, [1, 0, 0, 0])
            })?;
        }
        self.split(true, 0, |_| Ok(()))
    }

    /// Whether a parent waits that split from this process in this program.
    pub fn has_parent(&self) -> bool {
        self.parent.is_some()
    }

    /// Gives the two sides of COMMAND's terminal to the parent, which carries between it and the caller's until COMMAND has
    /// ended. Error: there is no parent ([`Chain::has_parent`]).
    pub fn hand_over_terminal(&self, master: &OwnedFd, slave: &OwnedFd) -> Result<()> {
        let Some(parent) = &self.parent else {
            return Err(Error::new("nobody waits who could relay a terminal"));
        };
        trace::op(format_args!("sendmsg(parent, the terminal)"), || {
            descriptor::send(parent, TERMINAL, &[master.as_fd(), slave.as_fd()])
        })
    }

    /// Tells the parent, if one waits, that COMMAND will never start: a link has failed.
    pub fn tell_not_started(&self) {
        if let Some(parent) = &self.parent {
            let _ = descriptor::send(parent, NOT_STARTED, &[]);
        }
    }

    fn split<F>(&mut self, init: bool, flags: u64, prepare: F) -> Result<Forked>
    where
        F: FnOnce(&dyn Fn() -> Pid) -> Result<()>,
    {
        for hook in std::mem::take(&mut self.at_split) {
            hook(flags)?;
        }
        let group = self.group.take();
        // For the first parent alone: one that waits inside of it gets the signal as it is to be.
        let (stop, pid_file) = (self.stop.take(), self.pid_file.take());
        let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
        let (own, childs) =
            socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC).call(format_args!("socketpair(AF_UNIX)"))?;
        let blocked = Blocked::all()?;
        let shown = clone_flags(flags | if group.is_some() { process::INTO_CGROUP } else { 0 });
        let side = trace::op(format_args!("clone3({shown})"), || process::clone3_into(flags, group.as_ref()));
        let (pid, pidfd) = match side {
            Err(error) => {
                blocked.restore();
                return Err(error);
            }
            Ok(Side::Child) => {
                drop(own);
                self.begin_child(childs, &blocked)?;
                return Ok(Forked::Child);
            }
            Ok(Side::Parent(pid, pidfd)) => (pid, pidfd),
        };
        drop(childs);
        let note = || match &pid_file {
            Some(file) => {
                trace::op(format_args!("write({file:?}, \"{pid}\\n\")"), || std::fs::write(file, format!("{pid}\n")))
            }
            None => Ok(()),
        };
        let tell = || descriptor::send(&own, b'g', &[]).call(format_args!("sendmsg(child)"));
        let seen = || process::number_in_proc(&pidfd).unwrap_or(pid);
        let go = || prepare(&seen).and_then(|()| note()).and_then(|()| tell());
        if let Err(error) = go() {
            let _ = process::pidfd_send_signal(&pidfd, Signal::SIGKILL as i32);
            let _ = waitpid(pid, None);
            blocked.restore();
            return Err(error);
        }
        self.before.clear();
        let parent = self.parent.as_ref().map(AsFd::as_fd);
        if init {
            let kept: Vec<BorrowedFd<'_>> = [pidfd.as_fd(), own.as_fd()].into_iter().chain(parent).collect();
            descriptor::close_all_but(3, &kept).call(format_args!("close_range(3, MAX)"))?;
        }
        let mut waiter = Waiter::new(pid, pidfd, own, parent, init);
        let status = waiter.wait(stop);
        let started = waiter.started;
        drop(waiter);
        if !started {
            self.tell_not_started();
        }
        self.run_after(status.as_ref().ok().copied().filter(|_| started));
        if !init {
            // An init ends now; until it has, nothing that is sent to it shall look as if it were dropped.
            blocked.restore();
        }
        Ok(Forked::Parent(Outcome::Status(status?)))
    }

    fn begin_child(&mut self, parent: OwnedFd, blocked: &Blocked) -> Result<()> {
        // What the parent does afterwards is not this process's business; not even dropping it, which could have effects.
        std::mem::forget(std::mem::take(&mut self.after));
        die_with_parent()?;
        let mut go = [0u8; 1];
        let told = loop {
            match nix::unistd::read(&parent, &mut go) {
                Err(Errno::EINTR) => {}
                other => break other,
            }
        };
        self.parent = Some(parent);
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
    /// the change and this call is noticed only if it split in this same process (the socket to it tells).
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
        let Some(parent) = &self.parent else { return };
        let mut fds = [PollFd::new(parent.as_fd(), PollFlags::POLLIN)];
        let hung_up = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
            && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP));
        if hung_up {
            std::process::exit(128 + Signal::SIGKILL as i32);
        }
    }
}

/// Asks the kernel to kill this process when its parent ends (PR_SET_PDEATHSIG).
pub fn die_with_parent() -> Result<()> {
    process::prctl(nix::libc::PR_SET_PDEATHSIG, [Signal::SIGKILL as u64, 0, 0, 0])
        .call(format_args!("prctl(PR_SET_PDEATHSIG, SIGKILL)"))?;
    Ok(())
}

/// The half that waits.
struct Waiter<'a> {
    pid: Pid,
    pidfd: OwnedFd,
    signals: SigSet,
    /// To the child, until it is COMMAND.
    child: Option<OwnedFd>,
    /// To this process's own parent, if it split from one.
    parent: Option<BorrowedFd<'a>>,
    /// Whether it is an init, and whether it reaps what has no other parent, as the first process of a PID namespace must too.
    init: bool,
    reaps_all: bool,
    /// Whether the child has not said that it will never be COMMAND.
    started: bool,
    /// Whether a signal that ends programs was passed on.
    told_to_end: bool,
    relay: Option<Relay>,
    /// Can be read when a signal is there; only while there is something else to wait for.
    pending: Option<SignalFd>,
}

impl<'a> Waiter<'a> {
    fn new(pid: Pid, pidfd: OwnedFd, child: OwnedFd, parent: Option<BorrowedFd<'a>>, init: bool) -> Self {
        let signals = process::forwardable();
        let reaps_all = init || getpid().as_raw() == 1;
        let child = Some(child);
        let (started, told_to_end, relay, pending) = (true, false, None, None);
        Waiter { pid, pidfd, signals, child, parent, init, reaps_all, started, told_to_end, relay, pending }
    }

    /// Waits until the child has ended; forwards signals meanwhile, and SIGTERM as `stop` says. Gives its status, 128+N for
    /// signal N.
    fn wait(&mut self, stop: Option<Stopping>) -> Result<u8> {
        let mut ended_by = None;
        // When it is killed, once it has been asked to end.
        let mut last: Option<Instant> = None;
        // A signal that the child blocked when it was sent, and until when it matters whether it still does.
        let mut doubtful: Option<(i32, Instant)> = None;
        let mut settled = false;
        loop {
            let left = last.map(|last| last.saturating_duration_since(Instant::now()));
            let interval = doubtful.map(|_| DOUBT_INTERVAL);
            let settling = (!settled).then_some(SETTLING);
            let next = self.next(interval.into_iter().chain(left).chain(settling).min());
            if next == Err(Errno::EAGAIN) && !settled {
                settled = true;
                process::let_go_of_code();
            }
            let signal = match next {
                Ok((signal, _)) if signal == Signal::SIGCHLD as i32 => {
                    if let Some(status) = self.reap()? {
                        self.finish();
                        // Unless it ended by itself before.
                        let killed = status == 128 + Signal::SIGKILL as u8;
                        return Ok(ended_by.filter(|_| killed).unwrap_or(status));
                    }
                    continue;
                }
                // COMMAND's terminal has sent it already.
                Ok((signal, TYPED)) => {
                    doubtful = None;
                    signal
                }
                Ok((signal, code)) => {
                    if self.is_for_relay(signal) {
                        continue;
                    }
                    let from_terminal = code == SI_KERNEL;
                    let asked = stop.filter(|_| signal == Signal::SIGTERM as i32 && !from_terminal);
                    let signal = asked.map_or(signal, |stop| stop.signal);
                    if let Some(timeout) = asked.and_then(|stop| stop.timeout) {
                        last = last.or_else(|| Instant::now().checked_add(timeout));
                    }
                    self.pass_on(signal, from_terminal);
                    doubtful = None;
                    signal
                }
                Err(Errno::EAGAIN) if last.is_some_and(|last| last <= Instant::now()) => {
                    trace::note(format_args!("pidfd_send_signal({}, SIGKILL)", self.pid));
                    self.send(Signal::SIGKILL as i32);
                    last = None;
                    continue;
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
            match fate(self.pid, signal) {
                Fate::Taken => doubtful = None,
                Fate::Blocked => {
                    doubtful = doubtful.or_else(|| Some((signal, Instant::now() + DOUBT)));
                }
                Fate::Dropped(Default::End) => {
                    ended_by = Some(128 + signal as u8);
                    self.send(Signal::SIGKILL as i32);
                    doubtful = None;
                }
                Fate::Dropped(Default::Stop) => {
                    self.send_to_job(Signal::SIGSTOP as i32);
                    doubtful = None;
                }
            }
        }
    }

    fn send(&self, signal: i32) {
        let _ = process::pidfd_send_signal(&self.pidfd, signal);
    }

    /// Passes on what was sent to this process alone, to the child alone. What a terminal sent is for a whole job, which a
    /// child in this process's group has got already.
    fn pass_on(&mut self, signal: i32, from_terminal: bool) {
        if signal == Signal::SIGWINCH as i32 || (from_terminal && getpgid(Some(self.pid)) == Ok(getpgrp())) {
            return;
        }
        trace::note(format_args!("pidfd_send_signal({}, {})", self.pid, signal_name(signal)));
        if from_terminal {
            self.send_to_job(signal)
        } else {
            self.send(signal)
        }
        self.told_to_end |= relay::ends_programs(signal);
    }

    /// Sends to the child and, if it leads a group of its own, to all of that.
    fn send_to_job(&self, signal: i32) {
        match Signal::try_from(signal) {
            Ok(signal) if getpgid(Some(self.pid)) == Ok(self.pid) && killpg(self.pid, signal).is_ok() => {}
            _ => self.send(signal),
        }
    }

    /// The next signal and its `si_code`. Meanwhile the child is heard and its terminal relayed. Error EAGAIN: none came
    /// within `limit`.
    fn next(&mut self, limit: Option<Duration>) -> Result<(i32, i32), Errno> {
        let end = limit.map(|limit| Instant::now() + limit);
        // An init is seen to block its signals, see `waits_for_signals`.
        while self.child.is_some() || self.relay.is_some() || self.init {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if let Some(signal) = self.attend(left)? {
                return Ok(signal);
            }
        }
        self.pending = None;
        process::sigwait(&self.signals, limit)
    }

    /// Waits once for a signal, the child or a terminal, and does what is to be done for the latter two.
    fn attend(&mut self, limit: Option<Duration>) -> Result<Option<(i32, i32)>, Errno> {
        if self.pending.is_none() {
            self.pending = Some(SignalFd::with_flags(&self.signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?);
        }
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let [input, master, output] = self.relay.as_ref().map(Relay::wanted).unwrap_or_default();
        let sources = [
            self.pending.as_ref().map(|fd| readable(fd.as_fd())),
            self.child.as_ref().map(|fd| readable(fd.as_fd())),
            input,
            master,
            output,
        ];
        let mut fds: Vec<PollFd<'_>> = sources.iter().flatten().cloned().collect();
        let limit = limit.map_or(Ok(PollTimeout::NONE), PollTimeout::try_from).unwrap_or(PollTimeout::MAX);
        if poll(&mut fds, limit)? == 0 {
            return Err(Errno::EAGAIN);
        }
        let mut polled = fds.iter().map(|fd| fd.any().unwrap_or(false));
        let [signal, child, input, master, output] =
            sources.map(|source| source.is_some() && polled.next().unwrap_or(false));
        if signal {
            return process::sigwait(&self.signals, Some(Duration::ZERO)).map(Some);
        }
        if child {
            self.hear();
        }
        if let Some(relay) = &mut self.relay
            && !relay.carry([input, master, output])
        {
            // The kernel tells COMMAND's session that its terminal has hung up.
            self.relay = None;
        }
        if let Some(signal) = self.relay.as_mut().and_then(|relay| relay.typed(self.pid)) {
            return Ok(Some((signal as i32, TYPED)));
        }
        Ok(None)
    }

    /// Takes what the child says.
    fn hear(&mut self) {
        let Some(child) = &self.child else { return };
        match descriptor::receive(child) {
            Ok((Some(STOPPED), _)) => self.stop(),
            Ok((Some(NOT_STARTED), _)) => self.started = false,
            Ok((Some(TERMINAL), descriptors)) => {
                let Ok([master, slave]) = <[OwnedFd; 2]>::try_from(descriptors) else { return };
                match Relay::start(master, slave) {
                    Ok(relay) => self.relay = Some(relay),
                    Err(error) => {
                        // Not half: without its terminal COMMAND does not run.
                        trace::say(format_args!("{error}"));
                        self.send(Signal::SIGKILL as i32);
                    }
                }
            }
            Ok((Some(_), _)) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok((None, _)) | Err(_) => self.child = None,
        }
    }

    /// Whether `signal` concerns the terminals, not COMMAND; then it has been taken care of.
    fn is_for_relay(&self, signal: i32) -> bool {
        let Some(relay) = &self.relay else { return false };
        match Signal::try_from(signal) {
            Ok(Signal::SIGWINCH) => relay.resize(),
            // Stopped from outside (Ctrl-Z goes to COMMAND's terminal): the caller wants its own back.
            Ok(Signal::SIGTSTP) => {
                relay.suspend();
                let _ = raise(Signal::SIGSTOP);
                relay.resume();
            }
            Ok(Signal::SIGCONT) => {
                relay.resume();
                return false;
            }
            _ => return false,
        }
        true
    }

    /// Stops as COMMAND has, so that the shell sees it; when it goes on, COMMAND does.
    fn stop(&mut self) {
        if let Some(relay) = &mut self.relay {
            relay.catch_up();
            relay.suspend();
        }
        if self.init && getpid().as_raw() == 1 {
            // Nothing inside can stop the first process of a PID namespace. The parent stops for it, and sends SIGCONT.
            if let Some(parent) = self.parent {
                let _ = descriptor::send(parent, STOPPED, &[]);
            }
            return;
        }
        let _ = raise(Signal::SIGSTOP);
        if let Some(relay) = &self.relay {
            relay.resume();
        }
        self.send_to_job(Signal::SIGCONT as i32);
    }

    /// Takes note of what happened to children; the status if it was the end of the one that is waited for.
    fn reap(&mut self) -> Result<Option<u8>> {
        let mut ended = None;
        loop {
            let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WCONTINUED;
            let which = if self.reaps_all { Id::All } else { Id::Pid(self.pid) };
            let status = match waitid(which, flags) {
                // Nothing is left; so COMMAND has ended.
                Err(Errno::ECHILD) if ended.is_some() => return Ok(ended),
                other => other.call(format_args!("waitid({})", self.pid))?,
            };
            let of_command = status.pid() == Some(self.pid);
            match status {
                WaitStatus::Exited(_, code) if of_command => ended = Some(code as u8),
                WaitStatus::Signaled(_, signal, _) if of_command => ended = Some(128 + signal as u8),
                WaitStatus::Stopped(..) if of_command => self.stop(),
                WaitStatus::StillAlive => return Ok(ended),
                _ => {}
            }
            if ended.is_some() && !self.reaps_all {
                return Ok(ended);
            }
        }
    }

    /// What is left to do when COMMAND has ended: its last words, and its output to the end.
    fn finish(&mut self) {
        let waits = |fd: &OwnedFd| {
            let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO) == Ok(1)
        };
        while self.child.as_ref().is_some_and(waits) {
            self.hear();
        }
        if let (Some(relay), Some(pending)) = (self.relay.take(), &self.pending) {
            relay.finish(pending.as_fd(), &self.signals, self.told_to_end);
        }
    }
}

/// `si_code` of what the kernel sends, such as a terminal to its whole foreground group.
const SI_KERNEL: i32 = 0x80;
/// Not of the kernel's: a key that makes a signal was typed on COMMAND's terminal.
const TYPED: i32 = i32::MIN;
/// A child blocks everything for the moment between its making and its start, and a signal that comes then is dropped by
/// the kernel once it no longer blocks it. So it is looked at again, this often, for so long.
const DOUBT_INTERVAL: Duration = Duration::from_millis(5);
const DOUBT: Duration = Duration::from_secs(2);
/// A command that has run for so long runs for longer: from then on waiting takes as little memory as it can.
const SETTLING: Duration = Duration::from_millis(100);

/// What a signal does to a process that neither catches nor ignores it.
enum Default {
    End,
    Stop,
}

/// What became of a signal for a child.
enum Fate {
    /// The child catches, ignores or has it, or is an ordinary process.
    Taken,
    /// It waits until the child no longer blocks it.
    Blocked,
    /// The kernel dropped it, and with it what the default action would have done.
    Dropped(Default),
}

/// The kernel drops a signal without a handler for the first process of a PID namespace (pid_namespaces(7)), and one that
/// stops for a group that no process of its session could continue. People expect Ctrl-C, Ctrl-Z and SIGTERM to work all the
/// same, so we do what the default action would have done.
fn fate(pid: Pid, signal: i32) -> Fate {
    let action = match Signal::try_from(signal) {
        Ok(Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTERM | Signal::SIGALRM) => Default::End,
        Ok(Signal::SIGPIPE | Signal::SIGUSR1 | Signal::SIGUSR2 | Signal::SIGXCPU | Signal::SIGXFSZ) => Default::End,
        Ok(Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU) => Default::Stop,
        _ => return Fate::Taken,
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map_or("", str::trim);
    let ids: Vec<&str> = field("NSpid:").split_whitespace().collect();
    let is_first = ids.len() > 1 && ids.last() == Some(&"1");
    // An init that leads its session has COMMAND in its own group, which no one else of the session could continue.
    let session = getsid(Some(pid));
    let is_orphaned = session == Ok(pid) || session == Ok(getpid()) && getpgid(Some(pid)) == Ok(getpgrp());
    if !(is_first || is_orphaned && matches!(action, Default::Stop)) {
        return Fate::Taken;
    }
    let has = |name: &str| u64::from_str_radix(field(name), 16).is_ok_and(|set| set & 1 << (signal - 1) != 0);
    match (has("SigCgt:") || has("SigIgn:"), has("SigBlk:")) {
        (true, _) => Fate::Taken,
        (false, true) => Fate::Blocked,
        (false, false) if waits_for_signals(pid) => Fate::Taken,
        (false, false) => Fate::Dropped(action),
    }
}

/// Whether `pid` is in sigtimedwait(2), as inits are most of the time: the kernel shows the signals that are waited for as not
/// blocked meanwhile, and does not drop them.
fn waits_for_signals(pid: Pid) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    call.split(' ').next().and_then(|number| number.parse().ok()) == Some(nix::libc::SYS_rt_sigtimedwait)
}

fn signal_name(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |signal| signal.as_str().to_string())
}

/// The names of `CLONE_NEW…` flags, as in clone(2).
pub fn clone_flags(flags: u64) -> String {
    const NAMES: [(u64, &str); 9] = [
        (process::INTO_CGROUP, "CLONE_INTO_CGROUP"),
        (nix::libc::CLONE_NEWUSER as u64, "CLONE_NEWUSER"),
        (nix::libc::CLONE_NEWNS as u64, "CLONE_NEWNS"),
        (nix::libc::CLONE_NEWPID as u64, "CLONE_NEWPID"),
        (nix::libc::CLONE_NEWNET as u64, "CLONE_NEWNET"),
        (nix::libc::CLONE_NEWIPC as u64, "CLONE_NEWIPC"),
        (nix::libc::CLONE_NEWUTS as u64, "CLONE_NEWUTS"),
        (nix::libc::CLONE_NEWCGROUP as u64, "CLONE_NEWCGROUP"),
        (0x80, "CLONE_NEWTIME"),
    ];
    let names: Vec<&str> = NAMES.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, name)| *name).collect();
    if names.is_empty() { "0".into() } else { names.join("|") }
}
