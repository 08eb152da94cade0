//! History: what the query log says, as the index of flows takes it.

use std::net::IpAddr;

use crate::audit::{Grant, Outcome, Query, RecordId, Recorded};
use crate::flow::{Denied, Detail, Ended, For, Index, Opened, QueryId, Static, Told};
use crate::net::{Prefix, Services};
use crate::policy::{Action, Policy};
use crate::time::Wall;

/// One record, as far as flows are explained by it; it may go from one thread to another.
#[derive(Clone, Debug)]
pub(super) struct Fact {
    /// When its record was written, or little before.
    pub(super) at: Wall,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Asked(Asked),
    Granted(Granted),
    /// The log's first line: nothing was before.
    First,
    /// Lines may be missing before here.
    Gap,
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
    pub(super) fn of(record: Recorded<'_>) -> Option<Self> {
        match record {
            Recorded::Query(query) => Some(Self::query(query)),
            Recorded::Grant(grant) => {
                Some(Self { at: grant.at(), what: granted(grant).map_or(What::Alive, What::Granted) })
            }
            Recorded::Notice(notice) => Some(Self {
                at: notice.at(),
                what: match &*notice.op {
                    _ if notice.is_first() => What::First,
                    // Somebody else moved or cut the file: what was in it may be gone.
                    "gap" | "reopen" => What::Gap,
                    _ => What::Alive,
                },
            }),
            Recorded::Flow(_) | Recorded::Policy(_) => None,
        }
    }

    fn query(query: &Query<'_>) -> Self {
        // The answer left when its record was written.
        let at = Wall(query.at().0.saturating_add(query.latency_us));
        let observed = query.verdict == Outcome::Deny && !query.enforced;
        let (mut addresses, mut ttl) = (Vec::new(), u32::MAX);
        if query.verdict == Outcome::Allow || observed {
            for told in query.answers() {
                ttl = ttl.min(told.ttl);
                addresses.extend(told.address());
            }
        }
        if addresses.is_empty() {
            ttl = 0;
        }
        let told_until = Wall(at.0.saturating_add(u64::from(ttl) * 1_000_000));
        // Where nothing had to be opened, everything is, as far as this node knows.
        let (services, open_until) = query.grant().unwrap_or_else(|| (vec![Services::Any], told_until));
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
                services: if observed { vec![Services::Any] } else { services },
                told_until,
                open_until,
            }),
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

    /// Hands it to the index. `last` is when the log said something before.
    pub(super) fn apply(&self, index: &mut Index, last: Wall) {
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
                services: &asked.services,
                told_until: asked.told_until,
                open_until: asked.open_until,
            }),
            What::Granted(granted) => granted.apply(index, self.at),
            What::Gap => index.gap(last, self.at, Detail::LogGap),
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

/// What a policy opens without look-ups.
pub(super) fn statics(policy: &Policy) -> Vec<Static> {
    let mut statics = Vec::new();
    for (segment, rule) in policy.network_rules().filter(|(_, rule)| rule.action == Action::Allow) {
        statics.extend(rule.networks.iter().map(|network| Static {
            segment: Some((&*segment.name).into()),
            rule: Some((&*rule.id).into()),
            network: *network,
            services: rule.ports.clone(),
            until: rule.expires,
        }));
    }
    statics
}

/// The address of a resolver.
pub(super) fn resolver(address: IpAddr) -> Static {
    Static { segment: None, rule: None, network: Prefix::from(address), services: vec![Services::Any], until: None }
}
