//! Answers that this node gives of itself: nothing is opened for them.

use super::{Batch, Sealing, Told, limit};
use crate::audit::Outcome;
use crate::gate::designation::{self, Designation};
use crate::policy::{Own, Reason};
use crate::record::{Question, Rcode};
use crate::wire::{self, Query, Template};

impl<R> Batch<R> {
    /// Seals the designation of our own doors: the addresses in it are ours, and nothing is opened for them.
    pub(super) fn designate(
        &mut self,
        sealing: &Sealing<'_>,
        query: &Query<'_>,
        designation: &Designation,
        route: impl FnOnce() -> R,
    ) {
        let told = Told::nothing(Outcome::Allow, Reason::Special);
        if Designation::is_asked(query) {
            let told = Told { answers: &designation.records, ttl: designation::LIFE, ..told };
            self.tell_own(sealing, query, Some(&designation.template), told, route);
        } else {
            self.tell_own(sealing, query, None, told, route);
        }
    }

    /// Seals an answer that this node gives of itself: nothing is opened for it.
    pub(super) fn answer(&mut self, sealing: &Sealing<'_>, query: &Query<'_>, own: &Own, route: impl FnOnce() -> R) {
        let records = own.records();
        let template = records.first().map(|first| {
            let question = Question { name: first.name.clone(), kind: query.kind };
            Template::new(&question, Rcode::NOERROR, true, records, None, None)
        });
        let ttl = records.first().map_or(wire::REFUSAL_TTL, |first| first.ttl);
        let told = Told { answers: records, ttl, why: Some(own.why()), ..Told::nothing(Outcome::Allow, own.reason()) };
        self.tell_own(sealing, query, template.as_ref(), told, route);
    }

    /// Without a template it is NODATA.
    fn tell_own(
        &mut self,
        sealing: &Sealing<'_>,
        query: &Query<'_>,
        template: Option<&Template>,
        told: Told<'_>,
        route: impl FnOnce() -> R,
    ) {
        let start = self.bytes.len();
        let limit = limit(sealing, query);
        let written = match template {
            Some(template) => template.write(&mut self.bytes, &query.echo, told.ttl, limit),
            None => wire::write_refusal(&mut self.bytes, &query.echo, Rcode::NOERROR, None, limit),
        };
        let (written, proof) = self.extend(written, &query.echo, sealing);
        let told = Told { rcode: Some(Rcode::NOERROR), written, proof, ..told };
        self.record(sealing, Some(query.echo.id), Some((query.name, query.kind)), &told);
        self.replies.push((start..self.bytes.len(), route()));
    }
}
