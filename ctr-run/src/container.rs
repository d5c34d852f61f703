//! What a container is, before it is a plan: a document, with the flags applied.
//!
//! Arguments, environment and paths are kept as bytes, which JSON could not hold.

use crate::cli::Cli;
use crate::mapping::Mapping;
use crate::rootfs::Parts;
use chain::document::Document;
use chain::{Error, Result, ResultExt};
use img_unpack::config::ENTRYPOINT;
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The capabilities of a container unless it is said otherwise: Docker's documented default.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The annotation that img-unpack writes for an image's StopSignal (image-spec, conversion).
const STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";

/// A namespace of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// Its own, made for it.
    New,
    /// The caller's.
    Host,
    /// The one at that path.
    Path(PathBuf),
}

/// What becomes the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// Layers, base first, with a writable layer on top.
    Layers(Vec<PathBuf>),
    /// A directory that cannot be one layer, in parts, each with a writable layer on top.
    Parts(PathBuf, Parts),
    /// A directory that is there already, as it is.
    Directory(PathBuf),
}

/// Which system calls COMMAND may make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// All.
    None,
    /// Those of the default profile.
    Default,
    /// Those of the profile, or of the configuration, in a file.
    File(OsString),
    /// Those of this profile, as JSON, which is in no file.
    Given(String),
}

/// What to run, whole.
#[derive(Clone, Debug)]
pub struct Container {
    /// The document that it came from; members that we do not know pass through.
    pub document: Document,
    /// Its name: chosen, or made up for this run.
    pub name: String,
    /// Whether its writable layer stays.
    pub keep: bool,
    /// COMMAND.
    pub args: Vec<OsString>,
    /// COMMAND's environment.
    pub env: Vec<OsString>,
    /// Files with more environment.
    pub env_files: Vec<PathBuf>,
    /// COMMAND's working directory.
    pub cwd: OsString,
    /// COMMAND's user, `USER[:GROUP]`.
    pub user: String,
    /// Groups that it is in besides, by name or number.
    pub groups: Vec<String>,
    /// The root.
    pub root: Root,
    /// Whether the root is read-only.
    pub read_only: bool,
    /// Host name inside.
    pub hostname: Option<String>,
    /// Namespaces by their name in runtime-spec: `pid`, `network`, `ipc`, `uts`, `cgroup`; `mount` is always new.
    pub namespaces: Vec<(&'static str, Namespace)>,
    /// The user namespace; `None` is the caller's.
    pub mapping: Option<Mapping>,
    /// Arguments of `cg-limit`: limits, or the group to join. None: no cgroup is touched.
    pub limits: Vec<OsString>,
    /// Arguments of `vol-bind` for what is mounted besides the API file systems.
    pub volumes: Vec<OsString>,
    /// Arguments of the link that makes the namespaces, for what joins its network with the machine's: pasta and ports.
    pub connection: Vec<OsString>,
    /// Arguments of `vol-bind` for /etc/hosts and /etc/resolv.conf.
    pub names: Vec<OsString>,
    /// Arguments of the link that waits: how COMMAND is asked to end, and where its process number is written.
    pub waiting: Vec<OsString>,
    /// Size of /dev/shm.
    pub shm_size: Option<String>,
    /// Kernel settings inside.
    pub sysctls: Vec<String>,
    /// Capabilities kept, with their `CAP_`; `all`.
    pub capabilities: Vec<String>,
    /// Those of them that are in force for a user other than root, too.
    pub ambient: Vec<String>,
    /// Whether COMMAND may gain no privileges.
    pub no_new_privileges: bool,
    /// The seccomp filter.
    pub seccomp: Seccomp,
    /// Whether only devices that were asked for can be used, whatever nodes there are.
    pub nodev: bool,
    /// Whether /dev has every device of the machine.
    pub all_devices: bool,
    /// Whether /sys, and the groups in /sys/fs/cgroup, can be written.
    pub writable_sys: bool,
    /// Whether paths of /proc and /sys are masked and read-only.
    pub masks: bool,
    /// Arguments of the last link for what only a document says of the process.
    pub process: Vec<OsString>,
    /// Resource limits.
    pub ulimits: Vec<String>,
    /// A terminal of its own.
    pub tty: bool,
    /// A small init as process 1.
    pub init: bool,
    /// Whether each link tells what it does.
    pub verbose: bool,
    /// Whether the caller is root of the machine.
    pub root_of_machine: bool,
}

/// Namespace names of runtime-spec, and whether a new one is the default.
const NAMESPACES: [&str; 5] = ["pid", "network", "ipc", "uts", "cgroup"];

impl Container {
    /// What `document` says, with the defaults of a container. `root_of_machine`: no user namespace is needed.
    ///
    /// Errors: members of the wrong type, neither layers nor a root.
    pub fn new(document: Document, name: String, root_of_machine: bool) -> Result<Self> {
        crate::refuse::unsupported(&document)?;
        let layers = document.layers()?;
        let root = match document.root()? {
            Some(path) => Root::Directory(path),
            None if document.get("layers").is_some() => Root::Layers(layers),
            None => {
                return Err(Error::new("the document has neither layers nor root.path")
                    .hint("layer-mount or img-unpack write them"));
            }
        };
        let limits = crate::limits::of_document(&document)?;
        let (shm_size, writable_sys) = crate::volumes::of_api(&document)?;
        // A whole configuration means what it says; what is not said in another (an image's) is as the defaults have it.
        let whole = document.get("linux/namespaces").is_some();
        Ok(Container {
            keep: false,
            args: document.texts("process/args")?.into_iter().map(OsString::from).collect(),
            env: document.texts("process/env")?.into_iter().map(OsString::from).collect(),
            env_files: Vec::new(),
            cwd: document.text("process/cwd")?.unwrap_or("/").into(),
            user: user_of(&document)?,
            groups: groups_of(&document)?,
            root,
            read_only: document.flag("root/readonly")?.unwrap_or(false),
            hostname: document.text("hostname")?.map(str::to_string),
            namespaces: namespaces_of(&document)?,
            mapping: Mapping::of_document(&document, root_of_machine)?,
            limits,
            volumes: [
                crate::volumes::of_document(&document)?,
                crate::volumes::of_paths(&document, !whole)?,
                crate::devices::of_document(&document)?,
            ]
            .concat(),
            connection: Vec::new(),
            names: Vec::new(),
            waiting: Vec::new(),
            shm_size,
            sysctls: sysctls_of(&document)?,
            capabilities: capabilities_of(&document)?,
            ambient: document.texts("process/capabilities/ambient")?.into_iter().map(str::to_string).collect(),
            no_new_privileges: document.flag("process/noNewPrivileges")?.unwrap_or(!whole),
            seccomp: if whole { Seccomp::None } else { Seccomp::Default },
            // A user namespace cannot use nodes that it makes; root could, with CAP_MKNOD.
            nodev: root_of_machine && crate::devices::limited(&document)?,
            all_devices: false,
            writable_sys,
            masks: !whole,
            process: process_of(&document)?,
            ulimits: ulimits_of(&document)?,
            tty: document.flag("process/terminal")?.unwrap_or(false),
            init: false,
            verbose: false,
            root_of_machine,
            name,
            document,
        })
    }

    /// Applies the flags, and COMMAND if there is one. Errors: values that cannot be right, nothing to run.
    pub fn apply(&mut self, cli: &Cli, command: &[OsString]) -> Result<()> {
        self.apply_command(cli, command)?;
        self.apply_isolation(cli)?;
        self.apply_environment(cli)?;
        self.apply_security(cli)?;
        self.limits.extend(crate::limits::of_flags(cli)?);
        self.volumes.extend(crate::volumes::of_flags(cli));
        if self.namespace("pid") == &Namespace::Host && self.mapping.is_some() {
            // A new /proc of the machine's processes is for root of the machine alone.
            self.volumes.push("--mount=type=bind,src=/proc,dst=/proc,nosuid,nodev,noexec".into());
        }
        self.connection = crate::network::connection(cli)?;
        self.names = crate::network::names(cli, self);
        self.waiting = self.waiting(cli);
        if let Some(user) = &cli.user {
            self.user.clone_from(user);
            self.groups.clear();
        }
        self.groups.extend(cli.group_add.iter().cloned());
        if let Some(cwd) = &cli.workdir {
            if !cwd.as_bytes().starts_with(b"/") {
                return Err(Error::usage(format_args!("--workdir {cwd:?}: not an absolute path")));
            }
            self.cwd.clone_from(cwd);
        }
        self.read_only |= cli.read_only;
        self.tty = (self.tty || cli.tty) && !cli.no_tty;
        self.init |= cli.init;
        self.verbose |= cli.verbose;
        self.shm_size = cli.shm_size.clone().or(self.shm_size.take());
        self.ulimits.extend(cli.ulimit.iter().cloned());
        for label in &cli.label {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            set_annotation(&mut self.document, key, value);
        }
        Ok(())
    }

    fn apply_command(&mut self, cli: &Cli, command: &[OsString]) -> Result<()> {
        let texts = |list: Option<&Value>| -> Vec<OsString> {
            let list = list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            list.iter().filter_map(Value::as_str).map(OsString::from).collect()
        };
        let annotations = self.document.get("annotations").and_then(Value::as_object);
        let entrypoint = annotations.and_then(|all| all.get(ENTRYPOINT)).and_then(Value::as_str);
        let entrypoint: Option<Value> =
            entrypoint.map(serde_json::from_str).transpose().call(format_args!("annotation {ENTRYPOINT:?}"))?;
        let entrypoint = texts(entrypoint.as_ref());
        if let Some(program) = &cli.entrypoint {
            // As `docker run`: another entrypoint means that the image's Cmd, made for the old one, is not used.
            self.args = if program.is_empty() { Vec::new() } else { vec![program.into()] };
            self.args.extend_from_slice(command);
        } else if !command.is_empty() {
            self.args = entrypoint;
            self.args.extend_from_slice(command);
        }
        match self.args.first() {
            None => Err(Error::usage("no COMMAND, and the image names none").hint("write one after IMAGE")),
            Some(program) if program.is_empty() => Err(Error::usage("COMMAND is empty")),
            Some(_) => Ok(()),
        }
    }

    fn apply_environment(&mut self, cli: &Cli) -> Result<()> {
        self.env_files.clone_from(&cli.env_file);
        if !self.env.iter().any(|entry| entry.as_bytes().starts_with(b"PATH=")) {
            self.env.insert(0, format!("PATH={}", chain::link::DEFAULT_PATH).into());
        }
        let machines =
            || std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim_end().to_string());
        let hostname = match self.namespace("uts") {
            Namespace::New => self.hostname.clone(),
            Namespace::Host => machines(),
            Namespace::Path(_) => None,
        };
        self.env.extend(hostname.map(|hostname| format!("HOSTNAME={hostname}").into()));
        if (self.tty || cli.tty) && !cli.no_tty {
            self.env.push("TERM=xterm".into());
        }
        for entry in &cli.env {
            let name = entry.as_bytes();
            if name.is_empty() || name[0] == b'=' {
                return Err(Error::usage(format_args!("variable {entry:?} has no name")));
            }
            if name.contains(&b'=') {
                self.env.push(entry.clone());
            } else if let Some(value) = std::env::var_os(entry) {
                self.env.push(OsString::from_vec([name, b"=", value.as_bytes()].concat()));
            }
        }
        self.env = last_of_each(&self.env);
        Ok(())
    }

    fn apply_isolation(&mut self, cli: &Cli) -> Result<()> {
        self.set_namespace(
            "network",
            crate::network::namespace(&cli.net)?,
            self.document.get("linux/namespaces").is_none() || cli.net != "new",
        );
        for (name, option, value) in
            [("pid", "--pid", &cli.pid), ("ipc", "--ipc", &cli.ipc), ("uts", "--uts", &cli.uts)]
        {
            if let Some(value) = value {
                self.set_namespace(name, host_or_path(option, value)?, true);
            }
        }
        if let Some(value) = &cli.userns {
            self.mapping = Mapping::of_flag(value, self.root_of_machine)?;
        }
        if matches!((&self.mapping, &self.root), (Some(Mapping::Shifted(_)), Root::Directory(_))) {
            return Err(Error::usage("--userns=auto: the owners of a root that is there are not shifted")
                .hint("give an image, or map ids in the document (linux.uidMappings)"));
        }
        if let Some(hostname) = &cli.hostname {
            self.hostname = Some(hostname.clone());
        }
        if self.namespace("uts") == &Namespace::Host && cli.hostname.is_some() {
            return Err(
                Error::usage("--hostname with --uts=host would rename this machine").hint("leave one of them out")
            );
        }
        self.sysctls.extend(cli.sysctl.iter().cloned());
        Ok(())
    }

    fn apply_security(&mut self, cli: &Cli) -> Result<()> {
        if cli.privileged {
            self.capabilities = vec!["all".into()];
            self.seccomp = Seccomp::None;
            self.masks = false;
            self.nodev = false;
            self.all_devices = true;
            self.writable_sys = true;
            self.no_new_privileges = false;
        }
        self.capabilities = crate::capabilities::change(&self.capabilities, &cli.cap_add, &cli.cap_drop)?;
        let kept = crate::capabilities::listed(&self.capabilities);
        self.ambient.retain(|name| kept.contains(name));
        for option in &cli.security_opt {
            let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
            match (name, value) {
                ("seccomp", "unconfined") => self.seccomp = Seccomp::None,
                ("seccomp", "default" | "builtin") => self.seccomp = Seccomp::Default,
                ("seccomp", "") => {
                    return Err(Error::usage("--security-opt seccomp: default, unconfined or a file is missing"));
                }
                ("seccomp", file) => self.seccomp = Seccomp::File(file.into()),
                ("systempaths", "unconfined") => self.masks = false,
                ("no-new-privileges", "" | "true") => self.no_new_privileges = true,
                ("no-new-privileges", "false") => self.no_new_privileges = false,
                _ => {
                    return Err(Error::usage(format_args!("--security-opt {option:?} is not supported")).hint(
                        "seccomp=default|unconfined|FILE, no-new-privileges[=false] and systempaths=unconfined are",
                    ));
                }
            }
        }
        Ok(())
    }

    /// An image says too which signal asks its program to end.
    fn waiting(&self, cli: &Cli) -> Vec<OsString> {
        let annotations = self.document.get("annotations").and_then(Value::as_object);
        let of_image = annotations.and_then(|all| all.get(STOP_SIGNAL)).and_then(Value::as_str);
        let signal = cli.stop_signal.as_deref().or(of_image.filter(|signal| !signal.is_empty()));
        let mut out: Vec<OsString> =
            signal.map(|signal| format!("--stop-signal={signal}").into()).into_iter().collect();
        // As with `docker run`, less than 0 is for ever.
        out.extend(
            cli.stop_timeout.filter(|seconds| *seconds >= 0).map(|seconds| format!("--stop-timeout={seconds}").into()),
        );
        out.extend(cli.pidfile.as_ref().map(|file| crate::limits::joined("--pid-file=", file.as_os_str())));
        out
    }

    /// The namespace of that name.
    pub fn namespace(&self, name: &str) -> &Namespace {
        self.namespaces.iter().find(|(known, _)| *known == name).map_or(&Namespace::Host, |(_, namespace)| namespace)
    }

    fn set_namespace(&mut self, name: &str, value: Namespace, apply: bool) {
        for (known, namespace) in &mut self.namespaces {
            if apply && *known == name {
                *namespace = value.clone();
            }
        }
    }
}

fn host_or_path(option: &str, value: &str) -> Result<Namespace> {
    match value {
        "host" => Ok(Namespace::Host),
        "private" | "" => Ok(Namespace::New),
        path if path.starts_with('/') => Ok(Namespace::Path(path.into())),
        other => Err(Error::usage(format_args!("{option}={other:?}: neither host nor a path")).hint(format_args!(
            "that of another container is {option}=/proc/PID/ns/{}",
            option.trim_start_matches('-')
        ))),
    }
}

fn namespaces_of(document: &Document) -> Result<Vec<(&'static str, Namespace)>> {
    if document.get("linux/namespaces").is_none() {
        return Ok(NAMESPACES.map(|name| (name, Namespace::New)).to_vec());
    }
    let listed = document.list("linux/namespaces")?;
    let find = |name: &str| listed.iter().find(|entry| entry["type"].as_str() == Some(name));
    let of = |name: &'static str| match find(name) {
        None => (name, Namespace::Host),
        Some(entry) => (name, entry["path"].as_str().map_or(Namespace::New, |path| Namespace::Path(path.into()))),
    };
    Ok(NAMESPACES.map(of).to_vec())
}

fn user_of(document: &Document) -> Result<String> {
    if let Some(name) = document.text("process/user/username")?.filter(|name| !name.is_empty()) {
        return Ok(name.to_string());
    }
    let id = |path: &str| Ok::<u64, Error>(document.number(path)?.unwrap_or(0));
    Ok(format!("{}:{}", id("process/user/uid")?, id("process/user/gid")?))
}

/// An image's groups come from its own /etc/group, where they are looked up again.
fn groups_of(document: &Document) -> Result<Vec<String>> {
    if document.get("layers").is_some() && document.get("root/path").is_none() {
        return Ok(Vec::new());
    }
    let wrong = || Error::new("process.user.additionalGids: not a list of ids");
    let id = |value: &Value| value.as_u64().map(|id| id.to_string()).ok_or_else(wrong);
    document.list("process/user/additionalGids")?.iter().map(id).collect()
}

fn capabilities_of(document: &Document) -> Result<Vec<String>> {
    if document.get("process/capabilities").is_none() {
        return Ok(DEFAULT_CAPABILITIES.map(str::to_string).to_vec());
    }
    Ok(document.texts("process/capabilities/bounding")?.into_iter().map(str::to_string).collect())
}

fn process_of(document: &Document) -> Result<Vec<OsString>> {
    let mut out: Vec<OsString> = Vec::new();
    if let Some(score) = document.get("process/oomScoreAdj").filter(|score| score.as_i64() != Some(0)) {
        out.push(format!("--oom-score-adj={score}").into());
    }
    if let Some(umask) = document.number("process/user/umask")? {
        out.push(format!("--umask={umask:04o}").into());
    }
    Ok(out)
}

fn ulimits_of(document: &Document) -> Result<Vec<String>> {
    let limit = |entry: &Value| {
        let wrong = || Error::new("process.rlimits: not a type with soft and hard numbers");
        let name = entry["type"].as_str().and_then(|name| name.strip_prefix("RLIMIT_")).ok_or_else(wrong)?;
        let number = |name: &str| match entry[name].as_u64() {
            Some(u64::MAX) => Ok("max".to_string()),
            other => other.map(|number| number.to_string()).ok_or_else(wrong),
        };
        Ok(format!("{}={}:{}", name.to_ascii_lowercase(), number("soft")?, number("hard")?))
    };
    document.list("process/rlimits")?.iter().map(limit).collect()
}

fn sysctls_of(document: &Document) -> Result<Vec<String>> {
    let Some(sysctls) = document.get("linux/sysctl") else { return Ok(Vec::new()) };
    let sysctls = sysctls.as_object().ok_or_else(|| Error::new("linux.sysctl: not an object"))?;
    Ok(sysctls.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect())
}

/// The last entry of each name, where it stood first; entries without `=` as they are.
fn last_of_each(entries: &[OsString]) -> Vec<OsString> {
    let name = |entry: &OsStr| entry.as_bytes().split(|&b| b == b'=').next().unwrap_or_default().to_vec();
    let mut out: Vec<OsString> = Vec::new();
    for entry in entries {
        match out.iter_mut().find(|earlier| name(earlier) == name(entry)) {
            Some(earlier) => earlier.clone_from(entry),
            None => out.push(entry.clone()),
        }
    }
    out
}

/// Annotation names have dots and slashes, so they cannot be paths of [`Document::set`].
fn set_annotation(document: &mut Document, key: &str, value: &str) {
    let mut annotations = document.remove("annotations").unwrap_or_default();
    if !annotations.is_object() {
        annotations = Value::Object(Default::default());
    }
    annotations[key] = value.into();
    document.set("annotations", annotations);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(document: &str, words: &[&str]) -> Result<Container> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let cli = match crate::cli::parse(&words) {
            Ok(cli) => cli,
            Err(stop) => panic!("{stop:?}"),
        };
        let mut container = Container::new(Document::parse(document.as_bytes())?, "name".into(), true)?;
        let (_, command) = cli.source()?;
        container.apply(&cli, &command)?;
        Ok(container)
    }

    const IMAGE: &str = r#"{"layers":["/l"],"annotations":{"ctr.entrypoint":"[\"/entry\"]"},
        "process":{"args":["/entry","cmd"],"env":["PATH=/bin","A=1"],"cwd":"/w","user":{"uid":5,"gid":6}}}"#;

    #[test]
    fn command_replaces_cmd_and_entrypoint_both() {
        assert_eq!(container(IMAGE, &["x"]).unwrap().args, ["/entry", "cmd"]);
        assert_eq!(container(IMAGE, &["x", "other"]).unwrap().args, ["/entry", "other"]);
        assert_eq!(container(IMAGE, &["--entrypoint", "sh", "x", "-c"]).unwrap().args, ["sh", "-c"]);
        assert_eq!(container(IMAGE, &["--entrypoint", "sh", "x"]).unwrap().args, ["sh"]);
        let nothing = container(r#"{"layers":["/l"]}"#, &["x"]).unwrap_err().to_string();
        assert!(nothing.contains("the image names none"), "{nothing}");
    }

    #[test]
    fn environment_last_wins_in_place() {
        let got = container(IMAGE, &["-e", "A=2", "-e", "B=x=y", "-e", "PATH=/p", "--hostname", "h", "x"]).unwrap();
        assert_eq!(got.env, ["PATH=/p", "A=2", "HOSTNAME=h", "B=x=y"]);
        assert!(container(IMAGE, &["-e", "=x", "img"]).is_err());
    }

    #[test]
    fn user_comes_from_the_document_or_the_flag() {
        assert_eq!(container(IMAGE, &["x"]).unwrap().user, "5:6");
        assert_eq!(container(IMAGE, &["-u", "bob", "x"]).unwrap().user, "bob");
    }

    #[test]
    fn namespaces_can_be_the_hosts() {
        let got = container(IMAGE, &["--net", "host", "--ipc=/proc/1/ns/ipc", "x"]).unwrap();
        assert_eq!(got.namespace("network"), &Namespace::Host);
        assert_eq!(got.namespace("ipc"), &Namespace::Path("/proc/1/ns/ipc".into()));
        assert_eq!(got.namespace("pid"), &Namespace::New);
        assert!(container(IMAGE, &["--net", "bridge", "x"]).is_err());
        assert!(container(IMAGE, &["--uts", "host", "--hostname", "h", "x"]).is_err());
    }

    #[test]
    fn privileged_is_all_and_security_options_are_checked() {
        let got = container(IMAGE, &["--privileged", "x"]).unwrap();
        assert_eq!((got.capabilities, got.seccomp, got.masks), (vec!["all".to_string()], Seccomp::None, false));
        assert!(container(IMAGE, &["--security-opt", "label=disable", "x"]).is_err());
    }
}
