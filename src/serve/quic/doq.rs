//! DNS over dedicated QUIC connections (RFC 9250).

use quinn::{Connection, ReadToEndError, RecvStream, SendStream};
use tokio::time::timeout;

use super::{End, Exchange, Exchanged, Speaker, ending_of};
use crate::serve::https::{Client, Refusal};
use crate::serve::tcp::{Ending, Limits, StreamGate};

// RFC 9250 §8.4: the error codes.
const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 1;
const PROTOCOL_ERROR: u32 = 2;
const REQUEST_CANCELLED: u32 = 3;
const EXCESSIVE_LOAD: u32 = 4;

/// See the module.
pub(super) struct Doq<'a, G> {
    connection: &'a Connection,
    client: Client<G>,
    limits: &'a Limits,
}

impl<'a, G> Doq<'a, G> {
    pub(super) const fn new(connection: &'a Connection, client: Client<G>, limits: &'a Limits) -> Self {
        Self { connection, client, limits }
    }
}

impl<G: StreamGate> Speaker for Doq<'_, G> {
    const DONE: u32 = NO_ERROR;
    const EXCESS: u32 = EXCESSIVE_LOAD;

    async fn next(&mut self) -> Result<Exchange, End> {
        match self.connection.accept_bi().await {
            Ok((send, receive)) => Ok(Box::pin(exchange(send, receive, self.client.clone(), *self.limits))),
            Err(error) => Err(End { ending: ending_of(&error), code: NO_ERROR }),
        }
    }
}

/// RFC 9250 §4.2: "The client MUST select the next available client-initiated bidirectional stream for each subsequent
/// query on a QUIC connection […] and MUST indicate through the STREAM FIN mechanism that no further data will be sent".
async fn exchange<G: StreamGate>(
    mut send: SendStream,
    mut receive: RecvStream,
    client: Client<G>,
    limits: Limits,
) -> Exchanged {
    let exchanged = answer(&mut send, &mut receive, client, limits).await;
    // Dropped as it is, the stream would end like a reply. An error: the client does not wait for one.
    let _ = match &exchanged {
        Exchanged::Answered => Ok(()),
        Exchanged::Nothing => send.reset(REQUEST_CANCELLED.into()),
        Exchanged::End(end) => send.reset(end.code.into()),
    };
    exchanged
}

async fn answer<G: StreamGate>(
    send: &mut SendStream,
    receive: &mut RecvStream,
    client: Client<G>,
    limits: Limits,
) -> Exchanged {
    let end = |ending, code| Exchanged::End(End { ending, code });
    let stream = match timeout(limits.receive, receive.read_to_end(limits.message + 2)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(ReadToEndError::TooLong)) => return end(Ending::Oversize, EXCESSIVE_LOAD),
        // Taken back, or the connection is gone.
        Ok(Err(ReadToEndError::Read(_))) => return Exchanged::Nothing,
        Err(_) => return end(Ending::Partial, PROTOCOL_ERROR),
    };
    let message = match message(&stream) {
        Ok(message) => message,
        Err(ending) => return end(ending, PROTOCOL_ERROR),
    };
    match client.ask(message).await {
        Ok(reply) => match timeout(limits.send, write(send, &reply)).await {
            Ok(()) => Exchanged::Answered,
            Err(_) => end(Ending::Stalled, EXCESSIVE_LOAD),
        },
        Err(Refusal::Unrecorded) => {
            // An error: the client does not wait for it.
            let _ = send.reset(INTERNAL_ERROR.into());
            Exchanged::Answered
        }
        // Recorded, and worth no reply: an id, keepalive, a response.
        Err(_) => end(Ending::Broken, PROTOCOL_ERROR),
    }
}

/// §4.2: "All DNS messages (queries and responses) sent over DoQ connections MUST be encoded as a 2-octet length field
/// followed by the message content". §4.3.3: a protocol error is a STREAM FIN "before receiving all the bytes for a
/// message indicated in the 2-octet length field", and "more than one query on a stream".
fn message(stream: &[u8]) -> Result<&[u8], Ending> {
    let (length, message) = stream.split_first_chunk().ok_or(Ending::Empty)?;
    match usize::from(u16::from_be_bytes(*length)) {
        0 => Err(Ending::Empty),
        length if length > message.len() => Err(Ending::Partial),
        length if length < message.len() => Err(Ending::Broken),
        _ => Ok(message),
    }
}

/// Until the client has it, or wants it no more.
async fn write(send: &mut SendStream, reply: &[u8]) {
    let length = u16::try_from(reply.len()).unwrap_or(u16::MAX).to_be_bytes();
    // §4.2: "The server MUST send the response(s) on the same stream and MUST indicate, after the last response, through
    // the STREAM FIN mechanism that no further data will be sent on that stream."
    if send.write_all(&[&length, reply].concat()).await.is_ok() && send.finish().is_ok() {
        let _ = send.stopped().await;
    }
}
