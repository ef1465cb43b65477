//! Manifests, indexes and configs as documents: what they say, and whether it is an image for
//! this host. No I/O.
//!
//! The shape decides, not the media type: registries and tools disagree about types, and a
//! document that is index and manifest at once is refused instead of read in either way.

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{RegistryError, plain};
use crate::limits::Limits;

/// Layers that hold a root filesystem, as OCI and docker name them. How a layer is compressed is
/// read from its first bytes.
const LAYERS: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];
const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
/// How BuildKit marks an entry that describes another one.
const ATTESTATION: &str = "vnd.docker.reference.type";
/// Platforms named in an error.
const SHOWN: usize = 12;

/// A blob as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// What it says it is.
    pub media_type: String,
    /// Its content.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

impl Descriptor {
    /// Whether it says that it is a layer that is not packed.
    pub(crate) fn is_plain(&self) -> bool {
        self.media_type.ends_with(".tar")
    }
}

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageManifest {
    /// Of the manifest itself: of the platform's, where there was an index.
    pub digest: Digest,
    /// The config.
    pub config: Descriptor,
    /// Lowest first. One layer can be in it twice.
    pub layers: Vec<Descriptor>,
}

/// Whom an image must be for. The system is always Linux.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// As Go names it: `amd64`, `arm64`.
    pub architecture: String,
    /// As in `v8`, where the architecture has them.
    pub variant: Option<String>,
}

impl Platform {
    /// Of this program.
    #[must_use]
    pub fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            other => (other, None),
        };
        Platform {
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// How well the other one fits, best lowest; `None` when it does not run here.
    fn rank(&self, other: &Named) -> Option<u8> {
        if other.os != "linux" || other.architecture != self.architecture {
            return None;
        }
        let theirs = other.variant.as_deref().filter(|text| !text.is_empty());
        // What the architecture means without a variant.
        let base = match self.architecture.as_str() {
            "amd64" => Some("v1"),
            "arm64" => Some("v8"),
            _ => None,
        };
        match (self.variant.as_deref(), theirs) {
            (mine, theirs) if mine == theirs => Some(0),
            (_, None) => Some(1),
            (_, theirs) if theirs == base => Some(2),
            _ => None,
        }
    }
}

/// A platform in a document.
#[derive(Debug, Clone, Deserialize, Default)]
#[serde(default)]
struct Named {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Named {
    fn shown(&self) -> String {
        let mut text = format!("{}/{}", self.os, self.architecture);
        if let Some(variant) = self.variant.as_deref().filter(|text| !text.is_empty()) {
            text = format!("{text}/{variant}");
        }
        plain(&text)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Raw {
    #[serde(default)]
    schema_version: u64,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    pub(crate) manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    pub(crate) digest: String,
    size: u64,
    platform: Option<Named>,
    #[serde(default)]
    annotations: Option<std::collections::HashMap<String, String>>,
}

impl RawDescriptor {
    fn checked(self, what: &str) -> Result<Descriptor, RegistryError> {
        let digest = self.digest.parse().map_err(|_| {
            unsupported(what, format!("{} is no sha256 digest", plain(&self.digest)))
        })?;
        Ok(Descriptor {
            media_type: plain(&self.media_type),
            digest,
            size: self.size,
        })
    }

    /// What an annotation of this name says.
    pub(crate) fn note(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }

    pub(crate) fn is_attestation(&self) -> bool {
        let marked = |notes: &std::collections::HashMap<_, _>| notes.contains_key(ATTESTATION);
        self.annotations.as_ref().is_some_and(marked)
            || self
                .platform
                .as_ref()
                .is_some_and(|named| named.os == "unknown" || named.architecture == "unknown")
    }
}

/// What a manifest's address led to.
#[derive(Debug)]
pub(crate) enum Document {
    Image(ImageManifest),
    /// An index or manifest list; the one for our platform.
    Elsewhere(Descriptor),
}

pub(crate) fn unsupported(what: &str, why: String) -> RegistryError {
    RegistryError::Unsupported {
        what: what.to_owned(),
        why,
    }
}

/// Reads a manifest or index. `what` is its name in errors.
pub(crate) fn parse(
    bytes: &[u8],
    what: &str,
    platform: &Platform,
    limits: &Limits,
) -> Result<Document, RegistryError> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|cause| RegistryError::Damaged {
        what: what.to_owned(),
        why: format!("it is no manifest: {}", plain(&cause.to_string())),
    })?;
    if raw.schema_version == 1 {
        return Err(unsupported(
            what,
            "its manifest is of schema 1, which docker gave up; push it again".to_owned(),
        ));
    }
    if raw.schema_version != 2 {
        let version = raw.schema_version;
        return Err(unsupported(
            what,
            format!("its manifest is of schema {version}"),
        ));
    }
    match (raw.config, raw.layers, raw.manifests) {
        (None, None, Some(entries)) => choose(entries, what, platform).map(Document::Elsewhere),
        (Some(config), Some(layers), None) => {
            image(Digest::of(bytes), config, layers, what, limits).map(Document::Image)
        }
        (_, _, Some(_)) => Err(RegistryError::Damaged {
            what: what.to_owned(),
            why: "it is index and manifest at once".to_owned(),
        }),
        (_, _, None) => Err(unsupported(
            what,
            "it has no config or no layers".to_owned(),
        )),
    }
}

/// The entry for our platform.
pub(crate) fn choose(
    entries: Vec<RawDescriptor>,
    what: &str,
    platform: &Platform,
) -> Result<Descriptor, RegistryError> {
    let mut offered = Vec::new();
    let mut best: Option<(u8, RawDescriptor)> = None;
    for entry in entries {
        if entry.is_attestation() {
            continue;
        }
        let rank = match &entry.platform {
            Some(named) => {
                if offered.len() < SHOWN {
                    offered.push(named.shown());
                }
                platform.rank(named)
            }
            // Its config will tell.
            None => Some(u8::MAX),
        };
        // Of equals the first: that is docker's choice.
        if let Some(rank) = rank
            && best.as_ref().is_none_or(|(other, _)| rank < *other)
        {
            best = Some((rank, entry));
        }
    }
    match best {
        Some((_, entry)) => entry.checked(what),
        None => {
            let wanted = &platform.architecture;
            let why = match offered.is_empty() {
                true => "it is for no platform".to_owned(),
                false => format!("it is for {}, not linux/{wanted}", offered.join(", ")),
            };
            Err(unsupported(what, why))
        }
    }
}

fn image(
    digest: Digest,
    config: RawDescriptor,
    layers: Vec<RawDescriptor>,
    what: &str,
    limits: &Limits,
) -> Result<ImageManifest, RegistryError> {
    if !CONFIGS.contains(&config.media_type.as_str()) {
        let kind = plain(&config.media_type);
        return Err(unsupported(what, format!("it is no image but {kind}")));
    }
    if config.size > limits.document {
        return Err(unsupported(
            what,
            format!("its config has {} bytes", config.size),
        ));
    }
    if layers.is_empty() {
        return Err(unsupported(what, "it has no layers".to_owned()));
    }
    if layers.len() > limits.layers {
        return Err(unsupported(what, format!("it has {} layers", layers.len())));
    }
    let mut total = config.size;
    for layer in &layers {
        if !LAYERS.contains(&layer.media_type.as_str()) {
            let kind = plain(&layer.media_type);
            return Err(unsupported(what, format!("it has a layer of kind {kind}")));
        }
        total = total.saturating_add(layer.size);
    }
    if total > limits.image {
        return Err(unsupported(what, format!("it has {total} bytes")));
    }
    Ok(ImageManifest {
        digest,
        config: config.checked(what)?,
        layers: layers
            .into_iter()
            .map(|layer| layer.checked(what))
            .collect::<Result<_, _>>()?,
    })
}

/// Whether the config is one for this host. An image without an index tells its platform only
/// here.
pub(crate) fn check_config(
    bytes: &[u8],
    what: &str,
    platform: &Platform,
) -> Result<(), RegistryError> {
    let named: Named = serde_json::from_slice(bytes).map_err(|cause| RegistryError::Damaged {
        what: format!("the config of {what}"),
        why: format!("it is no config: {}", plain(&cause.to_string())),
    })?;
    match platform.rank(&named) {
        Some(_) => Ok(()),
        None => {
            let (theirs, ours) = (named.shown(), &platform.architecture);
            Err(unsupported(
                what,
                format!("it is for {theirs}, not linux/{ours}"),
            ))
        }
    }
}

#[cfg(test)]
#[path = "document/tests.rs"]
mod tests;
