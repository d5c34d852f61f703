//! `--check`: whether a mount can be had here, without leaving one, and without touching the writable layer.

use crate::layers::Layers;
use crate::overlay::Overlay;
use crate::request::{Request, Upper};
use crate::target::Target;
use crate::writable::Writable;
use crate::{bind, explain, fuse};
use chain::sys::mount;
use chain::trace::op;
use chain::{Error, Outcome, Result, ResultExt, userns};
use nix::unistd::{AccessFlags, access};

/// Says what would be mounted. Errors: as the mount's, and what in the facts speaks against it.
pub fn check(request: &Request) -> Result<Outcome> {
    let (paths, _) = crate::layers(request)?;
    let layers = Layers::open(&paths)?;
    let at = Target::open(&request.at)?;
    let writable = match &request.upper {
        Upper::Directory { upper, work } => Some(Writable::hold(upper, work)?),
        _ => None,
    };
    if let Some(writable) = &writable {
        fit(writable, request.fuse)?;
    }
    let how = match request.fuse {
        true => {
            fuse::check()?;
            "fuse-overlayfs"
        }
        false => kernel(request, &layers)?,
    };
    let upper = match &request.upper {
        Upper::None => "read-only".into(),
        Upper::Scratch(_) => "with a writable layer in memory".into(),
        Upper::Directory { upper, .. } => format!("with the writable layer {upper:?}"),
    };
    let number = layers.all().len();
    let plural = if number == 1 { "layer" } else { "layers" };
    Ok(Outcome::Text(format!("{number} {plural} can be mounted at {:?}, {upper}, by {how}\n", at.real_path()?)))
}

/// Whether the caller's directories can be a writable layer.
fn fit(writable: &Writable, fuse: bool) -> Result<()> {
    for path in [&writable.upper_path, &writable.work_path] {
        access(path, AccessFlags::W_OK).call(format_args!("access({path:?}, W_OK)"))?;
    }
    writable.refuse_second()?;
    match explain::misfit(writable) {
        Some(why) if !fuse => Err(Error::new(why)),
        _ => Ok(()),
    }
}

/// Mounts what can be mounted without a trace, nowhere, and lets it go.
fn kernel(request: &Request, layers: &Layers) -> Result<&'static str> {
    let Some(top) = layers.top() else { return Ok("nothing") };
    let initial = userns::is_initial();
    let alone = layers.all().len() == 1;
    let overlay_is_there =
        || op(format_args!("fsopen(\"overlay\")"), || mount::fsopen("overlay")).map_err(explain::no_overlay);
    let writable = match &request.upper {
        Upper::None if alone => {
            bind::detached(top)?;
            return Ok("a bind mount");
        }
        // The kernel writes to the work directory when it mounts, so that this stays out.
        Upper::Directory { .. } if alone => {
            overlay_is_there()?;
            return Ok("overlay");
        }
        Upper::Scratch(size) => Some(Writable::scratch(*size, top, initial)?),
        _ => None,
    };
    let overlay = Overlay { layers, writable: writable.as_ref(), volatile: request.volatile, initial };
    if overlay.can_be_nowhere() {
        overlay.detached()?
    } else {
        overlay_is_there()?
    };
    Ok("overlay")
}
