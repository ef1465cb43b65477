//! The one place that waits for something nobody announces: looks, and looks
//! again until a deadline.

use std::time::{Duration, Instant};

/// Looks every 20 ms until there is something, or the deadline has passed.
pub fn eventually<T>(deadline: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        pause(Duration::from_millis(20));
    }
}

/// As [`eventually`], and fails the test after the deadline.
///
/// # Panics
/// When the deadline passed.
#[track_caller]
pub fn until<T>(what: &str, deadline: Duration, look: impl FnMut() -> Option<T>) -> T {
    eventually(deadline, look)
        .unwrap_or_else(|| panic!("waited {} s in vain until {what}", deadline.as_secs_f32()))
}

/// As [`until`], for a yes or no.
///
/// # Panics
/// When the deadline passed.
#[track_caller]
pub fn until_true(what: &str, deadline: Duration, mut look: impl FnMut() -> bool) {
    until(what, deadline, || look().then_some(()));
}

/// Lets a measured time pass: for tests whose subject is that time (a guest
/// that has run for ten seconds, a daemon watched at rest). Never for luck.
#[allow(clippy::disallowed_methods)]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
