//! How far it is, on a terminal.

use chain::size::display;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// A line on stderr that is renewed, if that is a terminal.
pub struct Progress {
    shown: bool,
    total: u64,
    read: AtomicU64,
    ended: AtomicBool,
    start: Instant,
}

impl Progress {
    /// Of `total` compressed bytes; silent if `quiet`, or where no one looks.
    pub fn new(total: u64, quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        Progress { shown, total, read: AtomicU64::new(0), ended: AtomicBool::new(false), start: Instant::now() }
    }

    /// `bytes` more have been read.
    pub fn read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Relaxed);
    }

    /// `bytes` need not be read.
    pub fn skip(&self, bytes: u64) {
        self.read(bytes);
    }

    /// All is done, or has failed.
    pub fn end(&self) {
        self.ended.store(true, Relaxed);
    }

    /// Shows it until the end, from a thread of its own, which is woken then.
    pub fn run(&self) {
        let mut wide = false;
        while self.shown && !self.ended.load(Relaxed) {
            thread::park_timeout(Duration::from_millis(200));
            let read = self.read.load(Relaxed);
            let rate = read as f64 / self.start.elapsed().as_secs_f64().max(0.001);
            let line =
                format!("\rimg-unpack: {} of {}, {}/s\x1b[K", display(read), display(self.total), display(rate as u64));
            let _ = std::io::stderr().write_all(line.as_bytes());
            wide = true;
        }
        if wide {
            let _ = std::io::stderr().write_all(b"\r\x1b[K");
        }
    }
}
