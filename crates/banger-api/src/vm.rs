//! VMs: what clients ask, and what they are shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A VM as clients see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = VMRecord)]
pub struct VmRecord {
    /// 64 hex digits.
    pub id: String,
    /// Unique name; hostname of the guest.
    pub name: String,
    /// Image it boots.
    pub image_id: String,
    /// `created starting running paused stopping stopped error`.
    pub state: State,
    /// RFC 3339, UTC, whole seconds, like all times.
    pub created_at: String,
    /// Last change of the record.
    pub updated_at: String,
    /// Last use; what auto-stop looks at.
    pub last_touched_at: String,
    /// What was asked for.
    pub spec: VmSpec,
    /// What holds now.
    pub runtime: VmRuntime,
    /// Last measured use.
    pub stats: VmStats,
    /// Workspace in the guest; all fields absent where there is none.
    #[serde(default)]
    pub workspace: VmWorkspace,
}

/// State of a VM, computed from its phase, goal and last exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Never started.
    Created,
    /// Booting.
    Starting,
    /// The agent answers.
    Running,
    /// Frozen.
    Paused,
    /// Ending, or being deleted.
    Stopping,
    /// At rest.
    Stopped,
    /// At rest; the last run ended badly.
    Error,
}

impl State {
    /// The name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Error => "error",
        }
    }
}

/// What a VM was asked to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = VMSpec)]
pub struct VmSpec {
    /// Virtual CPUs.
    pub vcpu_count: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Size of the system overlay, bytes.
    pub system_overlay_size_bytes: u64,
    /// Size of the work disk, bytes.
    pub work_disk_size_bytes: u64,
    /// Whether the guest reaches the outside.
    pub nat_enabled: bool,
    /// `user` or `none`, later `bridge`.
    pub network_mode: String,
    /// `auto`, `qemu` or `firecracker`, as asked.
    pub engine: String,
    /// Kernel, chosen at create; absent where the image brings its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_name: Option<String>,
    /// Deleted by the daemon when its main exec is over.
    pub auto_remove: bool,
}

/// What holds now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = VMRuntime)]
pub struct VmRuntime {
    /// As in the record.
    pub state: String,
    /// Empty where the guest has no reachable address.
    pub guest_ip: String,
    /// Socket of the engine's API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_sock_path: Option<String>,
    /// Console of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_path: Option<String>,
    /// Directory of the VM.
    pub vm_dir: String,
    /// Disk for changes of the root filesystem.
    pub system_overlay_path: String,
    /// Disk on `/root`.
    pub work_disk_path: String,
    /// Why the last run ended badly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Why the guest has no way out although its mode gives it one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_error: Option<String>,
    /// `up paused down gone`.
    pub goal: String,
    /// `qemu` or `firecracker`; of the last run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// `kvm` or `tcg`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceleration: Option<String>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// `uname -r`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_version: Option<String>,
    /// Boot id of the guest's kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
}

/// Key of the gateway's counters in [`VmStats::metrics_raw`].
pub const NETWORK_METRICS: &str = "network";

/// Measured use.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = VMStats)]
pub struct VmStats {
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collected_at: Option<String>,
    /// 100 is one host CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    /// Resident memory of the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss_bytes: Option<u64>,
    /// Virtual memory of the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsz_bytes: Option<u64>,
    /// Allocated on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_overlay_bytes: Option<u64>,
    /// Allocated on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_disk_bytes: Option<u64>,
    /// What programs say of themselves; under `network` what went through the
    /// gateway since it started, and what it refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics_raw: BTreeMap<String, serde_json::Value>,
}

/// Workspace of a VM; empty until there are workspaces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = VMWorkspace)]
pub struct VmWorkspace {}

/// `POST /vms`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = VMCreateParams)]
pub struct VmCreateParams {
    /// Two random words when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Name or id; the default image when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_name: Option<String>,
    /// 1 to 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<i64>,
    /// 128 to host RAM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<i64>,
    /// A size like `8G`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_overlay_size: Option<String>,
    /// A size like `8G`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_disk_size: Option<String>,
    /// A way out, where the mode leaves a choice: `user` always has one, `none`
    /// never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat_enabled: Option<bool>,
    /// Create only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_start: bool,
    /// Kernel by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_name: Option<String>,
    /// `auto qemu firecracker`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// `auto none user bridge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_mode: Option<String>,
    /// Delete it when its main exec is over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auto_remove: bool,
    /// An exec marked `main` follows at once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub main_follows: bool,
}

/// `PATCH /vms/{vm}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = VMSetParams)]
pub struct VmSetParams {
    /// 1 to 32; of a stopped VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<i64>,
    /// MiB; of a stopped VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<i64>,
    /// Grows only; of a stopped VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_disk_size: Option<String>,
    /// A way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat_enabled: Option<bool>,
    /// Grows only; of a stopped VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_overlay_size: Option<String>,
    /// New name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// `POST ./kill`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = VMKillParams)]
pub struct VmKillParams {
    /// `TERM INT KILL`; `KILL` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
}

/// `POST ./stop`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = VMStopParams)]
pub struct VmStopParams {
    /// For guest processes to end; 5000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// `GET /vms`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = VMListResult)]
pub struct VmListResult {
    /// Sorted by name.
    pub vms: Vec<VmRecord>,
}

/// One VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = VMShowResult)]
pub struct VmShowResult {
    /// The VM.
    pub vm: VmRecord,
}

/// `GET ./stats`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = VMStatsResult)]
pub struct VmStatsResult {
    /// The VM.
    pub vm: VmRecord,
    /// Measured now where it lives.
    pub stats: VmStats,
}

/// `GET ./logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = VMLogsResult)]
pub struct VmLogsResult {
    /// Console of the guest.
    pub log_path: String,
}

/// `GET ./health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = VMHealthResult)]
pub struct VmHealthResult {
    /// The VM.
    pub name: String,
    /// The image's init is up.
    pub healthy: bool,
}

/// `GET ./ping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = VMPingResult)]
pub struct VmPingResult {
    /// The VM.
    pub name: String,
    /// The agent answers.
    pub alive: bool,
}

/// `POST ./exec`: the body of the request that is upgraded to frames.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecParams {
    /// Program; empty for the user's login shell.
    #[serde(default)]
    pub command: String,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// `name`, `uid`, with optional `:group`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Standard input will come.
    #[serde(default)]
    pub stdin: bool,
    /// A PTY.
    #[serde(default)]
    pub tty: bool,
    /// Columns of the PTY.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cols: Option<u16>,
    /// Rows of the PTY.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
    /// TERM after it, KILL 10 s later; exit 124.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// The command of `run`: with `auto_remove` the VM lives as long as this
    /// stream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub main: bool,
}
