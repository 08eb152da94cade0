//! The index: what each client was told, and what was open. See the room's front page for what it is fed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::gaps::Gaps;
use super::intern::Table;
use super::interval::{Asked, Span};
use super::room::Room;
use super::statics::{Static, Statics};
use super::track::{Put, Track};
use super::{Denied, Detail, Ended, For, Opened, Told, Unlisted};
use crate::net::{Services, canonical};
use crate::time::Wall;

/// How much the index keeps.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How far back a flow is looked up: what ended longer before it is no explanation.
    pub lookback: Duration,
    /// Intervals of one client.
    pub of_client: usize,
    /// Intervals that are open to a whole segment.
    pub of_segment: usize,
    /// Intervals of all.
    pub all: usize,
    /// Clients.
    pub clients: usize,
    /// Names that addresses were told for; as many names that clients were denied.
    pub said: usize,
    /// Bytes of names, rules and segments.
    pub texts: usize,
}

impl Default for Limits {
    /// An hour; 4,096 and 65,536; four million, some 220 MB; a million clients; two million names each; 256 MiB.
    fn default() -> Self {
        Self {
            lookback: Duration::from_secs(3600),
            of_client: 4096,
            of_segment: 65_536,
            all: 4_000_000,
            clients: 1_000_000,
            said: 2_000_000,
            texts: 256 << 20,
        }
    }
}

/// Names that an address is known by; the one told longest ago goes first.
const HEARD: usize = 8;
/// Names that one client was denied; likewise.
const DENIED: usize = 256;

/// What an index holds, and what it had to let go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    /// Clients that ever asked.
    pub clients: usize,
    /// Intervals of clients and segments.
    pub intervals: usize,
    /// Bytes that these two take on the heap.
    pub bytes: usize,
    /// Intervals that went before their time, for want of room.
    pub evicted: u64,
    /// Clients that were not taken in, likewise.
    pub refused: u64,
    /// Names, rules and segments, those that are of no use any more among them.
    pub texts: usize,
    /// Addresses, likewise.
    pub addresses: usize,
    /// Names that addresses were told for, and names that clients were denied.
    pub said: [usize; 2],
}

/// A name, and when it was said first and last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said {
    pub(super) name: u32,
    pub(super) first: u64,
    pub(super) last: u64,
}

#[derive(Default)]
pub(super) struct Client {
    pub(super) track: Track,
    /// The number of its segment's name; `u32::MAX`: none that is known.
    pub(super) segment: u32,
    pub(super) denied: Vec<Said>,
    /// It was told addresses that nobody knows: since when, and until when they were open; 0: none.
    pub(super) unlisted: (u64, u64),
}

impl Client {
    /// Nothing is known of it that would be missed.
    fn is_idle(&self) -> bool {
        self.track.len() == 0 && self.track.forgotten() == 0 && self.denied.is_empty() && self.unlisted.1 == 0
    }
}

/// The history of who was told what, for as long as flows are explained by it.
pub struct Index {
    pub(super) limits: Limits,
    /// Names, rules and segments.
    pub(super) texts: Table<Box<str>>,
    pub(super) services: Table<Box<[Services]>>,
    /// Name, rule and services by their numbers.
    pub(super) reasons: Table<(u32, u32, u32)>,
    pub(super) addresses: Table<IpAddr>,
    /// The names that were told for each address, to anybody.
    pub(super) heard: Vec<Vec<Said>>,
    pub(super) writers: Table<(u64, u16)>,
    pub(super) clients: HashMap<IpAddr, Client, RandomState>,
    /// What is open to whole segments, by the number of their name.
    pub(super) wide: HashMap<u32, Track, RandomState>,
    pub(super) gaps: Gaps,
    pub(super) statics: Statics,
    /// Everything that was told from here on is known; `None`: from no time on that is known yet.
    pub(super) since: Option<u64>,
    /// What ended before may be gone.
    pub(super) horizon: u64,
    /// A name for an address was not noted, or is forgotten, that was told then.
    pub(super) unheard: u64,
    pub(super) room: Room,
    pub(super) intervals: usize,
    evicted: u64,
    pub(super) refused: u64,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").field("holds", &self.holds()).finish_non_exhaustive()
    }
}

impl Index {
    /// An index without any history: every flow that it cannot explain is unknown.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            texts: Table::default(),
            services: Table::default(),
            reasons: Table::default(),
            addresses: Table::default(),
            heard: Vec::new(),
            writers: Table::default(),
            clients: HashMap::default(),
            wide: HashMap::default(),
            gaps: Gaps::default(),
            statics: Statics::default(),
            since: None,
            horizon: 0,
            unheard: 0,
            room: Room::default(),
            intervals: 0,
            evicted: 0,
            refused: 0,
        }
    }

    /// All that is told from `at` on will be handed in; with `nothing_before`, nothing was told before either.
    pub fn begin(&mut self, at: Wall, nothing_before: bool) {
        let since = if nothing_before { 0 } else { at.0 };
        self.since = Some(self.since.map_or(since, |known| known.min(since)));
    }

    /// What is open without look-ups, in place of what was said of that before.
    pub fn set_statics(&mut self, statics: Vec<Static>) {
        self.statics = Statics::new(statics);
    }

    /// A client was told a name's addresses.
    pub fn told(&mut self, told: &Told<'_>) {
        self.make_room();
        let segment = told.segment.map(|segment| self.segment(segment));
        let query = Asked::new(&mut self.writers, told.query);
        let at = told.at.0;
        let (until, open) = (told.told_until.0.max(at), told.open_until.max(told.told_until).0.max(at));
        let some = !told.addresses.is_empty();
        let reason = some.then(|| self.reason(told.qname, told.rule, told.services)).flatten();
        if some && reason.is_none() {
            self.forgo(For::Client(told.client), segment, open);
            self.unheard = self.unheard.max(at);
        }
        for (address, (reason, name)) in told.addresses.iter().filter_map(|address| Some((address, reason?))) {
            let address = self.address(canonical(*address));
            self.hear(address, name, at);
            let span =
                Span { address, reason, from: at, told: until, open, last: at, first_query: query, last_query: query };
            self.put(For::Client(told.client), segment, &span);
        }
        let client = self.client(told.client, segment).filter(|_| told.unlisted != Unlisted::None);
        let Some(client) = client else { return };
        if told.unlisted == Unlisted::Unknown {
            let (from, to) = client.unlisted;
            client.unlisted = if to == 0 { (at, open) } else { (from.min(at), to.max(open)) };
        } else if query != Asked::NONE {
            // What this query opened, it was told.
            client.track.change_each(|span| {
                let of = span.first_query == query || span.last_query == query;
                of.then(|| Span { told: span.told.max(until), open: span.open.max(until), ..span })
            });
        }
    }

    /// A firewall was opened, or holds open for longer.
    pub fn opened(&mut self, opened: &Opened<'_>) {
        self.make_room();
        let segment = self.segment(opened.segment);
        let (at, until) = (opened.at.0, opened.until.0.max(opened.at.0));
        let (Some(name), Some(rule)) = (self.text(opened.qname), self.text(opened.rule)) else {
            return self.forgo(opened.to, Some(segment), until);
        };
        let address = self.address(canonical(opened.address));
        let query = Asked::new(&mut self.writers, opened.query);
        // Of a client, the query's own record says what was told; the grant alone that it was open.
        let told = if opened.adopted || opened.to == For::Segment { until } else { at };
        if let For::Client(client) = opened.to {
            let reasons = &self.reasons;
            let known = self.clients.get_mut(&canonical(client)).map(|client| &mut client.track);
            let mut found = false;
            if let Some(track) = known {
                let is_it = |span: &Span| {
                    let of = reasons.get(span.reason).is_some_and(|reason| (reason.0, reason.1) == (name, rule));
                    of && span.from <= at && at <= span.open
                };
                track.change(address, is_it, |span| {
                    found = true;
                    [Some(Span { open: span.open.max(until), ..span }), None]
                });
            }
            if found {
                return;
            }
        }
        let services = self.services.number(opened.services);
        let reason = self.reasons.number(&(name, rule, services));
        let span =
            Span { address, reason, from: at, told, open: until, last: at, first_query: query, last_query: query };
        self.put(opened.to, Some(segment), &span);
    }

    /// A grant ends sooner than was said: cut short, or closed.
    pub fn ended(&mut self, ended: &Ended<'_>) {
        let numbers = (self.texts.find(ended.qname), self.texts.find(ended.rule), self.texts.find(ended.segment));
        let ((Some(name), Some(rule), segment), Some(address)) =
            (numbers, self.addresses.find(&canonical(ended.address)))
        else {
            return;
        };
        let Self { clients, wide, reasons, services, intervals, .. } = self;
        // Every set of services that intervals of this name and rule have, and what is left of it.
        let (at, until) = (ended.at.0, ended.until.0);
        let mut cut = |track: &mut Track| {
            let before = track.len();
            let mut open = Vec::new();
            for span in track.of(address).filter(|span| span.from <= at && at < span.open) {
                if reasons.get(span.reason).is_some_and(|reason| (reason.0, reason.1) == (name, rule)) {
                    open.push(span.reason);
                }
            }
            for reason in open {
                let had = reasons.get(reason).and_then(|reason| services.get(reason.2)).cloned().unwrap_or_default();
                let left = without(&had, ended.services);
                let left = (!left.is_empty()).then(|| {
                    let left = services.number(&*left);
                    reasons.number(&(name, rule, left))
                });
                track.change(
                    address,
                    |span| span.reason == reason && span.from <= at && at < span.open,
                    |span| {
                        let short = Span { told: span.told.min(until), open: span.open.min(until), ..span };
                        match left {
                            None => [Some(short), None],
                            // The rest goes on by itself from here.
                            Some(left) => [
                                Some(short),
                                Some(Span {
                                    reason: left,
                                    from: at,
                                    told: at.max(span.told),
                                    last: at.max(span.last),
                                    ..span
                                }),
                            ],
                        }
                    },
                );
            }
            *intervals = *intervals + track.len() - before;
        };
        match ended.to {
            For::Client(client) => _ = clients.get_mut(&canonical(client)).map(|client| cut(&mut client.track)),
            For::Segment => {
                let Some(segment) = segment else { return };
                wide.get_mut(&segment).map(&mut cut);
                clients
                    .values_mut()
                    .filter(|client| client.segment == segment)
                    .for_each(|client| cut(&mut client.track));
            }
        }
    }

    /// A client was refused a name.
    pub fn denied(&mut self, denied: &Denied<'_>) {
        self.make_room();
        let segment = denied.segment.map(|segment| self.segment(segment));
        // Where there is no room for the name, a flow that it would explain is told less exactly.
        let name = denied.qname.and_then(|qname| self.text(qname));
        let full = self.room.denied >= self.limits.said;
        if let (Some(client), Some(name)) = (self.client(denied.client, segment), name) {
            let cap = if full { DENIED.min(client.denied.len()) } else { DENIED };
            let said = say(&mut client.denied, name, denied.at.0, cap);
            self.room.denied += usize::from(said == Noted::New);
        }
    }

    /// Not everything is known of this time: [`Detail::LogGap`] where records are missing, [`Detail::EventsLost`] where
    /// flows are.
    pub fn gap(&mut self, from: Wall, to: Wall, what: Detail) {
        self.gaps.add(from.0, to.0, what);
    }

    /// What it holds.
    #[must_use]
    pub fn holds(&self) -> Holds {
        let tracks = self.clients.values().map(|client| &client.track).chain(self.wide.values());
        let tracks: usize = tracks.map(Track::weight).sum();
        // A hash table is at most seven eighths full, with one more byte for each place.
        let place = size_of::<(IpAddr, Client)>() + 1;
        Holds {
            clients: self.clients.len(),
            intervals: self.intervals,
            bytes: tracks + self.clients.capacity() * place * 8 / 7,
            evicted: self.evicted,
            refused: self.refused,
            texts: self.texts.len(),
            addresses: self.addresses.len(),
            said: [self.room.heard, self.room.denied],
        }
    }

    /// The number of a reason, and that of its name; `None`: there is no room for its texts.
    fn reason(&mut self, qname: &str, rule: &str, services: &[Services]) -> Option<(u32, u32)> {
        let (name, rule) = (self.text(qname)?, self.text(rule)?);
        let services = self.services.number(services);
        Some((self.reasons.number(&(name, rule, services)), name))
    }

    /// Notes for which name an address was told.
    fn hear(&mut self, address: u32, name: u32, at: u64) {
        let full = self.room.heard >= self.limits.said;
        let Some(heard) = self.heard.get_mut(address as usize) else { return };
        let cap = if full { HEARD.min(heard.len()) } else { HEARD };
        match say(heard, name, at, cap) {
            Noted::New => self.room.heard += 1,
            Noted::Known => {}
            Noted::No => self.unheard = self.unheard.max(at),
        }
    }

    /// Something was open until then that there is no room for: what it would explain is not known.
    fn forgo(&mut self, to: For, segment: Option<u32>, open: u64) {
        self.evicted += 1;
        match to {
            For::Client(client) => {
                if let Some(client) = self.client(client, segment) {
                    client.track.forgo(open);
                }
            }
            For::Segment => self.wide.entry(segment.unwrap_or(u32::MAX)).or_default().forgo(open),
        }
    }

    fn address(&mut self, address: IpAddr) -> u32 {
        let number = self.addresses.number(&address);
        if self.heard.len() < self.addresses.len() {
            self.heard.push(Vec::new());
        }
        number
    }

    /// The client's place, made where there is none and room for it.
    fn client(&mut self, client: IpAddr, segment: Option<u32>) -> Option<&mut Client> {
        let client = canonical(client);
        if self.clients.len() >= self.limits.clients && !self.clients.contains_key(&client) {
            // Once until the next pruning: it looks at every one.
            if !std::mem::replace(&mut self.room.crowded, true) {
                self.clients.retain(|_, client| !client.is_idle());
            }
            if self.clients.len() >= self.limits.clients {
                self.refused += 1;
                return None;
            }
        }
        let place = self.clients.entry(client).or_insert_with(|| Client { segment: u32::MAX, ..Client::default() });
        if let Some(segment) = segment {
            place.segment = segment;
        }
        Some(place)
    }

    fn put(&mut self, to: For, segment: Option<u32>, span: &Span) {
        let full = self.intervals >= self.limits.all;
        let Limits { of_client, of_segment, .. } = self.limits;
        let (track, cap) = match to {
            For::Client(client) => match self.client(client, segment) {
                Some(client) => (&mut client.track, of_client),
                None => return,
            },
            For::Segment => (self.wide.entry(segment.unwrap_or(u32::MAX)).or_default(), of_segment),
        };
        // With no room left at all, who wants more gives up what is its own.
        let cap = if full { cap.min(track.len().max(1)) } else { cap };
        match track.put(span, cap) {
            Put::Extended => {}
            Put::Added => self.intervals += 1,
            Put::Replaced => self.evicted += 1,
        }
    }
}

/// What became of a name that was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    New,
    /// As one that was there already, or in the place of another one.
    Known,
    /// There is no room for any.
    No,
}

/// Notes that a name was said; beyond the cap, the one said longest ago is forgotten.
fn say(said: &mut Vec<Said>, name: u32, at: u64, cap: usize) -> Noted {
    if let Some(known) = said.iter_mut().find(|said| said.name == name) {
        (known.first, known.last) = (known.first.min(at), known.last.max(at));
        return Noted::Known;
    }
    if cap == 0 {
        return Noted::No;
    }
    let before = said.len();
    if said.len() >= cap
        && let Some(oldest) = (0..said.len()).min_by_key(|at| said.get(*at).map(|said| said.last))
    {
        said.swap_remove(oldest);
    }
    // Nearly always one.
    said.reserve_exact(usize::from(said.len() == said.capacity()));
    said.push(Said { name, first: at, last: at });
    if said.len() > before { Noted::New } else { Noted::Known }
}

/// What is left of services without others.
fn without(services: &[Services], others: &[Services]) -> Vec<Services> {
    let mut left = services.to_vec();
    for other in others {
        left = left.iter().flat_map(|services| minus(*services, *other)).flatten().collect();
    }
    left
}

fn minus(services: Services, other: Services) -> [Option<Services>; 2] {
    let cut = |(first, last): (u16, u16), (from, to): (u16, u16), make: fn(u16, u16) -> Services| {
        if to < first || last < from {
            return [Some(make(first, last)), None];
        }
        [(first < from).then(|| make(first, from - 1)), (to < last).then(|| make(to + 1, last))]
    };
    match (services, other) {
        (_, Services::Any) | (Services::Icmp, Services::Icmp) => [None, None],
        (Services::Tcp(first, last), Services::Tcp(from, to)) => cut((first, last), (from, to), Services::Tcp),
        (Services::Udp(first, last), Services::Udp(from, to)) => cut((first, last), (from, to), Services::Udp),
        _ => [Some(services), None],
    }
}

/// A duration in microseconds.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_taken_from_services() {
        let rows = [
            ("tcp/443", "tcp/443", ""),
            ("tcp/80-90", "tcp/85", "tcp/80-84 tcp/86-90"),
            ("tcp/80-90", "tcp/70-80", "tcp/81-90"),
            ("tcp/80 udp/80 icmp", "udp/80", "tcp/80 icmp"),
            ("icmp", "any", ""),
            ("any", "tcp/80", "any"),
        ];
        let parse = |text: &str| text.split_whitespace().map(|text| text.parse().unwrap()).collect::<Vec<Services>>();
        for (had, gone, left) in rows {
            assert_eq!(without(&parse(had), &parse(gone)), parse(left), "{had} without {gone}");
        }
    }
}
