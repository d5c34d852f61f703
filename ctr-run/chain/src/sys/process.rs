//! Processes: clone3(2), pidfds, parent-death signals, capabilities, descriptors, and how a program of ours begins.

use super::check;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// SIGPIPE's handler as the caller left it.
static SIGPIPE: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);
/// Bits 0 to 2: the standard descriptors that the caller left closed.
static CLOSED: AtomicU32 = AtomicU32::new(0);

/// What a program of ours needs before all else: /dev/null where the caller left a standard descriptor closed, so that no file
/// is ever taken for one, and EPIPE instead of SIGPIPE. [`restore_what_the_caller_left`] undoes it.
pub fn begin() {
    // SAFETY: plain system calls on valid, local memory, with no other thread. A descriptor that was closed belongs to nobody.
    unsafe {
        for fd in 0..3 {
            if libc::fcntl(fd, libc::F_GETFD) < 0 && libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) == fd {
                CLOSED.fetch_or(1 << fd, Relaxed);
            }
        }
        SIGPIPE.store(libc::signal(libc::SIGPIPE, libc::SIG_IGN), Relaxed);
    }
}

/// The strings of an array as `main` gets it.
///
/// # Safety
///
/// `array` is null, or ends with a null pointer and holds C strings until then, which nothing changes meanwhile.
pub unsafe fn strings(mut array: *const *const libc::c_char) -> Vec<CString> {
    let mut strings = Vec::new();
    // SAFETY: as this function asks.
    unsafe {
        while !array.is_null() && !(*array).is_null() {
            strings.push(CStr::from_ptr(*array).to_owned());
            array = array.add(1);
        }
    }
    strings
}

/// Gives SIGPIPE and the standard descriptors back as the caller left them. For just before execve.
pub fn restore_what_the_caller_left() {
    // SAFETY: plain system calls; the handler is SIG_DFL or SIG_IGN, as it was at the start of this process.
    unsafe {
        libc::signal(libc::SIGPIPE, SIGPIPE.load(Relaxed));
        for fd in (0..3).filter(|fd| CLOSED.load(Relaxed) & (1 << fd) != 0) {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
}

/// Which side of [`clone3`] this is.
pub enum Side {
    /// The new process.
    Child,
    /// The old one: the child's number and its descriptor.
    Parent(Pid, OwnedFd),
}

/// CLONE_INTO_CGROUP (Linux 5.7): the new process starts in a cgroup of the unified hierarchy.
pub const INTO_CGROUP: u64 = 0x2_0000_0000;

/// A new process that goes on here, as fork(2) makes it, in new namespaces if `flags` has `CLONE_NEW…`; its end raises
/// SIGCHLD. Linux 5.3. Only for single-threaded processes: nothing is done for locks that another thread holds.
pub fn clone3(flags: u64) -> Result<Side, Errno> {
    clone3_into(flags, None)
}

/// As [`clone3`]; the new process starts in the unified hierarchy's cgroup whose directory `group` is (Linux 5.7).
pub fn clone3_into(flags: u64, group: Option<&OwnedFd>) -> Result<Side, Errno> {
    let mut pidfd: RawFd = -1;
    let mut arguments = [0u64; 11];
    arguments[0] = flags | libc::CLONE_PIDFD as u64;
    arguments[1] = &raw mut pidfd as u64;
    arguments[4] = libc::SIGCHLD as u64;
    if let Some(group) = group {
        arguments[0] |= INTO_CGROUP;
        arguments[10] = group.as_raw_fd() as u64;
    }
    // SAFETY: `arguments` is a `struct clone_args` of its third size (88 bytes); without CLONE_VM the child has its own
    // copy of this single-threaded process. The kernel writes the descriptor to `pidfd`, which outlives the call.
    let mut pid = check(unsafe { libc::syscall(libc::SYS_clone3, &arguments, size_of_val(&arguments)) });
    // Seccomp filters that cannot look into clone3's arguments answer so, in order that clone(2) is used.
    if pid == Err(Errno::ENOSYS) && flags & !0xffff_ff00 == 0 && group.is_none() {
        let flags = arguments[0] | libc::SIGCHLD as u64;
        // SAFETY: as above. The arguments are flags, stack, and where the kernel writes the descriptor; the last two, of
        // which the order differs between architectures, are not used.
        pid = check(unsafe { libc::syscall(libc::SYS_clone, flags, 0u64, &raw mut pidfd, 0u64, 0u64) });
    }
    let pid = pid?;
    if pid == 0 {
        return Ok(Side::Child);
    }
    // SAFETY: the kernel has just made this descriptor for us (CLONE_PIDFD).
    Ok(Side::Parent(Pid::from_raw(pid as i32), unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Ends this process at once, without what a program does at its end. For a copy of a process, whose end is not the
/// program's.
pub fn leave(status: u8) -> ! {
    // SAFETY: takes a number and does not return.
    unsafe { libc::_exit(status.into()) }
}

/// A descriptor for a process (Linux 5.3).
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The number by which /proc shows the process that `pidfd` is: that of the PID namespace which /proc was mounted in, which
/// may be an outer one. `None` if it does not show it.
pub fn number_in_proc(pidfd: impl AsFd) -> Option<Pid> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd())).ok()?;
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
    (number > 0).then(|| Pid::from_raw(number))
}

/// The number by which /proc shows this process; its own if there is no /proc.
pub fn own_number_in_proc() -> Pid {
    let link = std::fs::read_link("/proc/self").ok();
    let number = link.and_then(|link| link.to_str()?.parse().ok());
    number.map_or_else(nix::unistd::getpid, Pid::from_raw)
}

/// Sends `signal` (a raw number, so that real-time signals pass) to the process that `pidfd` is.
pub fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> Result<(), Errno> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: no information is passed (null).
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<u8>(), 0) })?;
    Ok(())
}

/// How a signal's disposition stands, to be put back.
pub struct Disposition(Signal, libc::sigaction);

/// Sets `signal` to its default action; gives what it was.
pub fn default_action(signal: Signal) -> Disposition {
    // SAFETY: both structures are local and valid; SIG_DFL with no flags is a valid action.
    unsafe {
        let mut new: libc::sigaction = std::mem::zeroed();
        new.sa_sigaction = libc::SIG_DFL;
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal as i32, &new, &mut old);
        Disposition(signal, old)
    }
}

impl Disposition {
    /// Puts it back.
    pub fn restore(&self) {
        // SAFETY: the action was read from the kernel for this same signal.
        unsafe { libc::sigaction(self.0 as i32, &self.1, std::ptr::null_mut()) };
    }
}

/// All signals, real-time ones included, but those that tell of a fault of our own or cannot be blocked.
pub fn forwardable() -> SigSet {
    let mut set = SigSet::all();
    for fault in [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGTRAP,
        Signal::SIGABRT,
        Signal::SIGSYS,
    ] {
        set.remove(fault);
    }
    set
}

/// Waits for a signal of `set` (blocked by the caller); gives its number and `si_code` (`SI_USER`, `SI_KERNEL` …). EAGAIN
/// when none has come for `limit`.
pub fn sigwait(set: &SigSet, limit: Option<Duration>) -> Result<(i32, i32), Errno> {
    let limit = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs() as libc::time_t,
        tv_nsec: limit.subsec_nanos() as libc::c_long,
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), |limit| limit as *const libc::timespec);
    // SAFETY: all structures are valid and outlive the call; a null limit means none.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let signal = check(libc::sigtimedwait(set.as_ref(), &mut info, limit).into())?;
        Ok((signal as i32, info.si_code))
    }
}

/// Closes all descriptors from `first` on when COMMAND is executed (close_range(2) with CLOSE_RANGE_CLOEXEC, Linux 5.11).
pub fn close_on_exec_from(first: RawFd) -> Result<(), Errno> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: no pointers; nothing is closed now, so no descriptor in use is invalidated.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// The flags (FD_CLOEXEC) of the descriptor with number `fd`, which need not be ours (fcntl(2), F_GETFD).
pub fn descriptor_flags(fd: RawFd) -> Result<i32, Errno> {
    // SAFETY: no pointers; a number that is no descriptor gives EBADF.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) }.into()).map(|flags| flags as i32)
}

/// Sets the flags of the descriptor with number `fd` (fcntl(2), F_SETFD).
pub fn set_descriptor_flags(fd: RawFd, flags: i32) -> Result<(), Errno> {
    // SAFETY: no pointers; nothing is closed now.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, flags) }.into()).map(drop)
}

/// Sets the NIS domain name of this UTS namespace (setdomainname(2)).
pub fn setdomainname(name: impl AsRef<OsStr>) -> Result<(), Errno> {
    let name = name.as_ref().as_bytes();
    // SAFETY: the kernel reads `name.len()` bytes of `name`, which outlives the call.
    check(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// Lets go of the pages of this program's code that have been used so far; those that are used again come back from its file.
/// For a process that has done most of its work and now waits.
pub fn let_go_of_code() {
    unsafe extern "C" {
        // The linker's: where the program begins, and where its code ends.
        static __executable_start: u8;
        static etext: u8;
    }
    const PAGE: usize = 4096;
    let start = (&raw const __executable_start as usize).next_multiple_of(PAGE);
    let end = &raw const etext as usize & !(PAGE - 1);
    // SAFETY: headers, constants and code lie there, mapped from the file and never written to: what is dropped is read again.
    // A refusal (larger pages, which `start` may not be a multiple of) costs nothing but the memory.
    unsafe { libc::madvise(start as *mut libc::c_void, end.saturating_sub(start), libc::MADV_DONTNEED) };
}

/// Replaces this process. Returns only on failure.
pub fn execve(path: &CStr, argv: &[CString], env: Option<&[CString]>) -> Errno {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    };
    let argv = pointers(argv);
    let env = env.map(pointers);
    unsafe extern "C" {
        static environ: *const *const libc::c_char;
    }
    // SAFETY: `path` is a C string; both arrays end with a null pointer and their strings outlive the call. `environ` is
    // the C library's, which no code of this single-threaded process changes.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ref().map_or(environ, |env| env.as_ptr())) };
    Errno::last()
}

/// The environment as it came, byte by byte: entries without `=` and duplicates included.
pub fn environment() -> Vec<CString> {
    unsafe extern "C" {
        static environ: *const *const libc::c_char;
    }
    // SAFETY: `environ` is such an array; this single-threaded process does not change it.
    unsafe { strings(environ) }
}

/// prctl(2) with up to four numbers; for options whose arguments are no pointers.
pub fn prctl(option: i32, arguments: [u64; 4]) -> Result<i64, Errno> {
    let [a, b, c, d] = arguments;
    // SAFETY: callers pass options that take numbers only (see the documentation of this function).
    check(unsafe { libc::prctl(option, a, b, c, d) }.into())
}

/// The signal that this process gets when its parent ends (PR_GET_PDEATHSIG); 0 for none.
pub fn parent_death_signal() -> Result<i32, Errno> {
    let mut signal: i32 = 0;
    // SAFETY: the kernel writes an int to `signal`, which outlives the call.
    check(unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) }.into())?;
    Ok(signal)
}

/// Capability sets as bit masks: effective, permitted, inheritable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// In force now.
    pub effective: u64,
    /// May be put in force.
    pub permitted: u64,
    /// Kept over execve, if the file says so too.
    pub inheritable: u64,
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

const CAP_VERSION_3: u32 = 0x2008_0522;

/// This thread's capability sets (capget(2)).
pub fn capget() -> Result<Capabilities, Errno> {
    let mut header = CapHeader { version: CAP_VERSION_3, pid: 0 };
    let mut data = [[0u32; 3]; 2];
    // SAFETY: version 3 uses two triples, which `data` is; both outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let join = |i: usize| u64::from(data[0][i]) | u64::from(data[1][i]) << 32;
    Ok(Capabilities { effective: join(0), permitted: join(1), inheritable: join(2) })
}

/// Sets this thread's capability sets (capset(2)).
pub fn capset(sets: Capabilities) -> Result<(), Errno> {
    let header = CapHeader { version: CAP_VERSION_3, pid: 0 };
    let half = |shift: u32| [sets.effective, sets.permitted, sets.inheritable].map(|set| (set >> shift) as u32);
    let data = [half(0), half(32)];
    // SAFETY: version 3 uses two triples, which `data` is; both outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    Ok(())
}

/// Joins a new, anonymous session keyring, so that the caller's is not shared (keyctl(2)).
pub fn new_session_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: u64 = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) })?;
    Ok(())
}

/// Installs a seccomp filter of BPF instructions (seccomp(2)), each as its eight bytes.
pub fn seccomp_filter(program: &[[u8; 8]], flags: u64) -> Result<(), Errno> {
    const SECCOMP_SET_MODE_FILTER: u64 = 1;
    #[repr(C)]
    struct Program {
        length: u16,
        instructions: *const u8,
    }
    let length = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let instructions: Vec<u64> = program.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect();
    let program = Program { length, instructions: instructions.as_ptr().cast() };
    // SAFETY: `program` names `length` instructions of eight bytes, aligned to eight; both outlive the call, and the
    // kernel copies and checks them.
    check(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program) })?;
    Ok(())
}

/// Brings the loopback device of this network namespace up.
pub fn loopback_up() -> Result<(), Errno> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: a zeroed `ifreq` is valid; the name fits with its final zero; the kernel writes the flags into it.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request).into())?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as i16;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request).into())?;
    }
    Ok(())
}

/// The user namespace that owns the namespace `fd` (NS_GET_USERNS, Linux 4.9).
pub fn owning_user_namespace(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    // SAFETY: this request takes no argument and gives a new descriptor.
    let owner = check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), NS_GET_USERNS as _) }.into())?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(owner as i32) })
}
