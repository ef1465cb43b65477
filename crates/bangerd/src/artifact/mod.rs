//! Images and kernels: obtained, registered, published, forgotten, and handed
//! to a boot.
//!
//! Owns the rows and directories of both. What makes their content is a
//! workshop of its own; here it is decided when, by what name, and who waits.

mod boot;
mod bundles;
mod cancelled;
mod catalog;
pub(crate) mod failures;
mod flight;
mod images;
mod kernels;
mod own;
mod publish;
mod records;
pub(crate) mod space;
pub(crate) mod stock;
mod users;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use banger_api::error::Code;
use banger_images::{Cancel, Report};
use banger_store::Store;
use tokio_util::task::TaskTracker;

use self::boot::Boots;
use self::catalog::Catalog;
use self::flight::Flights;
use self::records::KernelRecord;
use crate::config::Config;
use crate::failure::Failure;
use crate::paths::Paths;
use crate::ports::{Artifacts, BootImage, BootKernel, Progress};

pub(crate) use self::boot::{find_agent, is_boot};
pub(crate) use self::cancelled::cancelled;
pub(crate) use self::flight::was_cancelled;
pub(crate) use self::images::{NewBuild, image_source};
pub(crate) use self::publish::{is_mark, is_staging};
pub(crate) use self::records::{ImageRecord, image as image_record};

/// All images and kernels. Clones are the same shelf.
#[derive(Clone)]
pub(crate) struct Shelf(Arc<Inner>);

struct Inner {
    store: Store,
    state: PathBuf,
    images_dir: PathBuf,
    kernels_dir: PathBuf,
    cache: PathBuf,
    /// Below it, layers and bundles.
    oci: PathBuf,
    default_image: String,
    default_kernel: Option<String>,
    insecure_registries: Vec<String>,
    catalog: Option<PathBuf>,
    boots: Boots,
    image_flights: Flights<ImageRecord>,
    kernel_flights: Flights<KernelRecord>,
    /// Work that nobody waits for.
    tasks: TaskTracker,
    /// Names that are being made or removed.
    claims: Mutex<HashSet<(Kind, String)>>,
    /// Held by whoever has Debian's packages fetched.
    apt: Arc<tokio::sync::Mutex<()>>,
    /// Held by whoever was asked to clear.
    clearing: Arc<tokio::sync::Mutex<()>>,
    /// Held while anything is cleared, asked or not.
    pruning: Arc<tokio::sync::Mutex<()>>,
}

/// What a name is a name of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Image,
    Kernel,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Kernel => "kernel",
        }
    }
}

impl Shelf {
    /// The shelf of a state directory. Long work runs in `tasks`.
    pub(crate) fn new(store: Store, paths: &Paths, config: &Config, tasks: TaskTracker) -> Self {
        Self(Arc::new(Inner {
            store,
            state: paths.state.clone(),
            images_dir: paths.images(),
            kernels_dir: paths.kernels(),
            cache: paths.cache.clone(),
            oci: paths.cache.join("oci"),
            default_image: config.default_image_name.clone(),
            default_kernel: config.default_kernel_name.clone(),
            insecure_registries: config.insecure_registries.clone(),
            catalog: config.catalog_path.clone(),
            boots: Boots::new(&paths.cache),
            image_flights: Flights::new(tasks.clone()),
            kernel_flights: Flights::new(tasks.clone()),
            tasks,
            claims: Mutex::default(),
            apt: Arc::default(),
            clearing: Arc::default(),
            pruning: Arc::default(),
        }))
    }

    /// Removes what an earlier daemon left unfinished.
    ///
    /// # Errors
    /// When the store or the directories cannot be read.
    pub(crate) async fn recover(&self) -> Result<(), Failure> {
        self.recover_images().await?;
        self.recover_kernels().await?;
        self.prune_soon();
        Ok(())
    }

    /// Ends every download and build under way.
    pub(crate) fn cancel_all(&self) {
        self.0.image_flights.cancel_all();
        self.0.kernel_flights.cancel_all();
    }

    /// The catalog as it is now.
    async fn catalog(&self) -> Result<Catalog, Failure> {
        let own = self.0.catalog.clone();
        blocking(move || Catalog::load(own.as_deref())).await
    }

    /// Keeps others from making or removing what has this name.
    fn claim(&self, kind: Kind, name: &str) -> Result<Claim, Failure> {
        let key = (kind, name.to_owned());
        let mut claims = self.0.claims.lock().unwrap_or_else(PoisonError::into_inner);
        if !claims.insert(key.clone()) {
            return Err(Failure::new(
                Code::Busy,
                format!("{} {name:?} is being made or removed", kind.word()),
            )
            .hint("banger operation list"));
        }
        Ok(Claim {
            shelf: self.clone(),
            key,
        })
    }
}

/// A name that is taken for a while.
pub(crate) struct Claim {
    shelf: Shelf,
    key: (Kind, String),
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = self
            .shelf
            .0
            .claims
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        claims.remove(&self.key);
    }
}

#[async_trait]
impl Artifacts for Shelf {
    async fn known(&self, image: Option<&str>, kernel: Option<&str>) -> Result<(), Failure> {
        let default = &self.0.default_image;
        let image = match self.find_image(image.unwrap_or(default)).await {
            Ok(record) => Some(record),
            Err(failure) if failure.code == Code::NotFound => {
                if image.is_none_or(|image| image == default) {
                    self.default_image_origin().await?;
                    None
                } else {
                    return Err(failure);
                }
            }
            Err(failure) => return Err(failure),
        };
        let own = image
            .as_ref()
            .is_some_and(|image| image.own_kernel.is_some());
        let named = image.and_then(|record| record.image.kernel_name);
        match kernel.or(named.as_deref()) {
            Some(name) => drop(self.find_kernel(name).await?),
            None if own => {}
            None => {
                if let Some(name) = &self.0.default_kernel {
                    self.find_kernel(name).await?;
                }
            }
        }
        Ok(())
    }

    async fn image(
        &self,
        reference: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<BootImage, Failure> {
        let default = self.0.default_image.clone();
        let reference = reference.unwrap_or(&default);
        match self.find_image(reference).await {
            Ok(record) => images::boot_image(&record),
            Err(failure) if failure.code == Code::NotFound && reference == default => {
                let under = Under {
                    stage: "pull_image",
                    progress,
                };
                images::boot_image(&self.obtain_default_image(&under).await?)
            }
            Err(failure) => Err(failure),
        }
    }

    async fn kernel(
        &self,
        name: Option<&str>,
        image: &BootImage,
        net: bool,
        progress: &dyn Progress,
    ) -> Result<BootKernel, Failure> {
        if let (None, Some(own)) = (name, &image.own_kernel) {
            return self.boot_own(&image.name, own, net).await;
        }
        let record = match name
            .or(image.kernel_name.as_deref())
            .or(self.0.default_kernel.as_deref())
        {
            Some(name) => self.find_kernel(name).await?,
            None => match self.newest_kernel().await? {
                Some(record) => record,
                None => {
                    let under = Under {
                        stage: "pull_kernel",
                        progress,
                    };
                    self.obtain_default_kernel(&under).await?
                }
            },
        };
        self.boot_kernel(record, net).await
    }

    async fn image_for_start(&self, id: &str) -> Result<BootImage, Failure> {
        images::boot_image(&self.find_image(id).await?)
    }

    async fn kernel_for_start(&self, name: &str, net: bool) -> Result<BootKernel, Failure> {
        let record = self.find_kernel(name).await?;
        self.boot_kernel(record, net).await
    }
}

/// Progress of work that is one stage of something larger.
struct Under<'a> {
    stage: &'static str,
    progress: &'a dyn Progress,
}

impl Progress for Under<'_> {
    fn stage(&self, stage: &str, detail: &str) {
        let detail = if detail.is_empty() {
            stage.to_owned()
        } else {
            format!("{stage} {detail}")
        };
        self.progress.stage(self.stage, &detail);
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        self.progress.bytes(done, total);
    }

    fn part(&self, part: &str, done: u64, total: u64) {
        self.progress.part(part, done, total);
    }

    fn log(&self, line: &str) {
        self.progress.log(line);
    }

    fn cancel(&self) -> Cancel {
        self.progress.cancel()
    }
}

/// Progress of work that another work waits for.
struct Within {
    report: Arc<dyn Report>,
    cancel: Cancel,
}

impl Progress for Within {
    fn stage(&self, stage: &str, detail: &str) {
        self.report.stage(stage, detail);
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        self.report.bytes(done, total);
    }

    fn part(&self, part: &str, done: u64, total: u64) {
        self.report.part(part, done, total);
    }

    fn log(&self, line: &str) {
        self.report.log(line);
    }

    fn cancel(&self) -> Cancel {
        self.cancel.clone()
    }
}

/// Progress nobody follows; the work ends with its caller.
pub(crate) struct Unseen(Cancel);

impl Unseen {
    /// # Errors
    /// When the process is out of descriptors.
    pub(crate) fn new() -> Result<Self, Failure> {
        Cancel::new()
            .map(Self)
            .map_err(|error| Failure::internal("cannot begin: out of descriptors", &error))
    }
}

impl Progress for Unseen {
    fn stage(&self, _: &str, _: &str) {}
    fn bytes(&self, _: u64, _: Option<u64>) {}
    fn part(&self, _: &str, _: u64, _: u64) {}
    fn log(&self, _: &str) {}
    fn cancel(&self) -> Cancel {
        self.0.clone()
    }
}

/// Runs what blocks on a thread for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Failure::internal("the work broke off", &error)))
}

/// Debian's name of this host's architecture.
pub(crate) fn host_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
