//! `ctr-run` is like a local command: pipes in and out, closed descriptors, keys, job control, sizes of windows; and a look at
//! this system that changes nothing of it.

use ctr_tests::image::busybox;
use ctr_tests::terminal::Terminal;
use ctr_tests::{DEADLINE, Scratch, Who, code, wait, wait_until};
use std::fs;

#[test]
fn a_tree_goes_in_and_out_through_pipes() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        scratch.mkdir("src/dir");
        scratch.write("src/dir/file", "content");
        scratch.write("src/other name", vec![7; 3 << 20]);
        for options in ["-i", "--init -i"] {
            let script = format!(
                "tar c -C src . | ctr-run {options} --name box -w /in {image} tar x\n\
                 ctr-run {options} --name box -w /in {image} tar c . >out.tar\n\
                 mkdir -p out; tar x -C out <out.tar; diff -r src out && echo same; rm -r out"
            );
            assert_eq!(scratch.sh(&script).ok(), "same\n", "{who:?} {options}");
        }
        scratch.run("ctr-run", ["--remove", "box"]).ok();
    }
}

#[test]
fn gigabytes_go_through() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let two_gib = "2147483648\n";
        let count = scratch.sh(&format!("head -c 2G /dev/zero | ctr-run -i {image} wc -c"));
        assert_eq!(count.ok(), two_gib, "{who:?}: {}", count.stderr);
        let through = scratch.sh(&format!("head -c 2G /dev/zero | ctr-run -i --init {image} cat | wc -c"));
        assert_eq!(through.ok(), two_gib, "{who:?}: {}", through.stderr);
    }
}

#[test]
fn closed_descriptors_are_closed_inside() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        // With nothing at 0, 1 or 2, what the tools open could come to lie there.
        for closed in ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"] {
            let run = |program: &str| {
                let script = "{ readlink /proc/self/fd/0; readlink /proc/self/fd/1; readlink /proc/self/fd/2; } >/flags/seen; echo x; exit 3";
                let script = if program == "sh" { script.replace("/flags", "flags") } else { script.to_string() };
                let before =
                    if program == "sh" { String::new() } else { format!("ctr-run -v ./flags:/flags {image} ") };
                scratch.mkdir("flags");
                let status = scratch
                    .sh(&format!("set +e; ({before}sh -c '{script}') {closed} 2>/dev/null; echo $? >status"))
                    .status;
                assert_eq!(status, 0, "{who:?} {program} {closed}");
                let read = |file: &str| fs::read_to_string(scratch.path(file)).unwrap_or_default();
                (read("status"), read("flags/seen"))
            };
            let (status, seen) = run("ctr-run");
            assert_eq!(status, "3\n", "{who:?} {closed}: {seen}");
            // Nothing of the host: no file of the store, no directory, no socket.
            for place in seen.lines() {
                let fine = place == "/dev/null" || place == "/flags/seen" || place.starts_with("pipe:");
                assert!(fine, "{who:?} {closed}: {seen}");
            }
        }
        let gone = scratch.sh(&format!("set +e; ctr-run --init {image} yes | head -n 1; echo ${{PIPESTATUS[0]}}"));
        assert_eq!(gone.text(), "y\n141\n", "{who:?}: {}", gone.stderr);
        let full = scratch.sh(&format!("set +e; ctr-run {image} sh -c 'echo x; echo $? >&2' >/dev/full"));
        assert!(full.stderr.contains("No space") && full.stderr.ends_with("1\n"), "{who:?}: {full:?}");
    }
}

#[test]
fn ctrl_c_ends_it_with_and_without_a_terminal_of_its_own() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        for options in [&[][..], &["-t"], &["-it", "--init"], &["--init"]] {
            let terminal = Terminal::new(&scratch, 24, 80);
            let before = terminal.mode();
            let words = [options, &[&image, "sh", "-c", "echo U\"P\"; exec sleep 1000"]].concat();
            let mut child = terminal.spawn(&scratch, "ctr-run", &words);
            terminal.expect("UP");
            // A shell may catch the key and forget it when it becomes another program.
            let sleeping = || scratch.processes().iter().any(|line| line.ends_with(" sleep 1000 "));
            assert!(wait_until(DEADLINE, sleeping), "{who:?} {options:?}: {:?}", scratch.processes());
            terminal.type_keys("\x03");
            let status =
                code(wait(&mut child, DEADLINE).unwrap_or_else(|| panic!("{who:?} {options:?}: {}", terminal.shown())));
            assert_eq!(status, 130, "{who:?} {options:?}: {}", terminal.shown());
            assert_eq!(terminal.mode(), before, "{who:?} {options:?}");
        }
    }
}

/// An interactive shell of the caller's on a terminal.
fn shell(scratch: &Scratch, terminal: &Terminal) -> std::process::Child {
    let mut command = terminal.command(scratch, "bash");
    command.args(["--norc", "--noprofile", "-i"]).env("PS1", "@@").env("PS2", "");
    let child = command.spawn().unwrap();
    terminal.type_keys("bind 'set enable-bracketed-paste off' 2>/dev/null; echo rea\"\"dy\n");
    terminal.expect("\nready");
    child
}

#[test]
fn ctrl_z_stops_it_and_fg_goes_on() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        for options in ["", "-t", "--init"] {
            let terminal = Terminal::new(&scratch, 24, 80);
            let mut child = shell(&scratch, &terminal);
            terminal.type_keys(&format!(
            "ctr-run {options} {image} sh -c 'trap \"printf %s%s we nt; exit 5\" CONT; printf %s%s U P; while :; do sleep 0.05; done'\n"
        ));
            terminal.expect("UP");
            terminal.type_keys("\x1a");
            terminal.expect("Stopped");
            // Not only the one that the shell waits for, but COMMAND.
            let states = || -> Vec<String> {
                let pids = scratch.processes();
                let stat = |line: &String| fs::read_to_string(format!("/proc/{}/stat", line.split(' ').next()?)).ok();
                let ours =
                    pids.iter().filter_map(stat).filter(|stat| stat.contains("(sh)") || stat.contains("(busybox)"));
                ours.filter_map(|stat| Some(stat.rsplit_once(") ")?.1[..1].to_string())).collect()
            };
            assert!(
                wait_until(DEADLINE, || states().iter().all(|state| state == "T")),
                "{who:?} {options}: {:?}",
                states()
            );
            terminal.type_keys("fg\n");
            terminal.expect("went");
            // Keys that come before it has ended are COMMAND's.
            let prompt = || terminal.shown().split("went").last().is_some_and(|after| after.contains("@@"));
            assert!(wait_until(DEADLINE, prompt), "{who:?} {options}: {:?}", terminal.shown());
            terminal.type_keys("echo status $?; exit\n");
            terminal.expect("status 5");
            wait(&mut child, DEADLINE).unwrap();
        }
    }
}

#[test]
fn job_control_inside_a_terminal_of_its_own() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let terminal = Terminal::new(&scratch, 24, 80);
        let mut child = terminal.spawn(&scratch, "ctr-run", &["-it", &image, "sh", "-i"]);
        terminal.type_keys("sleep 1000; echo a\"\"t $?\n");
        terminal.expect_raw(true);
        let sleeping = || scratch.processes().iter().any(|line| line.ends_with("sleep 1000 "));
        assert!(wait_until(DEADLINE, sleeping), "{who:?}: {}", terminal.shown());
        terminal.type_keys("\x1a");
        terminal.expect("Stopped");
        terminal.type_keys("kill %1; echo do\"\"ne; exit 4\n");
        terminal.expect("done");
        // A shell with a stopped job says so once.
        terminal.type_keys("exit 4\n");
        assert_eq!(code(wait(&mut child, DEADLINE).expect("the end")), 4, "{who:?}: {}", terminal.shown());
        terminal.expect_raw(false);
    }
}

#[test]
fn the_size_of_the_window_follows() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        for options in [&["-t"][..], &["-t", "--init"], &[]] {
            let terminal = Terminal::new(&scratch, 24, 80);
            let script = "trap 'stty size </proc/self/fd/0; exit 6' WINCH; stty size; while :; do sleep 0.05; done";
            let words = [options, &[&image, "sh", "-c", script]].concat();
            let mut child = terminal.spawn(&scratch, "ctr-run", &words);
            terminal.expect("24 80\r\n");
            terminal.resize(41, 133);
            if options.is_empty() {
                // The terminal is another session's: COMMAND sees its size, and gets no signal. As with any daemon.
                terminal.type_keys("\x03");
                assert_eq!(code(wait(&mut child, DEADLINE).expect("the end")), 130, "{who:?}");
                continue;
            }
            terminal.expect("41 133\r\n");
            assert_eq!(
                code(wait(&mut child, DEADLINE).expect("the end")),
                6,
                "{who:?} {options:?}: {}",
                terminal.shown()
            );
        }
    }
}

#[test]
fn a_look_at_this_system_changes_nothing_of_it() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let name = scratch.token();
        let marker = format!("/etc/{name}");
        let script = format!(
            "set -e; echo x >{marker}; cat {marker}; rm /etc/hostname; mkdir -p /opt/{name}/deep; test ! -e /etc/hostname; \
             test $(ls /etc | wc -l) -gt 10; id -u; test -e /usr/bin/env; test -d /proc/self"
        );
        let output = scratch.run("ctr-run", ["--name", "look", "rootfs:/", "sh", "-c", &script]);
        assert_eq!(output.ok(), "x\n0\n", "{who:?}: {}", output.stderr);
        assert!(
            fs::exists("/etc/hostname").unwrap()
                && !fs::exists(&marker).unwrap()
                && !fs::exists(format!("/opt/{name}")).unwrap()
        );
        let upper = scratch.store().join("containers/look/upper");
        let changes = scratch.run("layer-mount", ["--changes", upper.to_str().unwrap(), "--lower", "/"]).ok();
        let changes: Vec<&str> = changes.lines().collect();
        for line in
            [format!("A {marker}"), "D /etc/hostname".into(), format!("A /opt/{name}"), format!("A /opt/{name}/deep")]
        {
            assert!(changes.contains(&line.as_str()), "{who:?} {line}: {changes:?}");
        }
        // What is mounted below / is there, read-only, as is what it is mounted on for a user.
        let mounted = scratch.mkdir("mounted");
        let script = format!(
            "mount -t tmpfs x {0}; echo there >{0}/file; ctr-run rootfs:/ sh -c 'cat {0}/file; (: >{0}/new) 2>&1 | grep -o Read-only'",
            mounted.display()
        );
        let output = ctr_tests::finish(scratch.apart().args(["sh", "-euc", &script]));
        assert_eq!(output.ok(), "there\nRead-only\n", "{who:?}: {}", output.stderr);
        // The same by hand.
        let printed = scratch
            .run(
                "ctr-run",
                ["--print", "rootfs:/", "sh", "-c", "rm /etc/hostname; ls /etc/hostname 2>&1 | grep -o 'No such'"],
            )
            .ok();
        scratch.write("by-hand.sh", printed);
        assert_eq!(scratch.run("sh", ["by-hand.sh"]).text(), "No such\n", "{who:?}");
        assert!(fs::exists("/etc/hostname").unwrap());
        scratch.run("ctr-run", ["--remove", "look"]).ok();
        assert_eq!(fs::read_dir(scratch.store().join("containers")).unwrap().count(), 0);
    }
}
