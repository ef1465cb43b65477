//! Commands: from the first frame to the exit frame. [`session`] holds one
//! command; [`spawner`] makes processes inside the guest.

mod env;
mod session;
pub(crate) mod spawner;
mod streams;
mod users;

pub(crate) use session::serve;
pub(crate) use streams::signal_session;

/// Soft and hard limit of open files for guest processes.
pub(crate) const OPEN_FILES: (u64, u64) = (1024, 512 << 10);
