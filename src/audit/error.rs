//! Why the log cannot be opened, written or read: place, fact, remedy.

use std::io;
use std::path::{Path, PathBuf};

/// A variant per thing that an operator does differently.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// ENOENT or ENOTDIR.
    #[error("{}: the directory does not exist; create it, or set [audit] file", .0.display())]
    NoDirectory(PathBuf),
    /// EACCES or EPERM.
    #[error("{}: permission denied; let the service's user write this directory", .0.display())]
    Forbidden(PathBuf),
    /// ENOSPC or EDQUOT.
    #[error("{}: no space left; free some, or lower [audit] rotate_size and max_size", .0.display())]
    NoSpace(PathBuf),
    /// EROFS.
    #[error("{}: the file system is read-only; mount it writable, or set [audit] file", .0.display())]
    ReadOnly(PathBuf),
    /// There is nothing to read.
    #[error("{}: there is no such log; name its current file, or the configuration with -c", .0.display())]
    Absent(PathBuf),
    /// A directory without a file of records.
    #[error("{}: no log in this directory; name its current file, or where files called ….jsonl are", .0.display())]
    NoLog(PathBuf),
    /// It may not be read.
    #[error("{}: may not be read by this user; run this as root, or as a member of the file's group", .0.display())]
    Unreadable(PathBuf),
    /// Another process holds the lock.
    #[error("{}: another process writes this log; stop it, or set [audit] file", .0.display())]
    Locked(PathBuf),
    /// No name that an archive could be called after.
    #[error("{}: not a usable file name; write up to 128 plain characters, e.g. \"query.jsonl\"", .0.display())]
    Name(PathBuf),
    /// Retention removed what was not delivered everywhere.
    #[error(
        "{} was removed for {why} before {} had read it: a `gap` record there, or the journal, says what it held; raise [audit] {why}, or see why {}",
        .path.display(), .sinks.join(" and "), if .sinks.len() == 1 { "it is behind" } else { "they are behind" }
    )]
    Unread {
        /// The archive.
        path: PathBuf,
        /// The setting.
        why: &'static str,
        /// The sinks' names.
        sinks: Vec<Box<str>>,
    },
    /// The thread that seals has ended before its time.
    #[error("{}: not sealed: what reads closed files has ended; the next start seals it", .0.display())]
    Unsealed(PathBuf),
    /// Anything else that the system says.
    #[error("{}: {why}; check the disk and the path", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's own words.
        why: String,
    },
}

impl AuditError {
    /// What an error of the system means for `path`.
    pub(in crate::audit) fn at(path: &Path, error: &io::Error) -> Self {
        let path = path.to_path_buf();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NoDirectory(path),
            io::ErrorKind::PermissionDenied => Self::Forbidden(path),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace(path),
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly(path),
            _ => Self::Io { path, why: error.to_string() },
        }
    }

    /// What an error of the system means for `path` to one who only reads.
    pub(in crate::audit) fn reading(path: &Path, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Absent(path.to_path_buf()),
            io::ErrorKind::PermissionDenied => Self::Unreadable(path.to_path_buf()),
            _ => Self::at(path, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    #[test]
    fn each_cause_has_its_remedy() {
        for (errno, remedy) in [
            (Errno::ENOENT, "does not exist; create it"),
            (Errno::ENOTDIR, "does not exist; create it"),
            (Errno::EACCES, "permission denied; let the service's user"),
            (Errno::EPERM, "permission denied; let the service's user"),
            (Errno::ENOSPC, "no space left; free some"),
            (Errno::EDQUOT, "no space left; free some"),
            (Errno::EROFS, "read-only; mount it writable"),
            (Errno::EIO, "(os error 5); check the disk"),
        ] {
            let message = AuditError::at(Path::new("/log/query.jsonl"), &errno.into()).to_string();
            assert!(message.starts_with("/log/query.jsonl: ") && message.contains(remedy), "{message}");
        }
    }
}
