//! `ns-enter`: the system call filter, the init, and COMMAND's own terminal.

use ctr_tests::terminal::Terminal;
use ctr_tests::{DEADLINE, Scratch, Who, code, has, wait, wait_until};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

// --- The filter -----------------------------------------------------------------------------------------------------

/// Not a test: started again by the tests, inside, it tells how system calls end. That it runs at all, with threads of the
/// test harness, shows that programs start theirs with clone where clone3 is not there.
#[test]
#[ignore = "started by the other tests"]
fn probe() {
    if std::env::var_os("CTR_PROBE").is_none() {
        return;
    }
    let call = |name: &str, result: i64| {
        let how = if result < 0 { format!("{:?}", Errno::last()) } else { "done".into() };
        println!("PROBE {name} {how}");
    };
    // SAFETY: calls with numbers and null pointers, which the kernel refuses or which change nothing that matters here.
    unsafe {
        call("unshare", libc::syscall(libc::SYS_unshare, 0));
        call("keyctl", libc::syscall(libc::SYS_keyctl, 31, 0, 0));
        call("mount", libc::syscall(libc::SYS_mount, 0, 0, 0, 0, 0));
        call("bpf", libc::syscall(libc::SYS_bpf, 0, 0, 0));
        call("clone3", libc::syscall(libc::SYS_clone3, 0, 0));
        call("personality", libc::syscall(libc::SYS_personality, 0x0040_0000));
        call("vsock", libc::syscall(libc::SYS_socket, 40, 1, 0));
        call("vsock-with-high-bits", libc::syscall(libc::SYS_socket, 1i64 << 32 | 40, 1, 0));
        call("alg", libc::syscall(libc::SYS_socket, 38, 5, 0));
        call("unix", libc::syscall(libc::SYS_socket, 1, 1, 0));
        call("setns", libc::syscall(libc::SYS_setns, -1, 0));
        call("chroot", libc::syscall(libc::SYS_chroot, 0));
        call("getpid", libc::syscall(libc::SYS_getpid));
        call("dup-100", libc::syscall(libc::SYS_dup, 100));
        call("dup-2^32+1", libc::syscall(libc::SYS_dup, 1i64 << 32 | 1));
    }
}

/// What [`probe`] tells when run by `ns-enter` with `options`.
fn probed(scratch: &Scratch, options: &[&str]) -> Vec<String> {
    let mut command = scratch.command("ns-enter");
    command.args(options).arg("--").args(probe_command());
    lines(&ctr_tests::finish(command.env("CTR_PROBE", "1")).ok())
}

fn probe_command() -> Vec<String> {
    let own = std::env::current_exe().expect("own path").display().to_string();
    let args = ["--exact", "probe", "--ignored", "--nocapture"].map(str::to_string);
    std::iter::once(own).chain(args).collect()
}

fn lines(text: &str) -> Vec<String> {
    let told = text.lines().filter_map(|line| line.split_once("PROBE ").map(|(_, told)| told.to_string()));
    told.collect()
}

#[track_caller]
fn assert_told(told: &[String], expected: &[&str]) {
    for line in expected {
        assert!(told.iter().any(|told| told == line), "{line:?} is not in {told:#?}");
    }
}

/// The probe is in the target folder, which another user may not be able to reach.
fn reachable(scratch: &Scratch) -> bool {
    let own = std::env::current_exe().expect("own path");
    let found = scratch.run("test", [Path::new("-x"), &own]).status == 0;
    if !found {
        ctr_tests::skip("probe", "the user cannot reach the target folder");
    }
    found
}

#[test]
fn the_default_filter_forbids_what_docker_forbids() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        if !reachable(&scratch) {
            continue;
        }
        let without = probed(&scratch, &["--no-new-privs", "--seccomp", "none"]);
        assert_told(&without, &["unshare done", "keyctl done", "clone3 EINVAL", "personality done", "unix done"]);
        // An ordinary user has no capabilities to drop.
        let mut options = vec!["--no-new-privs", "--seccomp", "default"];
        if who == Who::Root {
            options.extend(["--cap-drop", "all"]);
        }
        let with = probed(&scratch, &options);
        assert_told(
            &with,
            &[
                "unshare EPERM",
                "keyctl EPERM",
                "mount EPERM",
                "bpf EPERM",
                "clone3 ENOSYS",
                "personality EPERM",
                "vsock EPERM",
                "vsock-with-high-bits EPERM",
                "alg EPERM",
                "unix done",
                "setns EPERM",
                "chroot EPERM",
                "getpid done",
            ],
        );
    }
}

#[test]
fn the_default_filter_allows_what_kept_capabilities_are_for() {
    let scratch = Scratch::new(Who::User);
    if !reachable(&scratch) {
        return;
    }
    let kept = |add: &str| probed(&scratch, &["--user", "--cap-drop=all", add, "--no-new-privs", "--seccomp=default"]);
    // EFAULT, EINVAL: the kernel has looked at the arguments.
    assert_told(&kept("--cap-add=sys_chroot"), &["chroot EFAULT", "unshare EPERM", "clone3 ENOSYS"]);
    assert_told(
        &kept("--cap-add=sys_admin"),
        &["chroot EPERM", "unshare done", "clone3 EINVAL", "keyctl EPERM", "setns EBADF"],
    );
}

#[test]
fn the_filter_is_in_force_in_mode_2_and_needs_a_right() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let status = |options: &[&str]| {
            let out = scratch.run("ns-enter", options.iter().chain(&["--", "cat", "/proc/self/status"])).ok();
            out.lines().find_map(|line| line.strip_prefix("Seccomp:")).map(|mode| mode.trim().to_string())
        };
        // The machine that the tests run on may have a filter of its own.
        let before = status(&["--no-new-privs"]);
        assert_eq!(status(&["--no-new-privs", "--seccomp=none"]), before);
        assert_eq!(status(&["--no-new-privs", "--seccomp=default"]).as_deref(), Some("2"));
        match who {
            Who::Root => assert_eq!(status(&["--seccomp=default"]).as_deref(), Some("2")),
            Who::User => scratch
                .run("ns-enter", ["--seccomp=default", "--", "true"])
                .fails(125, &["seccomp(", "(EACCES)", "--no-new-privs"]),
        }
        assert_eq!(status(&["--user", "--seccomp=default"]).as_deref(), Some("2"));
    }
}

fn profile(scratch: &Scratch, value: &serde_json::Value) -> PathBuf {
    scratch.write("profile.json", value.to_string())
}

/// A profile with one of everything.
fn some_profile() -> serde_json::Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            {"names": ["keyctl", "bpf", "no_such_call_anywhere"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["unshare"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 75,
             "args": [{"index": 0, "value": 0x0040_0000, "op": "SCMP_CMP_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97,
             "args": [{"index": 0, "value": 36, "op": "SCMP_CMP_GE"}, {"index": 1, "value": 2, "op": "SCMP_CMP_LT"}]},
            {"names": ["dup"], "action": "SCMP_ACT_ERRNO", "errnoRet": 16,
             "args": [{"index": 0, "value": 0xff, "valueTwo": 100, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["dup"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
             "args": [{"index": 0, "value": 0xffff_ffffu64, "op": "SCMP_CMP_GT"}]}
        ]
    })
}

#[test]
fn a_profile_from_a_file_does_what_it_says() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        if !reachable(&scratch) {
            continue;
        }
        let file = profile(&scratch, &some_profile());
        let told = probed(&scratch, &["--no-new-privs", "--seccomp", file.to_str().expect("UTF-8")]);
        let expected = [
            "unshare EPERM",
            "keyctl done",
            "personality EOVERFLOW",
            "vsock EAFNOSUPPORT",
            "alg EAFNOSUPPORT",
            "unix done",
            "dup-100 EBUSY",
            "dup-2^32+1 E2BIG",
        ];
        assert_told(&told, &expected);
        // A whole configuration has it as a member.
        let whole = scratch.write("config.json", json!({"linux": {"seccomp": some_profile()}}).to_string());
        assert_eq!(probed(&scratch, &["--no-new-privs", "--seccomp", whole.to_str().expect("UTF-8")]), told);
    }
}

#[test]
fn killing_actions_kill() {
    let scratch = Scratch::new(Who::User);
    for (action, status) in [("SCMP_ACT_KILL_PROCESS", 128 + 31), ("SCMP_ACT_TRAP", 128 + 31)] {
        let file = profile(
            &scratch,
            &json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["sync"], "action": action}]}),
        );
        let out =
            scratch.run("ns-enter", ["--no-new-privs", "--seccomp", file.to_str().unwrap(), "--", "busybox", "sync"]);
        assert_eq!(out.status, status, "{action}: {out:?}");
    }
}

#[test]
fn a_wrong_profile_is_refused_by_the_rule_that_is_wrong() {
    let scratch = Scratch::new(Who::User);
    let refused = |value: serde_json::Value, words: &[&str]| {
        let file = profile(&scratch, &value);
        scratch
            .run("ns-enter", ["--no-new-privs", "--seccomp", file.to_str().unwrap(), "--", "touch", "ran"])
            .fails(125, words);
        assert!(!scratch.path("ran").exists());
    };
    let rule = |rule: serde_json::Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    refused(
        rule(json!({"names": ["mount"], "action": "SCMP_ACT_FOO"})),
        &["profile.json", "syscalls[0] (mount)", "SCMP_ACT_FOO"],
    );
    refused(
        rule(json!({"names": ["keyclt"], "action": "SCMP_ACT_ERRNO"})),
        &["syscalls[0] (keyclt)", "would not be stopped"],
    );
    refused(rule(json!({"names": ["mount"], "action": "SCMP_ACT_NOTIFY"})), &["syscalls[0] (mount)", "agent"]);
    refused(json!({"defaultAction": "SCMP_ACT_ALLOW", "archMap": []}), &["Docker's own form"]);
    scratch.run("ns-enter", ["--seccomp", "missing.json", "--", "true"]).fails(125, &["missing.json", "(ENOENT)"]);
}

#[test]
fn runc_has_the_same_filter_from_the_same_profile() {
    if !ctr_tests::is_root() || !has("runc") {
        return;
    }
    let scratch = Scratch::new(Who::Root);
    let root = ctr_tests::rootfs::make(&scratch, "root");
    fs::copy(std::env::current_exe().expect("own path"), root.join("probe")).expect("copy");
    let mut args = probe_command();
    args[0] = "/probe".into();
    let mut profile_of_both = some_profile();
    // With "log" runc wants a libseccomp that can.
    profile_of_both.as_object_mut().expect("object").remove("flags");
    let config = json!({
        "ociVersion": "1.0.2",
        "root": {"path": "root"},
        "process": {"args": args, "cwd": "/", "env": ["CTR_PROBE=1", "PATH=/bin"], "noNewPrivileges": true,
                    "user": {"uid": 0, "gid": 0}, "capabilities": {}},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}], "seccomp": profile_of_both},
    });
    scratch.write("config.json", config.to_string());
    let state = scratch.path("state");
    let theirs = scratch.run("runc", ["--root", state.to_str().expect("UTF-8"), "run", scratch.token()]);
    let file = profile(&scratch, &profile_of_both);
    let ours = probed(&scratch, &["--cap-drop", "all", "--no-new-privs", "--seccomp", file.to_str().expect("UTF-8")]);
    assert_eq!(lines(&theirs.ok()), ours, "{}", theirs.stderr);
}

// --- The init -------------------------------------------------------------------------------------------------------

/// Options for a PID namespace with its /proc, for anyone.
const OWN_PIDS: [&str; 5] = ["--user", "--mount", "--pid", "--mount-proc", "--init"];

#[test]
fn init_is_process_1_and_reaps() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let script = "
            test $$ = 2; grep -q ns-enter /proc/1/cmdline
            for i in 1 2 3 4 5; do (true & true); sh -c 'true & exec true'; done
            for i in $(seq 500); do
              grep -l '^State:.Z' /proc/[0-9]*/status >/dev/null 2>&1 || exit 9
              sleep 0.01
            done
            exit 1";
        let out = scratch.run("ns-enter", OWN_PIDS.iter().chain(&["--", "bash", "-ec", script]));
        assert_eq!(out.status, 9, "{out:?}");
    }
}

#[test]
fn init_gives_commands_status() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        for (script, status) in
            [("exit 0", 0), ("exit 200", 200), ("kill -TERM $$", 143), ("kill -KILL $$", 137), ("kill -SEGV $$", 139)]
        {
            for options in [&OWN_PIDS[..], &["--init"]] {
                let out = scratch.run("ns-enter", options.iter().chain(&["--", "sh", "-c", script]));
                assert_eq!(out.status, status, "{options:?} {script}: {out:?}");
            }
        }
        let missing = scratch.run("ns-enter", OWN_PIDS.iter().chain(&["--", "no-such-program"]));
        missing.fails(127, &["no-such-program"]);
    }
}

/// A child that does not outlive a test that fails.
struct Running(Child);

impl std::ops::Deref for Running {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl std::ops::DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `script` under `ns-enter` with `options`, and waits until it has made the file `ready`.
fn start(scratch: &Scratch, options: &[&str], script: &str) -> Running {
    let mut command = scratch.command("ns-enter");
    let script = format!("{script}\n");
    let child = Running(command.args(options).args(["--", "bash", "-c", &script]).spawn().expect("spawn"));
    assert!(wait_until(DEADLINE, || scratch.path("ready").exists()), "did not start");
    child
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

fn end(child: &mut Child) -> i32 {
    code(wait(child, DEADLINE).expect("did not end"))
}

#[test]
fn init_passes_signals_on_once_real_time_ones_too() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let real_time = libc::SIGRTMIN() + 3;
        let script = format!(
            "n=0; trap 'n=$((n+1))' USR1; trap 'echo $n > told; exit 7' {real_time}
             touch ready; while :; do sleep 0.02; done"
        );
        let mut child = start(&scratch, &OWN_PIDS, &script);
        kill(pid(&child), Signal::SIGUSR1).expect("kill");
        // SAFETY: only numbers.
        let sent = unsafe { libc::kill(child.id() as i32, real_time) };
        assert_eq!(sent, 0);
        assert_eq!(end(&mut child), 7);
        assert_eq!(fs::read_to_string(scratch.path("told")).expect("told"), "1\n");
    }
}

#[test]
fn init_lets_a_command_without_handlers_be_ended() {
    for who in Who::all() {
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR2] {
            let scratch = Scratch::new(who);
            let mut child = start(&scratch, &OWN_PIDS, "true > ready; exec sleep 1000");
            kill(pid(&child), signal).expect("kill");
            assert_eq!(end(&mut child), 128 + signal as i32, "{signal}");
        }
    }
}

#[test]
fn init_stops_and_goes_on_with_the_command() {
    for who in Who::all() {
        for options in [&OWN_PIDS[..], &["--init"]] {
            let scratch = Scratch::new(who);
            let mut child = start(&scratch, options, "touch ready; kill -STOP $$; exit 5");
            let status = waitpid(pid(&child), Some(WaitPidFlag::WUNTRACED)).expect("waitpid");
            assert!(matches!(status, WaitStatus::Stopped(..)), "{options:?}: {status:?}");
            kill(pid(&child), Signal::SIGCONT).expect("kill");
            assert_eq!(end(&mut child), 5, "{options:?}");
        }
    }
}

#[test]
fn init_takes_all_along_when_its_parent_is_killed() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let mut child = start(&scratch, &OWN_PIDS, "trap '' TERM HUP; sleep 1000 & touch ready; sleep 1000");
        child.kill().expect("kill");
        assert_eq!(end(&mut child), 137);
        scratch.assert_clean();
    }
}

#[test]
fn init_has_commands_privileges() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let script = "exec ns-enter --user --mount --pid --mount-proc --init --cap-drop all \
            --cap-add kill --no-new-privs --seccomp default -- \
            bash -c 'grep -E \"^(Seccomp|NoNewPrivs|CapEff|CapBnd):\" /proc/1/status;
                     diff <(grep -E \"^(Seccomp|NoNewPrivs|Cap.*):\" /proc/1/status) <(grep -E \"^(Seccomp|NoNewPrivs|Cap.*):\" /proc/self/status)'";
        let out = scratch.sh(script).ok();
        assert!(out.contains("Seccomp:\t2") && out.contains("NoNewPrivs:\t1"), "{out}");
        assert!(out.contains("CapEff:\t0000000000000020"), "{out}");
    }
}

/// The init's own user may not look into it, so root does, from outside.
#[test]
fn init_has_nothing_of_the_callers() {
    if !ctr_tests::is_root() {
        return;
    }
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let mut command = scratch.command("sh");
        let script = "exec 9</etc/passwd; exec ns-enter --user --mount --pid --mount-proc --init -- sh -c 'touch ready; sleep 1000'";
        let mut child = Running(command.args(["-c", script]).spawn().expect("sh"));
        assert!(wait_until(DEADLINE, || scratch.path("ready").exists()));
        let processes = scratch.processes();
        let pids = processes.iter().filter_map(|line| line.split(' ').next());
        let read = |pid: &str, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let is_init =
            |pid: &&str| read(pid, "status").lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"));
        let init = pids.clone().find(is_init).unwrap_or_else(|| panic!("{processes:?}"));
        let descriptors = fs::read_dir(format!("/proc/{init}/fd")).unwrap().flatten();
        let names: Vec<PathBuf> = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
        assert!(!names.iter().any(|name| name.ends_with("passwd")), "{names:?}");
        let memory = read(init, "smaps_rollup");
        let kib = memory.lines().find_map(|line| line.strip_prefix("Anonymous:"));
        let kib: u64 = kib.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap();
        assert!(kib > 0 && kib <= 1024, "{kib} KiB of its own");
        child.0.kill().expect("kill");
        child.0.wait().expect("wait");
    }
}

// --- The terminal ---------------------------------------------------------------------------------------------------

#[test]
fn a_terminal_is_commands_own_and_has_the_callers_size() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let terminal = Terminal::new(&scratch, 33, 77);
        let before = terminal.mode();
        let script = "stty size; test -t 0 -a -t 1 -a -t 2 && : </dev/tty && echo own; read line; echo [$line]; exit 6";
        let mut child = terminal.spawn(&scratch, "ns-enter", &["--tty", "--", "sh", "-c", script]);
        terminal.expect("33 77");
        terminal.expect("own");
        terminal.expect_raw(true);
        terminal.type_keys("hello\r");
        terminal.expect("[hello]");
        assert_eq!(end(&mut child), 6);
        assert_eq!(terminal.mode(), before);
    }
}

#[test]
fn a_change_of_size_reaches_the_command() {
    let scratch = Scratch::new(Who::User);
    let terminal = Terminal::new(&scratch, 24, 80);
    let script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.02; done";
    let options = ["--user", "--pid", "--tty", "--", "bash", "-c", script];
    let mut child = terminal.spawn(&scratch, "ns-enter", &options);
    terminal.expect("ready");
    terminal.resize(50, 132);
    terminal.expect("50 132");
    assert_eq!(end(&mut child), 0);
}

#[test]
fn keys_that_make_signals_make_them_inside() {
    for options in [&["--tty"][..], &["--user", "--pid", "--tty"], &["--user", "--pid", "--init", "--tty"]] {
        let scratch = Scratch::new(Who::User);
        let terminal = Terminal::new(&scratch, 24, 80);
        let script = "trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.02; done";
        let mut args = options.to_vec();
        args.extend(["--", "bash", "-c", script]);
        let mut child = terminal.spawn(&scratch, "ns-enter", &args);
        terminal.expect("ready");
        terminal.expect_raw(true);
        terminal.type_keys("\x03");
        terminal.expect("interrupted");
        assert_eq!(end(&mut child), 3, "{options:?}");
        terminal.expect_raw(false);
    }
}

#[test]
fn the_callers_terminal_is_put_back_however_the_tool_ends() {
    for who in Who::all() {
        for (signal, status) in [(Signal::SIGTERM, 143), (Signal::SIGKILL, 137), (Signal::SIGABRT, 134)] {
            let scratch = Scratch::new(who);
            let terminal = Terminal::new(&scratch, 24, 80);
            let before = terminal.mode();
            let options = ["--user", "--pid", "--tty", "--", "sh", "-c", "echo ready; exec sleep 1000"];
            let mut child = terminal.spawn(&scratch, "ns-enter", &options);
            terminal.expect("ready");
            terminal.expect_raw(true);
            kill(pid(&child), signal).expect("kill");
            assert_eq!(end(&mut child), status);
            assert!(wait_until(DEADLINE, || terminal.mode() == before), "{signal}: {:?}", terminal.mode());
            scratch.assert_clean();
        }
        let scratch = Scratch::new(who);
        let terminal = Terminal::new(&scratch, 24, 80);
        let before = terminal.mode();
        let mut child = terminal.spawn(&scratch, "ns-enter", &["--tty", "--", "no-such-program"]);
        assert_eq!(end(&mut child), 127);
        terminal.expect("no-such-program");
        assert_eq!(terminal.mode(), before);
    }
}

#[test]
fn a_stopped_relay_gives_the_terminal_back_and_takes_it_again() {
    let scratch = Scratch::new(Who::User);
    let terminal = Terminal::new(&scratch, 24, 80);
    let before = terminal.mode();
    let mut child = terminal.spawn(&scratch, "ns-enter", &["--tty", "--", "sh", "-c", "echo ready; read line; exit 4"]);
    terminal.expect("ready");
    terminal.expect_raw(true);
    kill(pid(&child), Signal::SIGTSTP).expect("kill");
    let status = waitpid(pid(&child), Some(WaitPidFlag::WUNTRACED)).expect("waitpid");
    assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
    assert_eq!(terminal.mode(), before);
    terminal.resize(44, 99);
    kill(pid(&child), Signal::SIGCONT).expect("kill");
    terminal.expect_raw(true);
    terminal.type_keys("\r");
    assert_eq!(end(&mut child), 4);
    assert_eq!(terminal.mode(), before);
}

#[test]
fn a_shell_inside_has_job_control() {
    for options in [&["--tty"][..], &["--user", "--pid", "--mount", "--mount-proc", "--init", "--tty"]] {
        let scratch = Scratch::new(Who::User);
        let terminal = Terminal::new(&scratch, 24, 80);
        let mut args = options.to_vec();
        args.extend(["--", "bash", "--norc", "--noprofile", "-i"]);
        let mut child = terminal.spawn(&scratch, "ns-enter", &args);
        terminal.type_keys("PS1='at''prompt '\r");
        terminal.expect("atprompt");
        terminal.type_keys("sh -c 'echo job-is-$((40+2)); exec sleep 1000'\r");
        terminal.expect("job-is-42");
        terminal.type_keys("\x1a");
        terminal.expect("Stopped");
        terminal.type_keys("jobs -s | wc -l | sed s/^/stopped-/\r");
        terminal.expect("stopped-1");
        terminal.type_keys("kill %1; fg 2>/dev/null; exit 8\r");
        assert_eq!(end(&mut child), 8, "{:?}", terminal.shown());
        assert!(!terminal.shown().contains("no job control"), "{}", terminal.shown());
    }
}

#[test]
fn large_output_is_whole() {
    for options in [&["--tty"][..], &["--user", "--pid", "--tty"]] {
        let scratch = Scratch::new(Who::User);
        let terminal = Terminal::new(&scratch, 24, 80);
        let mut args = options.to_vec();
        args.extend(["--", "seq", "100000"]);
        let mut child = terminal.spawn(&scratch, "ns-enter", &args);
        assert_eq!(end(&mut child), 0);
        let expected: String = (1..=100000).map(|n| format!("{n}\r\n")).collect();
        assert!(wait_until(DEADLINE, || terminal.shown().len() >= expected.len()), "{}", terminal.shown().len());
        assert_eq!(terminal.shown(), expected);
    }
}

#[test]
fn input_that_is_no_terminal_is_carried_to_its_end() {
    let scratch = Scratch::new(Who::User);
    let terminal = Terminal::new(&scratch, 24, 80);
    // Only stderr is a terminal.
    let mut command = scratch.command("ns-enter");
    command.stderr(terminal.stdio());
    command.args(["--tty", "--", "sh", "-c", "stty -echo; echo ready; wc -c"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawn");
    use std::io::{Read, Write};
    let (mut stdin, mut stdout) = (child.stdin.take().expect("pipe"), child.stdout.take().expect("pipe"));
    let mut shown = Vec::new();
    while !shown.ends_with(b"ready\r\n") {
        let mut byte = [0];
        assert_eq!(stdout.read(&mut byte).expect("read"), 1, "{shown:?}");
        shown.push(byte[0]);
    }
    let text: String = (0..5000).map(|n| format!("line {n}\n")).collect();
    stdin.write_all(text.as_bytes()).expect("write");
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("read");
    assert_eq!(rest.trim(), text.len().to_string());
    assert_eq!(end(&mut child), 0);
    terminal.expect_raw(false);
}

#[test]
fn a_reader_that_goes_away_hangs_the_terminal_up() {
    let scratch = Scratch::new(Who::User);
    let terminal = Terminal::new(&scratch, 24, 80);
    let mut command = terminal.command(&scratch, "ns-enter");
    command.args(["--tty", "--", "sh", "-c", "while :; do echo y; done"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("spawn");
    drop(child.stdout.take());
    assert_eq!(end(&mut child), 128 + Signal::SIGHUP as i32);
    terminal.expect_raw(false);
}

#[test]
fn without_any_terminal_nothing_starts() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        // A session of its own, so that there is no /dev/tty either.
        let out = scratch.sh("setsid ns-enter --tty -- touch ran </dev/null 2>err || echo $? >status");
        assert_eq!(out.status, 0, "{out:?}");
        assert_eq!(fs::read_to_string(scratch.path("status")).expect("status"), "125\n");
        let said = fs::read_to_string(scratch.path("err")).expect("err");
        assert!(said.contains("--tty") && said.lines().count() == 1, "{said}");
        assert!(!scratch.path("ran").exists());
    }
}

#[test]
fn nothing_inside_can_reach_the_callers_terminal() {
    let scratch = Scratch::new(Who::User);
    let terminal = Terminal::new(&scratch, 24, 80);
    let outer = fs::read_link(format!("/proc/self/fd/{}", terminal.descriptor())).expect("readlink");
    let script =
        "for link in /proc/[0-9]*/fd/*; do readlink $link; done | sort -u > held; ps -A -o tty= | sort -u > ttys";
    let options = ["--user", "--mount", "--pid", "--mount-proc", "--init", "--tty", "--", "bash", "-c", script];
    let mut child = terminal.spawn(&scratch, "ns-enter", &options);
    assert_eq!(end(&mut child), 0, "{}", terminal.shown());
    let held = fs::read_to_string(scratch.path("held")).expect("held");
    assert!(!held.lines().any(|line| Path::new(line) == outer), "{outer:?}: {held}");
    let name = outer.strip_prefix("/dev").expect("in /dev").display().to_string();
    let ttys = fs::read_to_string(scratch.path("ttys")).expect("ttys");
    assert!(!ttys.lines().any(|line| line == name), "{name}: {ttys}");
}

#[test]
fn a_reader_that_does_not_read_keeps_the_tool_from_nothing() {
    let scratch = Scratch::new(Who::User);
    let terminal = Terminal::new(&scratch, 24, 80);
    let mut command = terminal.command(&scratch, "ns-enter");
    command.args(["--user", "--pid", "--tty", "--", "sh", "-c", "> ready; while :; do echo y; done"]);
    let mut child = Running(command.stdout(Stdio::piped()).spawn().expect("spawn"));
    assert!(wait_until(DEADLINE, || scratch.path("ready").exists()));
    terminal.expect_raw(true);
    kill(pid(&child), Signal::SIGTERM).expect("kill");
    assert_eq!(end(&mut child), 143);
    terminal.expect_raw(false);
}

#[test]
fn the_first_process_reaps_even_where_it_only_relays() {
    let scratch = Scratch::new(Who::User);
    let terminal = Terminal::new(&scratch, 24, 80);
    // Two programs: the second is the first process of the namespace, and stays behind to relay.
    let script = "test $$ = 2; for i in 1 2 3 4 5; do (true & true); done
        for i in $(seq 500); do grep -l '^State:.Z' /proc/[0-9]*/status >/dev/null 2>&1 || exit 9; sleep 0.01; done; exit 1";
    let inner = "exec ns-enter --tty -- bash -ec \"$0\"";
    let options = ["--user", "--mount", "--pid", "--mount-proc", "--", "sh", "-c", inner, script];
    let mut child = terminal.spawn(&scratch, "ns-enter", &options);
    assert_eq!(end(&mut child), 9, "{}", terminal.shown());
}

#[test]
fn a_root_with_a_devpts_gives_the_terminal_to_the_user() {
    let scratch = Scratch::new(Who::User);
    let root = ctr_tests::rootfs::make(&scratch, "root");
    let root = root.to_str().expect("UTF-8");
    let terminal = Terminal::new(&scratch, 24, 80);
    let inside = "tty; set -- $(ls -ln $(tty)); echo owner=$3; : > $(tty) && echo reopened; ls /dev/pts | wc -l";
    let script = format!(
        "exec ns-enter --user --map-auto --mount --pid -- vol-bind --root {root} --api -- ns-enter --root {root} \\
         --as app --cap-drop all --no-new-privs --seccomp default --init --tty -- sh -c '{inside}'"
    );
    let mut child = terminal.spawn(&scratch, "bash", &["-c", &script]);
    assert_eq!(end(&mut child), 0, "{}", terminal.shown());
    for text in ["/dev/pts/0", "owner=1000", "reopened", "2"] {
        terminal.expect(text);
    }
}

#[test]
fn a_documents_profile_is_used_unless_told_otherwise() {
    let scratch = Scratch::new(Who::User);
    let document = json!({
        "ociVersion": "1.2.0",
        "process": {"args": ["busybox", "mkdir", "made"], "cwd": scratch.path(""), "noNewPrivileges": true},
        "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}},
    });
    scratch.write("document.json", document.to_string());
    let refused = scratch.run("ns-enter", ["--from", "document.json"]);
    assert!(refused.status == 1 && refused.stderr.contains("No space left"), "{refused:?}");
    assert!(!scratch.path("made").exists());
    scratch.run("ns-enter", ["--from", "document.json", "--seccomp", "none"]).ok();
    assert!(scratch.path("made").exists());
}
