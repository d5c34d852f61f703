//! `ctr-run`: whole containers, as root and as an ordinary user.

use ctr_tests::image::{Image, Layer, busybox};
use ctr_tests::{DEADLINE, Scratch, Who, finish, finish_with, is_root, real_image, wait, wait_until};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

fn with_image(who: Who, image: Image) -> (Scratch, String) {
    let scratch = Scratch::new(who);
    let path = scratch.write("image.tar", image.docker_archive());
    (scratch, path.to_string_lossy().into_owned())
}

/// What is left of containers in the store.
fn containers(scratch: &Scratch) -> Vec<PathBuf> {
    fs::read_dir(scratch.store().join("containers")).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[test]
fn a_real_image_runs() {
    let Some(alpine) = real_image("alpine-3.10.docker.tar.gz") else { return };
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let run = |command: &[&str]| scratch.run("ctr-run", [alpine.to_str().unwrap()].iter().chain(command));
        assert_eq!(run(&["cat", "/etc/alpine-release"]).ok(), "3.10.4\n");
        assert_eq!(run(&["sh", "-c", "id -u; echo $$"]).ok(), "0\n1\n");
        assert_eq!(containers(&scratch), Vec::<PathBuf>::new());
    }
}

#[test]
fn whiteouts_of_a_real_image_hide() {
    let Some(image) = real_image("busybox-layers.docker.tar") else { return };
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let list = scratch.run("ctr-run", [image.to_str().unwrap(), "find", "/", "-xdev"]).ok();
        assert!(!list.contains(".wh."), "{list}");
        assert!(list.contains("/bin/busybox\n"), "{list}");
    }
}

#[test]
fn the_images_defaults_are_honoured_and_can_be_replaced() {
    for who in Who::all() {
        let config = json!({"Entrypoint": ["/bin/sh", "-c", "echo $0 $FROM_IMAGE; pwd; id -u; id -g; echo $HOME"], "Cmd": ["cmd"],
            "Env": ["PATH=/bin", "FROM_IMAGE=yes"], "WorkingDir": "/home/app", "User": "app"});
        let (scratch, image) = with_image(who, Image::busybox().config(config));
        let run = |args: &[&str]| scratch.run("ctr-run", args).ok();
        assert_eq!(run(&[&image]), "cmd yes\n/home/app\n1000\n1000\n/home/app\n", "{who:?}");
        assert_eq!(run(&[&image, "other"]).lines().next(), Some("other yes"));
        assert_eq!(run(&["-e", "FROM_IMAGE=no", "-w", "/tmp", "-u", "0", &image]), "cmd no\n/tmp\n0\n0\n/root\n");
        assert_eq!(run(&["--entrypoint", "echo", &image, "hi"]), "hi\n");
        assert_eq!(run(&["-u", "1:2000", "--entrypoint", "id", &image, "-g"]), "2000\n");
    }
}

#[test]
fn it_is_isolated() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let probe = "hostname; echo $$; ps | wc -l; ls /sys/class/net | tr '\\n' ' '; cat /sys/class/net/lo/flags; for n in mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done";
        let text = scratch.run("ctr-run", ["--hostname", "box", &image, "sh", "-c", probe]).ok();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(&lines[..2], ["box", "1"], "{text}");
        assert!(lines[2].parse::<u32>().unwrap() <= 5, "other processes are seen: {text}");
        assert!(lines[3].starts_with("lo "), "{text}");
        for (name, inside) in ["mnt", "pid", "net", "ipc", "uts", "cgroup"].iter().zip(&lines[lines.len() - 6..]) {
            let outside = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
            assert!(inside.starts_with(name) && outside.to_str() != Some(inside), "{name}: {inside}");
        }
    }
}

#[test]
fn the_default_security_is_on() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let probe = "grep -E '^(NoNewPrivs|Seccomp|CapBnd|CapEff|CapInh):' /proc/self/status; touch /proc/sys/kernel/hostname; head -c 1 /proc/kcore | wc -c; ls /proc/self/fd; ls /dev";
        let output = scratch.run("ctr-run", [&image, "sh", "-c", probe]);
        let text = output.text();
        assert!(text.contains("NoNewPrivs:\t1\n") && text.contains("Seccomp:\t2\n"), "{who:?}: {output:?}");
        // Docker's fourteen.
        assert!(text.contains("CapBnd:\t00000000a80425fb\n") && text.contains("CapEff:\t00000000a80425fb\n"), "{text}");
        assert!(text.contains("CapInh:\t0000000000000000\n"), "{text}");
        assert!(output.stderr.contains("Read-only file system"), "{output:?}");
        assert!(text.contains("\n0\n0\n1\n2\n3\n"), "kcore is readable or descriptors leaked: {text}");
        for node in ["null", "zero", "full", "random", "urandom", "tty", "pts", "shm", "mqueue", "ptmx", "fd", "stdin"]
        {
            assert!(text.lines().any(|line| line == node), "/dev/{node}: {text}");
        }
    }
}

#[test]
fn a_volume_outlives_the_container_and_the_writable_layer_does_not() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let host = scratch.mkdir("host");
        let bind = format!("{}:/host", host.display());
        let write = "echo v >/data/f; echo h >/host/f; echo w >/gone; cat /gone";
        assert_eq!(scratch.run("ctr-run", ["-v", "data:/data", "-v", &bind, &image, "sh", "-c", write]).ok(), "w\n");
        let read = "cat /data/f /host/f; ls /gone 2>/dev/null; echo end";
        let text =
            scratch.run("ctr-run", ["-v", "data:/data", "-v", &format!("{bind}:ro"), &image, "sh", "-c", read]).ok();
        assert_eq!(text, "v\nh\nend\n", "{who:?}");
        let output = scratch.run("ctr-run", ["-v", &format!("{bind}:ro"), &image, "touch", "/host/new"]);
        assert!(output.status != 0 && output.stderr.contains("Read-only file system"), "{output:?}");
        assert_eq!(fs::read_to_string(host.join("f")).unwrap(), "h\n");
        assert_eq!(containers(&scratch), Vec::<PathBuf>::new());
    }
}

#[test]
fn the_next_container_sees_nothing_of_the_one_before() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let look = "stat -c '%a %u:%g' /; ls -a / | md5sum; stat -c %Y / | cut -c1-3";
        let first = scratch.run("ctr-run", [&image, "sh", "-c", look]).ok();
        scratch
            .run(
                "ctr-run",
                [&image, "sh", "-c", "chmod 1700 / && chown 5:6 / && echo x >/new && rm /new && touch -d @1 /"],
            )
            .ok();
        assert_eq!(scratch.run("ctr-run", [&image, "sh", "-c", look]).ok(), first);
    }
}

#[test]
fn a_named_container_keeps_its_writable_layer() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        scratch.run("ctr-run", ["--name", "box", &image, "sh", "-c", "echo kept >/f; chown 5 /f"]).ok();
        assert_eq!(scratch.run("ctr-run", ["--name", "box", &image, "cat", "/f"]).ok(), "kept\n");
        assert!(scratch.run("ctr-run", ["--list"]).ok().contains("box"));
        let other =
            scratch.write("other.tar", Image::new(vec![Layer::new().busybox().file("x", "y")]).docker_archive());
        scratch
            .run("ctr-run", ["--name", "box", other.to_str().unwrap(), "true"])
            .fails(125, &["another image", "--remove box"]);
        scratch.run("ctr-run", ["--remove", "box"]).ok();
        scratch.run("ctr-run", ["--remove", "box"]).ok();
        assert_eq!(containers(&scratch), Vec::<PathBuf>::new());
    }
}

/// Starts a container whose script says UP when it runs, and waits for that.
fn started(scratch: &Scratch, options: &[&str], image: &str, script: &str) -> Child {
    let flag = scratch.mkdir("flags");
    fs::set_permissions(&flag, fs::Permissions::from_mode(0o777)).unwrap();
    let bind = format!("{}:/flags", flag.display());
    let script = script.replace("UP", "touch /flags/up");
    // Whoever runs the tests may ignore signals, and what is ignored stays so.
    let mut command = scratch.command("env");
    command.args(["--default-signal=INT,HUP,TERM", "ctr-run"]);
    command.args(options).args(["-v", &bind, image, "sh", "-c", &script]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(wait_until(DEADLINE, || flag.join("up").exists()), "did not start");
    let _ = fs::remove_file(flag.join("up"));
    child
}

/// The program that the first child of `child` runs.
fn first_child(child: &Child) -> Option<String> {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).ok()?;
    let name = fs::read_to_string(format!("/proc/{}/comm", children.split_whitespace().next()?)).ok()?;
    Some(name.trim_end().to_string())
}

fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).unwrap();
}

#[test]
fn signals_reach_the_command_and_end_it_even_as_process_1() {
    use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGTERM};
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let mut child = started(&scratch, &[], &image, "trap 'exit 9' TERM; UP; while :; do sleep 0.1; done");
        signal(&child, SIGTERM);
        assert_eq!(wait(&mut child, DEADLINE).unwrap().code(), Some(9), "{who:?}");
        // Without a shell, which may catch a signal and forget it when it becomes another program.
        for (number, name) in [(15, SIGTERM), (2, SIGINT), (1, SIGHUP)] {
            let mut command = scratch.command("env");
            let mut child =
                command.args(["--default-signal=INT,HUP,TERM", "ctr-run", &image, "sleep", "1000"]).spawn().unwrap();
            assert!(
                wait_until(DEADLINE, || first_child(&child).is_some_and(|name| name == "busybox" || name == "sleep"))
            );
            signal(&child, name);
            assert_eq!(wait(&mut child, DEADLINE).unwrap().code(), Some(128 + number), "{who:?} {name}");
        }
        assert_eq!(containers(&scratch), Vec::<PathBuf>::new());
    }
}

#[test]
fn kill_9_leaves_no_process_and_the_next_run_cleans_up() {
    use nix::sys::signal::Signal::SIGKILL;
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let mut child = started(&scratch, &["-u", "app"], &image, "sleep 1000 & UP; sleep 1000");
        signal(&child, SIGKILL);
        wait(&mut child, DEADLINE).unwrap();
        assert!(
            wait_until(Duration::from_secs(20), || scratch.processes().is_empty()),
            "{who:?}: {:?}",
            scratch.processes()
        );
        assert_eq!(containers(&scratch).len(), 1);
        scratch.run("ctr-run", [&image, "true"]).ok();
        assert_eq!(containers(&scratch), Vec::<PathBuf>::new(), "{who:?}");
    }
}

#[test]
fn a_running_name_is_refused_with_its_process() {
    use nix::sys::signal::Signal::SIGTERM;
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let mut child = started(&scratch, &["--name", "one"], &image, "UP; exec sleep 1000");
        let pid = child.id().to_string();
        scratch.run("ctr-run", ["--name", "one", &image, "true"]).fails(125, &["container \"one\" is running", &pid]);
        scratch.run("ctr-run", ["--remove", "one"]).fails(125, &["is running", &pid]);
        signal(&child, SIGTERM);
        wait(&mut child, DEADLINE).unwrap();
        scratch.run("ctr-run", ["--remove", "one"]).ok();
    }
}

#[test]
fn many_at_once_share_the_layers_and_leave_nothing() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let children: Vec<Child> = (0..100)
            .map(|_| {
                let mut command = scratch.command("ctr-run");
                command.args([&image, "sh", "-c", "echo x >/f; cat /f"]).stdout(Stdio::piped()).stderr(Stdio::piped());
                command.spawn().unwrap()
            })
            .collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success() && output.stdout == b"x\n", "{who:?}: {output:?}");
        }
        assert_eq!(containers(&scratch), Vec::<PathBuf>::new());
        let layers = fs::read_dir(scratch.store().join("layers/sha256")).unwrap().flatten();
        assert_eq!(layers.filter(|entry| entry.file_type().unwrap().is_dir()).count(), 1);
    }
}

#[test]
fn the_printed_script_does_the_same() {
    let probe = "pwd; id; hostname; cat /proc/mounts | cut -d' ' -f2,3 | sort; grep -E '^(Cap|NoNew|Seccomp|Sig)' /proc/self/status; \
                 env | sort; ls -la /dev | sed 's/ [A-Z][a-z][a-z] .*:.. / /'; umask; ulimit -n; echo \"$1\"; exit 3";
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        scratch.mkdir("src");
        let mut options = vec![
            "-e",
            "A=it's \"$x\"\nline",
            "-w",
            "/tmp",
            "-u",
            "app",
            "--hostname",
            "box",
            "-v",
            "./src:/a b:ro",
            "-v",
            "vol:/v",
            "--tmpfs",
            "/t",
            "--ulimit",
            "nofile=100:200",
            "--cap-add",
            "NET_ADMIN",
            "--cap-drop",
            "CHOWN",
        ];
        if who == Who::Root {
            options.extend(["--memory", "64M", "--pids-limit", "50"]);
        }
        let words: Vec<&str> =
            options.iter().copied().chain([image.as_str(), "sh", "-c", probe, "sh", "odd 'arg"]).collect();
        let direct = finish(scratch.command("ctr-run").args(&words));
        assert_eq!((direct.status, direct.stderr.as_str()), (3, ""), "{who:?}");
        let script = finish(scratch.command("ctr-run").arg("--print").args(&words)).ok();
        let path = scratch.write("script", &script);
        let by_hand = finish(scratch.command("sh").arg(&path));
        assert_eq!((by_hand.status, by_hand.stderr.as_str()), (3, ""), "{script}");
        assert_eq!(direct.text(), by_hand.text(), "{script}");
        let left: Vec<_> = fs::read_dir(scratch.store()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("by-hand")), "{left:?}");
    }
}

/// Bytes that a directory takes on disk.
fn on_disk(dir: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let own = fs::symlink_metadata(dir).map_or(0, |metadata| metadata.blocks() * 512);
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    own + entries.map(|entry| on_disk(&entry.path())).sum::<u64>()
}

#[test]
fn ten_containers_of_one_image_take_little_more_than_one() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        scratch.run("ctr-run", [&image, "true"]).ok();
        let before = on_disk(&scratch.store());
        let names: Vec<String> = (0..10).map(|n| format!("c{n}")).collect();
        for name in &names {
            scratch.run("ctr-run", ["--name", name, &image, "sh", "-c", "echo small >/file"]).ok();
        }
        let grown = on_disk(&scratch.store()) - before;
        assert!(grown > 0 && grown < 1 << 20, "{who:?}: {grown} bytes");
        for name in &names {
            assert_eq!(scratch.run("ctr-run", ["--name", name, &image, "cat", "/file"]).ok(), "small\n");
            scratch.run("ctr-run", ["--remove", name]).ok();
        }
    }
}

#[test]
fn data_goes_through_whole() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let data: Vec<u8> =
            (0..8u32 << 20).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[..1].to_vec()).collect();
        let output = finish_with(scratch.command("ctr-run").args(["-i", &image, "cat"]), &data);
        assert_eq!(output.status, 0, "{}", output.stderr);
        assert!(output.stdout == data, "{who:?}: {} of {} bytes", output.stdout.len(), data.len());
        let broken = scratch.sh(&format!("ctr-run --init {image} yes | head -n 1; echo ${{PIPESTATUS[0]}}"));
        assert_eq!(broken.text(), "y\n141\n", "{}", broken.stderr);
    }
}

#[test]
fn read_only_means_the_root_and_not_its_volumes() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let script = "touch /x 2>/dev/null && echo writable; touch /data/x && touch /dev/shm/x && echo fine";
        let text = scratch.run("ctr-run", ["--read-only", "-v", "data:/data", &image, "sh", "-c", script]).ok();
        assert_eq!(text, "fine\n", "{who:?}");
    }
}

#[test]
fn limits_are_the_kernels() {
    if !is_root() {
        let (scratch, image) = busybox(Who::User);
        scratch.run("ctr-run", ["--memory", "64M", &image, "true"]).fails(125, &["cg-limit"]);
        return;
    }
    let (scratch, image) = busybox(Who::Root);
    let script = "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done 2>&1";
    let output = scratch.run("ctr-run", ["--pids-limit", "20", &image, "sh", "-c", script]);
    assert!(output.text().contains("fork"), "{output:?}");
    let output =
        scratch.run("ctr-run", ["--memory", "32M", &image, "sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=60"]);
    assert_eq!(output.status, 137, "{output:?}");
    let (scratch, image) = busybox(Who::User);
    scratch.run("ctr-run", ["--memory", "64M", &image, "true"]).fails(125, &["cg-limit"]);
    assert_eq!(containers(&scratch), Vec::<PathBuf>::new());
}

#[test]
fn bad_input_is_one_line_and_leaves_nothing() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let fails = |args: &[&str], status, words: &[&str]| {
            finish(scratch.command("ctr-run").args(args)).fails(status, words);
            assert_eq!(containers(&scratch), Vec::<PathBuf>::new(), "{args:?}");
        };
        fails(&["no-such.tar", "true"], 125, &["no-such.tar"]);
        let short = scratch.write("short.tar", &fs::read(&image).unwrap()[..5000]);
        fails(&[short.to_str().unwrap(), "true"], 125, &["short.tar"]);
        fails(&["-u", "nobody-here", &image, "true"], 125, &["nobody-here", "/etc/passwd"]);
        fails(&["-v", "/no/such/source:/x", &image, "true"], 125, &["/no/such/source", "(ENOENT)"]);
        fails(&["--memory", "64X", &image, "true"], 125, &["64X"]);
        fails(&["--cap-add", "NONSENSE", &image, "true"], 125, &["NONSENSE"]);
        fails(&["-w", "/etc/passwd", &image, "true"], 125, &["/etc/passwd"]);
        fails(&["--restart=always", &image], 125, &["--restart is not supported"]);
        fails(&["rootfs:/no/such/dir", "true"], 125, &["/no/such/dir", "(ENOENT)"]);
        fails(&[&image, "nothing-here"], 127, &["nothing-here"]);
        fails(&[], 125, &["no IMAGE"]);
    }
}

#[test]
fn the_machines_own_root_copy_on_write() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new(Who::Root);
    let marker = format!("/etc/{}", scratch.token());
    let text = scratch.run(
        "ctr-run",
        ["rootfs:/", "sh", "-c", &format!("echo x >{marker}; rm /etc/hostname /etc/passwd; cat {marker}")],
    );
    assert_eq!(text.text(), "x\n", "{text:?}");
    assert!(!fs::exists(&marker).unwrap() && fs::exists("/etc/passwd").unwrap());
}

#[test]
fn an_image_from_stdin_and_a_reference_in_the_store() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let image = Image::busybox().name("busy:1").docker_archive();
        let output = finish_with(scratch.command("ctr-run").args(["-", "cat", "/etc/os-release"]), &image);
        assert!(output.ok().contains("ID=ctrtest"), "{who:?}");
        assert!(scratch.run("ctr-run", ["busy:1", "cat", "/etc/os-release"]).ok().contains("ID=ctrtest"));
        scratch.run("ctr-run", ["busy:2", "true"]).fails(125, &["busy:2"]);
    }
}

#[test]
fn an_init_gives_nothing_of_the_host_away() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let script = "tr '\\0' '\\n' 2>/dev/null </proc/1/environ | grep -c SECRET; chmod 4777 /proc/1/exe 2>/dev/null && echo changed; readlink /proc/1/exe; true";
        let mut command = scratch.command("ctr-run");
        let output = finish(command.env("SECRET", "x").args(["--init", &image, "sh", "-c", script]));
        assert_eq!(output.ok(), "0\n", "{who:?}");
    }
}

#[test]
fn a_command_with_a_tools_name_is_the_roots_own() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        scratch.run("ctr-run", [&image, "ns-enter", "--version"]).fails(127, &["ns-enter", "(ENOENT)"]);
    }
}

#[test]
fn a_caller_that_ignores_its_children_is_no_hindrance() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let args = ["--ignore-signal=CHLD", "ctr-run", &image, "sh", "-c", "echo fine"];
        assert_eq!(scratch.run("env", args).ok(), "fine\n", "{who:?}");
    }
}

#[test]
fn device_nodes_made_inside_open_nothing() {
    if !is_root() {
        return;
    }
    let (scratch, image) = busybox(Who::Root);
    // A harmless one: what holds for it holds for disks.
    let script = "for at in / /dev/ /data/ /tmp/t/; do mknod ${at}node c 1 3; echo x 2>/dev/null >${at}node && echo opened $at; done; echo x >/dev/null && echo fine";
    let options = ["-v", "data:/data", "--tmpfs", "/tmp/t"];
    let run =
        |more: &[&str]| finish(scratch.command("ctr-run").args(options).args(more).args([&image, "sh", "-c", script]));
    assert_eq!(run(&[]).text(), "fine\n");
    assert!(run(&["--privileged"]).text().contains("opened /\n"));
}
