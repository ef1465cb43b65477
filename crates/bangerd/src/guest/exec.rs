//! A command in a guest: frames in, frames out, one HTTP/2 stream.
//!
//! ```text
//! input queue ─► request body ──────────────► agent
//! output queue ◄─ pump ◄─ response body ◄──── agent
//! ```
//!
//! A frame is taken from the response only when the one before has found room
//! in the queue, so a reader that stops stops the command. Nobody left to read
//! means that the client is lost: the stream is reset, and the agent hangs the
//! command up.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use banger_wire::agent::{Exec, Stop};
use banger_wire::frames::{Channel, Control, Decoder, Frame};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::link::{Body, BodyError, CallError, Link, json};
use crate::ports::ExecStream;

/// Frames that wait in each direction.
const QUEUE: usize = 4;
/// How long the agent may take to close a stream whose command ended.
const CLOSING: Duration = Duration::from_secs(5);

/// Starts a command. The permit is given back when its stream is closed.
pub(super) async fn start(
    link: &Link,
    exec: Exec,
    permit: OwnedSemaphorePermit,
) -> Result<ExecStream, CallError> {
    let (input, frames) = mpsc::channel(QUEUE);
    let (output, receiver) = mpsc::channel(QUEUE);
    let (end, ending) = oneshot::channel();
    let first = Control::Start {
        exec: Box::new(exec),
    }
    .frame()
    .to_bytes();
    let body = Body::new(Frames {
        first: Some(first),
        frames,
        ending,
    });
    let response = link.send(Method::POST, "/exec", body).await?;
    let answer = response.into_body();
    link.spawn(async move {
        pump(answer, &output, end).await;
        drop(permit);
    });
    Ok(ExecStream {
        input,
        output: receiver,
    })
}

/// Asks for the guest's end and its root. The answer is like that of a command
/// without input.
pub(super) async fn pack(link: &Link, stop: &Stop) -> Result<mpsc::Receiver<Frame>, CallError> {
    let (output, receiver) = mpsc::channel(QUEUE);
    let response = link.send(Method::POST, "/pack", json(Some(stop))).await?;
    let answer = response.into_body();
    let (end, _) = oneshot::channel();
    link.spawn(async move { pump(answer, &output, end).await });
    Ok(receiver)
}

/// How the stream is over.
#[derive(Debug, Clone, Copy)]
enum Over {
    /// The command's last frame came.
    Done,
    /// Nobody listens, or the agent broke off.
    Lost,
}

/// The request's body: what comes from the client, until the stream is over.
/// A client that lets go of its input may still be reading.
struct Frames {
    first: Option<Bytes>,
    frames: mpsc::Receiver<Frame>,
    ending: oneshot::Receiver<Over>,
}

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, BodyError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(hyper::body::Frame::data(first))));
        }
        if let Poll::Ready(over) = Pin::new(&mut self.ending).poll(context) {
            return Poll::Ready(match over {
                Ok(Over::Done) => None,
                // An error resets the stream, which a plain end would not.
                Ok(Over::Lost) | Err(_) => Some(Err("the client is gone".into())),
            });
        }
        match self.frames.poll_recv(context) {
            Poll::Ready(Some(frame)) => {
                Poll::Ready(Some(Ok(hyper::body::Frame::data(frame.to_bytes()))))
            }
            // The end will wake us.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

/// Carries the agent's frames to the client and tells the request's body how
/// it ended.
async fn pump(mut answer: Incoming, output: &mpsc::Sender<Frame>, end: oneshot::Sender<Over>) {
    let over = carry(&mut answer, output).await;
    let _ = end.send(over);
    if matches!(over, Over::Done) && !answer.is_end_stream() {
        // Dropped before its end, the stream would be reset although all went
        // well. Nothing of what may still come counts.
        let rest = async { while let Some(Ok(_)) = answer.frame().await {} };
        let _ = tokio::time::timeout(CLOSING, rest).await;
    }
}

async fn carry(answer: &mut Incoming, output: &mpsc::Sender<Frame>) -> Over {
    let mut decoder = Decoder::new();
    loop {
        let data = tokio::select! {
            biased;
            () = output.closed() => return Over::Lost,
            frame = answer.frame() => match frame {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(_)) | None => return Over::Lost,
            },
        };
        decoder.push(&data);
        loop {
            let frame = match decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "an agent's frames cannot be read");
                    return Over::Lost;
                }
            };
            let last = is_last(&frame);
            if output.send(frame).await.is_err() {
                return Over::Lost;
            }
            if last {
                return Over::Done;
            }
        }
    }
}

fn is_last(frame: &Frame) -> bool {
    frame.channel == Channel::Control
        && matches!(
            frame.control(),
            Ok(Control::Exit { .. } | Control::Error { .. })
        )
}
