//! Files that make names resolve in the container: /etc/resolv.conf, /etc/hosts and /etc/hostname.
//!
//! The container gets copies: a bind of the machine's file would go stale when that is replaced by a rename.

use crate::mount::{Mount, Options, Source};
use chain::trace::note;
use chain::{Error, Result, ResultExt};
use std::fs;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// More than any such file has.
const MAX_BYTES: u64 = 1 << 20;

/// Which of the files are wanted.
#[derive(Debug, Default)]
pub struct Names {
    /// What /etc/resolv.conf is a copy of; `auto` is the machine's, edited.
    pub resolv_conf: Option<PathBuf>,
    /// What /etc/hosts is a copy of, one after the other.
    pub hosts: Vec<PathBuf>,
    /// What /etc/hostname says.
    pub hostname: Option<String>,
}

impl Names {
    /// The files as mounts. Errors: a file that cannot be read, or is larger than 1 MiB.
    pub fn mounts(&self) -> Result<Vec<Mount>> {
        let mut mounts = Vec::new();
        let mut add = |target: &str, content: Vec<u8>| {
            mounts.push(Mount { source: Source::Content(content), target: target.into(), options: Options::default() });
        };
        match &self.resolv_conf {
            Some(auto) if auto == Path::new("auto") => match machines_servers() {
                Some(text) => add("/etc/resolv.conf", text.into_bytes()),
                None => note(format_args!("/etc/resolv.conf stays the root's: only this machine reaches its servers")),
            },
            Some(path) => add("/etc/resolv.conf", read(path)?),
            None => {}
        }
        if !self.hosts.is_empty() {
            let mut content = Vec::new();
            for path in &self.hosts {
                content.extend(read(path)?);
                if content.last().is_some_and(|&last| last != b'\n') {
                    content.push(b'\n');
                }
            }
            add("/etc/hosts", content);
        }
        if let Some(name) = &self.hostname {
            add("/etc/hostname", format!("{name}\n").into_bytes());
        }
        Ok(mounts)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut content))
        .call(format_args!("read({path:?})"))?;
    if content.len() as u64 > MAX_BYTES {
        return Err(Error::new(format_args!("{path:?} is larger than 1 MiB")));
    }
    Ok(content)
}

/// The machine's resolv.conf, whatever links lead to it; where all its servers are loopback, what a local resolver
/// (systemd-resolved) says it asks itself. `None` if no server is left.
fn machines_servers() -> Option<String> {
    ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .find_map(|text| without_loopback(&text))
}

/// `text` without the servers on loopback addresses; `None` if no server is left.
fn without_loopback(text: &str) -> Option<String> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next().unwrap_or_default().to_string())
    };
    // An address may have a zone: fe80::1%eth0.
    let loopback = |address: &str| {
        let address = address.split('%').next().unwrap_or_default();
        address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback() || address.is_unspecified())
    };
    let kept: Vec<&str> = text.lines().filter(|line| !server(line).is_some_and(|at| loopback(&at))).collect();
    kept.iter().any(|line| server(line).is_some()).then(|| kept.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_only_the_machine_reaches_go() {
        let text = "# by hand\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nnameserver ::1\nsearch example.org\n";
        assert_eq!(without_loopback(text).unwrap(), "# by hand\nnameserver 9.9.9.9\nsearch example.org\n");
        assert_eq!(without_loopback("nameserver 127.0.0.1\nsearch x\n"), None);
        assert_eq!(without_loopback(""), None);
        assert!(without_loopback("nameserver fe80::1%eth0").is_some());
    }
}
