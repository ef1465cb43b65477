//! Connections: who may talk, how many at once, and what happens around every
//! request.
//!
//! ```text
//! accept ── peer is owner or root? ── one of 512? ── HTTP/1.1 ── op id ── routes ── headers
//!              no: unauthorized        no: too_many
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use banger_api::error::Code;
use banger_model::OpId;
use futures_util::FutureExt;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::reply;
use super::socket::Socket;
use crate::failure::Failure;

/// Connections that are served.
const MOST: usize = 512;
/// Further ones that are told so; beyond them a connection is just closed.
const TOLD: usize = 64;
/// Bytes of request line and headers.
const HEADERS: usize = 64 << 10;
/// How long replies under way may take once the daemon ends.
const LAST_REPLIES: Duration = Duration::from_secs(2);

/// Serves until the token is cancelled, then lets replies under way end.
pub(crate) async fn serve(
    mut socket: Socket,
    router: Router,
    owner: u32,
    closing: CancellationToken,
) {
    let served = Arc::new(Semaphore::new(MOST));
    let told = Arc::new(Semaphore::new(TOLD));
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    // Out of descriptors, as a rule: others must end first.
                    tracing::error!(%error, "cannot accept a connection");
                    tokio::select! {
                        Some(_) = connections.join_next() => {}
                        () = tokio::time::sleep(Duration::from_millis(100)) => {}
                    }
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
            () = closing.cancelled() => break,
        };
        let (refusal, permit) = match Arc::clone(&served).try_acquire_owned() {
            Ok(permit) => (refusal_of(&stream, owner), permit),
            Err(_) => match Arc::clone(&told).try_acquire_owned() {
                Ok(permit) => (Some(too_many()), permit),
                Err(_) => continue,
            },
        };
        let router = router.clone();
        let closing = closing.clone();
        connections.spawn(async move {
            converse(stream, router, refusal, closing).await;
            drop(permit);
        });
    }
    socket.close();
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_REPLIES, ended).await.is_err() {
        connections.shutdown().await;
    }
}

fn too_many() -> Failure {
    Failure::new(
        Code::TooMany,
        format!("more than {MOST} connections to the daemon"),
    )
}

/// Only the owner and root are served.
fn refusal_of(stream: &UnixStream, owner: u32) -> Option<Failure> {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == owner || peer.uid() == 0 => None,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "refused a connection of another user");
            Some(Failure::new(
                Code::Unauthorized,
                format!("user {} is not the owner of this daemon", peer.uid()),
            ))
        }
        Err(error) => {
            Some(Failure::new(Code::Unauthorized, "cannot tell who connects").caused_by(&error))
        }
    }
}

async fn converse(
    stream: UnixStream,
    router: Router,
    refusal: Option<Failure>,
    closing: CancellationToken,
) {
    let service = service_fn(move |request| answer(request, router.clone(), refusal.clone()));
    let connection = http1::Builder::new()
        .max_buf_size(HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Answers one request: gives it an id, keeps a panic inside it, logs it.
async fn answer(
    request: Request<Incoming>,
    router: Router,
    refusal: Option<Failure>,
) -> Result<Response<Body>, std::convert::Infallible> {
    let op = new_op();
    let span = tracing::info_span!("request", op = op.as_str());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let began = Instant::now();
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(op.clone());
    let refusal = refusal.or_else(|| too_much_head(&request));
    let reply = async {
        match refusal {
            Some(failure) => reply::failed(&failure, &op),
            None => {
                let routed =
                    hyper::service::Service::call(&TowerToHyperService::new(router), request);
                match std::panic::AssertUnwindSafe(routed).catch_unwind().await {
                    Ok(Ok(response)) => response,
                    Ok(Err(never)) => match never {},
                    Err(_) => {
                        tracing::error!(%method, path, "a request panicked");
                        let failure = Failure::new(Code::Internal, "the daemon has a defect")
                            .hint("banger daemon logs");
                        reply::failed(&failure, &op)
                    }
                }
            }
        }
    };
    let mut response = reply.instrument(span.clone()).await;
    reply::sign(&mut response, &op);
    let status = response.status().as_u16();
    let ms = began.elapsed().as_millis();
    span.in_scope(|| {
        if method == http::Method::GET && status < 500 {
            tracing::debug!(%method, path, status, ms, "answered");
        } else {
            tracing::info!(%method, path, status, ms, "answered");
        }
    });
    Ok(response)
}

/// hyper's own limit is that of a buffer, which may hold more than one read.
fn too_much_head(request: &Request<Body>) -> Option<Failure> {
    let fields = request
        .headers()
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4);
    let path = request
        .uri()
        .path_and_query()
        .map_or(0, |path| path.as_str().len());
    (path + fields.sum::<usize>() > HEADERS).then(|| {
        Failure::new(
            Code::TooLarge,
            "the request's path and headers are larger than 64 KiB",
        )
    })
}

/// Id of a new request.
pub(crate) fn new_op() -> OpId {
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes).expect("the kernel has random bytes");
    OpId::from_random(bytes)
}
