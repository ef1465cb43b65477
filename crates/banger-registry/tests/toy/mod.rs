//! A toy registry on loopback: serves one image well, and does whatever a test wants instead.
//!
//! Plain HTTP/1.1, one request a connection, so that what is declared and what is sent can
//! differ, and a connection can end or hang in the middle. Every request is kept.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banger_registry::{Cache, Client, Config, Digest, Limits, Platform, Pulled, Reference};
use banger_registry::{Progress, RegistryError};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    /// By names in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
    /// How many for this path came before.
    pub(crate) nth: usize,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte asked for.
    pub(crate) fn from(&self) -> usize {
        self.header("range")
            .and_then(|range| {
                range
                    .strip_prefix("bytes=")?
                    .strip_suffix('-')?
                    .parse()
                    .ok()
            })
            .unwrap_or(0)
    }
}

/// In the place of a status.
const SILENCE: u16 = 0;

/// What is sent back.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Declared in `Content-Length`; `None` declares nothing and ends by closing.
    pub(crate) length: Option<usize>,
    /// Keep the connection open at the end, silently.
    pub(crate) stall: bool,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Answer {
        let body = body.into();
        Answer {
            status,
            headers: Vec::new(),
            length: Some(body.len()),
            body,
            stall: false,
        }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Answer {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Not even a head comes.
    pub(crate) fn silence() -> Answer {
        Answer::new(SILENCE, "")
    }

    /// Sends only the first bytes of what it declares.
    pub(crate) fn cut(mut self, sent: usize) -> Answer {
        self.body.truncate(sent);
        self
    }

    pub(crate) fn stalling(mut self) -> Answer {
        self.stall = true;
        self
    }

    pub(crate) fn undeclared(mut self) -> Answer {
        self.length = None;
        self
    }
}

/// An image of blobs that are nothing but bytes.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) manifest: Vec<u8>,
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

pub(crate) fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()})
}

impl Image {
    /// Of one large and one small layer.
    pub(crate) fn new() -> Image {
        let config = json!({"os": "linux", "architecture": "amd64", "config": {"Env": ["A=b"]}});
        // Every offset differs from its neighbours: bytes in the wrong place are noticed.
        let large = (0..600_000u32)
            .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect();
        Image::of(
            config.to_string().into_bytes(),
            vec![large, b"small".to_vec()],
        )
    }

    /// Of the large layer alone: nothing else is on the way when that fails.
    pub(crate) fn single() -> Image {
        let mut image = Image::new();
        image.layers.truncate(1);
        Image::of(image.config, image.layers)
    }

    pub(crate) fn of(config: Vec<u8>, layers: Vec<Vec<u8>>) -> Image {
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|layer| descriptor(kind, layer)).collect::<Vec<_>>(),
        });
        Image {
            config,
            layers,
            manifest: manifest.to_string().into_bytes(),
        }
    }

    pub(crate) fn large(&self) -> &[u8] {
        &self.layers[0]
    }

    /// The address of the large layer.
    pub(crate) fn large_path(&self) -> String {
        format!("/v2/team/app/blobs/{}", digest(self.large()))
    }

    /// What a good registry answers.
    pub(crate) fn serve(&self, request: &Request) -> Answer {
        let path = request.path.strip_prefix("/v2/team/app/");
        let blobs = self.layers.iter().chain([&self.config]);
        match path.and_then(|path| path.split_once('/')) {
            Some(("manifests", name)) if name == "1" || name == digest(&self.manifest) => {
                Answer::new(200, self.manifest.clone())
                    .with("Docker-Content-Digest", digest(&self.manifest))
            }
            Some(("blobs", name)) => match blobs.into_iter().find(|blob| digest(blob) == name) {
                Some(blob) => range(blob, request),
                None => Answer::new(404, ""),
            },
            _ => Answer::new(404, ""),
        }
    }
}

/// The bytes that a request asks for.
pub(crate) fn range(blob: &[u8], request: &Request) -> Answer {
    match request.from() {
        0 => Answer::new(200, blob),
        from if from >= blob.len() => Answer::new(416, ""),
        from => Answer::new(206, &blob[from..]).with(
            "Content-Range",
            format!("bytes {from}-{}/{}", blob.len() - 1, blob.len()),
        ),
    }
}

type Handler = dyn Fn(&Request) -> Answer + Send + Sync;

/// The server; ends when it is dropped.
pub(crate) struct Toy {
    /// `127.0.0.1:port`.
    pub(crate) address: String,
    log: Arc<Mutex<Vec<Request>>>,
    _tasks: JoinSet<()>,
}

impl Toy {
    /// Serves the image, but for what `other` answers.
    pub(crate) async fn serving(
        image: &Image,
        other: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static,
    ) -> Toy {
        let image = image.clone();
        Toy::start(move |request| other(request).unwrap_or_else(|| image.serve(request))).await
    }

    pub(crate) async fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Toy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let log = Arc::new(Mutex::new(Vec::new()));
        let handler: Arc<Handler> = Arc::new(handler);
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&log);
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let (handler, log) = (Arc::clone(&handler), Arc::clone(&shared));
                open.spawn(async move { answer(stream, &*handler, &log).await.unwrap_or(()) });
            }
        });
        Toy {
            address,
            log,
            _tasks: tasks,
        }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().expect("the log").clone()
    }

    /// The requests for one path.
    pub(crate) fn asked(&self, path: &str) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|request| request.path == path);
        requests
    }

    pub(crate) fn reference(&self) -> Reference {
        format!("{}/team/app:1", self.address)
            .parse()
            .expect("a reference")
    }
}

async fn answer(
    stream: TcpStream,
    handler: &Handler,
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut first = lines[0].split(' ').map(str::to_owned);
    let (method, path) = (
        first.next().expect("a method"),
        first.next().expect("a path"),
    );
    let headers: HashMap<_, _> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers
        .get("content-length")
        .map_or(0, |text| text.parse().expect("a number"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let request = {
        let mut log = log.lock().expect("the log");
        let nth = log.iter().filter(|earlier| earlier.path == path).count();
        log.push(Request {
            method,
            path,
            headers,
            body: String::from_utf8(body).expect("text"),
            nth,
        });
        log.last().expect("just pushed").clone()
    };
    let answer = handler(&request);
    if answer.status == SILENCE {
        std::future::pending::<()>().await;
    }
    let mut head = format!("HTTP/1.1 {} Toy\r\nConnection: close\r\n", answer.status);
    if let Some(length) = answer.length {
        head += &format!("Content-Length: {length}\r\n");
    }
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&answer.body).await?;
    stream.flush().await?;
    if answer.stall {
        std::future::pending::<()>().await;
    }
    // A half-close, then the client's: closing with unread bytes would reset the connection and
    // take what was sent with it.
    stream.shutdown().await?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.map(drop)
}

/// Short where people have patience.
pub(crate) fn limits() -> Limits {
    Limits {
        stall: Duration::from_millis(300),
        first_pause: Duration::from_millis(4),
        longest_wait: Duration::from_secs(2),
        helper: Duration::from_millis(500),
        ..Limits::default()
    }
}

pub(crate) fn config() -> Config {
    Config {
        insecure_registries: Vec::new(),
        auth_file: None,
        helper_path: None,
        platform: Platform {
            architecture: "amd64".to_owned(),
            variant: None,
        },
        limits: limits(),
    }
}

/// A client and a cache, and what they did.
pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) cache: Cache,
    pub(crate) client: Client,
    pub(crate) cancel: CancellationToken,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        Bench::with(config())
    }

    pub(crate) fn with(config: Config) -> Bench {
        Bench::within(&std::env::temp_dir(), config)
    }

    /// With its cache on the file system of `parent`.
    pub(crate) fn within(parent: &Path, config: Config) -> Bench {
        let dir = tempfile::tempdir_in(parent).expect("a directory");
        Bench {
            cache: Cache::open(&dir.path().join("oci")).expect("a cache"),
            dir,
            client: Client::new(config).expect("a client"),
            cancel: CancellationToken::new(),
        }
    }

    pub(crate) async fn pull(&self, toy: &Toy) -> Result<Pulled, RegistryError> {
        self.pull_as(&toy.reference(), &|_| {}).await
    }

    pub(crate) async fn pull_as(
        &self,
        reference: &Reference,
        progress: Progress<'_>,
    ) -> Result<Pulled, RegistryError> {
        let pulled = self
            .client
            .pull(reference, &self.cache, progress, &self.cancel)
            .await;
        self.assert_blobs_are_true();
        pulled
    }

    /// Whatever happened, a blob's name is never a lie.
    pub(crate) fn assert_blobs_are_true(&self) {
        for blob in self.cache.list().expect("a list") {
            if blob.whole {
                let bytes = std::fs::read(self.cache.path(blob.digest)).expect("a blob");
                assert_eq!(Digest::of(&bytes), blob.digest);
            }
        }
    }

    /// Length of the part of these bytes.
    pub(crate) fn part(&self, bytes: &[u8]) -> Option<u64> {
        self.find(bytes, false)
    }

    /// Length of their blob.
    pub(crate) fn whole(&self, bytes: &[u8]) -> Option<u64> {
        self.find(bytes, true)
    }

    fn find(&self, bytes: &[u8], whole: bool) -> Option<u64> {
        let digest = Digest::of(bytes);
        let list = self.cache.list().expect("a list");
        list.iter()
            .find(|blob| blob.digest == digest && blob.whole == whole)
            .map(|blob| blob.size)
    }

    /// All parts of the cache.
    pub(crate) fn parts(&self) -> usize {
        let list = self.cache.list().expect("a list");
        list.iter().filter(|blob| !blob.whole).count()
    }
}

/// Holds when the pull gave exactly the image.
pub(crate) fn assert_image(pulled: &Pulled, image: &Image) {
    assert_eq!(pulled.manifest.digest, Digest::of(&image.manifest));
    assert_eq!(pulled.config_json, image.config);
    let layers: Vec<_> = pulled
        .layers
        .iter()
        .map(|path: &std::path::PathBuf| std::fs::read(path).expect("a layer"))
        .collect();
    assert_eq!(layers, image.layers);
}

/// A script in a directory for helpers.
pub(crate) fn script(dir: &Path, name: &str, text: &str) {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o755)
        .open(dir.join(name))
        .expect("a script");
    write!(file, "#!/bin/sh\n{text}\n").expect("a script");
}
