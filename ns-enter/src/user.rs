//! Who COMMAND runs as: a user and groups by name or number, from the passwd(5) and group(5) files of the root.
//!
//! The files are an image's, so hostile: they are opened inside the root only, may have any size up to a limit, and lines
//! that are not of the form are skipped.

use chain::root::Root;
use chain::{Error, Result, ResultExt};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

/// More than any real one, and little enough to read.
const MAX_BYTES: u64 = 16 << 20;
/// setgroups(2) takes no more.
const MAX_GROUPS: usize = 65536;

/// Who was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// `USER[:GROUP]`, each a name or a number.
    Named {
        /// The user.
        user: String,
        /// The group, if given.
        group: Option<String>,
        /// Groups besides, each a name or a number.
        more: Vec<String>,
    },
    /// Numbers only, as in an OCI runtime configuration.
    Numbers(Ids),
}

/// Whose ids a process has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// User id.
    pub user: u32,
    /// Group id.
    pub group: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Those of them that were asked for, and not only found in /etc/group.
    pub asked: Vec<u32>,
}

/// Who was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// The ids. The group is among the supplementary groups too: without it there, a process could pass by a permission
    /// that is denied to the group (CVE-2022-2990).
    pub ids: Ids,
    /// The home directory, `/` where the files do not say.
    pub home: OsString,
}

impl Wanted {
    /// From `USER[:GROUP]`. Errors: an empty user or group, a zero byte.
    pub fn parse(text: &str) -> Result<Self> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        if user.is_empty() || group == Some("") || text.matches(':').count() > 1 {
            return Err(Error::usage(format_args!("user {text:?}: write USER or USER:GROUP, names or numbers")));
        }
        Ok(Wanted::Named { user: user.into(), group: group.map(Into::into), more: Vec::new() })
    }

    /// The same, in the `groups` besides.
    pub fn with_groups(mut self, groups: Vec<String>) -> Self {
        if let Wanted::Named { more, .. } = &mut self {
            *more = groups;
        }
        self
    }

    /// Looks the names up in the /etc/passwd and /etc/group of `root`. A number needs no line there.
    ///
    /// Errors: a name that is not there; a number past the last id; files that cannot be read.
    pub fn find(&self, root: &Path) -> Result<Found> {
        let root = Root::open(root)?;
        match self {
            Wanted::Numbers(ids) => {
                let home = by_number(&root, ids.user)?.map(|user| user.home);
                Ok(Found { ids: with_own_group(ids.clone()), home: home_or_slash(home) })
            }
            Wanted::Named { user, group, more } => find_named(&root, user, group.as_deref(), more),
        }
    }
}

struct User {
    name: Vec<u8>,
    user: u32,
    group: u32,
    home: Vec<u8>,
}

struct Group {
    name: Vec<u8>,
    group: u32,
    members: Vec<u8>,
}

fn find_named(root: &Root, name: &str, group: Option<&str>, more: &[String]) -> Result<Found> {
    // What is a number is an id, even where a user is called so.
    let number = number(name, "user")?;
    let user = match number {
        Some(id) => by_number(root, id)?,
        None => {
            let user = find(root, "/etc/passwd", parse_user, |user| user.name == name.as_bytes())?;
            Some(user.ok_or_else(|| unknown("user", name, root, "passwd"))?)
        }
    };
    let mut ids = Ids {
        user: number.or(user.as_ref().map(|user| user.user)).unwrap_or_default(),
        group: user.as_ref().map(|user| user.group).unwrap_or_default(),
        ..Ids::default()
    };
    match (group, &user) {
        (Some(group), _) => ids.group = find_group(root, group)?,
        (None, Some(user)) => ids.groups = groups_of(root, &user.name)?,
        (None, None) => {}
    }
    for name in more {
        let group = find_group(root, name)?;
        ids.asked.push(group);
        if !ids.groups.contains(&group) {
            ids.groups.push(group);
        }
    }
    Ok(Found { ids: with_own_group(ids), home: home_or_slash(user.map(|user| user.home)) })
}

fn find_group(root: &Root, name: &str) -> Result<u32> {
    if let Some(id) = number(name, "group")? {
        return Ok(id);
    }
    let group = find(root, "/etc/group", parse_group, |group| group.name == name.as_bytes())?;
    group.map(|group| group.group).ok_or_else(|| unknown("group", name, root, "group"))
}

fn groups_of(root: &Root, user: &[u8]) -> Result<Vec<u32>> {
    let mut groups = Vec::new();
    find(root, "/etc/group", parse_group, |group| {
        let member = group.members.split(|&b| b == b',').any(|member| member == user);
        if member && groups.len() < MAX_GROUPS && !groups.contains(&group.group) {
            groups.push(group.group);
        }
        false
    })?;
    Ok(groups)
}

fn by_number(root: &Root, id: u32) -> Result<Option<User>> {
    find(root, "/etc/passwd", parse_user, |user| user.user == id)
}

fn with_own_group(mut ids: Ids) -> Ids {
    if !ids.groups.contains(&ids.group) {
        ids.groups.insert(0, ids.group);
    }
    ids
}

fn home_or_slash(home: Option<Vec<u8>>) -> OsString {
    home.filter(|home| home.starts_with(b"/") && !home.contains(&0)).map_or_else(|| "/".into(), OsString::from_vec)
}

fn unknown(kind: &str, name: &str, root: &Root, file: &str) -> Error {
    Error::new(format_args!("{kind} {name:?}: not in /etc/{file} of {:?}", root.path()))
        .hint(format_args!("a number needs no line there"))
}

/// `text` as an id, if it is a number. The last one, 2^32-1, means "no change" to the kernel.
fn number(text: &str, kind: &str) -> Result<Option<u32>> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(u32::MAX) | Err(_) => Err(Error::usage(format_args!("{kind} {text:?}: past the last id, 4294967294"))),
        Ok(id) => Ok(Some(id)),
    }
}

/// The first line of `path` that parses and matches. A missing file has none.
fn find<T>(
    root: &Root,
    path: &str,
    parse: impl Fn(&[u8]) -> Option<T>,
    mut matches: impl FnMut(&T) -> bool,
) -> Result<Option<T>> {
    // A FIFO must not keep us waiting.
    let fd = match root.open_at(Path::new(path), OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY) {
        Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::ENOTDIR)) => return Ok(None),
        other => other?,
    };
    let stat = fstat(&fd).call(format_args!("fstat({path:?})"))?;
    if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
        return Err(Error::new(format_args!("{path:?} of {:?} is not a regular file", root.path())));
    }
    let mut reader = BufReader::new(File::from(fd).take(MAX_BYTES));
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line).call(format_args!("read({path:?} of {:?})", root.path()))?;
        if length == 0 {
            return Ok(None);
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        if let Some(entry) = parse(text.strip_suffix(b"\r").unwrap_or(text)).filter(|entry| matches(entry)) {
            return Ok(Some(entry));
        }
    }
}

/// `name:password:user:group:text:home:shell`; at least up to the group. NIS lines (`+…`) are no users.
fn parse_user(line: &[u8]) -> Option<User> {
    let fields: Vec<&[u8]> = line.split(|&b| b == b':').collect();
    let name = entry_name(fields.first()?)?;
    Some(User {
        name,
        user: id(fields.get(2)?)?,
        group: id(fields.get(3)?)?,
        home: fields.get(5).copied().unwrap_or_default().to_vec(),
    })
}

/// `name:password:group:members`.
fn parse_group(line: &[u8]) -> Option<Group> {
    let fields: Vec<&[u8]> = line.split(|&b| b == b':').collect();
    let name = entry_name(fields.first()?)?;
    Some(Group { name, group: id(fields.get(2)?)?, members: fields.get(3).copied().unwrap_or_default().to_vec() })
}

fn entry_name(field: &[u8]) -> Option<Vec<u8>> {
    let special = field.is_empty() || matches!(field[0], b'+' | b'-' | b'#');
    (!special).then(|| field.to_vec())
}

fn id(field: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(field).ok()?;
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root(passwd: &[u8], group: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        fs::write(dir.path().join("etc/group"), group).unwrap();
        dir
    }

    fn found(root: &Path, text: &str) -> Result<(u32, u32, Vec<u32>, String)> {
        let found = Wanted::parse(text)?.find(root)?;
        let home = found.home.into_string().unwrap();
        Ok((found.ids.user, found.ids.group, found.ids.groups, home))
    }

    #[test]
    fn names_numbers_and_pairs() {
        let dir = root(
            b"root:x:0:0:root:/root:/bin/sh\n1000:x:7:7::/odd:\nann:x:1000:100::/home/ann:/bin/sh",
            b"users:x:100:\nwheel:x:10:bob,ann\naudio:x:29:ann\nwheel:x:10:ann\n",
        );
        let path = dir.path();
        assert_eq!(found(path, "ann").unwrap(), (1000, 100, vec![100, 10, 29], "/home/ann".into()));
        // A number is an id even where a user is called so, and has that user's groups.
        assert_eq!(found(path, "1000").unwrap(), (1000, 100, vec![100, 10, 29], "/home/ann".into()));
        assert_eq!(found(path, "ann:wheel").unwrap(), (1000, 10, vec![10], "/home/ann".into()));
        assert_eq!(found(path, "4000").unwrap(), (4000, 0, vec![0], "/".into()));
        assert_eq!(found(path, "4000:4001").unwrap(), (4000, 4001, vec![4001], "/".into()));
        let more = Wanted::parse("ann").unwrap().with_groups(vec!["audio".into(), "7".into()]);
        assert_eq!(more.find(path).unwrap().ids.groups, [100, 10, 29, 7]);
        let error = found(path, "eve").unwrap_err().to_string();
        assert!(error.starts_with("user \"eve\": not in /etc/passwd of "), "{error}");
        let error = found(path, "ann:eve").unwrap_err().to_string();
        assert!(error.starts_with("group \"eve\": not in /etc/group of "), "{error}");
        for text in ["", ":", "ann:", ":0", "a:b:c", "4294967295", "99999999999"] {
            assert!(found(path, text).is_err(), "{text}");
        }
    }

    #[test]
    fn malformed_lines_are_skipped() {
        let mut passwd = b"\n+::::::\n-eve::::::\nann\nann:x\nann:x:-1:0::/a:\nann:x:99999999999:0::/b:\nann:x:4294967295:0::/c:\nann:x:+5:0::/d:\n".to_vec();
        passwd.extend(vec![b'x'; 100_000]);
        passwd.extend(b"\nann:\xff:5:6:\xfe:relative:\r\n");
        let dir = root(&passwd, b"+\nbad\nstaff:x:x:ann\nstaff:x:50:ann,ann,,");
        assert_eq!(found(dir.path(), "ann").unwrap(), (5, 6, vec![6, 50], "/".into()));
        assert!(found(dir.path(), "+").is_err());
    }

    #[test]
    fn files_may_be_missing_links_or_traps() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(found(dir.path(), "5:6").unwrap(), (5, 6, vec![6], "/".into()));
        assert!(found(dir.path(), "root").is_err());
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("real"), "ann:x:5:6::/home:").unwrap();
        symlink("/real", dir.path().join("etc/passwd")).unwrap();
        assert_eq!(found(dir.path(), "ann").unwrap().0, 5);
        // A link out of the root stays inside, and a FIFO does not block.
        fs::remove_file(dir.path().join("etc/passwd")).unwrap();
        symlink("../../../../../etc/passwd", dir.path().join("etc/passwd")).unwrap();
        assert!(found(dir.path(), "root").is_err());
        fs::remove_file(dir.path().join("etc/passwd")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("etc/passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(found(dir.path(), "root").unwrap_err().to_string().contains("not a regular file"));
    }
}
