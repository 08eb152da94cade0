//! Resolvers of their own and caches in front: Go's, Java's, and systemd-resolved.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};

use super::resolvers::{BOTH, CLUSTERED, CLUSTERED_ROWS, PLAIN, PLAIN_ROWS};
use super::resolvers::{check, compiled, looked_up, on_a_machine, resolv_conf, with_name};
use crate::harness::{NOBODY, end, small_disk, until};
use crate::programs::{Running, command};

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/binary/clients");

#[test]
fn go() {
    on_a_machine(&["go"], |site| {
        let program = site.path("lookup");
        let mut build = Command::new("go");
        build.args(["build", "-o"]).arg(&program).arg(format!("{SOURCES}/lookup.go"));
        // Without C, names are looked up by Go itself.
        build.env("HOME", &site.directory).envs([("CGO_ENABLED", "0"), ("GO111MODULE", "off"), ("GOFLAGS", "")]);
        let built = end(&mut build);
        assert_eq!(built.code, Some(0), "{built:?}");
        for (conf, rows) in [(PLAIN, &PLAIN_ROWS), (CLUSTERED, &CLUSTERED_ROWS)] {
            resolv_conf(site, conf);
            check(site, "go", rows, &[("a.b.corp.example", "NONAME", 2)], |name| with_name(&program, &[], name));
        }
        resolv_conf(site, &format!("{PLAIN}options use-vc\n"));
        let (words, _) = looked_up(site, &mut with_name(&program, &[], "www.corp.example"));
        assert_eq!((&*words, &site.queries().pop().unwrap()["transport"]), (BOTH, &"tcp".into()));
        // SERVFAIL is tried again at once, and then said.
        let (words, asked) = looked_up(site, &mut with_name(&program, &[], "gone.example.net."));
        assert!(words == "AGAIN" && asked.len() <= 12, "{words} {asked:?}");
    });
}

#[test]
fn java_and_what_it_remembers() {
    on_a_machine(&["javac", "java"], |site| {
        let java = |names: &[&str]| {
            let mut command = Command::new("java");
            command.arg(format!("{SOURCES}/Lookup.java")).args(names);
            looked_up(site, &mut command)
        };
        let (words, asked) =
            java(&["www.corp.example", "four.corp.example", "six.corp.example", "denied.corp.example"]);
        assert_eq!(
            words,
            "denied.corp.example=Name-or-service-not-known four.corp.example=192.0.2.4 \
             six.corp.example=2001:db8:0:0:0:0:0:6 www.corp.example=192.0.2.80+2001:db8:0:0:0:0:0:80"
        );
        assert_eq!(asked.len(), 8, "{asked:?}");
        // A process keeps what it was told, 30 s where it is an address and 10 s where there is none.
        let names = ["denied.corp.example", "www.corp.example"];
        let (_, asked) = java(&[names, names].concat());
        assert_eq!(asked.len(), 4, "{asked:?}");
        resolv_conf(site, CLUSTERED);
        let (words, asked) = java(&["api", "denied.corp.example."]);
        assert_eq!((&*words, asked.len()), ("api=192.0.2.81 denied.corp.example.=Name-or-service-not-known", 4));
    });
}

/// Where systemd-resolved is, if it is. To install it is to hand it the host's resolv.conf, so nobody does that for a test:
/// also where `CI=true` it runs only if it is there.
fn systemd_resolved() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/lib/systemd".into()]);
    let found = places.map(|directory| directory.join("systemd-resolved")).find(|program| program.is_file());
    if found.is_none() {
        println!("skipped: there is no systemd-resolved");
    }
    found
}

#[test]
fn systemd_resolved_in_front() {
    let Some(program) = systemd_resolved() else { return };
    on_a_machine(&["cc", "dig", "ip"], |site| {
        let glibc = compiled(site, "cc", &[]);
        // It needs no bus, but a user and places of its own.
        small_disk(Path::new("/run"), 1 << 20);
        small_disk(Path::new("/etc/systemd"), 1 << 20);
        fs::create_dir_all("/run/systemd/resolve").unwrap();
        std::os::unix::fs::chown("/run/systemd/resolve", Some(NOBODY), Some(NOBODY)).unwrap();
        // Nor does it ask anybody before there is a network besides loopback.
        for line in [
            "link add here type veth peer name there",
            "addr add 192.0.2.254/32 dev here",
            "link set here up",
            "link set there up",
        ] {
            assert_eq!(end(Command::new("ip").args(line.split(' '))).code, Some(0), "{line}");
        }
        let settings =
            "[Resolve]\nDNS=127.0.0.1\nDomains=~.\nDNSSEC=no\nCacheFromLocalhost=yes\nLLMNR=no\nMulticastDNS=no\n";
        fs::write("/etc/systemd/resolved.conf", settings).unwrap();
        site.file("passwd", "root:x:0:0::/:/bin/sh\nsystemd-resolve:x:65534:65534::/:/usr/sbin/nologin\n");
        mount(Some(&site.path("passwd")), "/etc/passwd", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let _running = Running::start(&mut command(program.to_str().unwrap()));
        until("systemd-resolved answers", || {
            end(Command::new("dig").args(["@127.0.0.53", "+tries=1", "+time=1", "localhost"])).code == Some(0)
        });
        resolv_conf(site, "nameserver 127.0.0.53\noptions edns0 trust-ad\n");
        for (name, told, _) in PLAIN_ROWS {
            let (words, asked) = looked_up(site, &mut with_name(&glibc, &[], name));
            assert_eq!(words, told, "{name}: {asked:?}");
            assert!(asked.len() <= 2, "{name}: {asked:?}");
            // It keeps what it was told, refusals for the 5 s of their SOA.
            let (words, asked) = looked_up(site, &mut with_name(&glibc, &[], name));
            assert_eq!((&*words, asked), (told, Vec::<String>::new()), "{name} again");
        }
    });
}
