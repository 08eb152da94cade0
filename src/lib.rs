//! Outgate: the DNS server of a network that is closed by default.

pub mod app;
pub mod audit;
pub mod cache;
pub mod document;
pub mod firewall;
pub mod gate;
pub mod grant;
pub mod metric;
pub mod name;
pub mod net;
pub mod policy;
pub mod record;
pub mod serve;
pub mod time;
pub mod upstream;
pub mod wire;
pub mod zones;
