//! The client of the daemon's API: HTTP/1.1 over its unix socket.
//!
//! Calls are generic over the endpoint table. A connection that is still good
//! is used again; streams (events, logs, exec) get their own. No call has a
//! deadline: a daemon that recovers answers when it is done.

pub(crate) mod events;
pub(crate) mod start;
pub(crate) mod upgrade;

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use banger_api::endpoint::{Endpoint, Method, fill};
use banger_api::error::{Code, Error, ErrorBody};
use banger_api::{MAX_BODY, OP_HEADER};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustix::fs::{Mode, OFlags};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::failure::Failure;
use crate::version;

/// Largest reply that is read whole, bytes.
const MAX_REPLY: usize = 64 << 20;
/// How long an idle connection is trusted; the daemon may close older ones.
const FRESH: Duration = Duration::from_secs(1);

/// A daemon that listens.
pub(crate) struct Client {
    socket: PathBuf,
    idle: Mutex<Option<(Line, Instant)>>,
}

/// One connection, and the task that drives it. Dropping it closes it.
struct Line {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinSet<()>,
}

/// Reference values of a path and its query.
#[derive(Default, Clone, Copy)]
pub(crate) struct At<'a> {
    /// Values of the path's placeholders.
    pub(crate) path: &'a [&'a str],
    /// `key=value` pairs.
    pub(crate) query: &'a [(&'a str, &'a str)],
}

impl<'a> At<'a> {
    /// A path without query.
    pub(crate) fn path(path: &'a [&'a str]) -> Self {
        Self { path, query: &[] }
    }

    /// The request target below `/v1`.
    fn target(self, path: &str) -> String {
        let mut target = fill(path, self.path);
        for (index, (key, value)) in self.query.iter().enumerate() {
            target.push(if index == 0 { '?' } else { '&' });
            target.push_str(key);
            target.push('=');
            for byte in value.bytes() {
                if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                    target.push(char::from(byte));
                } else {
                    target.push_str(&format!("%{byte:02X}"));
                }
            }
        }
        target
    }
}

impl Client {
    /// A client of a socket that listens, with a first connection to it.
    async fn of(socket: PathBuf, stream: UnixStream) -> Result<Self, Failure> {
        let client = Self {
            socket,
            idle: Mutex::new(None),
        };
        client.keep(client.converse(stream).await?);
        Ok(client)
    }

    /// Where the daemon listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Calls an endpoint and reads its reply.
    pub(crate) async fn call<E: Endpoint>(
        &self,
        path: &[&str],
        request: &E::Request,
    ) -> Result<E::Reply, Failure> {
        let body = self.body::<E>(At::path(path), request).await?;
        read_json(&body)
    }

    /// Calls an endpoint without a request body and with a query.
    pub(crate) async fn get<E: Endpoint<Request = banger_api::Empty>>(
        &self,
        at: At<'_>,
    ) -> Result<E::Reply, Failure> {
        let body = self.body::<E>(at, &banger_api::Empty {}).await?;
        read_json(&body)
    }

    /// Calls an endpoint and gives its reply as the daemon wrote it.
    pub(crate) async fn body<E: Endpoint>(
        &self,
        at: At<'_>,
        request: &E::Request,
    ) -> Result<Bytes, Failure> {
        let body = match E::METHOD {
            Method::Get | Method::Delete => Bytes::new(),
            Method::Post | Method::Patch => encode(request)?,
        };
        let request = self.request(E::METHOD.name(), &at.target(E::PATH), body);
        let mut line = self.line().await?;
        let reply = self.send(&mut line, request).await?;
        let body = read_body(checked(reply).await?).await?;
        self.keep(line);
        Ok(body)
    }

    /// Asks for a reply that is read as it comes, on a connection of its own.
    async fn open_stream(
        &self,
        at: At<'_>,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<(Incoming, JoinSet<()>), Failure> {
        let mut request = self.request("GET", &at.target(path), Bytes::new());
        for (name, value) in headers {
            if let Ok(value) = http::HeaderValue::from_str(value) {
                request.headers_mut().insert(*name, value);
            }
        }
        let mut line = self.line().await?;
        let reply = self.send(&mut line, request).await?;
        let reply = checked(reply).await?;
        Ok((reply.into_body(), line.driver))
    }

    /// The text of a reply, piece by piece.
    pub(crate) async fn text(&self, at: At<'_>, path: &str) -> Result<Text, Failure> {
        let (body, driver) = self.open_stream(at, path, &[]).await?;
        Ok(Text {
            body,
            _driver: driver,
        })
    }

    fn request(&self, method: &str, target: &str, body: Bytes) -> Request<Full<Bytes>> {
        let mut builder = Request::builder()
            .method(method)
            .uri(target)
            .header(http::header::HOST, "bangerd")
            .header(version::HEADER, version::id());
        if !body.is_empty() {
            builder = builder.header(http::header::CONTENT_TYPE, "application/json");
        }
        builder
            .body(Full::new(body))
            .expect("method, target and headers are plain ASCII")
    }

    /// A connection nobody uses: the one left over, else a new one.
    async fn line(&self) -> Result<Line, Failure> {
        if let Some(mut line) = self.take_idle()
            && line.sender.ready().await.is_ok()
        {
            return Ok(line);
        }
        let stream = connect(&self.socket)
            .await
            .map_err(|error| self.lost("cannot connect to", &error))?;
        self.converse(stream).await
    }

    async fn converse(&self, stream: UnixStream) -> Result<Line, Failure> {
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.lost("cannot speak to", &error))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // Whoever waits on the sender learns of the failure.
            let _ = connection.with_upgrades().await;
        });
        Ok(Line { sender, driver })
    }

    async fn send(
        &self,
        line: &mut Line,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Failure> {
        line.sender
            .send_request(request)
            .await
            .map_err(|error| self.lost("lost the connection to", &error))
    }

    fn lost(&self, what: &str, error: &dyn std::error::Error) -> Failure {
        Failure::new(
            Code::DaemonUnreachable,
            format!("{what} bangerd at {}", self.socket.display()),
        )
        .because(error)
        .hint("banger daemon logs")
    }

    fn take_idle(&self) -> Option<Line> {
        let (line, since) = self.idle.lock().ok()?.take()?;
        (since.elapsed() < FRESH && !line.sender.is_closed()).then_some(line)
    }

    fn keep(&self, line: Line) {
        if let Ok(mut idle) = self.idle.lock() {
            *idle = Some((line, Instant::now()));
        }
    }
}

/// Longest path that fits a socket address, bytes.
const LONGEST: usize = 107;

/// Connects to a socket, though its path may be longer than an address holds:
/// then by way of its directory's descriptor.
async fn connect(path: &Path) -> io::Result<UnixStream> {
    let (directory, name) = match (path.parent(), path.file_name()) {
        (Some(directory), Some(name)) if path.as_os_str().len() > LONGEST => (directory, name),
        _ => return UnixStream::connect(path).await,
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    let short = format!("/proc/self/fd/{}", directory.as_raw_fd());
    UnixStream::connect(Path::new(&short).join(name)).await
}

/// A reply read as it comes.
pub(crate) struct Text {
    body: Incoming,
    _driver: JoinSet<()>,
}

impl Text {
    /// The next bytes; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => return Err(broken_off(&error)),
            }
        }
    }
}

fn broken_off(error: &dyn std::error::Error) -> Failure {
    Failure::new(Code::DaemonUnreachable, "the answer of bangerd broke off").because(error)
}

fn encode<T: serde::Serialize>(request: &T) -> Result<Bytes, Failure> {
    let body = serde_json::to_vec(request).expect("requests are plain JSON");
    if body.len() > MAX_BODY {
        return Err(Failure::new(
            Code::TooLarge,
            "the request is larger than 8 MiB",
        ));
    }
    Ok(body.into())
}

fn read_json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        Failure::new(Code::Internal, "cannot read the answer of bangerd")
            .because(&error)
            .hint("banger daemon restart")
    })
}

async fn read_body(reply: Response<Incoming>) -> Result<Bytes, Failure> {
    match Limited::new(reply.into_body(), MAX_REPLY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => Err(broken_off(error.as_ref())),
    }
}

/// Turns a reply that failed into its failure.
async fn checked(reply: Response<Incoming>) -> Result<Response<Incoming>, Failure> {
    let status = reply.status();
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(reply);
    }
    let op_id = reply
        .headers()
        .get(OP_HEADER)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let body = read_body(reply).await?;
    let mut error = serde_json::from_slice::<ErrorBody>(&body).map_or_else(
        |_| Error {
            code: Code::Internal,
            message: format!("bangerd answered {status}"),
            hint: None,
            op_id: String::new(),
            causes: Vec::new(),
        },
        |body| body.error,
    );
    if error.op_id.is_empty() {
        error.op_id = op_id;
    }
    Err(Failure::of(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_and_queries_are_percent_encoded() {
        let at = At {
            path: &["a/b"],
            query: &[("vm", "x&y"), ("since", "2026-01-01T00:00:00Z")],
        };
        assert_eq!(
            at.target("/vms/{vm}"),
            "/v1/vms/a%2Fb?vm=x%26y&since=2026-01-01T00%3A00%3A00Z"
        );
    }
}
