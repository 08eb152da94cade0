//! DNS over TCP as real clients, and impolite ones, speak it.

use std::collections::HashSet;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use hickory_proto::op::Message;

use crate::dns::{Stream, a, framed};
use crate::harness::{Site, until};
use crate::upstream::{Upstream, with_addresses};

#[test]
fn a_hundred_queries_at_once_are_answered_as_they_are_ready() {
    // Answers only when all the others have been: the client says so.
    let (ready, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::saying(move |question| {
        let _ = wait.lock().unwrap().recv_timeout(Duration::from_secs(1));
        Some(with_addresses(question, 1))
    });
    let site = Site::new().with_servers(&[upstream.address]);
    let mut node = site.start();
    let mut stream = Stream::new(site.dns);
    let slow = a("slow.example.net");
    let quick: Vec<Message> = (0..99).map(|_| a("www.corp.example")).collect();
    let all = std::iter::once(&slow).chain(&quick).flat_map(|message| framed(&message.to_vec().unwrap()));
    stream.0.write_all(&all.collect::<Vec<u8>>()).unwrap();
    let mut order = Vec::new();
    for _ in 0..100 {
        if order.len() == 99 {
            ready.send(()).unwrap();
        }
        order.push(Message::from_vec(&stream.receive().unwrap()).unwrap().metadata.id);
    }
    assert_eq!(order.last(), Some(&slow.metadata.id), "the slow one holds nobody up");
    let asked: HashSet<u16> = std::iter::once(&slow).chain(&quick).map(|message| message.metadata.id).collect();
    assert_eq!(order.into_iter().collect::<HashSet<_>>(), asked);
    assert_eq!(site.queries().iter().filter(|record| record["transport"] == "tcp").count(), 100);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn a_query_may_come_in_any_pieces() {
    let site = Site::new();
    let _node = site.start();
    let mut stream = Stream::new(site.dns);
    stream.0.set_nodelay(true).unwrap();
    let (one, two) = (a("www.corp.example"), a("www.corp.example"));
    for octet in framed(&one.to_vec().unwrap()) {
        stream.0.write_all(&[octet]).unwrap();
    }
    assert_eq!(Message::from_vec(&stream.receive().unwrap()).unwrap().metadata.id, one.metadata.id);
    // One and a half, then the rest.
    let both = [framed(&one.to_vec().unwrap()), framed(&two.to_vec().unwrap())].concat();
    let (first, second) = both.split_at(both.len() * 3 / 4);
    stream.0.write_all(first).unwrap();
    assert_eq!(Message::from_vec(&stream.receive().unwrap()).unwrap().metadata.id, one.metadata.id);
    stream.0.write_all(second).unwrap();
    assert_eq!(Message::from_vec(&stream.receive().unwrap()).unwrap().metadata.id, two.metadata.id);
}

#[test]
fn a_client_that_closes_its_half_is_answered_still() {
    let upstream = Upstream::start();
    let site = Site::new().with_servers(&[upstream.address]);
    let _node = site.start();
    let mut stream = Stream::new(site.dns);
    stream.send(&a("x.example.net").to_vec().unwrap());
    stream.0.shutdown(Shutdown::Write).unwrap();
    assert!(stream.receive().is_some());
    assert_eq!(stream.receive(), None);
}

#[test]
fn a_client_that_goes_away_leaves_its_record() {
    let upstream = Upstream::start();
    let site = Site::new().with_servers(&[upstream.address]);
    let mut node = site.start();
    for _ in 0..50 {
        let mut stream = Stream::new(site.dns);
        stream.send(&a("x.example.net").to_vec().unwrap());
        socket2::SockRef::from(&stream.0).set_linger(Some(Duration::ZERO)).unwrap();
    }
    until("every connection has ended", || site.metric("outgate_streams") == 0.0);
    assert_eq!(node.stop(), Some(0));
    // A reset may overtake the query that it follows; what was read has its record.
    site.verified();
}

#[test]
fn lengths_that_no_query_has_end_the_connection() {
    let site = Site::new();
    let _node = site.start();
    for (length, why) in [(0_u16, "empty"), (4_097, "oversize"), (65_535, "oversize")] {
        let series = format!("outgate_streams_closed_total{{why=\"{why}\"}}");
        let before = site.metric(&series);
        let mut stream = Stream::new(site.dns);
        let query = a("www.corp.example");
        stream.ask(&query);
        stream.0.write_all(&length.to_be_bytes()).unwrap();
        assert_eq!(stream.receive(), None, "{length}");
        until("it is counted", || site.metric(&series) == before + 1.0);
    }
    // The longest that is read: junk, and no reason to hang up.
    let mut stream = Stream::new(site.dns);
    stream.send(&[0; 4_096]);
    assert!(stream.receive().is_some());
    stream.ask(&a("www.corp.example"));
}

#[test]
fn one_client_has_sixteen_connections_and_the_others_their_own() {
    let site = Site::new();
    let _node = site.start();
    let query = a("www.corp.example");
    let mut streams: Vec<Stream> = (0..16).map(|_| Stream::new(site.dns)).collect();
    for stream in &mut streams {
        stream.ask(&query);
    }
    let mut one_more = Stream::new(site.dns);
    let _ = one_more.0.write_all(&framed(&query.to_vec().unwrap()));
    assert_eq!(one_more.receive(), None);
    // UDP and other clients are not concerned.
    crate::dns::Client::new(site.dns).told("www.corp.example");
    let other = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    other.bind(&"127.0.0.9:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    other.connect(&site.dns.into()).unwrap();
    Stream(TcpStream::from(other)).ask(&query);
    // A seat that becomes free is given away again.
    streams.truncate(8);
    until("the seats are free", || site.metric("outgate_streams") <= 8.0);
    Stream::new(site.dns).ask(&query);
}
