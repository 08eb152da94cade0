//! `outgate log convert`: records in another format, archives first.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::file_of;
use crate::app::cli::{ConfigFile, Failure};
use crate::audit::{FORMATS, Format, Framing, QueriesRead, read_lines};
use crate::draft::safe;

pub(super) const AFTER_HELP: &str = "\
Archives beside the log are read before it, also packed with zstd or gzip. What each field becomes is in docs/siem.md.
Exit code: 0 done, 1 it could not be done, or a file could not be read to its end.

Example:
  outgate log convert --to ecs /var/log/outgate/query.jsonl | gzip > query.ecs.ndjson.gz";

/// What to convert, and to what.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// The current log file, a directory of logs, or any file of records; without it the log of the configuration
    file: Option<PathBuf>,
    /// The format
    #[arg(long, value_name = "FORMAT", value_parser = PossibleValuesParser::new(FORMATS.iter().map(|format| format.name)))]
    to: String,
    /// Write to this file, at once, instead of the standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let Arguments { config, file, to, output } = arguments;
    let log = file_of(&config, file)?;
    let Some(format) = FORMATS.iter().find(|format| format.name == to) else {
        return Err(Failure::Argument(format!("--to {to} is no format")));
    };
    let converted = match &output {
        None => Conversion::new(format, Box::new(io::stdout().lock())).run(&log, "standard output"),
        Some(output) => to_file(format, &log, output),
    };
    let Conversion { read, formless, gone, .. } = converted?;
    if gone {
        return Ok(ExitCode::SUCCESS);
    }
    let mut told = format!("{read}\n");
    if formless > 0 {
        told.push_str(&format!("{formless} records have no form in {to}\n"));
    }
    let told: String = told.lines().map(|line| format!("{}\n", safe(line))).collect();
    // Nobody reads it: the records are written all the same.
    let _ = io::stderr().write_all(told.as_bytes());
    Ok(if read.unread == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Writes a file that is complete, or as it was before.
fn to_file(format: &'static Format, log: &Path, output: &Path) -> Result<Conversion, Failure> {
    let mut beside = output.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let name = output.display().to_string();
    if output.canonicalize().is_ok_and(|output| log.canonicalize().is_ok_and(|log| log == output)) {
        return Err(Failure::Argument(format!("--output {name} is the log itself; name another file")));
    }
    let failed = |error: io::Error| Failure::Failed(format!("{name} cannot be written: {error}"));
    let file = File::create(&beside).map_err(failed)?;
    let done = Conversion::new(format, Box::new(file)).run(log, &name);
    let done = done.and_then(|done| std::fs::rename(&beside, output).map(|()| done).map_err(failed));
    if done.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    done
}

/// Records on their way.
struct Conversion {
    format: &'static Format,
    sink: BufWriter<Box<dyn Write>>,
    /// One record.
    record: Vec<u8>,
    read: QueriesRead,
    /// Records that the format has no form for.
    formless: u64,
    /// Who read them has gone.
    gone: bool,
}

impl Conversion {
    fn new(format: &'static Format, sink: Box<dyn Write>) -> Self {
        let sink = BufWriter::with_capacity(1 << 17, sink);
        Self { format, sink, record: Vec::new(), read: QueriesRead::default(), formless: 0, gone: false }
    }

    /// Reads all of it; a reader that has gone ends it quietly.
    fn run(mut self, log: &Path, name: &str) -> Result<Self, Failure> {
        // On one terminal they would be in each other's way.
        let watched = io::stderr().is_terminal() && !(name == "standard output" && io::stdout().is_terminal());
        let mut written = self.frame(Framing::begin);
        let read = read_lines(
            &[log.to_path_buf()],
            &mut |progress| {
                if watched {
                    let percent = progress.read * 100 / progress.length.max(1);
                    let _ = write!(io::stderr(), "\r\x1b[K{} queries, {percent} %", progress.queries);
                }
            },
            &mut |line| {
                if written.is_ok() {
                    written = self.write(line);
                }
                if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            },
        );
        if watched {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
        self.read = read.map_err(|error| Failure::Failed(error.to_string()))?;
        match written.and_then(|()| self.frame(Framing::end)).and_then(|()| self.sink.flush()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                return Err(Failure::Failed(format!("{name} cannot be written: {error}")));
            }
            done => self.gone = done.is_err(),
        }
        Ok(self)
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        self.record.clear();
        if !(self.format.write)(line, &mut self.record) {
            self.formless += 1;
            return Ok(());
        }
        self.format.framing.end_record(&mut self.record);
        self.sink.write_all(&self.record)
    }

    /// Writes what stands before or behind all records.
    fn frame(&mut self, frame: fn(Framing, &mut Vec<u8>)) -> io::Result<()> {
        self.record.clear();
        frame(self.format.framing, &mut self.record);
        self.sink.write_all(&self.record)
    }
}
