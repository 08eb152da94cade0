//! Service bindings: the data of SVCB and HTTPS records (RFC 9460), read, written and shown.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use data_encoding::HEXLOWER_PERMISSIVE;

use crate::name::{self, Name};

/// The keys of parameters (RFC 9460 §14.3.2, RFC 9461 §5, RFC 9848 §3).
pub mod key {
    /// The keys that a client must know to use the record.
    pub const MANDATORY: u16 = 0;
    /// The application protocols.
    pub const ALPN: u16 = 1;
    /// The protocol that the scheme stands for is not among them.
    pub const NO_DEFAULT_ALPN: u16 = 2;
    /// The port.
    pub const PORT: u16 = 3;
    /// IPv4 addresses of the target.
    pub const IPV4_HINT: u16 = 4;
    /// What TLS encrypts the client's greeting with.
    pub const ECH: u16 = 5;
    /// IPv6 addresses of the target.
    pub const IPV6_HINT: u16 = 6;
    /// The URI template of DNS over HTTPS.
    pub const DOH_PATH: u16 = 7;
}

/// The most parameters that are read of one record; a dozen are registered (guessed to be plenty).
const MAX_PARAMETERS: usize = 64;

/// The data of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service<'a> {
    /// SvcPriority. 0 is AliasMode, anything else ServiceMode.
    pub priority: u16,
    /// TargetName. The root stands for the record's owner; of an alias, for a service that is not there.
    pub target: Name,
    /// SvcParams: keys, strictly increasing, and their values.
    pub parameters: Vec<(u16, Cow<'a, [u8]>)>,
}

/// Why data is not that of a service binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// RFC 9460 §2.2: "the end of the RDATA occurs within a SvcParam", or before them.
    #[error("it ends early")]
    Short,
    /// The target is compressed, too long or not there.
    #[error("its target is not a name")]
    Target,
    /// RFC 9460 §2.2: "SvcParamKeys are not in strictly increasing numeric order".
    #[error("key {0} does not follow the keys before it")]
    Order(u16),
    /// More parameters than are read.
    #[error("it has more than {MAX_PARAMETERS} parameters")]
    Many,
    /// RFC 9460 §2.2: "the SvcParamValue for a SvcParamKey does not have the expected format".
    #[error("the value of key {0} has not its form")]
    Value(u16),
    /// A key that another one calls for (RFC 9460 §7.1.1 and §8) is not there.
    #[error("key {0} is missing")]
    Missing(u16),
}

impl<'a> Service<'a> {
    /// Reads RDATA whose target is not compressed.
    ///
    /// # Errors
    /// The first [`Flaw`]; it makes the whole RRset useless (RFC 9460 §2.2).
    pub fn read(data: &'a [u8]) -> Result<Self, Flaw> {
        let (priority, rest) = data.split_first_chunk().ok_or(Flaw::Short)?;
        let (target, mut rest) = name::split_first(rest).ok_or(Flaw::Target)?;
        let target = Name::from_wire(target).map_err(|_| Flaw::Target)?;
        let mut parameters: Vec<(u16, Cow<'a, [u8]>)> = Vec::new();
        while !rest.is_empty() {
            let (key, after) = rest.split_first_chunk().ok_or(Flaw::Short)?;
            let (length, after) = after.split_first_chunk().ok_or(Flaw::Short)?;
            let (value, after) = after.split_at_checked(u16::from_be_bytes(*length).into()).ok_or(Flaw::Short)?;
            let key = u16::from_be_bytes(*key);
            if parameters.last().is_some_and(|(last, _)| *last >= key) {
                return Err(Flaw::Order(key));
            }
            if parameters.len() == MAX_PARAMETERS {
                return Err(Flaw::Many);
            }
            if !has_form(key, value) {
                return Err(Flaw::Value(key));
            }
            parameters.push((key, Cow::Borrowed(value)));
            rest = after;
        }
        let service = Self { priority: u16::from_be_bytes(*priority), target, parameters };
        service.missing().map_or(Ok(service), |key| Err(Flaw::Missing(key)))
    }

    /// A key that another one calls for and that is not there.
    ///
    /// RFC 9460 §8: "For self-consistency, listed keys MUST also appear in the SvcParams." §7.1.1: "When
    /// \"no-default-alpn\" is specified in an RR, \"alpn\" must also be specified".
    #[must_use]
    pub fn missing(&self) -> Option<u16> {
        let alpn = self.value(key::NO_DEFAULT_ALPN).map(|_| key::ALPN);
        self.mandatory().chain(alpn).find(|key| self.value(*key).is_none())
    }

    /// The value of a parameter.
    #[must_use]
    pub fn value(&self, key: u16) -> Option<&[u8]> {
        self.parameters.iter().find(|(known, _)| *known == key).map(|(_, value)| &**value)
    }

    /// The keys that it calls mandatory.
    pub fn mandatory(&self) -> impl Iterator<Item = u16> {
        let list = self.value(key::MANDATORY).unwrap_or_default();
        list.as_chunks().0.iter().map(|key| u16::from_be_bytes(*key))
    }

    /// The port that it names.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.value(key::PORT)?.first_chunk().map(|port| u16::from_be_bytes(*port))
    }

    /// The addresses that it hints at.
    pub fn hints(&self) -> impl Iterator<Item = IpAddr> {
        self.parameters.iter().flat_map(|(key, value)| hints(*key, value))
    }

    /// Appends it as RDATA.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.priority.to_be_bytes());
        out.extend_from_slice(self.target.as_wire());
        for (key, value) in &self.parameters {
            out.extend_from_slice(&key.to_be_bytes());
            out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
            out.extend_from_slice(value);
        }
    }
}

impl Service<'static> {
    /// Reads what [`Display`](fmt::Display) writes of data that has its form; `None` of anything else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let priority = words.next()?.parse().ok()?;
        let target = Name::parse(words.next()?).ok()?;
        let parameters = words.map(read_parameter).collect::<Option<_>>()?;
        Some(Self { priority, target, parameters })
    }
}

/// A parameter as it is shown.
fn read_parameter(word: &str) -> Option<(u16, Cow<'static, [u8]>)> {
    let (name, value) = word.split_once('=').unwrap_or((word, ""));
    let key = Key::parse(name)?;
    let mut octets = Vec::new();
    match key {
        key::MANDATORY => {
            for name in value.split(',') {
                octets.extend(Key::parse(name)?.to_be_bytes());
            }
        }
        key::ALPN => {
            for protocol in value.split(',') {
                let protocol = Octets::parse(protocol)?;
                octets.push(u8::try_from(protocol.len()).ok()?);
                octets.extend(protocol);
            }
        }
        key::NO_DEFAULT_ALPN => {}
        key::PORT => octets.extend(value.parse::<u16>().ok()?.to_be_bytes()),
        key::IPV4_HINT => {
            for address in value.split(',') {
                octets.extend(address.parse::<Ipv4Addr>().ok()?.octets());
            }
        }
        key::IPV6_HINT => {
            for address in value.split(',') {
                octets.extend(address.parse::<Ipv6Addr>().ok()?.octets());
            }
        }
        _ => octets = HEXLOWER_PERMISSIVE.decode(value.as_bytes()).ok()?,
    }
    Some((key, octets.into()))
}

/// The addresses in the value of a hint; none of any other parameter.
pub fn hints(key: u16, value: &[u8]) -> impl Iterator<Item = IpAddr> {
    let (four, six) = match key {
        key::IPV4_HINT => (value, [].as_slice()),
        key::IPV6_HINT => ([].as_slice(), value),
        _ => ([].as_slice(), [].as_slice()),
    };
    let four = four.as_chunks::<4>().0.iter().map(|octets| IpAddr::from(Ipv4Addr::from(*octets)));
    four.chain(six.as_chunks::<16>().0.iter().map(|octets| IpAddr::from(Ipv6Addr::from(*octets))))
}

/// Whether a value has the form of its key; that of a key that is not known here has any.
fn has_form(key: u16, value: &[u8]) -> bool {
    match key {
        // RFC 9460 §8: in wire format the keys stand "in strictly increasing numeric order"; "mandatory" itself "MUST
        // NOT appear in its own value-list".
        key::MANDATORY => {
            let (keys, rest) = value.as_chunks::<2>();
            rest.is_empty() && keys.is_sorted_by(|a, b| a < b) && keys.first().is_some_and(|key| *key != [0, 0])
        }
        key::ALPN => !value.is_empty() && protocols(value).is_some(),
        key::NO_DEFAULT_ALPN => value.is_empty(),
        key::PORT => value.len() == 2,
        // RFC 9460 §7.3: "An empty list of addresses is invalid."
        key::IPV4_HINT => !value.is_empty() && value.len().is_multiple_of(4),
        key::IPV6_HINT => !value.is_empty() && value.len().is_multiple_of(16),
        _ => true,
    }
}

/// The protocols of an `alpn`, each with its length before it; `None` where one is empty or cut.
pub(crate) fn protocols(mut value: &[u8]) -> Option<Vec<&[u8]>> {
    let mut found = Vec::new();
    while let Some((&length, rest)) = value.split_first() {
        let (protocol, rest) = rest.split_at_checked(length.into()).filter(|(protocol, _)| !protocol.is_empty())?;
        found.push(protocol);
        value = rest;
    }
    Some(found)
}

impl fmt::Display for Service<'_> {
    /// `1 . alpn=h2,h3 port=8443 ipv4hint=192.0.2.1`, near to RFC 9460 §2.1; a parameter that has no name here is
    /// `key667` and its octets in hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.priority, self.target)?;
        for (key, value) in &self.parameters {
            match *key {
                key::MANDATORY => listed(f, " mandatory", self.mandatory().map(Key))?,
                key::ALPN => listed(f, " alpn", protocols(value).unwrap_or_default().into_iter().map(Octets))?,
                key::NO_DEFAULT_ALPN => f.write_str(" no-default-alpn")?,
                key::PORT => listed(f, " port", self.port())?,
                key::IPV4_HINT => listed(f, " ipv4hint", hints(*key, value))?,
                key::IPV6_HINT => listed(f, " ipv6hint", hints(*key, value))?,
                _ => {
                    write!(f, " {}=", Key(*key))?;
                    value.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                }
            }
        }
        Ok(())
    }
}

fn listed<T: fmt::Display>(f: &mut fmt::Formatter<'_>, key: &str, items: impl IntoIterator<Item = T>) -> fmt::Result {
    f.write_str(key)?;
    items.into_iter().enumerate().try_for_each(|(at, item)| write!(f, "{}{item}", if at == 0 { '=' } else { ',' }))
}

/// A key by its name.
struct Key(u16);

impl Key {
    const KNOWN: [(u16, &'static str); 8] = [
        (key::MANDATORY, "mandatory"),
        (key::ALPN, "alpn"),
        (key::NO_DEFAULT_ALPN, "no-default-alpn"),
        (key::PORT, "port"),
        (key::IPV4_HINT, "ipv4hint"),
        (key::ECH, "ech"),
        (key::IPV6_HINT, "ipv6hint"),
        (key::DOH_PATH, "dohpath"),
    ];

    /// The key that is shown so.
    fn parse(name: &str) -> Option<u16> {
        let known = Self::KNOWN.iter().find(|(_, known)| *known == name).map(|(key, _)| *key);
        known.or_else(|| name.strip_prefix("key")?.parse().ok())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::KNOWN.iter().find(|(key, _)| *key == self.0) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "key{}", self.0),
        }
    }
}

/// Octets of a list: what is not plain, and what parts the list, as `\DDD`.
struct Octets<'a>(&'a [u8]);

impl Octets<'_> {
    /// The octets that are shown so.
    fn parse(text: &str) -> Option<Vec<u8>> {
        let mut octets = Vec::new();
        let mut rest = text.as_bytes();
        while let Some((&first, after)) = rest.split_first() {
            rest = after;
            if first == b'\\' {
                let (digits, after) = rest.split_at_checked(3)?;
                octets.push(std::str::from_utf8(digits).ok()?.parse().ok()?);
                rest = after;
            } else {
                octets.push(first);
            }
        }
        Some(octets)
    }
}

impl fmt::Display for Octets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| match byte {
            b',' | b'\\' | b'"' => write!(f, "\\{byte:03}"),
            b'!'..=b'~' => write!(f, "{}", char::from(*byte)),
            other => write!(f, "\\{other:03}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Octets of `\# LENGTH HEX` without its length, blanks anywhere.
    fn octets(hex: &str) -> Vec<u8> {
        let hex: String = hex.split_whitespace().collect();
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    const FOO: &str = "03666f6f 076578616d706c65 03636f6d 00";

    /// `1 foo.example.com.` and parameters: key, value.
    fn foo(parameters: &[(u16, &[u8])]) -> Vec<u8> {
        let mut data = octets(&format!("0001 {FOO}"));
        for (key, value) in parameters {
            data.extend(key.to_be_bytes());
            data.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
            data.extend(*value);
        }
        data
    }

    #[test]
    fn reads_and_writes_the_vectors_of_its_rfc() {
        // RFC 9460 appendix D.1 and D.2, in their order.
        let rows = [
            (format!("0000 {FOO}"), "0 foo.example.com"),
            ("0001 00".to_owned(), "1 ."),
            (format!("0010 {FOO} 0003 0002 0035"), "16 foo.example.com port=53"),
            (format!("0001 {FOO} 029b 0005 68656c6c6f"), "1 foo.example.com key667=68656c6c6f"),
            (format!("0001 {FOO} 029b 0009 68656c6c6fd2716f6f"), "1 foo.example.com key667=68656c6c6fd2716f6f"),
            (
                format!("0001 {FOO} 0006 0020 20010db8000000000000000000000001 20010db8000000000000000000530001"),
                "1 foo.example.com ipv6hint=2001:db8::1,2001:db8::53:1",
            ),
            (
                "0001 076578616d706c6503636f6d00 0006 0010 20010db8ffffffffffffffffc6336464".to_owned(),
                "1 example.com ipv6hint=2001:db8:ffff:ffff:ffff:ffff:c633:6464",
            ),
            (
                "0010 03666f6f076578616d706c65036f726700 0000 0004 00010004 0001 0009 02 6832 05 68332d3139 \
                 0004 0004 c0000201"
                    .to_owned(),
                "16 foo.example.org mandatory=alpn,ipv4hint alpn=h2,h3-19 ipv4hint=192.0.2.1",
            ),
            (
                "0010 03666f6f076578616d706c65036f726700 0001 000c 08 665c6f6f2c626172 02 6832".to_owned(),
                r"16 foo.example.org alpn=f\092oo\044bar,h2",
            ),
        ];
        for (hex, shown) in rows {
            let data = octets(&hex);
            let service = Service::read(&data).unwrap_or_else(|flaw| panic!("{hex}: {flaw}"));
            assert_eq!(service.to_string(), shown);
            assert_eq!(Service::parse(shown).as_ref(), Some(&service));
            let mut written = Vec::new();
            service.write(&mut written);
            assert_eq!(written, data, "{shown}");
        }
    }

    #[test]
    fn refuses_what_is_malformed() {
        let long =
            [(0_u16..65, b"".as_slice())].map(|(keys, value)| keys.map(|key| (key + 100, value)).collect::<Vec<_>>());
        let rows = [
            // RFC 9460 appendix D.3, in its order.
            ("a key twice", foo(&[(123, b"abc"), (123, b"def")]), Flaw::Order(123)),
            ("an empty list of keys", foo(&[(key::MANDATORY, b"")]), Flaw::Value(0)),
            ("no protocol", foo(&[(key::ALPN, b"")]), Flaw::Value(1)),
            ("no port", foo(&[(key::PORT, b"")]), Flaw::Value(3)),
            ("no IPv4 address", foo(&[(key::IPV4_HINT, b"")]), Flaw::Value(4)),
            ("no IPv6 address", foo(&[(key::IPV6_HINT, b"")]), Flaw::Value(6)),
            ("a value where there is none", foo(&[(key::NO_DEFAULT_ALPN, b"abc")]), Flaw::Value(2)),
            ("a mandatory key that is not there", foo(&[(key::MANDATORY, &[0, 123])]), Flaw::Missing(123)),
            ("mandatory calls itself mandatory", foo(&[(key::MANDATORY, &[0, 0])]), Flaw::Value(0)),
            ("a mandatory key twice", foo(&[(key::MANDATORY, &[0, 123, 0, 123]), (123, b"abc")]), Flaw::Value(0)),
            // What only octets can say.
            ("nothing", Vec::new(), Flaw::Short),
            ("no target", octets("0001"), Flaw::Target),
            ("a target that is cut", octets("0001 0366"), Flaw::Target),
            ("a compressed target", octets("0001 c00c"), Flaw::Target),
            ("half a key", [foo(&[]), octets("00")].concat(), Flaw::Short),
            ("half a length", [foo(&[]), octets("0003 00")].concat(), Flaw::Short),
            ("half a value", [foo(&[]), octets("0003 0002 00")].concat(), Flaw::Short),
            ("keys out of order", foo(&[(key::PORT, &[0, 53]), (key::ALPN, b"\x02h2")]), Flaw::Order(1)),
            ("mandatory keys out of order", foo(&[(0, &[0, 4, 0, 1]), (1, b"\x02h2"), (4, &[1; 4])]), Flaw::Value(0)),
            ("half a mandatory key", foo(&[(key::MANDATORY, &[0, 1, 0]), (key::ALPN, b"\x02h2")]), Flaw::Value(0)),
            ("an empty protocol", foo(&[(key::ALPN, b"\0")]), Flaw::Value(1)),
            ("a protocol that is cut", foo(&[(key::ALPN, b"\x03h2")]), Flaw::Value(1)),
            ("no-default-alpn alone", foo(&[(key::NO_DEFAULT_ALPN, b"")]), Flaw::Missing(1)),
            ("three octets of an address", foo(&[(key::IPV4_HINT, &[192, 0, 2])]), Flaw::Value(4)),
            ("four octets of an IPv6 address", foo(&[(key::IPV6_HINT, &[192, 0, 2, 1])]), Flaw::Value(6)),
            ("too many parameters", foo(&long[0]), Flaw::Many),
        ];
        for (reason, data, flaw) in rows {
            assert_eq!(Service::read(&data), Err(flaw), "{reason}");
        }
        assert_eq!(Service::read(&foo(&long[0][..64])).map(|service| service.parameters.len()), Ok(64));
    }

    proptest! {
        /// Whatever octets come: what can be read is written again as it stood, and names every address in its hints.
        #[test]
        fn reads_any_octets(
            tail in prop::collection::vec(any::<u8>(), 0..40),
            parameters in prop::collection::btree_map(0u16..9, prop::collection::vec(any::<u8>(), 0..34), 0..6),
        ) {
            let parameters: Vec<_> = parameters.iter().map(|(key, value)| (*key, value.as_slice())).collect();
            for data in [[foo(&parameters), tail.clone()].concat(), foo(&parameters), tail] {
                let Ok(service) = Service::read(&data) else { continue };
                let mut written = Vec::new();
                service.write(&mut written);
                prop_assert_eq!(written.len(), data.len());
                prop_assert_eq!(Service::read(&written), Ok(service.clone()));
                let octets = |key, size| service.value(key).map_or(0, |value: &[u8]| value.len() / size);
                let hints = octets(key::IPV4_HINT, 4) + octets(key::IPV6_HINT, 16);
                prop_assert_eq!(service.hints().count(), hints);
                prop_assert!(!service.to_string().is_empty());
            }
        }
    }
}
