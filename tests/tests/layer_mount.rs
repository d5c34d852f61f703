//! `layer-mount`: unions of layers, seen through mountinfo and the files in them, as root and as an ordinary user.

use ctr_tests::{DEADLINE, Output, Scratch, Who, finish, has, is_root, wait, wait_until};
use serde_json::{Value, json};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Stdio;

/// A scratch with layers `a` (base) and `b`, and directories `upper`, `work` and `at`.
fn layered(who: Who) -> Scratch {
    let scratch = Scratch::new(who);
    for dir in ["a", "a/d", "b", "b/d", "upper", "work", "at"] {
        scratch.mkdir(dir);
    }
    for (file, content) in [("a/f", "base\n"), ("a/d/low", "low\n"), ("b/f", "top\n"), ("b/z", "z\n"), ("b/d/high", "")]
    {
        scratch.write(file, content);
    }
    scratch
}

fn script(scratch: &Scratch, text: &str) -> Output {
    finish(scratch.apart().args(["bash", "-euc", text]))
}

fn mount<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(scratch: &Scratch, args: I) -> Output {
    finish(scratch.apart().arg("layer-mount").args(args))
}

/// The line of mountinfo that a script printed for the mount at `at`.
const SHOW: &str = "grep -F \"$PWD/at \" /proc/self/mountinfo";
const BOTH: &str = "layer-mount --lower a --lower b";

#[test]
fn layers_are_merged_base_first_and_writes_go_to_the_upper() {
    for who in Who::all() {
        let scratch = layered(who);
        let text = format!(
            "{BOTH} --upper upper --work work at >document; {SHOW}; cat at/f; ls at/d; echo new >at/f; rm at/z; rm -r at/d; mkdir at/d; ls -A at/d"
        );
        let out = script(&scratch, &text).ok();
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines[0].contains(" rw,relatime") && lines[0].contains(" - overlay layer-mount "), "{out}");
        let dir = scratch.path("").canonicalize().unwrap();
        let upper = format!("lowerdir+={0}/b,lowerdir+={0}/a,upperdir={0}/upper,workdir={0}/work", dir.display());
        // As kernels before 6.5 take and show it.
        let line = lines[0]
            .replace(&format!("lowerdir={0}/b:{0}/a,", dir.display()), &upper[..upper.find("upperdir").unwrap()]);
        assert!(line.contains(&upper) && line.contains("redirect_dir=nofollow"), "{out}");
        assert_eq!(lines[0].contains("userxattr"), who == Who::User, "{out}");
        assert_eq!(&lines[1..], ["top", "high", "low"], "{out}");
        assert_eq!(fs::read_to_string(scratch.path("upper/f")).unwrap(), "new\n");
        assert!(fs::symlink_metadata(scratch.path("upper/z")).unwrap().file_type().is_char_device());
        assert_eq!(fs::read_to_string(scratch.path("b/f")).unwrap(), "top\n");
        let document: Value = serde_json::from_slice(&fs::read(scratch.path("document")).unwrap()).unwrap();
        let path = |name: &str| scratch.path(name).to_string_lossy().into_owned();
        assert_eq!(document["layers"], json!([path("a"), path("b")]));
        assert_eq!(document["root"], json!({"path": dir.join("at").to_str().unwrap(), "readonly": false}));
    }
}

#[test]
fn a_document_gives_the_layers_and_keeps_what_is_unknown() {
    for who in Who::all() {
        let scratch = layered(who);
        let dir = scratch.path("");
        let document = json!({"ociVersion": "1.0.2", "x": {"y": 1}, "layers": [dir.join("a"), dir.join("b")]});
        scratch.write("in.json", document.to_string());
        let out = script(&scratch, "layer-mount --from in.json --scratch at; cat at/f >&2").json();
        assert_eq!((&out["x"]["y"], &out["root"]["readonly"]), (&json!(1), &json!(false)));
        assert_eq!(out["layers"], document["layers"]);
        let out = script(&scratch, "layer-mount --from - at -- cat at/f <in.json");
        assert_eq!(out.ok(), "top\n");
    }
}

#[test]
fn without_a_writable_layer_nothing_is_written() {
    for who in Who::all() {
        let scratch = layered(who);
        for (layers, kind) in [("--lower a", " / "), (BOTH.trim_start_matches("layer-mount "), "overlay layer-mount")] {
            for option in ["", "--read-only"] {
                let text = format!("layer-mount {layers} {option} at >/dev/null; {SHOW}; touch at/new; exit 0");
                let out = script(&scratch, &text.replace("touch", "! touch"));
                assert!(out.stderr.contains("Read-only file system"), "{out:?}");
                let line = out.text();
                assert!(line.contains(" ro,") && (kind == " / " || line.contains(kind)), "{line}");
            }
        }
        let out = script(&scratch, &format!("layer-mount --lower a at >/dev/null; {SHOW}"));
        assert!(!out.text().contains("overlay"), "one layer is a bind mount: {out:?}");
        assert!(!out.text().contains("shared:"), "{out:?}");
    }
}

#[test]
fn memory_vanishes_with_the_mount() {
    for who in Who::all() {
        let scratch = layered(who);
        let text = format!(
            "{BOTH} --scratch=1M at >/dev/null; stat -f -c %T at; echo new >at/f; rm -r at/d; mkdir at/d; ls -A at/d; grep -c tmpfs.*layer-mount /proc/self/mountinfo || true; \
             layer-mount --undo at; {BOTH} --scratch at >/dev/null; cat at/f; {BOTH} --scratch=1M b -- sh -c '! head -c 2000000 /dev/zero >b/big'"
        );
        let out = script(&scratch, &text);
        assert_eq!(out.ok(), "overlayfs\n0\ntop\n", "{out:?}");
        assert!(out.stderr.contains("No space left"), "{out:?}");
        assert_eq!(fs::read_to_string(scratch.path("b/f")).unwrap(), "top\n");
    }
}

#[test]
fn the_unions_root_looks_like_the_top_layers() {
    for who in Who::all() {
        let scratch = layered(who);
        fs::set_permissions(scratch.path("b"), fs::Permissions::from_mode(0o1751)).unwrap();
        let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let b = fs::File::open(scratch.path("b")).unwrap();
        b.set_times(fs::FileTimes::new().set_modified(old)).unwrap();
        // As another user's of an image: only who has several ids can give it away.
        script(&scratch, "chown 7:8 b; touch -d @1000000 b").ok();
        let stat = "stat -c '%a %u:%g %Y'";
        for writable in ["--upper upper --work work", "--scratch"] {
            let out = script(&scratch, &format!("{BOTH} {writable} at -- {stat} at"));
            assert_eq!(out.ok(), "1751 7:8 1000000\n");
        }
        // What is not new stays as it is.
        let out = script(&scratch, &format!("{BOTH} --upper upper --work work at -- chmod 700 at; {stat} at >&2"));
        out.ok();
        let out = script(&scratch, &format!("{BOTH} --upper upper --work work at -- stat -c %a at"));
        assert_eq!(out.ok(), "700\n");
    }
}

#[test]
fn a_layer_that_comes_twice_is_kept_on_top() {
    for who in Who::all() {
        let scratch = layered(who);
        std::os::unix::fs::symlink("b", scratch.path("link")).unwrap();
        let out = script(&scratch, "layer-mount --lower b --lower a --lower link at -- cat at/f");
        assert_eq!(out.ok(), "top\n");
        let out = script(&scratch, "layer-mount --lower a --lower a --scratch at -- cat at/f");
        assert_eq!(out.ok(), "base\n");
    }
}

#[test]
fn any_characters_and_lengths_of_paths() {
    for who in Who::all() {
        let scratch = layered(who);
        let mut names: Vec<OsString> =
            ["co:lon", "com,ma", "back\\slash", "new\nline", " sp ", "q\"'`$"].map(Into::into).into();
        names.push(OsStr::from_bytes(b"byte\xff").into());
        names.push(["x".repeat(200), "y".repeat(200), "z".repeat(200)].join("/").into());
        let mut args: Vec<OsString> = Vec::new();
        for (i, name) in names.iter().enumerate() {
            let dir = scratch.mkdir(PathBuf::from(name));
            for file in [i.to_string(), "which".into()] {
                scratch.write(PathBuf::from(name).join(file), i.to_string());
            }
            args.extend(["--lower".into(), dir.into()]);
        }
        let upper = scratch.mkdir("u:p,p\\er");
        let work = scratch.mkdir("w:o,r\\k");
        args.extend(["--upper".into(), upper.clone().into(), "--work".into(), work.into(), "at".into(), "--".into()]);
        args.extend(["sh", "-c", "ls at; cat at/which; echo >at/new"].map(Into::into));
        let out = mount(&scratch, &args).ok();
        assert_eq!(out, "0\n1\n2\n3\n4\n5\n6\n7\nwhich\n7", "{who:?}");
        assert!(upper.join("new").exists());
        // A document cannot hold a name that is no text; then nothing is mounted.
        let odd = scratch.path(PathBuf::from(&names[6]));
        let out = finish(
            scratch.apart().args(["sh", "-c", "layer-mount --lower \"$1\" at; s=$?; ls at; exit $s", "sh"]).arg(odd),
        );
        out.fails(125, &["not UTF-8"]);
    }
}

#[test]
fn up_to_500_layers_each_seen() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        scratch.mkdir("at");
        let long = format!("layers-{}", "n".repeat(100));
        scratch.mkdir(&long);
        let layers: Vec<String> = (0..501).map(|i| format!("{long}/{i}")).collect();
        for (i, layer) in layers.iter().enumerate() {
            scratch.mkdir(layer);
            scratch.write(format!("{layer}/{i}"), "");
            scratch.write(format!("{layer}/top"), i.to_string());
        }
        for count in [3, 50, 400, 500] {
            let args = layers[..count].iter().flat_map(|layer| ["--lower", layer]);
            let out = mount(&scratch, args.chain(["at", "--", "sh", "-c", "ls at | wc -l; cat at/top"]));
            assert_eq!(out.ok(), format!("{}\n{}", count + 1, count - 1), "{who:?}");
        }
        let args = layers.iter().flat_map(|layer| ["--lower", layer]);
        mount(&scratch, args.chain(["at"])).fails(125, &["501 layers", "at most 500"]);
    }
}

#[test]
fn a_writable_layer_is_used_by_one_mount_at_a_time() {
    for who in Who::all() {
        let scratch = layered(who);
        for dir in ["work2", "at2", "upper2"] {
            scratch.mkdir(dir);
        }
        let mut holder = scratch.apart();
        holder.args("layer-mount --lower a --upper upper --work work at -- sh -c".split(' ')).arg("echo; read _");
        let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mounted = wait_until(DEADLINE, || fs::read_dir(scratch.path("work")).unwrap().count() == 1);
        assert!(mounted);
        let used = wait_until(DEADLINE, || {
            let table = fs::read_to_string(format!("/proc/{}/mountinfo", holder.id())).unwrap_or_default();
            table.contains(&format!("upperdir={}", scratch.path("upper").canonicalize().unwrap().display()))
        });
        assert!(used);
        // In another namespace, and with another work directory; nothing has been written yet.
        for (upper, work, name) in
            [("upper", "work", "--upper"), ("upper", "work2", "--upper"), ("upper2", "work", "--work")]
        {
            let out = mount(&scratch, ["--lower", "a", "--upper", upper, "--work", work, "at2"]);
            out.fails(
                125,
                &[name, "is in use", &format!("{:?}", scratch.path("at").canonicalize().unwrap()), "process"],
            );
            let out = mount(&scratch, ["--check", "--lower", "a", "--upper", upper, "--work", work, "at2"]);
            out.fails(125, &[name, "is in use"]);
        }
        drop(holder.stdin.take());
        assert!(wait(&mut holder, DEADLINE).is_some());
        assert_eq!(
            script(&scratch, "layer-mount --lower a --upper upper --work work2 at2 -- cat at2/f").ok(),
            "base\n"
        );
    }
}

#[test]
fn locks_are_respected_and_none_is_left() {
    for who in Who::all() {
        let scratch = layered(who);
        let lock = fs::File::open(scratch.path("a")).unwrap();
        lock.lock().unwrap();
        mount(&scratch, ["--lower", "a", "--lower", "b", "at"]).fails(125, &["a\" is being removed"]);
        lock.unlock().unwrap();
        lock.lock_shared().unwrap();
        // COMMAND holds nothing.
        let out =
            mount(&scratch, ["--lower", "a", "--upper", "upper", "--work", "work", "at", "--", "ls", "/proc/self/fd"]);
        assert_eq!(out.ok(), scratch.run("ls", ["/proc/self/fd"]).ok());
        let upper = fs::File::open(scratch.path("upper")).unwrap();
        upper.lock().unwrap();
        let out = mount(&scratch, ["--lower", "a", "--upper", "upper", "--work", "work", "at"]);
        out.fails(125, &["\"upper\" is locked by another process"]);
    }
}

#[test]
fn of_many_at_once_one_gets_the_upper() {
    for who in Who::all() {
        let scratch = layered(who);
        let text = "for i in 1 2 3 4 5 6 7 8; do mkdir at$i; layer-mount --lower a --upper upper --work work at$i >out$i 2>err$i & done; wait; \
                    grep -c upperdir=$PWD/upper, /proc/self/mountinfo; cat err* | grep -c -e 'is in use' -e 'is locked'";
        let out = script(&scratch, text);
        assert_eq!(out.ok(), "1\n7\n", "{who:?}: {out:?}");
    }
}

#[test]
fn what_cannot_be_is_said_in_words() {
    for who in Who::all() {
        let scratch = layered(who);
        scratch.mkdir("a/sub");
        scratch.mkdir("upper/inside");
        let run = |args: &str| mount(&scratch, args.split(' '));
        run("--lower a none").fails(125, &["open(\"none\"", "(ENOENT)", "mkdir"]);
        run("--lower a a/f").fails(125, &["open(\"a/f\"", "(ENOTDIR)"]);
        run("--lower none at").fails(125, &["none\"", "(ENOENT)"]);
        run("--lower a/f at").fails(125, &["a/f\"", "(ENOTDIR)"]);
        run("--lower a --lower a/sub at").fails(125, &["(ELOOP)", "a/sub\" is inside", "may not overlap"]);
        run("--lower a --upper upper --work upper at").fails(125, &["same directory"]);
        run("--lower a --upper upper --work upper/inside at").fails(125, &["(EINVAL)", "inside one another"]);
        run("--check --lower a --upper upper --work upper/inside at").fails(125, &["inside one another"]);
        run("--lower a --upper upper --work /proc at").fails(125, &["another file system", "side by side"]);
        run("--lower a --upper none --work work at").fails(125, &["open(\"none\"", "(ENOENT)"]);
        run("--from /dev/null at").fails(125, &["empty", "the tool before it"]);
        run("at").fails(125, &["no layers", "--lower"]);
        run("--lower a --scratch=64X at").fails(125, &["64X", "unknown unit"]);
        assert!(scratch.mounts().is_empty());

        let text = "layer-mount --lower a --scratch at >/dev/null; mkdir at/u at/w at2; ! layer-mount CHECK --lower b --upper at/u --work at/w at2";
        for check in ["", "--check"] {
            let out = script(&scratch, &text.replace("CHECK", check).replace("mkdir", "mkdir -p"));
            out.fails(0, &["on overlay, which cannot hold a writable layer", "--scratch"]);
        }
        let out =
            script(&scratch, "layer-mount --lower a --scratch at >/dev/null; ! layer-mount --lower b --scratch at");
        out.fails(0, &["mounted union already", "--undo"]);
        let out = script(
            &scratch,
            "mkdir ro; mount --bind -o ro . ro 2>/dev/null || { mount --bind . ro; mount -o remount,bind,ro ro; }; ! layer-mount --lower a --upper ro/upper --work ro/work at",
        );
        out.fails(0, &["read-only", "--scratch"]);
    }
}

#[test]
fn a_user_without_a_namespace_is_told_the_way() {
    let scratch = layered(Who::User);
    for args in ["--lower a at", "--lower a --lower b at", "--lower a --scratch at"] {
        let out = scratch.run("layer-mount", args.split(' '));
        out.fails(125, &["(EPERM)", "ns-enter --user --map-auto --mount --"]);
        let out = scratch.run("layer-mount", ["--check"].into_iter().chain(args.split(' ')));
        out.fails(125, &["(EPERM)", "ns-enter"]);
    }
    mount(&scratch, ["--lower", "/", "--scratch", "at"]).fails(125, &["(EINVAL)", "mounted below", "rootfs:DIR"]);
    mount(&scratch, ["--lower", "/", "at"]).fails(125, &["(EINVAL)", "mounted below", "rootfs:DIR"]);
}

#[test]
fn root_can_look_at_its_own_system() {
    if !is_root() {
        return;
    }
    let scratch = layered(Who::Root);
    let out = mount(&scratch, ["--lower", "/", "--scratch", "at", "--", "sh", "-c", "touch at/new; cat at/etc/passwd"]);
    assert_eq!(out.ok(), fs::read_to_string("/etc/passwd").unwrap());
    assert!(!PathBuf::from("/new").exists());
}

#[test]
fn check_mounts_nothing_and_touches_nothing() {
    for who in Who::all() {
        let scratch = layered(who);
        for (args, word) in [
            ("--lower a at", "bind"),
            ("--lower a --lower b at", "overlay"),
            ("--lower a --scratch at", "memory"),
            ("--lower a --upper upper --work work at", "overlay"),
            ("--lower a --lower b --upper upper --work work at", "overlay"),
        ] {
            let before = fs::metadata(scratch.path("upper")).unwrap().ctime_nsec();
            let text = format!("layer-mount --check {args}; ! {SHOW}");
            let out = script(&scratch, &text).ok();
            assert!(out.contains("can be mounted at") && out.contains(word) && out.lines().count() == 1, "{out}");
            assert_eq!(before, fs::metadata(scratch.path("upper")).unwrap().ctime_nsec());
            for dir in ["upper", "work", "at"] {
                assert_eq!(fs::read_dir(scratch.path(dir)).unwrap().count(), 0);
            }
        }
    }
}

#[test]
fn undo_takes_the_mount_and_the_kernels_leftovers_and_never_the_upper() {
    for who in Who::all() {
        let scratch = layered(who);
        let undo = format!(
            "{BOTH} --upper upper --work work at >/dev/null; echo x >at/mine; layer-mount --undo at; ! {SHOW}; layer-mount --undo at; layer-mount --undo nowhere"
        );
        assert_eq!(script(&scratch, &undo).ok(), "");
        assert_eq!(fs::read_dir(scratch.path("work")).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(scratch.path("upper/mine")).unwrap(), "x\n");
        for (mount, layers) in
            [(BOTH, ""), ("layer-mount --lower a --scratch", ""), ("layer-mount --lower a", "--lower a")]
        {
            script(&scratch, &format!("{mount} at >/dev/null; layer-mount --undo {layers} at; ! {SHOW}")).ok();
        }
        script(&scratch, &format!("layer-mount --lower a at >doc; layer-mount --undo --from doc at; ! {SHOW}")).ok();
        // A mount of someone else stays.
        let out = script(&scratch, &format!("mount -t tmpfs none at; layer-mount --undo at || {SHOW} >/dev/null"));
        out.fails(0, &["tmpfs", "not a mount of layer-mount"]);
        let out = script(&scratch, "mount -t tmpfs none at; layer-mount --undo at");
        assert_eq!(out.status, 125);
    }
}

#[test]
fn undo_leaves_the_mounts_of_others() {
    for who in Who::all() {
        let scratch = layered(who);
        let stays = |mount: &str, undo: &str, words: &[&str]| {
            let text = format!("{mount}; layer-mount --undo {undo} at && exit 9; {SHOW} >/dev/null; exit 125");
            script(&scratch, &text).fails(125, words);
        };
        let bind = "mount --bind a at; mount -o remount,bind,ro at";
        stays(bind, "", &["read-only, and bears no name", "--lower or --from, or umount it"]);
        stays(bind, "--lower b", &["not a mount of layer-mount of", "/b", "umount"]);
        stays(bind, "--lower none", &["stat(", "/none", "(ENOENT)"]);
        stays("mkdir c; layer-mount --lower c at >/dev/null; rmdir c", "--lower c", &["stat(", "/c", "(ENOENT)"]);
        stays("mount --bind a at", "--lower a", &["not a mount of layer-mount"]);
        let part = format!("mkdir -p other; {BOTH} --scratch other >/dev/null; mount --bind other/d at");
        stays(&part, "", &["is overlay (\"layer-mount\")", "not a mount of layer-mount"]);
    }
}

#[test]
fn undo_removes_nothing_that_has_content() {
    for who in Who::all() {
        let scratch = layered(who);
        // The path that mountinfo tells leads to another directory by now.
        for mode in ["755", "0"] {
            let text = format!(
                "{BOTH} --upper upper --work work at >/dev/null; mv work old; mkdir -p work/work/incompat work/index
                 echo precious >work/work/f; chmod {mode} work/work; layer-mount --undo at; ! {SHOW}
                 chmod 755 work/work; cat work/work/f; ls work work/work; rm -r work; rm -rf old; mkdir work"
            );
            let out = script(&scratch, &text).ok();
            assert_eq!(out, "precious\nwork:\nindex\nwork\n\nwork/work:\nf\nincompat\n");
        }
        // What was removed leaves a whiteout of the kernel's, which goes.
        let text =
            format!("{BOTH} --upper upper --work work --volatile at >/dev/null; rm at/f at/z; layer-mount --undo at");
        script(&scratch, &text).ok();
        assert_eq!(fs::read_dir(scratch.path("work")).unwrap().count(), 0);
    }
}

#[test]
fn undo_names_who_keeps_it_busy() {
    for who in Who::all() {
        let scratch = layered(who);
        let busy = |user: &str| {
            let text = format!("{BOTH} --scratch at >/dev/null; {user}; layer-mount --undo $PWD/at || exit $?");
            script(&scratch, &text.replace("$PWD", &scratch.path("").to_string_lossy()))
        };
        busy("exec 9<at/f").fails(125, &["umount2(", "(EBUSY)", "(bash): open file", "--lazy"]);
        busy("cd at; true").fails(125, &["(EBUSY)", "(bash): working directory"]);
        busy("mkdir at/m; mount -t tmpfs none at/m").fails(125, &["(EBUSY)", "mounted below it", "/at/m"]);
        let lazy =
            format!("{BOTH} --scratch at >/dev/null; exec 9<at/f; layer-mount --undo --lazy at; ! {SHOW}; cat <&9");
        assert_eq!(script(&scratch, &lazy).ok(), "top\n");
    }
}

#[test]
fn a_volatile_upper_has_to_be_undone_before_it_is_used_again() {
    for who in Who::all() {
        let scratch = layered(who);
        let volatile = format!("{BOTH} --upper upper --work work --volatile at >/dev/null");
        let out = script(&scratch, &format!("{volatile}; {SHOW}; layer-mount --undo at; {volatile}; echo again"));
        let text = out.ok();
        assert!((text.contains(",volatile") || text.contains("fsync=volatile")) && text.ends_with("again\n"), "{text}");
        // That one went with its namespace, without --undo.
        script(&scratch, &volatile).fails(125, &["(EINVAL)", "--volatile and not undone", "work/work"]);
    }
}

#[test]
fn changes_are_listed_from_the_kernels_marks() {
    for who in Who::all() {
        let scratch = layered(who);
        scratch.mkdir("a/gone");
        scratch.write("a/gone/x", "");
        let work = "rm -r at/d at/z; mkdir at/d; echo >at/d/new; echo more >>at/f; mkdir at/fresh; ln -s x at/link; rm -r at/gone; chmod 700 at/keep";
        scratch.mkdir("a/keep");
        script(&scratch, &format!("{BOTH} --upper upper --work work at >/dev/null; {work}")).ok();
        let changes = |args: &str| script(&scratch, &format!("layer-mount --changes upper {args}")).ok();
        let want = "O /d\nA /d/new\nM /f\nA /fresh\nD /gone\nM /keep\nA /link\nD /z\n";
        assert_eq!(changes("--lower a --lower b"), want, "{who:?}");
        let alone = changes("");
        for line in ["O /d\n", "M /f\n", "W /fresh\n", "D /gone\n", "W /link\n", "D /z\n"] {
            assert!(alone.contains(line), "{line:?} is not in {alone}");
        }
        let json: Value = serde_json::from_str(&changes("--lower a --lower b --json")).unwrap();
        assert_eq!(json[4], json!({"kind": "deleted", "path": "/gone"}));
    }
}

#[test]
fn an_upper_of_the_other_kind_is_refused() {
    if !is_root() {
        return;
    }
    let scratch = layered(Who::User);
    script(&scratch, "layer-mount --lower a --upper upper --work work at -- touch at/x").ok();
    let as_root = Scratch::new(Who::Root);
    let dir = |name: &str| scratch.path(name);
    let mut command = as_root.apart();
    command.arg("layer-mount").arg("--lower").arg(dir("a")).arg("--upper").arg(dir("upper"));
    finish(command.arg("--work").arg(dir("work")).arg(dir("at")))
        .fails(125, &["written in a user namespace", "come back"]);
}

#[test]
fn fuse_is_another_way() {
    if !is_root() || !has("fuse-overlayfs") {
        return;
    }
    let scratch = layered(Who::Root);
    for writable in ["--upper upper --work work", "--scratch"] {
        let text = format!(
            "{BOTH} --fuse {writable} at >/dev/null; {SHOW}; cat at/f; echo new >at/f; cat at/f; layer-mount --undo at; ! {SHOW}"
        );
        let out = script(&scratch, &text).ok();
        assert!(out.contains("fuse.fuse-overlayfs") && out.ends_with("top\nnew\n"), "{out}");
    }
    assert_eq!(fs::read_to_string(scratch.path("upper/f")).unwrap(), "new\n");
    assert_eq!(fs::read_to_string(scratch.path("b/f")).unwrap(), "top\n");
    let out = finish(scratch.apart().env("PATH", "/nowhere").arg("layer-mount").args(["--fuse", "--lower", "a", "at"]));
    assert_ne!(out.status, 0);
}

#[test]
fn ten_containers_of_one_image_cost_what_they_write() {
    for who in Who::all() {
        let scratch = layered(who);
        fs::write(scratch.path("a/big"), vec![7u8; 4 << 20]).unwrap();
        let text = "for i in $(seq 10); do mkdir -p c/$i/upper c/$i/work c/$i/at; \
                    layer-mount --lower a --lower b --upper c/$i/upper --work c/$i/work c/$i/at -- sh -c \"echo mine >c/$i/at/small\"; done; du -sxk c/*/upper c/*/work | cut -f1";
        let kib: u64 = script(&scratch, text).ok().lines().map(|line| line.parse::<u64>().unwrap()).sum();
        assert!(kib < 1024, "{kib} KiB");
    }
}
