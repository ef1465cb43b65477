//! What is on the shelf, for whom, and what of it nobody needs; and the ways
//! in which single things leave it.
//!
//! Blobs of the cache serve pulls only: an image is flattened, and needs no
//! layer any more. So all blobs that no pull holds now can go; a later pull
//! that shares one fetches it again.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use banger_api::disk::{DiskKind, DiskUser};
use banger_api::error::Code;
use banger_api::image::ImageCachePruneResult;
use banger_registry::{Blob, Cache};
use banger_store::{images, kernels, ledger, vms};
use tokio::sync::OwnedMutexGuard;

use super::records::{self, ImageRecord, KernelRecord};
use super::{Kind, Shelf, blocking, failures, users};
use crate::failure::Failure;

/// An image or a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stocked {
    /// Image or kernel.
    pub(crate) kind: DiskKind,
    /// What finds it again: an image's id, a kernel's name.
    pub(crate) key: String,
    /// Its name.
    pub(crate) name: String,
    /// The directories that banger keeps for it.
    pub(crate) dirs: Vec<PathBuf>,
    /// What rests on it.
    pub(crate) users: Vec<DiskUser>,
    /// What else speaks for it.
    pub(crate) note: Option<String>,
}

/// What banger knows of that has files.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stock {
    /// Images by name.
    pub(crate) images: Vec<Stocked>,
    /// Kernels by name.
    pub(crate) kernels: Vec<Stocked>,
    /// Names of VMs by id; of one that only the ledger knows, its id.
    pub(crate) vms: HashMap<String, String>,
    /// Directories of kernels that images brought, by the image's name.
    own_kernels: Vec<(String, PathBuf)>,
}

impl Stock {
    /// The kernel directories that something may boot from, but for those of
    /// these images and kernels.
    pub(crate) fn kernel_dirs(&self, gone: impl Fn(&Stocked) -> bool) -> Vec<PathBuf> {
        let named = self.kernels.iter().filter(|kernel| !gone(kernel));
        let owners: HashSet<&str> = (self.images.iter().filter(|image| !gone(image)))
            .map(|image| image.name.as_str())
            .collect();
        let own = (self.own_kernels.iter()).filter(|(image, _)| owners.contains(image.as_str()));
        named
            .flat_map(|kernel| kernel.dirs.clone())
            .chain(own.map(|(_, dir)| dir.clone()))
            .collect()
    }
}

/// The right to clear: while it is held nothing else is cleared.
pub(crate) struct Clearing {
    _asked: OwnedMutexGuard<()>,
    _alone: OwnedMutexGuard<()>,
}

impl Shelf {
    /// Takes the right to clear.
    ///
    /// # Errors
    /// `busy` where somebody else has it.
    pub(crate) async fn clear(&self) -> Result<Clearing, Failure> {
        match self.0.clearing.clone().try_lock_owned() {
            Ok(asked) => Ok(Clearing {
                _asked: asked,
                // What prunes by itself takes milliseconds.
                _alone: self.0.pruning.clone().lock_owned().await,
            }),
            Err(_) => Err(
                Failure::new(Code::Busy, "another reclaim or prune is under way")
                    .hint("banger operation list"),
            ),
        }
    }

    /// Everything that banger knows of, with what rests on what.
    pub(crate) async fn stock(&self) -> Result<Stock, Failure> {
        let default = self.0.default_image.clone();
        let (image_rows, kernel_rows, vm_rows, held) = self
            .0
            .store
            .read(move |db| {
                let mut image_rows = Vec::new();
                for row in images::list(db)? {
                    let users = users::of_image(db, &row.id, &row.name, Some(&default))?;
                    image_rows.push((row, users));
                }
                let mut kernel_rows = Vec::new();
                for row in kernels::list(db)? {
                    let users = users::all_of_kernel(db, &row.name)?;
                    kernel_rows.push((row, users));
                }
                Ok((image_rows, kernel_rows, vms::all(db)?, ledger::all(db)?))
            })
            .await?;
        let mut stock = Stock::default();
        for (row, users) in image_rows {
            let record: ImageRecord = records::image(&row)?;
            let own = record.own_kernel.as_ref().map(|own| own.dir.clone());
            stock
                .own_kernels
                .extend(own.map(|dir| (row.name.clone(), dir)));
            stock.images.push(Stocked {
                kind: DiskKind::Image,
                dirs: record.kept(&self.0.images_dir),
                note: (row.name == self.0.default_image).then(|| "default image".to_owned()),
                users: users.into_iter().map(|name| user("vm", name)).collect(),
                key: row.id,
                name: row.name,
            });
        }
        let default = match &self.0.default_kernel {
            Some(name) => Some(name.clone()),
            None => self.newest_kernel().await?.map(|newest| newest.entry.name),
        };
        for (row, users) in kernel_rows {
            let record: KernelRecord = records::read("kernel", &row.name, &row.record)?;
            stock.kernels.push(Stocked {
                kind: DiskKind::Kernel,
                dirs: vec![self.0.kernels_dir.join(&record.entry.name)],
                note: (default.as_ref() == Some(&row.name)).then(|| "default kernel".to_owned()),
                users: users
                    .into_iter()
                    .map(|(kind, name)| user(kind, name))
                    .collect(),
                key: row.name.clone(),
                name: row.name,
            });
        }
        for entry in held {
            let id = entry.owner.to_string();
            stock.vms.insert(id.clone(), id);
        }
        for vm in vm_rows {
            stock.vms.insert(vm.id.to_string(), vm.name);
        }
        Ok(stock)
    }

    /// Whether an image of this name is being made or removed.
    pub(crate) fn is_claimed(&self, image: &str) -> bool {
        let claims = self.0.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.contains(&(Kind::Image, image.to_owned()))
    }

    /// Keeps others from making a kernel of this name.
    pub(crate) fn claim_kernel(&self, name: &str) -> Result<super::Claim, Failure> {
        self.claim(Kind::Kernel, name)
    }

    /// Keeps others from making an image of this name.
    pub(crate) fn claim_image(&self, name: &str) -> Result<super::Claim, Failure> {
        self.claim(Kind::Image, name)
    }

    /// The blobs and parts that no pull holds, of this daemon or of another
    /// with the same cache. Blocks.
    pub(crate) fn idle_blobs(&self) -> Result<Vec<Blob>, Failure> {
        let mut idle = Vec::new();
        if let Some(cache) = self.blobs()? {
            let look = |blob: &Blob| {
                idle.push(blob.clone());
                false
            };
            (cache.prune(look)).map_err(|error| failures::of_registry(&error))?;
        }
        Ok(idle)
    }

    /// Removes one of them, by its file's name, if it still is idle and this
    /// file; the bytes that came back. Blocks.
    pub(crate) fn free_blob(&self, name: &str, inode: (u64, u64)) -> Result<Option<u64>, Failure> {
        let Some(cache) = self.blobs()? else {
            return Ok(None);
        };
        let goes = |blob: &Blob| blob.inode == inode && Cache::name_of(blob) == name;
        let gone = cache.prune_one(name, goes);
        let gone = gone.map_err(|error| failures::of_registry(&error))?;
        Ok(gone.map(|blob| blob.frees))
    }

    /// The cache, where there is one yet.
    fn blobs(&self) -> Result<Option<Cache>, Failure> {
        if !self.0.oci.join("blobs").is_dir() {
            return Ok(None);
        }
        let cache = Cache::open(&self.0.oci);
        cache
            .map(Some)
            .map_err(|error| failures::of_registry(&error))
    }

    /// Removes all blobs that no pull holds.
    ///
    /// # Errors
    /// `busy` while something else is cleared.
    pub(crate) async fn prune_blobs(
        &self,
        dry_run: bool,
    ) -> Result<ImageCachePruneResult, Failure> {
        let clearing = self.clear().await?;
        let shelf = self.clone();
        blocking(move || {
            let _clearing = clearing;
            let blobs = match shelf.blobs()? {
                Some(_) if dry_run => shelf.idle_blobs()?,
                Some(cache) => (cache.prune(|_| true)).map_err(|e| failures::of_registry(&e))?,
                None => Vec::new(),
            };
            Ok(ImageCachePruneResult {
                bytes_freed: blobs.iter().map(|blob| blob.frees).sum(),
                blobs_freed: blobs.len() as u64,
                dry_run,
                cache_dir: shelf.0.oci.join("blobs").display().to_string(),
            })
        })
        .await
    }

    /// Names of the initramfs that none of these kernels boots from. Blocks.
    pub(crate) fn stale_boots(&self, kernel_dirs: &[PathBuf]) -> Result<HashSet<String>, Failure> {
        self.0.boots.stale(kernel_dirs)
    }

    /// Removes one initramfs, if it is still stale; the bytes that came back.
    /// Blocks.
    pub(crate) fn free_boot(
        &self,
        kernel_dirs: &[PathBuf],
        name: &OsStr,
        inode: (u64, u64),
    ) -> Result<Option<u64>, Failure> {
        self.0.boots.free(kernel_dirs, name, inode)
    }

    /// Removes a kernel that no VM uses, no image names, and no VM in the
    /// making may choose.
    pub(crate) async fn delete_idle_kernel(&self, name: &str) -> Result<(), Failure> {
        self.remove_kernel(name, users::all_of_kernel).await
    }

    /// Whether a file in the directory of images is the log of a build; the
    /// name of the image then.
    pub(crate) fn build_of_log(file: &str) -> Option<&str> {
        file.strip_suffix(super::images::BUILD_LOG)
    }
}

fn user(kind: &str, name: String) -> DiskUser {
    DiskUser {
        kind: kind.to_owned(),
        name,
    }
}

/// The lock of the package lists, where nobody has it; `Err` where somebody
/// has, `Ok(None)` where there are none. Blocks no one who comes: they wait.
pub(crate) fn idle_packages(dir: &Path) -> Result<Option<std::fs::File>, ()> {
    match std::fs::File::open(dir.join(banger_images::apt::LOCK)) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(_) => Err(()),
        },
        Err(_) => Ok(None),
    }
}
