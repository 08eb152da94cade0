//! dnstap: a query's record as the frames of its query and of its response, with their DNS messages.
//!
//! The messages are made again of what the record says, and are not copies of what was sent: docs/siem.md says what
//! of them is as it was.

mod message;
mod protobuf;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use prost::Message as _;
use serde::{Deserialize, Serialize};

use self::message::Messages;
use self::protobuf::{Dnstap, Message, Policy};
use super::frames::push_frame;
use crate::audit::read::micros;
use crate::audit::records::{Text, Told};
use crate::name::Name;

/// What a query's record says that has a place in dnstap.
#[derive(Deserialize)]
struct Query<'a> {
    #[serde(rename = "type", borrow)]
    kind: Text<'a>,
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    ts: Text<'a>,
    #[serde(borrow)]
    node: Text<'a>,
    client: IpAddr,
    port: u16,
    #[serde(borrow)]
    transport: Text<'a>,
    #[serde(borrow)]
    cookie: Option<Text<'a>>,
    #[serde(borrow)]
    segment: Option<Text<'a>>,
    qid: Option<u16>,
    #[serde(borrow)]
    qname: Option<Text<'a>>,
    #[serde(borrow)]
    qtype: Option<Text<'a>>,
    #[serde(borrow)]
    verdict: Text<'a>,
    enforced: Option<bool>,
    #[serde(borrow)]
    reason: Text<'a>,
    #[serde(borrow)]
    rule: Option<Text<'a>>,
    #[serde(borrow)]
    policy: Option<Text<'a>>,
    #[serde(borrow)]
    rcode: Option<Text<'a>>,
    #[serde(borrow, default)]
    flags: Vec<Text<'a>>,
    bytes: Option<usize>,
    #[serde(borrow, default)]
    answers: Vec<Told<'a>>,
    answers_omitted: Option<usize>,
    #[serde(borrow)]
    ede: Option<Ede<'a>>,
    latency_us: u64,
}

#[derive(Deserialize)]
struct Ede<'a> {
    code: u16,
    #[serde(borrow)]
    text: Option<Text<'a>>,
}

/// What has no place in dnstap, as one JSON object in its `extra`.
#[derive(Serialize)]
struct Extra<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    segment: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    verdict: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    enforced: Option<bool>,
    reason: &'a str,
    /// Records of the answer section that the response here lacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    answers_omitted: Option<usize>,
}

/// Appends two frames of a query's record, one where nothing was sent; other records have no form.
pub(super) fn write(line: &str, out: &mut Vec<u8>) -> bool {
    let Ok(query) = serde_json::from_str::<Query<'_>>(line) else { return false };
    let Some(received) = micros(&query.ts).filter(|_| &*query.kind == "query") else { return false };
    let messages = Messages::of(&query);
    let extra = query.extra(messages.omitted);
    let (policy, message) = (query.policy(), query.message(received));
    let sent = query.rcode.as_ref().map(|_| received.saturating_add(query.latency_us));
    let asked = Message {
        kind: protobuf::CLIENT_QUERY,
        query_message: messages.query,
        // Of a query that got no response, there is no other place to say so.
        policy: sent.is_none().then(|| policy.clone()),
        ..message.clone()
    };
    query.push(out, &extra, asked);
    if let Some(sent) = sent {
        let told = Message {
            kind: protobuf::CLIENT_RESPONSE,
            response_time_sec: Some(sent / 1_000_000),
            response_time_nsec: Some(nanos(sent)),
            response_message: messages.response,
            policy: Some(policy),
            ..message
        };
        query.push(out, &extra, told);
    }
    true
}

impl Query<'_> {
    fn push(&self, out: &mut Vec<u8>, extra: &[u8], message: Message) {
        let frame = Dnstap {
            identity: Some(self.node.as_bytes().to_vec()),
            version: Some(concat!("outgate ", env!("CARGO_PKG_VERSION")).into()),
            extra: Some(extra.to_vec()),
            message: Some(message),
            kind: protobuf::MESSAGE,
        };
        push_frame(out, |out| frame.encode_raw(out));
    }

    /// What both frames say.
    fn message(&self, received: u64) -> Message {
        let protocol = match &*self.transport {
            "udp" => Some(protobuf::UDP),
            "tcp" => Some(protobuf::TCP),
            "dot" => Some(protobuf::DOT),
            "doh" | "doh3" => Some(protobuf::DOH),
            "doq" => Some(protobuf::DOQ),
            _ => None,
        };
        Message {
            socket_family: Some(if self.client.is_ipv4() { protobuf::INET } else { protobuf::INET6 }),
            socket_protocol: protocol,
            // Whether the others came over HTTP/1 or HTTP/2 is not in the record.
            http_protocol: (&*self.transport == "doh3").then_some(protobuf::HTTP3),
            query_address: Some(octets(self.client)),
            query_port: Some(self.port.into()),
            query_time_sec: Some(received / 1_000_000),
            query_time_nsec: Some(nanos(received)),
            ..Message::default()
        }
    }

    fn policy(&self) -> Policy {
        let name = || self.qname.as_deref().and_then(|name| Name::parse(name).ok());
        let (matched, value) = match &*self.reason {
            "rule" | "default" | "type" | "special" | "local" => {
                let name = name().map(|name| name.as_wire().to_vec());
                (name.is_some().then_some(protobuf::QNAME), name)
            }
            "no_segment" | "rate" => (Some(protobuf::CLIENT_IP), Some(octets(self.client))),
            // Which address it was is not in the record.
            "address" => (Some(protobuf::RESPONSE_IP), None),
            _ => (None, None),
        };
        Policy {
            kind: Some("outgate".to_owned()),
            rule: self.rule.as_ref().map(|rule| rule.as_bytes().to_vec()),
            action: self.action(),
            matched,
            value,
        }
    }

    /// What was done; none where it failed, and for REFUSED, of which dnstap has no action.
    fn action(&self) -> Option<i32> {
        match (&*self.verdict, self.rcode.as_deref()) {
            ("deny", None) => Some(protobuf::DROP),
            ("allow", Some(_)) if &*self.reason == "local" => Some(protobuf::LOCAL_DATA),
            ("allow", Some(_)) => Some(protobuf::PASS),
            ("deny", Some(_)) if self.enforced == Some(false) => Some(protobuf::PASS),
            ("deny", Some("NXDOMAIN")) => Some(protobuf::NXDOMAIN),
            ("deny", Some("NOERROR")) if self.answers.is_empty() => Some(protobuf::NODATA),
            _ => None,
        }
    }

    fn extra(&self, omitted: usize) -> Vec<u8> {
        let extra = Extra {
            id: &self.id,
            segment: self.segment.as_deref(),
            policy: self.policy.as_deref(),
            verdict: &self.verdict,
            enforced: self.enforced,
            reason: &self.reason,
            answers_omitted: Some(omitted).filter(|omitted| *omitted > 0),
        };
        serde_json::to_vec(&extra).unwrap_or_default()
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The part of a second.
fn nanos(micros: u64) -> u32 {
    u32::try_from(micros % 1_000_000 * 1_000).unwrap_or(0)
}
