//! Descriptors: passed to another process, and closed where they must not be held.

use super::check;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Sends one byte and descriptors over a Unix socket (unix(7), SCM_RIGHTS). Never raises SIGPIPE.
pub fn send(socket: impl AsFd, byte: u8, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let data = [IoSlice::new(std::slice::from_ref(&byte))];
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &data, control, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

/// Takes what [`send`] sent, without waiting: the byte, or `None` if the other side is closed, and at most two descriptors,
/// closed on exec. Error EAGAIN: nothing is there yet.
pub fn receive(socket: impl AsFd) -> Result<(Option<u8>, Vec<OwnedFd>), Errno> {
    let mut byte = [0u8; 1];
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let mut data = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut data, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for us.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let length = message.bytes;
    Ok(((length > 0).then_some(byte[0]), descriptors))
}

/// Closes all descriptors from `first` on but `kept` (close_range(2), Linux 5.9).
///
/// Only for a process that from here on uses nothing else: other owners of descriptors in it hold numbers of nothing.
pub fn close_all_but(first: RawFd, kept: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut kept: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).filter(|fd| *fd >= first).collect();
    kept.sort_unstable();
    let mut from = first;
    for fd in kept {
        if from < fd {
            close_range(from, fd as u32 - 1)?;
        }
        from = fd + 1;
    }
    close_range(from, u32::MAX)
}

fn close_range(first: RawFd, last: u32) -> Result<(), Errno> {
    // SAFETY: no pointers. Who calls `close_all_but` has no use for the descriptors that are closed.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::fs::File;
    use std::io::Read;

    #[test]
    fn descriptors_arrive_with_their_byte_and_the_end_is_told() {
        let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
        let (here, there) = socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
        assert_eq!(receive(&here).unwrap_err(), Errno::EAGAIN);
        let (zero, null) = (File::open("/dev/zero").unwrap(), File::open("/dev/null").unwrap());
        send(&there, b'x', &[zero.as_fd(), null.as_fd()]).unwrap();
        send(&there, b'y', &[]).unwrap();
        let (byte, got) = receive(&here).unwrap();
        assert_eq!((byte, got.len()), (Some(b'x'), 2));
        let lengths = got.into_iter().map(|fd| File::from(fd).read(&mut [1; 3]).unwrap());
        assert_eq!(lengths.collect::<Vec<_>>(), [3, 0]);
        assert_eq!(receive(&here).unwrap().0, Some(b'y'));
        drop(there);
        assert_eq!(receive(&here).unwrap().0, None);
        assert_eq!(send(&here, b'z', &[]), Err(Errno::EPIPE));
    }
}
