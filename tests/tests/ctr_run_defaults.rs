//! How wide a container of `ctr-run` is by default, and each relaxation of it: as Docker documents it, seen through the
//! kernel from inside.

use ctr_tests::image::Image;
use ctr_tests::{Scratch, Who};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

fn busybox(who: Who) -> (Scratch, String) {
    let scratch = Scratch::new(who);
    let path = scratch.write("image.tar", Image::busybox().docker_archive());
    (scratch, path.to_string_lossy().into_owned())
}

/// What `script` prints in a container with `options`.
#[track_caller]
fn inside(scratch: &Scratch, image: &str, options: &[&str], script: &str) -> String {
    scratch.run("ctr-run", options.iter().copied().chain([image, "sh", "-c", script])).ok()
}

/// A line of /proc/self/status inside.
fn status(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().to_string()
}

/// The machine's device nodes below `dir`, as `path type major:minor`, but for what is each container's own.
fn devices(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        let kind = metadata.file_type();
        if ["pts", "shm", "fd", "mqueue", "console", "ptmx"].iter().any(|own| entry.file_name() == *own) {
            continue;
        }
        if kind.is_dir() {
            devices(&entry.path(), found);
        } else if kind.is_char_device() || kind.is_block_device() {
            let letter = if kind.is_char_device() { 'c' } else { 'b' };
            let number = metadata.rdev();
            let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
            found.insert(format!("{} {letter} {major}:{minor}", entry.path().display()));
        }
    }
}

/// The same, from inside.
const DEVICES: &str = "find /dev -path /dev/pts -prune -o -type c -print -o -type b -print | while read -r path; do \
                       kind=c; test -b $path && kind=b; echo $path $kind $(stat -c %t:%T $path); done";

/// The lines of [`DEVICES`], with their numbers in decimal.
fn decimal(text: &str) -> BTreeSet<String> {
    let line = |line: &str| {
        let (before, number) = line.rsplit_once(' ').expect("a number");
        let (major, minor) = number.split_once(':').expect("two numbers");
        let parse = |text: &str| u64::from_str_radix(text, 16).expect("hexadecimal");
        format!("{before} {}:{}", parse(major), parse(minor))
    };
    text.lines().map(line).collect()
}

/// All that there are: what root of the machine can have here, and in a user namespace all that the kernel knows.
fn all_capabilities(who: Who) -> String {
    if who == Who::Root {
        return status(&fs::read_to_string("/proc/self/status").unwrap(), "CapBnd");
    }
    let last: u32 = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap().trim().parse().unwrap();
    format!("{:016x}", (1u64 << (last + 1)) - 1)
}

#[test]
fn privileged_is_as_wide_as_dockers() {
    let mut machine = BTreeSet::new();
    devices(Path::new("/dev"), &mut machine);
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        let text = inside(&scratch, &image, &["--privileged"], "cat /proc/self/status");
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(status(&text, set), all_capabilities(who), "{who:?} {set}");
        }
        assert_eq!((status(&text, "NoNewPrivs"), status(&text, "Seccomp")), ("0".into(), "0".into()));
        assert_eq!(decimal(&inside(&scratch, &image, &["--privileged"], DEVICES)), machine, "{who:?}");

        let mounts = inside(&scratch, &image, &["--privileged"], "cat /proc/mounts");
        let options = |at: &str| -> Option<String> {
            let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(at))?;
            line.split(' ').nth(3).map(str::to_string)
        };
        assert!(options("/sys").unwrap().starts_with("rw,"), "{mounts}");
        let groups: Vec<&str> = mounts.lines().filter(|line| line.starts_with("cgroup")).collect();
        assert!(!groups.is_empty() && groups.iter().all(|line| line.contains(" rw,")), "{mounts}");
        assert!(
            !mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| at.starts_with("/proc/"))),
            "{mounts}"
        );
        let nodev = |at: &str| options(at).unwrap().split(',').any(|word| word == "nodev");
        assert!(!nodev("/") && !nodev("/dev") || who == Who::User, "{mounts}");
    }
    if !ctr_tests::is_root() {
        return;
    }
    // What root may then do to the machine, without doing it harm.
    let (scratch, image) = busybox(Who::Root);
    let group = scratch.token();
    let script = format!(
        "for dir in /sys/fs/cgroup/*/ /sys/fs/cgroup/; do mkdir ${{dir}}{group} 2>/dev/null && busybox rmdir ${{dir}}{group} && echo made && break; done; \
         mount -t tmpfs x /mnt && echo mounted; : </dev/kmsg && echo opened; \
         cat /proc/sys/kernel/domainname >/proc/sys/kernel/domainname && echo set"
    );
    assert_eq!(inside(&scratch, &image, &["--privileged"], &script), "made\nmounted\nopened\nset\n");
}
