//! Kernels that images bring along: from files of the host to a directory that
//! banger keeps.
//!
//! Owns those directories' content and names, as a kernel's own directory but
//! without a manifest; which image has which is in the image's row.

use std::io;
use std::path::{Path, PathBuf};

use banger_api::error::Code;
use banger_api::image::ImageRegisterParams;
use banger_images::kernel;
use banger_images::{Cancel, Report};

use super::failures;
use super::images::{absolute, new_id};
use super::publish::Staging;
use crate::failure::Failure;
use crate::ports::OwnKernel;

/// Begins the name of such a directory, below that of the images.
const KERNEL_OF_IMAGE: &str = "kernel-";

/// A kernel that comes with an image, by the files of the host it is made of.
pub(super) struct GivenKernel {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    modules: Option<PathBuf>,
}

impl GivenKernel {
    /// Checks what a client gives; `None` where it is no kernel.
    pub(super) fn of(params: &ImageRegisterParams) -> Result<Option<Self>, Failure> {
        let beside = params.initrd_path.is_some() || params.modules_dir.is_some();
        let Some(kernel) = &params.kernel_path else {
            return if beside {
                Err(
                    Failure::new(Code::BadRequest, "initrd and modules are those of a kernel")
                        .hint("--kernel FILE"),
                )
            } else {
                Ok(None)
            };
        };
        if params.kernel_ref.is_some() {
            return Err(Failure::new(
                Code::BadRequest,
                "a kernel by name excludes kernel, initrd and modules by path",
            ));
        }
        let optional = |path: &Option<String>| path.as_deref().map(absolute).transpose();
        Ok(Some(Self {
            kernel: absolute(kernel)?,
            initrd: optional(&params.initrd_path)?,
            modules: optional(&params.modules_dir)?,
        }))
    }

    /// Unpacks it, makes its modules image, and puts all of that in place below
    /// `parent`, without a row yet.
    pub(super) fn make_ready(
        &self,
        parent: &Path,
        cancel: &Cancel,
        report: &dyn Report,
    ) -> Result<OwnKernel, Failure> {
        let cannot = |error: io::Error| {
            let what = format!("cannot keep {}", self.kernel.display());
            match error.kind() {
                io::ErrorKind::StorageFull => Failure::new(Code::NoSpace, what).caused_by(&error),
                _ => Failure::internal(what, &error),
            }
        };
        let staging = Staging::new(parent).map_err(cannot)?;
        let (initrd, modules) = (self.initrd.as_deref(), self.modules.as_deref());
        let place = staging.path();
        let info = kernel::import_files(&self.kernel, initrd, modules, place, cancel, report)
            .map_err(|error| {
                let mut failure = failures::of_kernel(&error);
                if failure.code == Code::BadArchive {
                    failure.code = Code::BadPath;
                }
                let kernel = self.kernel.display();
                failure.message = format!("cannot use {kernel}: {}", failure.message);
                failure
            })?;
        for warning in &info.warnings {
            tracing::warn!(kernel = %self.kernel.display(), "{warning}");
        }
        // Not the image's id: an update has another kernel beside the old one.
        let dir = parent.join(format!("{KERNEL_OF_IMAGE}{}", new_id()));
        staging.publish(&dir).map_err(cannot)?;
        Ok(OwnKernel {
            dir,
            version: info.version,
            virtio_pci_builtin: info.virtio_pci_builtin,
            has_modules: info.has_modules,
        })
    }
}
