//! nftables of this kernel, through netlink.
//!
//! One table of our own. Where the kernel can, it has an owner and persists: nobody else can change it by mistake,
//! `nft flush ruleset` passes it by, and it outlives this process, whose successor takes it over. Else it is a plain
//! table, and changes that others make to it are heard.
//!
//! Every write is one transaction: a batch of messages that takes effect in one instant or not at all. Not all of the kernel
//! looks at it so: `transition` says how a layout changes.
//!
//! Each segment has a chain, and the kernel walks all chains at every commit: a transaction of one grant takes some
//! 10 µs with few segments, some 100 µs with 10,000.

mod conntrack;
mod element;
mod events;
mod expression;
mod kernel;
mod local;
mod networks;
mod nflog;
mod ranges;
mod ruleset;
mod sets;
mod socket;
mod transition;
mod wire;
mod witness;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use self::conntrack::Way;
use self::element::{Grants, Key};
use self::expression::Family;
use self::kernel::{Kernel, Outcome, Work};
use self::local::Reasons;
use crate::document::Table;
use crate::firewall::cut::Cuts;
use crate::firewall::{Common, Cut, Cutter, Firewall, FirewallError, Load, Plan, Sought, Witness};
use crate::grant::Change;
use crate::net::{Element, Prefix, Services, local_addresses};
use crate::policy::Layout;
use crate::time::{Clock, Tick};

/// Where in a packet's way the rules stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// A router: flows of others that pass through.
    Forward,
    /// This machine's own flows.
    Output,
    /// Nowhere: the sets are kept, the operator's own rules look at them.
    Sets,
}

/// `[[firewall]]` with `kind = "nftables"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The table's name, family inet.
    pub table: String,
    /// Where the rules stand.
    pub hook: Hook,
    /// Interfaces behind which the clients are; what enters there from no segment is refused. `eth*` stands for all
    /// that begin so.
    pub inside: Vec<String>,
    /// Destinations that are not governed.
    pub ungated: Vec<Prefix>,
    /// The bit of the connection mark that says "admitted".
    pub mark: u32,
    /// The group to which refused flows are logged.
    pub nflog: u16,
    /// How many elements each set of grants may have. At least twice the ledger's cap: elements that are over count
    /// until the kernel has collected them.
    pub size: u32,
    /// Addresses at which clients reach this resolver through the hook: TCP and UDP port 53 there is accepted.
    pub resolvers: Vec<IpAddr>,
    /// Hook output: the user under whom this process runs; its flows pass, since it asks upstreams and ships logs.
    /// `None`: whoever runs it when it starts. Never root, whose every program would pass.
    pub own_uid: Option<u32>,
}

impl Settings {
    /// Settings of a hook with everything else as it is by default.
    #[must_use]
    pub fn new(hook: Hook) -> Self {
        Self {
            table: "outgate".into(),
            hook,
            inside: Vec::new(),
            ungated: Vec::new(),
            mark: 0x0001_0000,
            nflog: 5,
            size: 2_097_152,
            resolvers: Vec::new(),
            own_uid: None,
        }
    }

    /// Reads the keys of this kind; mistakes are noted in the table's document.
    pub(super) fn read(table: &Table) -> Option<Self> {
        let hook = table.required_string("hook").and_then(|found| match found.value.as_str() {
            "forward" => Some(Hook::Forward),
            "output" => Some(Hook::Output),
            "sets" => Some(Hook::Sets),
            other => {
                let fact = format!("`hook` cannot be \"{other}\"");
                table.document().note(&found.span, fact, "write \"forward\", \"output\" or \"sets\"");
                None
            }
        });
        let mut settings = Self::new(hook.unwrap_or(Hook::Sets));
        let note = |key, fact: &str, remedy: &str| table.document().note(&table.span_of(key), fact, remedy);
        if let Some(name) = table.string("table") {
            let first = name.value.starts_with(|c: char| c.is_ascii_alphabetic());
            if first
                && name.value.len() <= 63
                && name.value.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
            {
                settings.table = name.value;
            } else {
                let remedy = "write a letter, then letters, digits, _ and -, at most 63";
                note("table", "`table` is no name for a table of nftables", remedy);
            }
        }
        for name in table.strings("inside").unwrap_or_default() {
            let plain = name.value.strip_suffix('*').unwrap_or(&name.value);
            if plain.is_empty()
                || name.value.len() > 15
                || plain.contains(|c: char| c == '*' || c == '/' || c.is_whitespace())
            {
                let fact = format!("`inside` cannot hold \"{}\"", name.value);
                table.document().note(&name.span, fact, "write the name of an interface, at most 15 characters");
            } else {
                settings.inside.push(name.value);
            }
        }
        if hook == Some(Hook::Forward) && !table.has("inside") {
            let remedy = "add inside = [\"eth1\"]: what enters there from no segment is refused";
            note("hook", "hook = \"forward\" needs `inside`", remedy);
        }
        let prefixes = table.parsed_list("ungated", "write a prefix, e.g. \"10.0.0.0/8\"").unwrap_or_default();
        settings.ungated = prefixes.into_iter().map(|found| found.value).collect();
        let resolvers = table.parsed_list("resolvers", "write an address, e.g. \"192.0.2.53\"").unwrap_or_default();
        settings.resolvers = resolvers.into_iter().map(|found| found.value).collect();
        if let Some(mark) = table.integer("mark", 1..=0xffff_ffff).and_then(|mark| u32::try_from(mark).ok()) {
            if mark.is_power_of_two() {
                settings.mark = mark;
            } else {
                note("mark", "`mark` is not a single bit", "write one bit that nobody else uses, e.g. 0x00010000");
            }
        }
        let number = |key, range| table.integer(key, range).and_then(|number| u32::try_from(number).ok());
        if let Some(group) = number("nflog", 0..=65_535).and_then(|group| u16::try_from(group).ok()) {
            settings.nflog = group;
        }
        if let Some(size) = number("size", 1..=1 << 30) {
            settings.size = size;
        }
        if let Some(user) = table.integer("own_uid", 0..=0xffff_fffe).and_then(|user| u32::try_from(user).ok()) {
            if user == 0 {
                note(
                    "own_uid",
                    "`own_uid` is root, whose every program would pass",
                    "run outgate as a user of its own",
                );
            } else {
                settings.own_uid = Some(user);
            }
        }
        hook.map(|_| settings)
    }
}

impl Plan for Settings {
    fn build(&self, common: &Common, clock: &Clock) -> Result<Box<dyn Firewall>, FirewallError> {
        Ok(Box::new(Nftables::new(common.clone(), self.clone(), clock.clone())?))
    }

    fn local_clients_only(&self) -> bool {
        self.hook == Hook::Output
    }

    fn spared(&self) -> Vec<(Prefix, Vec<Services>)> {
        let dns = |resolver: &IpAddr| (Prefix::from(*resolver), vec![Services::Tcp(53, 53), Services::Udp(53, 53)]);
        let ungated = self.ungated.iter().map(|prefix| (*prefix, vec![Services::Any]));
        ungated.chain(self.resolvers.iter().map(dns)).collect()
    }

    fn has_witness(&self) -> bool {
        true
    }

    fn witness(&self, sought: &Sought) -> Result<Option<Box<dyn Witness>>, FirewallError> {
        Ok(Some(Box::new(witness::Kernel::open(self, sought)?)))
    }
}

/// The backend. Nothing is touched before [`Firewall::adopt`].
pub struct Nftables {
    common: Common,
    settings: Settings,
    clock: Clock,
    kernel: Option<Kernel>,
    reasons: Reasons,
    /// [`Reasons`] are swept when there are twice as many as the last time.
    sweep_at: usize,
}

impl Nftables {
    /// A backend that has not touched the kernel yet.
    ///
    /// # Errors
    /// [`FirewallError::OwnUser`] where the rules would let every program of root pass.
    pub fn new(common: Common, mut settings: Settings, clock: Clock) -> Result<Self, FirewallError> {
        if settings.hook == Hook::Output && settings.own_uid.is_none() {
            settings.own_uid = Some(nix::unistd::geteuid().as_raw());
        }
        if settings.own_uid == Some(0) {
            return Err(FirewallError::OwnUser);
        }
        Ok(Self { common, settings, clock, kernel: None, reasons: Reasons::default(), sweep_at: 1024 })
    }

    /// Changes as the kernel is to make them: one work per element, the last change wins; those that no element can
    /// be made of, failed; those that concern nobody here, done.
    fn works(&mut self, changes: &[Change], now: Tick) -> (Vec<Work>, Vec<usize>) {
        let here = if self.settings.hook == Hook::Output { Some(local_addresses()) } else { None };
        let mut places: HashMap<(Grants, Key), usize> = HashMap::with_capacity(changes.len());
        let mut works: Vec<Work> = Vec::with_capacity(changes.len());
        let mut failed = Vec::new();
        for (index, change) in changes.iter().enumerate() {
            let change = match &here {
                None => *change,
                Some(here) => match self.reasons.translate(*change, now, here) {
                    Some(change) => change,
                    None => continue,
                },
            };
            let Some((grants, key)) = Grants::key(change.element()) else {
                failed.push(index);
                continue;
            };
            let timeout = match change {
                Change::Open { until, .. } => element::timeout(until, now),
                Change::Close { .. } => None,
            };
            match places.get(&(grants, key.clone())).and_then(|place| works.get_mut(*place)) {
                Some(work) => {
                    work.timeout = timeout;
                    work.indexes.push(index);
                }
                None => {
                    places.insert((grants, key.clone()), works.len());
                    let indexes: SmallVec<[usize; 2]> = smallvec![index];
                    works.push(Work { grants, key, timeout, indexes });
                }
            }
        }
        works.sort_by_key(|work| work.grants);
        (works, failed)
    }

    /// The table as the layout has it, with what is in its sets.
    fn take_over(&mut self, layout: &Layout) -> Result<&mut Kernel, FirewallError> {
        let kernel = match &mut self.kernel {
            Some(kernel) => kernel,
            none => none.insert(Kernel::open(&self.settings.table, self.common.deadline)?),
        };
        kernel.forget()?;
        kernel.lay(&self.settings, layout)?;
        Ok(kernel)
    }

    /// Cuts as connections of this host match them: it is one client, whichever of its addresses a connection is from.
    fn of_host(cuts: &[Cut]) -> Vec<Cut> {
        let here = local_addresses();
        let is_here = |from: Prefix| {
            Family::BOTH.iter().any(|family| from.contains(&local::address(*family)))
                || here.iter().any(|address| from.contains(address))
        };
        let ours = cuts.iter().filter(|cut| cut.from.is_none_or(is_here));
        ours.map(|cut| Cut { from: None, ..*cut }).collect()
    }

    fn make(&mut self, changes: &[Change], now: Tick) -> Result<Vec<usize>, FirewallError> {
        let (works, mut failed) = self.works(changes, now);
        let kernel = self.kernel.as_mut().ok_or(FirewallError::NotAdopted)?;
        let end = now + self.common.deadline;
        kernel.apply(&works, Outcome { clock: &self.clock, end, failed: &mut failed })?;
        failed.sort_unstable();
        Ok(failed)
    }
}

impl Firewall for Nftables {
    fn name(&self) -> &str {
        &self.common.name
    }

    fn required(&self) -> bool {
        self.common.required
    }

    fn adopt(&mut self, layout: &Layout, now: Tick) -> Result<Vec<(Element, Tick)>, FirewallError> {
        self.take_over(layout)?.elements(now)
    }

    fn restore(&mut self, layout: &Layout, live: &[(Element, Tick)], now: Tick) -> Result<bool, FirewallError> {
        // There, what is in the sets depends on this machine's addresses as well.
        if self.settings.hook == Hook::Output {
            return Ok(false);
        }
        let restored = self.take_over(layout)?.restore(live, now)?;
        if restored {
            self.arrange(layout)?;
        }
        Ok(restored)
    }

    fn arrange(&mut self, layout: &Layout) -> Result<(), FirewallError> {
        let kernel = self.kernel.as_mut().ok_or(FirewallError::NotAdopted)?;
        kernel.lay(&self.settings, layout)
    }

    fn apply(&mut self, changes: &[Change], now: Tick) -> Result<Vec<usize>, FirewallError> {
        if self.settings.hook != Hook::Output {
            return self.make(changes, now);
        }
        let before: Vec<_> = changes.iter().map(|change| self.reasons.end(change.element())).collect();
        let made = self.make(changes, now);
        for (index, (change, end)) in changes.iter().zip(before).enumerate().rev() {
            if made.as_ref().map_or(true, |failed| failed.binary_search(&index).is_ok()) {
                self.reasons.put_back(change.element(), end);
            }
        }
        if self.reasons.len() >= self.sweep_at {
            self.reasons.sweep(now);
            self.sweep_at = 1024.max(2 * self.reasons.len());
        }
        made
    }

    fn cutter(&self, cuts: &Arc<[Cut]>) -> Cutter {
        let (mark, deadline) = (self.settings.mark, self.common.deadline);
        let cuts = match self.settings.hook {
            Hook::Output => Cuts::new(Self::of_host(cuts)),
            Hook::Forward | Hook::Sets => Cuts::new(cuts.iter().copied()),
        };
        let way = if self.settings.hook == Hook::Sets { Way::Delete } else { Way::Judge { mark } };
        Box::new(move || conntrack::cut(&cuts, way, deadline))
    }

    fn drifted(&mut self) -> Result<bool, FirewallError> {
        self.kernel.as_mut().ok_or(FirewallError::NotAdopted)?.drifted()
    }

    fn load(&mut self) -> Result<Option<Load>, FirewallError> {
        self.kernel.as_mut().ok_or(FirewallError::NotAdopted)?.load()
    }
}
