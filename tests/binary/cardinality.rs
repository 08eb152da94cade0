//! Ten thousand clients and a hundred thousand names add no series to /metrics.

use std::net::IpAddr;

use crate::dns::{Client, a};
use crate::harness::Site;
use crate::upstream::Upstream;

/// More than have labels of their own.
const SEGMENTS: u8 = 100;
/// Of each segment.
const CLIENTS: u8 = 100;
/// Of each client.
const NAMES: u32 = 10;
/// Some 64 segments with a few series each, and what is there anyway.
const SERIES: usize = 1500;

fn policy() -> String {
    let mut policy = String::new();
    for segment in 1..=SEGMENTS {
        policy.push_str(&format!("[[segment]]\nname = \"s{segment}\"\nclients = [\"127.{segment}.0.0/16\"]\n"));
    }
    policy.push_str(
        "[[rule]]\nid = \"outside\"\naction = \"allow\"\nsegments = [\"*\"]\nnames = [\"**.example.net\"]\n\
         private = [\"198.51.100.0/24\"]\n",
    );
    policy
}

fn series(site: &Site) -> Vec<String> {
    let (_, text) = site.get("/metrics").unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
}

#[test]
fn clients_and_names_add_no_series() {
    let upstream = Upstream::start();
    let site = Site::new().with_servers(&[upstream.address]);
    site.file("policy/loop.toml", &policy());
    let mut node = site.start();
    for segment in 1..=SEGMENTS {
        let client = Client::from(IpAddr::from([127, segment, 0, 1]), site.dns);
        for name in ["first.example.net", "first.example.org"] {
            client.ask(&a(name)).unwrap();
        }
    }
    let before = series(&site);
    assert!(before.len() < SERIES, "{} series", before.len());
    let mut name = 0;
    for segment in 1..=SEGMENTS {
        for host in 1..=CLIENTS {
            let client = Client::from(IpAddr::from([127, segment, 1, host]), site.dns);
            for number in 0..NAMES {
                name += 1;
                // One of ten goes upstream and into the firewall.
                let zone = if number == 0 { "example.net" } else { "example.org" };
                client.socket.send(&a(&format!("n{name}.{zone}")).to_vec().unwrap()).unwrap();
            }
            (0..NAMES).for_each(|_| assert!(client.receive().is_some(), "no reply"));
        }
    }
    assert_eq!(name, 100_000);
    let asked = site.metric_sum("outgate_queries_total");
    assert!(asked >= 100_000.0, "{asked}");
    let after = series(&site);
    let new: Vec<&String> = after.iter().filter(|series| !before.contains(series)).collect();
    assert_eq!((new, after.len()), (Vec::new(), before.len()));
    node.stop();
}
