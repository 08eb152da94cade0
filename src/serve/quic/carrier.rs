//! Streams of QUIC for the HTTP/3 codec, which bounds nothing of what it is given: this does.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use hyper::body::{Buf as _, Bytes};
use quinn::{Connection, ConnectionError, ReadError, StoppedError, VarInt, WriteError};

/// How many octets of a stream are taken at a time.
const PIECE: usize = 2048;

/// How much the codec may be given, in octets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// Of one request.
    pub(super) request: usize,
    /// Of all streams of a connection that are no requests.
    pub(super) control: usize,
}

/// Something of a connection that comes in its time.
type Coming<T> = Pin<Box<dyn Future<Output = T> + Send + Sync>>;

/// A connection of QUIC.
pub(super) struct Carrier {
    connection: Connection,
    limit: Limit,
    /// What is left of [`Limit::control`].
    control: Arc<AtomicUsize>,
    accepting_bi: Option<Coming<Result<(quinn::SendStream, quinn::RecvStream), ConnectionError>>>,
    accepting_uni: Option<Coming<Result<quinn::RecvStream, ConnectionError>>>,
    opening_bi: Option<Coming<Result<(quinn::SendStream, quinn::RecvStream), ConnectionError>>>,
    opening_uni: Option<Coming<Result<quinn::SendStream, ConnectionError>>>,
}

impl Carrier {
    pub(super) fn new(connection: Connection, limit: Limit) -> Self {
        Self {
            connection,
            limit,
            control: Arc::new(AtomicUsize::new(limit.control)),
            accepting_bi: None,
            accepting_uni: None,
            opening_bi: None,
            opening_uni: None,
        }
    }

    fn both(&self, (send, receive): (quinn::SendStream, quinn::RecvStream)) -> Both {
        let left = Arc::new(AtomicUsize::new(self.limit.request));
        Both { send: Sender::new(send), receive: Half { stream: receive, left } }
    }
}

/// Polls what comes, beginning to wait for it where nobody does yet.
fn poll<T>(slot: &mut Option<Coming<T>>, cx: &mut Context<'_>, begin: impl FnOnce() -> Coming<T>) -> Poll<T> {
    let come = ready!(slot.get_or_insert_with(begin).as_mut().poll(cx));
    *slot = None;
    Poll::Ready(come)
}

impl quic::Connection<Bytes> for Carrier {
    type RecvStream = Half;
    type OpenStreams = Self;

    fn poll_accept_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Half, ConnectionErrorIncoming>> {
        let Self { connection, accepting_uni, control, .. } = self;
        let begin = || -> Coming<_> {
            let connection = connection.clone();
            Box::pin(async move { connection.accept_uni().await })
        };
        let accepted = ready!(poll(accepting_uni, cx, begin));
        Poll::Ready(accepted.map(|stream| Half { stream, left: Arc::clone(control) }).map_err(gone))
    }

    fn poll_accept_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Both, ConnectionErrorIncoming>> {
        let Self { connection, accepting_bi, .. } = self;
        let begin = || -> Coming<_> {
            let connection = connection.clone();
            Box::pin(async move { connection.accept_bi().await })
        };
        let accepted = ready!(poll(accepting_bi, cx, begin));
        Poll::Ready(accepted.map(|streams| self.both(streams)).map_err(gone))
    }

    fn opener(&self) -> Self {
        Self { control: Arc::clone(&self.control), ..Self::new(self.connection.clone(), self.limit) }
    }
}

impl quic::OpenStreams<Bytes> for Carrier {
    type BidiStream = Both;
    type SendStream = Sender;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Both, StreamErrorIncoming>> {
        let Self { connection, opening_bi, .. } = self;
        let begin = || -> Coming<_> {
            let connection = connection.clone();
            Box::pin(async move { connection.open_bi().await })
        };
        let opened = ready!(poll(opening_bi, cx, begin));
        Poll::Ready(opened.map(|streams| self.both(streams)).map_err(lost))
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<Sender, StreamErrorIncoming>> {
        let Self { connection, opening_uni, .. } = self;
        let begin = || -> Coming<_> {
            let connection = connection.clone();
            Box::pin(async move { connection.open_uni().await })
        };
        let opened = ready!(poll(opening_uni, cx, begin));
        Poll::Ready(opened.map(Sender::new).map_err(lost))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.connection.close(code_of(code.value()), reason);
    }
}

/// What the client sends on a stream.
pub(super) struct Half {
    stream: quinn::RecvStream,
    /// What may still be read.
    left: Arc<AtomicUsize>,
}

impl quic::RecvStream for Half {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let mut piece = [0; PIECE];
        let length = ready!(self.stream.poll_read(cx, &mut piece)).map_err(|error| match error {
            ReadError::Reset(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() },
            ReadError::ConnectionLost(error) => lost(error),
            other => StreamErrorIncoming::Unknown(Box::new(other)),
        })?;
        let less = |left: usize| left.checked_sub(length);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_err() {
            return Poll::Ready(Err(StreamErrorIncoming::StreamTerminated {
                error_code: Code::H3_EXCESSIVE_LOAD.value(),
            }));
        }
        let piece = piece.get(..length).filter(|piece| !piece.is_empty());
        Poll::Ready(Ok(piece.map(Bytes::copy_from_slice)))
    }

    fn stop_sending(&mut self, code: u64) {
        // An error: all of it was read.
        let _ = self.stream.stop(code_of(code));
    }

    fn recv_id(&self) -> StreamId {
        id(self.stream.id())
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        // RFC 9114 §4.1: a server that needs no more of a request asks the client to stop, "with the code H3_NO_ERROR".
        let _ = self.stream.stop(code_of(Code::H3_NO_ERROR.value()));
    }
}

/// What the client is sent on a stream.
pub(super) struct Sender {
    stream: quinn::SendStream,
    writing: Option<WriteBuf<Bytes>>,
    begun: bool,
    /// Its end was sent; this comes when the client has it all.
    received: Option<Coming<Result<Option<VarInt>, StoppedError>>>,
}

impl Sender {
    fn new(stream: quinn::SendStream) -> Self {
        Self { stream, writing: None, begun: false, received: None }
    }
}

impl quic::SendStream<Bytes> for Sender {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        while let Some(data) = self.writing.as_mut().filter(|data| data.remaining() > 0) {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, data.chunk()));
            let written = written.map_err(|error| match error {
                WriteError::Stopped(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() },
                WriteError::ConnectionLost(error) => lost(error),
                other => StreamErrorIncoming::Unknown(Box::new(other)),
            })?;
            data.advance(written);
        }
        self.writing = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.begun = true;
        self.writing = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        let Self { stream, received, .. } = self;
        if received.is_none() && stream.finish().is_err() {
            return Poll::Ready(Ok(()));
        }
        let received = ready!(poll(received, cx, || Box::pin(stream.stopped())));
        Poll::Ready(received.map(|_| ()).map_err(|error| StreamErrorIncoming::Unknown(Box::new(error))))
    }

    fn reset(&mut self, code: u64) {
        // An error: the client has it all, or wants none of it.
        let _ = self.stream.reset(code_of(code));
    }

    fn send_id(&self) -> StreamId {
        id(self.stream.id())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // Without this the client would see a response that ends before it begins.
        if !self.begun {
            let _ = self.stream.reset(code_of(Code::H3_REQUEST_CANCELLED.value()));
        }
    }
}

/// Both directions of a request's stream.
pub(super) struct Both {
    send: Sender,
    receive: Half,
}

impl quic::SendStream<Bytes> for Both {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(cx)
    }

    fn reset(&mut self, code: u64) {
        self.send.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

impl quic::RecvStream for Both {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.receive.poll_data(cx)
    }

    fn stop_sending(&mut self, code: u64) {
        self.receive.stop_sending(code);
    }

    fn recv_id(&self) -> StreamId {
        self.receive.recv_id()
    }
}

impl quic::BidiStream<Bytes> for Both {
    type SendStream = Sender;
    type RecvStream = Half;

    fn split(self) -> (Sender, Half) {
        (self.send, self.receive)
    }
}

fn code_of(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

#[expect(clippy::expect_used, reason = "an id of either crate is any integer below 2^62")]
fn id(id: quinn::StreamId) -> StreamId {
    StreamId::try_from(VarInt::from(id).into_inner()).expect("below 2^62")
}

fn gone(error: ConnectionError) -> ConnectionErrorIncoming {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            ConnectionErrorIncoming::ApplicationClose { error_code: close.error_code.into_inner() }
        }
        ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        other => ConnectionErrorIncoming::Undefined(Arc::new(other)),
    }
}

fn lost(error: ConnectionError) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error: gone(error) }
}
