//! One pass over the sources into a root filesystem and, beside it, into the seed of work disks.
//!
//! Packed sources can only be read forwards, and unpacking them is most of the work: what is of
//! the home is kept as it goes by, and the seed is written from that.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write as _};

use mkext4::build::Layout;

use super::content::{Counted, Streams, source_order};
use super::layout::{Pending, declare, declare_as};
use super::size::{self, BYTES_PER_INODE, GROUP, LEAST_PER_INODE};
use super::{
    BLOCK, Image, ImageOptions, MAX_DISK_BYTES, MIN_DISK_BYTES, Root, WriteError, builder,
    builder_with, io_error, layout_error,
};
use crate::codec::Positioned;
use crate::progress::{Cancel, Report};
use crate::spare::Spare;
use crate::tree::{Kind, NodeId, Source, Tree};

/// The directory at the top of a seed.
const TOP: &str = "root";
/// Blocks of a seed's journal: it keeps its size when a disk grows, so it is that of a disk of
/// several GiB, as `mke2fs` has it. It is a hole.
const JOURNAL: u32 = 16_384;

/// Memory that the writer may take, bytes. It holds every block of every directory: small
/// archives can have many. 2,000,000 files fit, or 350,000 directories.
const MEMORY: u64 = 7 << 28;

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
    let seeded = home
        .as_ref()
        .map_or(0, |home| tree.measured(home.id).memory);
    let whole = tree.measured(NodeId::ROOT);
    if whole.memory + seeded > MEMORY {
        let why = "the image has too many files, directories and attributes".to_owned();
        return Err(WriteError::Layout { why });
    }
    let (layout, mut files) = plan(tree, whole.inodes, image.options, cancel)?;
    let sink = image.sink()?;
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
        let mut failed = None;
        let mut read = Keeping {
            failed: &mut failed,
            inner: counted,
            keeper: kept.keeper(file.id),
            said: (release == Some(file.id)).then_some(&mut said),
        };
        let filled = writer.fill(file.handle, &mut read);
        cancel.check()?;
        filled.map_err(|error| match failed {
            // The writer makes words of it.
            Some(source) => io_error(image.name, source),
            None => image.write_error(error),
        })?;
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

/// Lays a tree of so many inodes out.
fn plan<'a>(
    tree: &'a Tree,
    inodes: u64,
    options: &ImageOptions,
    cancel: &Cancel,
) -> Result<(Layout, Vec<Pending<'a>>), WriteError> {
    let bytes = options.size_bytes;
    if bytes > MAX_DISK_BYTES {
        return Err(WriteError::Size { bytes });
    }
    let too_small = || {
        let least = size::least_size(tree, options.read_only);
        (bytes < least).then_some(WriteError::TooSmall { bytes, least })
    };
    let inodes = size::inode_count(inodes, size::usable(bytes), options.read_only)
        .ok_or_else(|| too_small().expect("the least size has room for the inodes"))?;
    let planned = builder(options, inodes).and_then(|mut builder| {
        let files = declare(tree, &mut builder, cancel)?;
        Ok((builder.seal().map_err(layout_error)?, files))
    });
    // What the writer says of a tree that does not fit is told from nothing else it says.
    planned.map_err(|error| match error {
        WriteError::Layout { .. } => too_small().unwrap_or(error),
        other => other,
    })
}

/// The seed of work disks, laid out and not yet written.
struct Seed<'a> {
    home: Home<'a>,
    options: ImageOptions,
    layout: Layout,
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
            size_bytes: size.next_multiple_of(GROUP).min(MAX_DISK_BYTES),
            label: Some("work".to_owned()),
            uuid: root.uuid.map(super::as_sibling),
            ..root.clone()
        };
        // Every group that a disk grows by gets as many as the first have.
        let spread = options.size_bytes / BYTES_PER_INODE;
        let mut builder = builder_with(&options, spread.max(inodes * 2), JOURNAL)?;
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
            keep_free: super::LEAST_FREE,
        };
        let sink = image.sink()?;
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
    spare: Spare,
    length: u64,
    places: HashMap<NodeId, (u64, u64)>,
}

impl<'a> Kept<'a> {
    fn of(seed: Option<&Seed<'a>>) -> Self {
        Self {
            spool: seed.map(|seed| seed.home.spool),
            spare: Spare::of(super::LEAST_FREE),
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
            spare: &mut self.spare,
            end: &mut self.length,
            length: &mut place.1,
        })
    }
}

struct Keeper<'a> {
    spool: &'a File,
    spare: &'a mut Spare,
    end: &'a mut u64,
    length: &'a mut u64,
}

/// Keeps what is read.
struct Keeping<'a, R> {
    /// Why it could not be read, or not be kept.
    failed: &'a mut Option<io::Error>,
    inner: R,
    keeper: Option<Keeper<'a>>,
    said: Option<&'a mut Vec<u8>>,
}

impl<R: Read> Read for Keeping<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_and_keep(buffer).map_err(|error| {
            let kind = error.kind();
            *self.failed = Some(error);
            kind.into()
        })
    }
}

impl<R: Read> Keeping<'_, R> {
    fn read_and_keep(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if let Some(keeper) = &mut self.keeper {
            let mut spool = keeper.spool;
            keeper.spare.look(spool, read as u64)?;
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
