//! `ns-enter`: new or existing namespaces, and entering them.
//!
//! In this order, each part only where it was asked for: join what exists ([`join`]), make what is new ([`create`], from
//! where this process may be a child of itself), enter the root ([`root`]), take on the identity ([`identity`]), become
//! COMMAND.
#![forbid(unsafe_code)]

mod capability;
mod check;
mod cli;
mod create;
mod environment;
mod from;
mod identity;
mod init;
mod join;
mod keep;
mod limits;
mod namespace;
mod own_program;
mod pasta;
mod request;
mod root;
mod seccomp;
mod stop;
mod tty;
mod user;

use chain::args::Stop;
use chain::link::Forked;
use chain::sys::process;
use chain::trace::{note, op};
use chain::{Chain, Document, Error, Outcome, Result, ResultExt};
use identity::Identity;
use keep::Keeper;
use namespace::{Kind, Origin};
use nix::errno::Errno;
use request::{Map, Request};
use seccomp::Filter;
use std::ffi::OsString;
use std::path::Path;
use tty::{Manner, Terminal};

pub use seccomp::written_default_profile as default_seccomp;

/// The tool.
pub const TOOL: chain::Tool = chain::Tool { name: "ns-enter", command: cli::command, run };

fn run(chain: &mut Chain, args: &[OsString]) -> Result<Outcome, Stop> {
    match cli::parse(args)? {
        cli::Action::Enter(mut request, from) => {
            if let Some(path) = from {
                from::fill(&mut request, &Document::read(&path)?)?;
            }
            Ok(enter(chain, *request)?)
        }
        cli::Action::Undo(dir) => {
            keep::undo(&dir)?;
            Ok(Outcome::Done)
        }
        cli::Action::Check(request, json) => {
            let report = check::Report::make()?;
            report.satisfies(&request)?;
            Ok(Outcome::Text(if json { report.to_json() } else { report.to_text() }))
        }
    }
}

fn enter(chain: &mut Chain, mut request: Request) -> Result<Outcome> {
    request.complete()?;
    if let Some(stop) = request.stop {
        chain.stop_with(stop);
    }
    if let Some(file) = request.pid_file.take() {
        chain.note_child(file);
    }
    let manner = request.tty.then(tty::Manner::of_caller).transpose()?;
    // Who waits for what a link before asked for, or relays a terminal, must stay where it is to do it.
    if (chain.will_split() || request.tty && !chain.has_parent())
        && !request.splits_first()
        && let Forked::Parent(outcome) = chain.fork(0, |_| Ok(()))?
    {
        return Ok(outcome);
    }
    if let Some(outcome) = enter_namespaces(chain, &mut request)? {
        return Ok(outcome);
    }
    if let (true, Some(dir)) = (request.command.is_empty(), &request.keep) {
        return Ok(Outcome::Document(keep::document(dir, &request.namespaces)?));
    }
    if request.tty
        && let Some(outcome) = tty::stay_outside(chain)?
    {
        return Ok(outcome);
    }
    if let Some(outcome) = enter_root(chain, &request, manner)? {
        return Ok(outcome);
    }
    if request.init
        && let Some(outcome) = init::stay(chain)?
    {
        return Ok(outcome);
    }
    if request.tty {
        tty::control()?;
    }
    chain.exec(&request.command)
}

/// Joins and makes namespaces. Gives an outcome only in the process that stayed behind.
fn enter_namespaces(chain: &mut Chain, request: &mut Request) -> Result<Option<Outcome>> {
    if let Some(value) = request.oom_score {
        // Before the root changes, and its /proc with it.
        limits::set_oom_score(value)?;
    }
    let selection = &mut request.namespaces;
    if request.all && request.target.is_none() {
        for kind in [Kind::Mount, Kind::Pid, Kind::Net, Kind::Ipc, Kind::Uts, Kind::Cgroup] {
            selection.imply(kind);
        }
        if !is_privileged()? {
            selection.imply(Kind::User);
        }
    }
    if selection.is_empty() && !request.all {
        return Ok(None);
    }
    let keeper = match &request.keep {
        Some(dir) => {
            let kinds = selection.iter().filter(|(_, origin)| **origin == Origin::New).map(|(kind, _)| kind).collect();
            Some(Keeper::start(dir, kinds)?)
        }
        None => None,
    };
    let death_signal = process::parent_death_signal().call(format_args!("prctl(PR_GET_PDEATHSIG)"))?;
    join::join(selection, request.target, request.all)?;
    if matches!(selection.origin(Kind::User), Some(Origin::Target | Origin::Path(_))) {
        if request.user.is_none() && !request.keep_ids {
            identity::become_root_of_joined()?;
        }
        // The kernel forgets it where a process gains capabilities.
        chain.renew_parent_death_signal(death_signal)?;
    }
    let maps = match (&request.map, selection.makes(Kind::User)) {
        (Some(map), true) => Some(map.resolve()?),
        (None, true) => Some(Map::Own(0, 0).resolve()?),
        (_, false) => None,
    };
    let outcome = create::create(chain, selection, maps.as_ref(), &request.setup, keeper)?;
    if selection.has(Kind::Mount) {
        chain.set_own_mounts(selection.makes(Kind::Mount));
    }
    Ok(outcome)
}

/// Whether this process may make namespaces without a user namespace.
fn is_privileged() -> Result<bool> {
    const SYS_ADMIN: u64 = 1 << 21;
    Ok(op(format_args!("capget()"), process::capget)?.effective & SYS_ADMIN != 0)
}

/// Enters the root, and becomes who COMMAND runs as. Gives an outcome only in a process that stayed behind.
fn enter_root(chain: &mut Chain, request: &Request, manner: Option<Manner>) -> Result<Option<Outcome>> {
    let dir = request.root.as_deref().unwrap_or(Path::new("/"));
    // All that is looked up in the root is looked up before anything changes.
    let found = request.user.as_ref().map(|user| user.find(dir)).transpose()?;
    let home = found.as_ref().map(|found| found.home.as_os_str());
    let filter = request.seccomp.as_ref().map(seccomp::Profile::filter).transpose()?.flatten();
    if !request.environment.is_empty() || home.is_some() {
        let environment = request.environment.apply(chain.environment(), home)?;
        chain.set_environment(environment);
    }
    let own_program = request.root.as_ref().map(|_| own_program::Identity::read());
    let outer_terminal = manner.map(|manner| Terminal::open(&manner));
    if let Some(root) = &request.root
        && let Some(outcome) = change_root(chain, request, root)?
    {
        return Ok(Some(outcome));
    }
    // That of the root, if it has any.
    let terminal = match manner.map(|manner| Terminal::open(&manner)) {
        Some(Err(_)) => outer_terminal,
        inner => inner,
    };
    let terminal = terminal.transpose()?;
    if let (Some(terminal), Some(found)) = (&terminal, &found) {
        terminal.belong_to(found.ids.user);
    }
    for limit in &request.limits {
        limit.set()?;
    }
    if let Some(mask) = request.umask {
        note(format_args!("umask({mask:04o})"));
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
    }
    let check = || own_program.as_ref().map_or(Ok(()), |own_program| own_program.refuse(&request.command, chain));
    assume_identity(chain, request, found.map(|found| found.ids), check, filter)?;
    if let Some(terminal) = terminal {
        terminal.take(chain)?;
    }
    if request.root.is_some() {
        chain.leave_links();
    }
    Ok(None)
}

/// Leaves the caller's root, session and keyring. Gives an outcome only in a process that stayed behind.
fn change_root(chain: &mut Chain, request: &Request, root: &Path) -> Result<Option<Outcome>> {
    if !request.keep_session
        && let Some(outcome) = leave_session(chain)?
    {
        return Ok(Some(outcome));
    }
    if let (true, Some(workdir)) = (request.make_workdir, &request.workdir) {
        root::make_directory(root, workdir)?;
    }
    root::enter(root, chain.has_own_mounts(), request.setup.propagation)?;
    root::restrict(request.read_only, request.nodev)?;
    leave_keyring()?;
    Ok(None)
}

/// Changes to the working directory, does `check` there, and drops what COMMAND is not to have.
fn assume_identity(
    chain: &Chain,
    request: &Request,
    ids: Option<user::Ids>,
    check: impl Fn() -> Result<()>,
    filter: Option<Filter>,
) -> Result<()> {
    // Only root, or only the user, may be able to go there.
    let denied = match request.workdir.as_deref().map(root::change_directory).transpose() {
        Ok(_) => {
            check()?;
            None
        }
        Err(error) if error.errno() == Some(Errno::EACCES) => request.workdir.as_deref(),
        Err(error) => return Err(explain_workdir(error)),
    };
    if request.root.is_some() || !request.keep_fds.is_empty() {
        limits::close_descriptors(&request.keep_fds)?;
    }
    let identity = Identity { ids, capabilities: request.capabilities, no_new_privs: request.no_new_privs };
    let as_user = || denied.map_or(Ok(()), |workdir| root::change_directory(workdir).and_then(|()| check()));
    let load = || filter.map_or(Ok(()), |filter| filter.load(seccomp::kept_capabilities()?));
    identity::assume(chain, &identity, as_user, load)
}

fn explain_workdir(error: Error) -> Error {
    match error.errno() {
        Some(Errno::ENOENT) => error.hint("there is no such directory inside; --make-workdir makes it"),
        _ => error,
    }
}

/// Leaves the caller's session, and with it its terminal: who holds that can put characters into its input (TIOCSTI). The
/// first process of a job cannot leave, but its child can.
fn leave_session(chain: &mut Chain) -> Result<Option<Outcome>> {
    let leave = || op(format_args!("setsid()"), nix::unistd::setsid);
    match leave() {
        Err(error) if error.errno() == Some(Errno::EPERM) => {
            // The leader of a session has left others'.
            if nix::unistd::getsid(None) == Ok(nix::unistd::getpid()) {
                return Ok(None);
            }
            match chain.fork(0, |_| Ok(()))? {
                Forked::Parent(outcome) => Ok(Some(outcome)),
                Forked::Child => leave().map(|_| None),
            }
        }
        other => other.map(|_| None),
    }
}

/// A new session keyring. A kernel without keyrings shares none; a full quota is only told.
fn leave_keyring() -> Result<()> {
    let result = op(format_args!("keyctl(KEYCTL_JOIN_SESSION_KEYRING)"), process::new_session_keyring);
    match result {
        Err(error) if error.errno() == Some(Errno::ENOSYS) => Ok(()),
        // Seccomp filters of outer containers answer so.
        Err(error) if error.errno() == Some(Errno::EPERM) => {
            note(format_args!("{error}; the session keyring stays the caller's"));
            Ok(())
        }
        Err(error) if error.errno() == Some(Errno::EDQUOT) => {
            let said = error.hint("the session keyring stays the caller's; /proc/sys/kernel/keys/maxkeys is the limit");
            chain::trace::say(format_args!("{said}"));
            Ok(())
        }
        other => other,
    }
}
