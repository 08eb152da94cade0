//! `conn.log` of Zeek, as tab-separated values with a `#fields` line, or as JSON.
//!
//! docs.zeek.org, `base/protocols/conn/main.zeek`: `ts` is "the time of the first packet".

use std::borrow::Cow;
use std::net::IpAddr;

use serde::Deserialize;

use super::{Direction, Line, Seen, seconds};
use crate::flow::Carrier;
use crate::time::Wall;

/// The fields of a file of tab-separated values, by their place; empty: none was named yet.
#[derive(Debug)]
pub(super) struct Fields {
    names: Vec<Box<str>>,
    separator: char,
    unset: Box<str>,
}

impl Default for Fields {
    fn default() -> Self {
        Self { names: Vec::new(), separator: '\t', unset: "-".into() }
    }
}

/// What is read of a connection.
#[derive(Debug, Default, Deserialize)]
struct Connection<'a> {
    #[serde(borrow, default, deserialize_with = "scalar")]
    ts: Cow<'a, str>,
    #[serde(rename = "id.orig_h", alias = "id_orig_h")]
    client: Option<IpAddr>,
    #[serde(rename = "id.orig_p", alias = "id_orig_p")]
    port: Option<u16>,
    #[serde(rename = "id.resp_h", alias = "id_resp_h")]
    address: Option<IpAddr>,
    #[serde(rename = "id.resp_p", alias = "id_resp_p")]
    service: Option<u16>,
    #[serde(borrow, default)]
    proto: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "scalar")]
    duration: Cow<'a, str>,
    orig_bytes: Option<u64>,
    resp_bytes: Option<u64>,
    orig_ip_bytes: Option<u64>,
    resp_ip_bytes: Option<u64>,
    orig_pkts: Option<u64>,
    resp_pkts: Option<u64>,
    #[serde(borrow, default)]
    conn_state: Cow<'a, str>,
    #[serde(borrow, default)]
    history: Cow<'a, str>,
}

/// A number, or a text, as text: the digits of a number are kept as they are written.
fn scalar<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Cow<'de, str>, D::Error> {
    let raw = <&serde_json::value::RawValue>::deserialize(deserializer)?.get();
    Ok(Cow::Borrowed(raw.trim_matches('"')))
}

impl Fields {
    pub(super) fn line(&mut self, line: &str) -> Line {
        if let Some(remark) = line.strip_prefix('#') {
            return self.remark(remark);
        }
        let connection = if line.starts_with('{') { serde_json::from_str(line).ok() } else { self.row(line) };
        connection.and_then(|connection| connection.seen()).map_or(Line::Damaged, Line::Flow)
    }

    fn remark(&mut self, remark: &str) -> Line {
        let (name, value) = remark.split_once([' ', '\t', self.separator]).unwrap_or((remark, ""));
        match name {
            // `\x09`
            "separator" => {
                let code = value.strip_prefix("\\x").and_then(|hex| u8::from_str_radix(hex, 16).ok());
                self.separator = code.map_or('\t', char::from);
            }
            "unset_field" => self.unset = value.into(),
            "fields" => self.names = value.split(self.separator).map(Into::into).collect(),
            "path" if value != "conn" => return Line::Damaged,
            _ => {}
        }
        Line::Nothing
    }

    fn row<'a>(&self, line: &'a str) -> Option<Connection<'a>> {
        let mut connection = Connection::default();
        let mut values = line.split(self.separator);
        for name in &self.names {
            let value = values.next()?;
            if value == &*self.unset || value == "(empty)" {
                continue;
            }
            let number = || value.parse::<u64>().ok();
            match &**name {
                "ts" => connection.ts = value.into(),
                "id.orig_h" => connection.client = Some(value.parse().ok()?),
                "id.orig_p" => connection.port = Some(value.parse().ok()?),
                "id.resp_h" => connection.address = Some(value.parse().ok()?),
                "id.resp_p" => connection.service = Some(value.parse().ok()?),
                "proto" => connection.proto = value.into(),
                "duration" => connection.duration = value.into(),
                "orig_bytes" => connection.orig_bytes = number(),
                "resp_bytes" => connection.resp_bytes = number(),
                "orig_ip_bytes" => connection.orig_ip_bytes = number(),
                "resp_ip_bytes" => connection.resp_ip_bytes = number(),
                "orig_pkts" => connection.orig_pkts = number(),
                "resp_pkts" => connection.resp_pkts = number(),
                "conn_state" => connection.conn_state = value.into(),
                "history" => connection.history = value.into(),
                _ => {}
            }
        }
        (values.next().is_none() && !self.names.is_empty()).then_some(connection)
    }
}

impl Connection<'_> {
    fn seen(&self) -> Option<Seen> {
        let at = moment(&self.ts)?;
        let duration = (!self.duration.is_empty()).then(|| seconds(&self.duration)).flatten();
        let (client, address) = (self.client?, self.address?);
        let carrier = match &*self.proto {
            "tcp" => Carrier::Tcp(self.service?),
            "udp" => Carrier::Udp(self.service?),
            "icmp" => Carrier::Icmp,
            // What it does not know, it does not number.
            "unknown_transport" | "" => Carrier::Protocol(255),
            _ => return None,
        };
        let has_ports = matches!(carrier, Carrier::Tcp(_) | Carrier::Udp(_));
        // "OTH: No SYN seen, just midstream traffic"; an `S` of the history is the originator's SYN.
        let midstream = matches!(carrier, Carrier::Tcp(_))
            && (&*self.conn_state == "OTH" || (!self.history.is_empty() && !self.history.contains('S')));
        Some(Seen {
            at,
            end: duration.map(|duration| Wall(at.0.saturating_add(duration.0))),
            client,
            port: self.port.filter(|_| has_ports),
            address,
            carrier,
            denied: false,
            started: !midstream,
            timed: true,
            // With headers, as conntrack and flow logs count.
            bytes_out: self.orig_ip_bytes.or(self.orig_bytes),
            bytes_in: self.resp_ip_bytes.or(self.resp_bytes),
            packets_out: self.orig_pkts,
            packets_in: self.resp_pkts,
            direction: Direction::Forth,
            tap: 0,
        })
    }
}

/// `1700000000.123456`, or RFC 3339 where Zeek is told to write times so.
fn moment(text: &str) -> Option<Wall> {
    if !text.contains('T') {
        return seconds(text);
    }
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u32>().ok().map(i64::from);
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let of_day = number(11, 13)? * 3600 + number(14, 16)? * 60 + number(17, 19)?;
    let fraction = text.get(19..)?.strip_suffix('Z')?;
    let part = if fraction.is_empty() { 0 } else { seconds(&format!("0{fraction}"))?.0 };
    (1..=12).contains(&month).then(|| Wall(Wall::from_civil(year, month, day, of_day).0 + part))
}
