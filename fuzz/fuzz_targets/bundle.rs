//! Bundles of images and kernels: whatever is in them, what failed leaves nothing.
#![no_main]

#[allow(dead_code, reason = "each target uses its part")]
mod image;

use banger_images::bundle::{import_kernel, unpack_image};
use banger_images::{Cancel, Quiet};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, data)) = data.split_first() else { return };
    let Ok(cancel) = Cancel::new() else { return };
    // Most runs begin behind the decompressor, where a mutated byte still leads somewhere.
    let packed = match kind & 2 {
        0 => zstd::encode_all(data, 1).expect("memory"),
        _ => data.to_vec(),
    };
    let Some(file) = image::file(&packed) else { return };
    let dest = tempfile::tempdir_in("/dev/shm").expect("memory");
    let failed = match kind & 1 {
        0 => unpack_image(&file, None, dest.path(), &cancel, &Quiet).is_err(),
        _ => import_kernel(&file, None, dest.path(), &cancel, &Quiet).is_err(),
    };
    let left = std::fs::read_dir(dest.path()).expect("ours").count();
    assert_eq!(left == 0, failed);
});
