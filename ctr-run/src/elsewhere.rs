//! Options of `docker run` that are not here, with what to use instead.

use chain::Error;

const BEFORE: [(&str, &str); 8] = [
    ("--blkio-weight", "cg-limit --io-weight N"),
    ("--cgroup-parent", "cg-limit --name GROUP"),
    ("--cpu-rt-period", "cg-limit --set cpu.rt_period_us=N"),
    ("--cpu-rt-runtime", "cg-limit --set cpu.rt_runtime_us=N"),
    ("--cpuset-mems", "cg-limit --cpuset-mems LIST"),
    ("--memory-reservation", "cg-limit --memory-low SIZE"),
    ("--memory-swappiness", "cg-limit --set memory.swappiness=N (version 1)"),
    ("--oom-score-adj", "ns-enter --oom-score-adj N"),
];

const INSTEAD: [(&[&str], &str); 33] = [
    (&["--annotation"], "--label puts it among the document's annotations"),
    (&["--attach", "-a"], "redirect what is not wanted, as with any command"),
    (&["--blkio-weight-device"], "cg-limit --set FILE=VALUE writes it"),
    (&["--cgroupns"], "the cgroup namespace is always the container's own"),
    (&["--cpu-count", "--cpu-percent", "--io-maxbandwidth", "--io-maxiops", "--isolation"], "this is for Windows"),
    (&["--cpu-period", "--cpu-quota"], "--cpus N is the quota divided by the period"),
    (&["--detach", "-d"], "put & after the command: the shell does that"),
    (&["--detach-keys"], "there is nothing to detach from: Ctrl-Z stops it, and bg lets it go on"),
    (&["--device-cgroup-rule"], "name the devices with --device"),
    (&["--disable-content-trust"], "images are files here: what fetches them verifies them"),
    (&["--dns-option", "--dns-opt", "--dns-search"], "mount a file of your own: -v ./resolv.conf:/etc/resolv.conf"),
    (&["--domainname"], "--sysctl kernel.domainname=NAME"),
    (&["--expose"], "publish ports with -p and --net pasta"),
    (&["--gpus"], "name the devices with --device"),
    (
        &["--health-cmd", "--health-interval", "--health-retries", "--health-timeout"],
        "run the check with ns-enter --target PID --all",
    ),
    (&["--health-start-interval", "--health-start-period"], "run the check with ns-enter --target PID --all"),
    (&["--ip", "--ip6", "--link-local-ip", "--mac-address"], "--net pasta gives an address like the machine's"),
    (&["--kernel-memory"], "--memory counts the kernel's, too"),
    (&["--label-file"], "give each with --label"),
    (&["--link", "--network-alias", "--net-alias"], "containers share a network with --net /proc/PID/ns/net"),
    (&["--log-driver", "--log-opt"], "redirect the output, as of any command"),
    (&["--no-healthcheck"], "there are no health checks: leave it out"),
    (&["--oom-kill-disable"], "cg-limit --set memory.oom_control=1 (version 1) writes it"),
    (&["--publish-all", "-P"], "name each port with -p"),
    (&["--pull"], "images are files here: skopeo copy, docker save or podman save make them"),
    (&["--quiet", "-q"], "progress is shown on a terminal alone: 2>/dev/null"),
    (&["--restart"], "a service manager, or a shell loop, starts it again"),
    (&["--runtime"], "--print=oci is for other runtimes"),
    (&["--sig-proxy"], "signals are always passed on: leave it out"),
    (&["--storage-opt"], "--store DIR is on a file system of the size that is wanted"),
    (&["--use-api-socket"], "there is no daemon"),
    (&["--volume-driver"], "mount it first, and name its directory with -v"),
    (&["--volumes-from"], "name the same volumes with -v"),
];

/// What to say of the option that `error` (clap's, on one line) does not know; else `error`.
pub fn explain(error: Error) -> Error {
    let text = error.to_string();
    let unknown = text.strip_prefix("unexpected argument '").and_then(|rest| rest.split('\'').next());
    let Some(option) = unknown else { return error };
    let refused = || Error::usage(format_args!("{option} is not supported"));
    if let Some((_, link)) = BEFORE.iter().find(|(name, _)| *name == option) {
        let (link, note) =
            link.split_once(" (").map_or((*link, String::new()), |(link, note)| (link, format!(" ({note}")));
        return refused().hint(format_args!("begin with: {link} -- ctr-run …{note}"));
    }
    match INSTEAD.iter().find(|(names, _)| names.contains(&option)) {
        Some((_, instead)) => refused().hint(instead),
        None => error,
    }
}
