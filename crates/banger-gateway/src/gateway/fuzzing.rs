//! A gateway that is driven by hand, for the fuzz targets: what was put on its
//! line or its sockets is looked at when they say so, and never waited for.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, listen,
    recv, send, socket_with, socketpair,
};

use super::{Gateway, Setup, Turn};
use crate::line::MAX_FRAME;

/// Turns after which a gateway that still finds something to do is spinning.
const MAX_TURNS: usize = 10_000;
/// The guest's hardware address.
const GUEST: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

/// The gateway, and the engine's end of its line.
pub struct Bench {
    gateway: Gateway,
    engine: OwnedFd,
    buffer: Vec<u8>,
}

impl Bench {
    /// # Panics
    /// Where the host gives no sockets.
    #[must_use]
    pub fn new(resolvers: Vec<IpAddr>) -> Self {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let pair = socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None);
        let (line, engine) = pair.expect("a pair of sockets");
        let control = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let control = control.expect("a socket");
        let unnamed = SocketAddrUnix::new_unnamed();
        bind(&control, &unnamed).expect("the kernel finds a name");
        listen(&control, 1).expect("it is bound");
        let setup = Setup {
            line,
            control,
            guest: GUEST,
            resolvers,
        };
        let gateway = Gateway::assemble(setup, Instant::now()).expect("sockets for itself");
        Self {
            gateway,
            engine,
            buffer: vec![0; MAX_FRAME + 1],
        }
    }

    /// Lets the guest send a frame. What the line has no room for is lost.
    pub fn send(&mut self, frame: &[u8]) {
        let _ = send(&self.engine, frame, SendFlags::NOSIGNAL);
    }

    /// Lets the gateway do everything that there is to do now.
    ///
    /// # Panics
    /// If that never ends.
    pub fn work(&mut self) {
        self.gateway.frames = true;
        for _ in 0..MAX_TURNS {
            if !self.gateway.has_work() {
                return;
            }
            let turn = self.gateway.turn().expect("its own epoll works");
            if turn == Turn::Last {
                // It was alone for too long, which here is nothing.
                return;
            }
        }
        panic!("the gateway spins");
    }

    /// The next frame for the guest.
    ///
    /// # Panics
    /// If the line broke.
    pub fn receive(&mut self) -> Option<&[u8]> {
        match recv(&self.engine, &mut self.buffer[..], RecvFlags::empty()) {
            Ok((_, length)) => Some(&self.buffer[..length]),
            Err(Errno::AGAIN) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Bytes that the gateway holds for its guest.
    #[must_use]
    pub fn memory(&self) -> usize {
        let Gateway {
            host,
            reassembler,
            dns,
            ..
        } = &self.gateway;
        host.budget.used() + host.line.queued() + reassembler.memory() + dns.memory()
    }
}
