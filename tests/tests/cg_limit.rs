//! `cg-limit`: that limits bite, measured through the kernel. The same program runs on the machine and, for the other cgroup
//! layouts, in the virtual machine (tests/vm/run), so it needs nothing but a shell and the tools.

use ctr_tests::{Output, Scratch, Who, cgroup_mounts, finish, finish_with, has, is_root, skip, wait, wait_until};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// As long as anything may take that the kernel does by itself.
const SOON: Duration = Duration::from_secs(20);

/// Root's scratch; None (and a word about it) where the tests run as somebody else, who may not have groups.
fn root() -> Option<Scratch> {
    if !is_root() {
        skip("cgroups of root", "the tests do not run as root");
    }
    is_root().then(|| Scratch::new(Who::Root))
}

/// The file of group `name` that is called one of `files`, in whatever hierarchy it is.
fn find(name: &str, files: &[&str]) -> Option<PathBuf> {
    let places = cgroup_mounts().into_iter().map(|mount| mount.join(name));
    let paths = places.flat_map(|dir| files.iter().map(move |file| dir.join(file)).collect::<Vec<_>>());
    paths.into_iter().find(|path| path.exists())
}

/// What that file says.
#[track_caller]
fn read(name: &str, files: &[&str]) -> String {
    let path = find(name, files).unwrap_or_else(|| panic!("group {name} has none of {files:?}"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}")).trim().to_string()
}

fn members(name: &str) -> Vec<u32> {
    let text = find(name, &["cgroup.procs"]).and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    text.lines().map(|line| line.parse().expect("a number")).collect()
}

const MEMORY: [&str; 2] = ["memory.limit_in_bytes", "memory.max"];

/// CPU time that `pid` has used.
fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| after_name.get(index).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

fn start(scratch: &Scratch, args: &[&str]) -> Child {
    let mut command = scratch.command("cg-limit");
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start")
}

fn stop(mut child: Child) {
    let _ = child.kill();
    wait(&mut child, SOON).expect("it does not end");
}

/// Needs more than it may have: dd reads all of it into memory at once.
const GREEDY: &str = "dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null";
const BUSY: &str = "while :; do :; done";

#[test]
fn memory_over_the_limit_is_killed_and_reported() {
    let Some(scratch) = root() else { return };
    let killed = scratch.run("cg-limit", ["--memory", "16M", "--", "sh", "-c", &format!("exec {GREEDY}")]);
    assert_eq!(killed.status, 137, "{killed:?}");
    assert_eq!(killed.stderr.lines().count(), 1, "{}", killed.stderr);
    for words in ["cg-limit: out of memory: the kernel killed 1 process", "limit 16777216 bytes (16.0 MiB)"] {
        assert!(killed.stderr.contains(words), "{}", killed.stderr);
    }
    assert!(!killed.stderr.contains("above"), "{}", killed.stderr);
    // COMMAND's own status is kept where only one of its children was killed.
    let child =
        scratch.run("cg-limit", ["--memory", "16M", "--", "sh", "-c", &format!("sh -c 'exec {GREEDY}'; exit 7")]);
    assert_eq!(child.status, 7, "{child:?}");
    assert!(child.stderr.contains("out of memory"), "{}", child.stderr);
    // Enough is enough, and killed for another reason is not reported as this one.
    let enough = scratch.run("cg-limit", ["--memory", "256M", "--", "sh", "-c", &format!("{GREEDY} && kill -9 $$")]);
    assert_eq!((enough.status, enough.stderr.as_str()), (137, ""));
}

/// Periods that have passed, and those in which the group was throttled.
fn periods(name: &str) -> (f64, f64) {
    let stat = read(name, &["cpu.stat"]);
    let number =
        |field: &str| stat.lines().find_map(|line| line.strip_prefix(field)?.trim().parse().ok()).expect("a number");
    (number("nr_periods "), number("nr_throttled "))
}

#[test]
fn half_a_cpu_is_half_a_cpu() {
    let Some(scratch) = root() else { return };
    let name = scratch.token();
    scratch.run("cg-limit", ["--name", name, "--cpus", "0.5"]).ok();
    let busy: Vec<Child> = (0..2).map(|_| start(&scratch, &["--name", name, "--", "sh", "-c", BUSY])).collect();
    let used = || busy.iter().map(|child| cpu_time(child.id())).sum::<Duration>();
    assert!(wait_until(SOON, || used() > Duration::from_millis(200)), "the members do not run");
    // A machine that does not get its own CPUs all the time (a virtual one) disturbs the measure: the best of some counts, since
    // without a limit it would be 2, however often it is taken. Where other work leaves less than half a CPU, the group gets
    // less, but then it is hardly throttled.
    let mut measures = Vec::new();
    let half = (0..4).any(|_| {
        let (before, begin, (periods_before, throttled_before)) = (used(), Instant::now(), periods(name));
        std::thread::sleep(Duration::from_secs(2));
        let share = (used() - before).as_secs_f64() / begin.elapsed().as_secs_f64();
        let (periods, throttled) = periods(name);
        let throttled = (throttled - throttled_before) / (periods - periods_before).max(1.0);
        measures.push((share, throttled));
        share < 0.55 && (share > 0.45 || throttled < 0.8)
    });
    busy.into_iter().for_each(stop);
    assert!(half, "share of a CPU, and of periods throttled: {measures:?}");
    scratch.run("cg-limit", ["--undo", name]).ok();
}

#[test]
fn who_asks_is_told_how_often_the_command_was_throttled() {
    let Some(scratch) = root() else { return };
    let busy = ["--cpus", "0.02", "--", "sh", "-c", "i=0; while [ $i -lt 15000 ]; do i=$((i+1)); done"];
    let loud = scratch.run("cg-limit", ["-v"].iter().chain(&busy));
    assert!(loud.stderr.contains("cg-limit: throttled in "), "{loud:?}");
    assert_eq!(scratch.run("cg-limit", busy).stderr, "");
}

#[test]
fn a_fork_bomb_stops_at_the_limit() {
    let Some(scratch) = root() else { return };
    let name = scratch.token();
    scratch.run("cg-limit", ["--name", name, "--pids", "10"]).ok();
    let bomb = "trap '' TERM; bomb() { while :; do sleep 100 & done; }; bomb 2>/dev/null";
    let child = start(&scratch, &["--name", name, "--", "sh", "-c", bomb]);
    let refused = || {
        let events = read(name, &["pids.events"]);
        events.split_whitespace().nth(1).is_some_and(|count| count != "0")
    };
    assert!(wait_until(SOON, refused), "no fork was refused: {}", read(name, &["pids.current"]));
    assert!(members(name).len() <= 10, "{:?}", members(name));
    scratch.run("cg-limit", ["--kill", name]).ok();
    assert_eq!(members(name), [0u32; 0]);
    stop(child);
    scratch.run("cg-limit", ["--undo", name]).ok();
}

#[test]
fn a_throttled_write_takes_as_long_as_it_should() {
    let Some(scratch) = root() else { return };
    if Path::new("/dev/ram0").exists() {
        // The virtual machine's own files are in memory; this is its disk.
        return throttled(&scratch, "/dev/ram0", "/dev/ram0");
    }
    let file = scratch.write("file", "");
    let probe = scratch.run("cg-limit", ["--check", "--device-write-bps", &format!("{}:1M", file.display())]);
    if probe.status != 0 {
        return skip("disk limits", &probe.stderr);
    }
    throttled(&scratch, file.to_str().unwrap(), file.to_str().unwrap());
}

fn throttled(scratch: &Scratch, device: &str, file: &str) {
    let write = |rate: &str| {
        let begin = Instant::now();
        let limit = format!("{device}:{rate}");
        let dd = format!("dd if=/dev/zero of={file} bs=256k count=8 oflag=direct conv=notrunc 2>/dev/null");
        scratch.run("cg-limit", ["--device-write-bps", &limit, "--", "sh", "-c", &dd]).ok();
        begin.elapsed().as_secs_f64()
    };
    // 2 MiB, the first bytes of which are free.
    let slow = write("1M");
    assert!((1.4..15.0).contains(&slow), "{slow} s");
    let fast = write("1G");
    assert!(fast < slow, "{fast} s");
    for wrong in [":1M", "/no/such:1M", "/proc:1M"] {
        scratch.run("cg-limit", ["--device-write-bps", wrong, "--", "true"]).fails(125, &["cg-limit: "]);
    }
    scratch.run("cg-limit", ["--device-write-bps", "/proc:1M", "--", "true"]).fails(125, &["(proc)", "no single disk"]);
}

#[test]
fn a_cpuset_confines() {
    let Some(scratch) = root() else { return };
    let allowed =
        scratch.run("cg-limit", ["--cpuset-cpus", "0", "--", "grep", "Cpus_allowed_list", "/proc/self/status"]);
    assert_eq!(allowed.ok().split_whitespace().last(), Some("0"));
    scratch.run("cg-limit", ["--cpuset-cpus", "4000", "--", "true"]).fails(125, &["cpuset.cpus", "\"4000\""]);
}

#[test]
fn devices_open_as_the_rules_say() {
    let Some(scratch) = root() else { return };
    let name = format!("{}-devices", scratch.token());
    let run = |rules: &[&str], script: &str| {
        let named = ["--name", &name, "--device-deny", "all"];
        scratch.run("cg-limit", named.iter().chain(rules).chain(&["--", "sh", "-euc", script])).ok();
    };
    const OPEN: &str = "can() { dd if=$1 of=/dev/null count=0 2>/dev/null || return 1; }; ";
    run(
        &["--device-allow", "c 1:3 rwm", "--device-allow", "c 1:5 r"],
        &format!(
            "{OPEN} can /dev/null; can /dev/zero; ! can /dev/full; ! true 2>/dev/null >/dev/zero; mknod null c 1 3; ! mknod full c 1 7 2>/dev/null"
        ),
    );
    // Other rules for the same group, in the place of the first.
    run(
        &["--device-allow", "c *:3 w", "--device-allow", "c 1:7 rw"],
        "! true 2>/dev/null </dev/null; true >/dev/null; true <>/dev/full; ! true 2>/dev/null </dev/zero",
    );
    run(&["--device-allow", "all"], &format!("{OPEN} can /dev/full; mknod full c 1 7"));
    scratch.run("cg-limit", ["--undo", &name]).ok();
    let own = ["--device-deny", "b *:* rwm", "--", "sh", "-c", "true </dev/zero && ! mknod disk b 7 0 2>/dev/null"];
    scratch.run("cg-limit", own).ok();
}

#[test]
fn each_limit_is_in_the_kernels_file() {
    let Some(scratch) = root() else { return };
    let name = format!("{}-each", scratch.token());
    // An option, the files of either version, and what these say then. What a kernel or a layout lacks is an error in words.
    for (options, files, values) in [
        (&["--cpu-shares", "512"][..], &["cpu.shares", "cpu.weight"][..], &["512", "59"][..]),
        (&["--cpu-weight", "59"], &["cpu.shares", "cpu.weight"], &["511", "59"]),
        (&["--cpuset-mems", "0"], &["cpuset.mems"], &["0"]),
        (&["--memory-low", "8M"], &["memory.soft_limit_in_bytes", "memory.low"], &["8388608"]),
        (&["--memory-high", "64M"], &["memory.high"], &["67108864"]),
        (&["--oom-group"], &["memory.oom.group"], &["1"]),
        (
            &["--memory", "64M", "--memory-swap", "80M"],
            &["memory.memsw.limit_in_bytes", "memory.swap.max"],
            &["83886080", "16777216"],
        ),
        (
            &["--io-weight", "300"],
            &["blkio.bfq.weight", "blkio.weight", "io.bfq.weight", "io.weight"],
            &["300", "default 300"],
        ),
        (&["--hugetlb", "2MB:4M"], &["hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"], &["4194304"]),
        (&["--pids", "100", "--set", "pids.max=77"], &["pids.max"], &["77"]),
    ] {
        let output = scratch.run("cg-limit", ["--name", &name].iter().chain(options));
        match output.status {
            0 => {
                let value = read(&name, files);
                assert!(values.contains(&value.as_str()), "{options:?}: {value:?}");
            }
            _ => {
                output.fails(125, &[]);
                assert!(find(&name, files).is_none(), "{options:?}: it could be set");
            }
        }
        scratch.run("cg-limit", ["--undo", &name]).ok();
        assert!(find(&name, &["cgroup.procs"]).is_none(), "{options:?}");
    }
}

#[test]
fn figures_are_shown_again_and_again() {
    let Some(scratch) = root() else { return };
    let name = format!("{}-watched", scratch.token());
    scratch.run("cg-limit", ["--name", &name, "--pids", "50"]).ok();
    let mut watch = scratch.command("cg-limit");
    let mut watch = watch.args(["--show", &name, "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines().map_while(Result::ok);
    // The same figure three times, from one process.
    assert_eq!(lines.filter(|line| line.contains("pids")).take(3).count(), 3);
    stop(watch);
    scratch.run("cg-limit", ["--undo", &name]).ok();
}

#[test]
fn what_is_frozen_stands_still() {
    let Some(scratch) = root() else { return };
    let name = scratch.token();
    scratch.run("cg-limit", ["--name", name, "--pids", "10"]).ok();
    let child = start(&scratch, &["--name", name, "--", "sh", "-c", BUSY]);
    assert!(wait_until(SOON, || cpu_time(child.id()) > Duration::from_millis(50)));
    scratch.run("cg-limit", ["--freeze", name]).ok();
    let before = cpu_time(child.id());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(cpu_time(child.id()), before);
    scratch.run("cg-limit", ["--thaw", name]).ok();
    assert!(wait_until(SOON, || cpu_time(child.id()) > before), "it does not go on");
    // Frozen ones can be killed.
    scratch.run("cg-limit", ["--freeze", name]).ok();
    scratch.run("cg-limit", ["--undo", name, "--kill"]).ok();
    assert!(scratch.groups().is_empty(), "{:?}", scratch.groups());
    stop(child);
}

/// A process that has left its parents, its session and its group of processes.
const RUNAWAY: &str = "exec 2>/dev/null; setsid sh -c '(sleep 1000 &) &' >/dev/null & setsid sleep 1000 >/dev/null & ";

#[test]
fn killing_a_group_kills_what_has_run_away() {
    let Some(scratch) = root() else { return };
    let name = scratch.token();
    for limit in [["--pids", "50"], ["--memory", "64M"]] {
        scratch.run("cg-limit", [["--name", name], limit].concat()).ok();
        scratch.run("cg-limit", ["--name", name, "--", "sh", "-c", RUNAWAY]).ok();
        let comm = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let asleep = || members(name).iter().filter(|pid| comm(pid).trim() == "sleep").count() == 2;
        assert!(wait_until(SOON, asleep), "{:?}", members(name));
        let busy = scratch.run("cg-limit", ["--undo", name]);
        let first = members(name)[0].to_string();
        busy.fails(125, &["EBUSY", "members: ", &first, "(sleep)", "--kill"]);
        scratch.run("cg-limit", ["--kill", name]).ok();
        assert_eq!(members(name), [0u32; 0]);
        scratch.run("cg-limit", ["--undo", name]).ok();
        scratch.run("cg-limit", ["--undo", name]).ok();
        assert!(find(name, &["cgroup.procs"]).is_none());
    }
}

/// Groups that were made for a COMMAND, by the processes in them.
fn groups_of(scratch: &Scratch) -> Vec<PathBuf> {
    let pids: Vec<String> =
        scratch.processes().iter().filter_map(|line| Some(line.split(' ').next()?.to_string())).collect();
    let tops = cgroup_mounts().into_iter().flat_map(|mount| fs::read_dir(mount).into_iter().flatten().flatten());
    let own = tops
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("ctr-")));
    own.filter(|path| {
        let members = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        members.lines().any(|line| pids.iter().any(|pid| pid == line))
    })
    .collect()
}

#[test]
fn a_group_of_commands_own_goes_with_all_that_is_in_it() {
    let Some(scratch) = root() else { return };
    for limit in [["--pids", "50"], ["--memory", "64M"], ["--cpus", "1.5"]] {
        let script =
            format!("{RUNAWAY} grep {} /proc/self/cgroup; exit 3", limit[0].trim_matches('-').trim_end_matches('s'));
        let output = scratch.run("cg-limit", [&limit[..], &["--", "sh", "-c", &script]].concat());
        assert_eq!(output.status, 3, "{output:?}");
        assert!(scratch.processes().is_empty(), "{:?}", scratch.processes());
        let groups: Vec<String> =
            output.text().lines().filter_map(|line| line.split("/ctr-").nth(1).map(String::from)).collect();
        for group in groups {
            assert!(find(&format!("ctr-{group}"), &["cgroup.procs"]).is_none(), "{group} is left");
        }
    }
}

#[test]
fn killing_who_waits_leaves_no_process_and_no_group() {
    let Some(scratch) = root() else { return };
    for limit in [["--pids", "50"], ["--memory", "64M"]] {
        let script = format!("{RUNAWAY} sleep 1000");
        let mut child = start(&scratch, &[&limit[..], &["--", "sh", "-c", &script]].concat());
        assert!(
            wait_until(SOON, || !groups_of(&scratch).is_empty() && scratch.processes().len() >= 5),
            "{:?}",
            scratch.processes()
        );
        let groups = groups_of(&scratch);
        child.kill().expect("kill");
        wait(&mut child, SOON).expect("it does not end");
        assert!(wait_until(SOON, || scratch.processes().is_empty()), "{:?}", scratch.processes());
        assert!(wait_until(SOON, || groups.iter().all(|group| !group.exists())), "{groups:?}");
    }
}

#[test]
fn limits_of_a_named_group_can_be_changed_both_ways() {
    let Some(scratch) = root() else { return };
    let name = scratch.token();
    let limit =
        |memory: &str, swap: &str| scratch.run("cg-limit", ["--name", name, "--memory", memory, "--memory-swap", swap]);
    let swaps = limit("32M", "64M");
    if swaps.status != 0 {
        swaps.fails(125, &["swap", "swapaccount=1"]);
    } else {
        for (memory, swap) in [("128M", "256M"), ("16M", "16M"), ("max", "max"), ("64M", "64M")] {
            limit(memory, swap).ok();
        }
        assert_eq!(read(name, &MEMORY), (64 << 20).to_string());
        // Both versions: as much as memory is no swap at all.
        let swap = read(name, &["memory.memsw.limit_in_bytes", "memory.swap.max"]);
        assert!(swap == "0" || swap == (64 << 20).to_string(), "{swap}");
    }
    scratch.run("cg-limit", ["--name", name, "--memory", "64M", "--cpus", "0.005", "--pids", "max"]).ok();
    assert_eq!(read(name, &["pids.max"]), "max");
    assert!(["5000", "5000 1000000"].contains(&read(name, &["cpu.cfs_quota_us", "cpu.max"]).as_str()));
    scratch.run("cg-limit", ["--name", name, "--cpus", "2", "--cpu-weight", "200"]).ok();
    assert!(["200000", "200000 100000"].contains(&read(name, &["cpu.cfs_quota_us", "cpu.max"]).as_str()));
    // What does not fit the kernel's pages is said.
    let rounded = scratch.run("cg-limit", ["--name", name, "--memory", "64000001"]);
    assert!(
        rounded.status == 0 && rounded.stderr.contains("rounds it to 64000000") || rounded.stderr.contains("63"),
        "{rounded:?}"
    );
    scratch.run("cg-limit", ["--undo", name]).ok();
}

#[test]
fn what_fails_changes_nothing() {
    let Some(scratch) = root() else { return };
    let name = scratch.token();
    scratch
        .run("cg-limit", ["--name", name, "--memory", "64M", "--set", "memory.no-such-file=1"])
        .fails(125, &["memory.no-such-file", "ENOENT"]);
    assert!(scratch.groups().is_empty(), "{:?}", scratch.groups());
    scratch.run("cg-limit", ["--name", name, "--memory", "64M"]).ok();
    scratch
        .run("cg-limit", ["--name", name, "--memory", "32M", "--pids", "5", "--set", "pids.max=x"])
        .fails(125, &["pids.max", "EINVAL"]);
    assert_eq!(read(name, &MEMORY), (64 << 20).to_string());
    scratch.run("cg-limit", ["--undo", name]).ok();
    scratch.run("cg-limit", ["--name", name, "--", "true"]).fails(125, &["no group", name]);
    scratch.run("cg-limit", ["--show", name]).fails(125, &["no group", name]);
    for (words, message) in [
        (vec!["--memory", "64X"], "unknown unit"),
        (vec!["--cpus", "0.0001"], "0.001"),
        (vec!["--pids", "many"], "whole number"),
        (vec!["--memory-swap", "5M"], "--memory"),
        (vec!["--memory", "6M", "--memory-swap", "5M"], "less than"),
        (vec!["--memory", "511K"], "the smallest is 512K"),
        (vec![], "no limit"),
    ] {
        scratch.run("cg-limit", [words, vec!["--", "true"]].concat()).fails(125, &[message]);
    }
}

#[test]
fn a_document_is_joined_applied_and_passed_on() {
    let Some(scratch) = root() else { return };
    let name = scratch.token();
    let document = format!(
        r#"{{"ociVersion":"1.2.0","zebra":[1],"linux":{{"cgroupsPath":"/{name}","resources":{{"memory":{{"limit":67108864}},"pids":{{"limit":7}}}}}}}}"#
    );
    let run =
        |args: &[&str]| finish_with(scratch.command("cg-limit").args(["--from", "-"]).args(args), document.as_bytes());
    let out = run(&["--cpus", "0.5", "--memory", "32M"]);
    out.ok();
    let json = out.json();
    assert_eq!(json["zebra"][0], 1);
    assert_eq!(json["linux"]["cgroupsPath"], format!("/{name}"));
    assert_eq!(json["linux"]["resources"]["memory"]["limit"], 32 << 20);
    assert_eq!(json["linux"]["resources"]["cpu"]["quota"], 50_000);
    assert_eq!((read(name, &MEMORY), read(name, &["pids.max"])), ((32 << 20).to_string(), "7".into()));
    let joined = run(&["--", "cat", "/proc/self/cgroup"]).ok();
    assert!(joined.lines().filter(|line| line.ends_with(&format!("/{name}"))).count() >= 1, "{joined}");
    assert_eq!(read(name, &MEMORY), (64 << 20).to_string());
    scratch.run("cg-limit", ["--undo", name]).ok();
}

#[test]
fn figures_are_written_for_programs() {
    let Some(scratch) = root() else { return };
    let file = scratch.path("stats.json");
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
    let output = scratch.run(
        "cg-limit",
        [
            "--memory",
            "64M",
            "--cpus",
            "0.5",
            "--pids",
            "9",
            "--stats",
            file.to_str().unwrap(),
            "--",
            "sh",
            "-c",
            script,
        ],
    );
    output.ok();
    let figures: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(figures["memory"]["limit"], 64 << 20);
    assert_eq!(figures["memory"]["oom_kills"], 0);
    assert!(figures["cpu"]["periods"].as_u64().is_some(), "{figures}");
    let name = scratch.token();
    scratch.run("cg-limit", ["--name", name, "--memory", "64M"]).ok();
    let table = scratch.run("cg-limit", ["--show", name]).ok();
    assert!(table.contains("67108864") && table.contains(name), "{table}");
    let json = scratch.run("cg-limit", ["--show", name, "--json"]);
    json.ok();
    assert_eq!(json.json()["memory"]["limit"], 64 << 20);
    scratch.run("cg-limit", ["--undo", name]).ok();
}

#[test]
fn a_user_without_a_group_is_told_how_to_get_one() {
    let scratch = Scratch::new(Who::User);
    let output = scratch.run("cg-limit", ["--pids", "50", "--", "true"]);
    if output.status == 0 {
        return skip("no delegation", "this user has a group of their own");
    }
    output.fails(125, &["cg-limit: ", "has no group of its own here"]);
    scratch.run("cg-limit", ["--pids", "50", "--name", scratch.token()]).fails(125, &["has no group of its own here"]);
}

#[test]
fn a_user_with_a_group_of_their_own_limits_in_it() {
    let Some(own) = root() else { return };
    let user = Scratch::new(Who::User);
    let name = user.token();
    own.run("cg-limit", ["--name", name, "--pids", "100"]).ok();
    let dirs: Vec<PathBuf> =
        cgroup_mounts().into_iter().map(|mount| mount.join(name)).filter(|dir| dir.exists()).collect();
    for dir in &dirs {
        user.give(dir);
        for file in ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads", "tasks"] {
            let path = dir.join(file);
            if path.exists() {
                user.give(&path);
            }
        }
    }
    let inside = |script: &str| -> Output {
        let mut command = user.command("sh");
        command.args(["-c", &format!("read go; {script}")]).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
        for dir in &dirs {
            // Once the group hands controllers down, its processes are in the leaf.
            let leaf = dir.join("ctr-leaf");
            let dir = if leaf.exists() { &leaf } else { dir };
            fs::write(dir.join("cgroup.procs"), child.id().to_string()).expect("join");
        }
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let output = child.wait_with_output().unwrap();
        Output {
            status: ctr_tests::code(output.status),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    };
    let joined =
        inside("cg-limit --pids 5 -- cat /proc/self/cgroup; cg-limit --name deep --pids 7; cg-limit --undo deep");
    assert_eq!((joined.status, joined.stderr.as_str()), (0, ""));
    let joined = joined.text();
    assert!(joined.contains(&format!("/{name}/ctr-")), "{joined}");
    let bomb = inside("cg-limit --pids 3 -- sh -c 'sleep 0 & sleep 0 & sleep 0 & sleep 0 & sleep 0 & wait' 2>&1");
    assert!(bomb.text().contains("fork"), "{bomb:?}");
    assert!(wait_until(SOON, || members(name).is_empty()));
    let left: Vec<PathBuf> = user.groups().into_iter().filter(|dir| dir.join("ctr-leaf").exists()).collect();
    for dir in left {
        wait_until(SOON, || fs::remove_dir(dir.join("ctr-leaf")).is_ok());
    }
    own.run("cg-limit", ["--undo", name]).ok();
}

#[test]
fn the_chain_as_a_whole_is_limited() {
    let Some(scratch) = root() else { return };
    let script = "cat /proc/self/cgroup; echo pid $$; sleep 1000 & exit 4";
    let output = scratch
        .run("cg-limit", ["--pids", "50", "--", "ns-enter", "--pid", "--cgroup", "--mount", "--", "sh", "-c", script]);
    assert_eq!(output.status, 4, "{output:?}");
    assert!(output.text().contains("pid 1"), "{output:?}");
    // The new cgroup namespace has the group for its root.
    let pids = output.text().lines().any(|line| line.ends_with(":pids:/") || line == "0::/");
    assert!(pids, "{output:?}");
    assert!(scratch.processes().is_empty(), "{:?}", scratch.processes());
}

#[test]
fn as_little_as_the_peers_need() {
    let Some(scratch) = root() else { return };
    if !has("strace") {
        return;
    }
    let trace = scratch.path("trace");
    let args = [
        "-f",
        "-o",
        trace.to_str().unwrap(),
        "cg-limit",
        "--memory",
        "64M",
        "--cpus",
        "0.5",
        "--pids",
        "100",
        "--",
        "true",
    ];
    finish(scratch.command("strace").args(args)).ok();
    let text = fs::read_to_string(trace).unwrap();
    let of_groups = text.lines().filter(|line| line.contains("/ctr-") && !line.contains("execve(")).count();
    assert!(of_groups <= 20, "{of_groups} calls on the group: {text}");
}
