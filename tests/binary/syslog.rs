//! Sinks of kind `syslog`: against a collector that stops, and against rsyslog.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hickory_proto::op::Message;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;

use crate::dns::Client;
use crate::harness::{Site, free_port, loopback, until};
use crate::programs::{Running, are_here, command};

/// A receiver of octet-counted messages that can be stopped as SIGSTOP does it: its kernel still takes connections, and
/// what fits their buffers. Or it is killed: what it has not read is lost.
struct Collector {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
    /// How often it was killed.
    lives: Arc<AtomicUsize>,
    /// How often each record arrived.
    records: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Collector {
    fn start() -> Arc<Self> {
        let listener = TcpListener::bind(loopback(free_port())).unwrap();
        // What it has taken and not read is little: less than a second's load.
        socket2::SockRef::from(&listener).set_recv_buffer_size(1 << 16).unwrap();
        let collector = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            stopped: Arc::default(),
            lives: Arc::default(),
            records: Arc::default(),
        });
        let shared = Arc::clone(&collector);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.receive(stream.unwrap()));
            }
        });
        collector
    }

    /// Ends every connection, read or not, and takes new ones.
    fn kill_and_start(&self) {
        self.lives.fetch_add(1, Ordering::SeqCst);
        self.stop(false);
    }

    fn stop(&self, stop: bool) {
        self.stopped.store(stop, Ordering::SeqCst);
    }

    fn ids(&self) -> BTreeSet<String> {
        self.records.lock().unwrap().keys().cloned().collect()
    }

    fn receive(&self, stream: TcpStream) {
        let life = self.lives.load(Ordering::SeqCst);
        let mut reader = BufReader::new(stream);
        loop {
            while self.stopped.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            if self.lives.load(Ordering::SeqCst) != life {
                return;
            }
            let mut length = Vec::new();
            if reader.read_until(b' ', &mut length).unwrap_or(0) == 0 {
                return;
            }
            let length: usize = std::str::from_utf8(&length).unwrap().trim_end().parse().unwrap();
            let mut message = vec![0; length];
            if reader.read_exact(&mut message).is_err() {
                return;
            }
            let message = String::from_utf8(message).unwrap();
            let (header, record) = message.split_once("] ").unwrap();
            assert!(header.starts_with('<') && header.contains(">1 20"), "{header}");
            let record: Value = serde_json::from_str(record).unwrap();
            *self.records.lock().unwrap().entry(record["id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
    }
}

fn sink(server: &str, more: &str) -> String {
    format!("[[sink]]\nname = \"siem\"\nkind = \"syslog\"\nserver = \"{server}\"\nlinger = \"100ms\"\n{more}")
}

fn ids(site: &Site) -> BTreeSet<String> {
    site.records().iter().map(|record| record["id"].as_str().unwrap().to_owned()).collect()
}

/// Asks, some hundred queries a second, until told otherwise; each must be answered. How many were.
fn ask_until(site: &Site, end: &AtomicBool, answered: &AtomicUsize) {
    let client = Client::new(site.dns);
    while !end.load(Ordering::SeqCst) {
        client.told("www.corp.example");
        answered.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Load for this long, or until the fact holds; every query is answered.
fn under_load(site: &Site, until: impl Fn() -> bool) -> usize {
    let (end, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| ask_until(site, &end, &answered));
        let begin = Instant::now();
        // What is waited for may be so before anybody asked.
        let over = || until() && answered.load(Ordering::SeqCst) > 0;
        while !over() && begin.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(20));
        }
        end.store(true, Ordering::SeqCst);
    });
    answered.into_inner()
}

/// How long the collector stands still: seconds, or what the environment says
/// (`OUTGATE_SINK_STOPPED=60 cargo test --release --test binary a_collector_that_stops`).
fn standstill() -> Duration {
    let seconds = std::env::var("OUTGATE_SINK_STOPPED").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(3))
}

#[test]
fn a_collector_that_stops_misses_nothing() {
    let collector = Collector::start();
    let server = format!("tcp://{}", collector.address);
    let site = Site::new()
        .with("audit", "[audit]\nfile = \"query.jsonl\"\nrotate_size = \"1MiB\"\nmin_free = \"1MiB\"")
        .with("sink", sink(&server, "from = \"oldest\"\nbatch = 200\n"));
    let mut node = site.start();
    assert!(under_load(&site, || collector.ids().len() >= 50) > 0);
    collector.stop(true);
    let lag = || site.metric("outgate_audit_sink_lag_records{sink=\"siem\"}");
    let begin = Instant::now();
    let archived = || site.path("archive").read_dir().is_ok_and(|entries| entries.count() > 0);
    // Until it is seen to lag, the log was rotated, and the time is over.
    let answered = under_load(&site, || lag() > 1000.0 && archived() && begin.elapsed() > standstill());
    assert!(lag() > 1000.0 && archived(), "{answered} answers, lag {}", lag());
    collector.kill_and_start();
    under_load(&site, || lag() < 300.0);
    assert!(lag() < 1000.0, "lag {}", lag());
    collector.stop(true);
    under_load(&site, || lag() > 1000.0);
    node.kill();
    let mut node = site.start();
    assert!(under_load(&site, || lag() > 1000.0) > 0);
    collector.stop(false);
    until("the sink has caught up", || lag() == 0.0 && site.metric("outgate_audit_sink_up{sink=\"siem\"}") == 1.0);
    assert_eq!(node.stop(), Some(0));
    until("every record arrives", || collector.ids() == ids(&site));
    site.verified();
}

/// Labels that break what reads them carelessly.
const HOSTILE: [&[u8]; 12] = [
    b"a\0b\x01c\x1f\x7f",
    b"\"quoted\" 'and' `so`",
    b"two\nlines\r\n<134>1 - forged",
    b"CEF:0|a|b|c=d|e\\=f",
    "\u{2028}\u{2029}\u{85}".as_bytes(),
    b"\x1b[2J\x1b]0;title\x07",
    "\u{202e}txt.exe\u{200b}\u{feff}".as_bytes(),
    b"ends in a backslash\\",
    b"]] \\\"] %msg% ${x}",
    b"a.b",
    b"\xff\xfe",
    &[b'\\'; 63],
];

/// A query for a name of these labels under `hostile.example`.
fn packet(id: u16, label: &[u8]) -> Vec<u8> {
    let mut packet = vec![(id >> 8) as u8, id as u8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [label, b"hostile", b"example"] {
        packet.push(label.len() as u8);
        packet.extend_from_slice(label);
    }
    packet.extend_from_slice(&[0, 0, 1, 0, 1]);
    packet
}

/// A name's presentation, as records have it: RFC 1035 §5.1.
fn presented(label: &[u8]) -> String {
    let mut name = String::new();
    for byte in label.to_ascii_lowercase() {
        match byte {
            b'.' | b'\\' => name.extend(['\\', char::from(byte)]),
            b'!'..=b'~' => name.push(byte.into()),
            _ => name += &format!("\\{byte:03}"),
        }
    }
    format!("{name}.hostile.example")
}

/// What rsyslog made of the messages: type, structured data, text.
fn written(site: &Site) -> Vec<(String, String, Value)> {
    let text = fs::read_to_string(site.path("received")).unwrap_or_default();
    let line = |line: &str| {
        let (kind, rest) = line.split_once(' ')?;
        let (data, message) = rest.split_once("] ")?;
        Some((kind.to_owned(), data.to_owned(), serde_json::from_str(message.trim_start()).ok()?))
    };
    text.lines().map(|one| line(one).unwrap_or_else(|| panic!("{one:?}"))).collect()
}

fn rsyslog(site: &Site, module: &str, global: &str, port: u16) -> Running {
    site.file(
        "rsyslog.conf",
        &format!(
            "global(workDirectory=\"{here}\" maxMessageSize=\"64k\" {global})\n\
             module(load=\"{module}\"\n\
             template(name=\"kept\" type=\"string\" string=\"%msgid% %structured-data% %msg%\\n\")\n\
             ruleset(name=\"kept\") {{ action(type=\"omfile\" file=\"{here}/received\" template=\"kept\") }}\n\
             input(type=\"{kind}\" port=\"{port}\" address=\"127.0.0.1\" ruleset=\"kept\")\n",
            here = site.directory.display(),
            kind = module.split('"').next().unwrap(),
        ),
    );
    let (conf, pid) = (site.path("rsyslog.conf"), site.path("rsyslog.pid"));
    let running = Running::start(command("rsyslogd").arg("-n").arg("-f").arg(conf).arg("-i").arg(pid));
    // 0A: LISTEN; 07: a UDP socket without a peer.
    let (table, state) = if module.starts_with("imudp") { ("udp", "07") } else { ("tcp", "0A") };
    let listens = format!(":{port:04X} 00000000:0000 {state}");
    until("rsyslog listens", || fs::read_to_string(format!("/proc/net/{table}")).unwrap().contains(&listens));
    running
}

/// Every record arrives at rsyslog as one message, and names in it are what they were.
fn arrives_at_rsyslog(site: &Site, rsyslogd: Running) {
    let mut node = site.start();
    let client = Client::new(site.dns);
    for (number, label) in HOSTILE.iter().enumerate() {
        let reply = client.exchange(&packet(number as u16 + 1, label)).unwrap();
        assert!(Message::from_vec(&reply).is_ok());
    }
    client.told("www.corp.example");
    assert_eq!(node.stop(), Some(0));
    let all = ids(site);
    let id = |record: &Value| record["id"].as_str().unwrap().to_owned();
    let received = || written(site).iter().map(|(.., record)| id(record)).collect::<BTreeSet<_>>();
    until("every record arrives", || received() == all);
    let names: BTreeSet<String> =
        written(site).iter().filter_map(|(.., record)| Some(record["qname"].as_str()?.to_owned())).collect();
    for label in HOSTILE {
        assert!(names.contains(&presented(label)), "{}: {names:?}", presented(label));
    }
    for (kind, data, record) in written(site) {
        assert_eq!(kind, record["type"].as_str().unwrap());
        assert!(data.starts_with(&format!("[outgate@32473 id=\"{}\"", id(&record))), "{data}");
    }
    drop(rsyslogd);
}

#[test]
fn rsyslog_takes_every_record_over_tcp() {
    if !are_here(&["rsyslogd"]) {
        return;
    }
    let port = free_port();
    let site = Site::new().with("sink", sink(&format!("tcp://127.0.0.1:{port}"), "from = \"oldest\"\n"));
    let rsyslogd = rsyslog(&site, "imtcp\" maxFrameSize=\"65536\")", "", port);
    arrives_at_rsyslog(&site, rsyslogd);
}

#[test]
fn rsyslog_takes_every_record_over_udp() {
    if !are_here(&["rsyslogd"]) {
        return;
    }
    let port = free_port();
    let site =
        Site::new().with("sink", sink(&format!("udp://127.0.0.1:{port}"), "from = \"oldest\"\nlimit = \"16KiB\"\n"));
    let rsyslogd = rsyslog(&site, "imudp\")", "", port);
    arrives_at_rsyslog(&site, rsyslogd);
}

#[test]
fn rsyslog_takes_every_record_over_tls_from_those_it_knows() {
    let driver =
        ["/usr/lib/x86_64-linux-gnu/rsyslog/lmnsd_gtls.so", "/usr/lib/aarch64-linux-gnu/rsyslog/lmnsd_gtls.so"];
    if !are_here(&["rsyslogd"]) {
        return;
    }
    if !driver.iter().any(|driver| std::path::Path::new(driver).exists()) {
        crate::programs::skip("rsyslog-gnutls");
        return;
    }
    let port = free_port();
    let site = Site::new();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    site.file("ca.pem", &AsRef::<rcgen::Certificate>::as_ref(&ca).pem());
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        site.file(&format!("{name}.pem"), &params.signed_by(&key, &ca).unwrap().pem());
        site.file(&format!("{name}.key"), &key.serialize_pem());
        fs::set_permissions(site.path(&format!("{name}.key")), Permissions::from_mode(0o600)).unwrap();
    }
    let more = "from = \"oldest\"\nca = \"ca.pem\"\ncertificate = \"client.pem\"\nkey = \"client.key\"\n";
    let site = site.with("sink", sink(&format!("tls://127.0.0.1:{port}"), more));
    let here = site.directory.display();
    let global = format!(
        "defaultNetstreamDriver=\"gtls\" defaultNetstreamDriverCAFile=\"{here}/ca.pem\" \
         defaultNetstreamDriverCertFile=\"{here}/server.pem\" defaultNetstreamDriverKeyFile=\"{here}/server.key\""
    );
    let module = "imtcp\" maxFrameSize=\"65536\" streamDriver.name=\"gtls\" streamDriver.mode=\"1\" \
                  streamDriver.authMode=\"x509/certvalid\")";
    let rsyslogd = rsyslog(&site, module, &global, port);
    arrives_at_rsyslog(&site, rsyslogd);
    // A server that is not who it should be is told nothing.
    let other = CertificateParams::new(Vec::new()).unwrap().self_signed(&KeyPair::generate().unwrap()).unwrap();
    site.file("ca.pem", &other.pem());
    let _rsyslogd = rsyslog(&site, module, &global, port);
    let before = written(&site).len();
    let mut node = site.start();
    until("the sink is down for that", || {
        Client::new(site.dns).told("www.corp.example");
        site.run(&["status"]).stdout.contains(&format!("127.0.0.1:{port}: TLS: "))
    });
    assert_eq!(site.metric("outgate_audit_sink_up{sink=\"siem\"}"), 0.0);
    assert_eq!(node.stop(), Some(0));
    assert_eq!(written(&site).len(), before);
}

#[test]
fn mistakes_are_told_with_place_and_remedy() {
    for (more, part) in [
        ("server = \"siem.example\"", "write \"tls://siem.example:6514\""),
        ("server = \"tcp://x\"\nca = \"ca.pem\"", "`ca` is of no use without TLS"),
        ("server = \"tls://x\"\nca = \"missing.pem\"", "missing.pem cannot be read"),
        ("server = \"tcp://x\"\nfacility = \"local9\"", "`facility` cannot be \"local9\""),
        ("server = \"tcp://x\"\ndetail = \"summary\"", "\"summary:60s\""),
        ("server = \"tcp://x\"\ntypes = [\"querys\"]", "`types` cannot hold \"querys\""),
        ("server = \"tcp://x\"\nclient = \"hash\"", "write \"plain\", \"hmac\" or \"prefix\""),
        ("server = \"tcp://x\"\nclient_key = \"k\"", "add client = \"hmac\""),
        ("server = \"tcp://x\"\nbtach = 1", "did you mean `batch`?"),
    ] {
        let site = Site::new().with("sink", format!("[[sink]]\nname = \"siem\"\nkind = \"syslog\"\n{more}\n"));
        let ended = site.run(&["check"]);
        assert_eq!(ended.code, Some(2), "{more}: {}", ended.stdout);
        assert!(ended.stderr.contains(part) && ended.stderr.contains("outgate.toml:"), "{more}: {}", ended.stderr);
    }
}
