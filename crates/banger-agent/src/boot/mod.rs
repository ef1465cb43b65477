//! `/boot`: from block devices to a root in which commands run.
//!
//! ```text
//! identity (clock, seed, hostname) ─► disks mounted and grown ─► overlay
//!   ─► work disk, modules, data directories bound ─► files ─► init
//! ```
//!
//! Only what a command cannot do without fails the boot; the rest is a warning.

pub(crate) mod copy;
pub(crate) mod disks;
pub(crate) mod files;
pub(crate) mod identity;
pub(crate) mod mounts;
pub(crate) mod root;

use std::io;
use std::sync::{Arc, Mutex};

use banger_wire::agent::{Boot, Booted};

use crate::agent::{Agent, Guest};
use crate::init::{self, InitError};

/// When each step ended, milliseconds since the kernel started.
static STAGES: Mutex<Vec<(String, u64)>> = Mutex::new(Vec::new());

/// Notes when a step ended.
pub(crate) fn stage(name: &str, at_ms: u64) {
    let mut stages = STAGES
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    stages.push((name.to_owned(), at_ms));
}

fn stage_now(name: &str) {
    stage(name, crate::early::uptime_ms());
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
}

/// Boots the machine.
pub(crate) async fn run(agent: &Arc<Agent>, request: Boot) -> Result<Booted, BootError> {
    stage_now("asked");
    let (request, started, mut warnings) = tokio::task::spawn_blocking(move || {
        let mut warnings = Warnings::default();
        let root = assemble(&request, &mut warnings)?;
        stage_now("root");
        let started = std::thread::scope(|scope| {
            // Read by the init and by commands, which both run later.
            let files = scope.spawn(|| {
                let mut warnings = Warnings::default();
                files::write(&root, &request, &mut warnings);
                warnings
            });
            let started = init::start(&request, &root);
            warnings
                .0
                .extend(files.join().map_err(|_| BootError::Aborted)?.0);
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
        stages: STAGES
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone(),
    };
    agent.set_guest(Guest { request, init });
    Ok(booted)
}

/// Everything before the init: the root stands at [`mounts::ROOT`]. What the
/// root does not rest on is made beside it, on another processor.
fn assemble(request: &Boot, warnings: &mut Warnings) -> Result<root::Root, BootError> {
    warnings.note("clock", identity::set_clock(request.clock_unix_ns));
    let devices = disks::find(&request.disks)?;
    mounts::mount_base(&devices)?;
    stage_now("image");
    let aside = || {
        let mut warnings = Warnings::default();
        identity::take(request, &mut warnings);
        init::make_groups();
        let modules = mounts::mount_modules(&devices, &mut warnings);
        mounts::mount_work(&devices, request.fill_work, &mut warnings)?;
        Ok::<_, BootError>((modules, warnings))
    };
    let (root, (modules, noted)) = std::thread::scope(|scope| {
        let aside = scope.spawn(aside);
        mounts::mount_overlay(&devices, warnings)?;
        let root = mounts::mount_root()?;
        mounts::bind_data(&root, warnings);
        let aside = aside.join().map_err(|_| BootError::Aborted)??;
        Ok::<_, BootError>((root, aside))
    })?;
    warnings.0.extend(noted.0);
    stage_now("disks");
    mounts::bind_work(&root)?;
    if modules {
        mounts::bind_modules(&root, warnings);
    }
    Ok(root)
}
