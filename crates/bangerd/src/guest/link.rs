//! HTTP/2 over one line, we as the client: the connection's driver, and calls
//! with bounded answers.

use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};

use banger_wire::agent::{
    CONNECTION_WINDOW, MAX_ANSWER, MAX_FRAME, MAX_STREAMS, Refusal, STREAM_WINDOW,
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Why a body of ours ended before its end.
pub(super) type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// What we send.
pub(super) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Bytes of a request that may wait in memory for the guest's window.
const SEND_BUFFER: usize = 256 << 10;

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The connection, or this stream of it, broke.
    #[error("the connection to the agent is lost")]
    Lost(#[source] BodyError),
    /// The agent said no.
    #[error("the agent refused: {message}")]
    Refused {
        /// Of HTTP.
        status: u16,
        /// Its reason.
        message: String,
    },
    /// More than we read.
    #[error("the agent's answer is larger than {MAX_ANSWER} bytes")]
    TooLarge,
    /// Not what was asked for.
    #[error("the agent's answer cannot be read")]
    Unreadable(#[source] serde_json::Error),
}

/// The tasks of one connection, which end with it.
#[derive(Clone)]
struct Tasks(Weak<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        // Gone with its connection otherwise.
        if let Some(tasks) = self.0.upgrade() {
            spawn(&tasks, task);
        }
    }
}

fn spawn(tasks: &Mutex<JoinSet<()>>, task: impl Future<Output = ()> + Send + 'static) {
    let mut tasks = tasks
        .lock()
        .expect("nothing panics while it holds this lock");
    // Those that ended are let go here, so that only the living take memory.
    while tasks.try_join_next().is_some() {}
    tasks.spawn(task);
}

/// A connection to an agent. Dropped, it closes.
pub(super) struct Link {
    sender: SendRequest<Body>,
    tasks: Arc<Mutex<JoinSet<()>>>,
    /// Closed when the connection is.
    alive: watch::Receiver<()>,
}

impl Link {
    /// Begins HTTP/2 on a line after its hello.
    pub(super) async fn over<S>(stream: S) -> Result<Self, hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let tasks = Arc::new(Mutex::new(JoinSet::new()));
        // With the library's own windows, three streams that nobody reads stop
        // all the others.
        let (sender, driver) = Builder::new(Tasks(Arc::downgrade(&tasks)))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(MAX_STREAMS as usize)
            .max_concurrent_reset_streams(MAX_STREAMS as usize)
            .max_frame_size(MAX_FRAME)
            .max_send_buf_size(SEND_BUFFER)
            .handshake(TokioIo::new(stream))
            .await?;
        let (living, alive) = watch::channel(());
        spawn(&tasks, async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "connection to an agent");
            }
            drop(living);
        });
        Ok(Self {
            sender,
            tasks,
            alive,
        })
    }

    /// Closes it at once, whoever holds it.
    pub(super) fn close(&self) {
        self.tasks
            .lock()
            .expect("nothing panics while it holds this lock")
            .abort_all();
    }

    /// Returns when the connection is lost.
    pub(super) async fn lost(&self) {
        let mut alive = self.alive.clone();
        while alive.changed().await.is_ok() {}
    }

    /// Runs a task that ends with the connection.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        spawn(&self.tasks, task);
    }

    /// A call with a JSON answer.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, CallError> {
        let response = self.send(method, path, json(body)).await?;
        let bytes = collect(response.into_body()).await?;
        serde_json::from_slice(&bytes).map_err(CallError::Unreadable)
    }

    /// A `POST` whose answer is only that it went well.
    pub(super) async fn tell(
        &self,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(), CallError> {
        let response = self.send(Method::POST, path, json(body)).await?;
        collect(response.into_body()).await.map(drop)
    }

    /// A `GET` whose answer goes on.
    pub(super) async fn listen(&self, path: &str) -> Result<Incoming, CallError> {
        let response = self.send(Method::GET, path, json(None::<&()>)).await?;
        Ok(response.into_body())
    }

    /// Any request; an answer that is not a success is read to its reason.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<Incoming>, CallError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://agent{path}"))
            .body(body)
            .expect("method and path are fixed words");
        let mut sender = self.sender.clone();
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| CallError::Lost(error.into()))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = collect(response.into_body()).await?;
        Err(CallError::Refused {
            status: status.as_u16(),
            message: refusal(status, &bytes),
        })
    }
}

/// The agent's reason, fit to be shown: it comes from the guest.
fn refusal(status: StatusCode, bytes: &[u8]) -> String {
    match serde_json::from_slice::<Refusal>(bytes) {
        Ok(refusal) => refusal
            .error
            .chars()
            .take(2000)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect(),
        Err(_) => status.to_string(),
    }
}

pub(super) fn json(body: Option<&impl Serialize>) -> Body {
    match body {
        Some(body) => {
            let bytes = serde_json::to_vec(body).expect("requests are plain JSON");
            Full::from(bytes).map_err(Into::into).boxed_unsync()
        }
        None => Empty::new().map_err(Into::into).boxed_unsync(),
    }
}

async fn collect(body: Incoming) -> Result<Bytes, CallError> {
    let collected = Limited::new(body, MAX_ANSWER).collect();
    match Pin::from(Box::new(collected)).await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(CallError::TooLarge),
        Err(error) => Err(CallError::Lost(error)),
    }
}
