//! A user namespace for nothing but its map, as idmapped mounts want one (mount_setattr(2)).

use chain::sys::process::{self, Side, clone3};
use chain::trace::op;
use chain::userns::{Maps, Range, explain};
use chain::{Error, Result, ResultExt};
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

/// A user namespace in which the ids `inner` are `outer` here, for users and groups alike.
///
/// Errors: as for [`Maps::write`].
pub fn namespace(ranges: &[Range]) -> Result<OwnedFd> {
    let maps = Maps { users: ranges.to_vec(), groups: ranges.to_vec() };
    maps.check()?;
    let pipe = || pipe2(OFlag::O_CLOEXEC).call(format_args!("pipe2()"));
    let ((reader, writer), (mut said, saying)) = (pipe()?, pipe().map(|(r, w)| (File::from(r), File::from(w)))?);
    let made = op(format_args!("clone3(CLONE_NEWUSER)"), || clone3(CloneFlags::CLONE_NEWUSER.bits() as u64));
    let child = match made.map_err(explain)? {
        Side::Child => {
            // Its number as /proc has it, which may be another PID namespace's than ours.
            let own = std::fs::read_link("/proc/self").unwrap_or_default();
            let _ = (&saying).write_all(own.as_os_str().as_bytes());
            drop((saying, writer));
            // Until the parent has what it wants, or is gone.
            let _ = nix::unistd::read(&reader, &mut [0]);
            process::leave(0);
        }
        Side::Parent(child, _) => child,
    };
    drop(saying);
    let mut number = String::new();
    let namespace = said.read_to_string(&mut number).call(format_args!("read(pipe)")).and_then(|_| {
        let number: i32 = number.parse().map_err(|_| Error::new("/proc does not show this process"))?;
        maps.write(Pid::from_raw(number))?;
        let path = format!("/proc/{number}/ns/user");
        File::open(&path).call(format_args!("open({path:?})"))
    });
    drop(writer);
    waitpid(child, None).call(format_args!("waitpid({child})"))?;
    namespace.map(OwnedFd::from)
}
