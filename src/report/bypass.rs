//! `bypass`: flows without a look-up: addresses that are written down somewhere, or resolved elsewhere.

use super::bounded::{Amount, Bounded};
use super::sheet::{Cell, Seen, Sheet, Table, number, text};
use super::top::note_of_room;
use super::{Period, Report, Step, Went, reach};
use crate::flow::{Class, Detail};
use crate::time::Wall;

/// Flows from one client to one address.
#[derive(Debug, Default)]
struct Flows {
    seen: Seen,
    began: u64,
    ended: u64,
    refused: u64,
    out: u64,
    back: u64,
}

impl Flows {
    fn passed(&self) -> u64 {
        // Of a flow that is recorded when it begins and when it ends there are two records, or as yet one.
        self.began.max(self.ended)
    }
}

impl Amount for Flows {
    fn weight(&self) -> u64 {
        self.seen.count
    }

    fn join(&mut self, other: Self) {
        self.seen.join(other.seen);
        self.began += other.began;
        self.ended += other.ended;
        self.refused += other.refused;
        self.out = self.out.saturating_add(other.out);
        self.back = self.back.saturating_add(other.back);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Bypass {
    period: Period,
    rows: Bounded<Flows>,
    flows: bool,
    unknown: u64,
}

impl Bypass {
    /// Begins with nothing.
    #[must_use]
    pub fn new(period: Period) -> Self {
        Self { period, rows: Bounded::default(), flows: false, unknown: 0 }
    }
}

impl Report for Bypass {
    fn went(&mut self, flow: &Went<'_>) {
        self.flows = true;
        if !self.period.has_begun(flow.at) {
            return;
        }
        if flow.class != Some(Class::None) {
            self.unknown += u64::from(matches!(flow.class, None | Some(Class::Unknown)));
            return;
        }
        let (client, address) = (flow.client.to_string(), flow.address.to_string());
        let suspicion = suspicion(flow);
        let row = self.rows.at(&[&client, flow.segment, &address, flow.service, flow.qname, suspicion]);
        row.seen.add(flow.at, flow.client, flow.segment);
        match flow.step {
            Step::Began => row.began += 1,
            Step::Ended => row.ended += 1,
            Step::Refused => row.refused += 1,
        }
        let (out, back) = flow.bytes.unwrap_or_default();
        row.out = row.out.saturating_add(out);
        row.back = row.back.saturating_add(back);
    }

    fn finish(self: Box<Self>, span: Option<(Wall, Wall)>, limit: usize) -> Sheet {
        let mut notes = reach(self.period, span);
        if !self.flows {
            notes.push(super::NO_FLOWS.to_owned());
        }
        if self.unknown > 0 {
            notes.push(format!(
                "{} records more are of flows of which the log does not say enough to judge",
                self.unknown
            ));
        }
        let ranked = self.rows.finish(limit);
        note_of_room(&ranked, &mut notes);
        let row = |flows: &Flows, parts: Vec<Cell>| {
            let counted = [
                Cell::Count(flows.passed()),
                Cell::Count(flows.refused),
                Cell::Bytes(flows.out),
                Cell::Bytes(flows.back),
                Cell::moment(flows.seen.first),
                Cell::moment(flows.seen.last),
            ];
            counted.into_iter().chain(parts).collect::<Vec<_>>()
        };
        let other = || {
            let mut parts = vec![Cell::Text(format!("other ({} rows)", ranked.others))];
            parts.resize(6, Cell::Empty);
            row(&ranked.other, parts)
        };
        let table = Table {
            key: "rows",
            title: "Flows without a look-up".into(),
            columns: vec![
                number("passed", "passed"),
                number("refused", "refused"),
                number("bytes_out", "out"),
                number("bytes_in", "in"),
                text("first", "first"),
                text("last", "last"),
                text("client", "client"),
                text("segment", "segment"),
                text("address", "address"),
                text("service", "service"),
                text("name", "name"),
                text("suspicion", "suspicion"),
            ],
            other: (ranked.others > 0).then(other),
            total: None,
            unlisted: ranked.others,
            rows: ranked
                .rows
                .iter()
                .map(|(parts, flows)| row(flows, parts.iter().map(|part| part.as_str().into()).collect()))
                .collect(),
            empty: "every flow had a look-up, or a rule of its own",
        };
        Sheet { report: "bypass", notes, tables: vec![table] }
    }
}

/// What such a flow looks like.
fn suspicion(flow: &Went<'_>) -> &'static str {
    match (flow.service, flow.detail) {
        ("udp/53" | "tcp/53", _) => "asks another resolver",
        ("tcp/853" | "udp/853", _) => "asks another resolver, encrypted",
        (_, Some(Detail::DeniedName)) => "the name is denied to it",
        (_, Some(Detail::PeerName)) => "others were told the address: shared, copied, or resolved elsewhere",
        (_, Some(Detail::OtherService)) => "its look-up opened other services",
        ("tcp/443" | "udp/443", _) => "hard-coded, or resolved over HTTPS elsewhere",
        _ => "hard-coded, or resolved elsewhere",
    }
}
