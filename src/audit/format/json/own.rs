//! The records of the log about itself.

use super::line::{Line, key, open};
use super::{Encoder, NODE, SENTENCE, WORD};
use crate::audit::RecordId;
use crate::audit::own::{Opened, Own, Seal};
use crate::time::Wall;

impl Encoder {
    /// Appends a record of the log about itself.
    pub(in crate::audit) fn encode_own(&mut self, out: &mut Vec<u8>, id: RecordId, at: Wall, record: &Own<'_>) {
        self.begin(out, "{\"v\":1,\"type\":\"log\",\"id\":\"", id, at);
        let line = &mut Line(out);
        match record {
            Own::Open(opened) => begun(line, opened),
            Own::Rotate { file, sealed } => {
                line.raw(concat!(open!("op"), "rotate\""));
                line.text(open!("file"), file, NODE);
                match sealed {
                    Ok(seal) => rotate(line, seal),
                    Err(why) => line.text(open!("why"), why, SENTENCE),
                }
            }
            Own::Removed { file, bytes, why, unread } => {
                line.raw(concat!(open!("op"), "removed\""));
                line.text(open!("file"), file, NODE);
                line.number(key!("bytes"), *bytes);
                line.word(open!("why"), why);
                if !unread.is_empty() {
                    line.list(key!("unread"), unread.iter(), |line, sink| line.text("\"", sink, NODE));
                }
            }
            Own::Sequences { op, sequences } => {
                line.word(open!("op"), op);
                line.raw(key!("sequences"));
                let mut before = "{\"";
                for (shard, sequence) in *sequences {
                    line.number(before, (*shard).into());
                    line.number("\":", *sequence);
                    before = ",\"";
                }
                line.raw(if sequences.is_empty() { "{}" } else { "}" });
            }
            Own::Gap { ranges, why } => {
                line.raw(concat!(open!("op"), "gap\""));
                line.number(key!("lost"), ranges.iter().map(|range| range.last - range.first + 1).sum());
                line.list(key!("ranges"), ranges.iter(), |line, range| {
                    line.number("[", range.first);
                    line.number(",", range.last);
                    line.raw("]");
                });
                line.text(open!("why"), why, SENTENCE);
            }
        }
        out.extend_from_slice(b"}\n");
    }
}

fn begun(line: &mut Line<'_>, opened: &Opened<'_>) {
    let Opened { ours, why, boot, previous_boot, machine, torn, chain, unsealed } = opened;
    line.word(open!("op"), if *ours { "open" } else { "reopen" });
    line.text(open!("why"), why, SENTENCE);
    line.word(open!("version"), env!("CARGO_PKG_VERSION"));
    line.hex(open!("boot"), *boot);
    if let Some(boot) = previous_boot {
        line.hex(open!("previous_boot"), *boot);
    }
    if !machine.is_empty() {
        line.text(open!("machine"), machine, WORD);
    }
    if *torn > 0 {
        line.number(key!("torn"), *torn);
    }
    line.text_of(open!("chain"), *chain, WORD);
    if !unsealed.is_empty() {
        line.list(key!("unsealed"), unsealed.iter(), |line, file| line.text("\"", file, NODE));
    }
}

fn rotate(line: &mut Line<'_>, seal: &Seal<'_>) {
    line.number(key!("records"), seal.records);
    line.number(key!("bytes"), seal.bytes);
    line.word(open!("sha256"), seal.sha256);
    line.text_of(open!("previous"), seal.previous, WORD);
    line.word(open!("chain"), seal.chain);
}
