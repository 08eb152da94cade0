//! Netlink bytes: attributes and batches written, messages and attributes read.
//!
//! Source: linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h. Everything is 4-aligned;
//! headers are in host order, nf_tables' own numbers in network order. Reading stops at the first length that
//! does not fit: whatever the bytes are, it ends and does not panic.

/// A message of nf_tables; the number is NFT_MSG_*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    NewTable = 0,
    GetTable = 1,
    DeleteTable = 2,
    NewChain = 3,
    GetChain = 4,
    DeleteChain = 5,
    NewRule = 6,
    DeleteRule = 8,
    NewSet = 9,
    GetSet = 10,
    DeleteSet = 11,
    NewElements = 12,
    GetElements = 13,
    DeleteElements = 14,
    GetGeneration = 16,
    /// Deletes what is there and does not mind what is not (Linux 6.3).
    DestroyElements = 30,
}

/// NFNL_SUBSYS_NFTABLES, the high byte of every message type of nf_tables.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// NLMSG_ERROR: an acknowledgement, or a refusal.
pub(super) const ERROR: u16 = 2;
/// NLMSG_DONE: the end of a dump.
pub(super) const DONE: u16 = 3;

const NLM_F_REQUEST: u16 = 1;
/// NLM_F_ACK.
pub(super) const ACK: u16 = 4;
/// NLM_F_DUMP.
pub(super) const DUMP: u16 = 0x300;
/// NLM_F_CREATE.
pub(super) const CREATE: u16 = 0x400;
/// NLM_F_APPEND.
pub(super) const APPEND: u16 = 0x800;
/// NLM_F_DUMP_INTR: the dump is not of one generation.
pub(super) const INTERRUPTED: u16 = 0x10;

/// NFPROTO_INET.
const FAMILY: u8 = 1;
/// NLA_F_NESTED.
const NESTED: u16 = 0x8000;
const HEADER: usize = 16;
const GENERIC: usize = 4;

/// Attributes being written.
pub(super) struct Attributes<'a>(pub(super) &'a mut Vec<u8>);

impl Attributes<'_> {
    /// How much has been written.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.0.extend_from_slice(&length(4 + value.len()).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        align(self.0);
    }

    /// Attributes as they were read.
    pub(super) fn raw(&mut self, attributes: &[u8]) {
        self.0.extend_from_slice(attributes);
        align(self.0);
    }

    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn wide(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A string with its closing zero.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.0.extend_from_slice(&length(5 + value.len()).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
        align(self.0);
    }

    pub(super) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        inner(&mut Attributes(self.0));
        let written = length(self.0.len() - start);
        patch(self.0, start, &written.to_ne_bytes());
    }
}

/// A length as an attribute holds it. Nobody writes longer ones: lists are cut long before.
fn length(bytes: usize) -> u16 {
    debug_assert!(bytes <= usize::from(u16::MAX), "an attribute of {bytes} bytes");
    u16::try_from(bytes).unwrap_or(u16::MAX)
}

fn align(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn patch(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// The messages of one transaction. All of them take effect in one instant, or none does.
pub(super) struct Batch {
    bytes: Vec<u8>,
    first: u32,
    next: u32,
    last_header: usize,
}

impl Batch {
    /// An empty batch whose messages are numbered from `sequence`.
    pub(super) fn new(sequence: u32) -> Self {
        let mut batch = Self { bytes: Vec::with_capacity(4096), first: sequence, next: sequence, last_header: 0 };
        batch.write(BATCH_BEGIN, NLM_F_REQUEST, (0, SUBSYSTEM), |_| ());
        batch.last_header = 0;
        batch
    }

    /// One message.
    pub(super) fn message(&mut self, verb: Verb, flags: u16, body: impl FnOnce(&mut Attributes<'_>)) {
        self.write(SUBSYSTEM << 8 | verb as u16, NLM_F_REQUEST | flags, (FAMILY, 0), body);
    }

    /// How many bytes it has.
    pub(super) const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True where there is nothing to send.
    pub(super) const fn is_empty(&self) -> bool {
        self.last_header == 0
    }

    fn write(&mut self, kind: u16, flags: u16, (family, resource): (u8, u16), body: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.bytes.len();
        self.last_header = start;
        header(&mut self.bytes, kind, flags, self.next, family, resource);
        self.next = self.next.wrapping_add(1);
        body(&mut Attributes(&mut self.bytes));
        close(&mut self.bytes, start);
    }

    /// The bytes to send, the number of the opening message and that of the message which asks for an
    /// acknowledgement: the last one, since the kernel reports the others only where they fail.
    pub(super) fn finish(mut self) -> Sealed {
        let acknowledged = self.next.wrapping_sub(1);
        let flags = self.last_header + 6;
        let asked = self.bytes.get(flags..flags + 2).and_then(|at| at.try_into().ok()).map_or(0, u16::from_ne_bytes);
        patch(&mut self.bytes, flags, &(asked | ACK).to_ne_bytes());
        self.write(BATCH_END, NLM_F_REQUEST, (0, SUBSYSTEM), |_| ());
        Sealed { bytes: self.bytes, first: self.first, acknowledged, next: self.next }
    }
}

/// A batch that is ready to be sent.
pub(super) struct Sealed {
    pub(super) bytes: Vec<u8>,
    /// The number of the opening message; a refusal of the whole batch carries it.
    pub(super) first: u32,
    /// The number of the message whose acknowledgement ends the answer.
    pub(super) acknowledged: u32,
    /// The first number that is free again.
    pub(super) next: u32,
}

/// One request for a dump.
pub(super) fn dump(verb: Verb, sequence: u32, body: impl FnOnce(&mut Attributes<'_>)) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    request(&mut bytes, (SUBSYSTEM << 8 | verb as u16, DUMP), (sequence, FAMILY), body);
    bytes
}

/// One request for a single answer.
pub(super) fn ask(verb: Verb, sequence: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    request(&mut bytes, (SUBSYSTEM << 8 | verb as u16, ACK), (sequence, FAMILY), |_| ());
    bytes
}

/// One request by itself, of any subsystem.
pub(super) fn request(
    bytes: &mut Vec<u8>,
    (kind, flags): (u16, u16),
    (sequence, family): (u32, u8),
    body: impl FnOnce(&mut Attributes<'_>),
) {
    let start = bytes.len();
    header(bytes, kind, NLM_F_REQUEST | flags, sequence, family, 0);
    body(&mut Attributes(bytes));
    close(bytes, start);
}

/// One request about a group of nfnetlink_log.
pub(super) fn group_request(
    bytes: &mut Vec<u8>,
    (kind, flags): (u16, u16),
    (sequence, group): (u32, u16),
    body: impl FnOnce(&mut Attributes<'_>),
) {
    let start = bytes.len();
    header(bytes, kind, NLM_F_REQUEST | flags, sequence, 0, group);
    body(&mut Attributes(bytes));
    close(bytes, start);
}

fn header(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16) {
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[family, 0]);
    bytes.extend_from_slice(&resource.to_be_bytes());
}

fn close(bytes: &mut [u8], start: usize) {
    let length = u32::try_from(bytes.len() - start).unwrap_or(0);
    patch(bytes, start, &length.to_ne_bytes());
}

/// One message from the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// Who caused it: the port of a socket.
    pub(super) port: u32,
    /// Everything behind the netlink header.
    pub(super) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes of a message of a netfilter subsystem, behind its generic header.
    pub(super) fn attributes(&self) -> Reader<'a> {
        Reader(self.body.get(GENERIC..).unwrap_or(&[]))
    }

    /// True where nf_tables speaks, whatever it says.
    pub(super) const fn is_nf_tables(&self) -> bool {
        self.kind >> 8 == SUBSYSTEM
    }

    /// True where it tells of a chain or a rule.
    pub(super) const fn is_of_chains(&self) -> bool {
        matches!(self.kind & 0xff, 3..=8)
    }

    /// The errno of an [`ERROR`]; 0 acknowledges.
    pub(super) fn errno(&self) -> i32 {
        self.body
            .get(..4)
            .and_then(|at| at.try_into().ok())
            .map_or(0, |code: [u8; 4]| i32::from_ne_bytes(code).saturating_neg())
    }

    /// The kernel's own words on an [`ERROR`] (NLMSGERR_ATTR_MSG; the request is not echoed back: NETLINK_CAP_ACK).
    pub(super) fn reason(&self) -> Option<&'a str> {
        let text = Reader(self.body.get(4 + HEADER..)?).find(|(kind, _)| *kind == 1)?.1;
        std::str::from_utf8(text).ok().map(|text| text.trim_end_matches('\0'))
    }
}

/// Every message of one datagram.
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let word = |at: usize| self.0.get(at..at + 4).and_then(|at| at.try_into().ok()).map(u32::from_ne_bytes);
        let half = |at: usize| self.0.get(at..at + 2).and_then(|at| at.try_into().ok()).map(u16::from_ne_bytes);
        let length = usize::try_from(word(0)?).ok().filter(|length| *length >= HEADER)?;
        let body = self.0.get(HEADER..length)?;
        let message = Message { kind: half(4)?, flags: half(6)?, sequence: word(8)?, port: word(12)?, body };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    }
}

/// Attributes being read: each one's type, without its flag bits, and its value.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Reader<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let half = |at: usize| self.0.get(at..at + 2).and_then(|at| at.try_into().ok()).map(u16::from_ne_bytes);
        let length = usize::from(half(0)?);
        let attribute = (half(2)? & 0x3fff, self.0.get(4..length)?);
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(attribute)
    }
}

/// A number in network order.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// A wide number in network order.
pub(super) fn wide(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_be_bytes)
}

/// A string without its closing zero.
pub(super) fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(b"\0").unwrap_or(value)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_batch_opens_closes_and_asks_for_one_acknowledgement() {
        let mut batch = Batch::new(7);
        assert!(batch.is_empty());
        batch.message(Verb::NewTable, CREATE, |a| a.text(1, "outgate"));
        batch.message(Verb::NewSet, CREATE, |a| a.nest(9, |a| a.number(1, 5)));
        let sealed = batch.finish();
        let messages: Vec<_> = Messages(&sealed.bytes).collect();
        let seen: Vec<_> = messages.iter().map(|m| (m.kind, m.flags, m.sequence)).collect();
        assert_eq!(seen, [(16, 1, 7), (0xa00, 0x401, 8), (0xa09, 0x405, 9), (17, 1, 10)]);
        assert_eq!((sealed.first, sealed.acknowledged, sealed.next), (7, 9, 11));
        let attributes: Vec<_> = messages[1].attributes().collect();
        assert_eq!(attributes, [(1, &b"outgate\0"[..])]);
        assert_eq!(text(attributes[0].1), Some("outgate"));
        let nested = messages[2].attributes().next().map(|(_, inner)| Reader(inner).next());
        assert_eq!(nested, Some(Some((1, &[0, 0, 0, 5][..]))));
    }

    proptest! {
        #[test]
        fn reading_foreign_bytes_ends(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            for message in Messages(&bytes) {
                let _ = (message.errno(), message.reason(), message.attributes().count());
            }
        }

        #[test]
        fn what_is_written_is_read(values in prop::collection::vec((1u16..0x3fff, prop::collection::vec(any::<u8>(), 0..64)), 0..32)) {
            let mut bytes = Vec::new();
            for (kind, value) in &values {
                Attributes(&mut bytes).bytes(*kind, value);
            }
            let read: Vec<_> = Reader(&bytes).map(|(kind, value)| (kind, value.to_vec())).collect();
            prop_assert_eq!(read, values);
        }
    }
}
