//! Measures a run from time to time: CPU, memory, disks, and how long nobody
//! used it. Only while it lives.

use std::sync::{Arc, Weak};
use std::time::Duration;

use banger_api::vm::VmStats;
use banger_model::VmId;
use tokio::time::{Instant, sleep};

use super::house::{House, Presence};
use super::supervisor::Note;
use crate::operation::now;
use crate::ports::{Running, Usage};

/// How often it is looked whether a VM is still used.
const MINUTE: Duration = Duration::from_secs(60);

pub(super) struct Measurer {
    pub(super) house: Arc<House>,
    pub(super) presence: Weak<Presence>,
    pub(super) vm: VmId,
    pub(super) running: Arc<dyn Running>,
}

impl Measurer {
    /// Until the run has ended.
    pub(super) async fn measure(self) {
        tokio::select! {
            () = self.measure_use() => {}
            () = self.count_minutes() => {}
        }
    }

    async fn measure_use(&self) {
        let mut before = self.running.usage().map(|usage| (Instant::now(), usage));
        let interval = self.house.settings.stats_poll_interval;
        loop {
            sleep(interval).await;
            let Some(usage) = self.running.usage() else {
                return;
            };
            let at = Instant::now();
            let percent = before.and_then(|(then, earlier)| cpu_percent(then, earlier, at, usage));
            before = Some((at, usage));
            let stats = collect(&self.house, &self.vm, usage, percent).await;
            self.house.stats().insert(self.vm.clone(), stats);
            self.house
                .host
                .trim_console(&self.house.places.console(&self.vm));
        }
    }

    /// Has the supervisor look whether somebody still uses the VM.
    async fn count_minutes(&self) {
        if self.house.settings.auto_stop_stale_after.is_none() {
            return std::future::pending().await;
        }
        loop {
            sleep(MINUTE).await;
            let Some(presence) = self.presence.upgrade() else {
                return;
            };
            let _ = presence.queue.send(Note::Minute).await;
        }
    }
}

/// Use of a VM as clients see it.
pub(super) async fn collect(
    house: &House,
    vm: &VmId,
    usage: Usage,
    cpu_percent: Option<f64>,
) -> VmStats {
    let counters = match house.way(vm) {
        Some(way) => way.counters().await,
        None => None,
    };
    let network = counters.map(|counters| {
        let counters = serde_json::to_value(counters).expect("counters are plain JSON");
        (banger_api::vm::NETWORK_METRICS.to_owned(), counters)
    });
    VmStats {
        collected_at: Some(now()),
        cpu_percent,
        rss_bytes: Some(usage.rss_bytes),
        vsz_bytes: Some(usage.vsz_bytes),
        system_overlay_bytes: house.host.allocated(&house.places.overlay(vm)),
        work_disk_bytes: house.host.allocated(&house.places.work(vm)),
        metrics_raw: network.into_iter().collect(),
    }
}

/// 100 is one CPU of the host; `None` over no time.
pub(super) fn cpu_percent(then: Instant, earlier: Usage, at: Instant, usage: Usage) -> Option<f64> {
    let wall = at.duration_since(then).as_micros();
    if wall == 0 {
        return None;
    }
    let used = usage.cpu_us.saturating_sub(earlier.cpu_us);
    #[allow(clippy::cast_precision_loss)]
    Some(used as f64 * 100.0 / wall as f64)
}
