//! Elements: opened, extended, shortened, closed, adopted, repaired.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use outgate::firewall::nftables::{Hook, Settings};
use outgate::firewall::{Firewall, FirewallError};
use outgate::grant::Change;
use outgate::net::{SegmentId, Service};
use outgate::policy::{Layout, SegmentLayout};
use outgate::time::{Clock, Tick};

use crate::kernel::*;

#[test]
fn elements_open_extend_shorten_and_close() {
    alone(|| {
        let layout = layout(vec![segment("office", &["192.0.2.0/24", "2001:db8::/32"], &[])]);
        let mut firewall = firewall(forward());
        assert_eq!(firewall.adopt(&layout, now()).unwrap(), []);
        let all = [
            web(1),
            element("192.0.2.1", "198.51.100.2", Service::Udp(443)),
            element("192.0.2.1", "198.51.100.2", Service::Icmp),
            element("192.0.2.1", "198.51.100.2", Service::Any),
            element("2001:db8::1", "2001:db8::2", Service::Tcp(443)),
            element("2001:db8::1", "2001:db8::2", Service::Icmp),
            element("2001:db8::1", "2001:db8::2", Service::Any),
            element("office", "198.51.100.2", Service::Tcp(443)),
            element("office", "198.51.100.2", Service::Any),
            element("office", "2001:db8::2", Service::Udp(443)),
            element("office", "2001:db8::2", Service::Any),
        ];
        assert_eq!(open(&mut firewall, &all, MINUTE), [0; 0]);
        let found = live(&mut firewall, &layout);
        assert_eq!(
            found.keys().copied().collect::<Vec<_>>(),
            BTreeMap::from(all.map(|e| (e, ()))).into_keys().collect::<Vec<_>>()
        );
        assert!(found.values().all(|left| (59.0..60.1).contains(left)), "{found:?}");

        // Some of the life goes by: poll until the kernel shows less, then ask for the same life again.
        open(&mut firewall, &all, Duration::from_secs(10));
        while live(&mut firewall, &layout).values().any(|left| *left > 9.0) {}
        open(&mut firewall, &all, Duration::from_secs(10));
        let again = live(&mut firewall, &layout);
        assert!(again.values().all(|left| *left > 9.0), "the same timeout must count from now: {again:?}");
        open(&mut firewall, &all, Duration::from_secs(600));
        assert!(live(&mut firewall, &layout).values().all(|left| *left > 590.0), "longer");
        open(&mut firewall, &all, Duration::from_secs(5));
        assert!(live(&mut firewall, &layout).values().all(|left| *left < 5.1), "shorter");

        // Of changes to one element the last counts; closing what is not there is no failure.
        let now = now();
        let close = |element| Change::Close { element };
        let changes = [
            Change::Open { element: web(1), until: now + MINUTE },
            close(web(1)),
            close(web(99)),
            close(web(2)),
            Change::Open { element: web(2), until: now + MINUTE },
            Change::Open { element: web(3), until: now },
        ];
        assert_eq!(firewall.apply(&changes, now).unwrap(), [0; 0]);
        let found = live(&mut firewall, &layout);
        assert!(!found.contains_key(&web(1)) && found.contains_key(&web(2)) && !found.contains_key(&web(3)));
        run("nft", &["list", "ruleset"]);
    });
}

#[test]
fn the_kernel_keeps_an_element_at_least_as_long_as_asked() {
    alone(|| {
        let layout = Layout::default();
        let mut firewall = firewall(forward());
        firewall.adopt(&layout, now()).unwrap();
        for life in [1, 7, 40, 999, 1000, 60_001].map(Duration::from_millis) {
            let until = now() + life;
            firewall.apply(&[Change::Open { element: web(1), until }], now()).unwrap();
            let asked = now();
            let found = firewall.adopt(&layout, asked).unwrap();
            // The list is made after `asked`; what has passed since is not in it.
            let passed = now().since(asked);
            match found.first() {
                Some((_, end)) => assert!(*end + passed >= until, "{life:?}: {end:?} + {passed:?} < {until:?}"),
                None => assert!(now() >= until, "{life:?}: gone too early"),
            }
        }
    });
}

#[test]
fn a_full_set_fails_only_what_does_not_fit() {
    alone(|| {
        let layout = Layout::default();
        let mut firewall = firewall(Settings { size: 8, ..forward() });
        firewall.adopt(&layout, now()).unwrap();
        let mut all: Vec<_> = (0..12).map(web).collect();
        all.push(element("office", "198.51.100.2", Service::Tcp(443)));
        let failed = open(&mut firewall, &all, MINUTE);
        assert_eq!(failed.len(), 4, "{failed:?}");
        assert!(!failed.contains(&12), "another set has room");
        let found = live(&mut firewall, &layout);
        let done: Vec<_> = (0..13).filter(|index| !failed.contains(index)).map(|index| all[index]).collect();
        assert!(found.len() == 9 && done.iter().all(|element| found.contains_key(element)));
        assert_eq!(open(&mut firewall, &done, MINUTE), [0; 0], "what is there can still be extended");
        if let Some(load) = firewall.load().unwrap() {
            assert_eq!((load.elements, load.capacity), (8, 8));
        }
    });
}

#[test]
fn a_successor_takes_over_table_and_elements() {
    alone(|| {
        let old = layout(vec![segment("a", &["192.0.2.0/24"], &[]), segment("b", &["198.51.100.0/24"], &[])]);
        let mut first = firewall(forward());
        first.adopt(&old, now()).unwrap();
        open(&mut first, &[web(1)], MINUTE);
        let owned = owned();
        let mut rival = firewall(forward());
        let adopted = rival.adopt(&old, now());
        if owned {
            assert_eq!(adopted, Err(FirewallError::Owned("outgate".into())));
            // No foreign hand, not even root's.
            fails("nft", &["delete", "table", "inet", "outgate"]);
            let strange = "{ 192.0.2.1 . 192.0.2.2 . tcp . 1 timeout 9s }";
            fails("nft", &["add", "element", "inet", "outgate", "host4", strange]);
            run("nft", &["flush", "ruleset"]);
            assert_eq!(first.drifted(), Ok(false));
        } else {
            assert_eq!(adopted.map(|found| found.len()), Ok(1));
            assert_eq!(first.drifted(), Ok(true), "another has written, and the first hears of it");
        }
        let before = run("nft", &["list", "table", "inet", "outgate"]);
        assert!(before.contains("segment_a") && before.contains("198.51.100.1"), "{before}");

        drop(first);
        let orphan = run("nft", &["list", "table", "inet", "outgate"]);
        assert!(orphan.contains("hook forward") && orphan.contains("198.51.100.1"), "the table outlives its owner");
        let new = layout(vec![segment("b", &["192.0.2.0/24"], &[]), segment("observed-c", &["2001:db8::/32"], &[])]);
        // The first rival is still there; it may take over now.
        let found = rival.adopt(&new, now()).unwrap();
        assert_eq!(found.iter().map(|(element, _)| *element).collect::<Vec<_>>(), [web(1)]);
        let text = run("nft", &["list", "table", "inet", "outgate"]);
        assert!(
            !text.contains("segment_a") && text.contains("segment_b") && text.contains("outgate:observe:observed-c"),
            "{text}"
        );
        assert_ne!(tries("nft", &["delete", "table", "inet", "outgate"]), owned);
    });
}

#[test]
fn another_hook_takes_over_the_table_and_its_elements() {
    alone(|| {
        let layout = layout(vec![segment("office", &["192.0.2.0/24"], &[])]);
        let mut before = firewall(forward());
        before.adopt(&layout, now()).unwrap();
        open(&mut before, &[web(1)], MINUTE);
        drop(before);
        for (hook, chain) in [(Hook::Output, "hook output"), (Hook::Forward, "hook forward")] {
            let mut next = firewall(Settings { own_uid: Some(65533), ..Settings::new(hook) });
            assert_eq!(live(&mut next, &layout).into_keys().collect::<Vec<_>>(), [web(1)], "{hook:?}");
            let text = run("nft", &["list", "ruleset"]);
            assert!(text.contains(chain) && text.matches("type filter hook").count() == 1, "{text}");
        }
    });
}

#[test]
fn a_plain_table_is_kept_watched_and_repaired() {
    alone(|| {
        // What a kernel without owners leaves behind; also with a set of another shape and chains of somebody else.
        let plain = "add table inet outgate; add set inet outgate host4 { type ipv4_addr; }; \
                     add set inet outgate strange { type ipv4_addr; }; add chain inet outgate strange; \
                     add chain inet outgate forward { type filter hook input priority 0; }; \
                     add rule inet outgate forward ip saddr @strange jump strange; \
                     add map inet outgate ways { type ipv4_addr : verdict; }; \
                     add element inet outgate ways { 192.0.2.9 : jump strange }; \
                     add rule inet outgate forward ip saddr vmap @ways";
        run("nft", &[plain]);
        let layout = layout(vec![segment("office", &["192.0.2.0/24"], &[])]);
        let mut firewall = firewall(forward());
        firewall.adopt(&layout, now()).unwrap();
        open(&mut firewall, &[web(1), web(2)], MINUTE);
        assert_eq!(firewall.drifted(), Ok(false), "our own changes are no drift");
        firewall.arrange(&layout).unwrap();
        assert_eq!(firewall.drifted(), Ok(false), "our own changes are no drift");
        let text = run("nft", &["list", "ruleset"]);
        assert!(!text.contains("strange") && text.contains("hook forward"), "{text}");

        run("nft", &["add table inet other; add chain inet other x"]);
        assert_eq!(firewall.drifted(), Ok(false), "another table is not ours");
        run("nft", &["delete element inet outgate host4 { 192.0.2.1 . 198.51.100.2 . tcp . 443 }"]);
        run("nft", &["add element inet outgate host4 { 192.0.2.1 . 198.51.100.2 . sctp . 443 }"]);
        assert_eq!(firewall.drifted(), Ok(true));
        assert_eq!(firewall.drifted(), Ok(false), "told once");
        assert_eq!(live(&mut firewall, &layout).into_keys().collect::<Vec<_>>(), [web(1)]);
        assert!(!run("nft", &["list", "ruleset"]).contains("sctp"), "what can be no grant goes");

        run("nft", &["flush", "ruleset"]);
        assert!(firewall.apply(&[Change::Open { element: web(1), until: now() + MINUTE }], now()).is_err());
        assert_eq!(firewall.drifted(), Ok(true));
        assert_eq!(firewall.adopt(&layout, now()).unwrap(), []);
        assert_eq!(open(&mut firewall, &[web(1)], MINUTE), [0; 0]);
        assert!(run("nft", &["list", "ruleset"]).contains("segment_office"));
    });
}

#[test]
fn a_large_change_is_no_drift() {
    alone(|| {
        let mut firewall = firewall(Settings { size: 1 << 16, ..Settings::new(Hook::Sets) });
        firewall.adopt(&Layout::default(), now()).unwrap();
        let many: Vec<_> = (0..20_000).map(web).collect();
        open(&mut firewall, &many, MINUTE);
        assert_eq!(firewall.drifted(), Ok(false));
        // What others change is heard as before.
        run("nft", &["add element inet outgate host4 { 192.0.2.9 . 192.0.2.9 . sctp . 1 }"]);
        assert_eq!(firewall.drifted(), Ok(true));
    });
}

#[test]
fn a_new_layout_keeps_the_grants() {
    alone(|| {
        let mut firewall = firewall(forward());
        let mut all = Layout::default();
        firewall.adopt(&all, now()).unwrap();
        open(&mut firewall, &[web(1)], MINUTE);
        let networks =
            [("203.0.113.0/24", "tcp/22"), ("203.0.113.128/25", "tcp/20-30"), ("0.0.0.0/0", "icmp"), ("::/0", "any")];
        for number in 0..20_u8 {
            let outer = format!("10.{number}.0.0/16");
            let inner = format!("10.{}.7.0/24", (number + 1) % 20);
            all.segments.push(segment(
                &format!("s{number}"),
                &[&outer, &inner, "2001:db8::/32"][..2 + usize::from(number == 0)],
                &networks,
            ));
            firewall.arrange(&all).unwrap();
        }
        run("nft", &["list", "ruleset"]);
        all.segments.truncate(3);
        firewall.arrange(&all).unwrap();
        let text = run("nft", &["list", "ruleset"]);
        assert!(text.contains("segment_s2") && !text.contains("segment_s3"), "{text}");
        assert!(live(&mut firewall, &all).contains_key(&web(1)));
    });
}

/// The name of a set that a layout fills: each is replaced by one with another name.
fn called(set: &str) -> String {
    let text = run("nft", &["list", "table", "inet", "outgate"]);
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("set ")?.strip_suffix(" {"));
    let mut names =
        names.filter(|name| name.strip_prefix(set).is_some_and(|end| end.is_empty() || end.starts_with('-')));
    let name = names.next().unwrap().to_owned();
    assert_eq!(names.next(), None, "one at a time");
    name
}

/// What the kernel holds in a set of prefixes, as the program nft tells it.
fn held(set: &str) -> String {
    let text = run("nft", &["list", "set", "inet", "outgate", &called(set)]);
    let elements = text.split_once("elements = {").and_then(|(_, rest)| rest.split_once('}'));
    elements.map_or_else(String::new, |(elements, _)| elements.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn denying(segments: &[SegmentLayout], denied: &[&str]) -> Layout {
    let mut denied: Vec<_> = denied.iter().map(|prefix| prefix.parse().unwrap()).collect();
    denied.sort_unstable();
    Layout { segments: segments.to_vec(), denied }
}

#[test]
fn what_is_denied_is_in_the_deny_sets() {
    alone(|| {
        let segments = [segment("office", &["192.0.2.0/24"], &[("203.0.113.0/24", "any")])];
        let mut first = firewall(forward());
        // Prefixes that nest, repeat or touch each other, and a static rule's.
        let denied = ["203.0.113.0/25", "203.0.113.7/32", "203.0.113.128/25", "198.51.100.9/32", "2001:db8::/32"];
        first.adopt(&denying(&segments, &denied), now()).unwrap();
        open(&mut first, &[web(1)], MINUTE);
        assert_eq!((held("deny4").as_str(), held("deny6").as_str()), ("198.51.100.9, 203.0.113.0/24", "2001:db8::/32"));
        first.arrange(&denying(&segments, &["0.0.0.0/0", "2001:db8::1/128"])).unwrap();
        assert_eq!((held("deny4").as_str(), held("deny6").as_str()), ("0.0.0.0/0", "2001:db8::1"));
        first.arrange(&denying(&segments, &["198.51.100.9/32"])).unwrap();
        assert_eq!((held("deny4").as_str(), held("deny6").as_str()), ("198.51.100.9", ""));
        let without = denying(&segments, &[]);
        assert!(live(&mut first, &without).contains_key(&web(1)), "grants stay");
        assert_eq!(held("deny4"), "");
        first.arrange(&denying(&[], &["198.51.100.9/32"])).unwrap();

        // What somebody left there while nobody owned the table goes, and what is denied comes back.
        drop(first);
        // A program that another test is starting may have the owner's socket for a moment more.
        while !tries("nft", &["flush", "set", "inet", "outgate", &called("deny4")]) {}
        run("nft", &["add", "element", "inet", "outgate", &called("deny4"), "{ 192.0.2.0/24 }"]);
        let mut second = firewall(forward());
        let one = denying(&segments, &["203.0.113.7/32"]);
        second.adopt(&one, now()).unwrap();
        assert_eq!(held("deny4"), "203.0.113.7");
        assert_eq!(
            second.restore(&denying(&segments, &["203.0.113.8/32"]), &[(web(1), now() + MINUTE)], now()),
            Ok(true)
        );
        assert_eq!(held("deny4"), "203.0.113.8");
        drop(second);

        // A table that others can change: they are heard, and what they did is put right.
        while !tries("nft", &["delete table inet outgate; add table inet outgate"]) {}
        let mut plain = firewall(forward());
        plain.adopt(&one, now()).unwrap();
        for (change, what) in [("flush set", ""), ("add element", "{ 192.0.2.0/24 }")] {
            let tamper = || run("nft", &[&format!("{change} inet outgate {} {what}", called("deny4"))]);
            tamper();
            assert_eq!(plain.drifted(), Ok(true), "{change}");
            plain.adopt(&one, now()).unwrap();
            assert_eq!(held("deny4"), "203.0.113.7", "{change}");
            tamper();
            plain.arrange(&denying(&segments, &["203.0.113.7/32", "203.0.113.9/32"])).unwrap();
            assert_eq!(held("deny4"), "203.0.113.7, 203.0.113.9", "{change}");
            assert_eq!(plain.drifted(), Ok(true), "it is still told");
        }
    });
}

#[test]
fn without_rights_it_is_forbidden() {
    if std::env::var("OUTGATE_TEST_WITHOUT_RIGHTS").is_ok() {
        assert_eq!(firewall(forward()).adopt(&Layout::default(), now()), Err(FirewallError::Forbidden));
        return;
    }
    alone(|| {
        // This test again, as nobody.
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "without_rights_it_is_forbidden"]).env("OUTGATE_TEST_WITHOUT_RIGHTS", "1");
        match again.uid(65534).gid(65534).current_dir("/").output() {
            Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
            Err(error) => eprintln!("skipped: nobody cannot run this test: {error}"),
        }
    });
}

#[test]
fn sets_alone_leave_the_rules_to_the_operator() {
    alone(|| {
        let layout = layout(vec![segment("office", &["192.0.2.0/24"], &[("203.0.113.0/24", "tcp/22")])]);
        let mut firewall = firewall(Settings { size: 1 << 10, ..Settings::new(Hook::Sets) });
        firewall.adopt(&layout, now()).unwrap();
        let grants = [web(1), element("office", "198.51.100.2", Service::Tcp(443))];
        assert_eq!(open(&mut firewall, &grants, MINUTE), [0; 0]);
        let text = run("nft", &["list", "table", "inet", "outgate"]);
        let number = format!("192.0.2.0/24 : {:#010x}", SegmentId::of("office").0);
        assert!(
            !text.contains("chain") && text.contains(&number) && text.contains("198.51.100.2 . tcp . 443"),
            "{text}"
        );
        let found: Vec<_> = live(&mut firewall, &layout).into_keys().collect();
        assert_eq!(found, grants);
        // The operator's rules, in the same table: they stay, and changing them is no drift.
        run("nft", &["add", "chain", "inet", "outgate", "mine", "{ type filter hook forward priority 0; }"]);
        let rule = "ip saddr . ip daddr . meta l4proto . th dport @host4 accept";
        run("nft", &["add", "rule", "inet", "outgate", "mine", rule]);
        assert_eq!(firewall.drifted(), Ok(false));
        drop(firewall);
        let mut successor = self::firewall(Settings { size: 1 << 10, ..Settings::new(Hook::Sets) });
        assert_eq!(live(&mut successor, &layout).into_keys().collect::<Vec<_>>(), grants);
        successor.arrange(&Layout::default()).unwrap();
        let text = run("nft", &["list", "table", "inet", "outgate"]);
        assert!(text.contains(rule) && !text.contains(&number), "{text}");
        // What is ours is still watched.
        run("nft", &["flush", "set", "inet", "outgate", "host4"]);
        assert_eq!(successor.drifted(), Ok(true));
    });
}

#[test]
fn ten_thousand_segments_fit_into_one_transaction() {
    alone(|| {
        let mut firewall = firewall(Settings { size: 1 << 20, ..forward() });
        let segments = (0..10_000_u32).map(|number| {
            let prefix = |part: u32| format!("10.{}.{}.{}/30", number / 250, number % 250, part * 8);
            let sources: Vec<_> = (0..5).map(prefix).collect();
            segment(&format!("segment-{number}"), &sources.iter().map(String::as_str).collect::<Vec<_>>(), &[])
        });
        let mut all = layout(segments.collect());
        let clock = Clock::system();
        let timed = |what: &str, since: Tick| eprintln!("{what}: {:?}", clock.tick().since(since));
        let start = clock.tick();
        firewall.adopt(&all, start).unwrap();
        timed("adopt 10,000 segments, 50,000 prefixes", start);
        let elements: Vec<_> = (0..100_000).map(web).collect();
        let start = clock.tick();
        assert_eq!(open(&mut firewall, &elements, 60 * MINUTE), [0; 0]);
        timed("open 100,000", start);
        let start = clock.tick();
        for number in 0..1000 {
            open(&mut firewall, &[web(number)], 120 * MINUTE);
        }
        timed("extend 1,000 one by one", start);
        all.segments.pop();
        let start = clock.tick();
        firewall.arrange(&all).unwrap();
        timed("arrange, one segment fewer", start);
        all.denied = vec!["203.0.113.7/32".parse().unwrap()];
        let start = clock.tick();
        firewall.arrange(&all).unwrap();
        timed("arrange, one address denied", start);
        let start = clock.tick();
        assert_eq!(firewall.adopt(&all, start).unwrap().len(), 100_000);
        timed("adopt again, 100,000 elements", start);
    });
}

#[test]
fn what_is_live_is_restored_in_one_instant() {
    alone(|| {
        let layout = layout(vec![segment("a", &["192.0.2.0/24"], &[])]);
        let mut first = firewall(forward());
        first.adopt(&layout, now()).unwrap();
        open(&mut first, &[web(1), web(2)], MINUTE);
        drop(first);
        let mut second = firewall(forward());
        // Of the first two one is not known any more; one has another end; one was never there; one has ended.
        let live = [(web(2), now() + 2 * MINUTE), (web(3), now() + MINUTE), (web(4), now())];
        assert_eq!(second.restore(&layout, &live, now()), Ok(true));
        assert_eq!(second.drifted(), Ok(false));
        let mut found = second.adopt(&layout, now()).unwrap();
        found.sort_by_key(|(_, until)| *until);
        assert_eq!(found.iter().map(|(element, _)| *element).collect::<Vec<_>>(), [web(3), web(2)]);
        assert!(found.iter().zip([MINUTE, 2 * MINUTE]).all(|((_, until), left)| {
            (left - Duration::from_secs(5)..=left + Duration::from_secs(1)).contains(&until.since(now()))
        }));
        // With what it changes by itself the table goes on.
        open(&mut second, &[web(4)], MINUTE);
        assert_eq!(second.adopt(&layout, now()).unwrap().len(), 3);
    });
}

#[test]
fn nothing_is_restored_while_somebody_hears_of_every_change() {
    alone(|| {
        let layout = layout(vec![segment("a", &["192.0.2.0/24"], &[])]);
        // A table that is not owned is listened to by its enforcer itself; that does not count.
        let mut firewall = firewall(Settings { size: 1 << 10, ..Settings::new(Hook::Sets) });
        assert_eq!(firewall.restore(&layout, &[(web(1), now() + MINUTE)], now()), Ok(true));
        let mut monitor = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_NETFILTER).unwrap();
        monitor.bind_auto().unwrap();
        monitor.add_membership(7).unwrap();
        assert_eq!(firewall.restore(&layout, &[(web(2), now() + MINUTE)], now()), Ok(false));
        drop(monitor);
        let found = firewall.adopt(&layout, now()).unwrap();
        assert_eq!(found.iter().map(|(element, _)| *element).collect::<Vec<_>>(), [web(1)]);
        // What others change is still heard.
        assert_eq!(firewall.drifted(), Ok(false));
        run("nft", &["delete element inet outgate host4 { 192.0.2.1 . 198.51.100.1 . tcp . 443 }"]);
        assert_eq!(firewall.drifted(), Ok(true));
    });
}
