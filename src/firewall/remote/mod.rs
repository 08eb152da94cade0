//! A firewall of another process: the enforcer of a gateway, driven over mutual TLS, or of this machine, over a socket.
//!
//! A change is acknowledged when it is in the kernel there. The enforcer may be away for a time: answers wait for it as
//! for every required firewall, and fail closed, until it must have stopped to let new flows through ([`Fleet`]). When
//! it comes back it is given what it lacks before it counts.

mod fleet;
mod link;
pub mod message;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use self::link::{Link, Terms, Way};
use self::message::{Became, CHUNK, Changes, CutMessage, Cutting, Held, LayoutMessage, What};
use crate::document::{Mistake, Table};
use crate::firewall::{Common, Cut, Cutter, Firewall, FirewallError, Load, Plan};
use crate::grant::Change;
use crate::net::Element;
use crate::policy::Layout;
use crate::time::{Clock, Tick};
use crate::trust::ClientTls;

pub use self::fleet::{ALIVE, BEAT, FENCE, FENCED, Fleet};
pub use self::link::dial;

/// The port where `server` names none. Not registered.
pub const PORT: u16 = 8953;

/// How long a start waits for the first connection: what is open there would else be forgotten.
const START: Duration = Duration::from_secs(2);
/// How long a layout, or the next part of a list, may take.
const LAYOUT: Duration = Duration::from_secs(5);
/// How long the ending of connections may take.
const CUT: Duration = Duration::from_secs(30);

/// What a server's name begins with that is the path of a socket.
pub const SOCKET: &str = "unix:";

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
        let note = |key, fact: &str, remedy| table.document().note(&table.span_of(key), fact, remedy);
        let place = if let Some(path) = server.value.strip_prefix(SOCKET) {
            if !tls.is_empty() {
                let remedy =
                    "take ca, certificate and key out: who may connect there is said by the mode of the socket";
                note("server", "a socket of this machine has no TLS", remedy);
            }
            if path.is_empty() {
                note("server", "`server` names no socket", "write its path: \"unix:/run/outgate-enforce/socket\"");
            }
            Place::Socket(base.join(path))
        } else {
            if !tls.is_mutual() {
                let remedy = "add ca, certificate and key: both sides know each other by their certificates";
                note("kind", "kind = \"remote\" needs TLS", remedy);
            }
            let Some((host, port)) = split(&server.value, PORT) else {
                let remedy = "write a name or an address, and its port where it is not 8953: \"gw1.corp.example:8953\"";
                table.document().note(&server.span, "`server` is no host", remedy);
                return None;
            };
            Place::Tls { host, port, tls }
        };
        Some(Self { place, fleet: Arc::clone(fleet) })
    }
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
            adopted: None,
            begun: None,
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
    /// The connection by which it was adopted: what is in force by another one is not known.
    adopted: Option<u64>,
    /// The reports of changes that are under way.
    begun: Option<Vec<Receiver<Became>>>,
    clock: Clock,
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

    fn next(&self, reports: &Receiver<Became>, patience: Duration) -> Result<Became, FirewallError> {
        match reports.recv_timeout(patience) {
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

    fn send(link: &Link, changes: &[Change], now: Tick) -> Vec<Receiver<Became>> {
        let order = |changes: &[Change]| {
            link.order(What::Apply(Changes { changes: changes.iter().map(|change| Held::of(change, now)).collect() }))
        };
        changes.chunks(CHUNK).map(order).collect()
    }

    /// What is in force is not known any more.
    fn lost(&mut self) {
        self.adopted = None;
        if let Some(link) = self.link.get() {
            link.caught_up(false);
        }
    }

    fn collect(&self, begun: &[Receiver<Became>]) -> Result<Vec<usize>, FirewallError> {
        let mut failed = Vec::new();
        for (place, reports) in begun.iter().enumerate() {
            let Became::Done(done) = self.next(reports, self.common.deadline)? else {
                return Err(FirewallError::Away("it answers something else".into()));
            };
            failed.extend(done.failed.iter().map(|index| place * CHUNK + *index as usize));
        }
        Ok(failed)
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
        self.lost();
        let link = self.link()?;
        let connection = link.connection();
        let reports = link.order(What::Adopt(LayoutMessage::new(layout, self.clock.now().wall)));
        let mut found = Vec::new();
        loop {
            let Became::Holds(holds) = self.next(&reports, LAYOUT)? else {
                return Err(FirewallError::Away("it answers something else".into()));
            };
            // What is left was told a moment ago: as late as what we told was early there.
            let now = self.clock.tick();
            for held in &holds.elements {
                if let Some(Change::Open { element, until }) = held.change(now) {
                    found.push((element, until));
                }
            }
            if !holds.more {
                break;
            }
        }
        self.adopted = connection;
        Ok(found)
    }

    fn caught_up(&mut self) {
        if let Ok(link) = self.adopted() {
            link.caught_up(true);
            self.fleet.caught_up(self.place);
        }
    }

    fn arrange(&mut self, layout: &Layout) -> Result<(), FirewallError> {
        let layout = LayoutMessage::new(layout, self.clock.now().wall);
        let reports = self.adopted()?.order(What::Arrange(layout));
        let arranged = self.next(&reports, LAYOUT).map(drop);
        if arranged.is_err() {
            self.lost();
        }
        arranged
    }

    fn begin(&mut self, changes: &[Change], now: Tick) {
        self.begun = self.adopted().ok().map(|link| Self::send(link, changes, now));
    }

    fn apply(&mut self, changes: &[Change], now: Tick) -> Result<Vec<usize>, FirewallError> {
        let begun = match self.begun.take() {
            Some(begun) => begun,
            None => Self::send(self.adopted()?, changes, now),
        };
        let applied = self.collect(&begun);
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
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_name_or_an_address() {
        for (text, expected) in [
            ("gw1.corp.example", Some(("gw1.corp.example", 8953))),
            ("gw1.corp.example:1", Some(("gw1.corp.example", 1))),
            ("192.0.2.1", Some(("192.0.2.1", 8953))),
            ("192.0.2.1:99", Some(("192.0.2.1", 99))),
            ("2001:db8::1", Some(("2001:db8::1", 8953))),
            ("[2001:db8::1]:99", Some(("2001:db8::1", 99))),
            ("gw1:0", None),
            ("gw1:x", None),
            ("", None),
            ("https://gw1", None),
        ] {
            assert_eq!(split(text, PORT), expected.map(|(host, port)| (host.to_owned(), port)), "{text}");
        }
    }
}
