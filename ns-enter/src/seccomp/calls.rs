//! Architectures and the numbers of their system calls. No dependency, since the build script uses this file too.

/// An architecture that programs here can be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
}

/// The bit that marks x32's calls, which the kernel tells to filters as x86_64's.
pub const X32_BIT: u32 = 0x4000_0000;

impl Architecture {
    /// Column of `calls.txt`.
    fn column(self) -> usize {
        self as usize
    }

    /// `AUDIT_ARCH_…` (linux/audit.h).
    pub fn audit(self) -> u32 {
        match self {
            Architecture::X86_64 | Architecture::X32 => 0xc000_003e,
            Architecture::X86 => 0x4000_0003,
            Architecture::Aarch64 => 0xc000_00b7,
            Architecture::Arm => 0x4000_0028,
        }
    }

    /// The architectures whose programs a machine can run, its own first; none if it is not known here.
    pub fn of_machine(name: &str) -> &'static [Architecture] {
        match name {
            "x86_64" => &[Architecture::X86_64, Architecture::X86, Architecture::X32],
            "aarch64" => &[Architecture::Aarch64, Architecture::Arm],
            _ => &[],
        }
    }
}

/// The numbers of a call.
#[derive(Clone, Copy, Debug)]
pub struct Numbers<'a>(&'a str);

impl Numbers<'_> {
    /// The call's number on `architecture`, as filters see it, if it has the call.
    pub fn on(self, architecture: Architecture) -> Option<u32> {
        let number: u32 = self.0.split(' ').nth(architecture.column())?.parse().ok()?;
        Some(if architecture == Architecture::X32 { number | X32_BIT } else { number })
    }
}

/// The numbers of the call `name`, if there is one of this name anywhere.
pub fn find(name: &str) -> Option<Numbers<'static>> {
    let lines = include_str!("calls.txt").lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(' ')).find(|(known, _)| *known == name).map(|(_, numbers)| Numbers(numbers))
}
