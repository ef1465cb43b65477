//! The HTTP/2 end of one connection, and the routes. Translates between the
//! wire and the agent; decides nothing.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use banger_wire::agent::{
    Boot, CONNECTION_WINDOW, Clock, Event, MAX_FRAME, MAX_STREAMS, Pong, RESERVED_STREAMS, Refusal,
    STREAM_WINDOW, Stop,
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::agent::{Agent, Refused};
use crate::boot::identity;
use crate::{exec, line};

/// Largest JSON body, bytes.
const MAX_BODY: usize = 1 << 20;
/// Bytes that HTTP/2 holds of one answer that is not taken.
const SEND_BUFFER: usize = 128 << 10;
/// Commands at once.
const MAX_COMMANDS: usize = (MAX_STREAMS - RESERVED_STREAMS) as usize;
/// Streams that may be cancelled before they were looked at, before the
/// connection is taken for an attack. The only peer is the daemon, and a
/// client of its that dies may take all its streams along.
const MAX_CANCELLED: usize = MAX_STREAMS as usize;

/// Makes connections of the line.
pub(crate) struct Connections {
    agent: Arc<Agent>,
}

impl Connections {
    pub(crate) fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }
}

impl line::Serve for Connections {
    type Guard = Guard;

    fn open(&self, stream: DuplexStream) -> Guard {
        let streams = Streams::default();
        let agent = Arc::clone(&self.agent);
        let service = service_fn(move |request| {
            let agent = Arc::clone(&agent);
            async move { Ok::<_, Infallible>(answer(&agent, request).await) }
        });
        let connection = hyper::server::conn::http2::Builder::new(streams.clone())
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_send_buf_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(MAX_CANCELLED)
            .max_local_error_reset_streams(None::<usize>)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(stream), service);
        let mut task = JoinSet::new();
        task.spawn(async move {
            // A connection ends by the next one, or with an error that the
            // daemon sees as well.
            let _ = connection.await;
        });
        Guard {
            _connection: task,
            streams,
        }
    }
}

/// A connection; all its streams end when it is dropped. What a command's
/// stream stands for goes on in the agent.
pub(crate) struct Guard {
    _connection: JoinSet<()>,
    streams: Streams,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Taken out, since the tasks hold the set that holds them.
        drop(std::mem::take(&mut *self.streams.lock()));
    }
}

/// Where a connection's streams run.
#[derive(Clone, Default)]
struct Streams {
    tasks: Arc<Mutex<JoinSet<()>>>,
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let mut tasks = self.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(stream);
    }
}

/// A body that is whole, or comes over a channel.
pub(crate) enum Answer {
    Whole(Option<Bytes>),
    Stream(mpsc::Receiver<Bytes>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take()),
            Self::Stream(receiver) => receiver.poll_recv(context),
        };
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }
}

/// Why a request gets no answer of its own.
enum Failure {
    Status(StatusCode, String),
    Refused(Refused),
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl Failure {
    fn bad(error: impl ToString) -> Self {
        Self::Status(StatusCode::BAD_REQUEST, error.to_string())
    }

    fn internal(error: impl ToString) -> Self {
        Self::Status(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }

    fn response(self) -> Response<Answer> {
        let (status, error) = match self {
            Self::Status(status, error) => (status, error),
            Self::Refused(refused) => {
                let status = match refused {
                    Refused::Booted | Refused::NotBooted | Refused::Stopping => {
                        StatusCode::CONFLICT
                    }
                    Refused::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
                    Refused::TooMany => StatusCode::TOO_MANY_REQUESTS,
                };
                (status, refused.to_string())
            }
        };
        json(status, &Refusal { error })
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Answer> {
    let bytes = serde_json::to_vec(value).expect("answers are plain JSON");
    with(status, Answer::Whole(Some(bytes.into())))
}

fn empty(status: StatusCode) -> Response<Answer> {
    with(status, Answer::Whole(None))
}

fn with(status: StatusCode, body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

async fn answer(agent: &Arc<Agent>, request: Request<Incoming>) -> Response<Answer> {
    route(agent, request)
        .await
        .unwrap_or_else(Failure::response)
}

async fn route(
    agent: &Arc<Agent>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Failure> {
    let path = request.uri().path().to_owned();
    match (request.method().clone(), path.as_str()) {
        (Method::POST, "/boot") => {
            let boot: Boot = read(request.into_body()).await?;
            Ok(json(StatusCode::OK, &agent.boot(boot).await?))
        }
        (Method::POST, "/exec") => {
            let alive = agent.admit(MAX_COMMANDS)?;
            // One frame on the way: more would only be memory.
            let (to, frames) = mpsc::channel(1);
            let session = exec::serve(Arc::clone(agent), request.into_body(), alive, to);
            agent.tasks.spawn(session);
            Ok(with(StatusCode::OK, Answer::Stream(frames)))
        }
        (Method::GET, "/health") => Ok(json(StatusCode::OK, &agent.health())),
        (Method::GET, "/ping") => Ok(json(
            StatusCode::OK,
            &Pong {
                agent_version: env!("CARGO_PKG_VERSION").to_owned(),
                commands: u32::try_from(agent.commands_alive()).unwrap_or(u32::MAX),
            },
        )),
        (Method::GET, "/events") => Ok(with(StatusCode::OK, Answer::Stream(events(agent)))),
        (Method::POST, "/sync") => {
            tokio::task::spawn_blocking(rustix::fs::sync)
                .await
                .map_err(Failure::internal)?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        (Method::POST, "/stop") => {
            let stop: Stop = read(request.into_body()).await?;
            agent.ask_stop(Duration::from_millis(stop.grace_ms));
            Ok(empty(StatusCode::ACCEPTED))
        }
        (Method::POST, "/pack") => {
            let stop: Stop = read(request.into_body()).await?;
            let frames = agent.ask_pack(Duration::from_millis(stop.grace_ms))?;
            Ok(with(StatusCode::OK, Answer::Stream(frames)))
        }
        (Method::POST, "/ended") => {
            agent.end_seen.notify_one();
            Ok(empty(StatusCode::NO_CONTENT))
        }
        (Method::POST, "/clock") => {
            let clock: Clock = read(request.into_body()).await?;
            identity::set_clock(clock.unix_ns).map_err(Failure::internal)?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        (method, path) => Err(Failure::bad(format!("there is no {method} {path}"))),
    }
}

async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, Failure> {
    let bytes = Limited::new(body, MAX_BODY)
        .collect()
        .await
        .map_err(Failure::bad)?
        .to_bytes();
    serde_json::from_slice(&bytes).map_err(Failure::bad)
}

/// The events as lines, from the first on.
fn events(agent: &Arc<Agent>) -> mpsc::Receiver<Bytes> {
    let mut events = agent.events();
    let (to, lines) = mpsc::channel(1);
    agent.tasks.spawn(async move {
        let mut told = 0;
        loop {
            let news: Vec<Event> = events
                .borrow_and_update()
                .iter()
                .skip(told)
                .cloned()
                .collect();
            told += news.len();
            for event in news {
                let mut line = serde_json::to_vec(&event).expect("events are plain JSON");
                line.push(b'\n');
                if to.send(line.into()).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                changed = events.changed() => if changed.is_err() { return },
                () = to.closed() => return,
            }
        }
    });
    lines
}
