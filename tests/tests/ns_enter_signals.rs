//! `ns-enter` while it waits: signals, stopping and going on, dying, and statuses.

use ctr_tests::terminal::Terminal;
use ctr_tests::{Scratch, Who, code, finish, rootfs, wait, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);

/// The options that make a PID namespace, each way it is made.
fn forms(who: Who) -> Vec<&'static str> {
    match who {
        Who::Root => vec!["--pid", "--all", "--user --pid", "--time --boottime 5"],
        Who::User => vec!["--user --pid", "--all --map-auto", "--user --time --boottime 5"],
    }
}

/// A waiting ns-enter.
struct Waiter {
    process: Child,
    lines: Option<BufReader<std::process::ChildStdout>>,
}

impl Waiter {
    fn start(scratch: &Scratch, options: &str, command: &[&str]) -> Self {
        let mut run = scratch.command("ns-enter");
        // In a group of its own: in one that nobody watches (orphaned) nothing stops for SIGTSTP.
        run.args(options.split(' ')).arg("--").args(command).stdout(Stdio::piped()).process_group(0);
        let mut process = run.spawn().expect("ns-enter");
        let lines = process.stdout.take().map(BufReader::new);
        Waiter { process, lines }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id() as i32)
    }

    /// The child, once it has become `program`.
    fn child(&self, program: &str) -> Pid {
        let path = format!("/proc/{0}/task/{0}/children", self.process.id());
        let mut found = None;
        assert!(wait_until(DEADLINE, || {
            let children = fs::read_to_string(&path).unwrap_or_default();
            found = children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid: &i32| {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == program)
            });
            found.is_some()
        }));
        Pid::from_raw(found.unwrap())
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.as_mut().expect("stdout").read_line(&mut line).expect("line");
        line.trim_end().to_string()
    }

    fn send(&self, signal: Signal) {
        kill(self.pid(), signal).expect("kill");
    }

    #[track_caller]
    fn ends_with(mut self, status: i32) {
        let ended = wait(&mut self.process, DEADLINE);
        if ended.is_none() {
            let _ = self.process.kill();
        }
        assert_eq!(ended.map(code), Some(status));
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The state of a process: `S`, `T` …
fn state(pid: Pid) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()).unwrap_or('?')
}

fn each() -> Vec<(Scratch, &'static str)> {
    Who::all().into_iter().flat_map(|who| forms(who).into_iter().map(move |form| (Scratch::new(who), form))).collect()
}

#[test]
fn a_signal_without_a_handler_ends_command() {
    for (scratch, options) in each() {
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1] {
            let waiter = Waiter::start(&scratch, options, &["sleep", "1000"]);
            waiter.child("sleep");
            waiter.send(signal);
            waiter.ends_with(128 + signal as i32);
        }
        scratch.assert_clean();
    }
}

#[test]
fn a_handler_gets_the_signal_once_and_decides() {
    let script = "trap 'echo term' TERM; trap 'echo int' INT; trap 'echo usr1; exit 9' USR1; trap 'echo real' 40
        echo ready; while :; do sleep 0.01; done";
    for (scratch, options) in each() {
        let mut waiter = Waiter::start(&scratch, options, &["bash", "-c", script]);
        assert_eq!(waiter.line(), "ready");
        for (signal, line) in [(Signal::SIGTERM, "term"), (Signal::SIGINT, "int"), (Signal::SIGTERM, "term")] {
            waiter.send(signal);
            assert_eq!(waiter.line(), line);
        }
        // A real-time signal, which Signal has no name for.
        finish(scratch.command("bash").args(["-c", &format!("kill -40 {}", waiter.pid())])).ok();
        assert_eq!(waiter.line(), "real");
        waiter.send(Signal::SIGUSR1);
        // Had one come twice, its line would be here.
        assert_eq!(waiter.line(), "usr1");
        waiter.ends_with(9);
    }
}

#[test]
fn an_ignored_signal_stays_ignored() {
    for (scratch, options) in each() {
        let script = "trap '' TERM; echo ready; read x; exit 3";
        let mut run = scratch.command("ns-enter");
        run.args(options.split(' ')).args(["--", "sh", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = run.spawn().unwrap();
        let input = process.stdin.take();
        let lines = process.stdout.take().map(BufReader::new);
        let mut waiter = Waiter { process, lines };
        assert_eq!(waiter.line(), "ready");
        waiter.send(Signal::SIGTERM);
        drop(input);
        waiter.ends_with(3);
    }
}

#[test]
fn killing_the_waiter_at_any_moment_leaves_nothing() {
    for (scratch, options) in each() {
        for step in 0..30 {
            let mut waiter = Waiter::start(&scratch, options, &["sh", "-c", "sleep 1000 & sleep 1000"]);
            // Not to wait for something, but to meet each moment of the start.
            std::thread::sleep(Duration::from_micros(200 * step));
            waiter.send(Signal::SIGKILL);
            waiter.process.wait().unwrap();
            // Without a PID namespace of its own, only COMMAND itself is certain to go.
            if options.contains("--time") {
                // One that it was just starting may come into sight only now.
                wait_until(DEADLINE, || {
                    let left = scratch.processes();
                    for pid in left.iter().filter_map(|line| line.split(' ').next()?.parse().ok()) {
                        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                    }
                    left.is_empty()
                });
            }
            scratch.assert_clean();
        }
    }
}

#[test]
fn a_signal_at_any_moment_of_the_start_is_not_lost() {
    for (scratch, options) in each() {
        for step in 0..30 {
            let waiter = Waiter::start(&scratch, options, &["sleep", "1000"]);
            std::thread::sleep(Duration::from_micros(200 * step));
            waiter.send(Signal::SIGTERM);
            waiter.ends_with(143);
        }
        scratch.assert_clean();
    }
}

#[test]
fn it_stops_and_goes_on_with_command() {
    for (scratch, options) in each() {
        let waiter = Waiter::start(&scratch, options, &["sleep", "1000"]);
        let child = waiter.child("sleep");
        let both = |wanted: char| wait_until(DEADLINE, || state(waiter.pid()) == wanted && state(child) == wanted);
        for _ in 0..3 {
            waiter.send(Signal::SIGTSTP);
            assert!(both('T'), "{options}: {} {}", state(waiter.pid()), state(child));
            waiter.send(Signal::SIGCONT);
            assert!(both('S'), "{options}: {} {}", state(waiter.pid()), state(child));
        }
        kill(child, Signal::SIGSTOP).unwrap();
        assert!(both('T'));
        waiter.send(Signal::SIGCONT);
        assert!(both('S'));
        waiter.send(Signal::SIGTERM);
        waiter.ends_with(143);
    }
}

#[test]
fn signals_come_as_the_caller_left_them() {
    let show = ["grep", "-E", "^Sig(Blk|Ign|Cgt|Pnd)|^ShdPnd", "/proc/self/status"];
    for (scratch, options) in each() {
        for setup in ["", "trap '' INT USR2 CHLD PIPE;"] {
            let script =
                |prefix: &str| format!("{setup} exec {prefix} {} '{}' {}", show[..2].join(" "), show[2], show[3]);
            let bare = finish(scratch.command("bash").args(["-c", &script("")])).ok();
            let inside = finish(scratch.command("bash").args(["-c", &script(&format!("ns-enter {options} --"))])).ok();
            assert_eq!(bare, inside, "{setup} {options}");
        }
    }
}

#[test]
fn statuses_pass() {
    for (scratch, options) in each() {
        let run =
            |command: &[&str]| finish(scratch.command("ns-enter").args(options.split(' ')).arg("--").args(command));
        for status in [0, 1, 42, 124, 255] {
            assert_eq!(run(&["sh", "-c", &format!("exit {status}")]).status, status);
        }
        // A process that ends itself: the first of a PID namespace cannot, its child can.
        assert_eq!(run(&["sh", "-c", "sh -c 'kill -KILL $$'"]).status, 137);
        run(&["/nowhere"]).fails(127, &["execve(\"/nowhere\")", "ENOENT"]);
        run(&["/etc/passwd"]).fails(126, &["execve(\"/etc/passwd\")", "EACCES"]);
        run(&["/etc"]).fails(126, &["execve(\"/etc\")", "directory"]);
    }
}

#[test]
fn a_status_is_not_lost_where_the_caller_ignores_sigchld() {
    for (scratch, options) in each() {
        let script = format!("trap '' CHLD; exec ns-enter {options} -- sh -c 'exit 7'");
        assert_eq!(finish(scratch.command("bash").args(["-c", &script])).status, 7, "{options}");
    }
}

#[test]
fn the_waiter_is_small() {
    for (scratch, options) in each() {
        let waiter = Waiter::start(&scratch, options, &["sleep", "1000"]);
        waiter.child("sleep");
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", waiter.pid())).unwrap();
        // What no other process can share; the program's own pages count as dirty until they are on disk.
        let private = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
        let kilobytes: u64 = private.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kilobytes <= 1024, "{options}: {kilobytes} kB");
        waiter.send(Signal::SIGKILL);
        waiter.ends_with(137);
    }
}

#[test]
fn it_waits_for_a_command_that_takes_its_time() {
    // The terminal's Ctrl-C goes to a whole group; a script that cleans up on it has the time to (util-linux #1086).
    for (scratch, options) in each() {
        let script = "trap 'sleep 0.2; echo cleaned; exit 4' TERM; echo ready; while :; do sleep 0.01; done";
        let mut waiter = Waiter::start(&scratch, options, &["sh", "-c", script]);
        assert_eq!(waiter.line(), "ready");
        waiter.send(Signal::SIGTERM);
        assert_eq!(waiter.line(), "cleaned");
        waiter.ends_with(4);
    }
}

/// A shell with job control on a terminal, and what is typed into it.
fn on_a_terminal(scratch: &Scratch, script: impl FnOnce(&Terminal, u32)) {
    let terminal = Terminal::new(scratch, 24, 80);
    let mut command = terminal.command(scratch, "bash");
    // Jobs as a person has them; the prompt shows that the shell is back.
    let mut shell = command.args(["--norc", "--noediting", "-i"]).env("PS1", "at-prompt: ").spawn().expect("bash");
    terminal.expect("at-prompt: ");
    script(&terminal, shell.id());
    terminal.type_keys("exit\r");
    assert!(wait(&mut shell, DEADLINE).is_some(), "{}", terminal.shown());
}

/// Ctrl-C as soon as a job of `shell` has its terminal; before, it would be for the shell.
fn interrupt(terminal: &Terminal, shell: u32, text: &str) {
    let has_terminal = || {
        let stat = fs::read_to_string(format!("/proc/{shell}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // The group of the shell, and that in the foreground (proc_pid_stat(5)).
        fields.len() > 5 && fields[2] != fields[5]
    };
    assert!(wait_until(DEADLINE, has_terminal), "{}", terminal.shown());
    terminal.type_keys("\x03");
    terminal.expect(text);
}

#[test]
fn keys_of_the_callers_terminal_work_on_a_command_that_shares_it() {
    for (scratch, options) in each() {
        on_a_terminal(&scratch, |terminal, shell| {
            // The words differ from what is typed, which the terminal shows too.
            let command = format!("ns-enter {options} -- sh -c 'echo st''arted; exec sleep 1000'; echo status=$?\r");
            terminal.type_keys(&command);
            terminal.expect("started\r\n");
            terminal.type_keys("\x1a");
            terminal.expect("Stopped");
            terminal.type_keys("fg; echo after=$?\r");
            terminal.expect("fg; echo after=$?\r\nns-enter");
            interrupt(terminal, shell, "after=130");
        });
    }
}

#[test]
fn keys_of_the_callers_terminal_work_on_a_command_in_a_session_of_its_own() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        rootfs::make(&scratch, "root");
        let user = if who == Who::User { "--user" } else { "" };
        for pid in ["", "--pid"] {
            on_a_terminal(&scratch, |terminal, shell| {
                // The shell inside has no job control, and its child is in its group: Ctrl-C is for both, and ends the child.
                let script = "trap \"echo shell\" INT; echo st\"\"arted; sleep 1000; echo child=$?; exit 5";
                let options = format!("{user} {pid} --root root --clear-env --env PATH=/bin");
                terminal.type_keys(&format!("ns-enter {options} -- sh -c '{script}'; echo status=$?\r"));
                terminal.expect("started\r\n");
                terminal.type_keys("\x1a");
                terminal.expect("Stopped");
                terminal.type_keys("fg\r");
                terminal.expect("fg\r\nns-enter");
                interrupt(terminal, shell, "child=130");
            });
        }
    }
}
