//! `outgate check`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::app::cli::{ConfigFile, Failure, print};
use crate::app::config::Config;
use crate::app::load::Loaded;
use crate::app::start;
use crate::document::{Mistake, Warning};
use crate::time::Clock;

pub(crate) const AFTER_HELP: &str = "Exit code: 0 valid, 2 mistakes; with --strict 1 for warnings.\n\n\
    Examples:\n  outgate check -c /etc/outgate/outgate.toml\n  outgate check --strict --format github";

/// What to check, and how to say it.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// How to say it: for people, as a JSON object, or as annotations of a workflow run on GitHub
    #[arg(long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    format: Format,
    /// Print a JSON object instead of text: the same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Warn of rules that end, and of segments that begin to enforce, within so many days
    #[arg(long, default_value_t = 14, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(..=3650))]
    days: u64,
    /// Fail where there is a warning: exit code 1
    #[arg(long)]
    strict: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    Github,
}

/// Validates everything; prints every mistake.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let format = if arguments.json { Format::Json } else { arguments.format };
    let checked = Config::read(&arguments.config).and_then(|config| start::check(&config));
    let loaded = match checked {
        Ok((loaded, _)) => loaded,
        Err(mistakes) => return told(format, mistakes),
    };
    if let Some(Err(mistakes)) = &loaded.candidate {
        return told(format, mistakes.clone());
    }
    let within = Duration::from_secs(arguments.days * 86_400);
    let ageing = loaded.policy.ageing(Clock::system().now().wall, within);
    let warnings: Vec<&Warning> = loaded.warnings.iter().chain(loaded.policy.warnings()).chain(&ageing).collect();
    print(&match format {
        Format::Text => {
            let mut out: String = warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
            out.push_str(&summary(&loaded));
            out
        }
        Format::Json => {
            let warnings: Vec<Value> = warnings.iter().map(|warning| coded(warning)).collect();
            let policy = &loaded.policy;
            let report = json!({
                "valid": true, "revision": format!("{:016x}", policy.revision()),
                "segments": policy.segments().len(), "rules": policy.rules_len(),
                "zones": loaded.zones.len(), "records": loaded.zones.records(),
                "mistakes": [], "warnings": warnings,
            });
            format!("{report}\n")
        }
        Format::Github => {
            let told = warnings.iter().map(|warning| annotation("warning", warning.kind.as_str(), &warning.said));
            told.chain([summary(&loaded)]).collect()
        }
    })?;
    Ok(if arguments.strict && !warnings.is_empty() { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn summary(loaded: &Loaded) -> String {
    let Loaded { policy, zones, .. } = loaded;
    format!(
        "valid: policy {:016x}, {} segments, {} rules; {} zones, {} records\n",
        policy.revision(),
        policy.segments().len(),
        policy.rules_len(),
        zones.len(),
        zones.records()
    )
}

fn told(format: Format, mistakes: Vec<Mistake>) -> Result<ExitCode, Failure> {
    match format {
        Format::Text => return Err(Failure::Mistakes(mistakes)),
        Format::Json => {
            let mistakes: Vec<_> = mistakes.iter().map(placed).collect();
            print(&format!("{}\n", json!({ "valid": false, "mistakes": mistakes, "warnings": [] })))?;
        }
        Format::Github => {
            print(&mistakes.iter().map(|mistake| annotation("error", "mistake", mistake)).collect::<String>())?;
            // What fails a step says so in its log too.
            let _ = writeln!(std::io::stderr(), "outgate: {} mistakes", mistakes.len());
        }
    }
    Ok(ExitCode::from(2))
}

fn placed(mistake: &Mistake) -> Value {
    let place = mistake.place.as_ref();
    json!({
        "file": place.map(|place| &*place.file), "line": place.map(|place| place.line),
        "column": place.map(|place| place.column), "fact": mistake.fact, "remedy": mistake.remedy,
    })
}

fn coded(warning: &Warning) -> Value {
    let mut value = placed(&warning.said);
    if let Value::Object(fields) = &mut value {
        fields.insert("kind".to_owned(), warning.kind.as_str().into());
    }
    value
}

/// A workflow command of GitHub Actions: `::error file=…,line=…,col=…,title=…::…`.
fn annotation(level: &str, title: &str, mistake: &Mistake) -> String {
    let mut line = format!("::{level} ");
    if let Some(place) = &mistake.place {
        let _ = write!(line, "file={},line={},col={},", escaped(&place.file, true), place.line, place.column);
    }
    let text =
        if mistake.remedy.is_empty() { mistake.fact.clone() } else { format!("{}\n{}", mistake.fact, mistake.remedy) };
    let _ = writeln!(line, "title=outgate {}::{}", escaped(title, true), escaped(&text, false));
    line
}

/// As actions/toolkit escapes the data of a command, and the properties before it.
fn escaped(text: &str, property: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '%' => out.push_str("%25"),
            '\r' => out.push_str("%0D"),
            '\n' => out.push_str("%0A"),
            ':' if property => out.push_str("%3A"),
            ',' if property => out.push_str("%2C"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Place;

    #[test]
    fn an_annotation_is_one_line_whatever_it_says() {
        let place = Place { file: "policy/a,b:100%.toml".into(), line: 7, column: 3 };
        let mistake = Mistake::at(place, "\"x\": 50%\r\nof it", "remove it");
        assert_eq!(
            annotation("error", "mistake", &mistake),
            "::error file=policy/a%2Cb%3A100%25.toml,line=7,col=3,title=outgate mistake::\"x\": 50%25%0D%0Aof it%0Aremove it\n"
        );
        assert_eq!(annotation("warning", "tls", &Mistake::general("old", "")), "::warning title=outgate tls::old\n");
    }
}
