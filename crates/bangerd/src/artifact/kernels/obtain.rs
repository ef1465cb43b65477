//! Kernels by name: what a pull means, and bundles.

use std::sync::Arc;

use banger_api::error::Code;
use banger_api::kernel::{KernelCatalogResult, KernelImportParams, KernelPullParams};
use banger_images::bundle::import_kernel;
use banger_images::{Cancel, Report};

use super::super::catalog::{Bundle, Origin};
use super::super::records::KernelRecord;
use super::super::{Kind, Shelf, Under, failures};
use super::{DEB, Made, NewKernel, Whence, begin, default_package, parse_name};
use crate::failure::Failure;
use crate::ports::Progress;

impl Shelf {
    /// The catalog's kernels, with what is here marked.
    pub(crate) async fn available_kernels(&self) -> Result<KernelCatalogResult, Failure> {
        let here = self.kernels().await?;
        let catalog = self.catalog().await?;
        let entries = catalog.available(Kind::Kernel, |name| {
            let here = here.iter().find(|entry| entry.name == name)?;
            Some(here.size_bytes)
        });
        Ok(KernelCatalogResult { entries })
    }

    /// Checks what a client asks to pull: a package, or a name of the catalog.
    pub(crate) async fn wanted_kernel(
        &self,
        params: &KernelPullParams,
    ) -> Result<NewKernel, Failure> {
        let package = params.package.as_deref().unwrap_or_default();
        let package = package.strip_prefix(DEB).unwrap_or(package);
        let name = params.name.as_deref().map(parse_name).transpose();
        if !package.is_empty() {
            if params.entry.is_some() {
                let what = "a kernel is of the catalog or of a package: name one of them";
                return Err(Failure::new(Code::BadRequest, what).hint(pull_hint()));
            }
            return Ok(NewKernel {
                from: Whence::Package(package.to_owned()),
                name: name?,
                force: params.force,
                reuse: false,
            });
        }
        let Some(entry) = params.entry.as_ref().or(params.name.as_ref()) else {
            let what = "neither a name of the catalog nor a package is named";
            return Err(Failure::new(Code::BadRequest, what).hint(pull_hint()));
        };
        let Some(wanted) = self.catalogued(entry).await? else {
            let shown: String = entry.chars().take(80).collect();
            let what = format!("no kernel {shown:?} in the catalog");
            return Err(Failure::new(Code::NotInCatalog, what).hint(pull_hint()));
        };
        Ok(NewKernel {
            name: name?.or(wanted.name),
            force: params.force,
            ..wanted
        })
    }

    async fn catalogued(&self, name: &str) -> Result<Option<NewKernel>, Failure> {
        let catalog = self.catalog().await?;
        let Some(entry) = catalog.find(Kind::Kernel, name)? else {
            return Ok(None);
        };
        let from = match &entry.origin {
            Origin::Deb(package) => Whence::Package(package.clone()),
            Origin::Bundle(bundle) => Whence::Bundle(bundle.clone()),
            Origin::Suite(_) | Origin::Reference(_) => {
                unreachable!("suites and references are images'")
            }
        };
        Ok(Some(NewKernel {
            from,
            name: Some(parse_name(name)?),
            force: false,
            reuse: false,
        }))
    }

    /// Refuses a kernel that is neither here nor in the catalog.
    pub(in crate::artifact) async fn kernel_is_to_be_had(&self, name: &str) -> Result<(), Failure> {
        if self.find_kernel(name).await.is_ok() || self.catalogued(name).await?.is_some() {
            return Ok(());
        }
        let what =
            format!("the image wants kernel {name:?}, which is neither here nor in the catalog");
        Err(Failure::new(Code::NotInCatalog, what).hint("--kernel-ref KERNEL"))
    }

    /// Obtains a kernel from the catalog, unless it is here.
    pub(in crate::artifact) async fn have_kernel(
        &self,
        name: &str,
        progress: &dyn Progress,
    ) -> Result<(), Failure> {
        self.kernel_is_to_be_had(name).await?;
        if self.find_kernel(name).await.is_ok() {
            return Ok(());
        }
        let Some(wanted) = self.catalogued(name).await? else {
            return Ok(());
        };
        let under = Under {
            stage: "pull_kernel",
            progress,
        };
        let wanted = NewKernel {
            reuse: true,
            ..wanted
        };
        self.fetch(wanted, &under).await.map(drop)
    }

    pub(super) async fn pull_bundle(
        self,
        wanted: NewKernel,
        bundle: Bundle,
        cancel: Cancel,
        report: Arc<dyn Report>,
    ) -> Result<KernelRecord, Failure> {
        let name = wanted.name.expect("a bundle's kernel has a name");
        let claim = self.claim(Kind::Kernel, name.as_str())?;
        if wanted.reuse
            && let Ok(record) = self.find_kernel(name.as_str()).await
        {
            return Ok(record);
        }
        self.name_is_free(name.as_str(), wanted.force).await?;
        let file = self.bundle(&bundle, &cancel, &report).await?;
        let (parent, switch) = (self.0.kernels_dir.clone(), cancel.clone());
        self.add(claim, cancel, move || {
            let staging = begin(&parent)?;
            report.stage("unpack", name.as_str());
            let digest = bundle.digest.bytes();
            let (info, manifest) =
                import_kernel(&file, Some(&digest), staging.path(), &switch, &*report)
                    .map_err(|error| failures::of_bundle(&error))?;
            report.stage("publish", name.as_str());
            // What it is for is read off the kernel itself.
            let given = KernelImportParams {
                distro: manifest.distro,
                ..KernelImportParams::default()
            };
            let source = Some(format!("pull:{}", bundle.url));
            Made::of(staging, &parent, &name, source, Some(&given), &info)
        })
        .await
    }
}

fn pull_hint() -> String {
    format!(
        "banger kernel list --available, or banger kernel pull {DEB}{}",
        default_package()
    )
}
