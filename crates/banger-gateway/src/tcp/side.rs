//! The guest's side of a flow: an endpoint while something happens, and while
//! nothing does, only the numbers with which another one goes on.

use std::time::Instant;

use smoltcp::socket::tcp::State;

use super::endpoint::{Endpoint, Standing};
use super::rings::{LARGE, SMALL};
use super::segment::{Hello, Route};
use super::wire::Outlet;
use crate::host::Host;

/// Bytes after which a connection is one that moves much.
pub(crate) const MUCH: usize = 128 << 10;

/// One connection, as the guest sees it.
pub(crate) struct Side {
    pub(crate) route: Route,
    pub(crate) hello: Hello,
    /// For smoltcp's numbers.
    seed: u64,
    /// Our SYN's number, once it was sent.
    first: Option<u32>,
    /// Bytes in each direction, modulo 2^32.
    from_guest: u32,
    to_guest: u32,
    /// Bytes that the guest may send at once, as it was told; never less.
    offered: usize,
    /// Bytes moved since the rings are what they are.
    moved: usize,
    /// Waits for a moment to take larger rings.
    growing: bool,
    stage: Stage,
}

enum Stage {
    Awake(Box<Endpoint>),
    Resting(Standing),
}

/// There is no memory for the rings of a connection that wakes up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoMemory;

impl Side {
    /// Of a connection that the guest asked for. `None`: no memory for it.
    pub(crate) fn open(
        host: &Host,
        route: Route,
        hello: Hello,
        seed: u64,
        now: Instant,
    ) -> Option<Self> {
        let rings = SMALL.take(&host.budget, 0)?;
        let offered = rings.0.from_guest;
        let endpoint = Endpoint::open(route, &hello, rings, seed, now);
        Some(Self {
            route,
            hello,
            seed,
            first: None,
            from_guest: 0,
            to_guest: 0,
            offered,
            moved: 0,
            growing: false,
            stage: Stage::Awake(Box::new(endpoint)),
        })
    }

    /// What talks to the guest, unless the connection rests.
    pub(crate) fn endpoint(&mut self) -> Option<&mut Endpoint> {
        match &mut self.stage {
            Stage::Awake(endpoint) => Some(endpoint),
            Stage::Resting(_) => None,
        }
    }

    /// Whether nothing more may be put into the ring until it is empty.
    pub(crate) fn is_growing(&self) -> bool {
        self.growing
    }

    /// So much was taken from the guest.
    pub(crate) fn count_from_guest(&mut self, bytes: usize) {
        self.from_guest = self.from_guest.wrapping_add(bytes as u32);
        self.moved += bytes;
    }

    /// So much was put into the ring to the guest.
    pub(crate) fn count_to_guest(&mut self, bytes: usize) {
        self.to_guest = self.to_guest.wrapping_add(bytes as u32);
        self.moved += bytes;
    }

    /// Takes larger rings when it is time and nothing is under way; whether
    /// there may be more to move now. Waiting for that moment must not hold the
    /// server up while it holds us up.
    pub(crate) fn grow(&mut self, host: &mut Host, now: Instant) -> Result<bool, NoMemory> {
        let Stage::Awake(endpoint) = &mut self.stage else {
            return Ok(false);
        };
        let have = endpoint.rings.to_guest;
        if !self.growing && (self.moved < MUCH || have >= LARGE.to_guest) {
            return Ok(false);
        }
        let waited = std::mem::take(&mut self.growing);
        let rings = LARGE.take(&host.budget, self.offered);
        let rings = rings.filter(|(rings, _)| rings.to_guest > have);
        let socket = endpoint.socket();
        let fits = socket.state() == State::Established && socket.recv_queue() == 0;
        let (Some(rings), true) = (rings, fits) else {
            self.moved = 0;
            return Ok(waited);
        };
        if socket.send_queue() > 0 {
            self.growing = true;
            return Ok(false);
        }
        self.moved = 0;
        let standing = self.standing();
        let endpoint = Endpoint::resume(self.route, &self.hello, standing, rings, self.seed, now);
        let mut endpoint = endpoint.ok_or(NoMemory)?;
        endpoint.announce(outlet(host), now, self.route, standing);
        self.offered = endpoint.rings.from_guest;
        self.stage = Stage::Awake(Box::new(endpoint));
        Ok(true)
    }

    /// Where the connection stands; right while nothing is under way.
    pub(crate) fn standing(&mut self) -> Standing {
        match &self.stage {
            Stage::Resting(standing) => *standing,
            Stage::Awake(endpoint) => {
                // Of the first endpoint: later ones make theirs up.
                self.first = self.first.or(endpoint.first());
                let first = self.first.unwrap_or(0);
                Standing {
                    receive: self
                        .hello
                        .sequence
                        .wrapping_add(1)
                        .wrapping_add(self.from_guest),
                    send: first.wrapping_add(1).wrapping_add(self.to_guest),
                    window: endpoint.window(),
                }
            }
        }
    }

    /// Makes an endpoint for a connection that rested.
    pub(crate) fn wake(&mut self, host: &Host, now: Instant) -> Result<(), NoMemory> {
        let Stage::Resting(standing) = self.stage else {
            return Ok(());
        };
        let rings = SMALL.take(&host.budget, self.offered).ok_or(NoMemory)?;
        let endpoint = Endpoint::resume(self.route, &self.hello, standing, rings, self.seed, now)
            .ok_or(NoMemory)?;
        self.moved = 0;
        self.offered = endpoint.rings.from_guest;
        self.stage = Stage::Awake(Box::new(endpoint));
        Ok(())
    }

    /// Gives the endpoint up. Nothing may be under way.
    pub(crate) fn rest(&mut self) {
        self.growing = false;
        self.stage = Stage::Resting(self.standing());
    }
}

pub(crate) fn outlet(host: &mut Host) -> Outlet<'_> {
    Outlet {
        line: &mut host.line,
        counters: &mut host.counters,
    }
}
