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

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::digest::Digest;
use crate::error::RegistryError;

/// Read at once when a part is hashed again.
const READ_CHUNK: usize = 256 << 10;
/// Bytes written between two looks at what is free on the disk.
const LOOK_EVERY: u64 = 64 << 20;

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

/// A locked part. Its calls take it by value and run off the runtime's threads: a caller that
/// goes away in the middle leaves a shorter part, never a torn one. A part that ends empty takes
/// its file along.
#[derive(Debug)]
pub(crate) struct Part {
    file: File,
    path: PathBuf,
    whole: PathBuf,
    hash: Sha256,
    len: u64,
    inherited: u64,
    /// Bytes of the disk to leave free.
    spare: u64,
    /// At which length the disk is looked at.
    look_at: u64,
}

impl Drop for Part {
    fn drop(&mut self) {
        // The lock is still ours; a part that was kept or discarded has this name no more.
        if self.file.metadata().is_ok_and(|meta| meta.len() == 0)
            && still_named(&self.file, &self.path).unwrap_or(false)
        {
            let _ = unlink(&self.path);
        }
    }
}

impl Part {
    /// Bytes written and hashed.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes among them that an earlier pull wrote; a crash may have spoilt those.
    pub(crate) fn inherited(&self) -> u64 {
        self.inherited
    }

    /// Hashes what an earlier try left, or drops it if it is longer than the blob.
    pub(crate) async fn resume(self, size: u64) -> Result<Part, RegistryError> {
        let token = CancellationToken::new();
        // Whoever drops this future is not waited for.
        let _ends = token.clone().drop_guard();
        self.off_thread("read", move |part| {
            if part.file.metadata()?.len() > size {
                part.file.set_len(0)?;
            }
            let mut chunk = vec![0; READ_CHUNK];
            loop {
                if token.is_cancelled() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                match part.file.read(&mut chunk)? {
                    0 => {
                        part.inherited = part.len;
                        return Ok(());
                    }
                    read => part.count(&chunk[..read]),
                }
            }
        })
        .await
    }

    /// Writes and hashes what came.
    pub(crate) async fn append(self, batch: Vec<Bytes>) -> Result<Part, RegistryError> {
        self.off_thread("write", move |part| {
            batch.iter().try_for_each(|bytes| part.put(bytes))
        })
        .await
    }

    /// Forgets all that was written.
    pub(crate) async fn restart(self) -> Result<Part, RegistryError> {
        self.off_thread("empty", Part::clear).await
    }

    /// The digest of what was written.
    pub(crate) fn digest(&self) -> Digest {
        Digest::finish(self.hash.clone())
    }

    /// Gives the part its blob's name, on disk before the name is, and keeps it from being pruned.
    pub(crate) async fn keep(self) -> Result<Hold, RegistryError> {
        let part = self.off_thread("keep", Part::publish).await?;
        part.hold()
    }

    /// Fills the part on this thread, from its first byte on, and keeps it. It is removed when
    /// that fails: what is on this host already is copied anew sooner than it is resumed.
    pub(crate) fn fill_here(
        mut self,
        fill: impl FnOnce(&mut Filling<'_>) -> Result<(), RegistryError>,
    ) -> Result<Hold, RegistryError> {
        let path = self.path.clone();
        let filled = self
            .clear()
            .map_err(|cause| RegistryError::disk("empty", &path, cause))
            .and_then(|()| fill(&mut Filling(&mut self)))
            .and_then(|()| {
                let kept = self.publish();
                kept.map_err(|cause| RegistryError::disk("keep", &path, cause))
            });
        match filled {
            Ok(()) => self.hold(),
            Err(error) => {
                self.discard()?;
                Err(error)
            }
        }
    }

    /// Removes the file; the lock goes after the name.
    pub(crate) fn discard(self) -> Result<(), RegistryError> {
        unlink(&self.path)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.look_at <= self.len {
            let disk = rustix::fs::fstatvfs(&self.file)?;
            if disk.f_bavail.saturating_mul(disk.f_frsize) < self.spare {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.look_at = self.len + LOOK_EVERY;
        }
        self.file.write_all(bytes)?;
        self.count(bytes);
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.look_at = 0;
        self.hash = Sha256::new();
        self.len = 0;
        self.inherited = 0;
        Ok(())
    }

    fn publish(&mut self) -> io::Result<()> {
        let dir = self.whole.parent().unwrap_or(Path::new("/"));
        self.file.sync_all()?;
        let gate = open_gate(dir)?;
        gate.lock_shared()?;
        fs::rename(&self.path, &self.whole)?;
        // Not one step: the writer's lock is let go, and then taken again with other readers.
        // Nothing is pruned in between, as who prunes has the gate alone.
        self.file.lock_shared()?;
        drop(gate);
        File::open(dir)?.sync_all()
    }

    /// Of a blob that was published.
    fn hold(self) -> Result<Hold, RegistryError> {
        // A second descriptor of the same lock: a part is not taken apart.
        let file = self.file.try_clone();
        let file = file.map_err(|cause| RegistryError::disk("hold", &self.whole, cause))?;
        Ok(Hold {
            file: Arc::new(file),
            path: self.whole.clone(),
        })
    }

    fn count(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
    }

    async fn off_thread(
        mut self,
        doing: &'static str,
        work: impl FnOnce(&mut Part) -> io::Result<()> + Send + 'static,
    ) -> Result<Part, RegistryError> {
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || work(&mut self).map(|()| self))
            .await
            // The runtime ends, and the pull with it.
            .map_err(|_| RegistryError::Cancelled)?
            .map_err(|cause| RegistryError::disk(doing, &path, cause))
    }
}

/// A part that is being filled on one thread.
#[derive(Debug)]
pub(crate) struct Filling<'p>(&'p mut Part);

impl Filling<'_> {
    /// Bytes written.
    pub(crate) fn len(&self) -> u64 {
        self.0.len
    }

    /// The digest of what was written.
    pub(crate) fn digest(&self) -> Digest {
        self.0.digest()
    }

    /// Writes and hashes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), RegistryError> {
        let put = self.0.put(bytes);
        put.map_err(|cause| RegistryError::disk("write", &self.0.path, cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(&dir.path().join("oci")).expect("a cache");
        (dir, cache)
    }

    async fn part(cache: &Cache, digest: Digest, size: u64) -> Part {
        match cache.claim(digest, None).await.expect("a claim") {
            Claim::Part(part) => part.resume(size).await.expect("what is there"),
            Claim::Whole { .. } => panic!("{digest} is whole"),
        }
    }

    #[tokio::test]
    async fn the_disk_is_looked_at_before_the_first_byte_and_again_later() {
        let (_dir, cache) = cache();
        let digest = Digest::of(b"hello");
        let greedy = cache.clone().sparing(u64::MAX);
        let first = part(&greedy, digest, 5).await;
        let full = first.append(vec![Bytes::from("he")]).await;
        assert!(
            matches!(full, Err(RegistryError::NoSpace { .. })),
            "{full:?}"
        );

        let grows = part(&cache, Digest::of(b"other"), 5).await;
        let mut grows = grows.append(vec![Bytes::from("x")]).await.expect("room");
        assert_eq!(grows.look_at, LOOK_EVERY);
        grows.spare = u64::MAX;
        let mut grows = grows.append(vec![Bytes::from("y")]).await.expect("no look");
        grows.len = LOOK_EVERY;
        let full = grows.append(vec![Bytes::from("z")]).await;
        assert!(
            matches!(full, Err(RegistryError::NoSpace { .. })),
            "{full:?}"
        );
    }

    #[tokio::test]
    async fn a_part_goes_on_where_it_was_left() {
        let (_dir, cache) = cache();
        let digest = Digest::of(b"hello");
        let first = part(&cache, digest, 5).await;
        let first = first.append(vec![Bytes::from("he")]).await.expect("room");
        drop(first);
        assert_eq!(cache.size(digest).expect("readable"), None);

        let second = part(&cache, digest, 5).await;
        assert_eq!(second.len(), 2);
        let second = second.append(vec![Bytes::from("llo")]).await.expect("room");
        assert_eq!(second.digest(), digest);
        drop(second.keep().await.expect("kept"));
        let list = cache.list().expect("a list");
        let [blob] = list.as_slice() else {
            panic!("{list:?}")
        };
        assert_eq!((blob.digest, blob.size, blob.whole), (digest, 5, true));
        assert_eq!(fs::read(cache.path(digest)).expect("a file"), b"hello");
        assert_eq!(cache.prune(|_| false).expect("looked at"), []);
        assert_eq!(cache.prune(|_| true).expect("pruned"), list);
        assert_eq!(cache.prune(|_| true).expect("again is harmless"), []);
        assert_eq!(cache.list().expect("a list"), []);
    }

    #[tokio::test]
    async fn what_a_pull_reads_or_writes_is_not_pruned_and_all_else_is() {
        let (_dir, cache) = cache();
        let digests = [b"1", b"2", b"3", b"4"].map(|content| Digest::of(content));
        let [read, idle, written, left] = digests;
        let mut holds = Vec::new();
        for digest in [read, idle] {
            let part = part(&cache, digest, 1).await;
            holds.push(part.keep().await.expect("kept"));
        }
        drop(holds.pop());
        let [written_one, left_one] = [part(&cache, written, 9), part(&cache, left, 9)];
        let (written_one, left_one) = (written_one.await, left_one.await);
        let written_one = written_one
            .append(vec![Bytes::from("x")])
            .await
            .expect("room");
        drop(left_one.append(vec![Bytes::from("x")]).await.expect("room"));
        // A second reader is enough.
        let Claim::Whole { hold, .. } = cache.claim(read, None).await.expect("a claim") else {
            panic!("it is whole")
        };
        holds.clear();
        // Another name keeps the bytes where they are.
        fs::hard_link(cache.path(idle), cache.dir().join("other")).expect("a link");
        // And what is no file is left alone.
        let pipe = cache.path(Digest::of(b"pipe"));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .expect("a pipe");

        let gone = cache.prune(|_| true).expect("pruned");
        let mut names: Vec<_> = gone.iter().map(|blob| (blob.digest, blob.whole)).collect();
        names.sort_unstable();
        let mut expected = [(idle, true), (left, false)];
        expected.sort_unstable();
        assert_eq!(names, expected);
        for blob in gone {
            assert_eq!(blob.frees == 0, blob.digest == idle, "{blob:?}");
        }
        assert!(pipe.exists());

        drop((hold, written_one));
        assert_eq!(cache.prune(|_| true).expect("pruned").len(), 2);
    }

    #[tokio::test]
    async fn a_reader_of_a_blob_keeps_nobody_from_claiming_it() {
        let (_dir, cache) = cache();
        let digest = Digest::of(b"hello");
        let first = part(&cache, digest, 5).await;
        let mut second = Box::pin(cache.claim(digest, None));
        assert!(futures_util::poll!(&mut second).is_pending());
        let _held = first.keep().await.expect("kept");
        assert!(matches!(second.await, Ok(Claim::Whole { .. })));
    }

    #[tokio::test]
    async fn a_blob_that_the_disk_spoilt_goes_where_somebody_looks() {
        let (_dir, cache) = cache();
        let digest = Digest::of(b"hello");
        let keep = async || {
            let part = part(&cache, digest, 5).await;
            let part = part.append(vec![Bytes::from("hello")]).await.expect("room");
            part.keep().await.expect("kept")
        };
        let check = || cache.check(digest, &|| false);
        assert!(!check().expect("nothing to look at"));
        let held = keep().await;
        assert!(!check().expect("looked at"), "it is right");
        let given_up = cache.check(digest, &|| true);
        assert!(matches!(given_up, Err(RegistryError::Cancelled)));
        // Somebody is wrong who says another length, and the blob is not.
        let claimed = cache.claim(digest, Some(6)).await.expect("a claim");
        assert!(matches!(claimed, Claim::Whole { size: 5, .. }));

        fs::write(cache.path(digest), b"jello").expect("spoilt");
        let claimed = cache.claim(digest, Some(5)).await.expect("a claim");
        assert!(
            matches!(claimed, Claim::Whole { .. }),
            "its length is right"
        );
        assert!(held.is_there());
        assert!(check().expect("looked at"));
        assert!(!held.is_there());
        drop((claimed, held));
        assert_eq!(cache.list().expect("a list"), []);

        drop(keep().await);
        fs::write(cache.path(digest), b"hel").expect("cut short");
        let claimed = cache.claim(digest, Some(5)).await.expect("a claim");
        assert!(matches!(claimed, Claim::Part(_)), "{claimed:?}");
    }

    #[tokio::test]
    async fn a_part_longer_than_its_blob_is_dropped() {
        let (_dir, cache) = cache();
        let digest = Digest::of(b"hello");
        let first = part(&cache, digest, 9).await;
        drop(first.append(vec![Bytes::from("rubbish")]).await);
        assert_eq!(part(&cache, digest, 5).await.len(), 0);
    }

    #[tokio::test]
    async fn the_second_claim_waits_and_finds_the_blob() {
        let (_dir, cache) = cache();
        let digest = Digest::of(b"hello");
        let first = part(&cache, digest, 5).await;
        let mut second = Box::pin(cache.claim(digest, None));
        let early = futures_util::poll!(&mut second);
        assert!(early.is_pending(), "the part is locked");
        let gone = cache.prune(|_| true).expect("pruned");
        assert_eq!(gone, [], "a part in work is left alone");
        let first = first
            .append(vec![Bytes::from("hello")])
            .await
            .expect("room");
        first.keep().await.expect("kept");
        match second.await.expect("a claim") {
            Claim::Whole { size, .. } => assert_eq!(size, 5),
            Claim::Part(part) => panic!("{part:?} of a whole blob"),
        }
    }

    #[tokio::test]
    async fn a_claim_after_a_discard_is_a_fresh_part() {
        let (_dir, cache) = cache();
        let digest = Digest::of(b"hello");
        let first = part(&cache, digest, 5).await;
        let mut second = Box::pin(cache.claim(digest, None));
        assert!(futures_util::poll!(&mut second).is_pending());
        first.discard().expect("discarded");
        match second.await.expect("a claim") {
            Claim::Part(part) => part.discard().expect("discarded"),
            Claim::Whole { size, .. } => panic!("{size} bytes from nowhere"),
        }
        assert_eq!(cache.list().expect("a list"), []);
    }

    #[tokio::test]
    async fn a_lock_on_a_file_that_lost_its_name_is_worth_nothing() {
        let (_dir, cache) = cache();
        let digest = Digest::of(b"hello");
        let first = part(&cache, digest, 5).await;
        let mut second = Box::pin(cache.claim(digest, None));
        assert!(futures_util::poll!(&mut second).is_pending());
        first.discard().expect("discarded");
        // Quicker than the one who waited, on a new file of the same name.
        let third = part(&cache, digest, 5).await;
        let third = third
            .append(vec![Bytes::from("hello")])
            .await
            .expect("room");
        let finish = async { third.keep().await.expect("kept") };
        let (second, _held) = tokio::join!(second, finish);
        match second.expect("a claim") {
            Claim::Whole { size, .. } => assert_eq!(size, 5),
            Claim::Part(part) => panic!("{part:?} beside another writer"),
        }
    }
}
