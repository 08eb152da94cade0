//! Resolvers of C libraries and languages, with /etc/resolv.conf as machines have it and as a kubelet writes it.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};

use crate::harness::{Site, end, in_own_network, loopback, privileged, with_own_mounts};
use crate::programs::are_here;

const POLICY: &str = r#"
[[segment]]
name    = "loop"
clients = ["127.0.0.0/8", "::1/128"]

[[rule]]
id       = "corp"
action   = "allow"
segments = ["loop"]
names    = ["www.corp.example", "six.corp.example", "alias.corp.example", "deep.a.b.corp.example", "gone.example.net"]

[[rule]]
id       = "four"
action   = "allow"
segments = ["loop"]
names    = ["four.corp.example", "gone-four.example.net"]
types    = ["A"]

[[rule]]
id       = "cluster"
action   = "allow"
segments = ["loop"]
names    = ["**.svc.cluster.example"]
"#;

const HEAD: &str = "$TTL 5m\n@ SOA ns hostmaster 1 1h 15m 7d 1m\n@ NS ns\nns A 192.0.2.53\n";
const CORP: &str = "www A 192.0.2.80\nwww AAAA 2001:db8::80\nfour A 192.0.2.4\nfour AAAA 2001:db8::4\n\
                    six AAAA 2001:db8::6\nalias CNAME www\ndeep.a.b A 192.0.2.9\n";
const CLUSTER: &str = "api.shop.svc A 192.0.2.81\ndb.data.svc A 192.0.2.82\n";

/// As Debian's installer writes it.
pub(super) const PLAIN: &str = "nameserver 127.0.0.1\n";
/// As a kubelet does.
pub(super) const CLUSTERED: &str =
    "search shop.svc.cluster.example svc.cluster.example cluster.example\nnameserver 127.0.0.1\noptions ndots:5\n";

/// Name, what `getaddrinfo` tells, how many queries it makes.
pub(super) type Row = (&'static str, &'static str, usize);

pub(super) const BOTH: &str = "192.0.2.80 2001:db8::80";

pub(super) const PLAIN_ROWS: [Row; 8] = [
    ("www.corp.example", BOTH, 2),
    ("www.corp.example.", BOTH, 2),
    ("WWW.Corp.Example", BOTH, 2),
    ("alias.corp.example", BOTH, 2),
    // AAAA is refused: NODATA, and nobody waits for it.
    ("four.corp.example", "192.0.2.4", 2),
    ("six.corp.example", "2001:db8::6", 2),
    ("denied.corp.example", "NONAME", 2),
    // Above a name that may be asked: NODATA.
    ("a.b.corp.example", "NODATA", 2),
];

pub(super) const CLUSTERED_ROWS: [Row; 8] = [
    // Found with the first suffix, with the second, with the third.
    ("api", "192.0.2.81", 2),
    ("db.data", "192.0.2.82", 4),
    ("api.shop.svc", "192.0.2.81", 6),
    // A name of the outside is tried with each suffix first, and refused there without a wait.
    ("www.corp.example", BOTH, 8),
    ("four.corp.example", "192.0.2.4", 8),
    ("www.corp.example.", BOTH, 2),
    ("denied.corp.example", "NONAME", 8),
    ("nothing", "NONAME", 8),
];

/// A machine: a network and a file system view of its own, where 127.0.0.1:53 is a node. Skipped, as without root, where
/// one of these programs is missing.
pub(super) fn on_a_machine(programs: &[&str], test: impl FnOnce(&Site) + Send) {
    if !are_here(programs) || !privileged() {
        return;
    }
    in_own_network(|| {
        with_own_mounts(|| {
            let mut site = Site::new();
            site.dns = loopback(53);
            let site = site.with("listen", "[listen]\ndns = [\"127.0.0.1:53\"]\nworkers = 1");
            site.file("policy/loop.toml", POLICY);
            site.file("zones/corp.example.zone", &format!("{HEAD}{CORP}"));
            site.file("zones/cluster.example.zone", &format!("{HEAD}{CLUSTER}"));
            site.file("nsswitch.conf", "hosts: files dns\n");
            site.file("hosts", "127.0.0.1 localhost\n");
            site.file("resolv.conf", PLAIN);
            for file in ["nsswitch.conf", "hosts", "resolv.conf"] {
                let at = Path::new("/etc").join(file);
                mount(Some(&site.path(file)), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            }
            let mut node = site.start();
            test(&site);
            assert_eq!(node.stop(), Some(0));
            site.verified();
        });
    });
}

/// Writes into the file that is mounted: another one in its place would not be seen.
pub(super) fn resolv_conf(site: &Site, text: &str) {
    fs::write(site.path("resolv.conf"), text).unwrap();
}

/// What a program printed, its words sorted, and the questions that it asked meanwhile.
pub(super) fn looked_up(site: &Site, command: &mut Command) -> (String, Vec<String>) {
    let before = site.queries().len();
    let ended = end(command);
    let mut words: Vec<&str> = ended.stdout.split_whitespace().collect();
    words.sort_unstable();
    words.dedup();
    let asked = site.queries().split_off(before);
    let question = |record: &serde_json::Value| format!("{} {}", record["qname"], record["qtype"]).replace('"', "");
    assert!(ended.stderr.is_empty(), "{command:?}: {}", ended.stderr);
    (words.join(" "), asked.iter().map(question).collect())
}

/// Looks up every row; `differs` names what this resolver makes of a row otherwise.
pub(super) fn check(site: &Site, what: &str, rows: &[Row], differs: &[Row], lookup: impl Fn(&str) -> Command) {
    for row in rows {
        let (name, told, count) = differs.iter().find(|other| other.0 == row.0).unwrap_or(row);
        let (words, asked) = looked_up(site, &mut lookup(name));
        assert_eq!((&*words, asked.len()), (*told, *count), "{what} {name}: {asked:?}");
        let once: HashSet<&String> = asked.iter().collect();
        assert_eq!(once.len(), asked.len(), "{what} {name} asked twice: {asked:?}");
    }
}

/// The lookup program, made by a compiler and its C library.
pub(super) fn compiled(site: &Site, compiler: &str, options: &[&str]) -> PathBuf {
    let program = site.path(compiler);
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/binary/clients/lookup.c");
    let made =
        end(Command::new(compiler).args(["-D_GNU_SOURCE", "-Wall", "-o"]).arg(&program).arg(source).args(options));
    assert_eq!(made.code, Some(0), "{made:?}");
    program
}

pub(super) fn with_name(program: &Path, arguments: &[&str], name: &str) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).arg(name);
    command
}

#[test]
fn glibc_and_what_resolves_by_it() {
    on_a_machine(&["cc", "python3", "node", "getent"], |site| {
        let program = compiled(site, "cc", &[]);
        // Python's and node's say of both errors that the name is not known.
        let python = "import socket, sys\ntry:\n  print(*{a[4][0] for a in socket.getaddrinfo(sys.argv[1], 443, type=socket.SOCK_STREAM)})\n\
                      except socket.gaierror as e:\n  print({socket.EAI_NONAME: 'NONAME', socket.EAI_NODATA: 'NODATA'}.get(e.errno, e))";
        let node = "require('dns').lookup(process.argv[1], {all: true}, (e, all) => \
                    console.log(e ? e.code : all.map(a => a.address).join(' ')))";
        for (conf, rows) in [(PLAIN, &PLAIN_ROWS), (CLUSTERED, &CLUSTERED_ROWS)] {
            resolv_conf(site, conf);
            check(site, "glibc", rows, &[], |name| with_name(&program, &[], name));
            check(site, "python", rows, &[], |name| with_name(Path::new("python3"), &["-c", python], name));
            check(
                site,
                "node",
                rows,
                &[
                    ("denied.corp.example", "ENOTFOUND", if conf == PLAIN { 2 } else { 8 }),
                    ("nothing", "ENOTFOUND", 8),
                    ("a.b.corp.example", "ENOTFOUND", 2),
                ],
                |name| with_name(Path::new("node"), &["-e", node], name),
            );
        }
        // getent prints each address for three kinds of sockets, and nothing where there is none.
        let (words, asked) = looked_up(site, Command::new("getent").args(["ahosts", "www.corp.example."]));
        assert_eq!((words, asked.len()), ("192.0.2.80 2001:db8::80 DGRAM RAW STREAM www.corp.example".into(), 2));
        let (words, asked) = looked_up(site, Command::new("getent").args(["ahosts", "denied.corp.example."]));
        assert_eq!((words, asked.len()), (String::new(), 2));
    });
}

#[test]
fn glibc_with_the_options_that_people_set() {
    on_a_machine(&["cc"], |site| {
        let program = compiled(site, "cc", &[]);
        for (options, transport) in [
            ("edns0 trust-ad", "udp"),
            ("single-request", "udp"),
            ("single-request-reopen", "udp"),
            ("rotate timeout:1 attempts:1", "udp"),
            ("use-vc", "tcp"),
        ] {
            resolv_conf(site, &format!("{PLAIN}options {options}\n"));
            check(site, options, &PLAIN_ROWS, &[], |name| with_name(&program, &[], name));
            let last = site.queries().pop().unwrap();
            assert_eq!(last["transport"], transport, "{options}");
        }
    });
}

/// Why NXDOMAIN is what a denied name meets, unless a segment says otherwise.
#[test]
fn each_refusal_as_c_libraries_take_it() {
    on_a_machine(&["cc", "musl-gcc"], |site| {
        let programs = [compiled(site, "cc", &[]), compiled(site, "musl-gcc", &["-static"])];
        // To musl REFUSED is no answer: it waits for a better one until its time is up, 5 s where nothing is said.
        resolv_conf(site, &format!("{CLUSTERED}options timeout:1\n"));
        for (refusal, denied, searched) in [
            ("nxdomain", ["NONAME", "NONAME"], [BOTH, BOTH]),
            ("nodata", ["NODATA", "NONAME"], [BOTH, "NONAME"]),
            ("refused", ["AGAIN", "AGAIN"], [BOTH, "AGAIN"]),
        ] {
            let segment = format!("clients = [\"127.0.0.0/8\", \"::1/128\"]\nrefusal = \"{refusal}\"");
            site.file("policy/loop.toml", &POLICY.replace("clients = [\"127.0.0.0/8\", \"::1/128\"]", &segment));
            assert_eq!(site.run(&["reload"]).code, Some(0));
            for (number, program) in programs.iter().enumerate() {
                let told = looked_up(site, Command::new(program).arg("denied.corp.example.")).0;
                assert_eq!(told, denied[number], "{refusal} {program:?}");
                // The third suffix makes a name that is denied.
                let told = looked_up(site, Command::new(program).arg("www.corp.example")).0;
                assert_eq!(told, searched[number], "{refusal} {program:?}, searched");
            }
        }
    });
}

#[test]
fn musl() {
    on_a_machine(&["musl-gcc"], |site| {
        let program = compiled(site, "musl-gcc", &["-static"]);
        for (conf, rows) in [(PLAIN, &PLAIN_ROWS), (CLUSTERED, &CLUSTERED_ROWS)] {
            resolv_conf(site, conf);
            check(site, "musl", rows, &[("a.b.corp.example", "NONAME", 2)], |name| with_name(&program, &[], name));
        }
    });
}

#[test]
fn a_resolver_that_asks_by_itself() {
    on_a_machine(&["node"], |site| {
        let script = "const dns = require('dns'); const [name, kind] = process.argv.slice(1);\n\
                      dns.resolve(name, kind, (e, all) => console.log(e ? e.code : all.flat().join(' ')))";
        for (name, kind, told) in [
            ("www.corp.example", "A", "192.0.2.80"),
            ("alias.corp.example", "AAAA", "2001:db8::80"),
            ("four.corp.example", "AAAA", "ENODATA"),
            ("www.corp.example", "MX", "ENODATA"),
            ("denied.corp.example", "A", "ENOTFOUND"),
        ] {
            let (words, asked) = looked_up(site, Command::new("node").args(["-e", script, name, kind]));
            assert_eq!((&*words, asked), (told, vec![format!("{name} {kind}")]), "{name} {kind}");
        }
    });
}

#[test]
fn a_dead_upstream_is_an_error_to_try_again_and_soon_said() {
    on_a_machine(&["cc", "musl-gcc"], |site| {
        let glibc = compiled(site, "cc", &[]);
        let musl = compiled(site, "musl-gcc", &["-static"]);
        for (program, name, told) in [
            (&glibc, "gone.example.net.", "AGAIN"),
            (&musl, "gone.example.net.", "AGAIN"),
            // AAAA is refused here, and is no data. To glibc that is the answer, for all that A may yet have been.
            (&glibc, "gone-four.example.net.", "NODATA"),
            (&musl, "gone-four.example.net.", "AGAIN"),
        ] {
            let (words, asked) = looked_up(site, Command::new(program).arg(name));
            // SERVFAIL is asked again at once, a few times; nobody waits for what does not come.
            assert_eq!(words, told, "{program:?} {name}: {asked:?}");
            assert!(asked.len() <= 12, "{program:?} {name}: {asked:?}");
        }
        assert!(site.queries().iter().all(|record| record["latency_us"].as_u64().unwrap() < 2_000_000));
    });
}
