//! The working end of an operation: whoever does the work reports here and
//! finishes it.

use std::sync::Arc;

use banger_api::disk::ReclaimReport;
use banger_api::error::Code;
use banger_api::image::Image;
use banger_api::kernel::KernelEntry;
use banger_api::operation::{Operation, Timing};
use banger_api::vm::VmRecord;
use banger_images::Cancel;
use banger_store::operations::{self, OpRow};

use super::live::{GUEST_STEP, Live};
use super::{Operations, now_seconds};
use crate::failure::Failure;
use crate::ports::Progress;
use crate::vm::lease::Lease;

/// Steps that are believed of a guest.
const GUEST_STEPS: usize = 16;

/// What an operation made, for its last record.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// A VM.
    pub(crate) vm: Option<VmRecord>,
    /// An image.
    pub(crate) image: Option<Image>,
    /// A kernel.
    pub(crate) entry: Option<KernelEntry>,
    /// A reclaim.
    pub(crate) reclaim: Option<ReclaimReport>,
}

/// An operation under way. Clones are the same one. It must be
/// [finished](Self::finish).
#[derive(Clone)]
pub(crate) struct OpHandle {
    all: Operations,
    live: Arc<Live>,
    id: Arc<str>,
}

impl OpHandle {
    pub(super) fn new(all: Operations, live: Arc<Live>) -> Self {
        let id = live.operation().id.into();
        Self { all, live, id }
    }

    pub(super) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Its id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// As clients see it now.
    pub(crate) fn operation(&self) -> Operation {
        self.live.operation()
    }

    /// Its row as of now.
    pub(crate) fn row(&self) -> OpRow {
        row(&self.live.operation())
    }

    /// Changes what clients see, like the path of a build log. Not its end.
    pub(crate) fn edit(&self, edit: impl FnOnce(&mut Operation)) {
        self.live.edit(edit);
        self.store_soon();
    }

    /// What the guest says its part of the present stage was made of: when
    /// each step ended, milliseconds since its kernel started, the step that
    /// `begin` names being the start; and how long those took that went on
    /// `beside` them.
    pub(crate) fn guest_steps(
        &self,
        begin: &str,
        ends: &[(String, u64)],
        beside: &[(String, u64)],
    ) {
        let from = ends.iter().position(|(name, _)| name == begin);
        let pairs = from.map_or(&[][..], |from| &ends[from..]).windows(2);
        let steps = pairs.take(GUEST_STEPS).map(|pair| Timing {
            stage: format!("{GUEST_STEP}{}", word(&pair[1].0)),
            ms: pair[1].1.saturating_sub(pair[0].1) as f64,
            beside: false,
        });
        let beside = beside.iter().take(GUEST_STEPS).map(|(name, ms)| Timing {
            stage: format!("{GUEST_STEP}{}", word(name)),
            ms: *ms as f64,
            beside: true,
        });
        self.live.steps(steps.chain(beside).collect());
    }

    /// Says something that concerns more than this operation, so that only
    /// the first who watches one [hears](Operations::first_note) it.
    pub(crate) fn note(&self, line: &str) {
        self.live.note(line);
    }

    /// Whoever follows this operation holds this lease.
    pub(crate) fn attach(&self, lease: Arc<Lease>) {
        self.live.attach(lease);
    }

    /// Returns when somebody cancelled it.
    pub(crate) async fn cancelled(&self) {
        self.live.cancelled.cancelled().await;
    }

    /// Ends it: the row first, then those who follow. Again is harmless.
    pub(crate) async fn finish(&self, result: Result<Outcome, Failure>) -> Operation {
        if self.live.operation().done {
            return self.live.operation();
        }
        let operation = self.live.end(|operation| match result {
            Ok(outcome) => {
                operation.success = true;
                if let Some(image) = &outcome.image {
                    operation.image_id = Some(image.id.clone());
                    operation.image_name = Some(image.name.clone());
                }
                operation.vm = outcome.vm;
                operation.image = outcome.image;
                operation.entry = outcome.entry;
                operation.reclaim = outcome.reclaim;
            }
            Err(failure) => {
                operation.cancelled = failure.code == Code::Cancelled;
                operation.error = Some(failure.sentence());
                operation.error_code = Some(failure.code);
                operation.hint = failure.hint;
            }
        });
        let row = row(&operation);
        let written = self
            .all
            .store
            .write(move |tx| operations::put(tx, &row))
            .await;
        if let Err(error) = written {
            tracing::error!(op = self.id(), %error, "the end of an operation could not be stored");
        }
        self.all.lock().remove(self.id());
        self.live.announce_end();
        operation
    }

    fn store_soon(&self) {
        let row = self.row();
        self.all.store.post(move |tx| operations::put(tx, &row));
    }
}

/// What may be shown of a step's name: the guest chose it.
fn word(name: &str) -> String {
    let fit = |letter: &char| letter.is_ascii_lowercase() || *letter == '_';
    name.chars().filter(fit).take(24).collect()
}

impl Progress for OpHandle {
    fn stage(&self, stage: &str, detail: &str) {
        if self.live.stage(stage, detail) {
            self.store_soon();
        }
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        self.live.bytes(done, total);
    }

    fn part(&self, part: &str, done: u64, total: u64) {
        self.live.part(part, done, total);
    }

    fn log(&self, line: &str) {
        self.live.log(line);
    }

    fn cancel(&self) -> Cancel {
        self.live.switch()
    }
}

fn row(operation: &Operation) -> OpRow {
    OpRow {
        id: operation.id.clone(),
        kind: operation.kind.clone(),
        vm_id: operation.vm_id.clone(),
        done_at: operation.done.then(now_seconds),
        record: serde_json::to_string(operation).expect("an operation is plain JSON"),
    }
}
