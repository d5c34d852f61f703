//! Arguments to request, without effects.

use crate::api::{self, Api};
use crate::mount::{Mount, Source};
use crate::names::{self, Names};
use crate::request::{Action, Place, Request};
use crate::spec;
use chain::sys::mount::ATTR_NODEV;
use chain::{Error, Result, size};
use clap::{CommandFactory, Parser};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// The grammar.
pub fn command() -> clap::Command {
    Cli::command()
}

const WHERE: &str = "Where";
const WHAT: &str = "What is mounted";
const HIDE: &str = "What is hidden or read-only";
const NAMED: &str = "Named volumes";

/// What is mounted inside a root: host directories, named volumes, /proc, /sys and /dev
#[derive(Parser, Debug)]
#[command(
    name = "vol-bind",
    version,
    override_usage = "vol-bind (--root DIR | --from DOC) [OPTIONS] [SRC:DST[:OPTIONS]]... [-- COMMAND [ARG]...]",
    after_help = "Example: ns-enter --all -- vol-bind --root /mnt/web --api data:/data ./conf:/etc/web:ro -- ns-enter --root /mnt/web -- sh"
)]
pub struct Cli {
    /// The root directory
    #[arg(long, help_heading = WHERE, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Document with root.path (- is stdin); mounts is added to it
    #[arg(long, help_heading = WHERE, value_name = "DOC")]
    from: Option<PathBuf>,
    /// Take these mounts away (of the document, or those given), last first
    #[arg(long, help_heading = WHERE)]
    undo: bool,
    /// Say what can be mounted here, and whether all that is asked for can; mount nothing
    #[arg(long, help_heading = WHERE, conflicts_with_all = ["undo", "create", "list", "remove"])]
    check: bool,

    /// /proc, /sys and /dev with what belongs there
    #[arg(long, help_heading = WHAT)]
    api: bool,
    /// As docker run --mount: type=,src=,dst=,...; repeatable
    #[arg(long, help_heading = WHAT, value_name = "SPEC")]
    mount: Vec<OsString>,
    /// An empty file system in memory; repeatable
    #[arg(long, help_heading = WHAT, value_name = "DST[:OPTIONS]")]
    tmpfs: Vec<OsString>,
    /// A device of the machine; repeatable
    #[arg(long, help_heading = WHAT, value_name = "PATH[:DST]")]
    device: Vec<OsString>,
    /// Size of /dev/shm
    #[arg(long, help_heading = WHAT, value_name = "SIZE", default_value = "64M")]
    shm_size: String,
    /// With --api: every device of the machine in /dev
    #[arg(long, help_heading = WHAT, requires = "api")]
    all_devices: bool,
    /// With --api: /sys and /sys/fs/cgroup can be written
    #[arg(long, help_heading = WHAT, requires = "api")]
    writable_sys: bool,
    /// No device nodes can be used in what is mounted, but for --device and those of --api
    #[arg(long, help_heading = WHAT)]
    nodev: bool,
    /// Copy of FILE at /etc/resolv.conf; auto: the machine's, without servers that only it can reach; host: the machine's
    #[arg(long, help_heading = WHAT, value_name = "FILE|auto|host")]
    resolv_conf: Option<PathBuf>,
    /// A /etc/resolv.conf with this name server; repeatable
    #[arg(long, help_heading = WHAT, value_name = "ADDRESS", conflicts_with = "resolv_conf")]
    dns: Vec<String>,
    /// Copy of FILE at /etc/hosts; repeatable, one after the other
    #[arg(long, help_heading = WHAT, value_name = "FILE")]
    hosts: Vec<PathBuf>,
    /// A line at the end of /etc/hosts, which is localhost's alone without --hosts; repeatable
    #[arg(long, help_heading = WHAT, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// /etc/hostname with NAME
    #[arg(long, help_heading = WHAT, value_name = "NAME")]
    hostname_file: Option<String>,

    /// Hide PATH; default: what the machine should not show; repeatable
    #[arg(long, help_heading = HIDE, value_name = "PATH|default")]
    mask: Vec<OsString>,
    /// Make PATH read-only; default: the kernel's settings in /proc; repeatable
    #[arg(long, help_heading = HIDE, value_name = "PATH|default")]
    readonly: Vec<OsString>,

    /// Store of the named volumes
    #[arg(long, help_heading = NAMED, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Make a named volume, if it is not there
    #[arg(long, help_heading = NAMED, value_name = "NAME", conflicts_with_all = ["root", "from", "undo"])]
    create: Option<String>,
    /// Names, sizes and users of the volumes
    #[arg(long, help_heading = NAMED, conflicts_with_all = ["root", "from", "undo", "create"])]
    list: bool,
    /// The list, or what --check tells, as JSON
    #[arg(long, help_heading = NAMED)]
    json: bool,
    /// Remove a named volume with its data
    #[arg(long, help_heading = NAMED, value_name = "NAME", conflicts_with_all = ["root", "from", "undo", "create", "list"])]
    remove: Option<String>,

    #[command(flatten)]
    pub(crate) common: chain::args::Common,

    /// Host path (/… or ./…) or name of a volume, place inside the root, options (ro, ...)
    #[arg(value_name = "SRC:DST[:OPTIONS]")]
    volumes: Vec<OsString>,
    /// What to run then
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Cli {
    /// The request. Errors: what cannot be right, before anything is done.
    pub fn request(self) -> Result<Request> {
        let shm_size = size::parse(&self.shm_size).map_err(|error| error.within("--shm-size"))?;
        if shm_size == 0 {
            return Err(Error::usage("--shm-size: 0 would be no limit").hint("write a size such as 64M"));
        }
        if self.json && !self.list && !self.check {
            return Err(Error::usage("--json goes with --list or --check"));
        }
        let action = if let Some(name) = self.create {
            chain::store::check_name(&name)?;
            Action::Create(name)
        } else if let Some(name) = self.remove {
            chain::store::check_name(&name)?;
            Action::Remove(name)
        } else if self.list {
            Action::List { json: self.json }
        } else {
            let mut mounts = mounts(&self.mount, &self.tmpfs, &self.device, &self.volumes)?;
            if self.nodev {
                let others = mounts.iter_mut().filter(|mount| !matches!(mount.source, Source::Device(_)));
                // What says "dev" itself means it.
                for mount in others.filter(|mount| mount.options.clear & ATTR_NODEV == 0) {
                    mount.options.set |= ATTR_NODEV;
                    if !mount.options.words.iter().any(|word| word == "nodev") {
                        mount.options.words.push("nodev".into());
                    }
                }
            }
            let names = Names {
                resolv_conf: self.resolv_conf,
                servers: self.dns.iter().map(|text| names::server(text)).collect::<Result<_>>()?,
                hosts: self.hosts,
                added: self.add_host.iter().map(|text| names::host(text)).collect::<Result<_>>()?,
                hostname: self.hostname_file,
            };
            let place = Place {
                root: self.root,
                from: self.from,
                api: self.api.then_some(Api {
                    shm_size,
                    all_devices: self.all_devices,
                    writable_sys: self.writable_sys,
                }),
                nodev: self.nodev,
                names,
                mounts,
                masked: paths(&self.mask, &api::MASKED)?,
                read_only: paths(&self.readonly, &api::READ_ONLY)?,
            };
            if place.root.is_none() && place.from.is_none() && !self.check {
                return Err(Error::usage("no root").hint("say --root DIR, or --from DOC with root.path"));
            }
            if (self.undo || self.check) && !self.command.is_empty() {
                return Err(Error::usage("--undo and --check run no COMMAND"));
            }
            match (self.check, self.undo) {
                (true, _) => Action::Check { place, json: self.json },
                (_, true) => Action::Undo(place),
                _ => Action::Mount(place),
            }
        };
        let volumes_only = matches!(action, Action::Create(_) | Action::List { .. } | Action::Remove(_));
        if volumes_only && !self.volumes.is_empty() {
            return Err(Error::usage(format_args!("{:?}: one name is enough", self.volumes[0])));
        }
        Ok(Request { action, store: self.store, command: self.command })
    }
}

fn mounts(specs: &[OsString], tmpfs: &[OsString], devices: &[OsString], volumes: &[OsString]) -> Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    for spec in specs {
        mounts.push(spec::mount(spec)?);
    }
    for spec in tmpfs {
        mounts.push(spec::tmpfs(spec)?);
    }
    for spec in volumes {
        mounts.push(spec::volume(spec)?);
    }
    for spec in devices {
        mounts.push(spec::device(spec)?);
    }
    // Stable: what is above is there before what goes into it.
    mounts.sort_by_key(Mount::depth);
    let mut seen = BTreeSet::new();
    match mounts.iter().find(|mount| !seen.insert(&mount.target)) {
        Some(twice) => Err(Error::usage(format_args!("two mounts at {:?}", twice.target))),
        None => Ok(mounts),
    }
}

fn paths(given: &[OsString], default: &[&str]) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for path in given {
        if path == "default" {
            paths.extend(default.iter().map(PathBuf::from));
        } else {
            paths.push(spec::target_path(path.as_bytes())?);
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(args: &[&str]) -> Result<Request> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        match chain::args::parse::<Cli>(&args) {
            Ok(cli) => cli.request(),
            Err(chain::args::Stop::Fail(error)) => Err(error),
            Err(stop) => panic!("{stop:?}"),
        }
    }

    #[test]
    fn mounts_go_from_the_top_down_whatever_the_order() {
        let got = request(&["--root", "/r", "a:/x/y/z", "b:/x", "--tmpfs", "/x/y", "c:/w", "--", "sh", "-c"]).unwrap();
        let Action::Mount(place) = got.action else { panic!() };
        let targets: Vec<_> = place.mounts.iter().map(|mount| mount.target.to_str().unwrap()).collect();
        assert_eq!(targets, ["/x", "/w", "/x/y", "/x/y/z"]);
        assert_eq!(got.command, ["sh", "-c"].map(OsString::from));
    }

    #[test]
    fn what_cannot_be_is_refused_before_anything_is_done() {
        for (args, words) in [
            (&["a:/x"][..], "no root"),
            (&["--root", "/r", "a:/x", "b:/y/../x/"], "two mounts at \"/x\""),
            (&["--root", "/r", "--api", "--shm-size", "0"], "--shm-size"),
            (&["--root", "/r", "--api", "--shm-size", "64X"], "unknown unit"),
            (&["--create", "../x"], "name \"../x\""),
            (&["--create", "x", "--root", "/r"], "cannot be used with"),
            (&["--root", "/r", "--undo", "a:/x", "--", "sh"], "--undo"),
            (&["--root", "/r", "--mask", "proc"], "not an absolute path"),
        ] {
            let error = request(args).unwrap_err().to_string();
            assert!(error.contains(words), "{args:?}: {error}");
        }
    }
}
