//! What is under way while something else happens.

use std::net::UdpSocket;

use tokio::task::JoinHandle;

use super::*;
use crate::cache::{Flush, Found, Known};

/// An upstream server that answers when the test has it do so.
struct Server(UdpSocket);

/// A question that it was asked, and by whom: each exchange has a port of its own.
struct Asked(Vec<u8>, SocketAddr);

impl Server {
    fn start() -> (Self, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        socket.set_read_timeout(Some(BOUND)).unwrap();
        (Self(socket), address)
    }

    /// The next exchange; `before` sends its question again and again.
    fn asked(&self, before: Option<&Asked>) -> Asked {
        let mut packet = [0; 512];
        loop {
            let (length, peer) = self.0.recv_from(&mut packet).unwrap();
            if before.is_none_or(|before| before.1 != peer) {
                return Asked(packet[..length].into(), peer);
            }
        }
    }

    /// Answers with 198.51.100.`last`.
    fn answer(&self, Asked(packet, peer): &Asked, last: u8) {
        let end = 12 + question().name.as_wire().len() + 4;
        let mut reply = packet[..end].to_vec();
        reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 51, 100, last]);
        self.0.send_to(&reply, peer).unwrap();
    }
}

impl World {
    /// Begins the slow path for [`question`], asked by this client.
    pub(super) fn ask(&mut self, client: &str) -> JoinHandle<Finished> {
        let mut packet = Vec::new();
        crate::wire::encode_query(&mut packet, 1, &question(), false, || false);
        let peer = SocketAddr::new(client.parse().unwrap(), 40_000);
        let arrival = Arrival::new(peer, Transport::Udp, self.clock.now());
        let (gate, rulebook) = (Arc::clone(&self.gate), self.gate.rulebook());
        let Fast::Slow(job) = gate.fast(&rulebook, &packet, arrival, &mut self.outbox, || ()) else {
            panic!("nothing is known yet, and it is allowed");
        };
        self.runtime.spawn(async move { gate.slow(job, &gate.upstreams.ports()).await })
    }

    fn finished(&self, asked: JoinHandle<Finished>) -> Finished {
        self.runtime.block_on(asked).unwrap()
    }

    /// An answer that has ended and might be told all the same.
    fn know_what_has_ended(&self) {
        let (view, told_until) = (0, self.clock.now().tick);
        let known = Known { answer: answer(), told_until, origin: None, last: Mutex::default() };
        self.gate.answers.put(view, &question(), Arc::new(known), self.gate.answers.flushes());
    }

    fn fails(&self, reason: Reason) {
        let failure = Failure::new(reason, crate::record::ExtendedError::OTHER, "it failed");
        self.gate.failures.put(0, &question(), failure, 0, self.gate.failures.flushes(), self.clock.now().tick);
    }
}

/// Whether an answer was told, or why not.
fn told(finished: &Finished) -> Result<(), Reason> {
    match &finished.conclusion {
        Conclusion::Told { .. } => Ok(()),
        Conclusion::Failed(failure) => Err(failure.reason),
        other => panic!("{other:?}"),
    }
}

/// I1, I4: what was decided while the segment observed is decided anew where the answer comes after its end.
#[test]
fn an_answer_that_comes_after_the_end_of_observing_is_not_told() {
    let (place, clock) = (Place::new(), Clock::manual());
    let gateway = Gateway::new(&clock, true);
    let (server, address) = Server::start();
    let policy = observing(&clock);
    let mut world = World::start(&place, &clock, &policy, &[&gateway], Some(address));
    let asked = world.ask("192.0.1.1");
    let question = server.asked(None);
    clock.advance(Duration::from_secs(15));
    server.answer(&question, 7);
    let finished = world.finished(asked);
    assert!(matches!(finished.conclusion, Conclusion::Refused(_)), "{:?}", finished.conclusion);
    let gate = Arc::clone(&world.gate);
    assert!(gate.finish(finished, &mut world.outbox, || ()).is_none());
    drop(gate);
    world.stop();
}

/// Who forges an answer must not have the one before it told: neither at once nor after a wait, neither while the question
/// rests nor later. Any other failure has it told.
#[test]
fn a_bogus_answer_is_never_replaced_by_a_stale_one() {
    let rows = [(false, 0), (false, 1), (true, 0), (true, 1)];
    for (reason, expected) in [(Reason::Dnssec, Err(Reason::Dnssec)), (Reason::Upstream, Ok(()))] {
        for (waits, since) in rows {
            let (place, clock) = (Place::new(), Clock::manual());
            let gateway = Gateway::new(&clock, true);
            let (_server, address) = Server::start();
            let mut world = World::start(&place, &clock, POLICY, &[&gateway], Some(address));
            world.know_what_has_ended();
            clock.advance(Duration::from_secs(1));
            let fails = |world: &World| {
                world.fails(reason);
                clock.advance(Duration::from_secs(since));
            };
            if !waits {
                fails(&world);
            }
            let asked = world.ask("192.0.2.1");
            if waits {
                while world.gate.refreshes.is_empty() {
                    std::thread::yield_now();
                }
                fails(&world);
                // What was ordered ends.
                world.refresher = None;
            }
            assert_eq!(told(&world.finished(asked)), expected, "waits {waits}, failed {since} s ago");
            world.stop();
        }
    }
}

/// I1: what was ordered under a policy that allowed it is not asked under one that does not.
#[test]
fn a_refresh_is_decided_again_before_it_is_begun() {
    let (place, clock) = (Place::new(), Clock::manual());
    let gateway = Gateway::new(&clock, true);
    let (server, address) = Server::start();
    server.0.set_nonblocking(true).unwrap();
    for allowed in [false, true] {
        let mut world = World::start(&place, &clock, POLICY, &[&gateway], Some(address));
        let refresh = world.gate.refreshes.begin(0, &world.permit(), None).unwrap();
        if !allowed {
            let next = rulebook("[[segment]]\nname = \"shop\"\n", 2, &clock, &world.registry);
            world.runtime.block_on(world.gate.swap(next)).unwrap();
        }
        let running = world.runtime.spawn(world.refresher.take().unwrap().run(Arc::clone(&world.gate)));
        let mut packet = [0; 512];
        if allowed {
            while server.0.recv(&mut packet).is_err() {
                std::thread::yield_now();
            }
        } else {
            world.runtime.block_on(refresh.ended());
            assert!(server.0.recv(&mut packet).is_err(), "it was asked");
        }
        running.abort();
        assert!(world.runtime.block_on(running).is_err());
        world.stop();
    }
}

/// What was asked before a flush is told to who waits for it, and neither kept nor shared with who asks after it.
#[test]
fn what_was_asked_before_a_flush_is_not_kept_after_it() {
    let (place, clock) = (Place::new(), Clock::manual());
    let gateway = Gateway::new(&clock, true);
    let (server, address) = Server::start();
    let mut world = World::start(&place, &clock, POLICY, &[&gateway], Some(address));
    let before = world.ask("192.0.2.1");
    let first = server.asked(None);
    world.gate.flush(&Flush { name: question().name, below: false });
    let after = world.ask("192.0.2.2");
    let second = server.asked(Some(&first));
    server.answer(&second, 8);
    let finished_after = world.finished(after);
    server.answer(&first, 7);
    let finished_before = world.finished(before);
    assert_eq!((told(&finished_after), told(&finished_before)), (Ok(()), Ok(())));
    let opened: Vec<String> = gateway.handle.elements().iter().map(|(element, _)| element.to.to_string()).collect();
    assert_eq!(opened, ["198.51.100.7", "198.51.100.8"]);
    let Some(Found::Lives(known)) = world.gate.answers.get(0, &question(), clock.now().tick) else {
        panic!("what was asked after it is known");
    };
    assert_eq!(known.answer.records[0].address(), Some("198.51.100.8".parse().unwrap()));
    assert_eq!(world.gate.cover.len(), 1, "what was told of the other is not told again");
    drop((finished_after, finished_before));
    world.stop();
}
