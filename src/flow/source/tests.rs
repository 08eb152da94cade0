use proptest::prelude::*;

use super::*;

/// One line of a source that is new, as text: when, from where, to where, how much; or what else it is.
fn shown(line: &Line) -> String {
    let Line::Flow(seen) = line else { return format!("{line:?}") };
    let end = seen.end.map_or_else(|| "-".to_owned(), |end| (end.0 - seen.at.0).to_string());
    let port = seen.port.map(|port| format!(":{port}")).unwrap_or_default();
    let numbers = [seen.bytes_out, seen.bytes_in, seen.packets_out, seen.packets_in];
    let numbers: Vec<_> =
        numbers.iter().map(|number| number.map_or_else(|| "-".to_owned(), |n| n.to_string())).collect();
    format!(
        "{} +{end} {}{port} {} {} {:?} {}{}{}",
        seen.at.0,
        seen.client,
        seen.address,
        seen.carrier,
        seen.direction,
        numbers.join("/"),
        if seen.denied { " denied" } else { "" },
        if seen.started { " started" } else { "" },
    )
}

#[track_caller]
fn assert_reads(origin: Origin, fields: Option<&str>, rows: &[(&str, &str)]) {
    let mut source = Source::new(origin, fields, Wall(1_700_000_000_000_000)).unwrap();
    for (line, expected) in rows {
        assert_eq!(shown(&source.read(line)), *expected, "{line}");
    }
}

/// The examples of the Amazon VPC user guide, "Flow log record examples".
#[test]
fn reads_the_flow_logs_of_a_vpc() {
    assert_reads(
        Origin::Vpc,
        None,
        &[
            (
                "2 123456789010 eni-1235b8ca123456789 172.31.16.139 172.31.16.21 20641 22 6 20 4249 1418530010 1418530070 ACCEPT OK",
                "1418530010000000 +60000000 172.31.16.139:20641 172.31.16.21 tcp/22 Forth 4249/-/20/-",
            ),
            (
                "2 123456789010 eni-1235b8ca123456789 172.31.9.69 172.31.9.12 49761 3389 6 20 4249 1418530010 1418530070 REJECT OK",
                "1418530010000000 +60000000 172.31.9.69:49761 172.31.9.12 tcp/3389 Forth 4249/-/20/- denied",
            ),
            ("2 123456789010 eni-1235b8ca123456789 - - - - - - - 1431280876 1431280934 - NODATA", "Nothing"),
            (
                "2 123456789010 eni-11111111aaaaaaaaa - - - - - - - 1431280876 1431280934 - SKIPDATA",
                "Lost(Wall(1431280876000000), Wall(1431280934000000))",
            ),
            (
                "2 123456789010 eni-1235b8ca123456789 203.0.113.12 172.31.16.139 0 0 1 4 336 1432917027 1432917142 ACCEPT OK",
                "1432917027000000 +115000000 203.0.113.12 172.31.16.139 icmp Unclear 336/-/4/-",
            ),
            (
                "2 123456789010 eni-1235b8ca123456789 2001:db8:1234:a100:8d6e:3477:df66:f105 2001:db8:1234:a102:3304:8879:34cf:4071 34892 22 6 54 8855 1477913708 1477913820 ACCEPT OK",
                "1477913708000000 +112000000 2001:db8:1234:a100:8d6e:3477:df66:f105:34892 2001:db8:1234:a102:3304:8879:34cf:4071 tcp/22 Forth 8855/-/54/-",
            ),
            // A column too few, one too many, a word that is none.
            (
                "2 123456789010 eni-1235b8ca123456789 172.31.9.69 172.31.9.12 49761 3389 6 20 4249 1418530010 1418530070 REJECT",
                "Damaged",
            ),
            ("2 1 eni-1 172.31.9.69 172.31.9.12 49761 3389 6 20 4249 1418530010 1418530070 REJECT OK OK", "Damaged"),
            ("2 1 eni-1 172.31.9.69 172.31.9.12 49761 3389 6 20 4249 1418530010 1418530070 DROP OK", "Damaged"),
            ("2 1 eni-1 172.31.9.69 172.31.9.12 99999 3389 6 20 4249 1418530010 1418530070 ACCEPT OK", "Damaged"),
        ],
    );
}

/// The same, "TCP flag sequence" and "Traffic through a NAT gateway", with more columns.
#[test]
fn a_heading_says_the_columns_and_flags_who_began() {
    let heading = "version vpc-id interface-id type srcaddr dstaddr srcport dstport pkt-srcaddr pkt-dstaddr protocol bytes packets start end action tcp-flags log-status flow-direction";
    let row = |from: &str, to: &str, packet: &str, flags: &str, direction: &str| {
        format!(
            "5 vpc-1 eni-1235b8ca123456789 IPv4 {from} {to} {packet} 6 568 8 1566848875 1566848933 ACCEPT {flags} OK {direction}"
        )
    };
    let rows = [
        // A SYN, its answer, and what comes in later windows.
        (
            row("52.213.180.42", "10.0.0.62", "43416 5001 52.213.180.42 10.0.0.62", "2", "ingress"),
            "52.213.180.42:43416 10.0.0.62 tcp/5001 Forth 568/-/8/- started",
        ),
        (
            row("10.0.0.62", "52.213.180.42", "5001 43416 10.0.0.62 52.213.180.42", "18", "egress"),
            "10.0.0.62:5001 52.213.180.42 tcp/43416 Back 568/-/8/- started",
        ),
        (
            row("10.0.0.62", "52.213.180.42", "443 43416 10.0.0.62 52.213.180.42", "0", "egress"),
            "10.0.0.62:443 52.213.180.42 tcp/43416 Back 568/-/8/-",
        ),
        // Both ports are nobody's: the client is at the interface.
        (
            row("10.0.0.62", "52.213.180.42", "40000 43416 10.0.0.62 52.213.180.42", "0", "egress"),
            "10.0.0.62:40000 52.213.180.42 tcp/43416 Forth 568/-/8/-",
        ),
        (
            row("52.213.180.42", "10.0.0.62", "40000 43416 52.213.180.42 10.0.0.62", "1", "ingress"),
            "52.213.180.42:40000 10.0.0.62 tcp/43416 Back 568/-/8/-",
        ),
        // A NAT gateway's interface: what counts is what the packet says.
        (
            row("10.0.1.5", "10.0.0.220", "50000 443 10.0.1.5 203.0.113.5", "3", "ingress"),
            "10.0.1.5:50000 203.0.113.5 tcp/443 Forth 568/-/8/- started",
        ),
        // No `pkt-…` in this record.
        (
            row("10.0.1.5", "203.0.113.5", "50000 443 - -", "2", "egress"),
            "10.0.1.5:50000 203.0.113.5 tcp/443 Forth 568/-/8/- started",
        ),
    ];
    for with in [heading.to_owned(), heading.replace(' ', ","), heading.replace('-', "_")] {
        let mut source = Source::new(Origin::Vpc, None, Wall(0)).unwrap();
        assert_eq!(source.read(&with), Line::Nothing);
        for (line, expected) in &rows {
            let expected = format!("1566848875000000 +58000000 {expected}");
            assert_eq!(shown(&source.read(line)), expected, "{line}");
            assert_eq!(shown(&source.read(&line.replace(' ', ","))), expected, "{line}");
        }
    }
    let format = heading.split(' ').map(|name| format!("${{{name}}}")).collect::<Vec<_>>().join(" ");
    assert_reads(Origin::Vpc, Some(&format), &[(&rows[5].0, &format!("1566848875000000 +58000000 {}", rows[5].1))]);
    let error = Source::new(Origin::Vpc, Some("srcaddr dstaddr start"), Wall(0)).unwrap_err();
    assert_eq!(error, "the fields of the flow log lack protocol: without it no flow can be judged");
    assert_eq!(shown(&Source::new(Origin::Vpc, None, Wall(0)).unwrap().read("start end srcaddr dstaddr")), "Damaged");
}

#[test]
fn what_comes_back_is_the_same_flow() {
    let mut source = Source::new(Origin::Vpc, None, Wall(0)).unwrap();
    let Line::Flow(seen) =
        source.read("2 1 eni-1 203.0.113.5 10.0.0.1 443 40000 6 8 4249 1418530010 1418530070 ACCEPT OK")
    else {
        panic!("no flow");
    };
    assert_eq!(seen.direction, Direction::Back);
    let back = seen.reversed();
    assert_eq!(
        shown(&Line::Flow(back)),
        "1418530010000000 +60000000 10.0.0.1:40000 203.0.113.5 tcp/443 Forth -/4249/-/8"
    );
    assert_eq!(back.reversed(), seen);
}

/// docs.zeek.org, "Zeek Log Formats and Inspection", and what Zeek writes where it is asked for JSON.
#[test]
fn reads_connections_of_zeek() {
    assert_reads(
        Origin::Zeek,
        None,
        &[
            ("#separator \\x09", "Nothing"),
            ("#set_separator\t,", "Nothing"),
            ("#empty_field\t(empty)", "Nothing"),
            ("#unset_field\t-", "Nothing"),
            ("#path\tconn", "Nothing"),
            (
                "#fields\tts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tservice\tduration\torig_bytes\tresp_bytes\tconn_state\tlocal_orig\tlocal_resp\tmissed_bytes\thistory\torig_pkts\torig_ip_bytes\tresp_pkts\tresp_ip_bytes\ttunnel_parents",
                "Nothing",
            ),
            (
                "#types\ttime\tstring\taddr\tport\taddr\tport\tenum\tstring\tinterval\tcount\tcount\tstring\tbool\tbool\tcount\tstring\tcount\tcount\tcount\tcount\tset[string]",
                "Nothing",
            ),
            (
                "1591367999.430166\tC5bLoe2Mvxqhawzqqd\t192.168.4.76\t46378\t31.3.245.133\t80\ttcp\thttp\t0.254115\t77\t295\tSF\t-\t-\t0\tShADadFf\t6\t397\t4\t511\t-",
                "1591367999430166 +254115 192.168.4.76:46378 31.3.245.133 tcp/80 Forth 397/511/6/4 started",
            ),
            // No SYN was seen; nothing was counted; not answered.
            (
                "1591367999.5\tC5\t192.168.4.76\t46378\t31.3.245.133\t80\ttcp\t-\t-\t-\t-\tOTH\t-\t-\t0\tCc\t0\t0\t0\t0\t-",
                "1591367999500000 +- 192.168.4.76:46378 31.3.245.133 tcp/80 Forth 0/0/0/0",
            ),
            (
                "1591367999.5\tC5\t192.168.4.76\t46378\t31.3.245.133\t80\ttcp\t-\t-\t-\t-\tSF\t-\t-\t0\tDadA\t-\t-\t-\t-\t-",
                "1591367999500000 +- 192.168.4.76:46378 31.3.245.133 tcp/80 Forth -/-/-/-",
            ),
            (
                "1591367999.5\tC5\tfe80::1\t8\tff02::1\t0\ticmp\t-\t-\t-\t-\tOTH\t-\t-\t0\t-\t1\t64\t0\t0\t-",
                "1591367999500000 +- fe80::1 ff02::1 icmp Forth 64/0/1/0 started",
            ),
            ("1591367999.5\tC5\t192.168.4.76\t46378", "Damaged"),
            (
                r#"{"ts":1591367999.305988,"uid":"CMdzit1AMNsmfAIiQc","id.orig_h":"192.168.4.76","id.orig_p":36844,"id.resp_h":"192.168.4.1","id.resp_p":53,"proto":"udp","service":"dns","duration":0.06685185432434082,"orig_bytes":62,"resp_bytes":141,"conn_state":"SF","missed_bytes":0,"history":"Dd","orig_pkts":2,"orig_ip_bytes":118,"resp_pkts":2,"resp_ip_bytes":197}"#,
                "1591367999305988 +66851 192.168.4.76:36844 192.168.4.1 udp/53 Forth 118/197/2/2 started",
            ),
            (
                r#"{"ts":"2019-03-14T23:59:00.699642Z","id_orig_h":"192.168.4.18","id_orig_p":123,"id_resp_h":"173.230.144.109","id_resp_p":123,"proto":"udp"}"#,
                "1552607940699642 +- 192.168.4.18:123 173.230.144.109 udp/123 Forth -/-/-/- started",
            ),
            (r#"{"ts":1591367999.3,"proto":"tcp"}"#, "Damaged"),
            ("{", "Damaged"),
            ("#path\tdns", "Damaged"),
        ],
    );
    assert_reads(Origin::Zeek, None, &[("1591367999.5\tC5\t192.168.4.76", "Damaged")]);
}

/// conntrack(8), events with time stamps and ids, and lists.
#[test]
fn reads_events_and_lists_of_conntrack() {
    let mut source = Source::new(Origin::Conntrack, None, Wall(1_700_000_000_000_000)).unwrap();
    let rows = [
        (
            "[1656942948.100000        ]\t    [NEW] tcp      6 120 SYN_SENT src=10.0.0.5 dst=142.250.72.14 sport=48388 dport=443 [UNREPLIED] src=142.250.72.14 dst=203.0.113.1 sport=443 dport=48388 id=3735928559",
            "Nothing",
        ),
        (
            "[1656942948.200000        ]\t [UPDATE] tcp      6 60 SYN_RECV src=10.0.0.5 dst=142.250.72.14 sport=48388 dport=443 src=142.250.72.14 dst=203.0.113.1 sport=443 dport=48388 id=3735928559",
            "Nothing",
        ),
        (
            "[1656942980.634473        ]\t    [DESTROY] tcp      6 src=10.0.0.5 dst=142.250.72.14 sport=48388 dport=443 packets=18 bytes=2214 src=142.250.72.14 dst=203.0.113.1 sport=443 dport=48388 packets=16 bytes=8102 [ASSURED] delta-time=32 id=3735928559",
            "1656942948100000 +32534473 10.0.0.5:48388 142.250.72.14 tcp/443 Forth 2214/8102/18/16 started",
        ),
        // Its beginning was not seen, but counted; and neither.
        (
            "[1656942980.634473]\t[DESTROY] udp      17 src=10.0.0.5 dst=1.1.1.1 sport=48388 dport=53 packets=1 bytes=60 [UNREPLIED] src=1.1.1.1 dst=10.0.0.5 sport=53 dport=48388 packets=0 bytes=0 delta-time=30 id=7",
            "1656942950634473 +30000000 10.0.0.5:48388 1.1.1.1 udp/53 Forth 60/0/1/0 started",
        ),
        (
            "[1656942980.634473] [DESTROY] tcp      6 src=10.0.0.5 dst=1.1.1.1 sport=4 dport=53 src=1.1.1.1 dst=10.0.0.5 sport=53 dport=4 id=8",
            "1656942980634473 +0 10.0.0.5:4 1.1.1.1 tcp/53 Forth -/-/-/-",
        ),
        // An echo has an id of its own.
        (
            "[1656942980.634473]\t[DESTROY] icmp     1 src=10.0.0.5 dst=1.1.1.1 type=8 code=0 id=7 packets=1 bytes=84 src=1.1.1.1 dst=10.0.0.5 type=0 code=0 id=7 packets=1 bytes=84 id=9",
            "1656942980634473 +0 10.0.0.5 1.1.1.1 icmp Forth 84/84/1/1",
        ),
        // A list has no times: all that is known is that it was there.
        (
            "tcp      6 431999 ESTABLISHED src=10.0.0.5 dst=198.51.100.7 sport=40000 dport=443 packets=3 bytes=300 src=198.51.100.7 dst=10.0.0.5 sport=443 dport=40000 packets=2 bytes=200 [ASSURED] mark=0 use=1",
            "1700000000000000 +- 10.0.0.5:40000 198.51.100.7 tcp/443 Forth 300/200/3/2",
        ),
        (
            "ipv4     2 tcp      6 431999 ESTABLISHED src=10.0.0.5 dst=198.51.100.7 sport=40000 dport=443 src=198.51.100.7 dst=10.0.0.5 sport=443 dport=40000 [ASSURED] delta-time=100 mark=0 use=1",
            "1699999900000000 +- 10.0.0.5:40000 198.51.100.7 tcp/443 Forth -/-/-/- started",
        ),
        (
            "unknown  47 599 src=10.0.0.5 dst=198.51.100.7 [UNREPLIED] src=198.51.100.7 dst=10.0.0.5 mark=0",
            "1700000000000000 +- 10.0.0.5 198.51.100.7 protocol/47 Forth -/-/-/-",
        ),
        ("conntrack v1.4.8 (conntrack-tools): 2 flow entries have been shown.", "Nothing"),
        ("tcp 6 src=10.0.0.5", "Damaged"),
        ("noise", "Damaged"),
    ];
    for (line, expected) in rows {
        assert_eq!(shown(&source.read(line)), expected, "{line}");
    }
    assert_eq!(source.rest(), []);
    source.read("[1656942990.1]\t[NEW] tcp 6 120 SYN_SENT src=10.0.0.5 dst=1.1.1.1 sport=9 dport=443 [UNREPLIED] src=1.1.1.1 dst=10.0.0.5 sport=443 dport=9 id=70");
    let rest: Vec<_> = source.rest().into_iter().map(|seen| shown(&Line::Flow(seen))).collect();
    assert_eq!(rest, ["1656942990100000 +- 10.0.0.5:9 1.1.1.1 tcp/443 Forth -/-/-/- started"]);
}

#[test]
fn a_format_is_told_by_its_first_line() {
    let rows = [
        (
            "2 123456789010 eni-1 172.31.16.139 172.31.16.21 20641 22 6 20 4249 1418530010 1418530070 ACCEPT OK",
            Some(Origin::Vpc),
        ),
        ("version account-id interface-id srcaddr dstaddr srcport dstport protocol start", Some(Origin::Vpc)),
        ("\n#separator \\x09\n", Some(Origin::Zeek)),
        (r#"{"ts":1,"id.orig_h":"192.0.2.1"}"#, Some(Origin::Zeek)),
        (
            "    [NEW] udp      17 30 src=192.0.2.1 dst=192.0.2.53 sport=1 dport=53 [UNREPLIED] src=",
            Some(Origin::Conntrack),
        ),
        ("hello", None),
        ("", None),
    ];
    for (begin, expected) in rows {
        assert_eq!(Source::guess(begin), expected, "{begin}");
    }
}

proptest! {
    #[test]
    fn foreign_lines_do_no_harm(
        lines in prop::collection::vec(prop_oneof![
            "\\PC{0,120}",
            "[0-9 .,:-]{0,120}",
            "(\\[[0-9.]{0,20}\\])? ?(\\[(NEW|DESTROY)\\])? (tcp 6|udp 17|icmp 1) ([a-z]{2,5}=[0-9a-f.:]{0,20} ){0,12}",
            "(#(fields|separator|unset_field|path)[\\t ])?([a-z._]{0,9}[\\t ,]){0,20}",
            "\\{(\"(ts|proto|id.orig_h|duration)\":(\"?[0-9.TZ:-]{0,30}\"?|null),?){0,5}\\}",
            "([0-9]{1,20}[ ,]){10,16}(ACCEPT|REJECT|-) (OK|NODATA|SKIPDATA)",
        ], 0..12),
    ) {
        for origin in [Origin::Vpc, Origin::Zeek, Origin::Conntrack] {
            let mut source = Source::new(origin, None, Wall(1)).unwrap();
            for line in &lines {
                if let Line::Flow(seen) = source.read(line) {
                    prop_assert_eq!(seen.reversed().reversed(), seen);
                }
                let _ = Source::guess(line);
                let _ = Source::new(Origin::Vpc, Some(line), Wall(1));
            }
            source.rest();
        }
    }
}
