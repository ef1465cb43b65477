//! An archive from anywhere, through the tree, to an image.
#![no_main]

mod image;

use banger_images::tree::Source;
use banger_images::{Cancel, Quiet, tree};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(cancel) = Cancel::new() else { return };
    let Some(file) = image::file(data) else { return };
    let Ok(tree) = tree::from_tar(&file, 0, &image::limits(), &cancel, &Quiet) else { return };
    // What the tree took, the writer must be able to write: its limits are the stricter ones.
    image::write(&tree, &[Source::Plain(file)], &cancel).expect("what was read can be written");
});
