//! The file of changes: read at start, written before a change is in force.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::change::{Change, Placed};
use crate::policy::Runtime;
use crate::serve::ClientRow;
use crate::time::Wall;

/// Changes at once: each is looked at by people.
const MAX_CHANGES: usize = 1_000;
/// Clients placed at once, those of a watched file among them.
pub(super) const MAX_CLIENTS: usize = 100_000;
/// The largest file read: above what these many take.
const LARGEST: u64 = 128 << 20;
/// The format of the file.
const VERSION: u32 = 1;

/// Everything that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::app) struct Contents {
    version: u32,
    /// In the order in which they were made.
    pub(in crate::app) changes: Vec<Change>,
    pub(in crate::app) clients: BTreeMap<IpAddr, Placed>,
    /// Those of the watched file; not kept here.
    #[serde(skip)]
    pub(in crate::app) fed: BTreeMap<IpAddr, Placed>,
}

impl Default for Contents {
    fn default() -> Self {
        Self { version: VERSION, changes: Vec::new(), clients: BTreeMap::new(), fed: BTreeMap::new() }
    }
}

impl Contents {
    /// As it is laid over a policy.
    pub(in crate::app) fn runtime(&self) -> Runtime {
        let fed = self.fed.iter().filter(|(client, _)| !self.clients.contains_key(client));
        Runtime {
            rules: self.changes.iter().map(Change::rule).collect(),
            clients: self.clients.iter().chain(fed).map(|(client, placed)| placed.placement(*client)).collect(),
        }
    }

    /// What a node's status says of it.
    pub(in crate::app) fn status(&self) -> Value {
        let rules = self.changes.iter().map(|change| {
            let Change { id, author, made, ends, order } = change;
            json!({
                "id": id, "action": order.action, "targets": order.targets, "segments": order.segments,
                "client": order.client, "by": author.to_string(), "made": Wall(*made).to_string(),
                "until": ends.map(|ends| Wall(ends).to_string()), "reason": order.reason, "ticket": order.ticket,
            })
        });
        json!({ "rules": rules.collect::<Vec<_>>(), "clients": self.placed() })
    }

    /// Every client that is placed, in order of address.
    pub(in crate::app) fn rows(&self) -> Vec<ClientRow> {
        let fed = self.fed.iter().filter(|(client, _)| !self.clients.contains_key(client));
        let fed = fed.map(|(client, placed)| (client, placed, true));
        let all = self.clients.iter().map(|(client, placed)| (client, placed, false)).chain(fed);
        let mut rows: Vec<ClientRow> = all
            .map(|(client, placed, from_file)| ClientRow {
                client: *client,
                segment: placed.segment.clone(),
                until: placed.ends.map(|ends| Wall(ends).to_string()),
                labels: placed.labels.clone(),
                from_file,
            })
            .collect();
        rows.sort_by_key(|row| row.client);
        rows
    }

    /// When the next of it ends.
    pub(in crate::app) fn next_end(&self) -> Option<Wall> {
        let placed = self.clients.values().chain(self.fed.values()).filter_map(|placed| placed.ends);
        self.changes.iter().filter_map(|change| change.ends).chain(placed).min().map(Wall)
    }

    /// Takes out what has ended; the changes among it.
    pub(in crate::app) fn end(&mut self, now: Wall) -> Vec<Change> {
        let lives = |ends: Option<u64>| ends.is_none_or(|ends| now.0 < ends);
        self.clients.retain(|_, placed| lives(placed.ends));
        self.fed.retain(|_, placed| lives(placed.ends));
        self.changes.extract_if(.., |change| !lives(change.ends)).collect()
    }

    /// How many clients are placed.
    pub(in crate::app) fn placed(&self) -> usize {
        let fed = self.fed.keys().filter(|client| !self.clients.contains_key(client));
        self.clients.len() + fed.count()
    }

    /// Adds a change.
    ///
    /// # Errors
    /// One sentence: there are too many.
    pub(in crate::app) fn add(&mut self, change: Change) -> Result<(), String> {
        if self.changes.len() >= MAX_CHANGES {
            return Err(format!("{MAX_CHANGES} changes stand already; retract some, or move them into policy files"));
        }
        self.changes.push(change);
        Ok(())
    }

    /// Places a client.
    ///
    /// # Errors
    /// One sentence: there are too many.
    pub(in crate::app) fn place(&mut self, client: IpAddr, placed: Placed) -> Result<(), String> {
        if self.clients.len() + self.fed.len() >= MAX_CLIENTS && !self.clients.contains_key(&client) {
            return Err(format!(
                "{MAX_CLIENTS} clients are placed already; take some out, or name their prefixes in a segment"
            ));
        }
        self.clients.insert(client, placed);
        Ok(())
    }
}

/// The changes in force, and their file.
pub(in crate::app) struct Book {
    path: PathBuf,
    pub(in crate::app) contents: Contents,
}

impl Book {
    /// Reads the file of a state directory; what has ended meanwhile is left out.
    ///
    /// # Errors
    /// One sentence: it is there and cannot be read. Denies may be in it, so that nothing is served without it.
    pub(in crate::app) fn open(state: &Path, now: Wall) -> Result<Self, String> {
        let path = state.join("changes.json");
        let contents = match read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Contents::default(),
            Err(error) => {
                return Err(format!(
                    "the changes in {} cannot be read: {error}; mend it, or move it away to lose them",
                    path.display()
                ));
            }
            Ok(mut contents) => {
                contents.end(now);
                contents
            }
        };
        Ok(Self { path, contents })
    }

    /// Writes what is to be in force, on disk when it returns.
    pub(in crate::app) fn save(&self, contents: &Contents) -> io::Result<()> {
        let new = self.path.with_extension("json.new");
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o640).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(contents)?)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        // The name is on disk when its directory is.
        self.path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    }
}

fn read(path: &Path) -> io::Result<Contents> {
    let mut text = Vec::new();
    File::open(path)?.take(LARGEST).read_to_end(&mut text)?;
    let contents: Contents = serde_json::from_slice(&text)?;
    if contents.version != VERSION {
        return Err(io::Error::other(format!("it is of version {}, and this one knows {VERSION}", contents.version)));
    }
    Ok(contents)
}
