//! The file of changes: read at start, written before a change is in force.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::change::{Change, Placed, Retracted};
use super::news::Late;
use crate::policy::Runtime;
use crate::serve::ClientRow;
use crate::time::Wall;

/// Changes at once: each is looked at by people.
const MAX_CHANGES: usize = 1_000;
/// Clients placed at once, those of a watched file among them.
pub(super) const MAX_CLIENTS: usize = 100_000;
/// Rules that were taken back and are remembered at once, for peers that are away.
const MAX_RETRACTED: usize = 4_096;
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
    /// Rules that were taken back, in that order, where there are peers that could bring them back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::app) retracted: Vec<Retracted>,
    /// What was done once and waits for peers. What another version wrote there and this one does not know is left out:
    /// denies matter more.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "known")]
    pub(in crate::app) late: Vec<Late>,
    /// Those of the watched file; not kept here.
    #[serde(skip)]
    pub(in crate::app) fed: BTreeMap<IpAddr, Placed>,
}

impl Default for Contents {
    fn default() -> Self {
        Self {
            version: VERSION,
            changes: Vec::new(),
            clients: BTreeMap::new(),
            retracted: Vec::new(),
            late: Vec::new(),
            fed: BTreeMap::new(),
        }
    }
}

fn known<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Late>, D::Error> {
    let all = Vec::<Value>::deserialize(from)?;
    Ok(all.into_iter().filter_map(|late| serde_json::from_value(late).ok()).collect())
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
        let changes = self.changes.iter().filter(|change| !change.order.cut).filter_map(|change| change.ends);
        changes.chain(placed).min().map(Wall)
    }

    /// When the next change ends that then cuts connections.
    pub(in crate::app) fn next_cut(&self) -> Option<Wall> {
        self.changes.iter().filter(|change| change.order.cut).filter_map(|change| change.ends).min().map(Wall)
    }

    /// Takes out what has ended, but for changes that cut.
    pub(in crate::app) fn end(&mut self, now: Wall) -> Ended {
        let ended = |ends: Option<u64>| ends.is_some_and(|ends| ends <= now.0);
        let placed = self.clients.extract_if(.., |_, placed| ended(placed.ends));
        let mut clients: Vec<_> = placed.collect();
        clients.extend(self.fed.extract_if(.., |_, placed| ended(placed.ends)));
        let changes = self.changes.extract_if(.., |change| !change.order.cut && ended(change.ends)).collect();
        Ended { changes, clients }
    }

    /// Takes out the changes that cut and end until then.
    pub(in crate::app) fn end_cutting(&mut self, until: Wall) -> Vec<Change> {
        let ended = |change: &Change| change.ends.is_some_and(|ends| ends <= until.0);
        self.changes.extract_if(.., |change| change.order.cut && ended(change)).collect()
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

    /// Whether a rule stands, or stood.
    pub(in crate::app) fn knows(&self, id: &str) -> bool {
        self.changes.iter().any(|change| change.id == id) || self.is_retracted(id)
    }

    /// Whether a rule was taken back, as far as is remembered.
    pub(in crate::app) fn is_retracted(&self, id: &str) -> bool {
        self.retracted.iter().any(|retracted| retracted.id == id)
    }

    /// Remembers that a rule was taken back. Where too many are remembered, denies are forgotten first: one that comes back
    /// refuses too much, an allow would open.
    pub(in crate::app) fn bury(&mut self, retracted: Retracted, now: Wall) {
        self.retracted.retain(|known| known.forgotten_at() > now.0);
        if self.retracted.len() >= MAX_RETRACTED {
            let next = |(_, known): &(usize, &Retracted)| (known.ends.is_some(), known.forgotten_at());
            if let Some((at, _)) = self.retracted.iter().enumerate().min_by_key(next) {
                self.retracted.remove(at);
            }
        }
        self.retracted.push(retracted);
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

/// What ended by itself.
#[derive(Debug, Default)]
pub(in crate::app) struct Ended {
    pub(in crate::app) changes: Vec<Change>,
    pub(in crate::app) clients: Vec<(IpAddr, Placed)>,
}

/// The changes in force, and their file.
pub(in crate::app) struct Book {
    path: PathBuf,
    pub(in crate::app) contents: Contents,
    /// The file does not say what is in force.
    pub(in crate::app) unsaved: bool,
    /// What ended while no node ran.
    pub(in crate::app) ended: Ended,
}

impl Book {
    /// Reads the file of a state directory; what has ended meanwhile is left out.
    ///
    /// # Errors
    /// One sentence: it is there and cannot be read. Denies may be in it, so that nothing is served without it.
    pub(in crate::app) fn open(state: &Path, now: Wall) -> Result<Self, String> {
        let path = state.join("changes.json");
        let mut contents = match read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Contents::default(),
            Err(error) => {
                return Err(format!(
                    "the changes in {} cannot be read: {error}; mend it, or move it away to lose them",
                    path.display()
                ));
            }
            Ok(contents) => contents,
        };
        let mut ended = contents.end(now);
        ended.changes.extend(contents.end_cutting(now));
        Ok(Self { path, contents, unsaved: false, ended })
    }

    /// Writes what is to be in force, on disk when it returns. Where it fails the file says what is in force now.
    pub(in crate::app) fn save(&self, contents: &Contents) -> io::Result<()> {
        // First: what may fail fails before the file is another one.
        let directory = self.path.parent().map(File::open).transpose()?;
        self.write(contents)?;
        // The name is on disk when its directory is.
        let synced = directory.map_or(Ok(()), |directory| directory.sync_all());
        if synced.is_err() {
            self.write(&self.contents)?;
        }
        synced
    }

    fn write(&self, contents: &Contents) -> io::Result<()> {
        let new = self.path.with_extension("json.new");
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o640).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(contents)?)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As this version writes it.
    const KEPT: &str = r#"{
  "version": 1,
  "changes": [
    {
      "id": "allow-1",
      "author": {
        "uid": 1000,
        "user": "ada"
      },
      "made": 1,
      "ends": 2,
      "order": {
        "action": "allow",
        "targets": [
          "a.example.org"
        ],
        "segments": [
          "shop"
        ],
        "client": "192.0.2.7",
        "for_s": 60,
        "ports": [
          "443"
        ],
        "types": [
          "A"
        ],
        "private": [
          "10.0.0.0/8"
        ],
        "reason": "incident",
        "ticket": "T-1",
        "cut": true
      }
    }
  ],
  "clients": {
    "192.0.2.8": {
      "segment": "shop",
      "ends": 3,
      "labels": {
        "owner": "web"
      }
    }
  },
  "late": [
    {
      "at": 4,
      "peers": [
        "ns2.example"
      ],
      "news": {
        "revoke": {
          "id": "5f0c91ab",
          "author": {
            "uid": 0
          },
          "order": {
            "name": "a.example.org",
            "below": false,
            "cut": true,
            "reason": "incident"
          }
        }
      }
    }
  ]
}
"#;

    #[test]
    fn of_what_was_taken_back_denies_are_forgotten_first_and_what_has_ended_at_once() {
        let mut contents = Contents::default();
        let retracted = |at: u64, ends: Option<u64>| -> Retracted {
            let author = serde_json::from_str(r#"{ "uid": 0 }"#).unwrap();
            Retracted { id: format!("runtime-{at:08x}"), author, at, ends, why: String::new() }
        };
        contents.bury(retracted(1, Some(10)), Wall(1));
        contents.bury(retracted(2, None), Wall(9));
        assert!(contents.is_retracted("runtime-00000001"));
        contents.bury(retracted(3, Some(u64::MAX)), Wall(10));
        assert!(!contents.is_retracted("runtime-00000001"), "a peer that still has it has ended it");
        let full = u64::try_from(MAX_RETRACTED).unwrap() + 1;
        (4..=full).for_each(|at| contents.bury(retracted(at, Some(u64::MAX)), Wall(10)));
        assert!(contents.retracted.len() == MAX_RETRACTED && contents.is_retracted("runtime-00000002"));
        contents.bury(retracted(full + 1, Some(u64::MAX)), Wall(10));
        assert!(contents.retracted.len() == MAX_RETRACTED && !contents.is_retracted("runtime-00000002"));
    }

    /// A release before or after this one reads what this one writes: a change of it needs another version.
    #[test]
    fn the_text_of_this_version_stays_as_it_is() {
        let state = std::env::temp_dir().join(format!("outgate-book-{}", std::process::id()));
        std::fs::create_dir_all(&state).unwrap();
        let path = state.join("changes.json");
        let open = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Book::open(&state, Wall(0))
        };
        let book = open(KEPT).unwrap_or_else(|why| panic!("{why}"));
        std::fs::remove_file(&path).unwrap();
        book.save(&book.contents).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), KEPT);
        // What a later release says beside an order is passed over.
        assert!(open(&KEPT.replace("\"made\": 1,", "\"made\": 1, \"later\": [],")).is_ok());
        // Of an order nothing is: what is not understood may be what limits it.
        let refused = |text: &str, why: &str| {
            let expected = format!(
                "the changes in {} cannot be read: {why}; mend it, or move it away to lose them",
                path.display()
            );
            assert_eq!(open(text).err(), Some(expected));
        };
        let order = KEPT.replace("\"cut\": true", "\"later\": true");
        let known = "`action`, `targets`, `segments`, `client`, `for_s`, `ports`, `types`, `private`, `reason`, `ticket`, `cut`";
        refused(&order, &format!("unknown field `later`, expected one of {known} at line 33 column 15"));
        refused(&KEPT.replace("\"version\": 1", "\"version\": 2"), "it is of version 2, and this one knows 1");
        std::fs::remove_dir_all(&state).unwrap();
    }
}
