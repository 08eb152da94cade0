//! `outgate import`: another system's list becomes rules, and what could not be carried over is told.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};

use crate::app::cli::{Failure, print};
use crate::document::{MAX_MISTAKES, Mistake};
use crate::draft::{self, Draft, Heading, ListTerms, safe};
use crate::name::Name;
use crate::policy::{Action, is_id};
use crate::zones::{Records, Source};

/// The largest file that is read, in octets; as of a policy.
const LARGEST_FILE: u64 = 256 << 20;

/// What the names of a zone are relative to where nothing says so.
const ORIGIN: &str = "rpz";

/// Whose list it is.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// A response policy zone (RPZ), as a master file
    #[command(
        after_help = "Example:\n  outgate import rpz --segments office db.rpz > policy/rpz.toml && outgate check"
    )]
    Rpz {
        #[command(flatten)]
        common: Common,
        /// The zone's name, where the file has neither $ORIGIN nor an SOA record with a whole name
        #[arg(long, value_name = "NAME")]
        origin: Option<String>,
    },
    /// A list of names, one a line, or a hosts file
    #[command(
        after_help = "Example:\n  outgate import list --action deny --below --segments '*' ads.txt -o policy/ads.toml"
    )]
    List {
        #[command(flatten)]
        common: Common,
        /// What the names are for
        #[arg(long, value_enum)]
        action: Word,
        /// Each name stands for the names below it as well
        #[arg(long)]
        below: bool,
    },
    /// CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy, as YAML: their toFQDNs
    #[command(
        after_help = "Example:\n  kubectl get cnp -n web -o yaml | outgate import cilium --segments web - > policy/web.toml"
    )]
    Cilium {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args)]
pub(crate) struct Common {
    /// The file; - is the standard input
    file: PathBuf,
    /// Segments that the rules are for; '*': all
    #[arg(long, required = true, value_delimiter = ',', value_name = "SEGMENT,…")]
    segments: Vec<String>,
    /// How the rules' ids begin; without it the file's name, for Cilium that of each policy
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Write the rules to this file, at once, instead of the standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Word {
    /// They may be resolved and reached
    Allow,
    /// They are refused, whatever other rules say
    Deny,
}

pub(crate) fn run(verb: Verb) -> Result<ExitCode, Failure> {
    let (common, drafted) = match verb {
        Verb::Rpz { common, origin } => {
            let origin = origin.as_deref().unwrap_or(ORIGIN);
            let origin = Name::parse(origin)
                .map_err(|why| Failure::Argument(format!("--origin is not a domain name: {why}")))?;
            let heading = common.heading(None)?;
            let source = Source { file: Arc::from(common.shown()), text: common.text()? };
            let read = Records::read(&source, origin).map_err(Failure::Mistakes)?;
            let mut drafted = draft::rpz(&source.file, &read.records, &read.apex, &|at| read.place(at), &heading);
            drafted.left.extend(read.faults);
            drafted.left.sort();
            (common, drafted)
        }
        Verb::List { common, action, below } => {
            let action = match action {
                Word::Allow => Action::Allow,
                Word::Deny => Action::Deny,
            };
            let heading = common.heading(None)?;
            let bytes = common.bytes()?;
            let text = String::from_utf8_lossy(&bytes);
            let drafted = draft::list(&common.shown(), &text, &heading, ListTerms { action, below });
            (common, drafted)
        }
        Verb::Cilium { common } => {
            let heading = common.heading(Some(""))?;
            let drafted = draft::cilium(&common.shown(), &common.text()?, &heading);
            (common, drafted.map_err(|mistake| Failure::Mistakes(vec![mistake]))?)
        }
    };
    tell(&drafted);
    if drafted.rules.is_empty() {
        return Err(Failure::Failed(format!("nothing in {} could be carried over", common.shown())));
    }
    hand_out(&drafted, common.output.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

impl Common {
    /// What all rules have in common; `id` where none was given.
    fn heading(&self, id: Option<&str>) -> Result<Heading, Failure> {
        if let Some(wrong) = self.segments.iter().find(|segment| *segment != "*" && !is_id(segment)) {
            return Err(Failure::Argument(format!(
                "--segments: \"{wrong}\" is not the name of a segment; write names of segments of the policy, or '*'"
            )));
        }
        check_id(self.id.as_deref())?;
        let stem = self.file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let stem = stem.filter(|stem| stem != "-").unwrap_or_else(|| "imported".to_owned());
        let id = self.id.clone().unwrap_or_else(|| id.map_or(stem, str::to_owned));
        Ok(Heading { segments: self.segments.clone(), id })
    }

    fn is_standard_input(&self) -> bool {
        self.file.as_os_str() == "-"
    }

    fn shown(&self) -> String {
        if self.is_standard_input() { "standard input".to_owned() } else { self.file.display().to_string() }
    }

    fn bytes(&self) -> Result<Vec<u8>, Failure> {
        let open = || -> io::Result<Box<dyn Read>> {
            Ok(if self.is_standard_input() { Box::new(io::stdin()) } else { Box::new(File::open(&self.file)?) })
        };
        let mut bytes = Vec::new();
        let read = open().and_then(|source| source.take(LARGEST_FILE + 1).read_to_end(&mut bytes));
        match read {
            Err(error) => Err(Failure::Argument(format!("{} cannot be read: {error}", self.shown()))),
            Ok(read) if read as u64 > LARGEST_FILE => {
                let size = LARGEST_FILE >> 20;
                Err(Failure::Argument(format!("{} is larger than {size} MiB; split it", self.shown())))
            }
            Ok(_) => Ok(bytes),
        }
    }

    fn text(&self) -> Result<String, Failure> {
        String::from_utf8(self.bytes()?)
            .map_err(|_| Failure::Argument(format!("{} is no text in UTF-8; convert it", self.shown())))
    }
}

/// What was left out and noted, and what it comes to, on standard error.
fn tell(draft: &Draft) {
    let mut text = String::new();
    let mut line = |words: String| {
        for part in words.lines() {
            text.push_str(&safe(part));
            text.push('\n');
        }
    };
    draft.left.iter().take(MAX_MISTAKES).map(Mistake::to_string).for_each(&mut line);
    if let Some(more) = draft.left.len().checked_sub(MAX_MISTAKES).filter(|more| *more > 0) {
        line(format!("and {more} more"));
    }
    draft.notes.iter().for_each(|note| line(format!("note: {note}")));
    let [allowed, denied] = [Action::Allow, Action::Deny].map(|action| draft.count(action));
    let (rules, left) = (draft.rules.len(), draft.left.len());
    line(format!("{allowed} names allowed and {denied} denied by {rules} rules; {left} entries left out"));
    // Nobody reads it: the rules are written all the same.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// `--id` must be what ids can begin with.
pub(super) fn check_id(id: Option<&str>) -> Result<(), Failure> {
    let Some(wrong) = id.filter(|id| !is_id(id)) else { return Ok(()) };
    let remedy = "write 1 to 63 letters, digits, `_`, `.` or `-`";
    Err(Failure::Argument(format!("--id: a rule's id cannot begin with \"{wrong}\"; {remedy}")))
}

/// Writes the rules: to a file, which is complete or as it was before, or to standard output.
pub(super) fn hand_out(draft: &Draft, output: Option<&Path>) -> Result<(), Failure> {
    let Some(output) = output else { return print(&draft.to_string()) };
    let mut beside = output.as_os_str().to_owned();
    beside.push(".new");
    let written = std::fs::write(&beside, draft.to_string()).and_then(|()| std::fs::rename(&beside, output));
    written.map_err(|error| Failure::Failed(format!("{} cannot be written: {error}", output.display())))
}
