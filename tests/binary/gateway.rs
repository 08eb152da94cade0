//! A resolver and the enforcer of a gateway, whose disk fills up.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use hickory_proto::op::ResponseCode;
use serde_json::Value;

use crate::disk::fill;
use crate::dns::{Client, a, code};
use crate::harness::{Node, Site, ZONE, free_port, loopback, privileged, small_disk, until, with_own_mounts};
use crate::peers::Authority;

const NAME: &str = "ns1.corp.example";

/// The gateway's own directory and health door, and the resolver that drives it.
fn pair() -> (Site, Site) {
    let (authority, door) = (Authority::new(), loopback(free_port()));
    let gateway = Site::new();
    gateway.file(
        "enforce.toml",
        &format!(
            "state = \"disk\"\n[enforce]\nlisten = \"{door}\"\nresolvers = [\"{NAME}\"]\nca = \"tls/ca.pem\"\n\
             certificate = \"tls/own.pem\"\nkey = \"tls/own.key\"\n[health]\nlisten = \"{}\"\n\
             [[firewall]]\nname = \"kernel\"\nkind = \"memory\"\n",
            gateway.health
        ),
    );
    let firewall = format!(
        "[[firewall]]\nname = \"gw1\"\nkind = \"remote\"\nserver = \"{door}\"\nca = \"tls/ca.pem\"\n\
         certificate = \"tls/own.pem\"\nkey = \"tls/own.key\""
    );
    let resolver = Site::new().with("firewall", firewall);
    for (site, name) in [(&gateway, "127.0.0.1"), (&resolver, NAME)] {
        let (certificate, key) = authority.issue(name);
        site.file("tls/ca.pem", &authority.pem());
        site.file("tls/own.pem", &certificate);
        site.file("tls/own.key", &key);
        fs::set_permissions(site.path("tls/own.key"), Permissions::from_mode(0o600)).unwrap();
    }
    (gateway, resolver)
}

fn enforce(gateway: &Site) -> Node {
    gateway.spawn_command(&mut gateway.command(&["enforce", "-c", "enforce.toml"]))
}

/// What its health door says of new flows.
fn readiness(site: &Site) -> (u16, String) {
    site.get("/health/ready").unwrap_or_default()
}

#[test]
fn a_gateway_whose_disk_is_full_acknowledges_nothing_and_says_so() {
    if !privileged() {
        return;
    }
    with_own_mounts(|| {
        let (gateway, resolver) = pair();
        small_disk(&gateway.path("disk"), 256 << 10);
        let names: String = (0..200).map(|number| format!("w{number} A 192.0.2.{}\n", number + 1)).collect();
        resolver.file("zones/corp.example.zone", &format!("{ZONE}{names}"));
        let mut enforcer = enforce(&gateway);
        let node = resolver.start();
        let client = Client::new(resolver.dns);
        let asked = |number: usize| code(&client.ask(&a(&format!("w{number}.corp.example"))).unwrap());
        until("the gateway is driven", || readiness(&gateway).0 == 200);
        fill(&gateway.path("disk/filler"));
        let refused = (0..200).find(|number| asked(*number) != ResponseCode::NoError).unwrap();
        let held = || gateway.metric(&format!("outgate_enforce_held{{resolver=\"{NAME}\"}}"));
        let before = held();
        // Whoever asks it, and for what was open before too: it is not known any more.
        until("it is known at both", || readiness(&gateway).0 == 503 && readiness(&resolver).0 == 503);
        assert!(readiness(&gateway).1.contains("the firewall or the state directory cannot be used"));
        assert_eq!(gateway.metric("outgate_enforce_ready"), 0.0);
        assert_eq!(resolver.metric("outgate_firewall_ready{firewall=\"gw1\"}"), 0.0);
        for number in [0, refused, 199] {
            assert_eq!(asked(number), ResponseCode::ServFail, "w{number}");
        }
        assert!(held() <= before);
        let why = |record: &Value| record["why"].as_str().is_some_and(|why| why.contains("No space left on device"));
        let records = resolver.records();
        assert!(records.iter().any(|record| record["type"] == "grant" && record["op"] == "fail" && why(record)));
        assert!(enforcer.stderr().contains("the journal in the state directory cannot be written"));
        assert!(node.stderr().contains("the enforcer refused: the journal cannot be written: No space left on device"));
        // There is room again: nobody has to do anything.
        fs::remove_file(gateway.path("disk/filler")).unwrap();
        until("it is driven again", || readiness(&gateway).0 == 200 && readiness(&resolver).0 == 200);
        for number in [0, refused, 199] {
            assert_eq!(asked(number), ResponseCode::NoError, "w{number}");
        }
        // What was written around the gap is read.
        let before = held();
        assert_eq!(enforcer.stop(), Some(0));
        let _again = enforce(&gateway);
        until("it is driven by the process after", || readiness(&gateway).0 == 200 && held() == before);
    });
}
