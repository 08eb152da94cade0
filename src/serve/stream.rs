//! The gate as the stream doors see it: one outbox, one shard of the log, for all of them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;

use super::tcp::{Standing, StreamGate};
use crate::audit::Transport;
use crate::gate::{Arrival, Fast, Gate, Outbox};
use crate::net::canonical;
use crate::upstream::Ports;

/// See the module.
#[derive(Debug)]
pub struct StreamDoor {
    gate: Arc<Gate>,
    ports: Ports,
    desk: Mutex<Desk>,
}

#[derive(Debug)]
struct Desk {
    outbox: Outbox<()>,
    passed: Arc<AtomicU64>,
}

impl StreamDoor {
    /// A door over its own outbox.
    #[must_use]
    pub fn new(gate: Arc<Gate>, outbox: Outbox<()>) -> Self {
        let passed = gate.passed.register();
        let ports = gate.upstreams.ports();
        Self { gate, ports, desk: Mutex::new(Desk { outbox, passed }) }
    }
}

impl StreamGate for StreamDoor {
    fn standing(&self, peer: IpAddr) -> Standing {
        let policy = &self.gate.rulebook.load().policy;
        match policy.asker(canonical(peer)) {
            None => Standing::Stranger,
            Some(asker) if policy.forwarder(asker).is_some() => Standing::Forwarder,
            Some(_) => Standing::Client,
        }
    }

    async fn answer(&self, packet: Vec<u8>, peer: SocketAddr, transport: Transport) -> Option<Vec<u8>> {
        let arrival = Arrival { peer, transport, at: self.gate.clock.now() };
        let mut job = {
            let Desk { outbox, passed } = &mut *self.desk.lock();
            let rulebook = self.gate.use_rulebook(passed);
            match self.gate.fast(&rulebook, &packet, arrival, outbox, || ()) {
                Fast::Done => return release(outbox),
                Fast::Slow(job) => job,
            }
        };
        loop {
            let finished = self.gate.slow(job, &self.ports).await;
            let Desk { outbox, passed } = &mut *self.desk.lock();
            let _rulebook = self.gate.use_rulebook(passed);
            match self.gate.finish(finished, outbox, || ()) {
                None => return release(outbox),
                Some(again) => job = again,
            }
        }
    }
}

/// Records the one reply in the outbox, and only then takes its bytes.
fn release(outbox: &mut Outbox<()>) -> Option<Vec<u8>> {
    let released = outbox.release().ok()?;
    released.iter().next().map(|(bytes, ())| bytes.to_vec())
}
