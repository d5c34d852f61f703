//! bpf(2): programs that decide about the devices of a cgroup of the unified hierarchy (Linux 4.15; replacing 5.6).

use super::check;
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const PROG_DETACH: u32 = 9;
const PROG_GET_FD_BY_ID: u32 = 13;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;

const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Other programs, of the groups above and of others, decide too: a device is open if all allow it.
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;
/// As many programs as the kernel lets one group have.
const MAX_PROGRAMS: usize = 64;
const NAME: usize = 16;

/// Loads a program for devices, of eight-byte instructions. `name`: at most 15 letters, digits and underscores.
///
/// Errors: EPERM without CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN, in the initial user namespace; EINVAL or EACCES where
/// the kernel's verifier does not take the program.
pub fn load_device_program(instructions: &[u64], name: &str) -> Result<OwnedFd, Errno> {
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; NAME],
        interface: u32,
        attach_type: u32,
    }
    let license = c"MIT";
    let mut load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: u32::try_from(instructions.len()).map_err(|_| Errno::E2BIG)?,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        attach_type: ATTACH_CGROUP_DEVICE,
        ..Load::default()
    };
    let length = name.len().min(NAME - 1);
    load.name[..length].copy_from_slice(&name.as_bytes()[..length]);
    // SAFETY: `load` begins as `union bpf_attr` does for this command; what it points to outlives the call.
    unsafe { descriptor(PROG_LOAD, &mut load) }
}

/// Puts `program` in force for the group whose directory is `group`: in the place of `old`, at once, or besides what is there.
pub fn attach_device_program(group: impl AsFd, program: &OwnedFd, old: Option<&OwnedFd>) -> Result<(), Errno> {
    let mut attach = Attach {
        group: group.as_fd().as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: ATTACH_CGROUP_DEVICE,
        flags: if old.is_some() { ALLOW_MULTI | REPLACE } else { ALLOW_MULTI },
        old: old.map_or(0, |old| old.as_raw_fd() as u32),
    };
    // SAFETY: as `union bpf_attr` for this command; no pointers.
    unsafe { call(PROG_ATTACH, &mut attach) }.map(drop)
}

/// Takes `program` away from the group.
pub fn detach_device_program(group: impl AsFd, program: &OwnedFd) -> Result<(), Errno> {
    let (group, program) = (group.as_fd().as_raw_fd() as u32, program.as_raw_fd() as u32);
    let mut attach = Attach { group, program, kind: ATTACH_CGROUP_DEVICE, flags: 0, old: 0 };
    // SAFETY: as above.
    unsafe { call(PROG_DETACH, &mut attach) }.map(drop)
}

/// The programs called `name` that are attached to the group itself.
pub fn device_programs(group: impl AsFd, name: &str) -> Result<Vec<OwnedFd>, Errno> {
    #[repr(C)]
    struct Query {
        group: u32,
        kind: u32,
        flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
    }
    let mut ids = [0u32; MAX_PROGRAMS];
    let mut query = Query {
        group: group.as_fd().as_raw_fd() as u32,
        kind: ATTACH_CGROUP_DEVICE,
        flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: MAX_PROGRAMS as u32,
    };
    // SAFETY: as `union bpf_attr` for this command; the kernel writes at most `count` numbers to `ids`.
    unsafe { call(PROG_QUERY, &mut query) }?;
    let mut programs = Vec::new();
    for id in ids.iter().take(query.count as usize) {
        let mut of = [*id, 0, 0];
        // SAFETY: the number and two that are 0, as `union bpf_attr` for this command.
        match unsafe { descriptor(PROG_GET_FD_BY_ID, &mut of) } {
            Ok(program) if name_of(&program)?.trim_end_matches('\0') == name => programs.push(program),
            // Gone meanwhile.
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(programs)
}

#[repr(C)]
struct Attach {
    group: u32,
    program: u32,
    kind: u32,
    flags: u32,
    old: u32,
}

/// A program's name, with zeros after it.
fn name_of(program: &OwnedFd) -> Result<String, Errno> {
    /// Where `struct bpf_prog_info` has it.
    const AT: usize = 64;
    #[repr(C)]
    struct About {
        program: u32,
        length: u32,
        info: u64,
    }
    let mut info = [0u64; (AT + NAME) / 8];
    let length = size_of_val(&info) as u32;
    let mut about = About { program: program.as_raw_fd() as u32, length, info: info.as_mut_ptr() as u64 };
    // SAFETY: as `union bpf_attr` for this command; the kernel writes at most `length` bytes to `info`.
    unsafe { call(OBJ_GET_INFO_BY_FD, &mut about) }?;
    let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_ne_bytes()).skip(AT).collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// bpf(2) with `attributes`.
///
/// # Safety
///
/// They begin as `union bpf_attr` does for `command`, and what they point to may be read and written as it says.
unsafe fn call<T>(command: u32, attributes: &mut T) -> Result<libc::c_long, Errno> {
    // SAFETY: as this function asks; the size is that of `attributes`.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) })
}

/// As [`call`], for commands that give a descriptor.
///
/// # Safety
///
/// As for [`call`].
unsafe fn descriptor<T>(command: u32, attributes: &mut T) -> Result<OwnedFd, Errno> {
    // SAFETY: as this function asks; the kernel has just made the descriptor (close-on-exec) for us.
    unsafe { call(command, attributes).map(|fd| OwnedFd::from_raw_fd(fd as i32)) }
}
