//! At boot of the daemon, before its first answer: adopt what is settled and
//! lives, unwind the rest, finish what was half done. It waits for no guest.

use std::collections::HashMap;
use std::sync::Arc;

use banger_api::error::Code;
use banger_model::{Exit, Goal, Holding, News, Phase, VmId, phase};
use banger_store::ledger::{self, Entry};
use banger_store::operations::{self, OpRow};
use banger_store::vms;
use tokio::time::Instant;

use crate::failure::Failure;
use crate::operation::{OpHandle, Outcome, now};
use crate::vm::{House, Run, RunFacts, Start, Vm, Vms, Waiter, Want, console_word, judge};

/// Brings every VM to where the ledger and the host agree.
///
/// # Errors
/// Only when the store cannot be read: a VM that cannot be recovered is logged
/// and left to its supervisor.
pub(crate) async fn recover(all: &Vms) -> Result<(), Failure> {
    let house = all.house();
    house.seams.pass("recovery.begun").await;
    let (rows, entries, ops) = house
        .store
        .read(|db| Ok((vms::all(db)?, ledger::all(db)?, operations::list(db, true)?)))
        .await?;
    let mut held: HashMap<VmId, Vec<Entry>> = HashMap::new();
    for entry in entries {
        held.entry(entry.owner.clone()).or_default().push(entry);
    }
    let mut begun: HashMap<String, Vec<OpRow>> = HashMap::new();
    let mut others = Vec::new();
    for op in ops {
        match op.vm_id.clone() {
            Some(vm) => begun.entry(vm).or_default().push(op),
            None => others.push(op),
        }
    }
    let recoveries = rows
        .into_iter()
        .map(Vm::read)
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .map(|vm| {
            let held = held.remove(&vm.id).unwrap_or_default();
            let ops = begun.remove(vm.id.as_str()).unwrap_or_default();
            recover_vm(house.clone(), vm, held, ops)
        });
    futures_util::future::join_all(recoveries.collect::<Vec<_>>()).await;
    // Rows of VMs that no row knows: nothing that this daemon wrote in one
    // transaction can lead here, so it is given back and said.
    for owner in held.into_keys() {
        tracing::error!(vm = %owner, "the ledger knows a VM that is not there");
        if let Err(failure) = house.give_back(&owner, "recovery", |_| true).await {
            tracing::error!(vm = %owner, error = %failure.sentence(), "it stays");
        }
    }
    // A delete whose row went and whose end was not written is done.
    for op in begun.into_values().flatten().chain(others) {
        let done = op.kind == "vm.delete";
        end(
            house,
            &op,
            if done {
                Ok(Outcome::default())
            } else {
                Err(interrupted())
            },
        )
        .await;
    }
    house.seams.pass("recovery.ended").await;
    Ok(())
}

async fn recover_vm(house: Arc<House>, mut vm: Vm, held: Vec<Entry>, ops: Vec<OpRow>) {
    let ops: Vec<OpHandle> = ops
        .iter()
        .filter_map(|op| match house.operations.resume(op) {
            Ok(handle) => Some(handle),
            Err(failure) => {
                tracing::error!(op = op.id, error = %failure.sentence(), "an operation is lost");
                None
            }
        })
        .collect();
    let engine = held.iter().find(|entry| entry.holding == Holding::Engine);
    let settled = engine.is_some_and(|entry| entry.settled);
    let facts = engine
        .filter(|entry| entry.settled)
        .and_then(|entry| serde_json::from_str::<RunFacts>(entry.facts.as_deref()?).ok());
    let wanted = vm.goal != Goal::Gone && vm.phase != Phase::Removing && !vm.spec.auto_remove;
    let alive = match facts
        .as_ref()
        .filter(|_| wanted && lives(vm.phase, vm.record.halting))
    {
        Some(facts) => attach(&house, &vm, facts).await,
        None => None,
    };
    if let Some(run) = alive {
        if let Some(gateway) = held.iter().find(|entry| entry.holding == Holding::Gateway) {
            house.find_way(&vm.id, gateway.facts.clone());
        }
        adopt(&house, vm, run, ops).await;
        return;
    }
    let from = vm.phase;
    let unwound = unwind(&house, &mut vm, facts.as_ref(), settled).await;
    match unwound {
        Ok(()) if vm.phase == Phase::Removing => removed(&house, &vm, ops).await,
        Ok(()) => rest(&house, vm, from, ops).await,
        Err(failure) => {
            // What is stuck stays the business of a supervisor, which tries on.
            tracing::error!(vm = %vm.name, error = %failure.sentence(), "a VM is stuck");
            for op in ops {
                op.finish(Err(failure.clone())).await;
            }
            write(&house, &mut vm).await;
            house.supervise(vm, Start::default());
        }
    }
}

/// Whether an engine found in this phase may go on.
fn lives(phase: Phase, halting: bool) -> bool {
    match phase {
        Phase::Starting | Phase::Running | Phase::Paused => true,
        // A guest that was being asked to end is asked again; an engine that
        // was being forced is not.
        Phase::Stopping => halting,
        Phase::Stopped | Phase::Removing => false,
    }
}

async fn attach(house: &House, vm: &Vm, facts: &RunFacts) -> Option<Run> {
    let token = match facts.token() {
        Ok(token) => token,
        Err(failure) => {
            tracing::error!(vm = %vm.name, error = %failure.sentence(), "a run cannot be adopted");
            return None;
        }
    };
    match house.engine.attach(&facts.facts).await {
        Ok(Some(running)) => Some(Run {
            running,
            facts: facts.clone(),
            token,
            since: Instant::now(),
        }),
        Ok(None) => None,
        Err(failure) => {
            tracing::error!(vm = %vm.name, error = %failure.sentence(), "a run cannot be adopted");
            None
        }
    }
}

/// The engine lives: the VM goes on, and so do its operations.
async fn adopt(house: &Arc<House>, mut vm: Vm, run: Run, ops: Vec<OpHandle>) {
    if vm.phase == Phase::Stopping {
        vm.phase = Phase::Running;
        vm.record.halting = false;
    }
    write(house, &mut vm).await;
    house.seams.pass("recovery.committed").await;
    let mut waiters = Vec::new();
    for op in ops {
        let kind = op.operation().kind;
        let want = match kind.as_str() {
            "vm.create" | "vm.start" if vm.goal == Goal::Up => Some(Want::Up { after: 0 }),
            "vm.stop" | "vm.kill" if vm.goal == Goal::Down => Some(Want::Down),
            _ => None,
        };
        match want {
            Some(want) => waiters.push(Waiter { op, want }),
            None => {
                op.finish(Err(interrupted())).await;
            }
        }
    }
    tracing::info!(vm = %vm.name, "adopted");
    house.supervise(
        vm,
        Start {
            run: Some(run),
            waiters,
        },
    );
}

/// Gives back what must not be there, and says what the VM is now.
async fn unwind(
    house: &House,
    vm: &mut Vm,
    facts: Option<&RunFacts>,
    settled: bool,
) -> Result<(), Failure> {
    let half_made = vm.record.creating.is_some() && !settled;
    if half_made || vm.spec.auto_remove || vm.goal == Goal::Gone || vm.phase == Phase::Removing {
        vm.goal = Goal::Gone;
        vm.phase = Phase::Removing;
        house.give_back(&vm.id, "recovery", |_| true).await?;
        house.seams.pass("recovery.unwound").await;
        return Ok(());
    }
    let last_word = facts.and_then(|facts| console_word(house, vm, facts.console_from));
    match (vm.phase, settled) {
        // A start that never had an engine: as it was before.
        (Phase::Stopped | Phase::Starting, false) => {
            vm.phase = Phase::Stopping;
            vm.goal = Goal::Down;
        }
        (Phase::Stopped | Phase::Starting | Phase::Running | Phase::Paused, _) => {
            let console = house.places.console(&vm.id);
            let lived = house
                .host
                .written_at(&console)
                .zip(vm.record.running_since)
                .map_or(0, |(end, start)| end - start);
            let gone = "it was gone when the daemon came back";
            let (news, why) = judge(vm, last_word.as_ref(), gone, lived);
            let before = if vm.phase == Phase::Stopped {
                Phase::Starting
            } else {
                vm.phase
            };
            let (phase, goal, exit) = phase::observe(before, vm.goal, news);
            (vm.phase, vm.goal) = (phase, goal);
            vm.last_exit = match exit {
                Some(true) => Some(Exit::Clean),
                Some(false) => Some(Exit::Error(why.unwrap_or_default())),
                None => vm.last_exit.take(),
            };
            vm.record.creating = None;
        }
        // What was being ended has ended. A start after it was not begun.
        (Phase::Stopping, _) => vm.goal = Goal::Down,
        (Phase::Removing, _) => {}
    }
    // A disk that was never finished is none.
    house
        .give_back(&vm.id, "recovery", |entry| {
            entry.holding.span() == banger_model::Span::Run || !entry.settled
        })
        .await?;
    house.seams.pass("recovery.unwound").await;
    let (phase, goal, _) = phase::observe(vm.phase, vm.goal, News::Released);
    (vm.phase, vm.goal) = (phase, goal);
    Ok(())
}

/// A VM at rest: its operations have come to their end, one way or the other.
async fn rest(house: &Arc<House>, mut vm: Vm, from: Phase, ops: Vec<OpHandle>) {
    vm.record.halting = false;
    vm.record.network_error = None;
    write(house, &mut vm).await;
    house.seams.pass("recovery.committed").await;
    let shown = vm.show(&house.places, banger_api::vm::VmStats::default());
    for op in ops {
        let kind = op.operation().kind;
        let stopped = matches!(kind.as_str(), "vm.stop" | "vm.kill")
            && matches!(from, Phase::Stopping | Phase::Stopped);
        let result = match stopped {
            true => Ok(Outcome {
                vm: Some(shown.clone()),
                ..Outcome::default()
            }),
            false => Err(match &vm.last_exit {
                Some(Exit::Error(why)) if from != Phase::Stopped => {
                    Failure::new(Code::Interrupted, format!("interrupted: {why}"))
                }
                _ => interrupted(),
            }),
        };
        op.finish(result).await;
    }
    if vm.goal != Goal::Down {
        // A guest that asked for a reboot while no daemon was there.
        house.supervise(vm, Start::default());
    }
}

async fn removed(house: &House, vm: &Vm, ops: Vec<OpHandle>) {
    let id = vm.id.clone();
    if let Err(error) = house.store.write(move |tx| vms::delete(tx, &id)).await {
        tracing::error!(vm = %vm.name, %error, "the row of a removed VM stays");
    }
    house.seams.pass("recovery.committed").await;
    for op in ops {
        let deleted = op.operation().kind == "vm.delete";
        op.finish(if deleted {
            Ok(Outcome::default())
        } else {
            Err(interrupted())
        })
        .await;
    }
}

async fn end(house: &House, row: &OpRow, result: Result<Outcome, Failure>) {
    match house.operations.resume(row) {
        Ok(op) => {
            op.finish(result).await;
        }
        Err(failure) => {
            tracing::error!(op = row.id, error = %failure.sentence(), "an operation is lost");
        }
    }
}

async fn write(house: &House, vm: &mut Vm) {
    vm.updated_at = now();
    let row = vm.row();
    if let Err(error) = house.store.write(move |tx| vms::update(tx, &row)).await {
        tracing::error!(vm = %vm.name, %error, "the row of a VM cannot be written");
    }
}

fn interrupted() -> Failure {
    Failure::new(Code::Interrupted, "cut by an end of the daemon")
}
