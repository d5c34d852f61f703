//! Which hierarchies there are, where they are mounted, and which controller lives where: from /proc/self/mountinfo and
//! /proc/self/cgroup (cgroups(7)), never from fixed paths.

use chain::mountinfo::{self, Mount};
use chain::{Error, Result, ResultExt};
use std::fs;
use std::path::{Path, PathBuf};

/// One hierarchy, as far as it is mounted here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its top as seen here: where it is mounted.
    pub point: PathBuf,
    /// Controllers (and `name=…`) of a v1 hierarchy; empty for v2, whose controllers its files tell.
    pub controllers: Vec<String>,
    /// Mounted read-only.
    pub read_only: bool,
    /// The caller's own group, as a directory.
    pub own: PathBuf,
}

/// Where a controller lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy of its own (or shared with some).
    V1,
    /// The unified hierarchy.
    V2,
}

/// All hierarchies that are mounted here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// cgroup v1: each controller is in at most one.
    pub v1: Vec<Hierarchy>,
    /// cgroup v2.
    pub v2: Option<Hierarchy>,
    /// Controllers of v1 hierarchies that are not mounted here.
    unseen: Vec<String>,
}

impl Layout {
    /// Of this process.
    pub fn read() -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").call(format_args!("read(\"/proc/self/cgroup\")"))?;
        let layout = Layout::new(&mountinfo::read("self")?, &own);
        if layout.v1.is_empty() && layout.v2.is_none() {
            return Err(
                Error::new("no cgroup hierarchy is mounted here").hint("mount -t cgroup2 cgroup2 /sys/fs/cgroup")
            );
        }
        Ok(layout)
    }

    /// From mounts and the text of /proc/self/cgroup.
    pub fn new(mounts: &[Mount], own: &str) -> Self {
        let mut layout = Layout::default();
        let owns: Vec<(&str, &str)> = own.lines().filter_map(|line| line.split_once(':')?.1.split_once(':')).collect();
        for (names, path) in &owns {
            let of_hierarchy = mounts.iter().filter(|mount| holds(mount, names));
            // The whole hierarchy rather than a part, and one that can be written.
            let best = of_hierarchy.min_by_key(|mount| (is_read_only(mount), mount.root != Path::new("/")));
            let controllers: Vec<String> = names.split(',').filter(|name| !name.is_empty()).map(String::from).collect();
            let Some(mount) = best else {
                layout.unseen.extend(controllers);
                continue;
            };
            let path = Path::new(path);
            let inside = path.strip_prefix(&mount.root).or_else(|_| path.strip_prefix("/")).unwrap_or(Path::new(""));
            let own = if inside.as_os_str().is_empty() { mount.point.clone() } else { mount.point.join(inside) };
            let hierarchy = Hierarchy { point: mount.point.clone(), read_only: is_read_only(mount), controllers, own };
            if names.is_empty() { layout.v2 = Some(hierarchy) } else { layout.v1.push(hierarchy) }
        }
        layout
    }

    /// The v1 hierarchy of `controller`.
    pub fn v1(&self, controller: &str) -> Option<&Hierarchy> {
        self.v1.iter().find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
    }

    /// The hierarchy that `controller` lives in. Errors: none that is mounted here and can be written; says where it is.
    pub fn find(&self, controller: &str) -> Result<(Version, &Hierarchy)> {
        let missing = |why: String| Error::new(format_args!("controller {controller}: {why}"));
        // v2's io is v1's blkio.
        let older = if controller == "io" { "blkio" } else { controller };
        let (version, hierarchy) = if let Some(hierarchy) = self.v1(older) {
            (Version::V1, hierarchy)
        } else if self.unseen.iter().any(|name| name == older) {
            return Err(missing("in a cgroup v1 hierarchy that is not mounted here".into())
                .hint(format_args!("mount -t cgroup -o {older} cgroup DIR")));
        } else if let Some(v2) = &self.v2 {
            (Version::V2, v2)
        } else {
            return Err(missing("in no hierarchy that is mounted here".into()).hint(in_kernel(controller)));
        };
        if hierarchy.read_only {
            return Err(missing(format!("{:?} is mounted read-only here", hierarchy.point))
                .hint("remount it writable, or set limits outside this container"));
        }
        Ok((version, hierarchy))
    }
}

/// What /proc/cgroups says of a controller, for a hint.
pub fn in_kernel(controller: &str) -> String {
    let table = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let line = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // v2's io is v1's blkio; the table has the older name.
    let name = if controller == "io" { "blkio" } else { controller };
    match line.filter(|words| words.first() == Some(&name)).find_map(|words| words.get(3).map(|word| *word == "1")) {
        None => format!("this kernel has no {controller} controller"),
        Some(false) => format!("it is turned off by the kernel's command line (cgroup_disable={name})"),
        Some(true) => "the kernel has it".into(),
    }
}

/// Whether `mount` is of the hierarchy that /proc/self/cgroup calls `names`.
fn holds(mount: &Mount, names: &str) -> bool {
    if names.is_empty() {
        return mount.fs_type == "cgroup2";
    }
    let options = mount.super_options.to_string_lossy();
    mount.fs_type == "cgroup" && names.split(',').all(|name| options.split(',').any(|option| option == name))
}

fn is_read_only(mount: &Mount) -> bool {
    mount.options.split(',').any(|option| option == "ro")
        || mount.super_options.to_string_lossy().split(',').any(|option| option == "ro")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(mounts: &str, own: &str) -> Layout {
        Layout::new(&mountinfo::parse(mounts.as_bytes()), own)
    }

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:32 /inner /run/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 31 0:39 / /mnt/hugetlb rw,relatime - hugetlbfs hugetlbfs rw
";
    const OWN: &str = "4:memory:/a/b\n9:pids:/\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/user/x\n";

    #[test]
    fn each_controller_is_used_where_it_lives() {
        let layout = layout(HYBRID, OWN);
        let (version, cpu) = layout.find("cpu").unwrap();
        assert_eq!((version, cpu.point.as_path()), (Version::V1, Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(layout.find("memory").unwrap().1.own, Path::new("/sys/fs/cgroup/memory/a/b"));
        assert_eq!(layout.v2.as_ref().unwrap().own, Path::new("/sys/fs/cgroup/unified/user/x"));
        // No v1 hierarchy has it: the unified one may.
        assert_eq!(layout.find("hugetlb").unwrap().0, Version::V2);
        let error = layout.find("pids").unwrap_err().to_string();
        assert!(error.contains("v1 hierarchy that is not mounted here"), "{error}");
    }

    #[test]
    fn a_part_of_a_hierarchy_is_its_top_as_seen_here() {
        let layout = layout(
            "50 40 0:27 /docker/abc /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n",
            "0::/docker/abc/inner\n",
        );
        let v2 = layout.v2.as_ref().unwrap();
        assert_eq!((v2.own.as_path(), v2.read_only), (Path::new("/sys/fs/cgroup/inner"), true));
        assert!(layout.find("memory").unwrap_err().to_string().contains("read-only"));
    }

    #[test]
    fn a_v2_line_without_a_mount_is_no_v2() {
        assert_eq!(layout("35 31 0:32 / /cg rw - cgroup cgroup rw,memory\n", "4:memory:/\n0::/\n").v2, None);
    }
}
