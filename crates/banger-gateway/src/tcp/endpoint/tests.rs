//! An endpoint against another TCP, with no time and no sockets between them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use banger_wire::gateway::GUEST;
use smoltcp::wire::{TcpControl, TcpPacket, TcpRepr};

use super::super::rings::{LARGE, OVERHEAD, SMALL};
use super::*;
use crate::budget::Budget;
use crate::counters::Counters;
use crate::line::Line;
use crate::line::tests::{line, next_frame};
use crate::tcp::guest::Guest;

const ROUTE: Route = Route {
    guest_port: 40_000,
    to: SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 10), 80),
};

/// Both ends of a connection, and a clock that only tests move.
struct Pair {
    now: Instant,
    budget: Budget,
    line: Line,
    counters: Counters,
    engine: OwnedFd,
    hello: Hello,
    ours: Endpoint,
    guest: Guest,
    /// Bytes that went each way.
    from_guest: u32,
    to_guest: u32,
}

impl Pair {
    /// Connected by the guest, whose buffers have these sizes.
    fn connected(window: usize) -> Self {
        let now = Instant::now();
        let (line, engine) = line();
        let mut guest = Guest::dialling(ROUTE, window, now);
        let syn = guest.says().expect("the guest says SYN");
        let header = ipv4::parse(&syn).unwrap();
        let (route, segment) = segment::parse(&header, &syn).unwrap();
        assert_eq!(route, ROUTE);
        let hello = Hello::of(&segment).unwrap();
        let budget = Budget::default();
        let rings = SMALL.take(&budget, 0).unwrap();
        let ours = Endpoint::open(ROUTE, &hello, rings, 7, now);
        let mut pair = Self {
            now,
            budget,
            line,
            counters: Counters::default(),
            engine,
            hello,
            ours,
            guest,
            from_guest: 0,
            to_guest: 0,
        };
        pair.exchange();
        assert_eq!(pair.ours.state(), State::Established);
        assert_eq!(pair.socket().state(), State::Established);
        pair
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.guest.socket()
    }

    /// Passes segments until both have nothing more to say.
    fn exchange(&mut self) {
        loop {
            let outlet = Outlet {
                line: &mut self.line,
                counters: &mut self.counters,
            };
            let mut quiet = !self.ours.send(outlet, self.now);
            while let Some(frame) = next_frame(&self.engine) {
                self.guest.hears(&frame[14..]);
                self.line.flush(&mut self.counters);
            }
            self.guest.turn(self.now);
            while let Some(packet) = self.guest.says() {
                quiet = false;
                self.hand(packet);
            }
            if quiet {
                return;
            }
        }
    }

    fn hand(&mut self, mut packet: Vec<u8>) {
        let header = ipv4::parse(&packet).unwrap();
        let outlet = Outlet {
            line: &mut self.line,
            counters: &mut self.counters,
        };
        self.ours.take(outlet, self.now, &header, &mut packet);
    }

    /// Sends data through, each way, and looks that it is the same.
    fn talk(&mut self, data: &[u8]) {
        let (mut there, mut back) = (Vec::new(), Vec::new());
        let (mut said, mut replied) = (0, 0);
        while there.len() < data.len() || back.len() < data.len() {
            said += self.socket().send_slice(&data[said..]).unwrap();
            replied += self.ours.socket().send_slice(&data[replied..]).unwrap();
            self.exchange();
            let mut buffer = vec![0; data.len()];
            let got = self.ours.socket().recv_slice(&mut buffer).unwrap();
            there.extend_from_slice(&buffer[..got]);
            let got = self.socket().recv_slice(&mut buffer).unwrap();
            back.extend_from_slice(&buffer[..got]);
            self.exchange();
        }
        assert!(there == data && back == data);
        self.from_guest = self.from_guest.wrapping_add(data.len() as u32);
        self.to_guest = self.to_guest.wrapping_add(data.len() as u32);
        self.now += std::time::Duration::from_millis(20);
        self.exchange();
    }

    fn standing(&self, first: u32) -> Standing {
        Standing {
            receive: self
                .hello
                .sequence
                .wrapping_add(1)
                .wrapping_add(self.from_guest),
            send: first.wrapping_add(1).wrapping_add(self.to_guest),
            window: self.ours.window(),
        }
    }

    /// Gives our endpoint up and makes another one.
    fn renew(&mut self, first: u32, size: Rings) -> Standing {
        let standing = self.standing(first);
        assert_eq!(self.ours.acknowledged(), standing.receive);
        let rings = size.take(&self.budget, self.ours.rings.from_guest).unwrap();
        self.ours = Endpoint::resume(ROUTE, &self.hello, standing, rings, 8, self.now).unwrap();
        standing
    }
}

/// Bytes of which no two parts are alike.
fn data(length: usize) -> Vec<u8> {
    (0_u32..).flat_map(u32::to_be_bytes).take(length).collect()
}

#[test]
fn what_one_side_sends_the_other_gets() {
    let mut pair = Pair::connected(1 << 20);
    pair.talk(b"a");
    pair.talk(&data(300_000));
}

#[test]
fn a_connection_that_rested_goes_on_where_it_was() {
    let mut pair = Pair::connected(1 << 20);
    let first = pair.ours.first().unwrap();
    for length in [0, 1, 70_000, 5] {
        pair.talk(&data(length));
        pair.renew(first, SMALL);
        pair.talk(&data(1000));
    }
    assert_eq!(pair.socket().state(), State::Established);
    // Either side may be the first to end it afterwards.
    pair.renew(first, SMALL);
    pair.ours.socket().close();
    pair.exchange();
    assert_eq!(pair.socket().state(), State::CloseWait);
    pair.socket().close();
    pair.exchange();
    assert_eq!(pair.ours.state(), State::TimeWait);
    assert_eq!(pair.socket().state(), State::Closed);
}

#[test]
fn an_endpoint_of_a_resting_connection_takes_no_memory() {
    let mut pair = Pair::connected(1 << 16);
    let small = pair.budget.used();
    assert_eq!(small, SMALL.from_guest + SMALL.to_guest + OVERHEAD);
    let first = pair.ours.first().unwrap();
    pair.renew(first, LARGE);
    assert!(pair.budget.used() > LARGE.to_guest);
    pair.renew(first, SMALL);
    let offered = LARGE.from_guest - SMALL.from_guest;
    assert_eq!(
        pair.budget.used(),
        small + offered,
        "what was offered stays"
    );
    drop(pair.ours);
    assert_eq!(pair.budget.used(), 0);
}

#[test]
fn larger_rings_are_told_to_the_guest_at_once() {
    let mut pair = Pair::connected(1 << 20);
    let first = pair.ours.first().unwrap();
    pair.talk(b"hello");
    let standing = pair.renew(first, LARGE);
    let outlet = Outlet {
        line: &mut pair.line,
        counters: &mut pair.counters,
    };
    pair.ours.announce(outlet, pair.now, ROUTE, standing);
    let frame = next_frame(&pair.engine).expect("an announcement");
    let header = ipv4::parse(&frame[14..]).unwrap();
    let segment = TcpPacket::new_checked(&frame[14 + header.length..]).unwrap();
    assert!(segment.verify_checksum(&header.from.into(), &header.to.into()));
    assert_eq!(segment.window_len(), 65_535);
    assert_eq!(segment.ack_number(), segment::number(standing.receive));
    assert_eq!(segment.seq_number(), segment::number(standing.send));
    pair.guest.hears(&frame[14..]);
    pair.talk(&data(200_000));
}

/// A segment of the guest that no TCP would send.
fn forged(at: Standing, offset: u32, payload: &[u8]) -> Vec<u8> {
    let segment = TcpRepr {
        src_port: ROUTE.guest_port,
        dst_port: ROUTE.to.port(),
        control: TcpControl::None,
        seq_number: segment::number(at.receive.wrapping_add(offset)),
        ack_number: Some(segment::number(at.send)),
        window_len: 1000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let sums = smoltcp::phy::ChecksumCapabilities::ignored();
    let mut bytes = vec![0; segment.buffer_len()];
    let mut packet = TcpPacket::new_unchecked(&mut bytes[..]);
    let (from, to) = (GUEST.into(), (*ROUTE.to.ip()).into());
    segment.emit(&mut packet, &from, &to, &sums);
    ipv4::tests::guest_packet(*ROUTE.to.ip(), ipv4::TCP, &bytes)
}

#[test]
fn a_guest_that_fills_the_whole_window_at_once_and_more_does_no_harm() {
    for size in [SMALL, LARGE] {
        let mut pair = Pair::connected(1 << 20);
        let first = pair.ours.first().unwrap();
        let at = pair.renew(first, size);
        let window = size.from_guest as u32;
        let mut sent = Vec::new();
        // Backwards, beyond both ends, then all of it.
        for offset in (0..window + 5000).step_by(1000).rev() {
            sent.push(forged(at, offset, &[7; 1500]));
        }
        sent.push(forged(at, u32::MAX - 700, &[7; 1500]));
        sent.push(forged(at, 0, &[7; 60_000]));
        for packet in sent {
            pair.hand(packet);
        }
        assert!(pair.ours.socket().recv_queue() <= size.from_guest);
        assert!(pair.ours.socket().recv_queue() > size.from_guest - 1500);
    }
}
