//! `outgate status`, `grants`, `flush`, `reload`, `promote`: the verbs that talk to a running node.

use std::io::IsTerminal;
use std::net::IpAddr;
use std::process::ExitCode;

use serde_json::Value;

use crate::app::cli::{ConfigFile, Failure, print};
use crate::app::config::Config;
use crate::name::Name;
use crate::serve::admin::client::{Method, call};
use crate::serve::admin::{render_grants, render_status};
use crate::serve::{FlushOrder, Flushed, GrantFilter, GrantRow, PromoteOrder};

/// The options of `outgate grants`.
pub(crate) struct Filter {
    pub(crate) client: Option<IpAddr>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) name: Option<String>,
    pub(crate) segment: Option<String>,
    pub(crate) limit: usize,
}

/// Shows the node.
pub(crate) fn status(file: &ConfigFile, as_json: bool) -> Result<ExitCode, Failure> {
    let status = ask(file, Method::GET, "/v1/status", None)?;
    if as_json {
        print(&format!("{status}\n"))?;
    } else {
        print(&render_status(&status, coloured()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Lists what it holds open.
pub(crate) fn grants(file: &ConfigFile, filter: &Filter, as_json: bool) -> Result<ExitCode, Failure> {
    let name = filter.name.as_deref().map(Name::parse).transpose();
    let filter = GrantFilter {
        client: filter.client,
        address: filter.address,
        name: name.map_err(|why| Failure::Argument(format!("--name is not a domain name: {why}")))?,
        segment: filter.segment.clone(),
        limit: filter.limit,
    };
    let answer = ask(file, Method::GET, &format!("/v1/grants?{}", filter.query()), None)?;
    let grants = answer.get("grants").cloned().unwrap_or_default();
    if as_json {
        print(&format!("{grants}\n"))?;
    } else {
        let rows: Vec<GrantRow> = serde_json::from_value(grants).map_err(unreadable)?;
        print(&render_grants(&rows, coloured()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Lets it load policy and zones again.
pub(crate) fn reload(file: &ConfigFile, as_json: bool) -> Result<ExitCode, Failure> {
    let done = match ask(file, Method::POST, "/v1/reload", None) {
        Err(Failure::Refused(mistakes)) if as_json => {
            print(&format!("{}\n", serde_json::json!({ "errors": mistakes })))?;
            return Ok(ExitCode::from(2));
        }
        done => done?,
    };
    if as_json {
        print(&format!("{done}\n"))?;
    } else {
        let field =
            |key: &str| done.get(key).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        let field = |key| field(key).unwrap_or_default();
        print(&format!(
            "policy {} in force (before: {}): {} segments, {} rules, {} grants revoked\n",
            field("revision"),
            field("previous"),
            field("segments"),
            field("rules"),
            field("revoked")
        ))?;
        for mistake in done.get("candidate_mistakes").and_then(Value::as_array).into_iter().flatten() {
            print(&format!("the candidate is not decided: {}\n", mistake.as_str().unwrap_or_default()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Lets it put the candidate in force, or take that back.
pub(crate) fn promote(file: &ConfigFile, order: &PromoteOrder, as_json: bool) -> Result<ExitCode, Failure> {
    let done = ask(file, Method::POST, &format!("/v1/promote?{}", order.query()), None)?;
    if as_json {
        print(&format!("{done}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = |key: &str| done.get(key).and_then(Value::as_str).unwrap_or("-").to_owned();
    let revoked = done.get("revoked").and_then(Value::as_u64).unwrap_or(0);
    let (revision, previous) = (text("revision"), text("previous"));
    let lasts = if order.revert { "it is that of [policy].directory" } else { "until [policy].directory changes" };
    print(&format!("policy {revision} in force (before: {previous}), {lasts}; {revoked} grants revoked\n"))?;
    if let Some(warning) = done.get("warning").and_then(Value::as_str) {
        print(&format!("warning: {warning}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Lets it forget what it has cached of a name.
pub(crate) fn flush(file: &ConfigFile, name: &str, below: bool, as_json: bool) -> Result<ExitCode, Failure> {
    let parsed = Name::parse(name);
    let name = parsed.map_err(|why| Failure::Argument(format!("\"{name}\" is not a domain name: {why}")))?;
    let order = FlushOrder { name, below };
    let done = ask(file, Method::POST, &format!("/v1/flush?{}", order.query()), None)?;
    if as_json {
        print(&format!("{done}\n"))?;
    } else {
        let Flushed { answers, failures, replies } = serde_json::from_value(done).map_err(unreadable)?;
        let below = if below { " and below" } else { "" };
        print(&format!(
            "{}{below}: {answers} answers, {failures} failures, {replies} replies dropped; what is open stays open\n",
            order.name
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn unreadable(error: serde_json::Error) -> Failure {
    Failure::Failed(format!("the node's answer cannot be read: {error}; is it of this version?"))
}

/// One request to the node that this configuration describes.
pub(super) fn ask(file: &ConfigFile, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
    let config = Config::read(file).map_err(Failure::Mistakes)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Failed(format!("no runtime: {error}")))?;
    let (status, body) = runtime
        .block_on(call(&config.admin_socket, method, path, body))
        .map_err(|error| Failure::Failed(error.to_string()))?;
    if status < 400 {
        return Ok(body);
    }
    let texts =
        |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    match body.get("errors") {
        Some(mistakes) => Err(Failure::Refused(texts(mistakes))),
        None => Err(Failure::Failed(body.get("error").and_then(Value::as_str).unwrap_or("no reason given").to_owned())),
    }
}

pub(super) fn coloured() -> bool {
    std::io::stdout().is_terminal()
}
