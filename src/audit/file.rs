//! The log's files: opened for appending, locked, blocks allocated ahead, told apart by inode.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::error::AuditError;
use super::group::Group;
use super::settings::Durability;

/// Readable for the group that ships it, for nobody else.
pub(super) const MODE: u32 = 0o640;

/// Device and inode: the same file whatever it is called.
pub(super) type Identity = (u64, u64);

/// The file as the log's thread holds it: with the lock that keeps other processes out.
pub(super) struct Current {
    file: File,
    pub(super) identity: Identity,
    /// Whether the last write left a line without its end.
    torn: Arc<AtomicBool>,
    /// By which its writers wait for the disk, where they do.
    group: Option<Arc<Group>>,
}

impl Current {
    /// Opens or creates the file at `path` and locks it.
    pub(super) fn open(path: &Path, durability: Durability) -> Result<Self, AuditError> {
        loop {
            let file = append().create(true).open(path).map_err(|error| AuditError::at(path, &error))?;
            let current = Self::lock(file, path, durability)?;
            // The process that held the lock may have renamed the file since it was opened here.
            if identity_of(path).is_ok_and(|identity| identity == current.identity) {
                return Ok(current);
            }
        }
    }

    /// Creates a file that must not exist, and locks it.
    pub(super) fn create(path: &Path, durability: Durability) -> Result<Self, AuditError> {
        let file = append().create_new(true).open(path).map_err(|error| AuditError::at(path, &error))?;
        Self::lock(file, path, durability)
    }

    fn lock(file: File, path: &Path, durability: Durability) -> Result<Self, AuditError> {
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(AuditError::Locked(path.to_path_buf())),
            Err(TryLockError::Error(error)) => return Err(AuditError::at(path, &error)),
        }
        let metadata = file.metadata().map_err(|error| AuditError::at(path, &error))?;
        let identity = (metadata.dev(), metadata.ino());
        let group = match durability {
            Durability::Process => None,
            Durability::Disk => Some(file.try_clone().map_err(|error| AuditError::at(path, &error))?),
        };
        let group = group.map(|file| Arc::new(Group::of(file)));
        Ok(Self { file, identity, torn: Arc::new(AtomicBool::new(false)), group })
    }

    /// A descriptor of its own for one shard: a shared one would make the shards wait for each other at the
    /// file's offset.
    pub(super) fn handle(&self, path: &Path) -> Result<Handle, AuditError> {
        let fail = |error: io::Error| AuditError::at(path, &error);
        let file = append().open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        if (metadata.dev(), metadata.ino()) != self.identity {
            return Err(fail(io::Error::other("another program moved it while it was opened")));
        }
        Ok(Handle { file, torn: Arc::clone(&self.torn), group: self.group.clone() })
    }

    /// Has its writers wait for this instead.
    #[cfg(test)]
    pub(super) fn keep_by(&mut self, group: Group) {
        self.group = Some(Arc::new(group));
    }

    /// Whether the disk did not keep what was written to it.
    pub(super) fn is_failed(&self) -> bool {
        self.group.as_ref().is_some_and(|group| group.is_failed())
    }

    /// Waits until it is on the disk, where its writers do.
    pub(super) fn keep(&self) -> io::Result<()> {
        self.group.as_ref().map_or(Ok(()), |group| group.wait())
    }

    /// The length in bytes.
    pub(super) fn len(&self) -> io::Result<u64> {
        self.file.metadata().map(|metadata| metadata.len())
    }

    /// Says that the last line has no end, so that the next write gives it one.
    pub(super) fn set_torn(&self) {
        self.torn.store(true, Ordering::Release);
    }

    /// Allocates blocks up to `size` without changing the length. File systems that cannot do it are left alone.
    pub(super) fn allocate(&self, size: u64) -> io::Result<()> {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, size) {
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::EFBIG) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the blocks back that are allocated beyond the end. Nobody may write meanwhile.
    pub(super) fn release(&self) -> io::Result<()> {
        self.file.set_len(self.len()?)
    }
}

/// One shard's descriptor.
pub(super) struct Handle {
    file: File,
    torn: Arc<AtomicBool>,
    group: Option<Arc<Group>>,
}

impl Handle {
    /// A descriptor of any file, to take a shard's away.
    #[cfg(test)]
    pub(super) fn of(file: File) -> Self {
        Self { file, torn: Arc::default(), group: None }
    }

    /// By which is waited for what is written here.
    pub(super) fn group(&self) -> Option<Arc<Group>> {
        self.group.clone()
    }

    pub(super) fn is_torn(&self) -> bool {
        self.torn.load(Ordering::Acquire)
    }

    pub(super) fn set_torn(&self, torn: bool) {
        if self.is_torn() != torn {
            self.torn.store(torn, Ordering::Release);
        }
    }
}

impl Write for Handle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.group {
            Some(group) if group.is_failed() => group.wait().map(|()| 0),
            _ => self.file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn append() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).mode(MODE);
    options
}

/// Has the names in a directory on the disk.
pub(super) fn keep_names(directory: &Path) -> Result<(), AuditError> {
    // The directory of a path without one.
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    File::open(directory).and_then(|file| file.sync_all()).map_err(|error| AuditError::at(directory, &error))
}

/// Which file is at `path`.
pub(super) fn identity_of(path: &Path) -> io::Result<Identity> {
    path.metadata().map(|metadata| (metadata.dev(), metadata.ino()))
}
