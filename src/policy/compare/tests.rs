use proptest::prelude::*;

use super::*;
use crate::name::Name;
use crate::policy::pattern::{Pattern, Shape};
use crate::policy::properties::{ASKED, CLIENTS, Spec, a_rule_of, build, universe_of};
use crate::policy::testing::{NOW, answer, asker, name, policy, policy_with, summary, upstream};
use crate::policy::{Server, Settings, Site, Verdict, decide, inspect};

/// Each difference as one line.
fn told(old: &str, new: &str) -> Vec<String> {
    lines(&compare(&policy(old), &policy(new), NOW))
}

fn lines(comparison: &Comparison) -> Vec<String> {
    let list = |segments: &[Arc<str>]| segments.iter().map(|name| &**name).collect::<Vec<_>>().join(" ");
    let place = |place: &Option<Place>| place.as_ref().map_or("-".to_owned(), |place| place.line.to_string());
    let owner = |owner: &Option<(Arc<str>, Place)>| owner.as_ref().map_or("-".to_owned(), |(name, _)| name.to_string());
    let rules = |rules: &[(Arc<str>, Place)]| {
        rules.iter().map(|(id, place)| format!(" {id}:{}", place.line)).collect::<String>()
    };
    let mut lines = Vec::new();
    for SegmentChange { segment, before, after, keys } in &comparison.segments {
        let keys: String = keys.iter().map(|(key, old, new)| format!(", {key} {old} → {new}")).collect();
        lines.push(format!("segment {segment} {} → {}{keys}", place(before), place(after)));
    }
    for Moved { what, subject, before, after } in &comparison.moved {
        lines.push(format!("{what} {subject}: {} → {}", owner(before), owner(after)));
    }
    for NameChange { change, segments, names, types, before, after } in &comparison.names {
        let types: Vec<_> = types.iter().map(ToString::to_string).collect();
        let word = |word: &Word| format!("{}{} [{}]", word.verdict, rules(&word.rules), word.opens.join(", "));
        lines.push(format!(
            "{}: {} {} {}: {} → {}",
            list(segments),
            change.as_str(),
            names.join(" "),
            types.join(" "),
            word(before),
            word(after)
        ));
    }
    for NetworkChange { change, segments, network, services, ends, rules: named } in &comparison.networks {
        let services: String = services.iter().map(|services| format!(" {services}")).collect();
        let ends = ends.map(|ends| format!(" until {ends}")).unwrap_or_default();
        lines.push(format!("{}: {} {network}{services}{ends}{}", list(segments), change.as_str(), rules(named)));
    }
    lines.extend(comparison.left_out.iter().cloned());
    lines
}

/// A name that pins trust.
const PIN: &str = "x.b.a.example.org";

const SEGMENTS: &str = "[[segment]]\nname = \"a\"\nclients = [\"192.0.2.0/24\"]\n\
                        [[segment]]\nname = \"b\"\nclients = [\"198.51.100.0/24\"]\ntags = { floor = \"1\" }\n";

fn rule(id: &str, action: &str, segments: &str, names: &str, rest: &str) -> String {
    let segments: Vec<_> = segments.split(' ').collect();
    let names: Vec<_> = names.split(' ').collect();
    format!("[[rule]]\nid = \"{id}\"\naction = \"{action}\"\nsegments = {segments:?}\nnames = {names:?}\n{rest}\n")
}

#[test]
fn says_what_differs_and_nothing_else() {
    let wide = rule("wide", "allow", "*", "**.example.org", "except = [\"no.example.org\"]");
    let one = rule("one", "allow", "a", "x.example.org", "");
    let with = |rules: &[&str]| format!("{SEGMENTS}{}", rules.concat());
    let old = with(&[&wide, &one]);
    let none: &[&str] = &[];
    for (reason, old, new, expected) in [
        ("nothing", old.clone(), old.clone(), none),
        (
            "the same in another order and under other ids",
            with(&[&wide]),
            with(&[&wide.replace("wide", "broad")]),
            none,
        ),
        (
            "a list in two rules",
            with(&[&rule("r", "allow", "*", "x.example.org y.example.org", "")]),
            with(&[
                &rule("s", "allow", "a", "x.example.org y.example.org", ""),
                &rule("t", "allow", "b", "y.example.org x.example.org", ""),
            ]),
            none,
        ),
        (
            "a name",
            old.clone(),
            with(&[&wide, &one, &rule("new", "allow", "b", "z.example.net", "types = [\"TXT\", \"A\"]")]),
            &[
                "b: allowed z.example.net A: deny [] → allow new:20 [tcp/443]",
                "b: allowed z.example.net TXT: deny [] → allow new:20 [the records]",
            ],
        ),
        ("a name that a wildcard allows all the same", old.clone(), with(&[&wide]), none),
        (
            "a name that only the rule allowed",
            with(&[&rule("r", "allow", "*", "x.example.net", "")]),
            with(&[]),
            &["a b: denied x.example.net A AAAA: allow r:8 [tcp/443] → deny []"],
        ),
        (
            "a deny",
            old.clone(),
            with(&[&wide, &one, &rule("no", "deny", "a", "*.example.org", "")]),
            &[
                "a: denied *.example.org A AAAA: allow wide:8 [tcp/443] → deny no:20 []",
                "a: denied x.example.org A AAAA: allow one:14 wide:8 [tcp/443] → deny no:20 []",
                "a: barred no.example.org : deny [] → deny no:20 []",
            ],
        ),
        (
            "a deny of what was refused, to which answers may lead",
            old.clone(),
            with(&[&wide, &one, &rule("no", "deny", "*", "**.example.net", "")]),
            &["a b: barred **.example.net : deny [] → deny no:20 []"],
        ),
        (
            "an exception",
            old.clone(),
            with(&[&wide.replace("\"no.", "\"*.x.example.org\", \"no."), &one]),
            &["a b: denied *.x.example.org A AAAA: allow wide:8 [tcp/443] → deny []"],
        ),
        (
            "globs that overlap",
            with(&[&rule("g", "allow", "a", "x*.example.org", "")]),
            with(&[
                &rule("g", "allow", "a", "x*.example.org", ""),
                &rule("h", "allow", "a", "*y.example.org", "ports = [\"tcp/1\"]"),
            ]),
            &[
                "a: allowed *y.example.org A AAAA: deny [] → allow h:14 [tcp/1]",
                "a: widened *y.example.org and x*.example.org A AAAA: allow g:8 [tcp/443] → allow g:8 h:14 [tcp/1 tcp/443]",
            ],
        ),
        (
            "ports and https",
            old.clone(),
            with(&[
                &wide,
                &one.replace(
                    "x.example.org\"]",
                    "x.example.org\"]\nhttps = \"filter\"\nports = [\"tcp/443\", \"udp/443\"]",
                ),
            ]),
            &[
                "a: allowed x.example.org SVCB HTTPS: deny one:14 [] → allow one:14 [tcp/443 udp/443 A hints, tcp/443 udp/443 AAAA hints]",
                "a: widened x.example.org A AAAA: allow one:14 wide:8 [tcp/443] → allow one:14 wide:8 [tcp/443 udp/443]",
            ],
        ),
        (
            "within",
            with(&[&one]),
            with(&[&one.replace("x.example.org\"]", "x.example.org\"]\nwithin = [\"198.51.100.0/24\"]")]),
            &["a: narrowed x.example.org A AAAA: allow one:8 [tcp/443] → allow one:8 [tcp/443 within 198.51.100.0/24]"],
        ),
        (
            "a segment's own keys",
            old.clone(),
            old.replace(
                "tags = { floor = \"1\" }",
                "mode = \"observe\"\nuntil = 2030-01-01T00:00:00Z\nrefusal = \"refused\"\nfilter_aaaa = true",
            ),
            &[
                "segment b 4 → 4, mode enforce → observe until 2030-01-01T00:00:00.000000Z, refusal nxdomain → refused, filter_aaaa false → true, tags {\"floor\":\"1\"} → ",
            ],
        ),
        (
            "clients that move, and a segment that comes",
            with(&[&wide]),
            format!(
                "{}[[segment]]\nname = \"c\"\nclients = [\"198.51.100.128/25\"]\n",
                with(&[&wide]).replace("192.0.2.0/24", "192.0.2.0/25")
            ),
            &[
                "segment c - → 14",
                "clients 192.0.2.0/24: a → -",
                "clients 198.51.100.128/25: b → c",
                "c: allowed **.example.org A AAAA: deny [] → allow wide:8 [tcp/443]",
            ],
        ),
        (
            "static openings",
            with(&[
                "[[rule]]\nid = \"n\"\naction = \"allow\"\nsegments = [\"*\"]\nnetworks = [\"203.0.113.0/24\"]\nports = [\"tcp/1-9\"]\n",
            ]),
            with(&[
                "[[rule]]\nid = \"n\"\naction = \"allow\"\nsegments = [\"*\"]\nnetworks = [\"203.0.113.0/24\", \"203.0.113.7\"]\nports = [\"tcp/1-4\", \"icmp\"]\n",
            ]),
            &[
                "a b: opened 203.0.113.0/24 icmp n:8",
                "a b: opened 203.0.113.7/32 icmp n:8",
                "a b: closed 203.0.113.0/24 tcp/5-9 n:8",
            ],
        ),
        (
            "rules that end",
            with(&[
                &one,
                &rule("no", "deny", "b", "**.example.net", ""),
                &rule("gone", "allow", "a", "y.example.org", "expires = 2001-01-01T00:00:00Z"),
            ]),
            with(&[
                &one.replace("x.example.org\"]", "x.example.org\"]\nexpires = 2030-01-01T00:00:00Z"),
                &rule("no", "deny", "b", "**.example.net", "expires = 2031-01-01T00:00:00Z"),
            ]),
            &[
                "a: narrowed x.example.org A AAAA: allow one:8 [tcp/443] → allow one:8 [tcp/443 until 2030-01-01T00:00:00.000000Z]",
                "b: altered **.example.net : deny no:14 [] → deny no:15 [until 2031-01-01T00:00:00.000000Z]",
            ],
        ),
        (
            "rules for single clients",
            with(&[&one]),
            with(&[
                &one,
                &rule("some", "allow", "a", "*.example.org", "clients = [\"192.0.2.0/28\"]\nports = [\"tcp/1\"]"),
                &rule("not", "deny", "a", "*.example.org", "clients = [\"192.0.2.7\"]"),
            ]),
            &[
                "a (192.0.2.0/28): allowed *.example.org A AAAA: deny [] → allow some:14 [tcp/1]",
                "a (192.0.2.0/28): widened x.example.org A AAAA: allow one:8 [tcp/443] → allow one:8 some:14 [tcp/1 tcp/443]",
                "a (192.0.2.7/32): denied x.example.org A AAAA: allow one:8 [tcp/443] → deny not:21 []",
                "a (192.0.2.7/32): barred *.example.org : deny [] → deny not:21 []",
            ],
        ),
        (
            "networks that are denied",
            with(&["[[rule]]\nid = \"d\"\naction = \"deny\"\nsegments = [\"*\"]\nnetworks = [\"203.0.113.0/24\"]\n"]),
            with(&[
                "[[rule]]\nid = \"d\"\naction = \"deny\"\nsegments = [\"*\"]\nnetworks = [\"203.0.113.0/25\", \"198.51.100.9\"]\n",
            ]),
            &[": freed 203.0.113.0/24 d:8", ": denied 198.51.100.9/32 d:8"],
        ),
    ] {
        assert_eq!(told(&old, &new), expected, "{reason}");
    }
}

#[test]
fn what_is_served_here_is_a_part_of_its_own() {
    let sites = vec![Site { apex: name("corp.internal"), server: Server::Zone }];
    let settings = Settings { sites, ..Settings::default() };
    let of = |rules: &str| policy_with(&format!("{SEGMENTS}{rules}"), &settings);
    let wide = rule("r", "allow", "a", "**.internal", "");
    let expected = ["a: allowed **.corp.internal corp.internal A AAAA: deny [] → allow r:8 [tcp/443]"];
    assert_eq!(lines(&compare(&of(""), &of(&wide), NOW)), expected);
}

#[test]
fn a_summary_says_what_came_went_and_changed() {
    let one = rule("one", "allow", "*", "x.example.org y.example.org", "");
    let two = rule("two", "allow", "a", "**.example.net", "owner = \"us\"");
    let end = rule("end", "deny", "*", "z.example.org", "expires = 2030-01-01T00:00:00Z");
    let with = |rules: &[&str]| format!("{SEGMENTS}{}", rules.concat());
    let said = |old: &str, new: &str| {
        let Summary { segments, rules, names_added, names_removed } = Summary::new(&policy(old), &policy(new), NOW);
        let list = |Listed { added, removed, changed }: Listed| {
            let list = |mark: char, ids: Vec<Arc<str>>| ids.iter().map(|id| format!("{mark}{id} ")).collect::<String>();
            format!("{}{}{}", list('+', added), list('-', removed), list('~', changed))
        };
        format!("{}| {}| {names_added} {names_removed}", list(segments), list(rules))
    };
    let old = with(&[&one, &two, &end]);
    for (reason, new, expected) in [
        ("nothing", old.clone(), "| | 0 0"),
        ("order, paper and comments", with(&["# new\n", &end, &two.replace("us", "them"), &one]), "| | 0 0"),
        ("a name", with(&[&one.replace("y.", "q."), &two, &end]), "| ~one | 1 1"),
        (
            "a name that another rule has",
            with(&[&one, &two.replace("**.example.net", "x.example.org"), &end]),
            "| ~two | 0 1",
        ),
        ("ports", with(&[&one, &format!("{two}ports = [\"tcp/1\"]\n"), &end]), "| ~two | 0 0"),
        ("an end", with(&[&one, &two, &end.replace("2030", "2031")]), "| ~end | 0 0"),
        ("an id", with(&[&one, &two.replace("\"two\"", "\"new\""), &end]), "| +new -two | 0 0"),
        ("its segments", with(&[&one, &two.replace("\"a\"", "\"b\""), &end]), "| ~two | 0 0"),
        ("a segment that comes", format!("{old}[[segment]]\nname = \"c\"\n"), "+c | | 0 0"),
        ("clients that move", old.replace("192.0.2.0/24", "192.0.2.0/25"), "~a | | 0 0"),
        ("a segment's keys", old.replace("tags = { floor = \"1\" }", "refusal = \"nodata\""), "~b | | 0 0"),
    ] {
        assert_eq!(said(&old, &new), expected, "{reason}");
    }
}

/// What the comparison calls the part that a name is in, for a segment: the nearest pattern that a rule for the segment
/// names or excepts.
fn part_of(specs: &[Spec], segment: usize, asked: &Name) -> Option<String> {
    let own = specs.iter().filter(|spec| spec.segments.contains(&segment));
    let patterns: Vec<Pattern> =
        own.flat_map(|spec| spec.names.iter().chain(&spec.except)).map(|text| Pattern::parse(text).unwrap()).collect();
    let matching: Vec<&Pattern> = patterns.iter().filter(|pattern| pattern.matches(asked.as_wire())).collect();
    let nearest = |wanted: fn(&Shape) -> bool| {
        let mut found: Vec<_> = matching.iter().filter(|pattern| wanted(&pattern.shape)).collect();
        found.sort_by_key(|pattern| (std::cmp::Reverse(pattern.base.len()), pattern.to_string()));
        found.dedup();
        found
    };
    if let Some(exact) = nearest(|shape| *shape == Shape::Exact).first() {
        return Some(exact.to_string());
    }
    let globs: Vec<_> = nearest(|shape| matches!(shape, Shape::Glob(_))).iter().map(ToString::to_string).collect();
    if !globs.is_empty() {
        return Some(globs.join(" and "));
    }
    if let Some(one) = nearest(|shape| *shape == Shape::One).first() {
        return Some(one.to_string());
    }
    nearest(|shape| *shape == Shape::Many).first().map(ToString::to_string)
}

/// What becomes of answers: of each, what is told and what is opened. `None`: the question is refused.
fn becomes(policy: &Arc<Policy>, client: &str, asked: &Name, kind: RecordType, chains: &[&str]) -> Option<Vec<String>> {
    let Verdict::Permit(permit) = decide(policy, asker(policy, client), asked.as_wire(), kind, NOW) else {
        return None;
    };
    let data: &[&str] = match kind {
        RecordType::TXT => &["TXT"],
        RecordType::A => &["192.88.98.1", "192.88.98.200", "10.20.0.5", "10.30.0.5"],
        RecordType::AAAA => &["2606:2800::1", "2606:2800::2"],
        _ => &[
            "HTTPS 1 . alpn=h2 ipv4hint=192.88.98.1 ipv6hint=2606:2800::1",
            "HTTPS 1 . alpn=h2 ipv4hint=192.88.98.200",
            "HTTPS 1 . alpn=h2 ipv4hint=10.20.0.5",
            "HTTPS 1 . alpn=h2 ipv6hint=2606:2800::2",
            "HTTPS 1 . alpn=h2 key667=abc",
        ],
    };
    let mut all = Vec::new();
    for data in data {
        for chain in [None].into_iter().chain(chains.iter().map(Some)) {
            let owner = chain.map_or_else(|| asked.to_string(), ToString::to_string);
            if chain.is_some() && owner == asked.to_string() {
                continue;
            }
            let link = chain.map(|chain| format!("{asked} CNAME {chain}"));
            let lines: Vec<_> = link.into_iter().chain([format!("{owner} {data}")]).collect();
            let answer = answer(upstream(&[]), &lines.iter().map(String::as_str).collect::<Vec<_>>());
            let (told, opened, _) = summary(&inspect(permit.clone(), answer));
            all.push(format!("{told:?} {opened:?}"));
        }
    }
    Some(all)
}

/// Whether a rule denies a name to a client.
fn denies(policy: &Arc<Policy>, client: &str, asked: &Name) -> bool {
    let verdict = decide(policy, asker(policy, client), asked.as_wire(), RecordType::A, NOW);
    matches!(verdict, Verdict::Refuse(refusal) if refusal.reason == Reason::Rule)
}

/// Every name that the generated policies can tell apart.
fn universe() -> Vec<String> {
    let labels = ["a", "b", "ab"];
    let mut names = universe_of(&labels, 3);
    for base in universe_of(&labels, 2).iter().skip(2) {
        names.extend(["x", "ax", "xb", "axb", "x.x"].map(|label| format!("{label}.{base}")));
    }
    names
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn names_exactly_the_decisions_that_differ(
        (kept, gone, come) in (a_rule_of(0..5), a_rule_of(0..3), a_rule_of(0..3)),
        rename in any::<bool>(),
    ) {
        let number = |specs: Vec<Spec>, prefix: &str| -> Vec<Spec> {
            specs.into_iter().enumerate().map(|(at, spec)| spec.called(format!("{prefix}{at}"))).collect()
        };
        let old: Vec<Spec> = [number(kept.clone(), "k"), number(gone, "g")].concat();
        let new: Vec<Spec> = [number(kept, if rename { "z" } else { "k" }), number(come, "c")].concat();
        let both: Vec<Spec> = old.iter().chain(&new).cloned().collect();
        let (before, after) = (build(old.iter().cloned()), build(new.iter().cloned()));
        prop_assert_eq!(compare(&before, &before, NOW), Comparison::default());
        let comparison = compare(&before, &after, NOW);
        prop_assert!(comparison.left_out.is_empty() && comparison.segments.is_empty() && comparison.moved.is_empty());
        let (mut said, mut by_chain) = (BTreeMap::new(), BTreeSet::new());
        for change in &comparison.names {
            for segment in &change.segments {
                for name in &change.names {
                    let types = if change.types.is_empty() { &ASKED[..] } else { &change.types };
                    for kind in types {
                        let key = (segment.to_string(), name.clone(), *kind);
                        if change.before.opens.iter().chain(&change.after.opens).any(|opens| opens.contains("cname")) {
                            by_chain.insert(key.clone());
                        }
                        let again = said.insert(key, change.change);
                        prop_assert_eq!(again, None, "{} is said twice", name);
                    }
                }
            }
        }
        let mut seen = BTreeMap::new();
        for (segment, client) in CLIENTS.iter().enumerate() {
            for asked in universe() {
                let asked = name(&asked);
                for kind in ASKED {
                    // Whether a rule that inspects trusts a chain is another name's matter.
                    let mut chains = vec!["z.example.net"];
                    let stance = |policy| (becomes(policy, client, &name(PIN), kind, &[]).is_some(), denies(policy, client, &name(PIN)));
                    chains.extend((stance(&before) == stance(&after)).then_some(PIN));
                    let [old, new] = [&before, &after].map(|policy| becomes(policy, client, &asked, kind, &chains));
                    let key = (format!("s{segment}"), part_of(&both, segment, &asked).unwrap_or_default(), kind);
                    let change = said.get(&key);
                    let fits = match (old.is_some(), new.is_some()) {
                        (false, false) => match [&before, &after].map(|policy| denies(policy, client, &asked)) {
                            [true, true] | [false, false] => change.is_none(),
                            // Said by what becomes of the name for another type, or of itself.
                            denied => {
                                let others = ASKED.iter().filter_map(|kind| said.get(&(key.0.clone(), key.1.clone(), *kind)));
                                let barred = if denied[1] { Change::Barred } else { Change::Unbarred };
                                if change.is_none() { others.count() > 0 } else { change == Some(&barred) }
                            }
                        },
                        (true, false) => change == Some(&Change::Denied),
                        (false, true) => change == Some(&Change::Allowed),
                        (true, true) => match change {
                            None => old == new,
                            Some(change) => !matches!(change, Change::Allowed | Change::Denied),
                        },
                    };
                    prop_assert!(fits, "{asked} {kind}: {old:?} → {new:?}, and {change:?} is said of {key:?}");
                    *seen.entry(key).or_insert(false) |= old != new;
                }
            }
        }
        for key in said.keys().filter(|(.., kind)| *kind != RecordType::SVCB) {
            prop_assert!(seen.contains_key(key), "{key:?} is said of no name");
            // Not every segment has sources of both families, not every hint is tried, nor every chain.
            let barred = matches!(said[key], Change::Barred | Change::Unbarred);
            prop_assert!(barred || seen[key] || by_chain.contains(key) || !matches!(key.2, RecordType::A | RecordType::TXT), "{key:?} makes no difference");
        }
    }
}
