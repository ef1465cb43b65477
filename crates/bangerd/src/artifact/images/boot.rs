//! Images as boots need them.

use std::path::{Path, PathBuf};

use banger_api::error::Code;
use banger_api::image::Image;

use super::super::records::{FileMark, ImageRecord};
use crate::failure::Failure;
use crate::ports::BootImage;

/// An image as a boot needs it. Refuses files that changed since they were
/// registered: a VM's overlay rests on every block of them.
pub(in crate::artifact) fn boot_image(record: &ImageRecord) -> Result<BootImage, Failure> {
    let image = &record.image;
    let rootfs = PathBuf::from(&image.rootfs_path);
    let work_seed = image.work_seed_path.as_ref().map(PathBuf::from);
    verify(image, &rootfs, record.rootfs)?;
    if let Some(seed) = &work_seed {
        verify(image, seed, record.work_seed)?;
    }
    let (env, working_dir) = match &image.oci {
        Some(oci) => (
            oci.env.clone(),
            Some(oci.working_dir.clone()).filter(|dir| !dir.is_empty()),
        ),
        None => (Vec::new(), None),
    };
    Ok(BootImage {
        id: image.id.clone(),
        name: image.name.clone(),
        rootfs,
        work_seed,
        kernel_name: image.kernel_name.clone(),
        own_kernel: record.own_kernel.clone(),
        env,
        working_dir,
    })
}

fn verify(image: &Image, path: &Path, mark: Option<FileMark>) -> Result<(), Failure> {
    let hint = if image.managed {
        format!("banger image delete {}", image.name)
    } else {
        format!(
            "banger image register {} --rootfs {}",
            image.name, image.rootfs_path
        )
    };
    let now = FileMark::of(path).map_err(|error| {
        Failure::new(
            Code::InUse,
            format!(
                "{} of image {:?} cannot be read",
                path.display(),
                image.name
            ),
        )
        .caused_by(&error)
        .hint(hint.clone())
    })?;
    match mark {
        Some(mark) if mark != now => Err(Failure::new(
            Code::InUse,
            format!(
                "{} changed since image {:?} was registered",
                path.display(),
                image.name
            ),
        )
        .hint(hint)),
        _ => Ok(()),
    }
}
