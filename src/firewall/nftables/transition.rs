//! From what is in the table to what a layout wants there, without a moment in between.
//!
//! The rules of a packet are those of one instant: the kernel swaps all chains at once. What is in a set is not so
//! everywhere. On Linux 5.10 and 6.1 an interval set finds nothing where an element that is being added, or taken away, lies
//! nearer to the address than the one that holds it (net/netfilter/nft_set_rbtree.c; mended in steps later); that is so from
//! the moment the element is read until the transaction is done, seconds of a large one. A new set of concatenated ranges
//! is empty until the rest of its transaction is done (nft_set_pipapo.c).
//!
//! So a set that rules look at is not changed: another one, under another name, takes its place, in three transactions.
//! The first makes and fills what is new, and no rule looks at it. The second changes rules and nothing else. The third
//! takes away what no rule looks at any more: a packet that began under the old rules has found all that they name.

use std::collections::{HashMap, HashSet};

use super::ruleset::{self, Chain};
use super::sets::{self, Content, Fill, Names, Shape};
use super::wire::{Batch, Verb};
use super::{Hook, Settings};
use crate::policy::Layout;

/// What is in the table, so far as a layout decides it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InForce {
    pub(super) layout: Layout,
    pub(super) names: Names,
}

/// What is there before something is written.
pub(super) enum There {
    /// What this process wrote, and nobody has touched it since.
    Known(InForce),
    /// What the kernel lists.
    Listed { sets: Vec<sets::Present>, chains: Vec<ruleset::Present> },
}

/// A part of what is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// New sets and chains, and what is in the sets.
    Make,
    /// Rules that are of another layout go.
    Empty,
    /// Rules of this layout come.
    Rule,
    /// Sets and chains that no rule names any more go.
    Clear,
}

/// Each is a transaction. With rules of ours they change between what stands beside each other.
const APART: &[&[Part]] = &[&[Part::Make], &[Part::Empty, Part::Rule], &[Part::Clear]];
/// Where what is new has the name of what is old: the rules are the operator's, who knows the sets by their names; or an
/// outgate of another version made the table.
const AT_ONCE: &[&[Part]] = &[&[Part::Empty, Part::Clear, Part::Make, Part::Rule]];

/// The way from one to the other.
pub(super) struct Transition<'a> {
    settings: &'a Settings,
    names: Names,
    fill: Fill<'a>,
    /// Sets to be made, or to be had in another size.
    shapes: Vec<Shape>,
    /// Sets that stay.
    kept: Vec<Shape>,
    unfit: Vec<String>,
    chains: Vec<New<'a>>,
    gone: Vec<String>,
    /// Every rule of the table goes.
    all_rules: bool,
    steps: &'static [&'static [Part]],
}

/// A chain whose rules are written.
struct New<'a> {
    chain: Chain<'a>,
    is_there: bool,
}

impl<'a> Transition<'a> {
    /// What leads from `there` to `layout`.
    pub(super) fn new(settings: &'a Settings, layout: &'a Layout, there: &There) -> Self {
        // With hook sets the chains, and whatever else is in the table, are the operator's.
        let theirs = settings.hook == Hook::Sets;
        let before = match there {
            There::Known(before) => Some(before),
            There::Listed { .. } => None,
        };
        let stale = Content::stale(layout, before.map(|before| &before.layout));
        let mut names = before.map(|before| before.names.clone()).unwrap_or_default();
        if !theirs {
            for content in &stale {
                names.renew(*content, |name| match there {
                    There::Known(before) => before.names.of(*content) == name,
                    There::Listed { sets, .. } => sets.iter().any(|set| set.name == name),
                });
            }
        }
        let wanted = sets::shapes(settings, &names);
        let (kept, shapes, unfit) = match there {
            There::Known(before) => {
                let old = stale.iter().map(|content| before.names.of(*content));
                let unfit: Vec<_> = old.filter(|_| !theirs).collect();
                let is_new = |shape: &Shape| !theirs && stale.iter().any(|content| names.of(*content) == shape.name);
                let (shapes, kept) = wanted.into_iter().partition(is_new);
                (kept, shapes, unfit)
            }
            There::Listed { sets, .. } => {
                let (kept, new): (Vec<_>, Vec<_>) =
                    wanted.into_iter().partition(|shape| sets.iter().any(|old| shape.fits(old)));
                let ours = |old: &&sets::Present| !theirs || new.iter().any(|shape| shape.name == old.name);
                let unfit =
                    |old: &&sets::Present| !old.is_anonymous() && kept.iter().all(|shape| shape.name != old.name);
                let unfit = sets.iter().filter(unfit).filter(ours).map(|old| old.name.clone()).collect();
                let resized = |shape: &&Shape| sets.iter().any(|old| shape.resizes(old));
                let shapes = kept.iter().filter(resized).cloned().chain(new.iter().cloned()).collect();
                (kept, shapes, unfit)
            }
        };
        let mut transition = Self {
            settings,
            fill: Fill::new(settings, layout, stale.clone()),
            names,
            shapes,
            kept,
            unfit,
            chains: Vec::new(),
            gone: Vec::new(),
            all_rules: false,
            steps: APART,
        };
        transition.compare_chains(layout, there, &stale);
        let rebuilt = |new: &New<'_>| !new.is_there && transition.gone.contains(&new.chain.name);
        let renewed = |shape: &Shape| transition.unfit.contains(&shape.name);
        if theirs || transition.chains.iter().any(rebuilt) || transition.shapes.iter().any(renewed) {
            transition.steps = AT_ONCE;
        }
        transition
    }

    /// Finds which chains are written, and which go.
    fn compare_chains(&mut self, layout: &'a Layout, there: &There, stale: &[Content]) {
        // A chain has the rules that it had, unless they look at a set that another one takes the place of.
        let looks = |chain: &Chain<'_>| chain.sets().iter().any(|content| stale.contains(content));
        match there {
            // What is denied changes at once, however many segments there are.
            There::Known(before) if before.layout.segments == layout.segments => {
                let chains = ruleset::common(self.settings, layout).into_iter().filter(looks);
                self.chains = chains.map(|chain| New { chain, is_there: true }).collect();
            }
            There::Known(before) => {
                let chains = ruleset::chains(self.settings, layout);
                let old = ruleset::chains(self.settings, &before.layout);
                let names: HashSet<&str> = chains.iter().map(|chain| chain.name.as_str()).collect();
                let gone = old.iter().filter(|chain| !names.contains(chain.name.as_str()));
                self.gone = gone.map(|chain| chain.name.clone()).collect();
                let old: HashMap<&str, &Chain<'_>> = old.iter().map(|chain| (chain.name.as_str(), chain)).collect();
                for chain in chains {
                    let found = old.get(chain.name.as_str());
                    if found.is_none_or(|found| **found != chain) || looks(&chain) {
                        self.chains.push(New { is_there: found.is_some(), chain });
                    }
                }
            }
            There::Listed { chains: found, .. } => {
                let found: &[ruleset::Present] = if self.settings.hook == Hook::Sets { &[] } else { found };
                let chains = ruleset::chains(self.settings, layout);
                let kept: HashSet<ruleset::Present> = chains.iter().map(Chain::present).collect();
                let gone = found.iter().filter(|found| !kept.contains(found));
                self.gone = gone.map(|found| found.name.clone()).collect();
                self.all_rules = !found.is_empty();
                let found: HashSet<&ruleset::Present> = found.iter().collect();
                let new = |chain: Chain<'a>| New { is_there: found.contains(&chain.present()), chain };
                self.chains = chains.into_iter().map(new).collect();
            }
        }
    }

    /// How many transactions it takes.
    pub(super) fn steps(&self) -> usize {
        self.steps.len()
    }

    /// The messages of one of them.
    pub(super) fn write(&self, batch: &mut Batch, step: usize) {
        for part in self.steps.get(step).into_iter().copied().flatten() {
            match part {
                Part::Make => self.make(batch),
                Part::Empty => self.empty(batch),
                Part::Rule => {
                    self.chains.iter().for_each(|new| new.chain.fill(batch, self.settings, &self.names));
                }
                Part::Clear => self.clear(batch),
            }
        }
    }

    /// Under which names the sets stand then.
    pub(super) fn into_names(self) -> Names {
        self.names
    }

    fn make(&self, batch: &mut Batch) {
        self.fill.flush(batch, &self.kept, &self.names);
        for (number, shape) in (1..).zip(&self.shapes) {
            shape.create(batch, &self.settings.table, number);
        }
        for new in self.chains.iter().filter(|new| !new.is_there) {
            new.chain.create(batch, &self.settings.table);
        }
        self.fill.write(batch, &self.names);
    }

    fn empty(&self, batch: &mut Batch) {
        let table = self.settings.table.as_str();
        if self.all_rules {
            return batch.message(Verb::DeleteRule, 0, |a| a.text(1, table));
        }
        for new in self.chains.iter().filter(|new| new.is_there) {
            batch.message(Verb::DeleteRule, 0, |a| {
                a.text(1, table);
                a.text(2, &new.chain.name);
            });
        }
    }

    fn clear(&self, batch: &mut Batch) {
        let table = self.settings.table.as_str();
        // A map of verdicts holds on to the chains that it leads to.
        for set in &self.unfit {
            batch.message(Verb::DeleteElements, 0, |a| {
                a.text(1, table);
                a.text(2, set);
            });
        }
        for chain in &self.gone {
            batch.message(Verb::DeleteChain, 0, |a| {
                a.text(1, table);
                a.text(3, chain);
            });
        }
        for set in &self.unfit {
            batch.message(Verb::DeleteSet, 0, |a| {
                a.text(1, table);
                a.text(2, set);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::wire::{Message, Messages, text};
    use super::*;
    use crate::net::{Prefix, SegmentId, Services};
    use crate::policy::SegmentLayout;

    fn segment(name: &str, source: &str, networks: &[(Prefix, Services)]) -> SegmentLayout {
        SegmentLayout {
            id: SegmentId::of(name),
            name: Arc::from(name),
            observe: false,
            sources: vec![source.parse().unwrap()],
            networks: networks.to_vec(),
            ends: Vec::new(),
        }
    }

    /// The transactions that lead on: of every message its type's low byte, and the names of chain and set in it.
    type Told = Vec<Vec<(u8, Vec<String>)>>;

    fn told(layout: &Layout, there: &There) -> (Told, InForce) {
        let settings = Settings::new(Hook::Forward);
        let transition = Transition::new(&settings, layout, there);
        let names = |message: &Message<'_>| {
            let texts = message.attributes().filter(|(kind, _)| (2..=3).contains(kind));
            texts.filter_map(|(_, value)| text(value).map(str::to_owned)).collect()
        };
        let step = |step| {
            let mut batch = Batch::new(1);
            transition.write(&mut batch, step);
            let sealed = batch.finish();
            let messages = Messages(&sealed.bytes).filter(Message::is_nf_tables);
            messages.map(|message| (message.kind.to_le_bytes()[0], names(&message))).collect()
        };
        let told = (0..transition.steps()).map(step).collect();
        (told, InForce { layout: layout.clone(), names: transition.into_names() })
    }

    fn fresh() -> There {
        There::Listed { sets: Vec::new(), chains: Vec::new() }
    }

    #[test]
    fn only_what_differs_is_written_again() {
        let segments = vec![segment("a", "192.0.2.0/24", &[]), segment("b", "198.51.100.0/24", &[])];
        let old = Layout { segments, ..Layout::default() };
        let mut new = old.clone();
        new.segments[1].observe = true;
        new.segments.push(segment("c", "203.0.113.0/24", &[]));
        let known = |layout| There::Known(told(layout, &fresh()).1);
        let touched = |before: &There, after: &Layout| {
            let (told, _) = told(after, before);
            let mut chains: Vec<_> = told.into_iter().flatten().flat_map(|(_, names)| names).collect();
            chains.retain(|name| name.contains('_'));
            chains.sort_unstable();
            chains.dedup();
            chains
        };
        assert_eq!(touched(&known(&old), &new), ["segment_b", "segment_c"]);
        assert_eq!(touched(&known(&new), &old), ["segment_b", "segment_c"]);
        assert_eq!(touched(&known(&new), &new), [""; 0]);
        assert_eq!(touched(&fresh(), &new), ["segment_a", "segment_b", "segment_c"]);
        let rules =
            |before: &There, after| told(after, before).0.iter().flatten().filter(|(verb, _)| *verb == 6).count();
        assert_eq!(rules(&known(&new), &new), 0);
        assert!(rules(&known(&old), &new) < rules(&fresh(), &new) / 2);
    }

    #[test]
    fn no_set_is_changed_while_rules_look_at_it() {
        let static_rule = [("203.0.113.0/24".parse().unwrap(), Services::Any)];
        let a = || segment("a", "192.0.2.0/24", &static_rule);
        let b = |networks| segment("b", "192.0.2.128/25", networks);
        let denied = vec!["203.0.113.7/32".parse().unwrap()];
        let layouts = [
            Layout { segments: vec![a()], ..Layout::default() },
            Layout { segments: vec![a(), b(&[])], ..Layout::default() },
            Layout { segments: vec![a(), b(&[])], denied: denied.clone() },
            Layout { segments: vec![a(), b(&static_rule)], denied },
            Layout { segments: vec![a()], ..Layout::default() },
        ];
        let sets = |names: &Names| -> HashSet<String> {
            Content::stale(&Layout::default(), None).into_iter().map(|content| names.of(content)).collect()
        };
        let (_, mut before) = told(&layouts[0], &fresh());
        for layout in &layouts[1..] {
            let old = sets(&before.names);
            let (told, after) = told(layout, &There::Known(before));
            let new = sets(&after.names);
            let [make, rule, clear] = &told[..] else { panic!("{told:?}") };
            let named = |step: &[(u8, Vec<String>)]| -> HashSet<String> {
                step.iter().flat_map(|(_, names)| names.clone()).collect()
            };
            assert!(old != new && named(make).is_disjoint(&old), "{make:?}");
            assert!(rule.iter().all(|(verb, _)| [6, 8].contains(verb)), "{rule:?}");
            assert!(named(clear).is_disjoint(&new), "{clear:?}");
            let gone: HashSet<_> =
                clear.iter().filter(|(verb, _)| *verb == 11).flat_map(|(_, names)| names.clone()).collect();
            assert_eq!(gone, old.difference(&new).cloned().collect());
            before = after;
        }
    }
}
