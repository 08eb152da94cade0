//! DNS over HTTPS with HTTP/3: the semantics of the other versions, and those who mean harm.

use std::net::SocketAddr;

use h3::client::SendRequest;
use hickory_proto::op::Message;
use hyper::body::{Buf as _, Bytes};
use hyper::{Method, Request, Response};
use nix::sys::signal::Signal;
use quinn::{Connection, WriteError};

use crate::dns::{a, addresses, with_edns};
use crate::harness::{Site, until};
use crate::quic::{Client, code_of, run};
use crate::restart::{tcp, udp};
use crate::tls::client;

#[path = "../../src/serve/quic/carrier.rs"]
mod carrier;

use carrier::{Carrier, Limit};

const MEDIA_TYPE: &str = "application/dns-message";

/// A site that serves DNS over HTTP/3, and its address.
fn site() -> (Site, SocketAddr) {
    crate::tls::site("h3")
}

async fn raw(site: &Site, address: SocketAddr) -> Connection {
    Client::new(&client(site, &[b"h3"])).connect(address).await.unwrap()
}

/// A client of HTTP/3.
struct Http {
    connection: Connection,
    requests: tokio::sync::Mutex<SendRequest<Carrier, Bytes>>,
}

impl Http {
    async fn new(site: &Site, address: SocketAddr) -> Self {
        let connection = raw(site, address).await;
        let carrier = Carrier::new(connection.clone(), Limit { request: 1 << 20, control: 1 << 20 });
        let (mut driver, requests) = h3::client::new(carrier).await.unwrap();
        tokio::spawn(async move { driver.wait_idle().await });
        Self { connection, requests: requests.into() }
    }

    async fn send(&self, method: Method, path: &str, kind: Option<&str>, body: &[u8]) -> (Response<()>, Vec<u8>) {
        let mut request = Request::builder().method(method).uri(format!("https://dns.example.org{path}"));
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let mut stream = self.requests.lock().await.send_request(request.body(()).unwrap()).await.unwrap();
        if !body.is_empty() {
            // Refused, it is not read to its end.
            let _ = stream.send_data(Bytes::copy_from_slice(body)).await;
        }
        let _ = futures_util::FutureExt::now_or_never(stream.finish());
        let response = stream.recv_response().await.unwrap();
        let mut body = Vec::new();
        while let Some(mut data) = stream.recv_data().await.unwrap() {
            body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
        (response, body)
    }

    async fn post(&self, query: Message) -> Message {
        let (response, body) = self.send(Method::POST, "/dns-query", Some(MEDIA_TYPE), &query.to_vec().unwrap()).await;
        assert_eq!(response.status(), 200);
        Message::from_vec(&body).unwrap()
    }
}

fn closed(site: &Site, why: &str) -> f64 {
    site.metric(&format!("outgate_streams_closed_total{{why=\"{why}\"}}"))
}

#[test]
fn it_is_told_as_over_the_other_versions() {
    let (site, address) = site();
    let mut node = site.start();
    run(async {
        let http = Http::new(&site, address).await;
        assert_eq!(addresses(&http.post(a("www.corp.example")).await), ["192.0.2.80"]);
        // RFC 8484 §4.1.1, of a name that is allowed here: id 0.
        let mut query = with_edns(a("www.corp.example"), 1232);
        query.metadata.id = 0;
        let text = data_encoding::BASE64URL_NOPAD.encode(&query.to_vec().unwrap());
        let (response, body) = http.send(Method::GET, &format!("/dns-query?dns={text}"), None, b"").await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], MEDIA_TYPE);
        let kept = response.headers()["cache-control"].to_str().unwrap();
        assert!(kept.starts_with("private, max-age="), "{kept}");
        assert_eq!(addresses(&Message::from_vec(&body).unwrap()), ["192.0.2.80"]);
        let rows = [
            (Method::POST, "/", Some(MEDIA_TYPE), 20, 404),
            (Method::HEAD, "/dns-query", None, 0, 405),
            (Method::PUT, "/dns-query", Some(MEDIA_TYPE), 20, 405),
            (Method::GET, "/dns-query?dns=AA==", None, 0, 400),
            (Method::POST, "/dns-query", Some(MEDIA_TYPE), 0, 400),
            (Method::POST, "/dns-query", Some("text/plain"), 20, 415),
            (Method::POST, "/dns-query", Some(MEDIA_TYPE), 5_000, 413),
            (Method::POST, "/dns-query", Some(MEDIA_TYPE), 60_000, 413),
        ];
        for (method, path, kind, length, status) in rows {
            let (response, body) = http.send(method.clone(), path, kind, &vec![0; length]).await;
            assert_eq!(response.status(), status, "{method} {path}");
            assert_eq!(response.headers()["cache-control"], "no-store");
            assert_eq!(body.is_empty(), method == Method::HEAD);
        }
        let long = format!("/dns-query?dns={}", "A".repeat(6_000));
        assert_eq!(http.send(Method::GET, &long, None, b"").await.0.status(), 414);
        // A hundred at once, on the same connection.
        let replies = futures_util::future::join_all((0..100).map(|_| http.post(a("www.corp.example")))).await;
        assert!(replies.iter().all(|reply| addresses(reply) == ["192.0.2.80"]));
        let records = site.queries();
        assert_eq!(records.iter().filter(|record| record["transport"] == "doh3").count(), records.len());
        assert_eq!(records.iter().filter(|record| record["verdict"] == "allow").count(), 102);
        assert!(site.metric("outgate_responses_total{rcode=\"NOERROR\",transport=\"doh3\"}") == 102.0);
        assert_eq!(site.metric("outgate_streams"), 1.0);
        node.signal(Signal::SIGTERM);
        // RFC 9114 §8.1: H3_NO_ERROR.
        assert_eq!(code_of(&http.connection).await, 0x100);
        assert_eq!(node.wait(), Some(0));
    });
    site.verified();
}

#[test]
fn a_restart_on_its_socket_keeps_nobody_out() {
    let (site, address) = site();
    let sockets = [udp(site.dns), tcp(site.dns), udp(address)];
    for _ in 0..2 {
        let mut node = site.start_given(&sockets.each_ref());
        assert!(!node.stderr().contains("WARN"), "{}", node.stderr());
        run(async {
            let http = Http::new(&site, address).await;
            assert_eq!(addresses(&http.post(a("www.corp.example")).await), ["192.0.2.80"]);
            assert_eq!(node.stop(), Some(0), "{}", node.stderr());
            // H3_NO_ERROR.
            assert_eq!(code_of(&http.connection).await, 0x100);
        });
    }
    site.verified();
}

#[test]
fn what_is_without_end_is_not_kept() {
    let (site, address) = site();
    let mut node = site.start();
    run(async {
        // A head that says it has a megabyte, and sends it.
        let connection = raw(&site, address).await;
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        send.write_all(&[0x01, 0x80, 0x10, 0, 0]).await.unwrap();
        let stopped = loop {
            if let Err(error) = send.write_all(&[0; 1_024]).await {
                break error;
            }
        };
        assert!(matches!(stopped, WriteError::Stopped(_)), "{stopped}");
        // SETTINGS, and a frame of a reserved type that is as long as frames can be: H3_CLOSED_CRITICAL_STREAM.
        let mut control = connection.open_uni().await.unwrap();
        control.write_all(&[0, 4, 0, 0x21, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
        while control.write_all(&[0; 1_024]).await.is_ok() {}
        assert_eq!(code_of(&connection).await, 0x104);
        // A stream of frames that mean nothing, one of bodies, and one that only begins.
        let connection = raw(&site, address).await;
        for (begin, frame) in [(&[][..], &[0x21, 0x40, 0x40][..]), (&[0x01, 0x00], &[0x00, 0x40, 0x40])] {
            let (mut send, _receive) = connection.open_bi().await.unwrap();
            let _ = send.write_all(begin).await;
            while send.write_all(&[frame, &[0; 64]].concat()).await.is_ok() {}
        }
        until("both are counted", || closed(&site, "broken") == 2.0);
        let http = Http::new(&site, address).await;
        assert_eq!(addresses(&http.post(a("www.corp.example")).await), ["192.0.2.80"]);
    });
    assert_eq!(site.queries().len(), 1);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn junk_ends_its_connection_alone() {
    let (site, address) = site();
    let mut node = site.start();
    run(async {
        let http = Http::new(&site, address).await;
        // Streams that bring no request, until there are too many of them: H3_EXCESSIVE_LOAD.
        let connection = raw(&site, address).await;
        while let Ok((mut send, _receive)) = connection.open_bi().await {
            let _ = send.write_all(&[0x01]).await;
            let _ = send.reset(0x10c_u32.into());
        }
        assert_eq!(code_of(&connection).await, 0x107);
        let mut random = 1_u32;
        for round in 0..300 {
            let connection = raw(&site, address).await;
            let junk: Vec<u8> = (0..200)
                .map(|_| {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (random >> 24) as u8
                })
                .collect();
            // A head of junk behind the prefix that all have, a frame of junk, a side stream of junk.
            let stream = [&[0x01, 0x40, 200, 0, 0][..], &junk[..198]].concat();
            if round % 3 == 2 {
                let mut send = connection.open_uni().await.unwrap();
                let _ = send.write_all(&junk).await;
            } else {
                let (mut send, mut receive) = connection.open_bi().await.unwrap();
                let _ = send.write_all(if round % 3 == 0 { &stream } else { &junk }).await;
                let _ = send.finish();
                let _ = receive.read_to_end(1_000).await;
            }
            connection.close(0x100_u32.into(), b"");
        }
        assert_eq!(addresses(&http.post(a("www.corp.example")).await), ["192.0.2.80"]);
    });
    assert!(site.queries().len() == 1);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}
