//! The one place where COMMAND is executed, and where its failure is explained.

use super::DEFAULT_PATH;
use crate::error::{Error, NOT_FOUND, NOT_RUNNABLE};
use crate::sys::{c_string, process};
use crate::trace;
use nix::errno::Errno;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Becomes `command`; gives why it could not.
pub fn become_command(command: &[OsString], environment: Option<&[CString]>) -> Error {
    let name = &command[0];
    let argv: Result<Vec<CString>, Errno> = command.iter().map(c_string).collect();
    let argv = match argv {
        Ok(argv) => argv,
        Err(errno) => return Error::call(format_args!("execve({name:?})"), errno),
    };
    process::restore_what_the_caller_left();
    let mut denied = None;
    for candidate in candidates(name, &search_path(environment)) {
        let Ok(path) = c_string(&candidate) else { continue };
        trace::note(format_args!("execve({candidate:?})"));
        match process::execve(&path, &argv, environment) {
            Errno::ENOENT | Errno::ENOTDIR if candidate.symlink_metadata().is_err() => {}
            // As shells do: what may not be run is not what was meant, if the same name comes later in PATH.
            Errno::EACCES => denied = denied.or(Some((candidate, Errno::EACCES))),
            errno => return refused(&candidate, errno),
        }
    }
    match denied {
        Some((candidate, errno)) => refused(&candidate, errno),
        None => not_found(name, environment),
    }
}

/// See [`super::candidates`].
pub fn candidates(name: &OsString, path: &[u8]) -> Vec<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return vec![PathBuf::from(name)];
    }
    if name.is_empty() {
        return Vec::new();
    }
    let place = |dir: &[u8]| Path::new(OsStr::from_bytes(if dir.is_empty() { b"." } else { dir })).join(name);
    path.split(|&b| b == b':').map(place).collect()
}

/// The last PATH of the environment that COMMAND will have.
fn search_path(environment: Option<&[CString]>) -> Vec<u8> {
    let own;
    let entries = match environment {
        Some(entries) => entries,
        None => {
            own = process::environment();
            &own
        }
    };
    let last = entries.iter().rev().find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="));
    last.unwrap_or(DEFAULT_PATH.as_bytes()).to_vec()
}

fn not_found(name: &OsString, environment: Option<&[CString]>) -> Error {
    let error = Error::call(format_args!("execve({name:?})"), Errno::ENOENT).status(NOT_FOUND);
    if name.as_bytes().contains(&b'/') {
        return error;
    }
    let path = OsString::from_vec(search_path(environment));
    error.hint(format_args!("not in PATH {path:?}"))
}

fn refused(path: &Path, errno: Errno) -> Error {
    let error = Error::call(format_args!("execve({path:?})"), errno).status(NOT_RUNNABLE);
    match explain(path, errno) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// What the file itself says about why it does not run.
fn explain(path: &Path, errno: Errno) -> Option<String> {
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(_) if path.symlink_metadata().is_ok() => {
            return Some("it is a symbolic link to something that is missing".into());
        }
        Err(_) => return None,
    };
    if metadata.is_dir() {
        return Some("it is a directory".into());
    }
    if !metadata.is_file() {
        return Some("it is not a regular file".into());
    }
    let mut head = Vec::new();
    File::open(path).ok()?.take(1 << 16).read_to_end(&mut head).ok()?;
    match errno {
        Errno::ENOENT => missing_interpreter(&head),
        Errno::ENOEXEC => Some(wrong_format(&head)),
        Errno::EACCES => denied(path, &head),
        Errno::ETXTBSY => Some("it is open for writing".into()),
        _ => None,
    }
}

fn missing_interpreter(head: &[u8]) -> Option<String> {
    if let Some(script) = shebang(head) {
        let cr = if script.as_bytes().ends_with(b"\r") { ", and the #! line ends with a carriage return" } else { "" };
        return Some(format!("its interpreter {script:?} is missing here{cr}"));
    }
    elf_interpreter(head)
        .map(|loader| format!("its loader {loader:?} is missing here: it was made for another C library"))
}

fn denied(path: &Path, head: &[u8]) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = path.metadata().ok()?.permissions().mode();
    if mode & 0o111 == 0 {
        return Some("it has no execute permission".into());
    }
    if let Some(script) = shebang(head) {
        return Some(format!("its interpreter {script:?} may not be run"));
    }
    None
}

fn wrong_format(head: &[u8]) -> String {
    if head.is_empty() {
        return "the file is empty".into();
    }
    if let Some(machine) = elf_machine(head) {
        return format!("it is a program for {machine}, and this machine is {}", std::env::consts::ARCH);
    }
    if head.contains(&0) {
        return "it is neither a program of this machine nor a script".into();
    }
    "it is text without a #! line".into()
}

/// See [`super::interpreter`].
pub fn interpreter(head: &[u8]) -> Option<OsString> {
    shebang(head).or_else(|| elf_interpreter(head))
}

/// The interpreter of a `#!` line.
fn shebang(head: &[u8]) -> Option<OsString> {
    let line = head.strip_prefix(b"#!")?.split(|&b| b == b'\n').next()?;
    let word = line.trim_ascii_start().split(|&b| b == b' ' || b == b'\t').next()?;
    (!word.is_empty()).then(|| OsString::from_vec(word.to_vec()))
}

fn elf_machine(head: &[u8]) -> Option<String> {
    let header = head.strip_prefix(b"\x7fELF")?;
    let bytes = [*header.get(14)?, *header.get(15)?];
    let machine = if *header.get(1)? == 2 { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) };
    Some(match machine {
        3 => "x86 (32-bit)".into(),
        8 => "MIPS".into(),
        20 | 21 => "POWER".into(),
        22 => "s390x".into(),
        40 => "ARM (32-bit)".into(),
        62 => "x86_64".into(),
        183 => "aarch64".into(),
        243 => "RISC-V".into(),
        258 => "LoongArch".into(),
        other => format!("ELF machine {other}"),
    })
}

/// The loader that a little-endian ELF file asks for (PT_INTERP, elf(5)).
fn elf_interpreter(head: &[u8]) -> Option<OsString> {
    const PT_INTERP: u64 = 3;
    if !head.starts_with(b"\x7fELF") || *head.get(5)? != 1 {
        return None;
    }
    let wide = *head.get(4)? == 2;
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = head.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    };
    let (table, size, count) = if wide {
        (number(32, 8)?, number(54, 2)?, number(56, 2)?)
    } else {
        (number(28, 4)?, number(42, 2)?, number(44, 2)?)
    };
    for index in 0..count {
        let at = usize::try_from(table.checked_add(index * size)?).ok()?;
        if number(at, 4)? != PT_INTERP {
            continue;
        }
        let (offset, length) =
            if wide { (number(at + 8, 8)?, number(at + 32, 8)?) } else { (number(at + 4, 4)?, number(at + 16, 4)?) };
        let start = usize::try_from(offset).ok()?;
        let text = head.get(start..start.checked_add(usize::try_from(length).ok()?)?)?;
        let text = text.split(|&b| b == 0).next()?;
        return Some(OsString::from_vec(text.to_vec()));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_for_in_path_order() {
        assert_eq!(candidates(&"./a".into(), b"/bin"), [PathBuf::from("./a")]);
        assert_eq!(
            candidates(&"...test".into(), b"/bin::/x"),
            ["/bin/...test", "./...test", "/x/...test"].map(PathBuf::from)
        );
        assert!(candidates(&"".into(), b"/bin").is_empty());
    }

    #[test]
    fn the_last_path_wins() {
        let environment = [c"PATH=/a", c"X=1", c"PATH=/b"].map(CString::from);
        assert_eq!(search_path(Some(&environment)), b"/b");
        assert_eq!(search_path(Some(&[])), DEFAULT_PATH.as_bytes());
    }

    #[test]
    fn headers_tell_what_is_missing() {
        assert_eq!(shebang(b"#! /bin/foo -x\n"), Some("/bin/foo".into()));
        assert_eq!(shebang(b"#!\n"), None);
        assert!(missing_interpreter(b"#!/bin/sh\r\n").unwrap().contains("carriage return"));
        assert_eq!(wrong_format(b"!/usr/bin/env x\n"), "it is text without a #! line");
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(elf_machine(&own).as_deref(), Some(std::env::consts::ARCH));
        assert_eq!(elf_interpreter(b"\x7fELF\x02\x01garbage"), None);
    }
}
