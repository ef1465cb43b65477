//! The rate of the host's time-stamp counter. An emulated guest sees the same
//! counter and has no second clock to measure it by: without being told the
//! rate, its kernel now and then spins for ever before it prints a word.
//!
//! Measured on a thread of its own when the daemon starts, kept in memory and,
//! for the next daemon, in the cache until the host boots again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::time::ClockId;
use tokio::sync::watch;

use crate::process::host_boot_id;

const FILE: &str = "tsc-khz";
/// Between two samples. The first measurement is off by 20 ppm, the third no
/// more.
const APART: Duration = Duration::from_millis(50);
const MEASUREMENTS: usize = 3;
/// No processor ticks outside of this, kHz.
const BELIEVABLE: std::ops::RangeInclusive<u64> = 100_000..=20_000_000;

/// The rate, now or soon.
#[derive(Debug, Clone)]
pub(crate) struct TscRate(watch::Receiver<Option<u64>>);

impl TscRate {
    /// From the cache, else from a thread that measures it.
    pub(crate) fn find(cache_dir: &Path) -> Self {
        let file = cache_dir.join(FILE);
        let (tell, rate) = watch::channel(cached(&file));
        if rate.borrow().is_none() {
            let measure = move || {
                let khz = measure();
                keep(&file, khz);
                tell.send_replace(Some(khz));
            };
            if let Err(error) = std::thread::Builder::new()
                .name("tsc".into())
                .spawn(measure)
            {
                tracing::warn!(%error, "cannot measure the time-stamp counter");
            }
        }
        Self(rate)
    }

    /// kHz. Waits for a measurement that is under way; `None` where none was
    /// possible.
    pub(crate) async fn khz(&self) -> Option<u64> {
        let mut rate = self.0.clone();
        let khz = rate.wait_for(Option::is_some).await.ok()?;
        khz.filter(|khz| BELIEVABLE.contains(khz))
    }
}

fn cached(file: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let (boot_id, khz) = text.trim().split_once(' ')?;
    let khz = khz.parse().ok().filter(|khz| BELIEVABLE.contains(khz))?;
    (!boot_id.is_empty() && boot_id == host_boot_id()).then_some(khz)
}

fn keep(file: &PathBuf, khz: u64) {
    let beside = file.with_extension("new");
    let written = std::fs::write(&beside, format!("{} {khz}\n", host_boot_id()));
    if let Err(error) = written.and_then(|()| std::fs::rename(&beside, file)) {
        tracing::debug!(%error, "cannot cache the rate of the time-stamp counter");
    }
}

fn measure() -> u64 {
    let mut khz = 0;
    for _ in 0..MEASUREMENTS {
        let (ticks, nanoseconds) = sample();
        #[expect(
            clippy::disallowed_methods,
            reason = "the passing of time is what is measured, on its own thread"
        )]
        std::thread::sleep(APART);
        let (later_ticks, later_nanoseconds) = sample();
        let passed = later_nanoseconds.saturating_sub(nanoseconds).max(1);
        khz = u128::from(later_ticks.saturating_sub(ticks)) * 1_000_000 / u128::from(passed);
    }
    u64::try_from(khz).unwrap_or(0)
}

/// Counter and clock of one moment: of several tries the one during which
/// least time passed, so that being descheduled between the two reads does no
/// harm.
fn sample() -> (u64, u64) {
    let clock = || {
        let time = rustix::time::clock_gettime(ClockId::MonotonicRaw);
        time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
    };
    (0..8)
        .map(|_| {
            let before = banger_sys::engine::tsc::ticks();
            let now = clock();
            let after = banger_sys::engine::tsc::ticks();
            (after.saturating_sub(before), before.midpoint(after), now)
        })
        .min_by_key(|&(width, ..)| width)
        .map_or((0, 0), |(_, ticks, now)| (ticks, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_rate_is_measured_once_per_boot_of_the_host() {
        let cache = std::env::temp_dir().join(format!("banger-tsc-{}", std::process::id()));
        std::fs::create_dir_all(&cache).unwrap();
        let file = cache.join(FILE);
        let khz = measure();
        assert!(BELIEVABLE.contains(&khz), "{khz}");
        keep(&file, khz);
        assert_eq!(TscRate::find(&cache).khz().await, Some(khz));
        std::fs::write(&file, format!("another-boot {khz}\n")).unwrap();
        assert_eq!(cached(&file), None);
        let again = TscRate::find(&cache).khz().await.unwrap();
        assert!(
            again.abs_diff(khz) < khz / 1000,
            "{again} kHz and {khz} kHz"
        );
        std::fs::remove_dir_all(&cache).unwrap();
    }
}
