//! A flow between another TCP and a server at the other end of a socket pair,
//! with a clock that only tests move.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, recv, send, shutdown,
    socketpair,
};

use crate::host::Host;
use crate::ipv4;
use crate::line::tests::{line, next_frame};
use crate::policy::Policy;
use crate::poller::{News, Owner, Token};
use crate::tcp::flow::{Flow, Next};
use crate::tcp::guest::Guest;
use crate::tcp::segment::{self, Hello, Route};

const ROUTE: Route = Route {
    guest_port: 40_000,
    to: SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 10), 80),
};

pub(super) struct Scene {
    pub(super) now: Instant,
    pub(super) host: Host,
    pub(super) engine: OwnedFd,
    pub(super) guest: Guest,
    pub(super) flow: Flow,
    pub(super) server: Option<OwnedFd>,
    /// Something happened at the server's end since the flow heard of it.
    news: Cell<bool>,
    /// The engine takes frames.
    pub(super) reads: bool,
}

impl Scene {
    /// The guest has not confirmed the connection yet.
    pub(super) fn half_open(window: usize) -> Self {
        let now = Instant::now();
        let (line, engine) = line();
        let host = Host::new(line, Policy::open().unwrap(), Vec::new()).unwrap();
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (ours, server) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let mut guest = Guest::dialling(ROUTE, window, now);
        let syn = guest.says().unwrap();
        let header = ipv4::parse(&syn).unwrap();
        let (_, segment) = segment::parse(&header, &syn).unwrap();
        let hello = Hello::of(&segment).unwrap();
        let flow = Flow::new(&host, ROUTE, hello, ours, 5, now);
        Self {
            now,
            host,
            engine,
            guest,
            flow: flow.unwrap_or_else(|_| panic!("there is memory")),
            server: Some(server),
            news: Cell::new(false),
            reads: true,
        }
    }

    pub(super) fn open() -> Self {
        let mut scene = Self::half_open(1 << 20);
        scene.run();
        assert!(!scene.flow.is_half_open());
        scene
    }

    /// All that can happen without time; what the flow said last.
    pub(super) fn run(&mut self) -> Next {
        self.hear_news();
        loop {
            let next = self.flow.pump(&mut self.host, self.now).unwrap();
            let quiet = !self.pass_frames() && next != Next::Again;
            if quiet || matches!(next, Next::Over | Next::Reset) {
                return next;
            }
        }
    }

    pub(super) fn hear_news(&mut self) {
        if self.news.take() {
            self.flow.hear(&News {
                token: Token::only(Owner::Tcp),
                readable: true,
                writable: true,
            });
        }
    }

    /// Passes what both sides have said; whether there was anything.
    pub(super) fn pass_frames(&mut self) -> bool {
        let mut passed = false;
        if self.reads {
            while let Some(frame) = next_frame(&self.engine) {
                passed = true;
                self.guest.hears(&frame[14..]);
                self.host.flush();
            }
        }
        self.guest.turn(self.now);
        while let Some(mut packet) = self.guest.says() {
            passed = true;
            let header = ipv4::parse(&packet).unwrap();
            self.flow
                .take(&mut self.host, self.now, &header, &mut packet)
                .unwrap();
        }
        passed
    }

    pub(super) fn wait(&mut self, time: Duration) -> Next {
        self.now += time;
        self.run()
    }

    pub(super) fn server_says(&self, data: &[u8]) -> usize {
        self.news.set(true);
        let server = self.server.as_ref().unwrap();
        match send(server, data, SendFlags::NOSIGNAL) {
            Ok(sent) => sent,
            Err(Errno::AGAIN) => 0,
            Err(error) => panic!("{error}"),
        }
    }

    /// What the server has been sent; `None` is the end.
    pub(super) fn server_hears(&self) -> Option<Vec<u8>> {
        self.news.set(true);
        let mut buffer = vec![0; 1 << 20];
        match recv(
            self.server.as_ref().unwrap(),
            &mut buffer[..],
            RecvFlags::empty(),
        ) {
            Ok((0, _)) => None,
            Ok((length, _)) => Some(buffer[..length].to_vec()),
            Err(Errno::AGAIN) => Some(Vec::new()),
            Err(error) => panic!("{error}"),
        }
    }

    pub(super) fn server_ends(&self) {
        self.news.set(true);
        shutdown(self.server.as_ref().unwrap(), Shutdown::Write).unwrap();
    }

    pub(super) fn server_is_gone(&mut self) -> OwnedFd {
        self.news.set(true);
        self.server.take().unwrap()
    }

    pub(super) fn guest_hears(&mut self) -> Vec<u8> {
        let mut buffer = vec![0; 1 << 20];
        let heard = self.guest.socket().recv_slice(&mut buffer).unwrap_or(0);
        buffer.truncate(heard);
        buffer
    }
}
