//! A firewall that only remembers: for trying Outgate out, and for tests, which read it and tell it to fail.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::firewall::{Common, Cut, Cutter, Firewall, FirewallError, Plan};
use crate::grant::Change;
use crate::net::Element;
use crate::policy::Layout;
use crate::time::{Clock, Tick};

/// `kind = "memory"`: no keys of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings;

impl Plan for Settings {
    fn build(&self, common: &Common, clock: &Clock) -> Result<Box<dyn Firewall>, FirewallError> {
        Ok(Box::new(Memory { common: common.clone(), handle: MemoryHandle::new(clock.clone()) }))
    }
}

/// What it does with changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Makes them and says so.
    #[default]
    Ack,
    /// Does not make them, and the deadline passes.
    Stall,
    /// Does not make them and says so, each of them.
    Fail,
    /// Makes all but those to this address, and says so of these.
    FailTo(IpAddr),
}

/// A firewall in memory.
#[derive(Debug)]
pub struct Memory {
    common: Common,
    handle: MemoryHandle,
}

impl Memory {
    /// A required firewall, empty, acknowledging everything.
    #[must_use]
    pub fn new(name: &str, clock: Clock) -> Self {
        Self { common: Common::new(name), handle: MemoryHandle::new(clock) }
    }

    /// Its other end.
    #[must_use]
    pub fn handle(&self) -> MemoryHandle {
        self.handle.clone()
    }
}

/// The other end of a [`Memory`]: looks in, and tells it what to do.
#[derive(Clone, Debug)]
pub struct MemoryHandle {
    clock: Clock,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    mode: Mode,
    elements: BTreeMap<Element, Tick>,
    changes: Vec<Change>,
    cuts: Vec<Cut>,
    layout: Layout,
    drifted: bool,
}

/// How many changes and cuts are kept to be read: a firewall that only remembers must not grow for ever.
const CHANGES: usize = 65_536;

impl MemoryHandle {
    fn new(clock: Clock) -> Self {
        Self { clock, state: Arc::default() }
    }

    /// What is open now, until when, in order.
    #[must_use]
    pub fn elements(&self) -> Vec<(Element, Tick)> {
        let now = self.clock.tick();
        let state = self.state.lock();
        state.elements.iter().filter(|(_, until)| **until > now).map(|(element, until)| (*element, *until)).collect()
    }

    /// The changes that were made since the last call, oldest first; at most the first 65,536.
    #[must_use]
    pub fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut self.state.lock().changes)
    }

    /// The connections that were to end since the last call; at most the first 65,536.
    #[must_use]
    pub fn take_cuts(&self) -> Vec<Cut> {
        std::mem::take(&mut self.state.lock().cuts)
    }

    /// The layout that is in force.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.state.lock().layout.clone()
    }

    /// What to do with changes from now on.
    pub fn set_mode(&self, mode: Mode) {
        self.state.lock().mode = mode;
    }

    /// Drops elements behind the owner's back, as a foreign hand would.
    pub fn lose(&self) {
        let mut state = self.state.lock();
        state.elements.clear();
        state.drifted = true;
    }
}

impl Firewall for Memory {
    fn name(&self) -> &str {
        &self.common.name
    }

    fn required(&self) -> bool {
        self.common.required
    }

    fn adopt(&mut self, layout: &Layout, now: Tick) -> Result<Vec<(Element, Tick)>, FirewallError> {
        self.arrange(layout)?;
        let mut state = self.handle.state.lock();
        state.drifted = false;
        state.elements.retain(|_, until| *until > now);
        Ok(state.elements.iter().map(|(element, until)| (*element, *until)).collect())
    }

    fn arrange(&mut self, layout: &Layout) -> Result<(), FirewallError> {
        self.handle.state.lock().layout = layout.clone();
        Ok(())
    }

    fn apply(&mut self, changes: &[Change], now: Tick) -> Result<Vec<usize>, FirewallError> {
        let mut state = self.handle.state.lock();
        let mode = state.mode;
        if mode == Mode::Stall {
            return Err(FirewallError::Deadline);
        }
        let mut failed = Vec::new();
        for (index, change) in changes.iter().enumerate() {
            if mode == Mode::Fail || mode == Mode::FailTo(change.element().to) {
                failed.push(index);
                continue;
            }
            match *change {
                Change::Open { element, until } if until > now => state.elements.insert(element, until),
                Change::Open { element, .. } | Change::Close { element } => state.elements.remove(&element),
            };
            if state.changes.len() < CHANGES {
                state.changes.push(*change);
            }
        }
        // What ended by itself goes once in a while, as in a kernel.
        if state.elements.len().is_power_of_two() {
            state.elements.retain(|_, until| *until > now);
        }
        Ok(failed)
    }

    fn cutter(&self, cuts: &Arc<[Cut]>) -> Cutter {
        let (handle, cuts) = (self.handle.clone(), Arc::clone(cuts));
        Box::new(move || {
            let mut state = handle.state.lock();
            if state.mode == Mode::Stall {
                return Err(FirewallError::Deadline);
            }
            let room = CHANGES - state.cuts.len();
            state.cuts.extend(cuts.iter().take(room));
            // There are no connections here.
            Ok(0)
        })
    }

    fn drifted(&mut self) -> Result<bool, FirewallError> {
        Ok(std::mem::take(&mut self.handle.state.lock().drifted))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::net::{Scope, SegmentId, Service};

    #[test]
    fn remembers_stalls_and_fails_as_told() {
        let clock = Clock::manual();
        let mut memory = Memory::new("memory", clock.clone());
        let handle = memory.handle();
        let element = Element {
            from: Scope::Segment(SegmentId(1)),
            to: "198.51.100.1".parse().unwrap(),
            service: Service::Tcp(443),
        };
        let now = clock.tick();
        let open = Change::Open { element, until: now + Duration::from_secs(5) };
        handle.set_mode(Mode::Stall);
        assert_eq!(memory.apply(&[open], now), Err(FirewallError::Deadline));
        handle.set_mode(Mode::Fail);
        assert_eq!(memory.apply(&[open, open], now), Ok(vec![0, 1]));
        assert_eq!(handle.elements(), []);
        let elsewhere = Change::Close { element: Element { to: "198.51.100.2".parse().unwrap(), ..element } };
        handle.set_mode(Mode::FailTo(element.to));
        assert_eq!(memory.apply(&[elsewhere, open], now), Ok(vec![1]));
        assert_eq!(handle.take_changes(), [elsewhere]);
        handle.set_mode(Mode::Ack);
        assert_eq!(memory.apply(&[open], now), Ok(vec![]));
        assert_eq!(handle.elements(), [(element, now + Duration::from_secs(5))]);
        assert_eq!(handle.take_changes(), [open]);
        assert_eq!(memory.adopt(&Layout::default(), now).unwrap().len(), 1);
        handle.lose();
        assert_eq!((memory.drifted(), memory.drifted()), (Ok(true), Ok(false)));
        memory.apply(&[open], now).unwrap();
        clock.advance(Duration::from_secs(5));
        assert_eq!(handle.elements(), []);
    }
}
