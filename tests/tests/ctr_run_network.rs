//! `ctr-run --net pasta`: a container's network that reaches the world, and is reached through ports.

use ctr_tests::image::busybox;
use ctr_tests::{Scratch, Who, finish, has, is_root};

/// A network of its own that is like a machine's, with a second address and a /dev/net/tun for all, to run `script` in. No
/// process, pasta among them, may be left of it.
fn on_a_machine(scratch: &Scratch, script: &str) -> ctr_tests::Output {
    let (uid, gid) = (scratch.who.uid(), scratch.who.gid());
    let tun = scratch.path("tun");
    let setup = format!(
        "test -e {0} || mknod {0} c 10 200; chmod 666 {0}; mount --bind {0} /dev/net/tun\n\
         ip link set lo up; ip link add lan type veth peer name wan; ip link set wan up; ip address add 192.0.2.9/24 dev lan; ip link set lan up\n\
         ip address add 198.51.100.1/32 dev lan; ip route add default via 192.0.2.1\n\
         if test -e resolv.conf; then mount --bind resolv.conf /etc/resolv.conf; perl name-server.pl & fi\n\
         exec setpriv --reuid {uid} --regid {gid} --clear-groups bash -euc \"$1\"",
        tun.display()
    );
    let root = Scratch::new(Who::Root);
    let mut command = root.command("unshare");
    command.args(["--net", "--mount", "sh", "-euc", &setup, "sh", script]);
    command.env("CTR_STORE", scratch.store()).env("HOME", scratch.path("home")).current_dir(scratch.path(""));
    finish(&mut command)
}

#[test]
fn pasta_connects_with_ports_and_leaves_nothing() {
    if !is_root() || !has("pasta") {
        return;
    }
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        // In through a published port and out to another address of the machine.
        let inside = "ip route | grep -c default; (echo out; sleep 0.2) | busybox nc 198.51.100.1 7000; echo in | busybox nc -l -p 80";
        let script = format!(
            "busybox nc -l -p 7000 -e head -n 1 &\n\
             ctr-run --net pasta -p 127.0.0.1:8080:80 --dns 9.9.9.9 {image} sh -c '{inside}' >container &\n\
             for i in $(seq 200); do read -rt 5 read 2>/dev/null </dev/tcp/127.0.0.1/8080 && break; sleep 0.05; done\n\
             echo \"$read\"; wait; head -n 2 container"
        );
        let output = on_a_machine(&scratch, &script);
        assert_eq!(output.ok(), "in\n1\nout\n", "{who:?}: {}", output.stderr);
        let busy = format!(
            "busybox nc -l -p 8081 & listener=$!; sleep 0.2; ctr-run --net pasta -p 8081:80 {image} true || echo $?; kill $listener"
        );
        let output = on_a_machine(&scratch, &busy);
        assert!(output.text() == "125\n" && output.stderr.contains("another program has this port"), "{output:?}");
    }
    let (scratch, image) = busybox(Who::User);
    let output = on_a_machine(&scratch, &format!("ctr-run --net pasta -p 80:80 {image} true"));
    output.fails(125, &["port 80", "(EACCES)", "net.ipv4.ip_unprivileged_port_start=80"]);
}

#[test]
fn the_printed_script_connects_the_same() {
    if !is_root() || !has("pasta") || !has("perl") {
        return;
    }
    for who in Who::all() {
        let scratch = Scratch::new(who);
        // A datagram in, through a port of another number, and names that are asked for.
        scratch.write(
            "receive.pl",
            "use Socket; alarm 30; socket(S, PF_INET, SOCK_DGRAM, 0); bind(S, sockaddr_in(53, INADDR_ANY)) or die; recv(S, $m, 99, 0); print $m;",
        );
        let words = "--net pasta -p 127.0.0.1:5353:53/udp --dns 9.9.9.9 -v ./receive.pl:/mnt/receive.pl rootfs:/ \
                     sh -c 'cat /etc/resolv.conf; perl /mnt/receive.pl'";
        scratch.write("direct.sh", format!("exec ctr-run {words}"));
        let script = format!(
            "ctr-run --print {words} >by-hand.sh\n\
             for run in direct.sh by-hand.sh; do\n\
               sh $run >container & job=$!\n\
               for i in $(seq 600); do kill -0 $job 2>/dev/null || break; echo datagram >/dev/udp/127.0.0.1/5353 || true; sleep 0.05; done 2>/dev/null\n\
               wait $job; cat container\n\
             done"
        );
        let want = "nameserver 9.9.9.9\ndatagram\n";
        let output = on_a_machine(&scratch, &script);
        assert_eq!(output.ok(), want.repeat(2), "{who:?}: {}", output.stderr);
    }
}

#[test]
fn ports_are_checked_before_anything_starts() {
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        for (port, words) in [
            ("80", "OUTER:INNER"),
            ("x:80", "\"x:80\""),
            ("8080:80/icmp", "8080:80/icmp"),
            ("70000:80", "70000"),
            ("1.2.3:80:80", "1.2.3:80:80"),
        ] {
            scratch.run("ctr-run", ["--net", "pasta", "-p", port, &image, "true"]).fails(125, &[words]);
        }
        scratch.run("ctr-run", ["-p", "8080:80", &image, "true"]).fails(125, &["-p \"8080:80\"", "add --net=pasta"]);
    }
}

/// Answers each question for an address with 203.0.113.7, until it is told to stop.
const NAME_SERVER: &str = r#"use Socket; alarm 80; socket(S, PF_INET, SOCK_DGRAM, 0);
bind(S, sockaddr_in(53, inet_aton("198.51.100.1"))) or die;
while (my $from = recv(S, my $m, 512, 0)) {
    last if $m =~ /^stop/;
    my ($id, $name) = (substr($m, 0, 2), substr($m, 12));
    my $end = index($name, "\0") + 5;
    my $question = substr($name, 0, $end);
    my $is_a = substr($question, -4) eq "\0\1\0\1";
    my $answer = $is_a ? "\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" . inet_aton("203.0.113.7") : "";
    send(S, $id . "\x81\x80" . pack("nnnn", 1, $is_a ? 1 : 0, 0, 0) . $question . $answer, 0, $from);
}
"#;

#[test]
fn names_are_resolved_as_on_the_machine() {
    if !is_root() || !has("pasta") || !has("perl") {
        return;
    }
    for who in Who::all() {
        let (scratch, image) = busybox(who);
        scratch.write("name-server.pl", NAME_SERVER);
        // One that only the machine itself can reach, and one that others can.
        scratch.write("resolv.conf", "nameserver 127.0.0.53\nnameserver 198.51.100.1\n");
        let look = "busybox nslookup -type=a name.example 2>&1 | grep -c 203.0.113.7";
        let script = format!(
            "ctr-run --net pasta {image} sh -c '{look}' || true; ctr-run --net host {image} sh -c 'grep -c 127.0.0.53 /etc/resolv.conf'; \
             echo stop >/dev/udp/198.51.100.1/53"
        );
        assert_eq!(on_a_machine(&scratch, &script).ok(), "1\n1\n", "{who:?}");
    }
}
