//! Every option of `ctr-run`: what it does is seen inside through the kernel, and is the same when the printed script is run
//! by hand. The table has all options of `--help`; what cannot be in it is named with the test that has it.

use ctr_tests::image::{Image, Layer, busybox};
use ctr_tests::terminal::Terminal;
use ctr_tests::{DEADLINE, Scratch, Who, code, finish, wait, wait_until};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Child;

/// An option with its value, a script, and what that prints in a container with the option. `{…}` are filled in.
struct Case {
    options: &'static [&'static str],
    script: &'static str,
    want: &'static str,
    /// A limit: an ordinary user without a group of its own is refused.
    limit: bool,
}

const fn case(options: &'static [&'static str], script: &'static str, want: &'static str) -> Case {
    Case { options, script, want, limit: false }
}

const fn limit(options: &'static [&'static str], script: &'static str, want: &'static str) -> Case {
    Case { options, script, want, limit: true }
}

/// The first of these files that there is, version 1 or 2.
const SHOW: &str =
    "show() { for file in $*; do test -e /sys/fs/cgroup/$file && cat /sys/fs/cgroup/$file && break; done; }; ";

const CASES: &[Case] = &[
    case(&["--entrypoint", "echo"], "x", "-c x\n"),
    case(&["--env", "A=b c"], "echo $A", "b c\n"),
    case(&["-e", "FROM_CALLER"], "echo $FROM_CALLER", "here\n"),
    case(&["-e", "NOT_THERE", "-e", "FROM_IMAGE=new"], "env | grep -E 'NOT_THERE|FROM_IMAGE'", "FROM_IMAGE=new\n"),
    case(&["--env-file", "vars"], "echo $ONE$TWO", "12\n"),
    case(&["--workdir", "/new/dir"], "pwd; readlink /proc/self/cwd", "/new/dir\n/new/dir\n"),
    case(
        &["--user", "app"],
        "id -u; id -G; echo $HOME; grep CapEff /proc/self/status",
        "1000\n1000 2000\n/home/app\nCapEff:\t0000000000000000\n",
    ),
    case(&["-u", "1:2"], "id -u; id -g", "1\n2\n"),
    case(&["--group-add", "extra", "--group-add", "77"], "id -G", "0 77 2000\n"),
    case(&["--interactive"], "cat", "typed"),
    case(&["-i"], "readlink /proc/self/fd/0 | cut -d: -f1", "pipe\n"),
    case(&["--init"], "echo $$ $PPID; grep -c . /proc/1/status >/dev/null && echo 1", "2 1\n1\n"),
    case(&["--rm"], "echo fine", "fine\n"),
    case(&["--read-only"], "(: >/x) 2>/dev/null || grep -oE ' / [a-z]* ro\\b' /proc/mounts", " / overlay ro\n"),
    case(&["--hostname", "box"], "hostname; echo $HOSTNAME; grep -w box /etc/hosts", "box\nbox\n127.0.1.1\tbox\n"),
    case(&["--label", "a=b"], "echo fine", "fine\n"),
    case(&["--store", "other"], "cut -d' ' -f4 /proc/mounts | grep -c /other/layers/", "1\n"),
    case(&["--ulimit", "nofile=100:200", "--ulimit", "core=0"], "ulimit -n; ulimit -Hn; ulimit -c", "100\n200\n0\n"),
    case(
        &["--volume", "./src:/a:ro"],
        "cat /a/file; (: >/a/new) 2>&1 | grep -o Read-only; grep -oE ' /a [a-z0-9]* ro\\b' /proc/mounts | cut -d' ' -f2",
        "content\nRead-only\n/a\n",
    ),
    case(&["-v", "data:/data"], "test -e /data/x || : >/data/x; ls /data", "x\n"),
    case(
        &["--mount", "type=bind,src={dir}/src,dst=/b,readonly"],
        "cat /b/file; (: >/b/new) 2>&1 | grep -o Read-only",
        "content\nRead-only\n",
    ),
    case(&["--mount", "type=volume,src=data,dst=/b"], "test -d /b && echo fine", "fine\n"),
    case(
        &["--tmpfs", "/t:size=1m,mode=700"],
        "grep -c ' /t tmpfs .*size=1024k' /proc/mounts; stat -c %a /t",
        "1\n700\n",
    ),
    case(&["--shm-size", "2M"], "df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d' ' -f2", "2048\n"),
    case(
        &["--device", "/dev/zero:/dev/mine"],
        "head -c 2 /dev/mine | od -An -tx1 | tr -d ' '; stat -c %t:%T /dev/mine",
        "0000\n1:5\n",
    ),
    case(
        &["--net", "new"],
        "ls /sys/class/net; cat /sys/class/net/lo/operstate; readlink /proc/self/ns/net | grep -vc '{net}'",
        "lo\nunknown\n1\n",
    ),
    case(&["--network", "none"], "readlink /proc/self/ns/net | grep -vc '{net}'", "1\n"),
    case(&["--net", "host"], "readlink /proc/self/ns/net", "{net}\n"),
    case(&["--add-host", "db:10.0.0.7", "--add-host", "v6:::1"], "tail -n 2 /etc/hosts", "10.0.0.7\tdb\n::1\tv6\n"),
    case(&["--dns", "9.9.9.9"], "cat /etc/resolv.conf", "nameserver 9.9.9.9\n"),
    case(&["--pid", "host"], "readlink /proc/self/ns/pid; test -d /proc/{self} && echo seen", "{pid}\nseen\n"),
    case(&["--ipc", "host"], "readlink /proc/self/ns/ipc", "{ipc}\n"),
    case(&["--uts", "host"], "readlink /proc/self/ns/uts; test $HOSTNAME = $(hostname) && echo same", "{uts}\nsame\n"),
    case(&["--sysctl", "net.ipv4.ip_forward=1"], "cat /proc/sys/net/ipv4/ip_forward", "1\n"),
    case(
        &["--cap-add", "NET_ADMIN"],
        "ip link add x type dummy 2>/dev/null; ip link set lo down && grep CapEff /proc/self/status",
        "CapEff:\t00000000a80435fb\n",
    ),
    case(
        &["--cap-drop", "CHOWN,MKNOD"],
        "grep CapBnd /proc/self/status; : >/tmp/f; chown 1 /tmp/f 2>&1 | grep -o permitted",
        "CapBnd:\t00000000a00425fa\npermitted\n",
    ),
    case(
        &["--cap-drop", "ALL"],
        "grep Cap /proc/self/status | tr -s '0\\n' ' '",
        "CapInh:\t CapPrm:\t CapEff:\t CapBnd:\t CapAmb:\t ",
    ),
    case(
        &["--privileged"],
        "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status; grep -c ' /proc/' /proc/mounts; grep -oE ' /sys sysfs rw' /proc/mounts; test -e /dev/kmsg && echo devices",
        "NoNewPrivs:\t0\nSeccomp:\t0\n0\n /sys sysfs rw\ndevices\n",
    ),
    case(
        &["--security-opt", "seccomp=unconfined"],
        "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status",
        "NoNewPrivs:\t1\nSeccomp:\t0\n",
    ),
    case(
        &["--security-opt", "seccomp=default"],
        "grep Seccomp: /proc/self/status; unshare -U true 2>&1 | grep -o permitted",
        "Seccomp:\t2\npermitted\n",
    ),
    case(
        &["--security-opt", "seccomp=filter.json"],
        "mkdir /tmp/x 2>&1 | grep -o Cannot; unshare -U true && echo allowed",
        "Cannot\nallowed\n",
    ),
    case(&["--security-opt", "no-new-privileges"], "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n"),
    case(
        &["--security-opt", "no-new-privileges=false"],
        "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status",
        "NoNewPrivs:\t0\nSeccomp:\t2\n",
    ),
    limit(&["--memory", "64M"], "show memory/memory.limit_in_bytes memory.max", "67108864\n"),
    limit(
        &["--memory", "64M", "--memory-swap", "96M"],
        "show memory/memory.memsw.limit_in_bytes memory.swap.max",
        "{swap}\n",
    ),
    limit(
        &["--memory", "64M", "--memory-swap", "-1"],
        "show memory/memory.memsw.limit_in_bytes memory.swap.max | grep -cE '^(max|9223372036854771712)$'",
        "1\n",
    ),
    limit(&["--cpus", "0.5"], "show cpu/cpu.cfs_quota_us cpu.max", "{cpus}\n"),
    limit(&["--cpu-shares", "512"], "show cpu/cpu.shares cpu.weight", "{shares}\n"),
    limit(&["--cpuset-cpus", "0"], "grep Cpus_allowed_list /proc/self/status", "Cpus_allowed_list:\t0\n"),
    limit(&["--pids-limit", "50"], "show pids/pids.max pids.max", "50\n"),
    limit(&["--pids-limit", "-1"], "show pids/pids.max pids.max", "max\n"),
    limit(
        &["--device-read-bps", "{disk}:1M"],
        "show blkio/blkio.throttle.read_bps_device io.max | grep -oE '^{disk} (rbps=)?1048576'",
        "{disk} {rbps}1048576\n",
    ),
    limit(
        &["--device-write-bps", "{disk}:2M"],
        "show blkio/blkio.throttle.write_bps_device io.max | grep -oE '(wbps=)?2097152'",
        "{wbps}2097152\n",
    ),
    limit(
        &["--device-read-iops", "{disk}:30"],
        "show blkio/blkio.throttle.read_iops_device io.max | grep -oE '(riops=| )30$|riops=30'",
        "{riops}30\n",
    ),
    limit(
        &["--device-write-iops", "{disk}:40"],
        "show blkio/blkio.throttle.write_iops_device io.max | grep -oE '(wiops=| )40$|wiops=40'",
        "{wiops}40\n",
    ),
];

/// Options that no script inside can see, or that need more around them: which test has them.
const ELSEWHERE: &[(&str, &str)] = &[
    ("--help", "contract"),
    ("--version", "contract"),
    ("--verbose", "verbose_tells_the_same"),
    ("--from", "ctr_run_bundles"),
    ("--bundle", "ctr_run_bundles"),
    ("--ref", "one_image_of_several"),
    ("--platform", "one_image_of_several"),
    ("--tty", "a_terminal_of_its_own"),
    ("--name", "files_that_are_written"),
    ("--cidfile", "files_that_are_written"),
    ("--pidfile", "files_that_are_written"),
    ("--publish", "pasta_connects_with_ports_and_leaves_nothing"),
    ("--userns", "namespaces_of_another_container"),
    ("--stop-signal", "a_signal_to_stop"),
    ("--stop-timeout", "a_signal_to_stop"),
    ("--print", "here"),
    ("--list", "a_named_container_keeps_its_writable_layer"),
    ("--remove", "a_named_container_keeps_its_writable_layer"),
];

fn prepared(who: Who) -> (Scratch, String) {
    let (scratch, image) = busybox(who);
    scratch.mkdir("src");
    scratch.write("src/file", "content\n");
    scratch.write("vars", "ONE=1\n# no\nTWO=2\n");
    scratch.write("filter.json", r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":99}]}"#);
    (scratch, image)
}

/// A disk of the machine, by its number.
fn disk() -> Option<String> {
    let disks = fs::read_dir("/sys/block").ok()?.flatten();
    let number =
        |entry: fs::DirEntry| fs::read_to_string(entry.path().join("dev")).ok().map(|text| text.trim().to_string());
    disks.filter(|entry| !entry.file_name().to_string_lossy().starts_with("zram")).find_map(number)
}

/// Whether memory and the others are limited by version 1.
fn version_1() -> bool {
    Path::new("/sys/fs/cgroup/memory").exists()
}

/// `text` with what `{…}` stands for here.
fn filled(scratch: &Scratch, text: &str) -> String {
    let mut text =
        text.replace("{dir}", scratch.path("").to_str().unwrap()).replace("{self}", &std::process::id().to_string());
    for name in ["net", "pid", "ipc", "uts"] {
        let link = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        text = text.replace(&format!("{{{name}}}"), link.to_str().unwrap());
    }
    let (one, two) = (version_1(), !version_1());
    let pick = |first: &'static str, second: &'static str| if one { first } else { second };
    text = text.replace("{disk}", &disk().unwrap_or_default()).replace("{swap}", pick("100663296", "33554432"));
    text = text.replace("{cpus}", pick("50000", "50000 100000")).replace("{shares}", pick("512", "20"));
    for (name, value) in [("rbps", "rbps="), ("wbps", "wbps="), ("riops", "riops="), ("wiops", "wiops=")] {
        let before = if two {
            value
        } else if name.ends_with("iops") {
            " "
        } else {
            ""
        };
        text = text.replace(&format!("{{{name}}}"), before);
    }
    text
}

/// What a command writes, with `typed` on its stdin.
fn run(scratch: &Scratch, program: &str, words: &[String]) -> ctr_tests::Output {
    let mut command = scratch.command(program);
    command.args(words).env("FROM_CALLER", "here");
    ctr_tests::finish_with(&mut command, b"typed")
}

#[test]
fn each_is_seen_inside_and_by_hand_it_is_the_same() {
    for who in Who::all() {
        let (scratch, image) = prepared(who);
        for case in CASES {
            let filled = |text: &&str| filled(&scratch, text);
            let script = format!("{SHOW}({}) || true", filled(&case.script));
            // `echo` gets the script's words as they are.
            let script = if case.options[0] == "--entrypoint" { case.script.to_string() } else { script };
            let words: Vec<String> = case.options.iter().map(filled).chain([image.clone()]).collect();
            let command = if case.options[0] == "--entrypoint" {
                vec!["-c".into(), script]
            } else {
                vec!["sh".into(), "-c".into(), script]
            };
            let words = [words, command].concat();
            let direct = run(&scratch, "ctr-run", &words);
            if case.limit && who == Who::User && direct.status == 125 {
                direct.fails(125, &["cg-limit"]);
                continue;
            }
            assert_eq!(
                (direct.status, direct.text(), direct.stderr.as_str()),
                (0, filled(&case.want), ""),
                "{who:?} {:?}",
                case.options
            );
            let printed = run(&scratch, "ctr-run", &[vec!["--print".to_string()], words].concat()).ok();
            scratch.write("by-hand.sh", &printed);
            let by_hand = run(&scratch, "sh", &["by-hand.sh".to_string()]);
            assert_eq!(
                (by_hand.status, by_hand.text(), by_hand.stderr.as_str()),
                (0, filled(&case.want), ""),
                "{who:?} {:?}: {printed}",
                case.options
            );
        }
    }
}

#[test]
fn no_option_is_without_a_test() {
    let scratch = Scratch::new(Who::User);
    let help = scratch.run("ctr-run", ["--help"]).ok();
    let word = |line: &str| {
        let option = line.trim_start().strip_prefix('-')?;
        let long = option.split(' ').find(|word| word.starts_with('-') || word.starts_with("--"))?;
        Some(format!("--{}", long.trim_start_matches('-').split(['=', '[', ' ', ',']).next()?))
    };
    let all: BTreeSet<String> = help.lines().filter_map(word).collect();
    assert!(all.len() > 50, "{all:?}");
    let short =
        [("-e", "--env"), ("-u", "--user"), ("-i", "--interactive"), ("-v", "--volume"), ("--network", "--net")];
    let long =
        |option: &&str| short.iter().find(|(short, _)| short == option).map_or(*option, |(_, long)| long).to_string();
    let tested = CASES.iter().flat_map(|case| {
        case.options.iter().filter(|word| word.starts_with('-') && word.len() > 2 || **word == "-e").map(long)
    });
    let tested: BTreeSet<String> = tested.chain(ELSEWHERE.iter().map(|(option, _)| option.to_string())).collect();
    let untested: Vec<&String> = all.difference(&tested).collect();
    assert!(untested.is_empty(), "{untested:?}");
}

#[test]
fn a_label_is_in_the_document() {
    for who in Who::all() {
        let (scratch, image) = prepared(who);
        let words = ["--print=oci", "--label", "a.b/c=d=e", "-l", "empty", &image, "true"];
        let document = scratch.run("ctr-run", words).json();
        assert_eq!(document["annotations"]["a.b/c"], "d=e");
        assert_eq!(document["annotations"]["empty"], "");
    }
}

#[test]
fn verbose_tells_the_same() {
    for who in Who::all() {
        let (scratch, image) = prepared(who);
        let output = scratch.run("ctr-run", ["--verbose", &image, "echo", "fine"]);
        assert_eq!(output.ok(), "fine\n");
        for call in ["ns-enter: ", "layer-mount: ", "vol-bind: ", "pivot_root(", "execve("] {
            assert!(output.stderr.contains(call), "{who:?} {call}: {}", output.stderr);
        }
        let printed = scratch.run("ctr-run", ["--print", "--verbose", &image, "echo", "fine"]).ok();
        scratch.write("by-hand.sh", printed);
        let by_hand = scratch.run("sh", ["by-hand.sh"]);
        assert_eq!(by_hand.ok(), "fine\n");
        assert!(by_hand.stderr.contains("pivot_root("), "{}", by_hand.stderr);
    }
}

/// Copies what is in the layout `from` into the layout `to`, and its manifests with `platform` into the index.
fn add_image(to: &Path, from: &Path, platform: Option<(&str, &str)>) {
    let index = |dir: &Path| -> serde_json::Value {
        serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap()
    };
    for blob in fs::read_dir(from.join("blobs/sha256")).unwrap().flatten() {
        fs::copy(blob.path(), to.join("blobs/sha256").join(blob.file_name())).unwrap();
    }
    let mut all = index(to);
    for mut manifest in index(from)["manifests"].as_array().unwrap().clone() {
        if let Some((os, architecture)) = platform {
            manifest["platform"] = serde_json::json!({"os": os, "architecture": architecture});
        }
        all["manifests"].as_array_mut().unwrap().push(manifest);
    }
    fs::write(to.join("index.json"), all.to_string()).unwrap();
}

#[test]
fn one_image_of_several() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let image = |text: &str, name: &str| {
            Image::new(vec![Layer::new().busybox(), Layer::new().file("which", text)]).name(name)
        };
        for (dir, names, platforms) in [
            ("refs", ["one", "two"], [None, None]),
            ("platforms", ["same", "same"], [Some(("linux", "amd64")), Some(("linux", "arm64"))]),
        ] {
            let to = scratch.mkdir(dir);
            image("first", names[0]).oci_layout(&to);
            image("second", names[1]).oci_layout(&scratch.mkdir(format!("{dir}-more")));
            if let Some(platform) = platforms[0] {
                let own = scratch.mkdir(format!("{dir}-own"));
                image("first", names[0]).oci_layout(&own);
                fs::write(to.join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
                add_image(&to, &own, Some(platform));
            }
            add_image(&to, &scratch.path(format!("{dir}-more")), platforms[1]);
        }
        for (option, value, dir, want) in [
            ("--ref", "one", "refs", "first"),
            ("--ref", "two", "refs", "second"),
            ("--platform", "linux/amd64", "platforms", "first"),
            ("--platform", "linux/arm64", "platforms", "second"),
        ] {
            let words = [option, value, dir, "cat", "/which"].map(String::from).to_vec();
            assert_eq!(run(&scratch, "ctr-run", &words).ok(), want, "{who:?} {option} {value}");
            let printed = run(&scratch, "ctr-run", &[vec!["--print".into()], words].concat()).ok();
            scratch.write("by-hand.sh", printed);
            assert_eq!(scratch.run("sh", ["by-hand.sh"]).ok(), want, "{who:?} {option} {value}");
        }
        scratch.run("ctr-run", ["refs", "true"]).fails(125, &["one", "two"]);
        scratch
            .run("ctr-run", ["--platform", "linux/s390x", "platforms", "true"])
            .fails(125, &["linux/s390x", "linux/arm64"]);
        scratch.run("ctr-run", ["--platform", "odd", "platforms", "true"]).fails(125, &["\"odd\""]);
    }
}

#[test]
fn a_terminal_of_its_own() {
    for who in Who::all() {
        let (scratch, image) = prepared(who);
        let words = ["-it", image.as_str(), "sh", "-c", "tty; stty size; echo $TERM; readlink /proc/self/fd/0"];
        let printed = finish(scratch.command("ctr-run").arg("--print").args(words)).ok();
        let by_hand = scratch.write("by-hand.sh", printed);
        let shown = |program: &str, words: &[&str]| {
            let terminal = Terminal::new(&scratch, 31, 97);
            let mut child = terminal.spawn(&scratch, program, words);
            terminal.expect("/dev/pts/0\r\n31 97\r\nxterm\r\n/dev/pts/0");
            assert_eq!(code(wait(&mut child, DEADLINE).expect("the end")), 0, "{who:?}: {}", terminal.shown());
        };
        shown("ctr-run", &words);
        shown("sh", &[by_hand.to_str().unwrap()]);
        scratch.run("ctr-run", words).fails(125, &["--tty", "script(1)"]);
    }
}

#[test]
fn files_that_are_written() {
    for who in Who::all() {
        let (scratch, image) = prepared(who);
        scratch.mkdir("flags");
        let script = "until test -e /flags/go; do sleep 0.01; done";
        let words = [
            "--name",
            "box",
            "--cidfile",
            "cid",
            "--pidfile",
            "pid",
            "-v",
            "./flags:/flags",
            &image,
            "sh",
            "-c",
            script,
        ];
        let printed = finish(scratch.command("ctr-run").arg("--print").args(words)).ok();
        scratch.write("by-hand.sh", printed);
        let mut direct = scratch.command("ctr-run");
        direct.args(words);
        let mut by_hand = scratch.command("sh");
        by_hand.arg("by-hand.sh");
        for mut command in [direct, by_hand] {
            let mut child = command.spawn().unwrap();
            let pid = || fs::read_to_string(scratch.path("pid")).ok()?.trim().parse::<u32>().ok();
            assert!(wait_until(DEADLINE, || pid().is_some()), "{who:?}");
            assert_eq!(fs::read_to_string(scratch.path("cid")).unwrap(), "box");
            let inside = fs::read_link(format!("/proc/{}/ns/pid", pid().unwrap())).unwrap();
            assert_ne!(inside, fs::read_link("/proc/self/ns/pid").unwrap(), "{who:?}");
            scratch.write("flags/go", "");
            assert!(wait(&mut child, DEADLINE).unwrap().success(), "{who:?}");
            for file in ["cid", "pid", "flags/go"] {
                fs::remove_file(scratch.path(file)).unwrap();
            }
        }
        scratch.run("ctr-run", ["--remove", "box"]).ok();
        // A run that fails leaves neither; and what was there is not touched.
        let words = ["--name", "new", "--cidfile", "cid", "--pidfile", "pid", "-u", "nobody-here", &image, "true"];
        scratch.run("ctr-run", words).fails(125, &["nobody-here"]);
        assert!(!scratch.path("cid").exists() && !scratch.path("pid").exists(), "{who:?}");
        scratch.write("cid", "other");
        scratch.run("ctr-run", ["--cidfile", "cid", &image, "true"]).fails(125, &["cid", "(EEXIST)"]);
        assert_eq!(fs::read_to_string(scratch.path("cid")).unwrap(), "other");
        assert_eq!(fs::read_dir(scratch.store().join("containers")).unwrap().count(), 0, "{who:?}");
    }
}

#[test]
fn namespaces_of_another_container() {
    for who in Who::all() {
        let (scratch, image) = prepared(who);
        let mut holder = scratch.command("ctr-run");
        let mut holder = holder.args(["--pidfile", "pid", &image, "sleep", "1000"]).spawn().unwrap();
        let pid = || fs::read_to_string(scratch.path("pid")).ok()?.trim().parse::<u32>().ok();
        assert!(wait_until(DEADLINE, || pid().is_some()), "{who:?}");
        let pid = pid().unwrap();
        let comm = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        assert!(wait_until(DEADLINE, || comm() == "sleep\n" || comm() == "busybox\n"), "{who:?}: {}", comm());
        let path = |name: &str| format!("/proc/{pid}/ns/{name}");
        let link = |name: &str| fs::read_link(path(name)).unwrap().to_string_lossy().into_owned();
        let mut options: Vec<String> =
            ["net", "pid", "ipc", "uts"].map(|name| format!("--{name}={}", path(name))).to_vec();
        if who == Who::User {
            // They belong to the other's user namespace, so that is joined, too.
            options.push(format!("--userns={}", path("user")));
        }
        let script = "for name in net pid ipc uts user; do readlink /proc/self/ns/$name; done; cat /proc/1/comm";
        let words = [options, vec![image.clone(), "sh".into(), "-c".into(), script.into()]].concat();
        let want = ["net", "pid", "ipc", "uts", "user"].map(link).join("\n") + "\n" + &comm();
        assert_eq!(run(&scratch, "ctr-run", &words).ok(), want, "{who:?}");
        let printed = run(&scratch, "ctr-run", &[vec!["--print".into()], words].concat()).ok();
        scratch.write("by-hand.sh", printed);
        assert_eq!(scratch.run("sh", ["by-hand.sh"]).ok(), want, "{who:?}");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(holder.id() as i32), nix::sys::signal::SIGTERM).unwrap();
        wait(&mut holder, DEADLINE).unwrap();
        for option in ["--net", "--pid", "--ipc", "--uts", "--userns"] {
            scratch
                .run("ctr-run", [option, "/no/such/file", &image, "true"])
                .fails(125, &["/no/such/file", "(ENOENT)"]);
            scratch.run("ctr-run", [option, "odd", &image, "true"]).fails(125, &[option, "odd", "path"]);
        }
    }
}

/// Starts what waits for a signal in `flags/up`, and gives it when it is there.
fn waiting(scratch: &Scratch, program: &str, words: &[&str]) -> Child {
    let mut command = scratch.command("setsid");
    // Whoever runs the tests may ignore signals, and what is ignored stays so.
    command
        .args(["env", "--default-signal=INT,HUP,TERM,USR1", program])
        .args(words)
        .stdout(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    assert!(wait_until(DEADLINE, || scratch.path("flags/up").exists()), "did not start");
    fs::remove_file(scratch.path("flags/up")).unwrap();
    child
}

#[test]
fn a_signal_to_stop() {
    use nix::sys::signal::{Signal, killpg};
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let of_image = Image::busybox()
            .config(serde_json::json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "StopSignal": "SIGUSR2"}));
        let plain = scratch.write("plain.tar", Image::busybox().docker_archive());
        let of_image = scratch.write("of-image.tar", of_image.docker_archive());
        scratch.mkdir("flags");
        let script = "trap 'echo one; exit' USR1; trap 'echo two; exit' USR2; trap 'echo asked' TERM; : >/flags/up; while :; do sleep 0.05; done";
        for (options, image, want) in [
            (&["--stop-signal", "USR1"][..], &plain, "one\n"),
            (&["--stop-signal", "10"], &plain, "one\n"),
            (&[], &of_image, "two\n"),
            (&["--stop-signal", "SIGUSR1"], &of_image, "one\n"),
            (&["--stop-timeout", "1"], &plain, "asked\n"),
            (&["--stop-timeout", "-1", "--stop-signal", "USR1"], &plain, "one\n"),
        ] {
            let rest = ["-v", "./flags:/flags", image.to_str().unwrap(), "sh", "-c", script];
            let words: Vec<&str> = options.iter().copied().chain(rest).collect();
            let printed = finish(scratch.command("ctr-run").arg("--print").args(&words)).ok();
            scratch.write("by-hand.sh", printed);
            for (program, words) in [("ctr-run", words.as_slice()), ("sh", &["by-hand.sh"])] {
                let child = waiting(&scratch, program, words);
                killpg(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
                let output = child.wait_with_output().unwrap();
                assert_eq!(String::from_utf8_lossy(&output.stdout), want, "{who:?} {program} {options:?}");
            }
        }
    }
}

/// The options of `docker run`, by its reference; `--net`, `--dns-opt` and `--net-alias` are old names that it still takes.
const OF_DOCKER: &[&str] = &[
    "--add-host",
    "--annotation",
    "--attach",
    "-a",
    "--blkio-weight",
    "--blkio-weight-device",
    "--cap-add",
    "--cap-drop",
    "--cgroup-parent",
    "--cgroupns",
    "--cidfile",
    "--cpu-count",
    "--cpu-percent",
    "--cpu-period",
    "--cpu-quota",
    "--cpu-rt-period",
    "--cpu-rt-runtime",
    "--cpu-shares",
    "-c",
    "--cpus",
    "--cpuset-cpus",
    "--cpuset-mems",
    "--detach",
    "-d",
    "--detach-keys",
    "--device",
    "--device-cgroup-rule",
    "--device-read-bps",
    "--device-read-iops",
    "--device-write-bps",
    "--device-write-iops",
    "--disable-content-trust",
    "--dns",
    "--dns-opt",
    "--dns-option",
    "--dns-search",
    "--domainname",
    "--entrypoint",
    "--env",
    "-e",
    "--env-file",
    "--expose",
    "--gpus",
    "--group-add",
    "--health-cmd",
    "--health-interval",
    "--health-retries",
    "--health-start-interval",
    "--health-start-period",
    "--health-timeout",
    "--help",
    "--hostname",
    "-h",
    "--init",
    "--interactive",
    "-i",
    "--io-maxbandwidth",
    "--io-maxiops",
    "--ip",
    "--ip6",
    "--ipc",
    "--isolation",
    "--kernel-memory",
    "--label",
    "-l",
    "--label-file",
    "--link",
    "--link-local-ip",
    "--log-driver",
    "--log-opt",
    "--mac-address",
    "--memory",
    "-m",
    "--memory-reservation",
    "--memory-swap",
    "--memory-swappiness",
    "--mount",
    "--name",
    "--net",
    "--net-alias",
    "--network",
    "--network-alias",
    "--no-healthcheck",
    "--oom-kill-disable",
    "--oom-score-adj",
    "--pid",
    "--pids-limit",
    "--platform",
    "--privileged",
    "--publish",
    "-p",
    "--publish-all",
    "-P",
    "--pull",
    "--quiet",
    "-q",
    "--read-only",
    "--restart",
    "--rm",
    "--runtime",
    "--security-opt",
    "--shm-size",
    "--sig-proxy",
    "--stop-signal",
    "--stop-timeout",
    "--storage-opt",
    "--sysctl",
    "--tmpfs",
    "--tty",
    "-t",
    "--ulimit",
    "--use-api-socket",
    "--user",
    "-u",
    "--userns",
    "--uts",
    "--volume",
    "-v",
    "--volume-driver",
    "--volumes-from",
    "--workdir",
    "-w",
];

#[test]
fn every_option_of_docker_run_is_taken_or_refused_with_advice() {
    let scratch = Scratch::new(Who::User);
    let help = scratch.run("ctr-run", ["--help"]).ok();
    let words: BTreeSet<&str> = help.split([' ', ',', '[', ']', '=', '\n']).collect();
    for option in OF_DOCKER {
        if words.contains(option) {
            continue;
        }
        for arguments in [vec![*option, "image"], vec![option, "1", "image"]] {
            scratch.run("ctr-run", arguments).fails(125, &[&format!("{option} is not supported; ")]);
        }
        if option.starts_with("--") {
            scratch
                .run("ctr-run", [&format!("{option}=x"), "image"])
                .fails(125, &[&format!("{option} is not supported; ")]);
        }
    }
    scratch.run("ctr-run", ["-dit", "image"]).fails(125, &["-d is not supported; put & after"]);
    // Each is in the table for people, with a long name.
    let readme = fs::read_to_string(ctr_tests::project("README.md")).unwrap();
    let cells = readme.lines().filter(|line| line.starts_with("| `-")).filter_map(|line| line.split(" | ").next());
    let shown: BTreeSet<&str> = cells.flat_map(|cell| cell.split('`')).filter(|word| word.starts_with("--")).collect();
    let old = ["--net", "--net-alias", "--dns-opt"];
    let missing = OF_DOCKER
        .iter()
        .filter(|option| option.starts_with("--") && !old.contains(option) && !shown.contains(**option));
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<&&str>::new());
    // What a docker that is here takes beside: the list is to be kept whole.
    if ctr_tests::bin_dir().exists()
        && std::env::split_paths("/usr/bin:/usr/local/bin").any(|dir| dir.join("docker").is_file())
    {
        let theirs = scratch.run("docker", ["run", "--help"]).text();
        let theirs = theirs.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2);
        let new: Vec<&str> = theirs
            .filter(|word| {
                word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
                    && !OF_DOCKER.contains(word)
            })
            .collect();
        assert_eq!(new, Vec::<&str>::new());
    }
}

#[test]
fn zero_is_no_limit_and_relaxations_come_one_by_one() {
    for who in Who::all() {
        let (scratch, image) = prepared(who);
        let words = ["--memory", "0", "--cpus", "0", &image, "echo", "fine"];
        assert_eq!(scratch.run("ctr-run", words).ok(), "fine\n", "{who:?}");
        let script = "grep -c ' /proc/' /proc/mounts; grep -E '^(NoNewPrivs|Seccomp|CapBnd):' /proc/self/status";
        let text =
            scratch.run("ctr-run", ["--security-opt", "systempaths=unconfined", &image, "sh", "-c", script]).ok();
        assert_eq!(text, "0\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\n", "{who:?}");
        for (option, value, words) in [
            ("--workdir", "relative", "not an absolute path"),
            ("--net", "bridge", "bridged networks"),
            ("--net", "container:x", "/proc/PID/ns/net"),
            ("--pid", "container:x", "--pid=/proc/PID/ns/pid"),
            ("--ipc", "shareable", "--ipc=/proc/PID/ns/ipc"),
            ("--userns", "keep-id", "not host, auto or a path"),
            ("--security-opt", "label=disable", "systempaths=unconfined"),
            ("--mount", "type=image,src=x,dst=/y", "unknown type \"image\""),
            ("--volume", "/x", "no place inside"),
        ] {
            scratch
                .run("ctr-run", [option, value, &image, "true"])
                .fails(125, &[value.split(',').next_back().unwrap(), words]);
        }
    }
}

/// Runs `script` where root has these lines in /etc/subuid and /etc/subgid, which the machine's do not have.
fn with_subordinate_ids(scratch: &Scratch, lines: &str, script: &str) -> ctr_tests::Output {
    scratch.write("subordinate", lines);
    let script = format!("for file in subuid subgid; do mount --bind subordinate /etc/$file; done; {script}");
    let mut command = scratch.command("unshare");
    finish(command.args(["--mount", "bash", "-euc", &script]))
}

#[test]
fn root_inside_is_not_root_outside() {
    // An ordinary user's never is.
    let (scratch, image) = busybox(Who::User);
    let map = scratch.run("ctr-run", [&image, "sh", "-c", "id -u; cat /proc/self/uid_map"]).ok();
    let words: Vec<&str> = map.split_whitespace().collect();
    assert_eq!((words[0], words[1], words[2]), ("0", "0", scratch.who.uid().to_string().as_str()));
    if !ctr_tests::is_root() {
        return;
    }
    let (scratch, image) = busybox(Who::Root);
    scratch.mkdir("src");
    scratch.write("src/secret", "");
    let inside = "id -u; cat /proc/self/uid_map | tr -s ' '; stat -c '%u:%g %n' /bin/busybox /data /new; : >/data/mine; echo x >/etc/mine; chown 5 /etc/mine; \
                  rm /src/secret 2>&1 | grep -o denied; ip link set lo down && echo own network; grep -c . /proc/self/mountinfo >/dev/null; hostname";
    let options = "--userns=auto --cap-add NET_ADMIN --hostname box -v data:/data -v ./src:/src --device /dev/zero:/dev/mine --tmpfs /t --memory 64M";
    let want = "0\n 0 300000 65536\n0:0 /bin/busybox\n0:0 /data\n0:0 /new\ndenied\nown network\nbox\n";
    let run = format!("ctr-run {options} -w /new {image} sh -c \"{inside}; test -c /dev/mine; test -d /t\"");
    for lines in ["root:300000:65536\n", "containers:300000:65536\nother:1:1\n"] {
        let output = with_subordinate_ids(&scratch, lines, &run);
        assert_eq!(output.ok(), want, "{}", output.stderr);
    }
    // By hand the same.
    let by_hand = run.replacen("ctr-run", "ctr-run --print", 1) + " >by-hand.sh; sh by-hand.sh";
    let output = with_subordinate_ids(&scratch, "root:300000:65536\n", &by_hand);
    assert_eq!(output.ok(), want, "{}", output.stderr);
    // Outside they are the subordinate ids, and a named container finds its own again.
    use std::os::unix::fs::MetadataExt;
    assert_eq!(scratch.store().join("volumes/data/_data/mine").metadata().unwrap().uid(), 300_000);
    let named = format!(
        "ctr-run --userns=auto --name box {image} sh -c 'echo x >/etc/mine; chown 5 /etc/mine; chmod 600 /etc/passwd'; \
         stat -c %u $CTR_STORE/containers/box/upper/etc/{{mine,passwd}}; ctr-run --userns=auto --name box {image} stat -c %u /etc/mine; ctr-run --remove box"
    );
    let output = with_subordinate_ids(&scratch, "root:300000:65536\n", &named);
    assert_eq!(output.ok(), "300005\n300000\n5\n", "{}", output.stderr);
    // A look at this system, too.
    let look = "ctr-run --userns=auto rootfs:/ sh -c 'rm /etc/hostname; stat -c %u /etc/passwd; test ! -e /etc/hostname && echo gone'";
    assert_eq!(with_subordinate_ids(&scratch, "root:300000:65536\n", look).ok(), "0\ngone\n");
    assert!(fs::exists("/etc/hostname").unwrap());
    // Nothing is left, also of what failed; others see nothing of the store.
    let failed = with_subordinate_ids(
        &scratch,
        "root:300000:65536\n",
        &format!("ctr-run --userns=auto -u nobody-here {image} true"),
    );
    failed.fails(125, &["nobody-here"]);
    assert_eq!(fs::read_dir(scratch.store().join("containers")).unwrap().count(), 0);
    assert_eq!(scratch.store().metadata().unwrap().mode() & 0o077, 0o001);
    assert_eq!(scratch.store().join("layers").metadata().unwrap().mode() & 0o077, 0);
    // Without such ids: said, and never root's own instead.
    let none = with_subordinate_ids(&scratch, "other:1:1\n", &format!("ctr-run --userns=auto {image} true"));
    none.fails(125, &["--userns=auto", "/etc/subuid", "root:1000000:65536"]);
    let print = with_subordinate_ids(
        &scratch,
        "root:300000:65536\n",
        &format!("ctr-run --print=oci --userns=auto {image} true"),
    );
    print.fails(125, &["--print=oci", "--userns=auto"]);
}
