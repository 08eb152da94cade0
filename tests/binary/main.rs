//! The program itself on loopback: real processes, real sockets, as users and attackers meet them.
//!
//! Every test has a directory and ports of its own. What needs root prints "skipped" without it, and fails where
//! `CI=true`.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]
#![expect(clippy::disallowed_methods, reason = "real time, to bound what fails")]

#[path = "../collector/mod.rs"]
mod collector;
mod dns;
mod harness;
#[path = "../knot/mod.rs"]
mod knot;
#[path = "../programs/mod.rs"]
mod programs;
#[cfg(feature = "quic")]
mod quic;
mod tls;
mod upstream;

mod cache;
mod candidate;
mod cardinality;
mod certificates;
mod changes;
mod clients;
mod collectors;
mod convert;
mod cookies;
mod correlate;
mod crash;
mod dashboards;
mod diff;
mod differential;
mod disk;
mod dnssec;
mod dnstap;
mod doh;
#[cfg(feature = "quic")]
mod doh3;
#[cfg(feature = "quic")]
mod doq;
mod dot;
mod durability;
mod encrypted;
mod errors;
mod explain;
mod forwarder;
mod gateway;
mod import;
mod keytrap;
mod learn;
mod life;
mod outage;
mod packets;
mod peers;
mod pipelines;
mod policing;
mod probe;
mod reload;
mod report;
mod restart;
mod rotation;
mod serving;
mod streams;
mod syslog;
mod watch;
