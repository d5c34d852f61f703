//! COMMAND must not be this very program.
//!
//! An image can make its COMMAND, or the interpreter of its COMMAND, a link to /proc/self/exe. The kernel would then start
//! this tool's own file inside, from where it could be overwritten once it has ended (CVE-2019-5736).

use chain::{Chain, Error, Result};
use nix::errno::Errno;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// As deep as the kernel follows `#!` lines.
const MAX_INTERPRETERS: u32 = 5;
/// As much as the kernel reads of a `#!` line.
const LINE: u64 = 256;

/// Which file this program is.
pub struct Identity(Option<(u64, u64)>);

impl Identity {
    /// Read while /proc is still the caller's.
    pub fn read() -> Self {
        Identity(fs::metadata("/proc/self/exe").ok().map(|metadata| (metadata.dev(), metadata.ino())))
    }

    /// Error (126): `command`, or what would interpret it, is this program.
    pub fn refuse(&self, command: &[OsString], chain: &Chain) -> Result<()> {
        let (Some(own), Some(name)) = (self.0, command.first()) else { return Ok(()) };
        let environment = chain.environment();
        let path = environment.iter().rev().find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="));
        let path = path.unwrap_or(chain::link::DEFAULT_PATH.as_bytes());
        for candidate in chain::link::candidates(name, path) {
            let mut program = Some(candidate.clone());
            for _ in 0..=MAX_INTERPRETERS {
                let Some(file) = program else { break };
                let Ok(metadata) = fs::metadata(&file) else { break };
                if (metadata.dev(), metadata.ino()) == own {
                    return Err(Error::call(format_args!("execve({candidate:?})"), Errno::EACCES)
                        .hint("it leads to this tool's own program on the host, which nothing inside may run")
                        .status(chain::error::NOT_RUNNABLE));
                }
                program = if metadata.is_file() { interpreter(&file) } else { None };
            }
        }
        Ok(())
    }
}

/// The program that the `#!` line of a regular file names.
fn interpreter(path: &Path) -> Option<PathBuf> {
    let mut head = Vec::new();
    fs::File::open(path).ok()?.take(LINE).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|&b| b == b'\n').next()?;
    let word = line.trim_ascii_start().split(|&b| b == b' ' || b == b'\t').next()?;
    (!word.is_empty()).then(|| Path::new(OsStr::from_bytes(word)).to_path_buf())
}
