//! One inotify watch that a task can wait for.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;

/// A watch on one file or directory.
#[derive(Debug)]
pub(crate) struct Watch {
    queue: AsyncFd<Queue>,
}

#[derive(Debug)]
struct Queue(OwnedFd);

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Watch {
    /// Watches for these events from now on.
    ///
    /// # Errors
    /// When the path is not there, or the user has no watch left.
    pub(crate) fn new(path: &Path, events: WatchFlags) -> io::Result<Self> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&queue, path, events)?;
        Ok(Self {
            queue: register(Queue(queue))?,
        })
    }

    /// Returns after something happened since the last return. What it was is
    /// not told: look for yourself. Cancelling loses nothing.
    pub(crate) async fn changed(&mut self) {
        loop {
            let Ok(mut ready) = self.queue.readable().await else {
                // Only a runtime that ends does this.
                return std::future::pending().await;
            };
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut seen = false;
            let mut events = Reader::new(&self.queue.get_ref().0, &mut buffer);
            while events.next().is_ok() {
                seen = true;
            }
            ready.clear_ready();
            if seen {
                return;
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "the safe form is enough: the queue owns its descriptor for life"
)]
fn register(queue: Queue) -> io::Result<AsyncFd<Queue>> {
    AsyncFd::new(queue)
}
