//! Images: built from a Debian suite or made of others, registered from the host's files,
//! listed, forgotten.

mod boot;
mod build;
mod derive;
mod obtain;
mod promote;
mod pull;
mod register;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use banger_api::error::Code;
use banger_api::image::Image;
use banger_images::ext4::{ROOTFS, SEED};
use banger_images::{Cancel, Report};
use banger_model::ImageName;
use banger_store::images::{self, ImageRow};
use banger_store::kernels;

use super::flight::was_cancelled;
use super::own::KERNEL;
use super::publish::Staging;
use super::records::{self, ImageRecord};
use super::{Kind, Shelf, blocking, publish, space, users};
use crate::failure::Failure;
use crate::operation::now;
use crate::ports::OwnKernel;

pub(super) use boot::boot_image;
pub(super) use build::BUILD_LOG;
pub(crate) use build::NewBuild;
use build::suite_of;
pub(crate) use obtain::image_source;
use pull::NewPull;
pub(super) use register::absolute;

fn bad_name<T>(parsed: Result<T, banger_model::name::BadName>) -> Result<T, Failure> {
    parsed.map_err(|error| Failure::new(Code::BadName, error.to_string()))
}

impl Shelf {
    /// Every image, by name.
    pub(crate) async fn images(&self) -> Result<Vec<Image>, Failure> {
        let rows = self.0.store.read(images::list).await?;
        rows.iter()
            .map(|row| Ok(records::image(row)?.image))
            .collect()
    }

    /// The image of this name, id, or unique beginning of an id.
    pub(crate) async fn image_shown(&self, reference: &str) -> Result<Image, Failure> {
        Ok(self.find_image(reference).await?.image)
    }

    pub(super) async fn find_image(&self, reference: &str) -> Result<ImageRecord, Failure> {
        let key = reference.to_owned();
        let rows = self
            .0
            .store
            .read(move |db| {
                if let Some(exact) = images::by_name(db, &key)? {
                    return Ok(vec![exact]);
                }
                let mut rows = images::list(db)?;
                rows.retain(|row| row.id == key || (key.len() >= 4 && row.id.starts_with(&key)));
                Ok(rows)
            })
            .await?;
        match rows.as_slice() {
            [row] => records::image(row),
            [] => {
                let shown: String = reference.chars().take(80).collect();
                // The catalog first: not every name that looks like a suite's is one.
                let hint = match suite_of(&shown) {
                    _ if self.in_catalog(&shown).await => format!("banger image pull {shown}"),
                    Some(suite) => format!("banger image build --suite {suite}"),
                    None => "banger image list".to_owned(),
                };
                Err(Failure::new(Code::NotFound, format!("no image {shown:?}")).hint(hint))
            }
            several => {
                let names: Vec<&str> = several.iter().map(|row| row.name.as_str()).collect();
                Err(Failure::new(
                    Code::Ambiguous,
                    format!("{reference:?} may be any of {}", names.join(", ")),
                ))
            }
        }
    }

    /// Refuses an image that cannot be made, before anything is begun: a taken
    /// name, a full disk.
    async fn can_make(&self, name: &ImageName) -> Result<(), Failure> {
        let key = name.to_string();
        let taken = self.0.store.read(move |db| images::by_name(db, &key));
        if taken.await?.is_some() {
            return Err(already_exists(name));
        }
        space::enough(&self.0.images_dir, &self.0.state)
    }

    /// Writes the row of an image whose directory is in place, unless it was given up by now.
    async fn add_published(
        &self,
        record: ImageRecord,
        cancel: &Cancel,
    ) -> Result<ImageRecord, Failure> {
        let place = self.0.images_dir.join(&record.image.id);
        if cancel.is_cancelled() {
            publish::discard(vec![place]).await;
            return Err(was_cancelled());
        }
        let row = row(&record);
        let kernel = record.image.kernel_name.clone();
        // What it is to boot with may have been removed while it was made.
        let written = self.0.store.promise(move |tx| {
            let lost = match kernel {
                Some(kernel) if kernels::get(tx, &kernel)?.is_none() => Some(kernel),
                _ => None,
            };
            if lost.is_none() {
                images::insert(tx, &row)?;
            }
            Ok(lost)
        });
        match written.await {
            Ok(None) => {
                publish::settle(vec![place]).await;
                tracing::info!(
                    image = record.image.name,
                    id = record.image.id,
                    "image added"
                );
                Ok(record)
            }
            Ok(Some(kernel)) => {
                publish::discard(vec![place]).await;
                let what = format!("kernel {kernel:?} was removed meanwhile");
                Err(Failure::new(Code::NotFound, what).hint("banger kernel list"))
            }
            Err(error) => {
                publish::discard(vec![place]).await;
                Err(error.into())
            }
        }
    }

    /// Forgets an image and removes the files banger owns.
    pub(crate) async fn delete_image(&self, reference: &str) -> Result<Image, Failure> {
        let found = self.find_image(reference).await?.image;
        let _claim = self.claim(Kind::Image, &found.name)?;
        // It may have been promoted, or updated, while nobody had a claim.
        let record = self.find_image(&found.id).await?;
        let kept = record.kept(&self.0.images_dir);
        let image = record.image;
        publish::unsettle(kept.clone()).await?;
        let (id, name) = (image.id.clone(), image.name.clone());
        let default = self.0.default_image.clone();
        let users = self
            .0
            .store
            .promise(move |tx| {
                let users = users::of_image(tx, &id, &name, Some(&default))?;
                if users.is_empty() {
                    images::delete(tx, &id)?;
                }
                Ok(users)
            })
            .await?;
        if !users.is_empty() {
            publish::settle(kept).await;
            return Err(users::in_use("image", &image.name, &users));
        }
        if !kept.is_empty() {
            publish::discard(kept).await;
            self.prune_soon();
        }
        tracing::info!(image = image.name, id = image.id, "image removed");
        Ok(image)
    }

    pub(super) async fn recover_images(&self) -> Result<(), Failure> {
        let rows = self.0.store.read(images::list).await?;
        let parent = self.0.images_dir.clone();
        let mut known = Vec::new();
        for row in &rows {
            known.extend(records::image(row)?.kept(&parent));
        }
        let unsure = blocking(move || {
            publish::sweep(&parent, |name| known.contains(&parent.join(name)))
                .map_err(|error| cannot_sweep(&parent, &error))
        })
        .await?;
        let unsure = unsure.iter().map(|id| self.0.images_dir.join(id));
        publish::settle(unsure.collect()).await;
        Ok(())
    }
}

/// What was put into the directory of an image.
struct Filled {
    /// What is particular about it.
    image: Image,
    /// The kernel that is kept with it.
    own_kernel: Option<OwnKernel>,
}

/// Makes an image's directory below `parent` and puts it in place, without a
/// row yet. `fill` writes [`ROOTFS`], a [`SEED`] if there is one, and maybe a
/// kernel, into the directory that it is given.
fn make(
    name: &ImageName,
    parent: &Path,
    report: &dyn Report,
    fill: impl FnOnce(&Path) -> Result<Filled, Failure>,
) -> Result<ImageRecord, Failure> {
    let cannot = |action: &str| {
        let what = format!("cannot {action} image \"{name}\"");
        move |error: io::Error| space::failed(what, &error)
    };
    let staging = Staging::new(parent).map_err(cannot("begin"))?;
    let filled = fill(staging.path())?;
    report.stage("publish", name.as_str());
    let id = new_id();
    let place = parent.join(&id);
    let created_at = now();
    let of_kernel = |file: &str| {
        let made = staging.path().join(KERNEL).join(file).is_file();
        made.then(|| place.join(KERNEL).join(file).display().to_string())
    };
    let record = ImageRecord {
        image: Image {
            id,
            name: name.to_string(),
            managed: true,
            artifact_dir: Some(place.display().to_string()),
            rootfs_path: place.join(ROOTFS).display().to_string(),
            work_seed_path: fs::exists(staging.path().join(SEED))
                .map_err(cannot("look at"))?
                .then(|| place.join(SEED).display().to_string()),
            updated_at: created_at.clone(),
            created_at,
            size_bytes: allocated(&staging.path().join(ROOTFS)),
            kernel_path: of_kernel("vmlinux").unwrap_or_default(),
            initrd_path: of_kernel("initrd.img"),
            modules_dir: of_kernel("modules.ext4"),
            ..filled.image
        },
        rootfs: None,
        work_seed: None,
        own_kernel: filled.own_kernel.map(|own| OwnKernel {
            dir: place.join(KERNEL),
            ..own
        }),
    };
    let text = serde_json::to_vec_pretty(&record).expect("a record is plain JSON");
    fs::write(staging.path().join("image.json"), text).map_err(cannot("write"))?;
    staging.publish(&place).map_err(cannot("publish"))?;
    Ok(record)
}

pub(super) fn cannot_sweep(parent: &Path, error: &io::Error) -> Failure {
    Failure::internal(
        format!("cannot clear {} of unfinished work", parent.display()),
        error,
    )
}

fn already_exists(name: &ImageName) -> Failure {
    Failure::new(
        Code::AlreadyExists,
        format!("image \"{name}\" already exists"),
    )
    .hint(format!("banger image delete {name}, or another name"))
}

fn row(record: &ImageRecord) -> ImageRow {
    ImageRow {
        id: record.image.id.clone(),
        name: record.image.name.clone(),
        record: serde_json::to_string(record).expect("a record is plain JSON"),
    }
}

pub(super) fn new_id() -> String {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the kernel has random bytes");
    banger_model::id::hex(&bytes)
}

fn allocated(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|found| found.blocks() * 512)
}
