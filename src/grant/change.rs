//! What a firewall is told.

use crate::net::Element;
use crate::time::Tick;

/// One change of one element. Applying it twice does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Let the element be live until `until`, whether it was there or not, later or sooner than before.
    Open {
        /// Which element.
        element: Element,
        /// When the kernel drops it by itself.
        until: Tick,
    },
    /// Let the element be gone, whether it was there or not.
    Close {
        /// Which element.
        element: Element,
    },
}

impl Change {
    /// The element that changes.
    #[must_use]
    pub const fn element(&self) -> &Element {
        match self {
            Self::Open { element, .. } | Self::Close { element } => element,
        }
    }
}
