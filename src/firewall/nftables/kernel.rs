//! The table in the kernel: laid out, filled, listed, watched.

use std::time::Duration;

use nix::errno::Errno;
use smallvec::SmallVec;

use super::element::{self, Entry, Grants, Key, Value};
use super::expression::Family;
use super::sets::Names;
use super::socket::{Chains, Failure, Heard, Socket, Watch, anybody_listens};
use super::transition::{InForce, There, Transition};
use super::wire::{self, Attributes, Batch, CREATE, Message, Verb, number, text};
use super::{Hook, Settings, ruleset, sets};
use crate::firewall::{FirewallError, Load};
use crate::net::Element;
use crate::policy::Layout;
use crate::time::{Clock, Tick};

/// NFT_TABLE_F_OWNER and NFT_TABLE_F_PERSIST: both or neither. An owner without persistence takes the table along
/// when it dies, and everything is open.
const OWNER: u32 = 2;
/// See [`OWNER`].
const PERSIST: u32 = 4;

/// Bytes of a transaction of which it is not worth while to hear: what the kernel says of it is some eighty times as much,
/// which is more than a [`Watch`] has room for.
const LARGE: usize = 256 << 10;

/// What this kernel can do. Tried out, not read off its version: distributions backport.
#[derive(Clone, Copy, Debug, Default)]
struct Abilities {
    /// Tables with an owner that persist (Linux 6.9).
    owner: bool,
    /// To change the end of a live element by adding it again (Linux 6.12). Before, that is acknowledged and ignored.
    refresh: bool,
    /// To delete an element that may not be there (Linux 6.3).
    destroy: bool,
}

/// One element to be changed, for all changes that name it.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) grants: Grants,
    pub(super) key: Key,
    /// Its life in milliseconds; `None`: it is to be gone.
    pub(super) timeout: Option<u64>,
    /// The changes it stands for.
    pub(super) indexes: SmallVec<[usize; 2]>,
}

/// What becomes of works: those that are not done by `end` have failed.
pub(super) struct Outcome<'a> {
    pub(super) clock: &'a Clock,
    pub(super) end: Tick,
    pub(super) failed: &'a mut Vec<usize>,
}

/// The table and the sockets.
pub(super) struct Kernel {
    table: String,
    socket: Socket,
    /// Only where the table has no owner: nobody else can change one that has.
    watch: Option<Watch>,
    /// Somebody else's change was heard and not told yet.
    drifted: bool,
    /// Others wrote while nobody listened here.
    crowded: bool,
    /// What was written last, unless somebody else may have touched it.
    in_force: Option<InForce>,
    abilities: Abilities,
}

impl Kernel {
    /// Opens the sockets and tries out what the kernel can.
    pub(super) fn open(table: &str, deadline: Duration) -> Result<Self, FirewallError> {
        let mut socket = Socket::open(deadline).map_err(|failure| failure.lacks("nf_tables sockets", table))?;
        let abilities = probe(&mut socket, table).map_err(|failure| failure.lacks("sets with timeouts", table))?;
        Ok(Self {
            table: table.to_owned(),
            socket,
            watch: None,
            drifted: false,
            crowded: false,
            in_force: None,
            abilities,
        })
    }

    /// Writes everything but the grants; those that are there stay. Each packet is judged by the old rules or by the new
    /// ones, and finds in the sets what they want there.
    pub(super) fn lay(&mut self, settings: &Settings, layout: &Layout) -> Result<(), FirewallError> {
        let table = self.table.clone();
        let error = |failure: Failure| failure.error("writing the ruleset", &table);
        let flags = self.flags(settings.hook)?;
        if flags & OWNER == 0 && self.watch.is_none() {
            let chains = if settings.hook == Hook::Sets { Chains::Theirs } else { Chains::Ours };
            self.watch = Some(Watch::open(chains).map_err(error)?);
        }
        self.drifted |= self.listen()? != Heard::Nothing;
        // Known again once the kernel has said yes.
        let there = match self.in_force.take().filter(|_| !self.drifted) {
            Some(before) => There::Known(before),
            None => {
                let there = self.list_all().map_err(error)?;
                // On its own: the kernel takes no base chain in the transaction that gives a table its owner.
                let mut taken = self.socket.batch();
                taken.message(Verb::NewTable, CREATE, |a| {
                    a.text(1, &table);
                    a.number(2, flags);
                });
                self.socket.commit(taken).map_err(|failure| failure.lacks("the table", &table))?;
                there
            }
        };
        let transition = Transition::new(settings, layout, &there);
        for step in 0..transition.steps() {
            let mut batch = self.socket.batch();
            transition.write(&mut batch, step);
            self.commit(batch).map_err(|failure| failure.lacks("the ruleset", &table))?;
        }
        self.in_force = Some(InForce { layout: layout.clone(), names: transition.into_names() });
        // A large layout makes more events than the buffer holds. That is no drift: all of it was just written.
        if let Heard::Foreign = self.listen()? {
            self.drifted = true;
        }
        Ok(())
    }

    /// The sets and chains of the table.
    fn list_all(&mut self) -> Result<There, Failure> {
        let sets = self.list(Verb::GetSet, |message| sets::Present::read(message.attributes()))?;
        let chains = self.list(Verb::GetChain, |message| ruleset::Present::read(message.attributes()))?;
        Ok(There::Listed { sets, chains })
    }

    /// Before everything is written and listed again: what was heard so far is repaired by that.
    pub(super) fn forget(&mut self) -> Result<(), FirewallError> {
        self.listen()?;
        self.drifted = false;
        self.in_force = None;
        Ok(())
    }

    /// Commits a transaction. While somebody listens to changes, the kernel keeps a message of 4 KiB for each until all are
    /// made, of a large transaction more than a gigabyte: so nobody here listens to those.
    fn commit(&mut self, batch: Batch) -> Result<(), Failure> {
        let large = batch.len() > LARGE && !std::mem::take(&mut self.crowded);
        match self.watch.take_if(|_| large) {
            Some(watch) => self.unheard(watch, |socket| socket.commit(batch)),
            None => self.socket.commit(batch),
        }
    }

    /// Makes one transaction while nobody here listens. Whether somebody else wrote meanwhile, the number of the ruleset
    /// tells, though not what: if so, the next large one is listened to.
    fn unheard(
        &mut self,
        mut watch: Watch,
        commit: impl FnOnce(&mut Socket) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        // Until it is known better.
        let told = std::mem::replace(&mut self.drifted, true);
        let before = self.socket.generation()?;
        self.socket.wait_for_others()?;
        let heard = watch.listen(&self.table, self.socket.port())?;
        let between = self.socket.generation()?;
        let chains = watch.chains();
        drop(watch);
        let done = commit(&mut self.socket);
        self.watch = Some(Watch::open(chains)?);
        let wanted = if done.is_ok() { before.map(|before| before.wrapping_add(1)) } else { before };
        self.crowded = between != before || self.socket.generation()? != wanted;
        self.drifted = told || self.crowded || heard != Heard::Nothing;
        done
    }

    fn listen(&mut self) -> Result<Heard, FirewallError> {
        match &mut self.watch {
            None => Ok(Heard::Nothing),
            Some(watch) => watch
                .listen(&self.table, self.socket.port())
                .map_err(|failure| failure.error("listening to nf_tables", &self.table)),
        }
    }

    /// The flags with which the table can be had. With hook sets it has no owner: the operator's rules, which look
    /// into the sets, must be in the same table.
    fn flags(&mut self, hook: Hook) -> Result<u32, FirewallError> {
        let table = self.table.clone();
        let found = self
            .list(Verb::GetTable, |message| {
                let find = |wanted| message.attributes().find(|(kind, _)| *kind == wanted).and_then(|(_, v)| number(v));
                Some((find(2).unwrap_or(0), find(7)))
            })
            .map_err(|failure| failure.error("listing tables", &table))?;
        match found.first() {
            Some((_, Some(owner))) if *owner != self.socket.port() => Err(FirewallError::Owned(table)),
            Some((flags, None)) if flags & PERSIST == 0 => Ok(0),
            None if hook == Hook::Sets || !self.abilities.owner => Ok(0),
            _ => Ok(OWNER | PERSIST),
        }
    }

    /// What `read` makes of every object of the table.
    fn list<T>(&mut self, verb: Verb, read: impl Fn(&Message<'_>) -> Option<T>) -> Result<Vec<T>, Failure> {
        let mut found = Vec::new();
        let table = &self.table;
        self.socket.dump(
            |sequence| wire::dump(verb, sequence, |_| ()),
            |message| match message {
                None => found.clear(),
                Some(message) => {
                    let ours = message.attributes().any(|(kind, value)| kind == 1 && text(value) == Some(table));
                    found.extend(ours.then(|| read(&message)).flatten());
                }
            },
        )?;
        Ok(found)
    }

    /// Every live grant and when it ends, as seen from `now`, which is before the kernel is asked. What is in the
    /// sets and can be no grant is deleted.
    pub(super) fn elements(&mut self, now: Tick) -> Result<Vec<(Element, Tick)>, FirewallError> {
        let error = |failure: Failure, table: &str| failure.error("listing elements", table);
        let mut elements = Vec::new();
        for grants in Grants::all() {
            let mut foreign: Vec<Key> = Vec::new();
            let start = elements.len();
            list_elements(&mut self.socket, (&self.table, grants.name()), |found| match found {
                None => {
                    elements.truncate(start);
                    foreign.clear();
                }
                Some((key, left)) => match grants.element(key) {
                    Some(element) => {
                        elements.push((element, left.map_or(Tick(u64::MAX), |left| now + Duration::from_millis(left))));
                    }
                    None => foreign.push(Key::from_slice(key)),
                },
            })
            .map_err(|failure| error(failure, &self.table))?;
            let mut batch = self.socket.batch();
            let entries = foreign.iter().map(|key| Entry::new(key, Value::None));
            element::write(&mut batch, Verb::DeleteElements, (&self.table, grants.name()), entries);
            self.socket.commit(batch).map_err(|failure| error(failure, &self.table))?;
        }
        Ok(elements)
    }

    /// Empties the sets of grants and fills them with what is live, in one transaction. The kernel lists a set from its
    /// beginning for every 500 elements that it hands out, so that listing a million takes half a minute; this takes as
    /// long as adding them. `false`, and nothing was done: somebody hears of every change, and until the transaction is
    /// done the kernel holds a message of its own, 4 KiB, for every element.
    ///
    /// Rules have to be laid out again: for a moment nobody here listened to what others do to them.
    pub(super) fn restore(&mut self, live: &[(Element, Tick)], now: Tick) -> Result<bool, FirewallError> {
        let watched = self.watch.take().map(|watch| watch.chains());
        let restored = if anybody_listens() { Ok(false) } else { self.refill(live, now).map(|()| true) };
        if let Some(chains) = watched {
            let watch = Watch::open(chains).map_err(|failure| failure.error("listening to nf_tables", &self.table))?;
            self.watch = Some(watch);
            self.in_force = None;
        }
        restored
    }

    fn refill(&mut self, live: &[(Element, Tick)], now: Tick) -> Result<(), FirewallError> {
        let entry = |(element, until): &(Element, Tick)| {
            let (grants, key) = Grants::key(element)?;
            Some((grants, key, element::timeout(*until, now)?))
        };
        let mut entries: Vec<(Grants, Key, u64)> = live.iter().filter_map(entry).collect();
        entries.sort_unstable_by_key(|(grants, ..)| *grants);
        let mut batch = self.socket.batch();
        for grants in Grants::all() {
            batch.message(Verb::DeleteElements, 0, |a| {
                a.text(1, &self.table);
                a.text(2, grants.name());
            });
        }
        for entries in entries.chunk_by(|(one, ..), (other, ..)| one == other) {
            let Some((grants, ..)) = entries.first() else { continue };
            let entries = entries.iter().map(|(_, key, timeout)| Entry::new(key, Value::Timeout(*timeout)));
            element::write(&mut batch, Verb::NewElements, (&self.table, grants.name()), entries);
        }
        self.socket.commit(batch).map_err(|failure| failure.error("restoring elements", &self.table))
    }

    /// Does the works, sorted by set, in one transaction; where one of them fails, halves it until only that one is
    /// left out.
    pub(super) fn apply(&mut self, works: &[Work], outcome: Outcome<'_>) -> Result<(), FirewallError> {
        let mut open = vec![works];
        while let Some(works) = open.pop() {
            let mut batch = self.socket.batch();
            for works in works.chunk_by(|a, b| a.grants == b.grants) {
                change(&mut batch, &self.table, works, self.abilities);
            }
            let Err(failure) = self.commit(batch) else { continue };
            // Not an element's fault: the table is gone, or somebody else's.
            if failure.whole || matches!(failure.errno, Errno::ENOENT | Errno::EPERM | Errno::EOPNOTSUPP) {
                return Err(failure.error("changing elements", &self.table));
            }
            match works {
                _ if outcome.clock.tick() >= outcome.end => {
                    outcome
                        .failed
                        .extend(works.iter().chain(open.drain(..).flatten()).flat_map(|work| work.indexes.iter()));
                }
                // Added to be deleted (no destroy), and there was no room: then it is not there.
                [work] if work.timeout.is_none() && failure.errno == Errno::ENFILE => {}
                [work] => outcome.failed.extend(&work.indexes),
                _ => {
                    let (first, second) = works.split_at(works.len() / 2);
                    open.extend([second, first]);
                }
            }
        }
        // Our own events would fill the buffer of a watch that is seldom asked.
        self.drifted |= self.listen()? != Heard::Nothing;
        Ok(())
    }

    /// Whether somebody else changed the table since the last call.
    pub(super) fn drifted(&mut self) -> Result<bool, FirewallError> {
        let heard = self.listen()? != Heard::Nothing;
        Ok(std::mem::take(&mut self.drifted) || heard)
    }

    /// How full the sets are, where the kernel tells.
    pub(super) fn load(&mut self) -> Result<Option<Load>, FirewallError> {
        let sets = self
            .list(Verb::GetSet, |message| sets::Present::read(message.attributes()))
            .map_err(|failure| failure.error("listing sets", &self.table))?;
        let loads = sets.iter().filter(|set| Grants::all().any(|grants| grants.name() == set.name));
        Ok(loads
            .filter_map(sets::Present::load)
            .map(|(elements, capacity)| Load { elements, capacity })
            .max_by(|a, b| a.ratio().total_cmp(&b.ratio())))
    }
}

/// Changes elements of one set.
fn change(batch: &mut Batch, table: &str, works: &[Work], abilities: Abilities) {
    let Some(set) = works.first().map(|work| (table, work.grants.name())) else { return };
    // What must go, be it to come back with another end.
    let gone = || works.iter().filter(|work| work.timeout.is_none() || !abilities.refresh);
    let keys = || gone().map(|work| Entry::new(&work.key, Value::None));
    if abilities.destroy {
        element::write(batch, Verb::DestroyElements, set, keys());
    } else {
        // To delete what is not there fails the batch: it is added first.
        let added = gone().map(|work| Entry::new(&work.key, Value::Timeout(work.timeout.unwrap_or(1000))));
        element::write(batch, Verb::NewElements, set, added);
        element::write(batch, Verb::DeleteElements, set, keys());
    }
    let opened = works.iter().filter_map(|work| work.timeout.map(|t| Entry::new(&work.key, Value::Timeout(t))));
    element::write(batch, Verb::NewElements, set, opened);
}

/// Lists one set: `None` says that the list begins (again).
fn list_elements(
    socket: &mut Socket,
    (table, set): (&str, &str),
    mut each: impl FnMut(Option<(&[u8], Option<u64>)>),
) -> Result<(), Failure> {
    let which = |a: &mut Attributes<'_>| {
        a.text(1, table);
        a.text(2, set);
    };
    let request = |sequence| wire::dump(Verb::GetElements, sequence, which);
    socket.dump(request, |message| match message {
        None => each(None),
        Some(message) => element::read(message.attributes(), |key, left| each(Some((key, left)))),
    })
}

/// Tries out, with real elements in a table of its own that is gone afterwards, what this kernel can.
fn probe(socket: &mut Socket, table: &str) -> Result<Abilities, Failure> {
    let name = format!("{table}-probe");
    let set = (name.as_str(), "host4");
    let grants = Grants { family: Family::Four, shared: false, any: false };
    let declare = |batch: &mut Batch, flags: u32| {
        batch.message(Verb::NewTable, CREATE, |a| {
            a.text(1, &name);
            a.number(2, flags);
        });
    };
    let remove = |batch: &mut Batch| batch.message(Verb::DeleteTable, 0, |a| a.text(1, &name));
    let mut abilities = Abilities::default();
    for flags in [OWNER | PERSIST, 0] {
        let mut batch = socket.batch();
        // Declared, removed and declared again: what an earlier probe left behind is gone.
        declare(&mut batch, flags);
        remove(&mut batch);
        declare(&mut batch, flags);
        match sets::shapes(&Settings { size: 16, ..Settings::new(Hook::Sets) }, &Names::default())
            .iter()
            .find(|shape| shape.name == grants.name())
        {
            Some(shape) => shape.create(&mut batch, &name, 1),
            None => return Ok(abilities),
        }
        match socket.commit(batch) {
            Ok(()) => {
                abilities.owner = flags != 0;
                break;
            }
            Err(failure) if flags == 0 || failure.whole => return Err(failure),
            Err(_) => {}
        }
    }
    // Longer, shorter, and the same again: each must end up with the life that was asked for last.
    let keys: Vec<[u8; 16]> = (1..=3).map(|n| std::array::from_fn(|at| if at == 3 { n } else { 0 })).collect();
    let timeouts: [(u64, u64); 3] = [(100_000, 900_000), (900_000, 100_000), (500_000, 500_000)];
    let mut add = |timeouts: &mut dyn Iterator<Item = (u64, u64)>| {
        let mut batch = socket.batch();
        let entries: Vec<_> = timeouts.zip(&keys).collect();
        for ((timeout, left), key) in &entries {
            element::write(&mut batch, Verb::NewElements, set, [Entry::new(*key, Value::Partly(*timeout, *left))]);
        }
        socket.commit(batch)
    };
    add(&mut timeouts.iter().map(|(before, _)| (*before, before / 2)))?;
    add(&mut timeouts.iter().map(|(_, after)| (*after, *after)))?;
    let mut lives = Vec::new();
    list_elements(socket, set, |found| match found {
        None => lives.clear(),
        Some((key, left)) => lives.push((key.to_vec(), left.unwrap_or(0))),
    })?;
    let lives_on = |key: &[u8; 16], wanted: u64| {
        lives.iter().any(|(found, left)| found == key && left.abs_diff(wanted) < wanted / 10)
    };
    abilities.refresh = keys.iter().zip(timeouts).all(|(key, (_, after))| lives_on(key, after));
    let mut batch = socket.batch();
    element::write(&mut batch, Verb::DestroyElements, set, [Entry::new(&[9; 16], Value::None)]);
    abilities.destroy = socket.commit(batch).is_ok();
    let mut batch = socket.batch();
    remove(&mut batch);
    socket.commit(batch)?;
    Ok(abilities)
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};
    use smallvec::smallvec;

    use super::*;

    /// What a release has, a later one has, too; an earlier one may.
    #[test]
    fn finds_out_what_this_kernel_can() {
        let test = || {
            if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                return;
            }
            let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
            let numbers: Vec<u32> = release.split(['.', '-']).map_while(|number| number.parse().ok()).collect();
            let abilities = Kernel::open("t", Duration::from_secs(5)).unwrap().abilities;
            println!("{abilities:?}");
            let Abilities { owner, refresh, destroy } = abilities;
            for (since, can) in [([6, 9], owner), ([6, 12], refresh), ([6, 3], destroy)] {
                assert!(
                    can || numbers[..2] < since[..],
                    "{release}: {abilities:?}, and not what is there since {since:?}"
                );
            }
        };
        std::thread::spawn(test).join().unwrap();
    }

    /// The ways of kernels that can less than this one.
    #[test]
    fn elements_change_on_kernels_that_can_less() {
        let test = || {
            // tests/firewall says where it could not be tried.
            if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                return;
            }
            let settings = Settings { size: 3, ..Settings::new(Hook::Sets) };
            let clock = Clock::system();
            for (number, (refresh, destroy)) in [(false, false), (false, true), (true, false)].into_iter().enumerate() {
                let mut kernel = Kernel::open(&format!("t{number}"), Duration::from_secs(5)).unwrap();
                let settings = Settings { table: format!("t{number}"), ..settings.clone() };
                let can = kernel.abilities;
                if (refresh && !can.refresh) || (destroy && !can.destroy) {
                    continue;
                }
                kernel.abilities = Abilities { refresh, destroy, owner: can.owner && number != 0 };
                kernel.lay(&settings, &Layout::default()).unwrap();
                let grants = Grants { family: Family::Four, shared: true, any: true };
                let work = |key: u8, timeout| Work {
                    grants,
                    key: Key::from_slice(&[0, 0, 0, 1, 192, 0, 2, key]),
                    timeout,
                    indexes: smallvec![usize::from(key)],
                };
                let mut apply = |works: &[Work]| {
                    let mut failed = Vec::new();
                    let end = clock.tick() + Duration::from_secs(9);
                    kernel.apply(works, Outcome { clock: &clock, end, failed: &mut failed }).unwrap();
                    let elements = kernel.elements(Tick(0)).unwrap();
                    let lives: Vec<_> = elements.iter().map(|(_, end)| end.0.div_ceil(10_000_000) * 10).collect();
                    (failed, lives)
                };
                for (timeout, seconds) in [(50_000, 50), (50_000, 50), (90_000, 90), (20_000, 20)] {
                    assert_eq!(apply(&[work(1, Some(timeout))]), (vec![], vec![seconds]), "{refresh} {destroy}");
                }
                let full = [work(1, Some(20_000)), work(2, Some(20_000)), work(3, Some(20_000)), work(4, Some(20_000))];
                assert_eq!(apply(&full), (vec![4], vec![20, 20, 20]), "{refresh} {destroy}");
                let gone = [work(1, None), work(2, None), work(3, None), work(9, None)];
                assert_eq!(apply(&gone), (vec![], vec![]), "{refresh} {destroy}");
            }
        };
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn what_others_write_while_nobody_listens_is_found_out() {
        let test = || {
            if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                return;
            }
            let settings = Settings { size: 16, ..Settings::new(Hook::Sets) };
            let mut kernel = Kernel::open(&settings.table, Duration::from_secs(5)).unwrap();
            kernel.lay(&settings, &Layout::default()).unwrap();
            let mut other = Socket::open(Duration::from_secs(5)).unwrap();
            let write = |socket: &mut Socket, key: u8, failing: bool| {
                let mut batch = socket.batch();
                let set = (if failing { "nothing" } else { settings.table.as_str() }, "sharedany4");
                let key = [0, 0, 0, 1, 192, 0, 2, key];
                element::write(&mut batch, Verb::NewElements, set, [Entry::new(&key, Value::Timeout(50_000))]);
                socket.commit(batch)
            };
            for (number, (before, after, failing)) in
                [(0, 0, false), (1, 0, false), (0, 1, false), (0, 0, true), (1, 0, true)].into_iter().enumerate()
            {
                let (watch, key) = (kernel.watch.take().unwrap(), u8::try_from(number).unwrap());
                let done = kernel.unheard(watch, |socket| {
                    (0..before).for_each(|_| write(&mut other, 10 + key, false).unwrap());
                    let done = write(socket, key, failing);
                    (0..after).for_each(|_| write(&mut other, 10 + key, false).unwrap());
                    done
                });
                assert_eq!(done.is_err(), failing);
                let foreign = before + after > 0;
                assert_eq!(kernel.drifted(), Ok(foreign), "{before} before, {after} after, failing: {failing}");
                assert_eq!(std::mem::take(&mut kernel.crowded), foreign);
            }
        };
        std::thread::spawn(test).join().unwrap();
    }
}
