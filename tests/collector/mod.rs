//! A server that collects records over HTTP: Splunk's event collector, `_bulk`, or lines, as they document themselves;
//! and, where a script says so, one that is busy, strict, broken or hostile.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use flate2::read::MultiGzDecoder;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Splunk,
    Bulk,
    Lines,
}

/// What is done with the next request.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// What it asks for.
    Serve,
    /// Nothing of it is taken; this status, these header lines, this body.
    Say(u16, &'static str, String),
    /// Of `_bulk`: these statuses and kinds of errors for these positions.
    Items(Vec<(usize, u16, &'static str)>),
    /// Nothing is taken, the connection closed.
    Close,
    /// All is taken, and the connection closed before, or in, the reply.
    TakeAndClose,
    TakeAndBreak,
    /// Not a word, until the other side closes.
    Silence,
    /// These octets for ever; the first once.
    Flood(&'static str, &'static str),
}

/// What it has, and how it is.
#[derive(Default)]
pub(crate) struct State {
    /// The records by id, each as often as it came.
    pub(crate) taken: BTreeMap<String, Vec<Value>>,
    /// The ids in the order in which they came.
    pub(crate) order: Vec<String>,
    /// Of Splunk: what stood around each record.
    pub(crate) envelopes: Vec<Value>,
    /// Path and header of every request, header names in lower case.
    pub(crate) requests: Vec<(String, BTreeMap<String, String>)>,
    pub(crate) connections: usize,
    /// What is done with the next requests, and then with all.
    pub(crate) script: VecDeque<Act>,
    /// What `Authorization` must be.
    pub(crate) authorization: Option<String>,
    /// The largest body.
    pub(crate) largest: Option<usize>,
    /// The index that may be written to.
    pub(crate) index: Option<String>,
    /// A record that has this text in it is refused.
    pub(crate) poison: Option<&'static str>,
    /// A larger body ends the connection.
    pub(crate) breaks_off: Option<usize>,
    /// Splunk acknowledges, after so many questions.
    pub(crate) acknowledges: Option<usize>,
    asked: BTreeMap<u64, usize>,
    next: u64,
    /// What is indexed once it is acknowledged.
    waiting: BTreeMap<u64, Vec<(String, Value)>>,
}

impl State {
    fn take(&mut self, id: &str, record: Value) {
        self.order.push(id.to_owned());
        self.taken.entry(id.to_owned()).or_default().push(record);
    }
}

/// The id of a record in the log's own format, ECS or OCSF.
fn id_of(record: &Value) -> String {
    let places = [&record["id"], &record["event"]["id"], &record["metadata"]["uid"]];
    places.into_iter().find_map(Value::as_str).unwrap().to_owned()
}

/// One server on loopback; closed when dropped.
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
}

impl Collector {
    pub(crate) fn start(speaks: Speaks, tls: Option<Arc<ServerConfig>>) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), speaks, tls, Arc::default())
    }

    /// With what another one had.
    pub(crate) fn on(
        listener: TcpListener,
        speaks: Speaks,
        tls: Option<Arc<ServerConfig>>,
        state: Arc<Mutex<State>>,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let stop = Arc::<AtomicBool>::default();
        let (shared, stopped) = (Arc::clone(&state), Arc::clone(&stop));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(stream), shared, tls) = (stream, Arc::clone(&shared), tls.clone()) else { continue };
                shared.lock().connections += 1;
                // How a connection ends is the client's to judge.
                thread::spawn(move || match tls {
                    None => serve(stream, speaks, &shared),
                    Some(config) => {
                        serve(StreamOwned::new(ServerConnection::new(config).unwrap(), stream), speaks, &shared);
                    }
                });
            }
        });
        Self { address, state, stop }
    }

    /// What is done next.
    pub(crate) fn script(&self, acts: impl IntoIterator<Item = Act>) {
        self.state.lock().script = acts.into_iter().collect();
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.state.lock().taken.keys().cloned().collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _wakes = TcpStream::connect(self.address);
    }
}

struct Request {
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

/// The octets of a stream that may be buffered.
struct Reader<S> {
    stream: S,
    octets: Vec<u8>,
}

impl<S: Read> Reader<S> {
    fn more(&mut self) -> io::Result<()> {
        let mut part = [0; 16 * 1024];
        let read = self.stream.read(&mut part)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.octets.extend_from_slice(&part[..read]);
        Ok(())
    }

    fn request(&mut self) -> io::Result<Request> {
        let end = loop {
            if let Some(end) = self.octets.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            self.more()?;
        };
        let head = String::from_utf8(self.octets[..end].to_vec()).unwrap();
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap();
        let path = first.strip_prefix("POST ").unwrap().strip_suffix(" HTTP/1.1").unwrap().to_owned();
        let header = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_ascii_lowercase(), value.to_owned())
        };
        let headers: BTreeMap<String, String> = lines.map(header).collect();
        let length: usize = headers["content-length"].parse().unwrap();
        while self.octets.len() < end + 4 + length {
            self.more()?;
        }
        let mut body: Vec<u8> = self.octets.drain(..end + 4 + length).skip(end + 4).collect();
        if headers.get("content-encoding").is_some_and(|coding| coding == "gzip") {
            let packed = std::mem::take(&mut body);
            MultiGzDecoder::new(packed.as_slice()).read_to_end(&mut body).unwrap();
        }
        Ok(Request { path, headers, body })
    }
}

fn serve(stream: impl Read + Write, speaks: Speaks, state: &Mutex<State>) {
    let mut reader = Reader { stream, octets: Vec::new() };
    while let Ok(request) = reader.request() {
        let act = {
            let mut state = state.lock();
            state.requests.push((request.path.clone(), request.headers.clone()));
            match state.breaks_off.is_some_and(|largest| request.body.len() > largest) {
                true => Act::Close,
                false => state.script.pop_front().unwrap_or(Act::Serve),
            }
        };
        let (status, more, body) = match act {
            Act::Serve => answer(speaks, &request, &mut state.lock(), &[]),
            Act::Items(items) => answer(speaks, &request, &mut state.lock(), &items),
            Act::Say(status, more, body) => (status, more, body),
            Act::Close => return,
            Act::TakeAndClose => {
                answer(speaks, &request, &mut state.lock(), &[]);
                return;
            }
            Act::TakeAndBreak => {
                answer(speaks, &request, &mut state.lock(), &[]);
                let _gone = reader.stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"err");
                let _gone = reader.stream.flush();
                return;
            }
            Act::Silence => {
                while reader.more().is_ok() {}
                return;
            }
            Act::Flood(first, more) => {
                let mut next = first.as_bytes();
                while reader.stream.write_all(next).and_then(|()| reader.stream.flush()).is_ok() {
                    next = more.as_bytes();
                }
                return;
            }
        };
        let reply = format!("HTTP/1.1 {status} Said\r\n{more}Content-Length: {}\r\n\r\n{body}", body.len());
        if reader.stream.write_all(reply.as_bytes()).and_then(|()| reader.stream.flush()).is_err() {
            return;
        }
    }
}

type Said = (u16, &'static str, String);

fn answer(speaks: Speaks, request: &Request, state: &mut State, items: &[(usize, u16, &str)]) -> Said {
    let given = request.headers.get("authorization");
    if let Some(wanted) = &state.authorization
        && given != Some(wanted)
    {
        let (status, body) = match (speaks, given) {
            (Speaks::Splunk, None) => (401, json!({"text": "Token is required", "code": 2})),
            (Speaks::Splunk, _) => (403, json!({"text": "Invalid token", "code": 4})),
            (Speaks::Bulk, _) => (
                401,
                json!({"error": {"type": "security_exception", "reason": "unable to authenticate user"}, "status": 401}),
            ),
            (Speaks::Lines, _) => (401, json!("who are you?")),
        };
        return (status, "", body.to_string());
    }
    if state.largest.is_some_and(|largest| request.body.len() > largest) {
        return (413, "", "<html>413 Request Entity Too Large</html>".to_owned());
    }
    match speaks {
        Speaks::Splunk if request.path.ends_with("/ack") => acknowledge(request, state),
        Speaks::Splunk => splunk(request, state),
        Speaks::Bulk => bulk(request, state, items),
        Speaks::Lines => {
            let text = std::str::from_utf8(&request.body).unwrap();
            if state.poison.is_some_and(|poison| text.contains(poison)) {
                return (400, "", "a line cannot be read".to_owned());
            }
            for line in text.lines() {
                let record: Value = serde_json::from_str(line).unwrap();
                let id = id_of(&record);
                state.take(&id, record);
            }
            (204, "", String::new())
        }
    }
}

fn splunk(request: &Request, state: &mut State) -> Said {
    assert_eq!(request.path, "/services/collector/event");
    let fault = |text: &str, code: u64, at: usize| {
        (400, "", json!({"text": text, "code": code, "invalid-event-number": at}).to_string())
    };
    if state.acknowledges.is_some() && !request.headers.contains_key("x-splunk-request-channel") {
        return (400, "", json!({"text": "Data channel is missing", "code": 10}).to_string());
    }
    let mut taken = Vec::new();
    let mut said = None;
    for (at, value) in serde_json::Deserializer::from_slice(&request.body).into_iter::<Value>().enumerate() {
        let Ok(mut envelope) = value else {
            said = Some(fault("Invalid data format", 6, at));
            break;
        };
        let event = envelope["event"].take();
        if event.is_null() {
            said = Some(fault("Event field is required", 12, at));
        } else if state.poison.is_some_and(|poison| event.to_string().contains(poison)) {
            said = Some(fault("Error in handling indexed fields", 15, at));
        } else if state.index.as_deref() != envelope["index"].as_str() {
            said = Some(fault("Incorrect index", 7, at));
        }
        if said.is_some() {
            break;
        }
        state.envelopes.push(envelope);
        taken.push((id_of(&event), event));
    }
    if state.acknowledges.is_some() && said.is_none() {
        let number = state.next;
        state.next += 1;
        state.waiting.insert(number, taken);
        return (200, "", json!({"text": "Success", "code": 0, "ackId": number}).to_string());
    }
    // What stood before the one that is refused is indexed.
    for (id, event) in taken {
        state.take(&id, event);
    }
    said.unwrap_or_else(|| (200, "", json!({"text": "Success", "code": 0}).to_string()))
}

fn acknowledge(request: &Request, state: &mut State) -> Said {
    let Some(after) = state.acknowledges else {
        return (400, "", json!({"text": "ACK is disabled", "code": 14}).to_string());
    };
    let asked: Value = serde_json::from_slice(&request.body).unwrap();
    let mut acks = serde_json::Map::new();
    for number in asked["acks"].as_array().unwrap() {
        let number = number.as_u64().unwrap();
        let mut indexed = false;
        if state.waiting.contains_key(&number) {
            let times = state.asked.entry(number).or_default();
            *times += 1;
            indexed = *times > after;
        }
        if indexed {
            for (id, event) in state.waiting.remove(&number).unwrap() {
                state.take(&id, event);
            }
        }
        acks.insert(number.to_string(), json!(indexed));
    }
    (200, "", json!({ "acks": acks }).to_string())
}

fn bulk(request: &Request, state: &mut State, items: &[(usize, u16, &str)]) -> Said {
    let (path, query) = request.path.split_once('?').unwrap();
    assert!(path.ends_with("/_bulk") && query.contains("filter_path=errors,items."), "{}", request.path);
    if request.body.last() != Some(&b'\n') {
        let reason = "The bulk request must be terminated by a newline [\\n]";
        return (400, "", json!({"error": {"type": "illegal_argument_exception", "reason": reason}}).to_string());
    }
    if state.index.as_ref().is_some_and(|index| path != format!("/{index}/_bulk")) {
        return (
            404,
            "",
            json!({"error": {"type": "index_not_found_exception", "reason": "no such index"}}).to_string(),
        );
    }
    let text = std::str::from_utf8(&request.body).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let mut errors = false;
    let mut told = Vec::new();
    for (at, pair) in lines.chunks(2).enumerate() {
        let action: Value = serde_json::from_str(pair[0]).unwrap();
        let id = action["create"]["_id"].as_str().unwrap().to_owned();
        let record: Value = serde_json::from_str(pair[1]).unwrap();
        let scripted = items.iter().find(|(position, ..)| *position == at);
        let (status, kind) = match scripted {
            Some((_, status, kind)) => (*status, *kind),
            None if state.taken.contains_key(&id) => (409, "version_conflict_engine_exception"),
            None if state.poison.is_some_and(|poison| pair[1].contains(poison)) => (400, "document_parsing_exception"),
            None => (201, ""),
        };
        let mut item = json!({ "status": status });
        if status == 201 {
            state.take(&id, record);
        } else {
            errors = true;
            item["error"] = json!({"type": kind, "reason": format!("[1:2] of {id}")});
        }
        told.push(json!({ "create": item }));
    }
    (200, "", json!({"errors": errors, "items": told}).to_string())
}
