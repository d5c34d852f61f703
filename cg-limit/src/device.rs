//! Which disk is meant: a device node, a partition, or any path on a file system, resolved to the whole disk, which is what
//! the kernel limits.

use crate::limits::{Bound, Flow, Rate};
use chain::{Error, Result, ResultExt};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// From `DEVICE:RATE`. Errors: no rate, a rate of 0 (the kernel would take it for none, or not at all), no disk.
pub fn rate(flow: Flow, text: &str) -> Result<Rate> {
    let wrong = |why: &str| Error::usage(format_args!("{text:?}: {why}")).hint("write DEVICE:RATE, as in /dev/sda:10M");
    let (device, rate) =
        text.rsplit_once(':').filter(|(device, _)| !device.is_empty()).ok_or_else(|| wrong("no RATE"))?;
    let rate = match flow {
        Flow::ReadBytes | Flow::WriteBytes => Bound::size(rate)?,
        Flow::Reads | Flow::Writes => Bound::count("rate", rate)?,
    };
    if rate == Bound::At(0) {
        return Err(wrong("a rate of 0"));
    }
    Ok(Rate { device: disk(device)?, flow, rate })
}

/// The whole disk behind `name`: `MAJOR:MINOR`, a node, or a path.
pub fn disk(name: &str) -> Result<(u64, u64)> {
    let device = match numbers(name) {
        Some(device) => device,
        None => of_path(Path::new(name))?,
    };
    let (major, minor) = device;
    let place = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    if !place.join("partition").exists() {
        return Ok(device);
    }
    let path = place.join("../dev");
    let whole = fs::read_to_string(&path).call(format_args!("read({path:?})"))?;
    numbers(whole.trim()).ok_or_else(|| Error::new(format_args!("{path:?}: {whole:?} is no device")))
}

fn of_path(path: &Path) -> Result<(u64, u64)> {
    let metadata = path.metadata().call(format_args!("stat({path:?})"))?;
    let number = if metadata.file_type().is_block_device() { metadata.rdev() } else { metadata.dev() };
    let device = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    if device.0 == 0 {
        return Err(Error::new(format_args!("{path:?}: its file system ({}) is on no single disk", file_system(path)))
            .hint("name the disk: lsblk lists them"));
    }
    Ok(device)
}

/// The type of the file system that `path` is on, from the longest mount point above it.
fn file_system(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let mounts = chain::mountinfo::read("self").unwrap_or_default();
    let above = mounts.into_iter().filter(|mount| path.starts_with(&mount.point));
    above.max_by_key(|mount| mount.point.as_os_str().len()).map_or("unknown".into(), |mount| mount.fs_type)
}

/// `8:0`.
fn numbers(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_name_a_disk_and_a_rate() {
        let of = |text: &str| rate(Flow::WriteBytes, text);
        assert_eq!(of("7:0:1M").unwrap(), Rate { device: (7, 0), flow: Flow::WriteBytes, rate: Bound::At(1 << 20) });
        assert_eq!(of("7:0:max").unwrap().rate, Bound::Max);
        for text in ["/dev/null", "7:0:0", ":1M", "/no/such:1M", "/proc:1M", "7:0:fast"] {
            assert!(of(text).is_err(), "{text}");
        }
        assert!(of("/proc:1M").unwrap_err().to_string().contains("(proc)"));
    }
}
