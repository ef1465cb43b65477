//! What every VM's supervisor shares: the store, the ports, the registry of
//! supervisors, the news.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banger_api::error::Code;
use banger_api::vm::VmStats;
use banger_model::{Goal, Phase, VmId};
use banger_store::{Store, vms};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::events::Events;
use super::lease::Lease;
use super::record::{Places, Vm};
use super::supervisor::{Note, Start, Supervisor};
use super::way::Way;
use crate::failure::Failure;
use crate::operation::Operations;
use crate::ports::{Artifacts, Engine, Gateways, Guest, Host, Running};
use crate::seam::Seams;

/// Notes that may wait for one supervisor: verbs of clients, and few others.
const QUEUE: usize = 64;

/// Of the configuration, what VMs need.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Directory of the state.
    pub(crate) state_dir: std::path::PathBuf,
    /// VCPUs of a VM that names none.
    pub(crate) vcpu: u32,
    /// Memory of a VM that names none, MiB.
    pub(crate) memory_mib: u64,
    /// Work disk of a VM that names none, bytes.
    pub(crate) disk_bytes: u64,
    /// System overlay of a VM that names none, bytes.
    pub(crate) overlay_bytes: u64,
    /// Engine of a VM that names none.
    pub(crate) engine: String,
    /// Network of a VM that names none.
    pub(crate) network: String,
    /// Mask units that have no function in a VM.
    pub(crate) trim_systemd: bool,
    /// How often the use of a running VM is measured.
    pub(crate) stats_poll_interval: Duration,
    /// VMs unused for this long are stopped.
    pub(crate) auto_stop_stale_after: Option<Duration>,
}

/// The parts a daemon is built from.
pub(crate) struct Parts {
    pub(crate) store: Store,
    pub(crate) operations: Operations,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) gateways: Arc<dyn Gateways>,
    pub(crate) artifacts: Arc<dyn Artifacts>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) settings: Settings,
    pub(crate) seams: Seams,
}

pub(crate) struct House {
    pub(crate) store: Store,
    pub(crate) operations: Operations,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) gateways: Arc<dyn Gateways>,
    pub(crate) artifacts: Arc<dyn Artifacts>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) settings: Settings,
    pub(crate) seams: Seams,
    pub(crate) places: Places,
    pub(crate) events: Events,
    present: Mutex<HashMap<VmId, Arc<Presence>>>,
    /// Ways out of the guests that run now.
    pub(super) ways: Mutex<HashMap<VmId, Arc<Way>>>,
    last_stats: Mutex<HashMap<VmId, VmStats>>,
    tasks: Mutex<JoinSet<()>>,
}

/// A VM that has a supervisor now.
pub(crate) struct Presence {
    pub(crate) queue: mpsc::Sender<Note>,
    pub(crate) live: watch::Sender<Live>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) auto_remove: bool,
    streams: AtomicUsize,
}

/// What others may see of a supervised VM without asking the store.
#[derive(Clone)]
pub(crate) struct Live {
    pub(crate) phase: Phase,
    pub(crate) goal: Goal,
    pub(crate) guest: Option<Arc<dyn Guest>>,
    pub(crate) running: Option<Arc<dyn Running>>,
    /// Accelerated by the processor: agents answer faster.
    pub(crate) kvm: bool,
    pub(crate) healthy: bool,
    /// The disk, by its serial, for a write to which the host had no room in this run.
    pub(crate) full: Option<String>,
    /// Why the last run ended, where it did so by itself.
    pub(crate) ended: Option<String>,
    /// The row is gone.
    pub(crate) gone: bool,
}

impl Presence {
    /// One more open stream of a client.
    pub(crate) fn open(self: &Arc<Self>) -> OpenStream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        OpenStream(self.clone())
    }

    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }
}

/// An open stream of a client into a guest.
pub(crate) struct OpenStream(Arc<Presence>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl House {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            places: Places::below(&parts.settings.state_dir),
            store: parts.store,
            operations: parts.operations,
            engine: parts.engine,
            gateways: parts.gateways,
            artifacts: parts.artifacts,
            host: parts.host,
            settings: parts.settings,
            seams: parts.seams,
            events: Events::default(),
            present: Mutex::default(),
            ways: Mutex::default(),
            last_stats: Mutex::default(),
            tasks: Mutex::default(),
        })
    }

    /// The VM that a reference means.
    pub(crate) async fn find(&self, reference: &str) -> Result<Vm, Failure> {
        let wanted = reference.to_owned();
        let mut rows = self.store.read(move |db| vms::find(db, &wanted)).await?;
        if rows.len() > 1 {
            let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
            let message = format!("{reference:?} may be {}", names.join(", "));
            return Err(Failure::new(Code::Ambiguous, message));
        }
        match rows.pop() {
            Some(row) => Vm::read(row),
            None => Err(not_found(reference)),
        }
    }

    /// The supervisor's presence of a VM that has one.
    pub(crate) fn presence(&self, vm: &VmId) -> Option<Arc<Presence>> {
        self.present().get(vm).cloned()
    }

    pub(crate) fn presences(&self) -> Vec<Arc<Presence>> {
        self.present().values().cloned().collect()
    }

    /// Starts the supervisor of a VM that has none.
    pub(crate) fn supervise(self: &Arc<Self>, vm: Vm, start: Start) -> Arc<Presence> {
        self.supervise_locked(&mut self.present(), vm, start)
    }

    fn supervise_locked(
        self: &Arc<Self>,
        present: &mut HashMap<VmId, Arc<Presence>>,
        vm: Vm,
        start: Start,
    ) -> Arc<Presence> {
        let (queue, notes) = mpsc::channel(QUEUE);
        let live = Live {
            phase: vm.phase,
            goal: vm.goal,
            guest: None,
            running: None,
            kvm: false,
            healthy: false,
            full: None,
            ended: None,
            gone: false,
        };
        let presence = Arc::new(Presence {
            queue,
            live: watch::Sender::new(live),
            lease: Arc::default(),
            auto_remove: vm.spec.auto_remove,
            streams: AtomicUsize::new(0),
        });
        let id = vm.id.clone();
        present.insert(id, presence.clone());
        let supervisor = Supervisor::new(self.clone(), presence.clone(), vm, notes, start);
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(supervisor.run());
        presence
    }

    /// Hands a note to the supervisor of a VM, which is started where there is
    /// none. A supervisor that is about to leave either takes the note or has
    /// left: both happen under the lock of the registry.
    pub(crate) fn send(self: &Arc<Self>, vm: Vm, note: Note) -> Result<(), Failure> {
        let name = vm.name.clone();
        let mut present = self.present();
        let presence = match present.get(&vm.id) {
            Some(presence) => presence.clone(),
            None => self.supervise_locked(&mut present, vm, Start::default()),
        };
        presence.queue.try_send(note).map_err(|_| {
            Failure::new(
                Code::TooMany,
                format!("more than {QUEUE} requests wait for {name:?}"),
            )
        })
    }

    /// Takes a supervisor off the registry, unless notes wait for it.
    pub(super) fn leave(&self, vm: &VmId, notes: &mpsc::Receiver<Note>) -> bool {
        let mut present = self.present();
        if notes.is_empty() {
            present.remove(vm);
        }
        notes.is_empty()
    }

    /// Takes a supervisor off the registry whose row is gone.
    pub(super) fn vanish(&self, vm: &VmId) {
        self.present().remove(vm);
        self.stats().remove(vm);
    }

    /// Does something to its end, also when who asked for it goes away; `None`
    /// when the daemon ends first.
    pub(crate) async fn whole<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (answer, done) = oneshot::channel();
        {
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            while tasks.try_join_next().is_some() {}
            tasks.spawn(async move {
                let _ = answer.send(work.await);
            });
        }
        done.await.ok()
    }

    /// Ends every supervisor and touches no VM.
    pub(crate) async fn drain(&self) {
        let mut tasks =
            std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }

    pub(crate) fn stats(&self) -> MutexGuard<'_, HashMap<VmId, VmStats>> {
        self.last_stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn present(&self) -> MutexGuard<'_, HashMap<VmId, Arc<Presence>>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn not_found(reference: &str) -> Failure {
    Failure::new(Code::NotFound, format!("no VM {reference:?}")).hint("banger list")
}

/// The state of a live VM, for an error.
pub(crate) fn state_name(phase: Phase, goal: Goal) -> &'static str {
    banger_model::phase::state(phase, goal, Some(&banger_model::Exit::Clean)).name()
}
