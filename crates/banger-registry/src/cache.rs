//! Blobs on disk under the names of their content: `<dir>/blobs/sha256/<hex>`.
//!
//! A file under such a name is whole and was verified: a download grows beside it as
//! `<hex>.part`, and is synced and renamed when its digest is right. What the disk makes of it
//! later is found out by its length, or by whoever reads it and finds it wrong, and then it is
//! [checked](Cache::check) again. The length of a part is where a later try goes on. Whoever writes a part holds a lock on it, so two pulls of one blob
//! become one download and a wait, in one process or in several. Whoever reads a blob holds a
//! shared lock on it, and nothing is pruned that cannot be locked alone.
//!
//! ```text
//! claim --> <hex> is there, locked shared ---------------> Whole
//!       \-> <hex>.part, locked --> resume, append --> keep: <hex>, locked shared
//!                                                \--> discard
//! prune --> <hex> or <hex>.part, locked alone --> gone
//! ```

mod part;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::digest::Digest;
use crate::error::RegistryError;

pub(crate) use self::part::Part;

/// Read at once when a part is hashed again.
const READ_CHUNK: usize = 256 << 10;

/// A directory of verified blobs. Clones are the same directory.
#[derive(Debug, Clone)]
pub struct Cache {
    blobs: PathBuf,
    /// Bytes of the disk that what grows leaves free.
    spare: u64,
}

/// A file of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Whose content it is, or will be.
    pub digest: Digest,
    /// Bytes so far.
    pub size: u64,
    /// False while it is a part.
    pub whole: bool,
    /// What its removal gives back to the disk, bytes: nothing where it has another name.
    pub frees: u64,
    /// Device and inode: a blob that was removed and came again has others.
    pub inode: (u64, u64),
}

/// Keeps a blob from being pruned for as long as this, or a clone of it, lives.
#[derive(Debug, Clone)]
pub struct Hold {
    file: Arc<File>,
    path: PathBuf,
}

impl Hold {
    /// Whether the blob is still there under its name: one that was found damaged is not.
    #[must_use]
    pub fn is_there(&self) -> bool {
        still_named(&self.file, &self.path).unwrap_or(false)
    }
}

impl Cache {
    /// The cache in `dir`, which is made for the owner alone when it is missing.
    ///
    /// # Errors
    /// [`RegistryError::Cache`] or [`RegistryError::NoSpace`].
    pub fn open(dir: &Path) -> Result<Cache, RegistryError> {
        let blobs = dir.join("blobs/sha256");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&blobs)
            .map_err(|cause| RegistryError::disk("make", &blobs, cause))?;
        Ok(Cache { blobs, spare: 0 })
    }

    /// The same cache, which leaves so many bytes of its disk free while it writes.
    #[must_use]
    pub fn sparing(self, spare: u64) -> Cache {
        Cache { spare, ..self }
    }

    /// Where the blob is, or would be.
    #[must_use]
    pub fn path(&self, digest: Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// The length of the blob in bytes, if it is here whole.
    ///
    /// # Errors
    /// [`RegistryError::Cache`].
    pub fn size(&self, digest: Digest) -> Result<Option<u64>, RegistryError> {
        let path = self.path(digest);
        match fs::symlink_metadata(&path) {
            Ok(meta) => Ok(Some(meta.len())),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(RegistryError::disk("look at", &path, cause)),
        }
    }

    /// All blobs and parts, by digest. Files of other names are not the cache's.
    ///
    /// # Errors
    /// [`RegistryError::Cache`].
    pub fn list(&self) -> Result<Vec<Blob>, RegistryError> {
        let failed = |cause| RegistryError::disk("list", &self.blobs, cause);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.blobs).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let Some((digest, whole)) = Blob::of_name(name) else {
                continue;
            };
            match entry.metadata() {
                Ok(meta) => found.push(Blob::of(digest, whole, &meta)),
                // Renamed or removed since the directory was read.
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
                Err(cause) => return Err(failed(cause)),
            }
        }
        found.sort_by_key(|blob| (blob.digest, blob.whole));
        Ok(found)
    }

    /// Bytes of the blob that are here, whole or as a part.
    ///
    /// # Errors
    /// [`RegistryError::Cache`].
    pub(crate) fn held(&self, digest: Digest) -> Result<u64, RegistryError> {
        if let Some(size) = self.size(digest)? {
            return Ok(size);
        }
        let part = fs::symlink_metadata(part_of(&self.path(digest)));
        Ok(part.map_or(0, |part| part.len()))
    }

    /// Looks at every blob and part that nobody reads or writes, in this process or in another,
    /// and removes those that `goes` says; returns them.
    ///
    /// # Errors
    /// [`RegistryError::Cache`]; what was removed before stays removed.
    pub fn prune(&self, mut goes: impl FnMut(&Blob) -> bool) -> Result<Vec<Blob>, RegistryError> {
        let mut gone = Vec::new();
        for blob in self.list()? {
            gone.extend(self.prune_file((blob.digest, blob.whole), &mut goes)?);
        }
        Ok(gone)
    }

    /// The same of one file, by its [name](Cache::name_of).
    ///
    /// # Errors
    /// [`RegistryError::Cache`].
    pub fn prune_one(
        &self,
        name: &str,
        mut goes: impl FnMut(&Blob) -> bool,
    ) -> Result<Option<Blob>, RegistryError> {
        match Blob::of_name(name) {
            Some((digest, whole)) => self.prune_file((digest, whole), &mut goes),
            None => Ok(None),
        }
    }

    fn prune_file(
        &self,
        (digest, whole): (Digest, bool),
        goes: &mut impl FnMut(&Blob) -> bool,
    ) -> Result<Option<Blob>, RegistryError> {
        let path = match whole {
            true => self.path(digest),
            false => part_of(&self.path(digest)),
        };
        let gate = open_gate(&self.blobs).and_then(|gate| gate.lock().map(|()| gate));
        let _gate = gate.map_err(|cause| RegistryError::disk("lock", &self.blobs, cause))?;
        // Held until it is removed, so that nobody else begins to use it.
        let Some((_held, meta)) = hold_alone(&path)? else {
            return Ok(None);
        };
        let blob = Blob::of(digest, whole, &meta);
        if !goes(&blob) {
            return Ok(None);
        }
        unlink(&path)?;
        Ok(Some(blob))
    }

    /// The file name of a blob or part in [`Cache::dir`].
    #[must_use]
    pub fn name_of(blob: &Blob) -> String {
        let end = if blob.whole { "" } else { ".part" };
        format!("{}{end}", blob.digest.hex())
    }

    /// Where the blobs are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.blobs
    }

    /// Holds the blob if it is here whole, and tells its length; waits while it is pruned.
    async fn hold(&self, digest: Digest) -> Result<Option<(u64, Hold)>, RegistryError> {
        let path = self.path(digest);
        let file = match open_blob(&path) {
            Ok(file) => lock_shared(file, &path).await?,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(RegistryError::disk("open", &path, cause)),
        };
        if !still_named(&file, &path)? {
            return Ok(None);
        }
        let meta = file.metadata();
        let meta = meta.map_err(|cause| RegistryError::disk("look at", &path, cause))?;
        let file = Arc::new(file);
        Ok(Some((meta.len(), Hold { file, path })))
    }

    /// Reads a blob that is here again, and removes it where it is no more what its name says;
    /// `true` then. Blocks for as long as that takes, or until `given_up`.
    ///
    /// # Errors
    /// [`RegistryError::Cache`], [`RegistryError::Cancelled`].
    pub fn check(
        &self,
        digest: Digest,
        given_up: &dyn Fn() -> bool,
    ) -> Result<bool, RegistryError> {
        let path = self.path(digest);
        let failed = |cause| RegistryError::disk("read", &path, cause);
        let mut file = match open_blob(&path) {
            Ok(file) => file,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(cause) => return Err(failed(cause)),
        };
        match digest_of(&mut file, given_up) {
            Ok(None) => return Err(RegistryError::Cancelled),
            Ok(Some(found)) if found == digest => return Ok(false),
            // A disk that cannot read it back has not kept it.
            Ok(Some(_)) | Err(_) => {}
        }
        let gate = open_gate(&self.blobs).and_then(|gate| gate.lock().map(|()| gate));
        let _gate = gate.map_err(|cause| RegistryError::disk("lock", &self.blobs, cause))?;
        // Whoever holds it has it open, or will find it wrong as well; a new one stays.
        if still_named(&file, &path)? {
            unlink(&path)?;
        }
        Ok(true)
    }

    /// The same, off the runtime's threads.
    pub(crate) async fn checked(&self, digest: Digest) -> Result<bool, RegistryError> {
        let (cache, token) = (self.clone(), CancellationToken::new());
        // Whoever drops this future is not waited for.
        let _ends = token.clone().drop_guard();
        tokio::task::spawn_blocking(move || cache.check(digest, &|| token.is_cancelled()))
            .await
            // The runtime ends, and the pull with it.
            .map_err(|_| RegistryError::Cancelled)?
    }

    /// The blob, or the right to write it; waits while somebody else has that right. A blob of
    /// another length than `said` is checked again: it or who said so is wrong.
    pub(crate) async fn claim(
        &self,
        digest: Digest,
        said: Option<u64>,
    ) -> Result<Claim, RegistryError> {
        let whole = self.path(digest);
        let path = part_of(&whole);
        loop {
            if let Some((size, hold)) = self.hold(digest).await? {
                if said.is_some_and(|said| said != size) {
                    self.checked(digest).await?;
                    // It was removed, by us or by who found out at the same time.
                    if !hold.is_there() {
                        continue;
                    }
                }
                return Ok(Claim::Whole { size, hold });
            }
            let file = OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .mode(0o600)
                .custom_flags(OFlags::NOFOLLOW.bits() as i32)
                .open(&path)
                .map_err(|cause| RegistryError::disk("open", &path, cause))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    // Not for a lock of our own: once the blob is whole its writer goes on
                    // holding it, with all who read it.
                    drop(lock_shared(file, &path).await?);
                    continue;
                }
                Err(TryLockError::Error(cause)) => {
                    return Err(RegistryError::disk("lock", &path, cause));
                }
            }
            // The one before us may have renamed or removed what we opened before it ended.
            if !still_named(&file, &path)? {
                continue;
            }
            let part = Part {
                file,
                path: path.clone(),
                whole: whole.clone(),
                hash: Sha256::new(),
                len: 0,
                inherited: 0,
                spare: self.spare,
                look_at: 0,
            };
            // Or it ended between our look and our opening, and this is a new, empty part.
            if let Some((size, hold)) = self.hold(digest).await? {
                part.discard()?;
                return Ok(Claim::Whole { size, hold });
            }
            return Ok(Claim::Part(part));
        }
    }
}

impl Blob {
    /// Whose file has this name, and whether it is whole.
    fn of_name(name: &str) -> Option<(Digest, bool)> {
        let (hex, whole) = match name.strip_suffix(".part") {
            Some(hex) => (hex, false),
            None => (name, true),
        };
        Digest::from_hex(hex).ok().map(|digest| (digest, whole))
    }

    fn of(digest: Digest, whole: bool, meta: &fs::Metadata) -> Blob {
        Blob {
            digest,
            size: meta.len(),
            whole,
            frees: if meta.nlink() > 1 {
                0
            } else {
                meta.blocks() * 512
            },
            inode: (meta.dev(), meta.ino()),
        }
    }
}

/// The file that is locked by whoever turns a writer's lock into a reader's, and alone by whoever
/// prunes; neither for long. It stays.
fn open_gate(blobs: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(blobs.with_file_name("lock"))
}

fn open_blob(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)
}

/// `None` where it was given up.
fn digest_of(file: &mut File, given_up: &dyn Fn() -> bool) -> io::Result<Option<Digest>> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; READ_CHUNK];
    while !given_up() {
        match file.read(&mut chunk)? {
            0 => return Ok(Some(Digest::finish(hash))),
            read => hash.update(&chunk[..read]),
        }
    }
    Ok(None)
}

fn part_of(whole: &Path) -> PathBuf {
    whole.with_extension("part")
}

fn unlink(path: &Path) -> Result<(), RegistryError> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(RegistryError::disk("remove", path, cause))
        }
        _ => Ok(()),
    }
}

/// Locks a file together with others, without holding up the runtime. The waiting thread is
/// nobody's: when the caller leaves, it gets the lock some time later and lets it go at once, and
/// no shutdown waits for it.
async fn lock_shared(file: File, path: &Path) -> Result<File, RegistryError> {
    match file.try_lock_shared() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(cause)) => return Err(RegistryError::disk("lock", path, cause)),
    }
    let (locked, wait) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("blob-lock".to_owned())
        .spawn(move || {
            let _ = locked.send(file.lock_shared().map(|()| file));
        })
        .map_err(|cause| RegistryError::disk("lock", path, cause))?;
    wait.await
        .expect("the thread sends before it ends")
        .map_err(|cause| RegistryError::disk("lock", path, cause))
}

/// Locks a file that nobody else has locked, unless it lost its name meanwhile.
fn hold_alone(path: &Path) -> Result<Option<(File, fs::Metadata)>, RegistryError> {
    let failed = |doing| move |cause| RegistryError::disk(doing, path, cause);
    // Never waits: what has a blob's name may be a pipe.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
    {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(failed("open")(cause)),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(cause)) => return Err(failed("lock")(cause)),
    }
    let meta = file.metadata().map_err(failed("look at"))?;
    Ok((meta.is_file() && still_named(&file, path)?).then_some((file, meta)))
}

fn still_named(file: &File, path: &Path) -> Result<bool, RegistryError> {
    let failed = |cause| RegistryError::disk("look at", path, cause);
    let ours = file.metadata().map_err(failed)?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok(named.ino() == ours.ino() && named.dev() == ours.dev()),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(failed(cause)),
    }
}

/// What a claim came to.
#[derive(Debug)]
pub(crate) enum Claim {
    /// Here already, this long.
    Whole { size: u64, hold: Hold },
    /// Ours to write. [`Part::resume`] comes first.
    Part(Part),
}
