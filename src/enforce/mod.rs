//! Enforcer: the gateway's side of `kind = "remote"`.
//!
//! ```text
//! resolver ── mutual TLS ──► door ── one thread ──► desk: never granted? too many? journal, holds, firewall ──► kernel
//!                              └─ beats ──► hearing: may new flows be led through this gateway?
//! ```
//!
//! An order is answered when it is in the kernel. What is open is the longest of what any resolver wants (`holds`).

mod desk;
mod door;
mod hearing;
mod holds;
mod journal;

use std::sync::Arc;

use parking_lot::Mutex;
use tokio_rustls::rustls::pki_types::ServerName;

use self::desk::start;
pub use self::desk::{DeskParts, Figures};
pub use self::door::{Door, Entrance, Refusals};
use self::hearing::Hearing;
use crate::time::Clock;

/// Resolvers of one enforcer, at most.
pub const RESOLVERS: usize = 16;

impl Door {
    /// Takes the firewall over, and is ready to be served.
    ///
    /// # Errors
    /// The firewall, the state or a resolver's name cannot be used, in a sentence.
    pub fn open(parts: DeskParts) -> Result<Arc<Self>, String> {
        let (names, clock): (Vec<String>, Clock) = (parts.resolvers.clone(), parts.clock.clone());
        let named = |name: &String| match ServerName::try_from(name.clone()) {
            Ok(in_certificates) => Ok((name.clone(), in_certificates)),
            Err(_) => Err(format!("{name} is no name that a certificate could have")),
        };
        let resolvers = names.iter().map(named).collect::<Result<Vec<_>, _>>()?;
        let (tasks, figures) = start(parts)?;
        Ok(Arc::new(Self {
            connections: Mutex::new(resolvers.iter().map(|_| None).collect()),
            resolvers,
            hearing: Mutex::new(Hearing::new(&names, clock.tick())),
            tasks,
            figures,
            refusals: Refusals::default(),
            strangers: Mutex::default(),
            clock,
        }))
    }
}
