//! Awkward OCI images for tests: their layers byte by byte, their layout on disk, and what
//! `umoci unpack` makes of them.
#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod awkward;
pub(crate) mod large;
pub(crate) mod scan;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use sha2::{Digest as _, Sha256};
use tar_core::EntryType;

/// An entry of a layer.
#[derive(Debug, Clone)]
pub(crate) enum Make {
    Dir(&'static str, u32),
    File(&'static str, &'static str),
    Symlink(&'static str, &'static str),
    Hard(&'static str, &'static str),
    Device(&'static str),
    Fifo(&'static str),
}
use Make::{Device, Dir, Fifo, File as Plain, Hard, Symlink};

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pack {
    No,
    Gzip,
    Zstd,
}

/// The layer of these entries; owners and times tell which layer and entry they are of.
pub(crate) fn layer(entries: &[Make], number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        let (path, kind, data, link, mode) = match *entry {
            Dir(path, mode) => (path, EntryType::Directory, "", "", mode),
            Plain(path, data) => (path, EntryType::Regular, data, "", 0o640),
            Symlink(path, target) => (path, EntryType::Symlink, "", target, 0o777),
            Hard(path, target) => (path, EntryType::Link, "", target, 0o644),
            Device(path) => (path, EntryType::Char, "", "", 0o620),
            Fifo(path) => (path, EntryType::Fifo, "", "", 0o600),
        };
        let seconds = 1_600_000_000 + number * 1000 + at as u64;
        let entry = Entry {
            mode,
            uid: u32::try_from(number).unwrap(),
            gid: u32::try_from(at).unwrap(),
            mtime: (i64::try_from(seconds).unwrap(), 0),
            link: link.as_bytes().to_vec(),
            device: (1, 3),
            data: data.as_bytes().to_vec(),
            ..Entry::new(path, kind.to_byte())
        };
        bytes.extend(entry.bytes());
    }
    end(bytes)
}

/// With the blocks of zeros that end an archive.
pub(crate) fn end(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// An entry of which everything can be said; what a plain header cannot say goes into PAX
/// records.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    /// The letter of its kind in the header.
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds rounded down, and nanoseconds.
    pub(crate) mtime: (i64, u32),
    pub(crate) link: Vec<u8>,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
    pub(crate) data: Vec<u8>,
}

impl Entry {
    pub(crate) fn new(path: impl AsRef<[u8]>, kind: u8) -> Entry {
        Entry {
            path: path.as_ref().to_vec(),
            kind,
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: (1_650_000_000, 0),
            link: Vec::new(),
            device: (0, 0),
            xattrs: Vec::new(),
            data: Vec::new(),
        }
    }

    pub(crate) fn file(path: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Entry {
        let data = data.as_ref().to_vec();
        Entry {
            data,
            ..Entry::new(path, b'0')
        }
    }

    pub(crate) fn dir(path: impl AsRef<[u8]>) -> Entry {
        Entry::new(path, b'5')
    }

    pub(crate) fn link(path: impl AsRef<[u8]>, kind: u8, to: impl AsRef<[u8]>) -> Entry {
        let link = to.as_ref().to_vec();
        Entry {
            link,
            ..Entry::new(path, kind)
        }
    }

    pub(crate) fn node(path: impl AsRef<[u8]>, kind: u8, major: u32, minor: u32) -> Entry {
        let device = (major, minor);
        Entry {
            device,
            ..Entry::new(path, kind)
        }
    }

    pub(crate) fn mode(self, mode: u32) -> Entry {
        Entry { mode, ..self }
    }

    pub(crate) fn owner(self, uid: u32, gid: u32) -> Entry {
        Entry { uid, gid, ..self }
    }

    pub(crate) fn at(self, seconds: i64, nanos: u32) -> Entry {
        let mtime = (seconds, nanos);
        Entry { mtime, ..self }
    }

    pub(crate) fn attribute(mut self, name: &str, value: impl AsRef<[u8]>) -> Entry {
        self.xattrs.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let (seconds, nanos) = self.mtime;
        if self.path.len() > 100 {
            records.extend(record("path", &self.path));
        }
        if self.link.len() > 100 {
            records.extend(record("linkpath", &self.link));
        }
        if nanos > 0 || !(0..1 << 33).contains(&seconds) {
            records.extend(record("mtime", decimal(seconds, nanos).as_bytes()));
        }
        for (name, number) in [("uid", self.uid), ("gid", self.gid)] {
            if number >= 1 << 21 {
                records.extend(record(name, number.to_string().as_bytes()));
            }
        }
        for (name, value) in &self.xattrs {
            records.extend(record(&format!("SCHILY.xattr.{name}"), value));
        }
        let mut out = Vec::new();
        if !records.is_empty() {
            let extended = Entry {
                data: records,
                ..Entry::new("pax", b'x')
            };
            out.extend(extended.header());
            out.extend(padded(&extended.data));
        }
        out.extend(self.header());
        out.extend(padded(&self.data));
        out
    }

    fn header(&self) -> [u8; 512] {
        let mut header = [0; 512];
        put(&mut header[..100], &self.path);
        octal(&mut header[100..108], u64::from(self.mode));
        octal(&mut header[108..116], u64::from(self.uid % (1 << 21)));
        octal(&mut header[116..124], u64::from(self.gid % (1 << 21)));
        octal(&mut header[124..136], self.data.len() as u64);
        let seconds = u64::try_from(self.mtime.0).unwrap_or(0);
        octal(&mut header[136..148], seconds % (1 << 33));
        header[156] = self.kind;
        put(&mut header[157..257], &self.link);
        header[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut header[329..337], u64::from(self.device.0));
        octal(&mut header[337..345], u64::from(self.device.1));
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        octal(&mut header[148..155], sum);
        header
    }
}

fn put(field: &mut [u8], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

fn octal(field: &mut [u8], number: u64) {
    let width = field.len() - 1;
    put(field, format!("{number:0width$o}").as_bytes());
}

/// A record begins with its own length, that number included.
pub(crate) fn record(name: &str, value: &[u8]) -> Vec<u8> {
    let rest = name.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let mut out = format!("{length} {name}=").into_bytes();
    out.extend_from_slice(value);
    out.push(b'\n');
    out
}

/// -2 s and 750,000,000 ns are `-1.25`.
fn decimal(seconds: i64, nanos: u32) -> String {
    match (seconds, nanos) {
        (seconds, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanos:09}"),
        _ => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos),
    }
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(512), 0);
    data
}

pub(crate) fn packed(bytes: &[u8], pack: Pack) -> Vec<u8> {
    match pack {
        Pack::No => bytes.to_vec(),
        Pack::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(bytes).unwrap();
            out.finish().unwrap()
        }
        Pack::Zstd => zstd::encode_all(bytes, 1).unwrap(),
    }
}

/// An OCI image layout of these layers with one image in it, `x`.
pub(crate) fn layout(dir: &Path, layers: &[Vec<u8>], pack: Pack) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8], kind: &str| {
        let name = sum(bytes);
        fs::write(blobs.join(&name), bytes).unwrap();
        serde_json::json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{name}"),
            "size": bytes.len(),
        })
    };
    let (mut descriptors, mut diff_ids) = (Vec::new(), Vec::new());
    for bytes in layers {
        diff_ids.push(format!("sha256:{}", sum(bytes)));
        let kind = match pack {
            Pack::No => "layer.v1.tar",
            Pack::Gzip => "layer.v1.tar+gzip",
            Pack::Zstd => "layer.v1.tar+zstd",
        };
        descriptors.push(blob(&packed(bytes, pack), kind));
    }
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = blob(config.to_string().as_bytes(), "config.v1+json");
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": descriptors,
    });
    let mut manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json");
    manifest["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "x" });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// SHA-256 in hex.
pub(crate) fn sum(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Unpacks the layers into `bundle/rootfs` with umoci; what it says where it refuses them.
pub(crate) fn umoci(layers: &[Vec<u8>], bundle: &Path) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    layout(&image, layers, Pack::Gzip);
    let done = Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:x", image.display()))
        .arg(bundle)
        .output()
        .unwrap();
    if done.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&done.stderr).into_owned())
}

/// Whether umoci can unpack here whatever an image has.
pub(crate) fn has_umoci() -> bool {
    let dir = tempfile::tempdir().unwrap();
    let device = rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("null"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::RUSR,
        rustix::fs::makedev(1, 3),
    );
    let there = Command::new("umoci").arg("--version").output().is_ok();
    if !there || device.is_err() {
        println!("skipped: needs umoci, and the right to make devices");
    }
    there && device.is_ok()
}
