//! The outward connection of a flow, made before the guest hears anything: it
//! is told exactly what came of it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{
    set_socket_keepalive, set_socket_oobinline, set_tcp_nodelay, socket_error,
};
use rustix::net::{SocketType, getpeername, ipproto};

use super::upstream;
use crate::host::Host;
use crate::poller::{Token, Watch};

/// Time for one that nobody answers, as BSD has had it.
const PATIENCE: Duration = Duration::from_secs(75);
/// The same for a resolver, while there are others.
const RESOLVER_PATIENCE: Duration = Duration::from_secs(2);

/// A connection that is being made.
pub(crate) struct Dial {
    socket: OwnedFd,
    to: SocketAddr,
    /// To be tried if this one fails.
    others: VecDeque<SocketAddr>,
    /// When this one has failed.
    pub(crate) until: Instant,
}

/// What came of it so far.
pub(crate) enum Outcome {
    /// Nothing yet.
    Pending(Dial),
    /// The socket, and to whom it leads.
    Connected(OwnedFd, SocketAddr),
    /// Nobody could be reached; why the last one could not.
    Failed(Errno),
}

impl Dial {
    /// Begins to connect to the first of these that can be tried.
    pub(crate) fn begin(
        host: &Host,
        token: Token,
        mut to: VecDeque<SocketAddr>,
        now: Instant,
    ) -> Outcome {
        let mut failed = Errno::CONNREFUSED;
        while let Some(first) = to.pop_front() {
            match connect(host, token, first) {
                Ok((socket, true)) => return Outcome::Connected(socket, first),
                Ok((socket, false)) => {
                    let alone = to.is_empty();
                    return Outcome::Pending(Self {
                        socket,
                        to: first,
                        others: to,
                        until: now + if alone { PATIENCE } else { RESOLVER_PATIENCE },
                    });
                }
                Err(error) => failed = error,
            }
        }
        Outcome::Failed(failed)
    }

    /// Looks what became of it, after news or when its time was over.
    pub(crate) fn look(self, host: &Host, token: Token, now: Instant) -> Outcome {
        // News may be of the socket before this one.
        let connected = getpeername(&self.socket).is_ok();
        let failed = match socket_error(&self.socket) {
            Ok(Ok(())) if connected => return Outcome::Connected(self.socket, self.to),
            Ok(Ok(())) if now < self.until => return Outcome::Pending(self),
            Ok(Ok(())) => Errno::TIMEDOUT,
            Ok(Err(error)) | Err(error) => error,
        };
        if self.others.is_empty() {
            return Outcome::Failed(failed);
        }
        Self::begin(host, token, self.others, now)
    }

    /// Gives up.
    pub(crate) fn cancel(self) {
        upstream::reset(self.socket);
    }
}

fn connect(host: &Host, token: Token, to: SocketAddr) -> rustix::io::Result<(OwnedFd, bool)> {
    let (socket, connected) = host.dial(SocketType::STREAM, Some(ipproto::TCP), to, |socket| {
        // The guest has decided what goes together.
        set_tcp_nodelay(socket, true)?;
        // Urgent bytes stay where they were: the guest gets them as others.
        set_socket_oobinline(socket, true)?;
        // A server that vanished is noticed by the kernel, in its own time:
        // the guest's probes are answered here.
        set_socket_keepalive(socket, true)
    })?;
    host.watch(&socket, token, Watch::Both)?;
    Ok((socket, connected))
}
