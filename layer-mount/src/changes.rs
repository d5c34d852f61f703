//! What a writable layer changed, from overlay's own marks in it (Documentation/filesystems/overlayfs.rst): whiteouts as
//! devices 0:0 or as attributes, opaque directories.

use crate::request::Changes;
use chain::error::escape;
use chain::sys::mount::lgetxattr;
use chain::{Error, Outcome, Result, ResultExt};
use serde_json::{Value, json};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What happened to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing of that name was below.
    Added,
    /// Its content, or its mode, owner or type.
    Modified,
    /// It is gone.
    Deleted,
    /// A directory that shows nothing of what was below it.
    Opaque,
    /// Added or modified: without the layers below it cannot be told.
    Written,
}

impl Kind {
    fn letter(self) -> char {
        match self {
            Kind::Added => 'A',
            Kind::Modified => 'M',
            Kind::Deleted => 'D',
            Kind::Opaque => 'O',
            Kind::Written => 'W',
        }
    }

    fn word(self) -> &'static str {
        match self {
            Kind::Added => "added",
            Kind::Modified => "modified",
            Kind::Deleted => "deleted",
            Kind::Opaque => "opaque",
            Kind::Written => "written",
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Change {
    kind: Kind,
    /// Inside the layer, with a slash before it.
    path: PathBuf,
}

/// Lists the changes of `request` as text (a line each: a letter and the name) or JSON.
pub fn list(request: &Changes) -> Result<Outcome> {
    let (layers, _) = crate::layers_of(request.from.as_deref(), &request.lower)?;
    let known = request.from.is_some() || !request.lower.is_empty();
    let below = known.then(|| layers.into_iter().rev().collect());
    let mut changes = compare(&request.upper, below)?;
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Outcome::Text(if request.json { to_json(&changes) } else { to_text(&changes) }))
}

fn to_text(changes: &[Change]) -> String {
    changes
        .iter()
        .map(|change| format!("{} {}\n", change.kind.letter(), escape(&change.path.to_string_lossy())))
        .collect()
}

fn to_json(changes: &[Change]) -> String {
    let values: Vec<Value> = changes
        .iter()
        .map(|change| {
            let bytes = change.path.as_os_str().as_bytes();
            let mut value = json!({"kind": change.kind.word(), "path": String::from_utf8_lossy(bytes)});
            // JSON has no other text than Unicode; the name itself is then in the bytes.
            if std::str::from_utf8(bytes).is_err() {
                value["bytes"] = bytes.into();
            }
            value
        })
        .collect();
    let mut text = serde_json::to_string_pretty(&values).unwrap_or_default();
    text.push('\n');
    text
}

/// One directory of the upper that is still to be looked at.
struct Directory {
    /// Inside the layer.
    path: PathBuf,
    /// The directories that it is merged with, topmost first; `None` if no layers are known.
    below: Option<Vec<PathBuf>>,
}

/// The changes in `upper` against the layers `below` (topmost first).
fn compare(upper: &Path, below: Option<Vec<PathBuf>>) -> Result<Vec<Change>> {
    for dir in std::iter::once(upper).chain(below.iter().flatten().map(PathBuf::as_path)) {
        if !fs::metadata(dir).call(format_args!("stat({dir:?})"))?.is_dir() {
            return Err(Error::call(format_args!("open({dir:?})"), nix::errno::Errno::ENOTDIR));
        }
    }
    let mut changes = Vec::new();
    let mut todo = vec![Directory { path: "/".into(), below }];
    while let Some(directory) = todo.pop() {
        let here = within(upper, &directory.path);
        for entry in fs::read_dir(&here).call(format_args!("open({here:?})"))? {
            let name = entry.call(format_args!("getdents({here:?})"))?.file_name();
            let entry = here.join(&name);
            let status = status(&entry)?.ok_or_else(|| {
                Error::call(format_args!("lstat({entry:?})"), nix::errno::Errno::ENOENT).hint("the layer is changing")
            })?;
            refuse_moved(&entry, &status)?;
            let path = directory.path.join(&name);
            let found = directory.below.as_ref().map(|below| look_up(below, &name)).transpose()?;
            let (kind, merged) = judge(&entry, &status, found)?;
            changes.extend(kind.map(|kind| Change { kind, path: path.clone() }));
            if status.is_dir() {
                todo.push(Directory { path, below: merged });
            }
        }
    }
    Ok(changes)
}

/// What happened to `entry` of the upper, given what was `found` below it (`None`: not known), and what it is merged with.
fn judge(entry: &Path, status: &Metadata, found: Option<Found>) -> Result<(Option<Kind>, Option<Vec<PathBuf>>)> {
    if is_whiteout(entry, status)? {
        return Ok((Some(Kind::Deleted), None));
    }
    let opaque = status.is_dir() && is_opaque(entry)?;
    let Some(found) = found else {
        let kind = match (opaque, status.is_dir()) {
            (true, _) => Some(Kind::Opaque),
            // Copied up by the kernel, so it was below.
            (false, false) if has(entry, "origin")? => Some(Kind::Modified),
            (false, true) if has(entry, "origin")? || has(entry, "impure")? => None,
            _ => Some(Kind::Written),
        };
        return Ok((kind, if opaque { Some(Vec::new()) } else { None }));
    };
    Ok(match found {
        Found::Nothing => (Some(Kind::Added), Some(Vec::new())),
        Found::Other => (Some(Kind::Modified), Some(Vec::new())),
        Found::Directories(_) if opaque => (Some(Kind::Opaque), Some(Vec::new())),
        Found::Directories(_) if !status.is_dir() => (Some(Kind::Modified), Some(Vec::new())),
        Found::Directories(dirs) => {
            // A directory is in the upper already when something in it is.
            let before = dirs.first().map(|top| fs::metadata(top).call(format_args!("stat({top:?})"))).transpose()?;
            let facts = |status: &Metadata| (status.mode(), status.uid(), status.gid());
            let changed = before.is_some_and(|before| facts(&before) != facts(status));
            (changed.then_some(Kind::Modified), Some(dirs))
        }
    })
}

/// What layers show under one name.
enum Found {
    Nothing,
    /// A file of any type but directory.
    Other,
    /// Directories that are merged, topmost first.
    Directories(Vec<PathBuf>),
}

fn look_up(below: &[PathBuf], name: &OsStr) -> Result<Found> {
    let mut dirs = Vec::new();
    for dir in below {
        let path = dir.join(name);
        let Some(status) = status(&path)? else { continue };
        if is_whiteout(&path, &status)? {
            break;
        }
        if !status.is_dir() {
            if dirs.is_empty() {
                return Ok(Found::Other);
            }
            break;
        }
        let opaque = is_opaque(&path)?;
        dirs.push(path);
        if opaque {
            break;
        }
    }
    Ok(if dirs.is_empty() { Found::Nothing } else { Found::Directories(dirs) })
}

fn status(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(status) => Ok(Some(status)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::call(format_args!("lstat({path:?})"), error)),
    }
}

fn is_whiteout(path: &Path, status: &Metadata) -> Result<bool> {
    let kind = status.file_type();
    Ok((kind.is_char_device() && status.rdev() == 0) || (kind.is_file() && status.len() == 0 && has(path, "whiteout")?))
}

/// Opaque is `y`; `x` only says that whiteouts inside are attributes.
fn is_opaque(path: &Path) -> Result<bool> {
    Ok(attribute(path, "opaque")?.is_some_and(|value| value == b"y"))
}

fn has(path: &Path, name: &str) -> Result<bool> {
    Ok(attribute(path, name)?.is_some())
}

/// Overlay's attribute `name`, of either kind.
fn attribute(path: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    for kind in ["trusted", "user"] {
        let name = OsString::from(format!("{kind}.overlay.{name}"));
        match lgetxattr(path, &name) {
            Ok(None) | Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::EPERM) => {}
            other => return other.call(format_args!("lgetxattr({path:?}, {name:?})")),
        }
    }
    Ok(None)
}

/// A layer whose content is elsewhere under another name cannot be told from itself.
fn refuse_moved(path: &Path, status: &Metadata) -> Result<()> {
    let name = if status.is_dir() { "redirect" } else { "metacopy" };
    if status.file_type().is_symlink() || !has(path, name)? {
        return Ok(());
    }
    Err(Error::new(format_args!("{path:?} has overlay's attribute {name:?}: its content is in another layer"))
        .hint("this upper was written with redirect_dir or metacopy on, and means something only with its layers"))
}

fn within(dir: &Path, path: &Path) -> PathBuf {
    dir.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(root: &Path, names: &[&str]) -> PathBuf {
        for name in names {
            match name.strip_suffix('/') {
                Some(dir) => fs::create_dir_all(root.join(dir)).unwrap(),
                None => {
                    fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
                    fs::write(root.join(name), "x").unwrap();
                }
            }
        }
        root.to_path_buf()
    }

    fn changes(upper: &Path, below: Option<Vec<PathBuf>>) -> String {
        let mut changes = compare(upper, below).unwrap();
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        to_text(&changes)
    }

    #[test]
    fn added_and_modified_depend_on_what_is_below() {
        let dir = tempfile::tempdir().unwrap();
        let base = tree(&dir.path().join("base"), &["old", "d/inner", "type/"]);
        let top = tree(&dir.path().join("top"), &["d/mid"]);
        let upper = tree(&dir.path().join("upper"), &["old", "new", "d/inner", "d/mid", "d/mine", "n/deep", "type"]);
        let known = changes(&upper, Some(vec![top, base]));
        assert_eq!(known, "M /d/inner\nM /d/mid\nA /d/mine\nA /n\nA /n/deep\nA /new\nM /old\nM /type\n");
        let alone = changes(&upper, None);
        assert_eq!(alone.lines().count(), 9);
        assert!(alone.lines().all(|line| line.starts_with("W ")), "{alone}");
    }

    #[test]
    fn names_are_escaped_in_text_and_exact_in_json() {
        let dir = tempfile::tempdir().unwrap();
        let name = OsStr::from_bytes(b"a\n\xff");
        fs::write(dir.path().join(name), "").unwrap();
        let changes = compare(dir.path(), None).unwrap();
        assert_eq!(to_text(&changes), "W /a\\n\u{fffd}\n");
        let value: Value = serde_json::from_str(&to_json(&changes)).unwrap();
        assert_eq!(value[0]["bytes"], json!([47, 97, 10, 255]));
    }

    #[test]
    fn marks_as_attributes() {
        let dir = tempfile::tempdir().unwrap();
        let base = tree(&dir.path().join("base"), &["gone", "d/below"]);
        let upper = tree(&dir.path().join("upper"), &["d/new", "moved/"]);
        fs::write(upper.join("gone"), "").unwrap();
        let set = |name: &str, key: &str, value: &[u8]| {
            chain::sys::mount::lsetxattr(&upper.join(name), OsStr::new(&format!("user.overlay.{key}")), value)
        };
        if set("gone", "whiteout", b"y") == Err(nix::errno::Errno::EOPNOTSUPP) {
            // No such attributes where temporary files are.
            return;
        }
        set("d", "opaque", b"y").unwrap();
        let known = changes(&upper, Some(vec![base]));
        assert_eq!(known, "O /d\nA /d/new\nD /gone\nA /moved\n");
        set("moved", "redirect", b"/d").unwrap();
        let error = compare(&upper, None).unwrap_err().to_string();
        assert!(error.contains("redirect"), "{error}");
    }
}
