//! The harness: the built programs, run as root and as an ordinary user, in a directory of their own.
//!
//! A test makes a [`Scratch`] for each [`Who`] it runs as, and runs tools in it. When the scratch goes, nothing may be
//! left: no mount below it, no process started from it, no cgroup with its name.

pub mod image;
pub mod rootfs;
pub mod terminal;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The six tools.
pub const TOOLS: [&str; 6] = ["img-unpack", "layer-mount", "vol-bind", "cg-limit", "ns-enter", "ctr-run"];

/// Longer than anything that works takes, on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Who runs the tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Root of the machine.
    Root,
    /// An ordinary user with subordinate ids: the caller, or `$CTR_TEST_USER` (`ctr-test`) if the caller is root.
    User,
}

impl Who {
    /// All who can be had: both if the caller is root.
    pub fn all() -> Vec<Who> {
        if is_root() { vec![Who::Root, Who::User] } else { vec![Who::User] }
    }

    /// The ids to run as, if not the caller's.
    fn ids(self) -> Option<(u32, u32)> {
        (self == Who::User && is_root()).then(test_user)
    }

    /// User id of the tools that run so.
    pub fn uid(self) -> u32 {
        self.ids().map_or_else(|| nix::unistd::geteuid().as_raw(), |(uid, _)| uid)
    }

    /// Group id of the tools that run so.
    pub fn gid(self) -> u32 {
        self.ids().map_or_else(|| nix::unistd::getegid().as_raw(), |(_, gid)| gid)
    }
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn test_user() -> (u32, u32) {
    let name = std::env::var("CTR_TEST_USER").unwrap_or_else(|_| "ctr-test".into());
    let user = nix::unistd::User::from_name(&name).ok().flatten();
    let user = user.unwrap_or_else(|| panic!("no user {name:?}: tests/run makes it, or set CTR_TEST_USER"));
    (user.uid.as_raw(), user.gid.as_raw())
}

/// Where the built programs are: `$CTR_BIN`, else beside the test program.
pub fn bin_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        std::env::var_os("CTR_BIN").map(PathBuf::from).unwrap_or_else(|| {
            let exe = std::env::current_exe().expect("own path");
            exe.ancestors().nth(2).expect("target folder").to_path_buf()
        })
    })
}

/// A file or folder of the project, from the top level.
pub fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("workspace").join(path)
}

/// An image that another program made: in `$CTR_TEST_IMAGES`, else in `../shared/images` beside the project. `None` (after
/// telling that the test is skipped) if there is none.
pub fn real_image(name: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("CTR_TEST_IMAGES").map(PathBuf::from).unwrap_or_else(|| project("../shared/images"));
    let path = dir.join(name);
    if path.exists() {
        return Some(path);
    }
    skip("real images", &format!("{name} is not there; set CTR_TEST_IMAGES"));
    None
}

/// Says that (a part of) a test is skipped. In CI (`CI=true`) only what `tests/skips` lists may be.
pub fn skip(what: &str, why: &str) {
    let line = format!("skipped: {what}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    let listed = include_str!("../skips").lines().any(|known| known.trim() == what);
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true") || listed, "{what} may not be skipped in CI: {why}");
}

/// Whether `program` is installed; if not, tells that the test is skipped.
pub fn has(program: &str) -> bool {
    let found = std::env::split_paths(&test_path()).any(|dir| dir.join(program).is_file());
    if !found {
        skip(program, "not installed");
    }
    found
}

fn test_path() -> OsString {
    let mut path = OsString::from(bin_dir());
    path.push(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path
}

/// A directory for one test, that belongs to who runs the tools, with a store and a home of its own.
pub struct Scratch {
    /// Who runs the tools here.
    pub who: Who,
    dir: PathBuf,
    token: String,
}

impl Scratch {
    /// A new scratch directory for `who`.
    pub fn new(who: Who) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let token = format!("ctr-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&token);
        let scratch = Scratch { who, dir, token };
        for path in ["", "home", "tmp"] {
            scratch.mkdir(path);
        }
        fs::set_permissions(&scratch.dir, fs::Permissions::from_mode(0o755)).expect("chmod");
        scratch
    }

    /// Its path, or that of something in it.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        if name.as_ref().as_os_str().is_empty() { self.dir.clone() } else { self.dir.join(name) }
    }

    /// A name that no other test has: for groups, hosts, containers.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Where its store is.
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Makes a directory (with parents) that belongs to who runs the tools.
    pub fn mkdir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("mkdir");
        self.give(&path);
        path
    }

    /// Writes a file that belongs to who runs the tools.
    pub fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("write");
        self.give(&path);
        path
    }

    /// Gives `path` to who runs the tools.
    pub fn give(&self, path: &Path) {
        if let Some((uid, gid)) = self.who.ids() {
            chown(path, Some(uid), Some(gid)).expect("chown");
        }
    }

    /// What is given to this command as its arguments is run in a mount namespace of its own, and for the user in a user namespace.
    pub fn apart(&self) -> Command {
        let mut command = self.command("ns-enter");
        if self.who == Who::User {
            command.args(["--user", "--map-auto"]);
        }
        command.args(["--mount", "--"]);
        command
    }

    /// A command as `who`, with the tools first in PATH, and with this scratch's store and home.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut program = program.as_ref().to_os_string();
        if TOOLS.iter().any(|tool| program == *tool) {
            program = bin_dir().join(program).into_os_string();
        }
        let mut command = Command::new(program);
        if let Some((uid, gid)) = self.who.ids() {
            command.uid(uid).gid(gid);
        }
        command.env_clear().env("PATH", test_path()).env("HOME", self.path("home")).env("TMPDIR", self.path("tmp"));
        command.env("CTR_STORE", self.store()).env("CTR_TEST", &self.token).env("LC_ALL", "C");
        command.current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    /// Runs `program` with `args` to its end.
    pub fn run<I, S>(&self, program: &str, args: I) -> Output
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        finish(self.command(program).args(args))
    }

    /// Runs a shell script, with the tools in PATH.
    pub fn sh(&self, script: &str) -> Output {
        finish(self.command("bash").args(["-euc", script]))
    }

    /// Processes started from this scratch that still run, as `pid command`: those with its mark in their environment, and
    /// those in a mount namespace where something of it is mounted (a container's environment is its own).
    pub fn processes(&self) -> Vec<String> {
        let mark = format!("CTR_TEST={}", self.token);
        let own_mounts = fs::read_link("/proc/self/ns/mnt").ok();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
            let marked = read("environ").split(|&b| b == 0).any(|variable| variable == mark.as_bytes());
            let elsewhere =
                || fs::read_link(entry.path().join("ns/mnt")).is_ok_and(|mounts| Some(mounts) != own_mounts);
            if marked || (elsewhere() && String::from_utf8_lossy(&read("mountinfo")).contains(&self.token)) {
                let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
                found.push(format!("{} {command}", entry.file_name().to_string_lossy()));
            }
        }
        found
    }

    /// What is mounted below this scratch in this mount namespace.
    pub fn mounts(&self) -> Vec<String> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        mountinfo.lines().filter(|line| line.contains(&self.token)).map(str::to_string).collect()
    }

    /// Cgroups that have this scratch's token in their name.
    pub fn groups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut todo: Vec<PathBuf> = cgroup_mounts();
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    if entry.file_name().to_string_lossy().contains(&self.token) {
                        found.push(entry.path());
                    }
                    todo.push(entry.path());
                }
            }
        }
        found
    }

    /// Fails if anything is left of what ran here.
    pub fn assert_clean(&self) {
        let gone = wait_until(Duration::from_secs(10), || self.processes().is_empty());
        assert!(gone, "processes left: {:#?}", self.processes());
        assert!(self.mounts().is_empty(), "mounts left: {:#?}", self.mounts());
        assert!(self.groups().is_empty(), "groups left: {:#?}", self.groups());
    }
}

/// Where cgroup hierarchies are mounted.
pub fn cgroup_mounts() -> Vec<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let of_cgroup = |line: &&str| line.contains(" - cgroup");
    mountinfo.lines().filter(of_cgroup).filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.assert_clean();
        }
        if fs::remove_dir_all(&self.dir).is_err() && !is_root() {
            // Files of subordinate ids: only their own user namespace may remove them.
            let _ = finish(
                self.command("ns-enter")
                    .args(["--user", "--map-auto", "--", "sh", "-c"])
                    .arg(format!("chmod -R u+rwx {0}; rm -rf {0}", self.dir.display())),
            );
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Output {
    /// Its status, 128+N if signal N ended it.
    pub status: i32,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr, as text.
    pub stderr: String,
}

impl Output {
    /// stdout as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// stdout as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Fails unless the status is 0; gives stdout as text.
    #[track_caller]
    pub fn ok(&self) -> String {
        assert_eq!(self.status, 0, "stderr: {}\nstdout: {}", self.stderr, self.text());
        self.text()
    }

    /// Fails unless the command failed with `status`, silent on stdout, with one line on stderr that contains all of
    /// `words`.
    #[track_caller]
    pub fn fails(&self, status: i32, words: &[&str]) {
        assert_eq!(self.status, status, "stderr: {}\nstdout: {}", self.stderr, self.text());
        assert_eq!(self.stderr.lines().count(), 1, "not one line: {}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in: {}", self.stderr);
        }
        assert!(self.stdout.is_empty(), "stdout: {}", self.text());
    }
}

/// The contract's number for a status: the exit code, or 128+N.
pub fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Runs `command` to its end and takes what it writes. Fails if that takes longer than [`DEADLINE`].
pub fn finish(command: &mut Command) -> Output {
    feed(command, None)
}

/// As [`finish`], with `input` on stdin.
pub fn finish_with(command: &mut Command, input: &[u8]) -> Output {
    feed(command, Some(input.to_vec()))
}

fn feed(command: &mut Command, input: Option<Vec<u8>>) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let writer = child.stdin.take().zip(input).map(|(mut pipe, input)| {
        std::thread::spawn(move || {
            let _ = pipe.write_all(&input);
        })
    });
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = wait(&mut child, DEADLINE).unwrap_or_else(|| {
        let _ = child.kill();
        panic!("{command:?} did not end in {DEADLINE:?}");
    });
    if let Some(writer) = writer {
        let _ = writer.join();
    }
    let stderr = String::from_utf8_lossy(&stderr.join().expect("reader")).into_owned();
    Output { status: code(status), stdout: stdout.join().expect("reader"), stderr }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// Waits for `child` at most `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let mut status = None;
    wait_until(limit, || {
        status = child.try_wait().expect("wait");
        status.is_some()
    });
    status
}

/// Asks `condition` until it is true, at most `limit` long; whether it became true.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
