//! A directory, a cache, and what images are made of.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_registry::{
    Admit, Cache, Digest, Limits, Platform, Progress, Pulled, RegistryError, Source, local,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub(crate) struct Room {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) cache: Cache,
    pub(crate) limits: Limits,
    pub(crate) architecture: &'static str,
    runtime: tokio::runtime::Runtime,
}

impl Room {
    pub(crate) fn new() -> Room {
        let dir = tempfile::tempdir().expect("a directory");
        Room {
            cache: Cache::open(&dir.path().join("oci")).expect("a cache"),
            dir,
            limits: Limits::default(),
            architecture: "amd64",
            runtime: tokio::runtime::Builder::new_current_thread()
                .build()
                .expect("a runtime"),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).expect("an own file");
    }

    /// Pulls what is spelled with a path in this room: `docker-archive:x.tar:1`.
    pub(crate) fn pull(&self, spelled: &str) -> Result<Pulled, RegistryError> {
        self.pull_with(spelled, &|_| {}, &CancellationToken::new())
    }

    pub(crate) fn pull_with(
        &self,
        spelled: &str,
        progress: Progress<'_>,
        cancel: &CancellationToken,
    ) -> Result<Pulled, RegistryError> {
        self.pull_by(spelled, &|_| Ok(()), progress, cancel)
    }

    fn pull_by(
        &self,
        spelled: &str,
        admit: Admit<'_>,
        progress: Progress<'_>,
        cancel: &CancellationToken,
    ) -> Result<Pulled, RegistryError> {
        let (scheme, rest) = spelled.split_once(':').expect("a scheme");
        let source = format!("{scheme}:{}/{rest}", self.dir.path().display());
        let Source::Local(local) = source.parse().expect("a source") else {
            panic!("{source} is of a registry");
        };
        let platform = Platform {
            architecture: self.architecture.to_owned(),
            variant: None,
        };
        let inside = self.runtime.enter();
        let pulled = local::pull_if(
            &local,
            &self.cache,
            &platform,
            &self.limits,
            admit,
            progress,
            cancel,
        );
        drop(inside);
        self.assert_only_true_blobs();
        pulled
    }

    /// Pulls if `admit` lets it.
    pub(crate) fn pull_if(&self, spelled: &str, admit: Admit<'_>) -> Result<Pulled, RegistryError> {
        let never = CancellationToken::new();
        self.pull_by(spelled, admit, &|_| {}, &never)
    }

    /// Whatever happened, a blob's name is never a lie, and nothing half-made is left.
    fn assert_only_true_blobs(&self) {
        for blob in self.cache.list().expect("a list") {
            assert!(blob.whole, "{blob:?} was left");
            let bytes = fs::read(self.cache.path(blob.digest)).expect("a blob");
            assert_eq!(Digest::of(&bytes), blob.digest);
        }
    }

    pub(crate) fn empty_cache(&self) {
        for blob in self.cache.list().expect("a list") {
            fs::remove_file(self.cache.dir().join(Cache::name_of(&blob))).expect("removed");
        }
    }

    pub(crate) fn fifo(&self, name: &str) {
        run(Command::new("mkfifo").arg(self.path(name)));
    }
}

/// Holds when these are the layers, unpacked or not, in their order.
pub(crate) fn assert_layers(pulled: &Pulled, layers: &[&[u8]]) {
    let found: Vec<_> = pulled
        .layers
        .iter()
        .map(|path| fs::read(path).expect("a layer"))
        .collect();
    assert!(found == layers, "other layers came");
    let named = pulled.manifest.layers.iter();
    let named: Vec<_> = named.map(|layer| (layer.digest, layer.size)).collect();
    let told: Vec<_> = found
        .iter()
        .map(|bytes| (Digest::of(bytes), bytes.len() as u64))
        .collect();
    assert_eq!(named, told);
}

pub(crate) fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().expect("the program starts");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// The first of these programs that is not here.
pub(crate) fn missing(programs: &[&'static str]) -> Option<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let here = |name: &&str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    programs.iter().find(|name| !here(name)).copied()
}

pub(crate) fn noise(size: usize) -> Vec<u8> {
    (0..size as u64)
        .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    Digest::of(bytes).hex()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).expect("memory");
    packed.finish().expect("memory")
}

pub(crate) fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).expect("memory")
}

pub(crate) fn config(architecture: &str, layers: &[&[u8]]) -> Vec<u8> {
    let diffs: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
    json!({
        "architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": diffs},
    })
    .to_string()
    .into_bytes()
}

/// A tar archive, member by member.
#[derive(Clone, Default)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    pub(crate) fn file(self, name: &str, content: &[u8]) -> Tar {
        self.member(name, b'0', "", content.len() as u64, content)
    }

    pub(crate) fn link(self, name: &str, target: &str) -> Tar {
        self.member(name, b'2', target, 0, b"")
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Tar {
        self.member(name, b'1', target, 0, b"")
    }

    pub(crate) fn directory(self, name: &str) -> Tar {
        self.member(name, b'5', "", 0, b"")
    }

    /// A header that tells `size`, and the content it has.
    pub(crate) fn member(
        mut self,
        name: &str,
        kind: u8,
        link: &str,
        size: u64,
        content: &[u8],
    ) -> Tar {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, b"0000644\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{size:011o}\0").as_bytes());
        put(136, b"00000000000\0");
        put(148, b"        ");
        put(156, &[kind]);
        put(157, link.as_bytes());
        // Only GNU's form has files with holes.
        put(
            257,
            if kind == b'S' {
                b"ustar  \0"
            } else {
                b"ustar\x0000"
            },
        );
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// Layers as docker puts them into archives, and the names they have there.
pub(crate) fn members(layers: &[&[u8]]) -> (Tar, Vec<String>) {
    let mut tar = Tar::default();
    let mut names = Vec::new();
    for layer in layers {
        let name = format!("{}/layer.tar", hex(layer));
        tar = tar
            .directory(&format!("{}/", hex(layer)))
            .file(&name, layer);
        names.push(name);
    }
    (tar, names)
}

/// An archive of one image.
pub(crate) fn archive(tag: &str, layers: &[&[u8]]) -> Tar {
    let config = config("amd64", layers);
    let (tar, names) = members(layers);
    let name = format!("{}.json", hex(&config));
    let manifest = json!([{"Config": name, "RepoTags": [tag], "Layers": names}]);
    tar.file(&name, &config)
        .file("manifest.json", manifest.to_string().as_bytes())
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An OCI layout, blob by blob.
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
}

impl Layout {
    pub(crate) fn new(dir: &Path) -> Layout {
        fs::create_dir_all(dir.join("blobs/sha256")).expect("a directory");
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a file");
        Layout {
            dir: dir.to_owned(),
        }
    }

    pub(crate) fn blob_path(&self, bytes: &[u8]) -> PathBuf {
        self.dir.join("blobs/sha256").join(hex(bytes))
    }

    pub(crate) fn blob(&self, kind: &str, bytes: &[u8]) -> Value {
        fs::write(self.blob_path(bytes), bytes).expect("a blob");
        json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()})
    }

    /// An image of these layers; its descriptor.
    pub(crate) fn image(&self, architecture: &str, layers: &[&[u8]]) -> Value {
        let config = config(architecture, layers);
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        let layers: Vec<_> = layers.iter().map(|layer| self.blob(kind, layer)).collect();
        let config = self.blob("application/vnd.oci.image.config.v1+json", &config);
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    pub(crate) fn nested(&self, entries: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
        self.blob(INDEX, index.to_string().as_bytes())
    }

    pub(crate) fn index(&self, entries: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": entries});
        fs::write(self.dir.join("index.json"), index.to_string()).expect("a file");
    }
}

pub(crate) fn tagged(mut entry: Value, tag: &str) -> Value {
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    entry
}

pub(crate) fn on(mut entry: Value, architecture: &str) -> Value {
    entry["platform"] = json!({"os": "linux", "architecture": architecture});
    entry
}

pub(crate) fn attestation(mut entry: Value) -> Value {
    entry["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    on(entry, "amd64")
}
