//! Images that banger takes into its own keeping.

use std::io;
use std::path::Path;
use std::sync::Arc;

use banger_api::image::Image;
use banger_images::ext4::{ROOTFS, SEED};
use banger_images::{Cancel, Report};
use banger_store::images;

use super::super::flight::was_cancelled;
use super::super::publish::{self, Staging};
use super::super::records::ImageRecord;
use super::super::{Kind, Shelf, blocking, space};
use super::{allocated, boot_image, row};
use crate::copy;
use crate::failure::Failure;
use crate::operation::now;
use crate::ports::Progress;

impl Shelf {
    /// Refuses what cannot be promoted, before anything is begun; the image.
    pub(crate) async fn can_promote(&self, reference: &str) -> Result<Image, Failure> {
        let record = self.find_image(reference).await?;
        if !record.image.managed {
            boot_image(&record)?;
            space::enough(&self.0.images_dir, &self.0.state)?;
        }
        Ok(record.image)
    }

    /// Copies the files of an unmanaged image into banger's keeping; the image
    /// keeps its id, and VMs that have it are none the wiser. One that is
    /// managed stays as it is.
    pub(crate) async fn promote(
        &self,
        id: &str,
        progress: &dyn Progress,
    ) -> Result<Image, Failure> {
        let key = format!("promote\n{id}");
        let (shelf, id) = (self.clone(), id.to_owned());
        let work = |cancel, report| async move { shelf.take_over(&id, cancel, report).await };
        let flight = self.0.image_flights.join(&key, progress, work);
        Ok(flight.await?.image)
    }

    async fn take_over(
        self,
        id: &str,
        cancel: Cancel,
        report: Arc<dyn Report>,
    ) -> Result<ImageRecord, Failure> {
        let name = self.find_image(id).await?.image.name;
        let _claim = self.claim(Kind::Image, &name)?;
        // It may have been updated, or promoted, while nobody had a claim.
        let record = self.find_image(id).await?;
        if record.image.managed {
            return Ok(record);
        }
        let place = self.0.images_dir.join(&record.image.id);
        let parent = self.0.images_dir.clone();
        let (from, to, switch) = (record, place.clone(), cancel.clone());
        let promoted = blocking(move || {
            let staging = Staging::new(&parent).map_err(|error| cannot(&from.image, error))?;
            copy_files(&from, staging.path(), &switch, &*report)?;
            report.stage("publish", &from.image.name);
            let promoted = managed(from, &to);
            let text = serde_json::to_vec_pretty(&promoted).expect("a record is plain JSON");
            std::fs::write(staging.path().join("image.json"), text)
                .and_then(|()| staging.publish(&to))
                .map_err(|error| cannot(&promoted.image, error))?;
            Ok(promoted)
        })
        .await?;
        if cancel.is_cancelled() {
            publish::discard(vec![place]).await;
            return Err(was_cancelled());
        }
        let row = row(&promoted);
        let written = self
            .0
            .store
            .promise(move |tx| images::update(tx, &row.id, &row.record))
            .await;
        match written {
            Ok(_) => {
                publish::settle(vec![place]).await;
                tracing::info!(image = promoted.image.name, "image promoted");
                Ok(promoted)
            }
            Err(error) => {
                publish::discard(vec![place]).await;
                Err(error.into())
            }
        }
    }
}

/// Copies an image's files; refuses those that changed, also while they were
/// copied.
fn copy_files(
    record: &ImageRecord,
    dir: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<(), Failure> {
    let image = &record.image;
    let files = [
        (Some(&image.rootfs_path), ROOTFS),
        (image.work_seed_path.as_ref(), SEED),
    ];
    let files = files.map(|(from, to)| from.map(|from| (Path::new(from), dir.join(to))));
    let total = files
        .iter()
        .flatten()
        .filter_map(|(from, _)| allocated(from));
    let (mut done, total) = (0, total.sum());
    report.stage("copy", &image.name);
    for (from, to) in files.iter().flatten() {
        boot_image(record)?;
        copy::disk_telling(from, to, &mut |bytes| {
            done += bytes;
            report.bytes(done, Some(total));
            cancel.check().map_err(io::Error::other)?;
            match space::enough(dir, dir) {
                Ok(()) => Ok(()),
                Err(_) => Err(io::ErrorKind::StorageFull.into()),
            }
        })
        .map_err(|error| match cancel.check() {
            Ok(()) => cannot(image, error),
            Err(_) => was_cancelled(),
        })?;
    }
    boot_image(record).map(drop)
}

/// The record of an image whose files are in `place`.
fn managed(from: ImageRecord, place: &Path) -> ImageRecord {
    let path = |name: &str| place.join(name).display().to_string();
    let own = from.own_kernel.as_ref().map(|own| &own.dir);
    let kernel = |name: &str| own.map(|dir| dir.join(name).display().to_string());
    let old = from.image;
    ImageRecord {
        image: Image {
            managed: true,
            artifact_dir: Some(place.display().to_string()),
            rootfs_path: path(ROOTFS),
            work_seed_path: old.work_seed_path.map(|_| path(SEED)),
            kernel_path: kernel("vmlinux").unwrap_or_default(),
            initrd_path: old.initrd_path.and_then(|_| kernel("initrd.img")),
            modules_dir: old.modules_dir.and_then(|_| kernel("modules.ext4")),
            updated_at: now(),
            ..old
        },
        rootfs: None,
        work_seed: None,
        own_kernel: from.own_kernel,
    }
}

fn cannot(image: &Image, error: io::Error) -> Failure {
    space::failed(format!("cannot promote image {:?}", image.name), &error)
}
