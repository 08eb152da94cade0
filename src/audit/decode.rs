//! What a file holds, unpacked as it is read: plain text, zstd or gzip, told by the first bytes.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use zstd::Decoder;

/// RFC 1952 §2.3.1: "These have the fixed values ID1 = 31 (0x1f, \037), ID2 = 139 (0x8b, \213)".
const GZIP: &[u8] = &[0x1f, 0x8b];
/// RFC 8878 §3.1.1: "Value: 0xFD2FB528", little-endian.
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// RFC 8878 §3.1.2, a skippable frame: "0x184D2A5?, which means any value from 0x184D2A50 to 0x184D2A5F"; what is behind
/// its first byte. Parallel compressors begin with one.
const SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// What is read ahead.
const AHEAD: usize = 1 << 17;

/// Reads what `source` holds: every frame of it, one behind the other, for files may have been joined or packed in
/// parts. A decoder's window takes 128 MiB at most.
///
/// # Errors
/// Its first bytes cannot be read.
pub fn decoded(source: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    let mut source = BufReader::with_capacity(AHEAD, source);
    let begin = source.fill_buf()?;
    Ok(if begin.starts_with(GZIP) {
        Box::new(MultiGzDecoder::new(source))
    } else if is_packed(begin) {
        Box::new(Decoder::with_buffer(source)?)
    } else {
        Box::new(source)
    })
}

/// Whether a file that begins so is packed; four bytes tell.
pub(super) fn is_packed(begin: &[u8]) -> bool {
    let skippable = matches!(begin, [0x50..=0x5f, rest @ ..] if rest.starts_with(SKIPPABLE));
    begin.starts_with(GZIP) || begin.starts_with(ZSTD) || skippable
}

/// Counts what is read from a file.
pub(super) struct Counted<R> {
    source: R,
    passed: Arc<AtomicU64>,
}

impl<R> Counted<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, passed: Arc::default() }
    }

    /// How many bytes were read, now and whenever it is asked.
    pub(super) fn passed(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.passed)
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.passed.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
