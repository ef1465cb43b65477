//! Measures a run from time to time: CPU, memory, disks. Only while it lives.

use std::sync::{Arc, Weak};

use banger_api::vm::VmStats;
use banger_model::VmId;
use tokio::time::{Instant, sleep};

use super::house::{House, Presence};
use super::supervisor::Note;
use crate::operation::{now, now_seconds};
use crate::ports::{Running, Usage};

pub(super) struct Measurer {
    pub(super) house: Arc<House>,
    pub(super) presence: Weak<Presence>,
    pub(super) vm: VmId,
    pub(super) running: Arc<dyn Running>,
}

impl Measurer {
    pub(super) async fn measure(self) {
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
            let stats = collect(&self.house, &self.vm, usage, percent);
            self.house.stats().insert(self.vm.clone(), stats);
            self.house
                .host
                .trim_console(&self.house.places.console(&self.vm));
            self.stop_if_stale().await;
        }
    }

    async fn stop_if_stale(&self) {
        let Some(limit) = self.house.settings.auto_stop_stale_after else {
            return;
        };
        let Some(presence) = self.presence.upgrade() else {
            return;
        };
        if presence.streams() > 0 {
            let _ = presence.queue.send(Note::Touch).await;
            return;
        }
        let vm = self.vm.clone();
        let row = self
            .house
            .store
            .read(move |db| banger_store::vms::get(db, &vm))
            .await;
        let Some(vm) = row
            .ok()
            .flatten()
            .and_then(|row| super::record::Vm::read(row).ok())
        else {
            return;
        };
        let touched: Option<jiff::Timestamp> = vm.record.last_touched_at.parse().ok();
        let idle = touched.map_or(0, |touched| now_seconds() - touched.as_second());
        if idle > i64::try_from(limit.as_secs()).unwrap_or(i64::MAX) {
            let _ = presence.queue.send(Note::Stale).await;
        }
    }
}

/// Use of a VM as clients see it.
pub(super) fn collect(house: &House, vm: &VmId, usage: Usage, cpu_percent: Option<f64>) -> VmStats {
    VmStats {
        collected_at: Some(now()),
        cpu_percent,
        rss_bytes: Some(usage.rss_bytes),
        vsz_bytes: Some(usage.vsz_bytes),
        system_overlay_bytes: house.host.allocated(&house.places.overlay(vm)),
        work_disk_bytes: house.host.allocated(&house.places.work(vm)),
        metrics_raw: std::collections::BTreeMap::new(),
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
