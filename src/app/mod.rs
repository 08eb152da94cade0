//! Wiring: the configuration, the node, one file per command-line verb.

mod changes;
pub mod cli;
mod config;
mod cookies;
mod load;
mod node;
mod start;
mod verb;

pub use cli::main;
