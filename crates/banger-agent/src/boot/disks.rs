//! Block devices: which is which, and growing the file system on one whose
//! file the daemon made larger.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use banger_wire::agent::Disks;

use super::BootError;

/// Device names under `/dev`, by their part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Devices {
    pub(crate) root: String,
    pub(crate) overlay: String,
    pub(crate) work: String,
    pub(crate) modules: Option<String>,
}

/// A drive that the machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Drive {
    /// Under `/dev`.
    pub(crate) name: String,
    /// Empty where the engine gives none.
    pub(crate) serial: String,
}

/// The drives there are, by name.
pub(super) fn present() -> io::Result<Vec<Drive>> {
    let block = Path::new("/sys/block");
    let mut present: Vec<Drive> = fs::read_dir(block)?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("vd"))
        .map(|name| {
            let serial = fs::read_to_string(block.join(&name).join("serial")).unwrap_or_default();
            let serial = serial.trim().to_owned();
            Drive { name, serial }
        })
        .collect();
    present.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(present)
}

/// Gives each wanted drive a device: by serial, or in order where no device
/// has one.
pub(super) fn assign(disks: &Disks, present: &[Drive]) -> Result<Devices, BootError> {
    let by_order = present.iter().all(|drive| drive.serial.is_empty());
    let device = |place: usize, serial: &str| {
        // virtio-blk serials are cut at 20 bytes.
        let cut = &serial.as_bytes()[..serial.len().min(20)];
        let found = match by_order {
            true => present.get(place),
            false => present.iter().find(|drive| drive.serial.as_bytes() == cut),
        };
        found
            .map(|drive| drive.name.clone())
            .ok_or_else(|| BootError::NoDisk(serial.to_owned()))
    };
    Ok(Devices {
        root: device(0, &disks.root)?,
        overlay: device(1, &disks.overlay)?,
        work: device(2, &disks.work)?,
        modules: disks
            .modules
            .as_deref()
            .map(|serial| device(3, serial))
            .transpose()?,
    })
}

/// Grows a mounted ext4 to the size of its device, if that is larger.
pub(super) fn grow(device: &str, mount_point: &str) -> io::Result<()> {
    let sectors = fs::read_to_string(format!("/sys/class/block/{device}/size"))?;
    let bytes = sectors.trim().parse::<u64>().map_err(io::Error::other)? * 512;
    let mut superblock = [0; 1024];
    File::open(format!("/dev/{device}"))?.read_exact_at(&mut superblock, 1024)?;
    let Some((blocks, block_size)) = ext4_size(&superblock) else {
        return Err(io::Error::other("there is no ext4 superblock"));
    };
    let wanted = bytes / block_size;
    if wanted > blocks {
        rustix::fs::ext4_ioc_resize_fs(File::open(mount_point)?.as_fd(), wanted)?;
    }
    Ok(())
}

/// Blocks and bytes per block that a superblock tells.
fn ext4_size(superblock: &[u8; 1024]) -> Option<(u64, u64)> {
    let word = |at: usize| {
        u32::from_le_bytes([
            superblock[at],
            superblock[at + 1],
            superblock[at + 2],
            superblock[at + 3],
        ])
    };
    let is_ext4 = superblock[0x38..0x3a] == [0x53, 0xef];
    let shift = word(0x18);
    if !is_ext4 || shift > 6 {
        return None;
    }
    let has_64bit = word(0x60) & 0x80 != 0;
    let high = if has_64bit {
        u64::from(word(0x150)) << 32
    } else {
        0
    };
    Some((high | u64::from(word(0x4)), 1024 << shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(pairs: &[(&str, &str)]) -> Vec<Drive> {
        let drive = |(name, serial): &(&str, &str)| Drive {
            name: (*name).to_owned(),
            serial: (*serial).to_owned(),
        };
        pairs.iter().map(drive).collect()
    }

    fn wanted(modules: Option<&str>) -> Disks {
        Disks {
            root: "root".into(),
            overlay: "overlay".into(),
            work: "work".into(),
            modules: modules.map(str::to_owned),
        }
    }

    #[test]
    fn drives_are_found_by_serial_whatever_their_order() {
        let drives = [
            ("vda", "modules"),
            ("vdb", "work"),
            ("vdc", "root"),
            ("vdd", "overlay"),
        ];
        let devices = assign(&wanted(Some("modules")), &present(&drives)).unwrap();
        assert_eq!(devices.root, "vdc");
        assert_eq!(devices.overlay, "vdd");
        assert_eq!(devices.work, "vdb");
        assert_eq!(devices.modules.as_deref(), Some("vda"));
        assert!(matches!(
            assign(&wanted(None), &present(&drives[..3])),
            Err(BootError::NoDisk(serial)) if serial == "overlay"
        ));
    }

    #[test]
    fn drives_without_serials_are_taken_in_order() {
        let drives = present(&[("vda", ""), ("vdb", ""), ("vdc", "")]);
        let devices = assign(&wanted(None), &drives).unwrap();
        assert_eq!(
            (devices.root.as_str(), devices.work.as_str()),
            ("vda", "vdc")
        );
        assert!(assign(&wanted(Some("modules")), &drives).is_err());
    }

    #[test]
    fn the_size_of_an_ext4_is_read_from_its_superblock() {
        let mut block = [0; 1024];
        assert_eq!(ext4_size(&block), None);
        block[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        block[0x4..0x8].copy_from_slice(&2048_u32.to_le_bytes());
        block[0x18] = 2;
        block[0x150] = 1;
        assert_eq!(ext4_size(&block), Some((2048, 4096)));
        block[0x60] = 0x80;
        assert_eq!(ext4_size(&block), Some(((1 << 32) + 2048, 4096)));
        block[0x18] = 60;
        assert_eq!(ext4_size(&block), None);
    }
}
