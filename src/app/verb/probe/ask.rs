//! One question to one resolver, as a client's stub asks it: over UDP, over TCP where the answer does not fit.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::reach::{Seen, exchange, random};
use crate::draft::safe;
use crate::name::Name;
use crate::record::{ExtendedError, Question, Rcode, Record, RecordType};
use crate::time::Clock;
use crate::wire::{Message, encode_query, parse_message};

/// What a resolver said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) rcode: Rcode,
    pub(super) ede: Option<ExtendedError>,
    /// Every address of the answer section.
    pub(super) addresses: Vec<IpAddr>,
    /// How long it took.
    pub(super) after: Duration,
    /// It came after the datagram was sent again.
    pub(super) again: bool,
}

impl Reply {
    /// Of a message.
    pub(super) fn of(message: &Message, after: Duration, again: bool) -> Self {
        let addresses = message.answers.iter().filter_map(Record::address).collect();
        Self { rcode: message.rcode, ede: message.ede.clone(), addresses, after, again }
    }

    /// Its extended error says that policy refuses: Blocked, Censored, Filtered, Prohibited (RFC 8914 §4.16 to §4.19).
    pub(super) fn is_policy(&self) -> bool {
        self.ede.as_ref().is_some_and(|ede| (15..=18).contains(&ede.code))
    }
}

impl fmt::Display for Reply {
    /// `NXDOMAIN, EDE 15 (Blocked): denied by rule no-trackers`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.rcode, self.addresses.as_slice()) {
            (Rcode::NOERROR, []) => f.write_str("no address (NOERROR)")?,
            (rcode, []) => write!(f, "{rcode}")?,
            (_, addresses) => {
                let shown: Vec<String> = addresses.iter().take(4).map(ToString::to_string).collect();
                write!(f, "told {}", shown.join(", "))?;
                if addresses.len() > shown.len() {
                    write!(f, " and {} more", addresses.len() - shown.len())?;
                }
            }
        }
        let Some(ede) = &self.ede else { return Ok(()) };
        write!(f, ", EDE {}", ede.code)?;
        if let Some(title) = ede.title() {
            write!(f, " ({title})")?;
        }
        if ede.text.is_empty() { Ok(()) } else { write!(f, ": {}", safe(&ede.text)) }
    }
}

/// Asks; what was said, or what was seen instead of an answer.
pub(super) async fn ask(
    resolver: SocketAddr,
    name: &Name,
    kind: RecordType,
    patience: Duration,
) -> Result<Reply, Seen> {
    let question = Question { name: name.clone(), kind };
    let id = random().map(u16::from_be_bytes).map_err(|error| Seen::Untried(error.to_string()))?;
    let mut query = Vec::new();
    encode_query(&mut query, id, &question, false, || false);
    let answer = |bytes: &[u8]| {
        let message = parse_message(bytes).ok().filter(|message| message.id == id && message.response)?;
        let repeats = message.question.as_ref().is_none_or(|(_, asked)| *asked == question);
        repeats.then_some(message)
    };
    let (bytes, after, again) = match exchange(resolver, &query, patience, |bytes| answer(bytes).is_some()).await {
        Seen::Answered(after, bytes, again) => (bytes, after, again),
        other => return Err(other),
    };
    let message = answer(&bytes).ok_or(Seen::Silent(patience))?;
    if !message.truncated {
        return Ok(Reply::of(&message, after, again));
    }
    let clock = Clock::system();
    let begun = clock.tick();
    let whole = match timeout(patience, over_stream(resolver, &query)).await {
        Ok(Ok(whole)) => whole,
        Ok(Err(error)) => return Err(Seen::Untried(format!("the answer was cut, and over TCP: {error}"))),
        Err(_) => return Err(Seen::Silent(patience)),
    };
    let message = answer(&whole).ok_or_else(|| Seen::Untried("over TCP it answered something else".to_owned()))?;
    Ok(Reply::of(&message, after + clock.tick().since(begun), again))
}

/// One message over a connection of its own; what came back.
pub(super) async fn over_stream(resolver: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(query.len()).unwrap_or(u16::MAX).to_be_bytes();
    stream.write_all(&[length.as_slice(), query].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
