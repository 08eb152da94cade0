//! What was asked and is not answered yet, by the DNS id, and what came of all of it.

use std::collections::VecDeque;
use std::time::Duration;

use outgate::time::Tick;
use serde_json::{Value, json};

#[derive(Clone, Copy, Debug)]
struct Slot {
    id: u16,
    /// When its query was sent; nothing: the slot is free.
    sent: Option<Tick>,
}

/// The queries of one socket or connection that wait for their answer; at most as many as it was made for.
#[derive(Debug)]
pub(crate) struct Window {
    slots: Vec<Slot>,
    free: VecDeque<usize>,
}

impl Window {
    /// `size` is at most 65,536, the number of ids.
    pub(crate) fn new(size: usize) -> Self {
        let slots = (0..=u16::MAX).take(size).map(|id| Slot { id, sent: None }).collect();
        Self { slots, free: (0..size).collect() }
    }

    pub(crate) fn room(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The id of a new query, one that none of the last answers had.
    pub(crate) fn take(&mut self, now: Tick) -> Option<u16> {
        let size = self.slots.len();
        let slot = self.slots.get_mut(self.free.pop_front()?)?;
        // The same place, the next round: ids of a slot are congruent to its place.
        let place = usize::from(slot.id) % size;
        let next = usize::from(slot.id) + size;
        slot.id = u16::try_from(next).or_else(|_| u16::try_from(place)).unwrap_or(0);
        slot.sent = Some(now);
        Some(slot.id)
    }

    /// How long the answer with this id took; nothing where nobody waits for it.
    pub(crate) fn answered(&mut self, id: u16, now: Tick) -> Option<Duration> {
        let place = usize::from(id) % self.slots.len();
        let slot = self.slots.get_mut(place)?;
        if slot.id != id {
            return None;
        }
        let sent = slot.sent.take()?;
        self.free.push_back(place);
        Some(now.since(sent))
    }

    /// Gives up what was sent before `then`; how many.
    pub(crate) fn expire(&mut self, then: Tick) -> u64 {
        let mut lost = 0;
        for (place, slot) in self.slots.iter_mut().enumerate() {
            if slot.sent.is_some_and(|sent| sent < then) {
                slot.sent = None;
                self.free.push_back(place);
                lost += 1;
            }
        }
        lost
    }
}

/// What came of the queries.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    /// NOERROR with at least one record.
    pub(crate) with_records: u64,
    /// Answers that nobody waited for, or that are none.
    pub(crate) strays: u64,
    pub(crate) rcodes: [u64; 16],
    /// Microseconds.
    pub(crate) latencies: Vec<u32>,
    pub(crate) first: Option<Tick>,
    pub(crate) last: Option<Tick>,
}

impl Tally {
    /// Takes one message; `window` is that of the socket it came over.
    pub(crate) fn message(&mut self, message: &[u8], window: &mut Window, now: Tick) {
        let Some(&[high, low, flags, code, _, _, records_high, records_low]) = message.first_chunk() else {
            self.strays += 1;
            return;
        };
        let id = u16::from_be_bytes([high, low]);
        let Some(took) = (flags & 0x80 != 0).then(|| window.answered(id, now)).flatten() else {
            self.strays += 1;
            return;
        };
        let rcode = code & 15;
        if let Some(count) = self.rcodes.get_mut(usize::from(rcode)) {
            *count += 1;
        }
        self.with_records += u64::from(rcode == 0 && (records_high, records_low) != (0, 0));
        self.latencies.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        self.last = Some(now);
    }

    /// As one JSON object; `seconds` from the first query to the last answer, latencies in microseconds.
    pub(crate) fn report(mut self) -> Value {
        self.latencies.sort_unstable();
        let at = |share: f64| {
            let place = (self.latencies.len() as f64 * share) as usize;
            self.latencies.get(place.min(self.latencies.len().saturating_sub(1))).copied()
        };
        let seconds = self.last.zip(self.first).map_or(0.0, |(last, first)| last.since(first).as_secs_f64());
        json!({
            "sent": self.sent,
            "answered": self.latencies.len(),
            "lost": self.lost,
            "strays": self.strays,
            "with_records": self.with_records,
            "rcodes": self.rcodes,
            "seconds": seconds,
            "latency_us": { "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p99.9": at(0.999), "max": at(1.0) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_is_not_taken_for_the_next_one() {
        let mut window = Window::new(2);
        let first = window.take(Tick(0)).unwrap();
        assert_eq!(window.expire(Tick(1)), 1);
        let others = [window.take(Tick(2)).unwrap(), window.take(Tick(3)).unwrap()];
        assert_eq!((window.room(), window.take(Tick(4))), (0, None));
        assert_eq!(window.answered(first, Tick(5)), None);
        assert_eq!(others.map(|id| window.answered(id, Tick(7)).unwrap().as_micros()), [5, 4]);
        assert_eq!(window.answered(others[0], Tick(8)), None);
    }

    #[test]
    fn ids_go_round_and_keep_their_place() {
        let mut window = Window::new(3);
        for _ in 0..200_000 {
            let id = window.take(Tick(0)).unwrap();
            assert!(window.answered(id, Tick(1)).is_some(), "{id}");
        }
        assert_eq!(window.waiting(), 0);
    }

    #[test]
    fn counts_what_came_back() {
        let mut window = Window::new(4);
        let mut tally = Tally { first: Some(Tick(0)), ..Tally::default() };
        let answer =
            |id: u16, code: u8, records: u8| [id.to_be_bytes()[0], id.to_be_bytes()[1], 0x81, code, 0, 1, 0, records];
        let ids: Vec<u16> = (0..4).map(|_| window.take(Tick(0)).unwrap()).collect();
        tally.message(&answer(ids[0], 0, 1), &mut window, Tick(10));
        tally.message(&answer(ids[0], 0, 1), &mut window, Tick(10));
        tally.message(&answer(ids[1], 3, 0), &mut window, Tick(20));
        tally.message(&answer(ids[2], 0, 0), &mut window, Tick(500_000));
        tally.message(&[0; 7], &mut window, Tick(500_000));
        let report = tally.report();
        assert_eq!(report["answered"], 3);
        assert_eq!(report["with_records"], 1);
        assert_eq!(report["strays"], 2);
        assert_eq!(report["rcodes"][3], 1);
        assert_eq!(report["seconds"], 0.5);
        assert_eq!((&report["latency_us"]["p50"], &report["latency_us"]["p99"]), (&json!(20), &json!(500_000)));
    }
}
