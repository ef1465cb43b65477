//! A descriptor whose peer may hang up and come back: a virtio-serial port, a
//! PTY. Both report the hang-up as a state that lasts, and the runtime's own
//! registration would take it for readiness without end. So the descriptor
//! sits in an edge-triggered epoll of its own, and the runtime watches that.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fs::OFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A nonblocking descriptor that is waited for by edges only.
#[derive(Debug)]
pub(crate) struct Edge {
    fd: OwnedFd,
    epoll: AsyncFd<OwnedFd>,
}

impl Edge {
    /// Takes a descriptor and makes it nonblocking.
    ///
    /// # Errors
    /// That of `epoll_ctl`: `EPERM` for a file that cannot be waited for.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        let set = epoll::create(CreateFlags::CLOEXEC)?;
        let wanted = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(&set, &fd, EventData::new_u64(0), wanted)?;
        Ok(Self {
            fd,
            epoll: watched(set)?,
        })
    }

    /// Waits until something about the descriptor changed: it may have become
    /// readable, writable, hung up or connected again. To be called only after
    /// both reading and writing, where wanted, have met `EAGAIN` or a hang-up.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.epoll.readable().await?;
            let mut events = [const { std::mem::MaybeUninit::<Event>::uninit() }; 1];
            let none = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            match epoll::wait(self.epoll.get_ref(), &mut events, Some(&none)) {
                Ok((taken, _)) if !taken.is_empty() => {
                    // The only event is taken: the set is not ready any more.
                    ready.clear_ready();
                    return Ok(());
                }
                Ok(_) => ready.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Has the runtime wait for a descriptor to become readable.
///
/// # Errors
/// That of `epoll_ctl`.
#[expect(
    deprecated,
    reason = "the constructor in its place is unsafe, for types that may change their \
              descriptor; an owned descriptor cannot"
)]
pub(crate) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

impl AsFd for Edge {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_hang_up_wakes_once_and_a_new_peer_wakes_again() {
        let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let peer = |flags| rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        drop(peer(flags));
        let edge = Edge::new(master.try_clone().unwrap()).unwrap();
        edge.changed().await.unwrap();
        let quiet = tokio::time::timeout(Duration::from_millis(50), edge.changed()).await;
        assert!(quiet.is_err(), "the lasting hang-up is no news");
        let again = peer(flags);
        rustix::io::write(&again, b"back").unwrap();
        edge.changed().await.unwrap();
        let mut bytes = [0; 16];
        assert_eq!(rustix::io::read(&edge, &mut bytes).unwrap(), 4);
    }
}
