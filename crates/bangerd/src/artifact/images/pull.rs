//! Images from a registry, and from layouts and archives of the host.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use banger_api::error::Code;
use banger_api::image::{Image, ImagePullParams, OciConfig};
use banger_images::oci::{Config, Order};
use banger_images::{Cancel, Report, ext4, worker};
use banger_model::{ImageName, Size};
use banger_registry::{
    Cache, Client, Hold, Limits, Local, Platform, Pulled, Reference, RegistryError, Source, Step,
    Weight, local,
};
use tokio_util::sync::CancellationToken;

use super::super::cancelled::cancelled;
use super::super::flight::was_cancelled;
use super::super::own::GivenKernel;
use super::super::records::ImageRecord;
use super::super::{Kind, Shelf, blocking, failures, space};
use super::{Filled, bad_name, make};
use crate::failure::Failure;
use crate::ports::Progress;

/// What a root filesystem may be asked to be, bytes.
const SIZES: std::ops::RangeInclusive<u64> = 256 << 20..=128 << 30;
/// Hex digits of a digest in a name.
const DIGITS: usize = 12;
/// Longest name that is made from a reference.
const NAME: usize = 63;

/// An image to pull, checked.
#[derive(Debug, Clone)]
pub(crate) struct NewPull {
    pub(super) name: ImageName,
    source: Source,
    pub(super) kernel: Option<String>,
    pub(super) own_kernel: Option<GivenKernel>,
    size_bytes: Option<u64>,
}

impl NewPull {
    /// Checks what a client asks for.
    pub(crate) fn of(params: &ImagePullParams) -> Result<Self, Failure> {
        let source: Source = params
            .reference
            .parse()
            .map_err(|error| failures::of_registry(&error))?;
        checked_size(params.size_bytes)?;
        let name = match &params.name {
            Some(name) => name.clone(),
            None => name_of(&source),
        };
        Ok(Self {
            name: bad_name(ImageName::parse(&name))
                .map_err(|failure| failure.hint("--name NAME"))?,
            source,
            kernel: params.kernel_ref.clone(),
            own_kernel: GivenKernel::of(params)?,
            size_bytes: params.size_bytes,
        })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Two requests of one key are the same request.
    fn key(&self) -> String {
        format!(
            "pull\n{}\n{}\n{:?}\n{:?}\n{:?}",
            self.name, self.source, self.kernel, self.own_kernel, self.size_bytes
        )
    }
}

/// A size that a root filesystem may be asked to have.
pub(super) fn checked_size(bytes: Option<u64>) -> Result<Option<Size>, Failure> {
    let Some(bytes) = bytes else { return Ok(None) };
    match Size::from_bytes(bytes).filter(|_| SIZES.contains(&bytes)) {
        Some(size) => Ok(Some(size)),
        None => {
            let why = format!("{bytes} bytes: a root filesystem has 256M to 128G");
            Err(Failure::new(Code::BadSize, why))
        }
    }
}

/// The same, as it is spelled.
pub(super) fn parsed_size(text: Option<&str>) -> Result<Option<Size>, Failure> {
    let size = text.map(Size::parse).transpose();
    let size = size.map_err(|error| Failure::new(Code::BadSize, error.to_string()))?;
    checked_size(size.map(Size::bytes))
}

/// `debian-bookworm` for `docker.io/library/debian:bookworm`; with a digest its
/// first digits. An image in files is called by its tag and them.
fn name_of(source: &Source) -> String {
    let local = match source {
        Source::Registry(reference) => return name_of_reference(reference),
        Source::Local(local) => local,
    };
    match local.tag() {
        Some(tag) => match tag.parse() {
            Ok(reference) if tag.contains([':', '/']) => name_of_reference(&reference),
            _ => made(&format!("{}-{tag}", local.stem())),
        },
        None => made(&local.stem()),
    }
}

fn name_of_reference(reference: &Reference) -> String {
    let last = reference
        .repository()
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let tail = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.hex()[..DIGITS].to_owned(),
        (None, tag) => tag.unwrap_or("latest").to_owned(),
    };
    made(&format!("{last}-{tail}"))
}

/// A name out of text that may have what names may not.
fn made(text: &str) -> String {
    let mut name: String = text
        .chars()
        .map(|letter| match letter.to_ascii_lowercase() {
            letter @ ('a'..='z' | '0'..='9') => letter,
            _ => '-',
        })
        .collect();
    name.truncate(NAME);
    name.trim_matches('-').to_owned()
}

impl Shelf {
    /// Refuses a pull that cannot succeed, before anything is begun.
    pub(crate) async fn can_pull_image(&self, wanted: &NewPull) -> Result<(), Failure> {
        self.can_make(&wanted.name).await?;
        if let Some(kernel) = &wanted.kernel {
            self.find_kernel(kernel).await?;
        }
        match wanted.own_kernel.clone() {
            Some(kernel) => blocking(move || kernel.look()).await,
            None => Ok(()),
        }
    }

    /// Pulls an image, or joins who pulls the same.
    pub(crate) async fn pull_image(
        &self,
        wanted: NewPull,
        progress: &dyn Progress,
    ) -> Result<Image, Failure> {
        let key = wanted.key();
        let shelf = self.clone();
        let work = |cancel, report| shelf.obtain_pulled(wanted, cancel, report);
        let flight = self.0.image_flights.join(&key, progress, work);
        Ok(flight.await?.image)
    }

    async fn obtain_pulled(
        self,
        wanted: NewPull,
        cancel: Cancel,
        report: Arc<dyn Report>,
    ) -> Result<ImageRecord, Failure> {
        let _claim = self.claim(Kind::Image, wanted.name())?;
        // Whoever came after the last look at the name gets what is there.
        self.can_pull_image(&wanted).await?;
        let mut made = self.write_pulled(&wanted, &cancel, &report).await?;
        if let Err((failure, pulled)) = made {
            if !self.drop_spoilt(&failure, pulled, &cancel).await? {
                return Err(failure);
            }
            made = self.write_pulled(&wanted, &cancel, &report).await?;
        }
        let record = made.map_err(|(failure, _)| failure)?;
        self.add_published(record, &cancel).await
    }

    /// One try: the image, or why it could not be written, and what it was to be made of.
    async fn write_pulled(
        &self,
        wanted: &NewPull,
        cancel: &Cancel,
        report: &Arc<dyn Report>,
    ) -> Result<Result<ImageRecord, (Failure, Pulled)>, Failure> {
        let pulled = match &wanted.source {
            Source::Registry(reference) => {
                report.stage("download", &reference.to_string());
                tokio::select! {
                    biased;
                    () = cancelled(cancel.clone()) => return Err(was_cancelled()),
                    pulled = self.download(reference, &**report) => pulled?,
                }
            }
            Source::Local(local) => {
                report.stage("read_files", &local.to_string());
                self.read_local(local, cancel, report).await?
            }
        };
        let (wanted, parent) = (wanted.clone(), self.0.images_dir.clone());
        let (cancel, report) = (cancel.clone(), Arc::clone(report));
        blocking(move || {
            let made = make(&wanted.name, &parent, &*report, |dir| {
                fill(&wanted, &pulled, dir, &cancel, &*report)
            });
            Ok(made.map_err(|failure| (failure, pulled)))
        })
        .await
    }

    /// Whether it was a layer in the cache that is no more what it was when it came, and is gone
    /// now. Only an image that cannot be read is worth that look.
    async fn drop_spoilt(
        &self,
        failure: &Failure,
        pulled: Pulled,
        cancel: &Cancel,
    ) -> Result<bool, Failure> {
        // That of a disk which cannot read is no fault of the image's.
        if !matches!(failure.code, Code::BadArchive | Code::Internal) {
            return Ok(false);
        }
        let (shelf, cancel) = (self.clone(), cancel.clone());
        blocking(move || {
            let drop = || {
                let cache = shelf.layers()?;
                let layers: BTreeSet<_> = pulled.manifest.layers.iter().map(|l| l.digest).collect();
                for digest in layers {
                    if cache.check(digest, &|| cancel.is_cancelled())? {
                        tracing::warn!(%digest, "removed a damaged blob");
                    }
                }
                // Others may have found out at the same time.
                Ok(!pulled.holds.iter().all(Hold::is_there))
            };
            drop().map_err(|error: RegistryError| failures::of_registry(&error))
        })
        .await
    }

    async fn download(
        &self,
        reference: &Reference,
        report: &dyn Report,
    ) -> Result<Pulled, Failure> {
        let config = banger_registry::Config {
            insecure_registries: self.0.insecure_registries.clone(),
            limits: limits(),
            ..banger_registry::Config::default()
        };
        let pulled = async {
            let client = Client::new(config)?;
            let cache = self.layers()?;
            let progress = |step: Step| tell(step, report);
            // Whoever cancels drops this future, which is as good.
            let token = CancellationToken::new();
            let admit = |weight: &Weight| self.has_room(weight);
            client
                .pull_if(reference, &cache, &admit, &progress, &token)
                .await
        };
        pulled.await.map_err(|error| failures::of_registry(&error))
    }

    /// The cache of layers and bundles, which leaves room on the disk.
    pub(crate) fn layers(&self) -> Result<Cache, RegistryError> {
        let cache = Cache::open(&self.0.oci)?;
        Ok(cache.sparing(space::spare(&self.0.oci, &self.0.images_dir)))
    }

    fn has_room(&self, weight: &Weight) -> Result<(), String> {
        space::for_image(&self.0.oci, &self.0.images_dir, weight)
    }

    /// Gets an image of the host's files into the cache. Whoever cancels sees
    /// that end, so that nothing half-made is left behind.
    async fn read_local(
        &self,
        local: &Local,
        cancel: &Cancel,
        report: &Arc<dyn Report>,
    ) -> Result<Pulled, Failure> {
        let stop = CancellationToken::new();
        let (local, shelf, token) = (local.clone(), self.clone(), stop.clone());
        let report = Arc::clone(report);
        let work = blocking(move || {
            let read = || {
                let cache = shelf.layers()?;
                let (platform, limits) = (Platform::host(), Limits::default());
                let admit = |weight: &Weight| shelf.has_room(weight);
                let progress = |step: Step| tell(step, &*report);
                local::pull_if(
                    &local, &cache, &platform, &limits, &admit, &progress, &token,
                )
            };
            read().map_err(|error| failures::of_registry(&error))
        });
        let mut work = std::pin::pin!(work);
        tokio::select! {
            biased;
            () = cancelled(cancel.clone()) => {
                stop.cancel();
                work.await
            }
            read = &mut work => read,
        }
    }
}

/// How long, in milliseconds, a registry may be silent: heard of with the feature `failpoints`
/// only, so that a test need not wait as long as a person would.
const STALL: &str = "BANGER_PULL_STALL_MS";

fn limits() -> Limits {
    let mut limits = Limits::default();
    let told = cfg!(feature = "failpoints")
        .then(|| std::env::var(STALL).ok())
        .flatten();
    if let Some(millis) = told.and_then(|text| text.parse().ok()) {
        limits.stall = std::time::Duration::from_millis(millis);
    }
    limits
}

fn tell(step: Step, report: &dyn Report) {
    if let Some((digest, blob)) = step.blob {
        report.part(&digest.to_string(), blob.done, blob.total);
    }
    report.bytes(step.image.done, Some(step.image.total));
}

/// Writes what was pulled into a directory.
fn fill(
    wanted: &NewPull,
    pulled: &Pulled,
    dir: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Filled, Failure> {
    // First what may be refused.
    let own_kernel = match &wanted.own_kernel {
        Some(kernel) => Some(kernel.keep_in(dir, cancel, report)?),
        None => None,
    };
    let config = Config::parse(&pulled.config_json).map_err(|error| failures::of_oci(&error))?;
    let digest = pulled.manifest.digest.to_string();
    let order = Order {
        size_bytes: wanted.size_bytes,
        uuid: uuid_of(&digest),
        diff_ids: Some(config.diff_ids.clone()),
    };
    // A unit test's program is not the daemon's.
    let write = match cfg!(test) {
        true => worker::write_here,
        false => worker::write,
    };
    let written = write(&pulled.layers, dir, &order, cancel, report)
        .map_err(|error| failures::of_worker(&error))?;
    let image = Image {
        kernel_name: wanted.kernel.clone(),
        distro: written.distro,
        arch: Some(config.architecture.clone()).filter(|arch| !arch.is_empty()),
        oci: Some(OciConfig {
            reference: wanted.source.to_string(),
            digest,
            platform: format!("linux/{}", config.architecture),
            env: config.env,
            working_dir: config.working_dir,
            user: config.user,
            entrypoint: config.entrypoint,
            cmd: config.cmd,
            labels: config.labels,
        }),
        ..Image::default()
    };
    Ok(Filled { image, own_kernel })
}

/// The file system's UUID is a part of the image's digest: the same image is the same file.
fn uuid_of(digest: &str) -> [u8; 16] {
    let mut uuid = [0; 16];
    let hex = digest.rsplit(':').next().unwrap_or_default();
    for (byte, pair) in uuid.iter_mut().zip(hex.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).unwrap_or_default();
        *byte = u8::from_str_radix(pair, 16).unwrap_or_default();
    }
    ext4::as_uuid(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(reference: &str) -> Result<NewPull, Failure> {
        NewPull::of(&ImagePullParams {
            reference: reference.to_owned(),
            ..ImagePullParams::default()
        })
    }

    #[test]
    fn an_image_is_named_after_its_repository_and_tag() {
        let digest = "a".repeat(64);
        let by_digest = format!("ghcr.io/x/y@sha256:{digest}");
        let long = format!("ghcr.io/x/{}:1", "y".repeat(100));
        let cut = "y".repeat(63);
        for (reference, name) in [
            ("debian:bookworm", "debian-bookworm"),
            ("alpine", "alpine-latest"),
            ("ghcr.io/x/my_app:V1.2", "my-app-v1-2"),
            (&by_digest, "y-aaaaaaaaaaaa"),
            (&long, &cut),
            ("oci-layout:/srv/My App", "my-app"),
            ("oci-layout:/srv/app:V1.2", "app-v1-2"),
            ("docker-archive:/srv/app.tar.gz", "app"),
            ("docker-archive:/srv/all.tar:team/app:1", "app-1"),
        ] {
            assert_eq!(wanted(reference).unwrap().name(), name, "{reference}");
        }
    }

    #[test]
    fn bad_references_and_sizes_are_refused() {
        for (reference, code) in [
            ("a b", Code::BadReference),
            ("oci-layout:", Code::BadReference),
            ("oci-layout:relative", Code::BadPath),
            ("docker-archive:/", Code::BadName),
        ] {
            let failure = wanted(reference).unwrap_err();
            assert_eq!(failure.code, code, "{reference}");
        }
        for size_bytes in [0, (256 << 20) - 1, (128 << 30) + 1, u64::MAX] {
            let params = ImagePullParams {
                reference: "debian".to_owned(),
                size_bytes: Some(size_bytes),
                ..ImagePullParams::default()
            };
            assert_eq!(NewPull::of(&params).unwrap_err().code, Code::BadSize);
        }
    }
}
