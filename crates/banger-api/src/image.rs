//! Images.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kernel::KernelCatalogEntry;

/// An image as clients see it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// 64 hex digits.
    pub id: String,
    /// Unique name.
    pub name: String,
    /// banger owns the files.
    pub managed: bool,
    /// Directory of a managed image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_dir: Option<String>,
    /// The root filesystem.
    pub rootfs_path: String,
    /// The image's `/root` as an ext4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_seed_path: Option<String>,
    /// Kernel file given at register, or kept with a managed image; maybe empty.
    #[serde(default)]
    pub kernel_path: String,
    /// Initrd of that kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<String>,
    /// Modules of that kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules_dir: Option<String>,
    /// Size it was built with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_size: Option<String>,
    /// When it appeared.
    pub created_at: String,
    /// Last change.
    pub updated_at: String,
    /// Kernel it asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_name: Option<String>,
    /// `amd64`, `arm64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// `debian bookworm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distro: Option<String>,
    /// Allocated bytes of the root filesystem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Configuration of an OCI image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciConfig>,
}

/// What an OCI image says of itself, and where it is from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OciConfig {
    /// What was asked for, spelled out: `docker.io/library/debian:12`,
    /// `oci-layout:/srv/app:1`.
    #[serde(default)]
    pub reference: String,
    /// Of the manifest, or of the config where it is from a docker archive,
    /// which has none: `sha256:` and 64 hex digits.
    #[serde(default)]
    pub digest: String,
    /// `linux/amd64`.
    #[serde(default)]
    pub platform: String,
    /// `K=V`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working directory of commands.
    #[serde(default)]
    pub working_dir: String,
    /// `USER[:GROUP]` of the image's own command.
    #[serde(default)]
    pub user: String,
    /// The image's own command: what is always run.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// The image's own command: what may be replaced.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// `POST /images/register`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageRegisterParams {
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// An ext4 file of the host, absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs_path: Option<String>,
    /// An ext4 of the image's `/root`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_seed_path: Option<String>,
    /// Kernel file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_path: Option<String>,
    /// Initrd file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<String>,
    /// Modules directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules_dir: Option<String>,
    /// A local kernel by name; excludes the three before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_ref: Option<String>,
    /// Kept for older clients; does nothing on registering.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub docker: bool,
}

/// `POST /images/pull`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImagePullParams {
    /// A name of the catalog, `oci-layout:DIR[:TAG]` or
    /// `docker-archive:FILE[:TAG]` with an absolute path, or an OCI reference
    /// by tag or digest, as docker spells it.
    #[serde(rename = "ref")]
    pub reference: String,
    /// The name of the catalog, `repository-tag`, or what the directory or file
    /// is called, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Kernel file of its own; banger keeps a copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_path: Option<String>,
    /// Initrd file of that kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<String>,
    /// Modules directory of that kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules_dir: Option<String>,
    /// A local kernel that it boots with, by name; excludes the three before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_ref: Option<String>,
    /// Size of the root filesystem; its content and half as much again, and at
    /// least 1 GiB, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
}

/// `POST /images/build`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageBuildParams {
    /// `debian-SUITE` when absent; an image that is made of another has none
    /// by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The image it is made of, by name or id: a VM of it runs the script or
    /// installs the packages, and its root becomes the new image. Excludes
    /// `suite`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_image: Option<String>,
    /// Size of the root filesystem, like `4GiB`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// Kernel file of its own; banger keeps a copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_path: Option<String>,
    /// Initrd file of that kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<String>,
    /// Modules directory of that kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules_dir: Option<String>,
    /// Packages to add, as the distribution names them. With `from_image`,
    /// excludes `script`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
    /// A program for root in a VM of `from_image`: text with its interpreter
    /// in the first line, else of `sh`; at most 1 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// Adds Docker, of the distribution's own packages, before anything else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub docker: bool,
    /// A Debian suite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<String>,
}

/// `POST /images/cache/prune`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageCachePruneParams {
    /// Only count what would go.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageCachePruneResult {
    /// Bytes of the disk that came back, or would.
    pub bytes_freed: u64,
    /// Blobs and parts that went, or would.
    pub blobs_freed: u64,
    /// Nothing was touched.
    pub dry_run: bool,
    /// Where blobs are.
    pub cache_dir: String,
}

/// `GET /images`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageListResult {
    /// Sorted by name.
    pub images: Vec<Image>,
}

/// `GET /images?available=true`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageCatalogResult {
    /// Sorted by name.
    pub entries: Vec<KernelCatalogEntry>,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageShowResult {
    /// The image.
    pub image: Image,
}
