//! dnstap as its reference programs read it: fstrm_capture takes it, dnstap-read shows it.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RecordType};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::dns::{Client, a, query, with_edns};
use crate::harness::{Site, end, free_port, until};
use crate::programs::{Running, are_here, command};

/// An fstrm_capture, and what it writes to.
struct Capture {
    running: Running,
    file: PathBuf,
}

impl Capture {
    fn start(site: &Site, url: &str) -> Self {
        let file = site.path("captured.fstrm");
        let mut capture = command("fstrm_capture");
        capture.args(["-t", "protobuf:dnstap.Dnstap", "-w"]).arg(&file);
        match url.strip_prefix("unix://") {
            Some(path) => capture.args(["-u", path]),
            None => capture.args(["-a", "127.0.0.1", "-p", url.rsplit_once(':').unwrap().1]),
        };
        let running = Running::start(&mut capture);
        until("fstrm_capture listens", || match url.strip_prefix("unix://") {
            Some(path) => UnixStream::connect(path).is_ok(),
            None => TcpStream::connect(url.strip_prefix("tcp://").unwrap()).is_ok(),
        });
        Self { running, file }
    }

    /// Stops it: it writes what it still has.
    fn stop(mut self) -> PathBuf {
        kill(Pid::from_raw(i32::try_from(self.running.0.id()).unwrap()), Signal::SIGTERM).unwrap();
        until("fstrm_capture ends", || self.running.0.try_wait().unwrap().is_some());
        self.file.clone()
    }
}

/// Pairs of lines: what a frame is, and its message in hexadecimal digits.
fn frames(file: &Path) -> Vec<(String, String)> {
    let ended = end(command("dnstap-read").arg("-x").arg(file));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    lines.chunks(2).map(|pair| (pair[0].to_owned(), pair[1].to_lowercase())).collect()
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// A site with a sink, and where that delivers to.
fn site(place: &str) -> (Site, String) {
    let site = Site::new();
    let url = match place {
        "unix" => format!("unix://{}", site.path("dnstap.sock").display()),
        _ => format!("tcp://127.0.0.1:{}", free_port()),
    };
    let sink = format!("[[sink]]\nname = \"tap\"\nkind = \"dnstap\"\nurl = \"{url}\"\nlinger = \"20ms\"");
    (site.with("sink", sink), url)
}

/// Asks; the reply's octets.
fn ask(client: &Client, message: &Message) -> Vec<u8> {
    let mut reply = vec![0; 4096];
    client.socket.send(&message.to_vec().unwrap()).unwrap();
    let length = client.socket.recv(&mut reply).unwrap();
    reply.truncate(length);
    reply
}

#[test]
fn the_reference_receiver_gets_what_clients_got() {
    if !are_here(&["fstrm_capture", "dnstap-read"]) {
        return;
    }
    let mut hostile = a("nobody.example");
    let labels = [b"a\n\"\\.'b\0\xff".as_slice(), b"nobody", b"example"];
    hostile.queries[0].set_name(Name::from_labels(labels).unwrap());
    for place in ["unix", "tcp"] {
        let (site, url) = site(place);
        let capture = Capture::start(&site, &url);
        let mut node = site.start();
        let client = Client::new(site.dns);
        let asked = [
            a("www.corp.example"),
            with_edns(a("www.corp.example"), 1232),
            query("www.corp.example", RecordType::AAAA),
            query("nowhere.corp.example", RecordType::TXT),
            with_edns(a("never.corp.example"), 1232),
            a("never.corp.example"),
            hostile.clone(),
        ];
        let told: Vec<_> = asked.iter().map(|message| ask(&client, message)).collect();
        assert_eq!(node.stop(), Some(0), "{}", node.stderr());
        let frames = frames(&capture.stop());

        let from = client.socket.local_addr().unwrap();
        assert_eq!(frames.len(), 2 * asked.len(), "{frames:?}");
        for (pair, (asked, told)) in frames.chunks(2).zip(asked.iter().zip(&told)) {
            let [query, response] = pair else { unreachable!() };
            let what = &asked.queries[0];
            for (line, way) in [(&query.0, format!("CQ {from} -> ? UDP")), (&response.0, format!("CR {from} <- ? UDP"))]
            {
                assert!(line.contains(&way), "{line}");
                assert!(line.ends_with(&format!("/IN/{}", what.query_type())), "{line}");
            }
            assert_eq!(query.1, hex(&asked.to_vec().unwrap()), "{what}");
            let negative = told[3] & 0xf == 3 && what.name().to_ascii().starts_with("nowhere");
            if negative {
                // Its SOA is not in the record.
                assert_eq!(response.1.get(..8), hex(told).get(..8), "{what}");
            } else {
                assert_eq!(response.1, hex(told), "{what}");
            }
        }
    }
}

#[test]
fn a_converted_log_is_read() {
    if !are_here(&["dnstap-read"]) {
        return;
    }
    let site = Site::new();
    let mut node = site.start();
    let client = Client::new(site.dns);
    let asked = [a("www.corp.example"), with_edns(a("never.corp.example"), 1232)];
    let told: Vec<_> = asked.iter().map(|message| ask(&client, message)).collect();
    assert_eq!(node.stop(), Some(0));
    let ended = site.run(&["log", "convert", "--to", "dnstap", "-o", "queries.fstrm"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let frames: Vec<_> = frames(&site.path("queries.fstrm")).into_iter().map(|(_, message)| message).collect();
    let messages = asked.iter().zip(&told).flat_map(|(asked, told)| [asked.to_vec().unwrap(), told.clone()]);
    assert_eq!(frames, messages.map(|message| hex(&message)).collect::<Vec<_>>());
}

#[test]
fn a_receiver_that_comes_late_or_again_gets_everything() {
    if !are_here(&["fstrm_capture", "dnstap-read"]) {
        return;
    }
    let (site, url) = site("unix");
    let mut node = site.start();
    let client = Client::new(site.dns);
    let ids: Vec<u16> = (0..3)
        .map(|_| {
            let message = a("www.corp.example");
            ask(&client, &message);
            message.metadata.id
        })
        .collect();
    let said = |what: &str, times: usize| {
        until(what, || node.stderr().matches(what).count() >= times);
    };
    said("is the receiver running?", 1);
    let mut capture = Capture::start(&site, &url);
    said("takes records again", 1);
    // What it has not written yet is lost.
    capture.running.kill();
    std::fs::remove_file(site.path("dnstap.sock")).unwrap();
    said("takes no records", 2);
    let capture = Capture::start(&site, &url);
    said("takes records again", 2);
    // Nor does a node that is killed know what has arrived, but one that was stopped does.
    node.kill();
    for _ in 0..2 {
        assert_eq!(site.start().stop(), Some(0));
    }
    let frames = frames(&capture.stop());
    for id in ids {
        let of = frames.iter().filter(|(_, message)| message.starts_with(&format!("{id:04x}"))).count();
        assert_eq!(of, 4, "{id}: {frames:?}");
    }
}
