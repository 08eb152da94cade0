//! Messages behind their length on a stream (RFC 1035 §4.2.2), in clear text or in TLS (RFC 7858): many queries on it,
//! answered in any order (RFC 7766 §6.2.1.1).
//!
//! Why not `hickory_net`'s client: it parses and re-encodes every message by its own rules, refuses more than a set
//! number of queries in flight with a back-off, and would hide letter case and id from the one place that makes
//! queries. What is left is the two octets of length and a table of ids, below.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::client::TlsStream;

use super::connection::{Job, PENDING, Reply, STALLED};
use super::failure::Failure;
use super::tls;

/// How much is read at once.
const READ: usize = 4096;

/// A stream that nobody on the way can read.
pub(super) type Encrypted = TlsStream<TcpStream>;

/// Writes jobs and hands out replies until the stream ends, nothing was awaited for `idle` or nobody can hand it
/// another.
pub(super) async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    jobs: &mut mpsc::Receiver<Job>,
    idle: Duration,
) -> Result<(), Failure> {
    let mut pending = HashMap::new();
    let ended = exchange(&mut stream, jobs, &mut pending, idle).await.map_err(|error| tls::failure(&error));
    match &ended {
        // TLS says that it ends; nobody waits for that.
        Ok(()) => drop(timeout(STALLED, stream.shutdown()).await),
        Err(failure) => pending.into_values().for_each(|reply: Reply| drop(reply.send(Err(failure.clone())))),
    }
    ended
}

async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    jobs: &mut mpsc::Receiver<Job>,
    pending: &mut HashMap<u16, Reply>,
    idle: Duration,
) -> io::Result<()> {
    let mut received = Vec::new();
    let mut over_at = Instant::now() + idle;
    loop {
        received.reserve(READ);
        tokio::select! {
            read = stream.read_buf(&mut received) => {
                if read? == 0 {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                while let Some(message) = take_message(&mut received) {
                    // A reply nobody waits for any more, or nobody ever did, is dropped.
                    let id = message.first_chunk().map(|id| u16::from_be_bytes(*id));
                    if let Some(reply) = id.and_then(|id| pending.remove(&id)) {
                        let _gone = reply.send(Ok(message));
                    }
                }
                over_at = Instant::now() + if pending.is_empty() { idle } else { STALLED };
            }
            job = jobs.recv() => {
                let Some(Job { mut message, reply }) = job else { return Ok(()) };
                // Who asked gave up before there was a stream.
                if reply.is_closed() {
                    continue;
                }
                let id = free_id(pending)?;
                if let Some(field) = message.first_chunk_mut() {
                    *field = id.to_be_bytes();
                }
                if pending.is_empty() {
                    over_at = Instant::now() + STALLED;
                }
                pending.insert(id, reply);
                let frame = frame(&message)?;
                let write = async {
                    stream.write_all(&frame).await?;
                    stream.flush().await
                };
                timeout(STALLED, write).await.map_err(|_| io::ErrorKind::TimedOut)??;
            }
            () = sleep_until(over_at) => {
                return if pending.is_empty() { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) };
            }
        }
    }
}

/// Length and message, for one write (RFC 7766 §8).
fn frame(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok([&length.to_be_bytes(), message].concat())
}

/// The first whole message behind its length, taken out of `received`.
fn take_message(received: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = 2 + usize::from(u16::from_be_bytes(*received.first_chunk()?));
    let message = received.get(2..end)?.to_vec();
    received.drain(..end);
    Some(message)
}

/// A random id that nothing awaits.
fn free_id(pending: &mut HashMap<u16, Reply>) -> io::Result<u16> {
    if pending.len() >= PENDING {
        pending.retain(|_, reply| !reply.is_closed());
    }
    if pending.len() >= PENDING {
        return Err(io::ErrorKind::QuotaExceeded.into());
    }
    loop {
        let mut random = [0; 2];
        getrandom::fill(&mut random).map_err(|_| io::ErrorKind::Other)?;
        let id = u16::from_ne_bytes(random);
        if !pending.contains_key(&id) {
            return Ok(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;
    use crate::record::Question;
    use crate::upstream::connection::{Connection, Link};
    use crate::upstream::endpoint::{ServerSettings, Transport};
    use crate::upstream::failure::Nonsense;
    use crate::upstream::fake::{Fake, changed, closed_port, good, question};
    use crate::upstream::query::Query;
    use crate::upstream::random::Random;
    use std::collections::HashSet;
    use std::net::SocketAddr;
    use std::sync::Arc;
    use tokio::net::TcpListener;
    use tokio_rustls::rustls::RootCertStore;

    fn connection(address: SocketAddr) -> Connection {
        let settings = ServerSettings { address, transport: Transport::Tcp };
        Connection::new(Arc::new(Link::new(&settings, &Arc::new(RootCertStore::empty())).unwrap()))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn query(question: &Question) -> Query {
        Query::new(question, super::super::query::Wanted::default(), &Random::default()).unwrap()
    }

    async fn ask(connection: &Connection) -> Result<Vec<u8>, Failure> {
        connection.ask(query(&question()), soon()).await
    }

    #[tokio::test]
    async fn one_connection_carries_many_queries_answered_in_any_order() {
        const QUERIES: usize = 50;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connection = Arc::new(connection(listener.local_addr().unwrap()));
        let mut asking = tokio::task::JoinSet::new();
        for number in 0..QUERIES {
            let connection = Arc::clone(&connection);
            asking.spawn(async move {
                let question = Question { name: Name::parse(&format!("n{number}.example.org")).unwrap(), ..question() };
                connection.ask(query(&question), soon()).await.unwrap()
            });
        }
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut queries = Vec::new();
        while queries.len() < QUERIES {
            let mut message = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut message).await.unwrap();
            queries.push(message);
        }
        let ids: HashSet<&[u8]> = queries.iter().map(|query| &query[..2]).collect();
        assert_eq!(ids.len(), QUERIES, "ids differ");
        // Backwards, all in one write, and an unknown id in front.
        let unknown = (0..=u16::MAX).map(u16::to_be_bytes).find(|id| !ids.contains(id.as_slice())).unwrap();
        let mut replies = frame(&[&unknown, &good(&queries[0])[2..]].concat()).unwrap();
        queries.iter().rev().for_each(|query| replies.extend(frame(&good(query)).unwrap()));
        stream.write_all(&replies).await.unwrap();
        assert_eq!(asking.join_all().await.len(), QUERIES, "each got the reply to its own question");
    }

    #[tokio::test]
    async fn a_connection_that_the_server_closed_is_opened_again() {
        let fake = Fake::start(|seen, _| vec![good(&seen.message), Vec::new()]).await;
        let connection = connection(fake.address);
        for _ in 0..5 {
            ask(&connection).await.unwrap();
        }
        let ports: HashSet<u16> = fake.seen().iter().map(|seen| seen.from.port()).collect();
        assert_eq!(ports.len(), 5);
    }

    #[tokio::test]
    async fn a_connection_that_ends_under_a_query_is_opened_again() {
        let fake = Fake::start(|seen, number| vec![if number == 1 { Vec::new() } else { good(&seen.message) }]).await;
        let connection = connection(fake.address);
        for _ in 0..2 {
            ask(&connection).await.unwrap();
        }
        let seen: Vec<u16> = fake.seen().iter().map(|seen| seen.from.port()).collect();
        assert!(seen.len() == 3 && seen[0] == seen[1] && seen[1] != seen[2], "{seen:?}");
    }

    #[tokio::test]
    async fn a_server_that_always_hangs_up_is_tried_at_most_twice() {
        let fake = Fake::start(|_, _| vec![Vec::new()]).await;
        let connection = connection(fake.address);
        for _ in 0..2 {
            let error = ask(&connection).await.unwrap_err();
            assert!(matches!(error, Failure::Network(_)), "{error:?}");
        }
        assert!(fake.seen().len() <= 4);
    }

    #[tokio::test]
    async fn only_the_reply_to_the_question_counts_in_any_letter_case() {
        type Spoil = fn(Vec<u8>) -> Vec<u8>;
        let rows: [(Spoil, Option<Nonsense>); 4] = [
            (|message| changed(message, 14, 1), Some(Nonsense::Question)),
            (|message| changed(message, 2, 0x80), Some(Nonsense::Question)),
            (|message| changed(message, 2, 0x02), Some(Nonsense::Truncated)),
            (
                |mut message| {
                    message[12..29].make_ascii_uppercase();
                    message
                },
                None,
            ),
        ];
        for (spoil, expected) in rows {
            let fake = Fake::start(move |seen, _| vec![spoil(good(&seen.message))]).await;
            assert_eq!(ask(&connection(fake.address)).await.err(), expected.map(Failure::Nonsense));
        }
    }

    #[tokio::test]
    async fn a_closed_port_is_no_network() {
        let connection = connection(closed_port().await);
        assert_eq!(ask(&connection).await, Err(Failure::Network(io::ErrorKind::ConnectionRefused)));
    }

    #[tokio::test]
    async fn a_connection_that_fell_silent_is_given_up() {
        for answered in [0, 1] {
            let fake = Fake::start(move |seen, number| match number < answered {
                true => vec![good(&seen.message)],
                false => Vec::new(),
            })
            .await;
            let connection = connection(fake.address);
            // Well before an idle one.
            let deadline = Instant::now() + STALLED * 3;
            let ask = || connection.ask(query(&question()), deadline);
            let both = tokio::join!(ask(), ask());
            let silent = [both.0, both.1].into_iter().filter_map(Result::err).collect::<Vec<_>>();
            assert_eq!(silent, vec![Failure::Network(io::ErrorKind::TimedOut); 2 - answered]);
            assert!(connection.is_closed());
        }
    }

    #[test]
    fn messages_are_taken_whole() {
        let mut received = Vec::new();
        for byte in [0, 2, 7, 8, 0, 0, 0, 1] {
            received.push(byte);
        }
        assert_eq!(take_message(&mut received), Some(vec![7, 8]));
        assert_eq!(take_message(&mut received), Some(Vec::new()));
        assert_eq!(take_message(&mut received), None);
        assert_eq!(received, [0, 1]);
    }
}
