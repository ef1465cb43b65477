//! How a request becomes a call of a use case: one generic translation for
//! every endpoint of the contract, so that no path, method or status can
//! drift from it.

use std::any::TypeId;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, RawPathParams};
use axum::response::Response;
use axum::routing::{MethodFilter, on};
use banger_api::endpoint::{Endpoint, Method};
use banger_api::error::Code;
use banger_api::{Empty, MAX_BODY};
use banger_model::OpId;
use http::Request;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::query::Query;
use super::reply;
use crate::daemon::App;
use crate::failure::Failure;

/// A request, understood.
#[derive(Debug)]
pub(crate) struct Call<R> {
    /// Id of this request, and of the operation it may begin.
    pub(crate) op: OpId,
    /// What stands for the placeholders of the path, decoded.
    pub(crate) references: Vec<String>,
    /// Only known parameters.
    pub(crate) query: Query,
    /// The body.
    pub(crate) body: R,
}

impl<R> Call<R> {
    /// The one reference in the path.
    pub(crate) fn reference(&self) -> &str {
        self.references.first().map_or("", String::as_str)
    }
}

/// The router while it is put together.
pub(crate) struct Routes {
    app: Arc<App>,
    router: Router,
    served: Vec<Served>,
}

/// A route, for the document and the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Served {
    /// Its method.
    pub(crate) method: Method,
    /// Its path, without the version's prefix.
    pub(crate) path: &'static str,
    /// The query parameters it takes.
    pub(crate) query: &'static [&'static str],
}

impl Routes {
    /// No routes yet.
    pub(crate) fn new(app: Arc<App>) -> Self {
        Self {
            app,
            router: Router::new(),
            served: Vec::new(),
        }
    }

    /// Serves an endpoint of the contract. Only these query parameters are
    /// taken.
    pub(crate) fn on<E, Handler, Answer>(
        self,
        known: &'static [&'static str],
        handler: Handler,
    ) -> Self
    where
        E: Endpoint + 'static,
        E::Request: 'static,
        Handler: Fn(Arc<App>, Call<E::Request>) -> Answer + Copy + Send + Sync + 'static,
        Answer: Future<Output = Result<E::Reply, Failure>> + Send,
    {
        self.raw(E::METHOD, E::PATH, known, move |app, call| async move {
            let Call {
                op,
                references,
                query,
                body,
            } = call;
            let body = read_body::<E::Request>(body.into_body()).await?;
            let answer = handler(
                app,
                Call {
                    op,
                    references,
                    query,
                    body,
                },
            )
            .await?;
            Ok(reply::json(E::STATUS, &answer))
        })
    }

    /// Serves what is no plain exchange of JSON: event streams, text,
    /// upgrades.
    pub(crate) fn raw<Handler, Answer>(
        mut self,
        method: Method,
        path: &'static str,
        known: &'static [&'static str],
        handler: Handler,
    ) -> Self
    where
        Handler: Fn(Arc<App>, Call<Request<Body>>) -> Answer + Copy + Send + Sync + 'static,
        Answer: Future<Output = Result<Response, Failure>> + Send,
    {
        let app = Arc::clone(&self.app);
        let serve = move |request: Request<Body>| {
            let app = Arc::clone(&app);
            async move {
                let op = op_of(&request);
                let answer = async {
                    let call = understand(request, known).await?;
                    handler(app, call).await
                };
                answer
                    .await
                    .unwrap_or_else(|failure| reply::failed(&failure, &op))
            }
        };
        let filter = match method {
            Method::Get => MethodFilter::GET,
            Method::Post => MethodFilter::POST,
            Method::Patch => MethodFilter::PATCH,
            Method::Delete => MethodFilter::DELETE,
        };
        self.served.push(Served {
            method,
            path,
            query: known,
        });
        self.router = self.router.route(&format!("/v1{path}"), on(filter, serve));
        self
    }

    /// Serves something outside the version's prefix.
    pub(crate) fn outside(mut self, path: &'static str, text: &'static str) -> Self {
        let serve = move || async move {
            let mut response = Response::new(Body::from(text));
            response.headers_mut().insert(
                http::header::CONTENT_TYPE,
                http::HeaderValue::from_static("application/json"),
            );
            response
        };
        self.router = self.router.route(path, on(MethodFilter::GET, serve));
        self
    }

    /// What is served, and the router that does it.
    pub(crate) fn finish(self) -> (Router, Vec<Served>) {
        // Only now: it is given to the routes that are there.
        let router = self
            .router
            .fallback(unknown)
            .method_not_allowed_fallback(unknown);
        (router, self.served)
    }
}

/// The id the connection gave this request.
pub(crate) fn op_of(request: &Request<Body>) -> OpId {
    request
        .extensions()
        .get::<OpId>()
        .cloned()
        .expect("every request gets an id on arrival")
}

async fn understand(
    request: Request<Body>,
    known: &[&str],
) -> Result<Call<Request<Body>>, Failure> {
    let op = op_of(&request);
    let query = Query::parse(request.uri().query(), known)?;
    // Refused here, before anything is begun.
    super::operations::wait_of(&query)?;
    let (mut parts, body) = request.into_parts();
    let references = RawPathParams::from_request_parts(&mut parts, &())
        .await
        .map_err(|_| Failure::new(Code::BadRequest, "the path is not percent-encoded UTF-8"))?
        .iter()
        .map(|(_, value)| value.to_owned())
        .collect();
    Ok(Call {
        op,
        references,
        query,
        body: Request::from_parts(parts, body),
    })
}

/// Reads a JSON body of at most [`MAX_BODY`]. None at all is an object
/// without fields.
pub(crate) async fn read_body<T: DeserializeOwned + 'static>(body: Body) -> Result<T, Failure> {
    let bytes = match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Err(Failure::new(
                Code::TooLarge,
                "the request body is larger than 8 MiB",
            ));
        }
        Err(error) => {
            return Err(
                Failure::new(Code::BadRequest, "cannot read the request body").caused_by(&*error),
            );
        }
    };
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    let unreadable = |error: serde_json::Error| {
        Failure::new(Code::BadRequest, "cannot read the request").caused_by(&error)
    };
    if TypeId::of::<T>() == TypeId::of::<Empty>() {
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(text).map_err(unreadable)?;
        if let Some(field) = fields.keys().next() {
            let field: String = field.chars().take(40).collect();
            return Err(Failure::new(
                Code::BadRequest,
                format!("unknown field {field:?}: this request has none"),
            ));
        }
    }
    // A sequence of values would be read as the fields in their order.
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(Failure::new(
            Code::BadRequest,
            "the request body is no JSON object",
        ));
    }
    serde_json::from_slice(text).map_err(unreadable)
}

async fn unknown(request: Request<Body>) -> Response {
    let failure = Failure::new(
        Code::UnknownRoute,
        format!("no route {} {}", request.method(), request.uri().path()),
    );
    reply::failed(&failure, &op_of(&request))
}
