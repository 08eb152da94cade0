//! Receivers here are threads; those of others are in tests/binary/dnstap.rs.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::audit::fixture::{self, Directory};
use crate::audit::sink::Record;

/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(20);
/// For what never comes.
const SHORT: Duration = Duration::from_millis(300);

/// What a receiver of a test is connected by.
trait Stream: Read + Write + Send + 'static {}
impl<T: Read + Write + Send + 'static> Stream for T {}

fn receiver(place: Place, clock: &Clock) -> Receiver {
    Receiver { place, clock: clock.clone(), stop: Arc::default(), patience: LONG, link: None, rest: Vec::new() }
}

/// What a receiver says to READY.
type Answer = fn(&mut dyn Write);

/// A Unix socket and who sends to it.
fn local(clock: &Clock) -> (Directory, UnixListener, Receiver) {
    let directory = Directory::new();
    let path = directory.path().join("dnstap.sock");
    let listener = UnixListener::bind(&path).unwrap();
    (directory, listener, receiver(Place::Unix(path), clock))
}

/// A frame with these octets, as the format writes it.
fn framed(octets: &[u8]) -> Vec<u8> {
    [&u32::try_from(octets.len()).unwrap().to_be_bytes(), octets].concat()
}

fn records(frames: &[&[u8]]) -> Vec<Record> {
    let record = |octets: &&[u8]| Record {
        id: "1-1-1".into(),
        kind: "query".into(),
        ts: "".into(),
        node: "n".into(),
        segment: None,
        verdict: None,
        bytes: framed(octets),
    };
    frames.iter().map(record).collect()
}

fn say(stream: &mut impl Write, control: Control) {
    let mut frame = Vec::new();
    control.write(&mut frame);
    stream.write_all(&frame).unwrap();
}

/// The receiver's half of the greeting.
fn greet(stream: &mut (impl Read + Write)) {
    assert_eq!(Control::read(stream).unwrap(), (Control::Ready, true));
    say(stream, Control::Accept);
    assert_eq!(Control::read(stream).unwrap(), (Control::Start, true));
}

/// The frames up to STOP.
fn frames(stream: &mut impl Read) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        if length == [0; 4] {
            assert_eq!(Control::read(&mut length.as_slice().chain(&mut *stream)).unwrap(), (Control::Stop, true));
            return frames;
        }
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut frame).unwrap();
        frames.push(frame);
    }
}

/// A receiver that does all that it should, once; what it read.
fn good(mut stream: impl Stream) -> thread::JoinHandle<Vec<Vec<u8>>> {
    thread::spawn(move || {
        greet(&mut stream);
        let frames = frames(&mut stream);
        say(&mut stream, Control::Finish);
        frames
    })
}

#[test]
fn a_place_is_a_path_or_a_host_with_a_port() {
    let tcp = |at: &str| Some(Place::Tcp(at.to_owned()));
    let rows = [
        ("unix:///run/dnstap.sock", Some(Place::Unix("/run/dnstap.sock".into()))),
        ("unix://run/dnstap.sock", None),
        ("unix://", None),
        ("tcp://collector.example.net:6000", tcp("collector.example.net:6000")),
        ("tcp://192.0.2.1:6000", tcp("192.0.2.1:6000")),
        ("tcp://[2001:db8::1]:6000", tcp("[2001:db8::1]:6000")),
        ("tcp://2001:db8::1:6000", None),
        ("tcp://[collector]:6000", None),
        ("tcp://collector", None),
        ("tcp://collector:0", None),
        ("tcp://collector:65536", None),
        ("tcp://:6000", None),
        ("tcp://a b:6000", None),
        ("udp://192.0.2.1:6000", None),
    ];
    for (url, expected) in rows {
        assert_eq!(place(url), expected, "{url}");
    }
    assert_eq!(place(&format!("unix:///{}", "a".repeat(200))), None, "no socket has so long a path");
}

#[test]
fn what_was_confirmed_is_in_doubt_no_more() {
    let clock = Clock::manual();
    let (_directory, listener, mut sender) = local(&clock);
    assert_eq!(sender.unsure(), Duration::ZERO);
    let reader = thread::spawn(move || good(listener.accept().unwrap().0).join().unwrap());
    assert_eq!(sender.deliver(&Batch { records: &records(&[b"one", b"two"]) }), Delivered::All);
    assert_eq!(sender.deliver(&Batch { records: &records(&[b"three"]) }), Delivered::All);
    assert_eq!(sender.check(), Ok(()));
    assert_eq!(sender.unsure(), Duration::MAX);
    assert_eq!(sender.end(), Ok(()));
    assert_eq!(sender.unsure(), Duration::ZERO);
    assert_eq!(reader.join().unwrap(), [b"one".as_slice(), b"two", b"three"]);
}

#[test]
fn hostile_names_are_a_query_and_a_response_each() {
    let format = crate::audit::format::FORMATS.iter().find(|format| format.name == "dnstap").unwrap();
    let clock = Clock::system();
    let (_directory, listener, mut sender) = local(&clock);
    let reader = thread::spawn(move || good(listener.accept().unwrap().0).join().unwrap());
    let record = |line: &str| {
        let mut bytes = Vec::new();
        assert!((format.write)(line, &mut bytes), "{line}");
        Record { bytes, ..records(&[b""]).remove(0) }
    };
    let (names, records): (Vec<_>, Vec<_>) =
        fixture::hostile().into_iter().map(|(name, line)| (name, record(&line))).unzip();
    assert_eq!(sender.deliver(&Batch { records: &records }), Delivered::All);
    assert_eq!(sender.end(), Ok(()));
    let frames = reader.join().unwrap();
    assert_eq!(frames.len(), 2 * names.len());
    for (name, frames) in names.iter().zip(frames.chunks(2)) {
        // The question, with type and class.
        let question = [name.as_wire(), &[0, 1, 0, 1]].concat();
        for frame in frames {
            assert!(frame.windows(question.len()).any(|part| part == question), "{name}");
        }
    }
}

#[test]
fn a_connection_lasts_a_minute_busy_or_idle() {
    for busy in [true, false] {
        let clock = Clock::manual();
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut sender = receiver(Place::Tcp(listener.local_addr().unwrap().to_string()), &clock);
        let reader = thread::spawn(move || [(); 2].map(|()| good(listener.accept().unwrap().0).join().unwrap()));
        assert_eq!(sender.deliver(&Batch { records: &records(&[b"one"]) }), Delivered::All);
        clock.advance(LASTS);
        if busy {
            assert_eq!(sender.deliver(&Batch { records: &records(&[b"two"]) }), Delivered::All);
        } else {
            assert_eq!(sender.check(), Ok(()));
        }
        assert_eq!(sender.unsure(), Duration::ZERO, "busy {busy}");
        assert_eq!(sender.deliver(&Batch { records: &records(&[b"three"]) }), Delivered::All);
        assert_eq!(sender.unsure(), Duration::MAX, "busy {busy}");
        assert_eq!(sender.end(), Ok(()));
        let [first, second] = reader.join().unwrap();
        assert_eq!((first.len(), second.len()), (1 + usize::from(busy), 1));
    }
}

#[test]
fn a_receiver_that_goes_away_is_noticed_and_returned_to() {
    let clock = Clock::manual();
    let (_directory, listener, mut sender) = local(&clock);
    let reader = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        greet(&mut stream);
        drop(stream);
        good(listener.accept().unwrap().0).join().unwrap()
    });
    // The first may be written before it is gone.
    let _ = sender.deliver(&Batch { records: &records(&[b"one"]) });
    let mut checked = sender.check();
    while sender.link.is_some() {
        checked = sender.check();
    }
    assert!(checked.is_ok() || checked.is_err_and(|why| why.contains("it closed the connection")));
    assert_eq!(sender.deliver(&Batch { records: &records(&[b"one"]) }), Delivered::All);
    assert_eq!(sender.end(), Ok(()));
    assert_eq!(reader.join().unwrap(), [b"one"]);
}

#[test]
fn one_that_reads_slowly_gets_whole_frames_in_their_order() {
    let (_directory, listener, mut sender) = local(&Clock::system());
    let (go, wait) = mpsc::channel();
    let reader = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        greet(&mut stream);
        wait.recv().unwrap();
        let frames = frames(&mut stream);
        say(&mut stream, Control::Finish);
        frames
    });
    let octets: Vec<Vec<u8>> = (0..100_u8).map(|number| vec![number; 20_000]).collect();
    let mut rest = records(&octets.iter().map(Vec::as_slice).collect::<Vec<_>>());
    assert_eq!(sender.deliver(&Batch { records: &rest[..1] }), Delivered::All);
    rest.remove(0);
    sender.patience = SHORT;
    let mut answers = Vec::new();
    while !rest.is_empty() {
        let delivered = sender.deliver(&Batch { records: &rest });
        match &delivered {
            Delivered::All => rest.clear(),
            Delivered::Some { again, .. } => {
                assert!(again.is_sorted() && again.last() == Some(&(rest.len() - 1)));
                rest.drain(..again[0]);
                sender.patience = LONG;
                go.send(()).unwrap();
            }
            Delivered::Failed { why, .. } => panic!("{why}"),
        }
        answers.push(delivered);
    }
    assert!(answers.len() > 1, "its socket has no room for all");
    assert_eq!(sender.end(), Ok(()));
    assert_eq!(reader.join().unwrap(), octets);
}

#[test]
fn who_does_not_speak_it_is_told_by_what_it_lacks() {
    let rows: [(&str, Answer, &str); 5] = [
        ("silence", |_| (), "it did not answer READY: it did not read or answer in time"),
        (
            "other content",
            |stream| drop(stream.write_all(b"\0\0\0\0\0\0\0\x0d\0\0\0\x01\0\0\0\x01\0\0\0\x01x")),
            "it takes no dnstap",
        ),
        ("other words", |stream| drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")), "is no Frame Streams"),
        (
            "out of order",
            |stream| {
                let mut frame = Vec::new();
                Control::Finish.write(&mut frame);
                drop(stream.write_all(&frame));
            },
            "it did not answer READY with ACCEPT",
        ),
        ("hung up", |stream| drop(stream.write_all(b"\0\0")), "it closed the connection"),
    ];
    for (reason, answer, expected) in rows {
        let (_directory, listener, mut sender) = local(&Clock::system());
        let (done, wait) = mpsc::channel::<()>();
        let stays = reason == "silence";
        sender.patience = if stays { SHORT } else { LONG };
        let reader = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            Control::read(&mut stream).unwrap();
            answer(&mut stream);
            if stays {
                let _ = wait.recv();
            }
        });
        match sender.deliver(&Batch { records: &records(&[b"one"]) }) {
            Delivered::Failed { why, wait: None } => {
                assert!(why.starts_with("unix:///") && why.contains(expected), "{reason}: {why}");
            }
            other => panic!("{reason}: {other:?}"),
        }
        assert_eq!(sender.unsure(), Duration::ZERO);
        drop(done);
        reader.join().unwrap();
    }
}

#[test]
fn a_node_that_stops_waits_for_no_receiver() {
    for greets in [false, true] {
        let clock = Clock::system();
        let (_directory, listener, mut sender) = local(&clock);
        let stop = Arc::<AtomicBool>::default();
        sender.heed(&stop);
        let (done, wait) = mpsc::channel::<()>();
        let raised = Arc::clone(&stop);
        let reader = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            if greets {
                greet(&mut stream);
            }
            raised.store(true, Ordering::Relaxed);
            let _ = wait.recv();
        });
        let begin = clock.tick();
        let octets = vec![0; 1 << 22];
        let delivered = sender.deliver(&Batch { records: &records(&[&octets]) });
        // Of the frame that was begun the rest is kept: it was taken, for as long as the connection lasts.
        assert_eq!(matches!(delivered, Delivered::All), greets, "{delivered:?}");
        assert_eq!(sender.end().is_err(), greets);
        assert!(clock.tick().since(begin) < LONG);
        drop(done);
        reader.join().unwrap();
    }
}

#[test]
fn without_a_finish_nothing_is_confirmed() {
    for hangs_up in [true, false] {
        let (_directory, listener, mut sender) = local(&Clock::system());
        let (done, wait) = mpsc::channel::<()>();
        let reader = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            greet(&mut stream);
            if hangs_up {
                // STOP is read, and it goes without a word: nothing is unread, or the connection would have been reset.
                frames(&mut stream);
            } else {
                let _ = wait.recv();
            }
        });
        assert_eq!(sender.deliver(&Batch { records: &records(&[b"one"]) }), Delivered::All);
        let ended = sender.finish(if hangs_up { LONG } else { SHORT });
        drop(done);
        reader.join().unwrap();
        assert_eq!(ended.is_ok(), hangs_up, "{ended:?}");
    }
}

#[test]
fn nobody_there_is_said_with_a_remedy() {
    let directory = Directory::new();
    let mut sender = receiver(Place::Unix(directory.path().join("none.sock")), &Clock::system());
    let Delivered::Failed { why, .. } = sender.deliver(&Batch { records: &records(&[b"one"]) }) else { panic!() };
    assert!(why.ends_with("is the receiver running?"), "{why}");
}
