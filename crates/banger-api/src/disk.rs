//! What banger keeps on the disk: explained, and given back.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /system/disk`: every byte of the state, cache and runtime directories
/// by what it is there for. The `used_bytes` of the rows add up to that of the
/// report: each file counts once, however many names it has. Extents that
/// copies share by reflink count for each copy, as `du` counts them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskReport {
    /// Sorted by kind and name.
    pub rows: Vec<DiskRow>,
    /// The directories, with their file systems.
    pub directories: Vec<DiskDirectory>,
    /// Lengths of all files.
    pub size_bytes: u64,
    /// What all of it takes on the disk.
    pub used_bytes: u64,
    /// What a reclaim gives back.
    pub reclaimable_bytes: u64,
    /// What a reclaim of images and kernels too gives back.
    pub reclaimable_with_images_bytes: u64,
    /// What could not be looked at, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// What the bytes of a row are there for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum DiskKind {
    /// A VM: its disks, logs and run.
    Vm,
    /// An image, or the kernel that an image brought.
    Image,
    /// A kernel.
    Kernel,
    /// Being made or removed just now.
    Unfinished,
    /// What can be fetched or made again.
    Cache,
    /// A log of the daemon or of a build.
    Log,
    /// Rows of VMs, images, kernels and operations.
    Database,
    /// Who is the daemon.
    Lock,
    /// Where the daemon listens.
    Socket,
    /// The configuration file, where it is in one of the directories.
    Config,
    /// Directories that hold the others.
    Directory,
    /// What has no owner.
    Leftover,
}

impl DiskKind {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Image => "image",
            Self::Kernel => "kernel",
            Self::Unfinished => "unfinished",
            Self::Cache => "cache",
            Self::Log => "log",
            Self::Database => "database",
            Self::Lock => "lock",
            Self::Socket => "socket",
            Self::Config => "config",
            Self::Directory => "directory",
            Self::Leftover => "leftover",
        }
    }
}

/// One thing that takes room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskRow {
    /// What it is.
    pub kind: DiskKind,
    /// Name of the VM, image or kernel; else of the file, or of the cache.
    pub name: String,
    /// Files and directories in it.
    pub files: u64,
    /// Lengths of its files.
    pub size_bytes: u64,
    /// What it takes on the disk. A file with names in several rows counts in
    /// the first of them only.
    pub used_bytes: u64,
    /// What its files take that have other names too, in other rows or outside.
    pub shared_bytes: u64,
    /// What rests on it.
    pub used_by: Vec<DiskUser>,
    /// What a reclaim gives back of it.
    pub reclaimable_bytes: u64,
    /// Only a reclaim of images and kernels too gives that back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub with_images: bool,
    /// More about it: `default image`, `default kernel`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What rests on something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskUser {
    /// `vm`, `image`, `kernel`, `pull` or `daemon`.
    pub kind: String,
    /// Its name; empty of what has none.
    pub name: String,
}

/// One of banger's directories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskDirectory {
    /// `state`, `cache` or `run`.
    pub name: String,
    /// Where it is.
    pub path: String,
    /// What is below it on the disk. One that is in another counts there.
    pub used_bytes: u64,
    /// Size of its file system; 0 where it cannot be asked.
    pub filesystem_total_bytes: u64,
    /// Free to the owner there.
    pub filesystem_free_bytes: u64,
}

/// `POST /system/disk/reclaim`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskReclaimParams {
    /// Only say what would go.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Also images and kernels that no VM uses.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub images: bool,
    /// The operation of an earlier dry run: only what that listed goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
}

/// What a reclaim planned and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReclaimReport {
    /// Nothing was touched.
    pub dry_run: bool,
    /// Images and kernels were looked at too.
    pub images: bool,
    /// In the order they go.
    pub items: Vec<ReclaimItem>,
    /// What the items would give back.
    pub bytes_planned: u64,
    /// What came back.
    pub bytes_freed: u64,
    /// How many items went.
    pub items_freed: u64,
    /// More that could go and was not listed, for length: reclaim again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// One thing that a reclaim takes away whole, or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReclaimItem {
    /// What it is.
    pub kind: DiskKind,
    /// By which name.
    pub name: String,
    /// What comes back.
    pub bytes: u64,
    /// By what a later look knows that it is still the same.
    pub identity: String,
    /// More about it: `default image`, `layer or config of a pulled image`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What came of it.
    pub outcome: ReclaimOutcome,
    /// Why it was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What came of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReclaimOutcome {
    /// Listed only.
    Planned,
    /// Gone.
    Freed,
    /// Still there, or gone by other hands.
    Skipped,
}
