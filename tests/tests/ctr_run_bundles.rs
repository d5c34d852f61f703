//! Bundles and documents of other programs under `ctr-run`.

use ctr_tests::image::Image;
use ctr_tests::terminal::Terminal;
use ctr_tests::{DEADLINE, Scratch, Who, code, finish, finish_with, has, rootfs, wait};
use std::fs;

/// A root in `dir` of `scratch`, that is a bundle when its configuration is there.
fn bundle(scratch: &Scratch, dir: &str) {
    scratch.mkdir(dir);
    rootfs::make(scratch, &format!("{dir}/rootfs"));
}

/// Runs the bundle as it is, on a terminal, and gives what is shown.
#[track_caller]
fn on_terminal(scratch: &Scratch, dir: &str, keys: &str, want: &str) {
    let terminal = Terminal::new(scratch, 24, 80);
    let mut child = terminal.spawn(scratch, "ctr-run", &["--bundle", dir]);
    terminal.type_keys(keys);
    terminal.expect(want);
    let status = wait(&mut child, DEADLINE).expect("the end");
    assert_eq!(code(status), 7, "{:?} {dir}: {}", scratch.who, terminal.shown());
}

/// What a specification's defaults are inside: /proc, a limit, a read-only root.
const LOOK: &str =
    "hostname; ulimit -n; grep NoNewPrivs /proc/self/status; grep CapEff /proc/self/status; touch /x 2>&1; id -u";
const SEEN: &str = "1024\nNoNewPrivs:\t1\nCapEff:\t0000000020000420\n";

#[test]
fn what_runc_and_crun_specify_runs() {
    for who in Who::all() {
        for (program, arguments, own_network) in
            [("runc", "spec", true), ("runc", "spec --rootless", false), ("crun", "spec", true)]
        {
            if !has(program) {
                continue;
            }
            let scratch = Scratch::new(who);
            bundle(&scratch, "bundle");
            scratch.sh(&format!("cd bundle; {program} {arguments}")).ok();
            on_terminal(&scratch, "bundle", "tty; exit $((3 + 4))\n", "/dev/pts/0");
            // Without a terminal: the flag says so, as with docker run.
            let words = ["--tty=false", "--bundle", "bundle", "sh", "-c", LOOK];
            let text = scratch.run("ctr-run", words).ok();
            assert!(text.starts_with(&format!("{program}\n{SEEN}")), "{who:?} {program} {arguments}: {text}");
            assert!(text.contains("Read-only") && text.ends_with("\n0\n"), "{who:?} {program} {arguments}: {text}");
            let net =
                scratch.run("ctr-run", ["--tty=false", "--bundle", "bundle", "readlink", "/proc/self/ns/net"]).ok();
            let shared = net.trim() == fs::read_link("/proc/self/ns/net").unwrap().to_str().unwrap();
            assert_eq!(shared, !own_network, "{who:?} {program} {arguments}");
        }
    }
}

#[test]
fn what_umoci_unpacks_runs() {
    if !has("umoci") {
        return;
    }
    for who in Who::all() {
        let scratch = Scratch::new(who);
        Image::busybox().name("latest").oci_layout(&scratch.mkdir("image"));
        let rootless = if who == Who::User { "--rootless" } else { "" };
        scratch.give(&scratch.path("image"));
        scratch.sh(&format!("umoci unpack {rootless} --image image:latest bundle")).ok();
        on_terminal(&scratch, "bundle", "tty; exit 7\n", "/dev/pts/0");
        let text = scratch.run(
            "ctr-run",
            ["--tty=false", "--bundle", "bundle", "sh", "-c", "pwd; id -u; touch /x && echo $FROM_IMAGE"],
        );
        assert_eq!(text.ok(), "/\n0\nyes\n", "{who:?}");
    }
}

#[test]
fn ids_of_a_document_are_mapped_as_it_says() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        bundle(&scratch, "bundle");
        let map = format!(r#"[{{"containerID":5,"hostID":{},"size":1}}]"#, scratch.who.uid());
        let document = |maps: &str| {
            format!(
                r#"{{"ociVersion":"1.0.2","root":{{"path":"rootfs"}},"process":{{"args":["cat","/proc/self/uid_map"],"cwd":"/","user":{{"uid":5,"gid":5}},
                    "env":["PATH=/bin"]}},"linux":{{"namespaces":[{{"type":"user"}},{{"type":"pid"}}],"uidMappings":{maps},"gidMappings":{maps}}}}}"#
            )
        };
        scratch.write("bundle/config.json", document(&map));
        let text = scratch.run("ctr-run", ["--bundle", "bundle"]).ok();
        let numbers: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(numbers, ["5", &scratch.who.uid().to_string(), "1"], "{who:?}");
        if who == Who::User {
            // Ids that are not the user's: never others instead.
            scratch.write("bundle/config.json", document(r#"[{"containerID":5,"hostID":0,"size":1}]"#));
            scratch.run("ctr-run", ["--bundle", "bundle"]).fails(125, &["newuidmap", "/etc/subuid"]);
        }
    }
}

#[test]
fn groups_of_a_document_and_of_a_flag() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        bundle(&scratch, "bundle");
        scratch.write(
            "bundle/config.json",
            r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"args":["id","-G"],"cwd":"/","env":["PATH=/bin"],
                "user":{"uid":1000,"gid":1000,"additionalGids":[7,8]}}}"#,
        );
        assert_eq!(scratch.run("ctr-run", ["--bundle", "bundle"]).ok(), "1000 7 8\n", "{who:?}");
        assert_eq!(scratch.run("ctr-run", ["--group-add", "9", "--bundle", "bundle"]).ok(), "1000 7 8 9\n", "{who:?}");
        let image = scratch.write("image.tar", Image::busybox().docker_archive());
        let image = image.to_str().unwrap();
        let words = ["-u", "app", "--group-add", "extra", "--group-add", "77", image, "id", "-G"];
        assert_eq!(scratch.run("ctr-run", words).ok(), "1000 77 2000\n", "{who:?}");
    }
}

#[test]
fn a_documents_own_filter_counts_wherever_it_came_from() {
    let profile = r#""seccomp":{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":99}]}"#;
    for who in Who::all() {
        let scratch = Scratch::new(who);
        bundle(&scratch, "bundle");
        let root = |path: &str| {
            format!(
                r#"{{"ociVersion":"1.0.2","root":{{"path":"{path}"}},"process":{{"args":["sh","-c","mkdir /tmp/x; grep Seccomp: /proc/self/status"],
                    "cwd":"/","env":["PATH=/bin"]}},"linux":{{{profile}}}}}"#
            )
        };
        let document = root(scratch.path("bundle/rootfs").to_str().unwrap());
        scratch.write("bundle/config.json", root("rootfs"));
        scratch.write("document.json", &document);
        let seen = |output: ctr_tests::Output| {
            assert!(output.stderr.contains("Cannot assign requested address"), "{who:?}: {output:?}");
            assert_eq!(output.ok(), "Seccomp:\t2\n", "{who:?}");
        };
        seen(scratch.run("ctr-run", ["--bundle", "bundle"]));
        seen(scratch.run("ctr-run", ["--from", "document.json"]));
        seen(finish_with(scratch.command("ctr-run").args(["--from", "-"]), document.as_bytes()));
        // An image's document, changed on its way.
        let image = scratch.write("image.tar", Image::busybox().docker_archive());
        let mut changed = scratch.run("img-unpack", ["-q", image.to_str().unwrap()]).json();
        changed["linux"] = serde_json::from_str(&format!("{{{profile}}}")).unwrap();
        let words = ["--from", "-", "sh", "-c", "mkdir /tmp/x; grep Seccomp: /proc/self/status"];
        seen(finish_with(scratch.command("ctr-run").args(words), changed.to_string().as_bytes()));
        assert_eq!(fs::read_dir(scratch.store().join("containers")).map_or(0, |entries| entries.count()), 0);
        // The script that is printed has it in it.
        let printed =
            finish_with(scratch.command("ctr-run").args(["--print", "--from", "-"]), document.as_bytes()).ok();
        scratch.write("by-hand.sh", &printed);
        seen(finish(scratch.command("sh").arg("by-hand.sh")));
        let printed = finish_with(scratch.command("ctr-run").args(["--print=oci", "--from", "-"]), document.as_bytes());
        assert_eq!(printed.json()["linux"]["seccomp"]["syscalls"][0]["errnoRet"], 99);
        // And a flag is stronger.
        let words = ["--security-opt", "seccomp=unconfined", "--from", "-"];
        let output = finish_with(scratch.command("ctr-run").args(words), document.as_bytes());
        assert_eq!(output.ok(), "Seccomp:\t0\n", "{who:?}");
    }
}
