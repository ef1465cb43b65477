//! OCI image layouts: `oci-layout`, `index.json`, and `blobs/sha256/<hex>`.
//!
//! Below the directory no symbolic link is followed, and what is no regular file is not opened.
//! Every byte that is used was asked for by its digest, but for the index, which only chooses.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat, statat};
use serde::Deserialize;

use super::{Blob, Desk, HARMLESS, bad_path};
use crate::Pulled;
use crate::blob::{self, Share};
use crate::digest::Digest;
use crate::document::{self, Descriptor, Document, Platform, Raw, RawDescriptor};
use crate::error::{RegistryError, plain};
use crate::source::{Local, means};

/// By which an entry of the index is called: the second is containerd's, with the whole name.
const NAMES: [&str; 2] = [
    "org.opencontainers.image.ref.name",
    "io.containerd.image.name",
];
/// Bytes of the file `oci-layout`.
const MARK_LIMIT: u64 = 4096;
/// Names told in an error.
const SHOWN: usize = 12;

/// Gets the image that is meant.
pub(super) fn pull(desk: &Desk<'_>) -> Result<Pulled, RegistryError> {
    let layout = Layout::open(desk)?;
    let entry = layout.entry()?;
    let what = desk.local.named();
    let manifest = layout.manifest(entry, &what)?;

    let config = &manifest.config;
    let mut seen = HashSet::from([config.digest]);
    let mut wanted: Vec<&Descriptor> = manifest.layers.iter().collect();
    wanted.retain(|layer| seen.insert(layer.digest));
    let total = wanted.iter().map(|layer| layer.size).sum::<u64>() + config.size;
    desk.tally.expect(total);

    // First the config: it can still tell that the layers are not wanted.
    let config_json = layout.document(config, "its config")?;
    document::check_config(&config_json, &what, desk.platform)?;
    desk.admit(&wanted)?;
    desk.store_bytes(config.digest, &config_json)?;
    for layer in wanted {
        layout.copy(layer)?;
    }
    let layers = manifest.layers.iter();
    let layers = layers.map(|layer| desk.cache.path(layer.digest)).collect();
    Ok(Pulled {
        manifest,
        config_json,
        layers,
        holds: desk.holds(),
    })
}

/// A layout's directories, open.
struct Layout<'d> {
    desk: &'d Desk<'d>,
    root: OwnedFd,
    blobs: OwnedFd,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mark {
    image_layout_version: String,
}

impl<'d> Layout<'d> {
    fn open(desk: &'d Desk<'d>) -> Result<Layout<'d>, RegistryError> {
        let path = desk.local.path();
        let cannot = |errno: rustix::io::Errno| match errno {
            rustix::io::Errno::NOTDIR => bad_path(path, "it is no directory", None),
            errno => bad_path(path, "it cannot be read", Some(errno.into())),
        };
        let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, directory, Mode::empty()).map_err(cannot)?;
        let mut layout = Layout {
            desk,
            // Until it is known to be a layout.
            blobs: root
                .try_clone()
                .map_err(|cause| bad_path(path, "it cannot be read", Some(cause)))?,
            root,
        };
        let Some(mark) = layout.small("oci-layout", MARK_LIMIT)? else {
            return Err(desk.bad_archive("it has no file oci-layout"));
        };
        let mark: Mark = serde_json::from_slice(&mark).map_err(|cause| {
            desk.bad_archive(format!(
                "its file oci-layout: {}",
                plain(&cause.to_string())
            ))
        })?;
        if !mark.image_layout_version.starts_with("1.") {
            let version = plain(&mark.image_layout_version);
            return Err(document::unsupported(
                &desk.local.place(),
                format!("it is a layout of version {version}"),
            ));
        }
        let below = directory | OFlags::NOFOLLOW;
        layout.blobs = openat(&layout.root, "blobs", below, Mode::empty())
            .and_then(|blobs| openat(&blobs, "sha256", below, Mode::empty()))
            .map_err(|errno| {
                bad_path(
                    &path.join("blobs/sha256"),
                    "it is no directory of blobs",
                    Some(errno.into()),
                )
            })?;
        Ok(layout)
    }

    /// The entry of the index that is meant.
    fn entry(&self) -> Result<Descriptor, RegistryError> {
        let desk = self.desk;
        let Some(index) = self.small("index.json", desk.limits.document)? else {
            return Err(desk.bad_archive("it has no file index.json"));
        };
        choose(&index, desk.local, desk.platform)
    }

    /// Follows an entry to the image for our platform; an index of indexes has no use here.
    fn manifest(
        &self,
        mut entry: Descriptor,
        what: &str,
    ) -> Result<document::ImageManifest, RegistryError> {
        for _ in 0..2 {
            if entry.size > self.desk.limits.document {
                let why = format!("its manifest has {} bytes", entry.size);
                return Err(document::unsupported(what, why));
            }
            let bytes = self.document(&entry, "its manifest")?;
            match document::parse(&bytes, what, self.desk.platform, self.desk.limits)? {
                Document::Image(image) => return Ok(image),
                Document::Elsewhere(next) => entry = next,
            }
        }
        let why = "its index leads to another index".to_owned();
        Err(document::unsupported(what, why))
    }

    /// Reads and checks a blob that is small enough to be held.
    fn document(&self, blob: &Descriptor, what: &str) -> Result<Vec<u8>, RegistryError> {
        let (path, file) = self.blob(blob)?;
        let mut bytes = Vec::new();
        file.take(blob.size + 1)
            .read_to_end(&mut bytes)
            .map_err(|cause| self.desk.unreadable(&path, what, cause))?;
        if bytes.len() as u64 != blob.size {
            return Err(blob::damaged(blob, wrong_length(bytes.len() as u64, blob)));
        }
        match Digest::of(&bytes) {
            found if found == blob.digest => Ok(bytes),
            found => Err(blob::damaged(blob, format!("it is {found}"))),
        }
    }

    /// Copies a blob into the cache, unless it is there.
    fn copy(&self, blob: &Descriptor) -> Result<(), RegistryError> {
        let mut share = Share::of(&self.desk.tally, blob.digest, blob.size);
        let part = match self.desk.claim(blob.digest, Some(blob.size))? {
            Ok(part) => part,
            Err(size) if size == blob.size => {
                share.set(size);
                return Ok(());
            }
            Err(size) => return Err(blob::damaged(blob, wrong_length(size, blob))),
        };
        let (path, mut file) = self.blob(blob)?;
        let wanted = Blob {
            digest: blob.digest,
            limit: blob.size,
            exact: true,
            what: &format!("blob {}", blob.digest),
        };
        let lost = |cause| self.desk.unreadable(&path, "a blob", cause);
        let mut progress = |done| share.set(done);
        let stored = self
            .desk
            .store(part, &wanted, &mut file, &lost, &mut progress);
        stored.map(drop)
    }

    fn blob(&self, blob: &Descriptor) -> Result<(PathBuf, File), RegistryError> {
        let name = blob.digest.hex();
        let path = self.desk.local.path().join("blobs/sha256").join(&name);
        let Some((file, length)) = open_at(&self.blobs, &name, &path)? else {
            let why = format!("it has no blob {}", blob.digest);
            return Err(self.desk.bad_archive(why));
        };
        if length != blob.size {
            return Err(blob::damaged(blob, wrong_length(length, blob)));
        }
        Ok((path, file))
    }

    /// A file at the top of the layout.
    fn small(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, RegistryError> {
        let path = self.desk.local.path().join(name);
        let Some((file, _)) = open_at(&self.root, name, &path)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|cause| self.desk.unreadable(&path, name, cause))?;
        if bytes.len() as u64 > limit {
            let why = format!("its {name} has more than {limit} bytes");
            return Err(document::unsupported(&self.desk.local.place(), why));
        }
        Ok(Some(bytes))
    }
}

/// The entry of an index that is meant, for our platform.
pub(crate) fn choose(
    index: &[u8],
    local: &Local,
    platform: &Platform,
) -> Result<Descriptor, RegistryError> {
    let bad = |why: &str| RegistryError::BadArchive {
        place: local.place(),
        why: why.to_owned(),
    };
    let index: Raw = serde_json::from_slice(index)
        .map_err(|cause| bad(&format!("its index.json: {}", plain(&cause.to_string()))))?;
    let mut entries = index
        .manifests
        .ok_or_else(|| bad("its index.json is no index"))?;
    entries.retain(|entry| !entry.is_attestation());
    if entries.is_empty() {
        return Err(bad("it holds no image"));
    }
    let (place, offered) = (local.place(), offered(&entries));
    match local.tag() {
        Some(tag) => {
            entries.retain(|entry| names(entry).any(|name| means(tag, name)));
            if entries.is_empty() {
                let tag = plain(tag);
                return Err(RegistryError::NoTag {
                    place,
                    tag,
                    offered,
                });
            }
        }
        // Several entries of one name, or of none, are one image for several platforms.
        None if differ(&entries, |entry| entry.note(NAMES[0]))
            && differ(&entries, |entry| Some(entry.digest.as_str())) =>
        {
            return Err(RegistryError::Ambiguous { place, offered });
        }
        None => {}
    }
    document::choose(entries, &local.named(), platform)
}

fn wrong_length(found: u64, blob: &Descriptor) -> String {
    format!("it has {found} bytes, and the manifest says {}", blob.size)
}

/// Opens a regular file that is there itself, and tells its length.
fn open_at(dir: &OwnedFd, name: &str, path: &Path) -> Result<Option<(File, u64)>, RegistryError> {
    let cannot = |cause: io::Error| bad_path(path, "it cannot be read", Some(cause));
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => {}
            FileType::Symlink => return Err(bad_path(path, "it is a symbolic link", None)),
            _ => return Err(bad_path(path, "it is no regular file", None)),
        },
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(cannot(errno.into())),
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | HARMLESS;
    let file =
        File::from(openat(dir, name, flags, Mode::empty()).map_err(|errno| cannot(errno.into()))?);
    let found = file.metadata().map_err(cannot)?;
    match found.is_file() {
        true => Ok(Some((file, found.len()))),
        false => Err(bad_path(path, "it is no regular file", None)),
    }
}

fn names(entry: &RawDescriptor) -> impl Iterator<Item = &str> {
    NAMES.iter().filter_map(|name| entry.note(name))
}

/// Whether there are two of something among the entries.
fn differ<'e>(
    entries: &'e [RawDescriptor],
    what: impl Fn(&'e RawDescriptor) -> Option<&'e str>,
) -> bool {
    let mut all = entries.iter().map(what);
    let first = all.next();
    all.any(|other| Some(other) != first)
}

fn offered(entries: &[RawDescriptor]) -> Vec<String> {
    let mut offered: Vec<String> = Vec::new();
    for name in entries.iter().filter_map(|entry| names(entry).next()) {
        let name = plain(name);
        if !offered.contains(&name) {
            offered.push(name);
        }
        if offered.len() == SHOWN {
            break;
        }
    }
    offered
}
