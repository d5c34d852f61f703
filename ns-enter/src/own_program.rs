//! COMMAND must not be this very program.
//!
//! An image can make its COMMAND, or the interpreter or loader of its COMMAND, a link to /proc/self/exe. The kernel would then start
//! this tool's own file inside, from where it could be overwritten once it has ended (CVE-2019-5736).

use chain::{Chain, Error, Result};
use nix::errno::Errno;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// As deep as the kernel follows `#!` lines.
const MAX_INTERPRETERS: u32 = 5;

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

/// What the kernel would start to run this regular file.
fn interpreter(path: &Path) -> Option<PathBuf> {
    chain::link::interpreter(&fs::File::open(path).ok()?).map(PathBuf::from)
}
