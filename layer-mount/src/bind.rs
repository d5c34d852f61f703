//! One layer without a writable one: overlayfs wants two, so it is a read-only bind mount.
//!
//! Not recursive, as a union does not show what is mounted below a layer either.

use crate::layers::Layer;
use crate::target::Target;
use chain::Result;
use chain::sys::mount::{self, AT_EMPTY_PATH, ATTR_RDONLY, Change, OPEN_TREE_CLONE};
use chain::trace::op;
use nix::errno::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Mounts `layer` at `at`, read-only.
pub fn mount(layer: &Layer, at: &Target) -> Result<()> {
    at.attach(detached(layer)?)
}

/// A read-only mount of `layer` that is nowhere yet, in no peer group: what is mounted below it later stays there.
pub fn detached(layer: &Layer) -> Result<OwnedFd> {
    let clone = op(format_args!("open_tree({:?}, OPEN_TREE_CLONE)", layer.path), || {
        mount::open_tree(Some(layer.as_fd()), Path::new(""), OPEN_TREE_CLONE | AT_EMPTY_PATH)
    })
    .map_err(|error| match error.errno() {
        Some(Errno::EINVAL) => crate::explain::locked(error, layer),
        _ => crate::explain::not_permitted(error),
    })?;
    op(format_args!("mount_setattr({:?}, MOUNT_ATTR_RDONLY, MS_PRIVATE)", layer.path), || {
        let change =
            Change { set: ATTR_RDONLY, propagation: nix::mount::MsFlags::MS_PRIVATE.bits(), ..Change::default() };
        mount::mount_setattr(&clone, false, change)
    })?;
    Ok(clone)
}
