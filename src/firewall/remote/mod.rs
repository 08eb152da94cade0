//! A firewall of another process: the enforcer of a gateway, driven over mutual TLS, or of this machine, over a socket.
//!
//! A change is acknowledged when it is in the kernel there. The enforcer may be away for a time: answers wait for it as
//! for every required firewall, and fail closed, until it must have stopped to let new flows through ([`Fleet`]). When
//! it comes back it is given what it lacks before it counts.

mod fleet;
mod link;
pub mod message;
mod parting;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use self::link::{Link, Terms, Way};
use self::message::{Became, CHUNK, Changes, CutMessage, Cutting, Held, LayoutMessage, What};
use crate::document::{Found, Mistake, Table};
use crate::firewall::{Common, Cut, Cutter, Firewall, FirewallError, Listed, Load, Plan};
use crate::grant::Change;
use crate::net::Element;
use crate::policy::Layout;
use crate::time::{Clock, Tick, Wall};
use crate::trust::ClientTls;

pub use self::fleet::{ALIVE, BEAT, FENCE, FENCED, Fleet};
pub use self::link::dial;
pub use self::parting::part_with;

/// The port where `server` names none. Not registered.
pub const PORT: u16 = 8953;

/// How long a start waits for the first connection: what is open there would else be forgotten.
const START: Duration = Duration::from_secs(2);
/// How long each part of a layout, or the next part of a list, may take.
const LAYOUT: Duration = Duration::from_secs(5);
/// How often it is looked whether nothing may wait any more.
const LOOK: Duration = Duration::from_millis(50);
/// How long the ending of connections may take.
const CUT: Duration = Duration::from_secs(30);

/// What a server's name begins with that is the path of a socket.
const SOCKET: &str = "unix:";

/// What the kernel takes is 107 bytes, some of which are needed while a socket is made.
const LONGEST_PATH: usize = 90;

/// `kind = "remote"`.
#[derive(Debug)]
pub(super) struct Settings {
    place: Place,
    fleet: Arc<Fleet>,
}

/// Where the configuration says that the enforcer is.
#[derive(Debug)]
enum Place {
    Tls { host: String, port: u16, tls: ClientTls },
    Socket(PathBuf),
}

impl Settings {
    /// Reads the keys of this kind; mistakes are noted in the table's document.
    pub(super) fn read(table: &Table, base: &Path, fleet: &Arc<Fleet>) -> Option<Self> {
        let server = table.required_string("server");
        let tls = ClientTls::read(table, base);
        let server = server?;
        let place = if let Some(path) = socket(table, &server, base, &tls) {
            Place::Socket(path)
        } else {
            tls.require_mutual(table, "kind", "kind = \"remote\" needs TLS");
            let Some((host, port)) = split(&server.value, PORT) else {
                let remedy = "write a name or an address, and its port where it is not 8953, \"gw1.corp.example:8953\", or a socket, \"unix:/run/outgate-enforce/socket\"";
                table.document().note(&server.span, "`server` is no host", remedy);
                return None;
            };
            Place::Tls { host, port, tls }
        };
        Some(Self { place, fleet: Arc::clone(fleet) })
    }
}

/// The path of a socket, where an address is one; mistakes are noted in the table's document.
#[must_use]
pub fn socket(table: &Table, address: &Found<String>, base: &Path, tls: &ClientTls) -> Option<PathBuf> {
    let path = address.value.strip_prefix(SOCKET)?;
    let note = |fact: &str, remedy: &str| table.document().note(&address.span, fact, remedy);
    if !tls.is_empty() {
        let remedy = "take ca, certificate and key out: who may connect there is said by the mode of the socket";
        note("a socket of this machine has no TLS", remedy);
    }
    let whole = base.join(path);
    let remedy = "write its path, of at most 90 bytes: \"unix:/run/outgate-enforce/socket\"";
    if path.trim() != path || path.is_empty() || path.ends_with('/') {
        note("it names no socket", remedy);
    } else if whole.as_os_str().len() > LONGEST_PATH {
        note("the path is too long for a socket", remedy);
    }
    Some(whole)
}

/// Host and port, that one where none is named; an IPv6 address with a port stands in brackets.
#[must_use]
pub fn split(server: &str, port: u16) -> Option<(String, u16)> {
    if let Ok(address) = server.parse::<std::net::SocketAddr>() {
        return Some((address.ip().to_string(), address.port())).filter(|(_, port)| *port > 0);
    }
    if server.parse::<std::net::IpAddr>().is_ok() {
        return Some((server.to_owned(), port));
    }
    let (host, port) = match server.split_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0)?),
        None => (server, port),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    (!host.is_empty() && host.chars().all(plain)).then(|| (host.to_owned(), port))
}

impl Plan for Settings {
    fn check(&self) -> Result<(), Mistake> {
        match &self.place {
            Place::Tls { tls, .. } => tls.config().map(drop),
            Place::Socket(_) => Ok(()),
        }
    }

    fn build(&self, common: &Common, clock: &Clock) -> Result<Box<dyn Firewall>, FirewallError> {
        let way = match &self.place {
            Place::Tls { host, port, tls } => {
                let tls = tls.config().map_err(|mistake| FirewallError::Away(mistake.to_string()))?;
                Way::Tls { host: host.clone(), port: *port, tls: Arc::new(tls) }
            }
            Place::Socket(path) => Way::Socket(path.clone()),
        };
        let place = self.fleet.enrol(&common.name, clock.tick());
        let terms =
            Terms { name: common.name.clone(), way, fleet: Arc::clone(&self.fleet), place, clock: clock.clone() };
        let clock = clock.clone();
        let fleet = Arc::clone(&self.fleet);
        Ok(Box::new(Remote {
            common: common.clone(),
            terms: Some(terms),
            link: OnceLock::new(),
            fleet,
            place,
            listing: None,
            adopted: None,
            begun: None,
            hurry: Arc::default(),
            clock,
        }))
    }
}

/// The firewall.
struct Remote {
    common: Common,
    /// Until the link is started.
    terms: Option<Terms>,
    link: OnceLock<Link>,
    fleet: Arc<Fleet>,
    place: usize,
    /// What it holds is being listed.
    listing: Option<Listing>,
    /// The connection by which it was adopted: what is in force by another one is not known.
    adopted: Option<u64>,
    /// Changes that are under way.
    begun: Option<Begun>,
    /// Nothing may wait any more.
    hurry: Arc<AtomicBool>,
    clock: Clock,
}

/// What it holds comes here.
struct Listing {
    connection: Option<u64>,
    reports: Receiver<Became>,
    /// When the last part came.
    since: Tick,
    /// How long the next one may take.
    patience: Duration,
}

/// Changes that are under way, in chunks.
struct Begun {
    reports: VecDeque<Receiver<Became>>,
    /// When the first of these began to be waited for.
    since: Tick,
    /// How many chunks are done, and what of them failed.
    done: usize,
    failed: Vec<usize>,
}

impl Begun {
    /// Takes what became of the first chunk.
    fn take(&mut self, became: Became, now: Tick) -> Result<(), FirewallError> {
        let Became::Done(done) = became else {
            return Err(FirewallError::Away("it answers something else".into()));
        };
        self.failed.extend(done.failed.iter().map(|index| self.done * CHUNK + *index as usize));
        self.reports.pop_front();
        (self.done, self.since) = (self.done + 1, now);
        Ok(())
    }
}

impl Remote {
    /// The link, and why it cannot be used.
    fn link(&self) -> Result<&Link, FirewallError> {
        let link = self.link.get().ok_or(FirewallError::NotAdopted)?;
        match link.connection() {
            Some(_) => Ok(link),
            None => Err(FirewallError::Away(link.why())),
        }
    }

    /// The link that was adopted by.
    fn adopted(&self) -> Result<&Link, FirewallError> {
        let link = self.link()?;
        if self.adopted.is_none() || self.adopted != link.connection() {
            return Err(FirewallError::Away("the connection was made anew".into()));
        }
        Ok(link)
    }

    /// What came of what is waited for since then; where nothing comes for too long the connection is made anew.
    fn next(&self, reports: &Receiver<Became>, since: Tick, patience: Duration) -> Result<Became, FirewallError> {
        loop {
            let left = patience.saturating_sub(self.clock.tick().since(since));
            match reports.recv_timeout(left.min(LOOK)) {
                Err(RecvTimeoutError::Timeout) if left > LOOK && !self.hurry.load(Ordering::Acquire) => {}
                came => return self.came(came),
            }
        }
    }

    /// The same, without waiting; `None`: nothing came yet.
    fn poll(
        &self,
        reports: &Receiver<Became>,
        since: Tick,
        patience: Duration,
    ) -> Result<Option<Became>, FirewallError> {
        let came = match reports.try_recv() {
            Ok(became) => Ok(became),
            Err(TryRecvError::Empty) if self.clock.tick().since(since) < patience => return Ok(None),
            Err(TryRecvError::Empty) => Err(RecvTimeoutError::Timeout),
            Err(TryRecvError::Disconnected) => Err(RecvTimeoutError::Disconnected),
        };
        self.came(came).map(Some)
    }

    fn came(&self, came: Result<Became, RecvTimeoutError>) -> Result<Became, FirewallError> {
        match came {
            Ok(Became::Refused(why)) => Err(FirewallError::Refused(why)),
            Ok(became) => Ok(became),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(link) = self.link.get() {
                    link.reset();
                }
                Err(FirewallError::Deadline)
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(self.link().err().unwrap_or_else(|| FirewallError::Away("the connection ended".into())))
            }
        }
    }

    /// Tells a layout in parts, of which the last is `last`; what comes of that, and how long it may take.
    fn tell(link: &Link, layout: &Layout, now: Wall, last: fn(LayoutMessage) -> What) -> (Receiver<Became>, Duration) {
        let mut parts = LayoutMessage::new(layout, now).parts();
        let patience = LAYOUT * u32::try_from(parts.len()).unwrap_or(u32::MAX);
        let end = parts.pop().unwrap_or_default();
        // Where one of them is not taken, the last is refused.
        parts.into_iter().for_each(|part| drop(link.order(What::Arrange(part))));
        (link.order(last(end)), patience)
    }

    fn send(&self, changes: &[Change], now: Tick) -> Result<Begun, FirewallError> {
        let link = self.adopted()?;
        let order = |changes: &[Change]| {
            link.order(What::Apply(Changes { changes: changes.iter().map(|change| Held::of(change, now)).collect() }))
        };
        let reports = changes.chunks(CHUNK).map(order).collect();
        Ok(Begun { reports, since: self.clock.tick(), done: 0, failed: Vec::new() })
    }

    /// What is in force is not known any more.
    fn lost(&mut self) {
        (self.adopted, self.listing, self.begun) = (None, None, None);
        if let Some(link) = self.link.get() {
            link.caught_up(false);
        }
    }

    fn collect(&self, mut begun: Begun) -> Result<Vec<usize>, FirewallError> {
        while let Some(reports) = begun.reports.front() {
            let became = self.next(reports, begun.since, self.common.deadline)?;
            begun.take(became, self.clock.tick())?;
        }
        Ok(begun.failed)
    }

    /// A part of what it holds.
    fn list(&mut self, became: Became) -> Result<Listed, FirewallError> {
        let Became::Holds(holds) = became else {
            return Err(FirewallError::Away("it answers something else".into()));
        };
        // What is left was told a moment ago: as late as what we told was early there.
        let now = self.clock.tick();
        let element = |held: &Held| match held.change(now)? {
            Change::Open { element, until } => Some((element, until)),
            Change::Close { .. } => None,
        };
        if let Some(listing) = &mut self.listing {
            (listing.since, listing.patience) = (now, LAYOUT);
        }
        if !holds.more {
            self.adopted = self.listing.take().and_then(|listing| listing.connection);
        }
        Ok(Listed { elements: holds.elements.iter().filter_map(element).collect(), more: holds.more })
    }
}

impl Firewall for Remote {
    fn name(&self) -> &str {
        &self.common.name
    }

    fn required(&self) -> bool {
        self.common.required
    }

    fn adopt(&mut self, layout: &Layout, _now: Tick) -> Result<Vec<(Element, Tick)>, FirewallError> {
        if let Some(terms) = self.terms.take() {
            let link = Link::start(terms).map_err(|error| FirewallError::Away(error.to_string()))?;
            link.await_first(START);
            _ = self.link.set(link);
        }
        self.begin_adopting(layout)?;
        let mut found = Vec::new();
        while let Some(listing) = &self.listing {
            let became = self.next(&listing.reports, listing.since, listing.patience)?;
            found.extend(self.list(became)?.elements);
        }
        Ok(found)
    }

    fn begin_adopting(&mut self, layout: &Layout) -> Result<(), FirewallError> {
        self.lost();
        let (link, now) = (self.link()?, self.clock.now());
        let connection = link.connection();
        let (reports, patience) = Self::tell(link, layout, now.wall, What::Adopt);
        self.listing = Some(Listing { connection, reports, since: now.tick, patience });
        Ok(())
    }

    fn listed(&mut self) -> Result<Option<Listed>, FirewallError> {
        let listing = self.listing.as_ref().ok_or(FirewallError::NotAdopted)?;
        match self.poll(&listing.reports, listing.since, listing.patience)? {
            Some(became) => self.list(became).map(Some),
            None => Ok(None),
        }
    }

    fn heed(&mut self, hurry: &Arc<AtomicBool>) {
        self.hurry = Arc::clone(hurry);
    }

    fn caught_up(&mut self) {
        if let Ok(link) = self.adopted() {
            link.caught_up(true);
            self.fleet.caught_up(self.place);
        }
    }

    fn arrange(&mut self, layout: &Layout) -> Result<(), FirewallError> {
        let now = self.clock.now();
        let (reports, patience) = Self::tell(self.adopted()?, layout, now.wall, What::Arrange);
        let arranged = self.next(&reports, now.tick, patience).map(drop);
        if arranged.is_err() {
            self.lost();
        }
        arranged
    }

    fn begin(&mut self, changes: &[Change], now: Tick) {
        self.begun = self.send(changes, now).ok();
    }

    fn became(&mut self) -> Result<Option<Vec<usize>>, FirewallError> {
        let unknown = || FirewallError::Away("the connection was made anew".into());
        let mut begun = self.begun.take().ok_or_else(unknown)?;
        while let Some(reports) = begun.reports.front() {
            let Some(became) = self.poll(reports, begun.since, self.common.deadline)? else {
                self.begun = Some(begun);
                return Ok(None);
            };
            begun.take(became, self.clock.tick())?;
        }
        Ok(Some(begun.failed))
    }

    fn apply(&mut self, changes: &[Change], now: Tick) -> Result<Vec<usize>, FirewallError> {
        let begun = match self.begun.take() {
            Some(begun) => Ok(begun),
            None => self.send(changes, now),
        };
        let applied = begun.and_then(|begun| self.collect(begun));
        if applied.is_err() {
            self.lost();
        }
        applied
    }

    fn cutter(&self, cuts: &Arc<[Cut]>) -> Cutter {
        let link = self.link().cloned();
        let cuts = Arc::clone(cuts);
        Box::new(move || {
            let link = link?;
            let mut ended = 0;
            for cuts in cuts.chunks(CHUNK) {
                let reports = link.order(What::Cut(Cutting { cuts: cuts.iter().map(CutMessage::from).collect() }));
                match reports.recv_timeout(CUT) {
                    Ok(Became::Ended(count)) => ended += count,
                    Ok(Became::Refused(why)) => return Err(FirewallError::Refused(why)),
                    Ok(_) => return Err(FirewallError::Away("it answers something else".into())),
                    Err(RecvTimeoutError::Timeout) => return Err(FirewallError::Deadline),
                    Err(RecvTimeoutError::Disconnected) => {
                        return Err(FirewallError::Away("the connection ended".into()));
                    }
                }
            }
            Ok(ended)
        })
    }

    fn drifted(&mut self) -> Result<bool, FirewallError> {
        self.adopted().map(|_| false)
    }

    fn is_away(&self) -> bool {
        true
    }

    fn is_fenced(&self, now: Tick) -> Result<(), String> {
        self.fleet.is_fenced(self.place, now)
    }

    fn load(&mut self) -> Result<Option<Load>, FirewallError> {
        let [elements, capacity] = self.link()?.load().map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        Ok((capacity > 0).then_some(Load { elements, capacity }))
    }
}

#[cfg(test)]
mod tests;
