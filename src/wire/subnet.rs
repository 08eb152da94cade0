//! EDNS client subnet (RFC 7871), by which a forwarder names its client: read, and repeated in the reply.

use std::net::IpAddr;

use super::edns::{OPTION_HEAD, OPTION_SUBNET, ended, length_field};
use super::{Echo, Fault, Written};
use crate::net::canonical;

/// FAMILY, SOURCE PREFIX-LENGTH and SCOPE PREFIX-LENGTH, before the address.
const HEAD: usize = 4;

/// The one address that the data of a client subnet option holds; `None` where it holds a wider prefix, or one of no
/// family that we know.
///
/// # Errors
/// RFC 7871 §6: "A server receiving an ECS option that uses either too few or too many ADDRESS octets, or that has
/// non-zero ADDRESS bits set beyond SOURCE PREFIX-LENGTH, SHOULD return FORMERR to reject the packet". So does one with a
/// SCOPE PREFIX-LENGTH, which "MUST be set to 0" in queries, and one longer than an address.
pub fn named_by_subnet(data: &[u8]) -> Result<Option<IpAddr>, Fault> {
    let ([family, family_low, source, scope], address) = data.split_first_chunk::<HEAD>().ok_or(Fault::Subnet)?;
    let whole = match u16::from_be_bytes([*family, *family_low]) {
        1 => 32,
        2 => 128,
        _ => u8::MAX,
    };
    let beyond = u32::from(*source).next_multiple_of(8) - u32::from(*source);
    let clean = address.last().is_none_or(|last| last.trailing_zeros() >= beyond);
    if *scope != 0 || *source > whole || address.len() != usize::from(*source).div_ceil(8) || !clean {
        return Err(Fault::Subnet);
    }
    if *source < whole {
        return Ok(None);
    }
    let four = <[u8; 4]>::try_from(address).map(IpAddr::from);
    let address = four.or_else(|_| <[u8; 16]>::try_from(address).map(IpAddr::from));
    Ok(address.ok().map(canonical))
}

/// The octets that [`echo_subnet`] adds to the reply.
#[must_use]
pub fn subnet_room(echo: &Echo<'_>) -> usize {
    echo.subnet.map_or(0, |data| OPTION_HEAD + data.len())
}

/// Adds the client subnet of the query, one that could be read, to the reply that ends `out`: as wide as it was asked
/// for, so that whoever keeps the reply keeps it for this client. RFC 7871 §7.2.1: "FAMILY, SOURCE PREFIX-LENGTH, and
/// ADDRESS in the response MUST match those in the query."
pub fn echo_subnet(out: &mut Vec<u8>, written: Written, echo: &Echo<'_>) -> Written {
    let Some((&[family, family_low, source, _], address)) =
        echo.subnet.and_then(|data| data.split_first_chunk::<HEAD>())
    else {
        return written;
    };
    let start = out.len() - written.len;
    out.extend_from_slice(&OPTION_SUBNET.to_be_bytes());
    out.extend_from_slice(&length_field(HEAD + address.len()));
    out.extend_from_slice(&[family, family_low, source, source]);
    out.extend_from_slice(address);
    ended(out, written, start)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::{ExtendedError, Rcode};
    use crate::wire::{Canonical, parse, parse_message, write_refusal};

    /// A query for a.example.org with an OPT of these options.
    fn query(options: &[u8]) -> Vec<u8> {
        let header = [0x1234, 0x0100, 1, 0, 0, 1].map(u16::to_be_bytes).concat();
        let length = u16::try_from(options.len()).unwrap().to_be_bytes();
        [&header, b"\x01a\x07example\x03org\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0".as_slice(), &length, options]
            .concat()
    }

    #[test]
    #[expect(clippy::type_complexity, reason = "a table")]
    fn names_one_address_or_nobody_or_is_broken() {
        let six = |data: &str| data.parse::<std::net::Ipv6Addr>().unwrap().octets();
        let of_six = |source: u8, octets: &[u8]| [b"\0\x02".as_slice(), &[source, 0], octets].concat();
        let rows: [(&str, Vec<u8>, Result<Option<&str>, Fault>); 17] = [
            ("an address", b"\0\x01\x20\0\xc0\0\x02\x07".into(), Ok(Some("192.0.2.7"))),
            ("an address of IPv6", of_six(128, &six("2001:db8::7")), Ok(Some("2001:db8::7"))),
            ("one mapped", of_six(128, &six("::ffff:192.0.2.7")), Ok(Some("192.0.2.7"))),
            ("a network", b"\0\x01\x18\0\xc0\0\x02".into(), Ok(None)),
            ("a network of IPv6", of_six(56, &six("2001:db8::")[..7]), Ok(None)),
            ("31 bits", b"\0\x01\x1f\0\xc0\0\x02\x06".into(), Ok(None)),
            ("nothing", b"\0\x01\0\0".into(), Ok(None)),
            ("nothing, of no family", b"\0\0\0\0".into(), Ok(None)),
            ("another family", b"\0\x03\x20\0\xc0\0\x02\x07".into(), Ok(None)),
            ("no data", b"".into(), Err(Fault::Subnet)),
            ("half a head", b"\0\x01\x20".into(), Err(Fault::Subnet)),
            ("too few octets", b"\0\x01\x20\0\xc0\0\x02".into(), Err(Fault::Subnet)),
            ("too many octets", b"\0\x01\x18\0\xc0\0\x02\0".into(), Err(Fault::Subnet)),
            ("bits beyond it", b"\0\x01\x1f\0\xc0\0\x02\x07".into(), Err(Fault::Subnet)),
            ("a scope", b"\0\x01\x20\x20\xc0\0\x02\x07".into(), Err(Fault::Subnet)),
            ("33 bits of IPv4", b"\0\x01\x21\0\xc0\0\x02\x07\x80".into(), Err(Fault::Subnet)),
            ("IPv6 in IPv4", [b"\0\x01\x80\0".as_slice(), &six("2001:db8::7")].concat(), Err(Fault::Subnet)),
        ];
        for (reason, data, expected) in rows {
            let expected = expected.map(|address| address.map(|address| address.parse().unwrap()));
            assert_eq!(named_by_subnet(&data), expected, "{reason}");
        }
    }

    #[test]
    fn a_query_has_at_most_one() {
        let one = b"\0\x08\0\x08\0\x01\x20\0\xc0\0\x02\x07".as_slice();
        let subnet = |options: &[u8]| {
            parse(&query(options), &mut Canonical::new()).unwrap().echo.subnet.map(|data| named_by_subnet(data).ok())
        };
        assert_eq!(subnet(b"\0\x64\0\0"), None);
        assert_eq!(subnet(&[b"\0\x64\0\0", one].concat()), Some(Some(Some([192, 0, 2, 7].into()))));
        assert_eq!(subnet(&[one, one].concat()), Some(None));
    }

    #[test]
    fn is_repeated_with_its_length_for_a_scope() {
        let option = b"\0\x08\0\x08\0\x01\x20\0\xc0\0\x02\x07";
        let packet = query(option);
        let mut canonical = Canonical::new();
        let echo = parse(&packet, &mut canonical).unwrap().echo;
        for ede in [None, Some(ExtendedError::new(ExtendedError::BLOCKED, "no rule"))] {
            let mut out = b"before".to_vec();
            let plain = write_refusal(&mut out, &echo, Rcode::NXDOMAIN, ede.as_ref(), 512);
            let before = parse_message(&out[6..]).unwrap();
            let written = echo_subnet(&mut out, plain, &echo);
            assert_eq!(written.len, plain.len + subnet_room(&echo));
            assert!(out.ends_with(b"\0\x08\0\x08\0\x01\x20\x20\xc0\0\x02\x07"), "{out:x?}");
            assert_eq!(parse_message(&out[6..]).as_ref(), Ok(&before), "all else is the same");
            assert_eq!(out.len(), 6 + written.len);
        }
    }

    proptest! {
        #[test]
        fn never_panics(data in prop::collection::vec(any::<u8>(), 0..24)) {
            let _ = named_by_subnet(&data);
        }
    }
}
