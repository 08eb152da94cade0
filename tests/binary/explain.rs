//! `outgate explain` is the decision itself: what it says is what a running node does and records.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use serde_json::Value;

use crate::dns::{Client, addresses, code, extended_error, query, with_edns};
use crate::harness::{Site, ZONE};
use crate::upstream::Upstream;

const POLICY: &str = r#"
[[segment]]
name    = "strict"
clients = ["127.0.0.1"]

[[segment]]
name    = "trial"
clients = ["127.0.0.2"]
mode    = "observe"
until   = 2099-01-01T00:00:00Z

[[segment]]
name    = "quiet"
clients = ["127.0.0.3"]
refusal = "refused"
filter_aaaa = true

[[rule]]
id       = "corp"
action   = "allow"
segments = ["*"]
names    = ["*.corp.example"]
within   = ["192.0.2.80/28"]
https    = "filter"

[[rule]]
id       = "api"
action   = "allow"
segments = ["strict"]
names    = ["api.corp.example"]
types    = ["A", "TXT"]
ports    = ["tcp/5432", "udp/53"]
cname    = "inspect"

[[rule]]
id       = "outside"
action   = "allow"
segments = ["*"]
names    = ["*.example.net", "below.eu.example.com"]
private  = ["198.51.100.0/24"]

[[rule]]
id       = "no-telemetry"
action   = "deny"
segments = ["*"]
names    = ["telemetry.corp.example", "**.evil.example.net"]
"#;

#[test]
fn what_it_says_is_what_happens() {
    let upstream = Upstream::start();
    let site = Site::new().with_servers(&[upstream.address]);
    site.file("policy/loop.toml", POLICY);
    site.file(
        "zones/corp.example.zone",
        &format!(
            "{ZONE}api CNAME www\nout A 198.51.100.99\nboth A 192.0.2.85\nboth A 198.51.100.99\nlocal A 127.0.0.1\n\
             meta A 169.254.169.254\nwww HTTPS 1 . ipv4hint=192.0.2.81\n\
             bad CNAME telemetry\ntelemetry A 192.0.2.82\n"
        ),
    );
    let _node = site.start();
    let names = [
        "www.corp.example",
        "api.corp.example",
        "out.corp.example",
        "both.corp.example",
        "local.corp.example",
        "meta.corp.example",
        "bad.corp.example",
        "telemetry.corp.example",
        "gone.corp.example",
        "corp.example",
        "x.example.net",
        "a.b.example.net",
        "x.evil.example.net",
        "example.org",
        "eu.example.com",
        "WWW.Corp.Example",
        "localhost",
        "x.onion",
        "home.arpa",
        "wpad.corp.example",
        "dns.google",
    ];
    for client in ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"] {
        let asker = Client::from(client.parse().unwrap(), site.dns);
        for (name, kind) in names.iter().flat_map(|name| ["A", "TXT", "ANY", "AAAA", "HTTPS"].map(|kind| (*name, kind)))
        {
            let ended = site.run(&["explain", "--json", "--client", client, name, kind]);
            let said: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
            let reply = asker.ask(&with_edns(query(name, kind.parse::<RecordType>().unwrap()), 1232)).unwrap();
            let record = site.queries().pop().unwrap();
            let case = format!("{client} {name} {kind}\nsaid   {said}\nrecord {record}");
            for key in ["verdict", "reason", "segment", "rule"] {
                assert_eq!(said[key], record[key], "{key}: {case}");
            }
            assert_eq!(said["enforced"] == false, record["enforced"] == false, "enforced: {case}");
            assert_eq!(said["ede"]["code"].as_u64(), extended_error(&reply).map(u64::from), "EDE: {case}");
            assert_eq!(said["ede"]["text"], record["ede"]["text"], "EDE: {case}");
            let shown = said["shown"].as_str().unwrap();
            if shown != "the inspected answer" {
                let expected = match code(&reply) {
                    ResponseCode::NXDomain => "NXDOMAIN",
                    ResponseCode::Refused => "REFUSED",
                    other => &other.to_string().to_uppercase().replace("NO ERROR", "NOERROR"),
                };
                assert!(shown.starts_with(expected), "{expected}: {case}");
            }
            for address in addresses(&reply).iter().filter(|_| shown.starts_with("NOERROR")) {
                let kind = if address.contains(':') { "AAAA" } else { "A" };
                assert!(shown.contains(&format!(" {kind} {address}")), "{address}: {case}");
            }
            let opened = said["opened"].as_array().and_then(|opened| opened.first()?.as_str()).unwrap_or("nothing");
            // It asks no upstream: what is not there cannot be opened.
            if shown != "the inspected answer" || record["answers"].is_array() {
                assert_eq!(!opened.starts_with("nothing"), record["grant"].is_object(), "opened: {case}");
            }
        }
    }
}
