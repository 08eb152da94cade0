//! The kind `dnstap`: Frame Streams to a receiver that speaks them in both directions.
//!
//! Nothing says which frames the receiver has read until it says FINISH, and it says that to STOP alone. So a connection
//! lasts a minute: what it carried is in doubt until its FINISH, and is offered again where it ends without one.

use std::io::{self, ErrorKind, Read, Write};
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use super::limit::{Limit, Limited};
use super::settings::Keys;
use super::{Batch, Deliver, Delivered, Plan};
use crate::audit::format::frames::Control;
use crate::audit::format::{Format, Framing};
use crate::time::{Clock, Tick};

/// How long the receiver may take to be connected, for its ACCEPT, and for a batch.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take to read what is on the way, for its FINISH.
const FINISH: Duration = Duration::from_secs(10);
/// The same of a node that stops; so long each of the others may take then too.
const LAST_FINISH: Duration = Duration::from_secs(2);
/// How long a connection carries frames: what a broken one makes the receiver read twice.
const LASTS: Duration = Duration::from_secs(60);

/// Where the receiver is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
}

/// The keys of this kind.
#[derive(Debug)]
struct Settings {
    place: Place,
}

/// Whether it is a format that such receivers take.
pub(super) fn carries(format: &Format) -> Result<(), &'static str> {
    if format.framing == Framing::Frames { Ok(()) } else { Err("leave `format` out: it is \"dnstap\"") }
}

/// Reads them.
pub(super) fn read(keys: &Keys<'_>) -> Option<Arc<dyn Plan>> {
    let url = keys.table.required_string("url")?;
    let place = place(&url.value);
    if place.is_none() {
        let fact = format!("`url` cannot be \"{}\"", url.value);
        keys.table.document().note(&url.span, fact, "write \"unix:///run/dnstap.sock\" or \"tcp://host:6000\"");
    }
    Some(Arc::new(Settings { place: place? }))
}

fn place(url: &str) -> Option<Place> {
    if let Some(path) = url.strip_prefix("unix://") {
        let place = Place::Unix(path.into());
        // A path that is too long for a socket's address is a mistake of the file, not of the place.
        return (path.starts_with('/') && SockAddr::unix(path).is_ok()).then_some(place);
    }
    let at = url.strip_prefix("tcp://")?;
    let (host, port) = at.rsplit_once(':')?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)),
    };
    (host && port.parse::<u16>().is_ok_and(|port| port > 0)).then(|| Place::Tcp(at.to_owned()))
}

impl Plan for Settings {
    fn build(&self) -> Result<Box<dyn Deliver>, String> {
        let place = self.place.clone();
        let clock = Clock::system();
        let stop = Arc::default();
        Ok(Box::new(Receiver { place, clock, stop, patience: PATIENCE, link: None, rest: Vec::new() }))
    }
}

struct Receiver {
    place: Place,
    clock: Clock,
    stop: Arc<AtomicBool>,
    patience: Duration,
    /// A connection that has said START, and since when.
    link: Option<(Link, Tick)>,
    /// What of the last frames is not written to it yet.
    rest: Vec<u8>,
}

impl Deliver for Receiver {
    fn heed(&mut self, stop: &Arc<AtomicBool>) {
        self.stop = Arc::clone(stop);
    }

    fn deliver(&mut self, batch: &Batch<'_>) -> Delivered {
        let count = batch.records.len();
        let sent = self.send(batch).and_then(|taken| {
            if taken == count && self.is_old() {
                self.finish(FINISH)?;
            }
            Ok(taken)
        });
        match sent {
            Ok(taken) if taken == count => Delivered::All,
            Ok(taken) => {
                Delivered::Some { again: (taken..count).collect(), refused: Vec::new(), wait: Some(Duration::ZERO) }
            }
            Err(why) => {
                self.link = None;
                Delivered::Failed { why, wait: None }
            }
        }
    }

    /// Without end while there is a connection: its FINISH is the end.
    fn unsure(&self) -> Duration {
        if self.link.is_some() { Duration::MAX } else { Duration::ZERO }
    }

    fn check(&mut self) -> Result<(), String> {
        let closed = self.link.as_mut().is_some_and(|(link, _)| link.is_closed());
        let checked = match closed {
            true => Err(self.place.says("it closed the connection")),
            false if self.is_old() => self.finish(FINISH),
            false => return Ok(()),
        };
        self.link = None;
        checked
    }

    fn end(&mut self) -> Result<(), String> {
        self.finish(LAST_FINISH)
    }
}

impl Receiver {
    fn is_old(&self) -> bool {
        self.link.as_ref().is_some_and(|(_, since)| self.clock.tick().since(*since) >= LASTS)
    }

    /// How many records were taken. Of the last of them a rest may be kept, which goes before all others.
    fn send(&mut self, batch: &Batch<'_>) -> Result<usize, String> {
        let link = match &mut self.link {
            Some((link, _)) => link,
            none => {
                self.rest.clear();
                let mut limit = Limit::new(self.clock.clone());
                limit.heed(&self.stop);
                &mut none.insert((self.place.open(limit, self.patience)?, self.clock.tick())).0
            }
        };
        let mut bytes = std::mem::take(&mut self.rest);
        let mut ends = vec![bytes.len()];
        for record in batch.records {
            bytes.extend_from_slice(&record.bytes);
            ends.push(bytes.len());
        }
        let written = link.write_for(&bytes, self.patience).map_err(|error| self.place.says(&told(&error)))?;
        // A frame that was begun must be ended.
        let taken = ends.partition_point(|end| *end < written);
        let end = ends.get(taken).copied().unwrap_or(written);
        self.rest = bytes.get(written..end).unwrap_or_default().to_vec();
        Ok(taken)
    }

    /// Ends the connection, if there is one, and hears that all of it was read.
    fn finish(&mut self, patience: Duration) -> Result<(), String> {
        let Some((mut link, _)) = self.link.take() else { return Ok(()) };
        // Closed before STOP: what it read of the last minute is not known.
        if link.is_closed() {
            return Err(self.place.says("it closed the connection"));
        }
        let mut last = std::mem::take(&mut self.rest);
        Control::Stop.write(&mut last);
        link.limit.begin(patience);
        match link.write_all(&last).and_then(|()| Control::read(&mut link)) {
            Ok((Control::Finish, _)) => Ok(()),
            Ok(_) => Err(self.place.says("it did not answer STOP with FINISH; is it bidirectional Frame Streams?")),
            // Who closes a socket in which something is unread resets it: this one had read STOP.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(()),
            Err(error) => Err(self.place.says(&told(&error))),
        }
    }
}

impl Place {
    fn says(&self, what: &str) -> String {
        match self {
            Self::Unix(path) => format!("unix://{}: {what}", path.display()),
            Self::Tcp(at) => format!("tcp://{at}: {what}"),
        }
    }

    /// Connects, and comes to START.
    fn open(&self, mut limit: Limit, patience: Duration) -> Result<Link, String> {
        limit.begin(patience);
        let socket = self.connect(&mut limit).map_err(|error| {
            self.says(&match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => format!("{error}; is the receiver running?"),
                ErrorKind::PermissionDenied => format!("{error}; let the service's user write to it"),
                ErrorKind::WouldBlock | ErrorKind::TimedOut => "it takes no connection".to_owned(),
                _ => error.to_string(),
            })
        })?;
        let mut link = Link { socket, limit };
        link.limit.begin(patience);
        let greeted = link.say(Control::Ready).and_then(|()| Control::read(&mut link));
        match greeted {
            Ok((Control::Accept, true)) => {}
            Ok((Control::Accept, false)) => return Err(self.says("it takes no dnstap")),
            Ok(_) => return Err(self.says("it did not answer READY with ACCEPT; is it bidirectional Frame Streams?")),
            Err(error) => return Err(self.says(&format!("it did not answer READY: {}", told(&error)))),
        }
        link.say(Control::Start).map_err(|error| self.says(&told(&error)))?;
        Ok(link)
    }

    fn connect(&self, limit: &mut Limit) -> io::Result<Socket> {
        match self {
            Self::Unix(path) => {
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                let address = SockAddr::unix(path)?;
                limit.call(|slice| {
                    // Where nobody accepts, connecting waits as long as writing.
                    socket.set_write_timeout(Some(slice))?;
                    socket.connect(&address)
                })?;
                Ok(socket)
            }
            Self::Tcp(at) => {
                let mut last = io::Error::new(ErrorKind::NotFound, "the host has no address");
                for address in at.to_socket_addrs()? {
                    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
                    match socket.connect_timeout(&address.into(), limit.left()?) {
                        Ok(()) => return Ok(socket),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }
}

/// One clause on a connection that failed.
fn told(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "it did not read or answer in time".to_owned(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => {
            "it closed the connection".to_owned()
        }
        _ => error.to_string(),
    }
}

/// A connection, each use of which ends in time.
struct Link {
    socket: Socket,
    limit: Limit,
}

impl Link {
    fn say(&mut self, control: Control) -> io::Result<()> {
        let mut frame = Vec::new();
        control.write(&mut frame);
        self.write_all(&frame)
    }

    /// Writes as much as it can in this time; how much that was.
    ///
    /// # Errors
    /// It was nothing at all, or the connection is broken.
    fn write_for(&mut self, bytes: &[u8], patience: Duration) -> io::Result<usize> {
        self.limit.begin(patience);
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match self.write(rest) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if written > 0 && matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    /// Whether the other side has closed it, or speaks where it has nothing to say.
    fn is_closed(&mut self) -> bool {
        let read = self.socket.set_nonblocking(true).and_then(|()| (&self.socket).read(&mut [0]));
        let open = read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        !open || self.socket.set_nonblocking(false).is_err()
    }
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Limited::new(&self.socket, &mut self.limit).read(buffer)
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Limited::new(&self.socket, &mut self.limit).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
