//! Bundles made: the same input gives the same bytes, whoever makes them and when.
//!
//! Everything is made in a directory beside the result, which takes its name only when it is
//! whole and never takes another's.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek as _, Write};
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use sha2::{Digest as _, Sha256};
use tar_core::EntryType;
use tar_core::builder::EntryBuilder;

use super::{BundleError, MANIFEST, Manifest, ROUND, Sha};
use crate::codec::{Bounded, Codec, unpack};
use crate::ext4::{self, ImageOptions, ROOTFS, RootfsWriter as _};
use crate::kernel::{self, Found, is_index};
use crate::progress::{Cancel, Report};
use crate::tar::Limits;
use crate::tree::{self, Kind, NodeId, Source, Tree};

/// Costs seconds where the highest cost minutes, for a tenth of the size.
const LEVEL: i32 = 12;
/// Members of an archive begin at these.
const RECORD: u64 = 512;

/// A bundle that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Of the file.
    pub sha256: Sha,
    /// Length of the file.
    pub size_bytes: u64,
    /// What it says of itself.
    pub manifest: Manifest,
    /// What its maker should be told.
    pub warnings: Vec<String>,
}

/// Makes an image's bundle of a root filesystem in a tar archive, packed in any way; `out` must
/// not be there. `size_bytes` is that of the file system.
///
/// # Errors
/// See [`BundleError`]. Nothing is left then.
pub fn image(
    archive: File,
    manifest: &Manifest,
    size_bytes: Option<u64>,
    out: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Made, BundleError> {
    let work = workplace(out)?;
    report.stage("read", "");
    let plain = as_plain(archive, work.path(), cancel)?;
    let tree = tree::from_tar(&plain, 0, &Limits::default(), cancel, report)?;
    if tree.children(NodeId::ROOT).next().is_none() {
        return Err(BundleError::Empty);
    }
    let (epoch, uuid) = identity(&tree, manifest);
    let options = ImageOptions {
        uuid: Some(uuid),
        epoch,
        ..ImageOptions::of_root(&tree, size_bytes, false)
    };
    report.stage("write_image", "");
    let rootfs = work.path().join(ROOTFS);
    let sources = [Source::Plain(plain)];
    ext4::InProcess.write(&tree, &sources, &rootfs, &options, cancel, report)?;
    report.stage("pack", "");
    let mut pack = Pack::new(work.path(), cancel)?;
    pack.manifest(manifest)?;
    let file = File::open(&rootfs).map_err(BundleError::io("read the image"))?;
    pack.file(ROOTFS, options.size_bytes, file)?;
    pack.publish(out, manifest.clone(), Vec::new())
}

/// Makes a kernel's bundle of a directory or a Debian package, which must be one that boots;
/// `out` must not be there. What `manifest` leaves open is taken from the kernel.
///
/// # Errors
/// See [`BundleError`]. Nothing is left then.
pub fn kernel(
    from: &Path,
    is_deb: bool,
    manifest: &Manifest,
    out: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Made, BundleError> {
    let work = workplace(out)?;
    // Whoever gets the bundle imports it; what cannot be is not worth sending.
    let tried = work.path().join("tried");
    fs::create_dir(&tried).map_err(BundleError::io("make a directory"))?;
    let info = match is_deb {
        true => kernel::import_deb(from, &tried, cancel, report)?,
        false => kernel::import_dir(from, &tried, cancel, report)?,
    };
    fs::remove_dir_all(&tried).map_err(BundleError::io("remove a directory"))?;
    let manifest = Manifest {
        distro: manifest.distro.clone().or(info.distro),
        arch: manifest.arch.clone().or(Some(info.arch)),
        kernel_version: Some(info.version),
        ..manifest.clone()
    };
    let found = match is_deb {
        true => kernel::found_in_deb(from, work.path(), cancel, report)?,
        false => Found::in_directory(from, cancel)?,
    };
    report.stage("pack", "");
    let mut pack = Pack::new(work.path(), cancel)?;
    pack.manifest(&manifest)?;
    let name = match info.format {
        crate::bzimage::Format::BzImage => "bzImage",
        crate::bzimage::Format::Vmlinux => "vmlinux",
    };
    pack.bytes(name, &found.kernel)?;
    if let Some(config) = &found.config {
        pack.bytes("config", config.as_bytes())?;
    }
    if let Some(initrd) = &found.initrd {
        pack.bytes("initrd.img", initrd)?;
    }
    if let Some((tree, modules)) = &found.modules {
        pack.tree("modules", tree, *modules, &found.sources)?;
    }
    pack.publish(out, manifest, info.warnings)
}

fn workplace(out: &Path) -> Result<tempfile::TempDir, BundleError> {
    let beside = match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let cannot = || BundleError::io(format!("write {}", out.display()));
    if fs::symlink_metadata(out).is_ok() {
        return Err(cannot()(io::ErrorKind::AlreadyExists.into()));
    }
    tempfile::Builder::new()
        .prefix(".banger-bundle-")
        .tempdir_in(beside)
        .map_err(cannot())
}

/// The archive as a plain file, its bytes where the tree says they are.
fn as_plain(archive: File, work: &Path, cancel: &Cancel) -> Result<File, BundleError> {
    let cannot = || BundleError::io("read the archive of the root filesystem");
    let regular = archive.metadata().map_err(cannot())?.is_file();
    let input = Waiting { archive, cancel };
    let mut input = BufReader::with_capacity(ROUND, input);
    let head = io::BufRead::fill_buf(&mut input).map_err(cannot())?;
    if regular && Codec::of(head) == Codec::Plain {
        return Ok(input.into_inner().archive);
    }
    let mut spool = tempfile::tempfile_in(work).map_err(cannot())?;
    let unpacked = unpack(input).map_err(cannot())?;
    let mut unpacked = Bounded::new(unpacked, Limits::default().unpacked_bytes);
    let copied = copy(&mut unpacked, &mut spool, cancel)?;
    copied.map_err(cannot())?;
    spool.rewind().map_err(cannot())?;
    Ok(spool)
}

/// A pipe whose writer takes its time is no reason not to be cancelled.
struct Waiting<'a> {
    archive: File,
    cancel: &'a Cancel,
}

impl Read for Waiting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut either = [
            PollFd::from_borrowed_fd(self.archive.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.cancel.as_fd(), PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| poll(&mut either, None))?;
        // Not `Interrupted`, which readers take for a reason to try again.
        self.cancel
            .check()
            .map_err(|_| io::Error::from(io::ErrorKind::Other))?;
        self.archive.read(buffer)
    }
}

/// Copies all of it; the inner error is one of reading or writing.
fn copy(
    from: &mut dyn Read,
    to: &mut dyn Write,
    cancel: &Cancel,
) -> Result<io::Result<u64>, BundleError> {
    let mut buffer = vec![0; ROUND];
    let mut copied = 0;
    loop {
        cancel.check()?;
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(Ok(copied)),
            Ok(read) => read,
            Err(error) => {
                cancel.check()?;
                return Ok(Err(error));
            }
        };
        if let Err(error) = to.write_all(&buffer[..read]) {
            return Ok(Err(error));
        }
        copied += read as u64;
    }
}

/// The time and the id of a file system: of its content alone, so that they are the same again.
fn identity(tree: &Tree, manifest: &Manifest) -> (u32, [u8; 16]) {
    let mut hash = Sha256::new();
    hash.update(manifest.name.as_bytes());
    let mut newest = 0;
    let mut pending = vec![NodeId::ROOT];
    while let Some(id) = pending.pop() {
        newest = newest.max(tree.meta(id).mtime.seconds);
        for (name, child) in tree.children(id) {
            hash.update(name.as_bytes());
            if let Kind::File(data) = tree.kind(child) {
                hash.update(data.size().to_le_bytes());
            }
            pending.push(child);
        }
    }
    let uuid: [u8; 16] = hash.finalize()[..16].try_into().expect("half of it");
    let uuid = ext4::as_uuid(uuid);
    (u32::try_from(newest).unwrap_or(u32::MAX), uuid)
}

/// A file that is hashed while it is written.
struct Hashed {
    file: BufWriter<File>,
    hash: Sha256,
    length: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A bundle that is being written.
struct Pack<'a> {
    path: std::path::PathBuf,
    out: zstd::Encoder<'static, Hashed>,
    cancel: &'a Cancel,
}

impl<'a> Pack<'a> {
    fn new(work: &Path, cancel: &'a Cancel) -> Result<Pack<'a>, BundleError> {
        let path = work.join("bundle");
        let begin = || {
            let hashed = Hashed {
                file: BufWriter::new(File::create_new(&path)?),
                hash: Sha256::new(),
                length: 0,
            };
            let mut out = zstd::Encoder::new(hashed, LEVEL)?;
            out.include_checksum(true)?;
            Ok(out)
        };
        let out = begin().map_err(cannot_write())?;
        Ok(Pack { path, out, cancel })
    }

    fn manifest(&mut self, manifest: &Manifest) -> Result<(), BundleError> {
        let mut text = serde_json::to_vec_pretty(manifest).expect("a manifest is plain JSON");
        text.push(b'\n');
        self.bytes(MANIFEST, &text)
    }

    fn bytes(&mut self, path: &str, bytes: &[u8]) -> Result<(), BundleError> {
        self.file(path, bytes.len() as u64, bytes)
    }

    fn file(&mut self, path: &str, size: u64, content: impl Read) -> Result<(), BundleError> {
        self.head(path, EntryType::Regular, 0o644, size)?;
        let copied = copy(&mut content.take(size), &mut self.out, self.cancel)?
            .map_err(BundleError::io(format!("pack {path}")))?;
        if copied < size {
            let shorter = io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter");
            return Err(BundleError::io(format!("pack {path}"))(shorter));
        }
        let padding = size.next_multiple_of(RECORD) - size;
        io::copy(&mut io::repeat(0).take(padding), &mut self.out)
            .map(drop)
            .map_err(cannot_write())
    }

    /// Files and directories; links of a kernel's modules lead to where it was built.
    fn tree(
        &mut self,
        path: &str,
        tree: &Tree,
        node: NodeId,
        sources: &[Source],
    ) -> Result<(), BundleError> {
        self.head(&format!("{path}/"), EntryType::Directory, 0o755, 0)?;
        for (name, child) in tree.children(node) {
            let below = format!("{path}/{name}");
            match tree.kind(child) {
                Kind::Directory(_) => self.tree(&below, tree, child, sources)?,
                // Made anew by whoever imports it.
                Kind::File(_) if path == "modules" && is_index(name) => {}
                Kind::File(data) => {
                    let content = data.reader(sources);
                    let content = content.map_err(BundleError::io(format!("read {below}")))?;
                    self.file(&below, data.size(), content)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn head(
        &mut self,
        path: &str,
        kind: EntryType,
        mode: u32,
        size: u64,
    ) -> Result<(), BundleError> {
        let build = || {
            let mut entry = EntryBuilder::new_gnu();
            entry.path(path);
            entry.mode(mode)?.uid(0)?.gid(0)?.size(size)?.mtime(0)?;
            entry.entry_type(kind);
            Ok::<_, tar_core::HeaderError>(entry.finish_bytes())
        };
        let head = build().map_err(io::Error::other).map_err(cannot_write())?;
        self.out.write_all(&head).map_err(cannot_write())
    }

    /// Ends the bundle and gives it its name.
    fn publish(
        mut self,
        out: &Path,
        manifest: Manifest,
        warnings: Vec<String>,
    ) -> Result<Made, BundleError> {
        let end = [0; 2 * RECORD as usize];
        self.out.write_all(&end).map_err(cannot_write())?;
        let hashed = self.out.finish().map_err(cannot_write())?;
        let (sha256, size_bytes) = (hashed.hash.finalize().into(), hashed.length);
        let file = hashed
            .file
            .into_inner()
            .map_err(|error| cannot_write()(error.into_error()))?;
        file.sync_all().map_err(cannot_write())?;
        renameat_with(CWD, &self.path, CWD, out, RenameFlags::NOREPLACE)
            .map_err(|errno| BundleError::io(format!("write {}", out.display()))(errno.into()))?;
        Ok(Made {
            sha256,
            size_bytes,
            manifest,
            warnings,
        })
    }
}

fn cannot_write() -> impl FnOnce(io::Error) -> BundleError {
    BundleError::io("write the bundle")
}
