//! What is asked: query packets made from a pattern of names and an order.

use std::ops::Range;

use clap::ValueEnum;

/// In which order the names of a pattern are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Order {
    /// One after the other, each once.
    Sequence,
    /// Each equally often, at random.
    Uniform,
    /// The k-th with a frequency of 1/k, at random.
    Zipf,
}

/// Numbers that repeat from run to run: splitmix64 (Steele, Lea, Flood 2014).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..below, by multiplication (Lemire 2019); the bias is below 2^-32.
    pub(crate) const fn below(&mut self, below: u64) -> u64 {
        ((self.next() >> 32) * below) >> 32
    }
}

/// What the numbers of a name's pattern are written from.
#[derive(Debug)]
enum Field {
    /// One decimal digit of the name's number; the last of the pattern is the units.
    Digit(usize),
    /// Three digits, 100 to 227: an octet of fixed width, seven bits of the name's number.
    Octet(Range<usize>),
    /// A letter at random.
    Letter(usize),
}

/// Names of one pattern, and the packet that asks for the last one: A, class IN, RD, EDNS of 1232 octets, as dnsperf's
/// and a stub's with EDNS.
#[derive(Debug)]
pub(crate) struct Names {
    packet: Vec<u8>,
    /// Those that take from the number, the least significant first, then the letters.
    fields: Vec<Field>,
}

impl Names {
    /// `#`: a decimal digit of the name's number; `%%%`: seven of its bits as an octet from 100; `?`: a letter at random.
    pub(crate) fn new(pattern: &str) -> Result<Self, String> {
        let mut packet = vec![0, 0, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 1];
        let mut fields = Vec::new();
        for label in pattern.trim_end_matches('.').split('.') {
            let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length));
            packet.push(length.ok_or_else(|| format!("{pattern} is not a name"))?);
            for byte in label.bytes() {
                let at = packet.len();
                match (byte, fields.last_mut()) {
                    (b'#', _) => fields.push(Field::Digit(at)),
                    (b'?', _) => fields.push(Field::Letter(at)),
                    (b'%', Some(Field::Octet(place))) if place.len() < 3 => place.end = at + 1,
                    (b'%', _) => fields.push(Field::Octet(at..at + 1)),
                    _ => {}
                }
                packet.push(byte);
            }
        }
        packet.extend_from_slice(&[0, 0, 1, 0, 1]);
        packet.extend_from_slice(&[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
        fields.reverse();
        Ok(Self { packet, fields })
    }

    /// The query for name `number`; its id is the caller's to write.
    fn query(&mut self, mut number: u64, random: &mut Random) -> &[u8] {
        let mut letters = random.next();
        for field in &self.fields {
            match field {
                Field::Digit(at) => {
                    write(&mut self.packet, *at, b'0' + digit(number, 10));
                    number /= 10;
                }
                Field::Octet(place) => {
                    let mut octet = 100 + number % 128;
                    number /= 128;
                    for at in place.clone().rev() {
                        write(&mut self.packet, at, b'0' + digit(octet, 10));
                        octet /= 10;
                    }
                }
                Field::Letter(at) => {
                    write(&mut self.packet, *at, b'a' + digit(letters, 26));
                    letters /= 26;
                }
            }
        }
        &self.packet
    }
}

fn digit(number: u64, base: u64) -> u8 {
    u8::try_from(number % base).unwrap_or(0)
}

fn write(packet: &mut [u8], at: usize, byte: u8) {
    if let Some(place) = packet.get_mut(at) {
        *place = byte;
    }
}

/// One question: who asks, and for which name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    client: u64,
    name: u64,
}

/// The order of questions. With more than one client each asks for `each` names that follow each other, and the first of
/// one client's is `step` after the first of the client before.
#[derive(Debug)]
pub(crate) struct Mix {
    order: Order,
    names: u64,
    first: u64,
    pub(crate) clients: u64,
    pub(crate) each: u64,
    pub(crate) step: u64,
    /// How many were asked.
    next: u64,
    /// Zipf: the sum of the frequencies up to each name.
    sums: Vec<f64>,
}

impl Mix {
    pub(crate) fn new(order: Order, names: u64, first: u64) -> Self {
        let mut sum = 0.0;
        let ranked = if order == Order::Zipf { u32::try_from(names).unwrap_or(u32::MAX) } else { 0 };
        let sums = (1..=ranked).map(|rank| {
            sum += 1.0 / f64::from(rank);
            sum
        });
        Self { order, names, first, clients: 1, each: names, step: 0, next: 0, sums: sums.collect() }
    }

    /// The next question; nothing where a sequence has ended.
    fn ask(&mut self, random: &mut Random) -> Option<Asked> {
        if self.clients > 1 {
            let (client, turn) = match self.order {
                Order::Sequence => (self.next / self.each, self.next % self.each),
                Order::Uniform | Order::Zipf => (random.below(self.clients), random.below(self.each)),
            };
            self.next += 1;
            let name = self.first + (client * self.step + turn) % self.names;
            return (client < self.clients).then_some(Asked { client, name });
        }
        let name = match self.order {
            Order::Sequence => self.next,
            Order::Uniform => random.below(self.names),
            Order::Zipf => self.rank(random),
        };
        self.next += 1;
        (name < self.names).then_some(Asked { client: 0, name: self.first + name })
    }

    fn rank(&self, random: &mut Random) -> u64 {
        let total = self.sums.last().copied().unwrap_or(0.0);
        let drawn = f64::from(u32::try_from(random.next() >> 32).unwrap_or(0)) / f64::from(u32::MAX) * total;
        let rank = self.sums.partition_point(|sum| *sum < drawn);
        u64::try_from(rank).unwrap_or(0).min(self.names.saturating_sub(1))
    }
}

/// The questions of a run, one after the other.
#[derive(Debug)]
pub(crate) struct Questions {
    pub(crate) mix: Mix,
    pub(crate) names: Names,
    pub(crate) random: Random,
}

impl Questions {
    /// Who asks, and the packet without its id; nothing where there is no more to ask.
    pub(crate) fn next(&mut self) -> Option<(u64, &[u8])> {
        let asked = self.mix.ask(&mut self.random)?;
        Some((asked.client, self.names.query(asked.name, &mut self.random)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(pattern: &str, number: u64) -> String {
        let mut names = Names::new(pattern).unwrap();
        let query = names.query(number, &mut Random::new(1)).to_vec();
        let mut labels = Vec::new();
        let mut rest = &query[12..];
        while rest[0] > 0 {
            labels.push(String::from_utf8(rest[1..=usize::from(rest[0])].to_vec()).unwrap());
            rest = &rest[1 + usize::from(rest[0])..];
        }
        labels.join(".")
    }

    #[test]
    fn writes_the_number_into_the_pattern() {
        for (pattern, number, expected) in [
            ("n#####.example.net", 0, "n00000.example.net"),
            ("n###.a##.example.net", 12_345, "n123.a45.example.net"),
            ("h-10-%%%-%%%-%%%.example.net", 1, "h-10-100-100-101.example.net"),
            ("h-10-%%%-%%%-%%%.example.net", 128 * 128 + 127, "h-10-101-100-227.example.net"),
        ] {
            assert_eq!(name(pattern, number), expected);
        }
        assert_ne!(name("????????.example.com", 0), "????????.example.com");
        assert!(Names::new("a..example.net").is_err());
    }

    #[test]
    fn a_sequence_asks_every_client_for_each_of_its_names() {
        let mut mix = Mix::new(Order::Sequence, 4, 10);
        (mix.clients, mix.each, mix.step) = (3, 2, 2);
        let mut random = Random::new(1);
        let asked: Vec<(u64, u64)> =
            std::iter::from_fn(|| mix.ask(&mut random)).map(|asked| (asked.client, asked.name)).collect();
        assert_eq!(asked, [(0, 10), (0, 11), (1, 12), (1, 13), (2, 10), (2, 11)]);
    }

    #[test]
    fn the_second_of_a_zipf_order_is_half_as_frequent_as_the_first() {
        let mut mix = Mix::new(Order::Zipf, 100, 0);
        let mut random = Random::new(1);
        let mut counts = [0_u32; 100];
        for _ in 0..100_000 {
            counts[usize::try_from(mix.ask(&mut random).unwrap().name).unwrap()] += 1;
        }
        assert!((18_000..20_500).contains(&counts[0]), "{counts:?}");
        assert!((9_000..10_500).contains(&counts[1]), "{counts:?}");
        assert!(counts[99] > 100, "{counts:?}");
    }
}
