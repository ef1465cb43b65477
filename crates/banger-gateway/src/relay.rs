//! Datagrams between the guest and host sockets, one connected socket for each
//! pair of ends, so that only the asked one can answer. The table is bounded:
//! a new pair pushes out the one that was quiet longest. A pair is forgotten
//! after [`IDLE`].

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::host::Host;
use crate::poller::{News, Owner, Token, Watch};
use crate::slab::{Key, Slab};
use crate::timers::Alarm;

/// Quiet after which a pair is forgotten.
const IDLE: Duration = Duration::from_secs(60);
/// How long a verdict of the policy holds for a pair in use: the host may be
/// given the address meanwhile.
const VERDICT_HOLDS: Duration = Duration::from_secs(1);
/// Datagrams from outside that a pair passes on before others have their turn.
const A_TURN: usize = 32;

/// One pair of ends.
pub(crate) struct Flow<R> {
    route: R,
    socket: OwnedFd,
    alarm: Alarm,
    used: Instant,
    allowed: Instant,
    touched: bool,
    waiting: bool,
}

/// All pairs of one protocol, by what the guest calls them.
pub(crate) struct Relay<R> {
    owner: Owner,
    limit: usize,
    flows: Slab<Flow<R>>,
    by_route: HashMap<R, Key>,
    touched: VecDeque<Key>,
}

impl<R: Copy + Eq + Hash> Relay<R> {
    pub(crate) fn new(owner: Owner, limit: usize) -> Self {
        Self {
            owner,
            limit,
            flows: Slab::default(),
            by_route: HashMap::new(),
            touched: VecDeque::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// A pair that may be used, if there is one; it counts as used now.
    pub(crate) fn find(&mut self, now: Instant, route: R) -> Option<Key> {
        let key = *self.by_route.get(&route)?;
        let flow = self.flows.get_mut(key)?;
        flow.used = now;
        Some(key)
    }

    /// Whether the policy must be asked again about a pair.
    pub(crate) fn verdict_is_old(&mut self, now: Instant, key: Key) -> bool {
        match self.flows.get_mut(key) {
            Some(flow) if flow.allowed + VERDICT_HOLDS <= now => {
                flow.allowed = now;
                true
            }
            _ => false,
        }
    }

    /// Adds a pair; true if another one had to go for it.
    pub(crate) fn open(
        &mut self,
        host: &mut Host,
        now: Instant,
        route: R,
        socket: OwnedFd,
    ) -> rustix::io::Result<(Key, bool)> {
        let oldest = if self.flows.len() < self.limit {
            None
        } else {
            self.flows.iter().min_by_key(|(_, flow)| flow.used)
        };
        let oldest = oldest.map(|(key, _)| key);
        if let Some(oldest) = oldest {
            self.remove(host, oldest);
        }
        let key = self.flows.insert_with(|_| Flow {
            route,
            socket,
            alarm: Alarm::default(),
            used: now,
            allowed: now,
            touched: false,
            waiting: false,
        });
        self.by_route.insert(route, key);
        let token = self.token(key);
        if let Some(flow) = self.flows.get_mut(key) {
            if let Err(error) = host.watch(&flow.socket, token, Watch::Reading) {
                self.remove(host, key);
                return Err(error);
            }
            host.timers.set(&mut flow.alarm, token, Some(now + IDLE));
        }
        Ok((key, oldest.is_some()))
    }

    /// Sends to the other end. What an earlier datagram came to is told by the
    /// first try after it, and is no reason not to send this one: `Some(error)`
    /// beside success.
    pub(crate) fn send(&mut self, key: Key, data: &[u8]) -> (Option<Errno>, bool) {
        let Some(flow) = self.flows.get_mut(key) else {
            return (None, false);
        };
        match send_one(&flow.socket, data) {
            Ok(()) => (None, true),
            Err(Errno::AGAIN) => (None, false),
            Err(error) => (Some(error), send_one(&flow.socket, data).is_ok()),
        }
    }

    /// Forgets a pair.
    pub(crate) fn remove(&mut self, host: &mut Host, key: Key) {
        let token = self.token(key);
        if let Some(mut flow) = self.flows.remove(key) {
            host.timers.set(&mut flow.alarm, token, None);
            if flow.waiting {
                host.waits_no_more(token);
            }
            self.by_route.remove(&flow.route);
        }
    }

    /// A pair's time may have come.
    pub(crate) fn due(&mut self, host: &mut Host, now: Instant, key: Key) {
        let token = self.token(key);
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        flow.alarm.rang();
        let until = flow.used + IDLE;
        if until <= now {
            self.remove(host, key);
        } else {
            host.timers.set(&mut flow.alarm, token, Some(until));
        }
    }

    /// News of a pair's socket.
    pub(crate) fn hear(&mut self, news: &News) {
        if news.readable {
            self.touch(news.token.key);
        }
    }

    /// The line has room for a pair that waited.
    pub(crate) fn line_is_free(&mut self, key: Key) {
        if let Some(flow) = self.flows.get_mut(key) {
            flow.waiting = false;
            self.touch(key);
        }
    }

    fn touch(&mut self, key: Key) {
        if let Some(flow) = self.flows.get_mut(key)
            && !flow.touched
        {
            flow.touched = true;
            self.touched.push_back(key);
        }
    }

    pub(crate) fn has_work(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Passes on what came from outside: `deliver` gets each datagram in a
    /// buffer that has `before` bytes of room in front of it, or the error that
    /// took its place.
    pub(crate) fn settle(
        &mut self,
        host: &mut Host,
        now: Instant,
        before: usize,
        mut deliver: impl FnMut(&mut Host, R, Result<&mut [u8], Errno>),
    ) {
        if self.touched.is_empty() {
            return;
        }
        let mut buffer = std::mem::take(&mut host.buffer);
        for _ in 0..self.touched.len() {
            let Some(key) = self.touched.pop_front() else {
                break;
            };
            let token = self.token(key);
            let Some(flow) = self.flows.get_mut(key) else {
                continue;
            };
            flow.touched = false;
            let mut left = A_TURN;
            while left > 0 {
                if !host.line.has_room() {
                    if !flow.waiting {
                        flow.waiting = true;
                        host.waiting.push_back(token);
                    }
                    break;
                }
                left -= 1;
                match recv(&flow.socket, &mut buffer[before..], RecvFlags::empty()) {
                    Ok((length, _)) => {
                        flow.used = now;
                        deliver(host, flow.route, Ok(&mut buffer[..before + length]));
                    }
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => {}
                    Err(error) => deliver(host, flow.route, Err(error)),
                }
            }
            if left == 0 {
                self.touch(key);
            }
        }
        host.buffer = buffer;
    }

    fn token(&self, key: Key) -> Token {
        Token {
            owner: self.owner,
            key,
        }
    }
}

fn send_one(socket: &OwnedFd, data: &[u8]) -> rustix::io::Result<()> {
    loop {
        match send(socket, data, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use rustix::net::{SocketType, ipproto};

    use super::*;
    use crate::line::Line;
    use crate::line::tests::line;
    use crate::policy::Policy;

    struct Scene {
        host: Host,
        relay: Relay<u32>,
        outside: UdpSocket,
        now: Instant,
    }

    impl Scene {
        fn new(line: Line, limit: usize) -> Self {
            Self {
                host: Host::new(line, Policy::open().unwrap(), Vec::new()).unwrap(),
                relay: Relay::new(Owner::Udp, limit),
                outside: UdpSocket::bind("127.0.0.1:0").unwrap(),
                now: Instant::now(),
            }
        }

        /// A new pair, over which something is said and answered.
        fn open(&mut self, route: u32) -> Key {
            let to = self.outside.local_addr().unwrap();
            let dialled = self
                .host
                .dial(SocketType::DGRAM, Some(ipproto::UDP), to, |_| Ok(()));
            let socket = dialled.unwrap().0;
            let (key, _) = self
                .relay
                .open(&mut self.host, self.now, route, socket)
                .unwrap();
            assert_eq!(self.relay.send(key, &route.to_be_bytes()), (None, true));
            let mut buffer = [0; 8];
            let (length, from) = self.outside.recv_from(&mut buffer).unwrap();
            self.outside.send_to(&buffer[..length], from).unwrap();
            self.relay.touch(key);
            key
        }

        fn settle(&mut self) -> Vec<(u32, Vec<u8>)> {
            let mut heard = Vec::new();
            self.relay
                .settle(&mut self.host, self.now, 2, |_, route, came| {
                    heard.push((route, came.unwrap()[2..].to_vec()));
                });
            heard
        }
    }

    #[test]
    fn what_is_answered_comes_back_to_who_asked() {
        let (line, _engine) = line();
        let mut scene = Scene::new(line, 4);
        for route in [7, 8] {
            scene.open(route);
        }
        let expected: Vec<_> = [7_u32, 8]
            .map(|route| (route, route.to_be_bytes().to_vec()))
            .into();
        assert_eq!(scene.settle(), expected);
        assert!(!scene.relay.has_work());
    }

    #[test]
    fn the_one_that_was_quiet_longest_gives_way() {
        let (line, _engine) = line();
        let mut scene = Scene::new(line, 2);
        for route in [1, 2] {
            scene.open(route);
            scene.now += Duration::from_secs(1);
        }
        assert!(scene.relay.find(scene.now, 1).is_some(), "it is used again");
        scene.open(3);
        assert_eq!(scene.relay.len(), 2);
        assert!(scene.relay.find(scene.now, 1).is_some());
        assert!(scene.relay.find(scene.now, 2).is_none());
    }

    #[test]
    fn a_pair_is_forgotten_a_minute_after_its_last_use() {
        let (line, _engine) = line();
        let mut scene = Scene::new(line, 2);
        let key = scene.open(1);
        scene.now += Duration::from_secs(50);
        scene.relay.find(scene.now, 1);
        scene.now += Duration::from_secs(10);
        let due = scene
            .host
            .timers
            .due(scene.now)
            .expect("its first deadline");
        assert_eq!(due.key, key);
        scene.relay.due(&mut scene.host, scene.now, key);
        assert_eq!(scene.relay.len(), 1);
        scene.now += Duration::from_secs(50);
        assert!(scene.host.timers.due(scene.now).is_some());
        scene.relay.due(&mut scene.host, scene.now, key);
        assert_eq!((scene.relay.len(), scene.host.timers.next()), (0, None));
    }

    #[test]
    fn a_guest_that_never_reads_makes_no_list_longer() {
        let (line, _engine) = line();
        let mut scene = Scene::new(line, 2);
        let host = &mut scene.host;
        while host.line.has_room() {
            host.line.packet(&mut host.counters, 60_000, |_| ());
        }
        for route in 0..20 {
            scene.open(route);
            assert_eq!(scene.settle(), []);
            assert!(scene.host.waiting.len() <= 2);
        }
        assert_eq!(scene.host.waiting.len(), 2);
    }
}
