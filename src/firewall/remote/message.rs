//! What a resolver and the enforcer of a gateway say to each other.
//!
//! A frame is its length (four octets, network order, at most [`LONGEST`]) and one protobuf message: [`Order`] from the
//! resolver, [`Report`] from the enforcer. A report carries the number of the order that it answers; orders may follow
//! each other unanswered. Ends are told as what is left of them: neither side trusts the other's clock. Every order may
//! be given twice. Unknown fields are passed over; what an older version could not obey is a new [`VERSION`].

mod layout;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::firewall::Cut;
use crate::grant::Change;
use crate::net::{Element, Prefix, Scope, SegmentId, Service, Services, parse_prefix};
use crate::time::Tick;

pub use self::layout::{EndMessage, Gathering, LayoutMessage, SegmentMessage};

/// The version that both sides have to speak.
pub const VERSION: u32 = 1;

/// The longest frame without its length, in octets.
pub const LONGEST: usize = 16 << 20;

/// The room for a frame's length.
pub const HEAD: [u8; 4] = [0; 4];

/// Changes, cuts or elements in one frame, at most.
pub const CHUNK: usize = 16_384;

/// From a resolver.
#[derive(Clone, PartialEq, Message)]
pub struct Order {
    /// Greater than that of the order before.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// What it wants.
    #[prost(oneof = "What", tags = "2, 3, 4, 5, 6, 7")]
    pub what: Option<What>,
}

/// What a resolver wants.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum What {
    /// The first order: who it is.
    #[prost(message, tag = "2")]
    Hello(Hello),
    /// Lay this out, and list what you hold for me.
    #[prost(message, tag = "3")]
    Adopt(LayoutMessage),
    /// Lay this out.
    #[prost(message, tag = "4")]
    Arrange(LayoutMessage),
    /// Make these changes.
    #[prost(message, tag = "5")]
    Apply(Changes),
    /// End these connections.
    #[prost(message, tag = "6")]
    Cut(Cutting),
    /// I live.
    #[prost(message, tag = "7")]
    Beat(Beat),
}

/// The first order of a connection.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Hello {
    /// [`VERSION`].
    #[prost(uint32, tag = "1")]
    pub version: u32,
}

/// A sign of life.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Beat {
    /// The enforcer has all that this resolver wants open: it may count.
    #[prost(bool, tag = "1")]
    pub caught_up: bool,
    /// It told addresses without this gateway since that was last caught up with.
    #[prost(bool, tag = "3")]
    pub went_without: bool,
    /// How long ago the enforcer was last heard, in microseconds: its words may not come here while ours come there.
    #[prost(uint64, tag = "4")]
    pub heard_ago: u64,
    /// Other resolvers that some enforcer hears, as it told this one.
    #[prost(string, repeated, tag = "2")]
    pub alive: Vec<String>,
}

/// Changes of elements.
#[derive(Clone, PartialEq, Message)]
pub struct Changes {
    /// In order.
    #[prost(message, repeated, tag = "1")]
    pub changes: Vec<Held>,
}

/// An element, and how long it is to be held.
#[derive(Clone, PartialEq, Message)]
pub struct Held {
    /// Four or sixteen octets; a segment's number has five: a zero before it.
    #[prost(bytes = "vec", tag = "1")]
    pub from: Vec<u8>,
    /// Four or sixteen octets.
    #[prost(bytes = "vec", tag = "2")]
    pub to: Vec<u8>,
    /// IANA's number: 6, 17, 1 for ICMP of either family; 0: every protocol and port.
    #[prost(uint32, tag = "3")]
    pub protocol: u32,
    /// Of TCP and UDP.
    #[prost(uint32, tag = "4")]
    pub port: u32,
    /// What is left, in microseconds; 0: none, it is to be closed.
    #[prost(uint64, tag = "5")]
    pub left: u64,
}

/// Connections to end.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Cutting {
    /// Any of them.
    #[prost(message, repeated, tag = "1")]
    pub cuts: Vec<CutMessage>,
}

/// A [`Cut`]; what is empty is everything.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CutMessage {
    /// A prefix.
    #[prost(string, tag = "1")]
    pub from: String,
    /// A prefix.
    #[prost(string, tag = "2")]
    pub to: String,
    /// `tcp/443`.
    #[prost(string, tag = "3")]
    pub service: String,
}

/// From an enforcer.
#[derive(Clone, PartialEq, Message)]
pub struct Report {
    /// That of the order.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// What became of it.
    #[prost(oneof = "Became", tags = "2, 3, 4, 5, 6")]
    pub became: Option<Became>,
}

/// What became of an order.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Became {
    /// It is in force but for these.
    #[prost(message, tag = "2")]
    Done(Done),
    /// What is held; the last of several reports has `more` unset.
    #[prost(message, tag = "3")]
    Holds(Holds),
    /// It is not in force, and why, in a sentence.
    #[prost(string, tag = "4")]
    Refused(String),
    /// How many connections ended.
    #[prost(uint64, tag = "5")]
    Ended(u64),
    /// How the enforcer is.
    #[prost(message, tag = "6")]
    Standing(Standing),
}

/// Made, but for some.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Done {
    /// Indexes of changes that failed.
    #[prost(uint32, repeated, tag = "1")]
    pub failed: Vec<u32>,
}

/// Elements that are held for a resolver.
#[derive(Clone, PartialEq, Message)]
pub struct Holds {
    /// In any order.
    #[prost(message, repeated, tag = "1")]
    pub elements: Vec<Held>,
    /// Another report follows.
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// How an enforcer is.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Standing {
    /// Why new flows should not be led through it; empty: they may.
    #[prost(string, tag = "1")]
    pub waiting: String,
    /// Every resolver that it knows.
    #[prost(string, repeated, tag = "2")]
    pub known: Vec<String>,
    /// Those of them that it hears.
    #[prost(string, repeated, tag = "3")]
    pub heard: Vec<String>,
    /// How the resolver that is told this is called.
    #[prost(string, tag = "4")]
    pub you: String,
    /// Elements in the fullest table, and its room; both 0: it cannot tell.
    #[prost(uint32, tag = "5")]
    pub elements: u32,
    /// See `elements`.
    #[prost(uint32, tag = "6")]
    pub capacity: u32,
}

impl Held {
    /// An element with what is left of it.
    #[must_use]
    pub fn new(element: &Element, left: Duration) -> Self {
        let from = match element.from {
            Scope::Client(client) => octets(client),
            Scope::Segment(segment) => [&[0], segment.0.to_be_bytes().as_slice()].concat(),
        };
        let (protocol, port) = match element.service {
            Service::Tcp(port) => (6, port.into()),
            Service::Udp(port) => (17, port.into()),
            Service::Icmp => (1, 0),
            Service::Any => (0, 0),
        };
        let left = u64::try_from(left.as_micros()).unwrap_or(u64::MAX);
        Self { from, to: octets(element.to), protocol, port, left }
    }

    /// A change as it is told at `now`. What is over is closed.
    #[must_use]
    pub fn of(change: &Change, now: Tick) -> Self {
        match change {
            Change::Open { element, until } => Self::new(element, until.since(now)),
            Change::Close { element } => Self::new(element, Duration::ZERO),
        }
    }

    /// The element; `None` where there is no such element.
    #[must_use]
    pub fn element(&self) -> Option<Element> {
        let from = match self.from.as_slice() {
            [0, number @ ..] if number.len() == 4 => {
                Scope::Segment(SegmentId(u32::from_be_bytes(number.try_into().ok()?)))
            }
            other => Scope::Client(address(other)?),
        };
        let port = || u16::try_from(self.port).ok().filter(|port| *port > 0);
        let service = match self.protocol {
            6 => Service::Tcp(port()?),
            17 => Service::Udp(port()?),
            1 => Service::Icmp,
            0 => Service::Any,
            _ => return None,
        };
        Some(Element { from, to: address(&self.to)?, service })
    }

    /// The change, its end reckoned from `now`.
    #[must_use]
    pub fn change(&self, now: Tick) -> Option<Change> {
        let element = self.element()?;
        Some(match self.left {
            0 => Change::Close { element },
            left => Change::Open { element, until: now + Duration::from_micros(left) },
        })
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?).into()),
        _ => None,
    }
}

impl From<&Cut> for CutMessage {
    fn from(cut: &Cut) -> Self {
        let text = |prefix: Option<Prefix>| prefix.map(|prefix| prefix.to_string()).unwrap_or_default();
        let service = cut.service.map(|service| service.to_string()).unwrap_or_default();
        Self { from: text(cut.from), to: text(cut.to), service }
    }
}

impl CutMessage {
    /// What it stands for; `None` where it cannot be read.
    #[must_use]
    pub fn read(&self) -> Option<Cut> {
        let prefix = |text: &str| if text.is_empty() { Some(None) } else { parse_prefix(text).map(Some) };
        let service = match self.service.as_str() {
            "" => None,
            text => Some(single(text.parse().ok()?)?),
        };
        Some(Cut { from: prefix(&self.from)?, to: prefix(&self.to)?, service })
    }
}

fn single(services: Services) -> Option<Service> {
    services.expand().next().filter(|_| services.count() == 1)
}

/// What frames go over: TLS, or a socket of this machine.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Writes one frame.
///
/// # Errors
/// The connection's; a message that is too long for a frame.
pub async fn write(to: &mut (impl AsyncWrite + Unpin), message: &impl Message) -> io::Result<()> {
    let mut frame = HEAD.to_vec();
    message.encode_raw(&mut frame);
    write_frame(to, frame).await
}

/// Writes a frame whose octets follow [`HEAD`], where its length is filled in.
///
/// # Errors
/// The connection's; more than a frame may have.
pub async fn write_frame(to: &mut (impl AsyncWrite + Unpin), mut frame: Vec<u8>) -> io::Result<()> {
    let length = frame.len() - HEAD.len();
    if length > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is longer than a frame may be"));
    }
    if let Some(head) = frame.first_chunk_mut() {
        *head = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    }
    to.write_all(&frame).await?;
    to.flush().await
}

/// Reads one frame; not to be cancelled half way.
///
/// # Errors
/// The connection's; a frame that is too long or none of these messages.
pub async fn read<M: Message + Default>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<M> {
    let frame = read_frame(from).await?;
    M::decode(frame.as_slice()).map_err(|error| invalid(format!("a frame that is no message: {error}")))
}

/// Reads what is in one frame; not to be cancelled half way.
///
/// # Errors
/// The connection's; a frame that is too long.
pub async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = from.read_u32().await? as usize;
    if length > LONGEST {
        return Err(invalid(format!("a frame of {length} octets, of at most {LONGEST}")));
    }
    // It grows with what comes, not with what is announced.
    let mut frame = Vec::with_capacity(length.min(1 << 16));
    let read = from.take(length as u64).read_to_end(&mut frame).await?;
    if read < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(frame)
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![any::<Ipv4Addr>().prop_map(IpAddr::V4), any::<Ipv6Addr>().prop_map(IpAddr::V6)]
    }

    fn any_element() -> impl Strategy<Value = Element> {
        let from = prop_oneof![
            any_address().prop_map(Scope::Client),
            any::<u32>().prop_map(|number| Scope::Segment(SegmentId(number)))
        ];
        let service = prop_oneof![
            (1_u16..).prop_map(Service::Tcp),
            (1_u16..).prop_map(Service::Udp),
            Just(Service::Icmp),
            Just(Service::Any)
        ];
        (from, any_address(), service).prop_map(|(from, to, service)| Element { from, to, service })
    }

    proptest! {
        #[test]
        fn a_change_comes_as_it_was_told(element in any_element(), left in 0_u64..1 << 40, at in 0_u64..1 << 40) {
            let now = Tick(at);
            let change = match left {
                0 => Change::Close { element },
                left => Change::Open { element, until: now + Duration::from_micros(left) },
            };
            let octets = Held::of(&change, now).encode_to_vec();
            prop_assert_eq!(Held::decode(octets.as_slice()).unwrap().change(now), Some(change));
        }

        #[test]
        fn what_anybody_sends_is_read_or_refused(octets in prop::collection::vec(any::<u8>(), 0..512)) {
            if let Ok(order) = Order::decode(octets.as_slice()) {
                match order.what {
                    Some(What::Adopt(layout) | What::Arrange(layout)) => drop(layout.read()),
                    Some(What::Apply(changes)) => changes.changes.iter().for_each(|held| _ = held.change(Tick(0))),
                    Some(What::Cut(cutting)) => cutting.cuts.iter().for_each(|cut| _ = cut.read()),
                    _ => {}
                }
            }
            drop(Report::decode(octets.as_slice()));
        }
    }

    #[test]
    fn a_cut_comes_as_it_was_told() {
        for cut in [
            Cut::default(),
            Cut { to: "192.0.2.1/32".parse().ok(), service: Some(Service::Tcp(443)), ..Cut::default() },
            Cut { from: "2001:db8::/64".parse().ok(), service: Some(Service::Any), ..Cut::default() },
        ] {
            assert_eq!(CutMessage::from(&cut).read(), Some(cut));
        }
    }

    #[tokio::test]
    async fn frames_have_an_end() {
        let order = Order { number: 7, what: Some(What::Hello(Hello { version: VERSION })) };
        let mut octets = Vec::new();
        write(&mut octets, &order).await.unwrap();
        assert_eq!(read::<Order>(&mut octets.as_slice()).await.unwrap(), order);
        let cut = octets.len() - 1;
        assert_eq!(read::<Order>(&mut &octets[..cut]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let long = read::<Order>(&mut [0xff; 8].as_slice()).await.unwrap_err().to_string();
        assert_eq!(long, "a frame of 4294967295 octets, of at most 16777216");
        let none = read::<Order>(&mut [0, 0, 0, 1, 0xff].as_slice()).await.unwrap_err().to_string();
        assert!(none.starts_with("a frame that is no message: "), "{none}");
    }
}
