//! Small root file systems made on the spot.

use crate::Scratch;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

/// The applets that a test root has.
pub const APPLETS: [&str; 49] = [
    "sh", "cat", "ls", "id", "env", "pwd", "true", "false", "sleep", "echo", "hostname", "mount", "umount", "ps",
    "kill", "stat", "touch", "mkdir", "rm", "rmdir", "mv", "cp", "ln", "readlink", "chmod", "chown", "dd", "head",
    "tail", "wc", "grep", "sed", "tr", "sort", "find", "test", "tar", "ip", "ifconfig", "tty", "stty", "od", "mknod",
    "unshare", "seq", "nproc", "df", "sync", "yes",
];

/// Where the static busybox of the machine is (Debian's busybox-static).
pub fn busybox() -> PathBuf {
    let path = std::env::var_os("CTR_TEST_BUSYBOX").map_or_else(|| PathBuf::from("/bin/busybox"), PathBuf::from);
    assert!(path.is_file(), "{path:?} is missing: install busybox-static");
    path
}

/// A directory `name` in `scratch` that can be entered as a root: busybox, its applets, /etc/passwd with root, `daemon` (1)
/// and `app` (1000, home /home/app, also in group `extra` (2000)), /tmp, empty /proc, /sys and /dev.
pub fn make(scratch: &Scratch, name: &str) -> PathBuf {
    let root = scratch.mkdir(name);
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "root", "home", "home/app", "mnt"] {
        scratch.mkdir(root.join(dir));
    }
    fs::copy(busybox(), root.join("bin/busybox")).expect("copy busybox");
    fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o755)).expect("chmod");
    scratch.give(&root.join("bin/busybox"));
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).expect("symlink");
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("chmod");
    for (file, text) in files() {
        scratch.write(root.join(file), text);
    }
    root
}

/// The files of a test root, for images too.
pub fn files() -> [(&'static str, &'static str); 3] {
    [
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\napp:x:1000:1000::/home/app:/bin/sh\n",
        ),
        ("etc/group", "root:x:0:\ndaemon:x:1:\napp:x:1000:\nextra:x:2000:app\n"),
        ("etc/os-release", "ID=ctrtest\nPRETTY_NAME=\"ctr test root\"\n"),
    ]
}
