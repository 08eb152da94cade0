//! What a file holds, unpacked as it is read: plain text, zstd or gzip, told by the first bytes.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// RFC 1952 §2.3.1: "These have the fixed values ID1 = 31 (0x1f, \037), ID2 = 139 (0x8b, \213)".
const GZIP: &[u8] = &[0x1f, 0x8b];
/// RFC 8878 §3.1.1: "Value: 0xFD2FB528", little-endian.
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// RFC 8878 §3.1.2, a skippable frame: "0x184D2A5?, which means any value from 0x184D2A50 to 0x184D2A5F"; what is behind
/// its first byte. Parallel compressors begin with one.
const SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// What is decoded ahead of being read.
const AHEAD: usize = 1 << 17;

/// Reads what `source` holds: plain text, zstd or gzip.
///
/// # Errors
/// Its first bytes cannot be read.
pub fn decoded(source: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let mut source = BufReader::with_capacity(AHEAD, source);
    let begin = source.fill_buf()?;
    Ok(if begin.starts_with(GZIP) {
        Box::new(MultiGzDecoder::new(source))
    } else if is_packed(begin) {
        Box::new(Frames { source, decoder: FrameDecoder::new() })
    } else {
        Box::new(source)
    })
}

/// Whether a file that begins so is packed; four bytes tell.
pub(in crate::audit) fn is_packed(begin: &[u8]) -> bool {
    let skippable = matches!(begin, [0x50..=0x5f, rest @ ..] if rest.starts_with(SKIPPABLE));
    begin.starts_with(GZIP) || begin.starts_with(ZSTD) || skippable
}

/// Every frame of a zstd file, one behind the other: files that were joined, or packed in parts.
struct Frames<R> {
    source: BufReader<R>,
    decoder: FrameDecoder,
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.decoder.can_collect() == 0 {
            if !self.decoder.is_finished() {
                let strategy = BlockDecodingStrategy::UptoBytes(AHEAD);
                self.decoder.decode_blocks(&mut self.source, strategy).map_err(io::Error::other)?;
                continue;
            }
            if self.decoder.get_checksum_from_data() != self.decoder.get_calculated_checksum() {
                return Err(io::Error::other("its checksum does not hold"));
            }
            if self.source.fill_buf()?.is_empty() {
                return Ok(0);
            }
            match self.decoder.init(&mut self.source) {
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    io::copy(&mut (&mut self.source).take(length.into()), &mut io::sink())?;
                }
                ready => ready.map_err(io::Error::other)?,
            }
        }
        self.decoder.read(buffer)
    }
}

/// Counts what is read from a file.
pub(super) struct Counted<R> {
    source: R,
    passed: Rc<Cell<u64>>,
}

impl<R> Counted<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, passed: Rc::default() }
    }

    /// How many bytes were read, now and whenever it is asked.
    pub(super) fn passed(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.passed)
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.passed.set(self.passed.get() + read as u64);
        Ok(read)
    }
}
