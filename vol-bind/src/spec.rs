//! `SRC:DST[:OPTIONS]`, `--mount`, `--tmpfs` and `--device` to mounts. No effects.

use crate::mount::{Mount, Options, ReadOnly, Source};
use chain::sys::mount::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID};
use chain::{Error, Result, size};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// File systems that `--mount type=…` makes.
const TYPES: [&str; 9] = ["tmpfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "overlay", "ramfs"];

/// From `SRC:DST[:OPTIONS]`; `\:` is a colon of a path and `\\` a backslash.
///
/// Errors: no DST, a relative DST, a source that is neither a path nor a volume's name, an unknown option.
pub fn volume(text: &OsStr) -> Result<Mount> {
    let fields = split_colons(text.as_bytes());
    let (source, target, words) = match &fields[..] {
        [source, target] => (source, target, None),
        [source, target, words] => (source, target, Some(words)),
        [only] => {
            return Err(wrong(text, "no place inside the root")
                .hint(format_args!("write SRC:DST, or --tmpfs {:?} for an empty place", lossy(only))));
        }
        _ => return Err(wrong(text, "not SRC:DST:OPTIONS")),
    };
    let mut mount = Mount { source: by_look(source)?, target: target_path(target)?, options: Options::default() };
    for word in words.into_iter().flat_map(|words| words.split(|&b| b == b',')).filter(|word| !word.is_empty()) {
        known(text, &mut mount.options, &lossy(word))?;
    }
    finish(mount, text)
}

/// From the fields of `docker run --mount`: comma-separated `key=value`, quoted as in CSV where a value has a comma. Other
/// words are options as after a VOLUME's second colon, or options of the file system itself.
///
/// Errors: as for [`volume`]; an unknown type; no destination.
pub fn mount(text: &OsStr) -> Result<Mount> {
    let mut kind = None;
    let mut source = None;
    let mut target = None;
    let mut options = Options::default();
    let mut rest = Vec::new();
    for field in split_fields(text)? {
        let (key, value) = match field.iter().position(|&b| b == b'=') {
            Some(at) => (lossy(&field[..at]), Some(&field[at + 1..])),
            None => (lossy(&field), None),
        };
        match (key.as_str(), value) {
            ("type", Some(value)) => kind = Some(lossy(value)),
            ("source" | "src", Some(value)) => source = Some(value.to_vec()),
            ("destination" | "dst" | "target", Some(value)) => target = Some(target_path(value)?),
            _ => docker_word(text, &mut options, &key, value, &field, &mut rest)?,
        }
    }
    let target = target.ok_or_else(|| wrong(text, "no destination").hint("add dst=/PATH"))?;
    let source = match kind.as_deref().unwrap_or("volume") {
        "bind" => Source::Path(path_of(source.ok_or_else(|| wrong(text, "no source").hint("add src=PATH"))?)),
        "volume" => {
            let name = source.ok_or_else(|| wrong(text, "no source").hint("add src=NAME"))?;
            chain::store::check_name(&lossy(&name))?;
            Source::Volume(lossy(&name))
        }
        kind if TYPES.contains(&kind) => {
            Source::FileSystem(kind.to_string(), source.map_or_else(|| kind.into(), OsString::from_vec))
        }
        kind => {
            return Err(wrong(text, &format!("unknown type {kind:?}"))
                .hint(format_args!("one of bind, volume, {}", TYPES.join(", "))));
        }
    };
    let mut mount = Mount { source, target, options };
    own_options(text, &mut mount, rest)?;
    finish(mount, text)
}

/// From `DST[:OPTIONS]` of `--tmpfs`: nosuid and nodev unless the options say else, mode 1777 unless given.
pub fn tmpfs(text: &OsStr) -> Result<Mount> {
    let fields = split_colons(text.as_bytes());
    let (target, words) = match &fields[..] {
        [target] => (target, None),
        [target, words] => (target, Some(words)),
        _ => return Err(wrong(text, "more than DST:OPTIONS")),
    };
    let source = Source::FileSystem("tmpfs".into(), "tmpfs".into());
    let mut mount = Mount { source, target: target_path(target)?, options: Options::default() };
    let mut rest = Vec::new();
    for word in words.into_iter().flat_map(|words| words.split(|&b| b == b',')).filter(|word| !word.is_empty()) {
        let word = lossy(word);
        if !mount.options.word(&word)? {
            rest.push(word);
        }
    }
    own_options(text, &mut mount, rest)?;
    finish(mount, text)
}

/// From `PATH[:DST[:rwm]]` of `--device`.
pub fn device(text: &OsStr) -> Result<Mount> {
    let fields = split_colons(text.as_bytes());
    let (source, target) = match &fields[..] {
        [source] => (source, source),
        [source, target] => (source, target),
        [source, target, access] if matches!(access.as_slice(), b"rwm" | b"rw") => (source, target),
        [_, _, _] => {
            return Err(wrong(text, "less than read and write access").hint("limit access with cg-limit --devices"));
        }
        _ => return Err(wrong(text, "more than PATH:DST:rwm")),
    };
    let source = path_of(source.clone());
    if !source.is_absolute() {
        return Err(wrong(text, "not an absolute path"));
    }
    let options = Options { set: ATTR_NOSUID | ATTR_NOEXEC, top_only: false, ..Options::default() };
    let mut mount = Mount { source: Source::Device(source), target: target_path(target)?, options };
    mount.options.words = ["nosuid", "noexec"].map(String::from).to_vec();
    finish(mount, text)
}

/// `path` inside a root as it is compared and shown: absolute, without `.`, `..` and repeated slashes.
pub fn target_path(path: &[u8]) -> Result<PathBuf> {
    let given = Path::new(OsStr::from_bytes(path));
    if !given.is_absolute() {
        return Err(Error::usage(format_args!("target {given:?}: not an absolute path inside the root")));
    }
    let mut clean = PathBuf::from("/");
    for component in given.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    if clean == Path::new("/") {
        return Err(Error::usage(format_args!("target {given:?}: the root itself cannot be mounted over")));
    }
    Ok(clean)
}

fn by_look(source: &[u8]) -> Result<Source> {
    let path = source.starts_with(b"/")
        || source.starts_with(b"./")
        || source.starts_with(b"../")
        || matches!(source, b"." | b"..");
    if path {
        return Ok(Source::Path(path_of(source.to_vec())));
    }
    let name = lossy(source);
    match chain::store::check_name(&name) {
        Ok(()) => Ok(Source::Volume(name)),
        Err(_) if source.contains(&b'/') => Err(Error::usage(format_args!(
            "source {name:?}: neither a path (beginning with / or ./) nor the name of a volume"
        ))
        .hint(format_args!("write \"./{name}\" for the path"))),
        Err(error) => Err(error.within("volume")),
    }
}

fn docker_word(
    text: &OsStr,
    options: &mut Options,
    key: &str,
    value: Option<&[u8]>,
    field: &[u8],
    rest: &mut Vec<String>,
) -> Result<()> {
    let value = value.map(lossy);
    let yes = || match value.as_deref() {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => Err(wrong(text, &format!("{key}={other:?} is neither true nor false"))),
    };
    match (key, value.as_deref()) {
        ("readonly" | "ro", _) if yes()? => known(text, options, "ro"),
        ("readonly" | "ro", _) => Ok(()),
        ("volume-nocopy", _) if yes()? => known(text, options, "nocopy"),
        ("volume-nocopy", _) => Ok(()),
        ("bind-propagation", Some(value)) => known(text, options, value),
        ("bind-nonrecursive", _) if yes()? => known(text, options, "bind"),
        ("bind-nonrecursive", _) => Ok(()),
        ("bind-recursive", Some("disabled")) => known(text, options, "bind"),
        ("bind-recursive", Some("enabled" | "readonly")) => known(text, options, "rbind"),
        ("bind-recursive", Some("writable")) => known(text, options, "rbind").map(|()| {
            if options.read_only == ReadOnly::All {
                options.read_only = ReadOnly::Top;
            }
        }),
        ("bind-create-src", _) if yes()? => known(text, options, "create"),
        ("volume-subpath", Some(value)) => known(text, options, &format!("subpath={value}")),
        ("tmpfs-size", Some(value)) => {
            rest.push(format!("size={value}"));
            Ok(())
        }
        ("tmpfs-mode", Some(value)) => {
            rest.push(format!("mode={value}"));
            Ok(())
        }
        ("consistency", _) => Ok(()),
        _ => {
            let word = lossy(field);
            if !options.word(&word)? {
                rest.push(word);
            }
            Ok(())
        }
    }
}

/// The words that are none of a mount's attributes: options of the file system, if a new one is made.
fn own_options(text: &OsStr, mount: &mut Mount, rest: Vec<String>) -> Result<()> {
    let Source::FileSystem(kind, _) = &mount.source else {
        return match rest.first() {
            Some(word) => Err(unknown(text, word)),
            None => Ok(()),
        };
    };
    let tmpfs = kind == "tmpfs";
    for word in rest {
        let (key, mut value) = match word.split_once('=') {
            Some((key, value)) => (key.to_string(), Some(value.to_string())),
            None => (word.clone(), None),
        };
        if tmpfs {
            match (key.as_str(), &value) {
                ("size", Some(text)) if !text.ends_with('%') => value = Some(size::parse(text)?.to_string()),
                ("mode", Some(text)) if u32::from_str_radix(text, 8).is_ok_and(|mode| mode <= 0o7777) => {}
                ("mode", _) => return Err(wrong(text, &format!("{word:?} is no octal mode"))),
                ("nr_inodes" | "uid" | "gid" | "huge" | "mpol" | "size", Some(_)) => {}
                _ => return Err(unknown(text, &word)),
            }
        }
        mount.options.words.push(match &value {
            Some(value) => format!("{key}={value}"),
            None => key.clone(),
        });
        mount.options.data.push((key, value));
    }
    if kind == "overlay" {
        // Layers are not trusted: what redirects elsewhere is not followed.
        for (key, value) in [("redirect_dir", "nofollow"), ("metacopy", "off")] {
            if !mount.options.data.iter().any(|(given, _)| given == key) {
                mount.options.data.push((key.into(), Some(value.into())));
            }
        }
    }
    if tmpfs {
        let options = &mut mount.options;
        for (word, attribute) in [("nosuid", ATTR_NOSUID), ("nodev", ATTR_NODEV)] {
            if (options.set | options.clear) & attribute == 0 {
                options.set |= attribute;
                options.words.insert(0, word.into());
            }
        }
        if !options.data.iter().any(|(key, _)| key == "mode") {
            options.data.push(("mode".into(), Some("1777".into())));
            options.words.push("mode=1777".into());
        }
    }
    Ok(())
}

fn known(text: &OsStr, options: &mut Options, word: &str) -> Result<()> {
    if options.word(word)? {
        Ok(())
    } else if word.starts_with('/') {
        Err(unknown(text, word).hint("write \\: for a colon in a path"))
    } else {
        Err(unknown(text, word))
    }
}

fn unknown(text: &OsStr, word: &str) -> Error {
    wrong(text, &format!("unknown option {word:?}")).hint("the manual lists the options of a volume")
}

fn finish(mount: Mount, text: &OsStr) -> Result<Mount> {
    mount.options.check(&format!("{text:?}"))?;
    if matches!(mount.source, Source::FileSystem(..)) && !mount.options.idmap.is_empty() {
        return Err(wrong(text, "a new file system has no owners to map"));
    }
    Ok(mount)
}

fn wrong(text: &OsStr, why: &str) -> Error {
    Error::usage(format_args!("{text:?}: {why}"))
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

/// Splits at the first two colons; `\:` is a colon of a path and `\\` a backslash, any other backslash is itself.
fn split_colons(text: &[u8]) -> Vec<Vec<u8>> {
    let mut fields = vec![Vec::new()];
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if fields.len() == 3 {
            fields[2].push(byte);
            fields[2].extend(bytes);
            break;
        }
        let escaped = (byte == b'\\').then(|| bytes.next_if(|&next| matches!(next, b':' | b'\\'))).flatten();
        match (byte, escaped, fields.last_mut()) {
            (b':', None, _) => fields.push(Vec::new()),
            (_, escaped, Some(field)) => field.push(escaped.unwrap_or(byte)),
            _ => {}
        }
    }
    fields
}

/// The fields of one line of CSV: at commas, a field in quotes may hold commas, `""` is a quote in it.
fn split_fields(text: &OsStr) -> Result<Vec<Vec<u8>>> {
    let bytes = text.as_bytes();
    let mut fields = Vec::new();
    let mut at = 0;
    loop {
        let mut field = Vec::new();
        if bytes.get(at) == Some(&b'"') {
            at += 1;
            loop {
                match (bytes.get(at), bytes.get(at + 1)) {
                    (Some(b'"'), Some(b'"')) => {
                        field.push(b'"');
                        at += 2;
                    }
                    (Some(b'"'), _) => break at += 1,
                    (Some(&byte), _) => {
                        field.push(byte);
                        at += 1;
                    }
                    (None, _) => return Err(wrong(text, "a quote is not closed")),
                }
            }
            if !matches!(bytes.get(at), None | Some(b',')) {
                return Err(wrong(text, "text after a closing quote"));
            }
        } else {
            let end = bytes[at..].iter().position(|&b| b == b',').map_or(bytes.len(), |length| at + length);
            field.extend_from_slice(&bytes[at..end]);
            at = end;
        }
        if !field.is_empty() {
            fields.push(field);
        }
        if at >= bytes.len() {
            return Ok(fields);
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine(text: &str) -> Mount {
        volume(OsStr::new(text)).unwrap()
    }

    #[test]
    fn names_and_paths_are_told_apart() {
        assert_eq!(fine("data:/data").source, Source::Volume("data".into()));
        assert_eq!(fine("./data:/data").source, Source::Path("./data".into()));
        assert_eq!(fine(".:/data").source, Source::Path(".".into()));
        assert_eq!(fine("/a\\:b\\\\c\\d:/data").source, Source::Path("/a:b\\c\\d".into()));
        for text in
            ["da/ta:/x", "-x:/x", ":/x", "~/x:/x", "a:rel", "a:", "a:/", "a:/x/..", "a", "a:/b:ro:c", "a:/b:bogus"]
        {
            assert!(volume(OsStr::new(text)).is_err(), "{text}");
        }
        let error = volume(OsStr::new("da/ta:/x")).unwrap_err().to_string();
        assert!(error.contains("write \"./da/ta\" for the path"), "{error}");
    }

    #[test]
    fn targets_are_cleaned() {
        assert_eq!(fine("a://x/./y//../z/").target, Path::new("/x/z"));
        assert_eq!(fine("a:/../../x").target, Path::new("/x"));
    }

    #[test]
    fn mount_reads_what_docker_writes() {
        let got = mount(OsStr::new("type=bind,\"src=/a,\"\"b\",target=/c,readonly,bind-propagation=rprivate")).unwrap();
        assert_eq!(got.source, Source::Path("/a,\"b".into()));
        assert_eq!(got.options.read_only, ReadOnly::All);
        let got = mount(OsStr::new("type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=700")).unwrap();
        assert_eq!(
            got.options.data,
            [("size".into(), Some("1048576".into())), ("mode".into(), Some("700".to_string()))]
        );
        assert_eq!(got.options.set, ATTR_NOSUID | ATTR_NODEV);
        assert_eq!(
            mount(OsStr::new("src=data,dst=/d,volume-nocopy=true")).unwrap().source,
            Source::Volume("data".into())
        );
        for text in [
            "type=bind,src=/a",
            "type=bind,dst=/a",
            "type=ext4,dst=/a",
            "src=/a/b,dst=/c",
            "type=tmpfs,dst=/a,bogus",
            "type=bind,src=/a,dst=/b,size=1",
            "\"src=/a",
            "type=bind,src=/a,dst=/b,readonly=maybe",
        ] {
            assert!(mount(OsStr::new(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn tmpfs_and_devices() {
        let got = tmpfs(OsStr::new("/run:size=64m,exec,mode=755")).unwrap();
        assert_eq!(got.options.data[0], ("size".into(), Some("67108864".into())));
        assert!(tmpfs(OsStr::new("/run:size=64X")).is_err() && tmpfs(OsStr::new("/run:mode=9")).is_err());
        assert_eq!(device(OsStr::new("/dev/fuse")).unwrap().target, Path::new("/dev/fuse"));
        assert!(device(OsStr::new("/dev/fuse:/dev/x:r")).is_err() && device(OsStr::new("fuse")).is_err());
    }
}
