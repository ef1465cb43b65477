//! A guest's root, packed by its agent into one tar, made an image.
//!
//! The guest is not trusted: its archive is one like any other that is foreign, bounded by the
//! same limits, and becomes a tree in which nothing can lead out. It is no layer: names that
//! would be whiteouts there are names.

use std::fs::File;

use crate::ext4::{self, ImageOptions, RootFiles};
use crate::oci::{OciError, Order, Written};
use crate::os_release;
use crate::progress::{Cancel, Report};
use crate::tar::Limits;
use crate::tree::{self, Source};

/// Makes what `packed` holds into root files.
///
/// # Errors
/// [`OciError`]; the files are then of no use.
pub fn write(
    packed: File,
    files: &RootFiles,
    order: &Order,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Written, OciError> {
    report.stage("read_root", "");
    let tree = tree::from_tar(&packed, 0, &Limits::default(), cancel, report)?;
    let sources = [Source::Plain(packed)];
    report.stage("write_image", "");
    let options = ImageOptions {
        uuid: Some(order.uuid),
        ..ImageOptions::of_root(&tree, order.size_bytes, false)
    };
    let root = ext4::write_root(&tree, &sources, files, &options, cancel, report)?;
    Ok(Written {
        size_bytes: options.size_bytes,
        seed: root.seed,
        distro: root.os_release.as_deref().and_then(os_release::distro),
    })
}
