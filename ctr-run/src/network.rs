//! The network: which namespace, what connects it, and the names in it.

use crate::cli::Cli;
use crate::container::{Container, Namespace};
use chain::{Error, Result};
use std::ffi::OsString;

/// The namespace that `--net` means. Error: none of them.
pub fn namespace(value: &str) -> Result<Namespace> {
    match value {
        "new" | "none" | "pasta" => Ok(Namespace::New),
        "host" => Ok(Namespace::Host),
        path if path.starts_with('/') => Ok(Namespace::Path(path.into())),
        other => Err(Error::usage(format_args!("--net={other:?}: not new, none, host, pasta or a path"))
            .hint("bridged networks are not supported: join one that is there, --net=/proc/PID/ns/net")),
    }
}

/// What joins a new network with the machine's, as arguments of `ns-enter`. Error: ports without it.
pub fn connection(cli: &Cli) -> Result<Vec<OsString>> {
    if cli.net != "pasta" {
        return match cli.publish.first() {
            None => Ok(Vec::new()),
            Some(port) => Err(Error::usage(format_args!("-p {port:?}: --net={} publishes no ports", cli.net))
                .hint("add --net=pasta (package passt); with --net=host every port is the machine's anyway")),
        };
    }
    let ports = cli.publish.iter().map(|port| format!("--publish={port}").into());
    Ok(std::iter::once("--pasta".into()).chain(ports).collect())
}

/// /etc/hosts and /etc/resolv.conf, as arguments of `vol-bind`. Each is a mount more, so a container that can reach no one
/// has its image's, unless it is given names.
pub fn names(cli: &Cli, container: &Container) -> Vec<OsString> {
    let mut out: Vec<OsString> = cli.dns.iter().map(|server| format!("--dns={server}").into()).collect();
    let (host, pasta) = (cli.net == "host", cli.net == "pasta");
    if out.is_empty() && (host || pasta) {
        out.push(if host { "--resolv-conf=host" } else { "--resolv-conf=auto" }.into());
    }
    if host || pasta || !cli.add_host.is_empty() || cli.hostname.is_some() {
        let own = container.hostname.as_ref().filter(|_| container.namespace("uts") == &Namespace::New);
        out.extend(own.map(|name| format!("--add-host={name}:127.0.1.1").into()));
        out.extend(cli.add_host.iter().map(|host| format!("--add-host={host}").into()));
    }
    out
}
