//! One TCP connection of the guest: bytes between an [`Endpoint`] and an
//! [`Upstream`], each way as fast as the slower side takes them.
//!
//! ```text
//! guest ─segments─► ring ─► send()   a full ring is a closed window
//!       ◄───────── ring ◄── recv()   a full ring is not filled: the server's
//!                                    window closes
//! guest's FIN ─► (ring empty) ─► shutdown      server's end ─► (ring) ─► FIN
//! guest's RST ─► RST                           server's RST ─► (ring) ─► RST
//! ```
//!
//! A connection on which nothing happens gives up its endpoint, and with it
//! the rings; the next segment or byte makes another one. One that moves much
//! gets larger rings the same way, at a moment when nothing is under way.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use smoltcp::socket::tcp::State;

use super::segment::{self, Hello, Route};
use super::side::{NoMemory, Side, outlet};
use super::upstream::Upstream;
use crate::host::Host;
use crate::ipv4;
use crate::poller::News;

/// Time for the guest to confirm a connection that it asked for itself.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Quiet after which a connection gives up its rings.
const REST_AFTER: Duration = Duration::from_secs(1);
/// Time that the guest may say nothing at all while something waits for its
/// answer: as long as Linux repeats itself before it gives up.
const SILENCE: Duration = Duration::from_secs(15 * 60);
/// Bytes from a server that are passed on before other flows have their turn.
const A_TURN: usize = 1 << 20;
/// Something that should be sent now and was not is tried again after this.
const HICCUP: Duration = Duration::from_millis(5);

/// What is to be done with a flow next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Wait for news, or until then.
    Wait(Option<Instant>),
    /// Wait for room on the line, or until then.
    ForLine(Option<Instant>),
    /// There is more to do, after the others.
    Again,
    /// All is said: close it.
    Over,
    /// Close it with a reset to the server.
    Reset,
}

/// What the guest was told of the server's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Fin,
    Reset,
}

/// A connection that both sides know of, or are about to.
pub(crate) struct Flow {
    side: Side,
    upstream: Upstream,
    /// The guest will send nothing more.
    guest_over: bool,
    /// How the guest was told of the server's end, or is about to be.
    told: Told,
    /// Guest and server have nothing more to say to each other on the line;
    /// what the guest said last may still have to go out.
    draining: bool,
    opened: Instant,
    /// When the guest last said something.
    heard: Instant,
    /// Since when something waits for its answer.
    owed: Option<Instant>,
    /// When anything last moved.
    active: Instant,
}

impl Flow {
    /// A connection whose server has answered. `None`: no memory for it.
    pub(crate) fn new(
        host: &Host,
        route: Route,
        hello: Hello,
        socket: OwnedFd,
        seed: u64,
        now: Instant,
    ) -> Result<Self, OwnedFd> {
        let Some(side) = Side::open(host, route, hello, seed, now) else {
            return Err(socket);
        };
        Ok(Self {
            side,
            upstream: Upstream::new(socket),
            guest_over: false,
            told: Told::Nothing,
            draining: false,
            opened: now,
            heard: now,
            owed: None,
            active: now,
        })
    }

    /// How the guest began it.
    pub(crate) fn hello(&self) -> &Hello {
        &self.side.hello
    }

    /// Whether the guest has not confirmed it yet.
    pub(crate) fn is_half_open(&mut self) -> bool {
        let state = self.side.endpoint().map(|endpoint| endpoint.state());
        matches!(state, Some(State::SynReceived | State::Listen)) && !self.draining
    }

    /// Whether segments for this connection are still its business.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    /// News of the socket.
    pub(crate) fn hear(&mut self, news: &News) {
        self.upstream.hear(news);
    }

    /// A segment of the guest.
    pub(crate) fn take(
        &mut self,
        host: &mut Host,
        now: Instant,
        header: &ipv4::Header,
        packet: &mut [u8],
    ) -> Result<(), NoMemory> {
        self.side.wake(host, now)?;
        if let Some(endpoint) = self.side.endpoint() {
            self.heard = now;
            self.active = now;
            endpoint.take(outlet(host), now, header, packet);
        }
        Ok(())
    }

    /// Moves all that can be moved.
    pub(crate) fn pump(&mut self, host: &mut Host, now: Instant) -> Result<Next, NoMemory> {
        if self.draining {
            return Ok(self.drain(now));
        }
        if self.side.endpoint().is_none() {
            if !self.upstream.is_readable() {
                return Ok(Next::Wait(None));
            }
            self.side.wake(host, now)?;
            self.active = now;
        }
        let mut turn = A_TURN;
        loop {
            let out = self.outward();
            let inward = self.inward(host, &mut turn);
            let grown = self.side.grow(host, now)?;
            let Some(endpoint) = self.side.endpoint() else {
                break;
            };
            let sent = endpoint.send(outlet(host), now);
            if out + inward > 0 {
                self.active = now;
            }
            if out + inward == 0 && !sent && !grown {
                break;
            }
            if turn == 0 {
                return Ok(Next::Again);
            }
        }
        Ok(self.judge(host, now))
    }

    /// Guest to server; bytes moved.
    fn outward(&mut self) -> usize {
        let Some(endpoint) = self.side.endpoint() else {
            return 0;
        };
        let mut moved = 0;
        while endpoint.socket().can_recv() && self.upstream.is_writable() {
            let upstream = &mut self.upstream;
            let write = |data: &mut [u8]| {
                let written = upstream.write(data);
                (written, written)
            };
            match endpoint.socket().recv(write) {
                Ok(0) | Err(_) => break,
                Ok(written) => moved += written,
            }
        }
        self.guest_over |= matches!(
            endpoint.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        if self.guest_over && !endpoint.socket().can_recv() {
            self.upstream.shut();
        }
        self.side.count_from_guest(moved);
        moved
    }

    /// Server to guest; bytes moved.
    fn inward(&mut self, host: &Host, turn: &mut usize) -> usize {
        let growing = self.side.is_growing();
        let Some(endpoint) = self.side.endpoint() else {
            return 0;
        };
        let mut moved = 0;
        while *turn > 0
            && !growing
            && host.line.has_room()
            && self.upstream.is_readable()
            && endpoint.socket().can_send()
        {
            let upstream = &mut self.upstream;
            let read = |buffer: &mut [u8]| {
                let read = upstream.read(buffer);
                (read, read)
            };
            match endpoint.socket().send(read) {
                Ok(0) | Err(_) => break,
                Ok(read) => {
                    moved += read;
                    *turn = turn.saturating_sub(read);
                }
            }
        }
        match (self.upstream.over, self.upstream.failed, self.told) {
            (true, false, Told::Nothing) => {
                endpoint.socket().close();
                self.told = Told::Fin;
            }
            // Not before the ring is empty: a reset would overtake what the
            // server said.
            (true, true, Told::Nothing | Told::Fin) if endpoint.socket().send_queue() == 0 => {
                endpoint.socket().abort();
                self.told = Told::Reset;
            }
            _ => {}
        }
        self.side.count_to_guest(moved);
        moved
    }

    /// What comes next, now that nothing more can be moved.
    fn judge(&mut self, host: &Host, now: Instant) -> Next {
        let standing = self.side.standing();
        let Some(endpoint) = self.side.endpoint() else {
            return Next::Wait(None);
        };
        let state = endpoint.state();
        let waiting = endpoint.socket().recv_queue() as u32;
        let all = standing.receive.wrapping_add(waiting);
        match state {
            // The guest's reset, or ours is sent.
            State::Listen => return Next::Reset,
            State::Closed if endpoint.socket().local_endpoint().is_none() => {
                if !self.guest_over || self.told != Told::Fin || self.upstream.failed {
                    return Next::Reset;
                }
                self.draining = true;
                return self.drain(now);
            }
            // Its FIN is acknowledged, so it will not come back.
            State::TimeWait if endpoint.acknowledged() == all.wrapping_add(1) => {
                self.draining = true;
                return self.drain(now);
            }
            _ => {}
        }
        let owes = match state {
            State::FinWait1 | State::Closing | State::LastAck => true,
            // A reset that waits for the line waits for nothing else.
            State::Closed => false,
            _ => endpoint.socket().send_queue() > 0,
        };
        self.owed = owes.then(|| self.owed.unwrap_or(now));
        let expires = match state {
            State::SynReceived => Some(self.opened + HANDSHAKE),
            _ => self.owed.map(|since| since.max(self.heard) + SILENCE),
        };
        if expires.is_some_and(|at| at <= now) {
            endpoint.socket().abort();
            self.upstream.failed = true;
            return Next::Again;
        }
        let wants = endpoint.wants(now);
        if !host.line.has_room() {
            let held = wants.is_some_and(|at| at <= now)
                || (self.upstream.is_readable() && endpoint.socket().can_send());
            let later = wants.filter(|at| *at > now);
            let at = earlier(later, expires);
            return if held {
                Next::ForLine(at)
            } else {
                Next::Wait(at)
            };
        }
        let quiet = state == State::Established
            && wants.is_none()
            && waiting == 0
            && endpoint.socket().send_queue() == 0
            && endpoint.acknowledged() == standing.receive
            && !self.upstream.is_readable();
        if quiet && self.active + REST_AFTER <= now {
            self.side.rest();
            return Next::Wait(None);
        }
        let rest = quiet.then_some(self.active + REST_AFTER);
        let wants = wants.map(|at| at.max(now + HICCUP));
        Next::Wait(earlier(earlier(wants, expires), rest))
    }

    /// What the guest said last goes out; the guest itself is done.
    fn drain(&mut self, now: Instant) -> Next {
        if self.outward() > 0 {
            self.active = now;
        }
        let Some(endpoint) = self.side.endpoint() else {
            return Next::Over;
        };
        if self.upstream.failed {
            return Next::Reset;
        }
        if !endpoint.socket().can_recv() {
            return Next::Over;
        }
        let until = self.active + SILENCE;
        if until <= now {
            return Next::Reset;
        }
        Next::Wait(Some(until))
    }

    /// Ends it without asking anyone; the guest is told if it can be.
    pub(crate) fn cut(mut self, host: &mut Host) {
        let standing = self.side.standing();
        segment::reset_at(
            &mut host.line,
            &mut host.counters,
            self.side.route,
            standing.send,
            standing.receive,
        );
        self.upstream.reset();
    }

    /// Closes the socket with a reset.
    pub(crate) fn reset(self) {
        self.upstream.reset();
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests;
