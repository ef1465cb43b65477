//! Layers from anywhere, of any compression, through one tree to an image.
#![no_main]

mod image;

use banger_images::ext4::WriteError;
use banger_images::tree::Source;
use banger_images::{Cancel, Quiet, tree};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The first two bytes say where the first layer ends.
    let Some((at, data)) = data.split_first_chunk::<2>() else { return };
    let at = usize::from(u16::from_le_bytes(*at)).min(data.len());
    let Ok(cancel) = Cancel::new() else { return };
    let mut sources = Vec::new();
    for layer in [&data[..at], &data[at..]] {
        let Some(file) = image::file(layer) else { return };
        sources.push(Source::Packed(file));
    }
    let Ok(tree) = tree::from_layers(&sources, &image::limits(), &cancel, &Quiet) else { return };
    // An archive cut short is only met by who reads its content; anything else that the tree
    // took, the writer must be able to write.
    if let Err(error) = image::write(&tree, &sources, &cancel) {
        let cut = matches!(&error, WriteError::Io { source, .. } if source.raw_os_error().is_none());
        assert!(cut, "{error:?}");
    }
});
