//! Readiness of descriptors, and what a piece of news is about.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use crate::slab::Key;

/// News that are taken at a time.
const MAX_NEWS: usize = 128;

/// Whose a descriptor or a deadline is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// The line to the guest.
    Line,
    /// The control socket and its connections.
    Control,
    /// The engine's pidfd; as a deadline, the time without one.
    Engine,
    /// A TCP flow.
    Tcp,
    /// A UDP flow.
    Udp,
    /// A ping flow.
    Ping,
    /// A question to a resolver.
    Dns,
    /// Fragments that wait for others.
    Fragments,
}

const OWNERS: [Owner; 8] = [
    Owner::Line,
    Owner::Control,
    Owner::Engine,
    Owner::Tcp,
    Owner::Udp,
    Owner::Ping,
    Owner::Dns,
    Owner::Fragments,
];

/// What a piece of news or a deadline is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Token {
    /// Whose.
    pub(crate) owner: Owner,
    /// Which of that owner's.
    pub(crate) key: Key,
}

impl Token {
    /// Of an owner who has one only.
    pub(crate) fn only(owner: Owner) -> Self {
        Self {
            owner,
            key: Key::default(),
        }
    }

    fn pack(self) -> u64 {
        let owner = OWNERS.iter().position(|owner| *owner == self.owner);
        let owner = owner.expect("the list has every owner") as u64;
        owner << 56 | u64::from(self.key.generation) << 32 | u64::from(self.key.index)
    }

    fn unpack(packed: u64) -> Option<Self> {
        Some(Self {
            owner: *OWNERS.get((packed >> 56) as usize)?,
            key: Key {
                index: packed as u32,
                generation: (packed >> 32) as u32 & 0x00ff_ffff,
            },
        })
    }
}

/// What became possible on a descriptor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct News {
    /// On which.
    pub(crate) token: Token,
    /// There may be something to read, the end or an error included.
    pub(crate) readable: bool,
    /// Something may be written, or an error waits.
    pub(crate) writable: bool,
}

/// What is told of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    /// New things to read, and the end.
    Reading,
    /// The same, and new room for writing.
    Both,
    /// Things to read, again and again while there are any.
    Level,
}

impl Watch {
    fn flags(self) -> EventFlags {
        let reading = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        match self {
            Self::Reading => reading,
            Self::Both => reading | EventFlags::OUT,
            Self::Level => EventFlags::IN,
        }
    }
}

/// The one place where this program waits.
pub(crate) struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(MAX_NEWS),
        })
    }

    /// Tells of every change from now on, once: whoever is told goes on until
    /// the descriptor would block. A descriptor that is closed is forgotten.
    ///
    /// Sockets of datagrams tell of room for writing whenever one that was
    /// sent is taken, wanted or not, so who does not wait for that leaves it.
    pub(crate) fn watch(&self, fd: impl AsFd, token: Token, what: Watch) -> io::Result<()> {
        let data = EventData::new_u64(token.pack());
        Ok(epoll::add(&self.epoll, fd, data, what.flags())?)
    }

    /// Watches for something else from now on. What is there already is told.
    pub(crate) fn watch_again(&self, fd: impl AsFd, token: Token, what: Watch) -> io::Result<()> {
        let data = EventData::new_u64(token.pack());
        Ok(epoll::modify(&self.epoll, fd, data, what.flags())?)
    }

    /// Tells nothing more of a descriptor that somebody else may hold open.
    pub(crate) fn forget(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Waits for news, for ever without a deadline. Does not come back before
    /// it without news, or what is due then would not be due yet.
    pub(crate) fn wait(
        &mut self,
        now: Instant,
        until: Option<Instant>,
        news: &mut Vec<News>,
    ) -> io::Result<()> {
        let timeout = until.map(|until| timespec(until.saturating_duration_since(now)));
        self.events.clear();
        news.clear();
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        news.extend(self.events.iter().filter_map(read));
        Ok(())
    }
}

fn read(event: &Event) -> Option<News> {
    let (flags, data) = (event.flags, event.data);
    let failed = flags.intersects(EventFlags::ERR | EventFlags::HUP);
    Some(News {
        token: Token::unpack(data.u64())?,
        readable: failed || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
        writable: failed || flags.contains(EventFlags::OUT),
    })
}

/// Rounded up to milliseconds, all that older kernels know.
fn timespec(wait: Duration) -> Timespec {
    let ms = wait.as_micros().div_ceil(1000) as i64;
    Timespec {
        tv_sec: ms / 1000,
        tv_nsec: (ms % 1000) * 1_000_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_went() {
        for owner in OWNERS {
            let key = Key {
                index: u32::MAX,
                generation: 0x00ff_fffe,
            };
            let token = Token { owner, key };
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(u64::MAX), None);
    }

    #[test]
    fn a_wait_is_never_shorter_than_asked_for() {
        let wait = timespec(Duration::from_micros(1_999_001));
        assert_eq!((wait.tv_sec, wait.tv_nsec), (2, 0));
        let none = timespec(Duration::ZERO);
        assert_eq!((none.tv_sec, none.tv_nsec), (0, 0));
    }
}
