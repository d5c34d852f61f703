//! Joining namespaces that exist (setns(2)).
//!
//! All are opened before the first is joined. They are tried with the rights that the caller has, then the user namespace
//! is joined, then what was refused is tried with the rights there; and each is looked at afterwards. If one is missing
//! then, nothing runs.
//!
//! A process can be in a user namespace below the one that owns its other namespaces (bwrap makes such). Its owner is joined
//! on the way.

use crate::namespace::{Kind, Origin, Selection};
use chain::sys::process;
use chain::trace::op;
use chain::{Error, Result, ResultExt};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::Pid;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A namespace that is open, and not yet joined.
struct Handle {
    kind: Kind,
    path: PathBuf,
    fd: OwnedFd,
    id: (u64, u64),
    /// The user namespace that it belongs to, where the caller may know.
    owner: Option<OwnedFd>,
}

impl Handle {
    fn open(kind: Kind, path: PathBuf) -> Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let fd = op(format_args!("open({path:?})"), || nix::fcntl::open(&path, flags, Mode::empty()))?;
        let stat = fstat(&fd).call(format_args!("fstat({path:?})"))?;
        let owner = if kind == Kind::User { None } else { process::owning_user_namespace(&fd).ok() };
        Ok(Handle { kind, path, fd, id: (stat.st_dev, stat.st_ino), owner })
    }

    /// Whether this process (or its next child, where only that can be) is in it.
    fn is_joined(&self) -> bool {
        own(self.kind) == Some(self.id)
    }

    /// Whether it is the one that `fd` is.
    fn is(&self, fd: &OwnedFd) -> bool {
        fstat(fd).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.id)
    }

    fn join(&self) -> Result<()> {
        let flag = CloneFlags::from_bits_retain(self.kind.flag());
        let call = format_args!("setns({:?}, {})", self.path, chain::link::clone_flags(self.kind.flag() as u64));
        op(call, || setns(&self.fd, flag)).map_err(|error| self.explain(error))
    }

    fn explain(&self, error: Error) -> Error {
        match (error.errno(), self.kind) {
            (Some(Errno::EINVAL), Kind::User) => {
                error.hint("it is no user namespace, or the one this process is in, or this process has threads")
            }
            (Some(Errno::EINVAL), Kind::Pid) => {
                error.hint("it is no pid namespace, or one that this process's own is below")
            }
            (Some(Errno::EINVAL), kind) => error.hint(format_args!("it is no {} namespace", kind.option())),
            (Some(Errno::EPERM), Kind::User) => error.hint("CAP_SYS_ADMIN in that user namespace is needed"),
            (Some(Errno::EPERM), _) => {
                match process::owning_user_namespace(&self.fd).ok().and_then(|fd| fstat(fd).ok()) {
                    Some(owner) if Some((owner.st_dev, owner.st_ino)) != own(Kind::User) => error.hint(format_args!(
                        "it belongs to user:[{}], and this process is in another; join that with --user",
                        owner.st_ino
                    )),
                    Some(_) => error.hint("CAP_SYS_ADMIN is needed"),
                    None => error.hint("it belongs to a user namespace above this process's"),
                }
            }
            _ => error,
        }
    }
}

/// The identity of the namespace of `kind` that this process's next child will be in.
fn own(kind: Kind) -> Option<(u64, u64)> {
    let metadata = fs::metadata(Path::new("/proc/self/ns").join(kind.file_for_children())).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Joins what `selection` does not make; `target` is whose namespaces [`Origin::Target`] means. With `all`, those of the
/// target's that differ from this process's are added to the selection.
///
/// Errors: one cannot be opened or joined (all that failed are named); the target ended meanwhile.
pub fn join(selection: &mut Selection, target: Option<Pid>, all: bool) -> Result<()> {
    let process = target.map(|pid| open_process(pid).map(|fd| (pid, fd))).transpose()?;
    let mut handles = Vec::new();
    if let (true, Some(pid)) = (all, target) {
        for kind in Kind::ALL.into_iter().filter(|kind| !selection.has(*kind)).collect::<Vec<_>>() {
            let handle = Handle::open(kind, of_process(pid, kind)).map_err(|error| explain_open(error, pid))?;
            if !handle.is_joined() {
                selection.add(kind, Origin::Target)?;
                handles.push(handle);
            }
        }
    }
    for (kind, origin) in selection.iter() {
        if handles.iter().any(|handle: &Handle| handle.kind == kind) {
            continue;
        }
        let handle = match (origin, target) {
            (Origin::New, _) | (Origin::Target, None) => continue,
            (Origin::Target, Some(pid)) => {
                Handle::open(kind, of_process(pid, kind)).map_err(|error| explain_open(error, pid))?
            }
            (Origin::Path(path), _) => Handle::open(kind, path.clone())?,
        };
        if !handle.is_joined() {
            handles.push(handle);
        }
    }
    if let Some((pid, fd)) = &process {
        // Alive now, so all that was opened by its number was its own, and no later process's.
        op(format_args!("pidfd_send_signal({pid}, 0)"), || match process::pidfd_send_signal(fd, 0) {
            // Alive, and somebody else's.
            Err(Errno::EPERM) => Ok(()),
            other => other,
        })
        .map_err(|error| error.hint("the target process ended meanwhile"))?;
    }
    join_all(&handles)
}

fn join_all(handles: &[Handle]) -> Result<()> {
    if handles.is_empty() {
        return Ok(());
    }
    // What runs in there must not look into this process before it has become COMMAND (CVE-2019-5736).
    op(format_args!("prctl(PR_SET_DUMPABLE, 0)"), || process::prctl(nix::libc::PR_SET_DUMPABLE, [0; 4]))?;
    let checks = Checks::open()?;
    let (users, others): (Vec<_>, Vec<_>) = handles.iter().partition(|handle| handle.kind == Kind::User);
    let mut refused = attempt(others);
    let again = |refused: Vec<(_, Error)>| attempt(refused.into_iter().map(|(handle, _)| handle).collect());
    for user in users {
        let between = refused.iter().find_map(|(handle, _)| handle.owner.as_ref().filter(|owner| !user.is(owner)));
        if let Some(owner) = between {
            let call = format_args!("setns(the owner of {:?}, CLONE_NEWUSER)", user.path);
            if op(call, || setns(owner, CloneFlags::CLONE_NEWUSER)).is_ok() {
                refused = again(refused);
            }
        }
        user.join()?;
        refused = again(refused);
    }
    if let Some(error) =
        refused.into_iter().map(|(_, error)| error).reduce(|first, next| first.hint(format_args!("{next}")))
    {
        return Err(error);
    }
    checks.verify(handles)
}

/// Joins each; gives those that were refused, and why. The mount namespace comes last, since the paths in messages are of
/// the one before.
fn attempt(mut handles: Vec<&Handle>) -> Vec<(&Handle, Error)> {
    handles.sort_by_key(|handle| handle.kind == Kind::Mount);
    handles.into_iter().filter_map(|handle| handle.join().err().map(|error| (handle, error))).collect()
}

/// The files that tell where this process is, held open while /proc may become another's.
struct Checks(OwnedFd);

impl Checks {
    fn open() -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        // By number: the link "self" would lead nowhere once another PID namespace is joined.
        let path = format!("/proc/{}/ns", process::own_number_in_proc());
        nix::fcntl::open(path.as_str(), flags, Mode::empty()).call(format_args!("open({path:?})")).map(Checks)
    }

    fn verify(&self, handles: &[Handle]) -> Result<()> {
        let missing: Vec<&str> = handles
            .iter()
            .filter(|handle| {
                let name = handle.kind.file_for_children();
                let stat = nix::sys::stat::fstatat(&self.0, name, nix::fcntl::AtFlags::empty());
                stat.map(|stat| (stat.st_dev, stat.st_ino)) != Ok(handle.id)
            })
            .map(|handle| handle.kind.option())
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::new(format_args!("not in these namespaces after joining them: {}", missing.join(", "))))
    }
}

fn of_process(pid: Pid, kind: Kind) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/{}", kind.file()))
}

fn open_process(pid: Pid) -> Result<OwnedFd> {
    op(format_args!("pidfd_open({pid})"), || process::pidfd_open(pid)).map_err(|error| match error.errno() {
        Some(Errno::ESRCH) => error.hint("there is no such process here"),
        Some(Errno::EINVAL | Errno::ENOENT) => error.hint("it is a thread of a process; name the process"),
        _ => error,
    })
}

fn explain_open(error: Error, pid: Pid) -> Error {
    match error.errno() {
        Some(Errno::EACCES | Errno::EPERM) => error.hint(format_args!(
            "process {pid} is another user's, or has more privileges than this one; root can join its namespaces"
        )),
        Some(Errno::ENOENT) if Path::new(&format!("/proc/{pid}")).exists() => {
            error.hint("the process has ended (a zombie), or this kernel has no such namespaces")
        }
        _ => error,
    }
}
