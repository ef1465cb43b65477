//! A toy registry on loopback: serves images well, and does whatever a test wants instead.
//!
//! Plain HTTP/1.1, one request a connection, so that what is declared and what is sent can
//! differ, and an answer can stop in its middle. Every request is kept. Its images are all in
//! the repository `team/app`, by tag.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::wait;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Its path.
    pub path: String,
    /// The first byte it asks for.
    pub from: usize,
    /// How many for this path came before.
    pub nth: usize,
}

/// What is sent back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Further headers, a line each.
    pub headers: Vec<String>,
    /// What is sent.
    pub body: Vec<u8>,
    /// What `Content-Length` says.
    pub length: usize,
    /// The rest of the body waits here after so many bytes of it.
    pub hold: Option<(usize, Gate)>,
}

impl Answer {
    /// A whole answer.
    #[must_use]
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self {
            status,
            headers: Vec::new(),
            length: body.len(),
            body,
            hold: None,
        }
    }

    /// With a header.
    #[must_use]
    pub fn with(mut self, line: impl Into<String>) -> Self {
        self.headers.push(line.into());
        self
    }

    /// Sends only so many bytes of what it declares.
    #[must_use]
    pub fn cut(mut self, sent: usize) -> Self {
        self.body.truncate(sent);
        self
    }

    /// Stops after so many bytes until the gate is open.
    #[must_use]
    pub fn held(mut self, after: usize, gate: &Gate) -> Self {
        self.hold = Some((after, gate.clone()));
        self
    }
}

/// Something that is waited for.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Lets all go on, those who come later too.
    ///
    /// # Panics
    /// Never: nobody panics with it.
    pub fn open(&self) {
        *self.0.0.lock().expect("nobody panics with it") = true;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let open = self.0.0.lock().expect("nobody panics with it");
        // Who asked may be gone; a thread that waits for ever would outlive its test.
        let limit = Duration::from_secs(300);
        drop(self.0.1.wait_timeout_while(open, limit, |open| !*open));
    }
}

/// An image of bytes.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its config.
    pub config: Vec<u8>,
    /// Its layers, the lowest first.
    pub layers: Vec<Vec<u8>>,
    /// Its manifest.
    pub manifest: Vec<u8>,
}

/// `sha256:` and the digest.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    named(&Sha256::digest(bytes))
}

fn named(digits: &[u8]) -> String {
    let digits: String = digits.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// The digest of what a layer unpacks to; of what cannot be unpacked, its own.
fn diff_id(layer: &[u8]) -> String {
    let mut unpacked: Box<dyn Read> = match layer {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(layer)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => match zstd::Decoder::new(layer) {
            Ok(decoder) => Box::new(decoder),
            Err(_) => return digest(layer),
        },
        _ => Box::new(layer),
    };
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match unpacked.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => hash.update(&buffer[..read]),
            Err(_) => return digest(layer),
        }
    }
    named(&hash.finalize())
}

impl Image {
    /// Of these layers, whatever they are packed with.
    #[must_use]
    pub fn of(layers: Vec<Vec<u8>>) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|layer| diff_id(layer)).collect();
        let config = json!({
            "os": "linux", "architecture": "amd64", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let entry = |kind: &str, bytes: &[u8]| {
            json!({
                "mediaType": format!("application/vnd.oci.image.{kind}"),
                "digest": digest(bytes), "size": bytes.len(),
            })
        };
        let entries = layers.iter().map(|layer| entry("layer.v1.tar+gzip", layer));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": entry("config.v1+json", &config),
            "layers": entries.collect::<Vec<_>>(),
        });
        let manifest = manifest.to_string().into_bytes();
        Self {
            config,
            layers,
            manifest,
        }
    }

    /// What a good registry answers of this image, whatever its tag.
    #[must_use]
    pub fn serve(&self, asked: &Asked) -> Answer {
        let path = asked.path.strip_prefix("/v2/team/app/");
        let mut blobs = self.layers.iter().chain([&self.config]);
        match path.and_then(|path| path.split_once('/')) {
            Some(("manifests", _)) => Answer::new(200, self.manifest.clone()),
            Some(("blobs", name)) => match blobs.find(|blob| digest(blob) == name) {
                Some(blob) => part(blob, asked.from),
                None => Answer::new(404, ""),
            },
            _ => Answer::new(404, ""),
        }
    }

    /// The path of a layer.
    #[must_use]
    pub fn layer_path(&self, number: usize) -> String {
        format!("/v2/team/app/blobs/{}", digest(&self.layers[number]))
    }
}

type Handler = dyn Fn(&Asked) -> Option<Answer> + Send + Sync;

#[derive(Default)]
struct Shelf {
    images: Mutex<BTreeMap<String, Image>>,
    log: Mutex<Vec<Asked>>,
}

/// The server; takes no more requests when it is dropped.
pub struct Toy {
    /// `127.0.0.1:PORT`.
    pub at: String,
    shelf: Arc<Shelf>,
}

impl Toy {
    /// Serves the images that it is given, but for what `other` answers.
    ///
    /// # Panics
    /// When loopback has no port.
    #[must_use]
    pub fn start(other: impl Fn(&Asked) -> Option<Answer> + Send + Sync + 'static) -> Self {
        Self::start_on(Ipv4Addr::LOCALHOST.into(), other)
    }

    /// The same on an address of this host.
    ///
    /// # Panics
    /// When it has no port.
    #[must_use]
    pub fn start_on(
        address: IpAddr,
        other: impl Fn(&Asked) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("it has a free port");
        let at = listener.local_addr().expect("it is bound").to_string();
        let shelf = Arc::new(Shelf::default());
        let weak = Arc::downgrade(&shelf);
        let other: Arc<Handler> = Arc::new(other);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some(shelf) = weak.upgrade() else { return };
                let other = Arc::clone(&other);
                std::thread::spawn(move || answer(stream, &shelf, &*other));
            }
        });
        Self { at, shelf }
    }

    /// Puts an image there, and says what it is called.
    ///
    /// # Panics
    /// Never: nobody panics with the lock.
    pub fn put(&self, tag: &str, image: Image) -> String {
        let mut images = self.shelf.images.lock().expect("nobody panics with it");
        images.insert(tag.to_owned(), image);
        format!("{}/team/app:{tag}", self.at)
    }

    /// The requests for a path.
    ///
    /// # Panics
    /// Never: nobody panics with the lock.
    #[must_use]
    pub fn asked(&self, path: &str) -> Vec<Asked> {
        let log = self.shelf.log.lock().expect("nobody panics with it");
        log.iter().filter(|one| one.path == path).cloned().collect()
    }

    /// Waits until a path was asked for so often.
    ///
    /// # Panics
    /// When that does not come.
    #[track_caller]
    pub fn wait_asked(&self, path: &str, times: usize) {
        wait::until_true(path, Duration::from_secs(60), || {
            self.asked(path).len() >= times
        });
    }
}

impl Drop for Toy {
    fn drop(&mut self) {
        self.shelf = Arc::default();
        let _ = TcpStream::connect(&self.at);
    }
}

fn answer(mut stream: TcpStream, shelf: &Shelf, other: &Handler) {
    let Some(asked) = read(&stream, shelf) else {
        // As every server answers what is no HTTP, TLS above all.
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        let _ = stream.shutdown(Shutdown::Write);
        return;
    };
    let answer = other(&asked).unwrap_or_else(|| shelf.serve(&asked));
    let mut head = format!(
        "HTTP/1.1 {} Toy\r\nConnection: close\r\nContent-Length: {}\r\n",
        answer.status, answer.length
    );
    for line in &answer.headers {
        head += &format!("{line}\r\n");
    }
    head += "\r\n";
    let (first, rest) = match &answer.hold {
        Some((after, _)) => answer.body.split_at(*after),
        None => (&answer.body[..], &[][..]),
    };
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(first);
    if let Some((_, gate)) = &answer.hold {
        gate.pass();
        let _ = stream.write_all(rest);
    }
    // Closing with unread bytes would reset the connection and take what was sent with it.
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

fn read(stream: &TcpStream, shelf: &Shelf) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut from = 0;
    for line in lines {
        let line = line.ok()?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().ok()?;
        }
    }
    let mut log = shelf.log.lock().expect("nobody panics with it");
    let nth = log.iter().filter(|earlier| earlier.path == path).count();
    let asked = Asked { path, from, nth };
    log.push(asked.clone());
    Some(asked)
}

impl Shelf {
    fn serve(&self, asked: &Asked) -> Answer {
        let images = self.images.lock().expect("nobody panics with it");
        match asked.path.strip_prefix("/v2/team/app/manifests/") {
            Some(tag) => match images.get(tag) {
                Some(image) => image.serve(asked),
                None => Answer::new(404, ""),
            },
            None => {
                let mut answers = images.values().map(|image| image.serve(asked));
                let found = answers.find(|answer| answer.status != 404);
                found.unwrap_or_else(|| Answer::new(404, ""))
            }
        }
    }
}

/// The bytes that a request asks for.
#[must_use]
pub fn part(blob: &[u8], from: usize) -> Answer {
    match from {
        0 => Answer::new(200, blob),
        from if from >= blob.len() => Answer::new(416, ""),
        from => Answer::new(206, &blob[from..]).with(format!(
            "Content-Range: bytes {from}-{}/{}",
            blob.len() - 1,
            blob.len()
        )),
    }
}
