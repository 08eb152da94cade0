//! The PROXY header before a connection, of a forwarder that names its clients so.

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Caller, Frames, Limits, Round, StreamGate};
use crate::gate::Said;
use crate::wire::{PROXY_HEAD, proxy_length};

/// Reads the header and not an octet more: what follows may be a TLS handshake. It has no longer than a message.
///
/// # Errors
/// What came instead of a header, as far as it was read.
pub(super) async fn read(stream: &mut TcpStream, limits: &Limits) -> Result<Said, Vec<u8>> {
    let mut header = Vec::with_capacity(PROXY_HEAD);
    let whole = timeout(limits.receive, async {
        stream.take(PROXY_HEAD as u64).read_to_end(&mut header).await.ok()?;
        let length = proxy_length(header.first_chunk()?)?;
        stream.take(length as u64).read_to_end(&mut header).await.ok()
    });
    let whole = whole.await;
    match (whole, Said::of_header(&header).0) {
        (Ok(Some(_)), said) if !matches!(said, Said::Unproxied) => Ok(said),
        _ => Err(header),
    }
}

/// Records what came instead of a header as one message, which is not answered. Who said nothing at all has sent none.
pub(super) fn refuse<G: StreamGate>(gate: &G, caller: Caller, read: &[u8]) {
    if !read.is_empty() {
        gate.answer(&mut Frames::of(read), &Caller { said: Said::Unproxied, ..caller }, &mut Round::new(1));
    }
}
