//! Keeps the way out of one run's guest: a gateway that died is replaced on
//! the same line, which the daemon holds a copy of, so that the guest's next
//! connection works.
//!
//! ```text
//! launched, or found again ─► told of engine and resolvers ─► watched ─┐
//!                    ▲                                            dies │
//!                    └── replaced at once; with pauses when it goes on ┘
//! ```
//!
//! The ledger's row needs no new intent for a replacement: it says that this
//! VM holds a gateway, and whichever process that is is swept by the VM's id.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banger_model::{Holding, VmId};
use banger_store::ledger;
use banger_wire::gateway::Counters;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::house::House;
use super::supervisor::Note;
use super::watch::RunNews;
use crate::failure::Failure;
use crate::ports::{Gateway, Running};

/// So many deaths within [`WITHIN`] are not bad luck.
const DEATHS: usize = 5;
/// A gateway that lives this long is well.
const WITHIN: Duration = Duration::from_secs(10);
/// First and longest pause between two tries with a gateway that keeps dying.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// The way out of one run's guest.
pub(crate) struct Way {
    vm: VmId,
    run_dir: PathBuf,
    /// The gateway's end of the line; `None` where nobody has it any more, or
    /// it is not asked for yet.
    line: Mutex<Option<Arc<OwnedFd>>>,
    gateway: Mutex<Option<Arc<dyn Gateway>>>,
    /// False once nobody may start a gateway any more; locked during a start.
    open: tokio::sync::Mutex<bool>,
    closed: CancellationToken,
    /// Of a gateway that an earlier daemon started.
    found: Option<String>,
}

impl Way {
    fn new(house: &House, vm: &VmId, line: Option<Arc<OwnedFd>>, found: Option<String>) -> Self {
        Self {
            vm: vm.clone(),
            run_dir: house.places.run(vm),
            line: Mutex::new(line),
            gateway: Mutex::default(),
            open: tokio::sync::Mutex::new(true),
            closed: CancellationToken::new(),
            found,
        }
    }

    /// What went through the present gateway; `None` where there is none, or
    /// it does not say.
    pub(super) async fn counters(&self) -> Option<Counters> {
        let gateway = self.present()?;
        gateway.counters().await.ok()
    }

    fn present(&self) -> Option<Arc<dyn Gateway>> {
        locked(&self.gateway).clone()
    }

    /// Starts a gateway on the line; `None` where nobody wants one any more.
    async fn start(
        &self,
        house: &House,
        line: Arc<OwnedFd>,
    ) -> Result<Option<Arc<dyn Gateway>>, Failure> {
        let open = self.open.lock().await;
        if !*open {
            return Ok(None);
        }
        let gateway = house.gateways.launch(&self.vm, &self.run_dir, line).await?;
        *locked(&self.gateway) = Some(gateway.clone());
        Ok(Some(gateway))
    }

    /// Returns when no gateway is being started, and none will be.
    async fn close(&self) {
        self.closed.cancel();
        *self.open.lock().await = false;
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl House {
    /// The way out of a VM's run, where it has one.
    pub(crate) fn way(&self, vm: &VmId) -> Option<Arc<Way>> {
        locked(&self.ways).get(vm).cloned()
    }

    /// Launches the intended gateway on a line and settles it.
    pub(super) async fn take_gateway(&self, vm: &VmId, line: Arc<OwnedFd>) -> Result<(), Failure> {
        let way = Arc::new(Way::new(self, vm, Some(line.clone()), None));
        locked(&self.ways).insert(vm.clone(), way.clone());
        let holding = Holding::Gateway;
        self.seams.pass_holding("start", holding, "taking").await;
        let facts = way.start(self, line).await?.map(|gateway| gateway.facts());
        self.seams.pass_holding("start", holding, "taken").await;
        self.settle(vm, holding, facts).await
    }

    /// The way out of a run that an earlier daemon began; its gateway is looked
    /// for by who keeps it.
    pub(crate) fn find_way(&self, vm: &VmId, facts: Option<String>) {
        let way = Way::new(self, vm, None, facts);
        locked(&self.ways).insert(vm.clone(), Arc::new(way));
    }

    /// Ends the gateway of a VM, and whoever would start another.
    pub(super) async fn end_gateway(&self, vm: &VmId, facts: Option<&str>) -> Result<(), Failure> {
        let way = self.way(vm);
        if let Some(way) = &way {
            way.close().await;
        }
        let now = way.and_then(|way| way.present()).map(|now| now.facts());
        self.gateways.sweep(vm, now.as_deref().or(facts)).await?;
        locked(&self.ways).remove(vm);
        Ok(())
    }
}

/// Keeps a gateway running for as long as an engine does.
pub(super) struct Keeper {
    pub(super) house: Arc<House>,
    pub(super) way: Arc<Way>,
    pub(super) running: Arc<dyn Running>,
    /// Number of the run, for its news.
    pub(super) run: u64,
    pub(super) queue: mpsc::Sender<Note>,
}

impl Keeper {
    /// Until the engine ends, the way is closed, or the line is lost.
    pub(super) async fn keep(self) {
        let mut deaths = Deaths::default();
        let Some(mut gateway) = self.begin().await else {
            return;
        };
        while let Some(why) = self.attend(&*gateway, &mut deaths).await {
            tracing::warn!(vm = %self.way.vm, why, "a gateway died");
            self.house.seams.pass("gateway.lost").await;
            match self.replace(why, &mut deaths).await {
                Some(new) => gateway = new,
                None => return,
            }
        }
    }

    /// The gateway that was just launched, or the one of an earlier daemon.
    async fn begin(&self) -> Option<Arc<dyn Gateway>> {
        if let Some(gateway) = self.way.present() {
            return Some(gateway);
        }
        let way = &self.way;
        let found = way.found.as_deref();
        let attached = self.house.gateways.attach(&way.vm, &way.run_dir, found);
        let gateway = match attached.await {
            Ok(Some(gateway)) => gateway,
            Ok(None) => return self.lost("it ended while no daemon was there").await,
            Err(failure) => return self.lost(&failure.sentence()).await,
        };
        match gateway.line().await {
            Ok(line) => *locked(&way.line) = Some(line),
            // It may serve all the same; only it cannot be replaced.
            Err(failure) => {
                tracing::warn!(vm = %way.vm, error = %failure.sentence(), "no line of a gateway");
            }
        }
        *locked(&way.gateway) = Some(gateway.clone());
        if found != Some(gateway.facts().as_str()) {
            self.write(&*gateway).await;
        }
        self.tell(None).await;
        Some(gateway)
    }

    /// Watches a gateway until it dies: how, in words. `None` where it need
    /// not live any more.
    async fn attend(&self, gateway: &dyn Gateway, deaths: &mut Deaths) -> Option<String> {
        // One that is not told of an engine ends, and the next one is told.
        if let Err(failure) = gateway.watch_engine(&*self.running).await {
            tracing::warn!(vm = %self.way.vm, error = %failure.sentence(), "a gateway has no engine");
        }
        let mut resolvers = self.house.gateways.resolvers();
        resolvers.mark_changed();
        loop {
            tokio::select! {
                biased;
                () = self.way.closed.cancelled() => return None,
                _ = self.running.ended() => return None,
                why = gateway.ended() => {
                    // A gateway ends with its engine, whose end may take
                    // longer to be told.
                    return self.running.usage().map(|_| why);
                }
                Ok(()) = resolvers.changed() => self.resolve(gateway, &mut resolvers).await,
                () = deaths.are_over() => self.tell(None).await,
            }
        }
    }

    async fn resolve(
        &self,
        gateway: &dyn Gateway,
        resolvers: &mut watch::Receiver<Vec<std::net::IpAddr>>,
    ) {
        let addresses = resolvers.borrow_and_update().clone();
        if let Err(failure) = gateway.set_resolvers(addresses).await {
            tracing::warn!(vm = %self.way.vm, error = %failure.sentence(),
                "a gateway has old resolvers");
        }
    }

    /// Another gateway on the same line; `None` where there can be none, or
    /// none is wanted.
    async fn replace(&self, mut why: String, deaths: &mut Deaths) -> Option<Arc<dyn Gateway>> {
        let Some(line) = locked(&self.way.line).clone() else {
            return self.lost(&why).await;
        };
        loop {
            if let Some(pause) = deaths.another() {
                let tries = format!("the gateway keeps dying ({why}), next try in {pause:?}");
                self.tell(Some(tries)).await;
                tokio::select! {
                    biased;
                    () = self.way.closed.cancelled() => return None,
                    _ = self.running.ended() => return None,
                    () = sleep(pause) => {}
                }
            }
            match self.way.start(&self.house, line.clone()).await {
                Ok(Some(gateway)) => {
                    self.house.seams.pass("gateway.replaced").await;
                    self.write(&*gateway).await;
                    self.house.seams.pass("gateway.written").await;
                    return Some(gateway);
                }
                Ok(None) => return None,
                Err(failure) => why = failure.sentence(),
            }
        }
    }

    /// Nobody has the gateway's end of the line any more.
    async fn lost<T>(&self, why: &str) -> Option<T> {
        // Of an engine that is gone as well its end will say enough.
        self.running.usage()?;
        let note = format!("the gateway is lost ({why}); the network is back after a restart");
        self.tell(Some(note)).await;
        None
    }

    /// Writes down what finds the present gateway. A row that was struck since
    /// stays struck.
    async fn write(&self, gateway: &dyn Gateway) {
        let (vm, facts) = (self.way.vm.clone(), gateway.facts());
        let written = self
            .house
            .store
            .write(move |tx| ledger::settle(tx, &vm, Holding::Gateway, Some(&facts)))
            .await;
        if let Err(error) = written {
            // Its name finds it as well.
            tracing::warn!(vm = %self.way.vm, %error, "the facts of a gateway are not written");
        }
    }

    async fn tell(&self, trouble: Option<String>) {
        let news = RunNews::Network(trouble);
        // A supervisor that left has no use for it.
        let _ = self
            .queue
            .send(Note::News {
                run: self.run,
                news,
            })
            .await;
    }
}

/// Counts deaths, and says when to be patient.
#[derive(Default)]
struct Deaths {
    recent: VecDeque<Instant>,
    pause: Option<Duration>,
    /// When all counts as well again, after it was not.
    well_at: Option<Instant>,
}

impl Deaths {
    /// One more: how long to wait before the next try, where that is due.
    fn another(&mut self) -> Option<Duration> {
        let now = Instant::now();
        self.recent.push_back(now);
        while self.recent.front().is_some_and(|at| now - *at > WITHIN) {
            self.recent.pop_front();
        }
        // After a pause one death is enough for the next.
        if self.recent.len() < DEATHS && self.well_at.is_none() {
            return None;
        }
        self.recent.clear();
        let pause = self
            .pause
            .map_or(PAUSE.0, |before| (before * 2).min(PAUSE.1));
        self.pause = Some(pause);
        self.well_at = Some(now + pause + WITHIN);
        Some(pause)
    }

    /// Returns when it has been quiet for long enough after it was not.
    async fn are_over(&mut self) {
        match self.well_at {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn single_deaths_cost_no_time_and_a_series_costs_more_and_more() {
        let mut deaths = Deaths::default();
        for _ in 0..20 {
            assert_eq!(deaths.another(), None);
            sleep(Duration::from_secs(3)).await;
        }
        sleep(WITHIN).await;
        let pauses: Vec<_> = (0..DEATHS).filter_map(|_| deaths.another()).collect();
        assert_eq!(pauses, [PAUSE.0], "the fifth of five");
        let mut pause = PAUSE.0;
        for _ in 0..8 {
            sleep(pause).await;
            let next = deaths.another().expect("it died right after the pause");
            assert_eq!(next, (pause * 2).min(PAUSE.1));
            pause = next;
        }
        assert_eq!(pause, PAUSE.1);
        deaths.are_over().await;
        assert_eq!(deaths.another(), None, "it was well in between");
    }
}
