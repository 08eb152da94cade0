//! The secrets of DNS cookies: a file of the state directory that nobody else may read, made at the first start. Nodes that
//! share an address share its contents.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::document::{Mistake, Place};
use crate::gate::Secrets;

const FILE: &str = "cookies";

/// Reads them; makes them where there are none.
pub(super) fn secrets(state: &Path) -> Result<Secrets, Mistake> {
    let path = state.join(FILE);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => make(state, &path),
        read => read.inspect(|_| warn_of_readers(&path)),
    };
    let text = text.map_err(|error| {
        let fact = format!("the secrets of DNS cookies, {}, cannot be read or made: {error}", path.display());
        Mistake::general(fact, "let the file belong to the user that outgate runs as, or remove it: new ones are made")
    })?;
    Secrets::read(&text).map_err(|line| {
        let place = Place { file: path.display().to_string().into(), line, column: 1 };
        Mistake::at(
            place,
            "not a secret of DNS cookies, or one too many",
            "write one or two lines of 32 hexadecimal digits, or remove the file: another is made",
        )
    })
}

/// Whoever knows the secrets can forge an address that `cookie` of a record calls valid.
fn warn_of_readers(path: &Path) {
    let open = path.metadata().is_ok_and(|file| file.permissions().mode() & 0o007 != 0);
    if open {
        let path = path.display();
        tracing::warn!("every user of this machine may read the secrets of DNS cookies; chmod o= {path}");
    }
}

/// At once: a reader, and who starts after a crash, sees the whole file or none.
fn make(state: &Path, path: &Path) -> io::Result<String> {
    let text = format!("{:032x}\n", u128::from(getrandom::u64()?) << 64 | u128::from(getrandom::u64()?));
    let beside = state.join("cookies.new");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&beside, path)?;
    Ok(text)
}
