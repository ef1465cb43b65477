//! The use cases of VMs, and one supervisor per VM that is not at rest.
//!
//! Readers ask the store and never wait for a supervisor; whoever wants
//! something of a VM puts it into its supervisor's queue.

mod asks;
mod checks;
mod create;
pub(crate) mod events;
mod exec;
mod host;
mod house;
pub(crate) mod lease;
mod ledger;
mod lend;
pub(crate) mod record;
mod stats;
mod supervisor;
#[cfg(test)]
pub(crate) mod tests;
mod waiters;
mod watch;
mod way;
mod works;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use banger_api::error::Code;
use banger_api::operation::Operation;
use banger_api::vm::{State, VmRecord, VmSetParams, VmStats};
use banger_model::{Goal, OpId, Phase, Verb};
use banger_store::vms;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::failure::Failure;

pub(crate) use events::{Event, EventFeed};
pub(crate) use exec::Exec;
pub(crate) use host::RealHost;
pub(crate) use house::{House, Parts, Settings};
pub(crate) use lend::Lent;
pub(crate) use supervisor::{GRACE, Start};
pub(crate) use waiters::{Waiter, Want};
pub(crate) use watch::{console_word, judge};
pub(crate) use works::{Run, printable};
pub(crate) use {ledger::RunFacts, record::Vm};

use asks::not_running;
use house::not_found;
use record::Vm as Loaded;
use supervisor::{Ask, Note};

/// All VMs. Clones are the same ones.
#[derive(Clone)]
pub(crate) struct Vms {
    house: Arc<House>,
}

impl Vms {
    /// The VMs of these parts. Nothing happens until
    /// [`recover`](crate::recovery::recover) or a use case is called.
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            house: House::new(parts),
        }
    }

    pub(crate) fn house(&self) -> &Arc<House> {
        &self.house
    }

    /// Boots, or thaws.
    ///
    /// # Errors
    /// `not_found ambiguous too_many`.
    pub(crate) async fn start(&self, vm: &str, op: &OpId) -> Result<Operation, Failure> {
        self.ask(vm, op, Verb::Start, |_| {}).await
    }

    /// Halts, then boots.
    ///
    /// # Errors
    /// `not_found ambiguous too_many`.
    pub(crate) async fn restart(&self, vm: &str, op: &OpId) -> Result<Operation, Failure> {
        self.ask(vm, op, Verb::Restart, |_| {}).await
    }

    /// Halts gracefully; `grace` is what guest processes get.
    ///
    /// # Errors
    /// `not_found ambiguous too_many`.
    pub(crate) async fn stop(
        &self,
        vm: &str,
        grace: Duration,
        op: &OpId,
    ) -> Result<Operation, Failure> {
        self.ask(vm, op, Verb::Stop, |ask| ask.grace = grace).await
    }

    /// Ends the engine by a signal: `TERM`, `INT` or `KILL`.
    ///
    /// # Errors
    /// `bad_request not_found ambiguous too_many`.
    pub(crate) async fn kill(
        &self,
        vm: &str,
        signal: &str,
        op: &OpId,
    ) -> Result<Operation, Failure> {
        let signal = signal.strip_prefix("SIG").unwrap_or(signal);
        if !["TERM", "INT", "KILL"].contains(&signal) {
            return Err(
                Failure::new(Code::BadRequest, format!("no signal {signal:?}"))
                    .hint("--signal TERM, INT or KILL"),
            );
        }
        self.ask(vm, op, Verb::Kill, |ask| {
            ask.signal = Some(signal.to_owned())
        })
        .await
    }

    /// Ends the engine and removes the VM; `unless_running` refuses a live one.
    ///
    /// # Errors
    /// `not_found ambiguous running too_many`.
    pub(crate) async fn delete(
        &self,
        vm: &str,
        unless_running: bool,
        op: &OpId,
    ) -> Result<Operation, Failure> {
        self.ask(vm, op, Verb::Delete, |ask| {
            ask.unless_running = unless_running
        })
        .await
    }

    /// Freezes. Has no route yet.
    #[cfg(test)]
    pub(crate) async fn pause(&self, vm: &str, op: &OpId) -> Result<Operation, Failure> {
        self.ask(vm, op, Verb::Pause, |_| {}).await
    }

    /// Thaws. Has no route yet.
    #[cfg(test)]
    pub(crate) async fn resume(&self, vm: &str, op: &OpId) -> Result<Operation, Failure> {
        self.ask(vm, op, Verb::Resume, |_| {}).await
    }

    async fn ask(
        &self,
        vm: &str,
        op: &OpId,
        verb: Verb,
        more: impl FnOnce(&mut Ask),
    ) -> Result<Operation, Failure> {
        let found = self.house.find(vm).await?;
        let (reply, answer) = oneshot::channel();
        let mut ask = Ask {
            verb,
            op: op.clone(),
            signal: None,
            grace: GRACE,
            unless_running: false,
            reply,
        };
        more(&mut ask);
        self.house.send(found, Note::Ask(ask))?;
        answer.await.unwrap_or_else(|_| Err(not_found(vm)))
    }

    /// Changes the description of a VM.
    ///
    /// # Errors
    /// `bad_size bad_name already_exists must_be_stopped unsupported not_found
    /// ambiguous no_space`.
    pub(crate) async fn set(&self, vm: &str, params: VmSetParams) -> Result<VmRecord, Failure> {
        let found = self.house.find(vm).await?;
        let (reply, answer) = oneshot::channel();
        self.house.send(found, Note::Set { params, reply })?;
        answer.await.unwrap_or_else(|_| Err(not_found(vm)))
    }

    /// One VM.
    ///
    /// # Errors
    /// `not_found ambiguous`.
    pub(crate) async fn show(&self, vm: &str) -> Result<VmRecord, Failure> {
        let found = self.house.find(vm).await?;
        Ok(self.shown(&found))
    }

    /// All VMs, or those of a state, by name.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn list(&self, state: Option<State>) -> Result<Vec<VmRecord>, Failure> {
        let all = self.all().await?;
        Ok(all
            .iter()
            .filter(|vm| state.is_none_or(|state| vm.state() == state))
            .map(|vm| self.shown(vm))
            .collect())
    }

    async fn all(&self) -> Result<Vec<Loaded>, Failure> {
        let rows = self.house.store.read(vms::all).await?;
        rows.into_iter().map(Loaded::read).collect()
    }

    fn shown(&self, vm: &Loaded) -> VmRecord {
        let stats = self.house.stats().get(&vm.id).cloned().unwrap_or_default();
        vm.show(&self.house.places, stats)
    }

    /// One VM and its use: measured now where it lives, else as it last was.
    ///
    /// # Errors
    /// `not_found ambiguous`.
    pub(crate) async fn stats(&self, vm: &str) -> Result<(VmRecord, VmStats), Failure> {
        let found = self.house.find(vm).await?;
        let running = self
            .house
            .presence(&found.id)
            .and_then(|there| there.live.borrow().running.clone());
        if let Some(usage) = running.and_then(|running| running.usage()) {
            let percent = self
                .house
                .stats()
                .get(&found.id)
                .and_then(|stats| stats.cpu_percent);
            let stats = stats::collect(&self.house, &found.id, usage, percent).await;
            self.house.stats().insert(found.id.clone(), stats);
        }
        let shown = self.shown(&found);
        let stats = shown.stats.clone();
        Ok((shown, stats))
    }

    /// The console of a VM; the file may not be there yet.
    ///
    /// # Errors
    /// `not_found ambiguous`.
    pub(crate) async fn logs_path(&self, vm: &str) -> Result<PathBuf, Failure> {
        let found = self.house.find(vm).await?;
        Ok(self.house.places.console(&found.id))
    }

    /// Name, and whether the init of the guest is up, by its agent's word.
    ///
    /// # Errors
    /// `not_found ambiguous not_running guest_unreachable`.
    pub(crate) async fn health(&self, vm: &str) -> Result<(String, bool), Failure> {
        let (found, guest, limit) = self.guest_now(vm).await?;
        match timeout(limit, guest.health()).await {
            Ok(health) => Ok((found.name, health?.healthy)),
            Err(_) => Err(exec::unreachable(&found.name, limit)),
        }
    }

    /// Name, and whether the agent answers.
    ///
    /// # Errors
    /// `not_found ambiguous not_running`.
    pub(crate) async fn ping(&self, vm: &str) -> Result<(String, bool), Failure> {
        match self.guest_now(vm).await {
            Ok((found, guest, limit)) => {
                let alive = matches!(timeout(limit, guest.ping()).await, Ok(Ok(_)));
                Ok((found.name, alive))
            }
            Err(failure) if failure.code == Code::GuestUnreachable => {
                Ok((self.house.find(vm).await?.name, false))
            }
            Err(failure) => Err(failure),
        }
    }

    /// The guest of a VM that runs now; one that starts is not waited for.
    async fn guest_now(
        &self,
        vm: &str,
    ) -> Result<(Loaded, Arc<dyn crate::ports::Guest>, Duration), Failure> {
        let found = self.house.find(vm).await?;
        let refused = || not_running(&found.name, found.state().name());
        let presence = self.house.presence(&found.id).ok_or_else(refused)?;
        let (phase, kvm) = {
            let live = presence.live.borrow();
            (live.phase, live.kvm)
        };
        if phase == Phase::Starting {
            return Err(not_running(&found.name, "starting"));
        }
        let guest = exec::entered(&presence, &found).await?;
        Ok((found, guest, works::silence(kvm)))
    }

    /// News of VMs from now on, after what is remembered since `since`
    /// (RFC 3339, UTC, whole seconds).
    pub(crate) fn events(&self, since: Option<&str>) -> EventFeed {
        self.house.events.subscribe(since)
    }

    /// Whether a VM is there that removes itself.
    pub(crate) fn live_auto_remove(&self) -> bool {
        self.house
            .presences()
            .iter()
            .any(|presence| presence.auto_remove)
    }

    /// Open streams of clients into guests.
    pub(crate) fn open_streams(&self) -> usize {
        self.house
            .presences()
            .iter()
            .map(|presence| presence.streams())
            .sum()
    }

    /// Stops every live VM gracefully, all at once, and waits for that.
    pub(crate) async fn stop_all(&self) {
        let live = self.all().await.unwrap_or_default();
        let stops = live
            .iter()
            .filter(|vm| (vm.phase, vm.goal) != (Phase::Stopped, Goal::Down))
            .map(|vm| self.stop_one(vm.id.as_str()));
        futures_util::future::join_all(stops).await;
    }

    async fn stop_one(&self, vm: &str) {
        let mut random = [0; 6];
        if getrandom::fill(&mut random).is_err() {
            return;
        }
        if let Ok(op) = self.stop(vm, GRACE, &OpId::from_random(random)).await {
            let _ = self
                .house
                .operations
                .wait(&op.id, Duration::from_secs(300))
                .await;
        }
    }

    /// Ends all supervisors and leaves the VMs as they are: before the daemon ends.
    pub(crate) async fn drain(&self) {
        self.house.drain().await;
    }
}
