//! The engines of this host as the daemon asks for them: `banger-engine` and
//! the channel's host end joined, errors in the words of the API.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use banger_api::error::Code;
use banger_engine::machine::{Abilities, End, Facts, Machine};
use banger_engine::{AnyEngine, Choice, ChooseError, LaunchError, Live, Settings, Wish};
use tokio::sync::Mutex;

use crate::failure::Failure;
use crate::guest::{Closer, Connection};
use crate::ports::{Engine, Guest, Running, Usage};

/// The engines of this host.
pub(crate) struct HostEngine {
    engine: AnyEngine,
}

impl HostEngine {
    /// Looks at the host in the background; nothing waits for it but a launch.
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            engine: AnyEngine::new(settings),
        }
    }

    /// The engine that a start would take now. `wanted` is `auto` or a name.
    pub(crate) async fn choice(&self, wanted: &str) -> Result<Choice, Failure> {
        let wish = wish(wanted)?;
        let engine = self.engine.clone();
        match tokio::task::spawn_blocking(move || engine.choose(wish)).await {
            Ok(choice) => choice.map_err(|error| no_engine(&error)),
            Err(error) => Err(Failure::internal("cannot look for engines", &error)),
        }
    }
}

#[async_trait]
impl Engine for HostEngine {
    async fn launch(&self, machine: &Machine, wanted: &str) -> Result<Facts, Failure> {
        self.engine
            .launch(machine, wish(wanted)?)
            .await
            .map_err(|error| match error {
                LaunchError::Choose(error) => no_engine(&error),
                error => {
                    Failure::new(Code::EngineFailed, "cannot start the engine").caused_by(&error)
                }
            })
    }

    async fn attach(&self, facts: &Facts) -> Result<Option<Arc<dyn Running>>, Failure> {
        match self.engine.attach(facts).await {
            Ok(live) => Ok(live.map(|live| Arc::new(Attached::new(live)) as Arc<dyn Running>)),
            Err(error) => Err(
                Failure::new(Code::EngineFailed, "cannot take the engine over").caused_by(&error),
            ),
        }
    }

    async fn sweep(&self, id: &str, run_dir: &Path, cgroup: Option<&Path>) -> Result<(), Failure> {
        let swept = self.engine.sweep(id, run_dir, cgroup).await;
        swept.map_err(|error| {
            Failure::new(Code::EngineFailed, "cannot end the engine").caused_by(&error)
        })
    }

    fn abilities(&self) -> Abilities {
        self.engine.abilities()
    }

    async fn usable(&self, wanted: &str) -> Result<(), Failure> {
        self.choice(wanted).await.map(drop)
    }
}

fn wish(wanted: &str) -> Result<Wish, Failure> {
    Wish::from_name(wanted).ok_or_else(|| {
        Failure::new(Code::BadRequest, format!("{wanted:?} is no engine"))
            .hint("use auto, firecracker or qemu")
    })
}

fn no_engine(error: &ChooseError) -> Failure {
    let code = match error {
        ChooseError::Unsupported(_) => Code::Unsupported,
        ChooseError::NotInstalled { .. } | ChooseError::Unusable { .. } => Code::NoEngine,
    };
    let failure = Failure::new(code, error.to_string());
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// An engine we hold, and the one connection to its guest.
struct Attached {
    live: Arc<Live>,
    /// The engine serves one connection at a time.
    connection: Mutex<Option<Closer>>,
}

impl Attached {
    fn new(live: Arc<Live>) -> Self {
        Self {
            live,
            connection: Mutex::new(None),
        }
    }
}

fn uncontrolled(error: banger_engine::ControlError) -> Failure {
    Failure::new(Code::EngineFailed, "the engine does not obey").caused_by(&error)
}

#[async_trait]
impl Running for Attached {
    async fn guest(&self, token: [u8; 32]) -> Result<Arc<dyn Guest>, Failure> {
        let mut connection = self.connection.lock().await;
        // Whoever still holds the one before finds it lost.
        if let Some(before) = connection.take() {
            before.close();
        }
        let line = self.live.line().await.map_err(|error| {
            Failure::new(
                Code::GuestUnreachable,
                "cannot connect to the guest's channel",
            )
            .caused_by(&error)
        })?;
        let guest = Connection::open(line, token).await?;
        *connection = Some(guest.closer());
        Ok(Arc::new(guest))
    }

    async fn ended(&self) -> End {
        self.live.ended().await
    }

    async fn disk_full(&self) -> String {
        self.live.disk_full().await
    }

    async fn pause(&self) -> Result<(), Failure> {
        self.live.pause().await.map_err(uncontrolled)
    }

    async fn resume(&self) -> Result<(), Failure> {
        self.live.resume().await.map_err(uncontrolled)
    }

    async fn kill(&self, signal: &str) -> Result<(), Failure> {
        self.live.kill(signal).map_err(uncontrolled)
    }

    fn usage(&self) -> Option<Usage> {
        let usage = self.live.usage()?;
        Some(Usage {
            cpu_us: usage.cpu_us,
            rss_bytes: usage.rss_bytes,
            vsz_bytes: usage.vsz_bytes,
        })
    }

    fn pidfd(&self) -> Option<OwnedFd> {
        self.live.pidfd().ok()
    }
}
