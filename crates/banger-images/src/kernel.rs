//! Kernels: from a package or a directory to everything a VM boots from.
//!
//! ```text
//! dest/vmlinux          the ELF that boots
//! dest/bzImage          the file as it came, when it was one
//! dest/modules.ext4     the content of /lib/modules/<version>, read-only
//! dest/initrd.img       a directory's own, kept and shown
//! dest/boot-modules/    lean modules for the initramfs, and `order`
//! ```
//!
//! Owns the layout of such a directory and the check that the kernel can boot at all. Refuses a
//! kernel without a driver that every VM needs, naming it. Touches only `dest`, and leaves it
//! empty of what it made when it fails.

mod bootset;
mod builtin;
mod found;
mod needs;
mod stage;

use std::fs::File;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use bootset::{BOOT_MODULES, ORDER, Tag, read_order};
pub use builtin::Has;

use crate::bzimage::{self, BzImageError, Format};
use crate::deb::{Deb, DebError};
use crate::ext4::{self, ImageOptions, RootfsWriter as _, WriteError};
use crate::progress::{Cancel, Cancelled, Report};
use crate::tree::{self, ReadError, Tree};
pub(crate) use found::Found;
pub(crate) use stage::is_index;

/// A kernel could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file could not be read or written.
    #[error("cannot {action}")]
    Io {
        /// What was done to what.
        action: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The package.
    #[error(transparent)]
    Deb(#[from] DebError),
    /// An archive or directory.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The kernel file.
    #[error(transparent)]
    Unpack(#[from] BzImageError),
    /// There is nothing to import.
    #[error("no kernel in {place}: {why}")]
    NoKernel {
        /// Where it was looked for.
        place: String,
        /// What is missing.
        why: String,
    },
    /// It has no driver for something every VM needs.
    #[error("the kernel has no driver for {driver}, neither built in nor as a module")]
    Unsupported {
        /// Which.
        driver: &'static str,
    },
    /// A module that booting needs says that it needs ever more.
    #[error(
        "a module for booting says that it needs more than {} others",
        bootset::COUNT_LIMIT
    )]
    Modules,
    /// The modules image.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The caller cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl From<needs::TooMany> for KernelError {
    fn from(_: needs::TooMany) -> Self {
        Self::Modules
    }
}

impl KernelError {
    fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> KernelError {
        let action = action.into();
        move |source| KernelError::Io { action, source }
    }

    /// Whether the host's disk is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            KernelError::Io { source, .. } | KernelError::Deb(DebError::Io(source)) => {
                crate::is_full(source)
            }
            KernelError::Write(error) => error.is_no_space(),
            _ => false,
        }
    }
}

/// How a kernel has the drivers a VM may need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drivers {
    /// Disks.
    pub virtio_blk: Has,
    /// The image's file system.
    pub ext4: Has,
    /// The root of a VM.
    pub overlay: Has,
    /// The channel of QEMU.
    pub virtio_console: Has,
    /// The channel of Firecracker.
    pub vsock: Has,
    /// Devices found by ACPI.
    pub virtio_mmio: Has,
    /// Devices on a PCI bus.
    pub virtio_pci: Has,
    /// Network.
    pub virtio_net: Has,
}

/// What is known of an imported kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelInfo {
    /// What `uname -r` says.
    pub version: String,
    /// Debian's name of the architecture: `amd64`, `arm64`.
    pub arch: String,
    /// `debian`, where it shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distro: Option<String>,
    /// How the kernel file came.
    pub format: Format,
    /// Of the kernel file as it came, in hex.
    pub sha256: String,
    /// Bytes that the directory takes on the disk.
    pub size_bytes: u64,
    /// Whether there is a `modules.ext4`.
    pub has_modules: bool,
    /// Whether there is an `initrd.img`.
    pub has_initrd: bool,
    /// Whether the PCI transport is built in: then it is the quicker one.
    pub virtio_pci_builtin: bool,
    /// Which drivers it has, and how.
    pub drivers: Drivers,
    /// The package it came from, and its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<(String, String)>,
    /// What the user should be told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The name of a kernel by its package: without what all packages have in common.
///
/// `linux-image-6.1.0-56-cloud-amd64` and the same with `-unsigned` are
/// `6.1.0-56-cloud-amd64`.
#[must_use]
pub fn name_of_package(package: &str) -> &str {
    let name = package.strip_prefix("linux-image-").unwrap_or(package);
    name.strip_suffix("-unsigned").unwrap_or(name)
}

/// Imports a kernel from a Debian package.
///
/// # Errors
/// See [`KernelError`].
pub fn import_deb(
    path: &Path,
    dest: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<KernelInfo, KernelError> {
    clean_up_after(dest, || {
        let found = found_in_deb(path, dest, cancel, report)?;
        build(found, dest, cancel, report)
    })
}

/// The parts of a package, whose content is kept in `spool`, in a file without a name.
pub(crate) fn found_in_deb(
    path: &Path,
    spool: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Found, KernelError> {
    report.stage("unpack", &path.display().to_string());
    let file = File::open(path).map_err(KernelError::io(format!("open {}", path.display())))?;
    let mut deb = Deb::open(file)?;
    let control = deb.control()?;
    // There, since it is large; without a name, since it is nobody else's.
    let mut data = tempfile::tempfile_in(spool).map_err(KernelError::io(format!(
        "make a file in {}",
        spool.display()
    )))?;
    deb.spool_data(&mut data, cancel, report)?;
    let tree = tree::from_tar(&data, 0, &crate::tar::Limits::default(), cancel, report)?;
    Found::in_package(tree, data, &control, path)
}

/// Imports a kernel from the members of a bundle, whose content is in `data`.
pub(crate) fn import_tree(
    tree: Tree,
    data: File,
    version: Option<String>,
    distro: Option<String>,
    dest: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<KernelInfo, KernelError> {
    clean_up_after(dest, || {
        let found = Found::in_members(tree, data, version, distro)?;
        build(found, dest, cancel, report)
    })
}

/// Imports a kernel from a directory: by its `metadata.json`, else `boot/vmlinux-*` or
/// `boot/vmlinuz-*` of the newest `lib/modules/*`.
///
/// # Errors
/// See [`KernelError`].
pub fn import_dir(
    dir: &Path,
    dest: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<KernelInfo, KernelError> {
    clean_up_after(dest, || {
        report.stage("read", &dir.display().to_string());
        let found = Found::in_directory(dir, cancel)?;
        build(found, dest, cancel, report)
    })
}

/// Imports a kernel from files of the host: a kernel file, packed or not, and
/// maybe an initrd and a directory of modules, as in `lib/modules/<version>`.
///
/// # Errors
/// See [`KernelError`].
pub fn import_files(
    kernel: &Path,
    initrd: Option<&Path>,
    modules: Option<&Path>,
    dest: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<KernelInfo, KernelError> {
    clean_up_after(dest, || {
        report.stage("read", &kernel.display().to_string());
        let found = Found::in_files(kernel, initrd, modules, cancel)?;
        build(found, dest, cancel, report)
    })
}

/// What an import makes in its destination.
const MADE: [&str; 6] = [
    "vmlinux",
    "bzImage",
    "modules.ext4",
    "initrd.img",
    bootset::BOOT_MODULES,
    stage::STAGE,
];

fn clean_up_after(
    dest: &Path,
    import: impl FnOnce() -> Result<KernelInfo, KernelError>,
) -> Result<KernelInfo, KernelError> {
    let result = import();
    if result.is_err() {
        for name in MADE {
            let path = dest.join(name);
            let _ = std::fs::remove_file(&path);
            let _ = std::fs::remove_dir_all(&path);
        }
    }
    result
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), KernelError> {
    let write = || {
        let mut file = File::create_new(path)?;
        io::Write::write_all(&mut file, bytes)
    };
    write().map_err(KernelError::io(format!("write {}", path.display())))
}

fn build(
    found: Found,
    dest: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<KernelInfo, KernelError> {
    report.stage("kernel", &found.kernel_name);
    let sha256 = hex(&Sha256::digest(&found.kernel));
    let unpacked = bzimage::unpack_kernel(&found.kernel)?;
    cancel.check()?;
    let mut warnings = found.warnings.clone();
    let version = found
        .version
        .clone()
        .or_else(|| unpacked.version.clone())
        .ok_or_else(|| KernelError::NoKernel {
            place: found.kernel_name.clone(),
            why: "its version cannot be told".to_owned(),
        })?;
    if let Some(own) = &unpacked.version
        && *own != version
    {
        warnings.push(format!(
            "the kernel says it is {own}, its modules are for {version}"
        ));
    }
    if unpacked.format == Format::BzImage {
        write_new(&dest.join("bzImage"), &found.kernel)?;
    }
    write_new(&dest.join("vmlinux"), &unpacked.vmlinux)?;
    if let Some(initrd) = &found.initrd {
        write_new(&dest.join("initrd.img"), initrd)?;
    }
    let config = found
        .config
        .clone()
        .or_else(|| bzimage::embedded_config(&unpacked.vmlinux));
    let arch = found
        .arch
        .clone()
        .unwrap_or_else(|| machine(&unpacked.vmlinux).to_owned());
    let distro = found.distro.clone().or_else(|| {
        memchr::memmem::find(&unpacked.vmlinux, b"debian-kernel@").map(|_| "debian".to_owned())
    });
    drop(unpacked.vmlinux);

    report.stage("modules", &version);
    let staged = stage::stage(&found, &version, dest, cancel, report)?;
    warnings.extend(staged.warnings.iter().cloned());
    let known = builtin::Builtin::read(staged.builtin.as_deref(), config.as_deref());
    let drivers = builtin::drivers(&known, &staged)?;
    if !known.is_known() {
        warnings.push(
            "the kernel does not say what is built in; drivers that are not modules are taken to be"
                .to_owned(),
        );
    }
    bootset::write(dest, &staged, &known, cancel)?;
    let has_modules = staged.count > 0;
    if has_modules {
        report.stage("modules_image", &version);
        let tree = tree::from_dir(&staged.dir, cancel)?;
        let options = ImageOptions {
            size_bytes: ext4::snug_size(&tree),
            label: Some("modules".to_owned()),
            uuid: None,
            epoch: ext4::now(),
            read_only: true,
            sync: false,
        };
        ext4::InProcess.write(
            &tree,
            &[],
            &dest.join("modules.ext4"),
            &options,
            cancel,
            report,
        )?;
    }
    staged.remove()?;
    let size_bytes =
        disk_usage(dest).map_err(KernelError::io(format!("read {}", dest.display())))?;
    Ok(KernelInfo {
        version,
        arch,
        distro,
        format: unpacked.format,
        sha256,
        size_bytes,
        has_modules,
        has_initrd: found.initrd.is_some(),
        virtio_pci_builtin: drivers.virtio_pci == Has::BuiltIn,
        drivers,
        package: found.package,
        warnings,
    })
}

/// Debian's name of an ELF file's machine.
fn machine(vmlinux: &[u8]) -> &'static str {
    match vmlinux.get(18..20) {
        Some([0x3e, 0]) => "amd64",
        Some([0xb7, 0]) => "arm64",
        _ => "unknown",
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that the files below a directory take on the disk.
///
/// # Errors
/// When it cannot be read.
pub fn disk_usage(dir: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let stat = entry.metadata()?;
        sum += stat.blocks() * 512;
        if stat.is_dir() {
            sum += disk_usage(&entry.path())?;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_named_after_its_package() {
        for (package, name) in [
            ("linux-image-6.1.0-56-cloud-amd64", "6.1.0-56-cloud-amd64"),
            (
                "linux-image-6.12.117+deb12-cloud-amd64-unsigned",
                "6.12.117+deb12-cloud-amd64",
            ),
            ("my-kernel", "my-kernel"),
        ] {
            assert_eq!(name_of_package(package), name);
        }
    }
}
