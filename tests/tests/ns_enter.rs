//! `ns-enter`: namespaces and entering them, through what the kernel shows inside; beside unshare, nsenter, setpriv and
//! bwrap where they do the same.

use ctr_tests::{Output, Scratch, Who, finish, has, is_root, rootfs, wait_until};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);

/// The kinds of namespaces: option, name in /proc/PID/ns.
const KINDS: [(&str, &str); 8] = [
    ("user", "user"),
    ("mount", "mnt"),
    ("pid", "pid"),
    ("net", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("cgroup", "cgroup"),
    ("time", "time"),
];

/// A shell script through `ns-enter` with `options` (words between blanks).
fn inside(scratch: &Scratch, options: &str, script: &str) -> Output {
    finish(scratch.command("ns-enter").args(options.split_whitespace()).args(["--", "sh", "-c", script]))
}

/// Options that give a user the right to make namespaces; root has it.
fn as_needed(who: Who) -> &'static str {
    if who == Who::User { "--user" } else { "" }
}

/// The namespaces of a process, by name in /proc/PID/ns.
fn namespaces(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.trim().split_once(":["))
        .map(|(kind, number)| (kind.to_string(), number.trim_end_matches(']').to_string()))
        .collect()
}

const LIST: &str = "for n in user mnt pid net ipc uts cgroup time; do readlink /proc/self/ns/$n; done";

fn own_namespaces() -> BTreeMap<String, String> {
    let read = |(_, name): &(&str, &str)| fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
    let list: Vec<String> = KINDS.iter().map(|kind| read(kind).to_string_lossy().into_owned()).collect();
    namespaces(&list.join("\n"))
}

/// The kinds of `inside` that are not the test's own.
fn different(text: &str) -> Vec<String> {
    let own = own_namespaces();
    let inside = namespaces(text);
    assert_eq!(inside.len(), KINDS.len(), "{text}");
    inside.into_iter().filter(|(kind, number)| own[kind] != *number).map(|(kind, _)| kind).collect()
}

/// A process in namespaces of its own, for as long as the test wants it.
struct Target {
    waiter: Child,
    pid: u32,
}

impl Target {
    /// `sleep` through ns-enter with `options`.
    fn start(scratch: &Scratch, options: &str) -> Self {
        let mut command = scratch.command("ns-enter");
        command.args(options.split_whitespace()).args(["--", "sleep", "1000"]);
        let waiter = command.stdout(Stdio::null()).spawn().expect("ns-enter");
        let mut pid = 0;
        assert!(wait_until(DEADLINE, || {
            pid = running("sleep", waiter.id()).unwrap_or(0);
            pid != 0
        }));
        Target { waiter, pid }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.waiter.kill();
        let _ = self.waiter.wait();
    }
}

/// `pid`, or the child of it, that has become `program`.
fn running(program: &str, pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let all = std::iter::once(pid).chain(children.split_whitespace().filter_map(|pid| pid.parse().ok()));
    all.into_iter().find(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == program))
}

// Namespaces.

#[test]
fn each_kind_is_new_alone() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        for (option, name) in KINDS {
            let need = if option == "user" { "" } else { as_needed(who) };
            let text = inside(&scratch, &format!("{need} --{option}"), LIST).ok();
            let mut expected = vec![name.to_string()];
            if who == Who::User && name != "user" {
                expected.push("user".into());
            }
            expected.sort();
            assert_eq!(different(&text), expected, "--{option} as {who:?}");
        }
    }
}

#[test]
fn all_is_all_that_is_needed() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let text = inside(&scratch, "--all", LIST).ok();
        let mut expected = vec!["cgroup", "ipc", "mnt", "net", "pid", "uts"];
        if who == Who::User {
            expected.insert(5, "user");
        }
        assert_eq!(different(&text), expected, "{who:?}");
    }
}

#[test]
fn a_pid_namespace_has_command_as_its_first_process_and_can_fork() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let text =
            inside(&scratch, &format!("{} --pid", as_needed(who)), "echo $$; ls / >/dev/null; ls / >/dev/null").ok();
        assert_eq!(text, "1\n", "{who:?}");
    }
}

#[test]
fn what_unshare_does_is_the_same_inside() {
    if !has("unshare") {
        return;
    }
    let script = format!(
        "{LIST} | sed 's/:.*//' | tr '\\n' ' '; cat /proc/self/uid_map /proc/self/gid_map; id; \
         grep -E '^(Cap|Sig|NoNew|Seccomp|Groups)' /proc/self/status; umask; ulimit -a; env | sort"
    );
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let pairs = [
            ("--user --map-root", "--user --map-root-user"),
            ("--map-root --mount --uts --ipc --net --cgroup", "-r -m -u -i -n -C"),
            ("--map-user 7 --map-group 8", "--map-user=7 --map-group=8"),
            ("--map-root --pid --mount --mount-proc", "-r --pid --fork --mount-proc"),
            ("--map-root --time --boottime 1000 --monotonic 2000", "-r -T --fork --boottime 1000 --monotonic 2000"),
        ];
        for (ours, theirs) in pairs {
            let mine = inside(&scratch, ours, &script).ok();
            let peer = scratch.run("unshare", theirs.split(' ').chain(["--", "sh", "-c", &script])).ok();
            assert_eq!(mine, peer, "{ours} and unshare {theirs} as {who:?}");
            // unshare denies setgroups to root too, which then cannot drop groups inside.
            let setgroups = inside(&scratch, ours, "cat /proc/self/setgroups").ok();
            assert_eq!(setgroups, if who == Who::Root { "allow\n" } else { "deny\n" });
        }
    }
}

#[test]
fn loopback_is_up_unless_left_alone() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let need = as_needed(who);
        let flags = "cat /sys/class/net/lo/flags";
        // /sys is of the namespace that it was mounted in, so the flags are asked for through a socket.
        let text = inside(&scratch, &format!("{need} --net"), "ip -o link show lo").ok();
        assert!(text.contains("LOOPBACK,UP"), "{text} {flags}");
        let text = inside(&scratch, &format!("{need} --net --no-lo"), "ip -o link show lo").ok();
        assert!(!text.contains(",UP"), "{text}");
    }
}

#[test]
fn names_clocks_and_parameters_are_set_inside_only() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let need = as_needed(who);
        let before = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let names = "cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname";
        let text = inside(&scratch, &format!("{need} --hostname web --domainname test.example"), names).ok();
        assert_eq!(text, "web\ntest.example\n");
        assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before);

        let text = inside(&scratch, &format!("{need} --boottime 8640000"), "cut -d. -f1 /proc/uptime").ok();
        assert!(text.trim().parse::<u64>().unwrap() >= 8_640_000, "{text}");
        inside(&scratch, &format!("{need} --boottime=-99999999"), "true").fails(125, &["timens_offsets", "ERANGE"]);

        let sysctl = "--net --sysctl net.ipv4.ip_default_ttl=77";
        let text = inside(&scratch, &format!("{need} {sysctl}"), "cat /proc/sys/net/ipv4/ip_default_ttl").ok();
        assert_eq!(text, "77\n");
        inside(&scratch, "--net --sysctl kernel.panic=1", "true").fails(125, &["would change the machine"]);
        inside(&scratch, &format!("{need} --sysctl net.ipv4.ip_default_ttl=1"), "true").fails(125, &["add --net"]);
        inside(&scratch, &format!("{need} --net --sysctl net.no.such=1"), "true")
            .fails(125, &["/proc/sys/net/no/such", "ENOENT", "no such parameter"]);
        inside(&scratch, &format!("{need} --hostname {}", "x".repeat(65)), "true")
            .fails(125, &["sethostname", "EINVAL", "64 bytes"]);
    }
}

#[test]
fn mounts_do_not_go_out_and_come_in_as_asked() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new(Who::Root);
    let outer = scratch.mkdir("outer");
    let point = outer.display();
    // A shared mount, in a mount namespace of the test's own.
    let script = |propagation: &str| {
        format!(
            "mount -t tmpfs t {point}; mount --make-shared {point}; mkdir {point}/a {point}/b
             mkfifo {point}/go {point}/ready
             ns-enter --mount {propagation} -- sh -c 'mount -t tmpfs in {point}/a; echo r >{point}/ready; read x <{point}/go; \
                 grep -c {point}/b /proc/self/mountinfo; grep \" {point} \" /proc/self/mountinfo >&2' & 
             read x <{point}/ready; grep -c {point}/a /proc/self/mountinfo || true; mount -t tmpfs out {point}/b; echo g >{point}/go; wait"
        )
    };
    for (propagation, sees, fields) in
        [("", "1", "master:"), ("--propagation slave", "1", "master:"), ("--propagation private", "0", "")]
    {
        let output = scratch.run("ns-enter", ["--mount", "--", "sh", "-c", &script(propagation)]);
        assert_eq!(output.text(), format!("0\n{sees}\n"), "{propagation}: {}", output.stderr);
        assert!(output.stderr.contains(fields) && !output.stderr.contains("shared:"), "{}", output.stderr);
    }
}

#[test]
fn proc_is_of_the_new_pid_namespace() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let need = as_needed(who);
        let text = inside(&scratch, &format!("{need} --pid --mount-proc"), "echo /proc/[0-9]*").ok();
        assert_eq!(text, "/proc/1\n", "{who:?}");
        let dir = scratch.mkdir("proc");
        let text =
            inside(&scratch, &format!("{need} --pid --mount-proc={}", dir.display()), "cd proc; echo [0-9]*").ok();
        assert_eq!(text, "1\n", "{who:?}");
    }
    let scratch = Scratch::new(Who::User);
    inside(&scratch, "--user --mount-proc", "true").fails(125, &["mount(\"proc\", \"/proc\"", "EPERM", "add --pid"]);
    let masked = "mount -t tmpfs none /proc/fs && ns-enter --pid --user --mount-proc -- true";
    inside(&scratch, "--user --mount --pid --mount-proc", masked).fails(125, &["EPERM", "/proc/fs", "unmasked"]);
}

// Id maps.

/// A map's lines with single blanks.
fn map(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn maps_are_as_asked() {
    let scratch = Scratch::new(Who::User);
    let (uid, gid) = (Who::User.uid(), Who::User.gid());
    let maps = |options: &str| map(&inside(&scratch, options, "cat /proc/self/uid_map /proc/self/gid_map").ok());
    assert_eq!(maps("--user"), [format!("0 {uid} 1"), format!("0 {gid} 1")]);
    assert_eq!(maps("--map-user 7"), [format!("7 {uid} 1"), format!("7 {gid} 1")]);
    let auto = maps("--map-auto");
    assert_eq!(auto[0], format!("0 {uid} 1"));
    let first: Vec<u64> = auto[1].split(' ').map(|number| number.parse().unwrap()).collect();
    assert_eq!(first[0], 1);
    let around = maps("--map-auto --map-user 7");
    assert!(around.contains(&format!("7 {uid} 1")) && around.contains(&format!("0 {} 7", first[1])), "{around:?}");
    let explicit =
        format!("--map-users 5:{uid}:1 --map-users 9:{0}:3 --map-groups 5:{gid}:1 --map-groups 9:{0}:3", first[1]);
    assert_eq!(
        maps(&explicit),
        [format!("5 {uid} 1"), format!("9 {} 3", first[1]), format!("5 {gid} 1"), format!("9 {} 3", first[1])]
    );
}

#[test]
fn maps_that_cannot_be_are_refused() {
    let scratch = Scratch::new(Who::User);
    inside(&scratch, "--map-root --map-users 0:100000:5", "true").fails(125, &["overlap"]);
    inside(&scratch, "--map-users 0:0", "true").fails(125, &["INNER:OUTER:COUNT"]);
    inside(&scratch, "--map-users 0:5:1 --map-groups 0:5:1", "true").fails(125, &["newuidmap("]);
    inside(&scratch, "--map-users 0:5:1", "true").fails(125, &["--map-groups"]);
    let mut command = scratch.command("ns-enter");
    let output = finish(command.env("PATH", "/nowhere").args(["--map-auto", "--pid", "--", "/bin/true"]));
    output.fails(125, &["newuidmap", "ENOENT", "uidmap"]);
}

#[test]
fn root_writes_maps_without_a_helper() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new(Who::Root);
    let options = "--map-users 0:0:10 --map-users 10:1000:5 --map-groups 0:0:10";
    let mut command = scratch.command("ns-enter");
    command.env("PATH", "/nowhere").args(options.split(' ')).args([
        "--",
        "/bin/cat",
        "/proc/self/uid_map",
        "/proc/self/setgroups",
    ]);
    let text = finish(&mut command).ok();
    assert_eq!(map(&text), ["0 0 10", "10 1000 5", "allow"]);
}

#[test]
fn a_user_without_subordinate_ids_has_its_own() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new(Who::Root);
    // An id that no file knows.
    let mut command = scratch.command("ns-enter");
    std::os::unix::process::CommandExt::uid(&mut command, 54321);
    std::os::unix::process::CommandExt::gid(&mut command, 54322);
    let text = finish(command.args(["--map-auto", "--", "cat", "/proc/self/uid_map", "/proc/self/gid_map"])).ok();
    assert_eq!(map(&text), ["0 54321 1", "0 54322 1"]);
}

// Existing namespaces.

#[test]
fn all_of_a_target_can_be_joined() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let target = Target::start(&scratch, "--all --user --map-auto --mount-proc --hostname joined");
        let list: String = KINDS
            .iter()
            .map(|(_, name)| {
                fs::read_link(format!("/proc/{}/ns/{name}", target.pid)).unwrap().display().to_string() + "\n"
            })
            .collect();
        let pid = target.pid;
        let text = inside(&scratch, &format!("--target {pid} --all"), LIST).ok();
        assert_eq!(namespaces(&text), namespaces(&list), "{who:?}");
        let text = inside(
            &scratch,
            &format!("--target {pid} --all"),
            "cat /proc/sys/kernel/hostname; id -u; cat /proc/1/comm",
        )
        .ok();
        assert_eq!(text, "joined\n0\nsleep\n");
        // Root may join them from all sides, too.
        if who == Who::User && is_root() {
            let root = Scratch::new(Who::Root);
            let text = inside(&root, &format!("--target {pid} --all"), LIST).ok();
            assert_eq!(namespaces(&text), namespaces(&list));
            assert_eq!(inside(&root, &format!("--target {pid} --all"), "id -u").ok(), "0\n");
            // Root outside has no id inside.
            assert_eq!(inside(&root, &format!("--target {pid} --all --keep-ids"), "id -u").ok(), "65534\n");
        }
    }
}

#[test]
fn nsenter_joins_the_same() {
    if !is_root() || !has("nsenter") {
        return;
    }
    let scratch = Scratch::new(Who::Root);
    let target = Target::start(&scratch, "--all --user --map-auto --mount-proc --time --boottime 500");
    let script = format!("{LIST}; cat /proc/self/uid_map; id; grep 'Cap\\|Groups' /proc/self/status; pwd; env | sort");
    for options in ["--all", "--net --uts", "--user --net", "--pid --mount"] {
        let pid = target.pid;
        let mine = inside(&scratch, &format!("--target {pid} {options}"), &script).ok();
        let mut theirs = vec!["--target".to_string(), pid.to_string()];
        theirs.extend(options.split(' ').map(str::to_string));
        theirs.extend(["--", "sh", "-c", &script].map(str::to_string));
        let peer = scratch.run("nsenter", theirs).ok();
        assert_eq!(mine, peer, "{options}");
    }
}

#[test]
fn a_target_that_became_another_user_can_be_joined_by_its_owner() {
    let scratch = Scratch::new(Who::User);
    rootfs::make(&scratch, "root");
    let root = scratch.path("root");
    let options = format!("--all --map-auto --mount-proc={0}/proc --root {0} --as app --cap-drop all", root.display());
    let target = Target::start(&scratch, &options);
    let text =
        inside(&scratch, &format!("--target {} --all", target.pid), "cat /etc/os-release; id -u; cat /proc/1/comm");
    assert_eq!(text.ok(), "ID=ctrtest\nPRETTY_NAME=\"ctr test root\"\n0\nsleep\n");
}

#[test]
fn a_sandbox_of_bwrap_can_be_joined() {
    if !has("bwrap") {
        return;
    }
    // bwrap with --dev makes a second user namespace below the one that its other namespaces belong to; nsenter fails.
    let scratch = Scratch::new(Who::User);
    let mut command = scratch.command("bwrap");
    command.args(["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all", "--hostname", "bw"]);
    let mut waiter = command.args(["--", "sleep", "1000"]).stdout(Stdio::null()).spawn().expect("bwrap");
    let mut target = None;
    wait_until(DEADLINE, || {
        target = running("bwrap", waiter.id()).and_then(|_| {
            let inner = fs::read_to_string(format!("/proc/{0}/task/{0}/children", waiter.id())).ok()?;
            running("sleep", inner.split_whitespace().next()?.parse().ok()?)
        });
        target.is_some()
    });
    if let Some(pid) = target {
        let text =
            inside(&scratch, &format!("--target {pid} --all"), "cat /proc/sys/kernel/hostname; cat /proc/1/comm");
        assert_eq!(text.ok(), "bw\nbwrap\n");
    } else {
        ctr_tests::skip("bwrap here", "it does not start");
    }
    let _ = waiter.kill();
    let _ = waiter.wait();
    if let Some(pid) = target {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL);
    }
}

#[test]
fn what_cannot_be_joined_is_named_and_nothing_runs() {
    let scratch = Scratch::new(Who::User);
    let target = Target::start(&scratch, "--user --uts --net");
    let pid = target.pid;
    inside(&scratch, &format!("--target {pid} --uts"), "echo ran")
        .fails(125, &["setns(", "/ns/uts", "CLONE_NEWUTS", "EPERM", "join that with --user"]);
    inside(&scratch, "--target 1 --all", "echo ran").fails(125, &["/proc/1/ns/", "EACCES", "another user's"]);
    inside(&scratch, "--target 4194304 --all", "echo ran").fails(125, &["pidfd_open(4194304)"]);
    inside(&scratch, "--net=/proc/self/ns/uts", "echo ran").fails(125, &["EINVAL", "no net namespace"]);
    inside(&scratch, "--net=/nowhere", "echo ran").fails(125, &["open(\"/nowhere\")", "ENOENT"]);
    inside(&scratch, &format!("--target {pid}"), "echo ran").fails(125, &["--target without a kind"]);
    inside(&scratch, &format!("--target {pid} --user --map-root"), "echo ran")
        .fails(125, &["only a new user namespace"]);
}

#[test]
fn rights_here_and_rights_there_both_count() {
    if !is_root() {
        return;
    }
    // A user namespace, and a network namespace that does not belong to it: only the caller's rights can join the latter,
    // and only before the former.
    let (root, user) = (Scratch::new(Who::Root), Scratch::new(Who::User));
    let net = Target::start(&root, "--net");
    let ids = Target::start(&user, "--user --uts");
    let options = format!("--user=/proc/{0}/ns/user --uts=/proc/{0}/ns/uts --net=/proc/{1}/ns/net", ids.pid, net.pid);
    let text = inside(&root, &options, "readlink /proc/self/ns/net; id -u").ok();
    let link = fs::read_link(format!("/proc/{}/ns/net", net.pid)).unwrap();
    assert_eq!(text, format!("{}\n0\n", link.display()));
}

#[test]
fn a_dead_pid_namespace_says_so() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new(Who::Root);
    let dir = scratch.path("kept");
    let dir = dir.display();
    inside(&scratch, &format!("--pid --keep {dir}"), "true").ok();
    inside(&scratch, &format!("--pid={dir}/pid"), "true")
        .fails(125, &["ENOMEM", "first process of that pid namespace has ended"]);
    scratch.run("ns-enter", ["--undo", &dir.to_string()]).ok();
}

#[test]
fn kept_namespaces_outlive_the_command() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new(Who::Root);
    let dir = scratch.path("kept");
    let shown = dir.display();
    let inner =
        inside(&scratch, &format!("--mount --net --uts --ipc --cgroup --user --hostname old --keep {shown}"), LIST)
            .ok();
    let options: String = ["user", "mount", "net", "uts", "ipc", "cgroup"]
        .iter()
        .map(|kind| format!(" --{kind}={shown}/{}", if *kind == "mount" { "mnt" } else { kind }))
        .collect();
    let again = inside(&scratch, &options, LIST).ok();
    assert_eq!(namespaces(&again), namespaces(&inner));
    assert_eq!(inside(&scratch, &format!("--uts={shown}/uts"), "cat /proc/sys/kernel/hostname").ok(), "old\n");
    inside(&scratch, &format!("--net --keep {shown}"), "true").fails(125, &["keeps a", "--undo"]);
    for _ in 0..2 {
        assert_eq!(scratch.run("ns-enter", ["--undo", &shown.to_string()]).ok(), "");
        assert!(!dir.exists());
    }
}

#[test]
fn kept_without_a_command_is_a_document_that_joins() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new(Who::Root);
    let dir = scratch.path("kept");
    let dir = dir.to_str().unwrap();
    let output = scratch.run("ns-enter", ["--uts", "--hostname", "doc", "--keep", dir]);
    assert_eq!(output.json()["linux"]["namespaces"][0]["type"], "uts");
    scratch.write("doc.json", output.ok());
    let text =
        finish(scratch.command("ns-enter").args(["--from", "doc.json", "--", "cat", "/proc/sys/kernel/hostname"])).ok();
    assert_eq!(text, "doc\n");
    scratch.run("ns-enter", ["--undo", dir]).ok();
}

#[test]
fn keeping_without_the_right_leaves_nothing() {
    let scratch = Scratch::new(Who::User);
    let output = scratch.run("ns-enter", ["--user", "--net", "--keep", "kept", "--", "echo", "ran"]);
    output.fails(125, &["MS_BIND", "EPERM", "CAP_SYS_ADMIN"]);
    assert!(!scratch.path("kept").exists());
}

// The root.

/// `sh` inside `root`, as root there, with all namespaces.
fn in_root(scratch: &Scratch, options: &str, script: &str) -> Output {
    let root = scratch.path("root");
    let who = if scratch.who == Who::User { "--user --map-auto" } else { "" };
    let proc = root.join("proc");
    let options = format!("--all {who} --mount-proc={} --root {} {options}", proc.display(), root.display());
    inside(scratch, &options, script)
}

fn each_root() -> Vec<Scratch> {
    let scratches: Vec<Scratch> = Who::all().into_iter().map(Scratch::new).collect();
    for scratch in &scratches {
        rootfs::make(scratch, "root");
    }
    scratches
}

#[test]
fn the_old_root_is_gone() {
    for scratch in each_root() {
        let text =
            in_root(&scratch, "", "cat /etc/os-release; cd /; pwd; cut -d' ' -f5 /proc/self/mountinfo; ls -id / /..")
                .ok();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..5], ["ID=ctrtest", "PRETTY_NAME=\"ctr test root\"", "/", "/", "/proc"], "{text}");
        let inodes: Vec<&str> = lines[5..].iter().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(inodes[0], inodes[1]);
        // Nothing of it was left in the directory itself.
        assert!(!scratch.path("root/x").exists());
    }
}

#[test]
fn a_mount_is_a_root_too_and_read_only_is_its_top_alone() {
    for scratch in each_root() {
        let who = if scratch.who == Who::User { "--user --map-auto" } else { "" };
        let script = "mkdir at; mount --bind root at; mount -t tmpfs vol at/mnt;
             exec ns-enter --root at --read-only -- sh -c 'touch /x 2>&1; touch /mnt/y && ls /mnt; grep -c . /proc/mounts'";
        let output = inside(&scratch, &format!("{who} --mount"), script);
        assert!(output.text().contains("Read-only file system") && output.text().contains("\ny\n"), "{output:?}");
        assert!(!scratch.path("root/x").exists());
    }
}

#[test]
fn a_root_can_be_entered_from_a_chroot() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new(Who::Root);
    let outer = rootfs::make(&scratch, "outer");
    let inner = scratch.mkdir("outer/inner");
    for dir in ["bin", "etc"] {
        let status = scratch.run("cp", ["-a", outer.join(dir).to_str().unwrap(), inner.to_str().unwrap()]);
        status.ok();
    }
    fs::write(inner.join("etc/os-release"), "ID=inner\n").unwrap();
    fs::copy(ctr_tests::bin_dir().join("ns-enter"), outer.join("bin/ns-enter")).unwrap();
    let mut command = scratch.command("chroot");
    command.arg(&outer).args(["/bin/ns-enter", "--root", "/inner", "--", "cat", "/etc/os-release"]);
    assert_eq!(finish(&mut command).ok(), "ID=inner\n");
    // The mount namespace was the tool's own, so nothing is left here: the scratch looks when it goes.
}

/// In the virtual machine (`tests/vm/run BINARY whatever_the_present_root`) the present root is an initramfs, which
/// pivot_root(2) refuses.
#[test]
fn whatever_the_present_root_is_it_can_be_left() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new(Who::Root);
    rootfs::make(&scratch, "root");
    for options in ["", "--read-only", "--as app --cap-drop all --no-new-privs"] {
        let text =
            in_root(&scratch, options, "cat /etc/os-release; cut -d' ' -f5 /proc/self/mountinfo; ls -di / /..").ok();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..4], ["ID=ctrtest", "PRETTY_NAME=\"ctr test root\"", "/", "/proc"], "{text}");
    }
    let text = in_root(&scratch, "--user", "unshare -U true; echo $?").ok();
    assert_eq!(text, "0\n");
    let text = inside(&scratch, "--root root", "cat /etc/os-release; echo /proc/*").ok();
    assert!(text.ends_with("root\"\n/proc/*\n"), "{text}");
}

#[test]
fn the_working_directory_is_inside() {
    for scratch in each_root() {
        scratch.mkdir("root/srv");
        assert_eq!(in_root(&scratch, "--workdir /srv", "pwd").ok(), "/srv\n");
        in_root(&scratch, "--workdir /nowhere", "true")
            .fails(125, &["chdir(\"/nowhere\")", "ENOENT", "--make-workdir"]);
        assert!(!scratch.path("root/nowhere").exists());
        let made = inside(
            &scratch,
            "--umask 077",
            &format!(
                "exec ns-enter --all {} --root root --workdir /made/deep --make-workdir --read-only -- pwd",
                if scratch.who == Who::User { "--user --map-auto" } else { "" }
            ),
        );
        assert_eq!(made.ok(), "/made/deep\n");
        assert_eq!(fs::metadata(scratch.path("root/made/deep")).unwrap().permissions().mode() & 0o777, 0o755);
        in_root(&scratch, "--workdir /etc/passwd", "true").fails(125, &["chdir(\"/etc/passwd\")", "ENOTDIR"]);
        symlink("/srv", scratch.path("root/link")).unwrap();
        assert_eq!(in_root(&scratch, "--workdir /link", "pwd -P").ok(), "/srv\n");
    }
}

#[test]
fn no_descriptor_leads_out() {
    for scratch in each_root() {
        // An open directory of the host, and an image whose working directory is a link to it (CVE-2024-21626).
        symlink("/proc/self/fd/9", scratch.path("root/out")).unwrap();
        let root = scratch.path("root");
        let who = if scratch.who == Who::User { "--user --map-auto" } else { "" };
        let enter = format!("ns-enter --all {who} --mount-proc={0}/proc --root {0}", root.display());
        let leak = scratch.sh(&format!("exec 9</; {enter} --workdir /out -- ls"));
        leak.fails(125, &["outside"]);
        let text = scratch.sh(&format!("exec 7</; exec 8</dev/null; {enter} -- ls /proc/self/fd")).ok();
        assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"], "3 is ls's own");
        let text =
            scratch.sh(&format!("exec 7<&0; exec 8</dev/null; {enter} --keep-fd 8 -- sh -c 'ls /proc/$$/fd'")).ok();
        assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3", "8"], "3 is ls's own");
        scratch.sh(&format!("exec 8<&-; {enter} --keep-fd 8 -- true")).fails(125, &["fcntl(8", "EBADF"]);
    }
}

#[test]
fn the_session_and_the_keyring_are_new() {
    for scratch in each_root() {
        let session = "cut -d' ' -f6 /proc/self/stat";
        // In a new PID namespace the first process leads; a session from outside shows as 0.
        assert_eq!(in_root(&scratch, "", session).ok(), "1\n", "{:?}", scratch.who);
        assert_eq!(in_root(&scratch, "--keep-session", session).ok(), "0\n");
    }
}

#[test]
fn this_tools_own_program_does_not_run_inside() {
    for scratch in each_root() {
        symlink("/proc/self/exe", scratch.path("root/bin/evil")).unwrap();
        scratch.write("root/bin/script", "#!/proc/self/exe\n");
        scratch.write("root/bin/twice", "#!/bin/script\n");
        for name in ["script", "twice"] {
            fs::set_permissions(scratch.path("root/bin").join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let root = scratch.path("root");
        let who = if scratch.who == Who::User { "--user --map-auto" } else { "" };
        let options = format!("--all {who} --mount-proc={0}/proc --root {0}", root.display());
        for command in ["evil", "/bin/evil", "script", "twice"] {
            let mut run = scratch.command("ns-enter");
            let output = finish(run.args(options.split(' ').filter(|word| !word.is_empty())).args(["--", command]));
            output.fails(126, &["execve(", "EACCES", "own program"]);
        }
        // Found from the working directory, too.
        let here = scratch.path("root/tmp/here");
        symlink("/proc/self/exe", &here).unwrap();
        // Its own: others' links in a sticky directory are not followed at all (proc(5), protected_symlinks).
        lchown(&here, Some(scratch.who.uid()), Some(scratch.who.gid())).unwrap();
        for (path, command) in [("PATH=/bin", "./here"), ("PATH=:/bin", "here")] {
            let mut run = scratch.command("ns-enter");
            run.args(options.split(' ').filter(|word| !word.is_empty())).args(["--workdir", "/tmp", "--env", path]);
            finish(run.args(["--", command])).fails(126, &["execve(", "EACCES", "own program"]);
        }
    }
}

#[test]
fn a_root_that_cannot_be_entered_says_why() {
    for scratch in each_root() {
        let who = as_needed(scratch.who);
        inside(&scratch, &format!("{who} --root nowhere"), "true").fails(125, &["nowhere", "ENOENT"]);
        inside(&scratch, &format!("{who} --root root/etc/passwd"), "true").fails(125, &["root/etc/passwd", "ENOTDIR"]);
        inside(&scratch, "--read-only", "true").fails(125, &["--root"]);
    }
    let scratch = Scratch::new(Who::User);
    rootfs::make(&scratch, "root");
    inside(&scratch, "--root root", "true").fails(125, &["unshare(CLONE_NEWNS)", "EPERM", "--user"]);
}

// Identity and privileges.

#[test]
fn users_are_the_roots_own() {
    for scratch in each_root() {
        let id = "id -u; id -g; id -G; echo $HOME";
        assert_eq!(in_root(&scratch, "--as app", id).ok(), "1000\n1000\n1000 2000\n/home/app\n");
        assert_eq!(in_root(&scratch, "--as 1000", id).ok(), "1000\n1000\n1000 2000\n/home/app\n");
        assert_eq!(in_root(&scratch, "--as app:extra", id).ok(), "1000\n2000\n2000\n/home/app\n");
        assert_eq!(in_root(&scratch, "--as 4321:1234", id).ok(), "4321\n1234\n1234\n/\n");
        assert_eq!(in_root(&scratch, "--as 4321", id).ok(), "4321\n0\n0\n/\n");
        assert_eq!(in_root(&scratch, "--as root --env HOME=/mine", "echo $HOME").ok(), "/mine\n");
        in_root(&scratch, "--as eve", "true").fails(125, &["user \"eve\": not in /etc/passwd of "]);
        in_root(&scratch, "--as app:eve", "true").fails(125, &["group \"eve\": not in /etc/group of "]);
        in_root(&scratch, "--as ''", "true").fails(125, &["user"]);
    }
    let scratch = Scratch::new(Who::User);
    rootfs::make(&scratch, "root");
    inside(&scratch, "--user --root root --as app", "true")
        .fails(125, &["setresgid(1000", "EINVAL", "not mapped", "--map-auto"]);
    inside(&scratch, "--as 0", "true").fails(125, &["EPERM", "CAP_SETGID"]);
}

#[test]
fn groups_that_do_not_exist_inside_are_left_out_unless_asked_for() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new(Who::Root);
    rootfs::make(&scratch, "root");
    let maps = "--user --map-users 0:0:1 --map-users 1000:1000:1 --map-groups 0:0:1 --map-groups 77:77:1 --map-groups 1000:1000:1";
    let options = |more: &str| format!("{maps} --root root --as app {more}");
    // /etc/group has the user in 2000, too.
    assert_eq!(inside(&scratch, &options(""), "id -G").ok(), "1000\n");
    assert_eq!(inside(&scratch, &options("--group-add 77"), "id -G").ok(), "1000 77\n");
    inside(&scratch, &options("--group-add extra"), "id -G")
        .fails(125, &["EINVAL", "group 2000 is not mapped", "--map-groups"]);
}

/// The capability lines of /proc/self/status.
const CAPS: &str = "grep Cap /proc/self/status | tr -d '\\t\\n' | tr ':' '='; echo";

fn sets(inheritable: u64, permitted: u64, bounding: u64, ambient: u64) -> String {
    format!(
        "CapInh={inheritable:016x}CapPrm={permitted:016x}CapEff={permitted:016x}CapBnd={bounding:016x}CapAmb={ambient:016x}\n"
    )
}

#[test]
fn capabilities_in_all_five_sets() {
    const CHOWN: u64 = 1;
    const BIND: u64 = 1 << 10;
    for scratch in each_root() {
        let caps = |options: &str| in_root(&scratch, options, CAPS).ok();
        assert_eq!(caps("--cap-drop all"), sets(0, 0, 0, 0));
        assert_eq!(caps("--cap-drop all --cap-add chown"), sets(0, CHOWN, CHOWN, 0));
        assert_eq!(caps("--cap-drop ALL --cap-add CAP_CHOWN,net_bind_service"), sets(0, CHOWN | BIND, CHOWN | BIND, 0));
        assert_eq!(caps("--as app --cap-drop all --cap-add chown"), sets(0, 0, CHOWN, 0));
        assert_eq!(caps("--as app --cap-drop all --cap-ambient net_bind_service"), sets(BIND, BIND, BIND, BIND));
        assert_eq!(
            caps("--as app --cap-drop all --cap-add chown --cap-ambient net_bind_service --no-new-privs"),
            sets(BIND, BIND, BIND | CHOWN, BIND)
        );
        let text = in_root(&scratch, "--cap-drop net_raw", CAPS).ok();
        let bounding = u64::from_str_radix(&text[text.find("CapBnd=").unwrap() + 7..][..16], 16).unwrap();
        assert_eq!(bounding & 1 << 13, 0);
        assert_ne!(bounding & CHOWN, 0);
        in_root(&scratch, "--cap-drop fly", "true").fails(125, &["capability \"fly\""]);
    }
    let scratch = Scratch::new(Who::User);
    inside(&scratch, "--cap-drop all", "true").fails(125, &["PR_CAPBSET_DROP", "EPERM", "CAP_SETPCAP"]);
    inside(&scratch, "--map-root", "ns-enter --cap-drop chown -- ns-enter --cap-add chown -- true")
        .fails(125, &["CAP_CHOWN", "bounding"]);
}

#[test]
fn what_setpriv_does_is_the_same_inside() {
    if !is_root() || !has("setpriv") {
        return;
    }
    let scratch = Scratch::new(Who::Root);
    let script = "grep -E '^(Uid|Gid|Groups|Cap|NoNew)' /proc/self/status";
    let pairs = [
        ("--no-new-privs", "--no-new-privs"),
        ("--as 1000:1000", "--reuid=1000 --regid=1000 --groups=1000 --inh-caps=-all"),
        (
            "--as 1000:1000 --cap-drop all --no-new-privs",
            "--reuid=1000 --regid=1000 --groups=1000 --bounding-set=-all --inh-caps=-all --no-new-privs",
        ),
        ("--cap-drop all --cap-add chown", "--bounding-set=-all,+chown --inh-caps=-all"),
        (
            "--as 1000:1000 --cap-ambient net_raw",
            "--reuid=1000 --regid=1000 --groups=1000 --inh-caps=-all,+net_raw --ambient-caps=-all,+net_raw",
        ),
    ];
    for (ours, theirs) in pairs {
        let mine = inside(&scratch, ours, script).ok();
        let peer = scratch.run("setpriv", theirs.split(' ').chain(["sh", "-c", script])).ok();
        assert_eq!(mine, peer, "{ours} and setpriv {theirs}");
    }
}

#[test]
fn bwrap_makes_the_same_sandbox() {
    if !has("bwrap") {
        return;
    }
    for scratch in each_root() {
        let root = scratch.path("root");
        let root = root.to_str().unwrap();
        let script = format!(
            "{LIST} | sed 's/:.*//' | tr '\\n' ' '; pwd; cut -d' ' -f5,9- /proc/self/mountinfo | cut -d' ' -f1 ; grep -E '^(NoNew|Cap(Inh|Prm|Eff|Amb)|Seccomp:)' /proc/self/status; cat /proc/sys/kernel/hostname; id -u"
        );
        let user = if scratch.who == Who::User { vec!["--unshare-user", "--uid", "0", "--gid", "0"] } else { vec![] };
        let mut peer = scratch.command("bwrap");
        peer.args(user).args(["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup"]);
        peer.args([
            "--hostname",
            "h",
            "--as-pid-1",
            "--bind",
            root,
            "/",
            "--proc",
            "/proc",
            "--cap-drop",
            "ALL",
            "--new-session",
        ]);
        peer.args(["--", "/bin/sh", "-c", &script]);
        let theirs = finish(&mut peer);
        if theirs.status != 0 {
            ctr_tests::skip("bwrap here", &theirs.stderr);
            continue;
        }
        let who = if scratch.who == Who::User { "--user" } else { "" };
        let options =
            format!("--all {who} --hostname h --mount-proc={root}/proc --root {root} --cap-drop all --no-new-privs");
        let mine = inside(&scratch, &options, &script).ok();
        // bwrap 0.8 leaves the bounding set as it was.
        let bounding = inside(&scratch, &options, "grep CapBnd /proc/self/status").ok();
        assert_eq!(bounding, "CapBnd:\t0000000000000000\n");
        let facts = |text: &str| -> Vec<String> {
            // bwrap's /proc has covers on it, which are further lines.
            text.lines().filter(|line| !line.starts_with("/proc/")).map(str::to_string).collect()
        };
        assert_eq!(facts(&mine), facts(&theirs.text()), "{:?}", scratch.who);
    }
}

#[test]
fn only_the_user_or_only_root_may_reach_the_working_directory() {
    for scratch in each_root() {
        let private = scratch.mkdir("root/private");
        fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
        // The directory is root's inside: reached before the change of user.
        assert_eq!(in_root(&scratch, "--as app --workdir /private", "pwd").ok(), "/private\n", "{:?}", scratch.who);
    }
    if is_root() {
        let scratch = Scratch::new(Who::Root);
        rootfs::make(&scratch, "root");
        let private = scratch.mkdir("root/private");
        std::os::unix::fs::chown(&private, Some(1000), Some(1000)).unwrap();
        fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
        // Root without the capabilities that pass by permissions; as on a network file system.
        let script = |who: &str| format!("exec ns-enter --root root --as {who} --workdir /private -- pwd");
        let options = "--cap-drop dac_override,dac_read_search";
        assert_eq!(inside(&scratch, options, &script("app")).ok(), "/private\n");
        inside(&scratch, options, &script("daemon")).fails(125, &["chdir(\"/private\")", "EACCES"]);
    }
}

#[test]
fn limits_umask_and_preference() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let text = inside(
            &scratch,
            "--ulimit nofile=50:60 --ulimit core=0 --umask 0137",
            "ulimit -Sn; ulimit -Hn; ulimit -c; umask",
        )
        .ok();
        assert_eq!(text, "50\n60\n0\n0137\n");
        let now: i32 = fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
        let text = inside(&scratch, "--oom-score-adj 777", "cat /proc/self/oom_score_adj").ok();
        assert_eq!(text, "777\n", "was {now}");
        inside(&scratch, "--umask 8", "true").fails(125, &["umask", "octal"]);
        inside(&scratch, "--ulimit files=1", "true").fails(125, &["limit \"files\"", "nofile"]);
        inside(&scratch, "--ulimit nofile=9:8", "true").fails(125, &["above the hard one"]);
        inside(&scratch, "--oom-score-adj 1001", "true").fails(125, &["1001"]);
    }
    let scratch = Scratch::new(Who::User);
    inside(&scratch, "--ulimit nofile=50", "ns-enter --ulimit nofile=51 -- true")
        .fails(125, &["setrlimit(nofile, 51:51)", "EPERM", "50:50"]);
    inside(&scratch, "--oom-score-adj 500", "ns-enter --oom-score-adj -1000 -- true")
        .fails(125, &["oom_score_adj", "EACCES", "it is 500 here"]);
}

#[test]
fn environments() {
    let scratch = Scratch::new(Who::User);
    scratch.write("vars", "# comment\nA=file\nB=file\n\nIMPORT\n");
    let run = |args: &[&str]| {
        let mut command = scratch.command("ns-enter");
        command.env("IMPORT", "caller").env("ODD", "x\ny").args(args).args(["--", "/usr/bin/env", "-0"]);
        let output = finish(&mut command);
        let text = output.ok();
        text.split_terminator('\0').map(str::to_string).collect::<Vec<_>>()
    };
    assert_eq!(run(&["--clear-env"]), Vec::<String>::new());
    assert_eq!(
        run(&["--clear-env", "--env", "A=1\n2", "--env", "A=3", "--env", "ODD", "--env", "NOWHERE"]),
        ["A=3", "ODD=x\ny"]
    );
    assert_eq!(run(&["--clear-env", "--env-file", "vars", "--env", "B=arg"]), ["A=file", "IMPORT=caller", "B=arg"]);
    assert!(run(&["--env", "A=1"]).contains(&"IMPORT=caller".to_string()));
    let mut command = scratch.command("ns-enter");
    finish(command.args(["--env-file", "nowhere", "--", "true"])).fails(125, &["nowhere", "ENOENT"]);
    let mut command = scratch.command("ns-enter");
    finish(command.args(["--env", "=x", "--", "true"])).fails(125, &["no name"]);
}

#[test]
fn a_document_is_followed() {
    for scratch in each_root() {
        let root = scratch.path("root");
        let document = serde_json::json!({
            "ociVersion": "1.2.0",
            "hostname": "doc",
            "root": {"path": root, "readonly": true},
            "process": {
                "args": ["sh", "-c", "hostname; id -u; id -G; pwd; echo $A $HOME; touch /x 2>/dev/null || echo ro; umask"],
                "env": ["A=1", "PATH=/bin"], "cwd": "/fresh/dir", "noNewPrivileges": true,
                "user": {"uid": 1000, "gid": 1000, "additionalGids": [5], "umask": 63},
                "capabilities": {"bounding": ["CAP_KILL"]},
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 20, "hard": 30}],
            },
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "uts"}]},
        });
        scratch.write("doc.json", document.to_string());
        let who = if scratch.who == Who::User { "--user --map-auto" } else { "" };
        let mut command = scratch.command("ns-enter");
        let words: Vec<&str> = who.split_whitespace().collect();
        let text = finish(command.args(&words).args(["--from", "doc.json"])).ok();
        assert_eq!(text, "doc\n1000\n1000 5\n/fresh/dir\n1 /home/app\nro\n0077\n", "{:?}", scratch.who);
        let mut command = scratch.command("ns-enter");
        let text =
            finish(command.args(&words).args(["--from", "doc.json", "--", "grep", "CapBnd", "/etc/../etc/passwd"]));
        assert_eq!(text.status, 1, "COMMAND overrides process.args");
        scratch.write("bad.json", "{\"linux\":{\"namespaces\":[{\"type\":\"world\"}]}}");
        inside(&scratch, "--from bad.json", "true").fails(125, &["\"world\""]);
    }
}

// Errors as help.

#[test]
fn namespaces_forbidden_by_a_limit_say_which() {
    let scratch = Scratch::new(Who::User);
    let limited = |kind: &str, options: &str| {
        let script = format!("echo 0 >/proc/sys/user/max_{kind}_namespaces; exec ns-enter {options} -- echo ran");
        inside(&scratch, "--map-root", &script)
    };
    limited("user", "--user").fails(125, &["CLONE_NEWUSER", "ENOSPC", "user.max_user_namespaces"]);
    limited("net", "--net --uts").fails(125, &["CLONE_NEWNET", "ENOSPC", "user.max_net_namespaces"]);
    limited("pid", "--pid").fails(125, &["CLONE_NEWPID", "ENOSPC", "user.max_pid_namespaces"]);
    limited("mnt", "--mount").fails(125, &["CLONE_NEWNS", "ENOSPC", "user.max_mnt_namespaces"]);
    limited("time", "--time").fails(125, &["CLONE_NEWTIME", "ENOSPC", "user.max_time_namespaces"]);
}

#[test]
fn user_namespaces_forbidden_by_a_chroot_or_a_filter_say_so() {
    let scratch = Scratch::new(Who::User);
    let text = inside(&scratch, "--no-new-privs --seccomp default", "exec ns-enter --user -- echo ran");
    text.fails(125, &["CLONE_NEWUSER", "EPERM", "seccomp filter"]);
    if !is_root() {
        return;
    }
    let scratch = Scratch::new(Who::Root);
    let outer = rootfs::make(&scratch, "outer");
    fs::copy(ctr_tests::bin_dir().join("ns-enter"), outer.join("bin/ns-enter")).unwrap();
    let script = "mount -t proc proc outer/proc; exec chroot outer /bin/ns-enter --user -- echo ran";
    inside(&scratch, "--mount", script).fails(125, &["CLONE_NEWUSER", "EPERM", "chroot"]);
}

#[test]
fn user_namespaces_nest_only_so_deep() {
    let scratch = Scratch::new(Who::User);
    scratch.write("nest", "[ $1 = 40 ] && echo deep || exec ns-enter --user -- sh nest $(($1+1))\n");
    scratch.run("sh", ["nest", "0"]).fails(125, &["CLONE_NEWUSER", "ENOSPC", "32 nested"]);
}

#[test]
fn user_namespaces_work_inside_a_root() {
    for scratch in each_root() {
        // Not so in a chroot.
        assert_eq!(in_root(&scratch, "", "unshare -U true; echo $?").ok(), "0\n", "{:?}", scratch.who);
    }
}

#[test]
fn without_privilege_the_message_says_what_gives_it() {
    let scratch = Scratch::new(Who::User);
    inside(&scratch, "--mount", "true").fails(125, &["unshare(CLONE_NEWNS)", "EPERM", "--user"]);
    inside(&scratch, "--pid --net", "true").fails(125, &["clone3(", "CLONE_NEWPID", "EPERM", "--user"]);
    inside(&scratch, "--hostname x", "true").fails(125, &["EPERM", "--user"]);
    scratch.run("ns-enter", ["--user"]).fails(125, &["no COMMAND"]);
}

#[test]
fn check_tells_what_can_be_had() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let report = scratch.run("ns-enter", ["--check", "--json"]).json();
        for (option, _) in KINDS {
            assert_eq!(report["namespaces"][option]["available"], true, "{option}: {report}");
        }
        assert_eq!(report["filters"]["seccomp"]["available"], true);
        let text = scratch.run("ns-enter", ["--check"]).ok();
        assert!(text.lines().count() >= 12 && text.contains("namespaces net"), "{text}");
        let script = "echo 0 >/proc/sys/user/max_net_namespaces; ns-enter --check; exec ns-enter --check --net -- x";
        let output = inside(&scratch, "--user --map-root", script);
        assert_eq!(output.status, 125);
        assert!(output.text().contains("user.max_net_namespaces"), "{output:?}");
        assert!(output.stderr.contains("namespaces net: cannot be had here"), "{output:?}");
    }
}

/// Who owns `path`.
fn owner(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().uid()
}

#[test]
fn files_made_inside_belong_to_the_caller_outside() {
    let scratch = Scratch::new(Who::User);
    inside(&scratch, "--map-root", "touch file").ok();
    assert_eq!(owner(&scratch.path("file")), Who::User.uid());
}

#[test]
fn a_chain_of_processes_does_what_one_call_does() {
    for scratch in each_root() {
        let root: PathBuf = scratch.path("root");
        let who = if scratch.who == Who::User { "--user --map-auto" } else { "" };
        let tail = "--as app --cap-drop all --no-new-privs --clear-env --env PATH=/bin --workdir /tmp";
        let script =
            "id; pwd; env | sort; grep -E '^(Cap|NoNew)' /proc/self/status; cut -d' ' -f5- /proc/self/mountinfo";
        let one = in_root(&scratch, tail, script).ok();
        let root = root.display();
        let mut words: Vec<&str> = vec!["--all"];
        words.extend(who.split_whitespace());
        let proc = format!("--mount-proc={root}/proc");
        let enter = format!("--root={root}");
        words.extend([&proc as &str, "--", "ns-enter", &enter]);
        words.extend(tail.split(' '));
        words.extend(["--", "sh", "-c", script]);
        assert_eq!(scratch.run("ns-enter", words).ok(), one, "{:?}", scratch.who);
    }
}

#[test]
fn ids_are_mapped_where_proc_is_another_namespaces() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let outer = if who == Who::User { "--user --map-root --pid" } else { "--pid" };
        for inner in ["--user", "--user --pid", "--user --time"] {
            let text = scratch.sh(&format!("ns-enter {outer} -- ns-enter {inner} -- id -u")).ok();
            assert_eq!(text, "0\n", "{who:?} {inner}");
        }
    }
}
