//! An OCI image made bootable: its config read, its layers merged and written as ext4.
//!
//! Refuses configs that are no JSON object of the form the OCI image specification gives; what
//! of one cannot be used in a guest is left out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ext4::{self, ImageOptions, RootFiles, WriteError};
use crate::os_release;
use crate::progress::{Cancel, Report};
use crate::tar::{Limits, TarError};
use crate::tree::{self, ReadError, Source, Wanted};

/// Values of one kind that a config may have.
const COUNT_LIMIT: usize = 4096;
/// Letters of a digest: those of SHA-512, and some.
const DIGEST_LIMIT: usize = 160;
/// When file systems of pulled images say they were made, seconds since 1970: never the time of
/// the pull.
const EPOCH: u32 = 1;

/// An OCI image could not be made bootable.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The config is not one.
    #[error("the image's config cannot be read")]
    Config(#[source] serde_json::Error),
    /// The config has more than any image needs.
    #[error("the image's config has more than {COUNT_LIMIT} {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
    },
    /// The config is of other layers.
    #[error("the image has {layers} layers, and its config names {named}")]
    LayerCount {
        /// What there are.
        layers: usize,
        /// What it names.
        named: usize,
    },
    /// The layers.
    #[error(transparent)]
    Layers(#[from] ReadError),
    /// The image.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What of an image's config matters to a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// As Go names it: `amd64`.
    pub architecture: String,
    /// `K=V`.
    pub env: Vec<String>,
    /// Absolute, or empty.
    pub working_dir: String,
    /// `USER[:GROUP]`, or empty.
    pub user: String,
    /// What the image's own command always begins with.
    pub entrypoint: Vec<String>,
    /// The rest of it.
    pub cmd: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Digests of the layers unpacked, the lowest first.
    pub diff_ids: Vec<String>,
}

impl Config {
    /// Reads a config.
    ///
    /// # Errors
    /// [`OciError::Config`], [`OciError::TooMuch`].
    pub fn parse(json: &[u8]) -> Result<Config, OciError> {
        let document: Document = serde_json::from_slice(json).map_err(OciError::Config)?;
        let inner = document.config.unwrap_or_default();
        let mut env = inner.env.unwrap_or_default();
        let diff_ids = document.rootfs.and_then(|rootfs| rootfs.diff_ids);
        let mut diff_ids = diff_ids.unwrap_or_default();
        // What is longer is no digest.
        diff_ids
            .iter_mut()
            .for_each(|id| *id = id.chars().take(DIGEST_LIMIT).collect());
        for (what, count) in [
            ("variables", env.len()),
            (
                "words of a command",
                inner.entrypoint.iter().flatten().count(),
            ),
            ("words of a command", inner.cmd.iter().flatten().count()),
            ("labels", inner.labels.iter().flatten().count()),
            ("layers", diff_ids.len()),
        ] {
            if count > COUNT_LIMIT {
                return Err(OciError::TooMuch { what });
            }
        }
        env.retain(|pair| {
            let name = pair.split_once('=').map(|(name, _)| name);
            name.is_some_and(|name| !name.is_empty()) && !pair.contains('\0')
        });
        let working_dir = inner.working_dir.unwrap_or_default();
        let usable = working_dir.starts_with('/') && !working_dir.contains('\0');
        Ok(Config {
            architecture: document.architecture.unwrap_or_default(),
            env,
            working_dir: if usable { working_dir } else { String::new() },
            user: inner.user.unwrap_or_default(),
            entrypoint: inner.entrypoint.unwrap_or_default(),
            cmd: inner.cmd.unwrap_or_default(),
            labels: inner.labels.unwrap_or_default(),
            diff_ids,
        })
    }
}

#[derive(Deserialize)]
struct Document {
    architecture: Option<String>,
    config: Option<Inner>,
    rootfs: Option<Rootfs>,
}

#[derive(Deserialize)]
struct Rootfs {
    diff_ids: Option<Vec<String>>,
}

/// Every field may be absent or null.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inner {
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    labels: Option<BTreeMap<String, String>>,
}

/// What makes an image besides its layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Size of the root filesystem; what [`ext4::roomy_size`] says when absent.
    pub size_bytes: Option<u64>,
    /// Of the root filesystem, so that one image is always the same bytes.
    pub uuid: [u8; 16],
    /// What each layer has to unpack to, the lowest first: `sha256:` and the digest. Whatever it
    /// is, when absent.
    pub diff_ids: Option<Vec<String>>,
}

impl Order {
    /// Whether it is of so many layers.
    ///
    /// # Errors
    /// [`OciError::LayerCount`].
    pub fn check(&self, layers: usize) -> Result<(), OciError> {
        match &self.diff_ids {
            Some(ids) if ids.len() != layers => Err(OciError::LayerCount {
                layers,
                named: ids.len(),
            }),
            _ => Ok(()),
        }
    }
}

/// What was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Size of the root filesystem; its file is sparse.
    pub size_bytes: u64,
    /// There is a seed of work disks.
    pub seed: bool,
    /// `debian bookworm`, as the image says of itself.
    pub distro: Option<String>,
}

/// Merges layers, the lowest first, into root files. The same layers and order make the same
/// bytes.
///
/// # Errors
/// [`OciError`]; the files are then of no use.
pub fn write(
    layers: Vec<Source>,
    files: &RootFiles,
    order: &Order,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Written, OciError> {
    order.check(layers.len())?;
    report.stage("read_layers", "");
    let limits = Limits::default();
    let wanted = Wanted {
        diff_ids: order.diff_ids.as_deref(),
        limits: &limits,
    };
    let (tree, sources) = tree::from_layers_kept(layers, &files.unpacked, &wanted, cancel, report)?;
    report.stage("write_image", "");
    let options = ImageOptions {
        uuid: Some(order.uuid),
        epoch: EPOCH,
        ..ImageOptions::of_root(&tree, order.size_bytes, false)
    };
    let root = ext4::write_root(&tree, &sources, files, &options, cancel, report)?;
    Ok(Written {
        size_bytes: options.size_bytes,
        seed: root.seed,
        distro: root.os_release.as_deref().and_then(os_release::distro),
    })
}

impl OciError {
    /// The disk is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            OciError::Write(error) => error.is_no_space(),
            _ => false,
        }
    }

    /// The caller cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(
            self,
            OciError::Layers(ReadError::Cancelled(_)) | OciError::Write(WriteError::Cancelled(_))
        )
    }

    /// A size that the image fits into, when that asked for is too small and a larger one can be.
    #[must_use]
    pub fn needs(&self) -> Option<u64> {
        match self {
            OciError::Write(error) => error.needs(),
            _ => None,
        }
    }

    /// The image itself is at fault, not this host.
    #[must_use]
    pub fn is_of_the_image(&self) -> bool {
        match self {
            OciError::Config(_) | OciError::TooMuch { .. } | OciError::LayerCount { .. } => true,
            OciError::Layers(ReadError::Tar(TarError::Io(cause))) => {
                // What a decompressor says of its input; the file itself was verified whole.
                cause.raw_os_error().is_none()
            }
            OciError::Layers(ReadError::Tar(_) | ReadError::Differs { .. }) => true,
            OciError::Write(WriteError::Layout { .. } | WriteError::TooSmall { .. }) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_cannot_use_is_left_out_and_null_is_nothing() {
        let json = br#"{"architecture":"amd64","config":{
            "Env":["PATH=/bin","=x","lonely","A=b=c","N=a\u0000b"],"WorkingDir":"srv",
            "User":"bob:staff","Entrypoint":["/init"],"Cmd":null,"Labels":{"a":"b"}}}"#;
        let config = Config::parse(json).unwrap();
        assert_eq!(config.env, ["PATH=/bin", "A=b=c"]);
        assert_eq!(config.working_dir, "", "it is not absolute");
        assert_eq!((config.user.as_str(), config.cmd.len()), ("bob:staff", 0));
        assert_eq!(config.entrypoint, ["/init"]);
        assert_eq!(config.labels["a"], "b");
        assert_eq!(Config::parse(b"{}").unwrap(), Config::default());
        assert_eq!(
            Config::parse(br#"{"config":null,"architecture":null}"#).unwrap(),
            Config::default()
        );
        for bad in [&b"[]"[..], b"{\"config\":[]}", b"nonsense"] {
            assert!(matches!(Config::parse(bad), Err(OciError::Config(_))));
        }
        let many = vec!["A=b"; COUNT_LIMIT + 1];
        let json = serde_json::json!({ "config": { "Env": many } });
        assert!(matches!(
            Config::parse(json.to_string().as_bytes()),
            Err(OciError::TooMuch { .. })
        ));
    }
}
