//! The PROXY header, version 2 (HAProxy's proxy-protocol.txt, §2.2): who is behind the proxy that sent a datagram or
//! opened a connection.
//!
//! 12 octets of signature; version and command; family and protocol; the length of what follows, two octets: the
//! addresses, and fields of no concern here.

use std::net::{IpAddr, SocketAddr};

/// A header without what follows.
pub const PROXY_HEAD: usize = 16;
/// The longest that may follow: the specification's own bound for all of a header is 536 octets for IPv4, but for fields
/// that hold certificates.
const MOST: usize = 2_048;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, and its two commands.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

/// Whose word a header makes of what comes behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxied {
    /// The proxy's own: it looks whether we are there.
    Sender,
    /// This client's.
    Client(SocketAddr),
    /// Somebody's who has no address of ours.
    Nobody,
}

/// How many octets follow this head; `None`: it is not one.
#[must_use]
pub fn proxy_length(head: &[u8; PROXY_HEAD]) -> Option<usize> {
    let (signature, [command, family, length @ ..]) = head.split_first_chunk::<12>()? else { return None };
    let length = usize::from(u16::from_be_bytes(length.try_into().ok()?));
    // "Receivers must drop connections with an unknown version, command, family or protocol", but for LOCAL, where "the
    // receiver must accept this connection as valid and must use the real connection endpoints and discard the protocol
    // block including the family".
    let known = match *command {
        LOCAL => true,
        PROXY => family >> 4 <= 3 && family & 0xf <= 2,
        _ => false,
    };
    (signature == SIGNATURE && known && length <= MOST).then_some(length)
}

/// What the header at the beginning of `packet` says, and what comes behind it; `None`: there is no whole one.
#[must_use]
pub fn read_proxy(packet: &[u8]) -> Option<(Proxied, &[u8])> {
    let (head, rest) = packet.split_first_chunk::<PROXY_HEAD>()?;
    let (block, message) = rest.split_at_checked(proxy_length(head)?)?;
    let &[.., command, family, _, _] = head;
    let said = match (command, family >> 4) {
        (LOCAL, _) => Proxied::Sender,
        (_, 1) => Proxied::Client(client::<4>(block)?),
        (_, 2) => Proxied::Client(client::<16>(block)?),
        _ => Proxied::Nobody,
    };
    Some((said, message))
}

/// Source and destination address, source and destination port; the source.
fn client<const LENGTH: usize>(block: &[u8]) -> Option<SocketAddr>
where
    IpAddr: From<[u8; LENGTH]>,
{
    let (source, rest) = block.split_first_chunk::<LENGTH>()?;
    let (_, ports) = rest.split_first_chunk::<LENGTH>()?;
    let (port, _) = ports.first_chunk::<4>()?.split_first_chunk::<2>()?;
    Some(SocketAddr::new(IpAddr::from(*source), u16::from_be_bytes(*port)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [SIGNATURE.as_slice(), &[command, family], &length, block, b"message"].concat()
    }

    #[test]
    fn says_who_is_behind_it() {
        let four = b"\xc0\0\x02\x07\xc0\0\x02\x35\x9c\x40\0\x35".as_slice();
        let six =
            ["2001:db8::7", "2001:db8::53"].map(|address| address.parse::<std::net::Ipv6Addr>().unwrap().octets());
        let six = [six.as_flattened(), b"\x9c\x40\0\x35"].concat();
        let fields = [four, b"\x03\0\x04crc!\x20\0\x01x".as_slice()].concat();
        let client = |text: &str| Some(Proxied::Client(text.parse().unwrap()));
        let rows: [(&str, Vec<u8>, Option<Proxied>); 20] = [
            ("UDP over IPv4", header(0x21, 0x12, four), client("192.0.2.7:40000")),
            ("TCP over IPv4", header(0x21, 0x11, four), client("192.0.2.7:40000")),
            ("UDP over IPv6", header(0x21, 0x22, &six), client("[2001:db8::7]:40000")),
            ("IPv4 of no protocol", header(0x21, 0x10, four), client("192.0.2.7:40000")),
            ("with fields behind the addresses", header(0x21, 0x12, &fields), client("192.0.2.7:40000")),
            ("LOCAL", header(0x20, 0, b""), Some(Proxied::Sender)),
            ("LOCAL with addresses, which do not count", header(0x20, 0x12, four), Some(Proxied::Sender)),
            ("LOCAL of an unknown family", header(0x20, 0xff, four), Some(Proxied::Sender)),
            ("an unspecified family", header(0x21, 0, b""), Some(Proxied::Nobody)),
            ("a unix socket", header(0x21, 0x31, &[0; 216]), Some(Proxied::Nobody)),
            ("the longest", header(0x20, 0, &[0; MOST]), Some(Proxied::Sender)),
            ("longer", header(0x20, 0, &[0; MOST + 1]), None),
            ("version 1", b"PROXY TCP4 192.0.2.7 192.0.2.53 40000 53\r\n".into(), None),
            ("version 3", header(0x31, 0x12, four), None),
            ("an unknown command", header(0x22, 0x12, four), None),
            ("an unknown family", header(0x21, 0x42, four), None),
            ("an unknown protocol", header(0x21, 0x13, four), None),
            ("IPv4 cut short", header(0x21, 0x12, &four[..11]), None),
            ("IPv6 cut short", header(0x21, 0x22, four), None),
            ("no header", b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01".into(), None),
        ];
        for (reason, packet, expected) in rows {
            assert_eq!(read_proxy(&packet), expected.map(|said| (said, b"message".as_slice())), "{reason}");
        }
    }

    #[test]
    fn a_header_that_is_not_whole_is_none() {
        let whole = header(0x21, 0x12, b"\xc0\0\x02\x07\xc0\0\x02\x35\x9c\x40\0\x35");
        let length = whole.len() - b"message".len();
        for cut in 0..length {
            assert_eq!(read_proxy(&whole[..cut]), None, "{cut}");
        }
        assert_eq!(read_proxy(&whole[..length]).map(|(_, message)| message.len()), Some(0));
    }

    proptest! {
        #[test]
        fn never_panics(command: u8, family: u8, block in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = read_proxy(&header(command, family, &block));
            let _ = read_proxy(&block);
        }
    }
}
