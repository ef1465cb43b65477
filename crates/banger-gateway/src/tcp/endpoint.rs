//! The gateway's end of one TCP connection with the guest: one smoltcp
//! interface with one socket, so that no flow is searched among others and a
//! panic in it takes one flow along.
//!
//! Sequence numbers on the line are smoltcp's, shifted: an endpoint can be
//! given up while its connection rests and made anew later, with other rings,
//! and goes on where the old one was. smoltcp finds the numbers of a new one by
//! a handshake that stays in here; the shift makes up the difference.

use std::time::Instant;

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant as Stamp};
use smoltcp::wire::{HardwareAddress, IpCidr, IpListenEndpoint};

use super::rings::Rings;
use super::segment::{self, Hello, Route};
use super::wire::{Numbers, Outlet, Wire};
use crate::budget::Charge;
use crate::ipv4;

/// How long an answer may take before small data is acknowledged without it.
const ACK_DELAY: Duration = Duration::from_millis(10);
/// Data of this many bytes is acknowledged at once: the guest may have no
/// window left for more.
const LARGE_SEGMENT: usize = 2048;
/// Segments that are sent in one turn.
const SEGMENTS_A_TURN: usize = 64;
/// smoltcp takes the time zero for "never".
const HEAD_START: u64 = 1_000_000;

/// Where a connection stands while nothing of it is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The next number from the guest.
    pub(crate) receive: u32,
    /// The next number to the guest.
    pub(crate) send: u32,
    /// The guest's window, as it stood in its last segment.
    pub(crate) window: u16,
}

/// The end of a connection.
pub(crate) struct Endpoint {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    since: Instant,
    numbers: Numbers,
    pub(crate) rings: Rings,
    _charge: Charge,
}

impl Endpoint {
    /// Hears the guest's SYN. The answer goes with the first
    /// [`send`](Self::send).
    pub(crate) fn open(
        route: Route,
        hello: &Hello,
        (rings, charge): (Rings, Charge),
        seed: u64,
        now: Instant,
    ) -> Self {
        let mut endpoint = Self::listening(route, rings, charge, seed, now);
        endpoint.feed(None, now, &hello.again(route, hello.sequence));
        endpoint
    }

    /// Goes on with a connection that rested. `None` if smoltcp does not play
    /// along, which would be a fault of one of us.
    pub(crate) fn resume(
        route: Route,
        hello: &Hello,
        standing: Standing,
        rings: (Rings, Charge),
        seed: u64,
        now: Instant,
    ) -> Option<Self> {
        let mut endpoint = Self::listening(route, rings.0, rings.1, seed, now);
        let syn = hello.again(route, standing.receive.wrapping_sub(1));
        endpoint.feed(None, now, &syn);
        endpoint.poll(None, now);
        let next = endpoint.numbers.first?.wrapping_add(1);
        let ack = segment::bare_ack(route, standing.receive, next, standing.window);
        endpoint.feed(None, now, &ack);
        endpoint.numbers.shift = standing.send.wrapping_sub(next);
        endpoint.numbers.window = standing.window;
        (endpoint.state() == State::Established).then_some(endpoint)
    }

    fn listening(route: Route, rings: Rings, charge: Charge, seed: u64, now: Instant) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut numbers = Numbers::default();
        let mut nowhere = Wire::to_nobody(&mut numbers);
        let mut interface = Interface::new(config, &mut nowhere, stamp(now, now));
        interface.update_ip_addrs(|addresses| {
            let own = IpCidr::new((*route.to.ip()).into(), 32);
            addresses.push(own).expect("there is room for one address");
        });
        let ring = |bytes| SocketBuffer::new(vec![0; bytes]);
        let mut socket = Socket::new(ring(rings.from_guest), ring(rings.to_guest));
        socket.set_nagle_enabled(false);
        socket
            .listen(IpListenEndpoint {
                addr: Some((*route.to.ip()).into()),
                port: route.to.port(),
            })
            .expect("the port is not zero and the socket is new");
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            interface,
            sockets,
            handle,
            since: now,
            numbers,
            rings,
            _charge: charge,
        }
    }

    /// Takes a segment of the guest that belongs to this connection: a whole
    /// packet, which is changed.
    pub(crate) fn take(
        &mut self,
        outlet: Outlet<'_>,
        now: Instant,
        header: &ipv4::Header,
        packet: &mut [u8],
    ) {
        let packet = &mut packet[..header.total];
        let tcp = &mut packet[header.length..];
        self.numbers.take_off(tcp);
        let delay = (tcp.len() < LARGE_SEGMENT).then_some(ACK_DELAY);
        self.socket().set_ack_delay(delay);
        self.feed(Some(outlet), now, packet);
    }

    /// Tells the guest anew what has arrived and how much more may.
    pub(crate) fn announce(
        &mut self,
        outlet: Outlet<'_>,
        now: Instant,
        route: Route,
        at: Standing,
    ) {
        // A window probe: smoltcp answers with exactly that.
        let before = at.receive.wrapping_sub(1);
        let ack = at.send.wrapping_sub(self.numbers.shift);
        let probe = segment::bare_ack(route, before, ack, at.window);
        self.feed(Some(outlet), now, &probe);
    }

    fn feed(&mut self, outlet: Option<Outlet<'_>>, now: Instant, packet: &[u8]) {
        let mut wire = Wire {
            packet: Some(packet),
            outlet,
            numbers: &mut self.numbers,
        };
        let now = stamp(self.since, now);
        self.interface
            .poll_ingress_single(now, &mut wire, &mut self.sockets);
    }

    fn poll(&mut self, outlet: Option<Outlet<'_>>, now: Instant) -> bool {
        let mut wire = Wire {
            packet: None,
            outlet,
            numbers: &mut self.numbers,
        };
        let now = stamp(self.since, now);
        let result = self
            .interface
            .poll_egress(now, &mut wire, &mut self.sockets);
        result == PollResult::SocketStateChanged
    }

    /// Sends what there is to send, as long as the line takes it; whether
    /// anything was.
    pub(crate) fn send(&mut self, outlet: Outlet<'_>, now: Instant) -> bool {
        let Outlet { line, counters } = outlet;
        let mut sent = false;
        for _ in 0..SEGMENTS_A_TURN {
            let outlet = Outlet {
                line: &mut *line,
                counters: &mut *counters,
            };
            if !self.poll(Some(outlet), now) {
                break;
            }
            sent = true;
        }
        sent
    }

    /// When this wants to send something: now, if that is not later.
    pub(crate) fn wants(&mut self, now: Instant) -> Option<Instant> {
        let at = self
            .interface
            .poll_at(stamp(self.since, now), &self.sockets)?;
        let micros = u64::try_from(at.total_micros()).unwrap_or(0);
        let micros = micros.saturating_sub(HEAD_START);
        Some(self.since + std::time::Duration::from_micros(micros))
    }

    pub(crate) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub(crate) fn state(&mut self) -> State {
        self.socket().state()
    }

    /// The number of the SYN that was sent to the guest, if this endpoint sent
    /// it.
    pub(crate) fn first(&self) -> Option<u32> {
        self.numbers.first
    }

    /// The acknowledgement that the guest was sent last.
    pub(crate) fn acknowledged(&self) -> u32 {
        self.numbers.acknowledged
    }

    /// The guest's window, see [`Standing`].
    pub(crate) fn window(&self) -> u16 {
        self.numbers.window
    }
}

fn stamp(since: Instant, now: Instant) -> Stamp {
    let micros = now.saturating_duration_since(since).as_micros() as u64;
    Stamp::from_micros((micros + HEAD_START).cast_signed())
}

#[cfg(test)]
mod tests;
