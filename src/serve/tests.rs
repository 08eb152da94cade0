//! The health and admin doors, through real sockets.

use std::fs;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::admin::client::{ClientError, Method, call};
use super::{
    ChangeOrder, ClientRow, FlushOrder, Flushed, ForgetOrder, GrantFilter, GrantRow, Node, PlaceOrder, PromoteOrder,
    Readiness, RevokeOrder, Who, admin, health,
};
use super::{Socket, SocketError};

/// Nothing on this machine takes this long; it only bounds a test that fails.
const BOUND: Duration = Duration::from_secs(20);

/// Answers what it is told to; a reload waits for a permit.
struct Fake {
    waiting: Mutex<Vec<String>>,
    mistakes: Mutex<Vec<String>>,
    asked: Mutex<Vec<GrantFilter>>,
    ordered: Mutex<Vec<Value>>,
    reloaders: Mutex<Vec<Who>>,
    reloading: Semaphore,
    reloaded: AtomicUsize,
}

impl Fake {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::default(),
            mistakes: Mutex::default(),
            asked: Mutex::default(),
            ordered: Mutex::default(),
            reloaders: Mutex::default(),
            reloading: Semaphore::new(0),
            reloaded: AtomicUsize::new(0),
        })
    }
}

fn row() -> GrantRow {
    GrantRow {
        client: None,
        segment: "checkout".to_owned(),
        rule: "stripe".to_owned(),
        name: "api.example.com".to_owned(),
        address: [198, 51, 100, 7].into(),
        services: vec!["tcp/443".to_owned()],
        until: "2026-11-21T03:58:04.117302Z".to_owned(),
        remaining_s: 272,
    }
}

impl Node for Fake {
    fn status(&self) -> Value {
        json!({ "node": "test" })
    }

    async fn grants(&self, filter: &GrantFilter) -> Vec<GrantRow> {
        self.asked.lock().push(filter.clone());
        vec![row()]
    }

    async fn promote(&self, _: &Who, order: &PromoteOrder) -> Result<Value, String> {
        if order.accept { Ok(json!({ "reason": order.reason })) } else { Err("not accepted".to_owned()) }
    }

    async fn reload(&self, who: &Who) -> Result<Value, Vec<String>> {
        self.reloaders.lock().push(*who);
        self.reloading.acquire().await.unwrap().forget();
        self.reloaded.fetch_add(1, SeqCst);
        let mistakes = self.mistakes.lock().clone();
        if mistakes.is_empty() { Ok(json!({ "revision": "9c1f5be27a40d3e1" })) } else { Err(mistakes) }
    }

    async fn change(&self, _: &Who, order: ChangeOrder) -> Result<Value, Vec<String>> {
        self.ordered.lock().push(json!(order));
        Ok(json!({ "id": "runtime-1" }))
    }

    async fn retract(&self, _: &Who, id: &str, why: &str) -> Result<Value, Vec<String>> {
        self.ordered.lock().push(json!([id, why]));
        Err(vec!["no change has this id".to_owned()])
    }

    async fn revoke(&self, _: &Who, order: RevokeOrder) -> Result<Value, Vec<String>> {
        self.ordered.lock().push(json!(order));
        Ok(json!({}))
    }

    async fn forget(&self, _: &Who, order: ForgetOrder) -> Result<Value, Vec<String>> {
        self.ordered.lock().push(json!(order));
        Ok(json!({}))
    }

    async fn place(&self, _: &Who, order: PlaceOrder) -> Result<Value, Vec<String>> {
        self.ordered.lock().push(json!(order));
        Ok(json!({}))
    }

    async fn take_out(&self, _: &Who, client: IpAddr) -> Result<Value, Vec<String>> {
        self.ordered.lock().push(json!(client));
        Ok(json!({}))
    }

    fn clients(&self) -> Vec<ClientRow> {
        Vec::new()
    }

    fn flush(&self, _: &Who, order: &FlushOrder) -> Flushed {
        Flushed { answers: order.name.label_count(), failures: order.below.into(), replies: 3 }
    }
}

impl health::Health for Fake {
    fn readiness(&self) -> Readiness {
        Readiness { waiting: self.waiting.lock().clone() }
    }

    fn metrics(&self) -> String {
        "outgate_grants 1\n".to_owned()
    }
}

/// Sends bytes and reads until the other side closes.
async fn raw<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    // A door that closes before it has read everything resets the connection; what it said before counts.
    let _ = timeout(BOUND, stream.read_to_end(&mut reply)).await.expect("closed in time");
    String::from_utf8(reply).unwrap()
}

fn request(line: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: attacker.example\r\nOrigin: http://attacker.example\r\nConnection: close\r\n\r\n")
}

async fn until(what: &str, fact: impl Fn() -> bool) {
    let bounded = timeout(BOUND, async {
        while !fact() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    bounded.await.unwrap_or_else(|_| panic!("{what}: not within {BOUND:?}"));
}

struct Health {
    address: SocketAddr,
    node: Arc<Fake>,
    stop: watch::Sender<bool>,
    served: JoinHandle<()>,
}

async fn health_door() -> Health {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopping) = watch::channel(false);
    let node = Fake::new();
    let served = tokio::spawn(health::serve(listener, Arc::clone(&node), stopping));
    Health { address, node, stop, served }
}

impl Health {
    async fn get(&self, line: &str) -> String {
        raw(TcpStream::connect(self.address).await.unwrap(), &request(line)).await
    }
}

#[tokio::test]
async fn health_answers_its_paths_and_no_others() {
    let door = health_door().await;
    for (line, status, holds) in [
        ("GET /metrics", 200, "text/plain; version=0.0.4; charset=utf-8"),
        ("GET /metrics", 200, "\r\n\r\noutgate_grants 1\n"),
        ("GET /metrics?x=1", 200, "outgate_grants 1"),
        ("HEAD /metrics", 200, "content-length: 17"),
        ("GET /health/live", 200, "\r\n\r\n{\"live\":true}\n"),
        ("GET /health/ready", 200, "\r\n\r\n{\"ready\":true,\"waiting\":[]}\n"),
        ("GET /", 404, "try /metrics, /health/live, /health/ready"),
        ("GET /v1/status", 404, ""),
        ("POST /v1/reload", 404, ""),
        ("GET /health/ready/", 404, ""),
        ("POST /metrics", 405, "allow: GET, HEAD"),
        ("OPTIONS /health/ready", 405, "allow: GET, HEAD"),
    ] {
        let reply = door.get(line).await;
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {reply}");
        assert!(reply.contains(holds), "{line}: {reply}");
        assert!(reply.contains("cache-control: no-store"), "{line}: {reply}");
        assert!(!reply.to_lowercase().contains("access-control"), "{line}: {reply}");
    }
}

#[tokio::test]
async fn readiness_names_what_is_missing() {
    let door = health_door().await;
    *door.node.waiting.lock() = vec!["the firewall gateway does not answer".to_owned(), "the log is full".to_owned()];
    let reply = door.get("GET /health/ready").await;
    assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
    let body: Value = serde_json::from_str(reply.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(body, json!({ "ready": false, "waiting": ["the firewall gateway does not answer", "the log is full"] }));
    assert!(door.get("GET /health/live").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn junk_and_giant_heads_are_turned_away() {
    let door = health_door().await;
    for junk in ["\x16\x03\x01\r\n\r\n".to_owned(), format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(64 * 1024))] {
        let mut stream = TcpStream::connect(door.address).await.unwrap();
        // It may be closed before all of it is written.
        let _ = stream.write_all(junk.as_bytes()).await;
        let mut reply = Vec::new();
        let _ = timeout(BOUND, stream.read_to_end(&mut reply)).await.expect("closed in time");
        assert!(!reply.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&reply));
    }
    assert!(door.get("GET /health/live").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn the_65th_connection_is_closed_at_once() {
    let door = health_door().await;
    let mut seated = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(door.address).await.unwrap();
        stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        timeout(BOUND, stream.read_u8()).await.unwrap().unwrap();
        seated.push(stream);
    }
    let mut refused = TcpStream::connect(door.address).await.unwrap();
    let mut reply = Vec::new();
    let _ = timeout(Duration::from_secs(3), refused.read_to_end(&mut reply)).await.expect("before any time limit");
    assert!(reply.is_empty());
    drop(seated);
    // The seats are free again once their connections have noticed.
    let served = timeout(BOUND, async {
        while !raw(TcpStream::connect(door.address).await.unwrap(), &request("GET /health/live")).await.contains("true")
        {
        }
    });
    served.await.unwrap();
}

#[tokio::test]
async fn a_silent_connection_does_not_outlive_stopping() {
    let door = health_door().await;
    let mut silent = TcpStream::connect(door.address).await.unwrap();
    // A second connection was answered, so the first one is seated.
    door.get("GET /health/live").await;
    door.stop.send(true).unwrap();
    let mut nothing = Vec::new();
    let _ = timeout(BOUND, silent.read_to_end(&mut nothing)).await.expect("closed");
    timeout(BOUND, door.served).await.unwrap().unwrap();
    assert!(nothing.is_empty());
}

/// A directory of this test alone, removed at its end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("outgate-test-{}-{}", std::process::id(), NEXT.fetch_add(1, SeqCst));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("admin.sock")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Admin {
    directory: Directory,
    node: Arc<Fake>,
    stop: watch::Sender<bool>,
    served: JoinHandle<()>,
}

async fn admin_door() -> Admin {
    let directory = Directory::new();
    let socket = Socket::bind(&directory.socket(), "[admin].socket").await.unwrap();
    let (stop, stopping) = watch::channel(false);
    let node = Fake::new();
    let served = tokio::spawn(admin::serve(socket, Arc::clone(&node), stopping));
    Admin { directory, node, stop, served }
}

impl Admin {
    async fn call(&self, method: Method, path: &str) -> (u16, Value) {
        call(&self.directory.socket(), method, path, None).await.unwrap()
    }
}

#[tokio::test]
async fn admin_answers_its_paths_and_no_others() {
    let door = admin_door().await;
    door.node.reloading.add_permits(10);
    for (method, path, status, body) in [
        (Method::GET, "/v1/status", 200, json!({ "node": "test" })),
        (Method::GET, "/v1/grants", 200, json!({ "grants": [row()] })),
        (Method::POST, "/v1/reload", 200, json!({ "revision": "9c1f5be27a40d3e1" })),
        (Method::POST, "/v1/status", 405, json!({ "error": "use GET, HEAD" })),
        (Method::OPTIONS, "/v1/grants", 405, json!({ "error": "use GET, HEAD" })),
        (Method::GET, "/v1/reload", 405, json!({ "error": "use POST" })),
        (Method::GET, "/v1/flush?name=a", 405, json!({ "error": "use POST" })),
        (Method::POST, "/v1/flush?name=a.b&below=true", 200, json!({ "answers": 2, "failures": 1, "replies": 3 })),
        (Method::POST, "/v1/flush", 400, json!({ "error": "name is missing; write name=www.example.org" })),
        (
            Method::GET,
            "/metrics",
            404,
            json!({ "error": "there is nothing here; try /v1/status, /v1/grants, /v1/flush, /v1/reload, /v1/promote, /v1/changes, /v1/revoke, /v1/forget, /v1/clients" }),
        ),
        (Method::GET, "/v1/grants?limit=x", 400, json!({ "error": "limit: \"x\" is not a number from 1 to 100000" })),
    ] {
        assert_eq!(door.call(method, path).await, (status, body), "{path}");
    }
    let reply = raw(UnixStream::connect(door.directory.socket()).await.unwrap(), &request("OPTIONS /v1/reload")).await;
    assert!(reply.starts_with("HTTP/1.1 405 "), "{reply}");
    assert!(!reply.to_lowercase().contains("access-control"), "{reply}");
}

#[tokio::test]
async fn a_filter_arrives_as_it_was_sent() {
    let door = admin_door().await;
    let filter = GrantFilter {
        client: Some("2001:db8::1".parse().unwrap()),
        name: Some("a b.example.com".parse().unwrap()),
        address: Some([198, 51, 100, 7].into()),
        segment: Some("check&out".to_owned()),
        limit: 7,
    };
    door.call(Method::GET, &format!("/v1/grants?{}", filter.query())).await;
    assert_eq!(*door.node.asked.lock(), [filter]);
}

#[tokio::test]
async fn a_reload_knows_who_and_shows_every_mistake() {
    let door = admin_door().await;
    door.node.reloading.add_permits(1);
    *door.node.mistakes.lock() = vec!["a.toml:1:1: no".to_owned(), "b.toml:2:2: no".to_owned()];
    let (status, body) = door.call(Method::POST, "/v1/reload").await;
    assert_eq!((status, body), (422, json!({ "errors": ["a.toml:1:1: no", "b.toml:2:2: no"] })));
    let who = door.node.reloaders.lock()[0];
    assert_eq!(who.uid, nix::unistd::geteuid().as_raw());
    assert_eq!(who.pid, Some(nix::unistd::getpid().as_raw()));
}

#[tokio::test]
async fn a_reload_is_finished_though_its_caller_has_gone() {
    let door = admin_door().await;
    let mut caller = UnixStream::connect(door.directory.socket()).await.unwrap();
    caller.write_all(request("POST /v1/reload").as_bytes()).await.unwrap();
    until("begun", || door.node.reloaders.lock().len() == 1).await;
    drop(caller);
    // The door has noticed when it can be closed.
    door.stop.send(true).unwrap();
    timeout(BOUND, door.served).await.unwrap().unwrap();
    door.node.reloading.add_permits(1);
    until("finished", || door.node.reloaded.load(SeqCst) == 1).await;
}

#[tokio::test]
async fn bodies_are_refused_and_large_ones_not_read() {
    let door = admin_door().await;
    for (length, status) in [(2, 400), (1_048_577, 413)] {
        let mut stream = UnixStream::connect(door.directory.socket()).await.unwrap();
        let head =
            format!("POST /v1/reload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // The door may close before it has read all of it.
        let _ = stream.write_all(&vec![b' '; length]).await;
        let mut reply = Vec::new();
        let _ = timeout(BOUND, stream.read_to_end(&mut reply)).await.expect("closed in time");
        let reply = String::from_utf8(reply).unwrap();
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{length}: {reply}");
    }
    assert!(door.node.reloaders.lock().is_empty());
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn the_socket_is_for_owner_and_group_and_goes_at_the_end() {
    let door = admin_door().await;
    let path = door.directory.socket();
    assert_eq!(mode(&path), 0o660);
    assert_eq!(fs::read_dir(&door.directory.0).unwrap().count(), 1, "nothing else is left");
    door.stop.send(true).unwrap();
    timeout(BOUND, door.served).await.unwrap().unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let directory = Directory::new();
    let path = directory.socket();
    // Dropping tokio's listener leaves its file.
    drop(UnixListener::bind(&path).unwrap());
    let first = Socket::bind(&path, "[admin].socket").await.unwrap();
    let taken = Socket::bind(&path, "[admin].socket").await.unwrap_err();
    assert!(matches!(taken, SocketError::Taken { .. }));
    assert!(taken.to_string().starts_with(&format!("another outgate answers on {}; stop it first", path.display())));
    // Somebody put another socket there: that one stays when ours goes.
    fs::remove_file(&path).unwrap();
    let other = Socket::bind(&path, "[admin].socket").await.unwrap();
    drop(first);
    assert!(path.exists());
    drop(other);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_directory_in_which_anybody_may_write_holds_no_socket() {
    let directory = Directory::new();
    let path = directory.socket();
    let may = |mode| fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(mode)).unwrap();
    may(0o777);
    let error = Socket::bind(&path, "[admin].socket").await.unwrap_err();
    assert!(matches!(error, SocketError::Open { .. }), "{error}");
    assert!(error.to_string().ends_with("chmod o-w it, or set [admin].socket to a path in a directory of its own"));
    may(0o1777);
    drop(Socket::bind(&path, "[admin].socket").await.unwrap());
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let directory = Directory::new();
    let path = directory.socket();
    fs::write(&path, "precious").unwrap();
    assert!(matches!(Socket::bind(&path, "[admin].socket").await.unwrap_err(), SocketError::Occupied { .. }));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();
    symlink("elsewhere", &path).unwrap();
    assert!(matches!(Socket::bind(&path, "[admin].socket").await.unwrap_err(), SocketError::Occupied { .. }));
    let long = directory.0.join("x".repeat(120));
    assert!(matches!(Socket::bind(&long, "[admin].socket").await.unwrap_err(), SocketError::TooLong { .. }));
}

#[tokio::test]
async fn a_directory_is_made_where_there_is_none() {
    let directory = Directory::new();
    let path = directory.0.join("run/outgate/admin.sock");
    let _socket = Socket::bind(&path, "[admin].socket").await.unwrap();
    assert_eq!(mode(path.parent().unwrap()) & 0o007, 0, "not for others");
}

#[tokio::test]
async fn a_directory_of_another_user_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        return; // only root can give a directory away
    }
    let directory = Directory::new();
    nix::unistd::chown(&directory.0, Some(65_534.into()), None).unwrap();
    let error = Socket::bind(&directory.socket(), "[admin].socket").await.unwrap_err();
    assert!(matches!(error, SocketError::Foreign { owner: 65_534, .. }));
    assert_eq!(
        error.to_string(),
        format!(
            "{} belongs to user 65534, and outgate runs as user 0; run it as user 65534, or set [admin].socket to a path in a directory of its own",
            directory.0.display()
        )
    );
}

#[tokio::test]
async fn without_permission_it_says_so() {
    let us = nix::unistd::geteuid();
    if us.is_root() {
        return; // root may do everything
    }
    let error = Socket::bind(Path::new("/admin.sock"), "[admin].socket").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "user {us} may not make a socket in /; let the directory belong to that user, or set [admin].socket to another path"
        )
    );
    let directory = Directory::new();
    let path = directory.socket();
    let _socket = Socket::bind(&path, "[admin].socket").await.unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    assert!(matches!(call(&path, Method::GET, "/v1/status", None).await.unwrap_err(), ClientError::Denied { .. }));
}

#[tokio::test]
async fn the_client_says_what_to_do() {
    let directory = Directory::new();
    let path = directory.socket();
    let absent = call(&path, Method::GET, "/v1/status", None).await.unwrap_err();
    assert_eq!(
        absent.to_string(),
        format!("no outgate answers on {}; is it running, and with this configuration?", path.display())
    );
    drop(UnixListener::bind(&path).unwrap());
    assert!(matches!(call(&path, Method::GET, "/v1/status", None).await.unwrap_err(), ClientError::Absent(_)));
    let denied = ClientError::Denied { path: "/run/outgate/admin.sock".into(), us: 1000 };
    assert_eq!(
        denied.to_string(),
        "user 1000 may not talk to outgate on /run/outgate/admin.sock; run this as root, or as a member of the socket's group"
    );
}

#[tokio::test]
async fn the_client_knows_a_stranger() {
    let directory = Directory::new();
    let path = directory.socket();
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        for reply in ["", "220 mail.example.org ESMTP\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 16];
            stream.read_exact(&mut head).await.unwrap();
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    });
    for _ in 0..3 {
        let error = timeout(BOUND, call(&path, Method::GET, "/v1/status", None)).await.unwrap().unwrap_err();
        assert!(matches!(error, ClientError::Foreign { .. }), "{error}");
    }
}
