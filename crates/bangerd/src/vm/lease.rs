//! Who holds a VM that is removed when nobody does.
//!
//! Holders are the connections that follow its create operation and the one
//! that carries its main command. Once that command is over, the last holder's
//! leaving ends the VM at once; before that, only after a while without any.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// How long a VM waits for a holder.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, Default)]
struct State {
    holders: usize,
    over: bool,
}

/// The count of holders of one VM.
#[derive(Debug, Default)]
pub(crate) struct Lease(watch::Sender<State>);

/// One of the holders, until it is dropped.
#[derive(Debug)]
pub(crate) struct Held(Arc<Lease>);

impl Lease {
    /// One more holder.
    pub(crate) fn hold(self: Arc<Self>) -> Held {
        self.0.send_modify(|state| state.holders += 1);
        Held(self)
    }

    /// The main command is over.
    pub(crate) fn over(&self) {
        self.0.send_modify(|state| state.over = true);
    }

    /// Whether the main command is over.
    pub(crate) fn is_over(&self) -> bool {
        self.0.borrow().over
    }

    /// Returns when the VM should go.
    pub(crate) async fn expired(&self) {
        let mut news = self.0.subscribe();
        loop {
            let state = *news.borrow_and_update();
            if state.holders > 0 {
                let _ = news.changed().await;
            } else if state.over {
                return;
            } else {
                tokio::select! {
                    () = tokio::time::sleep(PATIENCE) => return,
                    _ = news.changed() => {}
                }
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.holders -= 1);
    }
}
