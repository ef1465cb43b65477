//! An image's bundle to its root filesystem.

use std::fs::{self, File};
use std::path::Path;

use super::{Archive, BundleError, MANIFEST, Manifest, Sha, plain, pour, through};
use crate::ext4::{self, ROOTFS};
use crate::progress::{Cancel, Report};
use crate::spare::Spare;
use crate::tar::{EntryKind, Limits};

/// Both members, the root that some writers put before them, and a few that are told by name.
const ENTRIES: u64 = 8;

/// Unpacks an image's bundle: `rootfs.ext4` in `dest`, sparse, which must not be there yet.
/// Nothing is left of it when that fails.
///
/// # Errors
/// See [`BundleError`].
pub fn unpack(
    file: &File,
    expected: Option<&Sha>,
    dest: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Manifest, BundleError> {
    let path = dest.join(ROOTFS);
    let out = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(BundleError::io(format!("make {}", path.display())))?;
    let limits = Limits {
        entries: ENTRIES,
        unpacked_bytes: ext4::MAX_DISK_BYTES + (1 << 20),
        metadata_bytes: 1 << 20,
        ..Limits::default()
    };
    let unpacked = through(file, expected, limits, cancel, report, |archive| {
        members(archive, &out, cancel)
    });
    if unpacked.is_err() {
        let _ = fs::remove_file(&path);
    }
    unpacked
}

fn members(
    archive: &mut Archive<'_>,
    out: &File,
    cancel: &Cancel,
) -> Result<Manifest, BundleError> {
    let (mut manifest, mut written) = (None, false);
    while let Some(entry) = archive.next_entry()? {
        cancel.check()?;
        let refuse = |why| Err(BundleError::member(&entry.path, why));
        match (plain(&entry.path), &entry.kind) {
            (b"", EntryKind::Directory) => {}
            (name, _) if name == MANIFEST.as_bytes() => {
                if manifest.is_some() {
                    return refuse("is there twice");
                }
                manifest = Some(Manifest::of(archive, &entry)?);
            }
            (name, kind) if name == ROOTFS.as_bytes() => {
                if written {
                    return refuse("is there twice");
                }
                if !matches!(kind, EntryKind::File | EntryKind::Sparse { .. }) {
                    return refuse("is not a regular file");
                }
                written = true;
                let mut spare = Spare::of(ext4::LEAST_FREE);
                pour(archive, &entry, out, 0, &mut spare, cancel)?;
                let cannot = BundleError::io("read the root filesystem that was unpacked");
                if let Some(defect) = ext4::defect(out).map_err(cannot)? {
                    return refuse(defect);
                }
            }
            _ => return refuse("has no place in an image's"),
        }
    }
    if !written {
        return Err(BundleError::Missing { what: ROOTFS });
    }
    manifest.ok_or(BundleError::Missing { what: MANIFEST })
}
