//! Becoming the next COMMAND of a chain, and staying behind for it where that is needed.
//!
//! A link is a function from arguments to effects. [`Chain::exec`] is the one place that decides whether the next link is
//! called in this process (one of ours, given to [`main!`](crate::main!)) or executed.
//!
//! Who has something to do when COMMAND has ended (remove a group, a writable layer) says so with [`Chain::after`], and
//! goes on. The first link that needs a new process ([`Chain::fork`]: a PID namespace), or else [`Chain::exec`] itself,
//! splits: the parent stays, waits and cleans up for all links before it; the child goes on.

pub mod apart;
mod exec;
mod relay;
mod wait;

pub use relay::callers_terminal;
pub use wait::{Forked, Stopping, clone_flags};

use crate::args::Stop;
use crate::error::{Error, Result};
use crate::tool::{Outcome, Tool};
use crate::trace;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

type BeforeHook = Box<dyn FnOnce() -> Result<()>>;
type AfterHook = Box<dyn FnOnce(Option<u8>)>;
type SplitHook = Box<dyn FnOnce(u64) -> Result<()>>;

/// What the links of a chain share while they run in one process.
pub struct Chain {
    links: &'static [&'static Tool],
    at_split: Vec<SplitHook>,
    group: Option<OwnedFd>,
    before: Vec<BeforeHook>,
    after: Vec<AfterHook>,
    parent: Option<OwnedFd>,
    stop: Option<Stopping>,
    pid_file: Option<PathBuf>,
    own_mounts: bool,
    environment: Option<Vec<CString>>,
}

/// The directories that a COMMAND without a slash is looked for in when there is no PATH.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Chain {
    /// A chain that calls `links` in this process.
    pub fn new(links: &'static [&'static Tool]) -> Self {
        let (at_split, before, after) = (Vec::new(), Vec::new(), Vec::new());
        let (stop, pid_file) = (None, None);
        let (group, parent, environment) = (None, None, None);
        Chain { links, at_split, group, before, after, parent, stop, pid_file, own_mounts: false, environment }
    }

    /// Lets `tool` do its part with `args`.
    pub fn enter(&mut self, tool: &Tool, args: &[OsString]) -> Result<Outcome, Stop> {
        trace::speak_as(tool.name);
        (tool.run)(self, args)
    }

    /// Becomes `command` (name and arguments). Returns only on failure, or with the status of a COMMAND that ran in a
    /// child because something is to be done [`Chain::after`] it.
    ///
    /// Errors: 127 not found, 126 found but not runnable, naming the missing interpreter or loader.
    pub fn exec(&mut self, command: &[OsString]) -> Result<Outcome> {
        let Some(name) = command.first() else {
            return Err(Error::usage("no COMMAND"));
        };
        if let Some(link) = self.links.iter().find(|link| name.as_os_str() == link.name) {
            return self.enter(link, &command[1..]).or_else(|stop| match stop {
                Stop::Show(text) => Ok(Outcome::Text(text)),
                Stop::Fail(error) => Err(error),
            });
        }
        if self.will_split() {
            match self.fork(0, |_| Ok(()))? {
                Forked::Parent(outcome) => return Ok(outcome),
                Forked::Child => {}
            }
        }
        Err(exec::become_command(command, self.environment.as_deref()))
    }

    /// COMMAND's environment, instead of this process's.
    pub fn set_environment(&mut self, entries: Vec<CString>) {
        self.environment = Some(entries);
    }

    /// From here on every COMMAND is executed: the root has been entered, and what has a tool's name in it is the root's own.
    pub fn leave_links(&mut self) {
        self.links = &[];
    }

    /// The environment that COMMAND will have, as far as the links before have decided it.
    pub fn environment(&self) -> Vec<CString> {
        self.environment.clone().unwrap_or_else(crate::sys::process::environment)
    }

    /// Whether only processes of this chain are in the mount namespace that a link has just entered.
    pub fn set_own_mounts(&mut self, own: bool) {
        self.own_mounts = own;
    }

    /// Whether a link in this process has made the mount namespace, so that its root may be changed.
    pub fn has_own_mounts(&self) -> bool {
        self.own_mounts
    }

    /// Whether COMMAND will run in a child because of what a link before asked for ([`Chain::in_child`],
    /// [`Chain::after`], [`Chain::stop_with`], [`Chain::note_child`]).
    pub fn will_split(&self) -> bool {
        let waits_anyway = self.stop.is_some() || self.pid_file.is_some();
        waits_anyway || self.group.is_some() || !self.before.is_empty() || !self.after.is_empty()
    }

    /// The process that will wait does this just before it splits; it gets the `CLONE_NEW…` flags. Does not itself cause a
    /// split.
    pub fn at_split(&mut self, hook: impl FnOnce(u64) -> Result<()> + 'static) {
        self.at_split.push(Box::new(hook));
    }

    /// The child that runs COMMAND starts in this cgroup, given as a descriptor of its directory in the unified hierarchy
    /// (clone3(2), CLONE_INTO_CGROUP). Joining it later would stop all processes of the machine from forking for a while.
    pub fn in_group(&mut self, dir: OwnedFd) {
        self.group = Some(dir);
    }

    /// The child that runs COMMAND does this first. For what must not touch the parent that waits, such as joining a
    /// cgroup.
    pub fn in_child(&mut self, hook: impl FnOnce() -> Result<()> + 'static) {
        self.before.push(Box::new(hook));
    }

    /// How the parent that waits asks COMMAND to end when it is itself told to (SIGTERM).
    pub fn stop_with(&mut self, stop: Stopping) {
        self.stop = Some(stop);
    }

    /// The parent that waits writes its child's process number to `file` before the child goes on.
    pub fn note_child(&mut self, file: PathBuf) {
        self.pid_file = Some(file);
    }

    /// The parent does this when COMMAND has ended (with its status, or `None` if it never started), last asked for first.
    /// It is done too when a later link fails. The tool that asks speaks then, as it does now.
    pub fn after(&mut self, hook: impl FnOnce(Option<u8>) + 'static) {
        let voice = trace::voice();
        self.after.push(Box::new(move |status| {
            voice.resume();
            hook(status);
        }));
    }

    /// Does what was asked for with [`Chain::after`], for a COMMAND that never started.
    pub fn unwind(&mut self) {
        self.run_after(None);
    }

    fn run_after(&mut self, status: Option<u8>) {
        while let Some(hook) = self.after.pop() {
            hook(status);
        }
    }
}

/// What the kernel would start to run `file`: the program of its `#!` line, or its ELF loader.
pub fn interpreter(file: &File) -> Option<OsString> {
    exec::interpreter(file)
}

/// Where `name` would be found: in `path` (`:`-separated, an empty part is the current directory) unless it has a slash.
pub fn candidates(name: &OsString, path: &[u8]) -> Vec<PathBuf> {
    exec::candidates(name, path)
}
