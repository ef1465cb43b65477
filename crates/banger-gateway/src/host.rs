//! What all protocols need of the world outside: the line, readiness,
//! deadlines, memory, the policy and the book of what was refused.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use banger_wire::gateway::{GATEWAY, MAX_RESOLVERS, PREFIX_LENGTH};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, connect, socket_with};

use crate::budget::Budget;
use crate::counters::{Counters, Dropped};
use crate::icmp::{self, Unreachable};
use crate::ipv4;
use crate::line::Line;
use crate::policy::{Policy, Verdict};
use crate::poller::{Owner, Poller, Token, Watch};
use crate::refusals::{Reason, Refusal, Refusals};
use crate::timers::Timers;

/// The port of resolvers, and of the gateway as one.
pub(crate) const DNS_PORT: u16 = 53;

/// The world outside.
pub(crate) struct Host {
    pub(crate) line: Line,
    pub(crate) poller: Poller,
    pub(crate) policy: Policy,
    pub(crate) counters: Counters,
    pub(crate) refusals: Refusals,
    pub(crate) budget: Budget,
    pub(crate) timers: Timers,
    pub(crate) resolvers: Resolvers,
    /// Flows that have something for the guest and wait for the line, the
    /// longest waiting first.
    pub(crate) waiting: VecDeque<Token>,
    /// Room for one datagram from outside.
    pub(crate) buffer: Box<[u8]>,
    sender: ipv4::Sender,
    /// Room on the line is watched for.
    line_is_full: bool,
}

impl Host {
    pub(crate) fn new(line: Line, policy: Policy, resolvers: Vec<IpAddr>) -> io::Result<Self> {
        Ok(Self {
            line,
            poller: Poller::new()?,
            policy,
            counters: Counters::default(),
            refusals: Refusals::on_stderr(),
            budget: Budget::default(),
            timers: Timers::default(),
            resolvers: Resolvers::new(resolvers),
            waiting: VecDeque::new(),
            buffer: vec![0; ipv4::MAX_PAYLOAD].into_boxed_slice(),
            sender: ipv4::Sender::default(),
            line_is_full: false,
        })
    }

    /// Asks the policy, and keeps book if it says no.
    pub(crate) fn may_leave(
        &mut self,
        now: Instant,
        protocol: &'static str,
        to: Ipv4Addr,
        port: u16,
    ) -> Result<(), Reason> {
        match self.policy.decide(to) {
            Verdict::Allow => Ok(()),
            Verdict::Refuse(reason) => Err(self.refuse(now, protocol, to, port, reason)),
        }
    }

    /// Keeps book of a refusal.
    pub(crate) fn refuse(
        &mut self,
        now: Instant,
        protocol: &'static str,
        to: Ipv4Addr,
        port: u16,
        reason: Reason,
    ) -> Reason {
        self.counters.refuse(reason);
        let refusal = Refusal {
            protocol,
            to,
            port,
            reason,
        };
        self.refusals.note(now, refusal);
        reason
    }

    /// Sends what waits for the guest, and sees to it that there will be news
    /// of room for what still does.
    pub(crate) fn flush(&mut self) {
        self.line.flush(&mut self.counters);
        let full = !self.line.has_room();
        if self.line_is_full != full {
            let what = if full { Watch::Both } else { Watch::Reading };
            let token = Token::only(Owner::Line);
            if self.poller.watch_again(&self.line, token, what).is_ok() {
                self.line_is_full = full;
            }
        }
    }

    /// Takes a flow that ends off the list of those that wait for the line,
    /// which a guest that never reads would make longer and longer.
    pub(crate) fn waits_no_more(&mut self, token: Token) {
        self.waiting.retain(|waiting| *waiting != token);
    }

    /// Sends a payload to the guest, in one packet or in fragments.
    pub(crate) fn give(&mut self, from: Ipv4Addr, protocol: u8, payload: &[u8]) {
        self.sender
            .send(&mut self.line, &mut self.counters, from, protocol, payload);
    }

    /// Sends the guest an error about one of its packets. Packets to many are
    /// never answered with one.
    pub(crate) fn give_error(&mut self, why: Unreachable, packet: &[u8]) {
        let Some(&to) = packet.get(16..).and_then(|rest| rest.first_chunk()) else {
            return;
        };
        let to = Ipv4Addr::from_octets(to);
        let to_all_here = to == Ipv4Addr::from_bits(GATEWAY.to_bits() | u32::MAX >> PREFIX_LENGTH);
        if to.is_multicast() || to.is_broadcast() || to_all_here {
            return;
        }
        let message = icmp::unreachable(why, packet);
        self.give(GATEWAY, ipv4::ICMP, &message);
    }

    /// The same about a flow whose packets are not at hand any more; `begin` is
    /// how their payload began.
    pub(crate) fn give_flow_error(
        &mut self,
        why: Unreachable,
        to: Ipv4Addr,
        protocol: u8,
        begin: [u8; icmp::QUOTED],
    ) {
        let header = ipv4::guest_header(to, protocol, begin.len());
        self.give_error(why, &[&header[..], &begin].concat());
    }

    /// A socket that does not block, and whether it is connected already; if
    /// not, there will be news of it.
    pub(crate) fn dial(
        &self,
        kind: SocketType,
        protocol: Option<Protocol>,
        to: SocketAddr,
        prepare: impl FnOnce(&OwnedFd) -> rustix::io::Result<()>,
    ) -> rustix::io::Result<(OwnedFd, bool)> {
        let family = match to {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, kind, flags, protocol)?;
        prepare(&socket)?;
        loop {
            match connect(&socket, &to) {
                Ok(()) => return Ok((socket, true)),
                Err(Errno::INPROGRESS) => return Ok((socket, false)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Watches a flow's socket.
    pub(crate) fn watch(&self, fd: impl AsFd, token: Token, what: Watch) -> rustix::io::Result<()> {
        let watched = self.poller.watch(fd, token, what);
        watched.map_err(|_| Errno::NOMEM)
    }

    /// Throws a packet away.
    pub(crate) fn drop(&mut self, why: Dropped) {
        self.counters.drop(why);
    }
}

/// The host's resolvers, the one that answered last first.
#[derive(Debug, Default)]
pub(crate) struct Resolvers {
    all: Vec<SocketAddr>,
    preferred: usize,
}

impl Resolvers {
    pub(crate) fn new(addresses: Vec<IpAddr>) -> Self {
        let all = addresses
            .into_iter()
            .take(MAX_RESOLVERS)
            .map(|address| SocketAddr::new(address, DNS_PORT))
            .collect();
        Self { all, preferred: 0 }
    }

    /// In the order in which to ask them.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = SocketAddr> {
        let count = self.all.len();
        (0..count).map(move |at| self.all[(self.preferred + at) % count])
    }

    /// This one answered.
    pub(crate) fn prefer(&mut self, resolver: SocketAddr) {
        if let Some(at) = self.all.iter().position(|other| *other == resolver) {
            self.preferred = at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolver_that_answered_is_asked_first() {
        let addresses: Vec<IpAddr> = (1..=4).map(|n| [192, 0, 2, n].into()).collect();
        let mut resolvers = Resolvers::new(addresses.clone());
        let order = |resolvers: &Resolvers| -> Vec<IpAddr> {
            resolvers.in_order().map(|address| address.ip()).collect()
        };
        assert_eq!(order(&resolvers), addresses[..3], "three are used");
        resolvers.prefer(SocketAddr::new(addresses[2], DNS_PORT));
        assert_eq!(
            order(&resolvers),
            [addresses[2], addresses[0], addresses[1]]
        );
        assert_eq!(Resolvers::default().in_order().count(), 0);
    }
}
