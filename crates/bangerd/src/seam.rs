//! Named points where the power may go: one before and after every step that
//! changes the host or promises something.
//!
//! In a release build passing one costs nothing. With the cargo feature
//! `failpoints` the daemon aborts at the seam that `BANGER_ABORT_AT` names and
//! leaves out the intent of the holding that `BANGER_SKIP_INTEND` names, so
//! that a test can see that each intent matters. The in-crate double cuts the
//! power of a whole house instead. Work on images and kernels waits at the
//! stage that `BANGER_PAUSE_AT` names until it is given up, or until somebody
//! writes to the pipe `BANGER_PAUSE_UNTIL`.

use banger_images::Cancel;
use banger_model::Holding;
use rustix::event::{PollFd, PollFlags};

/// Works whose steps have seams of each holding they take or give back.
const TAKING: &str = "start";
const GIVING: [&str; 3] = ["release", "erase", "recovery"];
/// Seams that belong to no holding.
const PLAIN: &[&str] = &[
    "create.begun",
    "create.committed",
    "create.resolved",
    "create.made",
    "start.committed",
    "start.intending",
    "start.intended",
    "start.hello",
    "start.assembled",
    "start.ready",
    "gateway.lost",
    "gateway.replaced",
    "gateway.written",
    "stop.committed",
    "stop.synced",
    "stop.asked",
    "stop.ended",
    "release.begun",
    "release.committed",
    "erase.begun",
    "erase.committed",
    "recovery.begun",
    "recovery.unwound",
    "recovery.committed",
    "recovery.ended",
    "reclaim.removing",
    "reclaim.removed",
];

/// The names of all seams.
pub(crate) fn all() -> Vec<String> {
    let mut names: Vec<String> = PLAIN.iter().map(|name| (*name).to_owned()).collect();
    for holding in Holding::ALL {
        for step in ["taking", "taken", "settled"] {
            names.push(format!("{TAKING}.{}.{step}", holding.name()));
        }
        for work in GIVING {
            for step in ["giving", "given", "struck"] {
                names.push(format!("{work}.{}.{step}", holding.name()));
            }
        }
    }
    names
}

/// Waits where the stage is the one to pause at.
pub(crate) fn pause(stage: &str, given_up: &Cancel) {
    if !cfg!(feature = "failpoints") || std::env::var("BANGER_PAUSE_AT").as_deref() != Ok(stage) {
        return;
    }
    let wait = || {
        let until = std::env::var_os("BANGER_PAUSE_UNTIL").map(|path| {
            // Also for writing: then it opens at once, and is never at its end.
            let pipe = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(path);
            pipe.expect("the pipe to wait for is there")
        });
        let mut ends = vec![PollFd::new(given_up, PollFlags::IN)];
        ends.extend(until.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        while rustix::event::poll(&mut ends, None) == Err(rustix::io::Errno::INTR) {}
    };
    match tokio::runtime::Handle::try_current() {
        Ok(_) => tokio::task::block_in_place(wait),
        Err(_) => wait(),
    }
}

/// Where a house can be cut.
#[derive(Clone, Default)]
pub(crate) struct Seams {
    #[cfg(test)]
    pub(crate) power: Option<std::sync::Arc<power::Power>>,
}

impl Seams {
    /// Passes a seam.
    pub(crate) async fn pass(&self, name: &str) {
        debug_assert!(
            all().iter().any(|known| known == name),
            "seam {name} is not listed"
        );
        #[cfg(feature = "failpoints")]
        if std::env::var("BANGER_ABORT_AT").as_deref() == Ok(name) {
            std::process::abort();
        }
        #[cfg(test)]
        if let Some(power) = &self.power {
            power.pass(name).await;
        }
        #[cfg(not(test))]
        std::future::ready(name).await;
    }

    /// Passes a seam of a holding.
    pub(crate) async fn pass_holding(&self, work: &str, holding: Holding, step: &str) {
        if cfg!(any(test, feature = "failpoints")) {
            self.pass(&format!("{work}.{}.{step}", holding.name()))
                .await;
        }
    }

    /// Whether the intent of this holding is left out, to see a test fail.
    #[allow(clippy::unused_self)]
    pub(crate) fn skips(&self, holding: Holding) -> bool {
        #[cfg(test)]
        if let Some(power) = &self.power {
            return power.skipped == Some(holding);
        }
        if cfg!(feature = "failpoints") {
            return std::env::var("BANGER_SKIP_INTEND").as_deref() == Ok(holding.name());
        }
        false
    }
}

#[cfg(test)]
pub(crate) mod power {
    //! The power supply of a test house.

    use std::sync::Mutex;

    use banger_model::Holding;
    use tokio::sync::watch;

    /// Counts seams, and goes out at one of them.
    pub(crate) struct Power {
        pub(crate) skipped: Option<Holding>,
        cut_at: Mutex<Option<usize>>,
        passed: Mutex<Vec<String>>,
        out: watch::Sender<bool>,
    }

    impl Power {
        /// Power that stays, until it is armed.
        pub(crate) fn new(skipped: Option<Holding>) -> Self {
            Self {
                skipped,
                cut_at: Mutex::new(None),
                passed: Mutex::default(),
                out: watch::Sender::new(false),
            }
        }

        /// Counts from here on, from 0, and goes out at this seam.
        pub(crate) fn arm(&self, cut_at: Option<usize>) {
            *self.cut_at.lock().unwrap() = cut_at;
            self.passed.lock().unwrap().clear();
        }

        pub(crate) async fn pass(&self, name: &str) {
            self.hold().await;
            let cut = {
                let mut passed = self.passed.lock().unwrap();
                passed.push(name.to_owned());
                *self.cut_at.lock().unwrap() == Some(passed.len() - 1)
            };
            if cut {
                self.out.send_replace(true);
            }
            self.hold().await;
        }

        /// Returns while there is power, and never without.
        pub(crate) async fn hold(&self) {
            if *self.out.borrow() {
                std::future::pending::<()>().await;
            }
        }

        /// Returns when the power is out.
        pub(crate) async fn is_out(&self) {
            let _ = self.out.subscribe().wait_for(|out| *out).await;
        }

        pub(crate) fn passed(&self) -> Vec<String> {
            self.passed.lock().unwrap().clone()
        }
    }
}
