//! One check: what is tried, and what must be seen for all to be well.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::ask::{Reply, ask, over_stream};
use super::plan::{Allowed, Check, Step};
use super::reach::{Seen, connect, greeting, millis, try_way};
use crate::name::Name;
use crate::record::{Rcode, RecordType};
use crate::wire::parse_message;

/// The port of DNS over UDP and TCP.
const DNS: u16 = 53;
/// Addresses of a name that are connected to.
const ADDRESSES: usize = 8;
/// RFC 6298 §2: "Until a round-trip time (RTT) measurement has been made for a segment sent between the sender and receiver,
/// the sender SHOULD set RTO <- 1 second". What takes longer was sent twice.
const RETRANSMITTED: Duration = Duration::from_secs(1);

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// As it should be.
    Ok,
    /// Nothing is open that must not be, nothing closed that must not be; but somebody should look.
    Warn,
    /// It does not hold.
    Fail,
}

impl State {
    pub(super) const ALL: [Self; 3] = [Self::Ok, Self::Warn, Self::Fail];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) state: State,
    /// What was seen.
    pub(super) seen: String,
    /// What to do; empty where all is well.
    pub(super) remedy: String,
    /// Of an allowed name: how long the slowest answer with addresses took.
    pub(super) resolved: Option<Duration>,
    /// How long the slowest connection took.
    pub(super) connected: Option<Duration>,
}

impl Finding {
    fn new(state: State, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state, seen: seen.into(), remedy: remedy.into(), resolved: None, connected: None }
    }

    fn ok(seen: impl Into<String>) -> Self {
        Self::new(State::Ok, seen, "")
    }
}

/// What one question of a name came to: the answer, and a connection to each address of it.
struct Tried {
    kind: RecordType,
    asked: Result<Reply, Seen>,
    connections: Vec<(IpAddr, Seen)>,
    /// Addresses beyond those that were tried.
    untried: usize,
}

/// Tries it.
pub(super) async fn run(step: &Step, patience: Duration) -> Finding {
    match &step.check {
        Check::Allowed(allowed, resolver) => {
            let (four, six) = tokio::join!(
                tried(allowed, *resolver, RecordType::A, patience),
                tried(allowed, *resolver, RecordType::AAAA, patience),
            );
            judge_allowed(&[four, six])
        }
        Check::Denied(name, resolver) => {
            let (four, six) = tokio::join!(
                ask(*resolver, name, RecordType::A, patience),
                ask(*resolver, name, RecordType::AAAA, patience),
            );
            let [four, six] = [(RecordType::A, four), (RecordType::AAAA, six)]
                .map(|(kind, asked)| judge_denied(name, kind, asked.as_ref()));
            // What is worse counts.
            if six.state > four.state { six } else { four }
        }
        Check::Way(way) => {
            let mut seen = try_way(*way, patience).await;
            // A connection does not say whom it was led to; what is answered there does.
            if let Seen::Connected(after) = seen
                && way.to.port() == DNS
                && let Ok(query) = greeting(DNS)
                && let Ok(Ok(answer)) = timeout(patience, over_stream(way.to, &query)).await
            {
                seen = Seen::Answered(after, answer, false);
            }
            judge_way(way.to.ip(), &seen, step.remedy)
        }
    }
}

/// Connects the instant that it is told, as a client does.
async fn tried(allowed: &Allowed, resolver: SocketAddr, kind: RecordType, patience: Duration) -> Tried {
    let asked = ask(resolver, &allowed.name, kind, patience).await;
    let told = asked.as_ref().map_or(&[][..], |reply| &reply.addresses);
    let mut attempts = JoinSet::new();
    for address in told.iter().copied().take(ADDRESSES) {
        let to = SocketAddr::new(address, allowed.port);
        attempts.spawn(async move { (address, connect(to, patience).await) });
    }
    let untried = told.len().saturating_sub(ADDRESSES);
    let mut connections = attempts.join_all().await;
    connections.sort_by_key(|(address, _)| *address);
    Tried { kind, asked, connections, untried }
}

fn judge_allowed(tried: &[Tried]) -> Finding {
    let replies = || tried.iter().filter_map(|tried| tried.asked.as_ref().ok());
    let connections = || tried.iter().flat_map(|tried| &tried.connections);
    let made: Vec<Duration> = connections()
        .filter_map(|(_, seen)| match seen {
            Seen::Connected(after) => Some(*after),
            _ => None,
        })
        .collect();
    let finding = |state, seen: String, remedy: &str| {
        let resolved = replies().filter(|reply| !reply.addresses.is_empty()).map(|reply| reply.after).max();
        Finding { resolved, connected: made.iter().max().copied(), ..Finding::new(state, seen, remedy) }
    };
    if connections().next().is_none() {
        // Most often the same is to be said of both types.
        let [a, aaaa] = [RecordType::A, RecordType::AAAA]
            .map(|kind| tried.iter().find(|tried| tried.kind == kind).map_or_else(String::new, said));
        let seen = if a == aaaa { a } else { format!("A: {a}; AAAA: {aaaa}") };
        return finding(State::Fail, seen, unresolved(tried));
    }
    // Without a route nobody's rules were tried; the other family may do.
    let closed: Vec<&(IpAddr, Seen)> =
        connections().filter(|(_, seen)| !matches!(seen, Seen::Connected(_) | Seen::NoRoute)).collect();
    if !closed.is_empty() || made.is_empty() {
        let listed: Vec<&(IpAddr, Seen)> = if closed.is_empty() { connections().collect() } else { closed };
        let shown: Vec<String> = listed.iter().map(|(address, seen)| format!("{address} {seen}")).collect();
        let remedy = match listed.iter().all(|(_, seen)| matches!(seen, Seen::NoRoute)) {
            true => "give this machine a route there",
            false => {
                "ask the node: `outgate grants --address` says whether it is open, `outgate explain` which ports the rule opens"
            }
        };
        let connected = if made.is_empty() { String::new() } else { format!("; {} others connected", made.len()) };
        return finding(State::Fail, format!("told, but {}{connected}", shown.join("; ")), remedy);
    }
    let slowest = made.iter().max().copied().unwrap_or_default();
    let answered = replies().filter(|reply| !reply.addresses.is_empty()).map(|reply| reply.after).max();
    let mut seen = format!(
        "resolved in {}, connected to {} address{} in {}",
        millis(answered.unwrap_or_default()),
        made.len(),
        if made.len() == 1 { "" } else { "es" },
        millis(slowest)
    );
    let untried: usize = tried.iter().map(|tried| tried.untried).sum();
    if untried > 0 {
        seen.push_str(&format!(", {untried} more not tried"));
    }
    if slowest >= RETRANSMITTED {
        return finding(
            State::Warn,
            seen,
            "the first SYN was lost: a client waits a second; see whether the address was open in time",
        );
    }
    if replies().any(|reply| reply.again) {
        return finding(
            State::Warn,
            seen,
            "no answer in half the time, so it was asked again: look for loss on the way, or a slow upstream",
        );
    }
    if let Some(other) = tried.iter().find(|tried| match &tried.asked {
        Ok(reply) => reply.rcode == Rcode::SERVFAIL,
        Err(_) => true,
    }) {
        let seen = format!("{seen}; {}: {}", other.kind, said(other));
        return finding(State::Warn, seen, "clients ask both types and may wait for this one");
    }
    if let Some((address, _)) = connections().find(|(_, seen)| *seen == Seen::NoRoute) {
        let seen = format!("{seen}; no route to {address}");
        return finding(State::Warn, seen, "`filter_aaaa` of the segment keeps back addresses that lead nowhere");
    }
    finding(State::Ok, seen, "")
}

fn said(tried: &Tried) -> String {
    match &tried.asked {
        Ok(reply) => reply.to_string(),
        Err(seen) => seen.to_string(),
    }
}

/// What to do about a name without any address.
fn unresolved(tried: &[Tried]) -> &'static str {
    let replies: Vec<&Reply> = tried.iter().filter_map(|tried| tried.asked.as_ref().ok()).collect();
    match replies.as_slice() {
        [] => "see that the resolver runs, and that this machine may reach it",
        replies if replies.iter().any(|reply| reply.is_policy()) => {
            "`outgate explain --client` with this machine's address says which rule refuses it"
        }
        replies if replies.iter().any(|reply| reply.rcode == Rcode::SERVFAIL) => {
            "it failed behind the resolver: the record in its log says where"
        }
        _ => "see that the name is right, and has addresses",
    }
}

fn judge_denied(name: &Name, kind: RecordType, asked: Result<&Reply, &Seen>) -> Finding {
    let reply = match asked {
        Ok(reply) => reply,
        Err(seen) => {
            return Finding::new(State::Fail, seen.to_string(), "nothing is known of it: see that the resolver runs");
        }
    };
    let seen = reply.to_string();
    if !reply.addresses.is_empty() {
        return Finding::new(State::Fail, seen, format!("`outgate explain {name} {kind}` says which rule allows it"));
    }
    match reply.rcode {
        _ if reply.is_policy() => Finding::ok(seen),
        Rcode::REFUSED => Finding::ok(seen),
        Rcode::NXDOMAIN | Rcode::NOERROR => Finding::new(
            State::Warn,
            seen,
            "the answer does not say that it is policy: name one that exists, or ask the resolver itself",
        ),
        _ => Finding::new(State::Warn, seen, "it failed and was not refused: it may be answered once that is mended"),
    }
}

fn judge_way(address: IpAddr, seen: &Seen, remedy: &str) -> Finding {
    match seen {
        Seen::Answered(after, bytes, again) => {
            let reply = parse_message(bytes).ok().filter(|message| message.response);
            let Some(reply) = reply.map(|message| Reply::of(&message, *after, *again)) else {
                return Finding::new(State::Fail, seen.to_string(), remedy);
            };
            if reply.is_policy() {
                let seen = format!("{seen}: {reply}");
                return Finding::new(
                    State::Warn,
                    seen,
                    "it seems to be led to a resolver that refuses; see that this is yours",
                );
            }
            Finding::new(State::Fail, format!("{seen}: {}", reply.rcode), remedy)
        }
        Seen::Connected(_) => Finding::new(State::Fail, seen.to_string(), remedy),
        // Who is there says that nobody listens: packets arrive. But a bridge that refuses speaks in its name.
        Seen::Icmp("port unreachable" | "protocol unreachable", Some(from)) if *from == address => Finding::new(
            State::Warn,
            seen.to_string(),
            "that is the address itself, unless a bridge refuses in its name: name a service that answers",
        ),
        Seen::Untried(_) => Finding::new(State::Fail, seen.to_string(), "nothing is known of it; try again"),
        seen => Finding::ok(seen.to_string()),
    }
}
