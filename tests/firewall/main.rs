//! The nftables backend against this machine's kernel, in network namespaces that end with their threads.
//!
//! Needs root and the programs `nft` and `ip`; without them a test says so and passes, but fails where `CI=true`.

#![expect(clippy::unwrap_used, reason = "tests")]

mod cutting;
mod elements;
mod flows;
mod kernel;
mod network;
mod witness;
