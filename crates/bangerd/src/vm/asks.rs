//! What a supervisor makes of the notes that reach it.

use std::sync::atomic::Ordering;

use banger_api::error::Code;
use banger_api::operation::Operation;
use banger_api::vm::{VmRecord, VmSetParams};
use banger_model::{Answer, Goal, News, Phase, Refusal, Turn, Verb, VmName, phase};

use super::checks;
use super::house::not_found;
use super::supervisor::{Ask, GRACE, Note, Supervisor};
use super::waiters::{Waiter, Want};
use super::works;
use crate::failure::Failure;
use crate::operation::{OpHandle, Outcome, Subject, now, now_seconds};

impl Supervisor {
    pub(super) async fn hear(&mut self, note: Note) {
        match note {
            Note::Ask(ask) => {
                let Ask {
                    verb,
                    op,
                    signal,
                    grace,
                    unless_running,
                    reply,
                } = ask;
                let answer = self.answer(verb, &op, signal, grace, unless_running).await;
                let _ = reply.send(answer);
            }
            Note::Set { params, reply } => {
                let _ = reply.send(self.set(params).await);
            }
            Note::Touch => self.touch(),
            Note::News { run, news } => self.hear_news(run, news).await,
            Note::Cancel { op } => self.cancel(&op).await,
            Note::Expired => {
                self.waiters
                    .overtaken(Goal::Gone, self.vm.phase, "its end: nobody holds it")
                    .await;
                self.want(Goal::Gone, Turn::Force).await;
            }
            Note::Minute => self.stop_if_unused().await,
        }
    }

    /// A client used the VM.
    fn touch(&mut self) {
        self.vm.record.last_touched_at = now();
        let row = self.vm.row();
        self.house
            .store
            .post(move |tx| banger_store::vms::update(tx, &row));
    }

    /// Stops a guest that nobody has used for as long as its owner allows. An
    /// open stream is a use.
    async fn stop_if_unused(&mut self) {
        let Some(limit) = self.house.settings.auto_stop_stale_after else {
            return;
        };
        if self.vm.phase != Phase::Running || self.vm.goal != Goal::Up {
            return;
        }
        if self.presence.streams() > 0 {
            return self.touch();
        }
        let touched: Option<jiff::Timestamp> = self.vm.record.last_touched_at.parse().ok();
        let unused = touched.map_or(0, |touched| now_seconds() - touched.as_second());
        if unused > i64::try_from(limit.as_secs()).unwrap_or(i64::MAX) {
            tracing::info!(vm = %self.vm.name, seconds = unused, "stopped: nobody used it");
            self.grace = GRACE;
            self.want(Goal::Down, Turn::Plain).await;
        }
    }

    async fn answer(
        &mut self,
        verb: Verb,
        op: &banger_model::OpId,
        signal: Option<String>,
        grace: std::time::Duration,
        unless_running: bool,
    ) -> Result<Operation, Failure> {
        let live = !matches!(
            (self.vm.phase, self.vm.goal),
            (Phase::Stopped, Goal::Down | Goal::Gone) | (Phase::Removing, _)
        );
        if unless_running && live {
            return Err(
                Failure::new(Code::Running, format!("{:?} runs", self.vm.name))
                    .hint(format!("banger stop {}", self.vm.name)),
            );
        }
        if verb == Verb::Pause && !self.house.engine.abilities().pause {
            let message = format!("the engine of {:?} cannot freeze it", self.vm.name);
            return Err(Failure::new(Code::Unsupported, message));
        }
        let answer = phase::admit(verb, self.vm.phase, self.vm.goal);
        let (goal, turn) = match answer {
            Answer::Refused(refusal) => return Err(self.refusal(refusal)),
            Answer::Done => {
                let op = self.prepare(verb, op)?;
                self.touch();
                return self.done_at_once(op).await;
            }
            Answer::Pursue(goal, turn) => (goal, turn),
        };
        let handle = self.prepare(verb, op)?;
        // Written with the goal.
        self.vm.record.last_touched_at = now();
        let want = match verb {
            Verb::Start if self.vm.phase == Phase::Paused => Want::Thawed,
            // The present run does, where it is not one that is ending.
            Verb::Start => Want::Up { after: 0 },
            Verb::Restart => match turn {
                Turn::Halt => Want::Up {
                    after: self.run_number,
                },
                Turn::Plain | Turn::Force => Want::Up { after: 0 },
            },
            Verb::Stop | Verb::Kill => Want::Down,
            Verb::Pause => Want::Paused,
            Verb::Resume => Want::Thawed,
            Verb::Delete => Want::Gone,
        };
        // A stop joins the one under way; the goal is the same and so is the phase.
        self.want_with(goal, turn, handle.row()).await?;
        self.house.operations.enlist(&handle);
        self.waiters
            .overtaken(goal, self.vm.phase, verb.name())
            .await;
        match verb {
            Verb::Stop | Verb::Restart if self.doing.is_none() => self.grace = grace,
            Verb::Kill => self.signal = signal.filter(|signal| signal != "KILL"),
            Verb::Start
            | Verb::Restart
            | Verb::Stop
            | Verb::Pause
            | Verb::Resume
            | Verb::Delete => {}
        }
        let operation = handle.operation();
        self.wait_for(Waiter { op: handle, want });
        Ok(operation)
    }

    fn prepare(&self, verb: Verb, op: &banger_model::OpId) -> Result<OpHandle, Failure> {
        let kind = format!("vm.{}", verb.name());
        let vm = Some((self.vm.id.to_string(), self.vm.name.clone()));
        self.house
            .operations
            .prepare(&kind, Subject { vm, image: None }, op)
    }

    async fn done_at_once(&self, op: OpHandle) -> Result<Operation, Failure> {
        self.house.operations.enlist(&op);
        let outcome = Outcome {
            vm: Some(self.show()),
            ..Outcome::default()
        };
        Ok(op.finish(Ok(outcome)).await)
    }

    fn refusal(&self, refusal: Refusal) -> Failure {
        let name = &self.vm.name;
        match refusal {
            Refusal::NotRunning => not_running(name, self.vm.state().name()),
            Refusal::MustBeStopped => Failure::new(
                Code::MustBeStopped,
                format!("{name:?} must be stopped for that"),
            )
            .hint(format!("banger stop {name}")),
            Refusal::BeingDeleted => {
                Failure::new(Code::NotFound, format!("{name:?} is being deleted"))
            }
        }
    }

    /// Turns an operation back as far as that still goes.
    async fn cancel(&mut self, op: &str) {
        let (phase, goal) = (self.vm.phase, self.vm.goal);
        let asked = self.switches.asked.load(Ordering::SeqCst);
        let Some(waiter) = self.waiters.get(op) else {
            return;
        };
        let creating = self.vm.record.creating.as_deref() == Some(op);
        match waiter.want {
            Want::Up { .. } | Want::Made if creating => {
                waiter.want = Want::Undone;
                self.waiters
                    .overtaken(Goal::Gone, phase, "the end of its create")
                    .await;
                self.want(Goal::Gone, Turn::Force).await;
            }
            Want::Up { .. } if matches!(phase, Phase::Starting | Phase::Stopped) => {
                waiter.want = Want::Undone;
                self.waiters
                    .overtaken(Goal::Down, phase, "its cancelling")
                    .await;
                self.want(Goal::Down, Turn::Plain).await;
            }
            // A guest that was not yet asked to end runs on.
            Want::Up { .. } | Want::Down
                if self.vm.record.halting && !asked && goal != Goal::Gone =>
            {
                waiter.want = Want::Undone;
                self.switches.off.cancel();
                self.waiters
                    .overtaken(Goal::Up, Phase::Running, "its cancelling")
                    .await;
                self.observe(News::Unsynced, None).await;
            }
            Want::Up { .. }
            | Want::Made
            | Want::Down
            | Want::Paused
            | Want::Thawed
            | Want::Gone
            | Want::Undone => {}
        }
    }

    async fn set(&mut self, params: VmSetParams) -> Result<VmRecord, Failure> {
        let sizes = params.vcpu_count.is_some()
            || params.memory_mib.is_some()
            || params.work_disk_size.is_some()
            || params.system_overlay_size.is_some();
        if sizes {
            phase::admit_resize(self.vm.phase, self.vm.goal)
                .map_err(|refusal| self.refusal(refusal))?;
        } else if self.vm.goal == Goal::Gone {
            return Err(self.refusal(Refusal::BeingDeleted));
        }
        let mut changed = self.vm.clone();
        if let Some(count) = params.vcpu_count {
            changed.spec.vcpu_count = checks::vcpus(count)?;
        }
        if let Some(mib) = params.memory_mib {
            changed.spec.memory_mib = checks::memory(mib, &*self.house.host)?;
        }
        if let Some(size) = &params.work_disk_size {
            changed.spec.work_disk_size_bytes =
                checks::grown("work disk", size, self.vm.spec.work_disk_size_bytes)?;
        }
        if let Some(size) = &params.system_overlay_size {
            changed.spec.system_overlay_size_bytes = checks::grown(
                "system overlay",
                size,
                self.vm.spec.system_overlay_size_bytes,
            )?;
        }
        changed.spec.nat_enabled = checks::nat(&changed.spec.network_mode, params.nat_enabled)?;
        if let Some(name) = &params.name {
            changed.name = VmName::parse(name)
                .map_err(checks::bad_name)?
                .as_str()
                .to_owned();
        }
        changed.updated_at = now();
        changed
            .record
            .last_touched_at
            .clone_from(&changed.updated_at);
        let row = changed.row();
        self.house
            .store
            .write(move |tx| banger_store::vms::update(tx, &row))
            .await
            .map_err(|error| checks::name_taken(error, "VM"))?;
        self.vm = changed;
        if params.work_disk_size.is_some() || params.system_overlay_size.is_some() {
            // Should this fail, the next start does it again and says so.
            let want = works::want(&self.house, &self.vm, None);
            for holding in [
                banger_model::Holding::Overlay,
                banger_model::Holding::WorkDisk,
            ] {
                self.house.host.take(&self.vm.id, holding, &want).await?;
            }
        }
        Ok(self.show())
    }

    /// Answers what was still in the queue of a VM that is gone.
    pub(super) fn refuse_gone(&self, note: Note) {
        let absent = || not_found(&self.vm.name);
        match note {
            Note::Ask(ask) => {
                let _ = ask.reply.send(Err(absent()));
            }
            Note::Set { reply, .. } => {
                let _ = reply.send(Err(absent()));
            }
            Note::Touch
            | Note::News { .. }
            | Note::Cancel { .. }
            | Note::Expired
            | Note::Minute => {}
        }
    }
}

pub(crate) fn not_running(name: &str, state: &str) -> Failure {
    Failure::new(Code::NotRunning, format!("{name:?} is {state}"))
        .hint(format!("banger vm start {name}"))
}
