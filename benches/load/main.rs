//! The load of `bench/run`: asks a DNS server and says, as one JSON object, what came back and how long it took.
//!
//! Without `--rate` the loop is closed: a new query leaves for each answer, `--window` are always under way, and the
//! server is as busy as it can be. With `--rate` it is open: queries leave at that rate whatever the answers do, and the
//! latencies are those of a server at that load.
//!
//! ```text
//! load 127.0.0.1:53 --names 'n#####.svc.example.net' --count 1000 --order sequence           # each once: warms up
//! load 127.0.0.1:53 --names 'n#####.svc.example.net' --count 1000 --order zipf --seconds 2   # saturates
//! load 127.0.0.1:53 --names '????????????.example.com' --order uniform --seconds 2 --rate 50000
//! ```

mod mix;
mod udp;
mod window;

use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::time::Duration;

use clap::Parser;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use outgate::time::{Clock, Tick};

use mix::{Mix, Names, Order, Random};
use udp::Port;
use window::Tally;

/// Asks a DNS server as fast as it answers, or at a given rate.
#[derive(Debug, Parser)]
struct Arguments {
    /// Address and port of the server.
    server: SocketAddrV4,
    /// Pattern of the names: `#` a digit of the name's number, `%%%` seven bits of it as an octet from 100, `?` a letter
    /// at random.
    #[arg(long)]
    names: String,
    /// How many names the pattern stands for.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// The number of the first name.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// In which order they are asked for; `sequence` ends after the last.
    #[arg(long, value_enum)]
    order: Order,
    /// Ends after this time.
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
    /// Queries a second; without: as many as are answered.
    #[arg(long)]
    rate: Option<f64>,
    /// Queries under way at most. More than about 200 do not fit into a socket that was left as the kernel makes it.
    #[arg(long, default_value_t = 128)]
    window: usize,
    /// Ports that are asked from.
    #[arg(long, default_value_t = 4)]
    ports: usize,
    /// Clients that ask, from 127.1.0.1 on; 1: whoever the kernel chooses.
    #[arg(long, default_value_t = 1)]
    clients: u64,
    /// With several clients, how many names each of them asks for.
    #[arg(long, default_value_t = 10)]
    each: u64,
    /// With several clients, how many names further the list of the next one begins; as many as `--each`: no two share any.
    #[arg(long, default_value_t = 1)]
    step: u64,
    /// Seed of the random numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A query without an answer for this long is lost.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often lost queries are looked for.
const LOOK: Duration = Duration::from_millis(100);

fn main() {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(tally) => println!("{}", tally.report()),
        Err(error) => {
            eprintln!("load: {error}");
            std::process::exit(1);
        }
    }
}

fn run(arguments: &Arguments) -> Result<Tally, Box<dyn std::error::Error>> {
    let clock = Clock::system();
    let mut names = Names::new(&arguments.names)?;
    let mut random = Random::new(arguments.seed);
    let mut mix = Mix::new(arguments.order, arguments.count, arguments.first);
    (mix.clients, mix.each, mix.step) = (arguments.clients.max(1), arguments.each.max(1), arguments.step);
    let size = (arguments.window / arguments.ports.max(1)).clamp(1, 1 << 16);
    let port = |_| Port::new(arguments.server, arguments.clients > 1, size);
    let mut ports = (0..arguments.ports.max(1)).map(port).collect::<Result<Vec<_>, _>>()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (index, port) in (0_u64..).zip(&ports) {
        epoll.add(port.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, index))?;
    }
    let mut events = vec![EpollEvent::empty(); ports.len()];
    let mut tally = Tally::default();
    let start = clock.tick();
    tally.first = Some(start);
    let end = start + Duration::from_secs_f64(arguments.seconds);
    let mut look = start + LOOK;
    let (mut asking, mut turn) = (true, 0);
    loop {
        let now = clock.tick();
        asking = asking && now < end;
        let mut due = if asking { due(arguments.rate, now.since(start), tally.sent) } else { 0 };
        // In a closed loop a port asks again when a quarter of its window is free, so that both sides work in batches.
        let least = if arguments.rate.is_some() { 1 } else { size.div_ceil(4) };
        for _ in 0..ports.len() {
            turn = (turn + 1) % ports.len();
            let Some(port) = ports.get_mut(turn) else { break };
            if due == 0 || port.window.room() < least {
                continue;
            }
            let count = port.window.room().min(due);
            let asked = port.ask(count, &mut mix, &mut names, &mut random, clock.tick())?;
            tally.sent += u64::try_from(asked).unwrap_or(0);
            due -= asked;
            asking = asking && asked > 0;
        }
        if !asking && ports.iter().all(|port| port.window.waiting() == 0) {
            return Ok(tally);
        }
        // An open loop must not sleep through the next query's time.
        let timeout = if arguments.rate.is_some() && asking { EpollTimeout::ZERO } else { EpollTimeout::from(10_u8) };
        let ready = epoll.wait(&mut events, timeout)?;
        for event in events.iter().take(ready) {
            let port = usize::try_from(event.data()).ok().and_then(|index| ports.get_mut(index));
            if let Some(port) = port {
                port.receive(&mut tally, &clock)?;
            }
        }
        if now >= look {
            look = now + LOOK;
            let then = Tick(now.0.saturating_sub(u64::try_from(PATIENCE.as_micros()).unwrap_or(0)));
            tally.lost += ports.iter_mut().map(|port| port.window.expire(then)).sum::<u64>();
        }
    }
}

/// How many queries should have left by now and have not.
fn due(rate: Option<f64>, elapsed: Duration, sent: u64) -> usize {
    let due = rate.map(|rate| (elapsed.as_secs_f64() * rate) as u64);
    due.map_or(usize::MAX, |due| usize::try_from(due.saturating_sub(sent)).unwrap_or(usize::MAX))
}
