//! `--cap-add` and `--cap-drop` on a list of names.

use chain::{Error, Result};

/// `kept` with `add` given and `drop` taken away. `all` stands for every capability. Names with or without `CAP_`, in either
/// case; whether there is such a capability is for `ns-enter` to say.
pub fn change(kept: &[String], add: &[String], drop: &[String]) -> Result<Vec<String>> {
    let (add, drop) = (names(add)?, names(drop)?);
    let all = |list: &[String]| list.iter().any(|name| name == "all");
    if all(&drop) {
        return Ok(if all(&add) { vec!["all".into()] } else { add });
    }
    if all(&add) || all(kept) {
        let mut out = vec!["all".to_string()];
        out.extend(drop.iter().map(|name| format!("-{name}")));
        return Ok(out);
    }
    let mut out: Vec<String> = kept.iter().filter(|name| !drop.contains(name)).cloned().collect();
    out.extend(add.into_iter().filter(|name| !kept.contains(name) && !drop.contains(name)));
    Ok(out)
}

/// The names that a list made by [`change`] stands for; `all` is what the kernel of this project's floor knows
/// (capabilities(7)).
pub fn listed(kept: &[String]) -> Vec<String> {
    match kept.split_first() {
        Some((first, dropped)) if first == "all" => {
            let gone = |name: &&str| dropped.iter().any(|dropped| dropped.strip_prefix('-') == Some(name));
            ALL.iter().filter(|name| !gone(name)).map(|name| name.to_string()).collect()
        }
        _ => kept.to_vec(),
    }
}

/// Those of `names` that are in the bounding set of the process whose `/proc/PID/status` is `status`; all if it says nothing.
pub fn bounded(names: Vec<String>, status: &str) -> Vec<String> {
    let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:")?.trim().into());
    let Some(set) = set.and_then(|set| u64::from_str_radix(set, 16).ok()) else { return names };
    let held = |name: &String| ALL.iter().position(|known| name == known).is_none_or(|bit| set & 1 << bit != 0);
    names.into_iter().filter(held).collect()
}

/// By their numbers.
const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

fn names(list: &[String]) -> Result<Vec<String>> {
    list.iter().flat_map(|names| names.split(',')).map(name).collect()
}

fn name(text: &str) -> Result<String> {
    if text.eq_ignore_ascii_case("all") {
        return Ok("all".into());
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if bare.is_empty() || !bare.chars().all(|c| c.is_ascii_alphabetic() || c == '_') {
        return Err(Error::usage(format_args!("capability {text:?}: not a name as in capabilities(7)")));
    }
    Ok(format!("CAP_{bare}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(kept: &[&str], add: &[&str], drop: &[&str]) -> String {
        let own = |list: &[&str]| list.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        change(&own(kept), &own(add), &own(drop)).unwrap().join(" ")
    }

    #[test]
    fn names_are_added_and_dropped() {
        assert_eq!(changed(&["CAP_CHOWN", "CAP_KILL"], &["net_admin"], &["CAP_KILL"]), "CAP_CHOWN CAP_NET_ADMIN");
        assert_eq!(changed(&["CAP_CHOWN"], &["CHOWN"], &["all"]), "CAP_CHOWN");
        assert_eq!(changed(&["CAP_CHOWN"], &["ALL"], &["MKNOD"]), "all -CAP_MKNOD");
        assert_eq!(changed(&["all"], &[], &[]), "all");
        let all = listed(&["all".into()]);
        assert_eq!(bounded(all.clone(), "CapBnd:\t0000000000000021\n"), ["CAP_CHOWN", "CAP_KILL"]);
        assert_eq!(bounded(all.clone(), ""), all);
        assert!(change(&[], &["a b".into()], &[]).is_err());
    }
}
