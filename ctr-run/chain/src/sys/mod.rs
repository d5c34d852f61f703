//! System calls that nix does not wrap, each with its name, arguments and kernel version. All `unsafe` code of the
//! project is in this folder.
//!
//! The wrappers give the kernel's errno; who calls them names the call with its arguments (see [`crate::trace::op`]).

pub mod bpf;
pub mod descriptor;
pub mod mount;
pub mod process;
pub mod terminal;

use nix::errno::Errno;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;

/// A raw system call's result as a number or errno.
fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

/// The C string of `text`, or EINVAL if it has a zero byte.
pub fn c_string(text: impl AsRef<OsStr>) -> Result<CString, Errno> {
    CString::new(text.as_ref().as_bytes()).map_err(|_| Errno::EINVAL)
}
