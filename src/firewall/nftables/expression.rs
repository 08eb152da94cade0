//! The expressions of a rule: what nft calls statements and matches, one method each.
//!
//! A value is read into a register and compared there. Registers are NFT_REG32_00 (8) and up, four bytes each;
//! a concatenation is a row of them. A match that fails ends the rule, and the next rule is tried.

use std::net::IpAddr;

use super::wire::Attributes;

/// The first register.
const R: u32 = 8;
/// NFT_REG_VERDICT.
const VERDICT: u32 = 0;

/// Where a packet goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action<'a> {
    Drop,
    Accept,
    Return,
    Jump(&'a str),
    Goto(&'a str),
}

impl Action<'_> {
    /// NFTA_DATA_VERDICT with its code and chain.
    pub(super) fn write(self, a: &mut Attributes<'_>) {
        let (code, chain) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5, None),
        };
        a.nest(2, |a| {
            a.bytes(1, &i32::to_be_bytes(code));
            if let Some(chain) = chain {
                a.text(2, chain);
            }
        });
    }
}

/// An address family, as rules tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Family {
    Four,
    Six,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::Four, Self::Six];

    pub(super) const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Four } else { Self::Six }
    }

    /// The end of the names of its sets and chains.
    pub(super) const fn digit(self) -> char {
        match self {
            Self::Four => '4',
            Self::Six => '6',
        }
    }

    /// NFPROTO_IPV4, NFPROTO_IPV6.
    const fn protocol(self) -> u8 {
        match self {
            Self::Four => 2,
            Self::Six => 10,
        }
    }

    /// The protocol number of its ICMP.
    pub(super) const fn icmp(self) -> u8 {
        match self {
            Self::Four => 1,
            Self::Six => 58,
        }
    }

    /// Bytes of an address.
    pub(super) const fn width(self) -> u32 {
        match self {
            Self::Four => 4,
            Self::Six => 16,
        }
    }

    const fn source_offset(self) -> u32 {
        match self {
            Self::Four => 12,
            Self::Six => 8,
        }
    }

    const fn destination_offset(self) -> u32 {
        self.source_offset() + self.width()
    }
}

/// TCP's protocol number.
pub(super) const TCP: u8 = 6;
/// UDP's protocol number.
pub(super) const UDP: u8 = 17;

/// Bits of a conntrack state.
pub(super) const INVALID: u32 = 1;
/// See [`INVALID`].
pub(super) const ESTABLISHED: u32 = 2;
/// See [`INVALID`].
pub(super) const RELATED: u32 = 4;
/// See [`INVALID`].
pub(super) const NEW: u32 = 8;

/// Words of linux/netfilter/nf_tables.h: meta keys, payload bases, conntrack keys.
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_SKUID: u32 = 10;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
const CT_MARK: u32 = 3;

/// NFT_CMP_NEQ.
const NOT_EQUAL: u32 = 1;

/// `tcp reset`: type and code of a reject.
pub(super) const RESET: (u32, u8) = (1, 0);
/// `icmpx admin-prohibited`.
pub(super) const PROHIBITED: (u32, u8) = (2, 3);

/// One rule being written: a list of expressions.
pub(super) struct Rule<'a, 'b>(pub(super) &'a mut Attributes<'b>);

impl Rule<'_, '_> {
    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Attributes<'_>)) {
        self.0.nest(1, |a| {
            a.text(1, name);
            a.nest(2, data);
        });
    }

    fn meta(&mut self, key: u32, register: u32) {
        self.expression("meta", |a| {
            a.number(1, register);
            a.number(2, key);
        });
    }

    fn payload(&mut self, base: u32, offset: u32, width: u32, register: u32) {
        self.expression("payload", |a| {
            a.number(1, register);
            a.number(2, base);
            a.number(3, offset);
            a.number(4, width);
        });
    }

    fn compare(&mut self, operator: u32, value: &[u8]) {
        self.expression("cmp", |a| {
            a.number(1, R);
            a.number(2, operator);
            a.nest(3, |a| a.bytes(1, value));
        });
    }

    fn equals(&mut self, value: &[u8]) {
        self.compare(0, value);
    }

    fn load(&mut self, register: u32, value: &[u8]) {
        self.expression("immediate", |a| {
            a.number(1, register);
            a.nest(2, |a| a.bytes(1, value));
        });
    }

    /// reg = (reg & mask) ^ xor.
    fn bits<const WIDTH: usize>(&mut self, mask: [u8; WIDTH], xor: [u8; WIDTH]) {
        self.expression("bitwise", |a| {
            a.number(1, R);
            a.number(2, R);
            a.number(3, WIDTH as u32);
            a.nest(4, |a| a.bytes(1, &mask));
            a.nest(5, |a| a.bytes(1, &xor));
        });
    }

    fn conntrack(&mut self, key: u32) {
        self.expression("ct", |a| {
            a.number(1, R);
            a.number(2, key);
        });
    }

    /// `@set`: the row of registers from `from` is in the set; of a map, its value goes to `to`.
    fn lookup(&mut self, set: &str, from: u32, to: Option<u32>, inverted: bool) {
        self.expression("lookup", |a| {
            a.text(1, set);
            a.number(2, from);
            if let Some(to) = to {
                a.number(3, to);
            }
            if inverted {
                a.number(5, 1);
            }
        });
    }

    /// The last expression of a rule.
    pub(super) fn act(&mut self, action: Action<'_>) {
        self.expression("immediate", |a| {
            a.number(1, VERDICT);
            a.nest(2, |a| action.write(a));
        });
    }

    /// `meta nfproto`.
    pub(super) fn family(&mut self, family: Family) -> &mut Self {
        self.meta(META_NFPROTO, R);
        self.equals(&[family.protocol()]);
        self
    }

    /// `meta l4proto`.
    pub(super) fn protocol(&mut self, protocol: u8) -> &mut Self {
        self.meta(META_L4PROTO, R);
        self.equals(&[protocol]);
        self
    }

    /// `meta l4proto != …`.
    pub(super) fn protocol_but(&mut self, protocol: u8) -> &mut Self {
        self.meta(META_L4PROTO, R);
        self.compare(NOT_EQUAL, &[protocol]);
        self
    }

    /// `ip saddr @set`, after [`Rule::family`] where both families pass.
    pub(super) fn source_in(&mut self, family: Family, set: &str) -> &mut Self {
        self.payload(NETWORK, family.source_offset(), family.width(), R);
        self.lookup(set, R, None, false);
        self
    }

    /// `ip daddr @set`.
    pub(super) fn destination_in(&mut self, family: Family, set: &str) -> &mut Self {
        self.payload(NETWORK, family.destination_offset(), family.width(), R);
        self.lookup(set, R, None, false);
        self
    }

    /// `meta l4proto . th dport @set`.
    pub(super) fn port_in(&mut self, set: &str) -> &mut Self {
        self.port_lookup(set, false)
    }

    /// `meta l4proto . th dport != @set`.
    pub(super) fn port_not_in(&mut self, set: &str) -> &mut Self {
        self.port_lookup(set, true)
    }

    fn port_lookup(&mut self, set: &str, inverted: bool) -> &mut Self {
        self.meta(META_L4PROTO, R);
        self.payload(TRANSPORT, 2, 2, R + 1);
        self.lookup(set, R, None, inverted);
        self
    }

    /// `th dport`.
    pub(super) fn destination_port(&mut self, port: u16) -> &mut Self {
        self.payload(TRANSPORT, 2, 2, R);
        self.equals(&port.to_be_bytes());
        self
    }

    /// Port 53 of an address in the set of resolvers.
    pub(super) fn resolver(&mut self, family: Family, protocol: u8, set: &str) -> &mut Self {
        self.family(family).destination_in(family, set).protocol(protocol).destination_port(53)
    }

    /// `th sport` and `th dport`.
    pub(super) fn ports(&mut self, source: u16, destination: u16) -> &mut Self {
        self.payload(TRANSPORT, 0, 2, R);
        self.equals(&source.to_be_bytes());
        self.destination_port(destination)
    }

    /// `icmpv6 type first-last`.
    pub(super) fn icmp_type(&mut self, first: u8, last: u8) -> &mut Self {
        const LESS_OR_EQUAL: u32 = 3;
        const GREATER_OR_EQUAL: u32 = 5;
        self.payload(TRANSPORT, 0, 1, R);
        if first == last {
            self.equals(&[first]);
        } else {
            self.compare(GREATER_OR_EQUAL, &[first]);
            self.compare(LESS_OR_EQUAL, &[last]);
        }
        self
    }

    /// `iifname`; a name that ends in `*` stands for all that begin so.
    pub(super) fn enters(&mut self, interface: &str) -> &mut Self {
        self.interface(META_IIFNAME, interface)
    }

    /// `oifname`.
    pub(super) fn leaves(&mut self, interface: &str) -> &mut Self {
        self.interface(META_OIFNAME, interface)
    }

    fn interface(&mut self, key: u32, name: &str) -> &mut Self {
        self.meta(key, R);
        match name.strip_suffix('*') {
            Some(beginning) => self.equals(beginning.as_bytes()),
            None => {
                let mut padded = name.as_bytes().to_vec();
                padded.resize(16, 0);
                self.equals(&padded);
            }
        }
        self
    }

    /// `meta skuid`.
    pub(super) fn user(&mut self, user: u32) -> &mut Self {
        self.meta(META_SKUID, R);
        self.equals(&user.to_ne_bytes());
        self
    }

    /// `ct state`: one of the bits is set.
    pub(super) fn state(&mut self, states: u32) -> &mut Self {
        self.conntrack(CT_STATE);
        self.bits(states.to_ne_bytes(), [0; 4]);
        self.compare(NOT_EQUAL, &[0; 4]);
        self
    }

    /// `tcp flags & (fin | syn | rst | ack) != syn`: TCP that begins no connection.
    pub(super) fn goes_on(&mut self) -> &mut Self {
        const FLAGS: u32 = 13;
        const SYN: u8 = 0x02;
        const FIN_SYN_RST_ACK: u8 = 0x17;
        self.protocol(TCP);
        self.payload(TRANSPORT, FLAGS, 1, R);
        self.bits([FIN_SYN_RST_ACK], [0]);
        self.compare(NOT_EQUAL, &[SYN]);
        self
    }

    /// `ct direction reply`.
    pub(super) fn is_reply(&mut self) -> &mut Self {
        self.conntrack(CT_DIRECTION);
        self.equals(&[1]);
        self
    }

    /// `ct status & bit != 0`.
    pub(super) fn status(&mut self, bit: u32) -> &mut Self {
        self.conntrack(CT_STATUS);
        self.bits(bit.to_ne_bytes(), [0; 4]);
        self.compare(NOT_EQUAL, &[0; 4]);
        self
    }

    /// `ct mark & bit == bit`.
    pub(super) fn marked(&mut self, bit: u32) -> &mut Self {
        self.conntrack(CT_MARK);
        self.bits(bit.to_ne_bytes(), [0; 4]);
        self.equals(&bit.to_ne_bytes());
        self
    }

    /// `ct mark set ct mark | bit`.
    pub(super) fn mark(&mut self, bit: u32) -> &mut Self {
        self.conntrack(CT_MARK);
        self.bits((!bit).to_ne_bytes(), bit.to_ne_bytes());
        self.expression("ct", |a| {
            a.number(2, CT_MARK);
            a.number(4, R);
        });
        self
    }

    /// `limit rate 50/second burst 100 packets`: what one segment can make the log hold.
    pub(super) fn limited(&mut self) -> &mut Self {
        self.expression("limit", |a| {
            a.wide(1, 50);
            a.wide(2, 1);
            a.number(3, 100);
            a.number(4, 0);
            a.number(5, 0);
        });
        self
    }

    /// `log prefix … group … snaplen 96`: enough for the headers of IPv6 and TCP.
    pub(super) fn log(&mut self, group: u16, prefix: &str) {
        self.expression("log", |a| {
            a.bytes(1, &group.to_be_bytes());
            a.text(2, prefix);
            a.number(3, 96);
        });
    }

    /// `reject with`.
    pub(super) fn reject(&mut self, (kind, code): (u32, u8)) {
        self.expression("reject", |a| {
            a.number(1, kind);
            a.bytes(2, &[code]);
        });
    }
}

/// Who a flow comes from, as the first part of a key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// The packet's source address.
    Packet,
    /// This machine: the address under which its own flows stand.
    Host(IpAddr),
    /// A segment: its number.
    Segment(u32),
}

/// What comes after the two addresses of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Protocol and destination port.
    Port,
    /// ICMP of the family, which has no port: port 0.
    Icmp,
    /// Nothing: every protocol.
    Any,
}

impl Rule<'_, '_> {
    /// `ip saddr . ip daddr [. meta l4proto . th dport] @set`. Of a segment, the number is loaded into the register:
    /// the packet's mark stays whoever's it is.
    pub(super) fn granted(&mut self, source: Source, family: Family, tail: Tail, set: &str) -> &mut Self {
        let width = family.width();
        let next = match source {
            Source::Packet => {
                self.payload(NETWORK, family.source_offset(), width, R);
                R + width / 4
            }
            Source::Host(IpAddr::V4(client)) => {
                self.load(R, &client.octets());
                R + 1
            }
            Source::Host(IpAddr::V6(client)) => {
                self.load(R, &client.octets());
                R + 4
            }
            Source::Segment(number) => {
                self.load(R, &number.to_ne_bytes());
                R + 1
            }
        };
        self.destination_and_tail(family, tail, next);
        self.lookup(set, R, None, false);
        self
    }

    /// `ip saddr vmap @map`.
    pub(super) fn judged_by(&mut self, family: Family, map: &str) {
        self.payload(NETWORK, family.source_offset(), family.width(), R);
        self.lookup(map, R, Some(VERDICT), false);
    }

    fn destination_and_tail(&mut self, family: Family, tail: Tail, register: u32) {
        self.payload(NETWORK, family.destination_offset(), family.width(), register);
        let next = register + family.width() / 4;
        match tail {
            Tail::Any => return,
            Tail::Port => self.payload(TRANSPORT, 2, 2, next + 1),
            Tail::Icmp => self.load(next + 1, &[0; 2]),
        }
        self.meta(META_L4PROTO, next);
    }
}
