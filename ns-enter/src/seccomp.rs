//! `--seccomp`: which system calls COMMAND may make.
//!
//! The default profile is BPF already when this program is built (`build.rs`). What depends on the capabilities that
//! COMMAND keeps are single instructions in it, changed when the filter is loaded. A profile from a file is made into the
//! same form by the same code.

pub mod bpf;
pub mod calls;
mod oci;
#[cfg(test)]
mod profile;
#[cfg(test)]
mod tests;
mod written;

use bpf::{ALLOW_NOW, Program};
use chain::error::{Error, Result};
use chain::sys::process;
use chain::trace;
use nix::errno::Errno;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub use written::default_profile as written_default_profile;

include!(concat!(env!("OUT_DIR"), "/default.rs"));

/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW`: no protection against speculation that slows the whole program. KERNEL(5.16): the
/// kernel's own default; set as runc does, so that older kernels do the same.
const SPEC_ALLOW: u64 = 4;

/// Which filter is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    /// No filter, whatever a document says.
    All,
    /// The default profile.
    Default,
    /// One from a file.
    File(PathBuf),
    /// `linux.seccomp` of a document.
    Given(serde_json::Value),
}

impl Profile {
    /// `default`, `none`, or a file.
    pub fn parse(text: OsString) -> Self {
        match text.to_str() {
            Some("none") => Profile::All,
            Some("default") => Profile::Default,
            _ => Profile::File(text.into()),
        }
    }

    /// The filter, if there is to be one. Errors: as for [`Filter::default_profile`] and [`Filter::read`].
    pub fn filter(&self) -> Result<Option<Filter>> {
        Ok(Some(match self {
            Profile::All => return Ok(None),
            Profile::Default => Filter::default_profile()?,
            Profile::File(path) => Filter::read(path)?,
            Profile::Given(profile) => Filter::from_document(profile)?,
        }))
    }
}

/// A filter, ready to load but for what depends on capabilities.
#[derive(Clone, Debug)]
pub struct Filter {
    program: Program,
    flags: u64,
    name: String,
}

impl Filter {
    /// Docker's default profile. Error: this machine's architecture is not among those that it was made for.
    pub fn default_profile() -> Result<Self> {
        if CODE.is_empty() {
            let machine = std::env::consts::ARCH;
            return Err(Error::new(format_args!("--seccomp default: there is no default profile for {machine}"))
                .hint("give a profile for it as --seccomp FILE"));
        }
        let program = Program { code: CODE.to_vec(), gates: GATES.to_vec() };
        Ok(Filter { program, flags: SPEC_ALLOW, name: "default".into() })
    }

    /// A profile in the form of `linux.seccomp` of the OCI runtime-spec, or a whole configuration that has one.
    ///
    /// Errors: cannot be read, no JSON, or a rule that cannot be; then it is named by its place and its system calls.
    pub fn read(path: &Path) -> Result<Self> {
        let document = chain::Document::read(path)?;
        let within = |error: Error| error.within(format_args!("--seccomp {path:?}"));
        let profile = match document.get("linux/seccomp") {
            Some(profile) => oci::compile(profile),
            None => oci::compile(&document.members().clone().into()),
        };
        let (program, flags) = profile.map_err(within)?;
        Ok(Filter { program, flags, name: format!("{path:?}") })
    }

    /// `linux.seccomp` of a document. Errors as for [`Filter::read`].
    pub fn from_document(profile: &serde_json::Value) -> Result<Self> {
        let (program, flags) = oci::compile(profile).map_err(|error| error.within("linux.seccomp"))?;
        Ok(Filter { program, flags, name: "linux.seccomp".into() })
    }

    /// Puts the filter in force for this process and all it becomes. `kept` are the capabilities that COMMAND can have
    /// ([`kept_capabilities`]), as a mask.
    ///
    /// Errors: seccomp(2)'s; EACCES without CAP_SYS_ADMIN and without no_new_privs.
    pub fn load(&self, kept: u64) -> Result<()> {
        let code = self.code(kept);
        let Filter { name, flags, .. } = self;
        let what = format_args!("seccomp(SECCOMP_SET_MODE_FILTER, {flags}, {} instructions of {name})", code.len());
        trace::op(what, || process::seccomp_filter(&code, *flags)).map_err(|error| match error.errno() {
            Some(Errno::EACCES) => error.hint("without CAP_SYS_ADMIN a filter needs --no-new-privs"),
            Some(Errno::EINVAL) => error.hint("this kernel has no seccomp filters, or not this flag"),
            _ => error,
        })
    }

    /// The instructions for a COMMAND that keeps these capabilities.
    fn code(&self, kept: u64) -> Vec<[u8; 8]> {
        let mut code = self.program.code.clone();
        for (at, mask) in &self.program.gates {
            if let Some(instruction) = code.get_mut(usize::from(*at)).filter(|_| kept & mask != 0) {
                *instruction = ALLOW_NOW;
            }
        }
        code
    }
}

/// The capabilities that COMMAND can come to have, as a mask: those permitted now if it can gain none (no_new_privs), else
/// the bounding set.
pub fn kept_capabilities() -> Result<u64> {
    use nix::libc::{PR_CAPBSET_READ, PR_GET_NO_NEW_PRIVS};
    let asked = |option, argument| process::prctl(option, [argument, 0, 0, 0]);
    let no_new = asked(PR_GET_NO_NEW_PRIVS, 0)
        .map_err(|errno| Error::call(format_args!("prctl(PR_GET_NO_NEW_PRIVS)"), errno))?;
    if no_new != 0 {
        let sets = process::capget().map_err(|errno| Error::call(format_args!("capget()"), errno))?;
        return Ok(sets.permitted);
    }
    // Ends at the first number that this kernel does not know (EINVAL).
    let known = (0..64).map_while(|capability| asked(PR_CAPBSET_READ, capability).ok().map(|held| (capability, held)));
    Ok(known.filter(|(_, held)| *held == 1).fold(0, |all, (capability, _)| all | 1 << capability))
}
