//! The host's socket of one flow: what it may be asked at the moment, and how
//! each of its directions ended.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use crate::poller::News;

/// A connected socket that does not block.
pub(crate) struct Upstream {
    socket: OwnedFd,
    readable: bool,
    writable: bool,
    /// Nothing more comes from the server.
    pub(crate) over: bool,
    /// The connection failed: the end is a reset, not a FIN.
    pub(crate) failed: bool,
    /// The server was told that nothing more comes from the guest.
    pub(crate) shut: bool,
}

impl Upstream {
    /// Whatever happened to the socket before this is found by trying.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            readable: true,
            writable: true,
            over: false,
            failed: false,
            shut: false,
        }
    }

    pub(crate) fn hear(&mut self, news: &News) {
        self.readable |= news.readable;
        self.writable |= news.writable;
    }

    /// Whether there may be something to read, the end included.
    pub(crate) fn is_readable(&self) -> bool {
        self.readable && !self.over
    }

    /// Whether data of the guest goes anywhere, if only away.
    pub(crate) fn is_writable(&self) -> bool {
        self.writable || self.failed
    }

    /// Reads; zero where nothing is there for now or for ever.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> usize {
        if buffer.is_empty() || !self.is_readable() {
            return 0;
        }
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((0, _)) => self.over = true,
                // Less than asked for need not be all there is: reading stops
                // at an urgent byte, too.
                Ok((read, _)) => return read,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => self.readable = false,
                Err(_) => {
                    self.failed = true;
                    self.over = true;
                }
            }
            return 0;
        }
    }

    /// Writes; how much was taken. A server that is gone takes everything.
    pub(crate) fn write(&mut self, data: &[u8]) -> usize {
        if data.is_empty() || self.failed {
            return data.len();
        }
        loop {
            match send(&self.socket, data, SendFlags::NOSIGNAL) {
                Ok(written) => return written,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.writable = false;
                    return 0;
                }
                Err(_) => {
                    self.fail();
                    return data.len();
                }
            }
        }
    }

    /// Tells the server that nothing more comes.
    pub(crate) fn shut(&mut self) {
        if !self.shut {
            self.shut = true;
            if shutdown(&self.socket, Shutdown::Write).is_err() {
                self.fail();
            }
        }
    }

    /// The server is gone; what it sent before is still there to be read.
    fn fail(&mut self) {
        self.failed = true;
        self.readable = true;
    }

    /// Closes with a reset.
    pub(crate) fn reset(self) {
        reset(self.socket);
    }
}

/// Closes a socket with a reset, if it was connected.
pub(crate) fn reset(socket: OwnedFd) {
    // Without it the server sees an orderly end; there is nothing better then.
    let _ = set_socket_linger(&socket, Some(Duration::ZERO));
}
