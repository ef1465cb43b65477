//! Kernels that images bring along: from files of the host to a directory that
//! banger keeps.
//!
//! Owns those directories' content and names, as a kernel's own directory but
//! without a manifest; which image has which is in the image's row. A managed
//! image has it in its own directory, with which it comes and goes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use banger_api::error::Code;
use banger_api::image::{ImageBuildParams, ImagePullParams, ImageRegisterParams};
use banger_images::kernel;
use banger_images::{Cancel, Report};

use super::images::{absolute, new_id};
use super::publish::Staging;
use super::{failures, space};
use crate::failure::Failure;
use crate::ports::OwnKernel;

/// Begins the name of such a directory, below that of the images.
const KERNEL_OF_IMAGE: &str = "kernel-";
/// The same in the directory of a managed image.
pub(super) const KERNEL: &str = "kernel";

/// What a request says of an image's kernel.
pub(super) struct Boot<'p> {
    kernel: &'p Option<String>,
    initrd: &'p Option<String>,
    modules: &'p Option<String>,
    by_name: &'p Option<String>,
}

impl<'p> From<&'p ImageRegisterParams> for Boot<'p> {
    fn from(params: &'p ImageRegisterParams) -> Self {
        Self {
            kernel: &params.kernel_path,
            initrd: &params.initrd_path,
            modules: &params.modules_dir,
            by_name: &params.kernel_ref,
        }
    }
}

impl<'p> From<&'p ImagePullParams> for Boot<'p> {
    fn from(params: &'p ImagePullParams) -> Self {
        Self {
            kernel: &params.kernel_path,
            initrd: &params.initrd_path,
            modules: &params.modules_dir,
            by_name: &params.kernel_ref,
        }
    }
}

impl<'p> From<&'p ImageBuildParams> for Boot<'p> {
    fn from(params: &'p ImageBuildParams) -> Self {
        Self {
            kernel: &params.kernel_path,
            initrd: &params.initrd_path,
            modules: &params.modules_dir,
            by_name: &None,
        }
    }
}

/// A kernel that comes with an image, by the files of the host it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GivenKernel {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    modules: Option<PathBuf>,
}

impl GivenKernel {
    /// Checks what a client gives; `None` where it is no kernel.
    pub(super) fn of<'p>(asked: impl Into<Boot<'p>>) -> Result<Option<Self>, Failure> {
        let asked = asked.into();
        let beside = asked.initrd.is_some() || asked.modules.is_some();
        let Some(kernel) = asked.kernel else {
            return if beside {
                Err(
                    Failure::new(Code::BadRequest, "initrd and modules are those of a kernel")
                        .hint("--kernel FILE"),
                )
            } else {
                Ok(None)
            };
        };
        if asked.by_name.is_some() {
            return Err(Failure::new(
                Code::BadRequest,
                "a kernel by name excludes kernel, initrd and modules by path",
            ));
        }
        let optional = |path: &Option<String>| path.as_deref().map(absolute).transpose();
        Ok(Some(Self {
            kernel: absolute(kernel)?,
            initrd: optional(asked.initrd)?,
            modules: optional(asked.modules)?,
        }))
    }

    /// Refuses files that are not there, before anything long is begun.
    pub(super) fn look(&self) -> Result<(), Failure> {
        let files = [Some(&self.kernel), self.initrd.as_ref()];
        let files = files.into_iter().flatten().map(|file| (file, false));
        for (path, directory) in files.chain(self.modules.as_ref().map(|dir| (dir, true))) {
            let shown = path.display();
            let found = fs::metadata(path).map_err(|error| {
                Failure::new(Code::BadPath, format!("cannot use {shown}")).caused_by(&error)
            })?;
            let (fits, what) = match directory {
                true => (found.is_dir(), "a directory of modules"),
                false => (found.is_file(), "a regular file"),
            };
            if !fits {
                return Err(Failure::new(
                    Code::BadPath,
                    format!("{shown} is not {what}"),
                ));
            }
        }
        Ok(())
    }

    /// Makes it ready in the directory that a managed image is being made in.
    pub(super) fn keep_in(
        &self,
        image: &Path,
        cancel: &Cancel,
        report: &dyn Report,
    ) -> Result<OwnKernel, Failure> {
        let place = image.join(KERNEL);
        fs::create_dir(&place).map_err(|error| self.cannot_keep(&error))?;
        self.import(&place, cancel, report)
    }

    /// Unpacks it, makes its modules image, and puts all of that in place below
    /// `parent`, without a row yet.
    pub(super) fn make_ready(
        &self,
        parent: &Path,
        cancel: &Cancel,
        report: &dyn Report,
    ) -> Result<OwnKernel, Failure> {
        let cannot = |error: io::Error| self.cannot_keep(&error);
        let staging = Staging::new(parent).map_err(cannot)?;
        let mut own = self.import(staging.path(), cancel, report)?;
        // Not the image's id: an update has another kernel beside the old one.
        own.dir = parent.join(format!("{KERNEL_OF_IMAGE}{}", new_id()));
        staging.publish(&own.dir).map_err(cannot)?;
        Ok(own)
    }

    fn cannot_keep(&self, error: &io::Error) -> Failure {
        space::failed(format!("cannot keep {}", self.kernel.display()), error)
    }

    fn import(
        &self,
        place: &Path,
        cancel: &Cancel,
        report: &dyn Report,
    ) -> Result<OwnKernel, Failure> {
        let (initrd, modules) = (self.initrd.as_deref(), self.modules.as_deref());
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
            report.log(&format!("warning: {warning}"));
        }
        Ok(OwnKernel {
            dir: place.to_owned(),
            version: info.version,
            virtio_pci_builtin: info.virtio_pci_builtin,
            has_modules: info.has_modules,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::http::tests::artifacts::kernel_files;

    /// Gives up when a stage begins.
    struct GivesUp<'s> {
        at: &'s str,
        cancel: Cancel,
        seen: Mutex<Vec<String>>,
    }

    impl Report for GivesUp<'_> {
        fn stage(&self, stage: &str, _: &str) {
            if stage == self.at {
                self.cancel.cancel();
            }
            self.seen.lock().unwrap().push(stage.to_owned());
        }
        fn bytes(&self, _: u64, _: Option<u64>) {}
        fn part(&self, _: &str, _: u64, _: u64) {}
        fn log(&self, _: &str) {}
    }

    #[test]
    fn a_kernel_that_is_given_up_at_any_stage_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        let (kernel, modules) = kernel_files(place.path());
        let given = GivenKernel {
            kernel,
            initrd: None,
            modules: Some(modules),
        };
        let parent = place.path().join("images");
        fs::create_dir(&parent).unwrap();
        let until = |at| {
            let report = GivesUp {
                at,
                cancel: Cancel::new().unwrap(),
                seen: Mutex::default(),
            };
            let made = given.make_ready(&parent, &report.cancel, &report);
            (made, report.seen.into_inner().unwrap())
        };
        for stage in ["read", "kernel", "modules", "modules_image"] {
            let (made, seen) = until(stage);
            assert_eq!(seen.last().unwrap(), stage, "it went on");
            assert!(made.is_err(), "{stage}");
            assert_eq!(fs::read_dir(&parent).unwrap().count(), 0, "{stage}");
        }
        let (made, seen) = until("none");
        assert_eq!(seen, ["read", "kernel", "modules", "modules_image"]);
        assert!(made.unwrap().dir.join("vmlinux").is_file());
    }
}
