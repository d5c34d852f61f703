//! The one place where COMMAND is executed, and where its failure is explained.

use super::DEFAULT_PATH;
use crate::error::{Error, NOT_FOUND, NOT_RUNNABLE};
use crate::sys::{c_string, process};
use crate::trace;
use nix::errno::Errno;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, PermissionsExt};
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
    let file = File::open(path).ok()?;
    match errno {
        Errno::ENOENT => missing_interpreter(&file),
        Errno::ENOEXEC => Some(wrong_format(&head(&file)?)),
        Errno::EACCES => denied(&metadata, &file),
        Errno::ETXTBSY => Some("it is open for writing".into()),
        _ => None,
    }
}

/// The beginning of a file that says what kind it is, as much as the kernel looks at (`BINPRM_BUF_SIZE`).
fn head(file: &File) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    file.take(256).read_to_end(&mut head).ok()?;
    Some(head)
}

fn missing_interpreter(file: &File) -> Option<String> {
    if let Some(script) = shebang(&head(file)?) {
        let cr = if script.as_bytes().ends_with(b"\r") { ", and the #! line ends with a carriage return" } else { "" };
        return Some(format!("its interpreter {script:?} is missing here{cr}"));
    }
    elf_interpreter(file)
        .map(|loader| format!("its loader {loader:?} is missing here: it was made for another C library"))
}

fn denied(metadata: &Metadata, file: &File) -> Option<String> {
    if metadata.permissions().mode() & 0o111 == 0 {
        return Some("it has no execute permission".into());
    }
    if let Some(script) = shebang(&head(file)?) {
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
pub fn interpreter(file: &File) -> Option<OsString> {
    shebang(&head(file)?).or_else(|| elf_interpreter(file))
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
fn elf_interpreter(file: &File) -> Option<OsString> {
    const PT_INTERP: u64 = 3;
    let read = |at: u64, size: u64| -> Option<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(size).ok()?];
        file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    };
    let number = |bytes: &[u8], at: usize, size: usize| -> Option<u64> {
        Some(bytes.get(at..at + size)?.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    };
    let header = read(0, 52)?;
    if !header.starts_with(b"\x7fELF") || header[5] != 1 {
        return None;
    }
    let wide = header[4] == 2;
    let header = if wide { read(0, 64)? } else { header };
    let (table, size, count) = if wide {
        (number(&header, 32, 8)?, number(&header, 54, 2)?, number(&header, 56, 2)?)
    } else {
        (number(&header, 28, 4)?, number(&header, 42, 2)?, number(&header, 44, 2)?)
    };
    // The kernel takes no larger table and no longer name.
    let table = read(table, Some(size * count).filter(|bytes| *bytes <= 1 << 16)?)?;
    let mut entries = table.chunks_exact(usize::try_from(size).ok().filter(|size| *size > 0)?);
    let entry = entries.find(|entry| number(entry, 0, 4) == Some(PT_INTERP))?;
    let (offset, length) = if wide {
        (number(entry, 8, 8)?, number(entry, 32, 8)?)
    } else {
        (number(entry, 4, 4)?, number(entry, 16, 4)?)
    };
    let text = read(offset, Some(length).filter(|length| *length <= libc::PATH_MAX as u64)?)?;
    Some(OsString::from_vec(text.split(|&b| b == 0).next()?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

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
        let file = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            file.seek(std::io::SeekFrom::Start(0)).unwrap();
            file
        };
        assert!(missing_interpreter(&file(b"#!/bin/sh\r\n")).unwrap().contains("carriage return"));
        assert_eq!(wrong_format(b"!/usr/bin/env x\n"), "it is text without a #! line");
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(elf_machine(&own).as_deref(), Some(std::env::consts::ARCH));
        assert_eq!(elf_interpreter(&file(b"\x7fELF\x02\x01garbage")), None);
        let mut far = vec![0; 1 << 20];
        far[..6].copy_from_slice(b"\x7fELF\x02\x01");
        far[32..40].copy_from_slice(&(1u64 << 19).to_le_bytes());
        far[54..58].copy_from_slice(&[56, 0, 2, 0]);
        let entry = (1 << 19) + 56;
        far[entry] = 3;
        far[entry + 8..entry + 16].copy_from_slice(&1_000_000u64.to_le_bytes());
        far[entry + 32] = 8;
        far[1_000_000..1_000_008].copy_from_slice(b"/lib/ld\0");
        assert_eq!(elf_interpreter(&file(&far)), Some("/lib/ld".into()));
    }
}
