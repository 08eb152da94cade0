//! A scenario's text → what the gate is built from, and the steps. The language is described in
//! tests/scenarios/README.md.

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::rr::rdata::NULL;
use hickory_proto::rr::{Name, RData, RecordType};
use outgate::audit::Transport;
use outgate::cache;
use outgate::document::{Document, Place, parse_duration};
use outgate::firewall::Mode;
use outgate::grant::Terms;
use outgate::policy::{self, Forwarder, Identity};
use outgate::zones;

use super::expected::{Field, Wanted, read_expect};
use super::flow::{End, Flow};
use super::traffic::{octets, read_answer, read_packet, read_query};
use crate::gate::{Act, Ask, Plan, Setup};

/// A scenario.
pub(crate) struct Script {
    pub(crate) setup: Setup,
    /// The line of its first step: mistakes of what it is built from show there.
    pub(crate) first: usize,
    pub(crate) steps: Vec<Step>,
}

/// One step and its line.
pub(crate) struct Step {
    pub(crate) line: usize,
    pub(crate) what: What,
}

/// What a step does or expects.
pub(crate) enum What {
    Answer { upstream: Option<String>, name: String, kind: RecordType, act: Act },
    Query { ask: Box<Ask>, header: Option<Vec<u8>>, from: IpAddr, transport: Transport, held: bool },
    Release,
    Packet { bytes: Vec<u8>, from: IpAddr, transport: Transport },
    Expect(Box<Wanted>),
    Log(Vec<Field>),
    LogGrant(Vec<Field>),
    LogNoGrant,
    LogOrder(Vec<String>),
    Firewall(Mode),
    FirewallLoses,
    Open { flow: Flow, end: End },
    Closed(Option<Flow>),
    Elements(usize),
    UpstreamPackets { upstream: Option<String>, at_least: bool, count: usize },
    TimePasses(Duration),
    Flush(cache::Flush),
    Reload { files: Vec<policy::Source>, refused: Option<String> },
}

/// A line as its words, and the text below it up to EOF where it ends in `<<EOF`.
struct Line {
    number: usize,
    words: Vec<String>,
    text: Option<String>,
}

impl Script {
    /// Reads a scenario.
    ///
    /// # Errors
    /// `line: what is wrong` of the first line that cannot be read.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let mut setup = Setup::default();
        let mut steps = Vec::new();
        let lines = lines(text)?;
        let first = lines.first().map_or(1, |line| line.number);
        for line in lines {
            let number = line.number;
            let read = read_line(line, &mut setup).map_err(|fault| format!("{number}: {fault}"))?;
            match read {
                Some(what) => steps.push(Step { line: number, what }),
                None if steps.is_empty() => {}
                None => return Err(format!("{number}: this belongs before the first step")),
            }
        }
        Ok(Self { setup, first, steps })
    }
}

fn lines(text: &str) -> Result<Vec<Line>, String> {
    let mut lines = Vec::new();
    let mut rest = text.lines().enumerate();
    while let Some((index, line)) = rest.next() {
        let number = index + 1;
        let mut words = words(line).map_err(|fault| format!("{number}: {fault}"))?;
        if words.is_empty() {
            continue;
        }
        let mut text = None;
        if words.last().is_some_and(|word| word == "<<EOF") {
            words.pop();
            let mut below = String::new();
            loop {
                let Some((_, line)) = rest.next() else { return Err(format!("{number}: no line EOF follows")) };
                if line == "EOF" {
                    break;
                }
                below.push_str(line);
                below.push('\n');
            }
            text = Some(below);
        }
        lines.push(Line { number, words, text });
    }
    Ok(lines)
}

/// Words between blanks; quotes hold a word together, `#` begins a comment.
fn words(line: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    for character in line.chars() {
        match character {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '#' if !quoted && word.is_none() => break,
            _ if character.is_whitespace() && !quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    if quoted { Err("a quote is not closed".to_owned()) } else { Ok(words) }
}

/// Reads one line into the setup (`None`) or as a step.
fn read_line(line: Line, setup: &mut Setup) -> Result<Option<What>, String> {
    let Line { number, words, text } = line;
    let (verb, words) = words.split_first().ok_or("an empty line")?;
    let text_below = || text.clone().ok_or_else(|| format!("{verb} needs a text: end the line with <<EOF"));
    let file = |word: Option<&String>| word.cloned().unwrap_or_else(|| "policy.toml".to_owned());
    let what = match verb.as_str() {
        "CANDIDATE" => {
            setup.candidate.push(policy::Source { file: file(words.first()), text: text_below()? });
            return Ok(None);
        }
        "POLICY" => {
            setup.policy.push(policy::Source { file: file(words.first()), text: text_below()? });
            return Ok(None);
        }
        "ZONE" => {
            let [name] = words else { return Err("write ZONE name <<EOF".to_owned()) };
            setup.zones.push(zones::Source { file: format!("{name}.zone").into(), text: text_below()? });
            return Ok(None);
        }
        "FORWARDER" => {
            let usage = "write FORWARDER name address [none|ecs|proxy] [segment]";
            let [name, from, rest @ ..] = words else { return Err(usage.to_owned()) };
            let said = rest.first().and_then(|word| Identity::ALL.into_iter().find(|(_, known)| known == word));
            let (identity, segment) = match (said, rest) {
                (Some((identity, _)), [_, segment @ ..]) => (identity, segment),
                (_, segment) => (Identity::None, segment),
            };
            setup.forwarders.push(Forwarder {
                name: name.clone(),
                addresses: vec![address(from)?.into()],
                identity,
                segment: segment.first().cloned(),
                place: Place { file: "scenario".into(), line: u32::try_from(number).unwrap_or(1), column: 1 },
            });
            return Ok(None);
        }
        "CONFIG" => {
            let (document, root) = Document::parse("CONFIG", &text_below()?);
            setup.terms = Terms::read(&root);
            setup.cache = cache::Settings::read(&root);
            root.finish(&[]);
            let mistakes = document.take_mistakes();
            return mistakes.first().map_or(Ok(None), |mistake| Err(mistake.to_string()));
        }
        "UPSTREAM" => {
            setup.upstreams.push(read_upstream(words)?);
            return Ok(None);
        }
        "ANSWER" => read_answer(words)?,
        "QUERY" => read_query(words)?,
        "RELEASE" => What::Release,
        "PACKET" => read_packet(words)?,
        "EXPECT" => What::Expect(Box::new(read_expect(words)?)),
        "LOG" => read_log(words)?,
        "FIREWALL" => read_firewall(words)?,
        "OPEN" => {
            let split = words.iter().position(|word| word == "for").unwrap_or(words.len());
            let end = match &words[split..] {
                [] => End::Any,
                [_, time] => End::In(duration(time)?),
                [_, at_least, time] if at_least == ">=" => End::AtLeast(duration(time)?),
                _ => return Err("write `for 60s` or `for >= 60s`".to_owned()),
            };
            What::Open { flow: Flow::read(&words[..split])?, end }
        }
        "CLOSED" if words.is_empty() => What::Closed(None),
        "CLOSED" => What::Closed(Some(Flow::read(words)?)),
        "ELEMENTS" => What::Elements(number_of(words.first())?),
        "UPSTREAM_PACKETS" => {
            let at_least = words.iter().any(|word| word == ">=");
            let words: Vec<_> = words.iter().filter(|word| *word != ">=").collect();
            let (upstream, count) = match words.as_slice() {
                [count] => (None, count),
                [upstream, count] => (Some((*upstream).clone()), count),
                _ => return Err("write UPSTREAM_PACKETS [upstream] [>=] number".to_owned()),
            };
            What::UpstreamPackets { upstream, at_least, count: number_of(Some(count))? }
        }
        "FLUSH" => {
            let (name, below) = match words {
                [name] => (name, false),
                [name, below] if below == "below" => (name, true),
                _ => return Err("write FLUSH name [below]".to_owned()),
            };
            let name = outgate::name::Name::parse(name).map_err(|error| error.to_string())?;
            What::Flush(cache::Flush { name, below })
        }
        "TIME_PASSES" => What::TimePasses(duration(words.first().ok_or("how long?")?)?),
        "RELOAD" => {
            let refused = match words {
                [] => None,
                [refused, part] if refused == "refused" => Some(part.clone()),
                _ => return Err("write RELOAD <<EOF, or RELOAD refused \"part of the mistake\" <<EOF".to_owned()),
            };
            What::Reload { files: vec![policy::Source { file: file(None), text: text_below()? }], refused }
        }
        _ => return Err(format!("{verb} is not a word of this language; see tests/scenarios/README.md")),
    };
    Ok(Some(what))
}

pub(super) fn number_of<T: std::str::FromStr>(word: Option<&String>) -> Result<T, String> {
    let word = word.ok_or("a number is missing")?;
    word.parse().map_err(|_| format!("{word} is not a number"))
}

pub(super) fn address(word: &str) -> Result<IpAddr, String> {
    word.parse().map_err(|_| format!("{word} is not an address"))
}

pub(super) fn duration(word: &str) -> Result<Duration, String> {
    parse_duration(word).ok_or_else(|| format!("{word} is not a time: write 500ms, 5s, 10m or 1h"))
}

pub(super) fn kind(word: &str) -> Result<RecordType, String> {
    let kind: outgate::record::RecordType = word.parse().map_err(|()| format!("{word} is not a type"))?;
    Ok(RecordType::from(kind.0))
}

/// The data of a record as a zone file has it, or `\# hex`; names in it are complete.
pub(super) fn rdata(word: &str, text: &str) -> Result<RData, String> {
    let kind = kind(word)?;
    if let Some(hex) = text.strip_prefix(r"\# ") {
        return Ok(RData::Unknown { code: kind, rdata: NULL::with(octets(hex)?) });
    }
    RData::try_from_str(kind, text).map_err(|error| format!("{text}: {error}"))
}

/// A name in lower case with its last dot.
pub(super) fn name(word: &str) -> Result<Name, String> {
    let mut name = Name::from_ascii(word).map_err(|error| format!("{word}: {error}"))?;
    name.set_fqdn(true);
    Ok(name.to_lowercase())
}

/// `198.51.100.7`, or `198.51.100.1-20` for twenty addresses.
pub(super) fn addresses(word: &str) -> Result<Vec<IpAddr>, String> {
    let Some((first, last)) = word.split_once('-') else { return Ok(vec![address(word)?]) };
    let (net, from) = first.rsplit_once('.').ok_or("a range is written 198.51.100.1-20")?;
    let (from, to): (u8, u8) = (number_of(Some(&from.to_owned()))?, number_of(Some(&last.to_owned()))?);
    (from..=to).map(|last| address(&format!("{net}.{last}"))).collect()
}

/// `name [zones z,z] [segments s,s] [private p,p]`.
fn read_upstream(words: &[String]) -> Result<Plan, String> {
    let (own, options) = words.split_first().ok_or("an upstream has a name")?;
    let mut plan = Plan { name: own.clone(), zones: Vec::new(), segments: Vec::new(), private: Vec::new() };
    for option in options.chunks(2) {
        let [key, list] = option else { return Err(format!("{} of what?", option.join(" "))) };
        let list: Vec<&str> = list.split(',').collect();
        match key.as_str() {
            "zones" => {
                for zone in list {
                    plan.zones.push(outgate::name::Name::parse(zone).map_err(|error| error.to_string())?);
                }
            }
            "segments" => plan.segments = list.into_iter().map(str::to_owned).collect(),
            "private" => {
                for prefix in list {
                    plan.private.push(prefix.parse().map_err(|_| format!("{prefix} is not a prefix"))?);
                }
            }
            _ => return Err(format!("an upstream has zones, segments and private, not {key}")),
        }
    }
    Ok(plan)
}

/// `key=value …` of the query's record, `grant key=value …`, `no grant`, `order type …`.
fn read_log(words: &[String]) -> Result<What, String> {
    let fields = |words: &[String]| -> Result<Vec<Field>, String> {
        words.iter().map(|word| Field::read(word).ok_or_else(|| format!("{word} is not key=value"))).collect()
    };
    Ok(match words {
        [no, grant] if no == "no" && grant == "grant" => What::LogNoGrant,
        [grant, rest @ ..] if grant == "grant" => What::LogGrant(fields(rest)?),
        [order, rest @ ..] if order == "order" => What::LogOrder(rest.to_vec()),
        rest => What::Log(fields(rest)?),
    })
}

fn read_firewall(words: &[String]) -> Result<What, String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(match words.as_slice() {
        ["ack"] => What::Firewall(Mode::Ack),
        ["stall"] => What::Firewall(Mode::Stall),
        ["fail"] => What::Firewall(Mode::Fail),
        ["fail", to] => What::Firewall(Mode::FailTo(address(to)?)),
        ["loses"] => What::FirewallLoses,
        _ => return Err("write FIREWALL ack, stall, fail, fail ADDRESS or loses".to_owned()),
    })
}
