//! How many files the daemon may have open: a pull keeps a descriptor or more
//! of each layer, and the limit that a login gives is often less than two such
//! pulls take.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the daemon takes where it may have more: enough for some sixty pulls
/// of as many layers as an image may have. Programs that it starts have the
/// same, and some look at each descriptor that there might be.
const MOST: u64 = 65_536;

/// Raises the limit as far as the process may by itself.
pub(crate) fn raise() {
    if let Some(limit) = raised(getrlimit(Resource::Nofile)) {
        // With the old one only very large pulls fail.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// The limit to set, where the present one is too low.
fn raised(now: Rlimit) -> Option<Rlimit> {
    let most = now.maximum.map_or(MOST, |hard| hard.min(MOST));
    let higher = now.current.is_some_and(|soft| soft < most);
    higher.then_some(Rlimit {
        current: Some(most),
        ..now
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_to_what_may_be_had_and_never_lowered() {
        let soft = |current, maximum| {
            let raised = raised(Rlimit { current, maximum })?;
            assert_eq!(raised.maximum, maximum);
            raised.current
        };
        assert_eq!(soft(Some(1024), Some(4096)), Some(4096));
        assert_eq!(soft(Some(1024), Some(1 << 30)), Some(MOST));
        assert_eq!(soft(Some(1024), None), Some(MOST));
        assert_eq!(soft(Some(4096), Some(4096)), None);
        assert_eq!(soft(Some(1 << 20), Some(1 << 20)), None);
        assert_eq!(soft(None, None), None);
    }
}
