//! Both directions of a flow as one: a VPC's flow log has a line for each, at every interface on the way.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;

use super::order::{Row, Sorted};
use crate::flow::Carrier;
use crate::flow::source::{Direction, Seen};

/// Lines of one window of one flow begin so close together.
const WINDOW: u64 = 30_000_000;
/// Flows that wait for their other half; at the cap the first goes as it is.
const WAITING: usize = 1 << 18;

/// What makes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ends(IpAddr, Option<u16>, IpAddr, Carrier);

impl Ends {
    pub(super) const fn of(seen: &Seen) -> Self {
        Self(seen.client, seen.port, seen.address, seen.carrier)
    }
}

/// What waits: the flow, and which interface gave its halves.
#[derive(Clone, Copy)]
struct Waiting {
    row: Row,
    out: Option<u32>,
    back: Option<u32>,
}

/// Flows, with both directions in one.
pub(super) struct Pairs {
    wanted: bool,
    rows: Sorted,
    waiting: HashMap<Ends, Waiting>,
    queue: VecDeque<(Ends, u64)>,
    ready: VecDeque<Row>,
    taken: u64,
    joined: u64,
}

impl Pairs {
    pub(super) fn new(wanted: bool, rows: Sorted) -> Self {
        Self {
            wanted,
            rows,
            waiting: HashMap::new(),
            queue: VecDeque::new(),
            ready: VecDeque::new(),
            taken: 0,
            joined: 0,
        }
    }

    /// Lines that were taken so far.
    pub(super) const fn taken(&self) -> u64 {
        self.taken
    }

    /// Lines that are part of another line's flow.
    pub(super) const fn joined(&self) -> u64 {
        self.joined
    }

    /// The next flow. `is_client` says whether an address is one of our clients.
    pub(super) fn next(&mut self, is_client: &dyn Fn(IpAddr) -> bool) -> Option<io::Result<Row>> {
        loop {
            if let Some(row) = self.ready.pop_front() {
                return Some(Ok(row));
            }
            match self.rows.next() {
                Some(Ok(row)) => {
                    self.taken += 1;
                    if !self.wanted {
                        return Some(Ok(row));
                    }
                    self.expire(row.seen.at.0.saturating_sub(WINDOW));
                    self.take(row, is_client);
                }
                Some(Err(error)) => return Some(Err(error)),
                None if self.queue.is_empty() => return None,
                None => self.expire(u64::MAX),
            }
        }
    }

    fn take(&mut self, mut row: Row, is_client: &dyn Fn(IpAddr) -> bool) {
        let back = match row.seen.direction {
            Direction::Forth => false,
            Direction::Back => true,
            Direction::Unclear => !is_client(row.seen.client) && is_client(row.seen.address),
        };
        let tap = row.seen.tap;
        if back {
            row.seen = row.seen.reversed();
        }
        let ends = Ends::of(&row.seen);
        let Some(waiting) = self.waiting.get_mut(&ends) else {
            return self.wait(ends, Waiting { row, out: (!back).then_some(tap), back: back.then_some(tap) });
        };
        let seen = &mut waiting.row.seen;
        let half = if back { &mut waiting.back } else { &mut waiting.out };
        match *half {
            None => {
                *half = Some(tap);
                if !back {
                    // The half of the client is the flow; what came back was only earlier.
                    waiting.row.id = row.id;
                    (seen.bytes_out, seen.packets_out) = (row.seen.bytes_out, row.seen.packets_out);
                    if std::mem::replace(&mut seen.denied, row.seen.denied) {
                        (seen.bytes_in, seen.packets_in) = (None, None);
                    }
                } else if !row.seen.denied {
                    // A reply that is refused does not come, and what it answers has left all the same.
                    (seen.bytes_in, seen.packets_in) = (row.seen.bytes_in, row.seen.packets_in);
                }
                seen.started |= row.seen.started;
                seen.end = seen.end.max(row.seen.end);
                self.joined += 1;
            }
            // The same packets at another interface, as at a NAT gateway's; who refuses them there stops them.
            Some(known) if known != tap => {
                seen.denied |= row.seen.denied && !back;
                self.joined += 1;
            }
            // The next window.
            Some(_) => {
                let done = waiting.row;
                *waiting = Waiting { row, out: (!back).then_some(tap), back: back.then_some(tap) };
                self.queue.push_back((ends, row.seen.at.0));
                self.ready.push_back(done);
            }
        }
    }

    fn wait(&mut self, ends: Ends, waiting: Waiting) {
        if self.waiting.len() >= WAITING
            && let Some((first, _)) = self.queue.pop_front()
        {
            self.ready.extend(self.waiting.remove(&first).map(|waiting| waiting.row));
        }
        self.queue.push_back((ends, waiting.row.seen.at.0));
        self.waiting.insert(ends, waiting);
    }

    /// Hands out what began before, and waited long enough.
    fn expire(&mut self, before: u64) {
        while let Some((ends, at)) = self.queue.front().copied().filter(|(_, at)| *at < before || before == u64::MAX) {
            self.queue.pop_front();
            // Of a connection with several windows, the one that waits may be a later one.
            if self.waiting.get(&ends).is_some_and(|waiting| waiting.row.seen.at.0 == at) {
                self.ready.extend(self.waiting.remove(&ends).map(|waiting| waiting.row));
            }
        }
    }
}
