//! ANSWER, QUERY and PACKET: what upstreams say and what clients send.

use std::net::IpAddr;

use hickory_proto::op::{OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NULL, PTR, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::BinEncodable;
use outgate::audit::Transport;

use super::expected::code;
use super::script::{What, address, addresses, kind, name, number_of, rdata};
use crate::gate::{Act, Answer, Ask, client};

/// `[upstream:] name type -> silence | RCODE [tc] [ede code text] [ttl n] [cname n] [dname n n] [a n] [aaaa n] [txt t] [soa n s]
/// [mx d] [srv d] [https d] [svcb d]`.
pub(super) fn read_answer(words: &[String]) -> Result<What, String> {
    let (upstream, words) = match words.split_first() {
        Some((first, rest)) if first.ends_with(':') => (Some(first.trim_end_matches(':').to_owned()), rest),
        _ => (None, words),
    };
    let [asked, asked_kind, arrow, does, rest @ ..] = words else {
        return Err("write ANSWER name type -> what".to_owned());
    };
    if arrow != "->" {
        return Err("write ANSWER name type -> what".to_owned());
    }
    let (asked, asked_kind) = (name(asked)?, kind(asked_kind)?);
    let act = if does == "silence" { Act::Silence } else { Act::Answer(read_response(&asked, does, rest)?) };
    Ok(What::Answer { upstream, name: asked.to_ascii(), kind: asked_kind, act })
}

fn read_response(asked: &Name, rcode: &str, words: &[String]) -> Result<Answer, String> {
    let rcode = (0..=23).map(ResponseCode::from_low).find(|known| code(*known) == rcode);
    let rcode = rcode.ok_or("an answer begins with an rcode, or is `silence`")?;
    let mut answer = Answer { rcode, records: Vec::new(), authority: Vec::new(), ede: None, truncated: false };
    let (mut owner, mut ttl) = (asked.clone(), 60);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut next = || words.next().ok_or_else(|| format!("{word} what?"));
        match word.as_str() {
            "tc" => answer.truncated = true,
            "ttl" => ttl = number_of(Some(next()?))?,
            "owner" => owner = name(next()?)?,
            "cname" => {
                let target = name(next()?)?;
                answer.records.push(Record::from_rdata(owner, ttl, RData::CNAME(CNAME(target.clone()))));
                owner = target;
            }
            "dname" => {
                let (old, new) = (name(next()?)?, name(next()?)?);
                let data = RData::Unknown {
                    code: RecordType::from(39),
                    rdata: NULL::with(new.to_bytes().unwrap_or_default()),
                };
                answer.records.push(Record::from_rdata(old, ttl, data));
            }
            "a" | "aaaa" => {
                for address in addresses(next()?)? {
                    let data = match address {
                        IpAddr::V4(address) => RData::A(A(address)),
                        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
                    };
                    answer.records.push(Record::from_rdata(owner.clone(), ttl, data));
                }
            }
            "mx" | "srv" | "https" | "svcb" => {
                let data = rdata(word, next()?)?;
                answer.records.push(Record::from_rdata(owner.clone(), ttl, data));
            }
            "ptr" => {
                let data = RData::PTR(PTR(name(next()?)?));
                answer.records.push(Record::from_rdata(owner.clone(), ttl, data));
            }
            "txt" => {
                let text = next()?.as_bytes();
                let parts = text.chunks(255).map(|part| String::from_utf8_lossy(part).into_owned());
                let data = RData::TXT(TXT::new(parts.collect()));
                answer.records.push(Record::from_rdata(owner.clone(), ttl, data));
            }
            "soa" => {
                let (zone, minimum) = (name(next()?)?, number_of(Some(next()?))?);
                let data = SOA::new(zone.clone(), zone.clone(), 1, 3600, 600, 86_400, minimum);
                answer.authority.push(Record::from_rdata(zone, ttl, RData::SOA(data)));
            }
            "ede" => answer.ede = Some((number_of(Some(next()?))?, next()?.clone())),
            _ => return Err(format!("{word} is not a part of an answer")),
        }
    }
    Ok(answer)
}

/// `[held] [from address] [tcp] [subnet s] [proxy address | proxy local] [edns size | noedns] [version n] [do] [cd] [ad] [nord] [class c] [opcode n] name type`.
pub(super) fn read_query(words: &[String]) -> Result<What, String> {
    let [options @ .., asked, asked_kind] = words else { return Err("write QUERY name type".to_owned()) };
    let mut ask = Ask::new(asked, kind(asked_kind)?);
    let (mut from, mut transport, mut held, mut header) = (client(), Transport::Udp, false, None);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match option.as_str() {
            "from" => from = address(options.next().ok_or("from whom?")?)?,
            "tcp" => transport = Transport::Tcp,
            "held" => held = true,
            "edns" => ask.edns = Some(number_of(options.next())?),
            "noedns" => ask.edns = None,
            "version" => ask.version = number_of(options.next())?,
            "do" => ask.dnssec_ok = true,
            "cd" => ask.checking_disabled = true,
            "ad" => ask.authentic_data = true,
            "nord" => ask.recursion_desired = false,
            "class" => ask.class = DNSClass::from(number_of::<u16>(options.next())?),
            "opcode" => ask.opcode = OpCode::from_u8(number_of(options.next())?),
            "subnet" => ask.options.push((8, subnet(options.next().ok_or("which subnet?")?)?)),
            "proxy" => header = Some(proxy_header(options.next().ok_or("for whom?")?)?),
            "option" => {
                let code = number_of(options.next())?;
                ask.options.push((code, octets(options.next().ok_or("which octets?")?)?));
            }
            _ => return Err(format!("{option} is not a part of a query")),
        }
    }
    Ok(What::Query { ask: Box::new(ask), header, from, transport, held })
}

/// `[from address] [tcp] hex…`.
pub(super) fn read_packet(words: &[String]) -> Result<What, String> {
    let (mut from, mut transport, mut hex) = (client(), Transport::Udp, String::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "from" => from = address(words.next().ok_or("from whom?")?)?,
            "tcp" => transport = Transport::Tcp,
            _ => hex.push_str(word),
        }
    }
    Ok(What::Packet { bytes: octets(&hex)?, from, transport })
}

/// `address/length`, as the data of a client subnet option.
pub(super) fn subnet(word: &str) -> Result<Vec<u8>, String> {
    let (address, length) = word.split_once('/').ok_or("a subnet is written 192.0.2.7/32")?;
    let length: u8 = number_of(Some(&length.to_owned()))?;
    let (family, octets) = match self::address(address)? {
        IpAddr::V4(address) => (1, address.octets().to_vec()),
        IpAddr::V6(address) => (2, address.octets().to_vec()),
    };
    let kept = octets.into_iter().take(usize::from(length).div_ceil(8));
    Ok([0, family, length, 0].into_iter().chain(kept).collect())
}

/// A PROXY header before a datagram of this client; `local`: of the proxy itself.
fn proxy_header(word: &str) -> Result<Vec<u8>, String> {
    let (command, family, addresses) = match word {
        "local" => (0x20, 0, Vec::new()),
        client => match address(client)? {
            IpAddr::V4(client) => (0x21, 0x12, [client.octets(), [192, 0, 2, 53]].concat()),
            IpAddr::V6(client) => (0x21, 0x22, [client.octets(), [0; 16]].concat()),
        },
    };
    let ports: &[u8] = if addresses.is_empty() { &[] } else { &[0x12, 0x34, 0, 53] };
    let block = [&addresses, ports].concat();
    let length = u8::try_from(block.len()).unwrap();
    Ok([b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[command, family, 0, length], &block].concat())
}

pub(super) fn octets(hex: &str) -> Result<Vec<u8>, String> {
    let pair = |at: usize| hex.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    (0..hex.len()).step_by(2).map(|at| pair(at).ok_or_else(|| format!("{hex} is not hex"))).collect()
}
