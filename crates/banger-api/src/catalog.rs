//! Catalogs as files, and the bundles that they speak of: what `bangerd
//! --make-bundle` is asked and answers.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The version of [`Catalog`].
pub const VERSION: u64 = 1;

/// A catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    /// [`VERSION`].
    pub version: u64,
    /// Each an [`Entry`]; read one by one, so that a bad one can be named.
    pub entries: Vec<serde_json::Value>,
}

/// Something that can be had by name. Either it is a bundle, with its address
/// and its digest, or it has a recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// `image` or `kernel`. Where it is absent, a recipe says, and a bundle is
    /// a kernel's if it has a kernel version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Unique among images, or among kernels, of one architecture.
    pub name: String,
    /// `debian`, `debian bookworm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distro: Option<String>,
    /// `amd64`, `arm64`; absent for every host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// `uname -r`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_version: Option<String>,
    /// Of an image: the kernel that it boots with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_ref: Option<String>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// `suite:SUITE`, `deb:PACKAGE`, or an OCI reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
    /// `https:`, `http:` or `file:`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tarball_url: Option<String>,
    /// Of the whole file, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tarball_sha256: Option<String>,
    /// Of what is fetched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
}

/// A bundle to make. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleParams {
    /// Where to write it; must not be there.
    pub out: String,
    /// What its manifest says.
    pub name: String,
    /// What its manifest says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distro: Option<String>,
    /// What its manifest says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// What goes into it.
    pub from: BundleSource,
}

/// What a bundle is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BundleSource {
    /// An image: of a tar archive.
    Image {
        /// The archive; standard input when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rootfs_tar: Option<String>,
        /// The kernel that it boots with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kernel_ref: Option<String>,
        /// Of the file system; content and half as much again when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size_bytes: Option<u64>,
    },
    /// A kernel: of a directory, as `kernel import` takes it.
    KernelDir(String),
    /// A kernel: of a Debian package.
    KernelDeb(String),
}

/// How the making of a bundle ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BundleResult {
    /// It is there. This is its entry for a catalog, with the path as address.
    Made {
        /// The entry.
        entry: Entry,
        /// What its maker should know.
        warnings: Vec<String>,
    },
    /// It is not.
    Failed(Error),
}
