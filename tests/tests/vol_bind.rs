//! `vol-bind`, end to end: what is mounted, seen through the kernel (mountinfo, the files themselves).

use ctr_tests::{Output, Scratch, Who, finish, has, rootfs, wait_until};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Runs a shell script in a mount namespace of its own, and as an ordinary user in a user namespace.
fn inside(scratch: &Scratch, script: &str) -> Output {
    enter(scratch, &["--mount"], script)
}

/// As [`inside`], with all namespaces that `--api` shows.
fn contained(scratch: &Scratch, script: &str) -> Output {
    enter(scratch, &["--mount", "--pid", "--ipc", "--uts", "--net", "--cgroup"], script)
}

fn enter(scratch: &Scratch, namespaces: &[&str], script: &str) -> Output {
    let mut command = scratch.command("ns-enter");
    if scratch.who == Who::User {
        command.args(["--user", "--map-auto"]);
    }
    finish(command.args(namespaces).args(["--", "bash", "-euc", script]))
}

/// For each who can be had: a scratch directory with an empty `root`, and `src` with a file.
fn each(test: impl Fn(&Scratch)) {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        scratch.mkdir("root");
        scratch.mkdir("src");
        scratch.write("src/file", "source");
        test(&scratch);
    }
}

fn root_only(test: impl Fn(&Scratch)) {
    each(|scratch| {
        if scratch.who == Who::Root {
            test(scratch);
        }
    });
}

#[test]
fn a_directory_a_file_and_a_tmpfs() {
    each(|scratch| {
        let output = inside(
            scratch,
            "vol-bind --root root ./src:/a/b ./src/file:/c/f --tmpfs /t:size=1m,mode=700 -- sh -c '
               cat root/a/b/file root/c/f; echo new >root/a/b/new
               grep -c \" $PWD/root/a/b \\| $PWD/root/c/f \" /proc/self/mountinfo
               stat -c %a root/t root/a; df --output=size root/t | tail -n 1 | tr -d \" \"'",
        );
        assert_eq!(output.ok(), "sourcesource2\n700\n755\n1024\n");
        assert_eq!(fs::read_to_string(scratch.path("src/new")).unwrap(), "new\n");
    });
}

#[test]
fn what_is_nested_is_mounted_in_order() {
    each(|scratch| {
        for dir in ["one", "two", "three"] {
            scratch.mkdir(dir);
            scratch.write(format!("{dir}/name"), dir);
        }
        let output = inside(
            scratch,
            "vol-bind --root root ./three:/x/y/z ./two:/x/y ./one:/x -- cat root/x/name root/x/y/name root/x/y/z/name",
        );
        assert_eq!(output.ok(), "onetwothree");
        let output = inside(scratch, "vol-bind --root root ./one:/x ./two:/y/../x/ -- true");
        output.fails(125, &["vol-bind: two mounts at \"/x\""]);
    });
}

#[test]
fn read_only_holds_for_all_below_and_not_for_what_is_given_inside() {
    each(|scratch| {
        scratch.mkdir("src/sub");
        scratch.mkdir("own");
        let output = inside(
            scratch,
            "mount -t tmpfs none src/sub
             vol-bind --root root ./src:/all:ro ./src:/top:ro-top ./own:/all/deep/own >/dev/null
             touch root/all/deep/own/x root/top/sub/x
             for at in all all/sub all/deep top; do touch root/$at/x && echo $at; done
             touch src/x src/sub/x",
        );
        assert_eq!(output.status, 0, "{output:?}");
        assert_eq!(output.text(), "");
        assert_eq!(output.stderr.matches("Read-only file system").count(), 4, "{}", output.stderr);
    });
}

#[test]
fn attributes_are_set_and_cleared_and_locked_ones_stay() {
    each(|scratch| {
        // What a user namespace inherits keeps its attributes: they are locked.
        let output = inside(
            scratch,
            "mount -t tmpfs -o nosuid,noexec none src
             ns-enter --user --map-root --mount -- vol-bind --root root ./src:/s:nodev,ro -- sh -c '
               awk -v at=$PWD/root/s \"\\$5 == at { print \\$6 }\" /proc/self/mountinfo'
             ns-enter --user --map-root --mount -- vol-bind --root root ./src:/s:exec -- true",
        );
        assert_eq!(output.text(), "ro,nosuid,nodev,noexec,relatime\n", "{}", output.stderr);
        assert_eq!(output.status, 125);
        for words in ["mount_setattr(\"/s\"", "(EPERM)", "has locked an attribute"] {
            assert!(output.stderr.contains(words), "{words}: {}", output.stderr);
        }
        let cleared = "mount -t tmpfs -o nosuid,noexec none src; cp /bin/true src
                       vol-bind --root root ./src:/s:exec,suid -- root/s/true";
        inside(scratch, cleared).ok();
    });
}

#[test]
fn links_of_the_root_lead_nowhere_else() {
    each(|scratch| {
        let outside = scratch.mkdir("outside");
        let root = scratch.path("root");
        symlink(&outside, root.join("abs")).unwrap();
        symlink("../../../../../../../outside", root.join("up")).unwrap();
        symlink("/nowhere/file", root.join("dangling")).unwrap();
        let output = inside(
            scratch,
            "vol-bind --root root ./src:/abs ./src:/up/in ./src/file:/dangling ./src:/../../../dots >/dev/null
             awk '$5 ~ \"/root/\" { print $5 }' /proc/self/mountinfo | sort",
        );
        let inside_root = |path: &str| format!("{}/{path}\n", root.display());
        let own = outside.strip_prefix("/").unwrap().display().to_string();
        let mut want = [inside_root(&own), inside_root("dots"), inside_root("nowhere/file"), inside_root("outside/in")];
        want.sort();
        assert_eq!(output.ok(), want.concat());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        symlink("loop", root.join("loop")).unwrap();
        inside(scratch, "vol-bind --root root ./src:/loop/x -- true").fails(125, &["/loop/x", "(ELOOP)"]);
    });
}

#[test]
fn an_attacker_who_swaps_directories_gets_nothing_outside() {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    each(|scratch| {
        let outside = scratch.mkdir("outside");
        scratch.mkdir("root/a");
        symlink(&outside, scratch.path("root/b")).unwrap();
        let (a, b) = (scratch.path("root/a"), scratch.path("root/b"));
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    let _ = renameat2(AT_FDCWD, &a, AT_FDCWD, &b, RenameFlags::RENAME_EXCHANGE);
                }
            });
            let output = inside(
                scratch,
                "for i in $(seq 150); do
                   vol-bind --root root ./src:/a/in/$i ./src/file:/a/f$i ./src:/b/in/$i:ro 2>/dev/null >/dev/null || true
                   awk -v out=$PWD/outside -v top=$PWD '
                     index($5, out) == 1 { print \"outside: \" $0 }
                     index($5, top) == 1 && index($5, top \"/root/\") != 1 { print \"beside: \" $0 }' /proc/self/mountinfo
                 done",
            );
            end.store(true, Ordering::Relaxed);
            assert_eq!(output.ok(), "");
        });
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "something was made outside the root");
    });
}

#[test]
fn a_missing_source_is_an_error_unless_it_is_to_be_made() {
    each(|scratch| {
        let run = |args: &str| inside(scratch, &format!("vol-bind --root root {args} -- true"));
        run("./none:/x").fails(125, &["open_tree(\"./none\"", "(ENOENT)", "add the option create"]);
        assert!(!scratch.path("none").exists() && !scratch.path("root/x").exists());
        run("./none/dir:/x:create ./none/file:/f:create=file").ok();
        assert!(scratch.path("none/dir").is_dir() && scratch.path("none/file").is_file());
        run("./src:/f").fails(125, &["\"/f\"", "is not a directory, and what comes there is one"]);
        run("./src/file:/x").fails(125, &["\"/x\"", "is a directory, and what comes there is not"]);
        run("no/name:/x").fails(125, &["\"no/name\"", "neither a path", "./no/name"]);
        run("./src:/x:bogus").fails(125, &["unknown option \"bogus\""]);
        run("./src:/").fails(125, &["the root itself"]);
        run("--tmpfs /t:size=64X").fails(125, &["size \"64X\": unknown unit"]);
        run("--mount type=ext4,dst=/x").fails(125, &["unknown type \"ext4\""]);
    });
}

#[test]
fn what_fails_halfway_leaves_nothing() {
    each(|scratch| {
        scratch.write("root/file", "");
        let output = inside(
            scratch,
            "vol-bind --root root ./src:/made/deep/x --tmpfs /made/t ./src:/made/deep/x/../../../file/y/z || echo $?
             grep \" $PWD/root/\" /proc/self/mountinfo || true; ls root",
        );
        assert_eq!(output.text(), "125\nfile\n");
        assert!(output.stderr.contains("(ENOTDIR)"), "{}", output.stderr);
    });
}

#[test]
fn a_root_that_cannot_be_written_says_what_is_missing() {
    each(|scratch| {
        scratch.mkdir("root/there");
        let output = inside(
            scratch,
            "mount --bind root root; mount -o remount,bind,ro root
             vol-bind --root root ./src:/there/deep/x --tmpfs /there -- ls root/there/deep/x
             vol-bind --root root ./src:/none -- true",
        );
        assert_eq!(output.text(), "file\n");
        assert_eq!(output.status, 125);
        assert!(output.stderr.contains("(EROFS)") && output.stderr.contains("has no \"/none\""), "{}", output.stderr);
    });
}

#[test]
fn odd_names_arrive() {
    each(|scratch| {
        scratch.mkdir("a:b");
        scratch.mkdir("c,\"d");
        let output = inside(
            scratch,
            r#"vol-bind --root root './a\:b:/x\:y' --mount 'type=bind,"src=./c,""d",dst=/z z,readonly' -- ls root"#,
        );
        assert_eq!(output.ok(), "x:y\nz z\n");
    });
}

#[test]
fn without_privilege_the_error_says_how() {
    let scratch = Scratch::new(Who::User);
    scratch.mkdir("root");
    scratch.mkdir("src");
    let output = scratch.run("vol-bind", ["--root", "root", "./src:/x", "--", "true"]);
    output.fails(125, &["(EPERM)", "ns-enter --user --map-auto --mount --"]);
    scratch.run("vol-bind", ["./src:/x"]).fails(125, &["no root", "--root DIR"]);
    scratch.run("vol-bind", ["--root", "none", "./src:/x"]).fails(125, &["open(", "none", "(ENOENT)"]);
}

#[test]
fn nothing_spreads_to_the_places_that_the_root_came_from() {
    root_only(|scratch| {
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
        scratch.mkdir("peer");
        // The root is a shared mount with a peer: what is mounted in one would appear in the other. So would what is mounted
        // over a shared source.
        let output =
            finish(scratch.command("unshare").args(["--mount", "--propagation", "unchanged", "bash", "-euc"]).arg(
                "mount --make-rprivate /; mount -t tmpfs none root; mount --make-shared root; mount --bind root peer
             mount -t tmpfs none src; mount --make-shared src; mkdir src/sub
             vol-bind --root root ./src:/s --tmpfs /s/sub --tmpfs /t >/dev/null
             ls peer; grep -c \" $PWD/peer/\\| $PWD/src/\" /proc/self/mountinfo || true
             grep -c \" $PWD/root/\" /proc/self/mountinfo",
            ));
        assert_eq!(output.ok(), "s\nt\n0\n3\n");
        let output = contained(scratch, "vol-bind --root root --api ./src:/s -- true");
        output.ok();
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    });
}

#[test]
fn slaves_get_what_comes_later_and_private_sources_are_told() {
    root_only(|scratch| {
        scratch.mkdir("shared");
        let output = finish(scratch.command("unshare").args(["--mount", "bash", "-euc"]).arg(
            "mount -t tmpfs none shared; mount --make-shared shared; mkdir shared/late
             vol-bind --root root ./shared:/slave:rslave ./shared:/private >/dev/null
             mount -t tmpfs late shared/late
             awk '$5 ~ \"/root/\" && $5 ~ \"late\" { print substr($5, index($5, \"/root/\")) }' /proc/self/mountinfo
             vol-bind --root root ./src:/x:rslave",
        ));
        assert_eq!(output.text(), "/root/slave/late\n");
        assert_eq!(output.status, 125);
        assert!(output.stderr.contains("mount --make-rshared"), "{}", output.stderr);
    });
}

#[test]
fn owners_are_mapped_at_the_mount() {
    root_only(|scratch| {
        std::os::unix::fs::chown(scratch.path("src/file"), Some(1000), Some(1000)).unwrap();
        let output =
            inside(scratch, "vol-bind --root root ./src:/s:idmap=1000:5000:10 -- stat -c %u:%g root/s/file src/file");
        assert_eq!(output.ok(), "5000:5000\n1000:1000\n");
    });
    let scratch = Scratch::new(Who::User);
    scratch.mkdir("root");
    scratch.mkdir("src");
    // In a PID namespace whose numbers differ from those that /proc shows, too.
    let output = contained(&scratch, "vol-bind --root root ./src:/s:idmap=0:1:1 -- true");
    output.fails(125, &["MOUNT_ATTR_IDMAP", "(EPERM)", "chown"]);
}

#[test]
fn a_locked_mount_below_a_source_is_told() {
    each(|scratch| {
        scratch.mkdir("src/sub");
        let output = inside(
            scratch,
            "mount -t tmpfs none src/sub
             ns-enter --user --map-root --mount -- vol-bind --root root ./src:/x -- cat root/x/file
             exec ns-enter --user --map-root --mount -- vol-bind --root root ./src:/x:bind -- true",
        );
        assert_eq!((output.status, output.text().as_str()), (125, "source"));
        assert!(output.stderr.contains("src/sub\" below it is locked"), "{}", output.stderr);
    });
}

#[test]
fn any_file_system_can_be_made() {
    each(|scratch| {
        for dir in ["low", "lower"] {
            scratch.mkdir(dir);
            scratch.write(format!("{dir}/{dir}"), "");
        }
        let output = contained(
            scratch,
            "vol-bind --root root --mount type=overlay,dst=/o,lowerdir=$PWD/low:$PWD/lower --mount type=proc,dst=/p \
               --mount type=devpts,dst=/pts,newinstance --mount type=mqueue,dst=/m -- sh -c '
               ls root/o; cat root/p/1/comm; stat -f -c %T root/pts root/m'",
        );
        assert_eq!(output.ok(), "low\nlower\nsh\ndevpts\nmqueue\n");
        let output = inside(scratch, "vol-bind --root root --mount type=overlay,dst=/o,lowerdir=/none -- true");
        output.fails(125, &["fsmount(\"overlay\", \"lowerdir=/none,", "(ENOENT)"]);
    });
}

// Named volumes.

#[test]
fn a_volume_outlives_the_root_that_it_was_in() {
    each(|scratch| {
        let write = "mount -t tmpfs none root
                     vol-bind --root root data:/data -- sh -c 'echo kept >root/data/file; echo lost >root/other'";
        inside(scratch, write).ok();
        assert_eq!(fs::read_dir(scratch.path("root")).unwrap().count(), 0, "the root's own content is gone");
        let output = inside(scratch, "vol-bind --root root data:/elsewhere:ro -- cat root/elsewhere/file");
        assert_eq!(output.ok(), "kept\n");
        remove(scratch, "data");
    });
}

#[test]
fn a_volume_outlives_containers_and_their_writable_layers_do_not() {
    each(|scratch| {
        let root = format!("rootfs:{}", rootfs::make(scratch, "root").display());
        let run = |script: &str| scratch.run("ctr-run", ["-v", "data:/data", &root, "sh", "-euc", script]);
        run("echo kept >/data/file; echo lost >/other").ok();
        assert_eq!(run("cat /data/file; [ ! -e /other ]; echo again >>/data/file").ok(), "kept\n");
        assert_eq!(run("cat /data/file").ok(), "kept\nagain\n");
        assert!(!scratch.path("root/data/file").exists() && !scratch.path("root/other").exists());
        remove(scratch, "data");
    });
}

/// Takes a volume away as its owner, so that files of subordinate ids go too.
fn remove(scratch: &Scratch, name: &str) {
    scratch.run("vol-bind", ["--remove", name]).ok();
    assert!(!scratch.store().join("volumes").join(name).exists());
    assert_eq!(fs::read_dir(scratch.store().join("staging")).unwrap().count(), 0);
}

#[test]
fn a_new_volume_begins_as_the_roots_directory() {
    each(|scratch| {
        let prepare = "
            mkdir -p root/data/dir; cd root/data; echo text >dir/file; ln dir/file hard; ln -s dir/file link; mkfifo pipe
            chmod 4751 dir/file; chmod 1700 dir; chown 0:5 dir/file; chmod 2750 .; chown 3:4 .; chown -h 6:7 link
            touch -d 2001-02-03T04:05:06.789Z dir/file; touch -d 2002-02-03 dir
            python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'";
        let listing = "stat -c '%n %a %u:%g %h %F' . dir dir/file hard link pipe; stat -c '%n %Y' dir dir/file hard; \
                       cat dir/file; readlink link; [ hard -ef dir/file ]; ls";
        inside(scratch, prepare).ok();
        let original = inside(scratch, &format!("cd root/data; {listing}")).ok();
        let run =
            format!("vol-bind -v --root root data:/data -- sh -euc 'cd root/data; {}'", listing.replace('\'', "\""));
        let copied = inside(scratch, &run);
        assert!(copied.stderr.contains("\"socket\" is left out"), "{}", copied.stderr);
        assert_eq!(copied.ok(), original.replace("socket\n", ""));
        // Once: what is taken away stays away.
        inside(scratch, "vol-bind --root root data:/data -- rm root/data/hard root/data/pipe").ok();
        let output = inside(scratch, "vol-bind --root root data:/data -- ls root/data");
        assert_eq!(output.ok(), "dir\nlink\n");
        let output = inside(
            scratch,
            "vol-bind --root root bare:/data:nocopy -- sh -c 'ls root/data; stat -c %a,%u:%g root/data'",
        );
        assert_eq!(output.ok(), "2750,3:4\n");
        remove(scratch, "data");
        remove(scratch, "bare");
        inside(scratch, "rm -r root/data").ok();
    });
}

#[test]
fn extended_attributes_and_capabilities_are_copied() {
    root_only(|scratch| {
        if !has("setcap") {
            return;
        }
        let output = inside(
            scratch,
            "mkdir root/data; cp /bin/true root/data/true; setcap cap_net_raw+ep root/data/true
             python3 -c 'import os; [os.setxattr(p, \"user.a\", b\"b\") for p in (\"root/data\", \"root/data/true\")]'
             vol-bind --root root data:/data -- sh -euc '
               getcap root/data/true; cd root/data; python3 -c \"import os; print(*map(lambda p: sorted(os.listxattr(p)), (\\\".\\\", \\\"true\\\")))\"'",
        );
        assert_eq!(output.ok(), "root/data/true cap_net_raw=ep\n['user.a'] ['security.capability', 'user.a']\n");
    });
}

#[test]
fn many_first_uses_at_once_copy_once() {
    each(|scratch| {
        inside(scratch, "mkdir root/data; for i in $(seq 200); do echo $i >root/data/$i; done").ok();
        let output = inside(
            scratch,
            "for i in $(seq 8); do
               unshare -m sh -euc 'vol-bind --root root a:/data b:/data2 -- sh -euc \"
                 [ \\$(ls root/data | grep -c ^[0-9]*\\$) = 200 ]; echo x >>root/data/mark\"' &
             done
             for job in $(jobs -p); do wait $job; done
             vol-bind --root root a:/data -- cat root/data/mark",
        );
        assert_eq!(output.ok(), "x\n".repeat(8));
    });
}

#[test]
fn a_copy_that_was_interrupted_begins_anew() {
    each(|scratch| {
        scratch.mkdir("root/data");
        scratch.write("root/data/whole", "whole");
        scratch.run("vol-bind", ["--create", "data"]).ok();
        // What a killed copy leaves.
        scratch.mkdir(scratch.store().join("volumes/data/_new"));
        scratch.write(scratch.store().join("volumes/data/_new/half"), "");
        let output = inside(scratch, "vol-bind --root root data:/data -- ls root/data");
        assert_eq!(output.ok(), "whole\n");
        assert!(!scratch.store().join("volumes/data/_new").exists());
    });
}

#[test]
fn a_copy_that_does_not_fit_leaves_nothing_half_made() {
    each(|scratch| {
        let output = inside(
            scratch,
            "mkdir small root/data; head -c 600000 /dev/zero >root/data/a; cp root/data/a root/data/b
             mount -t tmpfs -o size=1m none small; export CTR_STORE=$PWD/small
             vol-bind --root root ./src:/x data:/data -- true || echo $?
             ls small/volumes/data small/volumes/data/_data; ls root
             mount -o remount,size=4m small
             vol-bind --root root data:/data -- ls root/data",
        );
        assert_eq!(output.ok(), "125\nsmall/volumes/data:\n_data\n\nsmall/volumes/data/_data:\ndata\na\nb\n");
        assert!(
            output.stderr.contains("filling a new volume") && output.stderr.contains("(ENOSPC)"),
            "{}",
            output.stderr
        );
    });
}

#[test]
fn volumes_are_listed_and_not_removed_in_use() {
    each(|scratch| {
        scratch.run("vol-bind", ["--create", "one"]).ok();
        scratch.run("vol-bind", ["--create", "one"]).ok();
        scratch.run("vol-bind", ["--create", "../one"]).fails(125, &["name \"../one\""]);
        scratch.run("vol-bind", ["--remove", "none"]).fails(125, &["no volume \"none\"", "--list"]);
        let mut command = scratch.command("ns-enter");
        if scratch.who == Who::User {
            command.args(["--user", "--map-auto"]);
        }
        command.args(["--mount", "--", "vol-bind", "--root", "root", "one:/x", "two:/y", "--", "sleep", "60"]);
        let mut child = command.spawn().unwrap();
        let users = |name: &str| {
            let list = scratch.run("vol-bind", ["--list", "--json"]).json();
            let volume = list.as_array().unwrap().iter().find(|volume| volume["name"] == name).cloned();
            volume.map_or(0, |volume| volume["users"].as_array().unwrap().len())
        };
        // Mounted, and become the other program.
        let sleeps = || scratch.run("vol-bind", ["--list"]).ok().contains("(sleep)");
        let mounted = wait_until(Duration::from_secs(20), || users("two") == 1 && sleeps());
        let text = scratch.run("vol-bind", ["--list"]).ok();
        let refused = scratch.run("vol-bind", ["--remove", "one"]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(mounted, "{text}");
        assert!(text.starts_with("NAME") && text.contains("(sleep)"), "{text}");
        refused.fails(125, &["volume \"one\" is in use", "(sleep)"]);
        assert!(wait_until(Duration::from_secs(20), || users("one") == 0));
        remove(scratch, "one");
        remove(scratch, "two");
        assert_eq!(scratch.run("vol-bind", ["--list", "--json"]).ok(), "[]\n");
    });
}

// The API file systems.

#[test]
fn the_api_file_systems_are_what_programs_expect() {
    each(|scratch| {
        let root = rootfs::make(scratch, "root");
        let output = contained(
            scratch,
            "vol-bind --root root --api --shm-size 8M --mask default --readonly default -- chroot root sh -euc '
               for n in null zero full random urandom tty; do stat -c \"%n %t:%T %a %F\" /dev/$n; done
               for l in fd stdin stdout stderr ptmx; do echo $l $(readlink /dev/$l); done
               stat -c \"%n %a\" /dev /dev/shm /dev/pts/ptmx
               df -k /dev/shm | tail -n 1 | sed \"s/  */ /g\" | cut -d \" \" -f 2
               echo x >/dev/null; head -c 2 /dev/zero | od -An -tx1
               [ -d /proc/1 ] && [ \"$(cat /proc/1/comm)\" ]
               [ -d /sys/class/net/lo ] && [ -d /dev/mqueue ]
               ls /sys/fs/cgroup | grep -c . | sed \"s/[1-9][0-9]*/some/\"
               [ ! -s /proc/keys ] && [ ! -s /proc/timer_list ] && [ -z \"$(ls /sys/firmware)\" ]
               for f in /proc/sys/vm/swappiness /sys/kernel/notes /sys/fs/cgroup/x /sys/firmware/x; do
                 (echo 1 >$f) 2>&1 | grep -qi \"read-only\\|denied\" || echo writable $f
               done'",
        );
        let want = "/dev/null 1:3 666 character special file\n/dev/zero 1:5 666 character special file\n\
                    /dev/full 1:7 666 character special file\n/dev/random 1:8 666 character special file\n\
                    /dev/urandom 1:9 666 character special file\n/dev/tty 5:0 666 character special file\n\
                    fd /proc/self/fd\nstdin /proc/self/fd/0\nstdout /proc/self/fd/1\nstderr /proc/self/fd/2\n\
                    ptmx pts/ptmx\n/dev 755\n/dev/shm 1777\n/dev/pts/ptmx 666\n8192\n 00 00\nsome\n";
        assert_eq!(output.ok(), want);
        assert!(!root.join("dev/null").exists());
    });
}

#[test]
fn an_image_with_a_link_for_dev_is_refused() {
    for name in ["dev", "proc", "sys"] {
        each(|scratch| {
            let outside = scratch.mkdir("outside");
            symlink(&outside, scratch.path("root").join(name)).unwrap();
            let output = contained(scratch, "vol-bind --root root --api -- true");
            output.fails(125, &["openat(", &format!("\"{name}\""), "symbolic link", "refused"]);
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        });
    }
}

#[test]
fn every_device_and_a_writable_sys() {
    each(|scratch| {
        rootfs::make(scratch, "root");
        let look = |options: &str| {
            contained(
                scratch,
                &format!(
                    "vol-bind --root root --api {options} -- chroot root sh -euc '
                       test -c /dev/kmsg && echo $(stat -c \"%t:%T\" /dev/kmsg); test -e /dev/console || echo no console
                       grep -oE \" /sys sysfs r[ow]\" /proc/mounts; grep -cE \" /sys/fs/cgroup[^ ]* cgroup2? rw\" /proc/mounts || true'"
                ),
            )
            .ok()
        };
        let groups = |text: &str| text.lines().last().unwrap().parse::<u32>().unwrap();
        let narrow = look("");
        assert!(!narrow.contains("1:b") && narrow.contains(" /sys sysfs ro\n") && groups(&narrow) == 0, "{narrow}");
        let devices = look("--all-devices --nodev");
        assert!(devices.starts_with("1:b\nno console\n") && devices.contains(" /sys sysfs ro\n"), "{devices}");
        let sys = look("--writable-sys");
        assert!(!sys.contains("1:b") && sys.contains(" /sys sysfs rw\n") && groups(&sys) > 0, "{sys}");
        for option in ["--all-devices", "--writable-sys"] {
            scratch.run("vol-bind", ["--root", "root", option]).fails(125, &["--api"]);
        }
    });
}

#[test]
fn what_a_user_namespace_may_not_show_is_told() {
    let scratch = Scratch::new(Who::User);
    scratch.mkdir("root");
    let enter = |namespaces: &[&str], command: &str| enter(&scratch, namespaces, command);
    let output = enter(&["--mount"], "exec vol-bind --root root --api -- true");
    output.fails(125, &["fsmount(\"proc\"", "(EPERM)", "ns-enter --pid"]);
    // Without own network, IPC and cgroup namespaces: the machine's /sys, no queues.
    let output = enter(
        &["--mount", "--pid"],
        "vol-bind -v --root root --api -- sh -c '[ -d root/sys/class ] && [ ! -e root/dev/mqueue ] && ! touch root/sys/x 2>&1'",
    );
    assert!(output.ok().contains("Read-only"), "{output:?}");
    for words in ["/sys is the machine's, read-only", "/dev/mqueue is left out", "/sys/fs/cgroup is left out"] {
        assert!(output.stderr.contains(words), "{words}: {}", output.stderr);
    }
}

#[test]
fn a_mount_for_an_api_target_replaces_it() {
    each(|scratch| {
        let output = contained(
            scratch,
            "vol-bind --root root --api --tmpfs /dev/shm:size=1m ./src:/sys -- sh -c '
               ls root/sys; df --output=size root/dev/shm | tail -n 1 | tr -d \" \"; grep -c \"$PWD/root/dev/shm \" /proc/self/mountinfo'",
        );
        assert_eq!(output.ok(), "file\n1024\n1\n");
    });
}

#[test]
fn devices_and_masks_by_name() {
    each(|scratch| {
        scratch.mkdir("root/secret/dir");
        scratch.write("root/secret/file", "secret");
        scratch.write("root/fixed", "");
        let output = contained(
            scratch,
            "vol-bind --root root --api --device /dev/fuse:/dev/fuse2 --device /dev/zero:/z \
               --mask /secret/file --mask /secret/dir --mask /none/at/all --readonly /fixed -- sh -c '
               stat -c %F root/dev/fuse2 root/z; head -c 1 root/z | wc -c; wc -c <root/secret/file
               ls root; touch root/secret/dir/x 2>/dev/null || echo ro; (echo x >>root/fixed) 2>/dev/null || echo ro'",
        );
        let want = "character special file\ncharacter special file\n1\n0\ndev\nfixed\nproc\nsecret\nsys\nz\nro\nro\n";
        assert_eq!(output.ok(), want);
        let output = contained(scratch, "vol-bind --root root --device $PWD/root/fixed:/dev/x -- true");
        output.fails(125, &["--device", "not a device"]);
    });
}

#[test]
fn names_resolve_in_the_container() {
    each(|scratch| {
        scratch.mkdir("root/etc");
        symlink("../run/stub.conf", scratch.path("root/etc/resolv.conf")).unwrap();
        scratch.write("hosts", "127.0.0.1 localhost");
        scratch.write("more", "10.0.0.1 db\n");
        scratch.write("resolv", "nameserver 9.9.9.9\n");
        let output = inside(
            scratch,
            "vol-bind --root root --hosts hosts --hosts more --hostname-file web --resolv-conf resolv -- sh -c '
               cat root/run/stub.conf root/etc/hosts root/etc/hostname; echo more >>root/etc/hosts'",
        );
        assert_eq!(output.ok(), "nameserver 9.9.9.9\n127.0.0.1 localhost\n10.0.0.1 db\nweb\n");
        assert_eq!(fs::read_to_string(scratch.path("hosts")).unwrap(), "127.0.0.1 localhost");
        assert_eq!(fs::metadata(scratch.path("root/etc/hosts")).unwrap().len(), 0);
    });
}

#[test]
fn check_says_what_can_be_had_and_mounts_nothing() {
    each(|scratch| {
        let output = contained(
            scratch,
            "cat /proc/self/mountinfo >before; vol-bind --check --json --root root --api ./src:/x ./new:/y:create data:/z
             cat /proc/self/mountinfo | cmp - before; [ ! -e new ]; ls root",
        );
        let report = output.json();
        for (group, name) in
            [("mounts", "bind"), ("mounts", "tmpfs"), ("api", "proc"), ("given", "/x"), ("given", "/y")]
        {
            assert_eq!(report[group][name]["available"], true, "{group} {name}: {report}");
        }
        // The kernel gives an initramfs, unlike disks, no id map of a mount.
        let disk = fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .lines()
            .all(|line| !line.contains(" / / ") || !line.contains("- rootfs "));
        assert_eq!(report["mounts"]["idmap"]["available"], scratch.who == Who::Root && disk, "{report}");
        let missing = inside(scratch, "vol-bind --check --root root ./src:/x ./none:/y");
        missing.fails(125, &["given /y: cannot be had here: open_tree(\"./none\"", "(ENOENT)"]);
    });
    let scratch = Scratch::new(Who::User);
    let report = scratch.run("vol-bind", ["--check"]).ok();
    assert!(report.starts_with("mounts     bind     no: ") && report.contains("ns-enter --user"), "{report}");
    let output = inside(&scratch, "vol-bind --check --api");
    output.fails(125, &["api proc: cannot be had here", "(EPERM)", "ns-enter --pid --"]);
    scratch.run("vol-bind", ["--json"]).fails(125, &["--json", "--list", "--check"]);
}

// Documents and taking away.

#[test]
fn the_document_has_what_was_mounted_and_undo_takes_exactly_that_away() {
    each(|scratch| {
        let root = scratch.path("root");
        let document = format!(
            r#"{{"ociVersion":"1.2.0","odd":[1],"root":{{"path":{root:?}}},"mounts":[{{"destination":"/first","type":"tmpfs","source":"tmpfs"}}]}}"#
        );
        scratch.write("in.json", document);
        let output = inside(
            scratch,
            "vol-bind --root root --tmpfs /first >/dev/null
             vol-bind --from in.json data:/data ./src:/x/y:ro --tmpfs /x --mask /proc/keys >out.json
             mount -t tmpfs other root/first
             vol-bind --undo --from out.json; vol-bind --undo --from out.json
             awk -v at=$PWD/root/ 'index($5, at) == 1 { print $5, $(NF-1) }' /proc/self/mountinfo; cat out.json",
        );
        let text = output.ok();
        assert_eq!(text.find('{'), Some(0), "still mounted: {text}");
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["odd"][0], 1);
        assert_eq!(document["linux"]["maskedPaths"][0], "/proc/keys");
        let mounts: Vec<String> = document["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|mount| format!("{} {} {}", mount["destination"], mount["type"], mount["options"]))
            .collect();
        assert_eq!(
            mounts,
            [
                r#""/first" "tmpfs" null"#,
                r#""/x" "tmpfs" ["nodev","nosuid","mode=1777"]"#,
                r#""/data" "bind" ["rbind","rprivate"]"#,
                r#""/x/y" "bind" ["rbind","rprivate","ro","rro"]"#,
            ]
        );
        let source = document["mounts"][2]["source"].as_str().unwrap();
        assert_eq!(Path::new(source), scratch.store().join("volumes/data/_data"));
    });
}

#[test]
fn undo_takes_the_api_file_systems_and_masks_away() {
    each(|scratch| {
        scratch.write("root/secret", "secret");
        let output = contained(
            scratch,
            "left() { awk -v at=$PWD/root/ 'index($5, at) == 1 { print $5, $(NF-1) }' /proc/self/mountinfo; }
             vol-bind --root root --api --mask default --mask /secret --readonly default --readonly /secret >doc.json
             vol-bind --undo --from doc.json; left
             vol-bind --root root --api --mask default --tmpfs /dev/shm --mask /secret >/dev/null
             vol-bind --undo --root root --api --mask default --tmpfs /dev/shm --mask /secret; left; cat root/secret",
        );
        assert_eq!(output.ok(), "secret");
    });
}

#[test]
fn undo_leaves_other_mounts_alone_and_names_who_is_busy() {
    each(|scratch| {
        let output = inside(
            scratch,
            "vol-bind --root root ./src:/x >/dev/null
             mount -t tmpfs other root/x; vol-bind --root root --undo ./src:/x; grep -c \"$PWD/root/x \" /proc/self/mountinfo
             umount root/x
             sleep 60 <root/x/file & until [ $(cat /proc/$!/comm) = sleep ]; do :; done
             vol-bind --root root --undo ./src:/x || echo $?
             kill $!; wait || true
             vol-bind --root root --undo ./src:/x ./src:/never:ro; grep -c \"$PWD/root/x \" /proc/self/mountinfo || true",
        );
        assert_eq!(output.text(), "2\n125\n0\n", "{}", output.stderr);
        assert!(output.stderr.contains("(EBUSY)") && output.stderr.contains("(sleep)"), "{}", output.stderr);
    });
}

#[test]
fn undo_without_the_source_takes_only_what_was_it() {
    each(|scratch| {
        let output = inside(
            scratch,
            "count() { grep -c \"$PWD/root/x \" /proc/self/mountinfo || true; }
             mkdir other root/x; mount --bind other root/x
             vol-bind --root root --undo ./never:/x || echo $?; count; umount root/x
             mount -t tmpfs other root/x; vol-bind --root root --undo ./never:/x || echo $?; count; umount root/x
             vol-bind --root root ./other:/x >/dev/null; rmdir other; count
             vol-bind --root root --undo ./other:/x; count",
        );
        assert_eq!(output.text(), "125\n1\n125\n1\n1\n0\n", "{}", output.stderr);
        for word in ["stat(", "/never", "(ENOENT)", "/root/x", "left alone"] {
            assert_eq!(output.stderr.matches(word).count(), 2, "{}", output.stderr);
        }
    });
}

#[test]
fn a_mount_that_a_document_says_can_be_mounted_from_it() {
    each(|scratch| {
        let output = inside(
            scratch,
            r#"vol-bind --root root --mount 'type=bind,src=./src,dst=/s,rbind,rprivate,ro,rro' \
                 --mount type=tmpfs,source=tmpfs,destination=/t,nosuid,mode=755,size=65536k -- sh -c '
               cat root/s/file; awk "\$5 ~ \"/root/t\$\" { print \$6, \$NF }" /proc/self/mountinfo'"#,
        );
        assert!(output.ok().starts_with("sourcerw,nosuid,nodev,relatime rw,size=65536k,mode=755"), "{output:?}");
    });
}

#[test]
fn a_hundred_volumes_take_little_longer_than_their_mounts() {
    root_only(|scratch| {
        for i in 0..100 {
            scratch.mkdir(format!("root/v{i}"));
        }
        let volumes: Vec<String> = (0..100).map(|i| format!("./src:/v{i}")).collect();
        let output = inside(
            scratch,
            &format!("vol-bind --root root {} -- grep -c \"$PWD/root/v\" /proc/self/mountinfo", volumes.join(" ")),
        );
        assert_eq!(output.ok(), "100\n");
        // How long is the benchmark's to say; here, that nothing grows with the square.
        let begin = Instant::now();
        inside(scratch, &format!("vol-bind --root root {} -- true", volumes.join(" "))).ok();
        assert!(begin.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn what_is_made_has_its_mode_whatever_the_umask() {
    each(|scratch| {
        let output = inside(scratch, "umask 077; vol-bind --root root ./src:/a/b -- sh -c 'umask; stat -c %a root/a'");
        assert_eq!(output.ok(), "0077\n755\n");
        let made = fs::metadata(scratch.path("root/a/b")).unwrap();
        assert_eq!((made.permissions().mode() & 0o7777, made.uid()), (0o755, scratch.who.uid()));
    });
}
