//! The gate as the stream doors see it: one outbox, one shard of the log, for all of them.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::silence::Silence;
use super::tcp::StreamGate;
use crate::audit::Transport;
use crate::gate::{Arrival, Fast, Finished, Gate, Outbox};

/// See the module.
#[derive(Debug)]
pub struct StreamDoor {
    gate: Arc<Gate>,
    outbox: Mutex<Outbox<()>>,
    silence: Silence,
}

impl StreamDoor {
    /// A door over its own outbox.
    #[must_use]
    pub fn new(gate: Arc<Gate>, outbox: Outbox<()>) -> Self {
        Self { gate, outbox: Mutex::new(outbox), silence: Silence::default() }
    }

    /// Records the one reply in the outbox, and only then takes its bytes.
    fn release(&self, outbox: &mut Outbox<()>) -> Option<Vec<u8>> {
        match outbox.release() {
            Ok(released) => {
                self.silence.end();
                released.iter().next().map(|(bytes, ())| bytes.to_vec())
            }
            Err(error) => {
                self.silence.begin(&error);
                None
            }
        }
    }
}

impl StreamGate for StreamDoor {
    async fn answer(&self, packet: Vec<u8>, peer: SocketAddr, _local: SocketAddr) -> Option<Vec<u8>> {
        let arrival = Arrival { peer, transport: Transport::Tcp, at: self.gate.clock.now() };
        let fast = {
            let rulebook = self.gate.rulebook();
            let mut outbox = self.outbox.lock();
            match self.gate.fast(&rulebook, &packet, arrival, &mut outbox, || ()) {
                Fast::Done => return self.release(&mut outbox),
                Fast::Slow(job) => job,
            }
        };
        let conclusion = self.gate.slow(&fast).await;
        let mut outbox = self.outbox.lock();
        self.gate.finish(&Finished { job: fast, conclusion }, &mut outbox, || ());
        self.release(&mut outbox)
    }
}
