//! The gate as the stream doors see it: one outbox, one shard of the log, for all of them.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::tcp::StreamGate;
use crate::audit::Transport;
use crate::gate::{Arrival, Fast, Gate, Outbox};

/// See the module.
#[derive(Debug)]
pub struct StreamDoor {
    gate: Arc<Gate>,
    outbox: Mutex<Outbox<()>>,
}

impl StreamDoor {
    /// A door over its own outbox.
    #[must_use]
    pub const fn new(gate: Arc<Gate>, outbox: Outbox<()>) -> Self {
        Self { gate, outbox: Mutex::new(outbox) }
    }
}

impl StreamGate for StreamDoor {
    async fn answer(&self, packet: Vec<u8>, peer: SocketAddr, _local: SocketAddr) -> Option<Vec<u8>> {
        let arrival = Arrival { peer, transport: Transport::Tcp, at: self.gate.clock.now() };
        let job = {
            let rulebook = self.gate.rulebook();
            let mut outbox = self.outbox.lock();
            match self.gate.fast(&rulebook, &packet, arrival, &mut outbox, || ()) {
                Fast::Done => return release(&mut outbox),
                Fast::Slow(job) => job,
            }
        };
        let finished = self.gate.slow(job).await;
        let mut outbox = self.outbox.lock();
        self.gate.finish(&finished, &mut outbox, || ());
        release(&mut outbox)
    }
}

/// Records the one reply in the outbox, and only then takes its bytes.
fn release(outbox: &mut Outbox<()>) -> Option<Vec<u8>> {
    let released = outbox.release().ok()?;
    released.iter().next().map(|(bytes, ())| bytes.to_vec())
}
