//! Where names stand in RDATA: which are decompressed on the way in, and which may be compressed on the way out.

use std::sync::Arc;

use smallvec::SmallVec;

use super::Fault;
use super::reader::{RawRecord, Reader};
use crate::record::RecordType;

/// RDATA that holds names: fixed octets, character-strings, names, a tail.
struct Layout {
    prefix: usize,
    strings: usize,
    names: usize,
    /// `None`: any length.
    tail: Option<usize>,
    /// RFC 3597 §4: "servers MUST NOT compress domain names embedded in the RDATA of types that are
    /// class-specific or not well-known". Well-known are those of RFC 1035.
    compressible: bool,
}

/// RFC 3597 §4: "Receiving servers MUST decompress domain names in RRs of well-known type, and SHOULD also
/// decompress RRs of type RP, AFSDB, RT, SIG, PX, NXT, NAPTR, and SRV". KX and DNAME are added: RFC 4034 §6.2
/// counts their names among those that have a canonical form.
const fn layout(kind: RecordType) -> Option<Layout> {
    let (prefix, strings, names, tail, compressible) = match kind.0 {
        // NS, MD, MF, CNAME, MB, MG, MR, PTR
        2 | 3 | 4 | 5 | 7 | 8 | 9 | 12 => (0, 0, 1, Some(0), true),
        // SOA
        6 => (0, 0, 2, Some(20), true),
        // MINFO
        14 => (0, 0, 2, Some(0), true),
        // MX
        15 => (2, 0, 1, Some(0), true),
        // RP
        17 => (0, 0, 2, Some(0), false),
        // AFSDB, RT, KX
        18 | 21 | 36 => (2, 0, 1, Some(0), false),
        // SIG
        24 => (18, 0, 1, None, false),
        // PX
        26 => (2, 0, 2, Some(0), false),
        // NXT
        30 => (0, 0, 1, None, false),
        // SRV
        33 => (6, 0, 1, Some(0), false),
        // NAPTR
        35 => (4, 3, 1, Some(0), false),
        // DNAME
        39 => (0, 0, 1, Some(0), false),
        _ => return None,
    };
    Some(Layout { prefix, strings, names, tail, compressible })
}

/// RDATA with its names uncompressed and in lower case (RFC 4034 §6.2), all else as it stands. `reader` is just
/// past the record.
pub(super) fn expand(record: &RawRecord<'_>, reader: &Reader<'_>) -> Result<Arc<[u8]>, Fault> {
    let data = record.data;
    let kind = RecordType(record.kind);
    let wrong_length = match kind {
        RecordType::A => data.len() != 4,
        RecordType::AAAA => data.len() != 16,
        _ => false,
    };
    if wrong_length {
        return Err(Fault::Data);
    }
    let Some(layout) = layout(kind) else { return Ok(Arc::from(data)) };
    let mut expanded: SmallVec<[u8; 128]> = SmallVec::new();
    let mut reader = reader.back_to_start_of(data);
    expanded.extend_from_slice(reader.take(layout.prefix)?);
    for _ in 0..layout.strings {
        let length = reader.u8()?;
        expanded.push(length);
        expanded.extend_from_slice(reader.take(length.into())?);
    }
    for _ in 0..layout.names {
        expanded.extend_from_slice(&reader.name()?);
    }
    let tail = reader.rest();
    if layout.tail.is_some_and(|length| length != tail.len()) {
        return Err(Fault::Data);
    }
    expanded.extend_from_slice(tail);
    Ok(Arc::from(&*expanded))
}

/// Uncompressed RDATA, cut.
pub(super) struct Parts<'a> {
    pub(super) prefix: &'a [u8],
    pub(super) names: SmallVec<[&'a [u8]; 2]>,
    pub(super) tail: &'a [u8],
}

/// Cuts uncompressed RDATA, where it is of a type whose names may be compressed and has that type's shape.
pub(super) fn compressible(kind: RecordType, data: &[u8]) -> Option<Parts<'_>> {
    let layout = layout(kind).filter(|layout| layout.compressible)?;
    let mut reader = Reader::new(data);
    let prefix = reader.take(layout.prefix).ok()?;
    let mut names = SmallVec::new();
    for _ in 0..layout.names {
        let start = reader.clone();
        reader.plain_name().ok()?;
        names.push(reader.since(&start));
    }
    Some(Parts { prefix, names, tail: reader.rest() })
}
