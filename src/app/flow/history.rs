//! What the log says, as the index takes it.

use std::net::IpAddr;
use std::time::Duration;

use crate::app::history::{Fact, Reading};
use crate::audit::Recorded;
use crate::flow::{Detail, Index};
use crate::time::Wall;

/// Feeds an index.
#[derive(Default)]
pub(super) struct History {
    reading: Reading,
    begun: bool,
}

impl History {
    /// Takes a record; `place` says under which address a client stands.
    pub(super) fn take(&mut self, index: &mut Index, record: Recorded<'_>, place: &dyn Fn(IpAddr) -> IpAddr) {
        for fact in self.reading.take(record).into_iter().flatten() {
            if fact.missing().is_none() && (!self.begun || fact.is_first()) {
                index.begin(fact.at, fact.is_first());
                self.begun = true;
            }
            fact.placed(place).apply(index);
        }
    }

    /// The log was read to its end, at `now`: what is missing there is missing until now.
    pub(super) fn settle(&self, index: &mut Index, now: Wall) {
        self.reading.rest(now).iter().for_each(|fact: &Fact| fact.apply(index));
    }

    /// Records are missing between the latest record and `now`.
    pub(super) fn missing(&self, index: &mut Index, now: Wall) {
        index.gap(self.reading.latest().unwrap_or(now), now, Detail::LogGap);
    }
}

/// What the clocks of the log and of the kernel may be apart, and how late a firewall may be with an end.
pub(super) const ERROR: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{RecordId, read_records};
    use crate::flow::{Carrier, Class, Flow, Judgement, Limits};

    const LOG: &str = concat!(
        r#"{"v":1,"type":"log","id":"0000000000000001-0-1","ts":"2026-01-01T00:00:00.000000Z","node":"n","op":"open","why":"start"}"#,
        "\n",
        r#"{"v":1,"type":"query","id":"0000000000000001-1-1","ts":"2026-01-01T00:00:10.000000Z","node":"n","client":"192.0.2.7","segment":"office","qname":"a.example","qtype":"A","verdict":"allow","reason":"rule","rule":"web","answers":[{"name":"a.example","type":"A","ttl":60,"data":"198.51.100.7"}],"grant":{"ports":["tcp/443"],"until":"2026-01-01T00:05:10.000000Z"},"latency_us":1000}"#,
        "\n",
        r#"{"v":1,"type":"query","id":"0000000000000001-1-2","ts":"2026-01-01T00:00:20.000000Z","node":"n","client":"192.0.2.9","segment":"trial","qname":"b.example","qtype":"A","verdict":"deny","enforced":false,"reason":"default","answers":[{"name":"b.example","type":"A","ttl":60,"data":"198.51.100.8"}]}"#,
        "\n",
        r#"{"v":1,"type":"query","id":"0000000000000001-1-3","ts":"2026-01-01T00:00:30.000000Z","node":"n","client":"192.0.2.7","segment":"office","qname":"b.example","qtype":"A","verdict":"deny","reason":"default"}"#,
        "\n",
        r#"{"v":1,"type":"grant","id":"0000000000000001-2-1","ts":"2026-01-01T00:00:40.000000Z","node":"n","op":"revoke","client":"192.0.2.7","scope":"client","segment":"office","rule":"web","qname":"a.example","address":"198.51.100.7","ports":["tcp/443"],"until":"2026-01-01T00:05:10.000000Z"}"#,
        "\n",
        r#"{"v":1,"type":"query","id":"0000000000000001-1-4","ts":"2026-01-01T00:00:50.000000Z","node":"n","client":"192.0.2.9","segment":"trial","qname":"c.example","qtype":"A","verdict":"deny","reason":"default"}"#,
        "\n",
        r#"{"v":1,"type":"log","id":"0000000000000001-1-8","ts":"2026-01-01T00:01:00.000000Z","node":"n","op":"gap","lost":3,"why":"no space left"}"#,
        "\n",
    );

    fn judge<'a>(index: &'a Index, second: u64, client: &str, address: &str) -> Judgement<'a> {
        index.judge(&Flow {
            at: Wall(1_767_225_600_000_000 + second * 1_000_000),
            end: None,
            client: client.parse().unwrap(),
            segment: None,
            address: address.parse().unwrap(),
            carrier: Carrier::Tcp(443),
            started: true,
            denied: false,
            error: ERROR,
        })
    }

    #[test]
    fn what_the_log_says_is_what_flows_are_judged_by() {
        let path = std::env::temp_dir().join(format!("outgate-flow-history-{}.jsonl", std::process::id()));
        std::fs::write(&path, LOG).unwrap();
        let (mut index, mut history) = (Index::new(Limits::default()), History::default());
        let read = read_records(std::slice::from_ref(&path), &mut |_| (), &mut |record| {
            history.take(&mut index, record, &|address| address);
        });
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read.unwrap().damaged, 0);
        for (second, client, address, class, qname) in [
            (15, "192.0.2.7", "198.51.100.7", Class::Exact, Some("a.example")),
            (25, "192.0.2.9", "198.51.100.8", Class::Exact, Some("b.example")),
            (35, "192.0.2.7", "198.51.100.8", Class::None, Some("b.example")),
            (35, "192.0.2.7", "198.51.100.9", Class::None, None),
            (45, "192.0.2.7", "198.51.100.7", Class::Stale, Some("a.example")),
            // Three records are missing from behind the query before.
            (55, "192.0.2.7", "198.51.100.9", Class::Unknown, None),
        ] {
            let judgement = judge(&index, second, client, address);
            assert_eq!((judgement.class, judgement.qname()), (class, qname), "{second} {client} {address}");
        }
        let query = judge(&index, 15, "192.0.2.7", "198.51.100.7").name.and_then(|name| name.query);
        assert_eq!(query.map(RecordId::from).map(|id| id.to_string()).as_deref(), Some("0000000000000001-1-1"));
    }
}
