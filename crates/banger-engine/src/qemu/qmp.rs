//! QEMU's control protocol: lines of JSON over a socket. Speaks the few
//! commands that are needed and listens for how the machine ended, and for
//! writes that the host's disk had no room for. The other side may be taken
//! over by its guest: lines are bounded, and what is not understood is skipped.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot, watch};

/// Longest line that is read, bytes.
pub const LONGEST_LINE: usize = 1 << 20;
/// What a command may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Id of our own question after every stop.
const STATUS_ID: u64 = u64::MAX;
/// Commands waiting to be written.
const WAITING: usize = 16;
/// Longest name of a device that is kept, bytes.
const LONGEST_NAME: usize = 64;
/// What QEMU, in whose environment there is no language, calls a host without
/// room: `ENOSPC` and `EDQUOT`.
const NO_ROOM: [&str; 2] = ["No space left on device", "Disk quota exceeded"];

/// A line that QEMU said.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// It is QEMU; commands may come.
    Greeting,
    /// A command went well.
    Return {
        /// Which.
        id: Option<u64>,
        /// What it answered.
        value: Value,
    },
    /// A command did not.
    Error {
        /// Which.
        id: Option<u64>,
        /// Why.
        description: String,
    },
    /// Something happened.
    Event {
        /// Its name, in capitals.
        name: String,
        /// More about it.
        data: Value,
    },
    /// Nothing we know.
    Other,
}

/// Reads one line.
#[must_use]
pub fn parse(line: &[u8]) -> Message {
    let Ok(Value::Object(mut object)) = serde_json::from_slice(line) else {
        return Message::Other;
    };
    let id = object.get("id").and_then(Value::as_u64);
    if object.contains_key("QMP") {
        return Message::Greeting;
    }
    if let Some(value) = object.remove("return") {
        return Message::Return { id, value };
    }
    if let Some(error) = object.get("error") {
        let description = error
            .get("desc")
            .and_then(Value::as_str)
            .unwrap_or("unknown error");
        return Message::Error {
            id,
            description: description.chars().take(512).collect(),
        };
    }
    if let Some(name) = object.get("event").and_then(Value::as_str) {
        return Message::Event {
            name: name.to_owned(),
            data: object.get("data").cloned().unwrap_or(Value::Null),
        };
    }
    Message::Other
}

/// The drive whose write failed for want of room on the host, where an event
/// says that.
#[must_use]
pub fn full_disk(name: &str, data: &Value) -> Option<String> {
    if name != "BLOCK_IO_ERROR" || data["operation"] != "write" {
        return None;
    }
    // QEMU sets `nospace` only where it would stop the guest for it.
    let known = data["nospace"] == true;
    if !known && !NO_ROOM.iter().any(|reason| data["reason"] == *reason) {
        return None;
    }
    let device = data["device"].as_str().unwrap_or_default();
    (device.len() <= LONGEST_NAME).then(|| device.to_owned())
}

/// A line was longer than [`LONGEST_LINE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line of the control protocol is longer than 1 MiB")]
pub struct TooLong;

/// Cuts bytes into lines as they come.
#[derive(Debug, Default)]
pub struct Lines {
    held: Vec<u8>,
    searched: usize,
}

impl Lines {
    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    ///
    /// # Errors
    /// [`TooLong`]; the stream is of no use then.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let Some(at) = self.held[self.searched..]
            .iter()
            .position(|&byte| byte == b'\n')
        else {
            self.searched = self.held.len();
            return if self.held.len() > LONGEST_LINE {
                Err(TooLong)
            } else {
                Ok(None)
            };
        };
        let end = self.searched + at;
        let mut line: Vec<u8> = self.held.drain(..=end).collect();
        self.searched = 0;
        line.pop();
        if line.len() > LONGEST_LINE {
            Err(TooLong)
        } else {
            Ok(Some(line))
        }
    }
}

/// How QEMU says the machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shutdown {
    pub(crate) by_guest: bool,
    pub(crate) reason: String,
}

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QmpError {
    #[error("the engine's control socket is closed")]
    Closed,
    #[error("the engine refused: {0}")]
    Refused(String),
    #[error("the engine did not answer within {} s", PATIENCE.as_secs())]
    Silent,
}

struct Request {
    command: Value,
    id: u64,
    reply: oneshot::Sender<Result<Value, QmpError>>,
}

/// A conversation with one QEMU. Its driver runs until the socket closes or
/// this and its clones are dropped.
#[derive(Debug)]
pub(crate) struct Qmp {
    requests: mpsc::Sender<Request>,
    next: std::sync::atomic::AtomicU64,
    ended: Arc<Mutex<Option<Shutdown>>>,
    open: watch::Receiver<bool>,
    full: tokio::sync::Mutex<watch::Receiver<String>>,
}

impl Qmp {
    /// The conversation over a connected socket, and what drives it: to be
    /// spawned by the caller.
    pub(crate) fn over<S>(socket: S) -> (Self, impl Future<Output = ()> + Send + 'static)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let (requests, inbox) = mpsc::channel(WAITING);
        let (alive, open) = watch::channel(true);
        let (full, filled) = watch::channel(String::new());
        let ended = Arc::new(Mutex::new(None));
        let qmp = Self {
            requests,
            next: std::sync::atomic::AtomicU64::new(1),
            ended: Arc::clone(&ended),
            open,
            full: tokio::sync::Mutex::new(filled),
        };
        let driver = async move {
            match drive(socket, inbox, &ended, &full).await {
                Ok(()) => {}
                Err(error) => tracing::debug!(%error, "control socket of an engine"),
            }
            drop(alive);
        };
        (qmp, driver)
    }

    /// How the machine ended, if QEMU has said so.
    pub(crate) fn shutdown(&self) -> Option<Shutdown> {
        self.ended
            .lock()
            .expect("nothing panics while it holds this lock")
            .clone()
    }

    /// The next drive whose write found no room on the host. Told once for all
    /// the writes since the last answer; never after the conversation ended.
    pub(crate) async fn disk_full(&self) -> String {
        let mut full = self.full.lock().await;
        match full.changed().await {
            Ok(()) => full.borrow_and_update().clone(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Returns when everything that QEMU ever said was read.
    pub(crate) async fn closed(&self) {
        let mut open = self.open.clone();
        while open.changed().await.is_ok() {}
    }

    /// Runs a command.
    pub(crate) async fn run(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut command = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            command["arguments"] = arguments;
        }
        let (reply, answer) = oneshot::channel();
        let wait = async {
            self.requests
                .send(Request { command, id, reply })
                .await
                .map_err(|_| QmpError::Closed)?;
            answer.await.unwrap_or(Err(QmpError::Closed))
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .unwrap_or(Err(QmpError::Silent))
    }
}

/// The conversation: greeting, negotiation (id 0), then commands and events as
/// they come.
async fn drive<S>(
    socket: S,
    mut inbox: mpsc::Receiver<Request>,
    ended: &Mutex<Option<Shutdown>>,
    full: &watch::Sender<String>,
) -> io::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut from, mut to) = tokio::io::split(socket);
    let mut lines = Lines::default();
    let mut waiting: HashMap<u64, oneshot::Sender<Result<Value, QmpError>>> = HashMap::new();
    let mut ready = false;
    let mut buffer = vec![0; 8 << 10];
    loop {
        tokio::select! {
            got = from.read(&mut buffer) => {
                let got = got?;
                if got == 0 {
                    return Ok(());
                }
                lines.push(&buffer[..got]);
            }
            request = inbox.recv(), if ready => {
                let Some(Request { command, id, reply }) = request else { return Ok(()) };
                // Whoever gave up waiting must not fill the table.
                waiting.retain(|_, reply| !reply.is_closed());
                waiting.insert(id, reply);
                to.write_all(format!("{command}\n").as_bytes()).await?;
            }
        }
        while let Some(line) = lines.next_line().map_err(io::Error::other)? {
            match parse(&line) {
                Message::Greeting if !ready => {
                    to.write_all(b"{\"execute\":\"qmp_capabilities\",\"id\":0}\n")
                        .await?;
                }
                Message::Return { id: Some(0), .. } => {
                    ready = true;
                    to.write_all(&ask_status()).await?;
                }
                // It would stay for ever, frozen, and nobody would know.
                Message::Return {
                    id: Some(STATUS_ID),
                    value,
                } if value["status"] == "internal-error" => {
                    tell(ended, false, "internal-error");
                    to.write_all(b"{\"execute\":\"quit\"}\n").await?;
                }
                Message::Return {
                    id: Some(id),
                    value,
                } => {
                    waiting.remove(&id).map(|reply| reply.send(Ok(value)));
                }
                Message::Error {
                    id: Some(id),
                    description,
                } => {
                    waiting
                        .remove(&id)
                        .map(|reply| reply.send(Err(QmpError::Refused(description))));
                }
                Message::Event { name, .. } if name == "STOP" => {
                    to.write_all(&ask_status()).await?
                }
                Message::Event { name, data } if name == "SHUTDOWN" => {
                    let by_guest = data.get("guest").and_then(Value::as_bool).unwrap_or(false);
                    tell(
                        ended,
                        by_guest,
                        data.get("reason")
                            .and_then(Value::as_str)
                            .unwrap_or("unknown"),
                    );
                }
                Message::Event { name, data } => {
                    if let Some(device) = full_disk(&name, &data) {
                        full.send_replace(device);
                    }
                }
                _ => {}
            }
        }
    }
}

fn ask_status() -> Vec<u8> {
    format!("{{\"execute\":\"query-status\",\"id\":{STATUS_ID}}}\n").into_bytes()
}

/// Keeps the first word about the end: what follows comes of it.
fn tell(ended: &Mutex<Option<Shutdown>>, by_guest: bool, reason: &str) {
    let reason = reason.chars().take(64).collect();
    let mut ended = ended
        .lock()
        .expect("nothing panics while it holds this lock");
    ended.get_or_insert(Shutdown { by_guest, reason });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_make_messages_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let mut lines = Lines::default();
            lines.push(&bytes);
            let mut count = 0;
            while let Ok(Some(line)) = lines.next_line() {
                let _ = parse(&line);
                count += 1;
            }
            prop_assert_eq!(count, bytes.iter().filter(|&&byte| byte == b'\n').count());
        }

        #[test]
        fn lines_are_the_same_wherever_the_stream_is_cut(
            texts in proptest::collection::vec("[^\n]{0,40}", 0..12),
            cuts in proptest::collection::vec(0usize..500, 0..8),
        ) {
            let whole: Vec<u8> = texts.iter().flat_map(|text| format!("{text}\n").into_bytes()).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(whole.len())).collect();
            cuts.extend([0, whole.len()]);
            cuts.sort_unstable();
            let mut lines = Lines::default();
            let mut read = Vec::new();
            for pair in cuts.windows(2) {
                lines.push(&whole[pair[0]..pair[1]]);
                while let Some(line) = lines.next_line().unwrap() {
                    read.push(String::from_utf8(line).unwrap());
                }
            }
            prop_assert_eq!(read, texts);
        }

        #[test]
        fn an_event_is_read_whatever_it_carries(name in "[A-Z_]{1,30}", reason in ".{0,100}", guest: bool) {
            let line = json!({"timestamp": {"seconds": 1}, "event": name, "data": {"guest": guest, "reason": reason}});
            let Message::Event { name: read, data } = parse(line.to_string().as_bytes()) else {
                return Err(TestCaseError::fail("not an event"));
            };
            prop_assert_eq!(read, name);
            prop_assert_eq!(&data["reason"], &json!(reason));
        }
    }

    #[test]
    fn a_line_without_an_end_is_given_up() {
        let mut lines = Lines::default();
        for _ in 0..16 {
            lines.push(&vec![b'x'; LONGEST_LINE / 16]);
            assert_eq!(lines.next_line(), Ok(None));
        }
        lines.push(b"x");
        assert_eq!(lines.next_line(), Err(TooLong));
    }

    #[tokio::test]
    async fn answers_find_their_commands_and_the_end_is_remembered() {
        let (ours, theirs) = tokio::io::duplex(4096);
        let (qmp, driver) = Qmp::over(ours);
        let engine = async move {
            let (from, mut to) = tokio::io::split(theirs);
            to.write_all(b"{\"QMP\": {\"version\": {}}}\r\n")
                .await
                .unwrap();
            let mut commands = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(from));
            let mut next = async || -> Value {
                serde_json::from_str(&commands.next_line().await.unwrap().unwrap()).unwrap()
            };
            assert_eq!(next().await["execute"], "qmp_capabilities");
            to.write_all(b"{\"return\": {}, \"id\": 0}\r\n")
                .await
                .unwrap();
            assert_eq!(next().await["execute"], "query-status");
            to.write_all(
                b"{\"return\": {\"status\": \"running\"}, \"id\": 18446744073709551615}\n",
            )
            .await
            .unwrap();
            let (first, second) = (next().await, next().await);
            for command in [second, first] {
                let answer = if command["execute"] == "stop" {
                    json!({"return": {"done": true}, "id": command["id"]})
                } else {
                    json!({"error": {"class": "GenericError", "desc": "no such drive"}, "id": command["id"]})
                };
                to.write_all(format!("garbage\n{answer}\n").as_bytes())
                    .await
                    .unwrap();
            }
            let event =
                json!({"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}});
            to.write_all(format!("{event}\n").as_bytes()).await.unwrap();
        };
        let asks = async {
            let (stopped, resized) = tokio::join!(
                qmp.run("stop", Value::Null),
                qmp.run("block_resize", json!({"size": 1}))
            );
            assert_eq!(stopped.unwrap(), json!({"done": true}));
            assert!(matches!(resized, Err(QmpError::Refused(why)) if why == "no such drive"));
            qmp.closed().await;
        };
        tokio::join!(driver, engine, asks);
        assert_eq!(
            qmp.shutdown(),
            Some(Shutdown {
                by_guest: true,
                reason: "guest-reset".into()
            })
        );
        assert!(matches!(
            qmp.run("cont", Value::Null).await,
            Err(QmpError::Closed)
        ));
    }

    #[test]
    fn only_a_write_without_room_on_the_host_is_a_full_disk() {
        let event = |operation: &str, reason: &str| {
            let data = json!({"device": "disk2", "operation": operation, "action": "report", "reason": reason});
            full_disk("BLOCK_IO_ERROR", &data)
        };
        for reason in NO_ROOM {
            assert_eq!(event("write", reason), Some("disk2".to_owned()));
            assert_eq!(event("read", reason), None);
        }
        assert_eq!(event("write", "Input/output error"), None);
        let flagged = json!({"device": "disk1", "operation": "write", "nospace": true});
        assert_eq!(
            full_disk("BLOCK_IO_ERROR", &flagged),
            Some("disk1".to_owned())
        );
        assert_eq!(full_disk("BLOCK_JOB_ERROR", &flagged), None);
        let long = json!({"device": "d".repeat(65), "operation": "write", "nospace": true});
        assert_eq!(full_disk("BLOCK_IO_ERROR", &long), None);
    }

    #[tokio::test]
    async fn many_writes_without_room_are_told_once_until_the_next() {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let (qmp, driver) = Qmp::over(ours);
        let event = |device: &str| {
            let data = json!({"device": device, "operation": "write", "reason": "No space left on device"});
            format!("{}\n", json!({"event": "BLOCK_IO_ERROR", "data": data}))
        };
        let engine = async {
            for device in ["disk1", "disk1", "disk2"] {
                theirs.write_all(event(device).as_bytes()).await.unwrap();
            }
            // Read by the driver before anybody asks.
            tokio::task::yield_now().await;
            assert_eq!(qmp.disk_full().await, "disk2");
            theirs.write_all(event("disk1").as_bytes()).await.unwrap();
            assert_eq!(qmp.disk_full().await, "disk1");
            drop(theirs);
            qmp.closed().await;
            let more = tokio::time::timeout(Duration::from_millis(20), qmp.disk_full());
            assert!(more.await.is_err(), "nothing comes after the end");
        };
        tokio::join!(driver, engine);
    }

    #[tokio::test]
    async fn an_engine_that_froze_by_itself_is_ended() {
        let (ours, theirs) = tokio::io::duplex(4096);
        let (qmp, driver) = Qmp::over(ours);
        let engine = async move {
            let (from, mut to) = tokio::io::split(theirs);
            to.write_all(b"{\"QMP\": {}}\n").await.unwrap();
            let mut commands = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(from));
            while let Some(line) = commands.next_line().await.unwrap() {
                let command: Value = serde_json::from_str(&line).unwrap();
                let answer = match command["execute"].as_str().unwrap() {
                    "query-status" => {
                        json!({"return": {"status": "internal-error"}, "id": command["id"]})
                    }
                    "quit" => {
                        json!({"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}})
                    }
                    _ => json!({"return": {}, "id": command["id"]}),
                };
                to.write_all(format!("{answer}\n").as_bytes())
                    .await
                    .unwrap();
                if command["execute"] == "quit" {
                    return;
                }
            }
        };
        tokio::join!(driver, engine);
        assert_eq!(
            qmp.shutdown(),
            Some(Shutdown {
                by_guest: false,
                reason: "internal-error".into()
            })
        );
    }
}
