//! Who serves names here, besides the upstreams for everything: local zones, and upstreams that were named for a zone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Segment;
use super::index::Audience;
use super::load::number;
use super::verdict::SegmentIndex;
use crate::name::{Name, ancestors};

/// A zone that is served here.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its apex.
    pub apex: Name,
    /// Who answers for it.
    pub server: Server,
}

/// Who answers for a zone.
#[derive(Clone, Debug)]
pub enum Server {
    /// This node, from a file.
    Zone,
    /// An upstream whose `zones` names it, for these segments; none: for all.
    Upstream(Vec<Arc<str>>),
}

/// Who serves one apex.
#[derive(Debug)]
struct Served {
    zone: bool,
    /// The segments that an upstream answers for.
    upstream: Audience,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Sites {
    served: HashMap<Name, Served>,
    /// Every name above one of them.
    above: HashSet<Name>,
}

impl Sites {
    pub(super) fn new(sites: &[Site], segments: &[Segment]) -> Self {
        let mut all = Self::default();
        for Site { apex, server } in sites {
            let nobody = || Served { zone: false, upstream: Audience::Listed(Arc::default()) };
            let served = all.served.entry(apex.clone()).or_insert_with(nobody);
            match server {
                Server::Zone => served.zone = true,
                Server::Upstream(names) if names.is_empty() => served.upstream = Audience::All,
                Server::Upstream(names) => {
                    if let Audience::Listed(known) = &served.upstream {
                        let named = segments.iter().enumerate().filter(|(_, segment)| names.contains(&segment.name));
                        let named = named.map(|(at, _)| number(at, SegmentIndex));
                        let mut listed: Vec<_> = known.iter().copied().chain(named).collect();
                        listed.sort_unstable();
                        listed.dedup();
                        served.upstream = Audience::Listed(listed.into());
                    }
                }
            }
            let mut parent = apex.parent();
            while let Some(above) = parent {
                parent = above.parent();
                all.above.insert(above);
            }
        }
        all
    }

    /// Every zone that is served here, and for whom an upstream serves it.
    pub(super) fn each(&self) -> impl Iterator<Item = (&Name, &Audience)> {
        self.served.iter().map(|(apex, served)| (apex, &served.upstream))
    }

    /// Whether `name` is answered here for this segment, or by an upstream for a zone at `top` or below it: as the local
    /// zones and the upstreams themselves look for it.
    pub(super) fn serve(&self, segment: SegmentIndex, name: &[u8], top: &Name) -> bool {
        self.holds(name) || self.upstream_within(name, top, |upstream| upstream.contains(segment))
    }

    /// Whether `name` is in a local zone. What an upstream serves within a zone is not of it.
    pub(super) fn holds(&self, name: &[u8]) -> bool {
        ancestors(name).find_map(|above| self.served.get(above)).is_some_and(|served| served.zone)
    }

    fn upstream_within(&self, name: &[u8], top: &Name, serves: impl Fn(&Audience) -> bool) -> bool {
        let within = ancestors(name).take_while(|above| above.len() >= top.as_wire().len());
        within.filter_map(|above| self.served.get(above)).any(|served| serves(&served.upstream))
    }

    /// Whether `name` is in a zone that is served here for anybody; the upstream for everything does not count.
    pub(super) fn own(&self, name: &Name) -> bool {
        let nobody = |upstream: &Audience| matches!(upstream, Audience::Listed(listed) if listed.is_empty());
        let top = name.labels().last().and_then(|label| Name::root().child(label).ok());
        let within = |top: &Name| self.upstream_within(name.as_wire(), top, |upstream| !nobody(upstream));
        self.holds(name.as_wire()) || top.is_some_and(|top| within(&top))
    }

    /// Whether `name` is above a zone that is served here.
    pub(super) fn lie_below(&self, name: &[u8]) -> bool {
        self.above.contains(name)
    }

    /// Whether anybody serves `name` for any segment, or a name below it.
    pub(super) fn concern(&self, name: &Name, top: &Name) -> bool {
        let wire = name.as_wire();
        let anybody = |upstream: &Audience| !matches!(upstream, Audience::Listed(listed) if listed.is_empty());
        self.lie_below(wire) || self.holds(wire) || self.upstream_within(wire, top, anybody)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{name, policy};

    #[test]
    fn what_is_served_here_is_what_zones_and_upstreams_would_answer() {
        let policy = policy("[[segment]]\nname = \"a\"\n[[segment]]\nname = \"b\"\n");
        let [a, b] = [0, 1].map(SegmentIndex);
        let site = |apex: &str, server| Site { apex: name(apex), server };
        let only_b = || Server::Upstream(vec![Arc::from("b")]);
        let sites = [
            site("corp.internal", Server::Zone),
            site("dev.corp.internal", only_b()),
            site("x.test", Server::Upstream(Vec::new())),
            site("test", only_b()),
            site(".", Server::Upstream(Vec::new())),
        ];
        let sites = Sites::new(&sites, policy.segments());
        let rows = [
            ("www.corp.internal", "internal", [true, true], "a local zone"),
            ("corp.internal", "internal", [true, true], "its apex"),
            ("other.internal", "internal", [false, false], "the upstream for everything counts not"),
            ("www.dev.corp.internal", "internal", [false, true], "an upstream within the zone, for one segment"),
            ("y.x.test", "test", [true, true], "an upstream for all segments"),
            ("y.test", "test", [false, true], "an upstream for one"),
        ];
        for (asked, top, expected, reason) in rows {
            let serve = |segment| sites.serve(segment, name(asked).as_wire(), &name(top));
            assert_eq!([serve(a), serve(b)], expected, "{asked}: {reason}");
        }
        assert!(sites.lie_below(name("internal").as_wire()) && !sites.lie_below(name("x.test").as_wire()));
        let concern = |asked: &str, top: &str| sites.concern(&name(asked), &name(top));
        assert!(concern("internal", "internal") && concern("z.y.test", "test"));
        assert!(!concern("other.internal", "internal") && !concern("local", "local"));
    }
}
