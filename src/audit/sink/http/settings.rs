//! The keys of a sink of kind `http`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use hyper::Uri;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use tokio_rustls::rustls::pki_types::ServerName;

use super::super::settings::Keys;
use super::super::{Deliver, Plan};
use super::Http;
use super::api::{APIS, Api};
use crate::document::{Found, Mistake, Table};
use crate::trust::{ClientTls, Named};

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Header fields that are not the operator's to set.
const OURS: &[&str] = &[
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "transfer-encoding",
    "user-agent",
];

/// Where the server is.
#[derive(Clone, Debug)]
pub(super) struct Url {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// For its certificate.
    pub(super) name: Option<ServerName<'static>>,
    /// As `Host` tells it.
    authority: HeaderValue,
}

/// What was read.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) api: &'static Api,
    pub(super) url: Url,
    /// Where records are sent.
    pub(super) target: Uri,
    /// Where Splunk is asked what it indexed.
    pub(super) acks: Uri,
    pub(super) token_file: Option<Named>,
    user: Option<String>,
    headers: HeaderMap,
    pub(super) index: Option<String>,
    pub(super) source: String,
    pub(super) sourcetype: String,
    pub(super) ack: bool,
    pub(super) gzip: bool,
    pub(super) tls: ClientTls,
    pub(super) timeout: Duration,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Plan for Settings {
    fn check(&self) -> Result<(), Mistake> {
        self.headers()?;
        if self.url.tls {
            self.tls.config()?;
        }
        Ok(())
    }

    fn format(&self) -> Option<&'static str> {
        self.api.format
    }

    fn build(&self) -> Result<Box<dyn Deliver>, String> {
        Ok(Box::new(Http::new(self.clone())?))
    }
}

impl Settings {
    /// What every request says of itself; the token is read from its file.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn headers(&self) -> Result<HeaderMap, Mistake> {
        let mut headers = self.headers.clone();
        headers.insert(HOST, self.url.authority.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.api.media));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("outgate/", env!("CARGO_PKG_VERSION"))));
        if let Some(file) = &self.token_file {
            let token = file.secret()?;
            let value = match &self.user {
                Some(user) => format!("Basic {}", BASE64.encode(format!("{user}:{token}").as_bytes())),
                None => format!("{} {token}", self.api.scheme),
            };
            // One line of printable ASCII is a value of a header field.
            if let Ok(mut value) = HeaderValue::from_str(&value) {
                value.set_sensitive(true);
                headers.insert(AUTHORIZATION, value);
            }
        }
        Ok(headers)
    }
}

/// Reads the keys; mistakes are noted in the document.
pub(in crate::audit::sink) fn read(keys: &Keys<'_>) -> Option<Arc<dyn Plan>> {
    Some(Arc::new(parse(keys)?))
}

/// The same, as what it is.
pub(super) fn parse(keys: &Keys<'_>) -> Option<Settings> {
    let table = keys.table;
    let api = read_api(table);
    let own = |key: &'static str| {
        let there = table.has(key);
        match api {
            Some(api) if there && !api.keys.contains(&key) => {
                let fact = format!("`{key}` is of no use with api = \"{}\"", api.name);
                table.document().note(&table.span_of(key), fact, "remove it");
                false
            }
            _ => there,
        }
    };
    let [index, source, sourcetype] =
        ["index", "source", "sourcetype"].map(|key| own(key).then(|| table.string(key)).flatten());
    let index = index.and_then(|index| checked_index(table, api, index));
    let ack = own("ack").then(|| table.boolean("ack")).flatten().unwrap_or(false);
    let url = read_url(table, api, index.as_deref());
    let token_file = Named::read(table, "token_file", keys.base);
    let user = table.string("user").filter(|user| {
        let (plain, there) = (!user.value.contains(':') && !user.value.is_empty(), token_file.is_some());
        if !plain {
            table.document().note(&user.span, "`user` is empty or has a colon", "write the bare name");
        } else if !there {
            table.document().note(&user.span, "`user` has no password", "write it into a file: token_file = \"…\"");
        }
        plain && there
    });
    let tls = ClientTls::read(table, keys.base);
    if let Some((Url { tls: false, host, .. }, ..)) = &url {
        if token_file.is_some() && !is_here(host) {
            let fact = "the token would be sent in clear text";
            table.document().note(&table.span_of("url"), fact, "write https://…");
        }
        if !tls.is_empty() {
            table.document().note(&table.span_of("url"), "there is no TLS with http://", "write https://…");
        }
    }
    let headers = read_headers(table);
    let gzip = table.boolean("gzip");
    let timeout = table.duration("timeout", Duration::from_secs(1)..=Duration::from_secs(300));
    let (api, (url, target, acks)) = (api?, url?);
    Some(Settings {
        api,
        url,
        target,
        acks,
        token_file,
        user: user.map(|user| user.value),
        headers,
        index,
        source: source.map_or_else(|| "outgate".to_owned(), |source| source.value),
        sourcetype: sourcetype.map_or_else(|| "outgate".to_owned(), |sourcetype| sourcetype.value),
        ack,
        gzip: gzip.unwrap_or(api.gzip),
        tls,
        timeout: timeout.unwrap_or(TIMEOUT),
    })
}

fn read_api(table: &Table) -> Option<&'static Api> {
    let words = || APIS.iter().map(|api| format!("\"{}\"", api.name)).collect::<Vec<_>>().join(", ");
    if !table.has("api") {
        table.document().note(table.span(), "`api` is missing", format!("write one of {}", words()));
    }
    let word = table.string("api")?;
    let api = APIS.iter().find(|api| api.name == word.value);
    if api.is_none() {
        let fact = format!("`api` cannot be \"{}\"", word.value);
        table.document().note(&word.span, fact, format!("write one of {}", words()));
    }
    api
}

/// An index that stands in a path has the characters that an index may have.
fn checked_index(table: &Table, api: Option<&Api>, index: Found<String>) -> Option<String> {
    let plain = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || b"-_.".contains(&octet);
    let named = (1..=255).contains(&index.value.len()) && index.value.bytes().all(plain);
    if api.is_some_and(|api| api.path.contains("{index}")) && (!named || index.value.starts_with(['-', '_', '.'])) {
        let remedy = "write a-z, 0-9, - and _, e.g. \"logs-outgate.query-default\"";
        table.document().note(&index.span, format!("`index` cannot be \"{}\"", index.value), remedy);
        return None;
    }
    Some(index.value)
}

/// The server, the address of what is sent, and that of acknowledgements.
fn read_url(table: &Table, api: Option<&Api>, index: Option<&str>) -> Option<(Url, Uri, Uri)> {
    let found = table.required_string("url")?;
    let wrong = |fact: String| {
        let remedy = "write \"https://splunk.example.org:8088\", and no name or password in it";
        table.document().note(&found.span, fact, remedy);
    };
    let uri: Option<Uri> = found.value.parse().ok();
    let parts = uri.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri.authority()?)));
    let Some((scheme, authority)) = parts.filter(|(scheme, _)| matches!(*scheme, "https" | "http")) else {
        wrong("`url` is not the address of a server".to_owned());
        return None;
    };
    if authority.as_str().contains('@') {
        // What stands there may be a password: it is not told.
        wrong("`url` holds a user".to_owned());
        return None;
    }
    let tls = scheme == "https";
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host.clone()).ok();
    if name.is_none() {
        wrong(format!("`url`: \"{host}\" is no name of a host"));
        return None;
    }
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let url = Url { tls, host, port, name, authority: HeaderValue::from_str(authority.as_str()).ok()? };
    let api = api?;
    let (path, query) = (uri.as_ref()?.path(), uri.as_ref()?.query());
    let behind = api.path.replace("{index}/", &index.map_or_else(String::new, |index| format!("{index}/")));
    let target = |behind: &str, ours: &str| -> Option<Uri> {
        let path = if behind.is_empty() { path.to_owned() } else { format!("{}/{behind}", path.trim_end_matches('/')) };
        let query: Vec<&str> = query.into_iter().chain(Some(ours)).filter(|part| !part.is_empty()).collect();
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        format!("{path}{query}").parse().ok()
    };
    Some((url, target(&behind, api.query)?, target("services/collector/ack", "")?))
}

/// Whether a host is this machine.
fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

fn read_headers(table: &Table) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let Some(free) = table.table("headers") else { return headers };
    for (name, values) in free.free_strings() {
        let field: Option<HeaderName> = name.value.parse().ok();
        let remedy = "write headers = { \"X-Scope-OrgID\" = \"network\" }; a secret belongs into `token_file`";
        let Some(field) = field.filter(|field| !OURS.contains(&field.as_str())) else {
            table.document().note(&name.span, format!("the header \"{}\" cannot be set", name.value), remedy);
            continue;
        };
        for value in values {
            match HeaderValue::from_str(&value.value) {
                Ok(value) => {
                    headers.append(field.clone(), value);
                }
                Err(_) => table.document().note(&value.span, "this cannot be sent in a header", remedy),
            }
        }
    }
    headers
}
