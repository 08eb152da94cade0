//! What is known, and for whom it is open: two tables, not one.
//!
//! [`Answers`] maps (upstream view, name, type) to what upstream said; [`Cover`] maps (who, name, type) to the
//! prepared reply and the moment until which its addresses are open for that client. A new client of a known
//! name misses `Cover` and goes to *offer*; it never asks upstream again. [`Failures`] remembers what upstream did not
//! answer. Each door's thread has a [`Local`] in front of
//! `Cover`: the few that it told last.

mod answers;
mod cover;
mod failures;
mod flush;
mod local;
mod named;
mod questions;
mod settings;
mod shards;

pub use answers::{Answers, Found, Known};
pub use cover::{Asked, Cover, Covered, Held, Reply, Until, Who};
pub use failures::{Failures, Lately};
pub use flush::{Flush, Flushed};
pub use local::{LOCAL_BYTES, Local, Wanted};
pub use named::{Named, Names};
pub use settings::Settings;
