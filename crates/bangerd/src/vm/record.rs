//! A VM in memory: its row, read. And the row as clients see it.

use std::path::{Path, PathBuf};

use banger_api::vm::{State as ApiState, VmRecord, VmRuntime, VmSpec, VmStats, VmWorkspace};
use banger_model::{Exit, Goal, Phase, State, VmId, phase};
use banger_store::vms::VmRow;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// A VM as its supervisor knows it.
#[derive(Debug, Clone)]
pub(crate) struct Vm {
    /// Its id.
    pub(crate) id: VmId,
    /// Its name.
    pub(crate) name: String,
    /// What it is.
    pub(crate) phase: Phase,
    /// What was last asked of it.
    pub(crate) goal: Goal,
    /// How its last run ended.
    pub(crate) last_exit: Option<Exit>,
    /// What it was asked to be.
    pub(crate) spec: VmSpec,
    /// Everything else.
    pub(crate) record: Record,
    /// When it was created.
    pub(crate) created_at: String,
    /// When its row last changed.
    pub(crate) updated_at: String,
}

/// What is kept of a VM beside its spec, phase and goal.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Record {
    /// Its image; empty until its create has chosen it.
    pub(crate) image_id: String,
    /// The image as asked at create.
    pub(crate) wanted_image: Option<String>,
    /// The create operation, until it is over.
    pub(crate) creating: Option<String>,
    /// The first boot is told that a command follows.
    pub(crate) main_follows: bool,
    /// The work disk still is to be filled from the image.
    pub(crate) unfilled: bool,
    /// Last use by a client.
    pub(crate) last_touched_at: String,
    /// Engine of the last run.
    pub(crate) engine: Option<String>,
    /// Its version.
    pub(crate) engine_version: Option<String>,
    /// `kvm` or `tcg`.
    pub(crate) acceleration: Option<String>,
    /// Version of the agent.
    pub(crate) agent_version: Option<String>,
    /// `uname -r` of the guest.
    pub(crate) kernel_version: Option<String>,
    /// Boot id of the guest.
    pub(crate) boot_id: Option<String>,
    /// When commands could first run in this run, seconds since 1970.
    pub(crate) running_since: Option<i64>,
    /// The guest is being asked to end; otherwise an ending run is forced.
    pub(crate) halting: bool,
    /// What is wrong with the way out of the present run's guest.
    pub(crate) network_error: Option<String>,
}

impl Vm {
    /// Reads a row.
    pub(crate) fn read(row: VmRow) -> Result<Self, Failure> {
        let bad = |error: serde_json::Error| {
            Failure::internal(format!("row of VM {} cannot be read", row.id), &error)
        };
        Ok(Self {
            spec: serde_json::from_str(&row.spec).map_err(bad)?,
            record: serde_json::from_str(&row.record).map_err(bad)?,
            id: row.id,
            name: row.name,
            phase: row.phase,
            goal: row.goal,
            last_exit: row.last_exit,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }

    /// Its row.
    pub(crate) fn row(&self) -> VmRow {
        VmRow {
            id: self.id.clone(),
            name: self.name.clone(),
            phase: self.phase,
            goal: self.goal,
            last_exit: self.last_exit.clone(),
            spec: serde_json::to_string(&self.spec).expect("a spec is plain JSON"),
            record: serde_json::to_string(&self.record).expect("a record is plain JSON"),
            created_at: self.created_at.clone(),
            updated_at: self.updated_at.clone(),
        }
    }

    /// The state users see.
    pub(crate) fn state(&self) -> ApiState {
        match phase::state(self.phase, self.goal, self.last_exit.as_ref()) {
            State::Created => ApiState::Created,
            State::Starting => ApiState::Starting,
            State::Running => ApiState::Running,
            State::Paused => ApiState::Paused,
            State::Stopping => ApiState::Stopping,
            State::Stopped => ApiState::Stopped,
            State::Error => ApiState::Error,
        }
    }

    /// As clients see it.
    pub(crate) fn show(&self, places: &Places, stats: VmStats) -> VmRecord {
        let state = self.state();
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        VmRecord {
            id: self.id.to_string(),
            name: self.name.clone(),
            image_id: self.record.image_id.clone(),
            state,
            created_at: self.created_at.clone(),
            updated_at: self.updated_at.clone(),
            last_touched_at: self.record.last_touched_at.clone(),
            spec: self.spec.clone(),
            runtime: VmRuntime {
                state: state.name().to_owned(),
                guest_ip: String::new(),
                api_sock_path: None,
                log_path: Some(text(places.console(&self.id))),
                vm_dir: text(places.dir(&self.id)),
                system_overlay_path: text(places.overlay(&self.id)),
                work_disk_path: text(places.work(&self.id)),
                last_error: match (&self.last_exit, state) {
                    (Some(Exit::Error(why)), ApiState::Error) => Some(why.clone()),
                    _ => None,
                },
                network_error: match state {
                    ApiState::Starting | ApiState::Running | ApiState::Paused => {
                        self.record.network_error.clone()
                    }
                    ApiState::Created
                    | ApiState::Stopping
                    | ApiState::Stopped
                    | ApiState::Error => None,
                },
                goal: self.goal.name().to_owned(),
                engine: self.record.engine.clone(),
                engine_version: self.record.engine_version.clone(),
                acceleration: self.record.acceleration.clone(),
                agent_version: self.record.agent_version.clone(),
                kernel_version: self.record.kernel_version.clone(),
                boot_id: self.record.boot_id.clone(),
            },
            stats,
            workspace: VmWorkspace::default(),
        }
    }
}

/// Where the files of VMs are.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    vms: PathBuf,
}

impl Places {
    /// Below a state directory.
    pub(crate) fn below(state_dir: &Path) -> Self {
        Self {
            vms: state_dir.join("vms"),
        }
    }

    /// The directory of a VM.
    pub(crate) fn dir(&self, vm: &VmId) -> PathBuf {
        self.vms.join(vm.as_str())
    }

    /// Its system overlay.
    pub(crate) fn overlay(&self, vm: &VmId) -> PathBuf {
        self.dir(vm).join("overlay.ext4")
    }

    /// Its work disk.
    pub(crate) fn work(&self, vm: &VmId) -> PathBuf {
        self.dir(vm).join("work.ext4")
    }

    /// Its console. Not in the run directory: a failed run leaves its log.
    pub(crate) fn console(&self, vm: &VmId) -> PathBuf {
        self.dir(vm).join("console.log")
    }

    /// The directory of its run.
    pub(crate) fn run(&self, vm: &VmId) -> PathBuf {
        self.dir(vm).join("run")
    }
}
