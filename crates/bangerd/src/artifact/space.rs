//! Room on the disk: nothing large is begun when little is left.

use std::path::Path;

use banger_api::error::Code;

use crate::failure::Failure;

/// Below this many free bytes no VM is made and nothing is fetched or built.
const LEAST: u64 = 1 << 30;

/// Refuses when less than 1 GiB is free below the path.
pub(crate) fn enough(place: &Path) -> Result<(), Failure> {
    match free_bytes(place) {
        Ok(free) if free < LEAST => Err(too_little(free, place)),
        // A file system that cannot be asked will say so when it is written.
        _ => Ok(()),
    }
}

/// Bytes an ordinary user may still write there.
pub(crate) fn free_bytes(place: &Path) -> std::io::Result<u64> {
    let found = rustix::fs::statvfs(place)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

fn too_little(free: u64, place: &Path) -> Failure {
    let tenths = free / ((1 << 30) / 10);
    Failure::new(
        Code::NoSpace,
        format!(
            "1G free space needed, {}.{}G left in {}",
            tenths / 10,
            tenths % 10,
            place.display()
        ),
    )
    .hint("banger prune, or banger image delete IMAGE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_in_tenths() {
        let failure = too_little((4 << 30) / 10, Path::new("/s"));
        assert_eq!(failure.message, "1G free space needed, 0.4G left in /s");
        assert_eq!(failure.code.status(), 507);
    }
}
