//! The daemon's HTTP interface, spoken by hand: what the CLI does not show
//! (codes, statuses) and what it would never send.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// A reply.
#[derive(Debug, Clone)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Its header lines, in small letters.
    pub headers: String,
    /// Its body; null where it is no JSON.
    pub body: Value,
}

impl Reply {
    /// `error.code` of a failure.
    #[must_use]
    pub fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or("")
    }
}

/// Sends one request and reads its whole reply.
///
/// # Panics
/// When the daemon is not there or does not speak HTTP.
#[must_use]
#[track_caller]
pub fn request(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Reply {
    attempt(socket, method, path, body)
        .unwrap_or_else(|| panic!("no reply to {method} {path} at {}", socket.display()))
}

/// As [`request`], of a daemon that may die of it.
#[must_use]
pub fn attempt(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Option<Reply> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .ok()?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: banger\r\nConnection: close\r\n");
    if !body.is_empty() {
        let size = body.len();
        head.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {size}\r\n"
        ));
    }
    head.push_str("\r\n");
    head.push_str(&body);
    stream.write_all(head.as_bytes()).ok()?;
    let mut raw = Vec::new();
    let _ = stream.read_to_end(&mut raw);
    let split = raw.windows(4).position(|w| w == b"\r\n\r\n")?;
    let headers = String::from_utf8_lossy(&raw[..split]).to_lowercase();
    let status = headers.split(' ').nth(1).and_then(|s| s.parse().ok())?;
    let mut content = raw[split + 4..].to_vec();
    if headers.contains("transfer-encoding: chunked") {
        content = unchunk(&content);
    }
    Some(Reply {
        status,
        headers,
        body: serde_json::from_slice(&content).unwrap_or(Value::Null),
    })
}

fn unchunk(mut raw: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = raw.windows(2).position(|w| w == b"\r\n") {
        let size =
            usize::from_str_radix(String::from_utf8_lossy(&raw[..end]).trim(), 16).unwrap_or(0);
        if size == 0 || raw.len() < end + 2 + size {
            break;
        }
        whole.extend_from_slice(&raw[end + 2..end + 2 + size]);
        raw = raw.get(end + 4 + size..).unwrap_or(&[]);
    }
    whole
}
