//! A real `knotd` on a loopback port.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use crate::programs::{Running, are_here, command};

/// How long Knot may take to load or to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running `knotd`: stopped by its own handle, its directory removed.
pub(crate) struct Knot {
    running: Running,
    pub(crate) directory: PathBuf,
    pub(crate) address: SocketAddr,
}

impl Drop for Knot {
    fn drop(&mut self) {
        self.running.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Knot {
    /// Starts it with these zones, each in the file of its name and `.zone`, and files beside them; returns when all
    /// are loaded. `None`: it is not installed.
    pub(crate) fn start(port: u16, zones: &[String], files: &[(String, String)]) -> Option<Self> {
        if !are_here(&["knotd"]) {
            return None;
        }
        let directory = std::env::temp_dir().join(format!("outgate-knot-{}-{port}", std::process::id()));
        for (file, text) in files {
            let path = directory.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let root = directory.display();
        let mut config = format!(
            "server:\n    rundir: \"{root}\"\n    listen: 127.0.0.1@{port}\n    udp-workers: 1\n    tcp-workers: 1\n    \
             background-workers: 1\ncontrol:\n    listen: \"{root}/control\"\ndatabase:\n    storage: \"{root}/database\"\n\
             log:\n  - target: stderr\n    any: info\ntemplate:\n  - id: default\n    storage: \"{root}\"\n    \
             journal-content: none\nzone:\n"
        );
        for domain in zones {
            writeln!(config, "  - domain: {domain}\n    file: \"{domain}.zone\"").unwrap();
        }
        let path = directory.join("knot.conf");
        fs::write(&path, config).unwrap();
        let running = Running::start(command("knotd").arg("-c").arg(&path).stderr(Stdio::piped()));
        let mut knot = Self { running, directory, address: (Ipv4Addr::LOCALHOST, port).into() };
        knot.wait_for(zones.len());
        Some(knot)
    }

    fn wait_for(&mut self, zones: usize) {
        let log = BufReader::new(self.running.0.stderr.take().unwrap());
        let (send, lines) = mpsc::channel();
        // Reads to the end, so that Knot never waits for a reader.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        let mut said = Vec::new();
        while said.iter().filter(|line: &&String| line.contains("loaded, serial")).count() < zones {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) => said.push(line),
                Err(error) => panic!("knotd has not loaded {zones} zones ({error}): {said:#?}"),
            }
        }
    }
}
