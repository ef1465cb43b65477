//! Engines: the programs that run a machine. Describes a machine as data,
//! chooses an engine this host can use, launches it confined, finds it again
//! after a restart of the daemon, and ends it for certain.
//!
//! ```text
//! settings ─► AnyEngine ─ launch(&Machine) ─► Facts ─ attach ─► Live ─► End
//!                       └ sweep(id): nothing of this VM lives
//! ```
//!
//! Beside an engine may stand a [`gateway`], a process of our own at the other
//! end of the machine's network card; it is started, found again and ended in
//! the same ways.
//!
//! Nothing outside this crate knows an engine's command line or protocol. It
//! keeps no state of its own but a cache of what was measured and probed, and
//! decides nothing about a VM.

#![forbid(unsafe_code)]

pub mod any;
pub mod cgroup;
pub mod choose;
pub mod console;
pub mod gateway;
pub mod kvm;
pub mod live;
pub mod machine;
mod process;
mod qemu;
mod sockets;
mod sweep;
#[cfg(target_arch = "x86_64")]
mod tsc;
mod watch;

pub use any::{AnyEngine, LaunchError};
pub use choose::{Choice, ChooseError, Settings, Wish};
pub use live::{ControlError, Live, Usage};
pub use qemu::qmp;
pub use sweep::SweepError;
