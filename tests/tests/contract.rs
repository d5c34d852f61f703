//! The contract, held against all six tools: design and exit statuses, errors, what COMMAND gets, `-v`, `--help`.

use ctr_tests::image::Image;
use ctr_tests::{Output, Scratch, TOOLS, Who, finish, project, rootfs};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;

/// A way to run a COMMAND through a tool: the words before it.
struct Form {
    scratch: Scratch,
    tool: &'static str,
    words: Vec<String>,
}

impl Form {
    fn run(&self, command: &[&str]) -> Output {
        self.run_os(command.iter().map(OsStr::new))
    }

    fn run_os<'a>(&self, command: impl Iterator<Item = &'a OsStr>) -> Output {
        finish(self.scratch.command(&self.words[0]).args(&self.words[1..]).args(command))
    }

    fn name(&self) -> String {
        format!("{} as {:?}", self.tool, self.scratch.who)
    }
}

/// The tools that can run a COMMAND with the machine's own root, each way.
fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for who in Who::all() {
        for tool in ["img-unpack", "layer-mount", "vol-bind", "cg-limit", "ns-enter"] {
            // Without delegation an ordinary user has no groups to limit.
            if tool == "cg-limit" && who == Who::User {
                continue;
            }
            let scratch = Scratch::new(who);
            let words = words(&scratch, tool);
            forms.push(Form { scratch, tool, words });
        }
    }
    forms
}

fn words(scratch: &Scratch, tool: &str) -> Vec<String> {
    let path = |name: &str| scratch.path(name).to_string_lossy().into_owned();
    let user = scratch.who == Who::User;
    // Mounts go into a namespace of their own, so that they vanish with it.
    let mut words: Vec<String> = match (tool, user) {
        ("layer-mount" | "vol-bind", true) => {
            ["ns-enter", "--user", "--map-root", "--mount", "--"].map(String::from).to_vec()
        }
        ("layer-mount" | "vol-bind", false) => ["ns-enter", "--mount", "--"].map(String::from).to_vec(),
        _ => Vec::new(),
    };
    for dir in ["a", "b", "at", "root", "src"] {
        scratch.mkdir(dir);
    }
    let own: Vec<String> = match tool {
        "img-unpack" => {
            let image = scratch.write("image.tar", Image::busybox().docker_archive());
            vec!["-q".into(), image.to_string_lossy().into_owned()]
        }
        "layer-mount" => {
            vec!["--lower".into(), path("a"), "--lower".into(), path("b"), "--read-only".into(), path("at")]
        }
        "vol-bind" => vec!["--root".into(), path("root"), format!("{}:/dst", path("src"))],
        "cg-limit" => vec!["--pids=1000".into()],
        "ns-enter" if user => vec!["--user".into(), "--map-root".into(), "--uts".into()],
        _ => vec!["--uts".into()],
    };
    words.push(tool.into());
    words.extend(own);
    words.push("--".into());
    words
}

#[test]
fn the_status_is_commands_own() {
    for form in forms() {
        for status in [0, 1, 7, 125, 255] {
            let output = form.run(&["sh", "-c", &format!("exit {status}")]);
            assert_eq!(output.status, status, "{}: {}", form.name(), output.stderr);
            assert_eq!(output.stderr, "", "{}", form.name());
        }
        let output = form.run(&["sh", "-c", "kill -KILL $$"]);
        assert_eq!(output.status, 128 + 9, "{}", form.name());
        let output = form.run(&["sh", "-c", "kill -TERM $$"]);
        assert_eq!(output.status, 128 + 15, "{}", form.name());
    }
}

#[test]
fn what_cannot_run_is_126_or_127() {
    for form in forms() {
        form.run(&["no-such-command"]).fails(127, &["execve", "no-such-command", "(ENOENT)", "PATH"]);
        form.run(&["/no/such/file"]).fails(127, &["execve", "/no/such/file", "(ENOENT)"]);
        form.run(&["/"]).fails(126, &["execve", "(EACCES)", "directory"]);
        let file = form.scratch.write("plain", "text");
        form.run(&[file.to_str().unwrap()]).fails(126, &["(EACCES)", "no execute permission"]);
        let script = form.scratch.write("script", "#!/no/such/interpreter\n");
        executable(&script);
        form.run(&[script.to_str().unwrap()]).fails(126, &["(ENOENT)", "/no/such/interpreter"]);
        let text = form.scratch.write("text", "echo hi\n");
        executable(&text);
        form.run(&[text.to_str().unwrap()]).fails(126, &["(ENOEXEC)", "#!"]);
    }
}

fn executable(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn stdout_and_arguments_belong_to_command() {
    let odd: [&[u8]; 7] = [b"two\nlines", b"caf\xe9", b"", b"--", b"--help", b"-v", b" spaced "];
    let mut want = Vec::new();
    for word in odd {
        want.extend_from_slice(word);
        want.push(0);
    }
    for form in forms() {
        let start = ["sh", "-c", "printf '%s\\0' \"$@\"", "sh"].map(OsStr::new);
        let output = form.run_os(start.into_iter().chain(odd.iter().map(|word| OsStr::from_bytes(word))));
        assert_eq!(output.status, 0, "{}: {}", form.name(), output.stderr);
        assert_eq!(output.stdout, want, "{}", form.name());
    }
}

/// What COMMAND finds of its surroundings, as text to compare.
const PROBE: &str = "pwd; umask; ulimit -n; grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd; \
                     tr '\\0' '\\n' </proc/$$/environ | grep -v ^_= | sort";

#[test]
fn surroundings_are_as_the_caller_left_them() {
    // A blocked and two ignored signals (SIGPIPE among them), a descriptor, an odd environment, another umask.
    let caller = "umask 027; exec 7</dev/null; cd tmp; exec env --block-signal=USR1 --ignore-signal=INT --ignore-signal=$PIPE \
                  A=1 'ODD=two\nlines' \"$@\"";
    for form in forms() {
        for pipe in ["PIPE", "TTOU"] {
            let run = |words: &[String]| {
                let mut command = form.scratch.command("bash");
                command.args(["-c", caller, "bash"]).args(words).args(["bash", "-c", PROBE]).env("PIPE", pipe);
                finish(&mut command).ok()
            };
            assert_eq!(run(&form.words), run(&[]), "{} with SIG{pipe} ignored", form.name());
        }
    }
}

#[test]
fn a_closed_stdin_stays_closed() {
    for form in forms() {
        let mut command = form.scratch.command("bash");
        command.args(["-c", "exec \"$@\" <&-", "bash"]).args(&form.words).args(["sh", "-c", "[ -e /proc/self/fd/0 ]"]);
        assert_eq!(finish(&mut command).status, 1, "{}", form.name());
    }
}

#[test]
fn sigpipe_ends_command_as_usual() {
    for form in forms() {
        let mut command = form.scratch.command("bash");
        let script = "\"$@\" yes | head -n 1 >/dev/null; echo ${PIPESTATUS[0]}";
        command.args(["-c", script, "bash"]).args(&form.words);
        assert_eq!(finish(&mut command).ok().trim(), "141", "{}", form.name());
    }
}

#[test]
fn unknown_options_are_refused() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        for tool in TOOLS {
            scratch.run(tool, ["--no-such-option"]).fails(125, &[&format!("{tool}: "), "--no-such-option", "--help"]);
            scratch.run(tool, ["-Z"]).fails(125, &[tool, "-Z"]);
            let mut odd = OsString::from("--no\n\u{1b}[31m");
            odd.push(OsStr::from_bytes(b"\xff"));
            let output = finish(scratch.command(tool).arg(odd));
            output.fails(125, &[tool]);
            assert!(!output.stderr.contains('\u{1b}'), "{tool}: {:?}", output.stderr);
        }
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    let scratch = Scratch::new(Who::User);
    for tool in TOOLS {
        let help = scratch.run(tool, ["--help"]);
        assert_eq!(help.stderr, "", "{tool}");
        let help = help.ok();
        assert!(help.contains("Usage: ") && help.contains(tool) && help.contains("xample"), "{tool}: {help}");
        let version = scratch.run(tool, ["--version"]).ok();
        assert_eq!(version, format!("{tool} {}\n", env!("CARGO_PKG_VERSION")));
        let full = scratch.sh(&format!("{tool} --help >/dev/full || echo $? >&2"));
        assert!(full.stderr.contains("(ENOSPC)") && full.stderr.ends_with("125\n"), "{tool}: {}", full.stderr);
    }
}

#[test]
fn verbose_tells_each_operation_on_stderr() {
    for form in forms() {
        let at = form.words.iter().rposition(|word| word == form.tool).unwrap() + 1;
        let mut words = form.words.clone();
        words.insert(at, "-v".into());
        let output = finish(form.scratch.command(&words[0]).args(&words[1..]).arg("true"));
        output.ok();
        let told = output.stderr.lines().filter(|line| line.starts_with(&format!("{}: ", form.tool)));
        assert!(told.clone().any(|line| line.contains("execve(")), "{}: {}", form.name(), output.stderr);

        let mut command = form.scratch.command(&form.words[0]);
        let output = finish(command.args(&form.words[1..]).arg("true").env("CTR_VERBOSE", "1"));
        output.ok();
        assert!(output.stderr.contains(&format!("{}: execve(", form.tool)), "{}: {}", form.name(), output.stderr);
    }
}

#[test]
fn the_manuals_list_the_options_of_help() {
    let scratch = Scratch::new(Who::User);
    for tool in TOOLS {
        let help = options(&scratch.run(tool, ["--help"]).ok(), |line| line.trim_start().starts_with('-'));
        let manual = fs::read_to_string(project(tool).join("README.md")).unwrap();
        let manual = options(&manual, |line| line.starts_with("* `-"));
        assert_eq!(help, manual, "{tool}: left is --help, right is the manual");
    }
}

/// The long options that the lines which are `about` options begin with.
fn options(text: &str, about: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| about(line));
    lines
        .filter_map(|line| {
            let at = line.find("--")?;
            let name: String = line[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
            Some(name)
        })
        .collect()
}

#[test]
fn a_container_gives_the_status_too() {
    for who in Who::all() {
        let scratch = Scratch::new(who);
        let root = format!("rootfs:{}", rootfs::make(&scratch, "root").display());
        for status in [0, 7, 255] {
            assert_eq!(
                scratch.run("ctr-run", [&root, "sh", "-c", &format!("exit {status}")]).status,
                status,
                "{who:?}"
            );
        }
        scratch.run("ctr-run", [&root, "no-such-command"]).fails(127, &["no-such-command", "(ENOENT)"]);
        scratch.run("ctr-run", [&root, "/etc/passwd"]).fails(126, &["/etc/passwd", "(EACCES)"]);
        let killed = scratch.run("ctr-run", [&root, "sh", "-c", "sh -c 'kill -9 $$'; exit $?"]);
        assert_eq!(killed.status, 137, "{who:?}: {}", killed.stderr);
    }
}
