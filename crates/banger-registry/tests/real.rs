//! Against Debian's `docker-registry`, with an image pushed by `skopeo`: by tag and by digest,
//! anonymously and with a login, in OCI's form and in docker's.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use banger_registry::{Cache, Client, Config, Digest, Platform, Pulled, Reference, RegistryError};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const PROGRAMS: [&str; 4] = ["docker-registry", "skopeo", "htpasswd", "tar"];

/// The first program that is not here.
fn missing() -> Option<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let runs = |file: PathBuf| {
        fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 1 != 0)
    };
    PROGRAMS
        .into_iter()
        .find(|name| !std::env::split_paths(&path).any(|dir| runs(dir.join(name))))
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().expect("the program starts");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// A registry process on a free port; killed when it is dropped.
struct Registry {
    child: Child,
    address: String,
    // Drained, so that the registry never blocks on its log.
    log: Option<std::thread::JoinHandle<()>>,
}

impl Registry {
    fn start(dir: &Path, login: Option<(&str, &str)>) -> Registry {
        fs::create_dir_all(dir.join("store")).expect("a directory");
        let store = dir.join("store");
        let mut config = json!({
            "version": 0.1,
            "log": {"level": "info", "formatter": "json"},
            "storage": {"filesystem": {"rootdirectory": store}},
            "http": {"addr": "127.0.0.1:0"},
        });
        if let Some((user, password)) = login {
            let users = run(Command::new("htpasswd").args(["-Bbn", user, password]));
            fs::write(dir.join("users"), users).expect("a file");
            let users = dir.join("users");
            config["auth"] = json!({"htpasswd": {"realm": "toy", "path": users}});
        }
        // JSON is YAML.
        fs::write(dir.join("registry.yml"), config.to_string()).expect("a file");
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.join("registry.yml"))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut log = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            let read = log.read_line(&mut line).expect("its log");
            said += &line;
            if let Some((_, address)) = line.split_once("listening on ") {
                let end = address.find(['"', ',', '\n']).unwrap_or(address.len());
                break address[..end].to_owned();
            }
            assert!(read > 0, "it ended: {said}");
        };
        let log = std::thread::spawn(move || {
            let mut rest = Vec::new();
            let _ = log.read_to_end(&mut rest);
        });
        Registry {
            child,
            address,
            log: Some(log),
        }
    }

    fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address)
            .parse()
            .expect("a reference")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.log.take().map(std::thread::JoinHandle::join);
    }
}

/// An OCI layout on disk, made by hand.
struct Layout {
    dir: PathBuf,
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl Layout {
    fn new(dir: PathBuf) -> Layout {
        fs::create_dir_all(dir.join("blobs/sha256")).expect("a directory");
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a file");
        Layout { dir }
    }

    fn blob(&self, kind: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        fs::write(self.dir.join("blobs/sha256").join(digest.hex()), bytes).expect("a blob");
        json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()})
    }

    /// An image of two layers that hold one file each.
    fn image(&self, architecture: &str) -> Value {
        let mut layers = Vec::new();
        let mut diffs = Vec::new();
        for (name, size) in [("large", 3_000_000usize), ("small", 10)] {
            let tree = self.dir.join(format!("tree-{architecture}-{name}"));
            fs::create_dir_all(&tree).expect("a directory");
            let noise: Vec<u8> = (0..size as u64)
                .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
                .collect();
            fs::write(tree.join(name), noise).expect("a file");
            let pack = |how: &str| run(Command::new("tar").arg(how).arg("-C").arg(&tree).arg("."));
            diffs.push(Digest::of(&pack("-c")).to_string());
            let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
            layers.push(self.blob(kind, &pack("-cz")));
        }
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diffs},
        });
        let kind = "application/vnd.oci.image.config.v1+json";
        let config = self.blob(kind, config.to_string().as_bytes());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    /// An index as BuildKit writes it, but with the attestation first.
    fn index(&self) -> Value {
        let (arm, amd) = (self.image("arm64"), self.image("amd64"));
        let mut note = arm.clone();
        note["platform"] = json!({"os": "unknown", "architecture": "unknown"});
        note["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
        let at = |mut image: Value, architecture: &str| {
            image["platform"] = json!({"os": "linux", "architecture": architecture});
            image
        };
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = json!({
            "schemaVersion": 2, "mediaType": kind,
            "manifests": [note, at(arm, "arm64"), at(amd, "amd64")],
        });
        self.blob(kind, index.to_string().as_bytes())
    }

    fn tag(&self, tags: &[(&str, Value)]) {
        let entries: Vec<_> = tags
            .iter()
            .map(|(tag, descriptor)| {
                let mut descriptor = descriptor.clone();
                descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
                descriptor
            })
            .collect();
        let index = json!({"schemaVersion": 2, "manifests": entries});
        fs::write(self.dir.join("index.json"), index.to_string()).expect("a file");
    }

    fn push(&self, tag: &str, to: &str, options: &[&str]) {
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--dest-tls-verify=false"])
            .args(options)
            .arg(format!("oci:{}:{tag}", self.dir.display()))
            .arg(format!("docker://{to}")));
    }

    fn read(&self, digest: Digest) -> Vec<u8> {
        fs::read(self.dir.join("blobs/sha256").join(digest.hex())).expect("a blob")
    }
}

struct Desk {
    dir: tempfile::TempDir,
    cache: Cache,
}

impl Desk {
    fn new() -> Desk {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(&dir.path().join("oci")).expect("a cache");
        Desk { dir, cache }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn pull(
        &self,
        reference: &Reference,
        architecture: &str,
    ) -> Result<Pulled, RegistryError> {
        let client = Client::new(Config {
            auth_file: Some(self.path("config.json")),
            helper_path: Some(format!("{}:/usr/bin:/bin", self.dir.path().display()).into()),
            platform: Platform {
                architecture: architecture.to_owned(),
                variant: None,
            },
            ..Config::default()
        })?;
        let cancel = CancellationToken::new();
        client.pull(reference, &self.cache, &|_| {}, &cancel).await
    }
}

/// Holds when every byte is that of the layout.
fn assert_pulled(pulled: &Pulled, layout: &Layout, architecture: &str) {
    let config: Value = serde_json::from_slice(&pulled.config_json).expect("a config");
    assert_eq!(config["architecture"], architecture);
    assert_eq!(pulled.layers.len(), 2);
    for (layer, path) in pulled.manifest.layers.iter().zip(&pulled.layers) {
        let bytes = fs::read(path).expect("a layer");
        assert_eq!(bytes, layout.read(layer.digest));
        assert_eq!(bytes.len() as u64, layer.size);
    }
}

#[tokio::test]
async fn images_are_pulled_from_a_public_registry() {
    if let Some(program) = missing() {
        println!("skipped: {program} is not installed");
        return;
    }
    let desk = Desk::new();
    let registry = Registry::start(&desk.path("registry"), None);
    let layout = Layout::new(desk.path("layout"));
    let index = layout.index();
    layout.tag(&[("one", layout.image("amd64")), ("many", index.clone())]);
    let to = |name: &str| format!("{}/team/{name}", registry.address);
    layout.push("one", &to("app:1"), &[]);
    layout.push("one", &to("docker:1"), &["--format", "v2s2"]);
    layout.push("many", &to("many:1"), &["--all"]);

    for (name, architecture) in [
        ("team/app:1", "amd64"),
        ("team/docker:1", "amd64"),
        ("team/many:1", "amd64"),
        ("team/many:1", "arm64"),
    ] {
        let reference = registry.reference(name);
        let pulled = desk.pull(&reference, architecture).await;
        assert_pulled(&pulled.expect("an image"), &layout, architecture);
    }
    let digest = index["digest"].as_str().expect("a digest");
    let by_digest = registry.reference(&format!("team/many@{digest}"));
    let pulled = desk.pull(&by_digest, "amd64").await.expect("an image");
    assert_pulled(&pulled, &layout, "amd64");

    // Half of a layer from an earlier day is gone on with.
    let large = &pulled.manifest.layers[0];
    let bytes = layout.read(large.digest);
    fs::remove_file(desk.cache.path(large.digest)).expect("removed");
    let part = desk.cache.path(large.digest).with_extension("part");
    fs::write(&part, &bytes[..bytes.len() / 2]).expect("a part");
    let pulled = desk.pull(&by_digest, "amd64").await.expect("an image");
    assert_pulled(&pulled, &layout, "amd64");
    let list = desk.cache.list().expect("a list");
    assert!(list.iter().all(|blob| blob.whole), "{list:?}");

    let none = desk.pull(&by_digest, "riscv64").await;
    assert!(
        matches!(none, Err(RegistryError::Unsupported { .. })),
        "{none:?}"
    );
    for absent in ["team/app:2", "team/nothing:1"] {
        let absent = desk.pull(&registry.reference(absent), "amd64").await;
        assert!(
            matches!(absent, Err(RegistryError::NotFound { .. })),
            "{absent:?}"
        );
    }
}

#[tokio::test]
async fn images_are_pulled_from_a_private_registry() {
    if let Some(program) = missing() {
        println!("skipped: {program} is not installed");
        return;
    }
    let desk = Desk::new();
    let registry = Registry::start(&desk.path("registry"), Some(("anna", "pass:word")));
    let layout = Layout::new(desk.path("layout"));
    layout.tag(&[("one", layout.image("amd64"))]);
    let to = format!("{}/team/app:1", registry.address);
    layout.push("one", &to, &["--dest-creds", "anna:pass:word"]);
    let reference = registry.reference("team/app:1");

    let anonymous = desk.pull(&reference, "amd64").await.expect_err("private");
    assert!(
        matches!(anonymous, RegistryError::Denied { .. }),
        "{anonymous}"
    );
    let hint = anonymous.hint().expect("a hint");
    assert_eq!(hint, format!("docker login {}", registry.address));

    let configure = |config: Value| {
        fs::write(desk.path("config.json"), config.to_string()).expect("a config");
    };
    let address = &registry.address;
    // base64 of anna:wrong
    configure(json!({"auths": {address: {"auth": "YW5uYTp3cm9uZw=="}}}));
    let wrong = desk.pull(&reference, "amd64").await.expect_err("wrong");
    assert!(matches!(wrong, RegistryError::Denied { .. }), "{wrong}");
    assert_eq!(desk.cache.list().expect("a list"), []);

    let helper = desk.path("docker-credential-desk");
    let text = "#!/bin/sh\necho '{\"Username\":\"anna\",\"Secret\":\"pass:word\"}'\n";
    fs::write(&helper, text).expect("a script");
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).expect("a script");
    for config in [
        // base64 of anna:pass:word
        json!({"auths": {address: {"auth": "YW5uYTpwYXNzOndvcmQ="}}}),
        json!({"auths": {format!("https://{address}/v1/"): {"auth": "YW5uYTpwYXNzOndvcmQ="}}}),
        json!({"credsStore": "desk", "auths": {address: {}}}),
        json!({"credHelpers": {address: "desk"}}),
    ] {
        configure(config.clone());
        for blob in desk.cache.list().expect("a list") {
            fs::remove_file(desk.cache.path(blob.digest)).expect("removed");
        }
        let pulled = desk.pull(&reference, "amd64").await;
        let pulled = pulled.unwrap_or_else(|error| panic!("{config}: {error}"));
        assert_pulled(&pulled, &layout, "amd64");
    }
}
