//! A record's question: what became of it, and what would now.

use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Site, asked, print};
use crate::app::cli::Failure;
use crate::audit::read_queries;

/// What a record says, as far as it is compared.
struct Recorded {
    client: IpAddr,
    certificate: Option<String>,
    qname: Option<String>,
    qtype: Option<String>,
    told: Value,
    line: String,
}

/// Finds the record in the log and explains its question under the policy of the files.
pub(super) fn explain(site: &Site, id: &str, log: &[PathBuf]) -> Result<(Value, String), Failure> {
    let mut found: Option<Recorded> = None;
    let read = read_queries(log, &mut |_| (), &mut |query| {
        if &*query.id != id {
            return;
        }
        let text = |text: &Option<crate::audit::Text<'_>>| text.as_deref().map(ToOwned::to_owned);
        let verdict = query.verdict.as_str();
        let observed = if query.enforced { "" } else { ", not enforced" };
        let rule = query.rule.as_deref().map(|rule| format!(" by {rule}")).unwrap_or_default();
        found = Some(Recorded {
            client: query.client,
            certificate: text(&query.certificate),
            qname: text(&query.qname),
            qtype: text(&query.qtype),
            told: json!({
                "id": id, "ts": &*query.ts, "verdict": verdict, "reason": &*query.reason, "rule": query.rule.as_deref(),
                "enforced": query.enforced, "policy": query.policy.as_deref(), "rcode": query.rcode.as_deref(),
            }),
            line: format!(
                "recorded  {verdict} (reason {}){rule}{observed} at {}, {} was sent, under the policy {}\n",
                &*query.reason,
                &*query.ts,
                query.rcode.as_deref().unwrap_or("nothing"),
                query.policy.as_deref().unwrap_or("-"),
            ),
        });
    });
    let read = read.map_err(|error| Failure::Failed(error.to_string()))?;
    let Some(Recorded { client, certificate, qname, qtype, told, line }) = found else {
        return Err(Failure::Failed(format!("no query's record has the id {id} among {read}")));
    };
    let (Some(qname), Some(qtype)) = (qname, qtype) else {
        return Err(Failure::Failed(format!("the record {id} is of a packet that could not be read as a question")));
    };
    let asked = asked(client, certificate, &qname, &qtype).map_err(Failure::Failed)?;
    let mut report = super::question(site, &asked);
    let text = format!(
        "{line}now       under the policy {:016x}:\n{}",
        site.loaded.policy.revision(),
        print::question(&report)
    );
    if let Value::Object(fields) = &mut report {
        fields.insert("record".to_owned(), told);
    }
    Ok((report, text))
}
