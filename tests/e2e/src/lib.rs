//! The street: what the end-to-end tests share.
//!
//! A [`House`] is one private banger: its own directories, its own daemon,
//! its own VMs. A test moves in, talks to the real CLI, and moves out; moving
//! out fails when anything is left behind. Slow things (kernels, root file
//! systems) are made once and kept in `target/e2e-cache`, see [`fixture`].
//!
//! Nothing here knows how banger does a thing, only what can be seen of it
//! from outside: exit statuses, output, processes, files, cgroups and rows.
#![forbid(unsafe_code)]

pub mod api;
pub mod archive;
pub mod census;
pub mod disk;
pub mod done;
pub mod fixture;
pub mod house;
pub mod operations;
pub mod registry;
pub mod run;
pub mod small;
pub mod terminal;
pub mod toy;
pub mod user;
pub mod wait;
pub mod world;

pub use census::Census;
pub use done::Done;
pub use fixture::{Kernel, Root};
pub use house::House;
pub use registry::Registry;
pub use run::{Call, Live};
pub use small::Small;
pub use terminal::Terminal;
pub use user::User;
pub use world::World;

/// Ends a test that cannot run here, saying why. The reason also goes to
/// `target/e2e-cache/skipped.txt`, since test runners hide the output of
/// tests that pass.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        $crate::fixture::note_skip(module_path!(), &format!($($reason)*));
        return;
    }};
}

/// Whether the tests run as root.
#[must_use]
pub fn am_root() -> bool {
    rustix::process::geteuid().is_root()
}
