//! Wiring: the configuration, the node, one file per command-line verb.

mod changes;
pub mod cli;
mod config;
mod cookies;
mod flow;
mod history;
mod load;
mod node;
mod notify;
mod peers;
mod promotion;
mod sockets;
mod start;
mod verb;
mod watch;

pub use cli::main;
