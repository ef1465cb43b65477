//! The table of endpoints: method, path, request and reply, once.
//!
//! Paths are below `/v1`. `{name}` stands for one percent-encoded segment.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Empty;
use crate::disk::{DiskReclaimParams, DiskReport};
use crate::image::{
    ImageBuildParams, ImageCachePruneParams, ImageCachePruneResult, ImageListResult,
    ImagePullParams, ImageRegisterParams, ImageShowResult,
};
use crate::kernel::{KernelImportParams, KernelListResult, KernelPullParams, KernelShowResult};
use crate::operation::{OperationListResult, OperationResult};
use crate::system::{DoctorReport, PingResult, ShutdownParams, ShutdownResult, SystemInfo};
use crate::vm::{
    VmCreateParams, VmHealthResult, VmKillParams, VmListResult, VmLogsResult, VmPingResult,
    VmSetParams, VmShowResult, VmStatsResult, VmStopParams,
};

/// HTTP method of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Reads.
    Get,
    /// Does.
    Post,
    /// Changes.
    Patch,
    /// Removes.
    Delete,
}

impl Method {
    /// As HTTP spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// One endpoint with a JSON (or no) request and a JSON reply.
pub trait Endpoint {
    /// Method.
    const METHOD: Method;
    /// Path with `{placeholders}`, without the `/v1` prefix.
    const PATH: &'static str;
    /// Status of a success: 200, or 202 where the reply is an operation.
    const STATUS: u16;
    /// Request body; [`Empty`] for none.
    type Request: Serialize + DeserializeOwned + Send;
    /// Reply body.
    type Reply: Serialize + DeserializeOwned + Send;
}

macro_rules! endpoints {
    ($($(#[$doc:meta])* $name:ident $method:ident $path:literal $status:literal $req:ty => $reply:ty;)*) => {
        $($(#[$doc])* pub struct $name;
        impl Endpoint for $name {
            const METHOD: Method = Method::$method;
            const PATH: &'static str = $path;
            const STATUS: u16 = $status;
            type Request = $req;
            type Reply = $reply;
        })*

        /// Method, path and status of every endpoint above, for the document
        /// and the tests.
        pub const ALL: &[(Method, &str, u16)] = &[$((Method::$method, $path, $status)),*];
    };
}

endpoints! {
    /// The daemon answers.
    Ping Get "/ping" 200 Empty => PingResult;
    /// Daemon and host.
    System Get "/system" 200 Empty => SystemInfo;
    /// Findings of doctor.
    Doctor Get "/system/doctor" 200 Empty => DoctorReport;
    /// What takes room on the disk.
    Disk Get "/system/disk" 200 Empty => DiskReport;
    /// Give back what nothing references.
    DiskReclaim Post "/system/disk/reclaim" 202 DiskReclaimParams => OperationResult;
    /// End the daemon.
    Shutdown Post "/system/shutdown" 200 ShutdownParams => ShutdownResult;
    /// All VMs; `?state=`.
    VmList Get "/vms" 200 Empty => VmListResult;
    /// Make a VM.
    VmCreate Post "/vms" 202 VmCreateParams => OperationResult;
    /// One VM.
    VmShow Get "/vms/{vm}" 200 Empty => VmShowResult;
    /// Change a VM.
    VmSet Patch "/vms/{vm}" 200 VmSetParams => VmShowResult;
    /// Stop and remove a VM; `?unless_running=true`.
    VmDelete Delete "/vms/{vm}" 202 Empty => OperationResult;
    /// Boot.
    VmStart Post "/vms/{vm}/start" 202 Empty => OperationResult;
    /// Stop, then boot.
    VmRestart Post "/vms/{vm}/restart" 202 Empty => OperationResult;
    /// End the guest gracefully.
    VmStop Post "/vms/{vm}/stop" 202 VmStopParams => OperationResult;
    /// End the engine.
    VmKill Post "/vms/{vm}/kill" 202 VmKillParams => OperationResult;
    /// Use of CPU, memory, disks.
    VmStats Get "/vms/{vm}/stats" 200 Empty => VmStatsResult;
    /// Where the console is; `?content=true&tail=N&follow=true` gives text instead.
    VmLogs Get "/vms/{vm}/logs" 200 Empty => VmLogsResult;
    /// The image's init is up.
    VmHealth Get "/vms/{vm}/health" 200 Empty => VmHealthResult;
    /// The agent answers.
    VmPing Get "/vms/{vm}/ping" 200 Empty => VmPingResult;
    /// All images; `?available=true` those of the catalog, as
    /// [`crate::image::ImageCatalogResult`].
    ImageList Get "/images" 200 Empty => ImageListResult;
    /// Fetch an image, by a name of the catalog or from a registry.
    ImagePull Post "/images/pull" 202 ImagePullParams => OperationResult;
    /// Take a host's file as image.
    ImageRegister Post "/images/register" 200 ImageRegisterParams => ImageShowResult;
    /// Build an image from a Debian suite, or of another image.
    ImageBuild Post "/images/build" 202 ImageBuildParams => OperationResult;
    /// Copy the files of an unmanaged image into banger's keeping.
    ImagePromote Post "/images/{image}/promote" 202 Empty => OperationResult;
    /// Remove blobs that no pull uses.
    ImageCachePrune Post "/images/cache/prune" 200 ImageCachePruneParams => ImageCachePruneResult;
    /// One image.
    ImageShow Get "/images/{image}" 200 Empty => ImageShowResult;
    /// Forget an image, and its files where banger owns them.
    ImageDelete Delete "/images/{image}" 200 Empty => ImageShowResult;
    /// All kernels; `?available=true` those of the catalog, as
    /// [`crate::kernel::KernelCatalogResult`].
    KernelList Get "/kernels" 200 Empty => KernelListResult;
    /// Fetch a kernel.
    KernelPull Post "/kernels/pull" 202 KernelPullParams => OperationResult;
    /// Take a kernel from the host's files.
    KernelImport Post "/kernels/import" 200 KernelImportParams => KernelShowResult;
    /// One kernel.
    KernelShow Get "/kernels/{kernel}" 200 Empty => KernelShowResult;
    /// Remove a kernel.
    KernelDelete Delete "/kernels/{kernel}" 200 Empty => Empty;
    /// Operations; `?running=true`.
    OperationList Get "/operations" 200 Empty => OperationListResult;
    /// One operation; `?wait=30s` holds the answer until it is done, 10 min at most.
    OperationShow Get "/operations/{id}" 200 Empty => OperationResult;
    /// Cancel an operation.
    OperationCancel Delete "/operations/{id}" 202 Empty => OperationResult;
}

/// Server-sent events of VMs: `?vm=` (repeatable) and `?since=` (RFC 3339).
pub const EVENTS: &str = "/events";
/// Server-sent events of one operation; `?watched=true` where a person reads
/// them as they come: only then notes of the daemon are among them.
pub const OPERATION_EVENTS: &str = "/operations/{id}/events";
/// `POST` [`crate::vm::ExecParams`] with an upgrade to frames.
pub const EXEC: &str = "/vms/{vm}/exec";

/// Puts references into a path, percent-encoded.
///
/// # Panics
/// When the number of values is not that of the placeholders: a defect of the
/// caller.
#[must_use]
pub fn fill(path: &str, values: &[&str]) -> String {
    let mut out = String::from("/v1");
    let mut values = values.iter();
    for segment in path.split('/').skip(1) {
        out.push('/');
        if segment.starts_with('{') {
            let value = values.next().expect("a value for every placeholder");
            for byte in value.bytes() {
                if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                    out.push(char::from(byte));
                } else {
                    out.push_str(&format!("%{byte:02X}"));
                }
            }
        } else {
            out.push_str(segment);
        }
    }
    assert!(
        values.next().is_none(),
        "more values than placeholders in {path}"
    );
    out
}
