//! This machine as a client of itself (hook `output`).
//!
//! A program asks from the loopback or from any address of the machine, and connects from whichever the route
//! chooses. So all of them are one client, the loopback address of the family, and a kernel element of it stands for
//! one grant per address that asked: it lives as long as the longest of them.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smallvec::SmallVec;

use super::expression::Family;
use crate::grant::Change;
use crate::net::{Element, Scope};
use crate::time::Tick;

/// The client under which the machine's own flows stand.
pub(super) const fn address(family: Family) -> IpAddr {
    match family {
        Family::Four => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::Six => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// Which address asked for which element of the machine, until when.
#[derive(Debug, Default)]
pub(super) struct Reasons(HashMap<Element, SmallVec<[(IpAddr, Tick); 2]>>);

/// The element of the kernel that an element of one of the machine's addresses stands for.
const fn kernel(element: Element) -> Element {
    Element { from: Scope::Client(address(Family::of(element.to))), ..element }
}

impl Reasons {
    /// What a change means for the kernel; `None` where it concerns another client, whose packets never take this
    /// hook.
    pub(super) fn translate(&mut self, change: Change, now: Tick, here: &HashSet<IpAddr>) -> Option<Change> {
        let element = *change.element();
        let Scope::Client(client) = element.from else { return Some(change) };
        if !client.is_loopback() && !here.contains(&client) {
            return None;
        }
        let element = kernel(element);
        let reasons = self.0.entry(element).or_default();
        reasons.retain(|(asker, until)| *asker != client && *until > now);
        if let Change::Open { until, .. } = change {
            reasons.push((client, until));
        }
        let longest = reasons.iter().map(|(_, until)| *until).max();
        match longest {
            Some(until) => Some(Change::Open { element, until }),
            None => {
                self.0.remove(&element);
                Some(Change::Close { element })
            }
        }
    }

    /// Until when the asker of `element` has it.
    pub(super) fn end(&self, element: &Element) -> Option<Tick> {
        let Scope::Client(client) = element.from else { return None };
        let reasons = self.0.get(&kernel(*element))?;
        reasons.iter().find(|(asker, _)| *asker == client).map(|(_, until)| *until)
    }

    /// Takes a change back that the kernel did not make.
    pub(super) fn put_back(&mut self, element: &Element, end: Option<Tick>) {
        let Scope::Client(client) = element.from else { return };
        if let Some(reasons) = self.0.get_mut(&kernel(*element)) {
            reasons.retain(|(asker, _)| *asker != client);
            reasons.extend(end.map(|until| (client, until)));
        }
    }

    /// Forgets what is over: the ledger does not say when a grant ends by itself.
    pub(super) fn sweep(&mut self, now: Tick) {
        self.0.retain(|_, reasons| reasons.iter().any(|(_, until)| *until > now));
    }

    /// How many elements are kept track of.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Service;

    #[test]
    fn an_element_lives_as_long_as_the_longest_of_its_reasons() {
        let here = HashSet::from(["192.0.2.1".parse().unwrap()]);
        let element = |client: &str| Element {
            from: Scope::Client(client.parse().unwrap()),
            to: "198.51.100.1".parse().unwrap(),
            service: Service::Tcp(443),
        };
        let kernel = element("127.0.0.1");
        let mut reasons = Reasons::default();
        let open = |client, until| Change::Open { element: element(client), until: Tick(until) };
        let close = |client| Change::Close { element: element(client) };
        for (change, now, wanted) in [
            (open("127.0.0.1", 50), 0, Some(Change::Open { element: kernel, until: Tick(50) })),
            (open("192.0.2.1", 90), 0, Some(Change::Open { element: kernel, until: Tick(90) })),
            (open("192.0.2.9", 99), 0, None),
            (open("127.0.0.1", 70), 1, Some(Change::Open { element: kernel, until: Tick(90) })),
            (close("192.0.2.1"), 2, Some(Change::Open { element: kernel, until: Tick(70) })),
            (close("192.0.2.9"), 2, None),
            (close("127.0.0.1"), 3, Some(Change::Close { element: kernel })),
        ] {
            assert_eq!(reasons.translate(change, Tick(now), &here), wanted, "{change:?}");
        }
        assert_eq!(reasons.len(), 0);
        reasons.translate(open("127.0.0.1", 50), Tick(0), &here);
        reasons.sweep(Tick(50));
        assert_eq!(reasons.len(), 0);
        // What the kernel did not make is taken back: the earlier grant counts again.
        reasons.translate(open("127.0.0.1", 60), Tick(0), &here);
        let end = reasons.end(&element("127.0.0.1"));
        reasons.translate(open("127.0.0.1", 99), Tick(0), &here);
        reasons.put_back(&element("127.0.0.1"), end);
        let other = reasons.translate(open("192.0.2.1", 50), Tick(0), &here);
        assert_eq!(other, Some(Change::Open { element: kernel, until: Tick(60) }));
    }
}
