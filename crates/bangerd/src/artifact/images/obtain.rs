//! Images by name: what a pull means, the catalog asked first.

use std::path::Path;
use std::sync::Arc;

use banger_api::error::Code;
use banger_api::image::{Image, ImageCatalogResult, ImagePullParams};
use banger_images::bundle::unpack_image;
use banger_images::{Cancel, Report};
use banger_model::{ImageName, KernelName};
use banger_store::images;

use super::super::catalog::{Bundle, Catalog, Origin};
use super::super::own::GivenKernel;
use super::super::records::{self, ImageRecord};
use super::super::{Kind, Shelf, Within, blocking, failures, host_arch, publish, space};
use super::build::NewImage;
use super::pull::checked_size;
use super::{Filled, NewPull, bad_name, make, suite_of};
use crate::failure::Failure;
use crate::ports::Progress;

/// How the first run gets the image of this name, for a person: after "the first run". `None`
/// where it cannot. `own` is the owner's catalog.
pub(crate) fn image_source(own: Option<&Path>, name: &str) -> Result<Option<String>, Failure> {
    let catalog = Catalog::load(own)?;
    let entry = catalog.find(Kind::Image, name)?;
    let suite = match entry.map(|entry| &entry.origin) {
        Some(Origin::Bundle(bundle)) => return Ok(Some(format!("pulls {}", bundle.url))),
        Some(Origin::Reference(reference)) => return Ok(Some(format!("pulls {reference}"))),
        Some(Origin::Suite(suite)) => Some(suite.as_str()),
        Some(Origin::Deb(_)) | None => suite_of(name),
    };
    Ok(suite.map(|suite| format!("builds it from Debian's {suite}")))
}

/// An image to obtain, checked.
#[derive(Debug, Clone)]
pub(crate) struct WantedImage {
    way: Way,
    /// Obtained too where it is not here.
    kernel: Option<String>,
}

#[derive(Debug, Clone)]
enum Way {
    Bundle(NewBundle),
    Suite(NewImage),
    Pull(NewPull),
}

/// An image in a bundle.
#[derive(Debug, Clone)]
struct NewBundle {
    name: ImageName,
    bundle: Bundle,
    /// Instead of the one that its manifest names.
    kernel: Option<String>,
    /// Instead of both.
    own_kernel: Option<GivenKernel>,
    distro: Option<String>,
    arch: Option<String>,
}

impl WantedImage {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        match &self.way {
            Way::Bundle(wanted) => wanted.name.as_str(),
            Way::Suite(wanted) => wanted.name(),
            Way::Pull(wanted) => wanted.name(),
        }
    }

    /// Whether it is built, and so has a log.
    pub(crate) fn is_built(&self) -> bool {
        matches!(self.way, Way::Suite(_))
    }
}

impl Shelf {
    /// The catalog's images, with what is here marked.
    pub(crate) async fn available_images(&self) -> Result<ImageCatalogResult, Failure> {
        let rows = self.0.store.read(images::list).await?;
        let catalog = self.catalog().await?;
        let here: Vec<Image> = (rows.iter())
            .map(|row| Ok(records::image(row)?.image))
            .collect::<Result<_, Failure>>()?;
        let entries = catalog.available(Kind::Image, |name| {
            let here = here.iter().find(|image| image.name == name)?;
            Some(here.size_bytes)
        });
        Ok(ImageCatalogResult { entries })
    }

    /// Whether a name is one to pull; a catalog that cannot be read has none.
    pub(super) async fn in_catalog(&self, name: &str) -> bool {
        let catalog = self.catalog().await;
        catalog.is_ok_and(|catalog| matches!(catalog.find(Kind::Image, name), Ok(Some(_))))
    }

    /// Checks what a client asks to pull: a name of the catalog, else what a
    /// pull takes.
    pub(crate) async fn wanted_image(
        &self,
        params: &ImagePullParams,
    ) -> Result<WantedImage, Failure> {
        // No name of the catalog has these, and then a bad catalog is of no concern.
        let plain = !params.reference.contains(['/', ':', '@']);
        let catalog = match plain {
            true => Some(self.catalog().await?),
            false => None,
        };
        let entry = match &catalog {
            Some(catalog) => catalog.find(Kind::Image, &params.reference)?,
            None => None,
        };
        let Some(entry) = entry else {
            return Ok(WantedImage {
                way: Way::Pull(NewPull::of(params)?),
                kernel: None,
            });
        };
        let about = &entry.about;
        let name = params.name.as_ref().unwrap_or(&about.name);
        let parsed = bad_name(ImageName::parse(name))?;
        // One that was chosen must be here; the catalog's is obtained.
        let own_kernel = GivenKernel::of(params)?;
        let (chosen, kernel) = match (&params.kernel_ref, &about.kernel_ref) {
            (Some(chosen), _) => (Some(chosen), None),
            (None, _) if own_kernel.is_some() => (None, None),
            (None, named) => (named.as_ref(), named.clone()),
        };
        let chosen = chosen.cloned();
        let way = match &entry.origin {
            Origin::Reference(reference) => Way::Pull(NewPull::of(&ImagePullParams {
                reference: reference.clone(),
                name: Some(name.clone()),
                kernel_ref: chosen,
                ..params.clone()
            })?),
            Origin::Suite(suite) => {
                let size = checked_size(params.size_bytes)?;
                Way::Suite(NewImage::of_suite(parsed, suite, size, chosen, own_kernel))
            }
            Origin::Bundle(_) if params.size_bytes.is_some() => {
                let why = format!("image {name:?} has the size that its bundle was made with");
                return Err(Failure::new(Code::BadRequest, why).hint("leave --size out"));
            }
            Origin::Bundle(bundle) => Way::Bundle(NewBundle {
                name: parsed,
                bundle: bundle.clone(),
                kernel: chosen,
                own_kernel,
                distro: about.distro.clone(),
                arch: about.arch.clone(),
            }),
            Origin::Deb(_) => unreachable!("a package is a kernel's"),
        };
        Ok(WantedImage { way, kernel })
    }

    /// Refuses what cannot succeed, before anything is begun.
    pub(crate) async fn can_obtain(&self, wanted: &WantedImage) -> Result<(), Failure> {
        let (name, named, own) = match &wanted.way {
            Way::Bundle(image) => (&image.name, &image.kernel, &image.own_kernel),
            Way::Suite(image) => (&image.name, &image.kernel, &image.own_kernel),
            Way::Pull(image) => (&image.name, &image.kernel, &image.own_kernel),
        };
        self.can_make(name).await?;
        match (&wanted.kernel, named) {
            // It is not here yet.
            (Some(kernel), _) => self.kernel_is_to_be_had(kernel).await?,
            (None, Some(kernel)) => drop(self.find_kernel(kernel).await?),
            (None, None) => {}
        }
        match own.clone() {
            Some(kernel) => blocking(move || kernel.look()).await,
            None => Ok(()),
        }
    }

    /// Obtains an image, or joins who obtains the same.
    pub(crate) async fn obtain_image(
        &self,
        wanted: WantedImage,
        progress: &dyn Progress,
    ) -> Result<Image, Failure> {
        if let Some(kernel) = &wanted.kernel {
            self.have_kernel(kernel, progress).await?;
        }
        match wanted.way {
            Way::Bundle(wanted) => Ok(self.fly_bundle(wanted, progress).await?.image),
            Way::Suite(wanted) => Ok(self.fly(wanted, progress).await?.image),
            Way::Pull(wanted) => self.pull_image(wanted, progress).await,
        }
    }

    /// Whence the default image comes where it is not here: the catalog, else
    /// the suite that its name has.
    pub(in crate::artifact) async fn default_image_origin(&self) -> Result<WantedImage, Failure> {
        let name = &self.0.default_image;
        if self.catalog().await?.find(Kind::Image, name)?.is_some() {
            let params = ImagePullParams {
                reference: name.clone(),
                ..ImagePullParams::default()
            };
            return self.wanted_image(&params).await;
        }
        let suite = suite_of(name).ok_or_else(|| {
            Failure::new(Code::NotFound, format!("no image {name:?}"))
                .hint("banger image register, or set default_image_name")
        })?;
        let parsed = bad_name(ImageName::parse(name))?;
        Ok(WantedImage {
            way: Way::Suite(NewImage::of_suite(parsed, suite, None, None, None)),
            kernel: None,
        })
    }

    pub(in crate::artifact) async fn obtain_default_image(
        &self,
        progress: &dyn Progress,
    ) -> Result<ImageRecord, Failure> {
        let wanted = self.default_image_origin().await?;
        space::enough(&self.0.images_dir, &self.0.state)?;
        let image = match self.obtain_image(wanted, progress).await {
            Ok(image) => image,
            // Two creates at once: the other one was quicker.
            Err(failure) if failure.code == Code::AlreadyExists => {
                return self.find_image(&self.0.default_image).await;
            }
            Err(failure) => return Err(failure),
        };
        self.find_image(&image.id).await
    }

    async fn fly_bundle(
        &self,
        wanted: NewBundle,
        progress: &dyn Progress,
    ) -> Result<ImageRecord, Failure> {
        let key = format!("bundle\n{wanted:?}");
        let shelf = self.clone();
        let work = |cancel, report| shelf.unpack_bundle(wanted, cancel, report);
        self.0.image_flights.join(&key, progress, work).await
    }

    async fn unpack_bundle(
        self,
        wanted: NewBundle,
        cancel: Cancel,
        report: Arc<dyn Report>,
    ) -> Result<ImageRecord, Failure> {
        let _claim = self.claim(Kind::Image, wanted.name.as_str())?;
        // Whoever came after the last look at the name gets what is there.
        self.can_make(&wanted.name).await?;
        let file = self.bundle(&wanted.bundle, &cancel, &report).await?;
        let parent = self.0.images_dir.clone();
        let (told, switch) = (Arc::clone(&report), cancel.clone());
        let record = blocking(move || {
            make(&wanted.name, &parent, &*told, |dir| {
                told.stage("unpack", wanted.name.as_str());
                let digest = wanted.bundle.digest.bytes();
                let manifest = unpack_image(&file, Some(&digest), dir, &switch, &*told)
                    .map_err(|error| failures::of_bundle(&error))?;
                let arch = wanted.arch.or(manifest.arch);
                if let Some(arch) = arch.as_deref().filter(|arch| *arch != host_arch()) {
                    let what =
                        format!("the bundle is for {arch}, and this host is {}", host_arch());
                    return Err(Failure::new(Code::Unsupported, what));
                }
                let own_kernel = match &wanted.own_kernel {
                    Some(kernel) => Some(kernel.keep_in(dir, &switch, &*told)?),
                    None => None,
                };
                let named = wanted.kernel.or(manifest.kernel_ref);
                let kernel_name = named.filter(|_| own_kernel.is_none());
                if let Some(name) = &kernel_name {
                    let bad = |why: String| {
                        Failure::new(Code::BadArchive, "the bundle's kernel_ref is no name")
                            .caused_by(&std::io::Error::other(why))
                    };
                    KernelName::parse(name).map_err(|error| bad(error.to_string()))?;
                }
                let image = Image {
                    kernel_name,
                    distro: wanted.distro.or(manifest.distro),
                    arch,
                    ..Image::default()
                };
                Ok(Filled { image, own_kernel })
            })
        })
        .await?;
        if let Some(kernel) = &record.image.kernel_name {
            let within = Within {
                report,
                cancel: cancel.clone(),
            };
            if let Err(failure) = self.have_kernel(kernel, &within).await {
                // It has no row yet, so nobody else speaks of it.
                publish::discard(vec![self.0.images_dir.join(&record.image.id)]).await;
                return Err(failure);
            }
        }
        self.add_published(record, &cancel).await
    }
}
