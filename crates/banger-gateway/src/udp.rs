//! UDP of the guest, to the outside and back.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use banger_wire::gateway::GUEST;
use rustix::io::Errno;
use rustix::net::{SocketType, ipproto};

use crate::checksum::Sum;
use crate::counters::Dropped;
use crate::host::Host;
use crate::icmp::Unreachable;
use crate::ipv4;
use crate::poller::{News, Owner};
use crate::refusals::Reason;
use crate::relay::Relay;
use crate::slab::Key;

/// Flows at a time.
pub(crate) const MAX_FLOWS: usize = 512;
/// Length of a header.
pub(crate) const HEADER: usize = 8;

/// A datagram of the guest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Datagram<'a> {
    pub(crate) guest_port: u16,
    pub(crate) to: SocketAddrV4,
    pub(crate) data: &'a [u8],
}

/// Reads one. Its checksum is not looked at: the data gets a new one.
pub(crate) fn parse<'a>(header: &ipv4::Header, packet: &'a [u8]) -> Option<Datagram<'a>> {
    let payload = packet.get(header.length..header.total)?;
    let fields = payload.first_chunk::<HEADER>()?;
    let word = |at: usize| u16::from_be_bytes([fields[at], fields[at + 1]]);
    let datagram = Datagram {
        guest_port: word(0),
        to: SocketAddrV4::new(header.to, word(2)),
        data: payload.get(HEADER..usize::from(word(4)))?,
    };
    (datagram.guest_port != 0 && datagram.to.port() != 0).then_some(datagram)
}

/// Writes a header in front of data that lies behind its place.
pub(crate) fn seal(datagram: &mut [u8], from: SocketAddrV4, guest_port: u16) {
    let length = datagram.len() as u16;
    datagram[0..2].copy_from_slice(&from.port().to_be_bytes());
    datagram[2..4].copy_from_slice(&guest_port.to_be_bytes());
    datagram[4..6].copy_from_slice(&length.to_be_bytes());
    datagram[6..8].fill(0);
    let sum = Sum::pseudo_header(*from.ip(), GUEST, ipv4::UDP, length).with(datagram);
    let sum = match sum.finish() {
        // Zero would mean that there is none.
        [0, 0] => [0xff, 0xff],
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum);
}

/// What the guest calls a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Route {
    guest_port: u16,
    to: SocketAddrV4,
}

/// All flows.
pub(crate) struct Udp {
    relay: Relay<Route>,
}

impl Udp {
    pub(crate) fn new() -> Self {
        Self {
            relay: Relay::new(Owner::Udp, MAX_FLOWS),
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.relay.len()
    }

    /// A datagram of the guest, and the packet that it came in.
    pub(crate) fn datagram(
        &mut self,
        host: &mut Host,
        now: Instant,
        datagram: &Datagram<'_>,
        packet: &[u8],
    ) {
        let key = match self.flow(host, now, datagram) {
            Ok(key) => key,
            Err(why) => return host.give_error(why, packet),
        };
        let (failed, sent) = self.relay.send(key, datagram.data);
        if let Some(error) = failed.and_then(tellable) {
            host.give_error(error, packet);
        }
        if !sent {
            host.drop(Dropped::Socket);
        }
    }

    /// The flow of a datagram, a new one if need be.
    fn flow(
        &mut self,
        host: &mut Host,
        now: Instant,
        datagram: &Datagram<'_>,
    ) -> Result<Key, Unreachable> {
        let (to, port) = (*datagram.to.ip(), datagram.to.port());
        let route = Route {
            guest_port: datagram.guest_port,
            to: datagram.to,
        };
        if let Some(key) = self.relay.find(now, route) {
            if self.relay.verdict_is_old(now, key) && host.may_leave(now, "udp", to, port).is_err()
            {
                self.relay.remove(host, key);
                return Err(Unreachable::Prohibited);
            }
            return Ok(key);
        }
        host.may_leave(now, "udp", to, port)
            .map_err(|_| Unreachable::Prohibited)?;
        let opened = host
            .dial(
                SocketType::DGRAM,
                Some(ipproto::UDP),
                datagram.to.into(),
                |_| Ok(()),
            )
            .and_then(|(socket, _)| self.relay.open(host, now, route, socket));
        match opened {
            Ok((key, pushed_out)) => {
                host.counters.udp_opened += 1;
                if pushed_out {
                    host.counters.refuse(Reason::UdpLimit);
                }
                Ok(key)
            }
            Err(error) => {
                if tellable(error).is_none() {
                    host.refuse(now, "udp", to, port, Reason::Socket);
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
        self.relay
            .settle(host, now, HEADER, |host, route, came| match came {
                Ok(datagram) => {
                    seal(datagram, route.to, route.guest_port);
                    host.give(*route.to.ip(), ipv4::UDP, datagram);
                }
                Err(error) => tell(host, route, error),
            });
    }
}

/// Tells of an error that came without a packet of the guest at hand.
fn tell(host: &mut Host, route: Route, error: Errno) {
    let Some(why) = tellable(error) else {
        return;
    };
    let mut begin = [0; HEADER];
    begin[0..2].copy_from_slice(&route.guest_port.to_be_bytes());
    begin[2..4].copy_from_slice(&route.to.port().to_be_bytes());
    begin[4..6].copy_from_slice(&(HEADER as u16).to_be_bytes());
    host.give_flow_error(why, *route.to.ip(), ipv4::UDP, begin);
}

/// What somebody outside had against a datagram. Other errors are the host's
/// own, such as that of a path whose packets must be shorter from now on.
fn tellable(error: Errno) -> Option<Unreachable> {
    matches!(
        error,
        Errno::CONNREFUSED
            | Errno::HOSTUNREACH
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::NETDOWN
            | Errno::ACCESS
            | Errno::PERM
    )
    .then(|| Unreachable::from_errno(error))
}

/// A datagram from the gateway itself.
pub(crate) fn from_gateway(gateway: Ipv4Addr, port: u16, guest_port: u16, data: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(HEADER + data.len());
    datagram.extend_from_slice(&[0; HEADER]);
    datagram.extend_from_slice(data);
    seal(&mut datagram, SocketAddrV4::new(gateway, port), guest_port);
    datagram
}

#[cfg(test)]
mod tests {
    use smoltcp::wire::UdpPacket;

    use super::*;
    use crate::ipv4::tests::guest_packet;

    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

    fn packet(fields: [u16; 4], data: &[u8]) -> (ipv4::Header, Vec<u8>) {
        let fields: Vec<u8> = fields.iter().flat_map(|word| word.to_be_bytes()).collect();
        let packet = guest_packet(OUTSIDE, ipv4::UDP, &[&fields[..], data].concat());
        (ipv4::parse(&packet).unwrap(), packet)
    }

    #[test]
    fn a_datagram_is_what_its_header_says() {
        let (header, bytes) = packet([4000, 53, 11, 0], b"abcpadding");
        let datagram = parse(&header, &bytes).unwrap();
        assert_eq!(datagram.data, b"abc");
        assert_eq!(datagram.guest_port, 4000);
        assert_eq!(datagram.to, SocketAddrV4::new(OUTSIDE, 53));
        let (header, bytes) = packet([4000, 53, 8, 0], b"");
        assert_eq!(parse(&header, &bytes).unwrap().data, b"");
    }

    #[test]
    fn headers_that_lie_are_refused() {
        for fields in [[0, 53, 11, 0], [1, 0, 11, 0], [1, 53, 12, 0], [1, 53, 7, 0]] {
            let (header, bytes) = packet(fields, b"abc");
            assert_eq!(parse(&header, &bytes), None, "{fields:?}");
        }
        let short = guest_packet(OUTSIDE, ipv4::UDP, &[0; 7]);
        assert_eq!(parse(&ipv4::parse(&short).unwrap(), &short), None);
    }

    #[test]
    fn what_is_written_has_the_checksum_that_others_compute() {
        for length in [0, 1, 2, 7, 8, 1000] {
            let data: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let datagram = from_gateway(OUTSIDE, 53, 4000, &data);
            let read = UdpPacket::new_checked(&datagram[..]).unwrap();
            assert!(read.verify_checksum(&OUTSIDE.into(), &GUEST.into()));
            assert_eq!((read.src_port(), read.dst_port()), (53, 4000));
            assert_eq!(read.payload(), data);
        }
    }
}
