//! Groups that a killed run left. Where a PID namespace ends all that runs in one, nobody is left to remove it: the next run
//! does.

use crate::group::Group;
use crate::name::Name;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Between the making of a group and its first member; a slow machine has time for that.
const YOUNG: Duration = Duration::from_secs(10);

/// Removes what others left beside `group`, which is COMMAND's own: groups of that kind which are empty, though not new.
/// Who has one is in it, so the kernel keeps it.
pub fn sweep(group: &Group) {
    let Some((beside, own)) = group.parts.first().and_then(|part| part.dir.parent().zip(part.dir.file_name())) else {
        return;
    };
    let names = fs::read_dir(beside).into_iter().flatten().flatten().map(|entry| entry.file_name());
    for name in names.filter(|name| name != own && name.to_str().is_some_and(Name::is_own)) {
        let dirs = group.parts.iter().filter_map(|part| Some(part.dir.parent()?.join(&name)));
        dirs.filter(|dir| is_old(dir)).for_each(|dir| drop(fs::remove_dir(dir)));
    }
}

/// Whether it is there, and has been for long. One that is not there may be just about to be.
fn is_old(dir: &Path) -> bool {
    let made = dir.metadata().and_then(|metadata| metadata.modified());
    made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > YOUNG))
}
