//! A unix socket and its file: made with its final mode, never taken from a node that lives, removed at the end.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use tokio::net::{UnixListener, UnixStream};

/// Owner and group may talk to the node.
const MODE: u32 = 0o660;
/// A directory that is made for the socket.
const DIRECTORY_MODE: u32 = 0o750;
/// Others may write in a directory and, without the sticky bit, replace what is not theirs.
const OTHERS_WRITE: u32 = 0o002;
const OTHERS_MAY_REPLACE: u32 = OTHERS_WRITE | 0o1000;

/// Why the socket cannot be had. Each message is one sentence with its remedy.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A node lives there.
    #[error("another outgate answers on {path}; stop it first, or set {key} to another path")]
    Taken {
        /// The socket.
        path: PathBuf,
        /// The key that names it.
        key: &'static str,
    },
    /// Some other file is there.
    #[error("{path} is there and is not a socket; remove it, or set {key} to another path")]
    Occupied {
        /// The file.
        path: PathBuf,
        /// The key that names it.
        key: &'static str,
    },
    /// The directory's owner could put another socket in the place of ours.
    #[error(
        "{directory} belongs to user {owner}, and outgate runs as user {us}; run it as user {owner}, or set {key} to a path in a directory of its own"
    )]
    Foreign {
        /// The socket's directory.
        directory: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user that we are.
        us: u32,
        /// The key that names the socket.
        key: &'static str,
    },
    /// Anybody could put another socket in the place of ours.
    #[error(
        "every user of this machine may write in {directory}; chmod o-w it, or set {key} to a path in a directory of its own"
    )]
    Open {
        /// The socket's directory.
        directory: PathBuf,
        /// The key that names the socket.
        key: &'static str,
    },
    /// No permission.
    #[error(
        "user {us} may not make a socket in {directory}; let the directory belong to that user, or set {key} to another path"
    )]
    Denied {
        /// The socket's directory.
        directory: PathBuf,
        /// The user that we are.
        us: u32,
        /// The key that names the socket.
        key: &'static str,
    },
    /// The kernel takes 107 bytes, some of which are needed while the socket is made.
    #[error("{path} is too long for a socket; set {key} to a path of at most 90 bytes")]
    TooLong {
        /// The path.
        path: PathBuf,
        /// The key that names it.
        key: &'static str,
    },
    /// Anything else.
    #[error("the socket {path} cannot be made ({error}); set {key} to another path")]
    Other {
        /// The socket.
        path: PathBuf,
        /// The key that names it.
        key: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

/// A listening socket and its file.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, to know it again.
    identity: (u64, u64),
}

impl Socket {
    /// Listens on `path`, which `key` names, with mode 0660, in place of a socket on which nobody answers any more. Makes
    /// the directory where there is none.
    ///
    /// # Errors
    /// See [`SocketError`]; nothing was changed but perhaps the directory made.
    pub async fn bind(path: &Path, key: &'static str) -> Result<Self, SocketError> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let us = geteuid().as_raw();
        let explain = |error: io::Error| match error.kind() {
            ErrorKind::PermissionDenied => SocketError::Denied { directory: directory.to_owned(), us, key },
            ErrorKind::InvalidInput => SocketError::TooLong { path: path.to_owned(), key },
            _ => SocketError::Other { path: path.to_owned(), key, error },
        };
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(explain)?;
        let metadata = fs::metadata(directory).map_err(explain)?;
        if metadata.mode() & OTHERS_MAY_REPLACE == OTHERS_WRITE {
            return Err(SocketError::Open { directory: directory.to_owned(), key });
        }
        let owner = metadata.uid();
        if owner != us && owner != 0 {
            return Err(SocketError::Foreign { directory: directory.to_owned(), owner, us, key });
        }
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(explain(error)),
            Ok(file) if !file.file_type().is_socket() => {
                return Err(SocketError::Occupied { path: path.to_owned(), key });
            }
            Ok(_) => match UnixStream::connect(path).await {
                // Nobody listens, or the file has gone meanwhile.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {}
                Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(explain(error)),
                // Any other error comes from a listener too: its queue is full.
                _ => return Err(SocketError::Taken { path: path.to_owned(), key }),
            },
        }
        // Made beside its place and moved there when its mode is right: no moment in which anyone else may connect.
        let mut beside = OsString::from(path);
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(explain(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&beside).map_err(explain)?;
        let placed = fs::set_permissions(&beside, Permissions::from_mode(MODE))
            .and_then(|()| fs::symlink_metadata(&beside))
            .and_then(|file| fs::rename(&beside, path).map(|()| identity(&file)));
        match placed {
            Ok(identity) => Ok(Self { listener, path: path.to_owned(), identity }),
            Err(error) => {
                // Best effort: the error that matters is the first one.
                let _ = fs::remove_file(&beside);
                Err(explain(error))
            }
        }
    }
}

impl AsRef<UnixListener> for Socket {
    fn as_ref(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Socket {
    /// Removes the file, unless it is another node's by now.
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|file| identity(&file) == self.identity) {
            // What stays behind is replaced by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}
