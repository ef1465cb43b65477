//! Layers from anywhere, of any compression, through one tree to an image.
#![no_main]

use std::io::Write as _;

use banger_images::ext4::{ImageOptions, InProcess, RootfsWriter as _};
use banger_images::tar::Limits;
use banger_images::tree::Source;
use banger_images::{Cancel, Quiet, tree};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The first two bytes say where the first layer ends.
    let Some((at, data)) = data.split_first_chunk::<2>() else { return };
    let at = usize::from(u16::from_le_bytes(*at)).min(data.len());
    let limits = Limits {
        entries: 1000,
        unpacked_bytes: 4 << 20,
        ..Limits::default()
    };
    let Ok(cancel) = Cancel::new() else { return };
    let mut sources = Vec::new();
    for layer in [&data[..at], &data[at..]] {
        let Ok(mut file) = tempfile::tempfile_in("/dev/shm") else { return };
        file.write_all(layer).expect("memory");
        sources.push(Source::Packed(file));
    }
    let Ok(tree) = tree::from_layers(&sources, &limits, &cancel, &Quiet) else { return };
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
    let written = InProcess.write(&tree, &sources, &image, &options, &cancel, &Quiet);
    // An archive cut short is only met by who reads its content; anything else that the tree
    // took, the writer must be able to write.
    if let Err(error) = written {
        let cut = matches!(&error, banger_images::ext4::WriteError::Io { source, .. }
            if source.raw_os_error().is_none());
        assert!(cut, "{error:?}");
    }
});
