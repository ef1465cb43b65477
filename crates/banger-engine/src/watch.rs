//! Waiting for a descriptor in the event loop.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a descriptor for being readable, a pidfd for the end of its
/// process. Must be called within a runtime.
#[expect(
    deprecated,
    reason = "the constructor in its place is unsafe, for types that may change their descriptor; an owned one cannot"
)]
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}
