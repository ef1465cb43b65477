//! `/boot`: from block devices to a root in which commands run.
//!
//! ```text
//!                 ┌► overlay disk ─► root, data directories ────────┐
//! clock ─► image ─┼► modules, work disk                             ├► bound ─┬► files ┬► init
//!                 └► seed, hostname, links, groups, network card ───┘         └► space ┘
//! ```
//!
//! Only what a command cannot do without fails the boot; the rest is a warning.

pub(crate) mod copy;
pub(crate) mod disks;
pub(crate) mod files;
pub(crate) mod identity;
mod managers;
pub(crate) mod mounts;
mod network;
pub(crate) mod root;
mod rtnetlink;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread;

use banger_wire::agent::{Boot, Booted};

use crate::agent::{Agent, Guest};
use crate::early;
use crate::init::{self, Found, InitError};
use crate::modprobe;
use disks::{Devices, Drive};
use network::NetworkError;
use rtnetlink::Link;

/// When each step ended, milliseconds since the kernel started.
static STAGES: Notes = Mutex::new(Vec::new());
/// Milliseconds that each step took that went on beside those.
static BESIDE: Notes = Mutex::new(Vec::new());

type Notes = Mutex<Vec<(String, u64)>>;

fn noted(notes: &Notes) -> MutexGuard<'_, Vec<(String, u64)>> {
    notes
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Notes when a step ended.
pub(crate) fn stage(name: &str, at_ms: u64) {
    noted(&STAGES).push((name.to_owned(), at_ms));
}

/// Notes how long something took that goes on beside the steps.
fn beside<T>(name: &str, work: impl FnOnce() -> T) -> T {
    let began = early::uptime_ms();
    let done = work();
    noted(&BESIDE).push((name.to_owned(), early::uptime_ms().saturating_sub(began)));
    done
}

fn stage_now(name: &str) {
    stage(name, early::uptime_ms());
}

/// Why the machine has no root.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A drive that the request names is not there.
    #[error("no drive has the serial {0:?}")]
    NoDisk(String),
    /// A file system does not mount.
    #[error("cannot mount {what} on {target}")]
    Mount {
        /// Device or kind.
        what: String,
        /// Mount point.
        target: String,
        #[source]
        cause: io::Error,
    },
    /// A directory or file of the agent's own.
    #[error("cannot prepare {0}")]
    Prepare(String, #[source] io::Error),
    /// The image has something else where a directory must be.
    #[error("the image's /{0} cannot be a directory")]
    NotDirectory(&'static str, #[source] io::Error),
    /// The network that was asked for is not there.
    #[error("cannot set the network up")]
    Network(#[from] NetworkError),
    /// The init did not start.
    #[error("cannot start the init")]
    Init(#[from] InitError),
    /// The work ended by a panic.
    #[error("the boot was aborted")]
    Aborted,
}

/// What could not be done and does not matter enough to fail.
#[derive(Default)]
pub(crate) struct Warnings(Vec<String>);

impl Warnings {
    /// Notes the failure of `what`, if it failed.
    pub(crate) fn note<T, E: std::error::Error>(
        &mut self,
        what: &str,
        result: Result<T, E>,
    ) -> Option<T> {
        result
            .map_err(|error| self.0.push(format!("{what}: {}", crate::chain(&error))))
            .ok()
    }

    fn take(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

/// What was found and done before the daemon asked for anything.
struct Begun {
    drives: io::Result<Vec<Drive>>,
    /// Device of the image, where that is mounted.
    image: Option<String>,
}

static BEGUN: OnceLock<Begun> = OnceLock::new();

/// Looks at the drives and mounts the image, once their drivers are there.
pub(crate) fn begin() {
    stage_now("modules");
    let drives = disks::present();
    let image = drives.as_deref().ok().and_then(mounts::mount_early);
    // By the one thread that loads the drivers.
    let _ = BEGUN.set(Begun { drives, image });
}

/// Boots the machine.
pub(crate) async fn run(agent: &Arc<Agent>, request: Boot) -> Result<Booted, BootError> {
    stage_now("asked");
    let (request, started, mut warnings) = tokio::task::spawn_blocking(move || {
        let mut warnings = Warnings::default();
        let (root, found, link) = assemble(&request, &mut warnings)?;
        let found = found.as_ref();
        let started = thread::scope(|scope| {
            // Read by the init and by commands, which both run later.
            let files = scope.spawn(|| {
                let mut warnings = Warnings::default();
                files::write(&root, &request, found, link.as_ref(), &mut warnings);
                warnings
            });
            let started = init::start(&request, &root, found);
            warnings.take(files.join().map_err(|_| BootError::Aborted)?);
            Ok::<_, BootError>(started?)
        })?;
        Ok::<_, BootError>((request, started, warnings))
    })
    .await
    .map_err(|_| BootError::Aborted)??;
    stage_now("init");
    let init = init::watch(agent, started, &mut warnings);
    let booted = Booted {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_version: identity::kernel_version(),
        boot_id: identity::boot_id_text(),
        init: init.kind,
        warnings: warnings.0,
        stages: noted(&STAGES).clone(),
        beside: noted(&BESIDE).clone(),
    };
    agent.set_guest(Guest { request, init });
    Ok(booted)
}

/// Everything before the init: the root stands at [`mounts::ROOT`]. What the
/// root does not rest on is made beside it, on another processor.
fn assemble(
    request: &Boot,
    warnings: &mut Warnings,
) -> Result<(root::Root, Option<Found>, Option<Link>), BootError> {
    // What is made from here on has a time.
    warnings.note("clock", identity::set_clock(request.clock_unix_ns));
    let begun = BEGUN.wait();
    stage_now("drivers");
    let drives = begun.drives.as_deref().map_err(|error| {
        let again = io::Error::new(error.kind(), error.to_string());
        BootError::Prepare("the list of drives".to_owned(), again)
    })?;
    let devices = disks::assign(&request.disks, drives)?;
    mounts::mount_base(&devices, begun.image.as_deref())?;
    stage_now("image");
    let (root, home, ready) = thread::scope(|scope| {
        let ready = scope.spawn(|| ready_machine(request));
        let home = scope.spawn(|| mount_home(&devices, request.fill_work));
        let root = assemble_root(&devices, warnings);
        (root, home.join(), ready.join())
    });
    let root = root?;
    let (modules, more) = home.map_err(|_| BootError::Aborted)??;
    warnings.take(more);
    stage_now("disks");
    mounts::bind_work(&root)?;
    if modules {
        mounts::bind_modules(&root, warnings);
    }
    let (link, more) = ready.map_err(|_| BootError::Aborted)?;
    warnings.take(more);
    let link = link?;
    if link.is_some() {
        stage_now("network");
    }
    if modules {
        // Who asks for one runs later.
        warnings.note("modules on demand", modprobe::answer());
    }
    let found = init::find(&root);
    stage_now("root");
    Ok((root, found, link))
}

fn assemble_root(devices: &Devices, warnings: &mut Warnings) -> Result<root::Root, BootError> {
    mounts::mount_overlay(devices, warnings)?;
    let root = mounts::mount_root()?;
    mounts::bind_data(&root, warnings);
    Ok(root)
}

/// Mounts the drives that the root's own tree does not need; whether there
/// are modules.
fn mount_home(devices: &Devices, fill: bool) -> Result<(bool, Warnings), BootError> {
    let mut warnings = Warnings::default();
    mounts::mount_work(devices, fill, &mut warnings)?;
    let modules = mounts::mount_modules(devices, &mut warnings);
    Ok((modules, warnings))
}

/// What a guest has beside its root; gives the network card, if it has one.
fn ready_machine(request: &Boot) -> (Result<Option<Link>, NetworkError>, Warnings) {
    let mut warnings = Warnings::default();
    identity::take(request, &mut warnings);
    init::make_groups();
    let link = request.network.as_ref().map(network::bring_up).transpose();
    early::forget_modules();
    (link, warnings)
}
