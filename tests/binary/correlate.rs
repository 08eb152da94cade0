//! `outgate correlate`: flow logs of other systems joined with a query log.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// A directory of its own.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("outgate-correlate-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn correlate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_outgate")).arg("correlate").args(arguments).output().unwrap()
}

/// The records on the standard output, and each as `client address service class detail name`.
fn records(output: &Output) -> (Vec<Value>, Vec<String>) {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let word = |record: &Value, key: &str| record[key].as_str().unwrap_or("-").to_owned();
    let shown = records.iter().map(|record| {
        ["client", "address", "service", "class", "detail", "qname"].map(|key| word(record, key)).join(" ")
    });
    let shown = shown.collect();
    (records, shown)
}

/// Seconds from 2026-11-21T03:00:00Z, which is 1795230000.
fn query(second: u64, client: &str, qname: &str, address: &str) -> String {
    let time = |second: u64| format!("2026-11-21T03:{:02}:{:02}.000000Z", second / 60, second % 60);
    format!(
        r#"{{"v":1,"type":"query","id":"000000000000000a-1-{second}","ts":"{}","node":"n","client":"{client}","port":5,"transport":"udp","segment":"a","tags":{{"team":"x"}},"qname":"{qname}","qtype":"A","verdict":"allow","reason":"rule","rule":"web","rcode":"NOERROR","answers":[{{"name":"{qname}","type":"A","ttl":60,"data":"{address}"}}],"grant":{{"ports":["tcp/443"],"until":"{}"}},"latency_us":42}}"#,
        time(second),
        time(second + 300)
    )
}

/// A node's log from its first line on: a look-up each at 100 s and 200 s, of two clients.
fn log() -> String {
    [
        r#"{"v":1,"type":"log","id":"000000000000000a-0-1","ts":"2026-11-21T03:00:00.000000Z","node":"n","op":"open","why":"start","version":"1","boot":"000000000000000a"}"#.to_owned(),
        query(100, "10.0.1.5", "a.example", "198.51.100.7"),
        query(200, "10.0.1.6", "b.example", "198.51.100.8"),
        r#"{"v":1,"type":"query","id":"000000000000000a-1-201","ts":"2026-11-21T03:03:21.000000Z","node":"n","client":"10.0.1.5","port":5,"transport":"udp","segment":"a","qname":"b.example","qtype":"A","verdict":"deny","reason":"default","latency_us":42}"#.to_owned(),
        r#"{"v":1,"type":"log","id":"000000000000000a-0-2","ts":"2026-11-21T03:30:00.000000Z","node":"n","op":"heartbeat","sequences":{}}"#.to_owned(),
    ]
    .join("\n")
        + "\n"
}

#[test]
fn connections_of_zeek_are_judged_in_any_order_and_packed() {
    let place = Place::new("zeek");
    let log = place.write("query.jsonl", log());
    let heading = "#separator \\x09\n#unset_field\t-\n#path\tconn\n#fields\tts\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tduration\torig_ip_bytes\tresp_ip_bytes\tconn_state\thistory\n";
    let row = |at: &str, client: &str, address: &str, port: u16| {
        format!("{at}\t{client}\t40000\t{address}\t{port}\ttcp\t2.5\t1000\t9000\tSF\tShADadFf\n")
    };
    let rows = [
        row("1795230542.0", "10.0.1.5", "198.51.100.7", 443),
        row("1795230101.5", "10.0.1.5", "198.51.100.7", 443),
        row("1795230210.0", "10.0.1.5", "198.51.100.8", 443),
        row("1795230210.5", "10.0.1.5", "203.0.113.9", 443),
        row("1795230211.0", "10.0.1.6", "198.51.100.8", 22),
        row("1795230212.0", "10.0.9.9", "198.51.100.8", 443),
        "damaged\n".to_owned(),
        row("1795240000.0", "10.0.1.5", "198.51.100.7", 443),
    ];
    let text = format!("{heading}{}", rows.concat());
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, text.as_bytes()).unwrap();
    let plain = place.write("conn.log", &text);
    let packed = place.write("conn.log.gz", packed.finish().unwrap());
    let output = correlate(&["--log", &log, "--flows", &plain]);
    let (records, shown) = records(&output);
    assert_eq!(
        shown,
        [
            "10.0.1.5 198.51.100.7 tcp/443 exact - a.example",
            "10.0.1.5 198.51.100.8 tcp/443 none denied_name b.example",
            "10.0.1.5 203.0.113.9 tcp/443 none unknown_address -",
            "10.0.1.6 198.51.100.8 tcp/22 none other_service b.example",
            "10.0.9.9 198.51.100.8 tcp/443 unknown nat -",
            "10.0.1.5 198.51.100.7 tcp/443 stale cached a.example",
            "10.0.1.5 198.51.100.7 tcp/443 unknown log_gap -",
        ]
    );
    assert_eq!(records[0]["query"], "000000000000000a-1-100");
    assert_eq!((&records[0]["rule"], &records[0]["segment"]), (&"web".into(), &"a".into()));
    assert_eq!((&records[0]["bytes_out"], &records[0]["duration_us"]), (&1000.into(), &2_500_000.into()));
    assert_eq!(records[5]["why"], "connected 142 s after its grant ended");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("7 flows of 70000 bytes") && told.contains("14.2 % of the bytes are explained"), "{told}");
    assert!(told.contains("1 lines are none of zeek; the first is line 11"), "{told}");
    // Read again, packed: the same records.
    assert_eq!(correlate(&["--log", &log, "--flows", &packed]).stdout, output.stdout);
    let summary = correlate(&["--log", &log, "--flows", &packed, "--json"]).stdout;
    let summary: Value = serde_json::from_slice(&summary).unwrap();
    assert_eq!((&summary["flows"], &summary["explained_bytes"]), (&7.into(), &10_000.into()));
}

#[test]
fn both_directions_of_a_flow_log_are_one_flow() {
    let place = Place::new("vpc");
    let log = place.write("query.jsonl", log());
    let row = |eni: &str, from: &str, to: &str, bytes: u32, start: u64, action: &str, flags: u32| {
        format!("5 {eni} {from} {to} 6 8 {bytes} {start} {} {action} {flags} OK\n", start + 55)
    };
    let heading = "version interface-id pkt-srcaddr srcport pkt-dstaddr dstport protocol packets bytes start end action tcp-flags log-status\n";
    let (client, server) = ("10.0.1.5 40000", "198.51.100.7 443");
    let rows = [
        row("eni-a", client, server, 100, 1_795_230_060, "ACCEPT", 2),
        row("eni-a", server, client, 900, 1_795_230_060, "ACCEPT", 18),
        // The same at the NAT gateway's interface, and the next window of it.
        row("eni-nat", client, server, 100, 1_795_230_061, "ACCEPT", 2),
        row("eni-a", client, server, 50, 1_795_230_900, "ACCEPT", 0),
        row("eni-a", "10.0.1.5 40001", "203.0.113.9 443", 60, 1_795_230_120, "REJECT", 2),
        row("eni-a", "10.0.1.5 40002", "203.0.113.9 443", 60, 1_795_230_130, "ACCEPT", 0),
        "5 eni-a - - - - - - - 1795230140 1795230150 - - SKIPDATA\n".to_owned(),
    ];
    let flows = place.write("flows.log", format!("{heading}{}", rows.concat()));
    let output = correlate(&["--log", &log, "--flows", &flows]);
    let (records, shown) = records(&output);
    assert_eq!(
        shown,
        [
            "10.0.1.5 198.51.100.7 tcp/443 exact - a.example",
            "10.0.1.5 203.0.113.9 tcp/443 unknown events_lost -",
            "10.0.1.5 203.0.113.9 tcp/443 unknown start -",
            "10.0.1.5 198.51.100.7 tcp/443 exact - a.example",
        ]
    );
    assert_eq!((&records[0]["bytes_out"], &records[0]["bytes_in"]), (&100.into(), &900.into()));
    assert_eq!((&records[3]["started"], &records[3]["why"]), (&false.into(), &"as it was judged when it began".into()));
    assert_eq!(records[1]["action"], "deny");
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 windows of which flows are missing"));
}

#[test]
fn two_nodes_and_events_of_conntrack() {
    let place = Place::new("conntrack");
    let (first, second) =
        (place.write("one.jsonl", log()), place.write("two.jsonl", log().replace("198.51.100.7", "198.51.100.77")));
    let events = "[1795230150.5]\t[NEW] tcp 6 120 SYN_SENT src=10.0.1.5 dst=198.51.100.77 sport=1 dport=443 [UNREPLIED] src=198.51.100.77 dst=9.9.9.9 sport=443 dport=1 id=1\n\
                  [1795230151.5]\t[NEW] tcp 6 120 SYN_SENT src=10.0.1.5 dst=198.51.100.7 sport=2 dport=443 [UNREPLIED] src=198.51.100.7 dst=9.9.9.9 sport=443 dport=2 id=2\n\
                  [1795230750.5]\t[DESTROY] tcp 6 src=10.0.1.5 dst=198.51.100.77 sport=1 dport=443 packets=1 bytes=2 src=198.51.100.77 dst=9.9.9.9 sport=443 dport=1 packets=3 bytes=4 id=1\n";
    let flows = place.write("events", events);
    let (told, shown) = records(&correlate(&["--log", &first, "--log", &second, "--flows", &flows]));
    assert_eq!(
        shown,
        ["10.0.1.5 198.51.100.77 tcp/443 exact - a.example", "10.0.1.5 198.51.100.7 tcp/443 exact - a.example"]
    );
    assert_eq!((&told[0]["bytes_in"], &told[0]["duration_us"]), (&4.into(), &600_000_000.into()));
    assert_eq!(told[0]["outlived_us"], 350_500_000);
}

/// One connection of Zeek from 10.0.1.5 to 203.0.113.9 at each of these seconds, and what it is classed as.
fn classed(place: &Place, log: &str, seconds: &[u64]) -> Vec<String> {
    let heading = "#fields\tts\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\n";
    let rows: String = seconds
        .iter()
        .map(|second| format!("{}.0\t10.0.1.5\t40000\t203.0.113.9\t443\ttcp\n", 1_795_230_000 + second))
        .collect();
    let flows = place.write("conn.log", format!("{heading}{rows}"));
    let (_, shown) = records(&correlate(&["--log", log, "--flows", &flows, "--lookback", "5s"]));
    shown.iter().map(|shown| shown.split(' ').skip(3).take(2).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn what_the_log_lacks_is_unknown() {
    let place = Place::new("lacks");
    let time = |second: u64| format!("2026-11-21T03:{:02}:{:02}.000000Z", second / 60, second % 60);
    let (none, gap) = ("none unknown_address", "unknown log_gap");
    let seconds = [140, 160, 190, 240];
    let whole = log();
    let log = place.write("query.jsonl", &whole);
    assert_eq!(classed(&place, &log, &seconds), [none; 4]);
    // A line that is no record, between those of 100 s and 200 s.
    let (before, after) =
        whole.split_at(whole.find("\n{\"v\":1,\"type\":\"query\",\"id\":\"000000000000000a-1-200").unwrap());
    place.write("query.jsonl", format!("{before}\nnoise{after}"));
    assert_eq!(classed(&place, &log, &seconds), [gap, gap, gap, none]);
    // Another thread wrote nothing since 150 s, and says at 230 s what it could not write; the first one went on.
    let idle = query(150, "10.0.1.6", "b.example", "198.51.100.8").replace("a-1-150", "a-2-1");
    let lost = format!(
        r#"{{"v":1,"type":"log","id":"000000000000000a-2-3","ts":"{}","node":"n","op":"gap","lost":1,"ranges":[[2,2]],"why":"no space"}}"#,
        time(230)
    );
    let (first, rest) = whole.split_at(before.len() + 1);
    let (mut middle, mut end) = rest.split_at(rest.rfind("\n{").unwrap() + 1);
    middle = middle.trim_end();
    end = end.trim_end();
    place.write("query.jsonl", format!("{first}{idle}\n{middle}\n{lost}\n{end}\n"));
    assert_eq!(classed(&place, &log, &seconds), [none, gap, gap, none]);
    // The machine lost power behind 150 s, and was there again at 230 s.
    let opened = format!(
        r#"{{"v":1,"type":"log","id":"000000000000000b-0-1","ts":"{}","node":"n","op":"open","why":"start","version":"1","boot":"000000000000000b","previous_boot":"000000000000000a","machine":"other"}}"#,
        time(230)
    );
    let end = end.replace("a-0-2", "b-0-2");
    place.write("query.jsonl", format!("{first}{idle}\n{opened}\n{end}\n"));
    assert_eq!(classed(&place, &log, &seconds), [none, gap, gap, none]);
    // More addresses than the record of 100 s lists, open until 400 s.
    place.write(
        "query.jsonl",
        whole.replacen(
            "}],\"grant\":{\"ports\":[\"tcp/443\"],\"until\":\"2026-11-21T03:06:40.000000Z\"}",
            "}],\"answers_omitted\":2",
            1,
        ),
    );
    assert_eq!(classed(&place, &log, &[110, 140, 190]), ["unknown unlisted", "unknown unlisted", none]);
}

#[test]
fn a_reply_that_is_refused_does_not_unmake_its_flow() {
    let place = Place::new("reply");
    let log = place.write("query.jsonl", log());
    let heading = "version interface-id pkt-srcaddr srcport pkt-dstaddr dstport protocol packets bytes start end action tcp-flags log-status\n";
    let row = |eni: &str, client: u16, back: bool, start: u64, action: &str, flags: u32| {
        let (client, server) = (format!("10.0.1.5 {client}"), "198.51.100.7 443".to_owned());
        let (from, to) = if back { (server, client) } else { (client, server) };
        format!("5 {eni} {from} {to} 6 8 100 {} {} {action} {flags} OK\n", 1_795_230_000 + start, 1_795_230_055 + start)
    };
    let rows = [
        // Whichever of both is read first.
        row("eni-a", 40000, false, 110, "ACCEPT", 2),
        row("eni-a", 40000, true, 111, "REJECT", 18),
        row("eni-a", 40001, true, 110, "REJECT", 18),
        row("eni-a", 40001, false, 111, "ACCEPT", 2),
        // Refused on its way out.
        row("eni-a", 40002, false, 110, "REJECT", 2),
        row("eni-a", 40003, false, 110, "ACCEPT", 2),
        row("eni-nat", 40003, false, 111, "REJECT", 2),
        // The same ends hours later, whose SYN nobody saw.
        row("eni-a", 40000, false, 900, "ACCEPT", 0),
        row("eni-a", 40000, false, 12_000, "ACCEPT", 0),
    ];
    let flows = place.write("flows.log", format!("{heading}{}", rows.concat()));
    let (records, _) = records(&correlate(&["--log", &log, "--flows", &flows]));
    let mut shown: Vec<String> = records
        .iter()
        .map(|record| {
            let word = |key: &str| record[key].as_str().unwrap_or("-").to_owned();
            format!("{} {} {} {} {}", record["port"], word("action"), word("class"), word("detail"), record["bytes_in"])
        })
        .collect();
    let late = shown.split_off(4);
    shown.sort();
    assert_eq!(
        shown,
        ["40000 allow exact - null", "40001 allow exact - null", "40002 deny exact - null", "40003 deny exact - null"]
    );
    assert_eq!(late, ["40000 allow exact - null", "40000 allow unknown start null"]);
}

#[test]
fn events_without_a_time_are_unknown_and_an_id_is_given_twice() {
    let place = Place::new("untimed");
    let log = place.write("query.jsonl", log());
    let new = |at: &str, port: u32| {
        format!(
            "{at}\t[NEW] tcp 6 120 SYN_SENT src=10.0.1.5 dst=198.51.100.7 sport={port} dport=443 [UNREPLIED] src=198.51.100.7 dst=9.9.9.9 sport=443 dport={port} id=7\n"
        )
    };
    let end = |at: &str, port: u32| {
        format!(
            "{at}\t[DESTROY] tcp 6 src=10.0.1.5 dst=198.51.100.7 sport={port} dport=443 packets=1 bytes=2 src=198.51.100.7 dst=9.9.9.9 sport=443 dport={port} packets=3 bytes=4 id=7\n"
        )
    };
    let text = [new("", 1), end("", 1)].concat();
    let flows = place.write("events", text);
    let log_of_now = place.write("now.jsonl", {
        // What is told when the file was written explains nothing of it.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let stamp = |second: u64| {
            let text =
                Command::new("date").args(["-u", "-d", &format!("@{second}"), "+%FT%T.000000Z"]).output().unwrap();
            String::from_utf8(text.stdout).unwrap().trim().to_owned()
        };
        let told = query(100, "10.0.1.5", "a.example", "198.51.100.7");
        told.replace("2026-11-21T03:01:40.000000Z", &stamp(now - 100))
            .replace("2026-11-21T03:06:40.000000Z", &stamp(now + 100))
            + "\n"
    });
    for log in [&log, &log_of_now] {
        let output = correlate(&["--log", log, "--flows", &flows, "--resolver", "198.51.100.9"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let (records, shown) = records(&output);
        assert_eq!(shown, ["10.0.1.5 198.51.100.7 tcp/443 unknown start -"]);
        assert_eq!(records[0]["why"], "its event has no time; watch with conntrack -E -o timestamp,id");
        assert!(told.contains("1 events of conntrack have no time, and their flows are unknown"), "{told}");
    }
    // The kernel gave the id of a connection to another one before its end was told.
    let text = [new("[1795230110.0]", 1), new("[1795230120.0]", 2), end("[1795230130.0]", 1), end("[1795230140.0]", 2)];
    let flows = place.write("events", text.concat());
    let (records, _) = records(&correlate(&["--log", &log, "--flows", &flows]));
    let shown: Vec<_> = records.iter().map(|record| (&record["port"], &record["duration_us"])).collect();
    assert_eq!(shown, [(&1.into(), &20_000_000.into()), (&2.into(), &20_000_000.into())]);
}

#[test]
fn a_configuration_says_where_flows_come_from_and_what_is_open() {
    let place = Place::new("sources");
    let log = place.write("query.jsonl", log());
    std::fs::create_dir_all(place.0.join("policy")).unwrap();
    place.write(
        "policy/a.toml",
        "[[segment]]\nname = \"a\"\nclients = [\"10.0.1.0/24\"]\nconnects_from = [\"10.0.2.1\"]\n\
         [[rule]]\nid = \"net\"\naction = \"allow\"\nsegments = [\"a\"]\nnetworks = [\"203.0.113.0/28\"]\nports = [\"tcp/443\"]\n",
    );
    let config = place.write(
        "outgate.toml",
        "node = \"n\"\n[listen]\ndns = [\"127.0.0.1:5300\"]\n[policy]\ndirectory = \"policy\"\n[[upstream]]\nname = \"u\"\nservers = [\"udp://192.0.2.53:53\"]\n\
         [[firewall]]\nname = \"nft\"\nkind = \"nftables\"\nhook = \"forward\"\ninside = [\"eth1\"]\nungated = [\"203.0.113.64/28\"]\n",
    );
    let heading = "#fields\tts\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\n";
    let row = |client: &str, address: &str| format!("1795230210.0\t{client}\t40000\t{address}\t443\ttcp\n");
    let rows = [
        row("10.0.2.1", "203.0.113.1"),
        row("10.0.1.5", "203.0.113.1"),
        row("10.0.2.1", "203.0.113.65"),
        row("10.0.3.1", "203.0.113.1"),
    ];
    let flows = place.write("conn.log", format!("{heading}{}", rows.concat()));
    let (_, mut shown) = records(&correlate(&["-c", &config, "--log", &log, "--flows", &flows]));
    shown.sort();
    // A client whose flows come from a proxy has none of its own.
    assert_eq!(
        shown,
        [
            "10.0.1.5 203.0.113.1 tcp/443 static - -",
            "10.0.2.1 203.0.113.1 tcp/443 static - -",
            "10.0.2.1 203.0.113.65 tcp/443 static - -",
            "10.0.3.1 203.0.113.1 tcp/443 unknown nat -",
        ]
    );
}

#[test]
fn what_cannot_be_read_is_said() {
    let place = Place::new("errors");
    let log = place.write("query.jsonl", log());
    let noise = place.write("noise", "hello\n");
    let rows: [(&[&str], i32, &str); 5] = [
        (&["--log", &log, "--flows", &noise], 1, "its first line is of no flow log that is known"),
        (&["--log", &log, "--flows", "/nowhere"], 1, "/nowhere: No such file"),
        (&["--flows", &noise], 2, "name the query log with --log"),
        (&["--log", &log, "--flows", &noise, "--fields", "start"], 2, "lack pkt-srcaddr or srcaddr"),
        (&["--log", "/nowhere", "--flows", &log, "--format", "zeek"], 1, "/nowhere"),
    ];
    for (arguments, code, text) in rows {
        let output = correlate(arguments);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.contains(text), "{told}");
    }
}
