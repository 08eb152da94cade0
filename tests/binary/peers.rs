//! Several nodes in front of the same clients: what is changed at one is in force at all, and who is none of them changes
//! nothing.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::dns::{Client, addresses, code};
use crate::harness::{BOUND, Node, Site, free_port, loopback, until};

const NAMES: [&str; 3] = ["ns1.corp.example", "ns2.corp.example", "ns3.corp.example"];

/// An authority, and those whom it issued certificates for.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        AsRef::<rcgen::Certificate>::as_ref(&self.0).pem()
    }

    pub(crate) fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

/// Some sites, all others the peers of each; where they listen for each other.
fn several<const COUNT: usize>(authority: &Authority) -> ([Site; COUNT], [SocketAddr; COUNT]) {
    let doors = [(); COUNT].map(|()| loopback(free_port()));
    let site = |at: usize| {
        let mut peers = format!(
            "[peers]\nlisten = \"{}\"\nca = \"peers/ca.pem\"\ncertificate = \"peers/own.pem\"\nkey = \"peers/own.key\"\n",
            doors[at],
        );
        for (other, door) in doors.iter().enumerate().filter(|(other, _)| *other != at) {
            peers += &format!("\n[[peer]]\nname = \"{}\"\nserver = \"{door}\"\n", NAMES[other]);
        }
        let node = format!("node = \"{}\"\nstate = \"state\"", NAMES[at].split('.').next().unwrap());
        let site = Site::new().with("", node).with("peers", peers);
        let (certificate, key) = authority.issue(NAMES[at]);
        site.file("peers/ca.pem", &authority.pem());
        site.file("peers/own.pem", &certificate);
        site.file("peers/own.key", &key);
        fs::set_permissions(site.path("peers/own.key"), Permissions::from_mode(0o600)).unwrap();
        site
    };
    (std::array::from_fn(site), doors)
}

fn status(site: &Site) -> Value {
    serde_json::from_str(&site.run(&["status", "--json"]).stdout).unwrap()
}

/// Waits until each has reached all others, with the same policy, and has nothing to tell them.
fn met(sites: &[Site]) {
    for site in sites {
        until("its peers are up", || {
            status(site)["peers"].as_array().unwrap().iter().all(|peer| {
                (&peer["connected"], &peer["waiting"], &peer["differs"]) == (&true.into(), &0.into(), &false.into())
                    && peer["revision"].is_string()
            })
        });
    }
}

fn started<const COUNT: usize>(sites: &[Site; COUNT]) -> [Node; COUNT] {
    let nodes = sites.each_ref().map(Site::start);
    met(sites);
    nodes
}

fn changes(site: &Site, op: &str) -> Vec<Value> {
    site.records().into_iter().filter(|record| record["type"] == "change" && record["op"] == op).collect()
}

fn rules(site: &Site) -> Vec<String> {
    let status = status(site);
    let rules = status["changes"]["rules"].as_array().unwrap();
    rules.iter().map(|rule| rule["id"].as_str().unwrap().to_owned()).collect()
}

/// What was said to a node, which all confirmed; the id of the rule, or what stands in its place.
fn confirmed(site: &Site, arguments: &[&str]) -> (String, String) {
    let ended = site.run(arguments);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let id = ended.stdout.split(':').next().unwrap().to_owned();
    (id, ended.stdout)
}

#[test]
fn a_change_at_one_node_is_in_force_at_all() {
    let (sites, _) = several::<2>(&Authority::new());
    let mut nodes = started(&sites);
    let [one, two] = &sites;
    let clients = [Client::new(one.dns), Client::new(two.dns)];
    for client in &clients {
        assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
    }
    let (id, told) = confirmed(one, &["deny", "www.corp.example", "--reason", "incident 12"]);
    assert!(
        told.ends_with(
            "; 1 grants closed, 0 connections cut\nns1: in force\nns2.corp.example: in force, 1 grants closed\n"
        ),
        "{told}"
    );
    for (site, client) in sites.iter().zip(&clients) {
        assert_eq!(code(&client.told("www.corp.example")), ResponseCode::NXDomain);
        assert_eq!(site.queries().pop().unwrap()["rule"], id.as_str());
    }
    let by = |site, op| changes(site, op)[0]["by"].as_str().unwrap().to_owned();
    let here = by(one, "deny");
    assert_eq!(by(two, "deny"), format!("{here} at ns1.corp.example"));
    assert_eq!(changes(two, "deny")[0]["why"], "incident 12");

    // Taken back at the other one; nothing goes in circles.
    let (_, told) = confirmed(two, &["retract", &id, "--reason", "a false alarm"]);
    assert!(told.ends_with("ns2: in force\nns1.corp.example: in force\n"), "{told}");
    for (site, client) in sites.iter().zip(&clients) {
        assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
        assert_eq!((changes(site, "deny").len(), changes(site, "retract").len()), (1, 1));
        assert_eq!(rules(site), [""; 0]);
    }
    assert_eq!(by(one, "retract"), format!("{here} at ns2.corp.example"));

    // For a client, in the segment that it was found in; and what stands nowhere afterwards.
    let allow =
        ["allow", "ns1.corp.example", "--client", "127.0.0.9", "--for", "1h", "--ports", "tcp/22", "--reason", "x"];
    let (id, _) = confirmed(one, &allow);
    assert_eq!((rules(one), rules(two)), (vec![id.clone()], vec![id]));
    assert_eq!(status(one)["changes"]["rules"][0]["until"], status(two)["changes"]["rules"][0]["until"]);
    let (_, told) = confirmed(two, &["revoke", "--name", "www.corp.example", "--reason", "x"]);
    assert!(told.ends_with("ns1.corp.example: in force, 1 grants closed\n"), "{told}");
    confirmed(two, &["forget", "127.0.0.9"]);
    for site in &sites {
        assert_eq!((rules(site).len(), changes(site, "revoke").len(), changes(site, "forget").len()), (0, 1, 1));
    }
    for (node, site) in nodes.iter_mut().zip(&sites) {
        assert_eq!(node.stop(), Some(0));
        site.verified();
    }
}

#[test]
fn a_peer_that_was_away_is_told_when_it_is_back() {
    let (sites, _) = several::<2>(&Authority::new());
    let [mut first, mut second] = started(&sites);
    let [one, two] = &sites;
    let allow = ["allow", "a.example.org", "--segment", "loop", "--for", "1h", "--reason", "release 4.2"];
    let (allowed, _) = confirmed(one, &allow);
    let (denied, _) = confirmed(two, &["deny", "a.example.com", "--reason", "incident 11"]);
    assert_eq!(addresses(&Client::new(two.dns).told("www.corp.example")), ["192.0.2.80"]);
    second.kill();

    let alone = |arguments: &[&str], says: &str| {
        until("that it is away is seen", || status(one)["peers"][0]["connected"] == false);
        let ended = one.run(arguments);
        assert_eq!(
            (ended.code, ended.stderr.contains("of 2 nodes 1 did not confirm it")),
            (Some(1), true),
            "{ended:?}"
        );
        let line = ended.stdout.lines().last().unwrap();
        assert!(line.starts_with("ns2.corp.example: it cannot be reached: ") && line.ends_with(says), "{line}");
        ended.stdout.split(':').next().unwrap().to_owned()
    };
    alone(&["retract", &allowed], "; it is told when it is back");
    alone(&["retract", &denied], "; it is told when it is back");
    let id = alone(&["deny", "never.example.org", "--reason", "incident 12"], "; it is told when it is back");
    alone(
        &["revoke", "--name", "www.corp.example", "--reason", "late"],
        "; it is told when it is back, within the hour",
    );
    assert!(one.run(&["status"]).stdout.contains("ns2.corp.example  DOWN"));
    assert_eq!(one.metric("outgate_peer_up{peer=\"ns2.corp.example\"}"), 0.0);

    // It has both rules in its file, and tells of them too.
    let mut second = {
        assert_eq!(second.wait(), None);
        two.start()
    };
    until("it has what was changed meanwhile", || changes(two, "revoke").len() == 1);
    met(&sites);
    for site in &sites {
        assert_eq!(rules(site), [id.as_str()]);
        assert_eq!(
            site.metric("outgate_peer_up{peer=\"ns1.corp.example\"}")
                + site.metric("outgate_peer_up{peer=\"ns2.corp.example\"}"),
            1.0
        );
    }
    assert_eq!((changes(two, "retract").len(), changes(two, "deny").len()), (2, 2));
    assert_eq!(changes(two, "revoke")[0]["why"], "late");
    // What was taken back is remembered over a restart, too.
    assert_eq!(first.stop(), Some(0));
    let mut first = one.start();
    met(&sites);
    assert_eq!((rules(one), rules(two)), (vec![id.clone()], vec![id]));
    assert_eq!((first.stop(), second.stop()), (Some(0), Some(0)));
    sites.iter().for_each(|site| drop(site.verified()));
}

#[test]
fn of_three_nodes_one_is_away_and_another_one_restarts_meanwhile() {
    let (sites, _) = several::<3>(&Authority::new());
    let [mut first, second, mut third] = started(&sites);
    let [one, two, three] = &sites;
    let (denied, told) = confirmed(two, &["deny", "a.example.com", "--reason", "incident 12"]);
    assert!(told.ends_with("ns2: in force\nns1.corp.example: in force\nns3.corp.example: in force\n"), "{told}");
    for site in &sites {
        assert_eq!((rules(site), changes(site, "deny").len()), (vec![denied.clone()], 1));
    }
    for site in [three, two] {
        assert_eq!(addresses(&Client::new(site.dns).told("www.corp.example")), ["192.0.2.80"]);
    }

    third.kill();
    assert_eq!(third.wait(), None);
    let without_third = |site: &Site, arguments: &[&str], of_the_second: &str| {
        until("that it is away is seen", || status(site)["peers"][1]["connected"] == false);
        let ended = site.run(arguments);
        assert!(ended.stderr.contains("of 3 nodes 1 did not confirm it"), "{ended:?}");
        let mut lines = ended.stdout.lines().rev();
        assert!(lines.next().unwrap().starts_with("ns3.corp.example: it cannot be reached: "), "{ended:?}");
        assert!(lines.next().unwrap().ends_with(of_the_second), "{ended:?}");
        assert_eq!(ended.code, Some(1));
        ended.stdout.split(':').next().unwrap().to_owned()
    };
    let id =
        without_third(one, &["deny", "never.example.org", "--reason", "incident 13"], "ns2.corp.example: in force");
    without_third(two, &["retract", &denied, "--reason", "it was a false alarm"], "ns1.corp.example: in force");
    let revoke = ["revoke", "--name", "www.corp.example", "--reason", "late"];
    without_third(one, &revoke, "ns2.corp.example: in force, 1 grants closed");

    // What waits is told by the next process, however this one ended.
    first.kill();
    assert_eq!(first.wait(), None);
    let mut first = one.start();
    assert_eq!(status(one)["peers"][1]["waiting"], 1);
    let mut third = three.start();
    until("it is told", || changes(three, "revoke").len() == 1);
    met(&sites);
    assert_eq!(changes(three, "revoke")[0]["why"], "late");
    for site in &sites {
        // Told by both of the others, and done once.
        let done = ["deny", "retract", "revoke"].map(|op| changes(site, op).len());
        assert_eq!((rules(site), done), (vec![id.clone()], [2, 1, 1]));
    }
    let kept = |site: &Site| fs::read_to_string(site.path("state/changes.json")).unwrap();
    until("it is not kept any more", || !kept(one).contains("\"late\""));

    // One with another policy is shown by the others, and shows both.
    three.file("policy/more.toml", "[[segment]]\nname = \"till\"\nclients = [\"192.0.2.0/24\"]\n");
    assert_eq!(three.run(&["reload"]).code, Some(0));
    for (site, differs) in sites.iter().zip([[false, true], [false, true], [true, true]]) {
        let peer = |at: usize| status(site)["peers"][at]["differs"].clone();
        until("they see it", || [peer(0), peer(1)] == differs);
    }
    for node in [&mut first, &mut { second }, &mut third] {
        assert_eq!(node.stop(), Some(0), "{}", node.stderr());
    }
    sites.iter().for_each(|site| drop(site.verified()));
}

#[test]
fn a_peer_that_hangs_keeps_nobody_waiting() {
    let (sites, _) = several::<2>(&Authority::new());
    let nodes = started(&sites);
    let [one, two] = &sites;
    nodes[1].signal(Signal::SIGSTOP);
    let ended = one.run(&["deny", "www.corp.example", "--reason", "incident 12"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let says = "ns2.corp.example: it has not confirmed within 2 s; it is told, and may still do it\n";
    assert!(ended.stdout.ends_with(&format!("ns1: in force\n{says}")), "{}", ended.stdout);
    assert_eq!(code(&Client::new(one.dns).told("www.corp.example")), ResponseCode::NXDomain);
    nodes[1].signal(Signal::SIGCONT);
    until("it is in force there", || code(&Client::new(two.dns).told("www.corp.example")) == ResponseCode::NXDomain);
    met(&sites);
    assert_eq!(changes(two, "deny").len(), 1);
}

#[test]
fn policies_that_differ_are_shown() {
    let (sites, _) = several::<2>(&Authority::new());
    let _nodes = started(&sites);
    let [one, two] = &sites;
    let differs = || one.metric("outgate_peer_policy_differs{peer=\"ns2.corp.example\"}");
    assert_eq!((differs(), one.metric("outgate_peer_up{peer=\"ns2.corp.example\"}")), (0.0, 1.0));
    let more = "[[segment]]\nname = \"till\"\nclients = [\"192.0.2.0/24\"]\n";
    one.file("policy/more.toml", more);
    assert_eq!(one.run(&["reload"]).code, Some(0));
    until("both see it", || differs() == 1.0 && status(two)["peers"][0]["differs"] == true);
    assert!(one.run(&["status"]).stdout.contains(" DIFFERS "));
    // A rule that the other one cannot hear yet is kept there, and heard when its policy follows.
    let ended = one.run(&["allow", "a.example.org", "--segment", "till", "--for", "1h", "--reason", "x"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains(" is left out until it can be heard: "), "{}", ended.stdout);
    two.file("policy/more.toml", more);
    assert_eq!(two.run(&["reload"]).code, Some(0));
    until("they do not differ any more", || differs() == 0.0);
    let explained = two.run(&["status", "--json"]).stdout;
    assert!(!explained.contains("is left out") && rules(two) == rules(one), "{explained}");
}

/// A connection to the door of a node as nobody's program makes it.
struct Foreign(StreamOwned<ClientConnection, TcpStream>);

impl Foreign {
    fn new(door: SocketAddr, authority: &Authority, shown: Option<(String, String)>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots);
        let config = match shown {
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
            None => config.with_no_client_auth(),
        };
        let stream = TcpStream::connect(door).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        let name = ServerName::try_from(NAMES[0]).unwrap();
        Self(StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream))
    }

    fn send(&mut self, frame: &[u8]) {
        // What the other side does not want to hear it may not read.
        let _ = self.0.write_all(frame);
        let _ = self.0.flush();
    }

    fn say(&mut self, words: &Value) {
        let text = words.to_string();
        self.send(&[&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat());
    }

    /// What is answered; `None`: the connection ended.
    fn hear(&mut self) -> Option<Value> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).ok()?;
        let mut text = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

#[test]
fn who_is_no_peer_or_speaks_out_of_turn_is_refused_and_counted() {
    let authority = Authority::new();
    let (sites, doors) = several::<2>(&authority);
    let [one, _] = &sites;
    let _node = one.start();
    let refused = |why: &str| one.metric(&format!("outgate_peer_refused_total{{why=\"{why}\"}}"));
    let hello = json!({ "hello": { "version": 1 } });
    let deny = json!({ "id": "runtime-00000001", "author": { "uid": 0 }, "made": 1,
        "order": { "action": "deny", "targets": ["www.corp.example"], "reason": "x" } });
    let tell = |change: &Value| json!({ "tell": { "number": 1, "news": { "standing": { "changes": [change], "retracted": [] } } } });

    let stranger = Authority::new().issue(NAMES[1]);
    for (why, shown) in
        [("tls", None), ("tls", Some(stranger)), ("stranger", Some(authority.issue("ns9.corp.example")))]
    {
        let before = refused(why);
        let mut foreign = Foreign::new(doors[0], &authority, shown);
        foreign.say(&hello);
        foreign.say(&tell(&deny));
        let heard = foreign.hear();
        assert_eq!(heard.is_some(), why == "stranger", "{heard:?}");
        until("it is counted", || refused(why) == before + 1.0);
    }
    let known = || Foreign::new(doors[0], &authority, Some(authority.issue(NAMES[1])));
    let mut old = known();
    old.say(&json!({ "hello": { "version": 0 } }));
    let why = "you speak version 0, this node speaks 1; upgrade the older one";
    assert_eq!(old.hear(), Some(json!({ "refused": why })));
    until("it is counted", || refused("version") == 1.0);

    let junk = [&[0, 0, 0, 4][..], b"junk"].concat();
    let long = [0xff, 0xff, 0xff, 0xff, b'{'];
    let text = tell(&deny).to_string();
    let unasked = [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat();
    for greeted in [false, true] {
        for frame in [&junk[..], &long, &unasked] {
            if greeted && frame == unasked {
                continue;
            }
            let before = refused("message");
            let mut foreign = known();
            if greeted {
                foreign.say(&hello);
                assert_eq!(foreign.hear(), Some(json!({ "welcome": { "version": 1 } })));
            }
            foreign.send(frame);
            assert_eq!(foreign.hear(), None);
            until("it is counted", || refused("message") == before + 1.0);
        }
    }
    assert_eq!(refused("message"), 5.0);
    assert_eq!(rules(one), [""; 0], "none of them changed anything");

    // Nor does a peer that tells what nobody could have ordered.
    let mut peer = known();
    peer.say(&hello);
    peer.hear().unwrap();
    let mut number = 0;
    let mut told = |change: &Value| {
        number += 1;
        let mut words = tell(change);
        words["tell"]["number"] = number.into();
        peer.say(&words);
        let done = peer.hear().unwrap()["done"].take();
        assert_eq!(done["number"], number);
        done["became"].clone()
    };
    let with = |key: &str, value: Value| {
        let mut change = deny.clone();
        *change.pointer_mut(key).unwrap() = value;
        change
    };
    let allow = with(
        "/order",
        json!({ "action": "allow", "targets": ["a.example.org"], "segments": ["loop"], "for_s": 60, "reason": "x" }),
    );
    for (change, says) in [
        (with("/id", "corp".into()), "its id is none of a rule"),
        (with("/order/reason", "".into()), "a reason is missing"),
        (allow.clone(), "its end is not that of its time"),
        (
            with("/order", json!({ "action": "allow", "targets": ["a.example.org"], "reason": "x" })),
            "for whom is missing",
        ),
    ] {
        let became = told(&change);
        assert!(became["Err"].as_str().unwrap().contains(says), "{became}");
    }
    let mut ended = allow;
    ended["ends"] = 1.into();
    assert_eq!(told(&ended), json!({ "Ok": {} }));
    assert_eq!(rules(one), [""; 0]);
    // What was taken back stays so, whoever tells of it again.
    assert!(told(&deny)["Ok"].is_object() && told(&deny)["Ok"].is_object());
    assert_eq!((rules(one), changes(one, "deny").len()), (vec!["runtime-00000001".to_owned()], 1), "twice is once");
    let taken_back = json!({ "id": "runtime-00000001", "author": { "uid": 0 }, "at": u64::MAX, "why": "x" });
    let news = json!({ "standing": { "changes": [], "retracted": [taken_back] } });
    peer.say(&json!({ "tell": { "number": 99, "news": news } }));
    assert!(peer.hear().unwrap()["done"]["became"]["Ok"].is_object());
    assert_eq!(rules(one), [""; 0]);
    peer.say(&tell(&deny));
    assert!(peer.hear().unwrap()["done"]["became"]["Ok"].is_object());
    assert_eq!((rules(one).len(), changes(one, "retract").len()), (0, 1));
}

#[test]
fn mistakes_of_peers_are_told() {
    let tls = "ca = \"ca.pem\"\ncertificate = \"own.pem\"\nkey = \"own.key\"\n";
    for (table, says) in [
        ("[[peer]]\nname = \"ns2.corp.example\"".to_owned(), "[[peer]] needs `[peers]`"),
        (format!("[peers]\nlisten = \"127.0.0.1:8954\"\n{tls}"), "there is no [[peer]]"),
        (format!("[peers]\n{tls}[[peer]]\nname = \"ns2.corp.example\""), "`listen` is missing"),
        ("[peers]\nlisten = \"127.0.0.1:8954\"\n[[peer]]\nname = \"a.example\"".to_owned(), "[peers] needs TLS"),
        (
            format!("[peers]\nlisten = \"127.0.0.1:8954\"\n{tls}[[peer]]\nname = \"a b\""),
            "\"a b\" is no name that a certificate could have",
        ),
        (
            format!(
                "[peers]\nlisten = \"127.0.0.1:8954\"\n{tls}[[peer]]\nname = \"a.example\"\n[[peer]]\nname = \"A.example\""
            ),
            "\"A.example\" is there twice",
        ),
        (
            format!("[peers]\nlisten = \"127.0.0.1:8954\"\n{tls}[[peer]]\nname = \"a.example\"\nserver = \"a:b:c\""),
            "`server` is no host",
        ),
        (format!("[peers]\nlisten = \"127.0.0.1:8954\"\n{tls}[[peer]]\nname = \"a.example\""), "ca.pem cannot be read"),
    ] {
        let ended = Site::new().with("peers", table).run(&["check"]);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(says), "{says}: {}", ended.stderr);
    }
}
