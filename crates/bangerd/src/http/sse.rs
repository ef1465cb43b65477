//! Server-sent events: the lines of one event, a comment when it is quiet,
//! and the id a client that lost its connection comes back with.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use banger_api::error::Code;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::Request;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// A comment after this long without an event: both ends see that the other
/// lives.
const QUIET: Duration = Duration::from_secs(15);

/// One event, as it is sent.
pub(super) struct Event(Bytes);

impl Event {
    /// An event of this name. JSON has no line breaks, so one line holds it.
    pub(super) fn new(id: Option<u64>, name: &str, data: &impl Serialize) -> Self {
        let data = serde_json::to_string(data).expect("events are plain JSON");
        let id = id.map_or_else(String::new, |id| format!("id: {id}\n"));
        Self(format!("{id}event: {name}\ndata: {data}\n\n").into())
    }
}

/// A reply that goes on until the events end, or the daemon ends.
pub(super) fn reply(
    closing: CancellationToken,
    events: impl Stream<Item = Event> + Send + 'static,
) -> Response {
    let lines = stream::unfold(
        (Box::pin(events), closing),
        async |(mut events, closing)| {
            let bytes = tokio::select! {
                event = events.next() => event?.0,
                () = tokio::time::sleep(QUIET) => Bytes::from_static(b":\n\n"),
                () = closing.cancelled() => return None,
            };
            Some((Ok::<_, Infallible>(bytes), (events, closing)))
        },
    );
    let mut response = Response::new(Body::from_stream(lines));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The last event a client saw before it lost its connection.
pub(super) fn last_event_id(request: &Request<Body>) -> Result<Option<u64>, Failure> {
    let Some(value) = request.headers().get("last-event-id") else {
        return Ok(None);
    };
    let number = value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse().ok());
    number
        .map(Some)
        .ok_or_else(|| Failure::new(Code::BadRequest, "Last-Event-ID is not a number of ours"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_three_lines_and_an_empty_one() {
        let event = Event::new(Some(7), "log", &serde_json::json!({"line": "a\nb"}));
        assert_eq!(event.0, "id: 7\nevent: log\ndata: {\"line\":\"a\\nb\"}\n\n");
    }

    #[test]
    fn a_strange_last_event_id_is_a_bad_request() {
        let request = |value: &str| {
            Request::builder()
                .header("Last-Event-ID", value)
                .body(Body::empty())
                .unwrap()
        };
        assert_eq!(last_event_id(&request("12")).unwrap(), Some(12));
        assert_eq!(
            last_event_id(&request("-1")).unwrap_err().code,
            Code::BadRequest
        );
    }
}
