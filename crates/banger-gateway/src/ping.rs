//! Pings of the guest: the gateway answers its own, others go out by the
//! sockets that the host gives to users for that, if it does.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use banger_wire::gateway::GATEWAY;
use rustix::io::Errno;
use rustix::net::{SocketType, ipproto};

use crate::counters::Dropped;
use crate::host::Host;
use crate::icmp::{self, ECHO_ANSWER, ECHO_QUESTION, Unreachable};
use crate::ipv4;
use crate::poller::{News, Owner};
use crate::refusals::Reason;
use crate::relay::Relay;
use crate::slab::Key;

/// Flows at a time.
const MAX_FLOWS: usize = 64;

/// What the guest calls a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Route {
    ident: u16,
    to: Ipv4Addr,
}

/// All flows.
pub(crate) struct Ping {
    relay: Relay<Route>,
}

impl Ping {
    pub(crate) fn new() -> Self {
        Self {
            relay: Relay::new(Owner::Ping, MAX_FLOWS),
        }
    }

    /// An ICMP packet of the guest.
    pub(crate) fn packet(
        &mut self,
        host: &mut Host,
        now: Instant,
        header: &ipv4::Header,
        packet: &[u8],
    ) {
        let message = &packet[header.length..header.total];
        let Some(echo) = icmp::echo(message, ECHO_QUESTION) else {
            host.drop(Dropped::Unsupported);
            return;
        };
        if header.to == GATEWAY {
            let answer = icmp::write_echo(ECHO_ANSWER, echo.ident, echo.rest);
            host.give(GATEWAY, ipv4::ICMP, &answer);
            return;
        }
        let route = Route {
            ident: echo.ident,
            to: header.to,
        };
        let key = match self.flow(host, now, route) {
            Ok(key) => key,
            Err(why) => return host.give_error(why, packet),
        };
        // The kernel puts its own number in place of the guest's.
        let question = icmp::write_echo(ECHO_QUESTION, 0, echo.rest);
        let (failed, sent) = self.relay.send(key, &question);
        if let Some(error) = failed.filter(|_| !sent) {
            host.give_error(Unreachable::from_errno(error), packet);
        }
        if !sent {
            host.drop(Dropped::Socket);
        }
    }

    fn flow(&mut self, host: &mut Host, now: Instant, route: Route) -> Result<Key, Unreachable> {
        if let Some(key) = self.relay.find(now, route) {
            if self.relay.verdict_is_old(now, key)
                && host.may_leave(now, "icmp", route.to, 0).is_err()
            {
                self.relay.remove(host, key);
                return Err(Unreachable::Prohibited);
            }
            return Ok(key);
        }
        host.may_leave(now, "icmp", route.to, 0)
            .map_err(|_| Unreachable::Prohibited)?;
        let to = SocketAddr::from((route.to, 0));
        let opened = host
            .dial(SocketType::DGRAM, Some(ipproto::ICMP), to, |_| Ok(()))
            .and_then(|(socket, _)| self.relay.open(host, now, route, socket));
        match opened {
            Ok((key, _)) => Ok(key),
            Err(error) => {
                if !matches!(error, Errno::HOSTUNREACH | Errno::NETUNREACH) {
                    host.refuse(now, "icmp", route.to, 0, Reason::Socket);
                }
                Err(Unreachable::from_errno(error))
            }
        }
    }

    /// See [`Relay::hear`].
    pub(crate) fn hear(&mut self, news: &News) {
        self.relay.hear(news);
    }

    /// See [`Relay::due`].
    pub(crate) fn due(&mut self, host: &mut Host, now: Instant, key: Key) {
        self.relay.due(host, now, key);
    }

    /// See [`Relay::line_is_free`].
    pub(crate) fn line_is_free(&mut self, key: Key) {
        self.relay.line_is_free(key);
    }

    pub(crate) fn has_work(&self) -> bool {
        self.relay.has_work()
    }

    /// Passes on what came from outside.
    pub(crate) fn settle(&mut self, host: &mut Host, now: Instant) {
        self.relay.settle(host, now, 0, |host, route, came| {
            match came {
                Ok(message) => {
                    if let Some(echo) = icmp::echo(message, ECHO_ANSWER) {
                        let answer = icmp::write_echo(ECHO_ANSWER, route.ident, echo.rest);
                        host.give(route.to, ipv4::ICMP, &answer);
                    }
                }
                Err(error) => {
                    let [high, low] = route.ident.to_be_bytes();
                    let begin = [ECHO_QUESTION, 0, 0, 0, high, low, 0, 0];
                    let why = Unreachable::from_errno(error);
                    host.give_flow_error(why, route.to, ipv4::ICMP, begin);
                }
            };
        });
    }
}
