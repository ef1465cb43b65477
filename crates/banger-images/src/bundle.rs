//! Bundles: an image or a kernel in one file, `.tar.zst`.
//!
//! ```text
//! of an image    manifest.json  rootfs.ext4                                exactly these
//! of a kernel    manifest.json  vmlinux or bzImage  [config]  [initrd.img]  [modules/...]
//! ```
//!
//! Owns the way in: the packed bytes are hashed as they are read, and nothing that came of them
//! is given to anybody before the hash holds. No path of a bundle is ever used on the host: the
//! image's one file has a name of ours, and a kernel's files become a tree in memory whose
//! content lies in a file without a name.

mod image;
mod kernel;
mod write;

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::os::unix::fs::FileExt as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::codec::{self, Codec};
use crate::ext4::WriteError;
use crate::kernel::{KernelError, hex};
use crate::progress::{Cancel, Cancelled, Report};
use crate::spare::Spare;
use crate::tar::{Entry, EntryKind, Limits, Reader, Stream, TarError, shown};
use crate::tree::ReadError;

pub use image::unpack as unpack_image;
pub use kernel::import as import_kernel;
pub use write::{Made, image as write_image, kernel as write_kernel};

/// Says what the bundle is.
pub const MANIFEST: &str = "manifest.json";
/// A manifest is a few lines.
const MANIFEST_LIMIT: u64 = 64 << 10;
/// Of one text in a manifest, bytes.
const TEXT_LIMIT: usize = 255;
/// Read at once.
const ROUND: usize = 256 << 10;
/// A hole is made of whole blocks.
const BLOCK: usize = 4096;

/// SHA-256 of a whole bundle.
pub type Sha = [u8; 32];

/// A bundle could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file of the host.
    #[error("cannot {action}")]
    Io {
        /// What was done to what.
        action: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is packed in another way, or not at all.
    #[error("the bundle is not packed with zstd")]
    NotZstd,
    /// The archive inside.
    #[error(transparent)]
    Archive(#[from] TarError),
    /// A member cannot be taken.
    #[error("{name} of the bundle {why}")]
    Member {
        /// Its path, escaped.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A member is not there.
    #[error("the bundle has no {what}")]
    Missing {
        /// Which.
        what: &'static str,
    },
    /// There is nothing to make an image of.
    #[error("the archive of the root filesystem is empty")]
    Empty,
    /// The manifest is not one.
    #[error("manifest.json of the bundle cannot be read: {why}")]
    Manifest {
        /// What is wrong with it.
        why: String,
    },
    /// Not the bundle that was promised.
    #[error("the bundle is damaged: its sha256 is {found}, and {expected} was promised")]
    Damaged {
        /// In hex.
        found: String,
        /// In hex.
        expected: String,
    },
    /// What is in it is no kernel that boots.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// What goes into it cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The image that goes into it cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The caller cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl BundleError {
    fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> BundleError {
        let action = action.into();
        move |source| BundleError::Io { action, source }
    }

    fn member(path: &[u8], why: &'static str) -> BundleError {
        BundleError::Member {
            name: shown(path),
            why,
        }
    }

    /// Whether the host's disk is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            BundleError::Io { source, .. } | BundleError::Archive(TarError::Io(source)) => {
                crate::is_full(source)
            }
            BundleError::Kernel(error) => error.is_no_space(),
            BundleError::Write(error) => error.is_no_space(),
            _ => false,
        }
    }

    /// Whether the caller cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(
            self,
            BundleError::Cancelled(_)
                | BundleError::Kernel(KernelError::Cancelled(_))
                | BundleError::Read(ReadError::Cancelled(_))
                | BundleError::Write(WriteError::Cancelled(_))
        )
    }
}

/// What a bundle says of itself. Fields that are not known are passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// What its maker calls it.
    pub name: String,
    /// `debian`, `debian bookworm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distro: Option<String>,
    /// Debian's name of the architecture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// Of a kernel: what `uname -r` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_version: Option<String>,
    /// Of an image: the kernel that it boots with, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_ref: Option<String>,
}

impl Manifest {
    /// Reads a manifest's text.
    ///
    /// # Errors
    /// [`BundleError::Manifest`].
    pub fn parse(text: &[u8]) -> Result<Manifest, BundleError> {
        let bad = |why: String| BundleError::Manifest { why };
        // A list would pass for the fields in their order.
        let manifest = serde_json::from_slice::<serde_json::Map<_, _>>(text)
            .and_then(|fields| serde_json::from_value::<Manifest>(fields.into()))
            .map_err(|error| bad(error.to_string()))?;
        let texts = [
            ("name", Some(&manifest.name)),
            ("distro", manifest.distro.as_ref()),
            ("arch", manifest.arch.as_ref()),
            ("kernel_version", manifest.kernel_version.as_ref()),
            ("kernel_ref", manifest.kernel_ref.as_ref()),
        ];
        for (field, text) in texts {
            let text = text.map_or("", String::as_str);
            if text.len() > TEXT_LIMIT {
                return Err(bad(format!("{field} has more than {TEXT_LIMIT} bytes")));
            }
            if text.chars().any(char::is_control) {
                return Err(bad(format!("{field} has control characters")));
            }
        }
        Ok(manifest)
    }

    /// The one that this entry is.
    fn of(archive: &mut Archive<'_>, entry: &Entry) -> Result<Manifest, BundleError> {
        if entry.kind != EntryKind::File {
            return Err(BundleError::member(&entry.path, "is not a regular file"));
        }
        if entry.stored > MANIFEST_LIMIT {
            return Err(BundleError::member(&entry.path, "is larger than 64 KiB"));
        }
        let mut text = Vec::new();
        archive.read_to_end(&mut text).map_err(TarError::Io)?;
        Manifest::parse(&text)
    }
}

/// The archive in a bundle.
type Archive<'a> = Reader<Stream<Box<dyn Read + 'a>>>;

/// The packed bytes, hashed on their way to who unpacks them.
struct Packed<'a> {
    file: &'a File,
    hash: Sha256,
    at: u64,
    total: u64,
    report: &'a dyn Report,
}

impl Read for Packed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.hash.update(&buffer[..read]);
        self.at += read as u64;
        self.report.bytes(self.at, Some(self.total.max(self.at)));
        Ok(read)
    }
}

/// Lets `take` read the archive of a bundle, and believes what it made of that only when the
/// whole file is the one that was expected.
fn through<T>(
    file: &File,
    expected: Option<&Sha>,
    limits: Limits,
    cancel: &Cancel,
    report: &dyn Report,
    take: impl FnOnce(&mut Archive<'_>) -> Result<T, BundleError>,
) -> Result<T, BundleError> {
    let unreadable = || BundleError::io("read the bundle");
    let packed = Packed {
        file,
        hash: Sha256::new(),
        at: 0,
        total: file.metadata().map_err(unreadable())?.len(),
        report,
    };
    let mut input = BufReader::with_capacity(ROUND, packed);
    let head = input.fill_buf().map_err(unreadable())?;
    let taken = if Codec::of(head) == Codec::Zstd {
        codec::unpack(&mut input)
            .map_err(unreadable())
            .and_then(|unpacked| take(&mut Reader::new(Stream(unpacked), limits)))
    } else {
        Err(BundleError::NotZstd)
    };
    if let Err(error) = &taken
        && (error.is_cancelled() || error.is_no_space())
    {
        return taken;
    }
    // What comes after the archive's end counts too, and a damaged file is told as that,
    // whatever it looked like inside.
    loop {
        cancel.check()?;
        match input.fill_buf().map_err(unreadable())?.len() {
            0 => break,
            read => input.consume(read),
        }
    }
    let found: Sha = input.into_inner().hash.finalize().into();
    match expected {
        Some(expected) if *expected != found => Err(BundleError::Damaged {
            found: hex(&found),
            expected: hex(expected),
        }),
        _ => taken,
    }
}

/// A member's path without what some writers put before it: `./vmlinux` is `vmlinux`. The root
/// itself is empty.
fn plain(path: &[u8]) -> &[u8] {
    let mut path = path;
    while let Some(rest) = path.strip_prefix(b"./") {
        path = rest;
    }
    match path {
        b"." => b"",
        path => path,
    }
}

/// Writes the content of the entry that was read last into a file from `base` on, holes where
/// there are only zeros; gives its size. The file is new from there.
fn pour(
    archive: &mut Archive<'_>,
    entry: &Entry,
    out: &File,
    base: u64,
    spare: &mut Spare,
    cancel: &Cancel,
) -> Result<u64, BundleError> {
    let whole = [(0, entry.stored)];
    let (pieces, size) = match &entry.kind {
        EntryKind::Sparse { map, size } => (map.as_slice(), *size),
        _ => (&whole[..], entry.stored),
    };
    let unwritable = || BundleError::io(format!("write {} of the bundle", shown(&entry.path)));
    let mut buffer = vec![0; ROUND];
    for (offset, length) in pieces {
        let (mut at, mut left) = (base + offset, *length);
        while left > 0 {
            cancel.check()?;
            let round = usize::try_from(left.min(ROUND as u64)).expect("at most a round");
            let bytes = &mut buffer[..round];
            archive.read_exact(bytes).map_err(TarError::Io)?;
            spare.look(out, round as u64).map_err(unwritable())?;
            write_sparse(out, at, bytes).map_err(unwritable())?;
            at += round as u64;
            left -= round as u64;
        }
    }
    out.set_len(base + size).map_err(unwritable())?;
    Ok(size)
}

/// Writes what is not zeros.
fn write_sparse(out: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    let mut from = 0;
    while from < bytes.len() {
        let rest = bytes[from..].chunks(BLOCK);
        let run: usize = rest
            .take_while(|block| block.iter().any(|byte| *byte != 0))
            .map(<[u8]>::len)
            .sum();
        out.write_all_at(&bytes[from..from + run], at + from as u64)?;
        // The run ended at the end, or at a block of zeros.
        from += run + BLOCK;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_become_holes_and_everything_else_stays_where_it_was() {
        use std::os::unix::fs::MetadataExt as _;
        let mut bytes = vec![0; 40 * BLOCK + 17];
        for at in [5, 3 * BLOCK, 20 * BLOCK - 1, 40 * BLOCK + 16] {
            bytes[at] = 7;
        }
        let file = tempfile::tempfile().unwrap();
        write_sparse(&file, 8192, &bytes).unwrap();
        file.set_len(8192 + bytes.len() as u64).unwrap();
        let mut read = vec![1; bytes.len()];
        file.read_exact_at(&mut read, 8192).unwrap();
        assert!(read == bytes);
        assert!(file.metadata().unwrap().blocks() * 512 <= 4 * BLOCK as u64);
    }

    #[test]
    fn a_manifest_is_short_plain_text_and_may_know_more() {
        let manifest = Manifest::parse(br#"{"name":"a","arch":"amd64","new":[1]}"#).unwrap();
        assert_eq!(manifest.name, "a");
        assert_eq!(manifest.arch.as_deref(), Some("amd64"));
        let long = format!(r#"{{"distro":"{}"}}"#, "x".repeat(TEXT_LIMIT + 1));
        for (text, why) in [
            ("[]", "invalid"),
            ("", "EOF"),
            (r#"{"name":"a\u001b[2J"}"#, "name has control characters"),
            (r#"{"kernel_ref":7}"#, "invalid type"),
            (long.as_str(), "distro has more than 255 bytes"),
        ] {
            let error = Manifest::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
