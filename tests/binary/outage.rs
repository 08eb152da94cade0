//! Upstreams that die, return, stall and lie: what clients see of it.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, NS};
use hickory_proto::rr::{Name, RData, Record};

use crate::dns::{Client, Stream, a, addresses, code, extended_error, with_edns};
use crate::harness::{Site, free_port, loopback, until};
use crate::upstream::{Upstream, with_addresses};

/// What an upstream does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// Nobody listens.
    Gone,
    Silent,
    /// Answers after the client has given up.
    Late,
    /// Truncates over UDP, and is silent over TCP.
    Stalls,
    /// Truncates over TCP too.
    AlwaysTruncates,
    /// Says less than a header.
    Short,
    /// Says what is no message.
    Broken,
    OtherId,
    OtherQuestion,
    /// A reply that says it is a query.
    NoReply,
    Servfail,
    Refused,
    Formerr,
    Notimp,
    /// NXDOMAIN with the name's address.
    Contradicts,
    /// A CNAME to the name itself.
    Loops,
    /// Other servers are to be asked.
    Refers,
}

const WRONGS: [Wrong; 17] = [
    Wrong::Gone,
    Wrong::Silent,
    Wrong::Late,
    Wrong::Stalls,
    Wrong::AlwaysTruncates,
    Wrong::Short,
    Wrong::Broken,
    Wrong::OtherId,
    Wrong::OtherQuestion,
    Wrong::NoReply,
    Wrong::Servfail,
    Wrong::Refused,
    Wrong::Formerr,
    Wrong::Notimp,
    Wrong::Contradicts,
    Wrong::Loops,
    Wrong::Refers,
];

impl Wrong {
    /// The label of its zone.
    fn label(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// A server that does it; `None` where there is to be none.
    fn start(self, address: SocketAddr) -> Option<Upstream> {
        (self != Self::Gone).then(|| Upstream::octets(address, move |question, tcp| self.says(question, tcp)))
    }

    fn says(self, question: &Message, tcp: bool) -> Option<Vec<u8>> {
        let mut reply = with_addresses(question, 1);
        let name = question.queries[0].name().clone();
        match self {
            Self::Gone | Self::Silent => return None,
            Self::Late => std::thread::sleep(Duration::from_secs(3)),
            Self::Stalls if tcp => return None,
            Self::Stalls | Self::AlwaysTruncates => {
                reply.metadata.truncation = true;
                reply.answers.clear();
            }
            Self::Short => return Some(reply.to_vec().unwrap()[..7].to_vec()),
            Self::Broken => {
                let mut octets = reply.to_vec().unwrap();
                octets.truncate(octets.len() - 3);
                return Some(octets);
            }
            Self::OtherId => reply.metadata.id ^= 1,
            Self::OtherQuestion => {
                reply.queries[0].set_name(Name::from_ascii("other.example.net.").unwrap());
                reply.answers[0].name = Name::from_ascii("other.example.net.").unwrap();
            }
            Self::NoReply => reply.metadata.message_type = hickory_proto::op::MessageType::Query,
            Self::Servfail => reply.metadata.response_code = ResponseCode::ServFail,
            Self::Refused => reply.metadata.response_code = ResponseCode::Refused,
            Self::Formerr => reply.metadata.response_code = ResponseCode::FormErr,
            Self::Notimp => reply.metadata.response_code = ResponseCode::NotImp,
            Self::Contradicts => reply.metadata.response_code = ResponseCode::NXDomain,
            Self::Loops => reply.answers = vec![Record::from_rdata(name.clone(), 60, RData::CNAME(CNAME(name)))],
            Self::Refers => {
                reply.answers.clear();
                let server = Name::from_ascii("ns.example.net.").unwrap();
                reply.add_authority(Record::from_rdata(name.base_name(), 60, RData::NS(NS(server.clone()))));
                reply.add_additional(Record::from_rdata(server, 60, RData::A(A::new(198, 51, 100, 9))));
            }
        }
        Some(reply.to_vec().unwrap())
    }
}

/// A site with an upstream for each wrong: its zone `LABEL.example.net`, and `and-LABEL.example.net` with a server that
/// is well beside it.
fn site() -> (Site, Vec<Upstream>) {
    let good = Upstream::start();
    let (mut text, mut servers) = (String::new(), Vec::new());
    for wrong in WRONGS {
        let address = loopback(free_port());
        servers.extend(wrong.start(address));
        let label = wrong.label();
        text += &format!(
            "[[upstream]]\nname = \"{label}\"\nzones = [\"{label}.example.net\"]\nservers = [\"udp://{address}\"]\n\
             [[upstream]]\nname = \"and-{label}\"\nzones = [\"and-{label}.example.net\"]\nservers = [\"udp://{address}\", \"udp://{}\"]\n",
            good.address
        );
    }
    servers.push(good);
    (Site::new().with("upstream", text), servers)
}

#[test]
fn whatever_an_upstream_does_everybody_is_answered_in_time() {
    let (site, _servers) = site();
    let mut node = site.start();
    std::thread::scope(|scope| {
        for (number, wrong) in (1..).zip(WRONGS) {
            let dns = site.dns;
            scope.spawn(move || {
                let (client, mut stream) = (Client::new(dns), Stream::from([127, 0, 1, number], dns));
                // Several at once, of which two are the same question: everybody waits for one exchange at most.
                let name = |number: usize| format!("x{number}.{}.example.net", wrong.label());
                let questions: Vec<Message> = (0..4).map(|number| with_edns(a(&name(number / 2)), 1232)).collect();
                questions.iter().for_each(|question| _ = client.socket.send(&question.to_vec().unwrap()).unwrap());
                let mut replies = vec![stream.ask(&with_edns(a(&name(2)), 1232))];
                for _ in &questions {
                    let reply = client.receive().unwrap_or_else(|| panic!("{wrong:?}: silence"));
                    replies.push(Message::from_vec(&reply).unwrap());
                }
                for reply in replies {
                    assert_eq!(code(&reply), ResponseCode::ServFail, "{wrong:?}: {reply}");
                    let why = extended_error(&reply).unwrap_or_else(|| panic!("{wrong:?}: {reply}"));
                    // 13: the same question had failed already when this one came.
                    assert!([0, 13, 22, 23].contains(&why), "{wrong:?}: {why}");
                }
            });
        }
    });
    let records = site.queries();
    assert_eq!(records.len(), 5 * WRONGS.len());
    for record in &records {
        assert_eq!((&record["verdict"], &record["reason"]), (&"error".into(), &"upstream".into()), "{record}");
        assert!(record["latency_us"].as_u64().unwrap() < 2_000_000, "{record}");
    }
    assert_eq!(site.metric("outgate_grants"), 0.0, "nothing is opened that was not told");
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn a_second_server_answers_for_one_that_is_wrong_in_any_way() {
    let (site, _servers) = site();
    let _node = site.start();
    std::thread::scope(|scope| {
        for wrong in WRONGS {
            let dns = site.dns;
            scope.spawn(move || {
                let client = Client::new(dns);
                for number in 0..6 {
                    let reply = client.told(&format!("x{number}.and-{}.example.net", wrong.label()));
                    assert_eq!(addresses(&reply), ["198.51.100.7"], "{wrong:?} {number}: {reply}");
                }
            });
        }
    });
    assert!(site.queries().iter().all(|record| record["latency_us"].as_u64().unwrap() < 2_000_000));
}

#[test]
fn an_upstream_that_returns_is_asked_again() {
    for wrong in [Wrong::Gone, Wrong::Silent, Wrong::Servfail] {
        let address = loopback(free_port());
        let site = Site::new().with_servers(&[address]);
        let well = || Upstream::octets(address, |question, _| Some(with_addresses(question, 1).to_vec().unwrap()));
        let (first, mut node) = (well(), site.start());
        let client = Client::new(site.dns);
        assert_eq!(addresses(&client.told("before.example.net")), ["198.51.100.7"]);
        drop(first);
        let second = wrong.start(address);
        std::thread::scope(|scope| {
            // Enough to take the server out, and the question whose failure is remembered longest.
            for number in 0..8 {
                let client = Client::new(site.dns);
                let name = format!("x{number}.example.net");
                scope.spawn(move || assert_eq!(code(&client.told(&name)), ResponseCode::ServFail));
            }
        });
        assert_eq!(addresses(&client.told("before.example.net")), ["198.51.100.7"], "what is known is still told");
        drop(second);
        let _third = well();
        for name in ["x0.example.net", "new.example.net"] {
            until("the upstream is asked again", || addresses(&client.told(name)) == ["198.51.100.7"]);
        }
        assert_eq!(node.stop(), Some(0));
        site.verified();
    }
}
