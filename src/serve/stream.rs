//! The gate as the stream doors see it: one outbox, one shard of the log, for all of them.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;

use super::tcp::{Caller, Frames, Round, Standing, StreamGate};
use crate::gate::{Arrival, Fast, Finished, Gate, Job, Outbox};
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
    type Job = Job;
    type Finished = Finished;

    fn standing(&self, peer: IpAddr) -> Standing {
        let policy = &self.gate.rulebook.load().policy;
        if policy.identity(peer).is_some() {
            Standing::Forwarder
        } else if policy.asker(peer).is_some() {
            Standing::Client
        } else {
            Standing::Stranger
        }
    }

    fn takes_proxy(&self, peer: IpAddr) -> bool {
        self.gate.rulebook.load().policy.takes_proxy(peer)
    }

    fn answer(&self, frames: &mut Frames, caller: &Caller, round: &mut Round<Job>) {
        let Desk { outbox, passed } = &mut *self.desk.lock();
        let rulebook = self.gate.use_rulebook(passed);
        let Caller { peer, transport, said } = caller.clone();
        let arrival = Arrival { peer, transport, at: self.gate.clock.now(), said };
        while !round.is_full(outbox.size())
            && let Some(packet) = frames.take()
        {
            if let Fast::Slow(job) = self.gate.fast(&rulebook, packet, arrival.clone(), outbox, || ()) {
                round.wait(job);
            }
        }
        release(outbox, round);
    }

    async fn wait(&self, job: Job) -> Finished {
        let mut slow = pin!(self.gate.slow(job, &self.ports));
        tokio::select! {
            biased;
            finished = &mut slow => finished,
            () = self.gate.hurry.raised() => slow.await,
        }
    }

    fn finish(&self, finished: Vec<Finished>, round: &mut Round<Job>) {
        let Desk { outbox, passed } = &mut *self.desk.lock();
        let _rulebook = self.gate.use_rulebook(passed);
        for finished in finished {
            if let Some(again) = self.gate.finish(finished, outbox, || ()) {
                round.wait(again);
            }
        }
        release(outbox, round);
    }
}

/// Records the replies in the outbox, and only then takes their bytes.
fn release(outbox: &mut Outbox<()>, round: &mut Round<Job>) {
    if outbox.is_empty() {
        return;
    }
    // Without a record there is no answer; the outbox has said so.
    match outbox.release() {
        Ok(released) => released.iter().for_each(|(bytes, ())| round.reply(bytes)),
        Err(_) => round.fail(),
    }
}
