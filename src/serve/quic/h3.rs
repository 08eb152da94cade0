//! DNS over HTTPS with HTTP/3 (RFC 9114): the requests of serve/https over streams of QUIC.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use h3::error::Code;
use h3::server::{Connection as Requests, RequestResolver, RequestStream};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Buf as _, Bytes, Frame};
use hyper::{Method, Response};
use quinn::Connection;
use tokio::time::timeout;

use super::carrier::{Carrier, Half, Limit};
use super::{End, Exchange, Exchanged, Speaker, ending_of};
use crate::serve::https::{Client, HEAD};
use crate::serve::tcp::{Ending, Limits, StreamGate};

// RFC 9114 §8.1: the error codes.
const NO_ERROR: u32 = 0x100;
const EXCESSIVE_LOAD: u32 = 0x107;

/// What a connection may send of control frames and of streams that are no requests, in octets: thousands of
/// PRIORITY_UPDATE. Who sends more has to connect anew.
const CONTROL: usize = 64 * 1024;

/// See the module.
pub(super) struct H3<'a, G> {
    connection: &'a Connection,
    requests: Requests<Carrier, Bytes>,
    client: Client<G>,
    limits: &'a Limits,
}

impl<'a, G> H3<'a, G> {
    /// Opens the control streams.
    pub(super) async fn new(connection: &'a Connection, client: Client<G>, limits: &'a Limits) -> Result<Self, Ending> {
        // The codec keeps a frame until it is whole, so what it is given is bounded: a head twice, since a body may
        // have a trailer, and the body that exchange::message reads.
        let limit = Limit { request: 2 * HEAD as usize + 2 * limits.message + 1024, control: CONTROL };
        let mut builder = h3::server::builder();
        let builder = builder.max_field_section_size(HEAD.into()).send_grease(false);
        match timeout(limits.handshake, builder.build(Carrier::new(connection.clone(), limit))).await {
            Ok(Ok(requests)) => Ok(Self { connection, requests, client, limits }),
            Ok(Err(_)) => Err(connection.close_reason().as_ref().map_or(Ending::Broken, ending_of)),
            Err(_) => Err(Ending::Stalled),
        }
    }
}

impl<G: StreamGate> Speaker for H3<'_, G> {
    const DONE: u32 = NO_ERROR;
    const EXCESS: u32 = EXCESSIVE_LOAD;

    async fn next(&mut self) -> Result<Exchange, End> {
        match self.requests.accept().await {
            Ok(Some(request)) => Ok(Box::pin(exchange(request, self.client.clone(), *self.limits))),
            Ok(None) => Err(End { ending: Ending::Peer, code: NO_ERROR }),
            // What is wrong with it was told by the codec.
            Err(_) => {
                let reason = self.connection.close_reason();
                Err(End { ending: reason.as_ref().map_or(Ending::Broken, ending_of), code: NO_ERROR })
            }
        }
    }
}

async fn exchange<G: StreamGate>(
    request: RequestResolver<Carrier, Bytes>,
    client: Client<G>,
    limits: Limits,
) -> Exchanged {
    let Ok(Ok((request, stream))) = timeout(limits.receive, request.resolve_request()).await else {
        return Exchanged::Nothing;
    };
    let (mut send, receive) = stream.split();
    let is_head = request.method() == Method::HEAD;
    let response = client.serve(request.map(|()| Content(receive))).await;
    let sent = async {
        let (parts, body) = response.into_parts();
        let Ok(body) = body.collect().await;
        send.send_response(Response::from_parts(parts, ())).await?;
        // RFC 9110 §9.3.2: "the server MUST NOT send content in the response" to HEAD.
        if !is_head {
            send.send_data(body.to_bytes()).await?;
        }
        send.finish().await
    };
    match timeout(limits.send, sent).await {
        // An error: the client wants it no more.
        Ok(_) => Exchanged::Answered,
        Err(_) => {
            send.stop_stream(Code::H3_EXCESSIVE_LOAD);
            Exchanged::End(End { ending: Ending::Stalled, code: EXCESSIVE_LOAD })
        }
    }
}

/// What a request carries.
struct Content(RequestStream<Half, Bytes>);

impl Body for Content {
    type Data = Bytes;
    type Error = h3::error::StreamError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(match ready!(self.0.poll_recv_data(cx)) {
            Ok(Some(mut data)) => Some(Ok(Frame::data(data.copy_to_bytes(data.remaining())))),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        })
    }
}
