//! `ctr-run`'s options: each is seen inside the container, and the printed script run by hand gives the same.

use ctr_tests::image::busybox;
use ctr_tests::{DEADLINE, Scratch, Who, finish, has, is_root, wait, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::process::Child;

/// What `script` prints in a container with `options`; run by `ctr-run` itself, and by hand from what it prints.
#[track_caller]
fn both(scratch: &Scratch, image: &str, options: &[&str], script: &str) -> String {
    let words: Vec<&str> = options.iter().copied().chain([image, "sh", "-c", script]).collect();
    let direct = scratch.run("ctr-run", &words).ok();
    let printed = finish(scratch.command("ctr-run").arg("--print").args(&words)).ok();
    let by_hand = finish(scratch.command("sh").arg(scratch.write("by-hand.sh", &printed))).ok();
    assert_eq!(direct, by_hand, "{options:?}: {printed}");
    direct
}

#[test]
fn each_option_is_seen_inside() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        scratch.write("vars", "FROM_FILE=1\n# no\nTWO=2\n");
        let cases: &[(&[&str], &str, &str)] = &[
            (&["--env-file", "vars"], "echo $FROM_FILE$TWO", "12\n"),
            (&["-e", "A=b c"], "echo $A", "b c\n"),
            (&["-w", "/new/dir"], "pwd", "/new/dir\n"),
            (&["-u", "app"], "id -u; id -G", "1000\n1000 2000\n"),
            (&["--hostname", "box"], "hostname; grep -w box /etc/hosts", "box\n127.0.1.1\tbox\n"),
            (&["--add-host", "db:10.0.0.7"], "tail -n 1 /etc/hosts", "10.0.0.7\tdb\n"),
            (&["--dns", "9.9.9.9", "--dns", "::1"], "cat /etc/resolv.conf", "nameserver 9.9.9.9\nnameserver ::1\n"),
            (&["--net", "host"], "ls /sys/class/net | wc -l | tr -d 0123456789", "\n"),
            (&["--shm-size", "2M"], "df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d' ' -f2", "2048\n"),
            (&["--tmpfs", "/t:size=1m"], "grep -c ' /t tmpfs .*size=1024k' /proc/mounts", "1\n"),
            (&["--ulimit", "nofile=100:200"], "ulimit -n; ulimit -Hn", "100\n200\n"),
            (&["--cap-drop", "all"], "grep CapBnd /proc/self/status", "CapBnd:\t0000000000000000\n"),
            (
                &["--cap-add", "SYS_ADMIN", "--cap-drop", "ALL"],
                "grep CapEff /proc/self/status",
                "CapEff:\t0000000000200000\n",
            ),
            (
                &["--security-opt", "seccomp=unconfined", "--security-opt", "no-new-privileges=false"],
                "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status",
                "NoNewPrivs:\t0\nSeccomp:\t0\n",
            ),
            (
                &["--privileged"],
                "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status; grep -c ' /proc/' /proc/mounts",
                "NoNewPrivs:\t0\nSeccomp:\t0\n0\n",
            ),
            (&["--sysctl", "net.ipv4.ip_forward=1"], "cat /proc/sys/net/ipv4/ip_forward", "1\n"),
            (&["--read-only"], "touch /x 2>/dev/null || echo refused", "refused\n"),
            (&["--init"], "echo $$ $PPID", "2 1\n"),
            (&["--device", "/dev/null:/dev/mine"], "test -c /dev/mine && echo device", "device\n"),
        ];
        for (options, script, want) in cases {
            let script = format!("({script}) || true");
            assert_eq!(both(&scratch, &image, options, &script), *want, "{who:?} {options:?}");
        }
    }
}

#[test]
fn limits_of_docker_run() {
    if !is_root() {
        return;
    }
    let (scratch, image) = busybox(Who::Root);
    let shares = "cat /sys/fs/cgroup/cpu/cpu.shares /sys/fs/cgroup/cpu.weight 2>/dev/null || true";
    let text = both(&scratch, &image, &["--cpu-shares", "512"], shares);
    assert!(["512\n", "20\n"].contains(&text.as_str()), "{text}");
    let cpus = "grep Cpus_allowed_list /proc/self/status";
    assert_eq!(both(&scratch, &image, &["--cpuset-cpus", "0"], cpus), "Cpus_allowed_list:\t0\n");
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let fails = |args: &[&str], words: &[&str]| {
            finish(scratch.command("ctr-run").args(args).args([&image, "true"])).fails(125, words);
        };
        fails(&["-p", "8080:80"], &["-p \"8080:80\"", "add --net=pasta"]);
        fails(&["--net", "pasta", "-p", "80"], &["port \"80\"", "OUTER:INNER"]);
        fails(&["--net", "bridge"], &["bridged networks"]);
        fails(&["--add-host", "db"], &["--add-host \"db\"", "NAME:ADDRESS"]);
        fails(&["--add-host", "db:host-gateway"], &["an address in numbers is needed"]);
        fails(&["--dns", "localhost"], &["--dns \"localhost\""]);
        fails(&["--stop-signal", "NOPE"], &["signal \"NOPE\"", "signal(7)"]);
        fails(&["--security-opt", "apparmor=x"], &["apparmor=x", "seccomp="]);
        fails(&["--pidfile", "/no/such/dir/pid"], &["/no/such/dir/pid", "(ENOENT)"]);
        fails(&["--print=oci", "--dns", "9.9.9.9"], &["--print=oci: --dns has no place"]);
        fails(&["--print=oci", "--net", "pasta"], &["--print=oci: --pasta has no place"]);
        scratch.write("cid", "");
        fails(&["--cidfile", "cid"], &["\"cid\"", "(EEXIST)"]);
    }
}

/// Starts a container that waits, and gives it with the process number of its first process.
fn started(scratch: &Scratch, options: &[&str], image: &str, script: &str) -> (Child, Pid) {
    let mut command = scratch.command("env");
    command.args(["--default-signal", "ctr-run", "--pidfile", "pid"]).args(options).args([image, "sh", "-c", script]);
    let child = command.spawn().unwrap();
    let pid = || fs::read_to_string(scratch.path("pid")).ok()?.trim().parse().ok();
    assert!(wait_until(DEADLINE, || pid().is_some()), "no process number");
    let pid: i32 = pid().unwrap();
    let caught = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let set = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim().to_string();
        status.starts_with("Name:\tsh\n") && u64::from_str_radix(&set, 16).is_ok_and(|set| set & 1 << (10 - 1) != 0)
    };
    assert!(wait_until(DEADLINE, caught), "COMMAND did not start");
    let _ = fs::remove_file(scratch.path("pid"));
    (child, Pid::from_raw(pid))
}

#[test]
fn it_is_stopped_with_its_signal_and_killed_in_time() {
    let term = |child: &Child| kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let loops = "trap 'exit 9' USR1; trap '' TERM; while :; do sleep 0.05; done";
        let (mut child, _) = started(&scratch, &["--stop-signal", "USR1"], &image, loops);
        term(&child);
        assert_eq!(wait(&mut child, DEADLINE).unwrap().code(), Some(9), "{who:?}");
        let (mut child, pid) = started(&scratch, &["--stop-timeout", "0"], &image, loops);
        let inside = fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
        assert_ne!(inside, fs::read_link("/proc/self/ns/pid").unwrap());
        term(&child);
        assert_eq!(wait(&mut child, DEADLINE).unwrap().code(), Some(137), "{who:?}");
    }
}

/// What a container is to the kernel, in lines; but for the nodes in /dev, which are mounts of their own here.
const PROBE: &str = "grep -E '^(NoNewPrivs|Cap...|Seccomp):' /proc/self/status; hostname; pwd; id -u; id -g; env | sort; ulimit -n; \
                     cut -d' ' -f2 /proc/mounts | grep -vE '^/dev/(null|zero|full|random|urandom|tty)$' | sort; ls /dev; touch /proc/sys/kernel/hostname 2>&1; true";

#[test]
fn runc_makes_the_same_of_the_printed_configuration() {
    if !is_root() || !has("runc") {
        return;
    }
    let (scratch, image) = busybox(Who::Root);
    let words =
        ["-e", "A=1", "-w", "/tmp", "--ulimit", "nofile=100:200", "--cap-drop", "CHOWN", &image, "sh", "-c", PROBE];
    let ours = finish(scratch.command("ctr-run").args(["--name", scratch.token(), "--rm"]).args(words)).ok();
    let printed = finish(scratch.command("ctr-run").args(["--name", scratch.token(), "--print=oci"]).args(words)).ok();
    scratch.write("printed.json", printed);
    scratch.mkdir("bundle");
    let script = format!(
        "layer-mount --from printed.json --scratch mnt >bundle/config.json; runc --root state run -b bundle {}",
        scratch.token()
    );
    scratch.mkdir("mnt");
    let theirs = finish(scratch.command("unshare").args(["--mount", "sh", "-euc", &script])).ok();
    assert_eq!(ours, theirs);
}

#[test]
fn a_bundle_of_runc_runs() {
    if !is_root() || !has("runc") {
        return;
    }
    let scratch = Scratch::new(Who::Root);
    ctr_tests::rootfs::make(&scratch, "bundle/rootfs");
    scratch.sh("cd bundle; runc spec; sed -i 's/\"sh\"/\"sh\", \"-c\", \"hostname; ulimit -n; touch \\/x || echo read-only\"/; s/\"terminal\": true/\"terminal\": false/' config.json").ok();
    let ours = scratch.run("ctr-run", ["--bundle", "bundle"]);
    assert_eq!(ours.ok(), "runc\n1024\nread-only\n", "{}", ours.stderr);
}
