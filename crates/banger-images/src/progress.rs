//! How a caller follows long work and ends it: [`Cancel`] and [`Report`].
//!
//! Owns nothing of the work itself. Cancelling is a flag plus an eventfd, so that a loop over
//! bytes asks the flag and a wait on a child polls the descriptor and ends at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// The work was cancelled by its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

#[derive(Debug)]
struct Inner {
    flag: AtomicBool,
    bell: OwnedFd,
}

/// A switch that ends long work. Clones are the same switch; it never goes back.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<Inner>);

impl Cancel {
    /// A switch that is not thrown.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Cancel> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Cancel(Arc::new(Inner {
            flag: AtomicBool::new(false),
            bell,
        })))
    }

    /// Throws the switch. Again is harmless.
    pub fn cancel(&self) {
        self.0.flag.store(true, Ordering::SeqCst);
        // Only a full counter refuses, and then the descriptor is readable already.
        let _ = rustix::io::write(&self.0.bell, &1u64.to_ne_bytes());
    }

    /// Whether it was thrown.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.flag.load(Ordering::SeqCst)
    }

    /// `Err` once thrown, for `?` inside loops.
    ///
    /// # Errors
    /// [`Cancelled`] when it was thrown.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }
}

impl AsFd for Cancel {
    /// Readable once thrown, for ever: nobody reads it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }
}

/// What long work tells while it goes on. Called from the working thread, often: be quick.
pub trait Report: Send + Sync {
    /// A stage begins: a fixed word, and what it is about, for people.
    fn stage(&self, stage: &str, detail: &str);
    /// Bytes of this stage so far, and of all of it where that is known.
    fn bytes(&self, done: u64, total: Option<u64>);
    /// Bytes so far of a part of this stage, such as a layer, and all of that part's. Those of all
    /// parts together are told by [`Report::bytes`].
    fn part(&self, part: &str, done: u64, total: u64);
    /// A line of the work's log.
    fn log(&self, line: &str);
}

/// A [`Report`] that hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Report for Quiet {
    fn stage(&self, _: &str, _: &str) {}
    fn bytes(&self, _: u64, _: Option<u64>) {}
    fn part(&self, _: &str, _: u64, _: u64) {}
    fn log(&self, _: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn readable(cancel: &Cancel) -> bool {
        let mut fds = [PollFd::new(cancel, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn a_thrown_switch_is_seen_by_every_clone_and_by_poll() {
        let cancel = Cancel::new().unwrap();
        let other = cancel.clone();
        assert!(cancel.check().is_ok() && !readable(&other));
        cancel.cancel();
        cancel.cancel();
        assert_eq!(other.check(), Err(Cancelled));
        assert!(readable(&other));
    }
}
