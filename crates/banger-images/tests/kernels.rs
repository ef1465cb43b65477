//! Real Debian kernel packages, where a directory of them is named by `BANGER_TEST_KERNELS`.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use banger_images::initramfs::{self, BootSet, Channel, Transport};
use banger_images::kernel::{self, Has, KernelError, KernelInfo, Tag};
use banger_images::{Cancel, Quiet};

/// The packages to try; none, with a word on why, where nobody named a directory.
fn packages() -> Vec<PathBuf> {
    let Some(dir) = std::env::var_os("BANGER_TEST_KERNELS") else {
        eprintln!("skipped: BANGER_TEST_KERNELS names no directory of linux-image-*.deb");
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "deb"))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "BANGER_TEST_KERNELS holds no package");
    found
}

fn fsck(image: &Path) {
    let output = Command::new("/usr/sbin/e2fsck")
        .args(["-fn"])
        .arg(image)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

fn import(package: &Path, dest: &Path) -> KernelInfo {
    kernel::import_deb(package, dest, &Cancel::new().unwrap(), &Quiet).unwrap()
}

#[test]
fn a_debian_package_becomes_all_that_a_vm_boots_from() {
    for package in packages() {
        // `BANGER_TEST_KEEP` keeps what is made, for a look at it or a boot of it.
        let kept = std::env::var_os("BANGER_TEST_KEEP").map(PathBuf::from);
        let temporary = tempfile::tempdir().unwrap();
        let dest = kept.map_or_else(
            || temporary.path().to_owned(),
            |dir| {
                let dest = dir.join(package.file_stem().unwrap());
                let _ = std::fs::remove_dir_all(&dest);
                std::fs::create_dir_all(&dest).unwrap();
                dest
            },
        );
        let info = import(&package, &dest);
        let file = package.file_name().unwrap().to_str().unwrap();
        assert!(file.contains(&info.version), "{file} is {}", info.version);
        assert_eq!(info.distro.as_deref(), Some("debian"));
        assert!(
            info.has_modules && info.warnings.is_empty(),
            "{:?}",
            info.warnings
        );
        assert!(info.drivers.overlay != Has::Unknown && info.drivers.virtio_blk != Has::No);
        assert!(
            std::fs::read(dest.join("vmlinux"))
                .unwrap()
                .starts_with(b"\x7fELF")
        );
        fsck(&dest.join("modules.ext4"));
        let order = kernel::read_order(&dest).unwrap();
        let at = |name: &str| order.iter().position(|module| module.name == name);
        assert!(at("virtio_blk").is_some() && at("overlay").is_some());
        assert!(at("failover") < at("net_failover") && at("net_failover") < at("virtio_net"));
        assert!(at("vsock") < at("vmw_vsock_virtio_transport"));
        assert_eq!(order[at("virtio_net").unwrap()].tags, [Tag::Net]);
        let mut names: Vec<_> = std::fs::read_dir(&dest)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(
            names,
            ["boot-modules", "bzImage", "modules.ext4", "vmlinux"]
        );
        for (name, transport) in [("pci", Transport::Pci), ("mmio", Transport::Mmio)] {
            let set = BootSet {
                transport,
                channel: Channel::Serial,
                net: false,
            };
            let agent = std::env::var_os("BANGER_TEST_INIT").unwrap_or_else(|| "/bin/true".into());
            let out = temporary.path().join(name);
            initramfs::build(Path::new(&agent), &dest, set, &out).unwrap();
            if std::env::var_os("BANGER_TEST_KEEP").is_some() {
                std::fs::copy(&out, dest.join(format!("initramfs-{name}"))).unwrap();
            }
        }
    }
}

#[test]
fn a_cancelled_import_leaves_nothing() {
    for package in packages().into_iter().take(1) {
        let dest = tempfile::tempdir().unwrap();
        let cancel = Cancel::new().unwrap();
        struct At(Cancel);
        impl banger_images::Report for At {
            fn stage(&self, stage: &str, _: &str) {
                if stage == "modules_image" {
                    self.0.cancel();
                }
            }
            fn bytes(&self, _: u64, _: Option<u64>) {}
            fn part(&self, _: &str, _: u64, _: u64) {}
            fn log(&self, _: &str) {}
        }
        let error =
            kernel::import_deb(&package, dest.path(), &cancel, &At(cancel.clone())).unwrap_err();
        assert!(
            matches!(
                error,
                kernel::KernelError::Write(_)
                    | kernel::KernelError::Read(_)
                    | kernel::KernelError::Cancelled(_)
            ),
            "{error:?}"
        );
        assert_eq!(std::fs::read_dir(dest.path()).unwrap().count(), 0);
    }
}

/// A directory with a kernel that is one by its first bytes, and the modules named.
fn made_up(modules: &[&str], builtin: Option<&str>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let boot = dir.path().join("boot");
    let below = dir.path().join("lib/modules/6.9.1-x/kernel");
    std::fs::create_dir_all(&boot).unwrap();
    std::fs::create_dir_all(&below).unwrap();
    let mut elf = b"\x7fELF\x02\x01\x01\0".to_vec();
    elf.resize(64, 0);
    elf[18] = 0x3e;
    elf.extend_from_slice(b"Linux version 6.9.1-x (debian-kernel@lists) \0");
    std::fs::write(boot.join("vmlinux-6.9.1-x"), elf).unwrap();
    std::fs::write(boot.join("initramfs-6.9.1-x"), b"initrd").unwrap();
    for module in modules {
        std::fs::write(below.join(format!("{module}.ko")), b"not really").unwrap();
    }
    if let Some(builtin) = builtin {
        std::fs::write(
            dir.path().join("lib/modules/6.9.1-x/modules.builtin"),
            builtin,
        )
        .unwrap();
    }
    std::os::unix::fs::symlink("/etc", dir.path().join("lib/modules/6.9.1-x/build")).unwrap();
    dir
}

const ENOUGH: [&str; 5] = [
    "virtio-blk",
    "ext4",
    "overlay",
    "virtio_console",
    "virtio_mmio",
];

#[test]
fn a_directory_is_imported_by_what_lies_in_it() {
    let dir = made_up(&ENOUGH, Some("kernel/x.ko\n"));
    // virtio-blk is virtio_blk: dashes and underscores are the same.
    let dest = tempfile::tempdir().unwrap();
    let info =
        kernel::import_dir(dir.path(), dest.path(), &Cancel::new().unwrap(), &Quiet).unwrap();
    assert_eq!(
        (info.version.as_str(), info.arch.as_str()),
        ("6.9.1-x", "amd64")
    );
    assert_eq!(info.distro.as_deref(), Some("debian"));
    assert!(info.has_initrd && info.has_modules && !info.virtio_pci_builtin);
    assert_eq!(
        std::fs::read(dest.path().join("initrd.img")).unwrap(),
        b"initrd"
    );
    fsck(&dest.path().join("modules.ext4"));
    let text = serde_json::to_string(&info).unwrap();
    assert_eq!(serde_json::from_str::<KernelInfo>(&text).unwrap(), info);
}

#[test]
fn a_directory_is_imported_by_what_its_metadata_says() {
    let dir = made_up(&ENOUGH, Some("kernel/x.ko\n"));
    let (from, to) = (dir.path(), tempfile::tempdir().unwrap());
    let to = to.path();
    for (old, new) in [
        ("boot/vmlinux-6.9.1-x", "k"),
        ("boot/initramfs-6.9.1-x", "i"),
        ("lib/modules/6.9.1-x", "m"),
    ] {
        std::fs::rename(from.join(old), to.join(new)).unwrap();
    }
    for metadata in [
        r#"{"kernel": "k", "initrd": "i", "modules": "m", "distro": "ours"}"#,
        r#"{"kernel_path": "k", "initrd_path": "i", "modules_dir": "m", "distro": "ours",
            "kernel_version": "6.9.1-x", "arch": "amd64", "other": 1}"#,
    ] {
        std::fs::write(to.join("metadata.json"), metadata).unwrap();
        let dest = tempfile::tempdir().unwrap();
        let info = kernel::import_dir(to, dest.path(), &Cancel::new().unwrap(), &Quiet).unwrap();
        assert_eq!(
            (info.version.as_str(), info.arch.as_str()),
            ("6.9.1-x", "amd64")
        );
        assert_eq!(info.distro.as_deref(), Some("ours"));
        assert!(info.has_initrd && info.has_modules, "{metadata}");
    }
}

#[test]
fn a_kernel_without_a_driver_is_refused_by_its_name_and_leaves_nothing() {
    for (missing, word) in [
        ("virtio-blk", "virtio_blk"),
        ("ext4", "ext4"),
        ("overlay", "overlay"),
        ("virtio_console", "channel"),
        ("virtio_mmio", "virtio devices"),
    ] {
        let rest: Vec<&str> = ENOUGH
            .into_iter()
            .filter(|module| *module != missing)
            .collect();
        let dir = made_up(&rest, Some("kernel/x.ko\n"));
        let dest = tempfile::tempdir().unwrap();
        let error = kernel::import_dir(dir.path(), dest.path(), &Cancel::new().unwrap(), &Quiet)
            .unwrap_err();
        assert!(
            matches!(error, KernelError::Unsupported { driver } if driver.contains(word)),
            "{missing}: {error:?}"
        );
        assert_eq!(std::fs::read_dir(dest.path()).unwrap().count(), 0);
        // A kernel that does not say what it has is taken, with a warning.
        let dir = made_up(&rest, None);
        let info =
            kernel::import_dir(dir.path(), dest.path(), &Cancel::new().unwrap(), &Quiet).unwrap();
        assert_eq!(info.warnings.len(), 1, "{:?}", info.warnings);
    }
}

#[test]
fn a_kernel_is_imported_from_files_wherever_they_lie() {
    let dir = made_up(&ENOUGH, Some("kernel/x.ko\n"));
    let kernel = dir.path().join("boot/vmlinux-6.9.1-x");
    let initrd = dir.path().join("boot/initramfs-6.9.1-x");
    let version = dir.path().join("lib/modules/6.9.1-x");
    let import = |initrd: Option<&Path>, modules: Option<&Path>| {
        let dest = tempfile::tempdir().unwrap();
        let cancel = Cancel::new().unwrap();
        let info =
            kernel::import_files(&kernel, initrd, modules, dest.path(), &cancel, &Quiet).unwrap();
        (info, dest)
    };
    // The directory of one version, or the one above it.
    for modules in [version.as_path(), version.parent().unwrap()] {
        let (info, dest) = import(Some(&initrd), Some(modules));
        assert_eq!(info.version, "6.9.1-x");
        assert!(info.has_initrd && info.has_modules && info.warnings.is_empty());
        assert_eq!(
            std::fs::read(dest.path().join("vmlinux")).unwrap(),
            std::fs::read(&kernel).unwrap()
        );
        fsck(&dest.path().join("modules.ext4"));
    }
    // Alone it says what it is, and is taken to have built in what it needs.
    let (info, dest) = import(None, None);
    assert_eq!(info.version, "6.9.1-x");
    assert!(!info.has_initrd && !info.has_modules);
    assert_eq!(info.warnings.len(), 1, "{:?}", info.warnings);
    assert!(!dest.path().join("modules.ext4").exists());
}
