//! The records of the node's own log as they come, for who learns from them while it runs.

use std::path::Path;

use super::follow::{Follower, Next};
use crate::audit::error::AuditError;
use crate::audit::meter::Meter;
use crate::audit::records::{Recorded, read_line};
use crate::time::Wall;

/// How every flow record begins.
const FLOW: &[u8] = b"{\"v\":1,\"type\":\"flow\"";

/// What it is called beside the sinks; a sink's name has no such letter.
const NAME: &str = "[flow]";

/// Reads the log from some time on, through its archives, to its end, and goes on as it grows. Never waits.
pub struct History(Follower);

/// What comes next.
#[derive(Debug)]
pub enum Event<'a> {
    /// A record, other than of a flow.
    Record(Recorded<'a>),
    /// Records are missing here.
    Missing,
}

impl History {
    /// Follows the log of `meter`, whose current file is at `path`. What was written before `since` may come as well.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(path: &Path, meter: &Meter, since: Wall) -> Result<Self, AuditError> {
        Ok(Self(Follower::since(path, (meter.readers(), NAME), since)?))
    }

    /// Hands out the next line's record, where it is one to be handed out; `false`: this is the end, for now.
    ///
    /// # Errors
    /// The log cannot be read; the next call tries again.
    pub fn next(&mut self, each: &mut dyn FnMut(Event<'_>)) -> Result<bool, AuditError> {
        for _ in self.0.missed() {
            each(Event::Missing);
        }
        match self.0.next()? {
            Next::End => return Ok(false),
            Next::Line(line) if line.is_empty() || line.starts_with(FLOW) => {}
            Next::Line(line) => {
                if !read_line(line, &mut |record| each(Event::Record(record))) {
                    each(Event::Missing);
                }
            }
            Next::Damaged(_) | Next::Lost(_) => each(Event::Missing),
        }
        Ok(true)
    }
}
