//! Questions over one persistent TCP connection, pipelined; with TLS where a certificate is given.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use outgate::time::{Clock, Tick};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::door::{Door, Failure};
use crate::mix::Questions;
use crate::window::{Tally, Window};

/// What one call reads at most.
const READ: usize = 64 << 10;

/// One connection with its buffers.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    tls: Option<ClientConnection>,
    window: Window,
    /// Queries with their lengths, not yet sent.
    out: Vec<u8>,
    /// Answers with their lengths, the last perhaps not whole.
    received: Vec<u8>,
    read: Vec<u8>,
}

impl Connection {
    /// Connects; with a certificate it shakes hands and believes this one alone.
    pub(crate) fn new(server: SocketAddrV4, certificate: Option<&Path>, window: usize) -> Result<Self, Failure> {
        let mut stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        let mut tls = certificate.map(|path| client(server, path)).transpose()?;
        while let Some(tls) = tls.as_mut().filter(|tls| tls.is_handshaking()) {
            tls.complete_io(&mut stream)?;
        }
        stream.set_nonblocking(true)?;
        let window = Window::new(window);
        Ok(Self { stream, tls, window, out: Vec::new(), received: Vec::new(), read: vec![0; READ] })
    }

    /// Sends what is there to send, as far as the kernel takes it; the rest goes with the next queries or answers.
    fn flush(&mut self) -> Result<(), Failure> {
        let written = match &mut self.tls {
            None => self.stream.write(&self.out).inspect(|written| drop(self.out.drain(..*written))),
            Some(tls) => {
                tls.writer().write_all(&self.out)?;
                self.out.clear();
                let mut written = Ok(0);
                while tls.wants_write() && written.is_ok() {
                    written = tls.write_tls(&mut self.stream);
                }
                written
            }
        };
        match written {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Reads once: how many octets of answers, or nothing where there is nothing to read.
    fn read(&mut self) -> Result<Option<usize>, Failure> {
        let read = match &mut self.tls {
            None => self.stream.read(&mut self.read),
            Some(tls) => match tls.read_tls(&mut self.stream) {
                Ok(0) => Ok(0),
                Ok(_) => {
                    tls.process_new_packets()?;
                    let mut read = 0;
                    while let Some(room) = self.read.get_mut(read..).filter(|room| !room.is_empty()) {
                        match tls.reader().read(room) {
                            Ok(more) => read += more,
                            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                            Err(error) => return Err(error.into()),
                        }
                    }
                    self.received.extend_from_slice(self.read.get(..read).unwrap_or_default());
                    return Ok(Some(read));
                }
                Err(error) => Err(error),
            },
        };
        match read {
            Ok(0) => Err("the server closed the connection".into()),
            Ok(read) => {
                self.received.extend_from_slice(self.read.get(..read).unwrap_or_default());
                Ok(Some(read))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Door for Connection {
    fn window(&mut self) -> &mut Window {
        &mut self.window
    }

    fn ask(&mut self, count: usize, questions: &mut Questions, now: Tick) -> Result<usize, Failure> {
        let mut asked = 0;
        while asked < count.min(self.window.room()) {
            let Some((_, query)) = questions.next() else { break };
            let Some(id) = self.window.take(now) else { break };
            let length = u16::try_from(query.len()).unwrap_or(0);
            self.out.extend_from_slice(&length.to_be_bytes());
            self.out.extend_from_slice(&id.to_be_bytes());
            self.out.extend_from_slice(query.get(2..).unwrap_or_default());
            asked += 1;
        }
        self.flush()?;
        Ok(asked)
    }

    fn receive(&mut self, tally: &mut Tally, clock: &Clock) -> Result<(), Failure> {
        while let Some(read) = self.read()? {
            let now = clock.tick();
            let mut at = 0;
            while let Some((length, rest)) = self.received.get(at..).and_then(|rest| rest.split_first_chunk()) {
                let Some(message) = rest.get(..usize::from(u16::from_be_bytes(*length))) else { break };
                tally.message(message, &mut self.window, now);
                at += length.len() + message.len();
            }
            self.received.drain(..at);
            if read < READ && self.tls.is_none() {
                break;
            }
        }
        self.flush()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn client(server: SocketAddrV4, certificate: &Path) -> Result<ClientConnection, Failure> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate)?)?;
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(ClientConnection::new(Arc::new(config), ServerName::IpAddress((*server.ip()).into()))?)
}
