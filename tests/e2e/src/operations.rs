//! What the daemon of a house does at the moment, and what it did.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::house::House;
use crate::wait;

impl House {
    /// Operations that the daemon remembers, the newest first.
    ///
    /// # Panics
    /// When no daemon runs.
    #[must_use]
    pub fn operations(&self) -> Vec<Value> {
        let list = self.api("GET", "/v1/operations", None).body;
        let list = list["operations"].as_array().cloned();
        list.expect("a list")
    }

    /// Those that go on.
    ///
    /// # Panics
    /// When no daemon runs.
    #[must_use]
    pub fn under_way(&self) -> Vec<Value> {
        let mut found = self.operations();
        found.retain(|operation| operation["done"] == false);
        found
    }

    /// Waits until one that goes on is at this stage.
    ///
    /// # Panics
    /// When none is within the deadline.
    #[track_caller]
    pub fn wait_stage(&self, stage: &str, deadline: Duration) {
        wait::until_true(stage, deadline, || {
            let all = self.under_way();
            all.iter().any(|operation| operation["stage"] == stage)
        });
    }

    /// Logs of builds that were kept.
    ///
    /// # Panics
    /// When there is no place for images yet.
    #[must_use]
    pub fn build_logs(&self) -> Vec<PathBuf> {
        let images = fs::read_dir(self.state().join("images")).expect("the daemon's");
        let paths = images.map(|entry| entry.expect("the daemon's").path());
        let mut logs: Vec<PathBuf> = paths
            .filter(|path| path.extension().is_some_and(|end| end == "log"))
            .collect();
        logs.sort();
        logs
    }
}
