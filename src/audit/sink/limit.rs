//! When what is done with another machine must be over, all its system calls together; soon, where the node stops.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::SockRef;

use crate::time::{Clock, Tick};

/// How long it may take from the stop on.
const PARTING: Duration = Duration::from_secs(2);
/// How long one system call may take; then is looked whether the node stops.
const SLICE: Duration = Duration::from_millis(100);
/// A socket's timeout of nothing would be none.
const LEAST: Duration = Duration::from_millis(1);

/// See the module.
pub(super) struct Limit {
    clock: Clock,
    until: Tick,
    stop: Arc<AtomicBool>,
    /// It is that of a node that stops.
    parting: bool,
}

impl Limit {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, until: Tick::default(), stop: Arc::default(), parting: false }
    }

    /// Gives it the flag that is raised when the node stops.
    pub(super) fn heed(&mut self, stop: &Arc<AtomicBool>) {
        self.stop = Arc::clone(stop);
    }

    /// So long from now on.
    pub(super) fn begin(&mut self, length: Duration) {
        self.parting = self.stop.load(Ordering::Relaxed);
        self.until = self.clock.tick() + if self.parting { length.min(PARTING) } else { length };
    }

    /// What is left of it.
    ///
    /// # Errors
    /// `TimedOut`: nothing.
    pub(super) fn left(&mut self) -> io::Result<Duration> {
        let now = self.clock.tick();
        if !self.parting && self.stop.load(Ordering::Relaxed) {
            self.parting = true;
            self.until = self.until.min(now + PARTING);
        }
        let left = self.until.since(now);
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left.max(LEAST)) }
    }

    /// Makes a system call, which gets the time that it may take, again and again until it is over.
    pub(super) fn call<T>(&mut self, mut call: impl FnMut(Duration) -> io::Result<T>) -> io::Result<T> {
        loop {
            let slice = self.left()?.min(SLICE);
            match call(slice) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                result => return result,
            }
        }
    }
}

/// A socket that blocks, within a limit.
pub(super) struct Limited<'a> {
    socket: SockRef<'a>,
    limit: &'a mut Limit,
}

impl<'a> Limited<'a> {
    pub(super) fn new(socket: &'a impl AsFd, limit: &'a mut Limit) -> Self {
        Self { socket: SockRef::from(socket), limit }
    }
}

impl Read for Limited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let socket = &*self.socket;
        self.limit.call(|slice| {
            socket.set_read_timeout(Some(slice))?;
            (&*socket).read(buffer)
        })
    }
}

impl Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let socket = &*self.socket;
        self.limit.call(|slice| {
            socket.set_write_timeout(Some(slice))?;
            (&*socket).write(bytes)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
