//! How a TCP flow comes about: a SYN is asked about, dialled, and answered by
//! what came of it: a reset where the server or the policy refuses, an ICMP
//! error where nobody is reached, and the SYN's own answer only when the server
//! has said yes.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::Instant;

use banger_wire::gateway::GATEWAY;
use rustix::io::Errno;
use smoltcp::wire::TcpRepr;

use super::dial::{Dial, Outcome};
use super::flow::Flow;
use super::segment::{self, Hello, Route};
use super::{End, Entry, MAX_FLOWS, MAX_HALF_OPEN, Stage, Tcp, guarded, token, upstream};
use crate::counters::Dropped;
use crate::host::{DNS_PORT, Host};
use crate::icmp::Unreachable;
use crate::refusals::Reason;
use crate::slab::Key;
use crate::timers::Alarm;

/// Bytes of a SYN that are kept, for an error about it: its header and what
/// such an error quotes.
const QUOTE: usize = 68;

impl Tcp {
    /// A SYN of a connection that is not known.
    pub(super) fn open(
        &mut self,
        host: &mut Host,
        now: Instant,
        route: Route,
        hello: Hello,
        segment: &TcpRepr<'_>,
        packet: &[u8],
    ) {
        let to = match self.admit(host, now, route) {
            Ok(to) => to,
            Err(_) => {
                segment::reset(&mut host.line, &mut host.counters, route, segment);
                return;
            }
        };
        let key = self.entries.insert_with(|_| Entry {
            route,
            stage: Stage::Between,
            alarm: Alarm::default(),
            half_open: true,
            touched: false,
            waiting: false,
        });
        self.by_route.insert(route, key);
        self.half_open += 1;
        let quote = packet[..packet.len().min(QUOTE)].to_vec();
        let outcome = Dial::begin(host, token(key), to, now);
        self.dialled(host, now, key, hello, quote, outcome);
    }

    /// Where a new flow may lead, if there may be one.
    fn admit(
        &mut self,
        host: &mut Host,
        now: Instant,
        route: Route,
    ) -> Result<VecDeque<SocketAddr>, Reason> {
        let (to, port) = (*route.to.ip(), route.to.port());
        let mut refuse = |reason| Err(host.refuse(now, "tcp", to, port, reason));
        if self.entries.len() >= MAX_FLOWS {
            return refuse(Reason::TcpLimit);
        }
        if self.half_open >= MAX_HALF_OPEN {
            return refuse(Reason::HalfOpenLimit);
        }
        if to == GATEWAY {
            if port != DNS_PORT {
                return refuse(Reason::GatewayPort);
            }
            return Ok(host.resolvers.in_order().collect());
        }
        host.may_leave(now, "tcp", to, port)?;
        Ok(VecDeque::from([SocketAddrV4::new(to, port).into()]))
    }

    /// Goes on with what came of dialling.
    pub(super) fn dialled(
        &mut self,
        host: &mut Host,
        now: Instant,
        key: Key,
        hello: Hello,
        quote: Vec<u8>,
        outcome: Outcome,
    ) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        match outcome {
            Outcome::Pending(dial) => {
                let until = dial.until;
                entry.stage = Stage::Dialling { dial, hello, quote };
                host.timers.set(&mut entry.alarm, token(key), Some(until));
            }
            Outcome::Connected(socket, to) => {
                if entry.route.to.ip() == &GATEWAY {
                    host.resolvers.prefer(to);
                }
                self.connected(host, now, key, hello, socket);
            }
            Outcome::Failed(error) => {
                let route = entry.route;
                self.remove(host, key, End::Quiet);
                self.tell(host, now, route, &hello, &quote, error);
            }
        }
    }

    fn connected(
        &mut self,
        host: &mut Host,
        now: Instant,
        key: Key,
        hello: Hello,
        socket: OwnedFd,
    ) {
        let seed = self.seeds.hash_one(self.opened);
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let route = entry.route;
        match guarded(|| Flow::new(host, route, hello, socket, seed, now)) {
            Some(Ok(flow)) => {
                entry.stage = Stage::Open(flow);
                self.opened += 1;
                host.counters.tcp_opened += 1;
                self.touch(key);
            }
            Some(Err(socket)) => {
                upstream::reset(socket);
                host.refuse(
                    now,
                    "tcp",
                    *route.to.ip(),
                    route.to.port(),
                    Reason::MemoryLimit,
                );
                self.remove(host, key, End::Quiet);
                let answer = hello.sequence.wrapping_add(1);
                segment::reset_at(&mut host.line, &mut host.counters, route, 0, answer);
            }
            None => {
                host.drop(Dropped::Panic);
                self.remove(host, key, End::Quiet);
            }
        }
    }

    /// Tells the guest why there is no connection, as the server or a router
    /// would have.
    fn tell(
        &mut self,
        host: &mut Host,
        now: Instant,
        route: Route,
        hello: &Hello,
        quote: &[u8],
        error: Errno,
    ) {
        let unreachable = matches!(
            error,
            Errno::HOSTUNREACH
                | Errno::NETUNREACH
                | Errno::HOSTDOWN
                | Errno::NETDOWN
                | Errno::TIMEDOUT
                | Errno::ACCESS
                | Errno::PERM
        );
        if unreachable {
            host.give_error(Unreachable::from_errno(error), quote);
            return;
        }
        if !matches!(error, Errno::CONNREFUSED | Errno::CONNRESET) {
            host.refuse(now, "tcp", *route.to.ip(), route.to.port(), Reason::Socket);
        }
        let answer = hello.sequence.wrapping_add(1);
        segment::reset_at(&mut host.line, &mut host.counters, route, 0, answer);
    }
}
