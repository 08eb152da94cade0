//! A master file's text to records: origins, owners, TTLs, classes (RFC 1035 §5.1, RFC 2308 §4).

use std::sync::Arc;

use hickory_proto::serialize::txt::parse_ttl;

use super::entry::{Entries, Entry, Fault, Token};
use super::include::Texts;
use super::{Source, rdata};
use crate::name::Name;
use crate::record::{Record, RecordType};
use crate::time::Ttl;

/// The types of a signed zone.
const DNSSEC: &[RecordType] = &[
    RecordType::DS,
    RecordType::DNSKEY,
    RecordType::RRSIG,
    RecordType::NSEC,
    RecordType::NSEC3,
    RecordType::NSEC3PARAM,
    RecordType::CDS,
    RecordType::CDNSKEY,
];

/// A record and where it stands in its file.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) at: usize,
    pub(super) record: Record,
}

/// What a file says.
#[derive(Debug)]
pub(super) struct Master {
    /// The zone's origin: the first `$ORIGIN` before any record, else the one given.
    pub(super) apex: Name,
    /// Every record that could be read, in file order.
    pub(super) lines: Vec<Line>,
    /// An SOA was tried, so that its absence is no second mistake.
    pub(super) tried_soa: bool,
    /// Where the first record of a signed zone stands; none of them is read.
    pub(super) signed: Option<usize>,
}

/// Who owns a record that begins with a blank.
enum Owner {
    Unset,
    /// Its line was a mistake, which has been noted.
    Broken,
    Name(Name),
}

/// The TTL of a record's own line.
enum Stated {
    Nothing,
    /// A mistake, which has been noted.
    Broken,
    Ttl(Ttl),
}

struct Reader<'f, 'o> {
    texts: &'f mut Texts<'o>,
    origin: Name,
    owner: Owner,
    /// From `$TTL`.
    default_ttl: Option<Ttl>,
    /// The last one stated in a record.
    last_ttl: Option<Ttl>,
    /// A TTL was tried and is a mistake already, so that its absence is no second one.
    broken_ttl: bool,
    apex: Option<Name>,
    lines: Vec<Line>,
    tried_soa: bool,
    /// The first record of a signed zone.
    signed: Option<usize>,
    faults: &'f mut Vec<Fault>,
}

/// Reads a text whose names are relative to `origin` until it says otherwise; notes every fault and goes on. `None`
/// where an `$ORIGIN` or `$INCLUDE` is broken: what the names mean, or what else there is, is then unknown. Records that
/// state no TTL before anything does have `ttl`, or are faults.
pub(super) fn read(
    source: &Source,
    origin: Name,
    ttl: Option<Ttl>,
    texts: &mut Texts<'_>,
    faults: &mut Vec<Fault>,
) -> Option<Master> {
    let mut reader = Reader {
        texts,
        origin: origin.clone(),
        owner: Owner::Unset,
        default_ttl: None,
        last_ttl: ttl,
        broken_ttl: false,
        apex: None,
        lines: Vec::new(),
        tried_soa: false,
        signed: None,
        faults,
    };
    if !reader.text(&source.text, 0) {
        return None;
    }
    let Reader { apex, lines, tried_soa, signed, .. } = reader;
    Some(Master { apex: apex.unwrap_or(origin), lines, tried_soa, signed })
}

impl Reader<'_, '_> {
    /// Reads one file's text; `false` where nothing after it can be understood.
    fn text(&mut self, text: &str, base: usize) -> bool {
        for entry in Entries::new(text, base) {
            let read = entry.and_then(|entry| match entry.tokens.split_first() {
                Some((first, rest)) if first.raw.starts_with('$') && !first.quoted && !entry.inherits => {
                    self.directive(*first, rest, entry.end)
                }
                _ => self.record(&entry).map(|()| true),
            });
            match read {
                Ok(true) => {}
                Ok(false) => return false,
                Err(fault) => self.faults.push(fault),
            }
        }
        true
    }

    /// A `$` line; `Ok(false)` where nothing after it can be understood.
    fn directive(&mut self, first: Token<'_>, rest: &[Token<'_>], end: usize) -> Result<bool, Fault> {
        let value = |example: &str| match rest {
            [value] => Ok(*value),
            [] => Err(Fault::new(end, format!("{} has no value", first.raw), format!("write {} {example}", first.raw))),
            [_, extra, ..] => {
                Err(Fault::new(extra.at, format!("\"{}\" is more than {} holds", extra.raw, first.raw), "remove it"))
            }
        };
        match first.raw.to_ascii_uppercase().as_str() {
            "$ORIGIN" => match value("example.org.").and_then(|token| self.new_origin(token)) {
                Ok(origin) => {
                    self.apex.get_or_insert_with(|| origin.clone());
                    self.origin = origin;
                }
                Err(fault) => {
                    self.faults.push(fault);
                    return Ok(false);
                }
            },
            "$TTL" => match value("1h").and_then(ttl) {
                Ok(ttl) => self.default_ttl = Some(ttl),
                Err(fault) => {
                    self.broken_ttl = true;
                    return Err(fault);
                }
            },
            "$INCLUDE" => {
                let included = match rest {
                    [file] => self.include(*file, None),
                    [file, origin] => self.include(*file, Some(*origin)),
                    _ => value("hosts.inc").map(|_| true),
                };
                return included.or_else(|fault| {
                    self.faults.push(fault);
                    Ok(false)
                });
            }
            "$GENERATE" => {
                let remedy = "write the records out; a wildcard (*.name) covers any label";
                return Err(Fault::new(first.at, "$GENERATE is not supported", remedy));
            }
            _ => {
                let fact = format!("{} is not a directive", first.raw);
                return Err(Fault::new(first.at, fact, "$ORIGIN, $TTL and $INCLUDE are the directives of a zone file"));
            }
        }
        Ok(true)
    }

    /// Reads another file here, its names relative to `origin`.
    fn include(&mut self, file: Token<'_>, origin: Option<Token<'_>>) -> Result<bool, Fault> {
        let origin = origin.map_or_else(|| Ok(self.origin.clone()), |token| rdata::name(token, &self.origin))?;
        let (base, source) = self.texts.begin(file)?;
        self.apex.get_or_insert_with(|| self.origin.clone());
        // RFC 1035 §5.1: "a $INCLUDE entry never changes the relative origin of the parent file, regardless of changes
        // to the relative origin made within the included file." So it is with owner and TTL.
        let origin = std::mem::replace(&mut self.origin, origin);
        let owner = std::mem::replace(&mut self.owner, Owner::Unset);
        let ttls = (self.default_ttl, self.last_ttl);
        let understood = self.text(&source.text, base);
        self.texts.end(base, source);
        (self.origin, self.owner, (self.default_ttl, self.last_ttl)) = (origin, owner, ttls);
        Ok(understood)
    }

    /// The value of `$ORIGIN`. The one that names the zone must be absolute: `$ORIGIN example.org` without the final dot
    /// would make a zone that nobody asks for.
    fn new_origin(&self, token: Token<'_>) -> Result<Name, Fault> {
        let origin = rdata::name(token, &self.origin)?;
        if self.apex.is_none() && token.raw != "@" && !token.raw.ends_with('.') {
            let fact = format!("\"{}\" without a final dot makes the zone {origin}", token.raw);
            return Err(Fault::new(token.at, fact, format!("write $ORIGIN {}.", token.raw)));
        }
        Ok(origin)
    }

    fn record(&mut self, entry: &Entry<'_>) -> Result<(), Fault> {
        let mut tokens = entry.tokens.as_slice();
        let at = tokens.first().map_or(entry.end, |token| token.at);
        if self.apex.is_none() {
            self.apex = Some(self.origin.clone());
        }
        if !entry.inherits
            && let Some((first, rest)) = tokens.split_first()
        {
            tokens = rest;
            self.owner = match rdata::name(*first, &self.origin) {
                Ok(name) => Owner::Name(name),
                Err(fault) => {
                    self.faults.push(fault);
                    Owner::Broken
                }
            };
        }
        let (stated, kind, rest) = self.head(tokens, entry.end)?;
        self.tried_soa |= kind == RecordType::SOA;
        if DNSSEC.contains(&kind) {
            self.signed.get_or_insert(at);
            return Ok(());
        }
        let data = rdata::read(kind, rest, &self.origin, entry.end)?;
        let name = match &self.owner {
            Owner::Name(name) => name.clone(),
            Owner::Broken => return Ok(()),
            Owner::Unset => {
                let remedy = "write the owner's name, or @, at the start of the line";
                return Err(Fault::new(at, "the first record has no owner", remedy));
            }
        };
        // RFC 2308 §4: "All resource records appearing after the directive, and which do not explicitly include a TTL
        // value, have their TTL set to the TTL given in the $TTL directive." Without one, RFC 1035 §5.1: "Omitted
        // class and TTL values are default to the last explicitly stated values."
        let ttl = match (stated, self.default_ttl.or(self.last_ttl)) {
            (Stated::Ttl(ttl), _) | (Stated::Nothing, Some(ttl)) => ttl,
            (Stated::Broken, _) => return Ok(()),
            (Stated::Nothing, None) if self.broken_ttl => return Ok(()),
            (Stated::Nothing, None) => {
                let remedy = "add the line $TTL 1h at the top, or write the TTL before the type";
                return Err(Fault::new(at, "the record has no TTL and there is no $TTL above it", remedy));
            }
        };
        self.lines.push(Line { at, record: Record { name, kind, ttl, data: Arc::from(data) } });
        Ok(())
    }

    /// `[<TTL>] [<class>] <type>` or `[<class>] [<TTL>] <type>`, and what follows.
    fn head<'t, 'a>(
        &mut self,
        mut tokens: &'t [Token<'a>],
        end: usize,
    ) -> Result<(Stated, RecordType, &'t [Token<'a>]), Fault> {
        let (mut stated, mut class) = (Stated::Nothing, false);
        loop {
            let Some((first, rest)) = tokens.split_first() else {
                return Err(Fault::new(end, "the record has no type", "write e.g. www A 192.0.2.1"));
            };
            tokens = rest;
            if matches!(stated, Stated::Nothing) && first.raw.starts_with(|c: char| c.is_ascii_digit()) {
                stated = match ttl(*first) {
                    Ok(ttl) => {
                        self.last_ttl = Some(ttl);
                        Stated::Ttl(ttl)
                    }
                    Err(fault) => {
                        self.faults.push(fault);
                        self.broken_ttl = true;
                        Stated::Broken
                    }
                };
            } else if !class && is_class(first.raw) {
                if !first.raw.eq_ignore_ascii_case("IN") {
                    return Err(Fault::new(
                        first.at,
                        format!("class {} is not served", first.raw),
                        "write IN, or nothing",
                    ));
                }
                class = true;
            } else {
                return Ok((stated, kind(*first)?, rest));
            }
        }
    }
}

fn kind(token: Token<'_>) -> Result<RecordType, Fault> {
    let kind: RecordType = token.raw.parse().map_err(|()| {
        let remedy = r"write a type, e.g. A; one without a name as TYPE65280 \# 2 c0a8";
        Fault::new(token.at, format!("\"{}\" is not a record type", token.raw), remedy)
    })?;
    // RFC 6895 §3.1: 128 to 255 are question and meta types; OPT (41) is one too, and 0 is reserved.
    if matches!(kind.0, 0 | 41 | 128..=255) {
        return Err(Fault::new(token.at, format!("{kind} is not a type of data"), "remove the record"));
    }
    if kind == RecordType::DNAME {
        let remedy = "write the names below it out, or a wildcard CNAME";
        return Err(Fault::new(token.at, "DNAME is not supported", remedy));
    }
    Ok(kind)
}

fn is_class(text: &str) -> bool {
    let upper = text.to_ascii_uppercase();
    matches!(upper.as_str(), "IN" | "CH" | "HS" | "CS" | "NONE")
        || upper.strip_prefix("CLASS").is_some_and(|number| number.parse::<u16>().is_ok())
}

fn ttl(token: Token<'_>) -> Result<Ttl, Fault> {
    match parse_ttl(token.raw) {
        Ok(seconds) if seconds <= Ttl::MAX.seconds() => Ok(Ttl::from_wire(seconds)),
        _ => {
            let fact = format!("\"{}\" is not a TTL", token.raw);
            Err(Fault::new(token.at, fact, "write seconds up to 2147483647, or e.g. 90s, 15m, 1h30m, 7d"))
        }
    }
}
