//! ext4 images written in this process: whole trees in one pass, and empty disks.
//!
//! Owns the guards round the writer crate: what it accepts and would turn into a damaged image
//! (a `lost+found` of the input), what it fails on late (empty files, too many inodes), and
//! what it would wrap silently (times). Images are sparse files; nothing is mounted.

mod content;
mod layout;
mod pass;
mod size;
mod superblock;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use mkext4::{FsBuilder, InodeCount, Options};

use crate::progress::{Cancel, Cancelled, Report};
use crate::spare::Spare;
use crate::tree::{NodeId, Source, Tree, Unpacked};

use pass::Home;
pub use size::{least_size, roomy_size, shown, snug_size};
pub use superblock::defect;

/// The smallest disk that is made.
pub const MIN_DISK_BYTES: u64 = 256 << 20;
/// The largest disk that is made.
pub const MAX_DISK_BYTES: u64 = 128 << 30;
/// Free bytes below which nothing large is begun, and no root filesystem is written on.
pub const LEAST_FREE: u64 = 1 << 30;
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
    /// The tree needs a larger image.
    #[error("the files do not fit into {}: they need {}", shown(*bytes), shown(*least))]
    TooSmall {
        /// The image's size.
        bytes: u64,
        /// A size that does, not much above the least.
        least: u64,
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
        matches!(self, WriteError::Io { source, .. } if crate::is_full(source))
    }

    /// A size that the tree fits into, when that asked for is too small and a larger one can be.
    #[must_use]
    pub fn needs(&self) -> Option<u64> {
        match self {
            WriteError::TooSmall { least, .. } if *least <= MAX_DISK_BYTES => Some(*least),
            _ => None,
        }
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
        let name = out.display().to_string();
        let file = File::create(out).map_err(|source| io_error(&name, source))?;
        let image = Image {
            file: &file,
            name: &name,
            options,
            keep_free: 0,
        };
        let written = pass::write(tree, sources, &image, None, cancel, report);
        if written.is_err() {
            let _ = std::fs::remove_file(out);
        }
        written.map(drop)
    }
}

/// A root filesystem's file, made by [`write_root`] beside the [`SEED`].
pub const ROOTFS: &str = "rootfs.ext4";
/// The image's `/root`, as the work disks of its VMs begin: its top has the one directory `root`.
pub const SEED: &str = "work-seed.ext4";

/// Files that a root filesystem is written to. They are opened by whoever may, so that the
/// writer needs no path.
#[derive(Debug)]
pub struct RootFiles {
    /// [`ROOTFS`].
    pub root: File,
    /// [`SEED`].
    pub seed: File,
    /// Nameless; keeps the content of `/root` until the seed is written.
    pub spool: File,
    /// Keeps what layers unpacked to until the root filesystem is written.
    pub unpacked: Unpacked,
}

impl RootFiles {
    /// Makes them in a directory.
    ///
    /// # Errors
    /// When they are there already, or cannot be made.
    pub fn create(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            root: File::create_new(dir.join(ROOTFS))?,
            seed: File::create_new(dir.join(SEED))?,
            spool: tempfile::tempfile_in(dir)?,
            unpacked: Unpacked::below(dir)?,
        })
    }

    /// Takes away what is not an image: both files of what failed, a seed of nothing.
    pub fn keep(dir: &Path, root: bool, seed: bool) {
        for (name, keep) in [(ROOTFS, root), (SEED, seed)] {
            if !keep {
                let _ = std::fs::remove_file(dir.join(name));
            }
        }
    }
}

/// What [`write_root`] found and made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Root {
    /// There is a seed.
    pub seed: bool,
    /// What the image says of itself, where it says it.
    pub os_release: Option<Vec<u8>>,
}

/// Writes a root filesystem and, where its `/root` has anything in it, the seed of its VMs' work
/// disks, reading the sources once.
///
/// # Errors
/// See [`WriteError`]. The files are then of no use.
pub fn write_root(
    tree: &Tree,
    sources: &[Source],
    files: &RootFiles,
    options: &ImageOptions,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Root, WriteError> {
    let root = Image {
        file: &files.root,
        name: ROOTFS,
        options,
        keep_free: LEAST_FREE,
    };
    let home = home_of(tree).map(|id| Home {
        id,
        seed: &files.seed,
        spool: &files.spool,
    });
    pass::write(tree, sources, &root, home, cancel, report)
}

/// The directory that is the image's `/root`, if anything is in it.
fn home_of(tree: &Tree) -> Option<NodeId> {
    let home = tree.find("root")?;
    tree.children(home).next().map(|_| home)
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
    let inodes = size::usable(options.size_bytes) / size::BYTES_PER_INODE;
    let layout = builder(options, inodes)?.seal().map_err(layout_error)?;
    let name = path.display().to_string();
    let file = File::create(path).map_err(|source| io_error(&name, source))?;
    let image = Image {
        file: &file,
        name: &name,
        options,
        keep_free: 0,
    };
    let written = layout
        .writer(image.sink()?)
        .and_then(mkext4::build::ImageWriter::finish);
    written.map_err(|error| image.write_error(error))?;
    image.synced()
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

/// An image that is being written.
struct Image<'a> {
    file: &'a File,
    /// For errors.
    name: &'a str,
    options: &'a ImageOptions,
    /// Bytes that stay free where the file is.
    keep_free: u64,
}

impl<'a> Image<'a> {
    /// The file, as long as it was asked for: where a file system takes less, the rest is a hole.
    fn sink(&self) -> Result<Holes<'a>, WriteError> {
        self.file
            .set_len(self.options.size_bytes)
            .map_err(|source| io_error(self.name, source))?;
        Ok(Holes {
            file: self.file,
            spare: Spare::of(self.keep_free),
        })
    }

    fn write_error(&self, error: mkext4::Error) -> WriteError {
        match error {
            mkext4::Error::Io(source) => io_error(self.name, source),
            other => layout_error(other),
        }
    }

    fn synced(&self) -> Result<(), WriteError> {
        if self.options.sync {
            self.file
                .sync_all()
                .map_err(|source| io_error(self.name, source))?;
        }
        Ok(())
    }
}

/// A file of holes, into which everything is written but zeros.
struct Holes<'a> {
    file: &'a File,
    spare: Spare,
}

impl mkext4::RegionSink for Holes<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        self.spare.look(self.file, bytes.len() as u64)?;
        self.file.write_all_at(bytes, offset)
    }

    fn zeros(&mut self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

fn io_error(name: &str, source: io::Error) -> WriteError {
    WriteError::Io {
        path: name.to_owned(),
        source,
    }
}

fn builder(options: &ImageOptions, inodes: u64) -> Result<FsBuilder, WriteError> {
    let journal = size::journal(size::usable(options.size_bytes), options.read_only);
    builder_with(options, inodes, journal)
}

fn builder_with(
    options: &ImageOptions,
    inodes: u64,
    journal_blocks: u32,
) -> Result<FsBuilder, WriteError> {
    let uuid = match options.uuid {
        Some(uuid) => uuid,
        None => random_uuid().map_err(|source| WriteError::Io {
            path: "/dev/urandom".to_owned(),
            source,
        })?,
    };
    let size_bytes = size::usable(options.size_bytes);
    let mut wanted = Options::new(size_bytes, uuid, i64::from(options.epoch));
    wanted.label.clone_from(&options.label);
    wanted.reserved_percent = 0;
    wanted.inodes = InodeCount::Exact(u32::try_from(inodes).unwrap_or(u32::MAX));
    wanted.journal_blocks = Some(journal_blocks);
    FsBuilder::new(wanted).map_err(layout_error)
}

fn layout_error(error: mkext4::Error) -> WriteError {
    WriteError::Layout {
        why: error.to_string(),
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
    // No file: whoever writes may not be able to open one.
    getrandom::fill(&mut uuid).map_err(io::Error::other)?;
    Ok(as_uuid(uuid))
}

/// A UUID that is made of these bytes.
#[must_use]
pub fn as_uuid(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

/// That of another file system which always comes with this one.
fn as_sibling(mut uuid: [u8; 16]) -> [u8; 16] {
    uuid[15] ^= 1;
    uuid
}

#[cfg(test)]
mod tests {
    use mkext4::RegionSink as _;

    use super::*;

    #[test]
    fn writing_ends_where_too_little_stays_free() {
        let file = tempfile::tempfile().unwrap();
        let mebibyte = vec![1; 1 << 20];
        for (keep_free, most) in [(0, 70), (1 << 20, 70), (u64::MAX, 63)] {
            let mut sink = Holes {
                file: &file,
                spare: Spare::of(keep_free),
            };
            // Over and over in the same place.
            let written = (0..70).map(|_| sink.data(0, &mebibyte));
            let written: Vec<_> = written.take_while(Result::is_ok).collect();
            assert_eq!(written.len(), most, "{keep_free}");
        }
        let mut spare = Spare::of(u64::MAX);
        spare.look(&file, (64 << 20) - 1).unwrap();
        let mut sink = Holes { file: &file, spare };
        let error = sink.data(0, &mebibyte).unwrap_err();
        assert!(io_error("x", error).is_no_space());
    }
}
