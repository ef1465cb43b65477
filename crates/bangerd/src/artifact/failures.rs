//! What goes wrong in the workshop of images, in the words of the API.

use std::io;

use banger_api::error::Code;
use banger_images::apt::AptError;
use banger_images::bundle::BundleError;
use banger_images::kernel::KernelError;
use banger_images::oci::OciError;
use banger_images::suite::SuiteError;
use banger_images::worker::WorkerError;
use banger_registry::RegistryError;

use super::flight::was_cancelled;
use crate::daemon::describe;
use crate::failure::Failure;

/// What makes room.
const RECLAIM: &str = "banger disk --reclaim";
/// Where the content of an image is at fault.
const IMAGE: &str = "the fault is in the image itself: have it built again, or choose another tag";

pub(super) fn of_apt(error: &AptError) -> Failure {
    match error {
        AptError::NoTool { hint, .. } => describe(Code::NoTool, error).hint(*hint),
        AptError::NoSources => describe(Code::Unreachable, error)
            .hint("add Debian's archive to /etc/apt/sources.list, or use banger kernel import"),
        AptError::NotFound { .. } | AptError::NotAKernel { .. } => {
            describe(Code::NotInCatalog, error).hint("apt-cache search linux-image")
        }
        AptError::Unreachable { .. } => describe(Code::Unreachable, error),
        AptError::Verify { .. } => describe(Code::VerifyFailed, error),
        AptError::NoSpace { .. } => describe(Code::NoSpace, error),
        AptError::Io { .. } => describe(Code::Internal, error),
        AptError::Cancelled(_) => was_cancelled(),
    }
}

pub(super) fn of_kernel(error: &KernelError) -> Failure {
    if error.is_no_space() {
        // Reading a package writes too.
        return Failure::new(Code::NoSpace, "no space left to unpack the kernel").caused_by(error);
    }
    match error {
        KernelError::Unsupported { .. } => describe(Code::Unsupported, error),
        KernelError::Io { .. } | KernelError::NoKernel { .. } => describe(Code::BadPath, error),
        KernelError::Deb(_)
        | KernelError::Read(_)
        | KernelError::Unpack(_)
        | KernelError::Modules => describe(Code::BadArchive, error)
            .hint("the file is damaged, or of another kind: get it again"),
        KernelError::Write(_) => describe(Code::Internal, error),
        KernelError::Cancelled(_) => was_cancelled(),
    }
}

pub(crate) fn of_bundle(error: &BundleError) -> Failure {
    if error.is_cancelled() {
        return was_cancelled();
    }
    if error.is_no_space() {
        return describe(Code::NoSpace, error);
    }
    match error {
        BundleError::Damaged { .. } => describe(Code::VerifyFailed, error)
            .hint("try again; if it stays so, its sha256 in the catalog or the file is wrong"),
        BundleError::Kernel(error) => {
            let mut failure = of_kernel(error);
            // What it says of a path is of one in the bundle.
            if failure.code == Code::BadPath && matches!(error, KernelError::NoKernel { .. }) {
                failure.code = Code::BadArchive;
            }
            failure
        }
        BundleError::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {
            describe(Code::AlreadyExists, error)
        }
        BundleError::Io { .. } | BundleError::Write(_) => describe(Code::Internal, error),
        _ => describe(Code::BadArchive, error)
            .hint("the fault is in the bundle itself: have it made again"),
    }
}

pub(super) fn of_registry(error: &RegistryError) -> Failure {
    hinted(error, error.hint())
}

/// Of a bundle from the web.
pub(super) fn of_download(error: &RegistryError) -> Failure {
    hinted(error, error.hint_of_download())
}

fn hinted(error: &RegistryError, hint: Option<String>) -> Failure {
    let code = match error {
        RegistryError::BadReference { .. } => Code::BadReference,
        RegistryError::NotFound { .. } | RegistryError::NoTag { .. } => Code::NotFound,
        RegistryError::BadPath { .. } => Code::BadPath,
        RegistryError::BadArchive { .. } => Code::BadArchive,
        RegistryError::Ambiguous { .. } => Code::Ambiguous,
        RegistryError::Denied { .. }
        | RegistryError::Helper { .. }
        | RegistryError::Logins { .. } => Code::RegistryDenied,
        RegistryError::RateLimited { .. } | RegistryError::Unavailable { .. } => Code::Unreachable,
        RegistryError::Damaged { .. } => Code::VerifyFailed,
        RegistryError::Unsupported { .. } => Code::Unsupported,
        RegistryError::NoSpace { .. } | RegistryError::NoRoom { .. } => Code::NoSpace,
        RegistryError::Cache { .. } | RegistryError::Setup { .. } => Code::Internal,
        RegistryError::Cancelled => return was_cancelled(),
    };
    let failure = describe(code, error);
    match hint {
        Some(hint) => failure.hint(hint),
        None if code == Code::NoSpace => failure.hint(RECLAIM),
        None => failure,
    }
}

/// The config of an image.
pub(super) fn of_oci(error: &OciError) -> Failure {
    describe(Code::BadArchive, error).hint(IMAGE)
}

pub(super) fn of_worker(error: &WorkerError) -> Failure {
    if error.is_cancelled() {
        was_cancelled()
    } else if error.is_no_space() {
        describe(Code::NoSpace, error).hint(RECLAIM)
    } else if let Some(least) = error.needs() {
        too_small(least, error)
    } else if error.is_of_the_image() {
        describe(Code::BadArchive, error).hint(IMAGE)
    } else {
        describe(Code::Internal, error)
    }
}

/// Of the root that a guest packed.
pub(super) fn of_packed(error: &WorkerError) -> Failure {
    if error.is_cancelled() {
        was_cancelled()
    } else if error.is_no_space() {
        describe(Code::NoSpace, error)
    } else if let Some(least) = error.needs() {
        too_small(least, error)
    } else if error.is_of_the_image() {
        describe(Code::BuildFailed, error)
    } else {
        describe(Code::Internal, error)
    }
}

/// The size that was asked for is; `least` is not, bytes.
fn too_small(least: u64, error: &dyn std::error::Error) -> Failure {
    let size = banger_images::ext4::shown(least);
    describe(Code::BadSize, error).hint(format!("--size {size}"))
}

pub(super) fn of_suite(error: &SuiteError) -> Failure {
    if let SuiteError::Write(cause) = error
        && let Some(least) = cause.needs()
    {
        return too_small(least, error);
    }
    match error {
        SuiteError::NoTool { hint, .. } => describe(Code::NoTool, error).hint(*hint),
        SuiteError::NoSources => {
            describe(Code::Unreachable, error).hint("add Debian's archive to /etc/apt/sources.list")
        }
        SuiteError::BadName { .. } => describe(Code::BadName, error),
        SuiteError::NoSpace => describe(Code::NoSpace, error),
        // The end of its log is told with every build that fails.
        SuiteError::Failed { .. } => Failure::new(Code::BuildFailed, "mmdebstrap failed"),
        SuiteError::Io { .. } | SuiteError::Read(_) | SuiteError::Write(_) => {
            describe(Code::BuildFailed, error)
        }
        SuiteError::Cancelled(_) => was_cancelled(),
    }
}

#[cfg(test)]
mod tests {
    use banger_images::worker::{Fault, Refused};

    use super::*;

    #[test]
    fn a_size_that_is_too_small_is_told_with_one_that_does() {
        let refused = |least| {
            WorkerError::Refused(Refused {
                fault: Fault::Size { least },
                message: "the files do not fit into 256M: they need 700M".to_owned(),
                cause: None,
            })
        };
        for (least, hint) in [(700 << 20, "--size 700M"), (3 << 30, "--size 3G")] {
            for failure in [of_worker(&refused(least)), of_packed(&refused(least))] {
                assert_eq!(failure.code, Code::BadSize);
                assert_eq!(failure.hint.as_deref(), Some(hint));
            }
        }
    }
}
