//! A user namespace for nothing but its map, as idmapped mounts want one (mount_setattr(2)).

use chain::sys::process::{self, Side, clone3};
use chain::trace::op;
use chain::userns::{Maps, Range, explain};
use chain::{Result, ResultExt};
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::wait::waitpid;
use nix::unistd::pipe2;
use std::fs::File;
use std::os::fd::OwnedFd;

/// A user namespace in which the ids `inner` are `outer` here, for users and groups alike.
///
/// Errors: as for [`Maps::write`].
pub fn namespace(ranges: &[Range]) -> Result<OwnedFd> {
    let maps = Maps { users: ranges.to_vec(), groups: ranges.to_vec() };
    maps.check()?;
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).call(format_args!("pipe2()"))?;
    let made = op(format_args!("clone3(CLONE_NEWUSER)"), || clone3(CloneFlags::CLONE_NEWUSER.bits() as u64));
    let child = match made.map_err(explain)? {
        Side::Child => {
            // Until the parent has what it wants, or is gone.
            drop(writer);
            let _ = nix::unistd::read(&reader, &mut [0]);
            process::leave(0);
        }
        Side::Parent(child, _) => child,
    };
    let path = format!("/proc/{child}/ns/user");
    let namespace = maps.write(child).and_then(|()| File::open(&path).call(format_args!("open({path:?})")));
    drop(writer);
    waitpid(child, None).call(format_args!("waitpid({child})"))?;
    namespace.map(OwnedFd::from)
}
