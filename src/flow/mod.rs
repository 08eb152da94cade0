//! Flow: what really went out, and which look-up or rule it went out by.

mod words;

pub use words::{Carrier, Class, Detail, Origin, QueryId};
