//! Files that an operator named: read whole. They may be pipes, and not endless.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// The largest: far above any configuration, and what it names of keys and authorities (guessed).
const LARGEST: u64 = 16 << 20;

/// The octets of a file.
///
/// # Errors
/// It cannot be read, or is too large.
pub fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut octets = Vec::new();
    let read = File::open(path)?.take(LARGEST + 1).read_to_end(&mut octets)?;
    fits(read).map(|()| octets)
}

/// The text of a file.
///
/// # Errors
/// Those of [`read_file`]; it is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(LARGEST + 1).read_to_string(&mut text)?;
    fits(read).map(|()| text)
}

fn fits(read: usize) -> io::Result<()> {
    if read as u64 > LARGEST {
        return Err(io::Error::other(format!("it is larger than {} MiB", LARGEST >> 20)));
    }
    Ok(())
}
