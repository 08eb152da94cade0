//! A scenario's text → what the gate is built from, and the steps. The language is described in
//! tests/scenarios/README.md.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::{OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use outgate::audit::Transport;
use outgate::document::{Document, Place, parse_duration};
use outgate::firewall::Mode;
use outgate::grant::Terms;
use outgate::net::{Element, Scope, SegmentId};
use outgate::policy::{self, Forwarder};
use outgate::zones;

use super::expected::{Bound, Field, Wanted, code};
use crate::gate::{Act, Answer, Ask, Plan, Setup, client};

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
    Query { ask: Box<Ask>, from: IpAddr, transport: Transport, held: bool },
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
    Reload { files: Vec<policy::Source>, refused: Option<String> },
}

/// From whom to where by what; what is not said is any.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    from: Option<Scope>,
    to: Option<IpAddr>,
    service: Option<String>,
    text: String,
}

impl Flow {
    pub(crate) fn covers(&self, element: &Element) -> bool {
        self.from.is_none_or(|from| from == element.from)
            && self.to.is_none_or(|to| to == element.to)
            && self.service.as_ref().is_none_or(|service| *service == element.service.to_string())
    }

    /// `FROM > TO [SERVICE]`.
    fn read(words: &[String]) -> Result<Self, String> {
        let [from, arrow, to, service @ ..] = words else { return Err("write FROM > TO SERVICE".to_owned()) };
        if arrow != ">" || service.len() > 1 {
            return Err("write FROM > TO SERVICE".to_owned());
        }
        let from = match from.strip_prefix("segment:") {
            _ if from == "*" => None,
            Some(name) => Some(Scope::Segment(SegmentId::of(name))),
            None => Some(Scope::Client(address(from)?)),
        };
        let to = if to == "*" { None } else { Some(address(to)?) };
        Ok(Self { from, to, service: service.first().cloned(), text: words.join(" ") })
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How long something should stay open.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Any,
    In(Duration),
    AtLeast(Duration),
}

impl End {
    pub(crate) fn holds(self, left: Duration) -> bool {
        match self {
            Self::Any => true,
            // Less than a second is what the TTL's rounding gives away.
            Self::In(wanted) => left.as_secs() == wanted.as_secs(),
            Self::AtLeast(least) => left >= least,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => Ok(()),
            Self::In(wanted) => write!(f, " for {wanted:?}"),
            Self::AtLeast(least) => write!(f, " for at least {least:?}"),
        }
    }
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
            let [name, from, segment] = words else { return Err("write FORWARDER name address segment".to_owned()) };
            setup.forwarders.push(Forwarder {
                name: name.clone(),
                addresses: vec![address(from)?.into()],
                segment: segment.clone(),
                place: Place { file: "scenario".into(), line: u32::try_from(number).unwrap_or(1), column: 1 },
            });
            return Ok(None);
        }
        "CONFIG" => {
            let (document, root) = Document::parse("CONFIG", &text_below()?);
            setup.terms = Terms::read(&root);
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

fn number_of<T: std::str::FromStr>(word: Option<&String>) -> Result<T, String> {
    let word = word.ok_or("a number is missing")?;
    word.parse().map_err(|_| format!("{word} is not a number"))
}

fn address(word: &str) -> Result<IpAddr, String> {
    word.parse().map_err(|_| format!("{word} is not an address"))
}

fn duration(word: &str) -> Result<Duration, String> {
    parse_duration(word).ok_or_else(|| format!("{word} is not a time: write 500ms, 5s, 10m or 1h"))
}

fn kind(word: &str) -> Result<RecordType, String> {
    let kind: outgate::record::RecordType = word.parse().map_err(|()| format!("{word} is not a type"))?;
    Ok(RecordType::from(kind.0))
}

/// A name in lower case with its last dot.
fn name(word: &str) -> Result<Name, String> {
    let mut name = Name::from_ascii(word).map_err(|error| format!("{word}: {error}"))?;
    name.set_fqdn(true);
    Ok(name.to_lowercase())
}

/// `198.51.100.7`, or `198.51.100.1-20` for twenty addresses.
fn addresses(word: &str) -> Result<Vec<IpAddr>, String> {
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

/// `[upstream:] name type -> silence | RCODE [tc] [ede code text] [ttl n] [cname n] [a n] [aaaa n] [txt t] [soa n s]`.
fn read_answer(words: &[String]) -> Result<What, String> {
    let (upstream, words) = match words.split_first() {
        Some((first, rest)) if first.ends_with(':') => (Some(first.trim_end_matches(':').to_owned()), rest),
        _ => (None, words),
    };
    let [asked, asked_kind, arrow, does, rest @ ..] = words else {
        return Err("write ANSWER name type -> what".to_owned());
    };
    if arrow != "->" {
        return Err("write ANSWER name type -> what".to_owned());
    }
    let (asked, asked_kind) = (name(asked)?, kind(asked_kind)?);
    let act = if does == "silence" { Act::Silence } else { Act::Answer(read_response(&asked, does, rest)?) };
    Ok(What::Answer { upstream, name: asked.to_ascii(), kind: asked_kind, act })
}

fn read_response(asked: &Name, rcode: &str, words: &[String]) -> Result<Answer, String> {
    let rcode = (0..=23).map(ResponseCode::from_low).find(|known| code(*known) == rcode);
    let rcode = rcode.ok_or("an answer begins with an rcode, or is `silence`")?;
    let mut answer = Answer { rcode, records: Vec::new(), authority: Vec::new(), ede: None, truncated: false };
    let (mut owner, mut ttl) = (asked.clone(), 60);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut next = || words.next().ok_or_else(|| format!("{word} what?"));
        match word.as_str() {
            "tc" => answer.truncated = true,
            "ttl" => ttl = number_of(Some(next()?))?,
            "owner" => owner = name(next()?)?,
            "cname" => {
                let target = name(next()?)?;
                answer.records.push(Record::from_rdata(owner, ttl, RData::CNAME(CNAME(target.clone()))));
                owner = target;
            }
            "a" | "aaaa" => {
                for address in addresses(next()?)? {
                    let data = match address {
                        IpAddr::V4(address) => RData::A(A(address)),
                        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
                    };
                    answer.records.push(Record::from_rdata(owner.clone(), ttl, data));
                }
            }
            "txt" => {
                let data = RData::TXT(TXT::new(vec![next()?.clone()]));
                answer.records.push(Record::from_rdata(owner.clone(), ttl, data));
            }
            "soa" => {
                let (zone, minimum) = (name(next()?)?, number_of(Some(next()?))?);
                let data = SOA::new(zone.clone(), zone.clone(), 1, 3600, 600, 86_400, minimum);
                answer.authority.push(Record::from_rdata(zone, ttl, RData::SOA(data)));
            }
            "ede" => answer.ede = Some((number_of(Some(next()?))?, next()?.clone())),
            _ => return Err(format!("{word} is not a part of an answer")),
        }
    }
    Ok(answer)
}

/// `[held] [from address] [tcp] [edns size | noedns] [version n] [do] [cd] [ad] [nord] [class c] [opcode n] name type`.
fn read_query(words: &[String]) -> Result<What, String> {
    let [options @ .., asked, asked_kind] = words else { return Err("write QUERY name type".to_owned()) };
    let mut ask = Ask::new(asked, kind(asked_kind)?);
    let (mut from, mut transport, mut held) = (client(), Transport::Udp, false);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match option.as_str() {
            "from" => from = address(options.next().ok_or("from whom?")?)?,
            "tcp" => transport = Transport::Tcp,
            "held" => held = true,
            "edns" => ask.edns = Some(number_of(options.next())?),
            "noedns" => ask.edns = None,
            "version" => ask.version = number_of(options.next())?,
            "do" => ask.dnssec_ok = true,
            "cd" => ask.checking_disabled = true,
            "ad" => ask.authentic_data = true,
            "nord" => ask.recursion_desired = false,
            "class" => ask.class = DNSClass::from(number_of::<u16>(options.next())?),
            "opcode" => ask.opcode = OpCode::from_u8(number_of(options.next())?),
            "option" => {
                let code = number_of(options.next())?;
                ask.options.push((code, octets(options.next().ok_or("which octets?")?)?));
            }
            _ => return Err(format!("{option} is not a part of a query")),
        }
    }
    Ok(What::Query { ask: Box::new(ask), from, transport, held })
}

/// `[from address] [tcp] hex…`.
fn read_packet(words: &[String]) -> Result<What, String> {
    let (mut from, mut transport, mut hex) = (client(), Transport::Udp, String::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "from" => from = address(words.next().ok_or("from whom?")?)?,
            "tcp" => transport = Transport::Tcp,
            _ => hex.push_str(word),
        }
    }
    Ok(What::Packet { bytes: octets(&hex)?, from, transport })
}

fn octets(hex: &str) -> Result<Vec<u8>, String> {
    let pair = |at: usize| hex.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    (0..hex.len()).step_by(2).map(|at| pair(at).ok_or_else(|| format!("{hex} is not hex"))).collect()
}

/// `silence`, or `RCODE` and whatever of the reply is to be looked at.
fn read_expect(words: &[String]) -> Result<Wanted, String> {
    let (rcode, words) = words.split_first().ok_or("what?")?;
    if rcode == "silence" {
        return Ok(Wanted::default());
    }
    let mut wanted = Wanted { rcode: Some(rcode.clone()), ..Wanted::default() };
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        let mut next = || words.next().ok_or_else(|| format!("{word} what?"));
        match word.as_str() {
            "a" | "aaaa" => {
                let found = addresses(next()?)?.into_iter().map(|address| (word.clone(), address.to_string()));
                wanted.answers.extend(found);
            }
            "cname" => wanted.answers.push((word.clone(), name(next()?)?.to_ascii())),
            "txt" => wanted.answers.push((word.clone(), next()?.clone())),
            "ttl" | "bytes" => {
                let bound = match next()?.as_str() {
                    "<=" => Bound::AtMost(number_of(words.next())?),
                    ">=" => Bound::AtLeast(number_of(words.next())?),
                    number => Bound::Is(number_of(Some(&number.to_owned()))?),
                };
                *if word == "ttl" { &mut wanted.ttl } else { &mut wanted.bytes } = Some(bound);
            }
            "ede" => wanted.ede = Some((number_of(Some(next()?))?, next()?.clone())),
            "flags" => wanted.flags = Some(next()?.split(',').map(str::to_owned).collect()),
            "tc" => wanted.truncated = true,
            "soa" => wanted.soa = Some(name(next()?)?.to_ascii()),
            _ => return Err(format!("{word} is not a part of a reply")),
        }
    }
    Ok(wanted)
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
