//! DNS over HTTPS: real clients, what HTTP says of it, and those who mean harm.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use hickory_proto::op::Message;

use crate::disk::fill;
use crate::dns::{Client, a, addresses};
use crate::harness::{Ended, Site, end, privileged, small_disk, until, with_own_mounts};
use crate::restart::{tcp, udp};
use crate::tls::{Encrypted, client, connect, connect_from};
use crate::upstream::{Upstream, with_addresses};

/// A site that serves DNS over HTTPS, and its address.
fn site() -> (Site, SocketAddr) {
    crate::tls::site("https")
}

fn kdig(site: &Site, address: SocketAddr, arguments: &[&str]) -> Ended {
    let (host, port) = (format!("@{}", address.ip()), address.port().to_string());
    let authority = format!("+tls-ca={}", site.path("tls/cert.pem").display());
    let fixed = [&*host, "-p", &*port, "+https", &*authority, "+tls-hostname=dns.example.org"];
    end(Command::new("kdig").args(fixed).args(arguments))
}

/// `curl` with the site's certificate; status, headers and how long the body is.
fn curl(site: &Site, address: SocketAddr, path: &str, arguments: &[&str]) -> Ended {
    let url = format!("https://dns.example.org:{}{path}", address.port());
    let resolve = format!("dns.example.org:{}:127.0.0.1", address.port());
    let fixed = ["-sS", "-o", "body", "-D", "-", "--cacert", "tls/cert.pem", "--resolve", &resolve, &url];
    end(Command::new("curl").current_dir(&site.directory).args(fixed).args(arguments))
}

fn closed(site: &Site, why: &str) -> f64 {
    site.metric(&format!("outgate_streams_closed_total{{why=\"{why}\"}}"))
}

#[test]
fn kdig_is_told_the_same_as_over_the_other_transports() {
    let upstream = Upstream::start();
    let (site, address) = site();
    let site = site.with_servers(&[upstream.address]);
    let mut node = site.start();
    let asked = [
        ("www.corp.example", "192.0.2.80"),
        ("x.example.net", "198.51.100.7"),
        ("never.corp.example", "status: NXDOMAIN"),
        ("api.example.com", "status: NXDOMAIN"),
    ];
    for (name, expected) in asked {
        for method in ["+https", "+https-get"] {
            let ended = kdig(&site, address, &[method, "+padding", name, "A"]);
            assert!(ended.stdout.contains("HTTP session (HTTP/2-"), "{ended:?}");
            assert!(ended.stdout.contains(expected), "{name}: {ended:?}");
            assert!(ended.stdout.contains("Received 468 B"), "{name}: {ended:?}");
        }
        Client::new(site.dns).told(name);
    }
    let facts = |transport: &str| -> Vec<Vec<serde_json::Value>> {
        let keys = ["qname", "verdict", "reason", "rule", "rcode", "segment", "client"];
        let records = site.queries().into_iter().filter(|record| record["transport"] == transport);
        records.map(|record| keys.map(|key| record[key].clone()).to_vec()).collect()
    };
    let twice: Vec<_> = facts("udp").into_iter().flat_map(|facts| [facts.clone(), facts]).collect();
    assert_eq!(twice.len(), 8);
    assert_eq!(facts("doh"), twice);
    assert_eq!(site.metric("outgate_responses_total{rcode=\"NXDOMAIN\",transport=\"doh\"}"), 4.0);
    let status = site.run(&["status"]).stdout;
    assert!(status.contains(&format!("doh {address}")), "{status}");
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn who_comes_while_no_process_runs_is_answered_by_the_next() {
    let (site, address) = site();
    let sockets = [udp(site.dns), tcp(site.dns), tcp(address)];
    let query = data_encoding::BASE64URL_NOPAD.encode(&a("www.corp.example").to_vec().unwrap());
    for _ in 0..2 {
        // It is connected when this returns: the connection waits in the socket.
        let mut early = connect(address, &client(&site, &[b"http/1.1"]));
        let mut node = site.start_given(&sockets.each_ref());
        assert!(!node.stderr().contains("WARN"), "{}", node.stderr());
        let request = format!("GET /dns-query?dns={query} HTTP/1.1\r\nhost: dns.example.org\r\n\r\n");
        early.0.write_all(request.as_bytes()).unwrap();
        let mut reply = [0; 15];
        early.0.read_exact(&mut reply).unwrap();
        assert_eq!(reply, *b"HTTP/1.1 200 OK");
        assert_eq!(node.stop(), Some(0), "{}", node.stderr());
    }
    site.verified();
}

#[test]
fn curl_resolves_by_it() {
    let (site, address) = site();
    let _node = site.start();
    let doh = format!("https://127.0.0.1:{}/dns-query", address.port());
    // Where it connects to then does not matter: nobody is there.
    let arguments = ["-sS", "--doh-url", &*doh, "--doh-insecure", "--connect-timeout", "1", "http://www.corp.example/"];
    end(Command::new("curl").args(arguments));
    let asked: Vec<_> =
        site.queries().into_iter().map(|record| (record["transport"].clone(), record["qtype"].clone())).collect();
    assert!(asked.contains(&("doh".into(), "A".into())), "{asked:?}");
}

#[test]
fn http_says_what_became_of_it() {
    let (site, address) = site();
    let mut node = site.start();
    fs::write(site.path("query"), a("www.corp.example").to_vec().unwrap()).unwrap();
    fs::write(site.path("refused"), a("api.example.com").to_vec().unwrap()).unwrap();
    fs::write(site.path("reply"), [0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    fs::write(site.path("iquery"), [0, 0, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    fs::write(site.path("long"), vec![0; 4_097]).unwrap();
    let message = ["-H", "content-type: application/dns-message", "--data-binary"];
    let rows: [(&str, &[&str], &str, &[&str]); 10] = [
        (
            "/dns-query",
            &[message[0], message[1], message[2], "@query"],
            " 200",
            &["application/dns-message", "private, max-age="],
        ),
        ("/dns-query", &[message[0], message[1], message[2], "@refused"], " 200", &["private, max-age=5"]),
        ("/dns-query", &[message[0], message[1], message[2], "@iquery"], " 200", &["no-store"]),
        ("/dns-query", &[message[0], message[1], message[2], "@reply"], " 400", &["no-store"]),
        ("/dns-query", &[message[0], message[1], message[2], "@long"], " 413", &["no-store"]),
        ("/dns-query", &["--data-binary", "@query"], " 415", &["no-store"]),
        ("/dns-query", &[], " 400", &["no-store"]),
        ("/dns-query", &["-X", "DELETE"], " 405", &["allow: get, post"]),
        ("/", &[], " 404", &["no-store"]),
        ("/dns-query?dns=AAABAAABAAAAAAAAA3d3dwRjb3JwB2V4YW1wbGUAAAEAAQ", &[], " 200", &["private, max-age="]),
    ];
    for version in ["--http2", "--http1.1"] {
        for (path, arguments, status, headers) in rows {
            let ended = curl(&site, address, path, &[&[version], arguments].concat());
            let head = ended.stdout.to_lowercase();
            let first = head.lines().next().unwrap_or_default();
            assert!(first.contains(status), "{version} {path} {arguments:?}: {ended:?}");
            assert_eq!(first.starts_with("http/2"), version == "--http2", "{first}");
            for header in headers {
                assert!(head.contains(header), "{header}: {ended:?}");
            }
        }
        let reply = Message::from_vec(&fs::read(site.path("body")).unwrap()).unwrap();
        assert_eq!(addresses(&reply), ["192.0.2.80"]);
    }
    // Everything that could be a message has its record, and nothing else has.
    let records: Vec<_> = site.queries().into_iter().map(|record| record["rcode"].clone()).collect();
    let each: [serde_json::Value; 5] =
        ["NOERROR".into(), "NXDOMAIN".into(), "NOTIMP".into(), serde_json::Value::Null, "NOERROR".into()];
    assert_eq!(records, [each.clone(), each].concat());
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn without_a_record_there_is_no_answer() {
    if !privileged() {
        return;
    }
    with_own_mounts(|| {
        let (site, address) = site();
        small_disk(&site.path("disk"), 2 << 20);
        let audit =
            "[audit]\nfile = \"disk/query.jsonl\"\nrotate_size = \"1MiB\"\nmax_size = \"2MiB\"\nmin_free = \"1KiB\"";
        let site = site.with("audit", audit);
        let _node = site.start();
        fill(&site.path("disk/filler"));
        let impatient = Client::new(site.dns).patience(Duration::from_millis(300));
        while impatient.ask(&a("www.corp.example")).is_some() {}
        fs::write(site.path("query"), a("www.corp.example").to_vec().unwrap()).unwrap();
        let message = ["-H", "content-type: application/dns-message", "--data-binary", "@query"];
        let ended = curl(&site, address, "/dns-query", &message);
        assert!(ended.stdout.starts_with("HTTP/2 503"), "{ended:?}");
        assert_eq!(fs::read_to_string(site.path("body")).unwrap(), "the query could not be recorded\n");
    });
}

/// HTTP/1.1 over TLS, as raw as wanted.
fn raw(site: &Site, address: SocketAddr, text: &[u8]) -> Encrypted {
    let mut stream = connect(address, &client(site, &[b"http/1.1"]));
    stream.0.write_all(text).unwrap();
    stream
}

/// All that comes until the connection ends.
fn rest(mut stream: Encrypted) -> String {
    let mut said = Vec::new();
    let _ = stream.0.read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

const POST: &str = "POST /dns-query HTTP/1.1\r\nHost: x\r\nContent-Type: application/dns-message\r\nContent-Length: ";

#[test]
fn what_is_no_request_ends_and_harms_nobody() {
    let (site, address) = site();
    let mut node = site.start();
    // Slow heads, slow bodies, bodies that lie about their length, heads without end, and no HTTP at all.
    let silent = raw(&site, address, b"GET /dns-q");
    let trickling = raw(&site, address, format!("{POST}33\r\n\r\nabc").as_bytes());
    let giant = raw(&site, address, format!("{POST}4294967296\r\n\r\n").as_bytes());
    let endless = raw(&site, address, format!("GET /dns-query?dns={} HTTP/1.1\r\n", "A".repeat(60_000)).as_bytes());
    let junk = raw(&site, address, &[0xff; 400]);
    assert!(rest(giant).starts_with("HTTP/1.1 413 "));
    assert!(!rest(endless).contains("200 OK"));
    assert!(!rest(junk).contains("200 OK"));
    assert!(rest(trickling).starts_with("HTTP/1.1 408 "));
    // A preface of HTTP/2 and then nothing; one whose frames make no sense.
    let mut half = connect(address, &client(&site, &[b"h2"]));
    half.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut senseless = connect(address, &client(&site, &[b"h2"]));
    senseless.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x01\x04\0\0\0\x01").unwrap();
    rest(senseless);
    assert!(kdig(&site, address, &["www.corp.example"]).stdout.contains("192.0.2.80"));
    assert_eq!(rest(silent), "", "after the idle time");
    rest(half);
    until("every seat is free", || site.metric("outgate_streams") == 0.0);
    assert!(closed(&site, "idle") >= 2.0, "{}", closed(&site, "idle"));
    assert_eq!(site.queries().len(), 1);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

/// A frame of HTTP/2 (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HEADERS that ask for this message, and end their stream.
fn get(stream: u32, message: &Message) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let octets = message.to_vec().unwrap();
    let bits: Vec<u8> = octets.iter().flat_map(|octet| (0..8).rev().map(move |bit| octet >> bit & 1)).collect();
    let letter = |six: &[u8]| (0..6).fold(0, |value, bit| value << 1 | usize::from(six.get(bit).copied().unwrap_or(0)));
    let text: String = bits.chunks(6).map(|six| char::from(LETTERS[letter(six)])).collect();
    let path = format!("/dns-query?dns={text}");
    let length = u8::try_from(path.len()).unwrap();
    assert!(length < 127, "one octet of HPACK");
    // :method GET, :scheme https, :path and :authority as literals (RFC 7541, appendix A and §6.2.2).
    let block = [&[0x82, 0x87, 0x04, length], path.as_bytes(), &[0x01, 1, b'x']].concat();
    frame(1, 0x5, stream, &block)
}

/// The preface and SETTINGS, an INITIAL_WINDOW_SIZE among them where one is given.
fn preface(window: Option<u32>) -> Vec<u8> {
    let settings = window.map_or_else(Vec::new, |window| [&[0, 4], &window.to_be_bytes()[..]].concat());
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(4, 0, 0, &settings)].concat()
}

#[test]
fn requests_that_are_taken_back_at_once_end_the_connection() {
    let upstream = Upstream::saying(|_| None);
    let (site, address) = site();
    let site = site.with_servers(&[upstream.address]);
    let mut node = site.start();
    let mut stream = connect(address, &client(&site, &[b"h2"]));
    stream.0.write_all(&preface(None)).unwrap();
    // CVE-2023-44487: each is begun and reset, so that none ever counts as open. None is answered by the upstream.
    let mut sent = 0;
    for number in 0..20_000_u32 {
        let id = 2 * number + 1;
        let request = [get(id, &a(&format!("n{number}.example.net"))), frame(3, 0, id, &8_u32.to_be_bytes())].concat();
        if stream.0.write_all(&request).is_err() {
            break;
        }
        sent += 1;
    }
    assert!(sent < 20_000, "it would go on for ever");
    drop(stream);
    assert!(site.metric("outgate_slow_queue_depth") <= 256.0, "what one client may have waiting");
    let mut other = connect_from([127, 0, 0, 9], address, &client(&site, &[b"http/1.1"]));
    let body = a("www.corp.example").to_vec().unwrap();
    let request = [format!("{POST}{}\r\nConnection: close\r\n\r\n", body.len()).as_bytes(), &body].concat();
    other.0.write_all(&request).unwrap();
    assert!(rest(other).starts_with("HTTP/1.1 200 "));
    until("what waited has ended", || site.metric("outgate_slow_queue_depth") == 0.0);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn a_client_that_opens_no_window_loses_its_seat() {
    let (site, address) = site();
    let mut node = site.start();
    let mut stream = connect(address, &client(&site, &[b"h2"]));
    stream.0.write_all(&preface(Some(0))).unwrap();
    for number in 0..150 {
        stream.0.write_all(&get(2 * number + 1, &a("www.corp.example"))).unwrap();
    }
    rest(stream);
    until("its seat is free", || site.metric("outgate_streams") == 0.0);
    // Those above the limit were refused before they were read.
    assert_eq!(site.queries().len(), 100);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn a_client_that_connects_without_end_keeps_to_its_seats() {
    let (site, address) = site();
    let _node = site.start();
    let flood: Vec<_> = (0..500).filter_map(|_| std::net::TcpStream::connect(address).ok()).collect();
    until("most are turned away", || closed(&site, "client") >= 484.0);
    let mut other = connect_from([127, 0, 0, 9], address, &client(&site, &[b"http/1.1"]));
    other.0.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    assert!(rest(other).starts_with("HTTP/1.1 404 "));
    drop(flood);
}

#[test]
fn stopping_answers_what_waits_and_records_what_was_taken_back() {
    let (ready, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::saying(move |question| {
        let _ = wait.lock().unwrap().recv_timeout(Duration::from_secs(1));
        Some(with_addresses(question, 1))
    });
    let (site, address) = site();
    let site = site.with_servers(&[upstream.address]);
    let mut node = site.start();
    let query = |name: &str| {
        let body = a(name).to_vec().unwrap();
        [format!("{POST}{}\r\n\r\n", body.len()).as_bytes(), &body].concat()
    };
    let waits = raw(&site, address, &query("one.example.net"));
    let gone = raw(&site, address, &query("two.example.net"));
    until("both wait", || site.metric("outgate_slow_queue_depth") == 2.0);
    drop(gone);
    node.signal(nix::sys::signal::Signal::SIGTERM);
    ready.send(()).unwrap();
    ready.send(()).unwrap();
    assert!(rest(waits).starts_with("HTTP/1.1 200 "));
    assert_eq!(node.wait(), Some(0));
    let mut names: Vec<_> = site.queries().into_iter().map(|record| record["qname"].clone()).collect();
    names.sort_by_key(ToString::to_string);
    assert_eq!(names, ["one.example.net", "two.example.net"]);
    site.verified();
}
