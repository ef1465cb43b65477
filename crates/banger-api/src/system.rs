//! The daemon itself and its host.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /ping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PingResult {
    /// `ok`.
    pub status: String,
    /// The daemon.
    pub pid: u32,
    /// Dashboard, where it is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub web_url: Option<String>,
    /// Version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// When it was built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built_at: Option<String>,
    /// Whether a newer build may restart this daemon now: no operation runs,
    /// no exec is open, no `--rm` VM lives.
    #[serde(default)]
    pub idle: bool,
}

/// `GET /system`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SystemInfo {
    /// The daemon.
    pub pid: u32,
    /// Its socket.
    pub socket: String,
    /// State directory.
    pub state_dir: String,
    /// Cache directory.
    pub cache_dir: String,
    /// Runtime directory.
    pub run_dir: String,
    /// Log file.
    pub log_path: String,
    /// Engine that `auto` takes now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// `kvm` or `tcg`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceleration: Option<String>,
    /// Why, or why none.
    pub engine_reason: String,
    /// Defaults of new VMs, with where they come from.
    pub vm_defaults: Vec<VmDefault>,
}

/// A default of new VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmDefault {
    /// `vcpu`, `memory_mib`, `disk_size`, `system_overlay_size`.
    pub field: String,
    /// As it is printed.
    pub value: String,
    /// `config`, `auto` or `builtin`.
    pub origin: String,
}

/// `GET /system/doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoctorReport {
    /// In the order they are printed.
    pub rows: Vec<DoctorRow>,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoctorRow {
    /// `PASS WARN FAIL`.
    pub status: DoctorStatus,
    /// What was looked at.
    pub title: String,
    /// What was found, and what to do.
    pub details: Vec<String>,
}

/// Verdict of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum DoctorStatus {
    /// Fine.
    Pass,
    /// Works, with less.
    Warn,
    /// Something will not work.
    Fail,
}

/// `POST /system/shutdown`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShutdownParams {
    /// Stop the VMs too; otherwise they run on.
    #[serde(default)]
    pub with_vms: bool,
}

/// Its answer, given before the daemon ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShutdownResult {
    /// `stopping`.
    pub status: String,
}
