//! A zone made to cost (KeyTrap, CVE-2023-50387): keys of one tag, and signatures that each of them has to be tried with.
//! All of it is below the limits of what is read; what it costs is measured in docs/performance.md.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::BASE64;
use hickory_proto::dnssec::crypto::EcdsaSigningKey;
use hickory_proto::dnssec::rdata::sig::SigInput;
use hickory_proto::dnssec::rdata::{DNSKEY, DNSSECRData, RRSIG};
use hickory_proto::dnssec::{Algorithm, PublicKey, PublicKeyBuf, SigningKey, TBS};
use hickory_proto::op::Message;
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, SerialNumber};

use crate::dns::{Client, addresses, code, extended_error, query, with_edns};
use crate::harness::{Node, Site};
use crate::upstream::Upstream;

/// The longest RSA that is taken, and the largest exponent that there is a verifier for: 32 squarings, 32 products.
const MODULUS: usize = 512;
const EXPONENT: &[u8] = &[5, 1, 0xff, 0xff, 0xff, 0xff];
/// Signatures of a set: as many as are read.
const SIGNATURES: usize = 8;
/// CNAMEs of a chain: each signature asks for the keys once more, and 64 such questions may be asked.
const LINKS: usize = 7;

/// example.org with one key that signs, and two of one tag that sign nothing.
struct Zone {
    key: EcdsaSigningKey,
    own: DNSKEY,
    trap: DNSKEY,
    twin: DNSKEY,
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

impl Zone {
    fn new(modulus: usize) -> Self {
        let pkcs8 = EcdsaSigningKey::generate_pkcs8(Algorithm::ECDSAP256SHA256).unwrap();
        let key = EcdsaSigningKey::from_pkcs8(&pkcs8, Algorithm::ECDSAP256SHA256).unwrap();
        let own = DNSKEY::new(true, true, false, key.to_public_key().unwrap());
        let mut modulus: Vec<u8> = (0..modulus).map(|at| u8::try_from(at * 7 % 251).unwrap() | 1).collect();
        modulus[0] = 0xff;
        let rsa = |modulus: &[u8]| {
            let octets = [EXPONENT, modulus].concat();
            DNSKEY::new(true, false, false, PublicKeyBuf::new(octets, Algorithm::RSASHA256))
        };
        let trap = rsa(&modulus);
        // A tag is a sum of octets in pairs: what two pairs hold may change places.
        modulus[256..260].rotate_left(2);
        let zone = Self { key, own, trap, twin: rsa(&modulus) };
        assert_eq!(zone.trap.calculate_key_tag().unwrap(), zone.twin.calculate_key_tag().unwrap());
        assert_ne!(zone.trap, zone.twin);
        zone
    }

    /// The keys in the words of a zone file.
    fn anchors(&self) -> String {
        let line = |key: &DNSKEY| {
            let (flags, key) = (key.flags(), key.public_key());
            let octets = BASE64.encode(key.public_bytes());
            format!("example.org. IN DNSKEY {flags} 3 {} {octets}\n", u8::from(key.algorithm()))
        };
        [&self.own, &self.trap, &self.twin].map(line).concat()
    }

    /// The records of a set and its signatures: so many wrong ones, and last the right one.
    fn signed(&self, records: Vec<Record>, wrong: usize) -> Vec<Record> {
        let first = records[0].clone();
        let now = u32::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
        let input = |key: &DNSKEY| SigInput {
            type_covered: first.record_type(),
            algorithm: key.public_key().algorithm(),
            num_labels: first.name.num_labels(),
            original_ttl: first.ttl,
            sig_expiration: SerialNumber::new(now + 3600),
            sig_inception: SerialNumber::new(now - 3600),
            key_tag: key.calculate_key_tag().unwrap(),
            signer_name: name("example.org."),
        };
        let signature =
            |rrsig| Record::from_rdata(first.name.clone(), first.ttl, RData::DNSSEC(DNSSECRData::RRSIG(rrsig)));
        let junk = (0..wrong).map(|number| {
            let mut octets = vec![u8::try_from(number).unwrap(); MODULUS];
            octets[0] = 1;
            signature(RRSIG::from_sig(input(&self.trap), octets))
        });
        let right = input(&self.own);
        let tbs = TBS::from_input(&first.name, DNSClass::IN, &right, records.iter()).unwrap();
        let right = signature(RRSIG::from_sig(right, self.key.sign(&tbs).unwrap()));
        records.iter().cloned().chain(junk).chain([right]).collect()
    }

    /// What is said of `trap*` costs as much as it can; what is said of any other name, as little.
    fn say(&self, question: &Message) -> Message {
        let asked = question.queries[0].clone();
        let record = |owner: &Name, data| Record::from_rdata(owner.clone(), 300, data);
        let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
        reply.metadata.recursion_available = true;
        reply.edns.clone_from(&question.edns);
        let apex = name("example.org.");
        let text = asked.name().to_lowercase().to_ascii();
        reply.answers = match asked.query_type() {
            RecordType::DNSKEY if asked.name().to_lowercase() == apex => {
                let keys = [&self.own, &self.trap, &self.twin];
                let keys = keys.map(|key| record(&apex, RData::DNSSEC(DNSSECRData::DNSKEY(key.clone()))));
                self.signed(keys.into(), 0)
            }
            RecordType::A => {
                let address = |owner: &Name| vec![record(owner, RData::A(A::new(198, 51, 100, 7)))];
                let owner = asked.name().to_lowercase();
                match text.split_once('-') {
                    Some(("trap", number)) => {
                        let link = |at: usize| if at == 0 { owner.clone() } else { name(&format!("l{at}-{number}")) };
                        let links = (0..LINKS).flat_map(|at| {
                            let alias = record(&link(at), RData::CNAME(CNAME(link(at + 1))));
                            self.signed(vec![alias], SIGNATURES - 1)
                        });
                        links.chain(self.signed(address(&link(LINKS)), SIGNATURES - 1)).collect()
                    }
                    Some(("more", _)) => self.signed(address(&owner), SIGNATURES),
                    _ => self.signed(address(&owner), 0),
                }
            }
            _ => Vec::new(),
        };
        reply.queries = vec![asked];
        reply
    }
}

/// The processor time of the whole process so far, in microseconds.
fn spent(node: &Node) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", node.id())).unwrap();
    let of = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|nanoseconds| nanoseconds.parse::<u64>().ok()).unwrap_or(0)
    };
    tasks.map(|task| of(task.unwrap())).sum::<u64>() / 1_000
}

/// A node that validates what this zone says.
fn serving(zone: Zone) -> (Site, Upstream) {
    let anchors = zone.anchors();
    let upstream = Upstream::saying(move |question| Some(zone.say(question)));
    let site = Site::new().with(
        "upstream",
        format!(
            "[[upstream]]\nname = \"signed\"\nservers = [\"tcp://{}\"]\nprivate = [\"198.51.100.0/24\"]\n\
             dnssec = \"validate\"\nanchors = \"anchors\"",
            upstream.address
        ),
    );
    site.file("anchors", &anchors);
    site.file(
        "policy/loop.toml",
        "[[segment]]\nname = \"loop\"\nclients = [\"127.0.0.0/8\"]\n[[rule]]\nid = \"all\"\naction = \"allow\"\n\
         segments = [\"loop\"]\nnames = [\"**.example.org\"]\n",
    );
    (site, upstream)
}

fn ask(site: &Site, asked: &str) -> Message {
    let mut message = with_edns(query(asked, RecordType::A), 1232);
    message.metadata.authentic_data = true;
    Client::new(site.dns).ask(&message).unwrap()
}

/// That it is bogus, and why.
fn refused(site: &Site, asked: &str, why: &str) {
    let reply = ask(site, asked);
    assert_eq!((code(&reply).to_string().as_str(), extended_error(&reply)), ("Server Failure", Some(6)), "{asked}");
    let record = site.queries().pop().unwrap();
    assert!(record["why"].as_str().unwrap().contains(why), "{record}");
}

#[test]
fn a_zone_made_to_cost_is_validated_within_what_is_counted() {
    let (site, _upstream) = serving(Zone::new(MODULUS));
    let mut node = site.start();
    // Keys are fetched once.
    ask(&site, "plain-0.example.org.");
    let mut costs = Vec::new();
    for (kind, count) in [("plain", 200), ("trap", 5)] {
        let before = spent(&node);
        for number in 1..=count {
            let reply = ask(&site, &format!("{kind}-{number}.example.org."));
            let seen = (code(&reply).to_string(), reply.metadata.authentic_data, addresses(&reply));
            let expected = ("No Error".into(), true, vec!["198.51.100.7".to_owned()]);
            assert_eq!(seen, expected, "{:?}", site.queries().pop());
        }
        costs.push((spent(&node) - before) / count);
    }
    println!("microseconds of processor time: {} for a signed answer, {} for one made to cost", costs[0], costs[1]);
    // One signature more than is read, and nothing is computed.
    refused(&site, "more-1.example.org.", "a record set has more than 8 signatures");
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn longer_keys_than_there_may_be_are_never_computed_with() {
    let (site, _upstream) = serving(Zone::new(2 * MODULUS));
    let mut node = site.start();
    // The second time too: what is too much is not known from before.
    for number in 0..3 {
        refused(&site, &format!("plain-{number}.example.org."), "a key is longer than one of RSA with 4,096 bits");
    }
    assert_eq!(node.stop(), Some(0));
}
