//! Flow logs of other systems, line by line: pure functions from text to flows.

mod conntrack;
mod vpc;
mod zeek;

use std::net::IpAddr;
use std::time::Duration;

use super::{Carrier, Origin};
use crate::time::Wall;

/// A flow as a line has it. Where [`Seen::direction`] says so, its ends are those of packets to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When it began, or was seen first.
    pub at: Wall,
    /// When it ended, or was seen last.
    pub end: Option<Wall>,
    /// From where.
    pub client: IpAddr,
    /// The port it came from.
    pub port: Option<u16>,
    /// To where.
    pub address: IpAddr,
    /// What carried it.
    pub carrier: Carrier,
    /// It was refused.
    pub denied: bool,
    /// Its beginning was seen.
    pub started: bool,
    /// False where nobody wrote down when it was seen, and `at` is no more than a guess.
    pub timed: bool,
    /// Bytes from the client.
    pub bytes_out: Option<u64>,
    /// Bytes to it.
    pub bytes_in: Option<u64>,
    /// Packets from the client.
    pub packets_out: Option<u64>,
    /// Packets to it.
    pub packets_in: Option<u64>,
    /// Which way its packets went.
    pub direction: Direction,
    /// The interface where it was seen, as a hash; 0: not said.
    pub tap: u32,
}

/// Which way the packets of a line went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Both ways, or from who began the flow.
    Forth,
    /// Back to who began it.
    Back,
    /// That is not said.
    Unclear,
}

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// A flow.
    Flow(Seen),
    /// Flows of this time are missing.
    Lost(Wall, Wall),
    /// A heading, a remark, or an event that says nothing new.
    Nothing,
    /// None of this format.
    Damaged,
}

impl Seen {
    /// The same flow from its other end.
    #[must_use]
    pub fn reversed(self) -> Self {
        let carried = |port: Option<u16>| match (self.carrier, port) {
            (Carrier::Tcp(_), Some(port)) => Carrier::Tcp(port),
            (Carrier::Udp(_), Some(port)) => Carrier::Udp(port),
            (carrier, _) => carrier,
        };
        let port = match self.carrier {
            Carrier::Tcp(port) | Carrier::Udp(port) => Some(port),
            Carrier::Icmp | Carrier::Protocol(_) => None,
        };
        Self {
            client: self.address,
            address: self.client,
            carrier: carried(self.port),
            port,
            bytes_out: self.bytes_in,
            bytes_in: self.bytes_out,
            packets_out: self.packets_in,
            packets_in: self.packets_out,
            direction: match self.direction {
                Direction::Forth => Direction::Back,
                Direction::Back => Direction::Forth,
                Direction::Unclear => Direction::Unclear,
            },
            ..self
        }
    }
}

/// Reads the lines of one flow log.
#[derive(Debug)]
pub struct Source(Format);

#[derive(Debug)]
enum Format {
    Vpc(vpc::Fields),
    Zeek(zeek::Fields),
    Conntrack(conntrack::Events),
}

impl Source {
    /// A source of this format. `fields` are those of a flow log of a VPC that has no line for them; `taken` is when a
    /// list of connections was made.
    ///
    /// # Errors
    /// There is no such format, or a field is missing; as a sentence.
    pub fn new(origin: Origin, fields: Option<&str>, taken: Wall) -> Result<Self, String> {
        Ok(Self(match origin {
            Origin::Vpc => Format::Vpc(fields.map_or_else(|| Ok(vpc::Fields::usual()), vpc::Fields::read)?),
            Origin::Zeek => Format::Zeek(zeek::Fields::default()),
            Origin::Conntrack => Format::Conntrack(conntrack::Events::new(taken)),
            Origin::Nflog => return Err("nflog is no format of a file".to_owned()),
        }))
    }

    /// The format that a file's first lines look like.
    #[must_use]
    pub fn guess(begin: &str) -> Option<Origin> {
        let line = begin.lines().find(|line| !line.trim().is_empty())?.trim_start();
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let first = line.split([' ', ',', '\t']).next().unwrap_or_default();
        if line.starts_with("#separator") || line.starts_with("#fields") || line.starts_with('{') {
            Some(Origin::Zeek)
        } else if line.contains(" src=") && line.contains(" dst=") {
            Some(Origin::Conntrack)
        } else if vpc::is_heading(line) || (is_number(first) && line.split([' ', ',']).count() >= 10) {
            Some(Origin::Vpc)
        } else {
            None
        }
    }

    /// Where it is from.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        match self.0 {
            Format::Vpc(_) => Origin::Vpc,
            Format::Zeek(_) => Origin::Zeek,
            Format::Conntrack(_) => Origin::Conntrack,
        }
    }

    /// How far its times may be from those of the query log: a minute for the windows of a VPC (its documentation: "the
    /// time, in Unix seconds, when the first packet of the flow was received within the aggregation interval. This might be
    /// up to 60 seconds after the packet was transmitted or received"), a second for another machine's clock.
    #[must_use]
    pub const fn error(&self) -> Duration {
        match self.0 {
            Format::Vpc(_) => Duration::from_secs(60),
            Format::Zeek(_) | Format::Conntrack(_) => Duration::from_secs(1),
        }
    }

    /// Reads one line, without its end.
    pub fn read(&mut self, line: &str) -> Line {
        let line = line.trim_end_matches(['\r', '\n']);
        if line.trim().is_empty() {
            return Line::Nothing;
        }
        match &mut self.0 {
            Format::Vpc(fields) => fields.line(line),
            Format::Zeek(fields) => fields.line(line),
            Format::Conntrack(events) => events.line(line),
        }
    }

    /// What began and has no end in what was read.
    pub fn rest(&mut self) -> Vec<Seen> {
        match &mut self.0 {
            Format::Conntrack(events) => events.rest(),
            Format::Vpc(_) | Format::Zeek(_) => Vec::new(),
        }
    }
}

/// Seconds since 1970 as decimal text, to the microsecond.
fn seconds(text: &str) -> Option<Wall> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let whole = whole.parse::<u64>().ok()?.checked_mul(1_000_000)?;
    let digits = part.get(..part.len().min(6))?;
    let part = if digits.is_empty() { 0 } else { digits.parse::<u32>().ok()? };
    let scale = 10_u32.pow(6 - u32::try_from(digits.len()).ok()?);
    Some(Wall(whole.checked_add(u64::from(part * scale))?))
}

#[cfg(test)]
mod tests;
