//! Directories of policy files that are loaded again when they change.
//!
//! The kernel says that something happened (inotify); whether files are others than before is looked at once they have
//! rested. So what an editor leaves beside them is nothing, and a swap of many files at once is one change.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

use crate::app::config::Config;
use crate::app::load::{CANDIDATE, DIRECTORY, policy_files};

/// What is quiet for so long is whole: an editor's two steps, the files of a checkout one after the other. Guessed.
const REST: Duration = Duration::from_millis(250);
/// What never rests is looked at after this all the same.
const LATEST: Duration = Duration::from_secs(3);

/// See the module.
pub(super) struct Watch {
    directories: Vec<(PathBuf, &'static str)>,
    events: AsyncFd<Events>,
    seen: Seen,
    /// When something happened that was not looked at yet.
    since: Option<Instant>,
}

/// What the kernel says.
struct Events(Inotify);

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// What there was: which file each is and when it was changed, and what is wrong with them.
#[derive(Default, PartialEq, Eq)]
struct Seen {
    files: BTreeMap<PathBuf, Option<[i64; 5]>>,
    mistakes: BTreeSet<String>,
}

impl Watch {
    /// Watches what the configuration asks for, perhaps nothing. To be called inside the runtime, before anything is loaded.
    ///
    /// # Errors
    /// One sentence with its remedy.
    pub(super) fn new(config: &Config) -> Result<Option<Self>, String> {
        if !config.watch {
            return Ok(None);
        }
        let candidate = config.candidate.clone().map(|candidate| (candidate, CANDIDATE));
        let directories: Vec<_> = [(config.policy_directory.clone(), DIRECTORY)].into_iter().chain(candidate).collect();
        let looked = look(&directories).and_then(|(events, seen)| Ok((register(events)?, seen)));
        let (events, seen) = looked.map_err(|error| {
            format!(
                "[policy].watch: the system watches no more directories: {error}; raise fs.inotify.max_user_instances and \
                 fs.inotify.max_user_watches, or remove it and reload by `outgate reload`"
            )
        })?;
        Ok(Some(Self { directories, events, seen, since: None }))
    }

    /// Waits until the files are others than when it was last asked, and rest. It may be given up and asked again.
    pub(super) async fn changed(&mut self) {
        loop {
            let since = match self.since {
                Some(since) => since,
                None => {
                    happened(&self.events).await;
                    *self.since.insert(Instant::now())
                }
            };
            while timeout_at((Instant::now() + REST).min(since + LATEST), happened(&self.events)).await.is_ok() {}
            let directories = self.directories.clone();
            let looked = tokio::task::spawn_blocking(move || look(&directories)).await;
            let looked = looked.unwrap_or_else(|error| Err(io::Error::other(error)));
            self.since = None;
            match looked.and_then(|(events, seen)| Ok((register(events)?, seen))) {
                Ok((events, seen)) => {
                    self.events = events;
                    if std::mem::replace(&mut self.seen, seen) != self.seen {
                        return;
                    }
                    tracing::debug!("what happened beside the policy files is nothing to load");
                }
                Err(error) => {
                    tracing::error!(%error, "what is new in the policy directories is not watched; raise fs.inotify.max_user_watches");
                    return;
                }
            }
        }
    }
}

/// Waits for the kernel to say something; what it says is all the same.
async fn happened(events: &AsyncFd<Events>) {
    loop {
        // An error: the runtime has ended.
        let Ok(mut ready) = events.readable().await else { return std::future::pending().await };
        let mut any = false;
        while events.get_ref().0.read_events().is_ok_and(|events| !events.is_empty()) {
            any = true;
        }
        ready.clear_ready();
        if any {
            return;
        }
    }
}

fn register(events: Inotify) -> io::Result<AsyncFd<Events>> {
    #[expect(
        deprecated,
        reason = "what replaces it is unsafe for types that change their descriptor; this one does not"
    )]
    AsyncFd::with_interest(Events(events), Interest::READABLE)
}

/// Begins to watch, and looks then: nothing falls between.
fn look(directories: &[(PathBuf, &'static str)]) -> io::Result<(Inotify, Seen)> {
    let entries = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE;
    let files = entries | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB;
    let mut watched = HashSet::new();
    let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    // The directory may be a link, or be moved away, and another put in its place.
    for (directory, _) in directories {
        let real = directory.canonicalize().ok();
        for place in [Some(directory), real.as_ref()].into_iter().flatten().filter_map(|path| path.parent()) {
            let place = if place == Path::new("") { Path::new(".") } else { place };
            add(&events, place, entries)?;
        }
    }
    loop {
        let (seen, found) = see(directories);
        let new: Vec<PathBuf> = found.into_iter().filter(|directory| !watched.contains(directory)).collect();
        if new.is_empty() {
            return Ok((events, seen));
        }
        for directory in new {
            add(&events, &directory, files)?;
            watched.insert(directory);
        }
    }
}

/// What is gone is no error: the directory above says so.
fn add(events: &Inotify, directory: &Path, happens: AddWatchFlags) -> io::Result<()> {
    match events.add_watch(directory, happens | AddWatchFlags::IN_ONLYDIR) {
        Err(nix::errno::Errno::ENOSPC) => Err(nix::errno::Errno::ENOSPC.into()),
        _ => Ok(()),
    }
}

/// The files as they are, and the directories that they are in.
fn see(directories: &[(PathBuf, &'static str)]) -> (Seen, HashSet<PathBuf>) {
    let (mut seen, mut places, mut mistakes) = (Seen::default(), HashSet::new(), Vec::new());
    for (directory, key) in directories {
        let found = policy_files(directory, key, &mut mistakes);
        places.extend(found.directories);
        for file in found.files {
            places.extend(file.canonicalize().ok().and_then(|real| real.parent().map(Path::to_owned)));
            let metadata = file.metadata().ok();
            let stamp = metadata.map(|file| {
                [
                    file.dev().cast_signed(),
                    file.ino().cast_signed(),
                    file.size().cast_signed(),
                    file.ctime(),
                    file.ctime_nsec(),
                ]
            });
            seen.files.insert(file, stamp);
        }
    }
    seen.mistakes = mistakes.iter().map(ToString::to_string).collect();
    (seen, places)
}
