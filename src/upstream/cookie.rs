//! DNS cookies with one server (RFC 7873, RFC 9018): what we show it, what it showed us, and whether it does at all.
//!
//! A guesser off the path has to hit 64 bits more. The cookie belongs to the server alone: it is the same whoever asks
//! (I2).

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::random::Random;
use crate::record::Rcode;
use crate::wire::{self, Glance};

/// RFC 7873 §4: a client cookie has 8 octets, a server cookie 8 to 32.
const CLIENT: usize = 8;
const WHOLE: std::ops::RangeInclusive<usize> = CLIENT + 8..=CLIENT + 32;

/// Our own half of a cookie.
pub(super) type ClientCookie = [u8; CLIENT];
type ServerCookie = SmallVec<[u8; 32]>;

/// Cookies with one server.
#[derive(Debug, Default)]
pub(super) struct Cookies(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// RFC 9018 §3: another one for each server, and nothing that could be foreseen.
    client: Option<ClientCookie>,
    known: Known,
}

#[derive(Debug, Default)]
enum Known {
    /// It never showed one.
    #[default]
    Nothing,
    /// The last one that it showed: replies without are not its own.
    Shown(ServerCookie),
    /// It cannot stand the option.
    Declined,
}

/// What a query shows, and what its reply must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) client: ClientCookie,
    pub(super) server: ServerCookie,
}

/// What the cookie of a message says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// It is from whom we asked, as far as a cookie can tell.
    Good,
    /// It has none, though the server shows cookies: whether it still does, TCP will tell.
    Missing,
    /// It has another one than ours: "the client MUST discard the response" (RFC 7873 §5.3).
    Wrong,
}

impl Shown {
    /// Judges a message that answers the query in all else.
    pub(super) fn judge(&self, message: &[u8]) -> Proof {
        let cookie = wire::glance(message).and_then(|glance| glance.cookie);
        match cookie.map(|cookie| cookie.split_first_chunk()) {
            None if self.server.is_empty() => Proof::Good,
            None => Proof::Missing,
            // Servers that echo what they do not know show our half alone, which nobody could guess.
            Some(Some((client, _))) if *client == self.client => Proof::Good,
            Some(_) => Proof::Wrong,
        }
    }
}

impl Cookies {
    /// What the next query shows; `None` where the server cannot stand it.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub(super) fn show(&self, random: &Random) -> Result<Option<Shown>, getrandom::Error> {
        let State { client, known } = &mut *self.0.lock();
        let client = match client {
            Some(client) => *client,
            None => *client.insert(random.take()?),
        };
        Ok(match known {
            Known::Nothing => Some(Shown { client, server: SmallVec::new() }),
            Known::Shown(server) => Some(Shown { client, server: server.clone() }),
            Known::Declined => None,
        })
    }

    /// Takes what the reply to a query with a cookie shows: true where the same question must be put again, because the
    /// server wants the cookie that it now gave, or none at all.
    pub(super) fn learn(&self, message: &[u8]) -> bool {
        let Some(Glance { rcode, cookie }) = wire::glance(message) else { return false };
        let known = &mut self.0.lock().known;
        match cookie.filter(|cookie| WHOLE.contains(&cookie.len())).and_then(|cookie| cookie.get(CLIENT..)) {
            Some(server) => *known = Known::Shown(server.into()),
            // RFC 6891 §7 has servers answer so that know no EDNS; some do where an option is new to them.
            None if rcode == Rcode::FORMERR && matches!(known, Known::Nothing) => {
                *known = Known::Declined;
                return true;
            }
            None => {}
        }
        rcode == Rcode::BADCOOKIE
    }

    /// Takes what the reply over TCP shows, which nobody forges: without a cookie, the server shows none any more.
    pub(super) fn learn_for_sure(&self, message: &[u8]) {
        if wire::glance(message).is_some_and(|glance| glance.cookie.is_none()) {
            let known = &mut self.0.lock().known;
            if matches!(known, Known::Shown(_)) {
                *known = Known::Nothing;
            }
        } else {
            self.learn(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Clock;
    use crate::upstream::connection::Link;
    use crate::upstream::failover::exchange;
    use crate::upstream::fake::{Fake, Seen, address, good, origin, question, response};
    use crate::upstream::query::Wanted;
    use crate::upstream::server::Server;
    use crate::upstream::{Ports, ServerHealth};
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::time::Instant;
    use tokio_rustls::rustls::RootCertStore;

    /// The reply with an OPT that has these high bits of the code and this cookie.
    fn with_cookie(mut reply: Vec<u8>, rcode_high: u8, cookie: &[u8]) -> Vec<u8> {
        let length = u16::try_from(cookie.len()).unwrap();
        reply[11] = 1;
        reply.extend([0, 0, 41, 4, 208, rcode_high, 0, 0, 0]);
        reply.extend((length + 4).to_be_bytes());
        reply.extend([0, 10]);
        reply.extend(length.to_be_bytes());
        reply.extend(cookie);
        reply
    }

    /// What a query shows: nothing, our half, or both halves.
    fn shown(query: &[u8]) -> Vec<u8> {
        wire::glance(query).unwrap().cookie.map(<[u8]>::to_vec).unwrap_or_default()
    }

    /// Our half and this one.
    fn answered(query: &[u8], server: &[u8]) -> Vec<u8> {
        with_cookie(good(query), 0, &[&shown(query)[..8], server].concat())
    }

    /// A server that answers its so many-th message so, asked that often.
    async fn ask(
        respond: impl Fn(&Seen, usize) -> Vec<Vec<u8>> + Send + Sync + 'static,
        times: usize,
    ) -> (Vec<Seen>, ServerHealth) {
        let fake = Fake::start(respond).await;
        let settings = fake.settings();
        let link = Link::new(&settings, &Arc::new(RootCertStore::empty())).unwrap();
        let servers = [Server::new(0, settings.transport, link, Wanted::default(), &Clock::system())];
        let ports = Ports::new(servers.iter());
        for _ in 0..times {
            let deadline = Instant::now() + Duration::from_secs(30);
            let reply = exchange(&servers, &question(), &origin(), &ports, deadline).await.unwrap();
            assert_eq!(reply.answer.records, [address()]);
        }
        (fake.seen(), servers[0].report(&Arc::from("default")))
    }

    #[tokio::test]
    async fn the_cookie_of_a_server_is_shown_again_and_changes_with_it() {
        let (seen, report) = ask(
            |seen, number| {
                let server = if number < 2 { b"server-1".to_vec() } else { vec![b'2'; 32] };
                vec![answered(&seen.message, &server)]
            },
            4,
        )
        .await;
        let all: Vec<Vec<u8>> = seen.iter().map(|seen| shown(&seen.message)).collect();
        let client = &all[0];
        assert_eq!(client.len(), CLIENT);
        let both = |server: &[u8]| [client, server].concat();
        assert_eq!(all[1..], [both(b"server-1"), both(b"server-1"), both(&[b'2'; 32])]);
        assert!(seen.iter().all(|seen| !seen.over_tcp));
        assert_eq!(report.mismatches, 0);
        // RFC 9018 §3: another server is shown another one.
        let (elsewhere, _) = ask(|seen, _| vec![good(&seen.message)], 1).await;
        assert_ne!(&shown(&elsewhere[0].message), client);
    }

    #[tokio::test]
    async fn a_wrong_cookie_is_a_guess_and_two_are_answered_by_tcp() {
        for wrong in [vec![0; 8], vec![0; 16], Vec::new(), vec![0; 3], vec![0; 60]] {
            let (seen, report) = ask(
                move |seen, _| {
                    let forged = with_cookie(good(&seen.message), 0, &wrong);
                    if seen.over_tcp { vec![good(&seen.message)] } else { vec![forged.clone(), forged] }
                },
                1,
            )
            .await;
            assert_eq!(seen.iter().map(|seen| seen.over_tcp).collect::<Vec<_>>(), [false, true]);
            assert_eq!(report.mismatches, 2);
        }
    }

    #[tokio::test]
    async fn a_server_that_shows_cookies_is_not_believed_without_until_tcp_says_so() {
        // Shown once; then a guess without one comes first, then the server forgets them itself.
        let (seen, report) = ask(
            |seen, number| match number {
                0 => vec![answered(&seen.message, b"server-1")],
                1 => vec![good(&seen.message)],
                2 => vec![answered(&seen.message, b"server-2")],
                _ => vec![good(&seen.message)],
            },
            5,
        )
        .await;
        let over_tcp: Vec<bool> = seen.iter().map(|seen| seen.over_tcp).collect();
        assert_eq!(over_tcp, [false, false, true, false, true, false, false]);
        assert!(shown(&seen[3].message).ends_with(b"server-2"));
        assert_eq!(shown(&seen[5].message).len(), CLIENT, "it shows none any more");
        assert_eq!(report.mismatches, 2);
    }

    #[tokio::test]
    async fn badcookie_is_asked_again_once_with_the_new_one_and_then_over_tcp() {
        let bad = |query: &[u8]| {
            let cookie = [&shown(query)[..8], b"server-1"].concat();
            with_cookie(response(query, Rcode(7), &[]), 1, &cookie)
        };
        let (seen, report) = ask(
            move |seen, number| {
                vec![if number == 0 { bad(&seen.message) } else { answered(&seen.message, b"server-1") }]
            },
            1,
        )
        .await;
        assert_eq!(seen.iter().map(|seen| seen.over_tcp).collect::<Vec<_>>(), [false, false]);
        assert!(shown(&seen[1].message).ends_with(b"server-1"));
        assert_eq!((report.answered, report.failures), (1, 0));
        let (seen, _) =
            ask(move |seen, _| vec![if seen.over_tcp { good(&seen.message) } else { bad(&seen.message) }], 1).await;
        assert_eq!(seen.iter().map(|seen| seen.over_tcp).collect::<Vec<_>>(), [false, false, true]);
    }

    #[tokio::test]
    async fn a_server_that_cannot_stand_the_option_is_spared_it() {
        let (seen, _) = ask(
            |seen, _| match shown(&seen.message).is_empty() {
                true => vec![good(&seen.message)],
                false => vec![response(&seen.message, Rcode::FORMERR, &[])],
            },
            2,
        )
        .await;
        let shown: Vec<usize> = seen.iter().map(|seen| shown(&seen.message).len()).collect();
        assert_eq!(shown, [CLIENT, 0, 0]);
    }

    #[tokio::test]
    async fn an_echo_of_our_half_is_no_servers_cookie() {
        let (seen, report) =
            ask(|seen, _| vec![with_cookie(good(&seen.message), 0, &shown(&seen.message)[..8])], 2).await;
        assert_eq!((seen.len(), shown(&seen[1].message).len(), report.mismatches), (2, CLIENT, 0));
    }
}
