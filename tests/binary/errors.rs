//! Each thing that can be wrong, as the operator sees it: the exit code, one sentence with its remedy, nothing bound.

use std::fs::{self, File, Permissions};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;

use crate::harness::{Ended, Site, in_own_network, privileged, small_disk, with_own_mounts};

/// Asserts the exit code and the whole of what was said.
fn says(ended: &Ended, code: i32, text: &str) {
    assert_eq!(ended.stderr, format!("outgate: {text}\n"));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(code), ""));
}

/// Asserts that nobody listens where the site would.
fn nothing_is_bound(site: &Site) {
    for address in [site.dns, site.health] {
        drop((UdpSocket::bind(address).unwrap(), TcpListener::bind(address).unwrap()));
    }
    assert!(!site.path("admin.sock").exists());
}

/// `run` ends with this code and text, and leaves nothing bound.
fn refuses(site: &Site, code: i32, text: &str) {
    says(&site.run(&["run"]), code, text);
    nothing_is_bound(site);
}

/// `run` and `check` both tell these mistakes, and nothing is made.
fn mistaken(site: &Site, text: &str) {
    let count = text.lines().filter(|line| !line.starts_with(' ')).count();
    let plural = if count == 1 { "" } else { "s" };
    let text = format!("{count} mistake{plural}; nothing was started or changed\n{text}");
    refuses(site, 2, &text);
    says(&site.run(&["check"]), 2, &text);
    for made in ["state", "query.jsonl", "archive"] {
        assert!(!site.path(made).exists(), "{made}");
    }
}

#[test]
fn a_configuration_that_is_not_there() {
    let site = Site::new();
    let text = "1 mistake; nothing was started or changed\n\
        nowhere.toml cannot be read: No such file or directory (os error 2)\n  \
        name the configuration with -c, or make it readable for this user";
    for verb in ["run", "check", "status", "grants", "reload"] {
        says(&site.run(&[verb, "-c", "nowhere.toml"]), 2, text);
    }
}

#[test]
fn a_configuration_that_is_no_text() {
    let site = Site::new();
    fs::write(site.path("bytes.toml"), [0xff, 0xfe]).unwrap();
    for (file, why) in [
        ("policy", "Is a directory (os error 21)"),
        ("bytes.toml", "stream did not contain valid UTF-8"),
        ("/dev/zero", "it is larger than 16 MiB"),
    ] {
        let text = format!(
            "1 mistake; nothing was started or changed\n{file} cannot be read: {why}\n  \
             name the configuration with -c, or make it readable for this user"
        );
        says(&site.run(&["run", "-c", file]), 2, &text);
    }
}

#[test]
fn a_configuration_that_this_user_may_not_read() {
    if !privileged() {
        return;
    }
    let site = Site::new();
    fs::set_permissions(site.path("outgate.toml"), Permissions::from_mode(0o600)).unwrap();
    let text = "1 mistake; nothing was started or changed\n\
        outgate.toml cannot be read: Permission denied (os error 13)\n  \
        name the configuration with -c, or make it readable for this user";
    for verb in ["run", "check", "status"] {
        says(&site.run_as_nobody(&[verb]), 2, text);
    }
}

#[test]
fn broken_toml() {
    let site = Site::new().with("", "state = \"state");
    mistaken(&site, "outgate.toml:1:15: invalid basic string, expected `\"`\n  correct the TOML syntax here");
}

#[test]
fn an_unknown_key_names_the_one_that_was_meant() {
    let site = Site::new().with("listen", "[listen]\ndsn = [\"127.0.0.1:0\"]");
    mistaken(&site, "outgate.toml:19:1: `dsn` is not a key here\n  did you mean `dns`?");
}

#[test]
fn a_planned_key_is_refused_by_name() {
    let site = Site::new().with("admin", "[admin]\nsocket = \"admin.sock\"\nroles = []");
    mistaken(&site, "outgate.toml:6:1: `roles` is not supported by this version\n  remove it");
}

/// Three files, every mistake of each of them, in one go, in the order of places.
#[test]
fn many_mistakes_at_once() {
    let site = Site::new();
    site.file(
        "policy/build.toml",
        "[[rule]]\nid = \"a\"\naction = \"alow\"\nsegments = [\"loop\"]\nnames = [\"a.example.net\", \"a..b\"]\n\n\
         [[rule]]\nid = \"b\"\naction = \"allow\"\nsegments = [\"nobody\"]\nnames = [\"b.example.net\"]\nports = [\"tcp/0\"]\n",
    );
    site.file("policy/office.toml", "[[segment]]\nname = \"loop\"\nclients = [\"127.0.0.0/33\"]\nmod = \"enforce\"\n");
    site.file("zones/example.org.zone", "@ 60 A 192.0.2.1\nwww 60 A 192.0.2.256\n");
    mistaken(
        &site,
        r#"policy/build.toml:3:10: `action` cannot be "alow"
  write "allow" or "deny"
policy/build.toml:5:27: "a..b" is not a name: it has an empty label
  write a domain name, e.g. "api.example.com"
policy/build.toml:10:13: no segment is named "nobody"
  name a segment, or "*" for all
policy/build.toml:12:10: `ports` cannot hold "tcp/0"
  write "tcp/443", "udp/5000-5010", "icmp" or "any"
policy/office.toml:1:1: the segment loop is defined already, at policy/loop.toml:2:1
  rename one
policy/office.toml:3:12: "127.0.0.0/33" is not a prefix
  write "192.0.2.0/24", "2001:db8::/32" or an address
policy/office.toml:4:1: `mod` is not a key here
  did you mean `mode`?
zones/example.org.zone:1:1: the zone example.org has no SOA record
  begin the file with: @ SOA ns1 hostmaster ( 1 1h 15m 7d 1m ) and a $TTL above it
zones/example.org.zone:2:10: "192.0.2.256" is not an IPv4 address
  write an IPv4 address here"#,
    );
}

#[test]
fn a_bad_zone_is_told_by_its_line() {
    let site = Site::new();
    site.file("zones/example.org.zone", "$TTL 60\n@ SOA ns1 host ( 1 1h 15m 7d 1m )\n  NS ns1\nwww A 192.0.2.256\n");
    mistaken(&site, "zones/example.org.zone:4:7: \"192.0.2.256\" is not an IPv4 address\n  write an IPv4 address here");
}

#[test]
fn a_port_that_another_process_has() {
    let site = Site::new();
    let text = format!("{} is taken by another process; stop it or change [listen].dns", site.dns);
    let taken = TcpListener::bind(site.dns).unwrap();
    says(&site.run(&["run"]), 1, &text);
    drop(taken);
    let taken = UdpSocket::bind(site.dns).unwrap();
    says(&site.run(&["run"]), 1, &text);
    drop(taken);
    let taken = TcpListener::bind(site.health).unwrap();
    let text = format!("{} is taken by another process; stop it or change [health].listen", site.health);
    says(&site.run(&["run"]), 1, &text);
    drop(taken);
    nothing_is_bound(&site);
}

#[test]
fn two_at_once_of_the_same_state_port_socket_and_log() {
    let site = Site::new();
    let _first = site.start();
    let shared = |table: &'static str, text: String, says_text: &str| {
        let second = Site::new().with(table, text);
        says(&second.run(&["run"]), 1, says_text);
    };
    let here = |file: &str| site.path(file).display().to_string();
    shared(
        "",
        format!("state = \"{}\"", here("state")),
        &format!(
            "another outgate uses the state directory {}; stop it first, or give this one a `state` of its own",
            here("state")
        ),
    );
    shared(
        "listen",
        format!("[listen]\ndns = [\"{}\"]", site.dns),
        &format!("{} is taken by another process; stop it or change [listen].dns", site.dns),
    );
    shared(
        "health",
        format!("[health]\nlisten = \"{}\"", site.health),
        &format!("{} is taken by another process; stop it or change [health].listen", site.health),
    );
    shared(
        "admin",
        format!("[admin]\nsocket = \"{}\"", here("admin.sock")),
        &format!(
            "another outgate answers on {}; stop it first, or set [admin].socket to another path",
            here("admin.sock")
        ),
    );
    shared(
        "audit",
        format!("[audit]\nfile = \"{}\"", here("query.jsonl")),
        &format!("{}: another process writes this log; stop it, or set [audit] file", here("query.jsonl")),
    );
    // The first has not noticed.
    assert_eq!(site.run(&["status"]).code, Some(0));
}

#[test]
fn a_port_that_needs_a_right() {
    if !privileged() {
        return;
    }
    in_own_network(|| {
        let mut site = Site::new().with("listen", "[listen]\ndns = [\"127.0.0.1:53\"]");
        site.dns = "127.0.0.1:53".parse().unwrap();
        site.give_to_nobody();
        says(
            &site.run_as_nobody(&["run"]),
            1,
            "binding 127.0.0.1:53 needs CAP_NET_BIND_SERVICE; run as root, grant it to the service, or listen on a \
             port above 1023",
        );
        nothing_is_bound(&site);
    });
}

#[test]
fn an_address_that_is_not_ours() {
    let site = Site::new().with("listen", "[listen]\ndns = [\"192.0.2.77:5300\"]");
    refuses(&site, 1, "192.0.2.77:5300 is not an address of this host; correct [listen].dns");
}

#[test]
fn nftables_without_the_right_to_it() {
    if !privileged() {
        return;
    }
    in_own_network(|| {
        let nftables = "[[firewall]]\nname = \"gateway\"\nkind = \"nftables\"\nhook = \"output\"";
        let site = Site::new().with("firewall", nftables);
        site.give_to_nobody();
        says(
            &site.run_as_nobody(&["run"]),
            1,
            "firewall \"gateway\": changing nftables needs CAP_NET_ADMIN; run as root or grant it to the service \
             (AmbientCapabilities=CAP_NET_ADMIN)",
        );
        nothing_is_bound(&site);
        // The log was opened before, and was closed in order.
        assert_eq!(site.records().last().unwrap()["op"], "close");
        site.verified();
    });
}

#[test]
fn a_state_directory_of_somebody_else() {
    if !privileged() {
        return;
    }
    let site = Site::new();
    let text = "the state directory state cannot be used: Permission denied (os error 13); let it belong to the user \
        that outgate runs as, or correct `state`";
    // It cannot be made; it is there and cannot be written; its lock cannot be opened.
    says(&site.run_as_nobody(&["run"]), 1, text);
    fs::create_dir(site.path("state")).unwrap();
    says(&site.run_as_nobody(&["run"]), 1, text);
    File::create(site.path("state/lock")).unwrap();
    fs::set_permissions(site.path("state/lock"), Permissions::from_mode(0o600)).unwrap();
    says(&site.run_as_nobody(&["run"]), 1, text);
    nothing_is_bound(&site);
}

#[test]
fn a_state_directory_that_is_a_file() {
    let site = Site::new().with("", "state = \"policy/loop.toml\"");
    refuses(
        &site,
        1,
        "the state directory policy/loop.toml cannot be used: File exists (os error 17); correct `state`",
    );
}

#[test]
fn a_log_that_cannot_be_written() {
    let with = |file: &str| Site::new().with("audit", format!("[audit]\nfile = \"{file}\""));
    refuses(
        &with("nowhere/query.jsonl"),
        1,
        "nowhere/query.jsonl: the directory does not exist; create it, or set [audit] file",
    );
    refuses(&with("policy"), 1, "policy: Is a directory (os error 21); check the disk and the path");
    let site = Site::new();
    let held = File::create(site.path("query.jsonl")).unwrap();
    held.lock().unwrap();
    refuses(&site, 1, "query.jsonl: another process writes this log; stop it, or set [audit] file");
}

#[test]
fn a_log_that_this_user_may_not_write() {
    if !privileged() {
        return;
    }
    let site = Site::new().with("audit", "[audit]\nfile = \"log/query.jsonl\"");
    site.give_to_nobody();
    let text = "log/query.jsonl: permission denied; let the service's user write this directory";
    fs::create_dir(site.path("log")).unwrap();
    says(&site.run_as_nobody(&["run"]), 1, text);
    nothing_is_bound(&site);
}

#[test]
fn a_disk_without_room_for_the_log() {
    if !privileged() {
        return;
    }
    with_own_mounts(|| {
        let site = Site::new().with("audit", "[audit]\nfile = \"disk/query.jsonl\"\nrotate_size = \"2MiB\"");
        small_disk(&site.path("disk"), 1 << 20);
        refuses(&site, 1, "disk/query.jsonl: no space left; free some, or lower [audit] rotate_size and max_size");
    });
}

#[test]
fn an_admin_socket_that_cannot_be_made() {
    let with = |path: &str| Site::new().with("admin", format!("[admin]\nsocket = \"{path}\""));
    refuses(
        &with("policy/loop.toml"),
        1,
        "policy/loop.toml is there and is not a socket; remove it, or set [admin].socket to another path",
    );
    let long = "x".repeat(120);
    refuses(
        &with(&long),
        1,
        &format!("{long} is too long for a socket; set [admin].socket to a path of at most 90 bytes"),
    );
}

#[test]
fn a_socket_that_was_left_behind_is_replaced() {
    let site = Site::new();
    site.start().kill();
    assert!(site.path("admin.sock").exists());
    let mut node = site.start();
    assert_eq!(node.stop(), Some(0));
    nothing_is_bound(&site);
}

#[test]
fn nobody_to_talk_to() {
    let site = Site::new();
    let text = "no outgate answers on admin.sock; is it running, and with this configuration?";
    for verb in ["status", "grants", "reload"] {
        says(&site.run(&[verb]), 1, text);
    }
    site.start().kill();
    says(&site.run(&["status"]), 1, text);
}

#[test]
fn a_node_that_this_user_may_not_talk_to() {
    if !privileged() {
        return;
    }
    let site = Site::new();
    let _node = site.start();
    says(
        &site.run_as_nobody(&["status"]),
        1,
        "user 65534 may not talk to outgate on admin.sock; run this as root, or as a member of the socket's group",
    );
}

#[test]
fn arguments_that_cannot_be_used() {
    let site = Site::new();
    let explain = |name: &str, kind: &str| site.run(&["explain", "--client", "127.0.0.1", name, kind]);
    says(&explain("a..b", "A"), 2, "\"a..b\" is not a domain name: it has an empty label");
    says(&explain("www.corp.example", "FOO"), 2, "\"FOO\" is not a record type; write A, AAAA, TXT or TYPE731");
    says(&site.run(&["grants", "--name", "a..b"]), 2, "--name is not a domain name: it has an empty label");
    says(
        &site.run(&["log", "tail", "--client", "192.0.2.0/33"]),
        2,
        "--client 192.0.2.0/33 is neither an address nor a prefix",
    );
    for arguments in [&["grants", "--limit", "0"], &["grants", "--client", "x"], &["explain", "--client", "x"][..]] {
        let ended = site.run(arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(ended.stderr.starts_with("error: invalid value "), "{}", ended.stderr);
    }
}

#[test]
fn a_log_that_is_not_there() {
    let site = Site::new();
    let text = "there is no such log; name its current file, or the configuration with -c";
    for file in ["nowhere.jsonl", "nowhere/query.jsonl"] {
        says(&site.run(&["log", "verify", file]), 1, &format!("{file}: {text}"));
        says(&site.run(&["log", "tail", file]), 1, &format!("{file}: {text}"));
    }
    says(&site.run(&["log", "verify"]), 1, &format!("query.jsonl: {text}"));
}
