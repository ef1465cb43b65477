//! Archives for tests.

use std::io::{Seek as _, Write as _};

use tar_core::EntryType;
use tar_core::builder::EntryBuilder;

/// A tar written entry by entry.
pub(crate) struct Tar(std::fs::File);

impl Tar {
    pub(crate) fn new() -> Tar {
        Tar(tempfile::tempfile().unwrap())
    }

    pub(crate) fn add(
        &mut self,
        path: &str,
        kind: EntryType,
        data: &[u8],
        more: impl FnOnce(&mut EntryBuilder),
    ) {
        let mut entry = EntryBuilder::with_mode(
            tar_core::builder::HeaderBuilder::new_ustar(),
            tar_core::builder::ExtensionMode::Pax,
        );
        entry.path(path).entry_type(kind);
        entry.mode(0o644).unwrap().uid(0).unwrap().gid(0).unwrap();
        entry
            .mtime(1_700_000_000)
            .unwrap()
            .size(data.len() as u64)
            .unwrap();
        more(&mut entry);
        self.0.write_all(&entry.finish_bytes()).unwrap();
        self.0.write_all(data).unwrap();
        let rest = data.len().next_multiple_of(512) - data.len();
        self.0.write_all(&[0; 512][..rest]).unwrap();
    }

    pub(crate) fn finish(mut self) -> std::fs::File {
        self.0.write_all(&[0; 1024]).unwrap();
        self.0.rewind().unwrap();
        self.0
    }
}
