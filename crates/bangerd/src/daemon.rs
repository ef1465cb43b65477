//! The daemon as a whole: builds every room once, recovers, serves, and ends
//! without ending the VMs.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use banger_api::error::Code;
use banger_engine::Wish;
use banger_engine::kvm::KvmSetting;
use banger_model::OpId;
use banger_store::{OpenError, Store};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::arguments::Arguments;
use crate::artifact::Shelf;
use crate::config::{Config, Defaults};
use crate::disk::Disk;
use crate::engine::HostEngine;
use crate::failure::Failure;
use crate::http;
use crate::http::socket::Socket;
use crate::network::{self, HostGateways};
use crate::operation::{OpHandle, Operations, Outcome, Subject};
use crate::paths::{PathError, Paths};
use crate::ports::{Artifacts, Engine, Gateways, Host};
use crate::seam::Seams;
use crate::startup::{Claim, Starter, claim};
use crate::vm::{self, Parts, RealHost, Vms};

/// Threads that run tasks: the work is waiting, not computing.
const WORKERS: usize = 2;
/// Threads for work that blocks, such as building an image.
const BLOCKING: usize = 32;

/// How long work under way may take to unwind when the daemon ends.
const LAST_WORK: Duration = Duration::from_secs(10);

/// What every request may use.
pub(crate) struct App {
    /// Where things are.
    pub(crate) paths: Paths,
    /// What the owner set.
    pub(crate) config: Config,
    /// Sizes of VMs that name none.
    pub(crate) defaults: Defaults,
    /// Long work.
    pub(crate) operations: Operations,
    /// Images and kernels.
    pub(crate) shelf: Shelf,
    /// What takes room.
    pub(crate) disk: Disk,
    /// VMs.
    pub(crate) vms: Vms,
    /// Engines of this host.
    pub(crate) engine: Arc<HostEngine>,
    /// Work that outlives the request that began it.
    tasks: TaskTracker,
    /// Cancelled when the daemon begins to end: streams close.
    pub(crate) closing: CancellationToken,
    /// Upgraded streams, which outlive their request.
    pub(crate) streams: TaskTracker,
    /// Asks for the end of the daemon.
    ending: tokio::sync::watch::Sender<Option<Ending>>,
}

/// How the daemon was asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    /// Stop the VMs too; otherwise they run on.
    pub(crate) with_vms: bool,
}

impl App {
    /// Whether a newer build may take this daemon's place now.
    pub(crate) fn idle(&self) -> bool {
        !self.operations.any_running()
            && self.vms.open_streams() == 0
            && !self.vms.live_auto_remove()
    }

    /// Begins an operation and, beside everything else, its work. Both happen
    /// or neither, also when the caller goes away in the middle.
    ///
    /// # Errors
    /// Those of [`Operations::begin`].
    pub(crate) async fn begin<Start, Work>(
        self: &Arc<Self>,
        kind: &'static str,
        subject: Subject,
        op: &OpId,
        start: Start,
    ) -> Result<OpHandle, Failure>
    where
        Start: FnOnce(OpHandle) -> Work + Send + 'static,
        Work: Future<Output = Result<Outcome, Failure>> + Send + 'static,
    {
        let (app, op) = (Arc::clone(self), op.clone());
        let begun = self.tasks.spawn(async move {
            let handle = app.operations.begin(kind, subject, &op).await?;
            app.work(handle.clone(), start(handle.clone()));
            Ok(handle)
        });
        begun
            .await
            .unwrap_or_else(|error| Err(Failure::internal("cannot begin an operation", &error)))
    }

    /// Does the work of an operation beside everything else, and ends it.
    fn work<Work>(&self, handle: OpHandle, work: Work)
    where
        Work: Future<Output = Result<Outcome, Failure>> + Send + 'static,
    {
        let span = tracing::info_span!("operation", op = handle.id());
        let all = async move {
            let result = work.await;
            if let Err(failure) = &result {
                tracing::warn!(error = failure.sentence(), "the operation failed");
            }
            handle.finish(result).await;
        };
        self.tasks.spawn(all.instrument(span));
    }

    /// Asks the daemon to end; returns at once.
    pub(crate) fn end(&self, with_vms: bool) {
        self.ending.send_replace(Some(Ending { with_vms }));
    }
}

/// Runs the daemon of this process to its end.
pub(crate) fn main(arguments: Arguments) -> ExitCode {
    banger_sys::daemon::keep_heap_small();
    let mut starter = match Starter::new(arguments.startup_fd) {
        Ok(starter) => starter,
        Err(error) => {
            eprintln!("error: --startup-fd: {error}");
            return ExitCode::from(2);
        }
    };
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    crate::descriptors::raise();
    let result = prepare(&arguments).and_then(|(paths, config)| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(BLOCKING)
            .thread_name("bangerd")
            .enable_all()
            .build()
            .map_err(|error| Failure::internal("cannot start threads", &error))?;
        runtime.block_on(run(paths, config, &mut starter))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            starter.failed(&failure.to_api(""));
            // Whoever started us may no longer read this.
            let mut stderr = std::io::stderr();
            let _ = writeln!(stderr, "error: {}", failure.sentence());
            if let Some(hint) = &failure.hint {
                let _ = writeln!(stderr, "hint: {hint}");
            }
            tracing::error!(error = failure.sentence(), "the daemon cannot run");
            ExitCode::FAILURE
        }
    }
}

/// What can go wrong before anything on the disk is touched.
fn prepare(arguments: &Arguments) -> Result<(Paths, Config), Failure> {
    let uid = rustix::process::getuid().as_raw();
    let paths = Paths::resolve(&arguments.overrides, |name| std::env::var_os(name), uid)
        .map_err(|error| bad_path(&error))?;
    let config = Config::load(&paths.config_file, |name| std::env::var(name).ok())
        .map_err(|error| describe(Code::BadRequest, &error))?;
    Ok((paths, config))
}

/// The daemon's life.
async fn run(paths: Paths, config: Config, starter: &mut Starter) -> Result<(), Failure> {
    paths.make_state().map_err(|error| bad_path(&error))?;
    let lock = match claim(&paths.lock(), &paths.socket).await? {
        Claim::Ours(lock) => lock,
        Claim::Theirs(holder) => {
            // Not an error: two command lines began a daemon at once.
            eprintln!(
                "bangerd {} already listens at {}",
                holder.pid,
                holder.socket.display()
            );
            starter.ready();
            return Ok(());
        }
    };
    crate::log::start(&paths.log(), config.log_level).map_err(|error| {
        Failure::new(
            Code::BadPath,
            format!("cannot write {}", paths.log().display()),
        )
        .caused_by(&error)
    })?;
    let daemon = Daemon::assemble(paths, config).await?;
    let door = daemon.listen()?;
    starter.ready();
    daemon.recover().await?;
    daemon.serve(door).await?;
    drop(lock);
    Ok(())
}

/// What the daemon acts on outside of itself; a test has one of its own.
pub(crate) struct World {
    /// Starts and finds engines.
    pub(crate) engine: Arc<dyn Engine>,
    /// Starts and finds gateways.
    pub(crate) gateways: Arc<dyn Gateways>,
    /// Files and resources of VMs.
    pub(crate) host: Arc<dyn Host>,
    /// Instead of the daemon's own images and kernels.
    pub(crate) artifacts: Option<Arc<dyn Artifacts>>,
    /// Where the power may go.
    pub(crate) seams: Seams,
}

/// Every room, joined.
pub(crate) struct Daemon {
    pub(crate) app: Arc<App>,
    ending: tokio::sync::watch::Receiver<Option<Ending>>,
}

impl Daemon {
    /// Builds every room. Nothing acts yet.
    async fn assemble(paths: Paths, config: Config) -> Result<Self, Failure> {
        let uid = rustix::process::getuid();
        tracing::info!(
            version = crate::VERSION,
            commit = crate::COMMIT,
            pid = std::process::id(),
            state = %paths.state.display(),
            "the daemon starts"
        );
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        if uid.is_root() {
            tracing::warn!("started by root: working as root's own personal daemon");
        }
        let database = paths.database();
        let store = tokio::task::spawn_blocking(move || Store::open(&database))
            .await
            .map_err(|error| Failure::internal("cannot open the state", &error))?
            .map_err(|error| bad_state(&error))?;
        paths.make_rooms().map_err(|error| bad_path(&error))?;
        let known = paths.cache.join("engines");
        std::fs::create_dir_all(&known).map_err(|error| {
            Failure::new(
                Code::BadPath,
                format!("cannot use {} as cache", known.display()),
            )
            .caused_by(&error)
        })?;
        let engine = Arc::new(HostEngine::new(engine_settings(&known, &config)));
        let world = World {
            engine: engine.clone(),
            gateways: Arc::new(HostGateways::new(Path::new(network::RESOLV_CONF))),
            host: Arc::new(RealHost::new(&paths.state)),
            artifacts: None,
            seams: Seams::default(),
        };
        Ok(Self::join(paths, config, store, engine, world))
    }

    /// Joins the rooms to each other and to a world.
    pub(crate) fn join(
        paths: Paths,
        config: Config,
        store: Store,
        engine: Arc<HostEngine>,
        world: World,
    ) -> Self {
        let defaults = host_defaults(&config);
        let tasks = TaskTracker::new();
        let operations = Operations::new(store.clone());
        let shelf = Shelf::new(store.clone(), &paths, &config, tasks.clone());
        let disk = Disk::new(&paths, shelf.clone(), world.seams.clone());
        let vms = Vms::new(Parts {
            store,
            operations: operations.clone(),
            engine: world.engine,
            gateways: world.gateways,
            artifacts: world.artifacts.unwrap_or_else(|| Arc::new(shelf.clone())),
            host: world.host,
            settings: vm_settings(&paths, &config, defaults),
            seams: world.seams,
        });
        let (ending, asked) = tokio::sync::watch::channel(None);
        let app = App {
            operations,
            shelf,
            disk,
            vms,
            engine,
            tasks,
            paths,
            config,
            defaults,
            closing: CancellationToken::new(),
            streams: TaskTracker::new(),
            ending,
        };
        Self {
            app: Arc::new(app),
            ending: asked,
        }
    }

    /// Clients queue here from now on.
    pub(crate) fn listen(&self) -> Result<Socket, Failure> {
        Socket::listen(&self.app.paths, owner()).map_err(|error| describe(Code::BadPath, &error))
    }

    /// Takes over what lives and unwinds the rest, before the first answer.
    pub(crate) async fn recover(&self) -> Result<(), Failure> {
        self.app.shelf.recover().await?;
        crate::recovery::recover(&self.app.vms).await
    }

    /// Answers until the daemon is asked to end, then ends in order.
    pub(crate) async fn serve(mut self, door: Socket) -> Result<(), Failure> {
        let (router, _) = http::router(Arc::clone(&self.app));
        let closing = self.app.closing.clone();
        let app = Arc::clone(&self.app);
        let ended = self.ended()?;
        tokio::join!(
            http::connection::serve(door, router, owner(), closing.clone()),
            async {
                let ending = ended.await;
                tracing::info!(with_vms = ending.with_vms, "the daemon ends");
                if ending.with_vms {
                    app.vms.stop_all().await;
                }
                closing.cancel();
            }
        );
        self.drain().await;
        Ok(())
    }

    /// Lets what runs here end; the VMs are not ours to end.
    async fn drain(&self) {
        self.app.shelf.cancel_all();
        // Builds give their VMs back while those have supervisors.
        self.app.tasks.close();
        let _ = tokio::time::timeout(LAST_WORK, self.app.tasks.wait()).await;
        self.app.vms.drain().await;
        for tracker in [&self.app.streams, &self.app.tasks] {
            tracker.close();
            if tokio::time::timeout(LAST_WORK, tracker.wait())
                .await
                .is_err()
            {
                tracing::warn!(left = tracker.len(), "work did not end in time");
            }
        }
        self.app.vms.house().store.checkpoint().await;
    }

    /// Waits for a signal or a request to end.
    fn ended(&mut self) -> Result<impl Future<Output = Ending> + use<>, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| Failure::internal("cannot listen for signals", &error))
        };
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut hangup = listen(SignalKind::hangup())?;
        let mut asked = self.ending.clone();
        Ok(async move {
            tokio::select! {
                _ = terminate.recv() => Ending { with_vms: false },
                _ = interrupt.recv() => Ending { with_vms: false },
                _ = hangup.recv() => Ending { with_vms: false },
                asked = asked.wait_for(Option::is_some) => {
                    asked.ok().and_then(|ending| *ending).unwrap_or(Ending { with_vms: false })
                }
            }
        })
    }
}

/// Of the configuration, what VMs need.
fn vm_settings(paths: &Paths, config: &Config, defaults: Defaults) -> vm::Settings {
    vm::Settings {
        state_dir: paths.state.clone(),
        vcpu: u32::try_from(defaults.vcpu.0).expect("at most 32"),
        memory_mib: defaults.memory_mib.0,
        disk_bytes: defaults.disk_size.0,
        overlay_bytes: defaults.system_overlay_size.0,
        engine: config.engine.name().to_owned(),
        network: config.network_mode.clone(),
        trim_systemd: config.trim_systemd,
        stats_poll_interval: config.stats_poll_interval,
        auto_stop_stale_after: Some(config.auto_stop_stale_after).filter(|after| !after.is_zero()),
    }
}

/// Where engines are, and where what is learned about them is kept.
pub(crate) fn engine_settings(cache: &Path, config: &Config) -> banger_engine::Settings {
    banger_engine::Settings {
        wish: Wish::from_name(config.engine.name()).expect("both know the same names"),
        qemu_bin: config.qemu_bin.clone(),
        kvm: KvmSetting::from_value(std::env::var("BANGER_KVM").ok().as_deref()),
        cache_dir: cache.to_owned(),
    }
}

fn owner() -> u32 {
    rustix::process::getuid().as_raw()
}

/// A state that cannot be used is left as it is; only its owner can decide.
fn bad_state(error: &OpenError) -> Failure {
    let failure = describe(Code::Internal, error);
    match error {
        OpenError::Newer { .. } => failure.hint("use the newer banger that wrote it"),
        OpenError::Damaged { .. } => {
            failure.hint("restore it from a backup, or move the state directory away")
        }
        OpenError::Open { .. }
        | OpenError::Read { .. }
        | OpenError::Migrate { .. }
        | OpenError::Thread { .. } => failure,
    }
}

fn bad_path(error: &PathError) -> Failure {
    describe(Code::BadPath, error)
}

/// An error that already says what was being done: its own text is the
/// message, what is below it the causes.
pub(crate) fn describe(code: Code, error: &dyn std::error::Error) -> Failure {
    let failure = Failure::new(code, error.to_string());
    match error.source() {
        Some(cause) => failure.caused_by(cause),
        None => failure,
    }
}

/// Defaults of new VMs on this host.
pub(crate) fn host_defaults(config: &Config) -> Defaults {
    config.defaults(host_cpus(), host_memory_mib())
}

fn host_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1))
}

fn host_memory_mib() -> u64 {
    let info = rustix::system::sysinfo();
    #[allow(
        clippy::useless_conversion,
        reason = "the field is 32 bits wide elsewhere"
    )]
    let total = u64::from(info.totalram);
    (total * u64::from(info.mem_unit)) >> 20
}
