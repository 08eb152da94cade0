//! Live connections that are ended. The firewalls do it in threads of their own: a table of connections is long, and offers
//! go on meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;

use tokio::sync::oneshot;

use super::Cutting;
use super::desk::{Desk, Ended};
use crate::firewall::{Cut, Cutter};
use crate::net::{Element, Prefix, Scope, SegmentId};

/// The sources of a segment that are told one by one; with more of them, every source is meant. What a connection of
/// others is granted it is granted again.
const SOURCES: usize = 64;

/// How many cuts may be under way at once (guessed): each has a thread and goes through the connections of the machine.
const CUTS: usize = 16;

impl Desk {
    /// Ends connections; the reply comes when every firewall has said what became of it.
    pub(super) fn cut(&mut self, what: Cutting, reply: oneshot::Sender<Vec<Ended>>) {
        let cuts: Arc<[Cut]> = match what {
            Cutting::Named(cuts) => cuts.into(),
            Cutting::Of(mut elements) => {
                elements.retain(|element| self.ledger.find(element).is_none());
                self.cuts(&elements)
            }
        };
        let cutters = self.enforcers.cutters(&cuts);
        if cuts.is_empty() {
            // Nobody may wait any more.
            return drop(reply.send(cutters.into_iter().map(|(name, _)| (name, Ok(0))).collect()));
        }
        if Arc::strong_count(&self.cuts_under_way) > CUTS {
            let busy = |(name, _)| (name, Err("too many cuts are under way".to_owned()));
            return drop(reply.send(cutters.into_iter().map(busy).collect()));
        }
        let under_way = Arc::clone(&self.cuts_under_way);
        let work = move || {
            drop(reply.send(all(cutters)));
            drop(under_way);
        };
        if let Err(error) = thread::Builder::new().name("cut".into()).spawn(work) {
            tracing::error!(%error, "connections could not be cut: no thread");
        }
    }

    /// The connections that elements let begin.
    fn cuts(&self, elements: &[Element]) -> Arc<[Cut]> {
        let shared = elements.iter().any(|element| matches!(element.from, Scope::Segment(_)));
        let segments = if shared { self.layout().segments } else { Vec::new() };
        let sources: HashMap<SegmentId, Vec<Prefix>> =
            segments.into_iter().map(|segment| (segment.id, segment.sources)).collect();
        let mut cuts = Vec::with_capacity(elements.len());
        for Element { from, to, service } in elements {
            let cut = |from| Cut { from, to: Some(Prefix::from(*to)), service: Some(*service) };
            match from {
                Scope::Client(client) => cuts.push(cut(Some(Prefix::from(*client)))),
                Scope::Segment(segment) => match sources.get(segment).filter(|sources| sources.len() <= SOURCES) {
                    Some(sources) => cuts.extend(sources.iter().map(|source| cut(Some(*source)))),
                    None => cuts.push(cut(None)),
                },
            }
        }
        cuts.into()
    }
}

/// All of them at once.
fn all(cutters: Vec<(Arc<str>, Cutter)>) -> Vec<Ended> {
    thread::scope(|scope| {
        let begun: Vec<_> = cutters.into_iter().map(|(name, cutter)| (name, scope.spawn(cutter))).collect();
        let ended = begun.into_iter().map(|(name, thread)| {
            let ended = thread.join().map(|ended| ended.map_err(|error| error.to_string()));
            (name, ended.unwrap_or_else(|_| Err("it broke off".to_owned())))
        });
        ended.collect()
    })
}
