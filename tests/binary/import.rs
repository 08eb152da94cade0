//! `outgate import`: what it writes passes `check` as it is, and what it leaves out is told.

use std::io::Write;
use std::process::Stdio;

use crate::harness::Site;

/// Writes a list, imports it into the policy and checks that; what was told.
fn imported(arguments: &[&str], file: &str, text: &str) -> (Site, String) {
    let site = Site::new();
    site.file(file, text);
    let mut all = vec!["import"];
    all.extend(arguments);
    all.extend(["--segments", "loop", "-o", "policy/imported.toml", file]);
    let ended = site.run(&all);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{}", ended.stderr);
    let check = site.run(&["check"]);
    assert_eq!(check.code, Some(0), "{}{}", check.stdout, check.stderr);
    assert!(!check.stdout.contains("imported.toml"), "a warning: {}", check.stdout);
    (site, ended.stderr)
}

/// The verdict of `explain` and the rule that it names.
fn explained(site: &Site, name: &str) -> String {
    let ended = site.run(&["explain", "--json", "--client", "127.0.0.1", name]);
    let said: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    format!("{} {}", said["verdict"].as_str().unwrap(), said["rule"].as_str().unwrap_or("-"))
}

#[test]
fn a_response_policy_zone() {
    let text = "$TTL 1h\n@ SOA localhost. root.localhost. 1 1h 15m 7d 1m\n  NS localhost.\n\
                bad.example.net CNAME .\n*.bad.example.net CNAME .\n*.ok.example.com CNAME rpz-passthru.\n\
                walled.ok.example.com A 192.0.2.1\n24.0.2.0.192.rpz-ip CNAME .\n*.com CNAME rpz-passthru.\nx A 192.0.2\n";
    let (site, told) = imported(&["rpz"], "db.rpz", text);
    assert_eq!(
        told,
        "db.rpz:7:1: walled.ok.example.com is answered with A data of the list's own\n  put it into a local zone\n\
         db.rpz:8:1: 24.0.2.0.192.rpz-ip is a trigger for the addresses of answers\n  \
         to narrow a rule write `within`; some are never opened anyway\n\
         db.rpz:9:1: \"**.com\" would allow a whole top-level domain\n  write the full suffixes that are meant\n\
         db.rpz:10:5: \"192.0.2\" is not an IPv4 address\n  write an IPv4 address here\n\
         1 names allowed and 2 denied by 2 rules; 4 entries left out\n"
    );
    assert_eq!(explained(&site, "x.bad.example.net"), "deny db-deny");
    assert_eq!(explained(&site, "a.b.ok.example.com"), "allow db-allow");
    assert_eq!(explained(&site, "walled.ok.example.com"), "deny -");
}

#[test]
fn a_list_of_names() {
    let text = "# ads\n0.0.0.0 ads.example.net\n.track.example.net\nhttp://x/\n";
    let (site, told) = imported(&["list", "--action", "deny", "--id", "ads"], "list.txt", text);
    assert_eq!(
        told,
        "list.txt:4:1: \"http://x/\" is not a name of a host\n  write a name a line\n\
         0 names allowed and 3 denied by 1 rules; 1 entries left out\n"
    );
    assert_eq!(explained(&site, "a.track.example.net"), "deny ads");
    // Once more, to the same file: the list changes every day.
    let (_, again) = imported(&["list", "--action", "allow", "--below"], "list.txt", "shop.example.com\n");
    assert_eq!(again, "2 names allowed and 0 denied by 1 rules; 0 entries left out\n");
}

#[test]
fn policies_of_cilium_on_standard_input() {
    let text = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: shop, namespace: web}\nspec:\n  \
                egress:\n  - toFQDNs: [{matchPattern: '*.shop.example.com'}]\n    toPorts: [{ports: [{port: '443', protocol: TCP}]}]\n";
    let site = Site::new();
    let mut command = site.command(&["import", "cilium", "--segments", "loop", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "1 names allowed and 0 denied by 1 rules; 0 entries left out\n"
    );
    site.file("policy/web.toml", &String::from_utf8(output.stdout).unwrap());
    assert_eq!(explained(&site, "a.shop.example.com"), "allow web.shop-1");
    // The same bytes each time.
    site.file("shop.yaml", text);
    let once = site.run(&["import", "cilium", "--segments", "loop", "shop.yaml"]);
    let twice = site.run(&["import", "cilium", "--segments", "loop", "shop.yaml"]);
    assert_eq!((once.code, once.stdout), (Some(0), twice.stdout));
}

#[test]
fn says_what_is_wrong() {
    let site = Site::new();
    site.file("list.txt", "http://x/\n");
    site.file("bad.yaml", "a: b\n  c: [\n");
    site.file("no.yaml", "kind: Pod\n");
    site.file("bad.rpz", "$ORIGIN a..b.\nx CNAME .\n");
    std::fs::write(site.path("bytes.yaml"), [0xff, 0xfe]).unwrap();
    let rows: &[(&[&str], i32, &str)] = &[
        (
            &["cilium", "--segments", "loop", "nowhere.yaml"],
            2,
            "outgate: nowhere.yaml cannot be read: No such file or directory (os error 2)\n",
        ),
        (&["cilium", "--segments", "loop", "bytes.yaml"], 2, "outgate: bytes.yaml is no text in UTF-8; convert it\n"),
        (&["cilium", "--segments", "loop", "bad.yaml"], 2, "bad.yaml:2:4: this is no YAML that can be read: "),
        (&["cilium", "--segments", "loop", "no.yaml"], 1, "no.yaml:1:1: Pod is no policy of Cilium\n  remove it\n"),
        (
            &["rpz", "--segments", "loop", "bad.rpz"],
            2,
            "bad.rpz:1:9: \"a..b.\" is not a domain name: it has an empty label\n",
        ),
        (&["rpz", "--segments", "loop", "--origin", "a..b", "bad.rpz"], 2, "outgate: --origin is not a domain name: "),
        (
            &["list", "--action", "allow", "--segments", "a b", "list.txt"],
            2,
            "outgate: --segments: \"a b\" is not the name of a segment; write names of segments of the policy, or '*'\n",
        ),
        (
            &["list", "--action", "allow", "--segments", "*", "--id", "a b", "list.txt"],
            2,
            "outgate: --id: a rule's id cannot begin with \"a b\"; write 1 to 63 letters, digits, `_`, `.` or `-`\n",
        ),
        (
            &["list", "--action", "allow", "--segments", "loop", "list.txt"],
            1,
            "outgate: nothing in list.txt could be carried over\n",
        ),
        (&["list", "--action", "allow", "list.txt"], 2, "--segments <SEGMENT,…>"),
        (&["list", "--segments", "loop", "list.txt"], 2, "--action <ACTION>"),
        (
            &["list", "--action", "deny", "--segments", "loop", "-o", "no/where.toml", "outgate.toml"],
            1,
            "outgate: no/where.toml cannot be written: No such file or directory (os error 2)\n",
        ),
    ];
    site.file("outgate.toml", "example.org\n");
    for (arguments, code, text) in rows {
        let arguments: Vec<&str> = ["import"].iter().chain(*arguments).copied().collect();
        let ended = site.run(&arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(*code), ""), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(text), "{arguments:?}: {}", ended.stderr);
    }
}
