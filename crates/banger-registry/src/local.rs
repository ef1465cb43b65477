//! Images in files of this host, into the same cache and by the same checks as from a registry.
//!
//! ```text
//! oci-layout:DIR      index.json -> manifest (index: ours) -> config, layers --+
//! docker-archive:FILE manifest.json -> config -> layers, unpacked -------------+--> Cache
//! ```
//!
//! Files may change while they are read and need not be what their names say: each is read once,
//! hashed on the way into the cache, and only the cache's copy is used. Nothing but regular files
//! is opened, and nothing is written but blobs.

mod archive;
pub(crate) mod layout;
mod members;
mod stream;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;
use tokio_util::sync::CancellationToken;

use crate::blob::{Progress, Share, Tally};
use crate::cache::{Cache, Claim, Hold, Part};
use crate::digest::Digest;
use crate::document::{self, Descriptor, Platform};
use crate::error::{RegistryError, plain};
use crate::limits::Limits;
use crate::source::{Form, Local};
use crate::{Admit, Pulled, Weight};

/// Read, hashed and written at once, bytes.
const CHUNK: usize = 256 << 10;
/// Opens a pipe without waiting for its other end, and makes no terminal ours.
const HARMLESS: OFlags = OFlags::NONBLOCK.union(OFlags::NOCTTY);

/// What a pull from files needs.
struct Desk<'d> {
    local: &'d Local,
    cache: &'d Cache,
    platform: &'d Platform,
    limits: &'d Limits,
    admit: Admit<'d>,
    tally: Tally<'d>,
    cancel: &'d CancellationToken,
    /// Keep what is in the cache already.
    holds: Mutex<Vec<Hold>>,
}

/// Gets an image of this host's files into the cache. Blocks; to be called on a thread of a tokio
/// runtime that may. A cancelled pull leaves whole blobs and nothing else.
///
/// # Errors
/// [`RegistryError`]; none of those that registries, logins and networks cause.
pub fn pull(
    local: &Local,
    cache: &Cache,
    platform: &Platform,
    limits: &Limits,
    progress: Progress<'_>,
    cancel: &CancellationToken,
) -> Result<Pulled, RegistryError> {
    let admit = |_: &Weight| Ok(());
    pull_if(local, cache, platform, limits, &admit, progress, cancel)
}

/// The same, but before a layer is copied, `admit` says whether there is room for them: for at
/// least as many bytes as they are in the files.
///
/// # Errors
/// Those of [`pull`], and [`RegistryError::NoRoom`].
pub fn pull_if(
    local: &Local,
    cache: &Cache,
    platform: &Platform,
    limits: &Limits,
    admit: Admit<'_>,
    progress: Progress<'_>,
    cancel: &CancellationToken,
) -> Result<Pulled, RegistryError> {
    let desk = Desk {
        local,
        cache,
        platform,
        limits,
        admit,
        tally: Tally::new(0, progress),
        cancel,
        holds: Mutex::default(),
    };
    match local.form() {
        Form::Layout => layout::pull(&desk),
        Form::Archive => archive::pull(&desk),
    }
}

impl Desk<'_> {
    fn check(&self) -> Result<(), RegistryError> {
        match self.cancel.is_cancelled() {
            true => Err(RegistryError::Cancelled),
            false => Ok(()),
        }
    }

    /// Refuses layers that there is no room for.
    fn admit(&self, layers: &[&Descriptor]) -> Result<(), RegistryError> {
        let weight = Weight::of(layers, self.cache)?;
        (self.admit)(&weight).map_err(|why| RegistryError::NoRoom { why })
    }

    fn bad_archive(&self, why: impl Into<String>) -> RegistryError {
        RegistryError::BadArchive {
            place: self.local.place(),
            why: why.into(),
        }
    }

    /// A read that failed, of the file itself or of what unpacks it.
    fn unreadable(&self, path: &Path, what: &str, cause: io::Error) -> RegistryError {
        match cause.raw_os_error() {
            _ if self.cancel.is_cancelled() => RegistryError::Cancelled,
            Some(_) => RegistryError::BadPath {
                path: path.to_owned(),
                why: "it cannot be read".to_owned(),
                cause: Some(cause),
            },
            None => self.bad_archive(format!("{what}: {}", plain(&cause.to_string()))),
        }
    }

    fn hold(&self, hold: Hold) {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        holds.push(hold);
    }

    /// All that was held.
    fn holds(&self) -> Vec<Hold> {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut holds)
    }

    /// The right to write a blob of `said` bytes, or its length where the cache has it; then it
    /// stays there.
    fn claim(&self, digest: Digest, said: Option<u64>) -> Result<Result<Part, u64>, RegistryError> {
        let claim = async {
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => Err(RegistryError::Cancelled),
                claim = self.cache.claim(digest, said) => claim,
            }
        };
        Ok(match tokio::runtime::Handle::current().block_on(claim)? {
            Claim::Part(part) => Ok(part),
            Claim::Whole { size, hold } => {
                self.hold(hold);
                Err(size)
            }
        })
    }

    /// Fills a blob with all that `content` gives, `limit` bytes at most, and keeps it if it is
    /// the right one; gives its length. `lost` says what a failed read means, and `progress` is
    /// called with the bytes so far.
    fn store(
        &self,
        part: Part,
        blob: &Blob<'_>,
        content: &mut dyn Read,
        lost: &dyn Fn(io::Error) -> RegistryError,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64, RegistryError> {
        let mut length = 0;
        let damaged = |why: String| RegistryError::Damaged {
            what: blob.what.to_owned(),
            why,
        };
        let hold = part.fill_here(|filling| {
            let mut chunk = vec![0; CHUNK];
            loop {
                self.check()?;
                let read = match content.read(&mut chunk) {
                    Ok(0) => break,
                    Ok(read) => read,
                    Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                    Err(cause) => return Err(lost(cause)),
                };
                if filling.len() + read as u64 > blob.limit {
                    let why = format!("it has more than {} bytes", blob.limit);
                    return Err(match blob.exact {
                        true => damaged(why),
                        false => document::unsupported(blob.what, why),
                    });
                }
                filling.write(&chunk[..read])?;
                progress(filling.len());
            }
            length = filling.len();
            if blob.exact && length != blob.limit {
                return Err(damaged(format!(
                    "it has {length} bytes instead of {}",
                    blob.limit
                )));
            }
            if filling.digest() != blob.digest {
                let found = filling.digest();
                return Err(damaged(format!("it is {found} instead of {}", blob.digest)));
            }
            Ok(())
        })?;
        self.hold(hold);
        Ok(length)
    }

    /// Puts a small blob, whose bytes are known to be right, beside the others.
    fn store_bytes(&self, digest: Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        let size = bytes.len() as u64;
        Share::of(&self.tally, digest, size).set(size);
        match self.claim(digest, Some(size))? {
            Ok(part) => {
                let hold = part.fill_here(|filling| filling.write(bytes))?;
                self.hold(hold);
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }
}

/// What a blob must turn out to be.
struct Blob<'b> {
    digest: Digest,
    /// Bytes it may have.
    limit: u64,
    /// Bytes it must have.
    exact: bool,
    /// For messages.
    what: &'b str,
}

fn bad_path(path: &Path, why: &str, cause: Option<io::Error>) -> RegistryError {
    RegistryError::BadPath {
        path: path.to_owned(),
        why: why.to_owned(),
        cause,
    }
}

/// Opens what a user named; only there links are followed.
fn open_named(path: &Path) -> Result<File, RegistryError> {
    let cannot = |cause| bad_path(path, "it cannot be read", Some(cause));
    // Opening some devices does something, so it is not found out by opening.
    if !fs::metadata(path).map_err(cannot)?.is_file() {
        return Err(bad_path(path, "it is no regular file", None));
    }
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(HARMLESS.bits() as i32)
        .open(path)
        .map_err(cannot)?;
    match file.metadata().map_err(cannot)?.is_file() {
        true => Ok(file),
        false => Err(bad_path(path, "it is no regular file", None)),
    }
}
