//! An honest guest: the TCP of another implementation on the engine's end of
//! the line, with buffers as large as Linux has them.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use banger_wire::gateway::{GATEWAY, GUEST, MTU, guest_mac};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as Stamp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

use crate::room::guest::{Guest, PATIENCE};

/// Longest wait for a frame before somebody looks whether all is over.
const LOOK: Duration = Duration::from_millis(200);
/// The receive buffer of a connection that is not told another.
pub(crate) const WINDOW: usize = 512 << 10;

/// A network card on the line.
struct Card {
    line: Guest,
    arrived: VecDeque<Vec<u8>>,
}

struct Arrived(Vec<u8>);
struct Send<'a>(&'a Guest);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Send<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut frame = vec![0; length];
        let result = write(&mut frame);
        self.0.send(&frame);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Send<'a>;

    fn receive(&mut self, _: Stamp) -> Option<(Arrived, Send<'_>)> {
        let frame = match self.arrived.pop_front() {
            Some(frame) => frame,
            None => self.line.receive(Instant::now())?.to_vec(),
        };
        Some((Arrived(frame), Send(&self.line)))
    }

    fn transmit(&mut self, _: Stamp) -> Option<Send<'_>> {
        Some(Send(&self.line))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 14 + usize::from(MTU);
        capabilities
    }
}

/// The guest.
pub(crate) struct Stack {
    card: Card,
    start: Instant,
    interface: Interface,
    sockets: SocketSet<'static>,
    port: u16,
}

/// One of its connections.
pub(crate) type Handle = SocketHandle;

impl Stack {
    pub(crate) fn new(line: Guest) -> Self {
        let mut card = Card {
            line,
            arrived: VecDeque::new(),
        };
        let mac = guest_mac("0a1b2c").expect("six digits");
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        let start = Instant::now();
        let mut interface = Interface::new(config, &mut card, Stamp::from_micros(0));
        interface.update_ip_addrs(|own| {
            own.push(IpCidr::new(GUEST.into(), 24)).expect("the first");
        });
        let route = interface.routes_mut().add_default_ipv4_route(GATEWAY);
        route.expect("the first");
        Self {
            card,
            start,
            interface,
            sockets: SocketSet::new(vec![]),
            port: 30_000,
        }
    }

    /// The frames themselves.
    pub(crate) fn line(&mut self) -> &mut Guest {
        &mut self.card.line
    }

    /// Begins to connect, with a receive buffer of this size.
    pub(crate) fn dial(&mut self, to: (Ipv4Addr, u16), window: usize) -> Handle {
        let ring = |bytes| SocketBuffer::new(vec![0; bytes]);
        let mut socket = Socket::new(ring(window), ring(WINDOW));
        socket.set_nagle_enabled(false);
        // A delayed one would be lost with a connection that is forgotten.
        socket.set_ack_delay(None);
        self.port = self.port.checked_add(1).unwrap_or(30_000);
        let to: (IpAddress, u16) = (to.0.into(), to.1);
        socket
            .connect(self.interface.context(), to, self.port)
            .expect("the socket is new");
        self.sockets.add(socket)
    }

    /// The next connection has the port of the one before it.
    pub(crate) fn same_port_again(&mut self) {
        self.port -= 1;
    }

    /// A connection that is open.
    pub(crate) fn connect(&mut self, to: (Ipv4Addr, u16)) -> Handle {
        let handle = self.dial(to, WINDOW);
        self.until("connected", |stack| stack.socket(handle).may_send());
        handle
    }

    pub(crate) fn socket(&mut self, handle: Handle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Forgets a connection.
    pub(crate) fn forget(&mut self, handle: Handle) {
        self.sockets.remove(handle);
    }

    /// Lets time pass and frames come and go until this is so.
    pub(crate) fn until(&mut self, what: &str, mut so: impl FnMut(&mut Self) -> bool) {
        let give_up = Instant::now() + PATIENCE;
        loop {
            self.turn();
            if so(self) {
                return;
            }
            assert!(Instant::now() < give_up, "not {what} in {PATIENCE:?}");
            self.wait(LOOK);
        }
    }

    /// Does what a guest does that has nothing to say, for a while.
    pub(crate) fn idle(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.turn();
            self.wait(until.saturating_duration_since(Instant::now()).min(LOOK));
        }
    }

    fn turn(&mut self) {
        let now = Stamp::from_micros(self.start.elapsed().as_micros() as i64);
        self.interface.poll(now, &mut self.card, &mut self.sockets);
    }

    /// Waits for a frame, or until there is something to send.
    fn wait(&mut self, longest: Duration) {
        let now = Stamp::from_micros(self.start.elapsed().as_micros() as i64);
        let delay = self.interface.poll_delay(now, &self.sockets);
        let delay = delay.map_or(longest, |delay| longest.min(delay.into()));
        if let Some(frame) = self.card.line.receive(Instant::now() + delay) {
            self.card.arrived.push_back(frame.to_vec());
        }
    }

    /// Sends all of this.
    pub(crate) fn say(&mut self, handle: Handle, data: &[u8]) {
        let mut said = 0;
        while said < data.len() {
            self.until("able to send", |stack| stack.socket(handle).can_send());
            let sent = self.socket(handle).send_slice(&data[said..]);
            said += sent.expect("the connection is open");
        }
        self.turn();
    }

    /// Hands what comes to `take`, until the other side ends; whether it ended
    /// well.
    pub(crate) fn hear(&mut self, handle: Handle, mut take: impl FnMut(&[u8])) -> bool {
        loop {
            self.until("heard from", |stack| {
                let socket = stack.socket(handle);
                socket.can_recv() || !socket.may_recv()
            });
            let socket = self.socket(handle);
            if !socket.can_recv() {
                return socket.state() != State::Closed;
            }
            let heard = socket.recv(|data| {
                take(data);
                (data.len(), ())
            });
            heard.expect("there is something");
        }
    }

    /// All that comes until the other side ends, which it must do well.
    pub(crate) fn hear_all(&mut self, handle: Handle) -> Vec<u8> {
        let mut all = Vec::new();
        let well = self.hear(handle, |data| all.extend_from_slice(data));
        assert!(well, "reset after {} bytes", all.len());
        all
    }

    /// Ends its side and waits until the connection is over for both.
    pub(crate) fn close(&mut self, handle: Handle) {
        self.socket(handle).close();
        self.until("closed", |stack| {
            matches!(
                stack.socket(handle).state(),
                State::Closed | State::TimeWait
            )
        });
        self.forget(handle);
    }
}
