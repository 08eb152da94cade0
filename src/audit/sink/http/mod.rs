//! The kind `http`: records POSTed to Splunk's HTTP Event Collector, to Elasticsearch or OpenSearch (`_bulk`), or as lines
//! of JSON to anything that takes them.
//!
//! - **One request at a time, in order**, on one HTTP/1.1 connection that is kept. No redirect is followed, no proxy is
//!   asked, nothing but the reply's status, `Retry-After`, `Location` and a bounded body is looked at.
//! - **Only a refusal that concerns the record itself loses it**, and never silently: a wrong token, a missing index, a
//!   server that is busy or speaks something else is waited for. What the server is not known to have taken is offered
//!   again.
//! - **The token** is read from its file, and again when it was not accepted; it is in no message.

mod api;
mod client;
mod elasticsearch;
mod reply;
mod settings;
mod splunk;
mod tally;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::Bytes;

use self::client::{Client, Lost};
use self::reply::Said;
use self::settings::Settings;
pub(super) use self::settings::read;
use self::tally::Tally;
use super::{Batch, Deliver, Delivered, Record};
use crate::audit::format::Format;

/// The largest body before it is compressed, in octets: what a reverse proxy takes where nobody told it otherwise.
const LARGEST: usize = 1 << 20;
/// The size down to which a body gets smaller because the connection broke: that is most often not because of it.
const SMALLEST: usize = 32 << 10;
/// Requests that go well one after another before they get larger again.
const STEADY: u32 = 32;
/// The same before one is larger than what the server refused: its limit may have been raised. At most one in so many
/// requests is made in vain.
const RAISED: u32 = 256;
/// Records that are refused one by one while none is taken: then it is not the records.
const SUSPECTS: usize = 4;

/// Formats whose records are JSON.
pub(super) fn carries(format: &Format) -> Result<(), &'static str> {
    match format.name {
        "json" | "ecs" | "ocsf" => Ok(()),
        _ => Err("write a format of JSON: \"json\", \"ecs\" or \"ocsf\""),
    }
}

/// One sink.
struct Http {
    settings: Settings,
    client: Client,
    /// The largest body that is sent now.
    largest: usize,
    /// The largest that the server was not seen to refuse lately.
    bound: usize,
    /// Requests since one did not go well.
    steady: u32,
    /// Where the server acknowledges what it has indexed.
    channel: Option<splunk::Channel>,
}

impl Http {
    fn new(settings: Settings) -> Result<Self, String> {
        let client = Client::new(&settings)?;
        let channel = settings.ack.then(splunk::Channel::new).transpose()?;
        Ok(Self { settings, client, largest: LARGEST, bound: LARGEST, steady: 0, channel })
    }

    /// As many of these records as fit in one request, at least one.
    fn body(&self, records: &[Record], indexes: &[usize]) -> Body {
        let mut octets = Vec::new();
        let mut count = 0;
        for record in indexes.iter().filter_map(|index| records.get(*index)) {
            let before = octets.len();
            (self.settings.api.write)(&self.settings, record, &mut octets);
            if octets.len() > self.largest && count > 0 {
                octets.truncate(before);
                break;
            }
            count += 1;
        }
        let size = octets.len();
        if self.settings.gzip {
            octets = packed(&octets);
        }
        Body { octets: octets.into(), size, count }
    }

    /// One request, and what its reply says of its records.
    fn post(&mut self, Body { octets, size, count }: Body) -> Said {
        if let Some(channel) = &mut self.channel
            && let Err(said) = channel.open(&self.settings, &mut self.client)
        {
            return said;
        }
        let channel = self.channel.as_ref().map(splunk::Channel::header);
        let reply = match self.client.post(&self.settings.target, channel, self.settings.gzip, octets) {
            Ok(reply) => reply,
            Err(Lost { why, began }) => {
                // Some servers that take no more close the connection, and say nothing or too early.
                if began {
                    self.largest = (size / 2).clamp(SMALLEST.min(self.largest), self.largest);
                    self.steady = 0;
                }
                return Said::later(why);
            }
        };
        let said = (self.settings.api.judge)(&self.settings, &reply, count);
        if let Said::Smaller { large: true, .. } = said {
            // One record alone may be larger than the bound is.
            self.bound = self.bound.min(size / 2).max(1);
            self.largest = self.largest.min(self.bound);
            self.steady = 0;
        } else {
            self.steady += 1;
            if self.steady >= RAISED {
                self.bound = LARGEST.min(self.bound.saturating_mul(2));
                self.steady = 0;
            }
            if self.steady.is_multiple_of(STEADY) {
                self.largest = self.bound.min(self.largest.saturating_mul(2));
            }
        }
        said
    }
}

/// What is sent in one request.
struct Body {
    octets: Bytes,
    /// Before they were compressed.
    size: usize,
    /// Of records.
    count: usize,
}

/// In the form of gzip.
fn packed(octets: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(octets.len() / 4), Compression::fast());
    // A vector takes everything.
    let _infallible = encoder.write_all(octets);
    encoder.finish().unwrap_or_default()
}

impl Deliver for Http {
    fn heed(&mut self, stop: &Arc<AtomicBool>) {
        self.client.heed(stop);
    }

    fn deliver(&mut self, batch: &Batch<'_>) -> Delivered {
        let mut tally = Tally::default();
        let mut pieces = VecDeque::from([(0..batch.records.len()).collect::<Vec<_>>()]);
        while let Some(mut piece) = pieces.pop_front() {
            let body = self.body(batch.records, &piece);
            if body.count < piece.len() {
                pieces.push_front(piece.split_off(body.count));
            }
            let said = self.post(body);
            match said {
                Said::Taken(number) => {
                    tally.taken += piece.len();
                    if let Some((channel, number)) = self.channel.as_mut().zip(number) {
                        channel.sent(number, piece);
                    }
                }
                Said::Each { again, suspects, why } => tally.each(&piece, &again, suspects, why),
                Said::Without { at, why } if at < piece.len() => {
                    tally.refused.push((piece.remove(at), why));
                    pieces.push_front(piece);
                }
                Said::Without { why, .. } => tally.later(piece, &mut pieces, why, None),
                Said::Smaller { why, .. } => {
                    match piece.len() {
                        1 => tally.suspects.extend(piece.into_iter().map(|index| (index, why.clone()))),
                        length => {
                            let second = piece.split_off(length / 2);
                            pieces.push_front(second);
                            pieces.push_front(piece);
                        }
                    }
                    if tally.taken == 0 && tally.suspects.len() >= SUSPECTS {
                        tally.later(Vec::new(), &mut pieces, why, None);
                    }
                }
                Said::Later { why, wait } => tally.later(piece, &mut pieces, why, wait),
            }
        }
        if let Some(channel) = &mut self.channel {
            let (lost, why) = channel.settle(&self.settings, &mut self.client);
            tally.taken -= lost.len().min(tally.taken);
            tally.again.extend(lost);
            tally.why = tally.why.or(why);
        }
        tally.done()
    }
}
