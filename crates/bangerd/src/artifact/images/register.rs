//! Files of the host taken as images.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_api::error::Code;
use banger_api::image::{Image, ImageRegisterParams};
use banger_images::{Cancel, Report, ext4};
use banger_model::ImageName;
use banger_store::{Connection, StoreError, Transaction, images};

use super::super::own::GivenKernel;
use super::super::publish;
use super::super::records::{self, FileMark, ImageRecord};
use super::super::{Kind, Shelf, Unseen, blocking, space, users};
use super::{allocated, already_exists, bad_name, new_id, row};
use crate::failure::Failure;
use crate::operation::now;
use crate::ports::OwnKernel;

impl Shelf {
    /// Takes a file of the host as an image, or updates one taken before. A
    /// kernel that is given along is made ready and kept.
    pub(crate) async fn register(&self, params: ImageRegisterParams) -> Result<Image, Failure> {
        let kernel = GivenKernel::of(&params)?;
        // A taken name is refused before anything else is looked at.
        if let Some(name) = &params.name {
            let name = bad_name(ImageName::parse(name))?;
            self.0.store.read(move |db| replaced(db, &name)).await??;
        }
        if let Some(kernel) = &params.kernel_ref {
            self.find_kernel(kernel).await?;
        }
        let key = format!("register\n{params:?}");
        let wanted = blocking(move || Registered::of(&params)).await?;
        let shelf = self.clone();
        let progress = Unseen::new()?;
        // In a flight, so that a client's leaving ends it cleanly.
        let work = |cancel: Cancel, report: Arc<dyn Report>| async move {
            shelf.put_registered(wanted, kernel, cancel, report).await
        };
        Ok(self
            .0
            .image_flights
            .join(&key, &progress, work)
            .await?
            .image)
    }

    /// The kernel's directory is in place before the row that speaks of it, and
    /// the one it replaces goes after that.
    async fn put_registered(
        self,
        mut wanted: Registered,
        kernel: Option<GivenKernel>,
        cancel: Cancel,
        report: Arc<dyn Report>,
    ) -> Result<ImageRecord, Failure> {
        let _claim = self.claim(Kind::Image, wanted.name.as_str())?;
        let name = wanted.name.clone();
        let old = self.0.store.read(move |db| replaced(db, &name)).await??;
        let before = old.and_then(|old| old.own_kernel).map(|own| own.dir);
        if let Some(kernel) = kernel {
            space::enough(&self.0.images_dir, &self.0.state)?;
            let parent = self.0.images_dir.clone();
            let own = blocking(move || kernel.make_ready(&parent, &cancel, &*report)).await?;
            wanted.own_kernel = Some(own);
        }
        let after = wanted.own_kernel.as_ref().map(|own| own.dir.clone());
        if let Err(failure) = publish::unsettle(before.iter().cloned().collect()).await {
            publish::discard(after.into_iter().collect()).await;
            return Err(failure);
        }
        let written = self
            .0
            .store
            .promise(move |tx| wanted.write(tx))
            .await
            .map_err(Failure::from)
            .and_then(|written| written);
        let (stays, goes) = match &written {
            Ok(_) => (after, before),
            Err(_) => (before, after),
        };
        publish::settle(stays.into_iter().collect()).await;
        if let Some(goes) = goes {
            publish::discard(vec![goes]).await;
            self.prune_soon();
        }
        written
    }
}

/// The image that a registration under this name would replace: an unmanaged
/// one that no VM has, or none.
fn replaced(
    db: &Connection,
    name: &ImageName,
) -> Result<Result<Option<ImageRecord>, Failure>, StoreError> {
    let old = match images::by_name(db, name.as_str())?
        .map(|row| records::image(&row))
        .transpose()
    {
        Ok(Some(old)) => old,
        Ok(None) => return Ok(Ok(None)),
        Err(failure) => return Ok(Err(failure)),
    };
    if old.image.managed {
        return Ok(Err(already_exists(name)));
    }
    let users = users::of_image(db, &old.image.id, &old.image.name, None)?;
    if users.is_empty() {
        Ok(Ok(Some(old)))
    } else {
        Ok(Err(users::in_use("image", &old.image.name, &users)))
    }
}

pub(in crate::artifact) fn absolute(path: &str) -> Result<PathBuf, Failure> {
    let shown: String = path.chars().take(400).collect();
    if Path::new(path).is_absolute() {
        Ok(path.into())
    } else {
        let why = format!("{shown:?} is not an absolute path");
        Err(Failure::new(Code::BadPath, why))
    }
}

/// Files of the host to take as an image, checked.
struct Registered {
    name: ImageName,
    rootfs: (PathBuf, FileMark),
    work_seed: Option<(PathBuf, FileMark)>,
    kernel_name: Option<String>,
    /// Files of a kernel, as given: kernel, initrd, modules.
    given: [Option<String>; 3],
    own_kernel: Option<OwnKernel>,
    size_bytes: Option<u64>,
}

impl Registered {
    fn of(params: &ImageRegisterParams) -> Result<Self, Failure> {
        let rootfs = params.rootfs_path.as_deref().ok_or_else(|| {
            Failure::new(Code::BadRequest, "no root file is named").hint("--rootfs FILE")
        })?;
        let rootfs = ext4_file(rootfs)?;
        let name = match &params.name {
            Some(name) => name.clone(),
            None => rootfs
                .0
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .to_lowercase(),
        };
        Ok(Self {
            name: bad_name(ImageName::parse(&name))?,
            work_seed: params
                .work_seed_path
                .as_deref()
                .map(ext4_file)
                .transpose()?,
            kernel_name: params.kernel_ref.clone(),
            given: [
                params.kernel_path.clone(),
                params.initrd_path.clone(),
                params.modules_dir.clone(),
            ],
            own_kernel: None,
            size_bytes: allocated(&rootfs.0),
            rootfs,
        })
    }

    /// Adds the image, or updates the unmanaged one of its name unless a VM
    /// has it.
    fn write(self, tx: &Transaction<'_>) -> Result<Result<ImageRecord, Failure>, StoreError> {
        let old = match replaced(tx, &self.name)? {
            Ok(old) => old,
            Err(failure) => return Ok(Err(failure)),
        };
        let path = |path: &Path| path.display().to_string();
        let [kernel_path, initrd_path, modules_dir] = self.given;
        let updated_at = now();
        let record = ImageRecord {
            image: Image {
                id: old.as_ref().map_or_else(new_id, |old| old.image.id.clone()),
                name: self.name.to_string(),
                managed: false,
                rootfs_path: path(&self.rootfs.0),
                work_seed_path: self.work_seed.as_ref().map(|(seed, _)| path(seed)),
                created_at: old
                    .as_ref()
                    .map_or(&updated_at, |old| &old.image.created_at)
                    .clone(),
                updated_at,
                kernel_path: kernel_path.unwrap_or_default(),
                initrd_path,
                modules_dir,
                kernel_name: self.kernel_name,
                size_bytes: self.size_bytes,
                ..Image::default()
            },
            rootfs: Some(self.rootfs.1),
            work_seed: self.work_seed.map(|(_, mark)| mark),
            own_kernel: self.own_kernel,
        };
        let row = row(&record);
        match old {
            Some(_) => drop(images::update(tx, &row.id, &row.record)?),
            None => images::insert(tx, &row)?,
        }
        Ok(Ok(record))
    }
}

/// A regular file of the host with an ext4 file system that it holds whole.
fn ext4_file(path: &str) -> Result<(PathBuf, FileMark), Failure> {
    let shown: String = path.chars().take(400).collect();
    let bad = |why: &str| Failure::new(Code::BadPath, format!("{shown:?} {why}"));
    absolute(path)?;
    let cannot = |error: io::Error| bad("cannot be read").caused_by(&error);
    let real = fs::canonicalize(path).map_err(cannot)?;
    if !fs::metadata(&real).map_err(cannot)?.is_file() {
        return Err(bad("is not a regular file"));
    }
    if real.to_str().is_none() {
        return Err(bad("is not UTF-8"));
    }
    let file = File::open(&real).map_err(cannot)?;
    if let Some(defect) = ext4::defect(&file).map_err(cannot)? {
        return Err(bad(defect));
    }
    let mark = FileMark::of(&real).map_err(cannot)?;
    Ok((real, mark))
}
