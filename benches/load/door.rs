//! The way to the server: a UDP port or a TCP connection, with what was asked over it.

use std::os::fd::AsFd;

use outgate::time::{Clock, Tick};

use crate::mix::Questions;
use crate::window::{Tally, Window};

/// What ends the load: printed, for people.
pub(crate) type Failure = Box<dyn std::error::Error>;

/// One way to the server.
pub(crate) trait Door: AsFd {
    /// What was asked over it and waits.
    fn window(&mut self) -> &mut Window;

    /// Asks up to `count` questions, as many as its window has room for; how many there were to ask.
    fn ask(&mut self, count: usize, questions: &mut Questions, now: Tick) -> Result<usize, Failure>;

    /// Takes the answers that are there.
    fn receive(&mut self, tally: &mut Tally, clock: &Clock) -> Result<(), Failure>;
}
