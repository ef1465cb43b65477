//! Long work: progress, outcome, events.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::disk::ReclaimReport;
use crate::error::Code;
use crate::image::Image;
use crate::kernel::KernelEntry;
use crate::vm::{State, VmRecord};

/// Long work, as clients see it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// `op-` and 12 hex digits.
    pub id: String,
    /// `vm.create`, `image.build`, ...
    pub kind: String,
    /// The VM it works on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_id: Option<String>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_name: Option<String>,
    /// The image it makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_name: Option<String>,
    /// Stage under way, or the last one. By kind, in their order; not all of
    /// them come each time:
    ///
    /// - `vm.create`, `vm.start`, `vm.restart`: `sync`, `stop_guest`,
    ///   `resolve_image`, `pull_image`, `pull_kernel`, `reserve`,
    ///   `prepare_disks`, `start_engine`, `boot_kernel`, `wait_agent`,
    ///   `configure_guest`, `ready`
    /// - `vm.stop`, `vm.kill`, `vm.delete`: `sync`, `stop_guest`
    /// - `image.pull` of a registry: `download`; of files: `read_files`; then of
    ///   both the stages of a kernel that was given, `read_layers`,
    ///   `write_image`, `publish`
    /// - `image.pull` of a bundle: `download`, `unpack`, the stages of a kernel
    ///   that was given, `publish`, and `pull_kernel` first or last
    /// - `image.build` of a suite, also by `image.pull`: the stages of a kernel
    ///   that was given, `package_lists`, `download`, `extract`, `install`,
    ///   `packages`, `pack`, `read_root`, `write_image`, `publish`
    /// - `image.build` of an image: `boot_vm`, `wait_init`, `run_script` or
    ///   `install_packages`, `copy_root`, `read_root`, `write_image`, `publish`
    /// - `image.promote`: `copy`, `publish`
    /// - `kernel.pull`: `package_lists`, `resolve`, `download`, `unpack`,
    ///   `kernel`, `modules`, `modules_image`, `publish`; a kernel that was
    ///   given begins with `read`
    /// - `disk.reclaim`: `look`, `reclaim`
    ///
    /// In `pull_image` and `pull_kernel` the detail begins with the stage of
    /// the pull itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// More about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Log of a build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_log_path: Option<String>,
    /// When it began.
    pub started_at: String,
    /// Last change.
    pub updated_at: String,
    /// It is over.
    pub done: bool,
    /// It is over and did what it should.
    pub success: bool,
    /// It was cancelled, or overtaken.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancelled: bool,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its stable name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<Code>,
    /// The next step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Bytes of the present stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_done: Option<u64>,
    /// Of how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// How long each stage took.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timings: Vec<Timing>,
    /// The VM, at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmRecord>,
    /// The image, at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// The kernel, at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<KernelEntry>,
    /// What a reclaim planned and did, at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reclaim: Option<ReclaimReport>,
}

/// How long a stage took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Timing {
    /// The stage.
    pub stage: String,
    /// Milliseconds, with fractions.
    pub ms: f64,
    /// It went on beside other stages: its time is part of theirs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub beside: bool,
}

impl Timing {
    /// Milliseconds that it adds to the whole.
    #[must_use]
    pub fn own_ms(&self) -> f64 {
        if self.beside { 0.0 } else { self.ms }
    }
}

/// One operation: every 202 and `GET /operations/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OperationResult {
    /// The operation.
    pub operation: Operation,
}

/// `GET /operations`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OperationListResult {
    /// Newest first.
    pub operations: Vec<Operation>,
}

/// `event: stage` of an operation's stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StageEvent {
    /// The stage that begins.
    pub stage: String,
    /// More about it.
    #[serde(default)]
    pub detail: String,
}

/// `event: progress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProgressEvent {
    /// Bytes so far.
    pub bytes_done: u64,
    /// Of how many, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
}

/// `event: part`: bytes of one of several things that a stage gets side by side. What they come
/// to together is told by `progress`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartEvent {
    /// Which; of an image, the digest of a layer or of its config.
    pub part: String,
    /// Bytes so far. They can go back, where something has to be fetched again.
    pub bytes_done: u64,
    /// Of how many.
    pub bytes_total: u64,
}

/// `event: log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogEvent {
    /// One line.
    pub line: String,
}

/// `event: vm` of `GET /events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmEvent {
    /// The VM.
    pub id: String,
    /// Its name.
    pub name: String,
    /// State before; absent for a new VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<State>,
    /// State now; absent when it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<State>,
    /// When.
    pub at: String,
    /// Why, where there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `event: disk_full` of `GET /events`: the host had no room for what a guest
/// wrote, and the guest met an I/O error. A disk that stays full is told of
/// once a minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskFullEvent {
    /// The VM.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `overlay` or `work`.
    pub disk: String,
    /// When.
    pub at: String,
}

/// `event: health` of `GET /events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthEvent {
    /// The VM.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The image's init is up.
    pub healthy: bool,
    /// When.
    pub at: String,
}
