//! What a kernel has built in, and whether that and its modules are enough for a VM.
//!
//! Owns the list of drivers a VM needs. `modules.builtin` is believed first, then a
//! configuration; without either, what is no module is taken to be built in.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::stage::Staged;
use super::{Drivers, KernelError};
use crate::modules::name_of_file;

/// How a kernel has a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Has {
    /// In the kernel itself.
    BuiltIn,
    /// As a module.
    Module,
    /// Not at all.
    No,
    /// The kernel does not say.
    Unknown,
}

impl Has {
    /// Whether it is there, or may be.
    #[must_use]
    pub fn usable(self) -> bool {
        self != Has::No
    }
}

/// What is built in, as far as it is known.
pub(super) struct Builtin {
    modules: Option<BTreeSet<String>>,
    config: Option<BTreeSet<String>>,
}

impl Builtin {
    pub(super) fn read(modules: Option<&str>, config: Option<&str>) -> Builtin {
        let modules = modules.map(|text| {
            text.lines()
                .filter_map(|line| name_of_file(line.trim().rsplit('/').next()?))
                .collect()
        });
        let config = config.map(|text| {
            text.lines()
                .filter_map(|line| Some(line.trim().strip_suffix("=y")?.to_owned()))
                .collect()
        });
        Builtin { modules, config }
    }

    pub(super) fn is_known(&self) -> bool {
        self.modules.is_some() || self.config.is_some()
    }

    /// Whether a driver is built in, by its module's name and its option.
    pub(super) fn has(&self, module: &str, option: &str) -> Option<bool> {
        match (&self.modules, &self.config) {
            (None, None) => None,
            (modules, config) => Some(
                modules.as_ref().is_some_and(|set| set.contains(module))
                    || config.as_ref().is_some_and(|set| set.contains(option)),
            ),
        }
    }
}

/// Looks every driver up, and refuses a kernel that lacks one it cannot do without.
pub(super) fn drivers(known: &Builtin, staged: &Staged) -> Result<Drivers, KernelError> {
    let has = |module: &str, option: &str| match known.has(module, option) {
        Some(true) => Has::BuiltIn,
        _ if staged.by_name.contains_key(module) => Has::Module,
        Some(false) => Has::No,
        None => Has::Unknown,
    };
    let drivers = Drivers {
        virtio_blk: has("virtio_blk", "CONFIG_VIRTIO_BLK"),
        ext4: has("ext4", "CONFIG_EXT4_FS"),
        overlay: has("overlay", "CONFIG_OVERLAY_FS"),
        virtio_console: has("virtio_console", "CONFIG_VIRTIO_CONSOLE"),
        vsock: has("vmw_vsock_virtio_transport", "CONFIG_VIRTIO_VSOCKETS"),
        virtio_mmio: has("virtio_mmio", "CONFIG_VIRTIO_MMIO"),
        virtio_pci: has("virtio_pci", "CONFIG_VIRTIO_PCI"),
        virtio_net: has("virtio_net", "CONFIG_VIRTIO_NET"),
    };
    let needs = [
        (
            drivers.virtio_mmio.usable() || drivers.virtio_pci.usable(),
            "virtio devices (virtio_mmio or virtio_pci)",
        ),
        (drivers.virtio_blk.usable(), "virtio disks (virtio_blk)"),
        (drivers.ext4.usable(), "ext4"),
        (drivers.overlay.usable(), "overlay file systems (overlay)"),
        (
            drivers.virtio_console.usable() || drivers.vsock.usable(),
            "the channel to the guest (virtio_console or virtio vsock)",
        ),
    ];
    match needs.into_iter().find(|(usable, _)| !usable) {
        Some((_, driver)) => Err(KernelError::Unsupported { driver }),
        None => Ok(drivers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_is_what_either_list_says() {
        let both = Builtin::read(
            Some("kernel/fs/ext4/ext4.ko\nkernel/drivers/char/hw_random/virtio-rng.ko\n"),
            Some("CONFIG_VIRTIO_BLK=y\nCONFIG_OVERLAY_FS=m\n# CONFIG_X is not set\n"),
        );
        assert_eq!(both.has("ext4", "-"), Some(true));
        assert_eq!(both.has("virtio_rng", "-"), Some(true));
        assert_eq!(both.has("-", "CONFIG_VIRTIO_BLK"), Some(true));
        assert_eq!(both.has("overlay", "CONFIG_OVERLAY_FS"), Some(false));
        let nothing = Builtin::read(None, None);
        assert_eq!(nothing.has("ext4", "CONFIG_EXT4_FS"), None);
    }
}
