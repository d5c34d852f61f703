//! COMMAND's own terminal, carried to and from the caller's by the half that waits.
//!
//! The caller's terminal is in raw mode meanwhile, so that each key, Ctrl-C and Ctrl-Z too, reaches COMMAND's terminal,
//! which makes the signals that belong to it. The mode is put back when COMMAND has ended, when this process stops, and by a
//! guardian process if this one is killed.

use crate::error::{Error, Result, ResultExt};
use crate::sys::process::{self, Side};
use crate::sys::{descriptor, terminal};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpgrp, isatty, pipe2, read, tcgetpgrp, write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// What is carried at a time. A pipe that can be written to takes as much at once (`PIPE_BUF`).
const CHUNK: usize = 4096;

/// More than a terminal's buffers hold: what is read of it at most after COMMAND has ended, lest a process that it left
/// behind keeps us.
const LAST: usize = 256 << 10;

/// Milliseconds.
const HURRY: u16 = 500;

/// Ctrl-D: what a terminal takes for the end of input.
const END_OF_INPUT: u8 = 4;

/// A relay at work.
pub struct Relay {
    master: OwnedFd,
    /// Held so that COMMAND may close its terminal and open it again.
    _slave: OwnedFd,
    /// `None` once it has ended.
    input: Option<OwnedFd>,
    output: OwnedFd,
    screen: Option<Screen>,
    to_command: Flow,
    to_caller: Flow,
    /// Whether what was last read of the input was not the end of a line.
    within_line: bool,
    /// A key among what was last read that makes a signal.
    typed: Option<Signal>,
}

/// Bytes on their way.
#[derive(Default)]
struct Flow {
    bytes: Vec<u8>,
    written: usize,
}

/// The terminal that the caller looks at.
struct Screen {
    terminal: OwnedFd,
    keyboard: Option<Keyboard>,
}

/// The caller's terminal as what is typed on.
struct Keyboard {
    saved: Termios,
    raw: Termios,
    guardian: Option<Guardian>,
}

/// A process that waits for the end of this one.
struct Guardian {
    pid: Pid,
    lifeline: OwnedFd,
}

/// The terminal that the caller has: the first of the standard descriptors that is one, else the controlling terminal.
pub fn callers_terminal() -> Option<OwnedFd> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let standard = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    match standard.into_iter().find(|fd| isatty(fd).unwrap_or(false)) {
        Some(fd) => own_description(fd, OFlag::O_RDWR).ok(),
        None => open("/dev/tty", OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty()).ok(),
    }
}

impl Relay {
    /// Starts to carry between `master` and this process's stdin and stdout. Error: a terminal that cannot be asked or set.
    pub fn start(master: OwnedFd, slave: OwnedFd) -> Result<Self> {
        // Where COMMAND can see this process, it shall not reach the caller's terminal through it (ptrace(2), /proc).
        process::prctl(nix::libc::PR_SET_DUMPABLE, [0; 4]).call(format_args!("prctl(PR_SET_DUMPABLE, 0)"))?;
        let stdin = std::io::stdin();
        let typed = isatty(&stdin).unwrap_or(false);
        nix::fcntl::fcntl(&master, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .call(format_args!("fcntl(F_SETFL, O_NONBLOCK)"))?;
        let mut relay = Relay {
            input: Some(own_description(stdin.as_fd(), OFlag::O_RDONLY)?),
            output: own_description(std::io::stdout().as_fd(), OFlag::O_WRONLY)?,
            screen: callers_terminal().map(|terminal| Screen { terminal, keyboard: None }),
            master,
            _slave: slave,
            to_command: Flow::default(),
            to_caller: Flow::default(),
            within_line: false,
            typed: None,
        };
        if let Some(screen) = relay.screen.as_mut().filter(|_| typed) {
            screen.wait_for_foreground();
            screen.keyboard = Some(Keyboard::grab(&screen.terminal)?);
        }
        relay.resize();
        Ok(relay)
    }

    /// Gives COMMAND's terminal the size of the caller's. A terminal that is gone keeps the last.
    pub fn resize(&self) {
        if let Some(size) = self.screen.as_ref().and_then(|screen| terminal::size(&screen.terminal).ok()) {
            let _ = terminal::set_size(&self.master, size);
        }
    }

    /// Shows what COMMAND has written so far, as far as that goes without waiting.
    pub fn catch_up(&mut self) {
        let mut rest = LAST;
        while rest > 0 {
            if self.to_caller.is_empty() {
                match self.to_caller.fill(&self.master) {
                    Ok(length @ 1..) => rest = rest.saturating_sub(length),
                    _ => return,
                }
            }
            let mut fds = [PollFd::new(self.output.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut fds, PollTimeout::ZERO) != Ok(1) || self.to_caller.empty(&self.output).is_err() {
                return;
            }
        }
    }

    /// Gives the caller's terminal back for a while.
    pub fn suspend(&self) {
        if let Some(screen) = &self.screen {
            screen.set(|keyboard| &keyboard.saved);
        }
    }

    /// Takes it again.
    pub fn resume(&self) {
        if let Some(screen) = self.screen.as_ref().filter(|screen| screen.keyboard.is_some()) {
            screen.wait_for_foreground();
            screen.set(|keyboard| &keyboard.raw);
        }
        self.resize();
    }

    /// What to wait for: input, COMMAND's terminal, output; each only where it matters now.
    pub fn wanted(&self) -> [Option<PollFd<'_>>; 3] {
        let mut of_master = PollFlags::empty();
        of_master.set(PollFlags::POLLIN, self.to_caller.is_empty());
        of_master.set(PollFlags::POLLOUT, !self.to_command.is_empty());
        let input = self.input.as_ref().filter(|_| self.to_command.is_empty());
        [
            input.map(|input| PollFd::new(input.as_fd(), PollFlags::POLLIN)),
            (!of_master.is_empty()).then(|| PollFd::new(self.master.as_fd(), of_master)),
            (!self.to_caller.is_empty()).then(|| PollFd::new(self.output.as_fd(), PollFlags::POLLOUT)),
        ]
    }

    /// Carries what it can, without waiting. `ready` says what of [`Relay::wanted`] is. Gives whether there is a caller
    /// still: its terminal may have hung up, or the reader of its output be gone.
    pub fn carry(&mut self, ready: [bool; 3]) -> bool {
        let [input, master, output] = ready;
        if input && !self.take_input() {
            return false;
        }
        if master {
            if self.to_caller.is_empty() {
                let _ = self.to_caller.fill(&self.master);
            }
            let _ = self.to_command.empty(&self.master);
        }
        !output || self.to_caller.empty(&self.output).is_ok()
    }

    /// The signal that was typed for the group of `pid`, once COMMAND's terminal has it: the kernel drops it where `pid` is
    /// the first process of its namespace.
    pub fn typed(&mut self, pid: Pid) -> Option<Signal> {
        if !self.to_command.is_empty() {
            return None;
        }
        self.typed.take().filter(|_| tcgetpgrp(&self.master) == Ok(pid))
    }

    fn take_input(&mut self) -> bool {
        let Some(input) = &self.input else { return true };
        match self.to_command.fill(input) {
            Ok(1..) => {
                self.within_line = self.to_command.bytes.last() != Some(&b'\n');
                self.typed = signal_of(&self.to_command.bytes, &self.master);
                return true;
            }
            Err(Errno::EAGAIN | Errno::EINTR) => return true,
            _ => self.input = None,
        }
        if self.screen.as_ref().is_some_and(|screen| screen.keyboard.is_some()) {
            // In raw mode no key means the end: the terminal is gone.
            return false;
        }
        // At the start of a line it means the end of input; elsewhere it only ends the line.
        let times = if self.within_line { 2 } else { 1 };
        self.to_command.bytes.extend(std::iter::repeat_n(END_OF_INPUT, times));
        true
    }

    /// Carries what is left of COMMAND's output, unless one of the signals that end programs comes in between; `signals` can
    /// be read when any does. If one has come already (`hurried`), does not wait long for who does not take it.
    pub fn finish(mut self, signals: BorrowedFd<'_>, set: &SigSet, hurried: bool) {
        let patience = if hurried { PollTimeout::from(HURRY) } else { PollTimeout::NONE };
        let mut rest = LAST;
        loop {
            if self.to_caller.is_empty() {
                match self.to_caller.fill(&self.master) {
                    Ok(length @ 1..) if rest > 0 => rest = rest.saturating_sub(length),
                    Err(Errno::EINTR) => continue,
                    _ => return,
                }
            }
            let mut fds =
                [PollFd::new(self.output.as_fd(), PollFlags::POLLOUT), PollFd::new(signals, PollFlags::POLLIN)];
            if poll(&mut fds, patience) == Ok(0) {
                return;
            }
            let [writable, signal] = fds.map(|fd| fd.any().unwrap_or(false));
            if signal && process::sigwait(set, Some(Duration::ZERO)).is_ok_and(|(signal, _)| ends_programs(signal)) {
                return;
            }
            if writable && self.to_caller.empty(&self.output).is_err() {
                return;
            }
        }
    }
}

/// The signal that one of these keys makes on `terminal`, as its mode is now (termios(3)).
fn signal_of(keys: &[u8], terminal: &OwnedFd) -> Option<Signal> {
    use SpecialCharacterIndices::{VINTR, VQUIT, VSUSP};
    // 0 stands for no key at all.
    let control = |key: &&u8| key.is_ascii_control() && **key != 0;
    // Hardly ever there: the mode is asked only then.
    keys.iter().find(control)?;
    let mode = tcgetattr(terminal).ok().filter(|mode| mode.local_flags.contains(LocalFlags::ISIG))?;
    let made = [(VINTR, Signal::SIGINT), (VQUIT, Signal::SIGQUIT), (VSUSP, Signal::SIGTSTP)];
    let of = |key: &u8| {
        made.iter().find(|(index, _)| mode.control_chars[*index as usize] == *key).map(|(_, signal)| *signal)
    };
    keys.iter().rev().filter(control).find_map(of)
}

/// Whether `signal` is one by which people and machines ask a program to end.
pub fn ends_programs(signal: i32) -> bool {
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM].iter().any(|&end| end as i32 == signal)
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.suspend();
    }
}

impl Flow {
    fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }

    /// Reads once into what is empty.
    fn fill(&mut self, from: &OwnedFd) -> Result<usize, Errno> {
        self.written = 0;
        self.bytes.resize(CHUNK, 0);
        let result = read(from, &mut self.bytes);
        self.bytes.truncate(*result.as_ref().unwrap_or(&0));
        result
    }

    /// Writes once of what is there. Not being able to now is no error.
    fn empty(&mut self, to: &OwnedFd) -> Result<(), Errno> {
        if self.is_empty() {
            return Ok(());
        }
        match write(to, &self.bytes[self.written..]) {
            Ok(length) => self.written += length,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }
}

impl Screen {
    /// As the kernel does with a background job that wants the terminal: stops until the job is in the foreground. Where
    /// there is no job control, goes on.
    fn wait_for_foreground(&self) {
        while tcgetpgrp(&self.terminal).is_ok_and(|group| group != getpgrp()) {
            let _ = raise(Signal::SIGSTOP);
        }
    }

    fn set(&self, mode: impl FnOnce(&Keyboard) -> &Termios) {
        if let Some(keyboard) = &self.keyboard {
            let _ = tcsetattr(&self.terminal, SetArg::TCSANOW, mode(keyboard));
        }
    }
}

impl Keyboard {
    /// Puts the terminal in raw mode, once somebody is there to put it back.
    fn grab(terminal: &OwnedFd) -> Result<Self> {
        let get = || tcgetattr(terminal).call(format_args!("tcgetattr(terminal)"));
        let saved = get()?;
        let mut raw = saved.clone();
        cfmakeraw(&mut raw);
        let guardian = Some(Guardian::start(terminal, &saved, &raw)?);
        tcsetattr(terminal, SetArg::TCSANOW, &raw).call(format_args!("tcsetattr(terminal, raw)"))?;
        Ok(Keyboard { saved, raw, guardian })
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        if let Some(Guardian { pid, lifeline }) = self.guardian.take() {
            drop(lifeline);
            let _ = waitpid(pid, None);
        }
    }
}

impl Guardian {
    /// A process that puts `saved` back if this one ends and has left the terminal in raw mode. It blocks what signals can be
    /// blocked, as this process does, is in a group of its own, so that a signal for the job does not end it, and holds
    /// nothing but the terminal.
    fn start(terminal: &OwnedFd, saved: &Termios, raw: &Termios) -> Result<Self> {
        let (reader, lifeline) = pipe2(OFlag::O_CLOEXEC).call(format_args!("pipe2()"))?;
        match process::clone3(0).call(format_args!("clone3(0)"))? {
            Side::Parent(pid, _) => Ok(Guardian { pid, lifeline }),
            Side::Child => {
                let _ = nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0));
                let _ = descriptor::close_all_but(0, &[reader.as_fd(), terminal.as_fd()]);
                while read(&reader, &mut [0u8; 1]) == Err(Errno::EINTR) {}
                if tcgetattr(terminal).is_ok_and(|now| same_mode(&now, raw)) {
                    let _ = tcsetattr(terminal, SetArg::TCSANOW, saved);
                }
                process::leave(0)
            }
        }
    }
}

fn same_mode(a: &Termios, b: &Termios) -> bool {
    (a.input_flags, a.output_flags, a.local_flags) == (b.input_flags, b.output_flags, b.local_flags)
}

/// Another open file description of the same file where that is a terminal or a pipe, so that it can be non-blocking without
/// being so for others that share the first. KERNEL(all): where it cannot be opened again (another user's terminal), the
/// same one; it is asked before each use, and may still block if somebody else is quicker.
fn own_description(fd: BorrowedFd<'_>, access: OFlag) -> Result<OwnedFd> {
    let kind = fstat(fd).map(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT);
    if matches!(kind, Ok(SFlag::S_IFCHR | SFlag::S_IFIFO)) {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = access | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        if let Ok(own) = open(path.as_str(), flags, Mode::empty()) {
            return Ok(own);
        }
    }
    fd.try_clone_to_owned()
        .map_err(|error| Error::call(format_args!("fcntl({}, F_DUPFD_CLOEXEC)", fd.as_raw_fd()), error))
}
