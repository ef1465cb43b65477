//! The engines of this host behind one door, and the children among them,
//! which somebody must reap although they outlive us.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio_util::task::TaskTracker;

use crate::choose::{Choice, ChooseError, Settings, Wish};
use crate::kvm::{self, NoKvm};
use crate::live::Live;
use crate::machine::{Abilities, Acceleration, Facts, Machine};
use crate::process::{self, Process};
use crate::qemu::probe::Probe;
use crate::qemu::qmp::Qmp;
use crate::sweep::{self, SweepError};
use crate::{qemu, sockets};

/// Why nothing was launched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No engine.
    #[error(transparent)]
    Choose(#[from] ChooseError),
    /// An engine of this VM lives already.
    #[error("an engine of this VM still lives")]
    Lives,
    /// Before there was a child.
    #[error("cannot {what}")]
    Prepare {
        /// The verb.
        what: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The child ended before it was the engine.
    #[error("the engine's process cannot {what}")]
    Child {
        /// The verb.
        what: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The runtime ends.
    #[error("the daemon ends")]
    Ending,
}

/// The engines that this build drives.
#[derive(Debug, Clone)]
pub enum AnyEngine {
    /// QEMU.
    Qemu(Arc<Host>),
}

/// What is known about this host, and our children on it.
#[derive(Debug)]
pub struct Host {
    settings: Settings,
    probe: Probe,
    kvm: Mutex<Option<Result<(), NoKvm>>>,
    #[cfg(target_arch = "x86_64")]
    tsc: crate::tsc::TscRate,
    children: Mutex<HashMap<Key, Child>>,
    tasks: TaskTracker,
}

/// Process id and start time.
type Key = (u32, u64);

#[derive(Debug)]
struct Child {
    process: Arc<Process>,
    run_dir: std::path::PathBuf,
    /// Somebody asked for it; its end need not be kept for a first one.
    attached: bool,
}

impl AnyEngine {
    /// Looks at the host; what takes long (asking programs, measuring the
    /// counter) goes on in threads, and a launch waits for it if it must.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let host = Arc::new(Host {
            probe: Probe::new(&settings.cache_dir),
            kvm: Mutex::new(None),
            #[cfg(target_arch = "x86_64")]
            tsc: crate::tsc::TscRate::find(&settings.cache_dir),
            children: Mutex::new(HashMap::new()),
            tasks: TaskTracker::new(),
            settings,
        });
        let early = Arc::clone(&host);
        let look = move || drop(early.choose(early.settings.wish));
        if let Err(error) = std::thread::Builder::new()
            .name("engines".into())
            .spawn(look)
        {
            tracing::debug!(%error, "engines are looked for later");
        }
        Self::Qemu(host)
    }

    /// The engine that a machine would get now. Blocks for as long as a newly
    /// installed program takes to say its version; otherwise asks nobody.
    ///
    /// # Errors
    /// [`ChooseError`].
    pub fn choose(&self, wish: Wish) -> Result<Choice, ChooseError> {
        let Self::Qemu(host) = self;
        host.choose(wish)
    }

    /// Starts the engine that is wished for, for a machine. Returns once the
    /// process is the engine; the guest may not have begun. A launch that is
    /// given up half way goes on, and is ended by [`AnyEngine::sweep`].
    ///
    /// # Errors
    /// [`LaunchError`]; nothing lives then.
    pub async fn launch(&self, machine: &Machine, wish: Wish) -> Result<Facts, LaunchError> {
        let Self::Qemu(host) = self;
        let chosen = Arc::clone(host);
        let choice = blocking(move || chosen.choose(wish)).await??;
        let tsc_khz = host.tsc_khz(choice.acceleration).await;
        let (machine, host) = (machine.clone(), Arc::clone(host));
        blocking(move || host.launch(&machine, &choice, tsc_khz)).await?
    }

    /// Takes over an engine that was launched before, by whomever; `None` when
    /// it is gone. A child of ours that ended before anybody attached is given
    /// once all the same, so that its reason is heard.
    ///
    /// # Errors
    /// Of the system; the engine may live.
    pub async fn attach(&self, facts: &Facts) -> io::Result<Option<Arc<Live>>> {
        let Self::Qemu(host) = self;
        let Some(process) = host.process(facts)? else {
            return Ok(None);
        };
        let mut control = None;
        if process.known_exit().is_none() {
            match sockets::connect(&facts.run_dir, qemu::CONTROL).await {
                Ok(socket) => {
                    let (qmp, driver) = Qmp::over(socket);
                    host.tasks.spawn(driver);
                    control = Some(qmp);
                }
                // It is ending: its end tells, without its last words.
                Err(error) => tracing::debug!(vm = facts.id, %error, "no control of an engine"),
            }
        }
        Ok(Some(Arc::new(Live::new(facts.clone(), process, control))))
    }

    /// Ends whatever was launched for a VM, known or not, and returns when it
    /// is gone. Nothing there counts as done. The cgroup itself stays.
    ///
    /// # Errors
    /// [`SweepError`]; something may live then.
    pub async fn sweep(
        &self,
        id: &str,
        run_dir: &Path,
        cgroup: Option<&Path>,
    ) -> Result<(), SweepError> {
        let Self::Qemu(host) = self;
        sweep::sweep(id, run_dir, cgroup).await?;
        // Nobody will attach to these any more. Their reapers hold them.
        host.children
            .lock()
            .expect(UNPOISONED)
            .retain(|_, child| child.run_dir != run_dir);
        Ok(())
    }

    /// What the engines of this build can do.
    #[must_use]
    pub fn abilities(&self) -> Abilities {
        let Self::Qemu(_) = self;
        Abilities {
            pause: true,
            resize_disk: true,
        }
    }
}

const UNPOISONED: &str = "nothing panics while it holds this lock";

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, LaunchError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| LaunchError::Ending)
}

impl Host {
    fn choose(&self, wish: Wish) -> Result<Choice, ChooseError> {
        if wish == Wish::Firecracker {
            return Err(ChooseError::Unsupported("firecracker"));
        }
        let path = std::env::var_os("PATH");
        let found = self
            .probe
            .find(self.settings.qemu_bin.as_deref(), path.as_deref())?;
        let no_kvm = self.kvm().err();
        let acceleration = if no_kvm.is_none() {
            Acceleration::Kvm
        } else {
            Acceleration::Tcg
        };
        let reason = match (&no_kvm, wish) {
            (Some(no_kvm), _) => format!("no usable KVM ({no_kvm})"),
            (None, Wish::Qemu) => "asked for".to_owned(),
            (None, _) => "KVM is usable, and firecracker is not in this build".to_owned(),
        };
        Ok(Choice {
            engine: "qemu",
            version: found.version,
            program: found.program,
            acceleration,
            no_kvm,
            reason,
        })
    }

    /// A yes is kept; a no is asked again, since a group or a module may come.
    fn kvm(&self) -> Result<(), NoKvm> {
        let mut known = self.kvm.lock().expect(UNPOISONED);
        match &*known {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) | None => known.insert(kvm::usable(self.settings.kvm)).clone(),
        }
    }

    async fn tsc_khz(&self, acceleration: Acceleration) -> Option<u64> {
        #[cfg(target_arch = "x86_64")]
        if acceleration == Acceleration::Tcg {
            return self.tsc.khz().await;
        }
        let _ = acceleration;
        None
    }

    /// Runs on a blocking thread to its end, whoever waits for it.
    fn launch(
        self: &Arc<Self>,
        machine: &Machine,
        choice: &Choice,
        tsc_khz: Option<u64>,
    ) -> Result<Facts, LaunchError> {
        let started = qemu::start(machine, choice, tsc_khz)?;
        let failed = |what| move |cause| LaunchError::Prepare { what, cause };
        let child = started
            .pidfd
            .try_clone()
            .map_err(failed("hold the engine"))?;
        let known = Process::child(started.pid, started.pidfd)
            .map(|process| (process, process::executable(started.pid)));
        let (process, executable) = match known {
            Ok(known) => known,
            Err(cause) => {
                // Nobody would ever know it.
                let _ = process::signal_through(&child, rustix::process::Signal::KILL);
                return Err(failed("watch the engine")(cause));
            }
        };
        let process = Arc::new(process);
        let key = (process.pid(), process.start_ticks());
        let entry = Child {
            process: Arc::clone(&process),
            run_dir: machine.run_dir.clone(),
            attached: false,
        };
        self.children.lock().expect(UNPOISONED).insert(key, entry);
        let host = Arc::clone(self);
        let reaped = Arc::clone(&process);
        self.tasks.spawn(async move {
            reaped.exited().await;
            let mut children = host.children.lock().expect(UNPOISONED);
            if children.get(&key).is_some_and(|child| child.attached) {
                children.remove(&key);
            }
        });
        Ok(Facts {
            engine: choice.engine.to_owned(),
            version: choice.version.clone(),
            acceleration: choice.acceleration,
            no_kvm: choice.no_kvm.as_ref().map(ToString::to_string),
            pid: key.0,
            start_ticks: key.1,
            host_boot_id: process::host_boot_id().to_owned(),
            // Of one that ended already nothing can be read.
            executable: executable.unwrap_or_else(|_| choice.program.clone()),
            id: machine.id.clone(),
            run_dir: machine.run_dir.clone(),
            cgroup: machine.cgroup.clone(),
            drives: machine
                .drives
                .iter()
                .map(|drive| drive.serial.clone())
                .collect(),
        })
    }

    fn process(&self, facts: &Facts) -> io::Result<Option<Arc<Process>>> {
        if facts.host_boot_id != process::host_boot_id() {
            return Ok(None);
        }
        let key = (facts.pid, facts.start_ticks);
        let mut children = self.children.lock().expect(UNPOISONED);
        if let Some(child) = children.get_mut(&key) {
            child.attached = true;
            let process = Arc::clone(&child.process);
            if process.known_exit().is_some() {
                children.remove(&key);
            }
            return Ok(Some(process));
        }
        drop(children);
        // The program is what it was at launch, or by now what a wrapper, which
        // it was then, has become.
        let is_it = |identity: &process::Identity| {
            let same = identity.executable.as_deref() == Some(&facts.executable);
            (same || qemu::is_qemu(identity)) && qemu::is_engine_of(identity, &facts.id)
        };
        Ok(Process::adopt(facts.pid, facts.start_ticks, is_it)?.map(Arc::new))
    }
}
