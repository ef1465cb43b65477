//! News of VMs for clients: the recent past and what comes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use banger_api::operation::{DiskFullEvent, HealthEvent, VmEvent};
use tokio::sync::watch;

/// Events kept for those who ask for the past.
const KEPT: usize = 1024;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// A VM changed its state.
    Vm(VmEvent),
    /// The init of a guest came up, or went.
    Health(HealthEvent),
    /// The host had no room for what a guest wrote.
    DiskFull(DiskFullEvent),
}

impl Event {
    /// When it was, RFC 3339.
    pub(crate) fn at(&self) -> &str {
        match self {
            Self::Vm(event) => &event.at,
            Self::Health(event) => &event.at,
            Self::DiskFull(event) => &event.at,
        }
    }

    /// Id of the VM.
    pub(crate) fn vm_id(&self) -> &str {
        match self {
            Self::Vm(event) => &event.id,
            Self::Health(event) => &event.id,
            Self::DiskFull(event) => &event.id,
        }
    }
}

#[derive(Default)]
struct Past {
    /// Number of the first kept one.
    first: u64,
    events: VecDeque<Event>,
}

/// All events of this daemon's life. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Events {
    past: Arc<Mutex<Past>>,
    newest: Arc<watch::Sender<u64>>,
}

impl Events {
    pub(super) fn publish(&self, event: Event) {
        let newest = {
            let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
            if past.events.len() == KEPT {
                past.events.pop_front();
                past.first += 1;
            }
            past.events.push_back(event);
            past.first + past.events.len() as u64
        };
        self.newest.send_replace(newest);
    }

    /// What comes from now on, after what is remembered since `since` (RFC
    /// 3339, inclusive), where that is given.
    pub(crate) fn subscribe(&self, since: Option<&str>) -> EventFeed {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let skipped = match since {
            // Times are whole seconds of UTC, so their texts compare as they do.
            Some(since) => past
                .events
                .iter()
                .take_while(|event| event.at() < since)
                .count(),
            None => past.events.len(),
        };
        EventFeed {
            next: past.first + skipped as u64,
            events: self.clone(),
            news: self.newest.subscribe(),
        }
    }
}

/// A reader of events.
pub(crate) struct EventFeed {
    events: Events,
    news: watch::Receiver<u64>,
    next: u64,
}

impl EventFeed {
    /// The next event. A reader that is more than a thousand behind misses some.
    pub(crate) async fn next(&mut self) -> Event {
        loop {
            self.news.borrow_and_update();
            let found = {
                let past = self
                    .events
                    .past
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                self.next = self.next.max(past.first);
                let at = usize::try_from(self.next - past.first).expect("a short list");
                past.events.get(at).cloned()
            };
            if let Some(event) = found {
                self.next += 1;
                return event;
            }
            self.news
                .changed()
                .await
                .expect("the sender is held by this reader");
        }
    }
}
