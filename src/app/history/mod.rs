//! History: what the query log says, as the index of flows takes it.

mod reading;
mod rules;

use std::net::IpAddr;

pub(super) use self::reading::Reading;
pub(super) use self::rules::{Segment, Sources, resolver, spared, statics};
use crate::audit::{Grant, Outcome, Query, RecordId, Recorded};
use crate::flow::{Denied, Detail, Ended, For, Index, Opened, QueryId, Told, Unlisted};
use crate::net::Services;
use crate::time::Wall;

/// How long what was told may hold where its record does not say: the greatest `ttl_max`, in seconds.
const LONGEST: u32 = 86_400;

/// One record, as far as flows are explained by it; it may go from one thread to another.
#[derive(Clone, Debug)]
pub(super) struct Fact {
    /// When its record was written, or little before; of a gap, where it begins.
    pub(super) at: Wall,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Asked(Asked),
    Granted(Granted),
    /// The log's first line: nothing was before.
    First,
    /// Records are missing from here to there.
    Gap(Wall),
    /// The log was still written here.
    Alive,
}

#[derive(Clone, Debug)]
struct Asked {
    client: IpAddr,
    segment: Option<Box<str>>,
    qname: Option<Box<str>>,
    rule: Option<Box<str>>,
    query: Option<QueryId>,
    /// Refused, and that counted.
    denied: bool,
    addresses: Vec<IpAddr>,
    unlisted: Unlisted,
    services: Vec<Services>,
    told_until: Wall,
    open_until: Wall,
}

#[derive(Clone, Debug)]
struct Granted {
    op: Op,
    to: For,
    segment: Box<str>,
    qname: Box<str>,
    rule: Box<str>,
    query: Option<QueryId>,
    address: IpAddr,
    services: Vec<Services>,
    until: Wall,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Open,
    Adopt,
    End,
}

impl Fact {
    /// What a record says; every record says at least that the log was alive, but for those of flows.
    fn of(record: Recorded<'_>) -> Option<Self> {
        match record {
            Recorded::Query(query) => Some(Self::query(query)),
            Recorded::Grant(grant) => {
                Some(Self { at: grant.at(), what: granted(grant).map_or(What::Alive, What::Granted) })
            }
            Recorded::Notice(notice) => {
                Some(Self { at: notice.at(), what: if notice.is_first() { What::First } else { What::Alive } })
            }
            Recorded::Flow(_) | Recorded::Policy(_) | Recorded::Missing => None,
        }
    }

    fn query(query: &Query<'_>) -> Self {
        // The answer left when its record was written.
        let at = Wall(query.at().0.saturating_add(query.latency_us));
        let observed = query.verdict == Outcome::Deny && !query.enforced;
        let (mut addresses, mut ttl) = (Vec::new(), None);
        let answered = query.verdict == Outcome::Allow || observed;
        if answered {
            for told in query.answers() {
                ttl = Some(ttl.map_or(told.ttl, |ttl: u32| ttl.min(told.ttl)));
                addresses.extend(told.address());
            }
        }
        let granted = query.grant();
        let unlisted = match answered && query.may_omit_addresses() {
            true if granted.is_some() => Unlisted::Opened,
            true => Unlisted::Unknown,
            false => Unlisted::None,
        };
        let ttl = match ttl {
            _ if addresses.is_empty() && unlisted == Unlisted::None => 0,
            ttl => ttl.unwrap_or(LONGEST),
        };
        let told_until = Wall(at.0.saturating_add(u64::from(ttl) * 1_000_000));
        // Where nothing had to be opened, everything is, as far as this node knows.
        let (services, open_until) = granted.unwrap_or_else(|| (vec![Services::Any], told_until));
        let text = |text: &Option<crate::audit::Text<'_>>| text.as_deref().map(Into::into);
        Self {
            at,
            what: What::Asked(Asked {
                client: query.client,
                segment: text(&query.segment),
                qname: text(&query.qname),
                // Where a segment observes, the rule is the one that would have refused.
                rule: if observed { None } else { text(&query.rule) },
                query: query.id.parse::<RecordId>().ok().map(Into::into),
                denied: query.verdict == Outcome::Deny && query.enforced,
                addresses,
                unlisted,
                services: if observed { vec![Services::Any] } else { services },
                told_until,
                open_until,
            }),
        }
    }

    /// That records are missing between two times, in whichever order.
    fn gap(one: Wall, other: Wall) -> Self {
        Self { at: one.min(other), what: What::Gap(one.max(other)) }
    }

    /// The time of which records are missing, where that is what it says.
    pub(super) const fn missing(&self) -> Option<(Wall, Wall)> {
        match self.what {
            What::Gap(to) => Some((self.at, to)),
            _ => None,
        }
    }

    /// The same of a client that stands under another address.
    pub(super) fn placed(mut self, place: &dyn Fn(IpAddr) -> IpAddr) -> Self {
        match &mut self.what {
            What::Asked(Asked { client, .. }) | What::Granted(Granted { to: For::Client(client), .. }) => {
                *client = place(*client);
            }
            _ => {}
        }
        self
    }

    /// Whether it is the first line that its node ever wrote.
    pub(super) const fn is_first(&self) -> bool {
        matches!(self.what, What::First)
    }

    /// Hands it to the index.
    pub(super) fn apply(&self, index: &mut Index) {
        match &self.what {
            What::Asked(asked) if asked.denied => index.denied(&Denied {
                at: self.at,
                client: asked.client,
                segment: asked.segment.as_deref(),
                qname: asked.qname.as_deref(),
            }),
            What::Asked(asked) => index.told(&Told {
                at: self.at,
                client: asked.client,
                segment: asked.segment.as_deref(),
                qname: asked.qname.as_deref().unwrap_or_default(),
                rule: asked.rule.as_deref().unwrap_or_default(),
                query: asked.query,
                addresses: &asked.addresses,
                unlisted: asked.unlisted,
                services: &asked.services,
                told_until: asked.told_until,
                open_until: asked.open_until,
            }),
            What::Granted(granted) => granted.apply(index, self.at),
            What::Gap(to) => index.gap(self.at, *to, Detail::LogGap),
            What::First | What::Alive => {}
        }
    }
}

impl Granted {
    fn apply(&self, index: &mut Index, at: Wall) {
        let Self { op, to, segment, qname, rule, query, address, services, until } = self;
        let (to, address, until) = (*to, *address, *until);
        if *op == Op::End {
            index.ended(&Ended { at, to, segment, qname, rule, address, services, until });
        } else {
            let (query, adopted) = (*query, *op == Op::Adopt);
            index.opened(&Opened { at, to, segment, qname, rule, query, address, services, until, adopted });
        }
    }
}

/// A change of a grant; `None`: of one that was never open, or of a kind that is not known.
fn granted(grant: &Grant<'_>) -> Option<Granted> {
    let (op, until) = match &*grant.op {
        "open" | "extend" => (Op::Open, grant.until()),
        "adopt" => (Op::Adopt, grant.until()),
        "shorten" => (Op::End, grant.until()),
        "revoke" => (Op::End, grant.at()),
        _ => return None,
    };
    Some(Granted {
        op,
        to: match &*grant.scope {
            "segment" => For::Segment,
            _ => For::Client(grant.client?),
        },
        segment: (&*grant.segment).into(),
        qname: (&*grant.qname).into(),
        rule: (&*grant.rule).into(),
        query: grant.query.as_deref().and_then(|id| id.parse::<RecordId>().ok()).map(Into::into),
        address: grant.address,
        services: grant.services(),
        until,
    })
}

#[cfg(test)]
mod tests;
