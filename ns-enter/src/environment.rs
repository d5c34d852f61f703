//! COMMAND's environment: the caller's, byte by byte, with what was asked for.

use chain::{Error, Result, ResultExt};
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// More than the kernel takes for a new program.
const MAX_BYTES: u64 = 8 << 20;

/// What to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Start from nothing.
    pub clear: bool,
    /// Entries of a document, before all others.
    pub base: Vec<OsString>,
    /// Files of entries, before the entries.
    pub files: Vec<PathBuf>,
    /// `NAME=VALUE`, or `NAME` for the caller's value.
    pub entries: Vec<OsString>,
}

impl Changes {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        !self.clear && self.base.is_empty() && self.files.is_empty() && self.entries.is_empty()
    }

    /// The environment that `caller`'s becomes. The last entry of a name wins; `home` is HOME unless an entry says.
    ///
    /// Errors: a file that cannot be read; an entry without a name or with a zero byte.
    pub fn apply(&self, caller: Vec<CString>, home: Option<&OsStr>) -> Result<Vec<CString>> {
        let mut result = if self.clear { Vec::new() } else { caller.clone() };
        let mut entries: Vec<Vec<u8>> = self.base.iter().map(|entry| entry.as_bytes().to_vec()).collect();
        for file in &self.files {
            entries.extend(read(file)?);
        }
        entries.extend(self.entries.iter().map(|entry| entry.as_bytes().to_vec()));
        let has_home = entries.iter().any(|entry| entry == b"HOME" || entry.starts_with(b"HOME="));
        if let Some(home) = home.filter(|_| !has_home) {
            put(&mut result, [b"HOME=", home.as_bytes()].concat())?;
        }
        for entry in entries {
            match entry.iter().position(|&b| b == b'=') {
                Some(0) => {
                    return Err(Error::usage(format_args!("environment {:?}: no name", OsStr::from_bytes(&entry))));
                }
                Some(_) => put(&mut result, entry)?,
                None if entry.is_empty() => return Err(Error::usage("environment \"\": no name")),
                None => match caller.iter().rev().find(|other| name_of(other.as_bytes()) == entry) {
                    Some(value) => put(&mut result, value.as_bytes().to_vec())?,
                    None => result.retain(|other| name_of(other.as_bytes()) != entry),
                },
            }
        }
        Ok(result)
    }
}

fn put(entries: &mut Vec<CString>, entry: Vec<u8>) -> Result<()> {
    let shown = OsString::from_vec(entry.clone());
    let entry = CString::new(entry).map_err(|_| Error::usage(format_args!("environment {shown:?}: a zero byte")))?;
    entries.retain(|other| name_of(other.as_bytes()) != name_of(entry.as_bytes()));
    entries.push(entry);
    Ok(())
}

fn name_of(entry: &[u8]) -> &[u8] {
    entry.split(|&b| b == b'=').next().unwrap_or_default()
}

/// The entries of a file: one a line, blank lines and lines that begin with `#` left out.
fn read(path: &PathBuf) -> Result<Vec<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .call(format_args!("read({path:?})"))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::new(format_args!("{path:?}: more than {MAX_BYTES} bytes of environment")));
    }
    let line = |line: &[u8]| {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start().to_vec();
        (!line.is_empty() && line[0] != b'#').then_some(line)
    };
    Ok(bytes.split(|&b| b == b'\n').filter_map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(entries: &[CString]) -> Vec<&str> {
        entries.iter().map(|entry| entry.to_str().unwrap()).collect()
    }

    fn apply(clear: bool, entries: &[&str]) -> Result<Vec<CString>> {
        let caller = [c"A=1", c"odd", c"B=2", c"A=3", c"HOME=/caller"].map(CString::from).to_vec();
        let entries = entries.iter().map(OsString::from).collect();
        Changes { clear, entries, ..Changes::default() }.apply(caller, Some(OsStr::new("/home")))
    }

    #[test]
    fn odd_entries_stay_and_the_last_of_a_name_wins() {
        let result = apply(false, &["A=4", "A=5\nx", "C="]).unwrap();
        assert_eq!(strings(&result), ["odd", "B=2", "HOME=/home", "A=5\nx", "C="]);
    }

    #[test]
    fn a_name_alone_takes_the_callers_value() {
        let result = apply(true, &["A", "nowhere", "HOME=/mine"]).unwrap();
        assert_eq!(strings(&result), ["A=3", "HOME=/mine"]);
        for entry in ["", "=x", "A=\0"] {
            assert!(apply(true, &[entry]).is_err(), "{entry:?}");
        }
    }

    #[test]
    fn files_have_comments_and_any_line_ends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "# comment\r\n\nX=1\r\n  Y=a b \nA").unwrap();
        let changes =
            Changes { clear: true, files: vec![file.path().into()], entries: vec!["X=2".into()], ..Changes::default() };
        let result = changes.apply(vec![CString::from(c"A=1")], None).unwrap();
        assert_eq!(strings(&result), ["Y=a b ", "A=1", "X=2"]);
    }
}
