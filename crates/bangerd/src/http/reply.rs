//! Replies: JSON bodies, errors, and the headers every reply has.

use axum::body::Body;
use axum::response::Response;
use banger_api::error::ErrorBody;
use banger_model::OpId;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use serde::Serialize;

use crate::failure::Failure;

/// Version and commit of this build, as the reply header has them.
const DAEMON: HeaderValue = HeaderValue::from_static(concat!(
    env!("CARGO_PKG_VERSION"),
    "+",
    env!("BANGER_COMMIT")
));
const DAEMON_HEADER: HeaderName = HeaderName::from_static("banger-daemon");
const OP_HEADER: HeaderName = HeaderName::from_static(banger_api::OP_HEADER);
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A JSON reply.
pub(crate) fn json(status: u16, body: &impl Serialize) -> Response {
    let text = serde_json::to_vec(body).expect("replies are plain JSON");
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = StatusCode::from_u16(status).expect("statuses are constants");
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// A failure as its code, kind and status say.
pub(crate) fn failed(failure: &Failure, op: &OpId) -> Response {
    json(
        failure.code.status(),
        &ErrorBody {
            error: failure.to_api(op.as_str()),
        },
    )
}

/// Adds what every reply has.
pub(crate) fn sign(response: &mut Response, op: &OpId) {
    let value = HeaderValue::from_str(op.as_str()).expect("an op id is plain ASCII");
    response.headers_mut().insert(OP_HEADER, value);
    response.headers_mut().insert(DAEMON_HEADER, DAEMON);
}
