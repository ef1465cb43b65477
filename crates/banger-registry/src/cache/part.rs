//! A blob that is not whole yet: written, hashed as it is written, resumed, and given its name.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{Hold, READ_CHUNK, open_gate, still_named, unlink};
use crate::digest::Digest;
use crate::error::RegistryError;

/// Bytes written between two looks at what is free on the disk.
pub(super) const LOOK_EVERY: u64 = 64 << 20;

/// A locked part. Its calls take it by value and run off the runtime's threads: a caller that
/// goes away in the middle leaves a shorter part, never a torn one. A part that ends empty takes
/// its file along.
#[derive(Debug)]
pub(crate) struct Part {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) whole: PathBuf,
    pub(super) hash: Sha256,
    pub(super) len: u64,
    pub(super) inherited: u64,
    /// Bytes of the disk to leave free.
    pub(super) spare: u64,
    /// At which length the disk is looked at.
    pub(super) look_at: u64,
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
