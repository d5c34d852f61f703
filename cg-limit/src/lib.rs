//! `cg-limit`: limits on CPU, memory, disk and process count, for COMMAND or for a group by name.
//!
//! * [`limits`]: limits as values, from arguments and from an OCI configuration, and back.
//! * [`layout`]: which controller lives where on this machine.
//! * [`setting`]: limits as the kernel's files and values, for either version.
//! * [`device_filter`]: device rules on cgroup v2, as BPF.
//! * [`group`]: the directories of a group, as one thing.
//! * [`usage`]: what a group has used.
//! * [`guard`], [`leftover`]: who cleans up when the process that waits is killed.
#![forbid(unsafe_code)]

pub mod cli;
pub mod device;
mod device_filter;
pub mod group;
pub mod guard;
pub mod layout;
mod leftover;
pub mod limits;
pub mod name;
pub mod setting;
mod show;
pub mod usage;

use chain::args::Stop;
use chain::trace::{self, op};
use chain::{Chain, Document, Outcome, Result};
use cli::{Cli, Limit, Request};
use group::Group;
use guard::Guard;
use layout::Layout;
use limits::Limits;
use name::Name;
use nix::errno::Errno;
use nix::libc::CLONE_NEWPID;
use std::cell::RefCell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use usage::Usage;

/// The tool.
pub const TOOL: chain::Tool = chain::Tool { name: "cg-limit", command: cli::command, run };

fn run(chain: &mut Chain, args: &[OsString]) -> Result<Outcome, Stop> {
    let cli = chain::args::parse::<Cli>(args)?;
    cli.common.apply();
    Ok(match cli.request()? {
        Request::Limit(limit) => carry_out(chain, limit)?,
        Request::Check(limits) => show::check(&Layout::read()?, &limits)?,
        Request::Undo { name, kill } => undo(name, kill)?,
        Request::Show { name, json, watch } => show::show(name, json, watch)?,
        Request::Freeze(name) => Group::open(&Layout::read()?, name)?.freeze().map(|()| Outcome::Done)?,
        Request::Thaw(name) => Group::open(&Layout::read()?, name)?.thaw().map(|()| Outcome::Done)?,
        Request::Kill(name) => Group::open(&Layout::read()?, name)?.kill().map(|()| Outcome::Done)?,
    })
}

/// The limits that these arguments name, as `linux.resources` of a document; no group is touched. Errors: arguments that
/// cannot be right.
pub fn documented(args: &[OsString]) -> Result<Document> {
    let cli = chain::args::parse::<Cli>(args).map_err(Stop::into_error)?;
    let mut document = Document::new();
    if let Request::Limit(limit) = cli.request()? {
        limit.limits.write_to(&mut document);
    }
    Ok(document)
}

fn carry_out(chain: &mut Chain, request: Limit) -> Result<Outcome> {
    let Limit { name, limits, from, stats, command } = request;
    let mut document = from.as_deref().map(Document::read).transpose()?.unwrap_or_default();
    let name = match name {
        Some(name) => Some(name),
        None => document.text("linux/cgroupsPath")?.filter(|path| !path.is_empty()).map(Name::parse).transpose()?,
    };
    let limits = if from.is_some() { limits.or(Limits::of_document(&document)?) } else { limits };
    let layout = Layout::read()?;
    if command.is_empty() {
        let name = name.unwrap_or_else(Name::random);
        let group = Group::limit(&layout, name, &limits, true)?;
        limits.write_to(&mut document);
        document.set("linux/cgroupsPath", group.name.to_oci());
        return Ok(Outcome::Document(document));
    }
    match name {
        Some(name) => {
            // A name that was mistyped must not run COMMAND without limits; a document's group is made as it says.
            let group = if limits.is_empty() && from.is_none() {
                Group::open(&layout, name)?
            } else {
                Group::limit(&layout, name, &limits, true)?
            };
            join(chain, group, stats)?;
        }
        None => {
            let group = Group::limit(&layout, Name::own(), &limits, false)?;
            own(chain, group, stats)?;
        }
    }
    chain.exec(&command)
}

/// COMMAND runs in a group that stays. Nobody waits, unless somebody has to.
fn join(chain: &mut Chain, group: Group, stats: Option<PathBuf>) -> Result<()> {
    let mut door = group.door()?;
    if stats.is_none() && !chain.will_split() {
        return door.enter();
    }
    if let Some(dir) = door.take_unified() {
        chain.in_group(dir);
    }
    chain.in_child(move || door.enter());
    if let Some(path) = stats {
        chain.after(move |status| {
            if status.is_some() {
                write_stats(&group, &path);
            }
        });
    }
    Ok(())
}

/// COMMAND runs in a group of its own, which is removed afterwards with everything in it.
fn own(chain: &mut Chain, group: Group, stats: Option<PathBuf>) -> Result<()> {
    let mut door = group.door().inspect_err(|_| drop(group.remove()))?;
    leftover::sweep(&group);
    if let Some(dir) = door.take_unified() {
        chain.in_group(dir);
    }
    chain.in_child(move || door.enter());
    let guard: Rc<RefCell<Option<Guard>>> = Rc::default();
    let (guarded, watched) = (Rc::clone(&guard), group.clone());
    chain.at_split(move |flags| {
        if flags & CLONE_NEWPID as u64 == 0 {
            *guarded.borrow_mut() = Some(Guard::start(&watched)?);
        }
        Ok(())
    });
    chain.after(move |status| {
        if status.is_some() {
            report(&group);
            if let Some(path) = &stats {
                write_stats(&group, path);
            }
        }
        if let Err(error) = clear(&group, guard.take()) {
            chain::tool::report(&error);
        }
    });
    Ok(())
}

/// Removes the group; what is left in it is killed first. The guard stays until nothing is.
fn clear(group: &Group, guard: Option<Guard>) -> Result<()> {
    let removed = match group.remove_first() {
        Err(error) if error.errno() == Some(Errno::EBUSY) => group.kill(),
        other => other,
    };
    if let Some(guard) = &guard {
        guard.stop();
    }
    let removed = removed.and_then(|()| group.remove());
    if let Some(guard) = guard {
        guard.reap();
    }
    removed
}

fn report(group: &Group) {
    if let Some(line) = Usage::after_oom(group).and_then(|usage| usage.oom_report()) {
        trace::say(format_args!("{line}"));
    }
    if trace::is_verbose()
        && let Some(share) = Usage::read(group).throttled_share()
    {
        trace::say(format_args!("throttled in {share} % of the periods in which it ran"));
    }
}

fn write_stats(group: &Group, path: &Path) {
    let text = format!("{:#}\n", Usage::read(group).to_json());
    if let Err(error) = op(format_args!("write({path:?})"), || std::fs::write(path, &text)) {
        chain::tool::report(&error);
    }
}

fn undo(name: Name, kill: bool) -> Result<Outcome> {
    // What is gone already is undone.
    let Ok(group) = Group::open(&Layout::read()?, name) else { return Ok(Outcome::Done) };
    if kill {
        group.kill()?;
    }
    group.remove().map_err(|error| match error.errno() {
        Some(Errno::EBUSY) => error.hint("--kill ends them first"),
        _ => error,
    })?;
    Ok(Outcome::Done)
}
