//! ext4 images written in this process: whole trees in one pass, and empty disks.
//!
//! Owns the guards round the writer crate: what it accepts and would turn into a damaged image
//! (a `lost+found` of the input), what it fails on late (empty files, too many inodes), and
//! what it would wrap silently (times). Images are sparse files; nothing is mounted.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use mkext4::sink::FileSink;
use mkext4::{FsBuilder, InodeCount, InodeHandle, Options, SparseSeg, SpecialKind};

use crate::progress::{Cancel, Cancelled, Report};
use crate::tar::Time;
use crate::tree::{Data, Kind, Meta, NodeId, Tree};
use crate::xattr;

/// The smallest disk that is made.
pub const MIN_DISK_BYTES: u64 = 256 << 20;
/// The largest disk that is made.
pub const MAX_DISK_BYTES: u64 = 128 << 30;
const BLOCK: u64 = 4096;
/// What an inode's 34 bits of seconds hold.
const TIMES: std::ops::RangeInclusive<i64> = -0x8000_0000..=0x3_7fff_ffff;

/// An image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The image file, or where content comes from.
    #[error("cannot write the image {path}")]
    Io {
        /// The image.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The tree does not fit, or cannot be represented.
    #[error("cannot lay the file system out: {why}")]
    Layout {
        /// What the writer says.
        why: String,
    },
    /// A size outside of what is made.
    #[error("a disk of {bytes} bytes is not between 256 MiB and 128 GiB")]
    Size {
        /// What was asked for.
        bytes: u64,
    },
    /// The caller cancelled; the image is gone.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl WriteError {
    /// Whether the host's disk is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, WriteError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

/// What an image is like besides its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageOptions {
    /// Size of the file, a multiple of 4096.
    pub size_bytes: u64,
    /// At most 16 bytes.
    pub label: Option<String>,
    /// Of the file system; random when absent.
    pub uuid: Option<[u8; 16]>,
    /// Creation time in seconds since 1970.
    pub epoch: u32,
    /// Room for new files, or as few inodes as the tree has.
    pub read_only: bool,
    /// Whether the file must be on the disk before this returns.
    pub sync: bool,
}

/// Writes a whole tree as a file system image.
pub trait RootfsWriter {
    /// Writes `tree` to a new file at `out`; `sources` hold the content its files refer to.
    /// The file is removed when it fails. Progress is told in bytes of content.
    ///
    /// # Errors
    /// See [`WriteError`].
    fn write(
        &self,
        tree: &Tree,
        sources: &[File],
        out: &Path,
        options: &ImageOptions,
        cancel: &Cancel,
        report: &dyn Report,
    ) -> Result<(), WriteError>;
}

/// The writer in this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct InProcess;

/// Size of an image that holds `tree` with half as much again to spare, at least 1 GiB.
#[must_use]
pub fn roomy_size(tree: &Tree) -> u64 {
    let (bytes, inodes) = tree.measure();
    let content = bytes + inodes * 256;
    (content + content / 2)
        .max(1 << 30)
        .next_multiple_of(1 << 20)
}

/// Size of a read-only image that just holds `tree`.
#[must_use]
pub fn snug_size(tree: &Tree) -> u64 {
    let (bytes, inodes) = tree.measure();
    // A journal is always written (4 MiB of holes at this size), and group tables.
    let content = bytes + inodes * 256;
    (content + content / 20 + (24 << 20)).next_multiple_of(1 << 20)
}

impl RootfsWriter for InProcess {
    fn write(
        &self,
        tree: &Tree,
        sources: &[File],
        out: &Path,
        options: &ImageOptions,
        cancel: &Cancel,
        report: &dyn Report,
    ) -> Result<(), WriteError> {
        let written = write_tree(tree, sources, out, options, cancel, report);
        if written.is_err() {
            let _ = std::fs::remove_file(out);
        }
        written
    }
}

fn write_tree(
    tree: &Tree,
    sources: &[File],
    out: &Path,
    options: &ImageOptions,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<(), WriteError> {
    let (_, inodes) = tree.measure();
    let inodes = if options.read_only {
        inodes + 64
    } else {
        // One inode per 16 KiB is too few for a tree of small files.
        (inodes * 2 + 65_536).max(options.size_bytes / 16_384)
    };
    let mut builder = builder(options, inodes)?;
    let mut files = declare(tree, &mut builder, cancel)?;
    let layout = builder.seal().map_err(layout_error)?;
    let io_error = |source| WriteError::Io {
        path: out.display().to_string(),
        source,
    };
    let sink = FileSink::create(out, layout.image_len()).map_err(io_error)?;
    let mut writer = layout.writer(sink).map_err(|e| write_error(e, out))?;
    // In the order of the sources, so that one that can only be read forwards will do.
    files.sort_by_key(|file| source_order(file.data));
    let total: u64 = files.iter().map(|file| file.data.stored()).sum();
    let mut done = 0;
    for file in &files {
        cancel.check()?;
        let mut content = content(file.data, sources).map_err(io_error)?;
        let mut counted = Counted {
            inner: &mut content,
            done: &mut done,
            total,
            cancel,
            report,
        };
        let filled = writer.fill(file.handle, &mut counted);
        cancel.check()?;
        filled.map_err(|e| write_error(e, out))?;
    }
    writer.finish().map_err(|e| write_error(e, out))?;
    report.bytes(total, Some(total));
    if options.sync {
        File::open(out)
            .and_then(|file| file.sync_all())
            .map_err(io_error)?;
    }
    Ok(())
}

/// Makes an empty disk, grown later by the guest while mounted; no blocks are reserved.
/// Milliseconds at any size: what is zero stays a hole. The file is removed on failure.
///
/// # Errors
/// [`WriteError::Size`] outside of [`MIN_DISK_BYTES`] to [`MAX_DISK_BYTES`], or when the file
/// cannot be written.
pub fn empty(
    path: &Path,
    size_bytes: u64,
    label: &str,
    uuid: Option<[u8; 16]>,
    sync: bool,
) -> Result<(), WriteError> {
    if !(MIN_DISK_BYTES..=MAX_DISK_BYTES).contains(&size_bytes) {
        return Err(WriteError::Size { bytes: size_bytes });
    }
    let options = ImageOptions {
        size_bytes: size_bytes / BLOCK * BLOCK,
        label: Some(label.to_owned()),
        uuid,
        epoch: now(),
        read_only: false,
        sync,
    };
    let written = write_empty(path, &options);
    if written.is_err() {
        let _ = std::fs::remove_file(path);
    }
    written
}

fn write_empty(path: &Path, options: &ImageOptions) -> Result<(), WriteError> {
    let inodes = options.size_bytes / 16_384;
    let layout = builder(options, inodes)?.seal().map_err(layout_error)?;
    let io_error = |source| WriteError::Io {
        path: path.display().to_string(),
        source,
    };
    let mut sink = FileSink::create(path, layout.image_len()).map_err(io_error)?;
    layout
        .writer(Elide(&mut sink))
        .and_then(mkext4::build::ImageWriter::finish)
        .map_err(|e| write_error(e, path))?;
    if options.sync {
        sink.into_file().sync_all().map_err(io_error)?;
    }
    Ok(())
}

/// Makes a disk's file longer; the guest grows the file system. Never shorter.
///
/// # Errors
/// When the file cannot be changed, or is longer already.
pub fn grow_file(path: &Path, size_bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    if file.metadata()?.len() > size_bytes {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a disk cannot be made smaller",
        ));
    }
    file.set_len(size_bytes / BLOCK * BLOCK)
}

/// Passes blocks on, but not those of zeros only: the file is a hole there already.
struct Elide<'a>(&'a mut FileSink);

impl mkext4::RegionSink for Elide<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        self.0.data(offset, bytes)
    }

    fn zeros(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.0.zeros(offset, len)
    }
}

fn builder(options: &ImageOptions, inodes: u64) -> Result<FsBuilder, WriteError> {
    let uuid = match options.uuid {
        Some(uuid) => uuid,
        None => random_uuid().map_err(|source| WriteError::Io {
            path: "/dev/urandom".to_owned(),
            source,
        })?,
    };
    let mut wanted = Options::new(options.size_bytes, uuid, i64::from(options.epoch));
    wanted.label.clone_from(&options.label);
    wanted.reserved_percent = 0;
    wanted.inodes = InodeCount::Exact(u32::try_from(inodes).unwrap_or(u32::MAX));
    if options.read_only {
        wanted.journal_blocks = Some(1024);
    }
    FsBuilder::new(wanted).map_err(layout_error)
}

/// A file that content has to be written for.
struct Pending<'a> {
    handle: InodeHandle,
    data: &'a Data,
}

/// Declares the whole tree: directories first to last, siblings in the order they came in, so
/// that content lies on the disk as it lay in the archive.
fn declare<'a>(
    tree: &'a Tree,
    builder: &mut FsBuilder,
    cancel: &Cancel,
) -> Result<Vec<Pending<'a>>, WriteError> {
    let mut handles: Vec<Option<InodeHandle>> = vec![None; tree.node_count()];
    let mut files = Vec::new();
    set_root(builder, tree.meta(NodeId::ROOT))?;
    let mut pending = vec![(NodeId::ROOT, mkext4::ROOT)];
    while let Some((directory, parent)) = pending.pop() {
        cancel.check()?;
        let mut children: Vec<(&str, NodeId)> = tree.children(directory).collect();
        children.sort_by_key(|(_, id)| *id);
        let mut below = Vec::new();
        for (name, id) in children {
            // The writer makes its own; a second one is a damaged image.
            if directory == NodeId::ROOT && name == "lost+found" {
                continue;
            }
            let known = &mut handles[id.position()];
            if let Some(handle) = *known {
                builder
                    .hardlink(parent, name, handle)
                    .map_err(layout_error)?;
                continue;
            }
            let handle = declare_node(tree, builder, parent, name, id, &mut files)?;
            *known = Some(handle);
            if matches!(tree.kind(id), Kind::Directory(_)) {
                below.push((id, handle));
            }
        }
        pending.extend(below.into_iter().rev());
    }
    Ok(files)
}

fn declare_node<'a>(
    tree: &'a Tree,
    builder: &mut FsBuilder,
    parent: InodeHandle,
    name: &str,
    id: NodeId,
    files: &mut Vec<Pending<'a>>,
) -> Result<InodeHandle, WriteError> {
    let meta = writer_meta(tree.meta(id));
    let handle = match tree.kind(id) {
        Kind::Directory(_) => builder.mkdir(parent, name, meta),
        Kind::Symlink(target) => {
            let mut meta = meta;
            meta.mode = 0o777;
            builder.symlink(parent, name, target, meta)
        }
        Kind::CharDevice(major, minor) => {
            let (major, minor) = (*major, *minor);
            builder.mknod(parent, name, meta, SpecialKind::Char { major, minor })
        }
        Kind::BlockDevice(major, minor) => {
            let (major, minor) = (*major, *minor);
            builder.mknod(parent, name, meta, SpecialKind::Block { major, minor })
        }
        Kind::Fifo => builder.mknod(parent, name, meta, SpecialKind::Fifo),
        Kind::File(data) => {
            let declared = match data {
                Data::Sparse { map, size, .. } => {
                    let segments = block_segments(map, *size);
                    if segments.is_empty() {
                        builder.file(parent, name, meta, 0)
                    } else {
                        builder.file_sparse(parent, name, meta, &segments)
                    }
                }
                _ => builder.file(parent, name, meta, data.size()),
            };
            // An empty file, or one that is all hole, must not be filled.
            if let Ok(handle) = &declared
                && data.stored() > 0
            {
                files.push(Pending {
                    handle: *handle,
                    data,
                });
            }
            declared
        }
    }
    .map_err(layout_error)?;
    for (name, value) in &tree.meta(id).xattrs {
        let value = xattr::on_disk(name, value).map_err(|why| WriteError::Layout {
            why: why.to_owned(),
        })?;
        builder
            .set_xattr(handle, name, &value)
            .map_err(layout_error)?;
    }
    Ok(handle)
}

fn set_root(builder: &mut FsBuilder, meta: &Meta) -> Result<(), WriteError> {
    builder
        .set_meta(mkext4::ROOT, writer_meta(meta))
        .map_err(layout_error)?;
    for (name, value) in &meta.xattrs {
        let value = xattr::on_disk(name, value).map_err(|why| WriteError::Layout {
            why: why.to_owned(),
        })?;
        builder
            .set_xattr(mkext4::ROOT, name, &value)
            .map_err(layout_error)?;
    }
    Ok(())
}

fn writer_meta(meta: &Meta) -> mkext4::Meta {
    let Time { seconds, nanos } = meta.mtime;
    let clamped = seconds.clamp(*TIMES.start(), *TIMES.end());
    let nanos = if clamped == seconds { nanos } else { 0 };
    mkext4::Meta::new(meta.mode, meta.uid, meta.gid, (clamped, nanos))
}

/// Stored ranges rounded out to blocks, with the holes between them.
fn block_ranges(map: &[(u64, u64)], size: u64) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for &(offset, length) in map {
        let start = offset / BLOCK * BLOCK;
        let end = (offset + length).next_multiple_of(BLOCK).min(size);
        match ranges.last_mut() {
            Some((_, last)) if *last >= start => *last = end.max(*last),
            _ => ranges.push((start, end)),
        }
    }
    ranges
}

fn block_segments(map: &[(u64, u64)], size: u64) -> Vec<SparseSeg> {
    let mut segments = Vec::new();
    let mut at = 0;
    for (start, end) in block_ranges(map, size) {
        if start > at {
            segments.push(SparseSeg::Hole(start - at));
        }
        segments.push(SparseSeg::Data(end - start));
        at = end;
    }
    if size > at {
        segments.push(SparseSeg::Hole(size - at));
    }
    segments
}

fn source_order(data: &Data) -> (usize, u64) {
    match data {
        Data::Span { source, offset, .. } | Data::Sparse { source, offset, .. } => {
            (*source, *offset)
        }
        Data::Inline(_) | Data::Host { .. } => (usize::MAX, 0),
    }
}

/// A range of a file, read by position: its cursor is nobody else's.
struct Range<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Range<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room =
            usize::try_from(self.left.min(buffer.len() as u64)).expect("it is at most a length");
        let read = self.file.read_at(&mut buffer[..room], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// The bytes a file is filled with: for a sparse one its rounded ranges one after another.
fn content<'a>(data: &'a Data, sources: &'a [File]) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match data {
        Data::Inline(bytes) => Box::new(bytes.as_slice()),
        Data::Span {
            source,
            offset,
            size,
        } => Box::new(Range {
            file: &sources[*source],
            at: *offset,
            left: *size,
        }),
        Data::Host { path, size } => Box::new(File::open(path)?.take(*size)),
        Data::Sparse {
            source,
            offset,
            map,
            size,
        } => Box::new(Pieces {
            file: &sources[*source],
            list: pieces(map, *size, *offset).into_iter(),
            current: None,
        }),
    })
}

/// A piece of a sparse file's content: zeros, or a range of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Zeros(u64),
    Stored { at: u64, left: u64 },
}

/// Everything inside the rounded ranges, in order; `stored` is where the source begins.
fn pieces(map: &[(u64, u64)], size: u64, mut stored: u64) -> Vec<Piece> {
    let mut list = Vec::with_capacity(map.len() * 2);
    let mut rest = map.iter().copied().peekable();
    for (start, end) in block_ranges(map, size) {
        let mut at = start;
        while let Some((offset, length)) = rest.next_if(|(offset, _)| *offset < end) {
            list.push(Piece::Zeros(offset - at));
            list.push(Piece::Stored {
                at: stored,
                left: length,
            });
            stored += length;
            at = offset + length;
        }
        list.push(Piece::Zeros(end - at));
    }
    list
}

/// Reads pieces one after another.
struct Pieces<'a> {
    file: &'a File,
    list: std::vec::IntoIter<Piece>,
    current: Option<Piece>,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let room = |left: u64| {
                usize::try_from(left.min(buffer.len() as u64)).expect("it is at most a length")
            };
            match &mut self.current {
                Some(Piece::Zeros(left)) if *left > 0 => {
                    let count = room(*left);
                    buffer[..count].fill(0);
                    *left -= count as u64;
                    return Ok(count);
                }
                Some(Piece::Stored { at, left }) if *left > 0 => {
                    let count = room(*left);
                    let read = self.file.read_at(&mut buffer[..count], *at)?;
                    *at += read as u64;
                    *left -= read as u64;
                    return Ok(read);
                }
                _ => match self.list.next() {
                    Some(next) => self.current = Some(next),
                    None => return Ok(0),
                },
            }
        }
    }
}

/// Counts what passes, and ends it when cancelled.
struct Counted<'a, R> {
    inner: R,
    done: &'a mut u64,
    total: u64,
    cancel: &'a Cancel,
    report: &'a dyn Report,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel
            .check()
            .map_err(|_| io::Error::from(io::ErrorKind::Other))?;
        let read = self.inner.read(buffer)?;
        *self.done += read as u64;
        self.report
            .bytes((*self.done).min(self.total), Some(self.total));
        Ok(read)
    }
}

fn layout_error(error: mkext4::Error) -> WriteError {
    WriteError::Layout {
        why: error.to_string(),
    }
}

fn write_error(error: mkext4::Error, path: &Path) -> WriteError {
    match error {
        mkext4::Error::Io(source) => WriteError::Io {
            path: path.display().to_string(),
            source,
        },
        other => layout_error(other),
    }
}

/// Seconds since 1970, as far as the superblock can say them.
#[must_use]
pub fn now() -> u32 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
        })
}

fn random_uuid() -> io::Result<[u8; 16]> {
    let mut uuid = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut uuid)?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_ranges_become_whole_blocks_and_zeros_fill_their_edges() {
        let map = [
            (100, 50),
            (4096 * 3 + 1, 10),
            (4096 * 3 + 20, 4096),
            (4096 * 10 - 6, 6),
        ];
        let size = 4096 * 10;
        assert_eq!(
            block_ranges(&map, size),
            [(0, 4096), (4096 * 3, 4096 * 5), (4096 * 9, 4096 * 10)]
        );
        let mut stored = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..50 + 10 + 4096 + 6)
            .map(|i| (i % 250) as u8 + 1)
            .collect();
        io::Write::write_all(&mut stored, &bytes).unwrap();
        let data = Data::Sparse {
            source: 0,
            offset: 0,
            map: map.to_vec(),
            size,
        };
        let mut whole = vec![0u8; usize::try_from(size).unwrap()];
        let mut from = 0;
        for (offset, length) in map {
            let (offset, length) = (offset as usize, length as usize);
            whole[offset..offset + length].copy_from_slice(&bytes[from..from + length]);
            from += length;
        }
        let mut expected = Vec::new();
        for (start, end) in block_ranges(&map, size) {
            expected.extend_from_slice(&whole[start as usize..end as usize]);
        }
        let mut filled = Vec::new();
        content(&data, &[stored])
            .unwrap()
            .read_to_end(&mut filled)
            .unwrap();
        assert!(filled == expected);
    }
}
