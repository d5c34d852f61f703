//! The README's examples, extracted and run as they stand.
//!
//! A fenced block that follows `<!-- test: WHO -->` is run: `root` only as root, `steps` as root or, for an ordinary user,
//! inside `ns-enter --user --map-auto --mount`, `all` by both as it is.

use ctr_tests::image::Image;
use ctr_tests::{Output, Scratch, Who, finish, has, project};
use std::fs;

/// The blocks of the README with who runs them, in order.
fn blocks() -> Vec<(String, String)> {
    let readme = fs::read_to_string(project("README.md")).unwrap();
    let mut blocks = Vec::new();
    for part in readme.split("<!-- test: ").skip(1) {
        let (who, rest) = part.split_once(" -->").expect("the marker ends");
        let code = rest.trim_start().strip_prefix("```sh\n").expect("a block follows the marker");
        blocks.push((who.to_string(), code.split("\n```").next().unwrap().to_string()));
    }
    assert!(blocks.len() >= 10, "{blocks:?}");
    blocks
}

/// A scratch directory with an image in it that the examples call alpine.tar.
fn scratch(who: Who) -> Scratch {
    let scratch = Scratch::new(who);
    scratch.write("alpine.tar", Image::busybox().name("alpine:latest").docker_archive());
    scratch
}

/// Runs the blocks for `who`. Groups get a name that no other test has.
fn run(scratch: &Scratch, wrapper: &[&str], who: &[&str]) -> Output {
    let chosen: Vec<String> =
        blocks().into_iter().filter(|(kind, _)| who.contains(&kind.as_str())).map(|(_, code)| code).collect();
    let script = chosen
        .join("\n")
        .replace("--name web", &format!("--name {}", scratch.token()))
        .replace("--undo web; rmdir", "--undo web && rmdir");
    let script = script.replace("cg-limit --undo web", &format!("cg-limit --undo {}", scratch.token()));
    let words: Vec<&str> = wrapper.iter().copied().chain(["bash", "-euo", "pipefail", "-c", &script]).collect();
    finish(scratch.command(words[0]).args(&words[1..]))
}

#[test]
fn root_runs_all_examples() {
    if !ctr_tests::is_root() || !has("jq") {
        return;
    }
    let scratch = scratch(Who::Root);
    let output = run(&scratch, &[], &["steps", "root", "all"]);
    let text = output.ok();
    // Step 1, 6, 7, the pipeline, the one-liners.
    for want in ["/bin/sh\n", "\nweb\nI am process 1\n", "hello\nkept\n", "ID=ctrtest", "\n0\n"] {
        assert!(text.contains(want), "{want:?} is not in: {text}\n{}", output.stderr);
    }
    assert!(text.contains("#!/bin/sh\n"), "--print: {text}");
}

#[test]
fn a_user_runs_the_steps_in_namespaces_and_the_one_liners() {
    if !has("jq") {
        return;
    }
    let scratch = scratch(Who::User);
    let text = run(&scratch, &["ns-enter", "--user", "--map-auto", "--mount", "--"], &["steps"]).ok();
    assert!(text.contains("hello\nkept\n"), "{text}");
    let text = run(&scratch, &[], &["all"]).ok();
    assert!(text.contains("0\n") && text.contains("kept\n") && text.contains("#!/bin/sh\n"), "{text}");
}

#[test]
fn the_chinese_readme_has_the_same_code_and_tables() {
    let parts = |file: &str| {
        let text = fs::read_to_string(project(file)).unwrap();
        let code: Vec<String> = text.split("\n```").skip(1).step_by(2).map(str::to_string).collect();
        // What names an option, a tool or a number is the same in every language.
        let rows = text.lines().filter(|line| line.starts_with("| ")).count();
        let headings = text.lines().filter(|line| line.starts_with("## ")).count();
        (code, rows, headings)
    };
    assert_eq!(parts("README.md"), parts("README.zh-CN.md"));
}
