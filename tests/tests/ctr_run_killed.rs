//! `ctr-run` killed with SIGKILL, at any moment: nothing runs on, and what is left goes with the next run.

use ctr_tests::image::busybox;
use ctr_tests::{DEADLINE, Who, is_root, wait_until};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[test]
fn at_any_moment() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        scratch.run("ctr-run", [&image, "true"]).ok();
        let limits: &[&str] = if who == Who::Root { &["--memory", "64M", "--pids-limit", "20"] } else { &[] };
        for moment in 0..60 {
            let mut command = scratch.command("ctr-run");
            command.args(limits).args(["-v", "data:/data", "--hostname", scratch.token(), &image, "sleep", "1000"]);
            let mut child =
                command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
            // From before its first call to long after its last.
            std::thread::sleep(Duration::from_micros(500 * moment));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let gone = wait_until(DEADLINE, || scratch.processes().is_empty());
        assert!(gone, "{who:?}: {:?}", scratch.processes());
        assert_eq!(scratch.mounts(), Vec::<String>::new(), "{who:?}");
        if who == Who::Root {
            // Their groups are nobody's by then.
            std::thread::sleep(Duration::from_secs(11));
            scratch.run("ctr-run", [limits, &[&image, "true"]].concat()).ok();
        }
        scratch.run("ctr-run", ["-v", "data:/data", &image, "true"]).ok();
        let left: Vec<_> =
            fs::read_dir(scratch.store().join("containers")).unwrap().flatten().map(|entry| entry.path()).collect();
        assert_eq!(left, Vec::<PathBuf>::new(), "{who:?}");
    }
}

#[test]
fn groups_go_with_the_next_run() {
    if !is_root() {
        return;
    }
    let (scratch, image) = busybox(Who::Root);
    let base = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].into_iter().map(Path::new).find(|dir| dir.is_dir()).unwrap();
    // As a killed run leaves one, one that is in use, and one that is to stay.
    let group = |name: &str| base.join(format!("{name}{:08x}0000", std::process::id()));
    let (left, used, lasting) = (group("ctr-own-"), group("ctr-own-f"), group("ctr-"));
    let used = used.with_file_name(&used.file_name().unwrap().to_str().unwrap()[..20]);
    for dir in [&left, &used, &lasting] {
        fs::create_dir(dir).unwrap();
    }
    let mut member = scratch.command("sleep").arg("1000").spawn().unwrap();
    fs::write(used.join("cgroup.procs"), member.id().to_string()).unwrap();
    // A new one may be somebody's who is about to enter it: it goes only later.
    scratch.run("ctr-run", ["--pids-limit", "20", &image, "true"]).ok();
    assert!(left.exists());
    let swept = wait_until(DEADLINE, || {
        std::thread::sleep(Duration::from_millis(500));
        scratch.run("ctr-run", ["--pids-limit", "20", &image, "true"]).ok();
        !left.exists()
    });
    assert!(swept && used.exists() && lasting.exists());
    member.kill().unwrap();
    member.wait().unwrap();
    for dir in [&used, &lasting] {
        assert!(wait_until(DEADLINE, || fs::remove_dir(dir).is_ok() || !dir.exists()), "{dir:?}");
    }
}

#[test]
fn a_hundred_at_once_with_limits_and_a_volume_leave_nothing() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let limits: &[&str] =
            if who == Who::Root { &["--memory", "64M", "--cpus", "0.5", "--pids-limit", "20"] } else { &[] };
        let start = |number: u32| {
            let mut command = scratch.command("ctr-run");
            command.args(limits).args(["-v", "all:/all", &image, "sh", "-c", &format!(": >/all/{number}; echo x >/f")]);
            command.stderr(std::process::Stdio::piped()).spawn().unwrap()
        };
        let children: Vec<_> = (0..100).map(start).collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{who:?}: {output:?}");
        }
        assert_eq!(fs::read_dir(scratch.store().join("volumes/all/_data")).unwrap().count(), 100);
        assert_eq!(fs::read_dir(scratch.store().join("containers")).unwrap().count(), 0);
    }
}
