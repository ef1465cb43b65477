//! A guest for tests: another TCP, without time or line of its own.

use std::collections::VecDeque;
use std::time::Instant;

use banger_wire::gateway::{GATEWAY, GUEST, MTU};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant as Stamp;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::segment::Route;

/// Its network device: packets in, packets out. It checks all checksums.
#[derive(Default)]
struct Card {
    arrived: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
}

struct Arrived(Vec<u8>);
struct Sent<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = vec![0; length];
        let result = write(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: Stamp) -> Option<(Arrived, Sent<'_>)> {
        let packet = self.arrived.pop_front()?;
        Some((Arrived(packet), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _: Stamp) -> Option<Sent<'_>> {
        Some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(MTU);
        capabilities
    }
}

/// The guest with one connection.
pub(crate) struct Guest {
    card: Card,
    start: Instant,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

impl Guest {
    /// One that has said SYN; its buffers have these sizes.
    pub(crate) fn dialling(route: Route, window: usize, now: Instant) -> Self {
        let mut card = Card::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = 77;
        let mut interface = Interface::new(config, &mut card, Stamp::from_micros(0));
        interface.update_ip_addrs(|own| own.push(IpCidr::new(GUEST.into(), 24)).unwrap());
        interface
            .routes_mut()
            .add_default_ipv4_route(GATEWAY)
            .unwrap();
        let ring = || SocketBuffer::new(vec![0; window]);
        let mut socket = Socket::new(ring(), ring());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let to: (IpAddress, u16) = ((*route.to.ip()).into(), route.to.port());
        socket
            .connect(interface.context(), to, route.guest_port)
            .unwrap();
        let mut sockets = SocketSet::new(vec![]);
        let handle = sockets.add(socket);
        let mut guest = Self {
            card,
            start: now,
            interface,
            sockets,
            handle,
        };
        guest.turn(now);
        guest
    }

    pub(crate) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// A packet for it.
    pub(crate) fn hears(&mut self, packet: &[u8]) {
        self.card.arrived.push_back(packet.to_vec());
    }

    /// A packet of it.
    pub(crate) fn says(&mut self) -> Option<Vec<u8>> {
        self.card.sent.pop_front()
    }

    pub(crate) fn turn(&mut self, now: Instant) {
        let micros = now.duration_since(self.start).as_micros() as i64;
        let now = Stamp::from_micros(1_000_000 + micros);
        self.interface.poll(now, &mut self.card, &mut self.sockets);
    }
}
