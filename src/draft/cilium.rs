//! CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy: what `toFQDNs` allow, and by which ports.
//!
//! From pkg/policy/api/fqdn.go and pkg/fqdn/matchpattern of cilium/cilium: `matchName` is one name; in `matchPattern` a `*`
//! is "0 or more DNS valid characters" of one label, a `**.` at its beginning is one or more labels (since 1.19, the same
//! as `*.` before), and `*` alone is every name.

use std::sync::Arc;

use super::names::{Names, Taken, is_host_text};
use super::text::Ids;
use super::yaml::{self, Node, Value};
use super::{Draft, Entry, Heading, Rule};
use crate::document::{Mistake, Place};
use crate::net::Services;
use crate::policy::{Action, Vetter};

/// The most ports that a rule may open.
const MAX_PORTS: usize = 128;

/// Keys of an egress rule beside `toFQDNs` and `toPorts`, and what to do about each.
const OTHER_PEERS: &[(&str, &str)] = &[
    ("toCIDR", "for addresses write a rule with `networks` and `ports`"),
    ("toCIDRSet", "for addresses write a rule with `networks` and `ports`"),
    ("toEndpoints", "flows between pods do not pass here"),
    ("toServices", "flows between pods do not pass here"),
    ("toEntities", "name what is meant, or write a rule with `networks`"),
    ("toNodes", "write a rule with `networks` and `ports`"),
    ("toGroups", "write a rule with `networks` and `ports`"),
    ("toRequires", "choose the segment accordingly"),
    ("icmps", "add \"icmp\" to `ports` where it is needed"),
    ("authentication", "nothing here does that"),
];

/// What narrows a port in Cilium and cannot be said here: the port would be open whole.
const NARROWED: &[&str] = &["rules", "serverNames", "terminatingTLS", "originatingTLS", "listener"];

/// Rules for what the policies of a manifest allow by name.
///
/// # Errors
/// The text is no YAML.
pub fn cilium(file: &str, text: &str, heading: &Heading) -> Result<Draft, Mistake> {
    let file: Arc<str> = Arc::from(file);
    let documents = yaml::read(text).map_err(|fault| {
        let place = Place { file: Arc::clone(&file), line: fault.line, column: fault.column };
        Mistake::at(place, format!("this is no YAML that can be read: {}", fault.fact), "correct it there")
    })?;
    let vetter = Vetter::default();
    let mut reader = Reader { file, heading, vetter: &vetter, ids: Ids::default(), draft: Draft::default() };
    for document in &documents {
        reader.object(document);
    }
    let mut draft = reader.draft;
    draft.head = vec![format!("From the Cilium policies in {}.", reader.file)];
    Ok(draft)
}

struct Reader<'a> {
    file: Arc<str>,
    heading: &'a Heading,
    vetter: &'a Vetter,
    ids: Ids,
    draft: Draft,
}

impl Reader<'_> {
    fn leave(&mut self, at: &Node, fact: impl Into<String>, remedy: &str) {
        let place = Place { file: Arc::clone(&self.file), line: at.line, column: at.column };
        self.draft.left.push(Mistake::at(place, fact, remedy));
    }

    fn object(&mut self, object: &Node) {
        if object.is_null() {
            return;
        }
        match object.get("kind").and_then(Node::text) {
            Some("CiliumNetworkPolicy" | "CiliumClusterwideNetworkPolicy") => self.policy(object),
            Some(kind) if kind.ends_with("List") => {
                object.get("items").map(Node::items).unwrap_or_default().iter().for_each(|item| self.object(item));
            }
            Some(kind) => self.leave(object, format!("{kind} is no policy of Cilium"), "remove it"),
            None => self.leave(object, "this is no object of Kubernetes", "remove it"),
        }
    }

    fn policy(&mut self, policy: &Node) {
        let metadata = |key| policy.get("metadata").and_then(|metadata| metadata.get(key)).and_then(Node::text);
        let name = metadata("name").unwrap_or("unnamed");
        let name = metadata("namespace").map_or_else(|| name.to_owned(), |space| format!("{space}.{name}"));
        let specs = policy.get("specs").map(Node::items).unwrap_or_default();
        let mut number = 0;
        for spec in policy.get("spec").into_iter().chain(specs) {
            let selector = ["endpointSelector", "nodeSelector"].iter().find_map(|key| spec.get(key));
            let pods = format!("Cilium policy {name}, for {}.", selector.map_or("all".to_owned(), selected));
            for (key, value) in spec.entries().iter().filter(|(_, value)| !value.is_null()) {
                match key.as_str() {
                    "egress" => {
                        for rule in value.items() {
                            number += 1;
                            self.egress(rule, &name, number, &pods);
                        }
                    }
                    "ingress" | "ingressDeny" => {
                        self.leave(
                            value,
                            format!("{name}: `{key}` is about flows to the pods"),
                            "nothing here does that",
                        );
                    }
                    "egressDeny" => {
                        let remedy = "what no rule allows is closed; for names write a rule with action = \"deny\"";
                        self.leave(value, format!("{name}: `egressDeny` cannot name names"), remedy);
                    }
                    "endpointSelector" | "nodeSelector" | "description" | "labels" | "log" | "enableDefaultDeny" => {}
                    _ => self.leave(
                        value,
                        format!("{name}: `{key}` is unknown here"),
                        "see whether it narrows the policy",
                    ),
                }
            }
        }
    }

    /// One egress rule: its `toFQDNs` become one rule.
    fn egress(&mut self, egress: &Node, policy: &str, number: usize, pods: &str) {
        let Some(peers) = egress.get("toFQDNs") else {
            return self.without_names(egress, policy, number);
        };
        for (key, value) in egress.entries().iter().filter(|(key, _)| !matches!(key.as_str(), "toFQDNs" | "toPorts")) {
            if !value.is_null() {
                // What is beside the names narrows or widens them: nobody knows which.
                let fact = format!("{policy}, egress {number}: `toFQDNs` beside `{key}`");
                return self.leave(value, fact, "write the rule by hand");
            }
        }
        let Some(ports) = self.ports(egress, policy, number) else { return };
        let mut names = Vec::new();
        let mut seen = Names::new(self.vetter, Action::Allow);
        for peer in peers.items() {
            for (key, value) in peer.entries() {
                let text = value.text().unwrap_or_default().trim();
                let pattern = match key.as_str() {
                    "matchName" if is_host_text(text) && !text.contains('*') => Ok(text.to_owned()),
                    "matchPattern" if is_host_text(text) => pattern(text),
                    "matchName" | "matchPattern" => Err("is no name"),
                    _ => Err("is unknown here"),
                };
                let taken = match pattern {
                    Ok(pattern) => seen.take(&pattern),
                    Err(why) => Taken::Refused(why.to_owned(), "name what is meant"),
                };
                match taken {
                    Taken::New(name) => names.push(Entry { name, comment: String::new() }),
                    Taken::Again => {}
                    Taken::Refused(why, remedy) => {
                        self.leave(value, format!("{policy}, egress {number}: {key} \"{text}\" {why}"), remedy);
                    }
                }
            }
        }
        self.draft.notes.extend(seen.reaching());
        if names.is_empty() {
            return;
        }
        let id = match self.heading.id.as_str() {
            "" => self.ids.take(&format!("{policy}-{number}")),
            id => self.ids.take(&format!("{id}-{policy}-{number}")),
        };
        let comment = vec![format!("{pods} Egress {number}.")];
        self.draft.rules.push(Rule { comment, names, ports, ..Rule::new(id, Action::Allow, self.heading) });
    }

    /// An egress rule that is not about names.
    fn without_names(&mut self, egress: &Node, policy: &str, number: usize) {
        let mut told = false;
        for (key, value) in egress.entries() {
            if let Some((_, remedy)) = OTHER_PEERS.iter().find(|(other, _)| other == key) {
                let dns = egress.get("toPorts").is_some_and(is_dns);
                let (fact, remedy) = match dns {
                    true => ("is how pods ask for names", "point them here; what a rule names may be asked"),
                    false => ("is not about names", *remedy),
                };
                self.leave(value, format!("{policy}, egress {number}: `{key}` {fact}"), remedy);
                told = true;
            }
        }
        if !told {
            let remedy = "what no rule names is closed here; name what is meant";
            self.leave(egress, format!("{policy}, egress {number} is for every destination"), remedy);
        }
    }

    /// What an egress rule opens; `None` where that cannot be said.
    fn ports(&mut self, egress: &Node, policy: &str, number: usize) -> Option<Vec<Services>> {
        let Some(list) = egress.get("toPorts") else { return Some(vec![Services::Any]) };
        let rule = format!("{policy}, egress {number}");
        let mut ports = Vec::new();
        let mut complete = true;
        for entry in list.items() {
            if let Some((key, narrowed)) =
                entry.entries().iter().find(|(key, value)| NARROWED.contains(&key.as_str()) && !value.is_null())
            {
                let fact = format!("{rule}: `{key}` narrows what may pass a port");
                self.leave(narrowed, fact, "where the whole port may be open, write the rule by hand");
                continue;
            }
            let Some(open) = entry.get("ports") else {
                ports.push(Services::Any);
                continue;
            };
            for port in open.items() {
                match services(port) {
                    Ok(more) => ports.extend(more),
                    Err(why) => {
                        complete = false;
                        self.leave(port, format!("{rule}: {why}"), "write the port by its number, or \"any\"");
                    }
                }
            }
        }
        ports.sort_unstable();
        ports.dedup();
        let count: usize = ports.iter().map(|ports| ports.count()).sum();
        if count > MAX_PORTS {
            let fact = format!("{rule}: {count} ports are more than {MAX_PORTS}");
            self.leave(list, fact, "write the rule by hand, with fewer ports or \"any\"");
            return None;
        }
        if ports.is_empty() && complete && list.items().is_empty() {
            return Some(vec![Services::Any]);
        }
        (!ports.is_empty()).then_some(ports)
    }
}

/// What one entry of `ports` opens.
fn services(port: &Node) -> Result<Vec<Services>, String> {
    let text = |key| port.get(key).and_then(Node::text);
    let number = |text: &str| text.parse::<u16>().ok().filter(|number| *number > 0);
    let written = text("port").unwrap_or_default();
    let Some(first) = number(written) else { return Err(format!("the port \"{written}\" is no number")) };
    let last = match text("endPort") {
        None | Some("0") => first,
        Some(end) => number(end).filter(|end| *end >= first).ok_or_else(|| format!("the end \"{end}\" is no port"))?,
    };
    // "If omitted or empty, any protocol matches" (pkg/policy/api/l4.go).
    Ok(match text("protocol").unwrap_or("ANY") {
        "TCP" => vec![Services::Tcp(first, last)],
        "UDP" => vec![Services::Udp(first, last)],
        "" | "ANY" => vec![Services::Tcp(first, last), Services::Udp(first, last)],
        other => return Err(format!("{other} is no protocol here")),
    })
}

/// The pattern here that matches what one of Cilium's does.
fn pattern(text: &str) -> Result<String, &'static str> {
    let text = text.strip_suffix('.').unwrap_or(text);
    if let Some(rest) = text.strip_prefix("**.").filter(|rest| !rest.is_empty()) {
        return if rest.contains('*') { Err("has more than one wildcard") } else { Ok(text.to_owned()) };
    }
    // Elsewhere several stars are as one.
    let mut one = text.to_owned();
    while one.contains("**") {
        one = one.replace("**", "*");
    }
    Ok(one)
}

/// Whether ports are those of DNS and nothing else.
fn is_dns(ports: &Node) -> bool {
    let ports = ports.items().iter().flat_map(|entry| entry.get("ports").map(Node::items).unwrap_or_default());
    let mut texts = ports.map(|port| port.get("port").and_then(Node::text)).peekable();
    texts.peek().is_some() && texts.all(|text| text == Some("53"))
}

/// A selector for people.
fn selected(selector: &Node) -> String {
    fn words(node: &Node) -> String {
        match &node.value {
            Value::Null => "null".to_owned(),
            Value::Text(text) => text.clone(),
            Value::List(items) => format!("[{}]", items.iter().map(words).collect::<Vec<_>>().join(", ")),
            Value::Map(entries) => {
                let word = |(key, value): &(String, Node)| format!("{key}={}", words(value));
                entries.iter().map(word).collect::<Vec<_>>().join(" ")
            }
        }
    }
    let labels = selector.get("matchLabels").map(words);
    let expressions = selector.get("matchExpressions").map(words);
    let all: Vec<String> = labels.into_iter().chain(expressions).filter(|text| !text.is_empty()).collect();
    if all.is_empty() { "all".to_owned() } else { format!("pods with {}", all.join(" ")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::draft::testing::{checked, heading, left};

    fn read(text: &str) -> Draft {
        let draft = cilium("x.yaml", text, &Heading { id: String::new(), ..heading() }).unwrap();
        checked(&draft);
        draft
    }

    /// A policy with this as its egress.
    fn with_egress(egress: &str) -> String {
        format!("kind: CiliumNetworkPolicy\nmetadata: {{name: p, namespace: n}}\nspec:\n  egress:\n{egress}")
    }

    #[test]
    fn a_policy_becomes_a_rule_for_each_egress_with_names() {
        let draft = read(
            r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: shop
  namespace: web
spec:
  description: "the shop"
  endpointSelector:
    matchLabels: {app: shop, "k8s:tier": front}
    matchExpressions: [{key: env, operator: In, values: [prod, stage]}]
  egress:
  - toEndpoints: [{matchLabels: {k8s-app: kube-dns}}]
    toPorts:
    - ports: [{port: "53", protocol: ANY}]
      rules: {dns: [{matchPattern: "*"}]}
  - toFQDNs:
    - matchName: API.Stripe.com
    - matchPattern: "*.example.com"
    - matchPattern: "sub*.example.net."
    - matchPattern: "**.example.org"
    - matchPattern: "a**b.example.org"
    toPorts:
    - ports: [{port: "443", protocol: TCP}, {port: 8000, endPort: 8010, protocol: UDP}]
    - ports: [{port: "53"}]
  - toFQDNs: [{matchName: any.example.org}]
"#,
        );
        let expected = r#"# From the Cilium policies in x.yaml.

# Cilium policy web.shop, for pods with app=shop k8s:tier=front [key=env operator=In values=[prod, stage]]. Egress 2.
[[rule]]
id       = "web.shop-2"
action   = "allow"
segments = ["office"]
names    = [
    "api.stripe.com",
    "*.example.com",
    "sub*.example.net",
    "**.example.org",
    "a*b.example.org",
]
ports    = ["tcp/53", "tcp/443", "udp/53", "udp/8000-8010"]

# Cilium policy web.shop, for pods with app=shop k8s:tier=front [key=env operator=In values=[prod, stage]]. Egress 3.
[[rule]]
id       = "web.shop-3"
action   = "allow"
segments = ["office"]
names    = [
    "any.example.org",
]
ports    = ["any"]
"#;
        assert_eq!(draft.to_string(), expected);
        assert_eq!(left(&draft), ["12: web.shop, egress 1: `toEndpoints` is how pods ask for names"]);
    }

    #[test]
    fn what_would_open_more_is_left() {
        let rows = [
            ("  - toFQDNs: [{matchPattern: '*'}]\n", "matchPattern \"*\" would match every name"),
            ("  - toFQDNs: [{matchPattern: '**'}]\n", "matchPattern \"**\" would match every name"),
            ("  - toFQDNs: [{matchPattern: '*com'}]\n", "matchPattern \"*com\" would match every name"),
            (
                "  - toFQDNs: [{matchPattern: '*.*.example.com'}]\n",
                "matchPattern \"*.*.example.com\" has a `*` after the first label",
            ),
            (
                "  - toFQDNs: [{matchPattern: '**.*.example.com'}]\n",
                "matchPattern \"**.*.example.com\" has more than one wildcard",
            ),
            (
                "  - toFQDNs: [{matchPattern: '*.github.io'}]\n",
                "matchPattern \"*.github.io\" is on a public suffix: anyone may have a name below github.io",
            ),
            ("  - toFQDNs: [{matchName: 'a*.example.com'}]\n", "matchName \"a*.example.com\" is no name"),
            ("  - toFQDNs: [{matchRegex: 'a'}]\n", "matchRegex \"a\" is unknown here"),
            ("  - {toFQDNs: [{matchName: a.example.com}], toEntities: [world]}\n", "`toFQDNs` beside `toEntities`"),
            (
                "  - toFQDNs: [{matchName: a.example.com}]\n    toPorts: [{ports: [{port: '80'}], rules: {http: [{path: /}]}}]\n",
                "`rules` narrows what may pass a port",
            ),
            (
                "  - toFQDNs: [{matchName: a.example.com}]\n    toPorts: [{ports: [{port: '80'}], serverNames: [x]}]\n",
                "`serverNames` narrows what may pass a port",
            ),
            (
                "  - toFQDNs: [{matchName: a.example.com}]\n    toPorts: [{ports: [{port: https}]}]\n",
                "the port \"https\" is no number",
            ),
            (
                "  - toFQDNs: [{matchName: a.example.com}]\n    toPorts: [{ports: [{port: '0', protocol: TCP}]}]\n",
                "the port \"0\" is no number",
            ),
            (
                "  - toFQDNs: [{matchName: a.example.com}]\n    toPorts: [{ports: [{port: '9', protocol: SCTP}]}]\n",
                "SCTP is no protocol here",
            ),
            (
                "  - toFQDNs: [{matchName: a.example.com}]\n    toPorts: [{ports: [{port: '1', endPort: 200, protocol: TCP}]}]\n",
                "200 ports are more than 128",
            ),
            ("  - toCIDR: [203.0.113.0/24]\n", "`toCIDR` is not about names"),
            ("  - {}\n", "egress 1 is for every destination"),
        ];
        for (egress, expected) in rows {
            let draft = read(&with_egress(egress));
            assert!(draft.rules.is_empty(), "{egress}: {draft}");
            let [only] = left(&draft).try_into().unwrap();
            assert!(only.ends_with(expected), "{egress}: {only}");
        }
    }

    #[test]
    fn lists_of_objects_and_other_objects_are_told_apart() {
        let text = "kind: List\nitems:\n- kind: CiliumClusterwideNetworkPolicy\n  metadata: {name: all}\n  specs:\n  \
                    - {nodeSelector: {}, egress: [{toFQDNs: [{matchName: a.example.org}]}]}\n  \
                    - {ingress: [{}], egressDeny: [{toCIDR: [10.0.0.0/8]}], extra: 1}\n- kind: Pod\n- 7\n---\n";
        let draft = read(text);
        assert_eq!(draft.rules.len(), 1);
        assert_eq!(draft.rules[0].id, "all-1");
        assert_eq!(draft.rules[0].comment, ["Cilium policy all, for all. Egress 1."]);
        assert_eq!(
            left(&draft),
            [
                "7: all: `ingress` is about flows to the pods",
                "7: all: `egressDeny` cannot name names",
                "7: all: `extra` is unknown here",
                "8: Pod is no policy of Cilium",
                "9: this is no object of Kubernetes",
            ]
        );
    }

    proptest! {
        #[test]
        fn whatever_is_allowed_the_rules_pass_check(
            patterns in prop::collection::vec(("(\\*\\*?\\.|[a-b]{0,2}\\*{0,2}[a-b]{0,2}\\.|)", select(BASES.to_vec())), 0..12),
            ports in prop::collection::vec((0_u16..300, 0_u16..300, select(vec!["TCP", "UDP", "ANY", "ICMP"])), 0..3),
        ) {
            let peers: String = patterns.iter().map(|(star, base)| format!("    - matchPattern: '{star}{base}'\n")).collect();
            let port = |(port, end, protocol): &(u16, u16, &str)| {
                format!("    - ports: [{{port: '{port}', endPort: {end}, protocol: {protocol}}}]\n")
            };
            let ports: String = ports.iter().map(port).collect();
            read(&with_egress(&format!("  - toFQDNs:\n{peers}    toPorts:\n{ports}")));
        }
    }

    const BASES: [&str; 8] =
        ["example.org", "com", "co.uk", "github.io", "s3.amazonaws.com", "x.local", "dns.google", "a.b.example.org"];

    #[test]
    fn what_is_no_yaml_is_told_with_its_place() {
        let mistake = cilium("x.yaml", "a: b\n  c: [\n", &heading()).unwrap_err();
        assert!(mistake.to_string().starts_with("x.yaml:2:"), "{mistake}");
    }
}
