//! Outgate: the DNS server of a network that is closed by default.
//!
//! This page is the map: the walk of one query, the rooms, and who may import whom. For the whole story read
//! `docs/architecture.md`; to use the program, `README.md`.
//!
//! Three sentences are the product. Every question of design is settled by asking which choice keeps them true:
//!
//! 1. **Open before told.** No client is told an address before every required firewall lets it through, for at least
//!    as long as the told TTL.
//! 2. **Closed unless said.** A denied name causes no upstream packet, no address is opened that was not in an allowed,
//!    inspected answer, and every error ends closed.
//! 3. **Written before sent.** No answer leaves before its record has been handed to the kernel.
//!
//! # The walk
//!
//! ```text
//! serve/udp worker, serve/tcp or https connection                one thread or task; one shard of the log
//!   wire::parse ───────────── Malformed ───────────────► FORMERR, NOTIMP … or silence  ┐
//!      │ Query                                                                         │
//!   policy.asker(client) ──── none ────────────────────► REFUSED + EDE 18              │
//!      │ Asker                                                                         │
//!   Local, cover ──────────── open long enough ────────► the prepared reply            ├─► Outbox: bytes and
//!      │ nothing                                                                       │   record, sealed together.
//!   policy::decide ────────── Refuse ──────────────────► NXDOMAIN, NODATA … + EDE 15   │   The batch's records are
//!      │ Permit                                                                        │   written, then its
//!   Slots.take ────────────── no room ─────────────────► SERVFAIL + EDE                │   replies are sent.
//!      │ Job                                                                           │
//! slow path: Gate::slow (a job of that thread; one deadline for all of it)             │
//!   the Permit still stands ─ or policy::decide again, under the policy of now         │
//!   zones, answers, upstream  → Answer                                                 │
//!   policy::inspect           → Cleared                                                │
//!   granter.offer             → Granted    journal, firewalls, acknowledgement, record │
//!   Prepared; answers.put, cover.put; back to the door that received the query ───────►┘
//! ```
//!
//! The fast half is [`gate::Gate::fast`], the slow half [`gate::Gate::slow`].
//!
//! Four values carry the promises. Each is made in one room, has private fields, and is what the next step takes:
//!
//! | value | made by | taken by |
//! |---|---|---|
//! | [`policy::Permit`] | [`policy::decide()`] | [`upstream::Upstreams::resolve`], [`policy::inspect()`] |
//! | [`policy::Cleared`] | [`policy::inspect()`] | [`gate::Granter::offer`] and, in it, [`grant::Ledger::offer`] |
//! | [`grant::Granted`] | [`grant::Ledger::settle`], once every opening was acknowledged | [`gate::Prepared::new`] |
//! | [`gate::Released`] | [`gate::Outbox::release`], once the records were written | the sockets |
//!
//! So these do not compile: to resolve a name that is not allowed, to open an address that was not inspected, to tell
//! an address that is not open.
//!
//! # The rooms
//!
//! Imports point down: a room sees every level below its own, and within its level only what is noted. `tests/tree.rs`
//! reads the code and fails on any other arrow.
//!
//! | level | room | what it is |
//! |---|---|---|
//! | app | [`app`] | wiring: configuration, start, reload, stop; one file per verb of the command line, `probe` for a client's place; what is changed while it runs, and the peers that are told of it |
//! | serve | [`serve`] | doors: UDP workers, TCP, TLS, HTTPS, QUIC, the admin socket, health and metrics; sockets that are given |
//! | gate | [`gate`] | the two paths, the reply, and the granter with its journal |
//! | gate | [`enforce`] | the enforcer of a gateway: what each of several resolvers holds open there |
//! | edge | [`upstream`] | forwarders over UDP, TCP, TLS and HTTPS; DNSSEC |
//! | edge | [`zones`] | local authoritative data |
//! | edge | [`firewall`] | one trait, one table of backends: nftables, memory, and the enforcers of other machines |
//! | edge | [`audit`] | the query log: records, file, rotation, verify, tail; sinks |
//! | core | [`wire`] | bytes ↔ query, reply, upstream message |
//! | core | [`policy`] | text → rules → index; who asks, what is allowed, what may be opened |
//! | core | [`grant`] | the ledger: what is open, for which reasons, until when; sees `policy` |
//! | core | [`cache`] | what is known, and for whom it is open; sees `grant` and `policy` |
//! | core | [`flow`] | what went out, and by which look-up or rule; other systems' flow logs as text |
//! | core | [`report`] | what a log says to those who answer for a network, in tables; sees `policy` and `flow` |
//! | core | [`draft`] | rules as text for people to read: from other systems' lists, from what was asked for; sees `policy` |
//! | word | [`name`], [`net`], [`record`], [`time`] | names, addresses and services, DNS data, the clock |
//! | word | [`document`], [`metric`] | TOML read with places, every metric in one table; words see each other |
//! | word | [`trust`] | certificates and secrets from files |
//!
//! - Cores take `now` and return values: no I/O, no clock, no tokio, no logging.
//! - No edge sees another edge; the gate joins them.
//! - The path is code that can be read aloud, not a chain of plugins. It is open at two edges: firewall backends
//!   ([`firewall::BACKENDS`]), and log formats and sinks. To add one is one file and one row of a table.

pub mod app;
pub mod audit;
pub mod cache;
pub mod document;
pub mod draft;
pub mod enforce;
pub mod firewall;
pub mod flow;
pub mod gate;
pub mod grant;
pub mod metric;
pub mod name;
pub mod net;
pub mod policy;
pub mod record;
pub mod report;
pub mod serve;
pub mod time;
pub mod trust;
pub mod upstream;
pub mod wire;
pub mod zones;
