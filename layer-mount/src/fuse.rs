//! fuse-overlayfs(1), for kernels whose overlay is not there or does not take the file system; chosen by hand.

use crate::layers::{Layers, real_path};
use crate::overlay::escaped;
use crate::target::Target;
use crate::writable::Writable;
use chain::link::candidates;
use chain::trace::note;
use chain::{Error, Result, ResultExt};
use nix::errno::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

const PROGRAM: &str = "fuse-overlayfs";
const DEVICE: &str = "/dev/fuse";
/// What separates options and layers, to be written after a backslash.
const SPECIAL: &[u8] = b":,\\";

/// Mounts the union at `at`. The program that serves it goes to the background, and ends when it is unmounted.
///
/// Errors: the program is missing or fails, with what it says.
pub fn mount(layers: &Layers, writable: Option<&Writable>, at: &Target) -> Result<()> {
    let point = at.real_path()?;
    let Some(memory) = writable.filter(|writable| writable.memory.is_some()) else {
        return serve(&options(layers, writable, None)?, &point);
    };
    // The program wants names, which the memory has only while it is mounted.
    let mount = memory.while_attached(at, || {
        serve(&options(layers, writable, Some(&point))?, &point)?;
        at.detach()
    })?;
    at.attach(mount)
}

fn serve(options: &OsStr, at: &Path) -> Result<()> {
    note(format_args!("{PROGRAM} -o {options:?} {at:?}"));
    let mut command = Command::new(PROGRAM);
    command.arg("-o").arg(options).arg(at).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = command.output().call(format_args!("{PROGRAM}({at:?})")).map_err(|error| match error.errno() {
        Some(Errno::ENOENT) => error.hint("install fuse-overlayfs, or leave --fuse out"),
        _ => error,
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let noise = |line: &&str| line.is_empty() || line.starts_with("unknown argument ignored");
    let said: Vec<&str> = said.lines().map(str::trim).filter(|line| !noise(line)).collect();
    let error = Error::new(format_args!("{PROGRAM}({at:?}): {}: {}", output.status, said.join(", ")));
    Err(match device() {
        Err(cause) => error.hint(cause),
        Ok(()) => error,
    })
}

/// Whether the program and its device are there.
pub fn check() -> Result<()> {
    device()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    match candidates(&PROGRAM.into(), path.as_bytes()).iter().any(|path| path.is_file()) {
        true => Ok(()),
        false => Err(Error::new(format_args!("{PROGRAM} is not in PATH")).hint("install it, or leave --fuse out")),
    }
}

fn device() -> Result<()> {
    File::options().read(true).write(true).open(DEVICE).map(drop).call(format_args!("open({DEVICE:?}, O_RDWR)"))
}

/// The program's options; `memory` is where the writable layer in memory is mounted.
fn options(layers: &Layers, writable: Option<&Writable>, memory: Option<&Path>) -> Result<OsString> {
    let mut text = OsString::from("lowerdir=");
    for (i, layer) in layers.all().iter().rev().enumerate() {
        text.push(if i == 0 { "" } else { ":" });
        text.push(escaped(real_path(layer)?.as_os_str(), SPECIAL));
    }
    let Some(writable) = writable else {
        text.push(",ro");
        return Ok(text);
    };
    let directories =
        [(",upperdir=", &writable.upper, &writable.upper_path), (",workdir=", &writable.work, &writable.work_path)];
    for (key, file, path) in directories {
        let path = memory.map_or_else(|| real_path(file), |memory| Ok(memory.join(path)))?;
        text.push(key);
        text.push(escaped(path.as_os_str(), SPECIAL));
    }
    Ok(text)
}
