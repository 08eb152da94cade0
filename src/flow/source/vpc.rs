//! Flow logs of an AWS VPC, versions 2 to 5, default and custom formats, with spaces or commas.
//!
//! Amazon VPC user guide, "Flow log records". One line is one direction of one flow in one window of up to ten minutes.

use std::net::IpAddr;

use super::{Direction, Line, Seen, seconds};
use crate::flow::Carrier;
use crate::time::Wall;

/// The default format, version 2.
const USUAL: &str = "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action log-status";

/// Flags of TCP, as `tcp-flags` has them: "SYN: 2", "SYN-ACK: 18"; one that is sent alone with ACK is 0.
const SYN: u16 = 2;
const ACK: u16 = 16;

/// What a column is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Interface,
    Source,
    Destination,
    PacketSource,
    PacketDestination,
    SourcePort,
    DestinationPort,
    Protocol,
    Packets,
    Bytes,
    Start,
    End,
    Action,
    Status,
    Flags,
    FlowDirection,
    Other,
}

impl Column {
    /// Athena writes `_` for `-`.
    fn of(name: &str) -> Self {
        let name = name.trim().trim_matches('"').trim_start_matches("${").trim_end_matches('}');
        match name.replace('_', "-").to_ascii_lowercase().as_str() {
            "interface-id" => Self::Interface,
            "srcaddr" => Self::Source,
            "dstaddr" => Self::Destination,
            "pkt-srcaddr" => Self::PacketSource,
            "pkt-dstaddr" => Self::PacketDestination,
            "srcport" => Self::SourcePort,
            "dstport" => Self::DestinationPort,
            "protocol" => Self::Protocol,
            "packets" => Self::Packets,
            "bytes" => Self::Bytes,
            "start" => Self::Start,
            "end" => Self::End,
            "action" => Self::Action,
            "log-status" => Self::Status,
            "tcp-flags" => Self::Flags,
            "flow-direction" => Self::FlowDirection,
            _ => Self::Other,
        }
    }
}

/// The columns of a file.
#[derive(Debug)]
pub(super) struct Fields(Vec<Column>);

/// Whether a line names columns: no record has a word like these.
pub(super) fn is_heading(line: &str) -> bool {
    let names = || line.split([' ', ',', '\t']).map(Column::of);
    names().any(|column| column == Column::Start) && names().filter(|column| *column != Column::Other).count() >= 3
}

impl Fields {
    pub(super) fn usual() -> Self {
        Self(USUAL.split(' ').map(Column::of).collect())
    }

    /// Reads a line of columns, or a format as it is written for AWS: `${version} ${srcaddr} …`.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let columns: Vec<Column> =
            text.split([' ', ',', '\t']).filter(|name| !name.is_empty()).map(Column::of).collect();
        let has = |one| columns.contains(&one);
        for (there, what) in [
            (has(Column::Source) || has(Column::PacketSource), "pkt-srcaddr or srcaddr"),
            (has(Column::Destination) || has(Column::PacketDestination), "pkt-dstaddr or dstaddr"),
            (has(Column::Protocol), "protocol"),
            (has(Column::DestinationPort), "dstport"),
            (has(Column::Start), "start"),
        ] {
            if !there {
                return Err(format!("the fields of the flow log lack {what}: without it no flow can be judged"));
            }
        }
        Ok(Self(columns))
    }

    pub(super) fn line(&mut self, line: &str) -> Line {
        if is_heading(line) {
            return match Self::read(line) {
                Ok(fields) => {
                    *self = fields;
                    Line::Nothing
                }
                Err(_) => Line::Damaged,
            };
        }
        self.record(line).unwrap_or(Line::Damaged)
    }

    fn record(&self, line: &str) -> Option<Line> {
        let separator = if line.contains(',') {
            ','
        } else if line.contains('\t') {
            '\t'
        } else {
            ' '
        };
        let mut values = line.split(separator).map(|value| value.trim().trim_matches('"'));
        let mut row = Row::default();
        for column in &self.0 {
            let value = values.next()?;
            if !value.is_empty() && value != "-" {
                row.set(*column, value)?;
            }
        }
        // More columns than there are names for: another format.
        values.next().is_none().then(|| row.line()).flatten()
    }
}

/// The values of a line; what is `-` is absent.
#[derive(Default)]
struct Row {
    interface: u32,
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    packet_source: Option<IpAddr>,
    packet_destination: Option<IpAddr>,
    source_port: u16,
    destination_port: u16,
    protocol: Option<u8>,
    packets: Option<u64>,
    bytes: Option<u64>,
    start: Option<Wall>,
    end: Option<Wall>,
    denied: bool,
    skipped: bool,
    no_data: bool,
    flags: Option<u16>,
    ingress: Option<bool>,
}

impl Row {
    fn set(&mut self, column: Column, value: &str) -> Option<()> {
        match column {
            Column::Interface => {
                self.interface = value
                    .bytes()
                    .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
            }
            Column::Source => self.source = Some(value.parse().ok()?),
            Column::Destination => self.destination = Some(value.parse().ok()?),
            Column::PacketSource => self.packet_source = Some(value.parse().ok()?),
            Column::PacketDestination => self.packet_destination = Some(value.parse().ok()?),
            Column::SourcePort => self.source_port = value.parse().ok()?,
            Column::DestinationPort => self.destination_port = value.parse().ok()?,
            Column::Protocol => self.protocol = Some(value.parse().ok()?),
            Column::Packets => self.packets = Some(value.parse().ok()?),
            Column::Bytes => self.bytes = Some(value.parse().ok()?),
            Column::Start => self.start = Some(seconds(value)?),
            Column::End => self.end = Some(seconds(value)?),
            Column::Action => match value {
                "ACCEPT" => {}
                "REJECT" => self.denied = true,
                _ => return None,
            },
            Column::Status => match value {
                "OK" => {}
                "NODATA" => self.no_data = true,
                "SKIPDATA" => self.skipped = true,
                _ => return None,
            },
            Column::Flags => self.flags = Some(value.parse().ok()?),
            Column::FlowDirection => self.ingress = Some(value == "ingress"),
            Column::Other => {}
        }
        Some(())
    }

    fn line(&self) -> Option<Line> {
        let start = self.start?;
        if self.skipped {
            return Some(Line::Lost(start, self.end.unwrap_or(start)));
        }
        if self.no_data {
            return Some(Line::Nothing);
        }
        let protocol = self.protocol?;
        let has_ports = matches!(protocol, 6 | 17);
        let flags = self.flags.filter(|_| protocol == 6);
        Some(Line::Flow(Seen {
            at: start,
            end: self.end,
            // "srcaddr" is the primary address of the interface; behind a NAT gateway, and of a pod, another one.
            client: self.packet_source.or(self.source)?,
            port: has_ports.then_some(self.source_port),
            address: self.packet_destination.or(self.destination)?,
            carrier: Carrier::of(protocol, self.destination_port),
            denied: self.denied,
            started: flags.is_some_and(|flags| flags & SYN != 0),
            timed: true,
            bytes_out: self.bytes,
            bytes_in: None,
            packets_out: self.packets,
            packets_in: None,
            direction: self.direction(flags, has_ports),
            tap: self.interface,
        }))
    }

    /// Who began: who sent a SYN; else who has no port of a service; else who is at the interface.
    fn direction(&self, flags: Option<u16>, has_ports: bool) -> Direction {
        match flags {
            Some(flags) if flags & (SYN | ACK) == SYN | ACK => return Direction::Back,
            Some(flags) if flags & SYN != 0 => return Direction::Forth,
            _ => {}
        }
        // RFC 6335 §6: the System Ports are 0 to 1023; those that systems give out begin at 1024, of Linux at 32768.
        match (self.source_port, self.destination_port) {
            (from, to) if has_ports && from < 1024 && to >= 1024 => Direction::Back,
            (from, to) if has_ports && to < 1024 && from >= 1024 => Direction::Forth,
            (from, to) if has_ports && from < 32_768 && to >= 32_768 => Direction::Back,
            (from, to) if has_ports && to < 32_768 && from >= 32_768 => Direction::Forth,
            _ => match self.ingress {
                Some(true) => Direction::Back,
                Some(false) => Direction::Forth,
                None => Direction::Unclear,
            },
        }
    }
}
