//! The operations that wait for a VM to get somewhere, and how each ends.

use banger_api::error::Code;
use banger_api::vm::VmRecord;
use banger_model::{Goal, Phase};

use super::record::Vm;
use crate::failure::Failure;
use crate::operation::{OpHandle, Outcome};

/// Where an operation wants the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// Running, in a run later than this number.
    Up { after: u64 },
    /// Created, with all its disks.
    Made,
    /// At rest.
    Down,
    /// Frozen.
    Paused,
    /// Not frozen.
    Thawed,
    /// Removed.
    Gone,
    /// Cancelled: at rest, or gone, and then `cancelled`.
    Undone,
}

/// An operation that waits.
pub(crate) struct Waiter {
    pub(crate) op: OpHandle,
    pub(crate) want: Want,
}

/// All that wait for one VM, oldest first.
#[derive(Default)]
pub(super) struct Waiters(Vec<Waiter>);

impl Waiters {
    pub(super) fn add(&mut self, waiter: Waiter) {
        self.0.push(waiter);
    }

    /// The operation whose progress the present step reports.
    pub(super) fn first(&self) -> Option<OpHandle> {
        self.0.first().map(|waiter| waiter.op.clone())
    }

    pub(super) fn get(&mut self, op: &str) -> Option<&mut Waiter> {
        self.0.iter_mut().find(|waiter| waiter.op.id() == op)
    }

    /// A new goal overtakes the operations that wanted something else.
    pub(super) async fn overtaken(&mut self, goal: Goal, phase: Phase, by: &str) {
        let stays = |want: Want| match (want, goal) {
            (Want::Undone, _)
            | (Want::Gone, Goal::Gone)
            | (Want::Down, Goal::Down)
            | (Want::Up { .. } | Want::Thawed, Goal::Up)
            | (Want::Paused, Goal::Paused) => true,
            // A start after a stop waits for the stop; both get what they want.
            (Want::Down, Goal::Up | Goal::Paused) => phase == Phase::Stopping,
            (Want::Made, Goal::Up | Goal::Paused) => true,
            (
                Want::Up { .. } | Want::Thawed | Want::Paused | Want::Made,
                Goal::Down | Goal::Gone,
            )
            | (Want::Up { .. } | Want::Thawed, Goal::Paused)
            | (Want::Paused, Goal::Up)
            | (Want::Down, Goal::Gone)
            | (Want::Gone, Goal::Up | Goal::Paused | Goal::Down) => false,
        };
        let (kept, gone) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|waiter| stays(waiter.want));
        self.0 = kept;
        for waiter in gone {
            let message = format!("overtaken by {by}");
            waiter
                .op
                .finish(Err(Failure::new(Code::Cancelled, message)))
                .await;
        }
    }

    /// Ends the operations whose moment has come.
    pub(super) async fn settle(
        &mut self,
        vm: &Vm,
        run: u64,
        failed: &mut Option<Failure>,
        shown: &VmRecord,
    ) {
        let mut waiting = Vec::new();
        for waiter in std::mem::take(&mut self.0) {
            match verdict(waiter.want, vm, run, failed.as_ref()) {
                None => waiting.push(waiter),
                Some(result) => {
                    let outcome = result.map(|()| Outcome {
                        vm: Some(shown.clone()),
                        ..Outcome::default()
                    });
                    waiter.op.finish(outcome).await;
                }
            }
        }
        self.0 = waiting;
        if self.0.is_empty() && vm.goal != Goal::Gone {
            *failed = None;
        }
    }

    /// The VM is gone.
    pub(super) async fn gone(&mut self, failed: Option<Failure>) {
        for waiter in std::mem::take(&mut self.0) {
            let result = match waiter.want {
                Want::Gone => Ok(Outcome::default()),
                Want::Undone => Err(cancelled()),
                Want::Up { .. } | Want::Made | Want::Down | Want::Paused | Want::Thawed => {
                    Err(failed.clone().unwrap_or_else(cancelled))
                }
            };
            waiter.op.finish(result).await;
        }
    }

    /// Something is stuck; nobody waits for the next try.
    pub(super) async fn fail_all(&mut self, failure: &Failure) {
        for waiter in std::mem::take(&mut self.0) {
            waiter.op.finish(Err(failure.clone())).await;
        }
    }
}

fn verdict(want: Want, vm: &Vm, run: u64, failed: Option<&Failure>) -> Option<Result<(), Failure>> {
    let failure = || failed.cloned().unwrap_or_else(cancelled);
    let at_rest = vm.phase == Phase::Stopped && vm.goal == Goal::Down;
    match want {
        Want::Up { after } => match vm.phase {
            Phase::Running if vm.goal == Goal::Up && run > after => Some(Ok(())),
            // A restart whose guest would not be halted.
            Phase::Running if vm.goal == Goal::Up && failed.is_some() => Some(Err(failure())),
            Phase::Stopped if at_rest => Some(Err(failure())),
            Phase::Paused if vm.goal == Goal::Paused => Some(Err(failure())),
            Phase::Stopped
            | Phase::Starting
            | Phase::Running
            | Phase::Paused
            | Phase::Stopping
            | Phase::Removing => None,
        },
        Want::Made => {
            (vm.phase != Phase::Removing && vm.record.creating.is_none()).then_some(Ok(()))
        }
        Want::Down => match vm.phase {
            Phase::Stopped => Some(Ok(())),
            Phase::Running if vm.goal == Goal::Up => Some(Err(failure())),
            Phase::Starting
            | Phase::Running
            | Phase::Paused
            | Phase::Stopping
            | Phase::Removing => None,
        },
        Want::Paused => match vm.phase {
            Phase::Paused => Some(Ok(())),
            Phase::Running if vm.goal == Goal::Up => Some(Err(failure())),
            Phase::Stopped => Some(Err(failure())),
            Phase::Starting | Phase::Running | Phase::Stopping | Phase::Removing => None,
        },
        Want::Thawed => match vm.phase {
            Phase::Running => Some(Ok(())),
            Phase::Paused if vm.goal == Goal::Paused => Some(Err(failure())),
            Phase::Stopped => Some(Err(failure())),
            Phase::Paused | Phase::Starting | Phase::Stopping | Phase::Removing => None,
        },
        Want::Gone => None,
        Want::Undone => (at_rest || (vm.phase == Phase::Running && vm.goal == Goal::Up))
            .then(|| Err(cancelled())),
    }
}

pub(super) fn cancelled() -> Failure {
    Failure::new(Code::Cancelled, "cancelled")
}
