//! One connection, with TLS or without: it is written to, and asked whether it still is one.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::Server;

/// For the connection, and for each write.
const PATIENCE: Duration = Duration::from_secs(4);
/// For how long the kernel keeps what the other side does not acknowledge; less than a message stays unsure.
const USER_TIMEOUT: Duration = Duration::from_secs(4);

/// What the kernel keeps for a server that does not take it.
const SEND_BUFFER: usize = 1 << 18;

/// The first address of a server that the system's resolver gives.
pub(super) fn resolve(server: &Server) -> Result<SocketAddr, String> {
    let found = (server.host.as_str(), server.port).to_socket_addrs();
    let mut found = found.map_err(|error| format!("{} cannot be resolved: {error}", server.host))?;
    found.next().ok_or_else(|| format!("{} has no address", server.host))
}

/// See the module.
pub(super) enum Connection {
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Connection {
    /// Connects, and where `tls` says how, makes the handshake.
    pub(super) fn open(server: &Server, tls: Option<&Arc<ClientConfig>>) -> Result<Self, String> {
        let to = resolve(server)?;
        let fail = |error: io::Error| error.to_string();
        let tcp = TcpStream::connect_timeout(&to, PATIENCE).map_err(fail)?;
        tcp.set_write_timeout(Some(PATIENCE)).map_err(fail)?;
        tcp.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
        tcp.set_nodelay(true).map_err(fail)?;
        let socket = SockRef::from(&tcp);
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT)).map_err(fail)?;
        // What waits there is neither delivered nor in the lag.
        socket.set_send_buffer_size(SEND_BUFFER).map_err(fail)?;
        let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10));
        socket.set_tcp_keepalive(&keepalive).map_err(fail)?;
        let Some(config) = tls else { return Ok(Self::Tcp(tcp)) };
        let name = ServerName::try_from(server.host.clone())
            .map_err(|_| format!("{} is no name that a certificate could have", server.host))?;
        let client = ClientConnection::new(Arc::clone(config), name).map_err(|error| error.to_string())?;
        let mut stream = StreamOwned::new(client, tcp);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).map_err(|error| format!("TLS: {error}"))?;
        }
        Ok(Self::Tls(Box::new(stream)))
    }

    /// Writes everything.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.check()?;
        let sent = match self {
            Self::Tcp(stream) => stream.write_all(bytes),
            Self::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        };
        sent.map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => "it takes nothing for 4 seconds".to_owned(),
            _ => error.to_string(),
        })
    }

    /// Whether the other side ended it. What it says otherwise is passed over.
    pub(super) fn check(&mut self) -> Result<(), String> {
        let mut said = [0; 256];
        self.socket().set_nonblocking(true).map_err(|error| error.to_string())?;
        let read = match self {
            Self::Tcp(stream) => stream.read(&mut said),
            Self::Tls(stream) => stream.read(&mut said),
        };
        self.socket().set_nonblocking(false).map_err(|error| error.to_string())?;
        match read {
            Ok(0) => Err("it closed the connection".to_owned()),
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    const fn socket(&self) -> &TcpStream {
        match self {
            Self::Tcp(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }
}
