//! `outgate check`.

use std::process::ExitCode;

use serde_json::json;

use crate::app::cli::{ConfigFile, Failure, print};
use crate::app::config::Config;
use crate::app::start;
use crate::document::Mistake;

/// Validates everything; prints every mistake.
pub(crate) fn run(file: &ConfigFile, as_json: bool) -> Result<ExitCode, Failure> {
    let checked = Config::read(file).and_then(|config| start::check(&config));
    match checked {
        Err(mistakes) if as_json => {
            let mistakes: Vec<_> = mistakes.iter().map(mistake).collect();
            print(&format!("{}\n", json!({ "valid": false, "mistakes": mistakes, "warnings": [] })))?;
            Ok(ExitCode::from(2))
        }
        Err(mistakes) => Err(Failure::Mistakes(mistakes)),
        Ok((loaded, _)) => {
            let policy = &loaded.policy;
            let warnings = loaded.warnings.iter().chain(policy.warnings());
            let (segments, rules) = (policy.segments().len(), policy.rules_len());
            let revision = format!("{:016x}", policy.revision());
            if as_json {
                let warnings: Vec<_> = warnings.map(mistake).collect();
                let report = json!({
                    "valid": true, "revision": revision, "segments": segments, "rules": rules,
                    "zones": loaded.zones.len(), "records": loaded.zones.records(),
                    "mistakes": [], "warnings": warnings,
                });
                print(&format!("{report}\n"))?;
            } else {
                for warning in warnings {
                    print(&format!("warning: {warning}\n"))?;
                }
                print(&format!(
                    "valid: policy {revision}, {segments} segments, {rules} rules; {} zones, {} records\n",
                    loaded.zones.len(),
                    loaded.zones.records()
                ))?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn mistake(mistake: &Mistake) -> serde_json::Value {
    let place = mistake.place.as_ref();
    json!({
        "file": place.map(|place| &*place.file), "line": place.map(|place| place.line),
        "column": place.map(|place| place.column), "fact": mistake.fact, "remedy": mistake.remedy,
    })
}
