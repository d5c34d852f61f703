//! `--tty`: a terminal of its own for COMMAND.
//!
//! The parent that waits outside carries between it and the caller's terminal ([`Chain::hand_over_terminal`]), so nothing
//! inside ever holds the caller's: what could be put into its input or shown on it would be the caller's doing.

use chain::error::{Error, Result, ResultExt};
use chain::link::{Forked, callers_terminal};
use chain::sys::terminal::{self, Size};
use chain::trace::{note, op};
use chain::{Chain, Outcome};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::termios::{InputFlags, SetArg, SpecialCharacterIndices, tcgetattr, tcsetattr};
use nix::unistd::{Uid, dup2_stderr, dup2_stdin, dup2_stdout, fchown, getpid, getsid, setsid};
use std::os::fd::OwnedFd;

/// What COMMAND's terminal takes over from the caller's.
#[derive(Clone, Copy)]
pub struct Manner {
    size: Option<Size>,
    /// Characters of several bytes are erased as one.
    utf8: bool,
    /// The key that erases.
    erase: u8,
}

impl Manner {
    /// Of the caller's terminal. Error: the caller has none.
    pub fn of_caller() -> Result<Self> {
        let terminal = callers_terminal().ok_or_else(|| {
            Error::new("--tty: neither stdin, stdout nor stderr is a terminal, and there is no /dev/tty")
                .hint("leave --tty out, or run this from a terminal (script(1) makes one)")
        })?;
        let mode = tcgetattr(&terminal).call(format_args!("tcgetattr(terminal)"))?;
        Ok(Manner {
            size: terminal::size(&terminal).ok(),
            utf8: mode.input_flags.contains(InputFlags::IUTF8),
            erase: mode.control_chars[SpecialCharacterIndices::VERASE as usize],
        })
    }

    fn take_over(&self, slave: &OwnedFd) -> Result<()> {
        let mut mode = tcgetattr(slave).call(format_args!("tcgetattr(pty)"))?;
        mode.input_flags.set(InputFlags::IUTF8, self.utf8);
        mode.control_chars[SpecialCharacterIndices::VERASE as usize] = self.erase;
        tcsetattr(slave, SetArg::TCSANOW, &mode).call(format_args!("tcsetattr(pty)"))?;
        match self.size {
            Some(size) => terminal::set_size(slave, size).call(format_args!("ioctl(pty, TIOCSWINSZ)")),
            None => Ok(()),
        }
    }
}

/// A pseudo-terminal, both sides.
pub struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
}

impl Terminal {
    /// A new one, of the devpts that is mounted at /dev/pts here. Error: there is none that can be used.
    pub fn open(manner: &Manner) -> Result<Self> {
        let own = Terminal::of("/dev/ptmx").or_else(|error| Terminal::of("/dev/pts/ptmx").map_err(|_| error))?;
        manner.take_over(&own.slave)?;
        Ok(own)
    }

    fn of(path: &str) -> Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = op(format_args!("open({path:?}, O_RDWR|O_NOCTTY)"), || open(path, flags, Mode::empty()))?;
        let slave = op(format_args!("ioctl({path:?}, TIOCGPTPEER)"), || terminal::open_peer(&master))?;
        Ok(Terminal { master, slave })
    }

    /// Gives it to the user that COMMAND runs as, so that it can be opened again by name. One whose file system does not know
    /// the user stays as it is.
    pub fn belong_to(&self, user: u32) {
        if let Err(error) =
            op(format_args!("fchown(pty, {user})"), || fchown(&self.slave, Some(Uid::from_raw(user)), None))
        {
            note(format_args!("{error}; the terminal cannot be opened again by its name"));
        }
    }

    /// Hands it over to be relayed, and makes it this process's stdin, stdout and stderr. This process leaves the caller's
    /// session, if it has not yet.
    pub fn take(self, chain: &Chain) -> Result<()> {
        chain.hand_over_terminal(&self.master, &self.slave)?;
        lead_session()?;
        op(format_args!("dup2(pty, 0, 1, 2)"), || {
            dup2_stdin(&self.slave)?;
            dup2_stdout(&self.slave)?;
            dup2_stderr(&self.slave)
        })
    }
}

/// Splits if nobody waits yet who could relay. Gives an outcome only in the process that stayed behind.
pub fn stay_outside(chain: &mut Chain) -> Result<Option<Outcome>> {
    if chain.has_parent() {
        return Ok(None);
    }
    match chain.fork(0, |_| Ok(()))? {
        Forked::Parent(outcome) => Ok(Some(outcome)),
        Forked::Child => Ok(None),
    }
}

/// Makes the terminal on stdin the controlling terminal of this process's own session, which is what gives Ctrl-C, Ctrl-Z and
/// a shell's job control something to work on.
pub fn control() -> Result<()> {
    lead_session()?;
    op(format_args!("ioctl(0, TIOCSCTTY)"), || terminal::make_controlling(std::io::stdin()))
}

fn lead_session() -> Result<()> {
    match op(format_args!("setsid()"), setsid) {
        Err(error) if error.errno() == Some(Errno::EPERM) && getsid(None) == Ok(getpid()) => Ok(()),
        other => other.map(drop),
    }
}
