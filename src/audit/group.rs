//! Group: one fdatasync for everyone who wrote before it began.
//!
//! Nobody's own thread is needed for it: the first who waits does it, and those who wrote meanwhile wait for the one after
//! it, which one of them does. So there is at most one at a time, and as soon as it ends the next begins.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};

/// What is waited for, of one file.
pub(super) struct Group {
    /// Puts on the disk what was written before it was called.
    sync: Box<dyn Fn() -> io::Result<()> + Send + Sync>,
    state: Mutex<State>,
    ended: Condvar,
    failed: AtomicBool,
}

#[derive(Default)]
struct State {
    /// How many have begun.
    begun: u64,
    /// The last that ended.
    ended: u64,
    /// One is under way.
    running: bool,
    /// What one failed with. What was written before may be gone from memory and never have come to the disk, and the
    /// kernel says so once: a later success would say nothing.
    failed: Option<Errno>,
}

impl Group {
    /// Of a file.
    pub(super) fn of(file: File) -> Self {
        Self::by(move || file.sync_data())
    }

    pub(super) fn by(sync: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> Self {
        let (state, ended, failed) = Default::default();
        Self { sync: Box::new(sync), state, ended, failed }
    }

    /// Whether one failed: nothing that is written to this file from then on counts.
    pub(super) fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Waits until what was written to the file before this call is on the disk.
    ///
    /// # Errors
    /// It may not be there, now or ever.
    pub(super) fn wait(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        // One that runs may have begun before our write: the one after it covers it.
        let ours = state.begun + 1;
        loop {
            if let Some(errno) = state.failed {
                return Err(io::Error::other(format!("the disk did not keep what was written: {}", errno.desc())));
            }
            if state.ended >= ours {
                return Ok(());
            }
            if state.running {
                self.ended.wait(&mut state);
                continue;
            }
            state.running = true;
            state.begun += 1;
            let number = state.begun;
            let mut result = Ok(());
            parking_lot::MutexGuard::unlocked(&mut state, || result = (self.sync)());
            state.running = false;
            match result {
                Ok(()) => state.ended = number,
                Err(error) => {
                    state.failed = Some(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw));
                    self.failed.store(true, Ordering::Release);
                }
            }
            self.ended.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    /// A disk that keeps what had been written when it began to, and takes its time.
    #[test]
    fn nobody_goes_on_before_what_he_wrote_is_kept() {
        let (written, kept, syncs) = <(Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let group = {
            let (written, kept, syncs) = (Arc::clone(&written), Arc::clone(&kept), Arc::clone(&syncs));
            Group::by(move || {
                let now = written.load(Ordering::SeqCst);
                std::thread::yield_now();
                kept.store(now, Ordering::SeqCst);
                syncs.fetch_add(1, Ordering::SeqCst);
                Ok(())
            })
        };
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let mine = written.fetch_add(1, Ordering::SeqCst) + 1;
                        group.wait().unwrap();
                        assert!(kept.load(Ordering::SeqCst) >= mine);
                    }
                });
            }
        });
        assert_eq!(kept.load(Ordering::SeqCst), 3000);
        assert!(syncs.load(Ordering::SeqCst) <= 3000);
    }

    #[test]
    fn what_failed_once_has_failed_for_good() {
        let calls = Arc::new(AtomicU64::new(0));
        let group = {
            let calls = Arc::clone(&calls);
            Group::by(move || match calls.fetch_add(1, Ordering::SeqCst) {
                1 => Err(Errno::EIO.into()),
                _ => Ok(()),
            })
        };
        group.wait().unwrap();
        for _ in 0..3 {
            let error = group.wait().unwrap_err().to_string();
            assert_eq!(error, "the disk did not keep what was written: I/O error");
            assert!(group.is_failed());
        }
        assert_eq!(calls.load(Ordering::SeqCst), 2, "a later success would be a lie");
    }
}
