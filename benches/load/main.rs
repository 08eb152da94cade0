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

mod door;
mod mix;
mod stream;
mod udp;
mod window;

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use outgate::time::{Clock, Tick};

use door::{Door, Failure};
use mix::{Mix, Names, Order, Questions, Random};
use stream::Connection;
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
    /// Ports that are asked from; the window is shared among them.
    #[arg(long, default_value_t = 4)]
    ports: usize,
    /// Each query leaves as soon as there is room and by a system call of its own, as with most other load generators.
    #[arg(long)]
    single: bool,
    /// Over TCP, a connection per port.
    #[arg(long)]
    tcp: bool,
    /// Over TLS; the server must show this certificate (PEM).
    #[arg(long)]
    tls: Option<PathBuf>,
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

fn run(arguments: &Arguments) -> Result<Tally, Failure> {
    let clock = Clock::system();
    let mut mix = Mix::new(arguments.order, arguments.count, arguments.first);
    (mix.clients, mix.each, mix.step) = (arguments.clients.max(1), arguments.each.max(1), arguments.step);
    let random = Random::new(arguments.seed);
    let mut questions = Questions { mix, names: Names::new(&arguments.names)?, random };
    let size = (arguments.window / arguments.ports.max(1)).clamp(1, 1 << 16);
    let door = |_| -> Result<Box<dyn Door>, Failure> {
        Ok(if arguments.tcp || arguments.tls.is_some() {
            Box::new(Connection::new(arguments.server, arguments.tls.as_deref(), size)?)
        } else {
            Box::new(Port::new(arguments.server, arguments.clients > 1, size)?)
        })
    };
    let mut doors = (0..arguments.ports.max(1)).map(door).collect::<Result<Vec<_>, _>>()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (index, door) in (0_u64..).zip(&doors) {
        epoll.add(door.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, index))?;
    }
    let mut events = vec![EpollEvent::empty(); doors.len()];
    let mut tally = Tally::default();
    let start = clock.tick();
    tally.first = Some(start);
    let end = start + Duration::from_secs_f64(arguments.seconds);
    let mut look = start + LOOK;
    // In a closed loop a door asks again when a quarter of its window is free, so that both sides work in batches.
    let least = if arguments.rate.is_some() || arguments.single { 1 } else { size.div_ceil(4) };
    let most = if arguments.single { 1 } else { size };
    let (mut asking, mut turn) = (true, 0);
    loop {
        let now = clock.tick();
        asking = asking && now < end;
        let mut due = if asking { due(arguments.rate, now.since(start), tally.sent) } else { 0 };
        for _ in 0..doors.len() {
            turn = (turn + 1) % doors.len();
            let Some(door) = doors.get_mut(turn) else { break };
            while asking && due > 0 && door.window().room() >= least {
                let asked = door.ask(most.min(due), &mut questions, clock.tick())?;
                tally.sent += u64::try_from(asked).unwrap_or(0);
                due -= asked;
                asking = asked > 0;
            }
        }
        if !asking && doors.iter_mut().all(|door| door.window().waiting() == 0) {
            return Ok(tally);
        }
        // An open loop must not sleep through the next query's time.
        let timeout = if arguments.rate.is_some() && asking { EpollTimeout::ZERO } else { EpollTimeout::from(10_u8) };
        let ready = epoll.wait(&mut events, timeout)?;
        for event in events.iter().take(ready) {
            let door = usize::try_from(event.data()).ok().and_then(|index| doors.get_mut(index));
            if let Some(door) = door {
                door.receive(&mut tally, &clock)?;
            }
        }
        if now >= look {
            look = now + LOOK;
            let then = Tick(now.0.saturating_sub(u64::try_from(PATIENCE.as_micros()).unwrap_or(0)));
            tally.lost += doors.iter_mut().map(|door| door.window().expire(then)).sum::<u64>();
        }
    }
}

/// How many queries should have left by now and have not.
fn due(rate: Option<f64>, elapsed: Duration, sent: u64) -> usize {
    let due = rate.map(|rate| (elapsed.as_secs_f64() * rate) as u64);
    due.map_or(usize::MAX, |due| usize::try_from(due.saturating_sub(sent)).unwrap_or(usize::MAX))
}
