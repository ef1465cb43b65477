//! The daemon's core in a fake house: a real store, and an engine, guests and
//! a host that can be told to fail, and whose power can be cut.

mod auto_remove;
mod background;
pub(crate) mod fakes;
mod power;
mod runs;
mod verbs;
mod ways;

use std::sync::Arc;
use std::time::Duration;

use banger_api::error::Code;
use banger_api::operation::Operation;
use banger_api::vm::{State, VmCreateParams, VmRecord};
use banger_model::{Holding, OpId};
use banger_store::{Store, ledger};

use super::{Parts, Settings, Vms};
use crate::failure::Failure;
use crate::operation::Operations;
use crate::recovery::recover;
use crate::seam::Seams;
use crate::seam::power::Power;
use fakes::{FakeArtifacts, FakeEngines, FakeGateways, FakeHost, World};

/// The machine: what outlives a daemon.
pub(super) struct Town {
    dir: tempfile::TempDir,
    pub(super) world: Arc<World>,
    /// What the owner of its daemons set otherwise.
    pub(super) tune: fn(&mut Settings),
}

/// A daemon on it.
pub(super) struct Home {
    pub(super) vms: Vms,
    pub(super) operations: Operations,
    pub(super) power: Arc<Power>,
    pub(super) store: Store,
}

impl Town {
    pub(super) fn new() -> Self {
        // In memory where that is possible: the tests commit thousands of times.
        let dir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        Self {
            dir,
            world: Arc::default(),
            tune: |_| {},
        }
    }

    /// A daemon that has recovered, or has lost its power while it did.
    pub(super) async fn boot(&self, power: Power) -> Home {
        let power = Arc::new(power);
        let store = Store::open(&self.dir.path().join("state.db")).unwrap();
        let operations = Operations::new(store.clone());
        let mut settings = Settings {
            state_dir: self.dir.path().to_owned(),
            vcpu: 2,
            memory_mib: 256,
            disk_bytes: 1 << 30,
            overlay_bytes: 1 << 30,
            engine: "auto".into(),
            network: "auto".into(),
            trim_systemd: true,
            stats_poll_interval: Duration::from_secs(3600),
            auto_stop_stale_after: None,
        };
        (self.tune)(&mut settings);
        let vms = Vms::new(Parts {
            store: store.clone(),
            operations: operations.clone(),
            engine: Arc::new(FakeEngines {
                world: self.world.clone(),
                power: power.clone(),
            }),
            gateways: Arc::new(FakeGateways {
                world: self.world.clone(),
                power: power.clone(),
            }),
            artifacts: Arc::new(FakeArtifacts {
                world: self.world.clone(),
            }),
            host: Arc::new(FakeHost {
                world: self.world.clone(),
                power: power.clone(),
            }),
            settings,
            seams: Seams {
                power: Some(power.clone()),
            },
        });
        tokio::select! {
            done = recover(&vms) => done.unwrap(),
            () = power.is_out() => {}
        }
        Home {
            vms,
            operations,
            power,
            store,
        }
    }

    pub(super) async fn home(&self) -> Home {
        self.boot(Power::new(None)).await
    }

    /// What is on the host that no VM accounts for, what the ledger says that
    /// is not there, and rows of things that are half done.
    pub(super) async fn leftovers(&self, home: &Home) -> Vec<String> {
        home.quiet().await;
        let mut wrong = self.world.violations();
        let rows = home.vms.list(None).await.unwrap();
        let entries = home.store.read(ledger::all).await.unwrap();
        let mut expected = Vec::new();
        for vm in &rows {
            let holdings = match vm.state {
                State::Created | State::Stopped | State::Error => &Holding::LIFE[..],
                State::Running => &Holding::ALL[..],
                State::Starting | State::Paused | State::Stopping => {
                    wrong.push(format!("{} is {}", vm.name, vm.state.name()));
                    &[]
                }
            };
            let way_out = vm.spec.network_mode == "user";
            expected.extend(
                holdings
                    .iter()
                    .filter(|holding| way_out || **holding != Holding::Gateway)
                    .map(|holding| (vm.id.clone(), *holding)),
            );
            wrong.extend(self.world.unserved(&vm.id));
        }
        expected.sort();
        let mut written: Vec<_> = entries
            .iter()
            .map(|entry| (entry.owner.to_string(), entry.holding))
            .collect();
        written.sort();
        wrong.extend(
            entries
                .iter()
                .filter(|e| !e.settled)
                .map(|e| format!("{e:?} is in doubt")),
        );
        for (what, found) in [
            ("on the host", self.world.things()),
            ("in the ledger", written),
        ] {
            for thing in found.iter().filter(|thing| !expected.contains(thing)) {
                wrong.push(format!("{:?} of {} is left {what}", thing.1, &thing.0[..8]));
            }
            let lost = |thing: &(String, Holding)| {
                let vm = rows.iter().find(|vm| vm.id == thing.0);
                thing.1 == Holding::Gateway
                    && what == "on the host"
                    && vm.is_some_and(|vm| vm.runtime.network_error.is_some())
            };
            let missing = |thing: &&(String, Holding)| !found.contains(thing) && !lost(thing);
            for thing in expected.iter().filter(missing) {
                wrong.push(format!(
                    "{:?} of {} is missing {what}",
                    thing.1,
                    &thing.0[..8]
                ));
            }
        }
        for op in home.operations.list(true).await.unwrap() {
            wrong.push(format!("{} {} still runs", op.kind, op.id));
        }
        wrong
    }
}

impl Home {
    /// Ends the daemon as a crash does.
    pub(super) async fn crash(self) {
        self.vms.drain().await;
    }

    pub(super) async fn create(&self, name: &str) -> VmRecord {
        let op = self.vms.create(params(name), &op()).await.unwrap();
        self.succeeded(op).await.vm.unwrap()
    }

    pub(super) async fn created(&self, name: &str) -> VmRecord {
        let params = VmCreateParams {
            no_start: true,
            ..params(name)
        };
        let op = self.vms.create(params, &op()).await.unwrap();
        self.succeeded(op).await.vm.unwrap()
    }

    pub(super) async fn done(&self, op: Operation) -> Operation {
        let op = self
            .operations
            .wait(&op.id, Duration::from_secs(600))
            .await
            .unwrap();
        assert!(op.done, "{op:?}");
        op
    }

    pub(super) async fn succeeded(&self, op: Operation) -> Operation {
        let op = self.done(op).await;
        assert!(op.success, "{op:?}");
        op
    }

    pub(super) async fn failed(&self, op: Operation, code: Code) -> Operation {
        let op = self.done(op).await;
        assert_eq!(op.error_code, Some(code), "{op:?}");
        assert!(!op.success);
        op
    }

    pub(super) async fn state(&self, vm: &str) -> Option<State> {
        match self.vms.show(vm).await {
            Ok(vm) => Some(vm.state),
            Err(Failure {
                code: Code::NotFound,
                ..
            }) => None,
            Err(other) => panic!("{other:?}"),
        }
    }

    /// Waits until a VM has this state; `None` is gone.
    pub(super) async fn until(&self, vm: &str, state: Option<State>) {
        let mut last = None;
        for _ in 0..5000 {
            last = Some(self.state(vm).await);
            if last == Some(state) {
                return;
            }
            breath().await;
        }
        panic!("{vm} is {last:?} and not {state:?}");
    }

    /// Waits until nothing is under way.
    pub(super) async fn quiet(&self) {
        for _ in 0..5000 {
            let rest = |state| {
                matches!(
                    state,
                    State::Created | State::Stopped | State::Error | State::Running
                )
            };
            let all = self.vms.list(None).await.unwrap();
            if !self.operations.any_running() && all.iter().all(|vm| rest(vm.state)) {
                return;
            }
            breath().await;
        }
    }
}

/// A little real time, whatever the clock of the test does.
pub(super) async fn breath() {
    tokio::task::spawn_blocking(|| {
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(Duration::from_millis(1));
    })
    .await
    .unwrap();
}

pub(super) fn op() -> OpId {
    let mut random = [0; 6];
    getrandom::fill(&mut random).unwrap();
    OpId::from_random(random)
}

pub(super) fn params(name: &str) -> VmCreateParams {
    VmCreateParams {
        name: Some(name.into()),
        ..VmCreateParams::default()
    }
}

/// A clock that stands still until it is moved by hand: a paused clock of
/// tokio alone runs ahead whenever a test waits for the store.
pub(super) struct Clock {
    _hold: std::sync::mpsc::Sender<()>,
}

impl Clock {
    pub(super) fn stop() -> Self {
        let (hold, held) = std::sync::mpsc::channel();
        tokio::task::spawn_blocking(move || held.recv());
        tokio::time::pause();
        Self { _hold: hold }
    }

    pub(super) async fn forward(&self, by: Duration) {
        // What has been set going sets its timers first.
        for _ in 0..20 {
            breath().await;
        }
        tokio::time::advance(by).await;
        for _ in 0..20 {
            breath().await;
        }
    }
}
