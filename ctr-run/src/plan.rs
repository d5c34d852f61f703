//! From a container to the chain: a list of argument vectors, one a link. Pure: nothing is looked at, nothing is done.
//!
//! The order is the design: limits first, so that everything after them counts; namespaces next, so that mounts are private
//! and vanish by themselves; layers, then what is mounted on them; then the root is entered and privileges are dropped,
//! last.

use crate::container::{Container, Namespace, Root, Seccomp};
use crate::limits::joined;
use crate::mapping::Mapping;
use chain::userns::Range;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

const SECCOMP: &str = "seccomp.json";

/// Where a container's own directories are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The directory of the container in the store.
    pub dir: PathBuf,
}

impl Place {
    /// The writable layer.
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    /// Overlay's work directory.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// Where the layers are mounted with their owners shifted.
    pub fn layers(&self) -> PathBuf {
        self.dir.join("layers")
    }

    /// A seccomp profile that came in no file.
    pub fn seccomp(&self) -> PathBuf {
        self.dir.join(SECCOMP)
    }

    /// Where the layers are mounted.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }
}

/// What has to be in a container's directories before the chain starts, by names inside them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skeleton {
    /// Directories, parents first.
    pub directories: Vec<PathBuf>,
    /// Symbolic links: where, and their targets.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Files: where, and what is in them.
    pub files: Vec<(PathBuf, String)>,
    /// The group that may reach all this, besides its owner.
    pub group: Option<u32>,
}

/// The skeleton of `container`; `None` if it needs nothing of its own.
pub fn skeleton(container: &Container) -> Option<Skeleton> {
    let mut skeleton = Skeleton::default();
    if let Seccomp::Given(profile) = &container.seccomp {
        skeleton.files.push((SECCOMP.into(), profile.clone()));
    }
    if !matches!(container.root, Root::Directory(_)) {
        skeleton.directories.extend(["upper", "work", "root"].map(PathBuf::from));
    }
    if let Some(Mapping::Shifted(ranges)) = &container.mapping {
        skeleton.directories.push("layers".into());
        skeleton.group = ranges.first().map(|range| range.outer);
    }
    match &container.root {
        Root::Directory(_) if skeleton.files.is_empty() => return None,
        Root::Directory(_) | Root::Layers(_) => {}
        Root::Parts(_, parts) => {
            let places = ["upper", "work", "root"].map(Path::new);
            let inside = places.iter().flat_map(|place| parts.unions.iter().map(|name| place.join(name)));
            skeleton.directories.extend(inside);
            let in_root = |(name, target): &(OsString, PathBuf)| (Path::new("root").join(name), target.clone());
            skeleton.links = parts.links.iter().map(in_root).collect();
        }
    }
    Some(skeleton)
}

/// One link: a tool's name and its arguments, without the `--` and what follows.
pub type Link = Vec<OsString>;

/// The chain of `container`, whose directories are at `place`, with volumes in `store`.
pub fn links(container: &Container, place: &Place, store: &Path) -> Vec<Link> {
    let root = match &container.root {
        Root::Directory(path) => path.clone(),
        Root::Layers(_) | Root::Parts(..) => place.root(),
    };
    let mut links = Vec::new();
    if !container.limits.is_empty() {
        links.push(link("cg-limit", container.limits.iter()));
    }
    if let (Some(Mapping::Shifted(ranges)), Root::Layers(layers)) = (&container.mapping, &container.root) {
        links.extend(shifted(container, layers, ranges, place, store));
        let (api, _) = outside(container);
        links.push(namespaces(container));
        links.push(mounts(&api, &root, store));
        links.push(enter(container, &root, place));
        return told(container, links);
    }
    links.push(namespaces(container));
    match &container.root {
        Root::Directory(_) => {}
        Root::Layers(layers) => links.push(union(layers, place, OsStr::new(""))),
        Root::Parts(dir, parts) => links.extend(parts.unions.iter().map(|name| union(&[dir.join(name)], place, name))),
    }
    links.push(mounts(container, &root, store));
    links.push(enter(container, &root, place));
    told(container, links)
}

fn told(container: &Container, mut links: Vec<Link>) -> Vec<Link> {
    if container.verbose {
        links.iter_mut().for_each(|link| link.insert(1, "--verbose".into()));
    }
    links
}

/// The links that root of the machine does before a user namespace of other ids is entered, which could not reach the store:
/// the layers with their owners shifted, their union, and the volumes.
fn shifted(container: &Container, layers: &[PathBuf], ranges: &[Range], place: &Place, store: &Path) -> Vec<Link> {
    let idmap: Vec<String> =
        ranges.iter().map(|range| format!("idmap={}:{}:{}", range.inner, range.outer, range.count)).collect();
    let mut binds: Link = vec!["vol-bind".into(), joined("--root=", place.layers().as_os_str())];
    let mut views = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let mut mount = OsString::from("--mount=");
        mount.push(crate::volumes::quoted(&joined("src=", layer.as_os_str())));
        mount.push(format!(",type=bind,dst=/{number},ro,bind,{}", idmap.join(",")));
        binds.push(mount);
        views.push(place.layers().join(number.to_string()));
    }
    let mut links = vec![vec!["ns-enter".into(), "--mount".into()], binds, union(&views, place, OsStr::new(""))];
    let (_, volumes) = outside(container);
    if !volumes.is_empty() {
        let mut out: Link = vec!["vol-bind".into(), joined("--root=", place.root().as_os_str())];
        out.push(joined("--store=", store.as_os_str()));
        if container.nodev {
            out.push("--nodev".into());
        }
        out.extend(volumes);
        links.push(out);
    }
    links
}

/// The container with only what is mounted by root of its own user namespace: file systems and devices, and what comes into
/// those of the API; and what root of the machine mounts.
fn outside(container: &Container) -> (Container, Vec<OsString>) {
    let inside = |word: &OsString| {
        let word = word.to_string_lossy();
        let places = ["/dev", "/proc", "/sys"];
        // The place itself or one below it: the name ends there.
        let ends = |rest: &str| rest.is_empty() || rest.starts_with(['/', ':', ',']);
        let comes_to = |place: &&str| {
            [":", "dst=", "target=", "destination="].iter().any(|before| {
                let target = format!("{before}{place}");
                word.match_indices(&target).any(|(at, found)| ends(&word[at + found.len()..]))
            })
        };
        ["--device=", "--tmpfs=", "--mask=", "--readonly="].iter().any(|option| word.starts_with(option))
            || places.iter().any(comes_to)
    };
    let (inside, outside) = container.volumes.iter().cloned().partition(inside);
    (Container { volumes: inside, ..container.clone() }, outside)
}

/// The chain as one command: the links joined with `--`, and COMMAND.
pub fn command(links: &[Link], args: &[OsString]) -> Vec<OsString> {
    let mut out = Vec::new();
    for link in links {
        out.extend_from_slice(link);
        out.push("--".into());
    }
    out.extend_from_slice(args);
    out
}

fn namespaces(container: &Container) -> Link {
    let mut out: Link = vec!["ns-enter".into()];
    out.extend(container.mapping.iter().flat_map(Mapping::arguments));
    out.push("--mount".into());
    for (name, namespace) in &container.namespaces {
        let option = if *name == "network" { "--net" } else { *name };
        let option = format!("--{}", option.trim_start_matches('-'));
        match namespace {
            Namespace::New => out.push(option.into()),
            Namespace::Path(path) => out.push(joined(&format!("{option}="), path.as_os_str())),
            Namespace::Host => {}
        }
    }
    let uts = container.namespace("uts") == &Namespace::New;
    if let Some(hostname) = container.hostname.as_ref().filter(|_| uts) {
        out.push(format!("--hostname={hostname}").into());
    }
    out.extend(container.sysctls.iter().map(|sysctl| format!("--sysctl={sysctl}").into()));
    out.extend(container.connection.iter().chain(&container.waiting).cloned());
    out
}

/// A union of `layers` at `part` of the root (empty: all of it).
fn union(layers: &[PathBuf], place: &Place, part: &OsStr) -> Link {
    let within = |dir: PathBuf| if part.is_empty() { dir } else { dir.join(part) };
    let mut out: Link = vec!["layer-mount".into()];
    out.extend(layers.iter().map(|layer| joined("--lower=", layer.as_os_str())));
    out.push(joined("--upper=", within(place.upper()).as_os_str()));
    out.push(joined("--work=", within(place.work()).as_os_str()));
    out.push(within(place.root()).into());
    out
}

/// The link that mounts what is inside the root.
pub fn mounts(container: &Container, root: &Path, store: &Path) -> Link {
    let mut out: Link = vec!["vol-bind".into(), joined("--root=", root.as_os_str())];
    out.push(joined("--store=", store.as_os_str()));
    out.push("--api".into());
    if container.nodev {
        out.push("--nodev".into());
    }
    if container.all_devices {
        out.push("--all-devices".into());
    }
    if container.writable_sys {
        out.push("--writable-sys".into());
    }
    if container.masks {
        out.extend(["--mask=default".into(), "--readonly=default".into()]);
    }
    if let Some(size) = &container.shm_size {
        out.push(format!("--shm-size={size}").into());
    }
    out.extend(container.names.iter().chain(&container.volumes).cloned());
    out
}

fn enter(container: &Container, root: &Path, place: &Place) -> Link {
    let mut out: Link = vec!["ns-enter".into(), joined("--root=", root.as_os_str())];
    if container.read_only {
        out.push("--read-only".into());
    }
    if container.nodev {
        out.push("--nodev".into());
    }
    out.push(format!("--as={}", container.user).into());
    out.extend(container.groups.iter().map(|group| format!("--group-add={group}").into()));
    out.extend(capabilities(&container.capabilities));
    if !container.ambient.is_empty() {
        out.push(format!("--cap-ambient={}", container.ambient.join(",")).into());
    }
    if container.no_new_privileges {
        out.push("--no-new-privs".into());
    }
    match &container.seccomp {
        Seccomp::None => {}
        Seccomp::Default => out.push("--seccomp=default".into()),
        Seccomp::File(file) => out.push(joined("--seccomp=", file)),
        Seccomp::Given(_) => out.push(joined("--seccomp=", place.seccomp().as_os_str())),
    }
    out.extend(container.ulimits.iter().map(|limit| format!("--ulimit={limit}").into()));
    out.extend(container.process.iter().cloned());
    if container.init {
        out.push("--init".into());
    }
    if container.tty {
        out.push("--tty".into());
    }
    out.push("--clear-env".into());
    out.extend(container.env_files.iter().map(|file| joined("--env-file=", file.as_os_str())));
    out.extend(container.env.iter().map(|entry| joined("--env=", entry)));
    // As `docker run`: an image may name a directory that it does not have.
    if !container.read_only {
        out.push("--make-workdir".into());
    }
    out.push(joined("--workdir=", &container.cwd));
    out
}

/// All capabilities are kept unless something is dropped; a list of names means: no others.
fn capabilities(kept: &[String]) -> Vec<OsString> {
    if let Some((_, dropped)) = kept.split_first().filter(|(first, _)| *first == "all") {
        return dropped.iter().map(|name| format!("--cap-drop={}", name.trim_start_matches('-')).into()).collect();
    }
    let mut out: Vec<OsString> = vec!["--cap-drop=all".into()];
    if !kept.is_empty() {
        out.push(format!("--cap-add={}", kept.join(",")).into());
    }
    out
}

fn link<'a>(tool: &str, args: impl Iterator<Item = &'a OsString>) -> Link {
    std::iter::once(OsStr::new(tool).to_os_string()).chain(args.cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use chain::Document;

    fn plan(document: &str, root_of_machine: bool, change: impl FnOnce(&mut Container)) -> Vec<String> {
        let document = Document::parse(document.as_bytes()).unwrap();
        let mut container = Container::new(document, "name".into(), root_of_machine).unwrap();
        change(&mut container);
        let links = links(&container, &Place { dir: "/c".into() }, Path::new("/s"));
        links.iter().map(|link| link.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")).collect()
    }

    const IMAGE: &str = r#"{"layers":["/base","/next"],"hostname":"web","process":{"args":["sh"],"env":["A=1"]}}"#;

    #[test]
    fn the_order_is_limits_namespaces_layers_mounts_root() {
        let got = plan(IMAGE, true, |container| container.limits = vec!["--memory=64M".into()]);
        assert_eq!(got[0], "cg-limit --memory=64M");
        assert_eq!(got[1], "ns-enter --mount --pid --net --ipc --uts --cgroup --hostname=web");
        assert_eq!(got[2], "layer-mount --lower=/base --lower=/next --upper=/c/upper --work=/c/work /c/root");
        assert_eq!(got[3], "vol-bind --root=/c/root --store=/s --api --nodev --mask=default --readonly=default");
        assert!(
            got[4].starts_with("ns-enter --root=/c/root --nodev --as=0:0 --cap-drop=all --cap-add=CAP_"),
            "{}",
            got[4]
        );
        assert!(
            got[4].ends_with("--no-new-privs --seccomp=default --clear-env --env=A=1 --make-workdir --workdir=/"),
            "{}",
            got[4]
        );
    }

    #[test]
    fn without_limits_no_group_and_without_root_a_user_namespace() {
        let got = plan(IMAGE, false, |_| {});
        assert!(got[0].starts_with("ns-enter --user --map-auto --mount --pid"), "{}", got[0]);
    }

    #[test]
    fn a_root_that_is_there_needs_no_layers() {
        let got = plan(r#"{"root":{"path":"/mnt/web","readonly":true}}"#, true, |_| {});
        assert!(got[1].starts_with("vol-bind --root=/mnt/web"), "{got:?}");
        assert!(got[2].starts_with("ns-enter --root=/mnt/web --read-only --nodev --as"), "{got:?}");
    }

    #[test]
    fn parts_are_mounted_one_by_one() {
        use crate::rootfs::Parts;
        let parts = Parts { unions: vec!["etc".into(), "usr".into()], links: vec![("bin".into(), "usr/bin".into())] };
        let got = plan(IMAGE, false, |container| container.root = Root::Parts("/".into(), parts.clone()));
        assert_eq!(got[1], "layer-mount --lower=/etc --upper=/c/upper/etc --work=/c/work/etc /c/root/etc");
        assert_eq!(got[2], "layer-mount --lower=/usr --upper=/c/upper/usr --work=/c/work/usr /c/root/usr");
        assert!(got[3].starts_with("vol-bind --root=/c/root "), "{got:?}");
    }

    #[test]
    fn owners_are_shifted_before_other_ids_are_entered() {
        let got = plan(IMAGE, true, |container| {
            container.mapping = Some(Mapping::Shifted(vec![Range { inner: 0, outer: 7, count: 5 }]));
            container.volumes =
                ["data:/data", "more:/devotion", "/dev/x:/dev/y", "--tmpfs=/t"].map(OsString::from).to_vec();
        });
        assert_eq!(got[0], "ns-enter --mount");
        assert!(
            got[1].contains("--mount=src=/base,type=bind,dst=/0,ro,bind,idmap=0:7:5 --mount=src=/next,"),
            "{}",
            got[1]
        );
        assert!(
            got[2].starts_with("layer-mount --lower=/c/layers/0 --lower=/c/layers/1 --upper=/c/upper"),
            "{}",
            got[2]
        );
        assert_eq!(got[3], "vol-bind --root=/c/root --store=/s --nodev data:/data more:/devotion");
        assert!(
            got[4].starts_with("ns-enter --user --map-users=0:7:5 --map-groups=0:7:5 --as=0:0 --mount --pid"),
            "{}",
            got[4]
        );
        assert!(got[5].contains("--api") && got[5].ends_with("/dev/x:/dev/y --tmpfs=/t"), "{}", got[5]);
        assert!(got[6].starts_with("ns-enter --root=/c/root"), "{}", got[6]);
    }

    #[test]
    fn links_are_joined_with_dashes() {
        let got = command(&[vec!["a".into(), "x".into()], vec!["b".into()]], &["sh".into()]);
        assert_eq!(got, ["a", "x", "--", "b", "--", "sh"].map(OsString::from));
    }
}
