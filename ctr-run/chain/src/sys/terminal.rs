//! Terminals: pseudo-terminals by descriptor, their size, and the controlling terminal (ioctl_tty(2)).

use super::check;
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Rows and columns, and pixels where the terminal knows them.
pub type Size = libc::winsize;

/// The size of a terminal (TIOCGWINSZ).
pub fn size(terminal: impl AsFd) -> Result<Size, Errno> {
    let mut size = Size { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes a `struct winsize`, which outlives the call.
    check(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }.into())?;
    Ok(size)
}

/// Sets the size of a terminal (TIOCSWINSZ); a change raises SIGWINCH in its foreground group.
pub fn set_size(terminal: impl AsFd, size: Size) -> Result<(), Errno> {
    // SAFETY: the kernel reads a `struct winsize`, which outlives the call.
    check(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into()).map(drop)
}

/// The other side of the pseudo-terminal `master` (an open /dev/ptmx), whatever is mounted at /dev/pts: TIOCSPTLCK and
/// TIOCGPTPEER (Linux 4.13). It does not become the controlling terminal.
pub fn open_peer(master: impl AsFd) -> Result<OwnedFd, Errno> {
    let master = master.as_fd().as_raw_fd();
    let locked: libc::c_int = 0;
    // SAFETY: the kernel reads an int, which outlives the call.
    check(unsafe { libc::ioctl(master, libc::TIOCSPTLCK, &raw const locked) }.into())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: this request takes flags and gives a new descriptor.
    let slave = check(unsafe { libc::ioctl(master, libc::TIOCGPTPEER, flags) }.into())?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(slave as i32) })
}

/// Makes `terminal` the controlling terminal of this session, whose leader this process is (TIOCSCTTY). Error EPERM: the
/// session has one, or the terminal is another session's.
pub fn make_controlling(terminal: impl AsFd) -> Result<(), Errno> {
    // SAFETY: this request takes a number.
    check(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}
