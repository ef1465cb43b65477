//! The one task that writes the rows of a VM, for as long as it is not at rest.
//!
//! ```text
//!  verbs ─┐            ┌─► decide: phase, goal ─► work ──┐
//!  news  ─┼─► queue ───┤                                 │
//!  ends  ─┘            └◄──── outcome ◄──────────────────┘
//! ```
//!
//! It listens while it works: a later goal overtakes, and news of a run that
//! is not the present one change nothing. What it carries out is decided by
//! the pure functions of the model.

use std::sync::Arc;
use std::time::Duration;

use banger_api::operation::{HealthEvent, Operation, VmEvent};
use banger_api::vm::{VmRecord, VmSetParams};
use banger_model::{Action, Exit, Goal, News, OpId, Phase, Turn, Verb, phase};
use banger_store::operations::OpRow;
use banger_store::{operations, vms};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::events::Event;
use super::house::{House, Presence};
use super::record::Vm;
use super::waiters::{Waiter, Waiters};
use super::watch::RunNews;
use super::way::Keeper;
use super::works::{self, Made, Outcome, Run, Switches, Work};
use crate::failure::Failure;
use crate::operation::{OpHandle, now, now_seconds};

/// First and longest pause before something stuck is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What reaches a supervisor.
pub(crate) enum Note {
    /// A client's verb.
    Ask(Ask),
    /// A change of the VM's description.
    Set {
        params: VmSetParams,
        reply: oneshot::Sender<Result<VmRecord, Failure>>,
    },
    /// A client used the VM.
    Touch,
    /// News of a run, by its number.
    News { run: u64, news: RunNews },
    /// An operation was cancelled.
    Cancel { op: String },
    /// Nobody holds this VM any more.
    Expired,
    /// A minute has passed: nobody may have used it for long.
    Minute,
}

/// A verb, and who asks.
pub(crate) struct Ask {
    pub(crate) verb: Verb,
    pub(crate) op: OpId,
    /// Of a kill: `TERM INT KILL`.
    pub(crate) signal: Option<String>,
    /// Of a stop.
    pub(crate) grace: Duration,
    /// Of a delete.
    pub(crate) unless_running: bool,
    pub(crate) reply: oneshot::Sender<Result<Operation, Failure>>,
}

/// How a supervisor begins.
#[derive(Default)]
pub(crate) struct Start {
    /// An engine that is there already.
    pub(crate) run: Option<Run>,
    /// Operations under way, with what they wait for.
    pub(crate) waiters: Vec<Waiter>,
}

/// The default time that guest processes get at a stop.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

pub(super) struct Supervisor {
    pub(super) house: Arc<House>,
    pub(super) presence: Arc<Presence>,
    pub(super) vm: Vm,
    pub(super) notes: mpsc::Receiver<Note>,
    pub(super) waiters: Waiters,
    /// The present run, and its number; numbers never come back.
    pub(super) run: Option<Arc<Run>>,
    pub(super) run_number: u64,
    /// When commands could run in it; unknown of an adopted run.
    pub(super) ready_at: Option<Instant>,
    /// What the present start boots from.
    made: Option<Arc<Made>>,
    /// Deadline of the present start.
    ready_by: Option<Instant>,
    launches: u32,
    pub(super) turn: Turn,
    pub(super) grace: Duration,
    pub(super) signal: Option<String>,
    /// Why the present start or stop did not do what it should.
    pub(super) failed: Option<Failure>,
    retry: Duration,
    pub(super) switches: Switches,
    /// What is being done, for those who may overtake it.
    pub(super) doing: Option<Action>,
    /// Watchers of the run, and of operations.
    pub(super) tasks: JoinSet<()>,
}

/// What is done next.
enum Step {
    Rest,
    Work(Phase, Action, Work),
}

impl Supervisor {
    pub(super) fn new(
        house: Arc<House>,
        presence: Arc<Presence>,
        vm: Vm,
        notes: mpsc::Receiver<Note>,
        start: Start,
    ) -> Self {
        let mut this = Self {
            house,
            presence,
            vm,
            notes,
            waiters: Waiters::default(),
            run: None,
            run_number: 0,
            ready_at: None,
            made: None,
            ready_by: None,
            launches: 0,
            turn: Turn::Plain,
            grace: GRACE,
            signal: None,
            failed: None,
            retry: Duration::ZERO,
            switches: Switches::default(),
            doing: None,
            tasks: JoinSet::new(),
        };
        for waiter in start.waiters {
            this.wait_for(waiter);
        }
        if let Some(run) = start.run {
            this.launches = 1;
            this.begin_run(run);
            if this.vm.phase == Phase::Running || this.vm.phase == Phase::Paused {
                this.watch_run(None);
            }
        }
        if this.vm.spec.auto_remove {
            let (lease, queue) = (this.presence.lease.clone(), this.presence.queue.clone());
            this.tasks.spawn(async move {
                lease.expired().await;
                let _ = queue.send(Note::Expired).await;
            });
        }
        this
    }

    /// Until the VM is at rest and nobody asks anything, or is gone.
    pub(super) async fn run(mut self) {
        self.show_live();
        loop {
            while self.tasks.try_join_next().is_some() {}
            self.settle_waiters().await;
            match self.decide() {
                Step::Rest if self.vm.phase == Phase::Stopped && !self.must_stay() => {
                    if self.house.leave(&self.vm.id, &self.notes) {
                        return;
                    }
                    self.listen().await;
                }
                Step::Rest => self.listen().await,
                Step::Work(phase, action, work) => {
                    self.enter(phase, action).await;
                    if self.carry_out(action, work).await {
                        return;
                    }
                }
            }
        }
    }

    /// A VM at rest that goes when nobody holds it still has to be watched.
    fn must_stay(&self) -> bool {
        self.vm.spec.auto_remove
    }

    async fn listen(&mut self) {
        // The registry holds a sender for as long as this task is listed.
        if let Some(note) = self.notes.recv().await {
            self.hear(note).await;
        }
    }

    /// The next step, by the model's word.
    fn decide(&mut self) -> Step {
        let (phase, goal) = (self.vm.phase, self.vm.goal);
        let (next, action) = match (self.turn, phase) {
            (Turn::Halt, Phase::Running) => (Phase::Stopping, Action::HaltGuest),
            (Turn::Halt, Phase::Paused) => (Phase::Paused, Action::Thaw),
            (Turn::Force, Phase::Starting | Phase::Running | Phase::Paused) => {
                (Phase::Stopping, Action::ReleaseRun)
            }
            (Turn::Plain, _) | (Turn::Halt | Turn::Force, _) => phase::drive(phase, goal),
        };
        self.switches = Switches::default();
        let (house, vm, switches) = (self.house.clone(), self.vm.clone(), self.switches.clone());
        let work = match action {
            Action::Rest if self.vm.record.creating.is_some() && phase == Phase::Stopped => {
                // A create without a start, or one that was stopped: it still
                // gets its image and its disks.
                works::make(house, vm, self.waiters.first(), false, switches)
            }
            Action::Rest => return Step::Rest,
            Action::Boot => self.boot_step(house, vm, switches),
            Action::Freeze => match &self.run {
                Some(run) => works::freeze(run.clone()),
                None => return self.lost_run(),
            },
            Action::Thaw => match &self.run {
                Some(run) => works::thaw(run.clone(), self.guest()),
                None => return self.lost_run(),
            },
            Action::HaltGuest => match &self.run {
                Some(run) => works::halt(
                    house,
                    vm,
                    self.waiters.first(),
                    run.clone(),
                    self.presence.live.subscribe(),
                    self.grace,
                    switches,
                ),
                None => works::release(house, vm, None, Duration::ZERO, switches),
            },
            Action::ReleaseRun => {
                let signal = self.run.clone().zip(self.signal.take());
                works::release(house, vm, signal, self.retry, switches)
            }
            Action::Erase => works::erase(house, vm, self.retry, switches),
        };
        Step::Work(next, action, work)
    }

    fn boot_step(&mut self, house: Arc<House>, vm: Vm, switches: Switches) -> Work {
        let op = self.waiters.first();
        let Some(made) = self.made.clone() else {
            return works::make(house, vm, op, self.run.is_none(), switches);
        };
        match &self.run {
            None => works::launch(house, vm, op, made, self.launches > 0),
            Some(run) => {
                let limit = works::ready_limit(run.kvm());
                let ready_by = *self.ready_by.get_or_insert(run.since + limit);
                works::assemble(house, vm, op, made, run.clone(), ready_by, switches)
            }
        }
    }

    /// A live phase without a run is a defect; what the ledger knows is given back.
    fn lost_run(&mut self) -> Step {
        let work = works::release(
            self.house.clone(),
            self.vm.clone(),
            None,
            Duration::ZERO,
            Switches::default(),
        );
        Step::Work(Phase::Stopping, Action::ReleaseRun, work)
    }

    /// Writes the phase of a step before the step begins.
    async fn enter(&mut self, phase: Phase, action: Action) {
        self.doing = Some(action);
        if phase == Phase::Stopping {
            self.turn = Turn::Plain;
        }
        let halting = action == Action::HaltGuest;
        if self.vm.phase == phase && self.vm.record.halting == halting {
            return;
        }
        let from = self.vm.phase;
        self.vm.phase = phase;
        self.vm.record.halting = halting;
        if from != Phase::Stopping && phase == Phase::Stopping {
            // As asked; a run that ended by itself has said so already.
            self.vm.last_exit = Some(Exit::Clean);
        }
        if phase == Phase::Starting {
            self.failed = None;
        }
        self.commit(from, None).await;
        match (phase, action) {
            (Phase::Starting, _) => self.house.seams.pass("start.committed").await,
            (_, Action::HaltGuest) => {
                self.house.seams.pass("stop.committed").await;
                if let Some(op) = self.waiters.first() {
                    use crate::ports::Progress;
                    op.stage("sync", "");
                }
            }
            _ => {}
        }
    }

    /// Does a step while listening. True when the VM is gone.
    async fn carry_out(&mut self, action: Action, mut work: Work) -> bool {
        let outcome = loop {
            tokio::select! {
                biased;
                note = self.notes.recv() => {
                    if let Some(note) = note {
                        self.hear(note).await;
                        if self.overtakes(action) {
                            self.switches.off.cancel();
                        }
                    }
                }
                outcome = &mut work => break outcome,
            }
        };
        self.doing = None;
        self.conclude(outcome).await
    }

    /// Whether what was just heard makes the present step pointless.
    fn overtakes(&self, action: Action) -> bool {
        match action {
            Action::Boot => {
                self.turn != Turn::Plain || matches!(self.vm.goal, Goal::Down | Goal::Gone)
            }
            // A create without start, under way while the VM is at rest.
            Action::Rest => self.vm.goal != Goal::Down,
            Action::HaltGuest => self.turn == Turn::Force || self.vm.goal == Goal::Gone,
            // Only the pause before another try is cut short.
            Action::ReleaseRun | Action::Erase => self.turn != Turn::Plain,
            Action::Freeze | Action::Thaw => false,
        }
    }

    async fn conclude(&mut self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Overtaken => {}
            Outcome::Made(Ok(made)) => self.has_made(*made).await,
            Outcome::Launched(Ok(run)) => {
                self.launches += 1;
                let facts = &run.facts.facts;
                self.vm.record.engine = Some(facts.engine.clone());
                self.vm.record.engine_version = Some(facts.version.clone());
                self.vm.record.acceleration = Some(facts.acceleration.name().to_owned());
                self.vm.record.network_error = None;
                let limit = works::ready_limit(run.kvm());
                self.ready_by.get_or_insert(run.since + limit);
                self.begin_run(*run);
            }
            Outcome::Assembled(Ok(assembled)) => {
                self.is_ready(assembled.guest, assembled.booted).await;
            }
            Outcome::Assembled(Err(works::AssembleError::Silent(failure))) => {
                let late = self.ready_by.is_some_and(|by| Instant::now() >= by);
                if self.launches < 2 && !late {
                    let error = failure.sentence();
                    tracing::warn!(vm = %self.vm.name, %error, "no hello in time; starting again");
                    self.end_run();
                    self.launches = self.launches.max(1);
                } else {
                    self.start_failed(failure).await;
                }
            }
            Outcome::Made(Err(failure))
            | Outcome::Launched(Err(failure))
            | Outcome::Assembled(Err(works::AssembleError::Failed(failure))) => {
                self.start_failed(failure).await;
            }
            Outcome::Frozen(Ok(())) => self.observe(News::Frozen, None).await,
            Outcome::Thawed(Ok(())) => self.observe(News::Thawed, None).await,
            Outcome::Frozen(Err(failure)) | Outcome::Thawed(Err(failure)) => {
                self.not_turned(failure).await;
            }
            // The release follows by itself.
            Outcome::Halted(works::Halted::Ended | works::Halted::Unwilling) => {
                self.vm.record.halting = false;
            }
            Outcome::Halted(works::Halted::Unsynced(failure)) => {
                self.failed = Some(failure);
                self.vm.record.halting = false;
                self.observe(News::Unsynced, None).await;
            }
            Outcome::Released(Ok(())) => {
                self.end_run();
                self.retry = Duration::ZERO;
                self.made = None;
                self.launches = 0;
                self.ready_by = None;
                self.observe(News::Released, None).await;
                self.house.seams.pass("release.committed").await;
            }
            Outcome::Erased(Ok(())) => {
                self.gone().await;
                return true;
            }
            Outcome::Released(Err(failure)) | Outcome::Erased(Err(failure)) => {
                self.waiters.fail_all(&failure).await;
                self.retry = (self.retry * 2).clamp(RETRY.0, RETRY.1);
            }
        }
        false
    }

    async fn has_made(&mut self, made: Made) {
        let from = self.vm.phase;
        let fresh = self.vm.record.image_id.is_empty();
        if fresh {
            self.vm.record.image_id.clone_from(&made.image.id);
            self.vm.record.unfilled = made.image.work_seed.is_none();
        }
        let kernel_chosen = self.vm.spec.kernel_name == made.kernel.name;
        self.vm.spec.kernel_name.clone_from(&made.kernel.name);
        if self.vm.goal == Goal::Down && self.vm.phase == Phase::Stopped {
            self.vm.record.creating = None;
            self.commit(from, None).await;
        } else {
            if fresh || !kernel_chosen {
                self.commit(from, None).await;
            }
            // What was made for a VM at rest wrote down nothing of a run: the boot makes it anew.
            if self.vm.phase == Phase::Starting {
                self.made = Some(Arc::new(made));
            }
        }
        self.house.seams.pass("create.made").await;
    }

    async fn is_ready(
        &mut self,
        guest: Arc<dyn crate::ports::Guest>,
        booted: banger_wire::agent::Booted,
    ) {
        let record = &mut self.vm.record;
        record.agent_version = Some(works::printable(&booted.agent_version));
        record.kernel_version = Some(works::printable(&booted.kernel_version));
        record.boot_id = Some(works::printable(&booted.boot_id));
        record.running_since = Some(now_seconds());
        self.ready_at = Some(Instant::now());
        record.unfilled = false;
        record.main_follows = false;
        record.creating = None;
        if let Some(op) = self.waiters.first() {
            use crate::ports::Progress;
            op.stage("ready", "");
        }
        self.watch_run(Some(guest));
        self.observe(News::Ready, None).await;
        self.house.seams.pass("start.ready").await;
    }

    /// A start came to nothing. What of it can be refused leaves no trace: a
    /// new VM goes, an old one is as it was. Otherwise the run ended badly.
    async fn start_failed(&mut self, failure: Failure) {
        use banger_api::error::Kind;
        let creating = self.vm.record.creating.is_some();
        let broken = failure.code.kind() == Kind::Broken;
        let refused = self.launches == 0 && !broken;
        let unmade = creating && self.made.is_none();
        tracing::warn!(vm = %self.vm.name, error = %failure.sentence(), "a start failed");
        self.failed = Some(failure.clone());
        if matches!(self.vm.goal, Goal::Down | Goal::Gone) && self.vm.phase == Phase::Starting {
            // Overtaken already; what there is of the run is released next.
            return;
        }
        if (creating && (refused || unmade)) || self.vm.spec.auto_remove {
            self.want(Goal::Gone, Turn::Force).await;
        } else if refused {
            self.want(Goal::Down, Turn::Plain).await;
            let before = self.vm.last_exit.clone();
            let from = self.vm.phase;
            self.vm.phase = Phase::Stopping;
            self.vm.last_exit = before;
            self.commit(from, None).await;
        } else {
            self.vm.record.creating = None;
            self.observe(News::Failed, Some(failure.sentence())).await;
        }
    }

    /// A freeze or thaw failed: the VM stays what it is.
    async fn not_turned(&mut self, failure: Failure) {
        self.failed = Some(failure);
        let goal = match (self.vm.phase, self.vm.goal) {
            (Phase::Running, Goal::Paused) => Goal::Up,
            (Phase::Paused, Goal::Up) => Goal::Paused,
            // It was to be stopped and cannot be thawed: force it.
            (_, Goal::Down) => {
                self.turn = Turn::Force;
                Goal::Down
            }
            (_, goal) => goal,
        };
        self.want(goal, self.turn).await;
    }

    /// Takes news in, by the model's word.
    pub(super) async fn observe(&mut self, news: News, why: Option<String>) {
        let from = self.vm.phase;
        let (phase, goal, exit) = phase::observe(from, self.vm.goal, news);
        if let Some(well) = exit {
            self.vm.last_exit = Some(if well {
                Exit::Clean
            } else {
                Exit::Error(why.clone().unwrap_or_default())
            });
        }
        let halting = self.vm.record.halting && phase == Phase::Stopping;
        if (phase, goal) == (from, self.vm.goal)
            && exit.is_none()
            && halting == self.vm.record.halting
        {
            return;
        }
        self.vm.phase = phase;
        self.vm.goal = goal;
        self.vm.record.halting = halting;
        self.commit(from, why).await;
    }

    /// Sets the goal.
    pub(super) async fn want(&mut self, goal: Goal, turn: Turn) {
        if turn != Turn::Plain {
            self.turn = turn;
            self.retry = Duration::ZERO;
        }
        if self.vm.goal != goal {
            let from = self.vm.phase;
            let state = self.vm.state();
            self.vm.goal = goal;
            self.commit_from_state(from, state, None, None).await;
        }
    }

    /// Sets the goal in the transaction that begins an operation.
    pub(super) async fn want_with(
        &mut self,
        goal: Goal,
        turn: Turn,
        op: OpRow,
    ) -> Result<(), Failure> {
        let before = self.vm.goal;
        let state = self.vm.state();
        self.vm.goal = goal;
        let row = self.vm.row();
        let written = self
            .house
            .store
            .write(move |tx| {
                vms::update(tx, &row)?;
                operations::put(tx, &op)
            })
            .await;
        if let Err(error) = written {
            self.vm.goal = before;
            return Err(error.into());
        }
        if turn != Turn::Plain {
            self.turn = turn;
            self.retry = Duration::ZERO;
        }
        self.tell(state, None);
        Ok(())
    }

    /// Writes the row and tells who wants to know.
    pub(super) async fn commit(&mut self, from: Phase, why: Option<String>) {
        let before = phase_state(&self.vm, from);
        self.commit_from_state(from, before, why, None).await;
    }

    async fn commit_from_state(
        &mut self,
        _from: Phase,
        before: banger_api::vm::State,
        why: Option<String>,
        op: Option<OpRow>,
    ) {
        self.vm.updated_at = now();
        let row = self.vm.row();
        let written = self
            .house
            .store
            .write(move |tx| {
                vms::update(tx, &row)?;
                op.map_or(Ok(()), |op| operations::put(tx, &op))
            })
            .await;
        if let Err(error) = written {
            // The next commit writes all of it again.
            tracing::error!(vm = %self.vm.name, %error, "the row of a VM cannot be written");
        }
        self.tell(before, why);
    }

    fn tell(&mut self, before: banger_api::vm::State, why: Option<String>) {
        let state = self.vm.state();
        self.show_live();
        if state != before {
            self.house.events.publish(Event::Vm(VmEvent {
                id: self.vm.id.to_string(),
                name: self.vm.name.clone(),
                from: Some(before),
                to: Some(state),
                at: now(),
                reason: why,
            }));
        }
    }

    pub(super) fn show_live(&self) {
        self.presence.live.send_modify(|live| {
            live.phase = self.vm.phase;
            live.goal = self.vm.goal;
        });
    }

    pub(super) fn set_healthy(&self, healthy: bool) {
        let changed = self
            .presence
            .live
            .send_if_modified(|live| std::mem::replace(&mut live.healthy, healthy) != healthy);
        if changed {
            self.house.events.publish(Event::Health(HealthEvent {
                id: self.vm.id.to_string(),
                name: self.vm.name.clone(),
                healthy,
                at: now(),
            }));
        }
    }

    /// Notes what is wrong with the guest's way out, or that nothing is any
    /// more. The state stays, so the event says only why it is there.
    pub(super) async fn set_network(&mut self, trouble: Option<String>) {
        if self.vm.record.network_error == trouble {
            return;
        }
        let reason = match &trouble {
            Some(trouble) => format!("no network: {trouble}"),
            None => "the network is back".to_owned(),
        };
        tracing::warn!(vm = %self.vm.name, reason, "the way out of a guest changed");
        self.vm.record.network_error = trouble;
        self.commit(self.vm.phase, None).await;
        let state = self.vm.state();
        self.house.events.publish(Event::Vm(VmEvent {
            id: self.vm.id.to_string(),
            name: self.vm.name.clone(),
            from: Some(state),
            to: Some(state),
            at: now(),
            reason: Some(reason),
        }));
    }

    fn guest(&self) -> Option<Arc<dyn crate::ports::Guest>> {
        self.presence.live.borrow().guest.clone()
    }

    fn begin_run(&mut self, run: Run) {
        self.run_number += 1;
        let run = Arc::new(run);
        self.presence.live.send_modify(|live| {
            live.running = Some(run.running.clone());
            live.kvm = run.kvm();
            live.full = None;
            live.ended = None;
        });
        if let Some(way) = self.house.way(&self.vm.id) {
            let keeper = Keeper {
                house: self.house.clone(),
                way,
                running: run.running.clone(),
                run: self.run_number,
                queue: self.presence.queue.clone(),
            };
            self.tasks.spawn(keeper.keep());
        }
        self.run = Some(run);
    }

    fn end_run(&mut self) {
        self.run_number += 1;
        self.run = None;
        self.ready_at = None;
        self.presence.live.send_modify(|live| {
            live.running = None;
            live.guest = None;
        });
        self.set_healthy(false);
    }

    /// Finishes the operations whose moment has come.
    async fn settle_waiters(&mut self) {
        let vm = self.show();
        self.waiters
            .settle(&self.vm, self.run_number, &mut self.failed, &vm)
            .await;
    }

    pub(super) fn show(&self) -> VmRecord {
        let stats = self
            .house
            .stats()
            .get(&self.vm.id)
            .cloned()
            .unwrap_or_default();
        self.vm.show(&self.house.places, stats)
    }

    pub(super) fn wait_for(&mut self, waiter: Waiter) {
        let (op, queue): (OpHandle, _) = (waiter.op.clone(), self.presence.queue.clone());
        self.tasks.spawn(async move {
            op.cancelled().await;
            let _ = queue
                .send(Note::Cancel {
                    op: op.id().to_owned(),
                })
                .await;
        });
        self.waiters.add(waiter);
    }

    /// Nothing is left: the row goes, and with it the name.
    async fn gone(&mut self) {
        let id = self.vm.id.clone();
        let before = self.vm.state();
        if let Err(error) = self.house.store.write(move |tx| vms::delete(tx, &id)).await {
            tracing::error!(vm = %self.vm.name, %error, "the row of a removed VM stays");
        }
        self.house.seams.pass("erase.committed").await;
        self.house.vanish(&self.vm.id);
        self.presence.live.send_modify(|live| live.gone = true);
        self.house.events.publish(Event::Vm(VmEvent {
            id: self.vm.id.to_string(),
            name: self.vm.name.clone(),
            from: Some(before),
            to: None,
            at: now(),
            reason: None,
        }));
        self.waiters.gone(self.failed.take()).await;
        self.notes.close();
        while let Ok(note) = self.notes.try_recv() {
            self.refuse_gone(note);
        }
    }
}

fn phase_state(vm: &Vm, phase: Phase) -> banger_api::vm::State {
    let mut before = vm.clone();
    before.phase = phase;
    before.state()
}
