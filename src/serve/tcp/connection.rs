//! One connection: read, answer, write, end. One task, and one more for each query that waits.

use std::io::ErrorKind;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::frames::Frames;
use super::{Caller, Ending, Limits, Round, StreamGate};
use crate::serve::stopped;

/// The room for replies that a connection keeps, in octets.
const KEPT: usize = 8 * 1024;

/// How long the client of a node that stops may take to make room for one answer.
const LAST: Duration = Duration::from_millis(400);

/// Serves `stream` to its end. Whatever ends the reading, the queries that were read are answered first, or at
/// least decided and recorded where the client cannot be written to any more.
pub(super) async fn run<S, G>(
    mut stream: S,
    caller: &Caller,
    gate: &Arc<G>,
    limits: &Limits,
    mut stop: watch::Receiver<bool>,
) -> Ending
where
    S: AsyncRead + AsyncWrite + Unpin,
    G: StreamGate,
{
    let mut frames = Frames::new(limits.message);
    let mut round = Round::new(limits.in_flight);
    let mut queries = JoinSet::new();
    // Set once nothing more is read.
    let mut ending = None;
    let mut writable = true;
    // The beginning of the present wait for the client: the last message, answer, or first byte of a message.
    let mut waiting = Instant::now();
    let mut timer = pin!(sleep_until(waiting + limits.idle));
    loop {
        // RFC 7766 §6.2.1.1: pipelined queries are to be expected, and processed concurrently as over UDP.
        let mut answered = false;
        if ending.is_none() && queries.len() < limits.in_flight {
            match frames.ready() {
                Ok(ready) => answered = ready,
                Err(error) => ending = Some(error),
            }
        }
        if answered {
            round.set_room(limits.in_flight - queries.len());
            gate.answer(&mut frames, caller, &mut round);
            waiting = Instant::now();
        }
        for job in round.jobs() {
            let gate = Arc::clone(gate);
            queries.spawn(async move { gate.wait(job).await });
        }
        if !round.replies().is_empty() {
            if writable && let Err(error) = write(&mut stream, round.replies(), limits, &mut stop).await {
                ending = Some(error);
                writable = false;
            }
            // What one long reply took is not kept for as long as the connection lives.
            round.clear(KEPT);
            waiting = Instant::now();
        }
        // A round is full before everything is taken.
        if answered {
            continue;
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
        // The timer is set anew where it would ring too late; where it rings too early it is told so then, not at every
        // message.
        let due = waiting + patience;
        if timed && due < timer.deadline() {
            timer.as_mut().reset(due);
        }
        tokio::select! {
            biased;
            // RFC 7766 §7: answers are matched by id, so each leaves when it is ready.
            Some(finished) = queries.join_next() => {
                let mut all = Vec::new();
                let mut next = Some(finished);
                while let Some(finished) = next {
                    match finished {
                        Ok(finished) => all.push(finished),
                        Err(error) => tracing::error!(%error, peer = %caller.peer, "a query over a stream ended without an answer"),
                    }
                    next = queries.try_join_next();
                }
                gate.finish(all, &mut round);
                waiting = Instant::now();
            }
            () = stopped(&mut stop), if ending.is_none() => ending = Some(Ending::Stopped),
            () = timer.as_mut(), if timed => {
                if Instant::now() < due {
                    timer.as_mut().reset(due);
                } else {
                    ending = Some(impatient);
                }
            }
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
/// length field, to the TCP layer at the same time (e.g., in a single "write" system call)"; so do several of them.
async fn write<S: AsyncWrite + Unpin>(
    stream: &mut S,
    replies: &[u8],
    limits: &Limits,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), Ending> {
    let written = async {
        stream.write_all(replies).await?;
        // TLS keeps what it has encrypted and the socket has not taken yet.
        stream.flush().await
    };
    let last = async {
        stopped(stop).await;
        sleep(LAST).await;
    };
    tokio::select! {
        biased;
        written = timeout(limits.send, written) => match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ending::Broken),
            Err(_) => Err(Ending::Stalled),
        },
        () = last => Err(Ending::Stalled),
    }
}
