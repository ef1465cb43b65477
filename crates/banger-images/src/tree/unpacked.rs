//! Unpacked bytes of layers, kept between the two times that they are wanted.
//!
//! A file system is laid out when every name is known, and filled after that, so what is packed
//! would be unpacked twice, and unpacking is most of the work. The bytes are kept in a file
//! without a name, which ends with who has it open. What there is no room for is unpacked again.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use super::Source;
use crate::codec::Codec;

/// Kept of one image at most, bytes: as much as stays in the page cache of most hosts until the
/// image is written, so that no disk ever sees it.
const MOST: u64 = 1 << 30;

/// Where unpacked bytes are kept, and how many may be.
#[derive(Debug)]
pub struct Unpacked {
    file: Arc<File>,
    most: u64,
}

impl Unpacked {
    /// In the directory that the image is written to: a quarter of what is free there, and not
    /// more than is sensible.
    ///
    /// # Errors
    /// When no file can be made.
    pub fn below(dir: &Path) -> io::Result<Self> {
        let free = rustix::fs::statvfs(dir).map_or(0, |found| found.f_bavail * found.f_frsize);
        Ok(Self::of(tempfile::tempfile_in(dir)?, MOST.min(free / 4)))
    }

    /// In an empty file, at most so many bytes.
    #[must_use]
    pub fn of(file: File, most: u64) -> Self {
        let file = Arc::new(file);
        Self { file, most }
    }

    /// What it was made of.
    ///
    /// # Panics
    /// When a source is kept in it.
    #[must_use]
    pub fn into_parts(self) -> (File, u64) {
        let file = Arc::into_inner(self.file).expect("nothing is kept in it yet");
        (file, self.most)
    }

    pub(super) fn room(&self) -> Room {
        Room {
            file: Arc::clone(&self.file),
            end: 0,
            most: self.most,
        }
    }
}

/// Source by source, one after another.
pub(super) struct Room {
    file: Arc<File>,
    end: u64,
    most: u64,
}

impl Room {
    /// Ready for the bytes of a source.
    pub(super) fn begin(&mut self, source: &Source) -> Keeping<'_> {
        let what = match source {
            Source::Packed(file) => {
                let mut head = [0; 6];
                match file.read_at(&mut head, 0).map(|_| Codec::of(&head)) {
                    Ok(Codec::Plain) => What::IsPlain,
                    _ => What::Kept,
                }
            }
            Source::Plain(_) | Source::Kept { .. } => What::Nothing,
        };
        Keeping {
            base: self.end,
            room: self,
            what,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// There is nothing to unpack.
    IsPlain,
    Kept,
    /// There is no room for it, or no use.
    Nothing,
}

/// What is kept of one source.
pub(super) struct Keeping<'r> {
    room: &'r mut Room,
    base: u64,
    what: What,
}

impl Keeping<'_> {
    /// The same bytes, kept as they are read.
    pub(super) fn beside<'a>(&'a mut self, inner: Box<dyn Read + 'a>) -> Box<dyn Read + 'a> {
        match self.what {
            What::Kept => Box::new(Beside { inner, to: self }),
            What::IsPlain | What::Nothing => inner,
        }
    }

    /// The source as it is best read from now on, all that matters of it having been read once.
    pub(super) fn finish(self, source: Source) -> Source {
        match (self.what, source) {
            (What::IsPlain, Source::Packed(file)) => Source::Plain(file),
            (What::Kept, Source::Packed(_)) => Source::Kept {
                file: Arc::clone(&self.room.file),
                base: self.base,
            },
            (_, source) => source,
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        if self.what != What::Kept {
            return;
        }
        let room = &mut *self.room;
        let end = room.end + bytes.len() as u64;
        if end <= room.most && room.file.write_all_at(bytes, room.end).is_ok() {
            room.end = end;
        } else {
            // A full disk too: the image itself may still fit, with what is given back.
            self.what = What::Nothing;
            room.end = self.base;
            let _ = room.file.set_len(self.base);
        }
    }
}

struct Beside<'a, 'r> {
    inner: Box<dyn Read + 'a>,
    to: &'a mut Keeping<'r>,
}

impl Read for Beside<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.to.add(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_fits_is_kept_and_the_rest_is_unpacked_again() {
        let unpacked = Unpacked::of(tempfile::tempfile().unwrap(), 10);
        let mut room = unpacked.room();
        let texts = [&b"seven b"[..], b"four", b"2b", b"plain and long"];
        let kept = texts.map(|text| {
            let mut file = tempfile::tempfile().unwrap();
            let bytes = match text.starts_with(b"plain") {
                true => text.to_vec(),
                false => zstd::encode_all(text, 1).unwrap(),
            };
            file.write_all(&bytes).unwrap();
            let source = Source::Packed(file);
            let mut keeping = room.begin(&source);
            let mut read = Vec::new();
            let bytes = source.bytes_from(0).unwrap();
            keeping.beside(bytes).read_to_end(&mut read).unwrap();
            assert_eq!(read, text);
            keeping.finish(source)
        });
        for (source, text) in kept.iter().zip(texts) {
            let mut read = Vec::new();
            let bytes = source.bytes_from(1).unwrap();
            bytes
                .take(text.len() as u64 - 1)
                .read_to_end(&mut read)
                .unwrap();
            assert_eq!(read, text[1..]);
        }
        assert!(matches!(
            kept,
            [
                Source::Kept { base: 0, .. },
                Source::Packed(_),
                Source::Kept { base: 7, .. },
                Source::Plain(_)
            ]
        ));
        assert_eq!(unpacked.file.metadata().unwrap().len(), 9);
    }
}
