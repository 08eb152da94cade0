//! What the service manager is told: that the node serves, and that it stops (systemd's `sd_notify(3)`).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where it listens: a path, or `@` and a name that is none.
const SOCKET: &str = "NOTIFY_SOCKET";

/// Everything that is served is served.
pub(super) const READY: &str = "READY=1";
/// No new work is taken.
pub(super) const STOPPING: &str = "STOPPING=1";

/// Tells it, where there is one that wants to know. One that does not hear ends the node by its own timeout.
pub(super) fn tell(state: &str) {
    if let Some(socket) = std::env::var_os(SOCKET)
        && let Err(error) = send(&socket, state)
    {
        tracing::warn!(%error, state, "the service manager could not be told");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(|_| ())
}
