//! Rules: what is allowed and denied, and how `[[rule]]` is read.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::decide::Case;
use super::group::Groups;
use super::index::{self, Audience};
use super::load::{Placed, in_alphabet, read_prefixes};
use super::opened::{Opened, Special};
use super::pattern::{Pattern, Reach, Shape};
use super::patterns::{Collector, MAX_GLOBS, Patterns, Read, Refused};
use super::reserved::Reserved;
use super::segment::one_of;
use super::wide::{Wide, Wildcards};
use crate::document::{Document, Found, MAX_MISTAKES, Place, Span, Table};
use crate::name::Name;
use crate::net::{Prefix, Services};
use crate::record::{ExtendedError, RecordType};
use crate::time::Wall;

/// The most ports that one rule opens: each is one element in the firewall for each address.
const MAX_PORTS: usize = 128;
/// The most characters of `owner`, `reason` and `ticket`.
const MAX_NOTE: usize = 256;
/// The longest `hold`.
pub const MAX_HOLD: Duration = Duration::from_secs(86_400);

/// How the id of a rule begins that was made while the node runs, and of no other.
pub(super) const RUNTIME: &str = "runtime-";

/// Keys that say what an allow rule for names opens; no others have them.
const NAME_KEYS: [&str; 9] =
    ["types", "https", "cname", "within", "private", "hold", "guard", "allow_tenant_wildcard", "warm"];
/// Keys that the interface plans and this version does not build.
const PLANNED: &[&str] = &["label_budget", "label_action"];

/// One rule.
#[derive(Debug)]
pub struct Rule {
    /// Unique and stable, 1 to 63 of `[A-Za-z0-9_.-]`: it is in every record.
    pub id: Arc<str>,
    /// What it does.
    pub action: Action,
    /// Where it stands.
    pub place: Place,
    /// Who answers for it.
    pub owner: Option<Box<str>>,
    /// What for.
    pub reason: Option<Box<str>>,
    /// Where that was agreed.
    pub ticket: Option<Box<str>>,
    /// What it opens of an address; empty for a deny.
    pub ports: Vec<Services>,
    /// The types it allows; empty for a deny and for a static rule.
    pub types: Vec<RecordType>,
    /// What it tells of HTTPS and SVCB records; these are among its types unless that is nothing.
    pub https: Https,
    /// The minimum life of its grants.
    pub hold: Option<Duration>,
    /// When it ends, and what was granted under it.
    pub expires: Option<Wall>,
    /// Clients of its segments that it is for; empty: all.
    pub clients: Vec<Prefix>,
    /// Of a static rule: what it opens without any query, or of a deny what it closes whatever else opens it.
    pub networks: Vec<Prefix>,
    /// What a client is told that it refuses: written once, so that a refusal allocates nothing.
    pub(super) told: ExtendedError,
    /// The addresses outside of which it leaves out; empty: none.
    pub within: Vec<Prefix>,
    /// Special-use addresses that it may open.
    pub private: Vec<Prefix>,
    pub(super) audience: Audience,
    pub(super) except: Patterns,
    pub(super) cname: Cname,
    /// The names that are kept warm.
    pub(super) warm: Vec<Name>,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Lets names be resolved and their addresses be reached.
    Allow,
    /// Refuses names, whatever other rules say.
    Deny,
}

/// What a rule tells of HTTPS and SVCB records (RFC 9460).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Https {
    /// Nothing: asking for them is NODATA.
    NoData,
    /// What leads nowhere else than an A or AAAA record could.
    Filter,
    /// They as they are, or nothing.
    Pass,
}

impl Https {
    /// The word in rules.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoData => "nodata",
            Self::Filter => "filter",
            Self::Pass => "pass",
        }
    }
}

impl Rule {
    /// Whether it counts at this time.
    #[must_use]
    pub fn lives(&self, now: Wall) -> bool {
        self.expires.is_none_or(|end| now < end)
    }

    /// Whether it says something to this client now; its segments are not looked at.
    pub(super) fn is_heard(&self, case: &Case) -> bool {
        self.lives(case.now)
            && (self.clients.is_empty() || self.clients.iter().any(|prefix| prefix.contains(&case.client)))
    }
}

/// Which CNAME chains a rule accepts.
#[derive(Debug)]
pub(super) enum Cname {
    /// Any.
    Trust,
    /// Those whose every name is allowed itself.
    Inspect,
    /// Those whose every name is one of these.
    Pinned(Patterns),
}

/// A rule as one file has it, before segments are known.
pub(super) struct RuleDraft {
    pub(super) rule: Rule,
    /// What the index calls it until all rules are known.
    pub(super) number: u32,
    pub(super) private: Vec<Placed<Prefix>>,
    /// What it allows of special-use names, each with its entry.
    pub(super) special: Vec<Placed<Special>>,
    /// Wildcards of it that hold too much.
    pub(super) wide: Vec<Placed<(Pattern, Wide)>>,
    /// `None`: the key is absent.
    pub(super) segments: Option<Vec<Placed<String>>>,
    /// `where`, each key with its values; `None`: the key is absent.
    pub(super) tags: Option<Vec<(String, Vec<String>)>>,
    /// Where the choice of segments stands.
    pub(super) choice: Place,
}

/// Reads one `[[rule]]`, its names into `index`; mistakes go to its document. `None` where it has no usable id or action.
pub(super) fn read(
    table: Table,
    number: u32,
    index: &mut index::Reader,
    reserved: &Reserved,
    groups: &Groups,
) -> Option<RuleDraft> {
    let document = table.document().clone();
    let id = table.required_string("id").filter(|id| {
        let right = in_alphabet(&id.value);
        if !right {
            let remedy = "write 1 to 63 letters, digits, `_`, `.` or `-`";
            document.note(&id.span, format!("a rule's id cannot be \"{}\"", id.value), remedy);
        }
        right
    });
    let action = read_action(&table);
    let allows = action != Some(Action::Deny);
    let has_networks = table.has("networks");
    let static_rule = has_networks && !table.has("names");
    refuse_misplaced(&table, allows, has_networks);

    let tenants = table.boolean("allow_tenant_wildcard").unwrap_or(false);
    note_empty(&table, "names");
    let reach = (action == Some(Action::Allow)).then_some(tenants);
    let mut types = if allows && !static_rule { read_types(&table) } else { Vec::new() };
    let mut opened = Opened::new(&table, reserved);
    let mut wildcards = Wildcards::with(&types);
    read_patterns(&table, "names", groups, |entry, name| {
        let read = index.read(number, action.unwrap_or(Action::Deny), name)?;
        if let Some(tenants) = reach
            && !opened.check(entry, name, index.reserved())
        {
            check_reach(&document, entry, name, tenants);
            wildcards.check(&document, entry, name, tenants);
        }
        Ok(read)
    });
    let special = opened.finish(allows);
    let mut except = Collector::default();
    read_patterns(&table, "except", groups, |_, name| except.put_once(name));
    let networks = read_prefixes(&table, "networks").unwrap_or_default();
    note_empty(&table, "networks");
    if !has_networks && !table.has("names") {
        document.note(table.span(), "the rule names nothing", "add names = [\"…\"], or networks = [\"…\"]");
    }
    let ports = read_ports(&table, allows, static_rule);
    let https =
        one_of(&table, "https", &[Https::NoData, Https::Filter, Https::Pass].map(|https| (https.as_str(), https)));
    let https = https.unwrap_or(Https::NoData);
    let warm = if allows && !static_rule { read_warm(&table, &types, groups) } else { Vec::new() };
    if https != Https::NoData && !types.is_empty() {
        types.extend([RecordType::HTTPS, RecordType::SVCB]);
    }
    let cname = read_cname(&table, groups);
    let within = read_prefixes(&table, "within").unwrap_or_default();
    if allows {
        note_empty(&table, "within");
    }
    let private = read_prefixes(&table, "private").unwrap_or_default();
    let hold = table.duration("hold", Duration::from_secs(1)..=MAX_HOLD);
    let expires = table.moment("expires");
    let clients = read_clients(&table);
    let [owner, reason, ticket] = ["owner", "reason", "ticket"].map(|key| read_note(&table, key));

    let segments = table.strings("segments").map(|found| {
        let placed = |entry: Found<String>| Placed { place: document.place(&entry.span), value: entry.value };
        found.into_iter().map(placed).collect::<Vec<_>>()
    });
    let tags = table.table("where").map(|tags| {
        let values = |found: Vec<Found<String>>| found.into_iter().map(|value| value.value).collect();
        tags.free_strings().into_iter().map(|(key, found)| (key.value, values(found))).collect::<Vec<_>>()
    });
    let chosen_by = if table.has("segments") { "segments" } else { "where" };
    if !table.has("segments") && !table.has("where") {
        let remedy = "add segments = [\"…\"], segments = [\"*\"] for all, or where = { … }";
        document.note(table.span(), "the rule does not say for which segments it is", remedy);
    }
    let choice = document.place(&table.span_of(chosen_by));
    let place = document.place(table.span());
    table.finish(PLANNED);

    let values = |placed: &[Placed<Prefix>]| placed.iter().map(|prefix| prefix.value).collect();
    let (id, action) = (id?.value, action?);
    let rule = Rule {
        told: told(&id, action),
        id: id.into(),
        action,
        place,
        owner,
        reason,
        ticket,
        ports,
        types,
        https,
        hold,
        expires,
        clients: values(&clients),
        networks: values(&networks),
        audience: Audience::All,
        except: except.finish_set(),
        cname,
        within: values(&within),
        private: values(&private),
        warm,
    };
    Some(RuleDraft { rule, number, private, special, wide: wildcards.finish(), segments, tags, choice })
}

/// What is said of a name that the rule denies, or of a type that it does not allow.
fn told(id: &str, action: Action) -> ExtendedError {
    let text = match action {
        Action::Deny => format!("denied by rule {id}"),
        Action::Allow => format!("rule {id} does not allow this type"),
    };
    ExtendedError::new(ExtendedError::BLOCKED, text)
}

fn read_action(table: &Table) -> Option<Action> {
    let found = table.required_string("action")?;
    match found.value.as_str() {
        "allow" => Some(Action::Allow),
        "deny" => Some(Action::Deny),
        other => {
            let fact = format!("`action` cannot be \"{other}\"");
            table.document().note(&found.span, fact, "write \"allow\" or \"deny\"");
            None
        }
    }
}

/// Keys that a deny rule, or a static one, does not have.
fn refuse_misplaced(table: &Table, allows: bool, has_networks: bool) {
    let note = |key: &'static str, fact: &str, remedy: &str| {
        if table.has(key) {
            table.document().note(&table.span_of(key), fact.replace("{}", key), remedy);
        }
    };
    if !allows {
        for key in NAME_KEYS.into_iter().chain(["ports"]) {
            note(key, "`{}` in a deny: it refuses the name altogether", "remove it");
        }
        if has_networks {
            note("names", "`{}` beside `networks`", "make it a rule of its own");
            for key in ["except", "clients"] {
                note(key, "`{}` in a rule for `networks`: it is for all", "remove it");
            }
        }
    } else if has_networks && !table.has("names") {
        for key in NAME_KEYS.into_iter().chain(["except", "clients"]) {
            note(key, "`{}` in a rule for `networks`: no name is asked for", "remove it");
        }
    } else {
        note("networks", "`{}` beside `names`", "make it a rule of its own; to narrow the answers write `within`");
        if table.has("warm") {
            note("clients", "`{}` beside `warm`, which opens for whole segments", "remove one");
        }
    }
}

fn note_empty(table: &Table, key: &'static str) {
    if table.has(key) && table.each(key).is_some_and(|mut items| items.next().is_none()) {
        table.document().note(&table.span_of(key), format!("`{key}` is empty"), "name at least one, or remove it");
    }
}

/// A list of patterns, each given to `put`.
fn read_patterns(
    table: &Table,
    key: &'static str,
    groups: &Groups,
    mut put: impl FnMut(&Found<&str>, &Pattern) -> Result<Read, Refused>,
) {
    let document = table.document();
    let mut again = Vec::new();
    let mut full = false;
    let mut put = |entry: &Found<&str>, pattern: &Pattern| {
        let put = put(entry, pattern);
        match put {
            Err(Refused::Crowded) => {
                let fact = format!("more than {MAX_GLOBS} patterns with `*` inside a label are on {}", pattern.base);
                document.note(table.span(), fact, "write fewer and wider ones, or whole names");
            }
            Err(Refused::Full) if !full => {
                full = true;
                document.note(&entry.span, "the names of the policy take more than 4 GiB", "write wildcards instead");
            }
            _ => {}
        }
        put == Ok(Read::Again)
    };
    for entry in table.each(key).into_iter().flatten() {
        if let Some(group) = groups.named(document, &entry) {
            // What is named beside the group as well is no mistake.
            for (text, pattern) in group {
                put(&Found { value: text, span: entry.span.clone() }, pattern);
            }
        } else if let Some(pattern) = read_pattern(document, &entry)
            && put(&entry, &pattern)
        {
            again.push(entry);
        }
    }
    if !again.is_empty() {
        note_repeated(table, key, &again);
    }
}

/// Notes what a list names again, and where it did so first. Reads the list once more: that is seldom needed.
fn note_repeated(table: &Table, key: &'static str, again: &[Found<&str>]) {
    let document = table.document();
    let written =
        |entry: &Found<&str>| Pattern::parse(entry.value).map(|pattern| pattern.to_string()).unwrap_or_default();
    // No more than can be shown.
    let mut first: HashMap<String, Option<Span>> =
        again.iter().take(MAX_MISTAKES).map(|entry| (written(entry), None)).collect();
    for entry in table.each(key).into_iter().flatten() {
        if let Some(first @ None) = first.get_mut(&written(&entry)) {
            *first = Some(entry.span);
        }
    }
    for entry in again {
        let pattern = written(entry);
        // A group of the list has it too.
        let Some(first) = first.get(&pattern).and_then(Option::as_ref).filter(|first| **first != entry.span) else {
            continue;
        };
        let fact = format!("\"{pattern}\" is in this list already, at {}", document.place(first));
        document.note(&entry.span, fact, "remove one");
    }
}

fn read_pattern(document: &Document, entry: &Found<&str>) -> Option<Pattern> {
    Pattern::parse(entry.value)
        .map_err(|error| document.note(&entry.span, format!("\"{}\" {error}", entry.value), error.remedy()))
        .ok()
}

/// Wildcards may not reach past one owner; with `tenants` they may sit on a public suffix.
fn check_reach(document: &Document, entry: &Found<&str>, pattern: &Pattern, tenants: bool) {
    let text = entry.value;
    match pattern.reach() {
        Reach::TopLevel => {
            let fact = format!("\"{text}\" would allow a whole top-level domain");
            let remedy = format!("write the full suffix, e.g. \"*.example.{}\"", pattern.base);
            document.note(&entry.span, fact, remedy);
        }
        Reach::Tenants if !tenants => {
            let fact = format!("\"{text}\" is on a public suffix: anyone may have a name below {}", pattern.base);
            let remedy = "name the owners that are meant, or add allow_tenant_wildcard = true";
            document.note(&entry.span, fact, remedy);
        }
        Reach::Tenants | Reach::Owner => {}
    }
}

fn read_ports(table: &Table, allows: bool, static_rule: bool) -> Vec<Services> {
    let remedy = "write \"tcp/443\", \"udp/5000-5010\", \"icmp\" or \"any\"";
    let found = table.parsed_list::<Services>("ports", remedy);
    if !allows {
        return Vec::new();
    }
    let Some(found) = found else {
        if static_rule && !table.has("ports") {
            table.document().note(table.span(), "a rule for `networks` has no `ports`", "add ports = [\"tcp/443\"]");
        }
        return vec![Services::Tcp(443, 443)];
    };
    let mut ports: Vec<Services> = found.into_iter().map(|services| services.value).collect();
    ports.sort_unstable();
    ports.dedup();
    let count: usize = ports.iter().map(|services| services.count()).sum();
    if count > MAX_PORTS {
        let fact = format!("{count} ports are too many for one rule");
        let remedy = format!("write at most {MAX_PORTS}, or \"any\"");
        table.document().note(&table.span_of("ports"), fact, remedy);
    }
    if table.strings("ports").is_some_and(|ports| ports.is_empty()) {
        note_empty(table, "ports");
    }
    ports
}

fn read_types(table: &Table) -> Vec<RecordType> {
    let remedy = "write the type as in a zone file, e.g. \"TXT\"";
    let Some(found) = table.parsed_list::<RecordType>("types", remedy) else {
        return vec![RecordType::A, RecordType::AAAA];
    };
    if table.strings("types").is_some_and(|types| types.is_empty()) {
        note_empty(table, "types");
    }
    let mut types = Vec::new();
    for kind in found {
        let note = |fact: &str, remedy: &str| {
            table.document().note(&kind.span, format!("the type {} {fact}", kind.value), remedy);
        };
        if is_no_data(kind.value) {
            note("is data of no name", "remove it");
        } else if matches!(kind.value, RecordType::HTTPS | RecordType::SVCB) {
            note("comes with the key `https`", "remove it and write https = \"filter\", or \"pass\"");
        } else if !types.contains(&kind.value) {
            types.push(kind.value);
        }
    }
    types
}

/// The names of a rule that keeps them warm.
fn read_warm(table: &Table, types: &[RecordType], groups: &Groups) -> Vec<Name> {
    let mut names = Vec::new();
    if table.boolean("warm") != Some(true) {
        return names;
    }
    let document = table.document();
    if !types.iter().any(|kind| kind.is_address()) {
        let fact = "`warm` opens addresses, and `types` has neither A nor AAAA";
        document.note(&table.span_of("warm"), fact, "add one of them, or remove `warm`");
    }
    let mut take = |entry: &Found<&str>, pattern: &Pattern| {
        if pattern.shape == Shape::Exact {
            names.push(pattern.base.to_name());
        } else {
            let fact = format!("\"{}\" is no whole name, and the rule keeps its names warm", entry.value);
            document.note(&entry.span, fact, "write the names that are meant, or remove `warm`");
        }
        Ok(Read::New)
    };
    read_patterns(table, "names", groups, &mut take);
    names
}

/// The clients of its segments that a rule is for.
fn read_clients(table: &Table) -> Vec<Placed<Prefix>> {
    note_empty(table, "clients");
    read_prefixes(table, "clients").unwrap_or_default()
}

/// Types that are not data of a name, or are only proof beside other data: no rule can allow them, and no observing
/// segment lets them pass.
pub(super) const fn is_no_data(kind: RecordType) -> bool {
    // RFC 6895 §3.1: 128 to 255 are "Q and Meta-TYPEs"; 0 and 65535 are reserved.
    matches!(kind.0, 0 | 128..=255 | 0xffff)
        || matches!(
            kind,
            RecordType::OPT
                | RecordType::NULL
                | RecordType::SIG
                | RecordType::RRSIG
                | RecordType::NSEC
                | RecordType::NSEC3
        )
}

fn read_cname(table: &Table, groups: &Groups) -> Cname {
    match table.string_or_strings("cname") {
        None => Cname::Trust,
        Some(Ok(word)) => match word.value.as_str() {
            "trust" => Cname::Trust,
            "inspect" => Cname::Inspect,
            other => {
                let fact = format!("`cname` cannot be \"{other}\"");
                table.document().note(&word.span, fact, "write \"trust\", \"inspect\" or a list of names");
                Cname::Inspect
            }
        },
        Some(Err(_)) => {
            note_empty(table, "cname");
            let mut pins = Collector::default();
            read_patterns(table, "cname", groups, |_, name| pins.put_once(name).map(|_| Read::New));
            Cname::Pinned(pins.finish_set())
        }
    }
}

fn read_note(table: &Table, key: &'static str) -> Option<Box<str>> {
    let found = table.string(key)?;
    if found.value.chars().count() > MAX_NOTE {
        let fact = format!("`{key}` is longer than {MAX_NOTE} characters");
        table.document().note(&found.span, fact, "shorten it; the rest belongs into the ticket");
    }
    Some(found.value.into())
}
