//! Blobs on disk under the names of their content: `<dir>/blobs/sha256/<hex>`.
//!
//! A file under such a name is whole and was verified, always: a download grows beside it as
//! `<hex>.part`, and is synced and renamed when its digest is right. The length of a part is
//! where a later try goes on. Whoever writes a part holds a lock on it, so two pulls of one blob
//! become one download and a wait, in one process or in several.
//!
//! ```text
//! claim --> <hex> is there ------------------------------> Whole
//!       \-> <hex>.part, locked --> resume, append --> keep: <hex>
//!                                                \--> discard
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::error::RegistryError;

/// Read at once when a part is hashed again.
const READ_CHUNK: usize = 256 << 10;

/// A directory of verified blobs. Clones are the same directory.
#[derive(Debug, Clone)]
pub struct Cache {
    blobs: PathBuf,
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
        Ok(Cache { blobs })
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
            let (hex, whole) = match name.strip_suffix(".part") {
                Some(hex) => (hex, false),
                None => (name, true),
            };
            let Ok(digest) = Digest::from_hex(hex) else {
                continue;
            };
            match entry.metadata() {
                Ok(meta) => found.push(Blob {
                    digest,
                    size: meta.len(),
                    whole,
                }),
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

    /// Takes a blob and its part away; absent is fine. A part that is being written stays.
    ///
    /// # Errors
    /// [`RegistryError::Cache`].
    pub fn remove(&self, digest: Digest) -> Result<(), RegistryError> {
        let whole = self.path(digest);
        unlink(&whole)?;
        let path = part_of(&whole);
        match OpenOptions::new()
            .write(true)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(&path)
        {
            Ok(file) => match file.try_lock() {
                Ok(()) => unlink(&path),
                Err(TryLockError::WouldBlock) => Ok(()),
                Err(TryLockError::Error(cause)) => Err(RegistryError::disk("lock", &path, cause)),
            },
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(cause) => Err(RegistryError::disk("open", &path, cause)),
        }
    }

    /// The blob, or the right to write it; waits while somebody else has that right.
    pub(crate) async fn claim(&self, digest: Digest) -> Result<Claim, RegistryError> {
        let whole = self.path(digest);
        let path = part_of(&whole);
        loop {
            if let Some(size) = self.size(digest)? {
                return Ok(Claim::Whole { size });
            }
            let file = OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .mode(0o600)
                .custom_flags(OFlags::NOFOLLOW.bits() as i32)
                .open(&path)
                .map_err(|cause| RegistryError::disk("open", &path, cause))?;
            let file = lock(file, &path).await?;
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
            };
            // Or it ended between our look and our opening, and this is a new, empty part.
            if let Some(size) = self.size(digest)? {
                part.discard()?;
                return Ok(Claim::Whole { size });
            }
            return Ok(Claim::Part(part));
        }
    }
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

/// Waits for the lock without holding up the runtime. The waiting thread is nobody's: when the
/// caller leaves, it gets the lock some time later and lets it go at once, and no shutdown waits
/// for it.
async fn lock(file: File, path: &Path) -> Result<File, RegistryError> {
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(cause)) => return Err(RegistryError::disk("lock", path, cause)),
    }
    let (locked, wait) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("blob-lock".to_owned())
        .spawn(move || {
            let _ = locked.send(file.lock().map(|()| file));
        })
        .map_err(|cause| RegistryError::disk("lock", path, cause))?;
    wait.await
        .expect("the thread sends before it ends")
        .map_err(|cause| RegistryError::disk("lock", path, cause))
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
    Whole { size: u64 },
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
        self.off_thread("read", move |part| {
            if part.file.metadata()?.len() > size {
                part.file.set_len(0)?;
            }
            let mut chunk = vec![0; READ_CHUNK];
            loop {
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

    /// Gives the part its blob's name, on disk before the name is.
    pub(crate) async fn keep(self) -> Result<(), RegistryError> {
        self.off_thread("keep", Part::publish).await.map(drop)
    }

    /// Fills the part on this thread, from its first byte on, and keeps it. It is removed when
    /// that fails: what is on this host already is copied anew sooner than it is resumed.
    pub(crate) fn fill_here(
        mut self,
        fill: impl FnOnce(&mut Filling<'_>) -> Result<(), RegistryError>,
    ) -> Result<(), RegistryError> {
        let path = self.path.clone();
        let filled = self
            .clear()
            .map_err(|cause| RegistryError::disk("empty", &path, cause))
            .and_then(|()| fill(&mut Filling(&mut self)))
            .and_then(|()| {
                let kept = self.publish();
                kept.map_err(|cause| RegistryError::disk("keep", &path, cause))
            });
        if filled.is_err() {
            self.discard()?;
        }
        filled
    }

    /// Removes the file; the lock goes after the name.
    pub(crate) fn discard(self) -> Result<(), RegistryError> {
        unlink(&self.path)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.count(bytes);
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.hash = Sha256::new();
        self.len = 0;
        self.inherited = 0;
        Ok(())
    }

    fn publish(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, &self.whole)?;
        match self.whole.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
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
        match cache.claim(digest).await.expect("a claim") {
            Claim::Part(part) => part.resume(size).await.expect("what is there"),
            Claim::Whole { .. } => panic!("{digest} is whole"),
        }
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
        second.keep().await.expect("kept");
        let expected = Blob {
            digest,
            size: 5,
            whole: true,
        };
        assert_eq!(cache.list().expect("a list"), [expected]);
        assert_eq!(fs::read(cache.path(digest)).expect("a file"), b"hello");
        cache.remove(digest).expect("removed");
        cache.remove(digest).expect("again is harmless");
        assert_eq!(cache.list().expect("a list"), []);
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
        let mut second = Box::pin(cache.claim(digest));
        let early = futures_util::poll!(&mut second);
        assert!(early.is_pending(), "the part is locked");
        cache.remove(digest).expect("a part in work is left alone");
        let first = first
            .append(vec![Bytes::from("hello")])
            .await
            .expect("room");
        first.keep().await.expect("kept");
        match second.await.expect("a claim") {
            Claim::Whole { size } => assert_eq!(size, 5),
            Claim::Part(part) => panic!("{part:?} of a whole blob"),
        }
    }

    #[tokio::test]
    async fn a_claim_after_a_discard_is_a_fresh_part() {
        let (_dir, cache) = cache();
        let digest = Digest::of(b"hello");
        let first = part(&cache, digest, 5).await;
        let mut second = Box::pin(cache.claim(digest));
        assert!(futures_util::poll!(&mut second).is_pending());
        first.discard().expect("discarded");
        match second.await.expect("a claim") {
            Claim::Part(part) => part.discard().expect("discarded"),
            Claim::Whole { size } => panic!("{size} bytes from nowhere"),
        }
        assert_eq!(cache.list().expect("a list"), []);
    }

    #[tokio::test]
    async fn a_lock_on_a_file_that_lost_its_name_is_worth_nothing() {
        let (_dir, cache) = cache();
        let digest = Digest::of(b"hello");
        let first = part(&cache, digest, 5).await;
        let mut second = Box::pin(cache.claim(digest));
        assert!(futures_util::poll!(&mut second).is_pending());
        first.discard().expect("discarded");
        // Quicker than the one who waited, on a new file of the same name.
        let third = part(&cache, digest, 5).await;
        let third = third
            .append(vec![Bytes::from("hello")])
            .await
            .expect("room");
        let finish = async { third.keep().await.expect("kept") };
        let (second, ()) = tokio::join!(second, finish);
        match second.expect("a claim") {
            Claim::Whole { size } => assert_eq!(size, 5),
            Claim::Part(part) => panic!("{part:?} beside another writer"),
        }
    }
}
