//! The names that are asked, and the zones that hold them: every shape that data of the DNS takes, by number.

use std::fmt::Write as _;

/// How many names are asked, each of its own making.
pub(super) const NAMES: usize = 5_280;
/// How many zones they are spread over.
pub(super) const ZONES: usize = 8;

/// Every type that is asked of every name.
pub(super) const KINDS: [u16; 13] = [
    1,      // A
    28,     // AAAA
    16,     // TXT
    15,     // MX
    33,     // SRV
    2,      // NS
    6,      // SOA
    12,     // PTR
    257,    // CAA
    5,      // CNAME
    44,     // SSHFP
    65,     // HTTPS
    65_280, // unknown
];

/// The same types as a rule names them, but HTTPS: that has a key of its own.
pub(super) const RULE_TYPES: &str =
    r#"["A", "AAAA", "TXT", "MX", "SRV", "NS", "SOA", "PTR", "CAA", "CNAME", "SSHFP", "TYPE65280"]"#;

/// TTLs of the records: around what is clamped, and the ends of the range (RFC 2181 §8).
const TTLS: [u32; 11] = [0, 1, 4, 5, 6, 60, 299, 300, 301, 86_400, 0x7fff_ffff];

/// The zones' texts, and the names to ask in wire form, their letters as they are to be sent.
pub(super) struct World {
    pub(super) zones: Vec<(String, String)>,
    pub(super) names: Vec<Vec<u8>>,
}

pub(super) fn world() -> World {
    let mut world = World { zones: Vec::new(), names: Vec::new() };
    for zone in 0..ZONES {
        let name = format!("z{zone}.example.net");
        let head = format!(
            "$ORIGIN {name}.\n@ 77 SOA ns hostmaster 1 3600 900 604800 {}\n@ 900 NS ns\nns 900 A 10.9.9.9\n",
            30 * zone
        );
        world.zones.push((name, head));
    }
    for number in 0..NAMES {
        world.add(number);
    }
    for zone in 0..ZONES {
        world.names.push(wire(&[], zone));
    }
    world
}

impl World {
    fn line(&mut self, zone: usize, line: &str) {
        writeln!(self.zones[zone % ZONES].1, "{line}").unwrap();
    }

    /// A chain of `links` CNAMEs from `n{number}` to records; each link is in the zone that `step` says.
    fn chain(&mut self, number: usize, links: usize, step: usize, end: &[String]) {
        let zone = |link: usize| number + link * step;
        let owner = |link: usize| if link == 0 { format!("n{number}") } else { format!("c{link}.n{number}") };
        for link in 0..links {
            let target = format!("{}.z{}.example.net.", owner(link + 1), zone(link + 1) % ZONES);
            let ttl = TTLS[(number / 7 + link) % TTLS.len()];
            self.line(zone(link), &format!("{} {ttl} CNAME {target}", owner(link)));
        }
        for data in end {
            self.line(zone(links), &format!("{} {data}", owner(links)));
        }
    }

    fn add(&mut self, n: usize) {
        let ttl = TTLS[n % TTLS.len()];
        let zone = n % ZONES;
        let count = n / SHAPES % 20 + 1;
        let mut asked: Vec<Vec<u8>> = vec![format!("n{n}").into_bytes()];
        let v4 = |i: usize| match n % 4 {
            0 => format!("10.{}.{}.{i}", n / 250, n % 250),
            1 => format!("172.{}.{}.{i}", 16 + n / 250 % 16, n % 250),
            2 => format!("192.168.{}.{i}", n % 250),
            _ => format!("203.0.113.{}", (n + i) % 250),
        };
        let v6 = |i: usize| format!("{}:{n:x}::{i:x}", if n.is_multiple_of(2) { "fd00" } else { "2001:db8" });
        let own = |kind: &str, data: &str| format!("n{n} {ttl} {kind} {data}");
        let text = |length: usize| format!("\"{}\"", "x".repeat(length));
        match n % SHAPES {
            0 => (1..=count).for_each(|i| self.line(zone, &own("A", &v4(i)))),
            1 => (1..=count).for_each(|i| self.line(zone, &own("AAAA", &v6(i)))),
            2 => {
                for (kind, data) in [
                    ("A", &*v4(1)),
                    ("AAAA", &v6(1)),
                    ("TXT", "\"v=spf1 -all\""),
                    ("MX", "10 mail"),
                    ("MX", "20 mail.z1.example.net."),
                    ("SRV", "1 2 443 host"),
                    ("CAA", "0 issue \"ca.example\""),
                    ("SSHFP", "4 2 abcdef"),
                    ("HTTPS", &format!("1 . alpn=h2,h3 ipv4hint={} ipv6hint={} key667=x", v4(1), v6(1))),
                    ("HTTPS", "2 Mail port=8443"),
                    ("PTR", "host.example.com."),
                    ("TYPE65280", "\\# 3 abcdef"),
                ] {
                    self.line(zone, &own(kind, data));
                }
            }
            3 => self.chain(n, n / SHAPES % 7 + 1, 0, &[format!("60 A {}", v4(1)), format!("{ttl} AAAA {}", v6(1))]),
            4 => self.chain(n, n / SHAPES % 7 + 1, 1, &[format!("{ttl} A {}", v4(1)), format!("60 TXT {}", text(9))]),
            5 => {
                let wildcard = format!("*.n{n} {ttl}");
                self.line(zone, &format!("{wildcard} A {}\n{wildcard} MX 5 mail\n{wildcard} TXT {}", v4(1), text(20)));
                asked.insert(0, b"deep.Any".to_vec());
            }
            6 => {
                self.line(zone, &format!("*.n{n} {ttl} CNAME end.n{n}\nend.n{n} 60 A {}", v4(1)));
                asked.insert(0, b"any".to_vec());
            }
            7 => self.line(zone, &format!("below.n{n} {ttl} A {}", v4(1))),
            8 => {}
            9 => {
                self.line(zone, &format!("n{n} {ttl} A {}\nbelow.n{n} {ttl} A {}", v4(1), v4(2)));
                asked.insert(0, b"gone".to_vec());
            }
            10 => {
                let strings: Vec<String> = (0..=count % 4).map(|i| text(255 - i)).collect();
                self.line(zone, &own("TXT", &strings.join(" ")));
            }
            11 => (0..=count).for_each(|i| self.line(zone, &own("TXT", &format!("{} \"{i}\"", text(180))))),
            12 => {
                let octets: String = (0..count * 15).map(|i| format!("{:02x}", (i * 7 + n) % 256)).collect();
                self.line(zone, &own("TYPE65280", &format!("\\# {} {octets}", count * 15)));
            }
            13 => {
                self.line(zone, &format!("MiXed{n} {ttl} A {}\nMiXed{n} {ttl} MX 1 MAIL.EXAMPLE.COM.", v4(1)));
                asked[0] = format!("mIxEd{n}").into_bytes();
            }
            14 => {
                self.line(
                    zone,
                    &format!("_svc._tcp.n{n} {ttl} SRV 0 5 8443 host.n{n}\n_svc._tcp.n{n} {ttl} TXT \"a=1\" \"b\""),
                );
                asked.splice(0..0, [b"_svc".to_vec(), b"_tcp".to_vec()]);
            }
            15 => {
                let label = |length: usize| "l".repeat(length);
                let long = format!("{}.{}.{}", label(63), label(63), label(63 - n % 20));
                self.line(zone, &format!("{long}.n{n} {ttl} AAAA {}", v6(1)));
                asked.splice(0..0, long.split('.').map(|label| label.as_bytes().to_vec()));
            }
            16 => {
                self.line(
                    zone,
                    &format!(
                        "a\\.b\\032\\255\\\\.n{n} {ttl} TXT \"\\000\\\"\\255\"\na\\.b\\032\\255\\\\.n{n} {ttl} A {}",
                        v4(1)
                    ),
                );
                asked.insert(0, b"a.b \xff\\".to_vec());
            }
            17 => self.chain(n, 2, 1, &["60 TXT \"no address\"".into()]),
            18 => self.line(zone, &own("CNAME", &format!("nothing.n{n}.z{}.example.net.", (n + 3) % ZONES))),
            19 => {
                self.line(zone, &format!("d{n} {ttl} DNAME t{n}.z{}.example.net.", (n + 1) % ZONES));
                self.line(n + 1, &format!("x.t{n} 60 A {}\nx.t{n} 60 TXT \"renamed\"", v4(1)));
                asked = vec![b"x".to_vec(), format!("d{n}").into_bytes()];
            }
            20 => (1..=count)
                .for_each(|i| self.line(zone, &own("MX", &format!("{i} m{i}.a-rather-long-name-of-a-mail-server")))),
            _ => (1..=count).for_each(|i| self.line(zone, &own("SRV", &format!("{i} 0 {} s{i}", 8000 + i)))),
        }
        self.names.push(wire(&asked, zone));
    }
}

/// How many shapes there are.
const SHAPES: usize = 22;

fn wire(labels: &[Vec<u8>], zone: usize) -> Vec<u8> {
    let mut name = Vec::new();
    let zone = format!("z{zone}");
    for label in labels.iter().map(Vec::as_slice).chain([zone.as_bytes(), b"example", b"net"]) {
        // Labels that are written together in the shapes above, but for the one with a dot inside.
        let parts: Vec<&[u8]> =
            if label.contains(&b'\\') { vec![label] } else { label.split(|byte| *byte == b'.').collect() };
        for part in parts {
            name.push(u8::try_from(part.len()).unwrap());
            name.extend_from_slice(part);
        }
    }
    name.push(0);
    assert!(name.len() <= 255);
    name
}
