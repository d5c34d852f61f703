//! A terminal that a test types on and looks at.

use crate::{DEADLINE, Scratch, bin_dir, wait_until};
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{Termios, tcgetattr};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::fchown;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// The caller's terminal: the test holds both sides of it.
pub struct Terminal {
    master: File,
    slave: OwnedFd,
    seen: Arc<Mutex<Vec<u8>>>,
}

nix::ioctl_write_ptr_bad!(
    /// Sets a terminal's size.
    set_window_size,
    nix::libc::TIOCSWINSZ,
    Winsize
);

impl Terminal {
    /// One of this size, that belongs to who runs the tools in `scratch`.
    pub fn new(scratch: &Scratch, rows: u16, columns: u16) -> Self {
        let pair = openpty(&size(rows, columns), None).expect("openpty");
        fchown(&pair.slave, Some(scratch.who.uid()), Some(scratch.who.gid())).expect("chown");
        for fd in [&pair.master, &pair.slave] {
            let flag = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
            nix::fcntl::fcntl(fd, flag).expect("F_SETFD");
        }
        let master = File::from(pair.master);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, sink) = (master.try_clone().expect("dup"), seen.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut bytes) {
                sink.lock().expect("lock").extend_from_slice(&bytes[..length]);
            }
        });
        Terminal { master, slave: pair.slave, seen }
    }

    /// `program` with this as its controlling terminal, and as its stdin, stdout and stderr; not started yet. As after a login,
    /// no signal is ignored, whoever runs the tests.
    pub fn command(&self, scratch: &Scratch, program: &str) -> Command {
        let mut command = scratch.command("setsid");
        let tool = bin_dir().join(program);
        command.args(["--ctty", "--", "env", "--default-signal"]).arg(if tool.is_file() {
            tool
        } else {
            program.into()
        });
        command.stdin(self.stdio()).stdout(self.stdio()).stderr(self.stdio()).env("TERM", "dumb");
        command
    }

    /// This as one of a command's standard descriptors.
    pub fn stdio(&self) -> Stdio {
        Stdio::from(self.slave.try_clone().expect("dup"))
    }

    /// Starts `program` with `args` on it.
    pub fn spawn(&self, scratch: &Scratch, program: &str, args: &[&str]) -> Child {
        self.command(scratch, program).args(args).spawn().expect("setsid")
    }

    /// The number of a descriptor of it, as programs on it have it, in this process.
    pub fn descriptor(&self) -> i32 {
        self.slave.as_raw_fd()
    }

    /// Types.
    pub fn type_keys(&self, keys: &str) {
        (&self.master).write_all(keys.as_bytes()).expect("type");
    }

    /// All that was shown.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().expect("lock")).into_owned()
    }

    /// Waits until `text` is shown.
    #[track_caller]
    pub fn expect(&self, text: &str) {
        assert!(wait_until(DEADLINE, || self.shown().contains(text)), "{text:?} is not shown: {:?}", self.shown());
    }

    /// Its mode.
    pub fn mode(&self) -> Termios {
        tcgetattr(&self.slave).expect("tcgetattr")
    }

    /// Waits until it is in raw mode (no echo, no signals), or is not.
    #[track_caller]
    pub fn expect_raw(&self, raw: bool) {
        use nix::sys::termios::LocalFlags;
        let is_raw = || !self.mode().local_flags.intersects(LocalFlags::ISIG | LocalFlags::ECHO | LocalFlags::ICANON);
        assert!(wait_until(DEADLINE, || is_raw() == raw), "raw is not {raw}: {:?}", self.shown());
    }

    /// Changes its size.
    pub fn resize(&self, rows: u16, columns: u16) {
        // SAFETY: the kernel reads a `struct winsize`, which outlives the call.
        unsafe { set_window_size(self.master.as_raw_fd(), &size(rows, columns)) }.expect("TIOCSWINSZ");
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
