//! `--print`: the chain as a shell script that does the same when it is run by hand.

use crate::plan::{Link, Place, Skeleton};
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How the script gets the container's directories.
pub enum Directories<'a> {
    /// A root that is there already: none are needed.
    None,
    /// Directories of its own in the store, removed at the end; as root of a user namespace if `mapped`.
    Own { store: &'a Path, mapped: bool, skeleton: Skeleton },
    /// The named container's, which stay.
    Named(Skeleton),
}

/// The script. `place` is what the links were planned with; `note` a file that must not be there, and the name for it.
pub fn script(
    links: &[Link],
    args: &[OsString],
    place: &Place,
    directories: &Directories,
    note: Option<(&Path, &str)>,
) -> String {
    let quote = |word: &OsString| match directories {
        Directories::Own { .. } => own_directory(word, &place.dir),
        _ => quote(word),
    };
    let mut out = String::from(
        "#!/bin/sh\n# The chain that ctr-run makes, one mechanism a line. Stop anywhere and look around.\nset -eu\n",
    );
    match directories {
        Directories::None => {}
        Directories::Own { store, mapped, skeleton } => {
            let remove = if *mapped { "ns-enter --user --map-auto -- rm -rf \"$dir\"" } else { "rm -rf \"$dir\"" };
            let store = self::quote(store.as_os_str());
            let _ = write!(
                out,
                "\n# The container's own directories: they go when it ends.\nmkdir -p {store}\ndir=$(mktemp -d {store}/by-hand.XXXXXXXX)\n\
                 trap 'test ! -e \"$dir/work\" || chmod -R u+rwx \"$dir/work\"; {remove}' EXIT\ntrap 'exit 129' HUP\ntrap 'exit 130' INT\ntrap 'exit 143' TERM\n"
            );
            out.push_str(&make("\"$dir\"", &[store], skeleton));
        }
        Directories::Named(skeleton) => {
            let dir = self::quote(place.dir.as_os_str());
            let _ = write!(out, "\n# The named container's directories: they stay.\nmkdir -p {dir}\n");
            let above: Vec<String> =
                place.dir.ancestors().skip(1).take(2).map(|dir| self::quote(dir.as_os_str())).collect();
            out.push_str(&make(&dir, &above, skeleton));
        }
    }
    if let Some((file, name)) = note {
        let _ = write!(out, "\n(set -C; printf %s {} >{})\n", quote(&name.into()), quote(&file.into()));
    }
    for link in links {
        let words: Vec<String> = link.iter().map(quote).collect();
        let _ = write!(out, "\n{} -- \\", words.join(" "));
    }
    let words: Vec<String> = args.iter().map(self::quote).collect();
    let _ = writeln!(out, "\n{}", words.join(" "));
    out
}

/// Makes the skeleton in `dir`, which is below the store's directories `above` (all quoted already).
fn make(dir: &str, above: &[String], skeleton: &Skeleton) -> String {
    let mut out = String::new();
    let directories: Vec<String> =
        skeleton.directories.iter().map(|name| format!("{dir}/{}", quote(name.as_os_str()))).collect();
    if !directories.is_empty() {
        let _ = writeln!(out, "mkdir -p {}", directories.join(" "));
    }
    if let Some(group) = skeleton.group {
        // The store's directories show nothing, but let pass; the container's is for this group.
        let _ = writeln!(out, "chmod o+x {}; chgrp {group} {dir}; chmod 0710 {dir}", above.join(" "));
    }
    for (name, content) in &skeleton.files {
        let _ = writeln!(out, "printf %s {} >{dir}/{}", quote(content), quote(name.as_os_str()));
    }
    for (name, target) in &skeleton.links {
        let _ = writeln!(out, "ln -sfn {} {dir}/{}", quote(target.as_os_str()), quote(name.as_os_str()));
    }
    out
}

/// A word with the container's directory as the shell variable `dir`.
fn own_directory(word: &OsString, dir: &Path) -> String {
    let (bytes, dir) = (word.as_bytes(), dir.as_os_str().as_bytes());
    let at = bytes.windows(dir.len()).position(|window| window == dir);
    match at {
        None => quote(word),
        Some(at) => {
            let part = |bytes: &[u8]| if bytes.is_empty() { String::new() } else { quote(OsStr::from_bytes(bytes)) };
            format!("{}\"$dir\"{}", part(&bytes[..at]), part(&bytes[at + dir.len()..]))
        }
    }
}

/// A word as the shell reads it back.
fn quote(word: impl AsRef<OsStr>) -> String {
    let word = word.as_ref().as_bytes();
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-=:,+@%".contains(b);
    if !word.is_empty() && word.iter().all(plain) {
        return String::from_utf8_lossy(word).into_owned();
    }
    match std::str::from_utf8(word) {
        Ok(text) => format!("'{}'", text.replace('\'', "'\\''")),
        // Bytes that are no text: printf makes them; the x keeps final newlines.
        Err(_) => {
            let octal: String = word.iter().map(|byte| format!("\\{byte:03o}")).collect();
            format!("\"$(w=$(printf '{octal}x'); printf %s \"${{w%x}}\")\"")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;
    use std::process::Command;

    #[test]
    fn the_shell_reads_words_back() {
        for word in
            [&b"plain-1"[..], b"", b"a b", b"it's", b"$HOME `x` \\", b"two\nlines", b"caf\xe9", b"'", b"*", b"~"]
        {
            let script = format!("printf %s {}", quote(OsStr::from_bytes(word)));
            let output = Command::new("sh").arg("-c").arg(&script).output().unwrap();
            assert_eq!(OsString::from_vec(output.stdout), OsStr::from_bytes(word), "{script}");
        }
    }

    #[test]
    fn directories_of_its_own_become_a_variable() {
        let place = Place { dir: "/s/containers/x".into() };
        assert_eq!(own_directory(&"--upper=/s/containers/x/upper".into(), &place.dir), "--upper=\"$dir\"/upper");
        let directories = Directories::Own { store: Path::new("/s"), mapped: false, skeleton: Skeleton::default() };
        let text = script(
            &[vec!["ns-enter".into(), "--root=/s/containers/x/root".into()]],
            &["sh".into()],
            &place,
            &directories,
            Some((Path::new("id"), "x")),
        );
        assert!(text.contains("\n(set -C; printf %s x >id)\n"), "{text}");
        assert!(text.contains("\nns-enter --root=\"$dir\"/root -- \\\nsh\n"), "{text}");
        assert!(!text.contains("containers/x"), "{text}");
    }
}
