//! An archive from anywhere, through the tree, to an image.
#![no_main]

use std::io::Write as _;

use banger_images::ext4::{ImageOptions, InProcess, RootfsWriter as _};
use banger_images::tar::Limits;
use banger_images::tree::Source;
use banger_images::{Cancel, Quiet, tree};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let limits = Limits {
        entries: 1000,
        unpacked_bytes: 4 << 20,
        ..Limits::default()
    };
    let Ok(cancel) = Cancel::new() else { return };
    let Ok(mut file) = tempfile::tempfile_in("/dev/shm") else { return };
    file.write_all(data).expect("memory");
    let Ok(tree) = tree::from_tar(&file, 0, &limits, &cancel, &Quiet) else { return };
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
    // What the tree took, the writer must be able to write: its limits are the stricter ones.
    InProcess
        .write(&tree, &[Source::Plain(file)], &image, &options, &cancel, &Quiet)
        .expect("what was read can be written");
});
