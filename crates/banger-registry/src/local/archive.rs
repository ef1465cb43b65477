//! Archives as `docker save` and `skopeo copy ... docker-archive:` make them: a tar file, maybe
//! packed, with `manifest.json`, configs, and layers that are tar files, links to others, or
//! packed.
//!
//! The file is read forward: once for what is where, and then for the bytes. `manifest.json` only
//! chooses. A config is named by its digest, and it names its layers by the digests of what they
//! unpack to, so that is what goes into the cache: the layers, unpacked.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use serde::Deserialize;

use super::members::{Extent, Fault, Members};
use super::stream::{Codec, Raw, Stream};
use super::{Blob, CHUNK, Desk, bad_path, open_named};
use crate::Pulled;
use crate::blob::Share;
use crate::digest::Digest;
use crate::document::{self, Descriptor, ImageManifest};
use crate::error::{RegistryError, plain};
use crate::source::means;

const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Names told in an error.
const SHOWN: usize = 12;

/// An image as `manifest.json` lists it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// What of a config tells layers.
#[derive(Deserialize)]
struct Config {
    rootfs: Rootfs,
}

#[derive(Deserialize)]
struct Rootfs {
    diff_ids: Vec<Digest>,
}

/// A layer, and where it is.
struct Wanted {
    digest: Digest,
    extent: Extent,
    /// For messages.
    what: String,
}

/// Gets the image that is meant.
pub(super) fn pull(desk: &Desk<'_>) -> Result<Pulled, RegistryError> {
    let archive = Archive::open(desk)?;
    let members = archive.index()?;
    let image = archive.choose(&members)?;
    let names = image.layers.unwrap_or_default();
    let what = desk.local.named();
    if names.is_empty() {
        return Err(document::unsupported(&what, "it has no layers".to_owned()));
    }
    if names.len() > desk.limits.layers {
        return Err(document::unsupported(
            &what,
            format!("it has {} layers", names.len()),
        ));
    }

    let config_json = archive.config(&members, &image.config)?;
    document::check_config(&config_json, &what, desk.platform)?;
    let Config { rootfs } = serde_json::from_slice(&config_json)
        .map_err(|cause| desk.bad_archive(format!("its config: {}", plain(&cause.to_string()))))?;
    let digests = rootfs.diff_ids;
    if digests.len() != names.len() {
        let (layers, named) = (names.len(), digests.len());
        return Err(desk.bad_archive(format!(
            "it has {layers} layers, and its config names {named}"
        )));
    }
    let wanted = archive.wanted(&members, &names, &digests)?;
    let layers_size = wanted.iter().map(|layer| layer.extent.size).sum::<u64>();
    desk.tally.expect(config_json.len() as u64 + layers_size);

    // One that is packed in the archive takes more than this, which shows when it is written.
    let layers: Vec<Descriptor> = wanted
        .iter()
        .map(|layer| descriptor(LAYER, layer.digest, layer.extent.size))
        .collect();
    desk.admit(&layers.iter().collect::<Vec<_>>())?;

    let digest = Digest::of(&config_json);
    desk.store_bytes(digest, &config_json)?;
    let sizes = archive.copy(&wanted)?;
    Ok(Pulled {
        manifest: ImageManifest {
            // There is no manifest with a digest; docker calls an image by that of its config.
            digest,
            config: descriptor(CONFIG, digest, config_json.len() as u64),
            layers: digests
                .iter()
                .map(|digest| descriptor(LAYER, *digest, sizes[digest]))
                .collect(),
        },
        config_json,
        layers: digests
            .iter()
            .map(|digest| desk.cache.path(*digest))
            .collect(),
        holds: desk.holds(),
    })
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
    }
}

/// An archive, open.
struct Archive<'d> {
    desk: &'d Desk<'d>,
    path: &'d Path,
    file: File,
    length: u64,
    codec: Codec,
}

impl<'d> Archive<'d> {
    fn open(desk: &'d Desk<'d>) -> Result<Archive<'d>, RegistryError> {
        let path = desk.local.path();
        let file = open_named(path)?;
        let cannot = |cause| bad_path(path, "it cannot be read", Some(cause));
        let length = file.metadata().map_err(cannot)?.len();
        let codec = Codec::of_file(&file).map_err(cannot)?;
        if let Codec::Foreign(program) = codec {
            return Err(document::unsupported(
                &desk.local.place(),
                format!("it is packed with {program}, which is to be undone first"),
            ));
        }
        Ok(Archive {
            desk,
            path,
            file,
            length,
            codec,
        })
    }

    /// From the first byte on. `tell` hears of what is read from the file.
    fn stream<'a>(&'a self, tell: &'a dyn Fn(u64)) -> Result<Stream<'a>, RegistryError> {
        let raw = Raw {
            file: &self.file,
            cancel: self.desk.cancel,
            tell,
            at: 0,
        };
        Stream::new(raw, self.codec, self.length, self.desk.limits.image)
            .map_err(|cause| self.unreadable(cause))
    }

    fn unreadable(&self, cause: io::Error) -> RegistryError {
        if cause.kind() == io::ErrorKind::UnexpectedEof && !self.desk.cancel.is_cancelled() {
            return self.desk.bad_archive("it ends early");
        }
        self.desk.unreadable(self.path, "it is damaged", cause)
    }

    /// Finds out what is where. Of a packed archive this reads all, and is told as progress.
    fn index(&self) -> Result<Members, RegistryError> {
        let share = Share::unnamed(&self.desk.tally);
        let (read, share) = (Cell::new(0), Cell::new(Some(share)));
        let packed = self.codec != Codec::Plain;
        if packed {
            self.desk.tally.expect(self.length);
        }
        let tell = |more: u64| {
            read.set(read.get() + more);
            if packed && let Some(mut held) = share.take() {
                held.set(read.get().min(self.length));
                share.set(Some(held));
            }
        };
        let mut stream = self.stream(&tell)?;
        let members =
            Members::index(&mut stream, self.desk.limits).map_err(|fault| match fault {
                Fault::Io(cause) => self.unreadable(cause),
                Fault::Bad(why) => self.desk.bad_archive(why),
            })?;
        // What follows the archive's end is nobody's.
        tell(self.length);
        Ok(members)
    }

    /// The image that is meant.
    fn choose(&self, members: &Members) -> Result<Listed, RegistryError> {
        let desk = self.desk;
        let Some(manifest) = &members.manifest else {
            return Err(desk.bad_archive(if members.has("index.json") {
                "it has no manifest.json; it is an OCI layout that tar -x unpacks, for oci-layout:DIR"
            } else {
                "it has no manifest.json"
            }));
        };
        let mut listed: Vec<Listed> = serde_json::from_slice(manifest).map_err(|cause| {
            desk.bad_archive(format!("its manifest.json: {}", plain(&cause.to_string())))
        })?;
        let (place, offered) = (desk.local.place(), offered(&listed));
        if let Some(tag) = desk.local.tag() {
            listed.retain(|image| {
                image
                    .repo_tags
                    .iter()
                    .flatten()
                    .any(|name| means(tag, name))
            });
            if listed.is_empty() {
                let tag = plain(tag);
                return Err(RegistryError::NoTag {
                    place,
                    tag,
                    offered,
                });
            }
        }
        match listed.pop() {
            // One that is listed once for each of its names is one.
            Some(image) if listed.iter().all(|other| other.config == image.config) => Ok(image),
            Some(_) => Err(RegistryError::Ambiguous { place, offered }),
            None => Err(desk.bad_archive("it holds no image")),
        }
    }

    /// Reads a config and checks it against its name.
    fn config(&self, members: &Members, name: &str) -> Result<Vec<u8>, RegistryError> {
        let desk = self.desk;
        let extent = members.find(name).map_err(|why| desk.bad_archive(why))?;
        if extent.size > desk.limits.document {
            let why = format!("its config has {} bytes", extent.size);
            return Err(document::unsupported(&desk.local.named(), why));
        }
        let mut stream = self.stream(&|_| {})?;
        let mut bytes = Vec::new();
        stream
            .skip(extent.offset)
            .and_then(|()| stream.take(extent.size).read_to_end(&mut bytes))
            .map_err(|cause| self.unreadable(cause))?;
        if bytes.len() as u64 != extent.size {
            return Err(self.unreadable(io::ErrorKind::UnexpectedEof.into()));
        }
        // `<hex>.json`, or `blobs/sha256/<hex>`; what is called otherwise promises nothing.
        let last = name.rsplit('/').next().unwrap_or(name);
        let found = Digest::of(&bytes);
        match Digest::from_hex(last.strip_suffix(".json").unwrap_or(last)) {
            Ok(promised) if promised != found => Err(RegistryError::Damaged {
                what: format!("config {}", plain(name)),
                why: format!("it is {found}"),
            }),
            _ => Ok(bytes),
        }
    }

    /// The layers, each once, as they come in the archive.
    fn wanted(
        &self,
        members: &Members,
        names: &[String],
        digests: &[Digest],
    ) -> Result<Vec<Wanted>, RegistryError> {
        let mut wanted: Vec<Wanted> = Vec::new();
        for (name, digest) in names.iter().zip(digests) {
            let found = members.find(name);
            let extent = found.map_err(|why| self.desk.bad_archive(why))?;
            if wanted.iter().all(|other| other.digest != *digest) {
                wanted.push(Wanted {
                    digest: *digest,
                    extent,
                    what: format!("layer {}", plain(name)),
                });
            }
        }
        wanted.sort_by_key(|layer| layer.extent.offset);
        for pair in wanted.windows(2) {
            if pair[0].extent == pair[1].extent {
                return Err(RegistryError::Damaged {
                    what: pair[1].what.clone(),
                    why: format!("it cannot be {} and {}", pair[0].digest, pair[1].digest),
                });
            }
        }
        Ok(wanted)
    }

    /// Copies layers into the cache, unpacked; gives the size of each.
    fn copy(&self, wanted: &[Wanted]) -> Result<HashMap<Digest, u64>, RegistryError> {
        let desk = self.desk;
        let mut stream = self.stream(&|_| {})?;
        let mut left = desk.limits.image;
        let mut sizes = HashMap::new();
        for layer in wanted {
            let mut share = Share::of(&desk.tally, layer.digest, layer.extent.size);
            let size = match desk.claim(layer.digest, None)? {
                Err(size) => size,
                Ok(part) => {
                    let lost = |cause| self.unreadable(cause);
                    stream
                        .skip(layer.extent.offset - stream.at())
                        .map_err(lost)?;
                    let read = Cell::new(0);
                    let counted = Counted {
                        inner: (&mut stream).take(layer.extent.size),
                        read: &read,
                    };
                    let mut packed = BufReader::with_capacity(CHUNK, counted);
                    let codec = Codec::of(io::BufRead::fill_buf(&mut packed).map_err(lost)?);
                    let mut content = codec.unpack(packed).map_err(lost)?;
                    let blob = Blob {
                        digest: layer.digest,
                        limit: left,
                        exact: false,
                        what: &layer.what,
                    };
                    let mut progress = |_| share.set(read.get());
                    desk.store(part, &blob, &mut content, &lost, &mut progress)?
                }
            };
            share.set(layer.extent.size);
            left = left.saturating_sub(size);
            sizes.insert(layer.digest, size);
        }
        Ok(sizes)
    }
}

/// Counts what is read.
struct Counted<'c, R> {
    inner: R,
    read: &'c Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read.set(self.read.get() + read as u64);
        Ok(read)
    }
}

fn offered(listed: &[Listed]) -> Vec<String> {
    let names = listed
        .iter()
        .flat_map(|image| image.repo_tags.iter().flatten());
    names.take(SHOWN).map(|name| plain(name)).collect()
}
