//! What a client is told against what the upstream says: the same questions to outgate and to Knot behind it.
//!
//! The differences are these and no others:
//!
//! - a TTL is the smallest of the chain and the set, within `ttl_min` and `ttl_max`, for all records of an answer, less
//!   the time that the answer was known;
//! - of more than 16 addresses 16 are told (`policy`: an answer opens no more);
//! - a chain that Knot leaves at the end of a zone is followed, for its zones know nothing of each other;
//! - DNAME records are not told, only the CNAMEs made from them;
//! - AA is not set, RA is; the authority section has the SOA of a negative answer alone, the additional section nothing;
//! - over UDP 1,232 octets at most, then TC and no records.
//!
//! Every host of MX and SRV, and every target of HTTPS, is one that the rule allows: others would be left out.

mod exchange;
mod shapes;

use std::time::Instant;

use crate::harness::{Site, free_port};
use crate::knot::Knot;
use exchange::{Question, Record, Reply, over_tcp, over_udp};
use shapes::{KINDS, RULE_TYPES};

const CNAME: u16 = 5;
const DNAME: u16 = 39;
/// As many addresses of an answer are told.
const MOST_ADDRESSES: usize = 16;
/// RFC 9715 §3.1.
const LARGEST_DATAGRAM: usize = 1_232;

/// What all zones together say to a question.
struct Truth {
    question: Question,
    /// Where the chain stands while it is still being followed.
    at: Option<Vec<u8>>,
    rcode: u8,
    chain: Vec<Record>,
    set: Vec<Record>,
    soa: Option<Record>,
}

impl Truth {
    fn new(question: Question) -> Self {
        let at = question.name.to_ascii_lowercase();
        Self { question, at: Some(at), rcode: 0, chain: Vec::new(), set: Vec::new(), soa: None }
    }

    /// Takes Knot's reply to a question about the name at which the chain stands.
    fn take(&mut self, mut reply: Reply) {
        let Some(mut at) = self.at.take() else { return };
        reply.answers.retain(|record| record.kind != DNAME);
        let chain = self.chain.len();
        loop {
            let (kind, answers) = (self.question.kind, reply.answers.iter());
            self.set = answers.clone().filter(|record| record.owner == at && record.kind == kind).cloned().collect();
            let cname = answers.clone().find(|record| record.owner == at && record.kind == CNAME);
            match cname.filter(|_| self.set.is_empty()) {
                Some(cname) => {
                    at.clone_from(&cname.data);
                    self.chain.push(cname.clone());
                }
                None => break,
            }
        }
        assert_eq!(self.chain.len() - chain + self.set.len(), reply.answers.len(), "records off the chain: {reply:?}");
        (self.rcode, self.soa) = (reply.rcode, reply.soa);
        let open = self.set.is_empty() && self.soa.is_none();
        if open {
            assert!(self.chain.len() > chain, "Knot answers nothing to {:?}", self.question);
            self.at = Some(at);
        } else if !self.set.is_empty() {
            self.soa = None;
        }
    }

    /// The TTL that is told.
    fn ttl(&self) -> u32 {
        let smallest = self.chain.iter().chain(&self.set).map(|record| record.ttl).min();
        let negative = self.soa.as_ref().map(|soa| soa.ttl.min(u32::from_be_bytes(*soa.data.last_chunk().unwrap())));
        smallest.into_iter().chain(negative).min().unwrap().clamp(5, 300)
    }

    /// Why the reply is not this, where it is not; it may have been known for `age` seconds.
    fn differs(&self, reply: &Reply, age: u32) -> Option<&'static str> {
        let (chain, set) = reply.answers.split_at(self.chain.len().min(reply.answers.len()));
        let bare = |record: &Record| (record.owner.clone(), record.kind, record.data.clone());
        let mut told: Vec<_> = set.iter().map(bare).collect();
        let mut known: Vec<_> = self.set.iter().map(bare).collect();
        told.sort();
        known.sort();
        let few = told.len() == known.len().min(MOST_ADDRESSES) && told.windows(2).all(|pair| pair[0] != pair[1]);
        let some = [1, 28].contains(&self.question.kind) && few && told.iter().all(|record| known.contains(record));
        let ttls = reply.answers.iter().chain(&reply.soa).map(|record| record.ttl);
        let fits = |ttl: u32| ttl <= self.ttl() && ttl + age >= self.ttl();
        match () {
            () if reply.rcode != self.rcode => Some("the code"),
            () if !chain.iter().map(bare).eq(self.chain.iter().map(bare)) => Some("the chain"),
            () if told != known && !some => Some("the set"),
            () if reply.soa.as_ref().map(bare) != self.soa.as_ref().map(bare) => Some("the SOA"),
            () if !ttls.clone().all(fits) => Some("the TTL"),
            () if ttls.clone().min() != ttls.max() => Some("one TTL for all"),
            // QR, RD, RA; of TC nothing is known here.
            () if reply.flags & 0x0df0 != 0x0180 => Some("the flags"),
            () => None,
        }
    }
}

/// Follows every question through Knot's zones to its end.
fn truths(knot: &Knot, questions: &[Question]) -> Vec<Truth> {
    let mut truths: Vec<Truth> = questions.iter().cloned().map(Truth::new).collect();
    loop {
        let mut open: Vec<&mut Truth> = truths.iter_mut().filter(|truth| truth.at.is_some()).collect();
        if open.is_empty() {
            return truths;
        }
        let next = |truth: &&mut Truth| Some(Question { name: truth.at.clone()?, kind: truth.question.kind });
        let asked: Vec<Question> = open.iter().filter_map(next).collect();
        for (truth, reply) in open.iter_mut().zip(over_tcp(knot.address, &asked)) {
            truth.take(reply);
        }
    }
}

#[test]
fn tells_what_the_upstream_says() {
    let world = shapes::world();
    let zones: Vec<String> = world.zones.iter().map(|(name, _)| name.clone()).collect();
    let files: Vec<_> = world.zones.into_iter().map(|(name, text)| (format!("{name}.zone"), text)).collect();
    let Some(knot) = Knot::start(free_port(), &zones, &files) else { return };
    let of_name = |name: &Vec<u8>| KINDS.map(|kind| Question { name: name.clone(), kind });
    let questions: Vec<Question> = world.names.iter().flat_map(of_name).collect();
    let truths = truths(&knot, &questions);

    let upstream = format!(
        "[[upstream]]\nname = \"default\"\nservers = [\"udp://{}\"]\nprivate = [\"10.0.0.0/8\", \"172.16.0.0/12\", \
         \"192.168.0.0/16\", \"203.0.113.0/24\", \"fd00::/8\", \"2001:db8::/32\"]",
        knot.address
    );
    let site = Site::new().with("upstream", upstream);
    site.file(
        "policy/loop.toml",
        &format!(
            "[[segment]]\nname = \"loop\"\nclients = [\"127.0.0.0/8\", \"::1/128\"]\nscope = \"segment\"\n\
             [[rule]]\nid = \"all\"\naction = \"allow\"\nsegments = [\"loop\"]\nnames = [\"**.example.net\", \
             \"mail.example.com\"]\ntypes = {RULE_TYPES}\nhttps = \"pass\"\n"
        ),
    );
    let mut node = site.start();
    let start = Instant::now();
    let udp = over_udp(site.dns, &questions);
    let tcp = over_tcp(site.dns, &questions);
    // An answer has been known for at most as long as this took; what is left of a TTL is told rounded down.
    let age = u32::try_from(start.elapsed().as_secs()).unwrap() + 1;

    let (mut wrong, mut cut, mut chains, mut negative) = (Vec::new(), 0, 0, 0);
    for (truth, (udp, tcp)) in truths.iter().zip(udp.iter().zip(&tcp)) {
        let fits = tcp.length <= LARGEST_DATAGRAM;
        assert_eq!((udp.truncated(), tcp.truncated()), (!fits, false), "{} octets: {:?}", tcp.length, truth.question);
        assert!(udp.length <= LARGEST_DATAGRAM && (fits || udp.answers.is_empty()));
        for reply in [Some(tcp), Some(udp).filter(|_| fits)].into_iter().flatten() {
            wrong.extend(truth.differs(reply, age).map(|what| (what, truth, reply)));
        }
        cut += usize::from(!fits);
        chains += usize::from(truth.chain.len() == 7 && !truth.set.is_empty());
        negative += usize::from(truth.soa.is_some());
    }
    for (what, truth, reply) in wrong.iter().take(10) {
        let name = truth.question.name.escape_ascii();
        println!(
            "{what} of {name} {}: {reply:#?}\nbut {:?} {:#?} {:?}",
            truth.question.kind, truth.chain, truth.set, truth.soa
        );
    }
    assert_eq!(wrong.len(), 0, "of {} questions", questions.len());
    println!("{} questions in {age} s: {cut} cut, {chains} through seven CNAMEs, {negative} negative", questions.len());
    assert!(cut > 100 && chains > 20 && negative > 1_000, "the zones are too plain to show anything");

    let records = site.queries();
    assert_eq!(records.len(), 2 * questions.len());
    assert!(records.iter().all(|record| record["verdict"] == "allow"));
    assert_eq!(node.stop(), Some(0));
    site.verified();
}
