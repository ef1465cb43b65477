//! Everything between an image reference and verified blobs on disk.
//!
//! ```text
//! "debian:12" -> Reference -> manifest (index: ours) -> config, layers -> Cache
//!                             asked anonymously, then with docker's login
//! ```
//!
//! Nothing is believed that was not hashed, everything read is bounded by [`Limits`], and a pull
//! that ends early, for whatever reason, leaves only parts that the next one goes on with. What
//! is in the layers is not looked at here. Files of this host are another source, in [`local`].
//!
//! [`Client::download`] does the same for one file at an address, where its digest is known.
#![forbid(unsafe_code)]

mod auth;
mod blob;
mod cache;
mod digest;
mod document;
mod download;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod helper;
mod http;
mod limits;
pub mod local;
mod manifest;
mod reference;
mod session;
mod source;
mod token;

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio_util::sync::CancellationToken;

pub use auth::default_file as default_auth_file;
pub use blob::{Count, Progress, Step};
pub use cache::{Blob, Cache, Hold};
pub use digest::{BadDigest, Digest};
pub use document::{Descriptor, ImageManifest, Platform};
pub use error::{RegistryError, Remedy};
pub use limits::Limits;
pub use reference::Reference;
pub use source::{Form, Local, Source};

use crate::auth::Logins;
use crate::blob::Tally;
use crate::http::{Clear, Clients};
use crate::session::Session;

/// What a [`Client`] is made from. The default is what a user of docker expects.
#[derive(Debug, Clone)]
pub struct Config {
    /// Registries without TLS, as `host` or `host:port`. Loopback needs no entry.
    pub insecure_registries: Vec<String>,
    /// Docker's `config.json`; `None` is always anonymous. A missing file is, too.
    pub auth_file: Option<PathBuf>,
    /// Where credential helpers are looked for, instead of in `PATH`.
    pub helper_path: Option<OsString>,
    /// Whom images must be for.
    pub platform: Platform,
    /// How long and how much.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            insecure_registries: Vec::new(),
            auth_file: default_auth_file(),
            helper_path: None,
            platform: Platform::host(),
            limits: Limits::default(),
        }
    }
}

/// Pulls images. Keeps connections between pulls, and no logins.
#[derive(Debug)]
pub struct Client {
    clients: Clients,
    clear: Arc<Clear>,
    logins: Logins,
    platform: Platform,
    limits: Limits,
}

/// An image whose every blob is in the cache, and stays there as long as this lives.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// What it is made of.
    pub manifest: ImageManifest,
    /// The config, as it came.
    pub config_json: Vec<u8>,
    /// The files of the layers, lowest first, one for each of the manifest's.
    pub layers: Vec<PathBuf>,
    /// Keep the files where they are.
    pub holds: Vec<Hold>,
}

/// What an image will take, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight {
    /// Its layers, as they are packed.
    pub layers: u64,
    /// Those of them that are not packed.
    pub plain: u64,
    /// What of them is not in the cache yet.
    pub missing: u64,
}

/// Says why there is no room for an image.
pub type Admit<'p> = &'p (dyn Fn(&Weight) -> Result<(), String> + Send + Sync);

impl Weight {
    pub(crate) fn of(layers: &[&Descriptor], cache: &Cache) -> Result<Weight, RegistryError> {
        let mut weight = Weight {
            layers: 0,
            plain: 0,
            missing: 0,
        };
        for layer in layers {
            weight.layers += layer.size;
            if layer.is_plain() {
                weight.plain += layer.size;
            }
            weight.missing += layer.size.saturating_sub(cache.held(layer.digest)?);
        }
        Ok(weight)
    }
}

impl Client {
    /// A client. Reads the host's certificates, and asks nobody anything yet.
    ///
    /// # Errors
    /// [`RegistryError::Setup`] when the host has no usable certificates.
    pub fn new(config: Config) -> Result<Client, RegistryError> {
        let clear = Arc::new(Clear::new(&config.insecure_registries));
        Ok(Client {
            clients: Clients::new(&clear, &config.limits)?,
            clear,
            logins: Logins {
                file: config.auth_file,
                search: config.helper_path,
                limit: config.limits.helper,
            },
            platform: config.platform,
            limits: config.limits,
        })
    }

    /// Gets the image's manifest, config and layers; what the cache has is not asked for again.
    /// A tag is always asked for.
    ///
    /// Dropping the future is as good as cancelling: parts stay, and nothing half-made.
    ///
    /// # Errors
    /// [`RegistryError`]; all its kinds but `BadReference` and `Setup`.
    pub async fn pull(
        &self,
        reference: &Reference,
        cache: &Cache,
        progress: Progress<'_>,
        cancel: &CancellationToken,
    ) -> Result<Pulled, RegistryError> {
        self.pull_if(reference, cache, &|_| Ok(()), progress, cancel)
            .await
    }

    /// The same, but before a layer is asked for, `admit` says whether there is room for them.
    ///
    /// # Errors
    /// Those of [`Client::pull`], and [`RegistryError::NoRoom`].
    pub async fn pull_if(
        &self,
        reference: &Reference,
        cache: &Cache,
        admit: Admit<'_>,
        progress: Progress<'_>,
        cancel: &CancellationToken,
    ) -> Result<Pulled, RegistryError> {
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(RegistryError::Cancelled),
            pulled = self.pull_all(reference, cache, admit, progress) => pulled,
        }
    }

    async fn pull_all(
        &self,
        reference: &Reference,
        cache: &Cache,
        admit: Admit<'_>,
        progress: Progress<'_>,
    ) -> Result<Pulled, RegistryError> {
        let session = Session::new(
            reference,
            &self.clients,
            &self.clear,
            &self.logins,
            &self.limits,
        );
        let manifest = manifest::resolve(&session, &self.platform).await?;
        let mut seen = HashSet::from([manifest.config.digest]);
        let layers: Vec<&Descriptor> = manifest
            .layers
            .iter()
            .filter(|layer| seen.insert(layer.digest))
            .collect();
        let weight = Weight::of(&layers, cache)?;
        admit(&weight).map_err(|why| RegistryError::NoRoom { why })?;
        let total = layers.iter().map(|layer| layer.size).sum::<u64>() + manifest.config.size;
        let tally = Tally::new(total, progress);

        // First the config: it can still tell that the layers are not wanted.
        let mut held = blob::fetch(&session, cache, &manifest.config, &tally).await?;
        if cache.checked(manifest.config.digest).await? {
            held = blob::fetch(&session, cache, &manifest.config, &tally).await?;
        }
        let path = cache.path(manifest.config.digest);
        let config_json =
            fs::read(&path).map_err(|cause| RegistryError::disk("read", &path, cause))?;
        document::check_config(&config_json, &manifest::named(&session), &self.platform)?;

        // Boxed: the compiler cannot see that a stream of borrowing futures may change threads.
        let transfers: Vec<BoxFuture<'_, Result<Hold, RegistryError>>> = layers
            .into_iter()
            .map(|layer| Box::pin(blob::fetch(&session, cache, layer, &tally)) as BoxFuture<'_, _>)
            .collect();
        let mut holds: Vec<Hold> = stream::iter(transfers)
            .buffer_unordered(self.limits.parallel.max(1))
            .try_collect()
            .await?;
        holds.push(held);
        let layers = manifest
            .layers
            .iter()
            .map(|layer| cache.path(layer.digest))
            .collect();
        Ok(Pulled {
            manifest,
            config_json,
            layers,
            holds,
        })
    }
}
