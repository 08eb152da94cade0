//! What is known besides the policy in force: its candidate, and whether it is itself one that was promoted.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::app::config::Config;
use crate::app::promotion::Promotion;
use crate::document::Mistake;
use crate::gate::{Candidate, DissentRow, Dissents, Rulebook};
use crate::policy::{Dissent, Policy};
use crate::time::Wall;

/// Rows of the status.
const ROWS: usize = 20;

/// What the last load found.
#[derive(Default)]
pub(in crate::app) struct Beside {
    state: State,
    promotion: Option<Promotion>,
}

/// What became of the candidate.
#[derive(Default)]
enum State {
    #[default]
    Absent,
    /// It is decided beside the policy.
    Decided,
    /// It is the policy.
    Same,
    /// It cannot be.
    Mistaken(Vec<Mistake>),
}

impl State {
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Decided => "decided",
            Self::Same => "same",
            Self::Mistaken(_) => "mistaken",
        }
    }
}

/// What a load found, as [`Beside::new`] takes it.
pub(in crate::app) struct Found<'a> {
    pub(in crate::app) candidate: Option<Result<Arc<Policy>, Vec<Mistake>>>,
    pub(in crate::app) promotion: Option<Promotion>,
    /// The policy that was loaded with it.
    pub(in crate::app) policy: &'a Policy,
    /// What was in force before.
    pub(in crate::app) before: Option<&'a Rulebook>,
    pub(in crate::app) now: Wall,
    /// How many queries there were so far.
    pub(in crate::app) asked: u64,
}

impl Beside {
    /// The candidate to be decided, and what is told of it. What was noted of the same two policies stands.
    pub(in crate::app) fn new(found: Found<'_>) -> (Option<Arc<Candidate>>, Self) {
        let Found { candidate, promotion, policy, before, now, asked } = found;
        let (candidate, state) = match candidate {
            None => (None, State::Absent),
            Some(Err(mistakes)) => (None, State::Mistaken(mistakes)),
            Some(Ok(candidate)) if candidate.revision() == policy.revision() => (None, State::Same),
            Some(Ok(candidate)) => {
                let same = |known: &&Arc<Candidate>| known.policy.revision() == candidate.revision();
                let known = before.filter(|before| before.policy.revision() == policy.revision());
                let candidate = match known.and_then(|before| before.candidate.as_ref()).filter(same) {
                    Some(known) => known.again(candidate),
                    None => Candidate::new(candidate, now, asked),
                };
                (Some(Arc::new(candidate)), State::Decided)
            }
        };
        (candidate, Self { state, promotion })
    }

    /// Whether the policy in force is one that was promoted.
    pub(super) const fn promotion(&self) -> Option<&Promotion> {
        self.promotion.as_ref()
    }

    /// What is wrong with the candidate.
    pub(super) const fn mistakes(&self) -> &[Mistake] {
        if let State::Mistaken(mistakes) = &self.state { mistakes.as_slice() } else { &[] }
    }

    /// What the operator should know.
    pub(super) fn warnings(&self) -> impl Iterator<Item = Mistake> {
        let promoted = self.promotion.as_ref().map(|promotion| {
            let Promotion { directory, at, who, .. } = promotion;
            let fact = format!(
                "the policy in force is not that of [policy].directory: it was promoted from {directory} at {at} by {who}"
            );
            Mistake::general(fact, "write it to the policy directory: its next change ends the promotion")
        });
        let mistaken = self.mistakes().first().map(|first| {
            let count = self.mistakes().len();
            let fact = format!("the candidate is not decided, of {count} mistakes the first is: {first}");
            Mistake::general(fact, "")
        });
        promoted.into_iter().chain(mistaken)
    }

    /// Whether there is a candidate, and whether it can be decided.
    pub(super) const fn usable(&self) -> Option<bool> {
        match self.state {
            State::Absent => None,
            State::Decided | State::Same => Some(true),
            State::Mistaken(_) => Some(false),
        }
    }

    /// `policy.candidate` and `policy.promoted` of the status.
    pub(super) fn status(&self, config: &Config, rulebook: &Rulebook, asked: u64) -> (Option<Value>, Option<Value>) {
        let candidate = config.candidate.as_ref().map(|directory| {
            let mut candidate = json!({ "directory": directory.display().to_string(), "state": self.state.as_str() });
            if let (Some(known), Some(fields)) = (&rulebook.candidate, candidate.as_object_mut()) {
                fields.insert("revision".into(), format!("{:016x}", known.policy.revision()).into());
                fields.insert("segments".into(), known.policy.segments().len().into());
                fields.insert("rules".into(), known.policy.rules_len().into());
                fields.insert("disagreements".into(), disagreements(&known.dissents(ROWS), asked));
            }
            if let (State::Mistaken(mistakes), Some(fields)) = (&self.state, candidate.as_object_mut()) {
                let mistakes: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
                fields.insert("mistakes".into(), mistakes.into());
            }
            candidate
        });
        let promoted = self.promotion.as_ref().map(|promotion| {
            let Promotion { at, who, reason, accepted, directory, over, .. } = promotion;
            json!({
                "at": at, "who": who, "reason": reason, "accepted": accepted, "directory": directory, "instead_of": over,
            })
        });
        (candidate, promoted)
    }
}

fn disagreements(dissents: &Dissents, asked: u64) -> Value {
    let count = |dissent: Dissent| dissents.counts.get(dissent as usize);
    let row = |row: &DissentRow| {
        json!({
            "segment": row.segment, "name": row.name.to_string(), "type": row.kind.to_string(),
            "kind": row.dissent.as_str(), "reason": row.reason.as_str(), "rule": row.rule,
            "count": row.count, "last": row.last.to_string(),
        })
    };
    json!({
        "since": dissents.since.to_string(), "queries": asked.saturating_sub(dissents.asked_before),
        "denies": count(Dissent::Denies), "allows": count(Dissent::Allows), "differs": count(Dissent::Differs),
        "first": dissents.between.map(|(first, _)| first.to_string()),
        "last": dissents.between.map(|(_, last)| last.to_string()),
        "top": dissents.rows.iter().map(row).collect::<Vec<_>>(), "unlisted": dissents.unlisted,
    })
}
