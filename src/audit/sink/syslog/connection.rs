//! One connection, with TLS or without: it is written to, and asked whether it still is one.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig, ClientConnection};

use super::Server;
use crate::audit::sink::limit::{Limit, Limited};

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

/// Why something was not sent.
pub(super) enum Fault {
    /// There was no time left.
    Slow,
    /// One clause.
    Broken(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Slow,
            _ => Self::Broken(error.to_string()),
        }
    }
}

/// See the module.
pub(super) struct Connection {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl Connection {
    /// Connects, and where `tls` says how, makes the handshake, all within the limit.
    pub(super) fn open(server: &Server, tls: Option<&Arc<ClientConfig>>, limit: &mut Limit) -> Result<Self, String> {
        let to = resolve(server)?;
        let fail = |error: io::Error| error.to_string();
        let left = limit.left().map_err(|_| "there is no time left to connect".to_owned())?;
        let tcp = TcpStream::connect_timeout(&to, left).map_err(fail)?;
        tcp.set_nodelay(true).map_err(fail)?;
        let socket = SockRef::from(&tcp);
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT)).map_err(fail)?;
        // What waits there is neither delivered nor in the lag.
        socket.set_send_buffer_size(SEND_BUFFER).map_err(fail)?;
        let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10));
        socket.set_tcp_keepalive(&keepalive).map_err(fail)?;
        let Some(config) = tls else { return Ok(Self { socket: tcp, tls: None }) };
        let name = ServerName::try_from(server.host.clone())
            .map_err(|_| format!("{} is no name that a certificate could have", server.host))?;
        let mut client = ClientConnection::new(Arc::clone(config), name).map_err(|error| error.to_string())?;
        while client.is_handshaking() {
            client.complete_io(&mut Limited::new(&tcp, limit)).map_err(|error| match Fault::from(error) {
                Fault::Slow => "TLS: it does not answer".to_owned(),
                Fault::Broken(why) => format!("TLS: {why}"),
            })?;
        }
        Ok(Self { socket: tcp, tls: Some(Box::new(client)) })
    }

    /// Writes everything, within the limit.
    pub(super) fn send(&mut self, bytes: &[u8], limit: &mut Limit) -> Result<(), Fault> {
        self.check().map_err(Fault::Broken)?;
        let mut socket = Limited::new(&self.socket, limit);
        Ok(match &mut self.tls {
            None => socket.write_all(bytes),
            Some(client) => {
                let mut stream = rustls::Stream::new(&mut **client, &mut socket);
                stream.write_all(bytes).and_then(|()| stream.flush())
            }
        }?)
    }

    /// Whether the other side ended it. What it says otherwise is passed over.
    pub(super) fn check(&mut self) -> Result<(), String> {
        let mut said = [0; 256];
        self.socket.set_nonblocking(true).map_err(|error| error.to_string())?;
        let mut socket = &self.socket;
        let read = match &mut self.tls {
            None => socket.read(&mut said),
            Some(client) => rustls::Stream::new(&mut **client, &mut socket).read(&mut said),
        };
        self.socket.set_nonblocking(false).map_err(|error| error.to_string())?;
        match read {
            Ok(0) => Err("it closed the connection".to_owned()),
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}
