//! One story for each class.

use std::net::IpAddr;
use std::time::Duration;

use crate::flow::{
    Carrier, Class, Denied, Detail, Ended, Flow, For, Index, Judgement, Limits, Opened, QueryId, Static, Told, Unlisted,
};
use crate::net::Services;
use crate::time::Wall;

const CLIENT: &str = "192.0.2.1";
const OTHER: &str = "192.0.2.2";
const WEB: &[Services] = &[Services::Tcp(443, 443)];

fn at(seconds: f64) -> Wall {
    Wall(((100_000.0 + seconds) * 1e6) as u64)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A node that has never run before.
fn index() -> Index {
    let mut index = Index::new(Limits::default());
    index.begin(at(-50_000.0), true);
    index
}

/// Told at a time, for 60 s, open for 300.
fn tell(index: &mut Index, seconds: f64, client: &str, qname: &str, address: &str) {
    index.told(&Told {
        at: at(seconds),
        client: ip(client),
        segment: Some("a"),
        qname,
        rule: if qname.starts_with('x') { "x" } else { "web" },
        query: Some(QueryId { boot: 7, shard: 1, sequence: seconds.abs() as u64 }),
        addresses: &[ip(address)],
        unlisted: Unlisted::None,
        services: WEB,
        told_until: at(seconds + 60.0),
        open_until: at(seconds + 300.0),
    });
}

fn flow(seconds: f64) -> Flow<'static> {
    Flow {
        at: at(seconds),
        end: None,
        client: ip(CLIENT),
        segment: None,
        address: ip("198.51.100.7"),
        carrier: Carrier::Tcp(443),
        started: true,
        denied: false,
        error: Duration::ZERO,
    }
}

fn said(judgement: &Judgement<'_>) -> String {
    let detail = judgement.detail.map(|detail| format!("/{}", detail.as_str())).unwrap_or_default();
    let names: Vec<_> = judgement.name.iter().chain(&judgement.names).map(|named| named.qname).collect();
    format!("{}{detail} {}", judgement.class.as_str(), names.join(" ")).trim_end().to_owned()
}

#[track_caller]
fn assert_says(index: &Index, flow: &Flow<'_>, expected: &str) {
    assert_eq!(said(&index.judge(flow)), expected);
}

#[test]
fn one_name_on_an_address_is_exact_and_two_are_not() {
    let mut index = index();
    tell(&mut index, 0.0, CLIENT, "a.example", "198.51.100.7");
    let judgement = index.judge(&flow(1.0));
    assert_eq!(said(&judgement), "exact a.example");
    assert_eq!((judgement.rule(), judgement.why(), judgement.segment), (Some("web"), None, Some("a")));
    assert_eq!(judgement.name.unwrap().query, Some(QueryId { boot: 7, shard: 1, sequence: 0 }));
    tell(&mut index, 2.0, CLIENT, "b.example", "198.51.100.7");
    assert_says(&index, &flow(1.0), "exact a.example");
    let judgement = index.judge(&flow(3.0));
    assert_eq!(said(&judgement), "ambiguous/same_rule b.example a.example");
    assert_eq!(
        (judgement.rule(), judgement.qname(), judgement.class.explains(judgement.detail)),
        (Some("web"), None, true)
    );
    tell(&mut index, 4.0, CLIENT, "x.example", "198.51.100.7");
    let judgement = index.judge(&flow(5.0));
    assert_eq!(said(&judgement), "ambiguous/mixed x.example b.example a.example");
    assert_eq!((judgement.rule(), judgement.class.explains(judgement.detail)), (None, false));
    // Other clients and addresses are others'.
    assert_says(&index, &Flow { client: ip(OTHER), segment: Some("a"), ..flow(1.0) }, "none/peer_name");
    assert_says(&index, &Flow { address: ip("198.51.100.8"), ..flow(1.0) }, "none/unknown_address");
}

#[test]
fn a_refresh_extends_and_an_end_is_an_end() {
    let mut index = index();
    tell(&mut index, 0.0, CLIENT, "a.example", "198.51.100.7");
    assert_says(&index, &flow(59.9), "exact a.example");
    assert_says(&index, &flow(61.0), "stale/grace a.example");
    tell(&mut index, 200.0, CLIENT, "a.example", "198.51.100.7");
    assert_eq!(index.holds().intervals, 1);
    assert_says(&index, &flow(61.0), "exact a.example");
    assert_says(&index, &flow(250.0), "exact a.example");
    let judgement = index.judge(&flow(264.0));
    assert_eq!(judgement.why().unwrap(), "connected 4.0 s after the told TTL had ended, still open");
    assert_eq!(index.judge(&flow(250.0)).name.unwrap().query.unwrap().sequence, 200);
    assert_eq!(index.judge(&flow(150.0)).name.unwrap().query.unwrap().sequence, 0);
    let judgement = index.judge(&flow(541.0));
    assert_eq!(
        (said(&judgement).as_str(), judgement.why().unwrap().as_str()),
        ("stale/cached a.example", "connected 41 s after its grant ended")
    );
    assert_eq!(judgement.late_us, Some(41_000_000));
    // Beyond the look-back, it is no explanation.
    assert_says(&index, &flow(500.0 + 3601.0), "none/unknown_address");
}

#[test]
fn a_revoked_grant_explains_what_began_before() {
    let mut index = index();
    tell(&mut index, 0.0, CLIENT, "a.example", "198.51.100.7");
    let ended = Ended {
        at: at(10.0),
        to: For::Client(ip(CLIENT)),
        segment: "a",
        qname: "a.example",
        rule: "web",
        address: ip("198.51.100.7"),
        services: WEB,
        until: at(10.0),
    };
    index.ended(&ended);
    let lived = Flow { end: Some(at(25.0)), ..flow(9.0) };
    let judgement = index.judge(&lived);
    assert_eq!((said(&judgement).as_str(), judgement.outlived_us), ("exact a.example", Some(15_000_000)));
    let refused = Flow { denied: true, ..flow(51.0) };
    assert_eq!(index.judge(&refused).why().unwrap(), "connected 41 s after its grant ended");
    // Told anew, it is open anew, and was not in between.
    tell(&mut index, 60.0, CLIENT, "a.example", "198.51.100.7");
    assert_says(&index, &flow(59.0), "stale/cached a.example");
    assert_says(&index, &flow(60.0), "exact a.example");
    // A part of the services.
    index.ended(&Ended { at: at(70.0), until: at(70.0), services: &[Services::Tcp(80, 80)], ..ended });
    assert_says(&index, &flow(71.0), "exact a.example");
    index.ended(&Ended { at: at(72.0), until: at(72.0), services: &[Services::Any], ..ended });
    assert_says(&index, &flow(73.0), "stale/cached a.example");
}

#[test]
fn a_live_flow_outlives_its_grant() {
    let mut index = index();
    tell(&mut index, 0.0, CLIENT, "a.example", "198.51.100.7");
    let judgement = index.judge(&Flow { end: Some(at(1000.0)), ..flow(1.0) });
    assert_eq!((said(&judgement).as_str(), judgement.outlived_us), ("exact a.example", Some(700_000_000)));
    assert_eq!(index.judge(&Flow { end: Some(at(299.0)), ..flow(1.0) }).outlived_us, None);
}

#[test]
fn a_flow_without_a_look_up_is_none_or_not_known() {
    let mut index = index();
    // Nobody asked yet, and who it is, is not known.
    assert_says(&index, &flow(0.0), "unknown/nat");
    assert_says(&index, &Flow { segment: Some("a"), ..flow(0.0) }, "none/unknown_address");
    index.denied(&Denied { at: at(1.0), client: ip(CLIENT), segment: Some("a"), qname: Some("bad.example") });
    assert_says(&index, &flow(2.0), "none/unknown_address");
    // Others know the address, for another name, then for the one that was denied.
    tell(&mut index, 2.0, OTHER, "c.example", "198.51.100.7");
    let judgement = index.judge(&flow(3.0));
    assert_eq!(said(&judgement), "none/peer_name");
    assert_eq!(judgement.why().unwrap(), "no name of this client has this address; others were told it for c.example");
    tell(&mut index, 2.0, OTHER, "bad.example", "198.51.100.7");
    let judgement = index.judge(&Flow { denied: true, ..flow(4.0) });
    assert_eq!((said(&judgement).as_str(), judgement.qname()), ("none/denied_name", Some("bad.example")));
    assert_eq!(judgement.why().unwrap(), "the name bad.example was denied 3.0 s before");
    // The other's own flows go by its names.
    assert_says(&index, &Flow { client: ip(OTHER), ..flow(4.0) }, "ambiguous/same_rule c.example bad.example");
}

#[test]
fn a_port_that_was_not_opened_is_said() {
    let mut index = index();
    tell(&mut index, 0.0, CLIENT, "a.example", "198.51.100.7");
    let judgement = index.judge(&Flow { carrier: Carrier::Tcp(22), denied: true, ..flow(1.0) });
    assert_eq!((said(&judgement).as_str(), judgement.qname()), ("none/other_service a.example", Some("a.example")));
    assert_eq!(judgement.why().unwrap(), "the port is not among those opened for a.example");
}

#[test]
fn what_is_missing_makes_unknown_and_never_none() {
    let mut index = index();
    tell(&mut index, 0.0, CLIENT, "a.example", "198.51.100.7");
    index.gap(at(400.0), at(410.0), Detail::LogGap);
    assert_says(&index, &flow(1.0), "exact a.example");
    assert_says(&index, &flow(350.0), "stale/cached a.example");
    assert_says(&index, &flow(450.0), "unknown/log_gap");
    assert_says(&index, &Flow { address: ip("198.51.100.9"), ..flow(450.0) }, "unknown/log_gap");
    assert_says(&index, &Flow { address: ip("198.51.100.9"), ..flow(399.0) }, "none/unknown_address");
    assert_says(&index, &Flow { address: ip("198.51.100.9"), ..flow(410.0 + 3601.0) }, "none/unknown_address");
    assert_says(&index, &Flow { started: false, ..flow(350.0) }, "unknown/start");
    assert_says(&index, &Flow { started: false, ..flow(5.0) }, "exact a.example");
    // A history that begins in the middle.
    let mut young = Index::new(Limits::default());
    young.begin(at(0.0), false);
    tell(&mut young, 1.0, CLIENT, "a.example", "198.51.100.7");
    assert_says(&young, &Flow { address: ip("198.51.100.9"), ..flow(3599.0) }, "unknown/young");
    assert_says(&young, &Flow { address: ip("198.51.100.9"), ..flow(3601.0) }, "none/unknown_address");
}

#[test]
fn clocks_may_be_apart() {
    let mut index = index();
    tell(&mut index, 0.0, CLIENT, "a.example", "198.51.100.7");
    let skewed = |seconds, error| Flow { error: Duration::from_secs(error), ..flow(seconds) };
    assert_says(&index, &skewed(-1.0, 0), "none/unknown_address");
    assert_says(&index, &skewed(-1.0, 1), "exact a.example");
    assert_says(&index, &skewed(-1.1, 1), "none/unknown_address");
    assert_says(&index, &skewed(60.5, 1), "exact a.example");
    assert_says(&index, &skewed(61.0, 1), "stale/grace a.example");
    assert_says(&index, &skewed(300.5, 1), "stale/grace a.example");
    assert_says(&index, &skewed(301.0, 1), "stale/cached a.example");
    // A window of a flow log of AWS: its beginning is known to a minute.
    assert_says(&index, &skewed(-59.0, 60), "exact a.example");
}

#[test]
fn what_is_open_for_a_segment_explains_its_clients() {
    let mut index = index();
    let opened = Opened {
        at: at(0.0),
        to: For::Segment,
        segment: "a",
        qname: "warm.example",
        rule: "warm",
        query: None,
        address: ip("198.51.100.7"),
        services: WEB,
        until: at(300.0),
        adopted: false,
    };
    index.opened(&opened);
    let mine = Flow { segment: Some("a"), ..flow(1.0) };
    let judgement = index.judge(&mine);
    assert_eq!(said(&judgement), "exact warm.example");
    assert_eq!(judgement.why().unwrap(), "open for the whole segment, not asked for by this client");
    assert_says(&index, &Flow { segment: Some("b"), ..flow(1.0) }, "none/unknown_address");
    // What it was told itself is the better explanation.
    tell(&mut index, 1.0, CLIENT, "a.example", "198.51.100.7");
    assert_says(&index, &flow(2.0), "exact a.example");
    // The end of what is open for all is the end for each.
    tell(&mut index, 3.0, CLIENT, "warm.example", "198.51.100.7");
    let Opened { at: _, to, segment, address, services, .. } = opened;
    let ended =
        Ended { at: at(9.0), to, segment, qname: "warm.example", rule: "web", address, services, until: at(9.0) };
    index.ended(&ended);
    assert_says(&index, &flow(10.0), "exact a.example");
    index.ended(&Ended { rule: "warm", ..ended });
    assert_says(&index, &Flow { client: ip(OTHER), segment: Some("a"), ..flow(10.0) }, "stale/cached warm.example");
}

#[test]
fn a_grant_opens_before_its_name_is_told() {
    let mut index = index();
    let opened = Opened {
        at: at(0.0),
        to: For::Client(ip(CLIENT)),
        segment: "a",
        qname: "a.example",
        rule: "web",
        query: Some(QueryId { boot: 7, shard: 1, sequence: 9 }),
        address: ip("198.51.100.7"),
        services: WEB,
        until: at(300.0),
        adopted: false,
    };
    index.opened(&opened);
    assert_says(&index, &flow(0.5), "stale/grace a.example");
    tell(&mut index, 1.0, CLIENT, "a.example", "198.51.100.7");
    assert_eq!(index.holds().intervals, 1);
    assert_says(&index, &flow(2.0), "exact a.example");
    index.opened(&Opened { at: at(200.0), until: at(900.0), ..opened });
    assert_says(&index, &flow(899.0), "stale/grace a.example");
    // What is found at a start was told by a process before.
    index.opened(&Opened { at: at(5000.0), until: at(5100.0), adopted: true, ..opened });
    assert_says(&index, &flow(5099.0), "exact a.example");
}

#[test]
fn networks_and_resolvers_are_static() {
    let mut index = index();
    let opening = |segment: Option<&str>, rule: Option<&str>, network: &str, services: &str| Static {
        segment: segment.map(Into::into),
        rule: rule.map(Into::into),
        network: network.parse().unwrap(),
        services: vec![services.parse().unwrap()],
        until: None,
    };
    index.set_statics(vec![
        opening(Some("a"), Some("corp"), "198.51.0.0/16", "tcp/22"),
        opening(Some("a"), Some("inner"), "198.51.100.0/24", "tcp/443"),
        opening(None, None, "192.0.2.53/32", "any"),
    ]);
    let mine = |carrier, address| Flow { carrier, address: ip(address), segment: Some("a"), ..flow(1.0) };
    let judgement = index.judge(&mine(Carrier::Tcp(22), "198.51.100.7")).rule().map(ToOwned::to_owned);
    assert_eq!(judgement.as_deref(), Some("corp"));
    assert_eq!(index.judge(&mine(Carrier::Tcp(443), "198.51.100.7")).rule(), Some("inner"));
    assert_says(&index, &mine(Carrier::Tcp(443), "198.51.7.7"), "none/unknown_address");
    assert_says(&index, &mine(Carrier::Udp(53), "192.0.2.53"), "static");
    assert_eq!(index.judge(&Flow { segment: Some("b"), ..mine(Carrier::Tcp(22), "198.51.100.7") }).class, Class::None);
}

#[test]
fn what_does_not_fit_makes_unknown() {
    let mut index = Index::new(Limits { of_client: 4, ..Limits::default() });
    index.begin(at(-50_000.0), true);
    for number in 0..6 {
        tell(&mut index, f64::from(number), CLIENT, "a.example", &format!("198.51.100.{number}"));
    }
    assert_eq!((index.holds().intervals, index.holds().evicted), (4, 2));
    assert_says(&index, &Flow { address: ip("198.51.100.5"), ..flow(10.0) }, "exact a.example");
    // The two that ended first are gone: what they explained is not said to have no name.
    assert_says(&index, &Flow { address: ip("198.51.100.0"), ..flow(10.0) }, "unknown/young");
    assert_says(&index, &Flow { address: ip("203.0.113.1"), ..flow(10.0) }, "unknown/young");
}

/// The shape of a site: clients with 40 names of 3 addresses each, told one after the other.
#[test]
fn an_interval_takes_60_bytes_at_most() {
    let mut index = index();
    for name in 0..40_u8 {
        for client in 0..500_u16 {
            let [high, low] = client.to_be_bytes();
            let addresses = [1, 2, 3].map(|last| IpAddr::from([198, 51, name, last]));
            index.told(&Told {
                at: at(f64::from(name)),
                client: IpAddr::from([10, 0, high, low]),
                segment: Some("a"),
                qname: &format!("n{name}.example"),
                rule: "web",
                query: Some(QueryId { boot: 7, shard: 1, sequence: u64::from(client) }),
                addresses: &addresses,
                unlisted: Unlisted::None,
                services: WEB,
                told_until: at(60.0),
                open_until: at(300.0),
            });
        }
    }
    let holds = index.holds();
    assert_eq!(holds.intervals, 500 * 120);
    assert!(holds.bytes / holds.intervals <= 60, "{holds:?}");
}

#[test]
fn what_is_old_is_forgotten_and_numbers_are_given_anew() {
    let mut index = index();
    for number in 0..200_u32 {
        let (name, address) = (format!("n{number}.example"), format!("198.51.100.{number}"));
        tell(&mut index, f64::from(number) * 100.0, CLIENT, &name, &address);
        index.prune(at(f64::from(number) * 100.0));
    }
    let kept = index.holds().intervals;
    assert!((35..60).contains(&kept), "{kept}");
    assert!(index.texts.len() < 150 && index.addresses.len() < 150, "{}", index.texts.len());
    assert_says(&index, &Flow { address: ip("198.51.100.199"), ..flow(19_901.0) }, "exact n199.example");
    assert_says(&index, &Flow { address: ip("198.51.100.190"), ..flow(19_301.0) }, "stale/cached n190.example");
    assert_says(&index, &Flow { address: ip("198.51.100.1"), ..flow(19_901.0) }, "none/unknown_address");
}

/// Names that nobody will ask for again are given up long before the look-back ends.
#[test]
fn random_names_take_no_more_room_than_what_is_kept() {
    let mut index = index();
    for number in 0..200_000_u32 {
        let (qname, name) = (format!("{number:08x}.a.example"), format!("{number:08x}.b.example"));
        let address = IpAddr::from(number.to_be_bytes());
        index.denied(&Denied { at: at(1.0), client: ip(CLIENT), segment: Some("a"), qname: Some(&qname) });
        if number % 4 == 0 {
            tell(&mut index, 1.0, CLIENT, &name, &address.to_string());
        }
    }
    let holds = index.holds();
    assert!(holds.texts < 150_000 && holds.intervals == 4096 && holds.said[1] == 256, "{holds:?}");
    assert_says(
        &index,
        &Flow { address: IpAddr::from(199_996_u32.to_be_bytes()), ..flow(2.0) },
        "exact 00030d3c.b.example",
    );
}

#[test]
fn what_there_is_no_room_for_is_unknown_and_not_guessed() {
    // Room for the names of some look-ups.
    let mut index = Index::new(Limits { texts: 500, ..Limits::default() });
    index.begin(at(-50_000.0), true);
    for number in 0..20 {
        tell(&mut index, 1.0, CLIENT, &format!("{number}.example"), &format!("198.51.100.{number}"));
    }
    let address = |last: u8| IpAddr::from([198, 51, 100, last]);
    assert_says(&index, &Flow { address: address(0), ..flow(2.0) }, "exact 0.example");
    assert_says(&index, &Flow { address: address(19), ..flow(2.0) }, "unknown/young");
    index.denied(&Denied { at: at(1.0), client: ip(OTHER), segment: Some("a"), qname: None });
    assert_says(&index, &Flow { client: ip(OTHER), address: address(0), ..flow(2.0) }, "none/peer_name");
    assert_says(&index, &Flow { client: ip(OTHER), address: address(19), ..flow(2.0) }, "unknown/young");
    assert!(index.holds().texts < 20, "{:?}", index.holds());
    // When what is kept has ended, there is room again.
    index.prune(at(6000.0));
    index.prune(at(12_000.0));
    tell(&mut index, 12_000.0, CLIENT, "new.example", "198.51.100.19");
    assert_says(&index, &Flow { address: address(19), ..flow(12_001.0) }, "exact new.example");
    // Room for what one address was told for.
    let mut index = Index::new(Limits { said: 1, ..Limits::default() });
    index.begin(at(-50_000.0), true);
    for (seconds, qname, last) in [(1.0, "a.example", 1), (2.0, "b.example", 2)] {
        tell(&mut index, seconds, CLIENT, qname, &address(last).to_string());
        index.denied(&Denied { at: at(1.0), client: ip(OTHER), segment: Some("a"), qname: Some(qname) });
    }
    assert_eq!(index.holds().said, [1, 1]);
    assert_says(&index, &Flow { client: ip(OTHER), address: address(1), ..flow(3.0) }, "none/peer_name");
    assert_says(&index, &Flow { client: ip(OTHER), address: address(2), ..flow(3.0) }, "unknown/young");
    assert_says(&index, &Flow { address: address(2), ..flow(3.0) }, "exact b.example");
}
