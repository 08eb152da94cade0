//! A scenario played: each step of its text done to a [`World`], each fact compared.

mod expected;
mod flow;
mod script;
mod traffic;

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use outgate::document::Mistake;
use outgate::firewall::Mode;
use outgate::net::{Element, Scope, SegmentId};
use outgate::time::Tick;
use serde_json::Value;

use crate::gate::{Exchange, Held, Reply, World};
use expected::{Field, Wanted};
use flow::{End, Flow};
use script::{Script, Step, What};

/// Plays the scenario of a file.
///
/// # Errors
/// `line: what was expected, what came` of the first step that fails; nothing after it is played.
pub(crate) fn play(path: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("1: {error}"))?;
    let Script { setup, first, steps } = Script::read(&text)?;
    let world = World::start(setup).map_err(|mistakes| format!("{first}: {}", listed(&mistakes)))?;
    let mut stage = Stage { world, held: None, last: None, records: Vec::new(), counted: Vec::new(), packets: 0 };
    for Step { line, what } in steps {
        stage.play(what).map_err(|fault| format!("{line}: {fault}"))?;
        stage.check_scripted().map_err(|fault| format!("{line}: {fault}"))?;
    }
    stage.world.finish().map_err(|fault| format!("{}: at the end {fault}", text.lines().count()))
}

/// The world and what the steps so far left to be asked about.
struct Stage {
    world: World,
    /// Of a QUERY that is held.
    held: Option<Held>,
    last: Option<Exchange>,
    /// Written since the last QUERY, PACKET or RELOAD began.
    records: Vec<Value>,
    /// Per upstream: packets that UPSTREAM_PACKETS has counted already.
    counted: Vec<(String, usize)>,
    /// Ports and ids differ from packet to packet.
    packets: u16,
}

impl Stage {
    fn play(&mut self, what: What) -> Result<(), String> {
        match what {
            What::Answer { upstream, name, kind, act } => {
                let name_of = upstream.unwrap_or_else(|| self.world.servers[0].name.clone());
                let server = self.world.server(&name_of).ok_or_else(|| format!("there is no upstream {name_of}"))?;
                server.script(&name, kind, act);
            }
            What::Query { ask, header, from, transport, held } => {
                let message = ask.bytes(0x1000 + self.packets);
                let packet = [header.unwrap_or_default(), message].concat();
                let peer = self.peer(from);
                self.held = Some(self.world.hold(&packet, peer, transport));
                if !held {
                    self.release()?;
                }
            }
            What::Packet { bytes, from, transport } => {
                let peer = self.peer(from);
                let exchange = self.world.send(&bytes, peer, transport)?;
                self.keep(exchange);
            }
            What::Release => self.release()?,
            What::Expect(wanted) => self.expect(&wanted)?,
            What::Log(fields) => self.log(&fields)?,
            What::LogGrant(fields) => self.log_grant(&fields)?,
            What::LogNoGrant => {
                if let Some(grant) = self.records.iter().find(|record| record["type"] == "grant") {
                    return Err(format!("expected no grant record, got {grant}"));
                }
            }
            What::LogOrder(wanted) => {
                let got: Vec<&str> = self.records.iter().filter_map(|record| record["type"].as_str()).collect();
                if got != wanted {
                    return Err(format!("expected records in the order {}, got {}", wanted.join(" "), got.join(" ")));
                }
            }
            What::Firewall(mode) => self.world.firewall.set_mode(mode),
            What::FirewallLoses => {
                self.world.firewall.set_mode(Mode::Ack);
                self.world.firewall.lose();
            }
            What::Open { flow, end } => self.open(&flow, end)?,
            What::Closed(flow) => self.closed(flow.as_ref())?,
            What::Elements(count) => {
                let elements = self.world.firewall.elements();
                if elements.len() != count {
                    return Err(format!("expected {count} open elements, got {}", elements.len()));
                }
            }
            What::UpstreamPackets { upstream, at_least, count } => self.upstream_packets(upstream, at_least, count)?,
            What::Flush(flush) => _ = self.world.gate.flush(&flush),
            What::TimePasses(duration) => {
                self.world.pass(duration);
                self.records.extend(self.world.new_records());
            }
            What::Reload { files, refused } => self.reload(&files, refused.as_deref())?,
        }
        Ok(())
    }

    /// Who sends the next packet. What the one before left is no longer asked about.
    fn peer(&mut self, from: IpAddr) -> SocketAddr {
        self.packets += 1;
        self.records.clear();
        self.last = None;
        SocketAddr::new(from, 40_000 + self.packets)
    }

    fn release(&mut self) -> Result<(), String> {
        let held = self.held.take().ok_or("nothing is held")?;
        let exchange = self.world.release(held)?;
        self.keep(exchange);
        Ok(())
    }

    fn keep(&mut self, exchange: Exchange) {
        self.records.clone_from(&exchange.records);
        self.last = Some(exchange);
    }

    /// A question that the scenario has no answer to is a mistake of the scenario, or more than it wanted asked.
    fn check_scripted(&self) -> Result<(), String> {
        let mut asked = self.world.servers.iter().flat_map(|server| {
            server.unscripted().into_iter().map(|question| format!("upstream {}: {question}", server.name))
        });
        asked.next().map_or(Ok(()), |question| Err(format!("no ANSWER is written for {question}")))
    }

    fn exchange(&self) -> Result<&Exchange, String> {
        self.last.as_ref().ok_or_else(|| "there is no QUERY or PACKET before this".to_owned())
    }

    fn expect(&self, wanted: &Wanted) -> Result<(), String> {
        let exchange = self.exchange()?;
        let reply = exchange.reply.as_deref().map(Reply::read).transpose()?;
        wanted.check(reply.as_ref()).map_err(|fault| format!("{fault}\n    record: {}", exchange.record()))
    }

    fn log(&self, fields: &[Field]) -> Result<(), String> {
        let record = self.exchange()?.record();
        fields.iter().try_for_each(|field| field.check(record)).map_err(|fault| format!("{fault}\n    in {record}"))
    }

    fn log_grant(&self, fields: &[Field]) -> Result<(), String> {
        let mut grants = self.records.iter().filter(|record| record["type"] == "grant");
        if grants.clone().any(|grant| fields.iter().all(|field| field.check(grant).is_ok())) {
            return Ok(());
        }
        let mut fault = "expected a grant record with these fields, got".to_owned();
        if grants.clone().next().is_none() {
            fault.push_str(" none");
        }
        grants.try_for_each(|grant| write!(fault, "\n    {grant}")).map_err(|error| error.to_string())?;
        Err(fault)
    }

    fn held(&self) -> String {
        let now = self.world.clock.tick();
        let elements = self.world.firewall.elements();
        let rulebook = self.world.gate.rulebook();
        let name = |id: SegmentId| {
            let segment = rulebook.policy.segments().iter().find(|segment| segment.id == id);
            segment.map_or_else(|| format!("{id:?}"), |segment| segment.name.to_string())
        };
        let mut text = String::new();
        for (Element { from, to, service }, until) in elements.iter().take(20) {
            let from = match from {
                Scope::Client(address) => address.to_string(),
                Scope::Segment(id) => format!("segment:{}", name(*id)),
            };
            _ = write!(text, "\n    {from} > {to} {service} for {:?}", until.since(now));
        }
        if text.is_empty() { "\n    nothing".to_owned() } else { text }
    }

    fn matching(&self, flow: &Flow) -> Vec<(Element, Tick)> {
        let mut elements = self.world.firewall.elements();
        elements.retain(|(element, _)| flow.covers(element));
        elements
    }

    fn open(&self, flow: &Flow, end: End) -> Result<(), String> {
        let now = self.world.clock.tick();
        let found = self.matching(flow);
        if !found.is_empty() && found.iter().all(|(_, until)| end.holds(until.since(now))) {
            return Ok(());
        }
        Err(format!("expected {flow} open{end}; open are{}", self.held()))
    }

    fn closed(&self, flow: Option<&Flow>) -> Result<(), String> {
        let open = match flow {
            Some(flow) => self.matching(flow),
            None => self.world.firewall.elements(),
        };
        if open.is_empty() {
            return Ok(());
        }
        let wanted = flow.map_or_else(|| "everything".to_owned(), ToString::to_string);
        Err(format!("expected {wanted} closed; open are{}", self.held()))
    }

    fn upstream_packets(&mut self, upstream: Option<String>, at_least: bool, count: usize) -> Result<(), String> {
        let mut since = 0;
        for server in &self.world.servers {
            if upstream.as_ref().is_some_and(|name| *name != server.name) {
                continue;
            }
            let seen = server.seen().len();
            match self.counted.iter_mut().find(|(name, _)| *name == server.name) {
                Some((_, counted)) => since += seen - std::mem::replace(counted, seen),
                None => {
                    since += seen;
                    self.counted.push((server.name.clone(), seen));
                }
            }
        }
        if since == count || at_least && since > count {
            return Ok(());
        }
        Err(format!("expected {}{count} packets upstream, got {since}", if at_least { "at least " } else { "" }))
    }

    fn reload(&mut self, files: &[outgate::policy::Source], refused: Option<&str>) -> Result<(), String> {
        self.records.clear();
        let result = self.world.reload(files);
        self.records = self.world.new_records();
        match (result, refused) {
            (Ok(_), None) => Ok(()),
            (Ok(_), Some(part)) => Err(format!("expected a mistake with \"{part}\", and it was loaded")),
            (Err(mistakes), None) => Err(listed(&mistakes)),
            (Err(mistakes), Some(part)) => {
                let listed = listed(&mistakes);
                if listed.contains(part) {
                    Ok(())
                } else {
                    Err(format!("expected a mistake with \"{part}\", got {listed}"))
                }
            }
        }
    }
}

fn listed(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|mistake| format!("mistake {mistake}")).collect::<Vec<_>>().join("\n    ")
}
