//! The kind `file`: records in another file, in another format, for whoever reads files.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::settings::Keys;
use super::{Batch, Deliver, Delivered, Plan};

/// The keys of this kind.
#[derive(Debug)]
struct Settings {
    file: PathBuf,
}

/// Reads them.
pub(super) fn read(keys: &Keys<'_>) -> Option<Arc<dyn Plan>> {
    if !keys.table.has("file") {
        keys.table.document().note(keys.table.span(), "`file` is missing", "add file = \"ecs.jsonl\"");
    }
    let file = keys.path("file")?.value;
    Some(Arc::new(Settings { file }))
}

impl Plan for Settings {
    fn build(&self) -> Result<Box<dyn Deliver>, String> {
        let file = open(&self.file).map_err(|error| format!("{}: {error}", self.file.display()))?;
        Ok(Box::new(Target { path: self.file.clone(), file, bytes: Vec::new() }))
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

struct Target {
    path: PathBuf,
    file: File,
    bytes: Vec<u8>,
}

impl Deliver for Target {
    fn deliver(&mut self, batch: &Batch<'_>) -> Delivered {
        self.bytes.clear();
        for record in batch.records {
            self.bytes.extend_from_slice(&record.bytes);
            self.bytes.push(b'\n');
        }
        match self.file.write_all(&self.bytes) {
            Ok(()) => Delivered::All,
            Err(error) => Delivered::Failed { why: format!("{}: {error}", self.path.display()), wait: None },
        }
    }
}
