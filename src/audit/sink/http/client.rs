//! One connection to one server: HTTP/1.1, one request after another.
//!
//! A server may be slow, silent or hostile: an exchange has one deadline, heads and bodies have bounds, and whatever does
//! not end as it should closes the connection. One that was kept may have been closed by the other side meanwhile: then the
//! request is made once more on another.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper::header::{CONTENT_ENCODING, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{self, ClientConfig};

use super::reply::told;
use super::settings::Settings;
use crate::document::write_duration;

/// The most that is read of a body: what is said of as many records as fit in a request.
const BODY: usize = 4 << 20;
/// The largest head of a reply, in octets, and the most fields.
const HEAD: (usize, usize) = (64 * 1024, 100);
/// The most addresses of a name that are tried.
const ADDRESSES: usize = 4;
/// How long one address may take to answer.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a request may go on when the node stops, and how often is looked whether it does.
const PARTING: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(50);
/// The longest that a server may ask to be left alone.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// A stream, encrypted or not.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// What moves the octets of one.
type Running = Pin<Box<Connection<TokioIo<Box<dyn Wire>>, Full<Bytes>>>>;

/// One that speaks HTTP. Dropped: closed.
struct Open {
    sender: SendRequest<Full<Bytes>>,
    connection: Running,
}

/// A reply, as far as it is looked at.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) location: Option<String>,
    pub(super) body: Bytes,
    /// The body is longer; this is its beginning.
    pub(super) cut: bool,
}

impl Reply {
    /// The body, as what a person is told.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(self.body.get(..1024).unwrap_or(&self.body)).into_owned()
    }
}

/// See the module.
pub(super) struct Client {
    /// Taken when it is dropped.
    runtime: Option<Runtime>,
    /// What every request has.
    headers: HeaderMap,
    timeout: Duration,
    settings: Settings,
    tls: Option<Arc<ClientConfig>>,
    open: Option<Open>,
    stop: Arc<AtomicBool>,
}

impl Client {
    /// Reads the files that the settings name; connects nowhere yet.
    ///
    /// # Errors
    /// A file is not as it should be.
    pub(super) fn new(settings: &Settings) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
        let mut client = Self {
            runtime: Some(runtime),
            headers: HeaderMap::new(),
            timeout: settings.timeout,
            settings: settings.clone(),
            tls: None,
            open: None,
            stop: Arc::default(),
        };
        client.read_files()?;
        Ok(client)
    }

    /// Reads token and certificates.
    fn read_files(&mut self) -> Result<(), String> {
        let told = |mistake: crate::document::Mistake| mistake.to_string().replace("\n  ", "; ");
        self.headers = self.settings.headers().map_err(told)?;
        if self.settings.url.tls {
            self.tls = Some(Arc::new(self.settings.tls.config().map_err(told)?));
        }
        Ok(())
    }

    /// Ends what is waited for soon after this flag is raised.
    pub(super) fn heed(&mut self, stop: &Arc<AtomicBool>) {
        self.stop = Arc::clone(stop);
    }

    /// Sleeps; false where the node stops.
    pub(super) fn pause(&self, duration: Duration) -> bool {
        let Some(runtime) = &self.runtime else { return false };
        let stop = &self.stop;
        runtime.block_on(async {
            tokio::select! {
                () = sleep(duration) => true,
                () = raised(stop) => false,
            }
        })
    }

    /// One request and its reply.
    ///
    /// # Errors
    /// One clause: there is no reply.
    pub(super) fn post(
        &mut self,
        target: &Uri,
        channel: Option<&HeaderValue>,
        packed: bool,
        body: Bytes,
    ) -> Result<Reply, Lost> {
        let Some(runtime) = self.runtime.take() else { return Err(Lost::before("is stopping".to_owned())) };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = target.clone();
        let headers = request.headers_mut();
        *headers = self.headers.clone();
        if let Some(channel) = channel {
            headers.insert("x-splunk-request-channel", channel.clone());
        }
        if packed {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let limit = self.timeout;
        let stop = Arc::clone(&self.stop);
        let reply = runtime.block_on(async {
            tokio::select! {
                reply = self.exchange(request) => reply,
                () = sleep(limit) => Err(Lost::amid(format!("did not answer within {}", write_duration(limit)))),
                () = async { raised(&stop).await; sleep(PARTING).await } => Err(Lost::before("did not answer before the stop".to_owned())),
            }
        });
        self.runtime = Some(runtime);
        if !matches!(&reply, Ok(reply) if !matches!(reply.status, 401 | 403)) {
            // They may have been replaced; where they cannot be read now, those of before are tried once more.
            let _kept = self.read_files();
        }
        reply
    }

    /// On the connection that was kept, or a new one. Dropped before its end, it leaves none.
    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Reply, Lost> {
        if let Some(open) = self.open.take() {
            match self.ask(open, request.clone()).await {
                Err(Broke::Unanswered(_)) => {}
                Err(Broke::Midway(why)) => return Err(Lost::amid(why)),
                Ok(reply) => return Ok(reply),
            }
        }
        let open = self.connect().await.map_err(Lost::before)?;
        self.ask(open, request).await.map_err(|(Broke::Unanswered(why) | Broke::Midway(why))| Lost::amid(why))
    }

    async fn connect(&self) -> Result<Open, String> {
        let url = &self.settings.url;
        let addresses = lookup_host((&*url.host, url.port)).await;
        let addresses = addresses.map_err(|error| format!("{} is not resolved: {error}", url.host))?;
        let mut found = Err(format!("{} has no address", url.host));
        for address in addresses.take(ADDRESSES) {
            found = match timeout(CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => Ok(stream),
                Ok(Err(error)) => Err(format!("{address} cannot be connected to: {error}")),
                Err(_) => Err(format!("{address} does not answer")),
            };
            if found.is_ok() {
                break;
            }
        }
        let stream = found?;
        // Only speed is lost where it cannot be set.
        let _slower = stream.set_nodelay(true);
        let wire: Box<dyn Wire> = match (&self.tls, &url.name) {
            (Some(config), Some(name)) => {
                let connector = TlsConnector::from(Arc::clone(config));
                Box::new(connector.connect(name.clone(), stream).await.map_err(|error| of_tls(&error))?)
            }
            _ => Box::new(stream),
        };
        let mut http = Builder::new();
        http.max_buf_size(HEAD.0).max_headers(HEAD.1);
        let (sender, connection) = http.handshake(TokioIo::new(wire)).await.map_err(|error| why(&error))?;
        Ok(Open { sender, connection: Box::pin(connection) })
    }

    /// A request on this connection, which is kept where it can be.
    async fn ask(&mut self, open: Open, request: Request<Full<Bytes>>) -> Result<Reply, Broke> {
        let Open { mut sender, connection } = open;
        let mut connection = Some(connection);
        let read = async move {
            let unanswered = |error: hyper::Error| Broke::Unanswered(why(&error));
            sender.ready().await.map_err(unanswered)?;
            let response = sender.send_request(request).await.map_err(unanswered)?;
            let midway = |error| Broke::Midway(format!("ended its reply midway: {}", why(&error)));
            read(response).await.map(|reply| (reply, sender)).map_err(midway)
        };
        let mut read = pin!(read);
        let mut broke = None;
        let found = loop {
            let Some(running) = &mut connection else { break read.as_mut().await };
            tokio::select! {
                biased;
                reply = read.as_mut() => break reply,
                // What it read is still there; it goes, so that nobody waits for more.
                ended = running.as_mut() => (broke, connection) = (ended.err(), None),
            }
        };
        // What broke the connection says more than that it broke.
        let (reply, sender) = found.map_err(|found| match (found, &broke) {
            (Broke::Unanswered(_), Some(error)) => Broke::Unanswered(why(error)),
            (found, _) => found,
        })?;
        if let Some(connection) = connection.filter(|_| !reply.cut) {
            self.open = Some(Open { sender, connection });
        }
        Ok(reply)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // A name that is being looked up does not keep the node.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Ends when the flag is raised.
async fn raised(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        sleep(LOOK).await;
    }
}

/// A request without a reply.
#[derive(Debug)]
pub(super) struct Lost {
    /// One clause.
    pub(super) why: String,
    /// The request had begun: the server may have taken it.
    pub(super) began: bool,
}

impl Lost {
    const fn before(why: String) -> Self {
        Self { why, began: false }
    }

    const fn amid(why: String) -> Self {
        Self { why, began: true }
    }
}

/// What became of a request on a connection.
enum Broke {
    /// Not a word came back: a connection that was kept may have been closed before.
    Unanswered(String),
    /// The reply began.
    Midway(String),
}

/// A response, its body up to the bound.
async fn read(response: Response<Incoming>) -> Result<Reply, hyper::Error> {
    let (head, mut incoming) = response.into_parts();
    let text = |name| Some(head.headers.get(name)?.to_str().ok()?.to_owned());
    let seconds = text(RETRY_AFTER).and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    let mut body = Vec::new();
    let mut cut = false;
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let room = BODY - body.len();
        body.extend_from_slice(data.get(..room).unwrap_or(&data));
        if data.len() > room {
            cut = true;
            break;
        }
    }
    let retry_after = seconds.map(|wait| wait.min(LONGEST_WAIT));
    Ok(Reply { status: head.status.as_u16(), retry_after, location: text(LOCATION), body: body.into(), cut })
}

/// What went wrong, by its innermost cause.
fn why(error: &hyper::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    match cause.downcast_ref::<io::Error>() {
        Some(io) if of_rustls(io).is_some() => of_tls(io),
        Some(io) => format!("the connection broke: {io}"),
        None if error.is_parse() || error.is_parse_too_large() => {
            format!("speaks no HTTP/1.1 that can be read: {}", told(&cause.to_string()))
        }
        None => "closed the connection without an answer".to_owned(),
    }
}

fn of_rustls(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// The same of a handshake.
fn of_tls(error: &io::Error) -> String {
    let remedy = match of_rustls(error) {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
            "; name the authority that issued its certificate: ca = \"….pem\""
        }
        Some(rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired)) => {
            "; show it one: `certificate` and `key`"
        }
        _ => "",
    };
    format!("TLS fails: {}{remedy}", told(&error.to_string()))
}
