//! One connection: read, answer, write, end. One task, and one more for each query in flight.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::frames::Frames;
use super::{Ending, Limits, StreamGate};
use crate::audit::Transport;
use crate::serve::stopped;

/// Serves `stream` to its end. Whatever ends the reading, the queries that were read are answered first, or at
/// least decided and recorded where the client cannot be written to any more.
pub(super) async fn run<S, G>(
    mut stream: S,
    (peer, transport): (SocketAddr, Transport),
    gate: &Arc<G>,
    limits: &Limits,
    mut stop: watch::Receiver<bool>,
) -> Ending
where
    S: AsyncRead + AsyncWrite + Unpin,
    G: StreamGate,
{
    let mut frames = Frames::new(limits.message);
    let mut queries = JoinSet::new();
    // Set once nothing more is read.
    let mut ending = None;
    let mut writable = true;
    // The beginning of the present wait for the client: the last message, answer, or first byte of a message.
    let mut waiting = Instant::now();
    loop {
        // RFC 7766 §6.2.1.1: pipelined queries are to be expected, and processed concurrently as over UDP.
        while ending.is_none() && queries.len() < limits.in_flight {
            match frames.take() {
                Ok(Some(packet)) => {
                    let gate = Arc::clone(gate);
                    queries.spawn(async move { gate.answer(packet, peer, transport).await });
                    waiting = Instant::now();
                }
                Ok(None) => break,
                Err(error) => ending = Some(error),
            }
        }
        if let Some(ending) = ending
            && queries.is_empty()
        {
            // The client may be gone: then there is nobody to tell.
            let _ = timeout(limits.send, stream.shutdown()).await;
            return ending;
        }
        let reading = ending.is_none() && queries.len() < limits.in_flight;
        // A client that waits for its answers is not idle; one that has begun a message has to go on.
        let (patience, impatient) =
            if frames.begun() { (limits.receive, Ending::Partial) } else { (limits.idle, Ending::Idle) };
        let timed = reading && (frames.begun() || queries.is_empty());
        tokio::select! {
            biased;
            // RFC 7766 §7: answers are matched by id, so each leaves when it is ready.
            Some(answer) = queries.join_next() => {
                match answer {
                    Ok(Some(answer)) if writable => {
                        if let Err(error) = write(&mut stream, &answer, limits).await {
                            ending = Some(error);
                            writable = false;
                        }
                    }
                    Ok(_) => {}
                    Err(error) => tracing::error!(%error, %peer, "a query over a stream ended without an answer"),
                }
                waiting = Instant::now();
            }
            () = stopped(&mut stop), if ending.is_none() => ending = Some(Ending::Stopped),
            () = sleep_until(waiting + patience), if timed => ending = Some(impatient),
            read = stream.read_buf(frames.buffer()), if reading => match read {
                // The client may have closed its half only and still wait for answers.
                Ok(0) => ending = Some(Ending::Peer),
                Ok(bytes) => if frames.buffer().len() == bytes { waiting = Instant::now() },
                // Over TLS: closed without saying so. A message has a length, so nothing can be cut off unseen.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => ending = Some(Ending::Peer),
                Err(_) => ending = Some(Ending::Broken),
            },
        }
    }
}

/// RFC 7766 §8: "DNS clients and servers SHOULD pass the two-octet length field, and the message described by that
/// length field, to the TCP layer at the same time (e.g., in a single "write" system call)".
async fn write<S: AsyncWrite + Unpin>(stream: &mut S, answer: &[u8], limits: &Limits) -> Result<(), Ending> {
    let length = u16::try_from(answer.len()).map_err(|_| Ending::Broken)?;
    let framed = [&length.to_be_bytes(), answer].concat();
    let written = async {
        stream.write_all(&framed).await?;
        // TLS keeps what it has encrypted and the socket has not taken yet.
        stream.flush().await
    };
    match timeout(limits.send, written).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Ending::Broken),
        Err(_) => Err(Ending::Stalled),
    }
}
