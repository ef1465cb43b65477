//! Trees of foreign archives, written as images in memory.

use std::fs::File;
use std::io::Write as _;

use banger_images::ext4::{ImageOptions, InProcess, RootfsWriter as _, WriteError};
use banger_images::tar::Limits;
use banger_images::tree::{Source, Tree};
use banger_images::{Cancel, Quiet};

/// Little enough for thousands of runs.
pub fn limits() -> Limits {
    Limits {
        entries: 1000,
        unpacked_bytes: 4 << 20,
        ..Limits::default()
    }
}

/// The bytes as a file.
pub fn file(bytes: &[u8]) -> Option<File> {
    let mut file = tempfile::tempfile_in("/dev/shm").ok()?;
    file.write_all(bytes).expect("memory");
    Some(file)
}

/// Writes a tree, and forgets the image.
pub fn write(tree: &Tree, sources: &[Source], cancel: &Cancel) -> Result<(), WriteError> {
    let dir = tempfile::tempdir_in("/dev/shm").expect("memory");
    let options = ImageOptions {
        size_bytes: 64 << 20,
        label: None,
        uuid: Some([1; 16]),
        epoch: 0,
        read_only: true,
        sync: false,
    };
    let image = dir.path().join("image");
    InProcess.write(tree, sources, &image, &options, cancel, &Quiet)
}
