//! What waiting costs: the memory that the processes which stay behind have for themselves.

use ctr_tests::image::Image;
use ctr_tests::{DEADLINE, Scratch, Who, is_root, wait, wait_until};
use std::ffi::OsStr;
use std::fs;
use std::process::Stdio;

/// Programs that were built for tests have deep stacks and more tables: they may take three times as much.
const ALLOWANCE: u64 = if cfg!(debug_assertions) { 3 } else { 1 };

/// `pid` and all its descendants.
fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let below = children.split_whitespace().flat_map(|child| family(child.parse().unwrap()));
    std::iter::once(pid).chain(below.collect::<Vec<_>>()).collect()
}

fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().into()
}

/// What no other process shares, in KiB.
fn private(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let sizes = text.lines().filter(|line| line.starts_with("Private_"));
    sizes.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}

/// Runs a tool whose COMMAND is `cat`, until all that wait for it have no more than `limit` KiB together.
fn waits_in(limit: u64, scratch: &Scratch, waiting: usize, words: &[impl AsRef<OsStr>]) {
    let limit = limit * ALLOWANCE;
    let mut command = scratch.command(&words[0]);
    let mut child = command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let started = || family(child.id()).iter().any(|pid| name(*pid) == "cat");
    assert!(wait_until(DEADLINE, started), "did not start");
    let ours: Vec<u32> = family(child.id()).into_iter().filter(|pid| name(*pid) != "cat").collect();
    assert_eq!(ours.len(), waiting);
    let sizes = || ours.iter().map(|pid| private(*pid)).collect::<Vec<_>>();
    let settled = wait_until(DEADLINE, || sizes().iter().all(|size| *size > 0) && sizes().iter().sum::<u64>() <= limit);
    assert!(settled, "{limit} KiB allowed, {:?} used", sizes());
    drop(child.stdin.take());
    assert!(wait(&mut child, DEADLINE).is_some_and(|status| status.success()));
}

#[test]
fn a_container_that_runs_keeps_3_mib_at_most() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let image = scratch.write("image.tar", Image::busybox().docker_archive());
        let image = image.to_str().unwrap();
        waits_in(3072, &scratch, 1, &["ctr-run", "-i", image, "cat"]);
        if is_root() {
            // An init cannot be looked into by an ordinary user.
            waits_in(3072, &scratch, 2, &["ctr-run", "-i", "--init", image, "cat"]);
        }
    }
}

#[test]
fn a_namespace_that_lasts_keeps_1_mib_at_most() {
    for who in Who::all() {
        waits_in(1024, &Scratch::new(who), 1, &["ns-enter", "--all", "--", "cat"]);
    }
}
