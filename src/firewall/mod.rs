//! Firewalls: one trait, one table of backends, one folder each.
//!
//! A backend is driven by one thread, the granter. When [`Firewall::apply`] returns, the changes that it does
//! not list as failed are in force: "in the kernel", never "received".

use crate::grant::Change;
use crate::net::Element;
use crate::policy::Layout;
use crate::time::Tick;

/// One firewall.
pub trait Firewall: Send {
    /// The name from `[[firewall]]`; a metric label.
    fn name(&self) -> &str;

    /// Whether answers wait for it.
    fn required(&self) -> bool;

    /// Takes over whatever this node left in place before (or sets up anew), lays `layout` out, and lists the
    /// elements that are live with the time at which each ends. Called once before the doors open and again
    /// after [`Firewall::drifted`] said that somebody else changed something. No moment passes in which
    /// everything is open, or a live flow is cut.
    ///
    /// # Errors
    /// The firewall cannot be used.
    fn adopt(&mut self, layout: &Layout, now: Tick) -> Result<Vec<(Element, Tick)>, FirewallError>;

    /// Replaces the layout, atomically; elements stay.
    ///
    /// # Errors
    /// The old layout is still in force.
    fn arrange(&mut self, layout: &Layout) -> Result<(), FirewallError>;

    /// Applies changes, atomically where the backend can; the indexes of those that failed, in order. A failing
    /// change never takes another one down with it.
    ///
    /// # Errors
    /// None of the changes can be relied upon.
    fn apply(&mut self, changes: &[Change], now: Tick) -> Result<Vec<usize>, FirewallError>;

    /// Whether somebody else changed what is ours since the last call. Does not block.
    ///
    /// # Errors
    /// It cannot be told; the caller adopts again.
    fn drifted(&mut self) -> Result<bool, FirewallError>;
}

/// Why a firewall cannot be used. Each message is one sentence with its remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FirewallError {
    /// Not allowed to change the firewall.
    #[error(
        "changing nftables needs CAP_NET_ADMIN; run as root or grant it to the service (AmbientCapabilities=CAP_NET_ADMIN)"
    )]
    Forbidden,
    /// The table belongs to another live process.
    #[error("the table {0} is owned by another process; stop the other outgate first")]
    Owned(String),
    /// The kernel lacks something.
    #[error("the kernel does not support {0}; load or build in nf_tables, nft_ct, nft_reject_inet and nft_log")]
    Unsupported(String),
    /// No answer in time.
    #[error("no acknowledgement within the deadline")]
    Deadline,
    /// The kernel said no.
    #[error("{what}: {why}")]
    Kernel {
        /// What was tried.
        what: String,
        /// errno and the kernel's own message.
        why: String,
    },
}
