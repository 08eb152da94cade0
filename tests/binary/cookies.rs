//! DNS cookies with Knot, which answers nothing over UDP without one of its own.

use crate::dns::{Client, addresses};
use crate::harness::{Site, free_port, loopback, until};
use crate::programs::{Running, are_here, command};

#[test]
fn knot_is_shown_the_cookie_that_it_gave() {
    if !are_here(&["knotd"]) {
        return;
    }
    let address = loopback(free_port());
    let site = Site::new().with_servers(&[address]);
    let root = site.directory.display();
    site.file(
        "knot/example.net.zone",
        "$TTL 60\n@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\nns A 198.51.100.1\n* A 198.51.100.7\n",
    );
    site.file(
        "knot/knot.conf",
        &format!(
            "server:\n    rundir: \"{root}/knot\"\n    listen: 127.0.0.1@{}\n    udp-workers: 1\n    tcp-workers: 1\n    \
             background-workers: 1\ncontrol:\n    listen: \"{root}/knot/control\"\ndatabase:\n    storage: \
             \"{root}/knot/database\"\nmod-cookies:\n  - id: default\n    badcookie-slip: 1\ntemplate:\n  - id: default\n    \
             storage: \"{root}/knot\"\n    global-module: mod-cookies/default\nzone:\n  - domain: example.net\n    file: \
             \"example.net.zone\"\n",
            address.port(),
        ),
    );
    let _knot = Running::start(command("knotd").arg("-c").arg(site.path("knot/knot.conf")));
    until("knot listens", || std::net::TcpStream::connect(address).is_ok());
    // Who shows no cookie is answered as ever; who shows half of one gets BADCOOKIE.
    until("knot has loaded its zone", || addresses(&Client::new(address).told("a.example.net")) == ["198.51.100.7"]);
    let mut node = site.start();
    for number in 0..20 {
        assert_eq!(addresses(&Client::new(site.dns).told(&format!("n{number}.example.net"))), ["198.51.100.7"]);
    }
    // All over UDP, none of them doubted.
    assert_eq!(counters(&site), [20.0, 0.0, 0.0, 0.0]);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

/// Answers, connections, mismatches, failures.
fn counters(site: &Site) -> [f64; 4] {
    ["answers", "connections", "mismatches", "failures"]
        .map(|what| site.metric(&format!("outgate_upstream_{what}_total{{upstream=\"default\"}}")))
}
