//! Room on the disk: nothing large is begun when little is left.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use banger_api::error::Code;
use banger_images::is_full;
use banger_registry::Weight;

use crate::failure::Failure;

/// Below this many free bytes no VM is made and nothing is fetched or built.
pub(crate) const LEAST: u64 = banger_images::ext4::LEAST_FREE;

/// Refuses when less than 1 GiB is free below the path, which belongs to this
/// state directory.
pub(crate) fn enough(place: &Path, state: &Path) -> Result<(), Failure> {
    match free_bytes(place) {
        Ok(free) if free < LEAST => Err(too_little(free, state)),
        // A file system that cannot be asked will say so when it is written.
        _ => Ok(()),
    }
}

/// Bytes an ordinary user may still write there.
pub(crate) fn free_bytes(place: &Path) -> std::io::Result<u64> {
    Ok(free_of(&rustix::fs::statvfs(place)?))
}

fn free_of(found: &rustix::fs::StatVfs) -> u64 {
    found.f_bavail.saturating_mul(found.f_frsize)
}

/// Whether 1 GiB is still free beside an open file that grows: the host's other guests write too.
pub(crate) fn enough_beside(file: &impl std::os::fd::AsFd) -> bool {
    // A file system that cannot be asked will say so when it is written.
    rustix::fs::fstatvfs(file).map_or(true, |found| free_of(&found) >= LEAST)
}

/// Says why an image that is pulled would not fit: its layers in the cache, and unpacked beside
/// the other images. Twice the packed layers is less than most unpack to, so that what would fit
/// is not refused; what then does not fit is told when it is written.
pub(crate) fn for_image(cache: &Path, images: &Path, weight: &Weight) -> Result<(), String> {
    let packed = weight.layers.saturating_sub(weight.plain);
    let root = packed.saturating_mul(2).saturating_add(weight.plain);
    let asked = if are_together(cache, images) {
        vec![(images, root.saturating_add(weight.missing), LEAST)]
    } else {
        vec![(cache, weight.missing, 0), (images, root, LEAST)]
    };
    for (place, needed, spare) in asked {
        // A file system that cannot be asked will say so when it is written.
        if let Ok(free) = free_bytes(place)
            && free < needed.saturating_add(spare)
        {
            let (needed, free) = (needed.div_ceil(1 << 20), free >> 20);
            let place = place.display();
            let beside = if spare > 0 {
                " beside the 1G that is left free"
            } else {
                ""
            };
            return Err(format!(
                "the image needs about {needed}M in {place}{beside}, and {free}M are free"
            ));
        }
    }
    Ok(())
}

/// Bytes that what comes into the cache leaves free there. On a file system of its own it takes
/// nothing from guests' disks, and may have all.
pub(crate) fn spare(cache: &Path, images: &Path) -> u64 {
    match are_together(cache, images) {
        true => LEAST,
        false => 0,
    }
}

/// Whether two directories are on one file system.
fn are_together(one: &Path, other: &Path) -> bool {
    let device = |place: &Path| std::fs::metadata(place).map(|found| found.dev()).ok();
    // Subvolumes have devices of their own, and one pool.
    let pool = |place: &Path| {
        let found = rustix::fs::statvfs(place).ok()?;
        Some(found.f_blocks.saturating_mul(found.f_frsize))
    };
    device(one) == device(other) || pool(one) == pool(other)
}

/// The failure of what could not be written: `no_space` where that is why.
pub(crate) fn failed(what: String, error: &io::Error) -> Failure {
    match is_full(error) {
        true => Failure::new(Code::NoSpace, what).caused_by(error),
        false => Failure::internal(what, error),
    }
}

fn too_little(free: u64, state: &Path) -> Failure {
    let tenths = free / ((1 << 30) / 10);
    Failure::new(
        Code::NoSpace,
        format!(
            "1G free space needed, {}.{}G left in {}",
            tenths / 10,
            tenths % 10,
            state.display()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_in_tenths() {
        let failure = too_little((4 << 30) / 10, Path::new("/s"));
        assert_eq!(failure.message, "1G free space needed, 0.4G left in /s");
        assert_eq!(failure.code.status(), 507);
        assert_eq!(failure.hint.as_deref(), Some("banger disk --reclaim"));
    }

    #[test]
    fn a_quota_that_is_used_up_is_no_room_either() {
        let of = |errno: rustix::io::Errno| failed("cannot write x".into(), &errno.into()).code;
        assert_eq!(of(rustix::io::Errno::NOSPC), Code::NoSpace);
        assert_eq!(of(rustix::io::Errno::DQUOT), Code::NoSpace);
        assert_eq!(of(rustix::io::Errno::IO), Code::Internal);
    }

    #[test]
    fn an_image_that_cannot_fit_is_told_with_what_it_needs() {
        let dir = tempfile::tempdir().unwrap();
        let weight = |layers, missing| Weight {
            layers,
            plain: 0,
            missing,
        };
        assert_eq!(for_image(dir.path(), dir.path(), &weight(1, 1)), Ok(()));
        // More than any file system holds.
        let all = u64::MAX / 4;
        let why = for_image(dir.path(), dir.path(), &weight(all, 0)).unwrap_err();
        assert!(
            why.starts_with("the image needs about 8796093022208M"),
            "{why}"
        );
        assert!(why.contains("beside the 1G"), "{why}");
        let plain = Weight {
            plain: all,
            ..weight(all, 0)
        };
        let why = for_image(dir.path(), dir.path(), &plain).unwrap_err();
        assert!(
            why.starts_with("the image needs about 4398046511104M"),
            "{why}"
        );
        let elsewhere = for_image(dir.path(), Path::new("/proc"), &weight(1, all)).unwrap_err();
        assert!(
            elsewhere.contains(dir.path().to_str().unwrap()),
            "{elsewhere}"
        );
        assert!(!elsewhere.contains("beside"), "{elsewhere}");
        assert_eq!(spare(dir.path(), dir.path()), LEAST);
        assert_eq!(spare(dir.path(), Path::new("/proc")), 0);
    }
}
