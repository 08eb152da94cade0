//! Programs of others: found or done without, started and stopped.

use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Where more programs are than in everybody's path.
const ADMINISTRATORS: &str = "/usr/sbin:/sbin";

fn path() -> String {
    format!("{}:{ADMINISTRATORS}", std::env::var("PATH").unwrap_or_default())
}

/// Says that a test is skipped for want of this; fails where `CI=true`.
pub(crate) fn skip(needs: &str) {
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "needs {needs}");
    println!("skipped: needs {needs}");
}

/// Whether all of these are here; if not, the test is skipped.
pub(crate) fn are_here(programs: &[&str]) -> bool {
    let path = path();
    let is_here = |program: &&str| path.split(':').any(|directory| Path::new(directory).join(program).is_file());
    let missing: Vec<&str> = programs.iter().filter(|program| !is_here(program)).copied().collect();
    if !missing.is_empty() {
        skip(&missing.join(", "));
    }
    missing.is_empty()
}

/// One that is here, silent and without input unless it is told otherwise.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// One that runs; killed when dropped.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
