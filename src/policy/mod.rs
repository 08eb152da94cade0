//! Policy: text → rules → index, and the three questions put to it: [`Policy::asker`] (who is this),
//! [`decide`] (may this be resolved), [`inspect`] (may these addresses be opened).
//!
//! Pure: takes text and values, returns values; opens no file, reads no clock.

mod verdict;

use std::net::IpAddr;
use std::sync::Arc;

use crate::net::{Prefix, SegmentId, Services};
use crate::record::{Answer, RecordType};
pub use verdict::{
    Asker, Basis, Cleared, Opening, Permit, Reason, Refusal, RuleIndex, SegmentIndex, Shown, Verdict, Withheld,
};

/// A compiled policy: immutable, numbered, shared.
#[derive(Debug)]
pub struct Policy {
    segments: Vec<Segment>,
}

/// A set of clients with common rules.
#[derive(Debug)]
pub struct Segment {
    /// Unique name.
    pub name: Arc<str>,
    /// Its number in the kernel.
    pub id: SegmentId,
    /// Tags in key order; `tags_json` is the same as one JSON object, empty where there are none.
    pub tags: Vec<(String, String)>,
    /// See `tags`.
    pub tags_json: Box<str>,
    /// Names that policy refuses resolve, flows that it would refuse pass, both recorded.
    pub observe: bool,
}

/// What the firewalls must know of a policy besides grants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Every segment, sorted by name.
    pub segments: Vec<SegmentLayout>,
}

/// One segment as a firewall sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentLayout {
    /// The segment's number.
    pub id: SegmentId,
    /// Its name, `[A-Za-z0-9_.-]`, at most 63 characters; in log prefixes.
    pub name: Arc<str>,
    /// Everything passes and is logged.
    pub observe: bool,
    /// Where its flows come from. Prefixes of different segments may nest: the longest wins.
    pub sources: Vec<Prefix>,
    /// Static rules for addresses (`networks` rules).
    pub networks: Vec<(Prefix, Services)>,
}

impl Policy {
    /// 64 bits of the SHA-256 of every file's name and text: the `policy` of a record.
    #[must_use]
    pub fn revision(&self) -> u64 {
        todo!()
    }

    /// Who asks from this address: the forwarder's segment where it is a forwarder, else the segment with the
    /// longest prefix; `None` where there is none.
    #[must_use]
    pub fn asker(&self, _peer: IpAddr) -> Option<Asker> {
        todo!()
    }

    /// The segment of an asker of this policy.
    #[must_use]
    pub fn segment(&self, asker: Asker) -> &Segment {
        #[expect(clippy::indexing_slicing, reason = "an Asker is made by its own policy from its own table")]
        &self.segments[asker.segment.0 as usize]
    }

    /// A rule's id.
    #[must_use]
    pub fn rule_id(&self, _rule: RuleIndex) -> &Arc<str> {
        todo!()
    }

    /// The name of the forwarder that asked, if one did.
    #[must_use]
    pub fn forwarder(&self, _asker: Asker) -> Option<&Arc<str>> {
        todo!()
    }

    /// What the firewalls must know.
    #[must_use]
    pub fn layout(&self) -> Layout {
        todo!()
    }

    /// The rule by which this policy would grant `element` on `basis` today; `None`: it would not (I6).
    #[must_use]
    pub fn upholds(&self, _basis: &Basis, _element: &crate::net::Element) -> Option<RuleIndex> {
        todo!()
    }
}

/// May this question be resolved? Allocates nothing for a refusal.
#[must_use]
pub fn decide(_policy: &Arc<Policy>, _asker: Asker, _name: &[u8], _kind: RecordType) -> Verdict {
    todo!()
}

/// May these addresses be opened, and what of the answer may be told?
#[must_use]
pub fn inspect(_permit: Permit, _answer: Answer) -> Cleared {
    todo!()
}
