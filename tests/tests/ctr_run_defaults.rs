//! How wide a container of `ctr-run` is by default, and each relaxation of it: as Docker documents it, seen through the
//! kernel from inside.

use ctr_tests::image::busybox;
use ctr_tests::{Scratch, Who, finish, has};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// What `script` prints in a container with `options`.
#[track_caller]
fn inside(scratch: &Scratch, image: &str, options: &[&str], script: &str) -> String {
    scratch.run("ctr-run", options.iter().copied().chain([image, "sh", "-c", script])).ok()
}

/// A line of /proc/self/status inside.
fn status(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().to_string()
}

/// The machine's device nodes below `dir`, as `path type major:minor`, but for what is each container's own.
fn devices(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        let kind = metadata.file_type();
        if ["pts", "shm", "fd", "mqueue", "console", "ptmx"].iter().any(|own| entry.file_name() == *own) {
            continue;
        }
        if kind.is_dir() {
            devices(&entry.path(), found);
        } else if kind.is_char_device() || kind.is_block_device() {
            let letter = if kind.is_char_device() { 'c' } else { 'b' };
            let number = metadata.rdev();
            let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
            found.insert(format!("{} {letter} {major}:{minor}", entry.path().display()));
        }
    }
}

/// The same, from inside.
const DEVICES: &str = "find /dev -path /dev/pts -prune -o -type c -print -o -type b -print | while read -r path; do \
                       kind=c; test -b $path && kind=b; echo $path $kind $(stat -c %t:%T $path); done";

/// The lines of [`DEVICES`], with their numbers in decimal.
fn decimal(text: &str) -> BTreeSet<String> {
    let line = |line: &str| {
        let (before, number) = line.rsplit_once(' ').expect("a number");
        let (major, minor) = number.split_once(':').expect("two numbers");
        let parse = |text: &str| u64::from_str_radix(text, 16).expect("hexadecimal");
        format!("{before} {}:{}", parse(major), parse(minor))
    };
    text.lines().map(line).collect()
}

/// All that there are: what root of the machine can have here, and in a user namespace all that the kernel knows.
fn all_capabilities(who: Who) -> String {
    if who == Who::Root {
        return status(&fs::read_to_string("/proc/self/status").unwrap(), "CapBnd");
    }
    let last: u32 = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap().trim().parse().unwrap();
    format!("{:016x}", (1u64 << (last + 1)) - 1)
}

#[test]
fn privileged_is_as_wide_as_dockers() {
    let mut machine = BTreeSet::new();
    devices(Path::new("/dev"), &mut machine);
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let text = inside(&scratch, &image, &["--privileged"], "cat /proc/self/status");
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(status(&text, set), all_capabilities(who), "{who:?} {set}");
        }
        assert_eq!((status(&text, "NoNewPrivs"), status(&text, "Seccomp")), ("0".into(), "0".into()));
        assert_eq!(decimal(&inside(&scratch, &image, &["--privileged"], DEVICES)), machine, "{who:?}");

        let mounts = inside(&scratch, &image, &["--privileged"], "cat /proc/mounts");
        let options = |at: &str| -> Option<String> {
            let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(at))?;
            line.split(' ').nth(3).map(str::to_string)
        };
        assert!(options("/sys").unwrap().starts_with("rw,"), "{mounts}");
        let groups: Vec<&str> = mounts.lines().filter(|line| line.starts_with("cgroup")).collect();
        assert!(!groups.is_empty() && groups.iter().all(|line| line.contains(" rw,")), "{mounts}");
        assert!(
            !mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| at.starts_with("/proc/"))),
            "{mounts}"
        );
        let nodev = |at: &str| options(at).unwrap().split(',').any(|word| word == "nodev");
        assert!(!nodev("/") && !nodev("/dev") || who == Who::User, "{mounts}");
    }
    if !ctr_tests::is_root() {
        return;
    }
    // What root may then do to the machine, without doing it harm.
    let (scratch, image) = busybox(Who::Root);
    let group = scratch.token();
    let script = format!(
        "for dir in /sys/fs/cgroup/*/ /sys/fs/cgroup/; do mkdir ${{dir}}{group} 2>/dev/null && busybox rmdir ${{dir}}{group} && echo made && break; done; \
         mount -t tmpfs x /mnt && echo mounted; : </dev/kmsg && echo opened; \
         cat /proc/sys/kernel/domainname >/proc/sys/kernel/domainname && echo set"
    );
    assert_eq!(inside(&scratch, &image, &["--privileged"], &script), "made\nmounted\nopened\nset\n");
}

/// What Docker's documentation says of the paths that a container does not see, and of those that it cannot change.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A script that tells what a container is to the kernel, in lines that do not depend on who made it.
fn profile() -> String {
    let own = |name: &str| {
        let host = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        format!("test \"$(readlink /proc/self/ns/{name})\" = {:?} && echo namespace {name} of the machine;", host)
    };
    let namespaces: String = ["mnt", "pid", "net", "ipc", "uts", "cgroup"].map(own).concat();
    format!(
        "grep -E '^(Cap...|NoNewPrivs|Seccomp):' /proc/self/status; id; pwd; hostname; umask; ulimit -n; ulimit -Hn; env | sort\n\
         {namespaces}\n\
         for path in {masked}; do\n\
           if test -d $path; then echo $path has $(ls $path | wc -l) entries; elif test -e $path; then echo $path has $(cat $path 2>/dev/null | head -c 1 | wc -c) bytes; fi\n\
         done\n\
         for path in /proc/sysrq-trigger /proc/sys/kernel/domainname /sys/kernel/uevent_helper; do (: >>$path) 2>/dev/null && echo $path is writable; done\n\
         while read -r _ at kind options _; do\n\
           case $at in /dev/pts|/dev/shm|/dev/mqueue) ;; /dev/*) continue;; esac\n\
           echo mounted: $at\n\
           case $at in {read_only} | /sys/fs/cgroup/*) echo $at $options | grep -oE '^[^ ]* (ro|rw)\\b';; esac\n\
           case $at in /dev|/w) echo $at $kind,$options | sed s/,nodev//;; /proc|/dev/*|/sys|/t|/v) echo $at $kind,$options;; esac |\n\
             grep -oE '^[^,]*|,(ro|rw|nosuid|nodev|noexec)\\b' | tr -d '\\n'; echo\n\
         done </proc/mounts | grep . | sort\n\
         find /dev -path /dev/pts -prune -o -path /dev/core -prune -o -print | sort | while read -r path; do stat -c '%n %F %t:%T %a' $path; done\n\
         busybox unshare -U true 2>&1\n\
         touch /x 2>&1; cat /proc/sys/net/ipv4/ip_forward; ls /v /w 2>/dev/null; df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d' ' -f2",
        masked = MASKED.join(" "),
        read_only = READ_ONLY.join("|"),
    )
}

#[test]
fn the_defaults_are_those_that_docker_documents() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let text = inside(&scratch, &image, &[], &profile());
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            // AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT
            assert_eq!(status(&text, set), "00000000a80425fb", "{who:?} {set}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(status(&text, set), "0000000000000000", "{who:?} {set}");
        }
        // Narrower than Docker's: no program inside gains privileges.
        assert_eq!((status(&text, "NoNewPrivs"), status(&text, "Seccomp")), ("1".into(), "2".into()));
        let has = |line: &str| text.lines().any(|known| known == line);
        assert!(!text.contains("namespace "), "{who:?}: {text}");
        assert!(!text.contains(" is writable"), "{who:?}: {text}");
        for path in MASKED {
            let open = |line: &&str| line.starts_with(&format!("{path} has ")) && !line.contains(" 0 ");
            assert_eq!(text.lines().find(open), None, "{who:?}");
        }
        let mounts = ["/", "/dev", "/dev/mqueue", "/dev/pts", "/dev/shm", "/proc", "/sys", "/sys/fs/cgroup"];
        for at in mounts {
            assert!(has(&format!("mounted: {at}")), "{who:?} {at}: {text}");
        }
        let known = |at: &&str| {
            let hidden = MASKED.iter().chain(&READ_ONLY).any(|path| at == path);
            mounts.contains(at) || hidden || at.starts_with("/sys/fs/cgroup/")
        };
        let more: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("mounted: ")).filter(|at| !known(at)).collect();
        assert!(more.is_empty(), "{who:?}: {more:?}");
        for line in [
            "/proc proc,rw,nosuid,nodev,noexec",
            "/sys sysfs,ro,nosuid,nodev,noexec",
            "/dev/mqueue mqueue,rw,nosuid,nodev,noexec",
            "/dev/pts devpts,rw,nosuid,noexec",
        ] {
            assert!(has(line), "{who:?} {line}: {text}");
        }
        let nodes: BTreeSet<&str> =
            text.lines().filter(|line| line.starts_with("/dev/") && line.contains("special")).collect();
        let want =
            [("full", "1:7"), ("null", "1:3"), ("random", "1:8"), ("tty", "5:0"), ("urandom", "1:9"), ("zero", "1:5")];
        let want: Vec<String> =
            want.iter().map(|(name, number)| format!("/dev/{name} character special file {number} 666")).collect();
        assert_eq!(nodes, want.iter().map(String::as_str).collect(), "{who:?}");
        let kind = |line: &str| line.contains(" symbolic link ") || line.contains(" directory ");
        let others: BTreeSet<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("/dev/").filter(|line| kind(line))?.split(' ').next())
            .collect();
        assert_eq!(others, ["fd", "mqueue", "ptmx", "shm", "stderr", "stdin", "stdout"].into(), "{who:?}");
    }
}

/// Runs what `ctr-run --print=oci` prints for `words` with `runtime`; as the user, inside a user namespace of the user's.
fn witness(scratch: &Scratch, runtime: &str, words: &[&str]) -> String {
    scratch.mkdir("mnt");
    scratch.mkdir("bundle");
    // crun takes no machine whose unified hierarchy has controllers beside those of version 1: it does not see them here.
    let script = "hidden=/sys/fs/cgroup/unified/cgroup.controllers; test ! -e $hidden || mount --bind /dev/null $hidden\n\
                  runtime=$1; name=$2; shift 2\n\
                  ctr-run --name $name --print=oci \"$@\" >printed.json; layer-mount --from printed.json --scratch mnt >bundle/config.json\n\
                  case $runtime in ctr-run) exec ctr-run --bundle bundle;; esac\n\
                  exec $runtime --root state run -b bundle $name";
    let mut command = scratch.apart();
    if scratch.who == Who::User {
        command.env("XDG_RUNTIME_DIR", scratch.path("tmp"));
    }
    command.args(["bash", "-euo", "pipefail", "-c", script, "bash", runtime, scratch.token()]).args(words);
    finish(&mut command).ok()
}

#[test]
fn other_runtimes_make_the_same_of_the_printed_configuration() {
    let profile = profile();
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        scratch.mkdir("src");
        scratch.write("src/file", "");
        let bind = format!("{}:/w:ro", scratch.path("src").display());
        let mut cases: Vec<Vec<&str>> = vec![
            vec![],
            vec!["--privileged"],
            vec!["-u", "1000:2000", "-w", "/tmp", "-e", "A=1", "--ulimit", "nofile=100:200"],
            vec!["--cap-drop", "CHOWN", "--cap-add", "SYS_PTRACE"],
            vec!["--cap-drop", "all", "--cap-add", "SYS_ADMIN"],
            vec!["--security-opt", "seccomp=unconfined", "--security-opt", "no-new-privileges=false"],
            vec!["--read-only", "--tmpfs", "/t:size=1m", "-v", &bind],
            vec!["--mount", "type=tmpfs,dst=/t,tmpfs-size=1m,noexec", "--shm-size", "1m"],
            vec!["--sysctl", "net.ipv4.ip_forward=1"],
        ];
        if who == Who::Root {
            cases.push(vec!["--ipc", "host", "--uts", "host"]);
            cases.push(vec!["--memory", "64M", "--pids-limit", "50", "--cpus", "0.5", "--device", "/dev/fuse"]);
        }
        for runtime in ["ctr-run", "runc", "crun"] {
            if runtime != "ctr-run" && !has(runtime) {
                continue;
            }
            for options in &cases {
                let words: Vec<&str> = options.iter().copied().chain([image.as_str(), "sh", "-c", &profile]).collect();
                let named = ["--name", scratch.token(), "--rm"];
                let ours = finish(scratch.command("ctr-run").args(named).args(&words)).ok();
                let theirs = witness(&scratch, runtime, &words);
                assert_eq!(ours, theirs, "{who:?} {runtime} {options:?}");
            }
        }
    }
}
