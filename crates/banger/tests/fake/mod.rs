//! A daemon that answers as a test tells it to: one thread per connection,
//! HTTP/1.1 over a unix socket. The real one has its own tests; this one can
//! fail, stall and lie on demand.

#![allow(dead_code, reason = "every test file uses its own part")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use banger_wire::frames::{Channel, Control, Decoder, Frame};
use serde_json::{Value, json};

/// 64 hex digits that name the VM of most tests.
pub(crate) const ID: &str = "3f2a000000000000000000000000000000000000000000000000000000000001";

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) body: Value,
}

impl Request {
    /// `POST /v1/vms`.
    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }
}

/// What to answer.
pub(crate) enum Answer {
    Json(u16, Value),
    Events(Vec<(&'static str, Value)>),
    Text(&'static str),
    /// Text of which more might come, until the client has left.
    Endless(String),
    /// The connection after a 101.
    Upgrade(Box<dyn FnOnce(Frames) + Send>),
    /// Nothing, and the connection is closed.
    Silence,
}

/// The daemon's end of a stream of frames.
pub(crate) struct Frames {
    pub(crate) stream: UnixStream,
    decoder: Decoder,
}

impl Frames {
    pub(crate) fn send(&mut self, frame: Frame) -> std::io::Result<()> {
        self.stream.write_all(&frame.to_bytes())
    }

    pub(crate) fn out(&mut self, bytes: &[u8]) {
        self.send(Frame::new(Channel::Stdout, bytes.to_vec()))
            .unwrap();
    }

    pub(crate) fn exit(&mut self, exit_code: i32) {
        self.send(Control::Exit { exit_code }.frame()).unwrap();
    }

    /// The next frame of the client; `None` when it has closed its side.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            let mut buffer = [0; 65536];
            match self.stream.read(&mut buffer) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.decoder.push(&buffer[..count]),
            }
        }
    }

    /// The next control message.
    pub(crate) fn control(&mut self) -> Option<Control> {
        loop {
            let frame = self.next()?;
            if frame.channel == Channel::Control {
                return Some(frame.control().unwrap());
            }
        }
    }

    /// All standard input up to its end.
    pub(crate) fn stdin(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(frame) = self.next() {
            match frame.channel {
                Channel::Stdin => all.extend_from_slice(&frame.payload),
                _ if frame.control() == Ok(Control::Eof) => break,
                _ => {}
            }
        }
        all
    }
}

/// The daemon.
pub(crate) struct Fake {
    pub(crate) home: tempfile::TempDir,
    pub(crate) socket: PathBuf,
    seen: Arc<Mutex<Vec<Request>>>,
    /// What ping answers; `pid` is added.
    pub(crate) ping: Arc<Mutex<Value>>,
}

type Handler = dyn Fn(&Request) -> Answer + Send + Sync;

impl Fake {
    /// A daemon with this answer to everything but ping.
    pub(crate) fn new(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let home = tempfile::tempdir().unwrap();
        let socket = home.path().join("fake.sock");
        Self::at(home, socket, handler)
    }

    pub(crate) fn at(
        home: tempfile::TempDir,
        socket: PathBuf,
        handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = UnixListener::bind(&socket).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let handler: Arc<Handler> = Arc::new(handler);
        let shared = Arc::clone(&seen);
        let ping = Arc::new(Mutex::new(json!({"status": "ok", "idle": false})));
        let shared_ping = Arc::clone(&ping);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (handler, seen) = (Arc::clone(&handler), Arc::clone(&shared));
                let ping = Arc::clone(&shared_ping);
                std::thread::spawn(move || {
                    let _ = serve(stream, &*handler, &seen, &ping);
                });
            }
        });
        Self {
            home,
            socket,
            seen,
            ping,
        }
    }

    /// Requests so far, without pings.
    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.seen().iter().map(Request::line).collect()
    }

    /// The body of the last request with this line.
    pub(crate) fn last(&self, line: &str) -> Value {
        let seen = self.seen();
        let found = seen.iter().rfind(|request| request.line() == line);
        found
            .unwrap_or_else(|| panic!("no {line} in {:?}", self.lines()))
            .body
            .clone()
    }

    /// The body of the request with this line.
    pub(crate) fn body(&self, line: &str) -> Value {
        let seen = self.seen();
        let found = seen.iter().find(|request| request.line() == line);
        found
            .unwrap_or_else(|| panic!("no {line} in {:?}", self.lines()))
            .body
            .clone()
    }

    /// The CLI, at this daemon.
    pub(crate) fn banger(&self, arguments: &[&str]) -> Command {
        let mut command = banger(self.home.path(), arguments);
        command.env("BANGER_SOCKET", &self.socket);
        command
    }

    /// Runs the CLI to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(
            &self
                .banger(arguments)
                .stdin(Stdio::null())
                .output()
                .unwrap(),
        )
    }
}

/// The CLI in a home of its own, which never finds a daemon to start.
pub(crate) fn banger(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_banger"));
    command
        .args(arguments)
        .env_clear()
        .env("HOME", home)
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("TERM", "xterm")
        .env("XDG_RUNTIME_DIR", home)
        .env("XDG_STATE_HOME", home.join("state"))
        .env("BANGER_DAEMON", home.join("no-such-bangerd"));
    command
}

/// How the CLI ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn of(output: &Output) -> Self {
        Self {
            status: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn serve(
    stream: UnixStream,
    handler: &Handler,
    seen: &Mutex<Vec<Request>>,
    ping: &Mutex<Value>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut head = String::new();
        let mut length = 0;
        let mut first = String::new();
        while reader.read_line(&mut head)? > 2 {
            if first.is_empty() {
                first.clone_from(&head);
            }
            if let Some(value) = head.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            head.clear();
        }
        let mut words = first.split_whitespace();
        let (Some(method), Some(target)) = (words.next(), words.next()) else {
            return Ok(());
        };
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let request = Request {
            method: method.to_owned(),
            target: target.to_owned(),
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        };
        let answer = if target == "/v1/ping" {
            let mut answer = ping.lock().unwrap().clone();
            answer["pid"] = std::process::id().into();
            Answer::Json(200, answer)
        } else {
            seen.lock().unwrap().push(request.clone());
            handler(&request)
        };
        match answer {
            Answer::Silence => return Ok(()),
            Answer::Json(status, value) => {
                let text = value.to_string();
                write!(
                    writer,
                    "HTTP/1.1 {status} X\r\nbanger-op: op-feedfeedfeed\r\ncontent-length: {}\r\n\r\n{text}",
                    text.len()
                )?;
            }
            Answer::Text(text) => {
                write!(writer, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{text}")?;
                return Ok(());
            }
            Answer::Endless(text) => {
                write!(writer, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{text}")?;
                let _ = reader.read_to_end(&mut Vec::new());
                return Ok(());
            }
            Answer::Events(events) => {
                write!(
                    writer,
                    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
                )?;
                for (index, (name, data)) in events.into_iter().enumerate() {
                    write!(writer, "id: {index}\nevent: {name}\ndata: {data}\n\n")?;
                }
                return Ok(());
            }
            Answer::Upgrade(talk) => {
                write!(
                    writer,
                    "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: banger-stream\r\n\r\n"
                )?;
                talk(Frames {
                    stream: writer,
                    decoder: Decoder::new(),
                });
                return Ok(());
            }
        }
    }
}

/// An exec whose stream this function serves.
pub(crate) fn upgrade(talk: impl FnOnce(Frames) + Send + 'static) -> Answer {
    Answer::Upgrade(Box::new(talk))
}

/// An error reply.
pub(crate) fn error(status: u16, code: &str, message: &str) -> Answer {
    Answer::Json(
        status,
        json!({"error": {"code": code, "message": message, "op_id": "op-0123456789ab", "causes": []}}),
    )
}

/// An operation that is not done.
pub(crate) fn begun(name: &str) -> Value {
    json!({"operation": {
        "id": "op-000000000001", "kind": "vm.create", "vm_id": ID, "vm_name": name,
        "started_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        "done": false, "success": false,
    }})
}

/// The same, done.
pub(crate) fn done(name: &str) -> Value {
    let mut operation = begun(name);
    operation["operation"]["done"] = true.into();
    operation["operation"]["success"] = true.into();
    operation["operation"]["timings"] = json!([{"stage": "boot_kernel", "ms": 1.5}]);
    operation
}

/// The same, failed.
pub(crate) fn failed(name: &str, code: &str, message: &str) -> Value {
    let mut operation = begun(name);
    operation["operation"]["done"] = true.into();
    operation["operation"]["error"] = message.into();
    operation["operation"]["error_code"] = code.into();
    operation["operation"]["hint"] = "banger logs box; banger rm box".into();
    operation
}

/// A VM as `GET /vms/{vm}` has it.
pub(crate) fn vm(id: &str, name: &str, state: &str) -> Value {
    json!({
        "id": id, "name": name, "image_id": "ab".repeat(32), "state": state,
        "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        "last_touched_at": "2026-01-01T00:00:00Z",
        "spec": {"vcpu_count": 2, "memory_mib": 2048, "system_overlay_size_bytes": 8_589_934_592u64,
            "work_disk_size_bytes": 8_589_934_592u64, "nat_enabled": false, "network_mode": "none",
            "engine": "auto", "auto_remove": false},
        "runtime": {"state": state, "guest_ip": "", "vm_dir": "/v", "system_overlay_path": "/v/o",
            "work_disk_path": "/v/w", "goal": if state == "running" { "up" } else { "down" }},
        "stats": {},
    })
}
