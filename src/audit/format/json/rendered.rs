//! Rendered: what a prepared reply's record says each time that the reply is told, rendered once.

use super::line::{Line, key, open};
use super::{AFTER_ANSWERS, MAX_LINE, end_answers, figures};
use crate::audit::{RecordId, Statement};

/// A [`Statement`] as it stands in every line that makes it; in memory, about as many bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The parts of [`Part`] one behind the other, then a [`Place`] for each answer.
    bytes: Box<[u8]>,
    /// Where each part ends.
    ends: [u16; Part::ALL],
    /// How many answers there are. Those that would fit no line are not in `bytes`.
    answers: usize,
    /// There is a response code.
    replied: bool,
    origin: Option<RecordId>,
}

/// What is written in one piece.
#[derive(Clone, Copy)]
enum Part {
    /// From the question to the response code.
    Verdict,
    /// The inside of the list of answers, without TTLs.
    Answers,
    /// `{"ports":[…]`.
    Services,
    /// From the extended error to the upstream.
    Causes,
    /// The query that fetched it.
    Origin,
}

impl Part {
    const ALL: usize = 5;
}

/// In the part of the answers: where one's TTL belongs, and where it ends, as two 16-bit numbers.
type Place = [u8; 4];

impl Rendered {
    /// Renders what `statement` says.
    #[must_use]
    pub fn new(statement: &Statement<'_>) -> Self {
        let mut bytes = Vec::with_capacity(512);
        let mut ends = [0; Part::ALL];
        let mut places: Vec<Place> = Vec::new();
        let mut parts = ends.iter_mut();
        let mut end_part = |line: &Line<'_>| parts.next().map(|end| *end = short(line.0.len()));
        let line = &mut Line(&mut bytes);
        statement.verdict(line);
        end_part(line);
        let start = line.0.len();
        for answer in statement.answers {
            let before = line.0.len();
            if !places.is_empty() {
                line.raw(",");
            }
            // What does not fit here fits no line: there is more before the answers there.
            let end = start + MAX_LINE - AFTER_ANSWERS;
            let written = line.answer(answer, end).and_then(|()| {
                let ttl = line.0.len();
                line.answer_data(answer, end).map(|()| ttl)
            });
            let Ok(ttl) = written else {
                line.0.truncate(before);
                break;
            };
            let ([a, b], [c, d]) = (short(ttl - start).to_ne_bytes(), short(line.0.len() - start).to_ne_bytes());
            places.push([a, b, c, d]);
        }
        end_part(line);
        line.services("{\"ports\":", statement.services);
        end_part(line);
        statement.causes(line);
        end_part(line);
        if let Some(origin) = statement.origin {
            line.raw(open!("origin"));
            figures::id(line.0, origin);
            line.raw("\"");
        }
        end_part(line);
        bytes.extend_from_slice(places.as_flattened());
        Self {
            bytes: bytes.into(),
            ends,
            answers: statement.answers.len(),
            replied: statement.rcode.is_some(),
            origin: statement.origin,
        }
    }

    /// How many bytes it has on the heap.
    #[must_use]
    pub const fn weight(&self) -> usize {
        self.bytes.len()
    }

    pub(super) const fn replied(&self) -> bool {
        self.replied
    }

    pub(super) fn verdict(&self, line: &mut Line<'_>) {
        line.0.extend_from_slice(self.parts(Part::Verdict, Part::Verdict));
    }

    /// As many whole answers as end before `end`, each with `ttl`.
    pub(super) fn answers(&self, line: &mut Line<'_>, ttl: u32, end: usize) {
        if self.answers == 0 {
            return;
        }
        line.raw(concat!(key!("answers"), "["));
        let mut digits = itoa::Buffer::new();
        let ttl = digits.format(ttl).as_bytes();
        let answers = self.parts(Part::Answers, Part::Answers);
        let places = self.bytes.get(self.end(Part::Origin)..).unwrap_or_default().as_chunks().0;
        let room = end.saturating_sub(line.0.len());
        let (mut told, mut from, mut last) = (0, 0, 0);
        for &[a, b, c, d] in places {
            let (at, after) = (usize::from(u16::from_ne_bytes([a, b])), usize::from(u16::from_ne_bytes([c, d])));
            if after + (told + 1) * ttl.len() > room {
                break;
            }
            // The end of the answer before, the beginning of this one.
            line.0.extend_from_slice(answers.get(from..at).unwrap_or_default());
            line.0.extend_from_slice(ttl);
            (told, from, last) = (told + 1, at, after);
        }
        line.0.extend_from_slice(answers.get(from..last).unwrap_or_default());
        end_answers(line, self.answers - told);
    }

    pub(super) fn services(&self, line: &mut Line<'_>) {
        line.0.extend_from_slice(self.parts(Part::Services, Part::Services));
    }

    /// What stands behind the grant in the line of `id`.
    pub(super) fn causes(&self, line: &mut Line<'_>, id: RecordId) {
        let last = if self.origin == Some(id) { Part::Causes } else { Part::Origin };
        line.0.extend_from_slice(self.parts(Part::Causes, last));
    }

    fn parts(&self, first: Part, last: Part) -> &[u8] {
        let from = (first as usize).checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| *end);
        self.bytes.get(usize::from(from)..self.end(last)).unwrap_or_default()
    }

    fn end(&self, part: Part) -> usize {
        self.ends.get(part as usize).map_or(0, |end| usize::from(*end))
    }
}

/// An offset: all parts together are shorter than two lines.
fn short(offset: usize) -> u16 {
    u16::try_from(offset).unwrap_or(u16::MAX)
}
