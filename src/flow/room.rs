//! Room: what keeps the index bounded.
//!
//! Names, addresses and reasons are numbered as they come, and a number stays when its last interval is gone. Once there are
//! twice as many as were left the last time, those of no use are given up. Where all are of use and the texts have their
//! most bytes, what brings another one is not taken in, and what it would explain is unknown.

use std::net::IpAddr;

use super::index::{Index, micros};
use super::track::Track;
use crate::net::Services;
use crate::time::Wall;

/// So many numbers more are given before anything is looked for that is of no use.
const MORE: usize = 1 << 16;
/// What a text takes beside its own bytes: its place, its number, and what an allocation costs.
const PLACE: usize = 40;

/// How much there is, and when to look for what is of no use.
pub(super) struct Room {
    /// Names, addresses and reasons.
    sweep_at: [usize; 3],
    /// Bytes of the texts.
    bytes: usize,
    /// The texts were swept at their most bytes, and the next sweep waits for the next pruning.
    swept: bool,
    /// Names that addresses were told for, and that clients were denied.
    pub(super) heard: usize,
    pub(super) denied: usize,
    /// No client could be let go of since the last pruning.
    pub(super) crowded: bool,
}

impl Default for Room {
    fn default() -> Self {
        Self { sweep_at: [MORE; 3], bytes: 0, swept: false, heard: 0, denied: 0, crowded: false }
    }
}

impl Index {
    /// Forgets what no flow that began after `now`, less a quarter of the look-back, is explained by. Call it now and then;
    /// it costs little where a short time passed.
    pub fn prune(&mut self, now: Wall) {
        let lookback = micros(self.limits.lookback);
        let horizon = now.0.saturating_sub(lookback + lookback / 4);
        if horizon < self.horizon + lookback / 8 {
            return;
        }
        self.horizon = horizon;
        let tracks = self.clients.values_mut().map(|client| &mut client.track).chain(self.wide.values_mut());
        self.intervals -= tracks.map(|track| track.prune(horizon)).sum::<usize>();
        (self.room.heard, self.room.denied) = (0, 0);
        for client in self.clients.values_mut() {
            client.denied.retain(|said| said.last >= horizon);
            client.denied.shrink_to_fit();
            self.room.denied += client.denied.len();
            if client.unlisted.1 < horizon {
                client.unlisted = (0, 0);
            }
        }
        for heard in &mut self.heard {
            heard.retain(|said| said.last >= horizon);
            heard.shrink_to_fit();
            self.room.heard += heard.len();
        }
        self.gaps.prune(horizon);
        (self.room.crowded, self.room.swept) = (false, false);
        self.renumber();
    }

    /// Gives up what is of no use, where that may be much.
    pub(super) fn make_room(&mut self) {
        let numbers = [self.texts.len(), self.addresses.len(), self.reasons.len()];
        let many = numbers.iter().zip(&self.room.sweep_at).any(|(number, most)| number >= most);
        let full = self.room.bytes >= self.limits.texts && !std::mem::replace(&mut self.room.swept, true);
        if many || full {
            self.renumber();
        }
    }

    /// The number of a text; `None`: there is no room for it.
    pub(super) fn text(&mut self, text: &str) -> Option<u32> {
        let known = self.texts.find(text);
        if known.is_some() || self.room.bytes >= self.limits.texts {
            return known;
        }
        self.room.bytes += text.len() + PLACE;
        Some(self.texts.number(text))
    }

    /// The number of a segment's name; a policy has few.
    pub(super) fn segment(&mut self, name: &str) -> u32 {
        self.text(name).unwrap_or_else(|| self.texts.number(name))
    }

    /// Gives up numbers of what is in no interval any more, once they are as many as those in use.
    fn renumber(&mut self) {
        self.give_up();
        let numbers = [self.texts.len(), self.addresses.len(), self.reasons.len()];
        self.room.sweep_at = numbers.map(|number| number * 2 + MORE);
        self.room.bytes = self.texts.values().map(|text| text.len() + PLACE).sum();
    }

    fn give_up(&mut self) {
        let Self { clients, wide, texts, services, reasons, addresses, heard, .. } = self;
        let mut used = [vec![false; addresses.len()], vec![false; reasons.len()]];
        let [used_addresses, used_reasons] = &mut used;
        for span in clients.values().map(|client| &client.track).chain(wide.values()).flat_map(Track::all) {
            mark(used_addresses, span.address);
            mark(used_reasons, span.reason);
        }
        for (used, heard) in used_addresses.iter_mut().zip(heard.iter()) {
            *used |= !heard.is_empty();
        }
        let half = |used: &[bool]| used.iter().filter(|used| **used).count() * 2 < used.len();
        let mut used_texts = vec![false; texts.len()];
        let mut used_services = vec![false; services.len()];
        for (number, _) in (0..).zip(used_reasons.iter()).filter(|(_, used)| **used) {
            let (name, rule, set) = reasons.get(number).copied().unwrap_or_default();
            mark(&mut used_texts, name);
            mark(&mut used_texts, rule);
            mark(&mut used_services, set);
        }
        wide.keys().for_each(|segment| mark(&mut used_texts, *segment));
        for client in clients.values() {
            mark(&mut used_texts, client.segment);
            client.denied.iter().for_each(|said| mark(&mut used_texts, said.name));
        }
        heard.iter().flatten().for_each(|said| mark(&mut used_texts, said.name));
        if !(half(used_addresses) || half(used_reasons) || half(&used_texts)) {
            return;
        }
        let texts_at = texts.keep::<str>(&used_texts, |text| text);
        let services_at = services.keep::<[Services]>(&used_services, |set| set);
        let at = |places: &[u32], number: u32| places.get(number as usize).copied().unwrap_or(u32::MAX);
        let addresses_at = addresses.keep::<IpAddr>(used_addresses, |address| address);
        let reasons_at = reasons.keep::<(u32, u32, u32)>(used_reasons, |(name, rule, set)| {
            (at(&texts_at, name), at(&texts_at, rule), at(&services_at, set))
        });
        let mut kept = used_addresses.iter();
        heard.retain(|_| *kept.next().unwrap_or(&false));
        heard.iter_mut().flatten().for_each(|said| said.name = at(&texts_at, said.name));
        for client in clients.values_mut() {
            client.track.renumber(&addresses_at, &reasons_at);
            client.segment = at(&texts_at, client.segment);
            client.denied.iter_mut().for_each(|said| said.name = at(&texts_at, said.name));
        }
        let old = std::mem::take(wide);
        wide.extend(old.into_iter().map(|(segment, mut track)| {
            track.renumber(&addresses_at, &reasons_at);
            (at(&texts_at, segment), track)
        }));
    }
}

fn mark(used: &mut [bool], number: u32) {
    if let Some(used) = used.get_mut(number as usize) {
        *used = true;
    }
}
