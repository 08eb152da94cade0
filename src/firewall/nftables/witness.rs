//! What tells of flows and refusals: a socket for each, and one that lists.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Settings;
use super::conntrack::{GET, MARK, MARK_MASK};
use super::events::{self, Admitted, Events};
use super::nflog::Group;
use super::socket::{Failure, Socket};
use super::wire::{self, DUMP};
use crate::firewall::{FirewallError, Looked, Seen, Sight, Sought, Witness};

/// How long a list may take to go on.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// What the kernel keeps of connections that begin from then on, and what a record lacks without it.
const KEEPS: [(&str, &str); 2] = [
    ("nf_conntrack_acct", "flow records lack bytes and packets"),
    ("nf_conntrack_timestamp", "flow records tell when a flow began only where it was seen to begin"),
];

/// See the module.
pub(super) struct Kernel {
    admitted: Admitted,
    events: Option<Events>,
    group: Option<Group>,
    remarks: Vec<String>,
}

impl Kernel {
    /// Opens what is sought.
    pub(super) fn open(settings: &Settings, sought: &Sought) -> Result<Self, FirewallError> {
        let admitted = Admitted::new(settings.hook, settings.mark);
        let mut kernel = Self { admitted, events: None, group: None, remarks: Vec::new() };
        if sought.flows {
            kernel.events = Some(Events::open(admitted, sought.buffer).map_err(error)?);
            kernel.remarks = KEEPS.iter().filter_map(|(name, lack)| keep(name, lack)).collect();
        }
        if sought.refused {
            let socket = Socket::open(DEADLINE).map_err(error)?;
            kernel.group = Some(Group::open(settings.nflog, sought.buffer, socket)?);
        }
        Ok(kernel)
    }
}

/// Has the kernel keep something of each connection; where it does not, what that means.
fn keep(name: &str, lack: &str) -> Option<String> {
    let path = format!("/proc/sys/net/netfilter/{name}");
    let kept = || fs::read_to_string(&path).map(|value| value.trim() != "0");
    let done = match kept() {
        Ok(true) => return None,
        Ok(false) => fs::write(&path, "1").and_then(|()| kept()),
        Err(error) => Err(error),
    };
    let why = match done {
        Ok(true) => return None,
        Ok(false) => "it stays off".to_owned(),
        Err(error) => error.to_string(),
    };
    Some(format!(
        "{lack}: net.netfilter.{name} could not be switched on ({why}); run `sysctl -w net.netfilter.{name}=1`, and write it to /etc/sysctl.d"
    ))
}

fn error(failure: Failure) -> FirewallError {
    failure.lacks("nf_conntrack_netlink", "")
}

impl Witness for Kernel {
    fn wait(&mut self, stop: BorrowedFd<'_>, longest: Duration) -> Result<(), FirewallError> {
        let sources = [self.events.as_ref().map(Events::descriptor), self.group.as_ref().map(Group::descriptor)];
        let mut descriptors: Vec<_> = sources.into_iter().flatten().chain([stop]).map(readable).collect();
        let longest = PollTimeout::try_from(longest).unwrap_or(PollTimeout::MAX);
        match poll(&mut descriptors, longest) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(error(io::Error::from(errno).into())),
        }
    }

    fn look(&mut self, each: &mut dyn FnMut(Sight)) -> Result<Looked, FirewallError> {
        let mut looked = Looked::default();
        // Refusals first: who is refused may be let in a moment later, and not the other way round.
        if let Some(group) = &mut self.group {
            let heard = group.listen(each).map_err(error)?;
            (looked.more, looked.lost_refusals) = (heard.more, heard.lost);
        }
        if let Some(events) = &mut self.events {
            let heard = events.listen(each).map_err(error)?;
            looked = Looked { more: looked.more | heard.more, lost: heard.lost, ..looked };
        }
        Ok(looked)
    }

    fn list(&mut self, each: &mut dyn FnMut(Option<Seen>)) -> Result<(), FirewallError> {
        if self.events.is_none() {
            return Ok(());
        }
        let admitted = self.admitted;
        let request = |sequence| {
            let mut bytes = Vec::with_capacity(64);
            // AF_UNSPEC: both families.
            wire::request(&mut bytes, (GET, DUMP), (sequence, 0), |a| {
                if let Admitted::Marked(mark) = admitted {
                    a.number(MARK, mark);
                    a.number(MARK_MASK, mark);
                }
            });
            bytes
        };
        let listed = Socket::open(DEADLINE).and_then(|mut socket| {
            socket.dump(request, |message| match message {
                None => each(None),
                Some(message) => {
                    let seen = events::seen(&message, admitted).filter(|seen| seen.admitted);
                    if seen.is_some() {
                        each(seen);
                    }
                }
            })
        });
        listed.map_err(error)
    }

    fn remarks(&self) -> &[String] {
        &self.remarks
    }
}

fn readable(descriptor: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(descriptor, PollFlags::POLLIN)
}
