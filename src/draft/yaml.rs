//! YAML as a tree with places, for manifests: the values are text, whatever type YAML would give them.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

/// The deepest nesting; a guess, far above what manifests have.
const MAX_DEPTH: usize = 64;
/// The most nodes of a file, aliases written out: a few lines of aliases of aliases would be billions.
const MAX_NODES: usize = 1 << 20;

/// One value and where it begins: line and column from 1.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) line: u32,
    pub(super) column: u32,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Nothing, or `null`.
    Null,
    Text(String),
    List(Vec<Node>),
    /// In the order of the file; no key is there twice.
    Map(Vec<(String, Node)>),
}

/// Why a text cannot be read, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) line: u32,
    pub(super) column: u32,
    pub(super) fact: String,
}

impl Fault {
    fn at(mark: Marker, fact: impl Into<String>) -> Self {
        let (line, column) = position(mark);
        Self { line, column, fact: fact.into() }
    }
}

impl Node {
    /// What a map has under a key; `null` is as if it were not there.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        self.entries().iter().find(|(name, _)| name == key).map(|(_, node)| node).filter(|node| !node.is_null())
    }

    /// The keys and values of a map; none of anything else.
    pub(super) fn entries(&self) -> &[(String, Self)] {
        if let Value::Map(entries) = &self.value { entries } else { &[] }
    }

    /// The items of a list; none of anything else.
    pub(super) fn items(&self) -> &[Self] {
        if let Value::List(items) = &self.value { items } else { &[] }
    }

    pub(super) fn text(&self) -> Option<&str> {
        if let Value::Text(text) = &self.value { Some(text) } else { None }
    }

    pub(super) const fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    fn count(&self) -> usize {
        1 + match &self.value {
            Value::List(items) => items.iter().map(Self::count).sum(),
            Value::Map(entries) => entries.iter().map(|(_, node)| node.count()).sum(),
            _ => 0,
        }
    }
}

/// A list or a map that is not complete.
struct Open {
    node: Node,
    anchor: usize,
    /// Of a map: the key whose value comes next.
    key: Option<String>,
}

/// The documents of a text.
pub(super) fn read(text: &str) -> Result<Vec<Node>, Fault> {
    let mut documents = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    let mut anchors: HashMap<usize, Node> = HashMap::new();
    let mut nodes = 0_usize;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| Fault::at(*error.marker(), error.info()))?;
        let mark = span.start;
        let (line, column) = position(mark);
        let (node, anchor) = match event {
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() == MAX_DEPTH => {
                return Err(Fault::at(mark, format!("it is nested more than {MAX_DEPTH} deep")));
            }
            Event::SequenceStart(anchor, _) => {
                open.push(Open { node: Node { line, column, value: Value::List(Vec::new()) }, anchor, key: None });
                continue;
            }
            Event::MappingStart(anchor, _) => {
                open.push(Open { node: Node { line, column, value: Value::Map(Vec::new()) }, anchor, key: None });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open { node, anchor, .. }) => (node, anchor),
                None => continue,
            },
            Event::Scalar(text, style, anchor, _) => {
                let null = style == ScalarStyle::Plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if null { Value::Null } else { Value::Text(text.into_owned()) };
                (Node { line, column, value }, anchor)
            }
            Event::Alias(anchor) => {
                let Some(known) = anchors.get(&anchor) else {
                    return Err(Fault::at(mark, "it stands for a value that is not complete"));
                };
                nodes += known.count();
                let value = if nodes > MAX_NODES { Value::Null } else { known.value.clone() };
                // What it stands for is shown where it is used.
                (Node { line, column, value }, 0)
            }
            Event::DocumentEnd => {
                anchors.clear();
                continue;
            }
            _ => continue,
        };
        nodes += 1;
        if nodes > MAX_NODES {
            return Err(Fault::at(mark, format!("it has more than {MAX_NODES} values, aliases written out")));
        }
        if anchor > 0 {
            anchors.insert(anchor, node.clone());
        }
        let Some(Open { node: parent, key, .. }) = open.last_mut() else {
            documents.push(node);
            continue;
        };
        match &mut parent.value {
            Value::List(items) => items.push(node),
            Value::Map(entries) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => {
                    let Value::Text(name) = node.value else {
                        return Err(Fault::at(mark, "a key is no plain text"));
                    };
                    if entries.iter().any(|(known, _)| *known == name) {
                        return Err(Fault::at(mark, format!("the key `{name}` is there twice")));
                    }
                    *key = Some(name);
                }
            },
            Value::Null | Value::Text(_) => {}
        }
    }
    Ok(documents)
}

fn position(mark: Marker) -> (u32, u32) {
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    (number(mark.line().max(1)), number(mark.col() + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_documents_with_places_and_aliases() {
        let text = "a: &x [1, two, ~]\nb: {c: *x}\n---\n- \"~\"\n- |\n  text\n";
        let documents = read(text).unwrap();
        let list = documents[0].get("b").unwrap().get("c").unwrap();
        assert_eq!((list.line, list.column), (2, 8));
        let items: Vec<_> = list.items().iter().map(|item| (item.text(), item.is_null(), item.line)).collect();
        assert_eq!(items, [(Some("1"), false, 1), (Some("two"), false, 1), (None, true, 1)]);
        let texts: Vec<_> = documents[1].items().iter().map(|item| item.text().unwrap()).collect();
        assert_eq!(texts, ["~", "text\n"]);
    }

    #[test]
    fn refuses_what_it_cannot_hold() {
        let bomb: String = (1..9).fold("a0: &a0 [x]\n".to_owned(), |text, n| {
            let again = vec![format!("*a{}", n - 1); 10].join(", ");
            format!("{text}a{n}: &a{n} [{again}]\n")
        });
        let deep = "[".repeat(100);
        for (text, line, fact) in [
            (bomb.as_str(), 7, "it has more than 1048576 values, aliases written out"),
            (&deep, 1, "it is nested more than 64 deep"),
            ("a: 1\nb: 2\na: 3\n", 3, "the key `a` is there twice"),
            ("? [a]\n: b\n", 1, "a key is no plain text"),
            ("a: &a [*a]\n", 1, "it stands for a value that is not complete"),
        ] {
            let fault = read(text).unwrap_err();
            assert_eq!((fault.line, fault.fact.as_str()), (line, fact));
        }
        assert!(read("a: [b\nc: d").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[ab:\\- \n\"'&*\\[\\]{},|>!%#?~]{0,60}") {
            let _ = read(&text);
        }
    }
}
