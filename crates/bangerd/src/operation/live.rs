//! A running operation in memory, its events, and those who follow them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use banger_api::operation::{LogEvent, Operation, PartEvent, ProgressEvent, StageEvent, Timing};
use banger_images::Cancel;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::vm::lease::{Held, Lease};

/// Log lines kept for those who come later.
const LOG_LINES: usize = 2000;

/// An event of an operation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum OpEvent {
    /// A stage begins.
    Stage(StageEvent),
    /// Bytes of the present stage.
    Progress(ProgressEvent),
    /// Bytes of a part of the present stage.
    Part(PartEvent),
    /// A line of its log.
    Log(LogEvent),
    /// A line for whoever watches it, once in the daemon's life.
    Note(LogEvent),
    /// It is over; the last.
    Done(Box<Operation>),
}

/// An event with its number, which grows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Numbered {
    /// What `Last-Event-ID` repeats.
    pub(crate) id: u64,
    /// The event.
    pub(crate) event: OpEvent,
}

pub(super) struct Live {
    state: Mutex<State>,
    /// Number of the newest event.
    news: watch::Sender<u64>,
    cancel: Option<Cancel>,
    pub(super) cancelled: CancellationToken,
}

/// What the names of timings begin with that the guest took.
pub(super) const GUEST_STEP: &str = "guest_";

struct State {
    operation: Operation,
    events: Vec<Numbered>,
    next: u64,
    stage_began: Instant,
    /// What the present stage was made of, as far as it is known.
    steps: Vec<Timing>,
    lease: Option<Arc<Lease>>,
}

impl Live {
    pub(super) fn new(operation: Operation) -> std::io::Result<Self> {
        Ok(Self {
            cancel: Some(Cancel::new()?),
            ..Self::finished(operation)
        })
    }

    /// An operation that needs no switch any more, with the events that its
    /// row tells of.
    pub(super) fn finished(operation: Operation) -> Self {
        let mut state = State {
            events: Vec::new(),
            next: 1,
            stage_began: Instant::now(),
            steps: Vec::new(),
            lease: None,
            operation: operation.clone(),
        };
        let mut stages: Vec<String> = operation
            .timings
            .iter()
            .map(|timing| timing.stage.clone())
            .filter(|stage| !stage.starts_with(GUEST_STEP))
            .collect();
        if !operation.done {
            stages.extend(operation.stage.clone());
        }
        for stage in stages {
            state.push(OpEvent::Stage(StageEvent {
                stage,
                detail: String::new(),
            }));
        }
        if operation.done {
            state.push(OpEvent::Done(Box::new(operation)));
        }
        let news = watch::Sender::new(state.next);
        Self {
            state: Mutex::new(state),
            news,
            cancel: None,
            cancelled: CancellationToken::new(),
        }
    }

    pub(super) fn operation(&self) -> Operation {
        self.lock().operation.clone()
    }

    pub(super) fn edit(&self, edit: impl FnOnce(&mut Operation)) {
        let mut state = self.lock();
        edit(&mut state.operation);
        state.operation.updated_at = super::now();
    }

    pub(super) fn attach(&self, lease: Arc<Lease>) {
        self.lock().lease = Some(lease);
    }

    pub(super) fn switch(&self) -> Cancel {
        self.cancel
            .clone()
            .expect("a running operation has a switch")
    }

    pub(super) fn cancel(&self) {
        if let Some(cancel) = &self.cancel {
            cancel.cancel();
        }
        self.cancelled.cancel();
    }

    /// What the present stage was made of: its steps are taken out of its own
    /// time.
    pub(super) fn steps(&self, steps: Vec<Timing>) {
        self.lock().steps = steps;
    }

    /// A stage begins; false where it is the present one already.
    pub(super) fn stage(&self, stage: &str, detail: &str) -> bool {
        let next = {
            let mut state = self.lock();
            if state.operation.done {
                return false;
            }
            let same = state.operation.stage.as_deref() == Some(stage);
            if same && state.operation.detail.as_deref().unwrap_or_default() == detail {
                return false;
            }
            if !same {
                state.end_stage();
                state.operation.bytes_done = None;
                state.operation.bytes_total = None;
            }
            state.operation.stage = Some(stage.to_owned());
            state.operation.detail = (!detail.is_empty()).then(|| detail.to_owned());
            state.operation.updated_at = super::now();
            state.push(OpEvent::Stage(StageEvent {
                stage: stage.to_owned(),
                detail: detail.to_owned(),
            }));
            state.next
        };
        self.news.send_replace(next);
        true
    }

    pub(super) fn bytes(&self, done: u64, total: Option<u64>) {
        self.tell(|state| {
            state.operation.bytes_done = Some(done);
            state.operation.bytes_total = total;
            state.count(OpEvent::Progress(ProgressEvent {
                bytes_done: done,
                bytes_total: total,
            }));
        });
    }

    pub(super) fn part(&self, part: &str, done: u64, total: u64) {
        self.tell(|state| {
            state.count(OpEvent::Part(PartEvent {
                part: part.to_owned(),
                bytes_done: done,
                bytes_total: total,
            }));
        });
    }

    pub(super) fn note(&self, line: &str) {
        self.tell(|state| {
            state.push(OpEvent::Note(LogEvent {
                line: line.to_owned(),
            }));
        });
    }

    pub(super) fn log(&self, line: &str) {
        self.tell(|state| {
            if state.events.len() > LOG_LINES {
                let oldest = state
                    .events
                    .iter()
                    .position(|event| matches!(event.event, OpEvent::Log(_)));
                if let Some(oldest) = oldest {
                    state.events.remove(oldest);
                }
            }
            state.push(OpEvent::Log(LogEvent {
                line: line.to_owned(),
            }));
        });
    }

    /// Changes what goes on, and tells those who follow; nothing where it is over.
    fn tell(&self, change: impl FnOnce(&mut State)) {
        let next = {
            let mut state = self.lock();
            if state.operation.done {
                return;
            }
            change(&mut state);
            state.next
        };
        self.news.send_replace(next);
    }

    /// The operation as it ends, its last timing included. Nobody is told yet.
    pub(super) fn end(&self, edit: impl FnOnce(&mut Operation)) -> Operation {
        let mut state = self.lock();
        state.end_stage();
        state.operation.done = true;
        state.operation.updated_at = super::now();
        edit(&mut state.operation);
        state.operation.clone()
    }

    /// Tells everybody that it is over.
    pub(super) fn announce_end(&self) {
        let next = {
            let mut state = self.lock();
            let operation = state.operation.clone();
            state.push(OpEvent::Done(Box::new(operation)));
            state.next
        };
        self.news.send_replace(next);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, event: OpEvent) {
        self.events.push(Numbered {
            id: self.next,
            event,
        });
        self.next += 1;
    }

    /// Pushes a count of bytes. Only the newest of each thing means something to those who come
    /// later.
    fn count(&mut self, event: OpEvent) {
        let counts = |event: &OpEvent| matches!(event, OpEvent::Progress(_) | OpEvent::Part(_));
        let same = |other: &OpEvent| match (&event, other) {
            (OpEvent::Progress(_), OpEvent::Progress(_)) => true,
            (OpEvent::Part(new), OpEvent::Part(old)) => new.part == old.part,
            _ => false,
        };
        let older = self
            .events
            .iter()
            .rposition(|numbered| same(&numbered.event) || !counts(&numbered.event))
            .filter(|at| same(&self.events[*at].event));
        if let Some(older) = older {
            self.events.remove(older);
        }
        self.push(event);
    }

    fn end_stage(&mut self) {
        let now = Instant::now();
        let steps = std::mem::take(&mut self.steps);
        if let Some(stage) = self.operation.stage.clone() {
            let all = now.duration_since(self.stage_began).as_secs_f64() * 1000.0;
            let known: f64 = steps.iter().map(Timing::own_ms).sum();
            self.operation.timings.extend(steps);
            // The guest's clock and ours may differ by the last step's length.
            let ms = (all - known).max(0.0);
            self.operation.timings.push(Timing {
                stage,
                ms,
                beside: false,
            });
        }
        self.stage_began = now;
    }
}

/// Somebody who follows an operation, and by that holds a VM that would be
/// removed without a holder.
pub(crate) struct Follow {
    live: Arc<Live>,
    after: u64,
    over: bool,
    _held: Option<Held>,
}

impl Follow {
    pub(super) fn new(live: Arc<Live>, after: Option<u64>) -> Self {
        let lease = live.lock().lease.clone();
        let held = lease.map(|lease| lease.hold());
        Self {
            live,
            after: after.unwrap_or(0),
            over: false,
            _held: held,
        }
    }

    /// The next event; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Numbered> {
        if self.over {
            return None;
        }
        let mut news = self.live.news.subscribe();
        loop {
            let found = {
                let state = self.live.lock();
                let at = state.events.partition_point(|event| event.id <= self.after);
                match state.events.get(at) {
                    Some(event) => Some(event.clone()),
                    // A client that has seen more than this daemon remembers
                    // still gets the end.
                    None => state
                        .events
                        .last()
                        .filter(|last| {
                            matches!(last.event, OpEvent::Done(_)) && self.after >= last.id
                        })
                        .cloned(),
                }
            };
            if let Some(event) = found {
                self.after = event.id;
                self.over = matches!(event.event, OpEvent::Done(_));
                return Some(event);
            }
            if news.changed().await.is_err() {
                return None;
            }
        }
    }

    /// Returns when the operation is over and its row says so.
    pub(super) async fn done(&self) {
        let mut news = self.live.news.subscribe();
        loop {
            let over = matches!(
                self.live.lock().events.last(),
                Some(Numbered {
                    event: OpEvent::Done(_),
                    ..
                })
            );
            if over || news.changed().await.is_err() {
                return;
            }
        }
    }

    /// As it is now.
    pub(crate) fn operation(&self) -> Operation {
        self.live.operation()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_late_gets_the_newest_count_of_each_thing() {
        let live = Live::new(Operation::default()).unwrap();
        live.stage("download", "");
        live.part("one", 1, 9);
        live.bytes(1, Some(12));
        live.part("two", 2, 3);
        live.bytes(3, Some(12));
        live.part("one", 5, 9);
        live.bytes(7, Some(12));
        live.log("a line");
        live.part("one", 9, 9);
        let state = live.lock();
        let told: Vec<_> = state
            .events
            .iter()
            .map(|numbered| match &numbered.event {
                OpEvent::Part(part) => format!("{} {}", part.part, part.bytes_done),
                OpEvent::Progress(all) => format!("all {}", all.bytes_done),
                OpEvent::Log(log) => log.line.clone(),
                OpEvent::Stage(stage) => stage.stage.clone(),
                other => panic!("{other:?}"),
            })
            .collect();
        // A line of log stands between counts, so those before it stay.
        let expected = ["download", "two 2", "one 5", "all 7", "a line", "one 9"];
        assert_eq!(told, expected);
        assert!(state.events.is_sorted_by_key(|numbered| numbered.id));
    }
}
