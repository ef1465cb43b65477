//! One pass over the sources into a root filesystem and, beside it, into the seed of work disks.
//!
//! Packed sources can only be read forwards, and unpacking them is most of the work: what is of
//! the home is kept as it goes by, and the seed is written from that.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write as _};

use super::content::{Counted, Streams, source_order};
use super::layout::{Pending, declare, declare_as};
use super::{
    BLOCK, Image, ImageOptions, LEAST_PER_INODE, MIN_DISK_BYTES, Root, WriteError, builder,
    builder_with, io_error, layout_error,
};
use crate::codec::Positioned;
use crate::progress::{Cancel, Report};
use crate::tree::{Kind, NodeId, Source, Tree};

/// The directory at the top of a seed.
const TOP: &str = "root";
/// Blocks of a seed's journal: it keeps its size when a disk grows, so it is that of a disk of
/// several GiB, as `mke2fs` has it. It is a hole.
const JOURNAL: u32 = 16_384;
/// Bytes of a block group.
const GROUP: u64 = 128 << 20;
/// As `mke2fs` has it.
const BYTES_PER_INODE: u64 = 16_384;

/// The directory that a seed is made of, and where to.
pub(super) struct Home<'a> {
    pub(super) id: NodeId,
    pub(super) seed: &'a File,
    pub(super) spool: &'a File,
}

/// Where a system says what it is, and the most that is read of it, bytes.
const OS_RELEASE: [&str; 2] = ["etc/os-release", "usr/lib/os-release"];
const OS_RELEASE_LIMIT: u64 = 64 << 10;

/// Writes a tree, and a seed where there is a home for it.
pub(super) fn write(
    tree: &Tree,
    sources: &[Source],
    image: &Image<'_>,
    home: Option<Home<'_>>,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Root, WriteError> {
    let mut builder = builder(image.options, inodes(tree, image.options)?)?;
    let mut files = declare(tree, &mut builder, cancel)?;
    let layout = builder.seal().map_err(layout_error)?;
    let sink = image.sink(layout.image_len())?;
    let mut writer = layout.writer(sink).map_err(|e| image.write_error(e))?;
    let seed = home
        .map(|home| Seed::plan(tree, home, image.options, cancel))
        .transpose()?;
    let mut kept = Kept::of(seed.as_ref());
    let release = os_release(tree);
    let mut said = Vec::new();
    // In the order of the sources, so that one that can only be read forwards will do.
    files.sort_by_key(|file| source_order(file.data));
    let total: u64 = files.iter().map(|file| file.data.stored()).sum();
    let mut done = 0;
    let mut streams = Streams::over(sources);
    for file in &files {
        cancel.check()?;
        let content = streams
            .content(file.data)
            .map_err(|source| io_error(image.name, source))?;
        let counted = Counted {
            inner: content,
            done: &mut done,
            total,
            cancel,
            report,
        };
        let mut read = Keeping {
            inner: counted,
            keeper: kept.keeper(file.id),
            said: (release == Some(file.id)).then_some(&mut said),
        };
        let filled = writer.fill(file.handle, &mut read);
        cancel.check()?;
        filled.map_err(|error| image.write_error(error))?;
    }
    writer.finish().map_err(|error| image.write_error(error))?;
    report.bytes(total, Some(total));
    image.synced()?;
    let seeded = seed.is_some();
    if let Some(seed) = seed {
        seed.write(&kept, cancel)?;
    }
    Ok(Root {
        seed: seeded,
        os_release: release.map(|_| said),
    })
}

/// The file in which a system says what it is.
fn os_release(tree: &Tree) -> Option<NodeId> {
    let mut files = OS_RELEASE.iter().filter_map(|path| tree.find(path));
    files.find(|id| match tree.kind(*id) {
        Kind::File(data) => data.size() <= OS_RELEASE_LIMIT,
        _ => false,
    })
}

/// Inodes of an image: room for new files, or as few as the tree has.
fn inodes(tree: &Tree, options: &ImageOptions) -> Result<u64, WriteError> {
    let (_, inodes) = tree.measure();
    let (least, wanted) = if options.read_only {
        (inodes + 64, inodes + 64)
    } else {
        // One inode per 16 KiB is too few for a tree of small files.
        let roomy = inodes * 2 + 65_536;
        (inodes + 16, roomy.max(options.size_bytes / BYTES_PER_INODE))
    };
    let most = options.size_bytes / LEAST_PER_INODE;
    if least > most {
        let why = format!(
            "{inodes} files are more than {} bytes hold",
            options.size_bytes
        );
        return Err(WriteError::Layout { why });
    }
    Ok(wanted.min(most))
}

/// The seed of work disks, laid out and not yet written.
struct Seed<'a> {
    home: Home<'a>,
    options: ImageOptions,
    layout: mkext4::build::Layout,
    files: Vec<Pending<'a>>,
}

impl<'a> Seed<'a> {
    fn plan(
        tree: &'a Tree,
        home: Home<'a>,
        root: &ImageOptions,
        cancel: &Cancel,
    ) -> Result<Self, WriteError> {
        let (bytes, inodes) = tree.measure_from(home.id);
        let journal = u64::from(JOURNAL) * BLOCK;
        let content = bytes + inodes * 256;
        let size = (content + content / 4 + 2 * journal)
            .max(inodes * 2 * LEAST_PER_INODE)
            .max(MIN_DISK_BYTES);
        let options = ImageOptions {
            size_bytes: size.next_multiple_of(GROUP),
            label: Some("work".to_owned()),
            uuid: root.uuid.map(super::as_sibling),
            ..root.clone()
        };
        // Every group that a disk grows by gets as many as the first have.
        let spread = options.size_bytes / BYTES_PER_INODE;
        let mut builder = builder_with(&options, spread.max(inodes * 2), Some(JOURNAL))?;
        let files = declare_as(tree, home.id, TOP, &mut builder, cancel)?;
        Ok(Self {
            home,
            options,
            layout: builder.seal().map_err(layout_error)?,
            files,
        })
    }

    fn write(self, kept: &Kept<'_>, cancel: &Cancel) -> Result<(), WriteError> {
        let image = Image {
            file: self.home.seed,
            name: super::SEED,
            options: &self.options,
        };
        let sink = image.sink(self.layout.image_len())?;
        let writer = self.layout.writer(sink);
        let mut writer = writer.map_err(|error| image.write_error(error))?;
        for file in &self.files {
            cancel.check()?;
            let (at, length) = kept.places[&file.id];
            let mut content = Positioned {
                file: self.home.spool,
                at,
            }
            .take(length);
            let filled = writer.fill(file.handle, &mut content);
            filled.map_err(|error| image.write_error(error))?;
        }
        let finished = writer.finish();
        finished.map_err(|error| image.write_error(error))?;
        image.synced()
    }
}

/// Content that goes into the seed too: where in the spool each file's lies, and its length.
struct Kept<'a> {
    spool: Option<&'a File>,
    length: u64,
    places: HashMap<NodeId, (u64, u64)>,
}

impl<'a> Kept<'a> {
    fn of(seed: Option<&Seed<'a>>) -> Self {
        Self {
            spool: seed.map(|seed| seed.home.spool),
            length: 0,
            places: seed
                .iter()
                .flat_map(|seed| &seed.files)
                .map(|file| (file.id, (0, 0)))
                .collect(),
        }
    }

    /// Where this file's content is kept, if it is to be.
    fn keeper(&mut self, id: NodeId) -> Option<Keeper<'_>> {
        let (spool, place) = (self.spool?, self.places.get_mut(&id)?);
        *place = (self.length, 0);
        Some(Keeper {
            spool,
            end: &mut self.length,
            length: &mut place.1,
        })
    }
}

struct Keeper<'a> {
    spool: &'a File,
    end: &'a mut u64,
    length: &'a mut u64,
}

/// Keeps what is read.
struct Keeping<'a, R> {
    inner: R,
    keeper: Option<Keeper<'a>>,
    said: Option<&'a mut Vec<u8>>,
}

impl<R: Read> Read for Keeping<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if let Some(keeper) = &mut self.keeper {
            let mut spool = keeper.spool;
            spool.write_all(&buffer[..read])?;
            *keeper.end += read as u64;
            *keeper.length += read as u64;
        }
        if let Some(said) = &mut self.said {
            said.extend_from_slice(&buffer[..read]);
        }
        Ok(read)
    }
}
