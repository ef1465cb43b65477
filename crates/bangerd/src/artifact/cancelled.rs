//! Waiting, without a thread, for a switch that ends long work.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use banger_images::Cancel;
use tokio::io::unix::AsyncFd;

struct Bell(OwnedFd);

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Returns once the switch is thrown.
pub(crate) async fn cancelled(cancel: Cancel) {
    if cancel.is_cancelled() {
        return;
    }
    // A copy of the descriptor: several may wait for one switch, and a
    // descriptor is registered once.
    let bell = cancel
        .as_fd()
        .try_clone_to_owned()
        .ok()
        .and_then(|bell| register(Bell(bell)));
    match &bell {
        // Nobody reads the bell, so it stays readable once rung.
        Some(bell) => drop(bell.readable().await),
        // Out of descriptors: this wait cannot be ended early.
        None => std::future::pending().await,
    }
}

#[expect(
    deprecated,
    reason = "the safe form is enough: the bell owns its descriptor for life"
)]
fn register(bell: Bell) -> Option<AsyncFd<Bell>> {
    AsyncFd::new(bell).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn every_waiter_hears_the_switch() {
        let cancel = Cancel::new().unwrap();
        let both = async { tokio::join!(cancelled(cancel.clone()), cancelled(cancel.clone())) };
        let throw = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            cancel.cancel();
        };
        let all = async { tokio::join!(both, throw) };
        tokio::time::timeout(Duration::from_secs(5), all)
            .await
            .unwrap();
        tokio::time::timeout(Duration::from_secs(5), cancelled(cancel))
            .await
            .unwrap();
    }
}
