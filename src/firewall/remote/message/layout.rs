//! A layout as it is told: in parts, each of which fits a frame.

use std::sync::Arc;

use prost::Message;

use crate::net::{Prefix, SegmentId, Services, parse_prefix};
use crate::policy::{Layout, SegmentLayout};
use crate::time::Wall;

/// Texts in one part, at most, as [`CHUNK`](super::CHUNK): 140 octets each, with a segment's name and an end, are less than a
/// frame may have, and beats go on in between.
const TEXTS: usize = super::CHUNK;

/// Texts of a piece that is not divided further.
const PIECE: usize = TEXTS / 4;

/// Texts of a layout, at most: what anybody who may drive an enforcer can make it keep.
const MOST: usize = 1 << 22;

/// A [`Layout`], or a part of one.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LayoutMessage {
    /// Every segment, sorted by name.
    #[prost(message, repeated, tag = "1")]
    pub segments: Vec<SegmentMessage>,
    /// Prefixes that are closed to everybody.
    #[prost(string, repeated, tag = "2")]
    pub denied: Vec<String>,
    /// What ends by itself: also where no resolver is heard by then.
    #[prost(message, repeated, tag = "3")]
    pub ends: Vec<EndMessage>,
    /// Which part this is, from 0.
    #[prost(uint32, tag = "4")]
    pub part: u32,
    /// Another part follows.
    #[prost(bool, tag = "5")]
    pub more: bool,
}

/// An end within a layout.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct EndMessage {
    /// The segment's name.
    #[prost(string, tag = "1")]
    pub segment: String,
    /// Its static rule, as in `networks`; empty: that everything passes.
    #[prost(string, tag = "2")]
    pub network: String,
    /// What is left, in microseconds.
    #[prost(uint64, tag = "3")]
    pub left: u64,
}

/// A [`SegmentLayout`], or a part of one.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SegmentMessage {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Everything passes.
    #[prost(bool, tag = "2")]
    pub observe: bool,
    /// Prefixes.
    #[prost(string, repeated, tag = "3")]
    pub sources: Vec<String>,
    /// Static rules: a prefix and its services, separated by spaces.
    #[prost(string, repeated, tag = "4")]
    pub networks: Vec<String>,
}

impl LayoutMessage {
    /// A layout as it is told at `now`.
    #[must_use]
    pub fn new(layout: &Layout, now: Wall) -> Self {
        let texts = |prefixes: &[Prefix]| prefixes.iter().map(ToString::to_string).collect();
        let network = |(prefix, services): &(Prefix, Services)| format!("{prefix} {services}");
        let end = |segment: &SegmentLayout, what: &Option<_>, end: &Wall| EndMessage {
            segment: segment.name.to_string(),
            network: what.as_ref().map(network).unwrap_or_default(),
            // The layout says that it has not ended.
            left: end.0.saturating_sub(now.0).max(1),
        };
        let segment = |segment: &SegmentLayout| SegmentMessage {
            name: segment.name.to_string(),
            observe: segment.observe,
            sources: texts(&segment.sources),
            networks: segment.networks.iter().map(network).collect(),
        };
        let ends = layout.segments.iter().flat_map(|one| one.ends.iter().map(move |(what, at)| end(one, what, at)));
        Self {
            segments: layout.segments.iter().map(segment).collect(),
            denied: texts(&layout.denied),
            ends: ends.collect(),
            ..Self::default()
        }
    }

    /// The same in parts, in the order in which they are told.
    #[must_use]
    pub fn parts(self) -> Vec<Self> {
        let mut parts = vec![Self::default()];
        let mut texts = 0;
        let mut add = |piece: Self| {
            let more = piece.texts();
            if texts + more > TEXTS {
                let part = u32::try_from(parts.len()).unwrap_or(u32::MAX);
                if let Some(last) = parts.last_mut() {
                    last.more = true;
                }
                parts.push(Self { part, ..Self::default() });
                texts = 0;
            }
            texts += more;
            if let Some(last) = parts.last_mut() {
                last.join(piece);
            }
        };
        for SegmentMessage { name, observe, sources, networks } in self.segments {
            let piece = |sources: &[String], networks: &[String]| {
                let (name, sources, networks) = (name.clone(), sources.to_vec(), networks.to_vec());
                Self { segments: vec![SegmentMessage { name, observe, sources, networks }], ..Self::default() }
            };
            add(piece(&[], &[]));
            sources.chunks(PIECE).for_each(|sources| add(piece(sources, &[])));
            networks.chunks(PIECE).for_each(|networks| add(piece(&[], networks)));
        }
        self.denied.chunks(PIECE).for_each(|denied| add(Self { denied: denied.to_vec(), ..Self::default() }));
        self.ends.chunks(PIECE).for_each(|ends| add(Self { ends: ends.to_vec(), ..Self::default() }));
        parts
    }

    fn texts(&self) -> usize {
        let of_segment = |segment: &SegmentMessage| 1 + segment.sources.len() + segment.networks.len();
        self.segments.iter().map(of_segment).sum::<usize>() + self.denied.len() + self.ends.len()
    }

    /// Adds what follows.
    fn join(&mut self, next: Self) {
        for segment in next.segments {
            match self.segments.last_mut().filter(|last| last.name == segment.name) {
                Some(last) => {
                    last.sources.extend(segment.sources);
                    last.networks.extend(segment.networks);
                }
                None => self.segments.push(segment),
            }
        }
        self.denied.extend(next.denied);
        self.ends.extend(next.ends);
    }

    /// What it stands for, without its ends; `None` where it cannot be read.
    #[must_use]
    pub fn read(&self) -> Option<Layout> {
        let prefixes = |texts: &[String]| texts.iter().map(|text| parse_prefix(text)).collect::<Option<Vec<_>>>();
        let segment = |segment: &SegmentMessage| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
            let is_name = (1..=63).contains(&segment.name.len()) && segment.name.chars().all(plain);
            Some(SegmentLayout {
                id: SegmentId::of(&segment.name),
                name: is_name.then(|| Arc::from(segment.name.as_str()))?,
                observe: segment.observe,
                sources: prefixes(&segment.sources)?,
                networks: segment.networks.iter().map(|text| read_network(text)).collect::<Option<_>>()?,
                ends: Vec::new(),
            })
        };
        self.ends.iter().map(EndMessage::network).collect::<Option<Vec<_>>>()?;
        let segments = self.segments.iter().map(segment).collect::<Option<_>>()?;
        Some(Layout { segments, denied: prefixes(&self.denied)? })
    }
}

fn read_network(text: &str) -> Option<(Prefix, Services)> {
    let (prefix, services) = text.split_once(' ')?;
    Some((parse_prefix(prefix)?, services.parse().ok()?))
}

impl EndMessage {
    /// The static rule that ends, if it is one; `None` where that cannot be read.
    #[expect(clippy::option_option, reason = "that there is none, and that it cannot be read, are two things")]
    fn network(&self) -> Option<Option<(Prefix, Services)>> {
        if self.network.is_empty() { Some(None) } else { read_network(&self.network).map(Some) }
    }

    /// Takes what ended out of a layout.
    pub fn take_from(&self, layout: &mut Layout) {
        let Some(segment) = layout.segments.iter_mut().find(|segment| *segment.name == *self.segment) else { return };
        match self.network() {
            Some(Some(ended)) => segment.networks.retain(|network| *network != ended),
            _ => segment.observe = false,
        }
    }
}

/// Parts of a layout as they come.
#[derive(Debug, Default)]
pub struct Gathering {
    whole: Option<LayoutMessage>,
    texts: usize,
}

impl Gathering {
    /// Adds a part to those that came before it: the whole, once it is there.
    ///
    /// # Errors
    /// Why it cannot be, in a sentence.
    pub fn add(&mut self, part: LayoutMessage) -> Result<Option<LayoutMessage>, String> {
        let (number, more) = (part.part, part.more);
        if number == 0 {
            (self.whole, self.texts) = (Some(LayoutMessage::default()), 0);
        }
        let follows = |before: &LayoutMessage| number == 0 || before.part.checked_add(1) == Some(number);
        let Some(mut whole) = self.whole.take().filter(follows) else {
            return Err("a part of a layout came without the one before it".into());
        };
        self.texts += part.texts();
        if self.texts > MOST {
            return Err(format!("a layout of more than {MOST} prefixes and rules; merge some of them"));
        }
        whole.join(part);
        whole.part = number;
        if more {
            self.whole = Some(whole);
            return Ok(None);
        }
        Ok(Some(whole))
    }
}

#[cfg(test)]
mod tests {
    use super::super::LONGEST;
    use super::*;

    #[test]
    fn a_layout_comes_as_it_was_told() {
        let segment = SegmentLayout {
            id: SegmentId::of("build"),
            name: "build".into(),
            observe: true,
            sources: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            networks: vec![("192.0.2.0/24".parse().unwrap(), "udp/1-9".parse().unwrap())],
            ends: Vec::new(),
        };
        let mut layout = Layout { segments: vec![segment], denied: vec!["203.0.113.0/24".parse().unwrap()] };
        let message = LayoutMessage::new(&layout, Wall(0));
        assert_eq!(message.read(), Some(layout.clone()));
        let mut hostile = message.clone();
        hostile.segments[0].name = "a\" accept; #".into();
        assert_eq!(hostile.read(), None);
        let network = layout.segments[0].networks[0];
        layout.segments[0].ends = vec![(None, Wall(9)), (Some(network), Wall(7))];
        let told = LayoutMessage::new(&layout, Wall(7));
        assert_eq!(told.ends.iter().map(|end| end.left).collect::<Vec<_>>(), [2, 1], "it has not ended yet");
        let mut read = told.read().unwrap();
        assert_eq!(Some(read.clone()), message.read());
        told.ends.iter().for_each(|end| end.take_from(&mut read));
        assert!(!read.segments[0].observe && read.segments[0].networks.is_empty());
        let mut hostile = told;
        hostile.ends[1].network = "192.0.2.0/24".into();
        assert_eq!(hostile.read(), None);
    }

    #[test]
    fn however_much_it_is_each_part_fits_a_frame() {
        let texts = |count: usize, text: String| vec![text; count];
        let long = "2001:db8:1000:2000:3000:4000:5000:6000/128".to_owned();
        let (name, rule) = ("s".repeat(63), format!("{long} tcp/10000-20000"));
        let end = EndMessage { segment: name.clone(), network: rule.clone(), left: u64::MAX };
        let large = SegmentMessage {
            name: name.clone(),
            observe: true,
            sources: texts(200_000, long.clone()),
            networks: texts(150_000, rule),
        };
        let small = |number: usize| SegmentMessage {
            name: format!("{number:063}"),
            sources: texts(1, long.clone()),
            ..SegmentMessage::default()
        };
        let mut segments: Vec<_> = (0..50_000).map(small).collect();
        segments.push(large);
        let whole = LayoutMessage {
            segments,
            denied: texts(1000, long.clone()),
            ends: vec![end; 150_000],
            ..LayoutMessage::default()
        };
        assert!(whole.encoded_len() > 2 * LONGEST);
        let parts = whole.clone().parts();
        let (mut gathering, mut came) = (Gathering::default(), None);
        for part in parts.clone() {
            assert!(part.encoded_len() < LONGEST, "{}", part.encoded_len());
            assert!(came.is_none());
            came = gathering.add(part).unwrap();
        }
        let came = LayoutMessage { part: 0, ..came.unwrap() };
        assert!(came == whole);
        // Those of a connection that ended are no part of the next, and none is left out.
        for (at, is_taken) in [(0, true), (2, false), (1, false), (0, true), (0, true), (1, true)] {
            assert_eq!(gathering.add(parts[at].clone()).is_ok(), is_taken, "{at}");
        }
        assert_eq!(gathering.whole.map(|whole| whole.part), Some(1));
        assert_eq!(LayoutMessage::default().parts(), [LayoutMessage::default()]);
    }

    #[test]
    fn a_layout_has_an_end() {
        let mut gathering = Gathering::default();
        let part = |part| LayoutMessage {
            denied: vec![String::new(); MOST / 4],
            part,
            more: true,
            ..LayoutMessage::default()
        };
        for number in 0..4 {
            assert_eq!(gathering.add(part(number)), Ok(None));
        }
        let why = gathering.add(part(4)).unwrap_err();
        assert!(why.starts_with("a layout of more than 4194304 prefixes"), "{why}");
        assert!(gathering.whole.is_none());
    }
}
