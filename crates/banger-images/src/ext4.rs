//! ext4 images written in this process: whole trees in one pass, and empty disks.
//!
//! Owns the guards round the writer crate: what it accepts and would turn into a damaged image
//! (a `lost+found` of the input), what it fails on late (empty files, too many inodes), and
//! what it would wrap silently (times). Images are sparse files; nothing is mounted.

mod content;
mod layout;

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

use mkext4::sink::FileSink;
use mkext4::{FsBuilder, InodeCount, Options};

use crate::progress::{Cancel, Cancelled, Report};
use crate::tree::{Source, Tree};

use content::{Counted, Streams, source_order};
use layout::declare;

/// The smallest disk that is made.
pub const MIN_DISK_BYTES: u64 = 256 << 20;
/// The largest disk that is made.
pub const MAX_DISK_BYTES: u64 = 128 << 30;
const BLOCK: u64 = 4096;
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

impl ImageOptions {
    /// Those of a root filesystem that is written to: of this size, or [`roomy_size`].
    #[must_use]
    pub fn of_root(tree: &Tree, size_bytes: Option<u64>, sync: bool) -> Self {
        Self {
            size_bytes: size_bytes
                .unwrap_or_else(|| roomy_size(tree))
                .next_multiple_of(BLOCK),
            label: Some("root".to_owned()),
            uuid: None,
            epoch: now(),
            read_only: false,
            sync,
        }
    }
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
        sources: &[Source],
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
        sources: &[Source],
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
    sources: &[Source],
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
    let mut streams = Streams::over(sources);
    for file in &files {
        cancel.check()?;
        let mut content = streams.content(file.data).map_err(io_error)?;
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
