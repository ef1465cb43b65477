//! The line to the daemon: finding the port, and turning its one byte stream
//! into one connection at a time.
//!
//! ```text
//! port ─► scanner ─► data ──► duplex ─► HTTP/2 of the current connection
//!             └───► opening: old connection dropped, hello answered, new one
//! ```
//!
//! The port stays open for the machine's life; whether the daemon is there is
//! only seen by what arrives. Refuses everything before the first hello.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use banger_wire::agent::PORT_NAME;
use banger_wire::hello::{Answer, Found, NONCE_LEN, Scanner, VERSION};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, inotify, open};
use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::edge::Edge;

/// Bytes taken from the port before the connection must have them.
const INBOX: usize = 256 << 10;
/// Bytes of one round of reading or writing.
const ROUND: usize = 128 << 10;
/// Bytes the in-memory pipe to HTTP/2 holds, each way.
const DUPLEX: usize = 256 << 10;
/// How long to wait for the port to appear, before asking again.
const ASK_AGAIN_MS: i64 = 10;
/// How often to ask before giving up: ten seconds.
const ASK_AT_MOST: u32 = 1000;

/// Why there is no line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    /// No port of our name.
    #[error("no virtio-serial port is named {PORT_NAME}")]
    Missing,
    /// The port is there and does not open.
    #[error("cannot open {0}")]
    Open(PathBuf, #[source] io::Error),
    /// The port is open and cannot be used.
    #[error("cannot wait for the port")]
    Wait(#[source] io::Error),
}

/// Opens the port, waiting until its driver has made it.
pub(crate) fn open_port() -> Result<OwnedFd, LineError> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .and_then(|watch| {
            let made = inotify::WatchFlags::CREATE | inotify::WatchFlags::ATTRIB;
            inotify::add_watch(&watch, "/dev", made).map(|_| watch)
        })
        .map_err(|error| LineError::Wait(error.into()))?;
    let mut last = LineError::Missing;
    for _ in 0..ASK_AT_MOST {
        if let Some(path) = find_port(Path::new("/sys/class/virtio-ports")) {
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            match open(&path, flags, Mode::empty()) {
                Ok(port) => return Ok(port),
                // The node is older than the driver's port behind it.
                Err(error @ (Errno::NXIO | Errno::NOENT | Errno::NODEV)) => {
                    last = LineError::Open(path, error.into());
                }
                Err(error) => return Err(LineError::Open(path, error.into())),
            }
        }
        // The name is set a moment after the node is made and the driver is
        // ready later still: no event tells that, hence the time limit.
        let limit = Timespec {
            tv_sec: 0,
            tv_nsec: ASK_AGAIN_MS * 1_000_000,
        };
        let _ = poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&limit));
        let _ = rustix::io::read(&watch, &mut [0; 4096]);
    }
    Err(last)
}

/// The device node of the port with our name.
fn find_port(class: &Path) -> Option<PathBuf> {
    fs::read_dir(class).ok()?.flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        (name.trim() == PORT_NAME).then(|| Path::new("/dev").join(entry.file_name()))
    })
}

/// What takes the connections of the line, one at a time. Dropping the guard
/// that `open` gave must end the connection.
pub(crate) trait Serve {
    /// Holds one connection.
    type Guard;
    /// Begins a connection on this stream.
    fn open(&self, stream: DuplexStream) -> Self::Guard;
}

/// Serves the line for ever; returns only when the port itself fails.
///
/// # Errors
/// That of reading or writing the port.
pub(crate) async fn serve<S: Serve>(
    port: OwnedFd,
    boot_id: [u8; 16],
    connections: &S,
) -> Result<(), LineError> {
    let port = Edge::new(port).map_err(LineError::Wait)?;
    let mut line = Line {
        port,
        scanner: Scanner::new(),
        inbox: VecDeque::new(),
        inbox_bytes: 0,
        outbox: Vec::new(),
        sent: 0,
        buffer: vec![0; ROUND],
        connection: None,
        boot_id,
    };
    line.run(connections).await.map_err(LineError::Wait)
}

struct Connection<G> {
    stream: DuplexStream,
    _guard: G,
}

struct Line<G> {
    port: Edge,
    scanner: Scanner,
    /// Bytes for the connection, at most about [`INBOX`].
    inbox: VecDeque<Vec<u8>>,
    inbox_bytes: usize,
    /// Bytes for the port, `sent` of them written.
    outbox: Vec<u8>,
    sent: usize,
    buffer: Vec<u8>,
    connection: Option<Connection<G>>,
    boot_id: [u8; 16],
}

impl<G> Line<G> {
    async fn run<S: Serve<Guard = G>>(&mut self, connections: &S) -> io::Result<()> {
        loop {
            // Both directions as far as they go, so that the next edge is news.
            let read_all = self.read_port(connections)?;
            let wrote_all = self.write_port()?;
            let mut out = std::mem::take(&mut self.buffer);
            let step = match &mut self.connection {
                None => {
                    self.port.changed().await?;
                    Step::Nothing
                }
                Some(connection) => {
                    let (mut from, mut to) = tokio::io::split(&mut connection.stream);
                    tokio::select! {
                        // With room left and the port read dry, wait for the port.
                        changed = self.port.changed(), if read_all || !wrote_all => {
                            changed?;
                            Step::Nothing
                        }
                        wrote = write_front(&mut to, &self.inbox), if !self.inbox.is_empty() => {
                            wrote.map_or(Step::Closed, Step::Took)
                        }
                        read = from.read(&mut out), if wrote_all => match read {
                            Ok(0) | Err(_) => Step::Closed,
                            Ok(count) => Step::Gave(count),
                        },
                    }
                }
            };
            self.buffer = out;
            match step {
                Step::Nothing => {}
                Step::Took(count) => self.took(count),
                Step::Gave(count) => {
                    self.outbox.clear();
                    self.outbox.extend_from_slice(&self.buffer[..count]);
                    self.sent = 0;
                }
                // HTTP/2 ended by itself, after an error or a farewell: the
                // daemon opens a new connection when it wants one.
                Step::Closed => self.drop_connection(),
            }
        }
    }

    /// Reads until the port is dry (true) or the inbox is full (false).
    fn read_port<S: Serve<Guard = G>>(&mut self, connections: &S) -> io::Result<bool> {
        while self.inbox_bytes < INBOX {
            let count = match rustix::io::read(&self.port, &mut self.buffer) {
                // Nobody on the other end: the next edge tells.
                Ok(0) | Err(Errno::AGAIN) => return Ok(true),
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for found in self.scanner.push(&self.buffer[..count]) {
                match found {
                    Found::Data(bytes) if self.connection.is_some() => {
                        self.inbox_bytes += bytes.len();
                        self.inbox.push_back(bytes);
                    }
                    // Left over from a connection that we ended.
                    Found::Data(_) => {}
                    Found::Opened(nonce) => self.open(nonce, connections),
                }
            }
        }
        Ok(false)
    }

    /// Writes the outbox; true when all of it is gone.
    fn write_port(&mut self) -> io::Result<bool> {
        while self.sent < self.outbox.len() {
            match rustix::io::write(&self.port, &self.outbox[self.sent..]) {
                Ok(count) => self.sent += count,
                // Full, or nobody on the other end.
                Err(Errno::AGAIN | Errno::PIPE) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    fn open<S: Serve<Guard = G>>(&mut self, nonce: [u8; NONCE_LEN], connections: &S) {
        self.drop_connection();
        let answer = Answer {
            version: VERSION,
            boot_id: self.boot_id,
            nonce,
        };
        self.outbox = answer.encode().to_vec();
        self.sent = 0;
        let (ours, theirs) = tokio::io::duplex(DUPLEX);
        self.connection = Some(Connection {
            stream: ours,
            _guard: connections.open(theirs),
        });
    }

    fn drop_connection(&mut self) {
        self.connection = None;
        self.inbox.clear();
        self.inbox_bytes = 0;
    }

    fn took(&mut self, count: usize) {
        self.inbox_bytes -= count;
        if let Some(front) = self.inbox.front_mut() {
            if front.len() == count {
                self.inbox.pop_front();
            } else {
                front.drain(..count);
            }
        }
    }
}

enum Step {
    Nothing,
    Took(usize),
    Gave(usize),
    Closed,
}

async fn write_front(
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    inbox: &VecDeque<Vec<u8>>,
) -> io::Result<usize> {
    match inbox.front() {
        Some(front) => to.write(front).await,
        None => Ok(0),
    }
}
