//! The keys of a sink, and every mistake in them.

use std::path::Path;

use super::super::super::{Plan, Settings};
use super::{secret, settings};
use crate::audit::fixture::Directory;
use crate::document::Document;

#[test]
fn where_none_is_named_an_api_has_its_own_format() {
    for (api, expected) in [("splunk", "json"), ("elasticsearch", "ecs"), ("ndjson", "json")] {
        for (named, expected) in [("", expected), ("format = \"ocsf\"", "ocsf")] {
            let sink = "[[sink]]\nname = \"a\"\nkind = \"http\"\nurl = \"https://a.example\"";
            let (document, root) = Document::parse("outgate.toml", format!("{sink}\napi = \"{api}\"\n{named}"));
            let sinks = Settings::read_all(&root, Path::new(""), Path::new(""));
            assert!(document.take_mistakes().is_empty());
            assert_eq!(sinks[0].format.name, expected, "{api}");
        }
    }
}

#[test]
fn names_every_mistake_with_its_place() {
    for (text, expected) in [
        ("url = \"https://a.example\"", "outgate.toml:1:1: `api` is missing\n  write one of \"splunk\""),
        ("api = \"hec\"\nurl = \"https://a.example\"", "outgate.toml:1:7: `api` cannot be \"hec\""),
        ("api = \"ndjson\"", "outgate.toml:1:1: `url` is missing"),
        ("api = \"ndjson\"\nurl = \"a.example\"", "outgate.toml:2:7: `url` is not the address of a server"),
        ("api = \"ndjson\"\nurl = \"ftp://a.example\"", "outgate.toml:2:7: `url` is not the address of a server"),
        ("api = \"ndjson\"\nurl = \"https://u:s3cret@a.example\"", "outgate.toml:2:7: `url` holds a user"),
        (
            "api = \"ndjson\"\nurl = \"http://a.example\"\ntoken_file = \"t\"",
            "outgate.toml:2:7: the token would be sent in clear",
        ),
        ("api = \"ndjson\"\nurl = \"http://a.example\"\nca = \"t\"", "outgate.toml:2:7: there is no TLS with http://"),
        ("api = \"ndjson\"\nurl = \"https://a.example\"\nindex = \"x\"", "outgate.toml:3:9: `index` is of no use with"),
        (
            "api = \"elasticsearch\"\nurl = \"https://a.example\"\nack = true",
            "outgate.toml:3:7: `ack` is of no use with",
        ),
        (
            "api = \"elasticsearch\"\nurl = \"https://a.example\"\nindex = \"a/b\"",
            "outgate.toml:3:9: `index` cannot be",
        ),
        (
            "api = \"elasticsearch\"\nurl = \"https://a.example\"\nindex = \"_all\"",
            "outgate.toml:3:9: `index` cannot be",
        ),
        ("api = \"ndjson\"\nurl = \"https://a.example\"\nuser = \"a\"", "outgate.toml:3:8: `user` has no password"),
        (
            "api = \"ndjson\"\nurl = \"https://a.example\"\nheaders = { Authorization = \"x\" }",
            "outgate.toml:3:13: the header",
        ),
        (
            "api = \"ndjson\"\nurl = \"https://a.example\"\nheaders = { \"a b\" = \"x\" }",
            "outgate.toml:3:13: the header",
        ),
        (
            "api = \"ndjson\"\nurl = \"https://a.example\"\nheaders = { A = \"x\\n\" }",
            "outgate.toml:3:17: this cannot be sent",
        ),
        ("api = \"ndjson\"\nurl = \"https://a.example\"\ntimeout = \"1d\"", "outgate.toml:3:11: `timeout`"),
        ("api = \"ndjson\"\nurl = \"https://a.example\"\ntoken = \"x\"", "outgate.toml:3:1: `token` is not a key here"),
    ] {
        let (_, mistakes) = settings(Path::new(""), text);
        assert!(mistakes.len() == 1 && mistakes[0].starts_with(expected), "{text}: {mistakes:?}");
        assert!(mistakes[0].contains('\n') && !mistakes[0].contains("s3cret"), "{mistakes:?}");
    }
}

#[test]
fn files_that_are_not_as_they_should_be_are_told_before_the_start() {
    let directory = Directory::new();
    secret(&directory, "token", "s3cret");
    std::fs::write(directory.path().join("open"), "s3cret").unwrap();
    for (keys, expected) in [
        ("token_file = \"token\"", ""),
        ("token_file = \"none\"", "cannot be read: No such file"),
        ("token_file = \"open\"", "every user of this machine may read"),
        ("ca = \"token\"", "holds no certificate of an authority"),
    ] {
        let text = format!("api = \"ndjson\"\nurl = \"https://a.example\"\n{keys}");
        let checked = settings(directory.path(), &text).0.unwrap().check();
        let told = checked.err().map_or_else(String::new, |mistake| mistake.to_string());
        assert!(told.contains(expected) && told.is_empty() == expected.is_empty(), "{keys}: {told}");
        assert!(!told.contains("s3cret") && (told.is_empty() || told.starts_with("outgate.toml:3:")), "{told}");
    }
}

#[test]
fn an_address_has_its_path_and_its_query() {
    for (text, expected) in [
        ("api = \"splunk\"\nurl = \"https://a.example:8088\"", "/services/collector/event"),
        ("api = \"splunk\"\nurl = \"https://a.example/splunk/\"", "/splunk/services/collector/event"),
        ("api = \"ndjson\"\nurl = \"https://a.example/take?x=1\"", "/take?x=1"),
        ("api = \"ndjson\"\nurl = \"https://[2001:db8::1]:9000\"", "/"),
        (
            "api = \"elasticsearch\"\nurl = \"https://a.example\"\nindex = \"logs-outgate.query-default\"",
            "/logs-outgate.query-default/_bulk?filter_path=errors,items.*.status,items.*.error.type,items.*.error.reason",
        ),
        (
            "api = \"elasticsearch\"\nurl = \"https://a.example/insert?pipeline=p\"",
            "/insert/_bulk?pipeline=p&filter_path=errors,items.*.status,items.*.error.type,items.*.error.reason",
        ),
    ] {
        let (settings, mistakes) = settings(Path::new(""), text);
        assert_eq!(mistakes, [""; 0], "{text}");
        assert_eq!(settings.unwrap().target, expected);
    }
}
