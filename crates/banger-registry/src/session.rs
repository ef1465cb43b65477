//! Requests to one repository of one registry: addresses, logging in when asked to, and what a
//! status means.
//!
//! Nothing is sent before it is asked for: the first request is anonymous, the registry's 401
//! names the way to log in, and only then are docker's logins read and helpers run. A login goes
//! to this registry and to the token server it names, over TLS unless the registry itself is
//! without.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RANGE, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use crate::auth::{Credential, Logins};
use crate::error::{self, Again, Fault, RegistryError, Remedy, plain};
use crate::http::{self, BodyError, Clear, Clients, TlsFault};
use crate::limits::Limits;
use crate::reference::Reference;
use crate::token::{self, Challenge};

/// Read of an answer that only explains a status.
const EXPLANATION_LIMIT: u64 = 64 << 10;

/// The requests of one pull.
#[derive(Debug)]
pub(crate) struct Session<'c> {
    pub(crate) limits: &'c Limits,
    pub(crate) reference: &'c Reference,
    pub(crate) clear: &'c Arc<Clear>,
    clients: &'c Clients,
    logins: &'c Logins,
    credential: tokio::sync::OnceCell<Option<Credential>>,
    authorization: Mutex<Option<HeaderValue>>,
    /// A registry on loopback turned out to speak TLS.
    tls: AtomicBool,
}

impl<'c> Session<'c> {
    pub(crate) fn new(
        reference: &'c Reference,
        clients: &'c Clients,
        clear: &'c Arc<Clear>,
        logins: &'c Logins,
        limits: &'c Limits,
    ) -> Session<'c> {
        Session {
            limits,
            reference,
            clear,
            clients,
            logins,
            credential: tokio::sync::OnceCell::new(),
            authorization: Mutex::new(None),
            tls: AtomicBool::new(false),
        }
    }

    /// Asks for `path` of the repository, from byte `from` on. Answers with a success or with
    /// 416; everything else is a fault. `what` is for messages.
    pub(crate) async fn get(
        &self,
        path: &str,
        accept: &'static str,
        from: u64,
        what: &str,
    ) -> Result<Response, Fault> {
        let mut asked_to_log_in = false;
        loop {
            let url = self.address(path)?;
            let mut request = self.http().get(url.clone()).header(ACCEPT, accept);
            if let Some(authorization) = self.authorization() {
                request = request.header(AUTHORIZATION, authorization);
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let answer = self.send(request, what).await;
            let unlike_http = match &answer {
                Ok(response) => response.status() == StatusCode::BAD_REQUEST,
                Err(_) => true,
            };
            if unlike_http && self.turns_to_tls().await {
                continue;
            }
            let response = answer?;
            let status = response.status();
            let by_registry = response.url().origin() == url.origin();
            if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
                return Ok(response);
            }
            if status != StatusCode::UNAUTHORIZED || !by_registry || asked_to_log_in {
                return Err(self.refusal(response, what, by_registry).await);
            }
            // A second one is the answer to the login.
            asked_to_log_in = true;
            let offered = response.headers().get_all(WWW_AUTHENTICATE);
            let challenge = Challenge::best(offered.iter().filter_map(|text| text.to_str().ok()));
            let authorization = self.log_in(challenge, what).await?;
            *self.lock() = Some(authorization);
        }
    }

    /// Sends one request; waits for the head of its answer as long as for any byte.
    pub(crate) async fn send(
        &self,
        request: RequestBuilder,
        what: &str,
    ) -> Result<Response, Fault> {
        match tokio::time::timeout(self.limits.stall, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(cause)) => Err(self.lost(cause, what)),
            Err(_) => Err(self.stalled(self.limits.stall, what)),
        }
    }

    /// Whether a registry on loopback, which nobody said has no TLS, has it after all.
    async fn turns_to_tls(&self) -> bool {
        let host = self.reference.host();
        if self.tls.load(Ordering::Relaxed) || !self.clear.supposes(host) {
            return false;
        }
        let knock = self.http().get(format!("https://{host}/v2/")).send();
        let speaks = match tokio::time::timeout(self.limits.connect, knock).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => http::tls_fault(&error) == Some(TlsFault::Certificate),
            Err(_) => false,
        };
        self.tls.store(speaks, Ordering::Relaxed);
        speaks
    }

    /// The whole body; `TooLong` is the caller's to judge.
    pub(crate) async fn body(
        &self,
        response: &mut Response,
        limit: u64,
        what: &str,
    ) -> Result<Option<Vec<u8>>, Fault> {
        match http::read(response, limit, self.limits.stall).await {
            Ok(body) => Ok(Some(body)),
            Err(BodyError::TooLong) => Ok(None),
            Err(BodyError::Stalled(limit)) => Err(self.stalled(limit, what)),
            Err(BodyError::Lost(cause)) => Err(self.lost(cause, what)),
        }
    }

    /// The client, for a token server too.
    pub(crate) fn http(&self) -> &Client {
        self.clients.to(self.reference.host())
    }

    /// A client that posts secrets to a token server.
    pub(crate) fn posting(&self) -> Result<Client, RegistryError> {
        self.clients.posting_to(self.reference.host())
    }

    fn address(&self, path: &str) -> Result<Url, RegistryError> {
        let host = self.reference.host();
        let scheme = match self.clear.covers(host) && !self.tls.load(Ordering::Relaxed) {
            true => "http",
            false => "https",
        };
        let repository = self.reference.repository();
        Url::parse(&format!("{scheme}://{host}/v2/{repository}/{path}")).map_err(|cause| {
            RegistryError::BadReference {
                value: self.reference.to_string(),
                why: cause.to_string(),
            }
        })
    }

    fn authorization(&self) -> Option<HeaderValue> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<HeaderValue>> {
        self.authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what the 401 asks for, as far as there is a login for it.
    async fn log_in(&self, challenge: Option<Challenge>, what: &str) -> Result<HeaderValue, Fault> {
        let credential = self
            .credential
            .get_or_try_init(|| self.logins.find(self.reference.registry()))
            .await?;
        let denied = || Fault::from(self.denied(StatusCode::UNAUTHORIZED, what));
        match (challenge, credential) {
            (Some(_), Some(Credential::Bearer(token))) => token::bearer(token).ok_or_else(denied),
            (Some(Challenge::Basic), Some(Credential::Login { user, password })) => {
                token::basic(user, password).ok_or_else(denied)
            }
            (Some(Challenge::Bearer { realm, service }), credential) => {
                token::obtain(self, &realm, service.as_deref(), credential.as_ref(), what).await
            }
            (None, _) | (Some(Challenge::Basic), _) => Err(denied()),
        }
    }

    pub(crate) fn denied(&self, status: StatusCode, what: &str) -> RegistryError {
        RegistryError::Denied {
            registry: self.reference.registry().to_owned(),
            what: what.to_owned(),
            status: status.as_u16(),
        }
    }

    pub(crate) fn lost(&self, cause: reqwest::Error, what: &str) -> Fault {
        error::lost(self.reference.registry(), what, cause)
    }

    pub(crate) fn stalled(&self, limit: Duration, what: &str) -> Fault {
        error::stalled(self.reference.registry(), what, limit)
    }

    pub(crate) fn unavailable(&self, what: &str, why: String, remedy: Remedy) -> RegistryError {
        error::unavailable(self.reference.registry(), what, why, remedy, None)
    }

    /// What a status that is no success means. `by_registry` is false when a host answered that
    /// the registry had redirected to: its refusal is about the redirect, which may be out of
    /// date, and not about the login.
    pub(crate) async fn refusal(
        &self,
        mut response: Response,
        what: &str,
        by_registry: bool,
    ) -> Fault {
        let status = response.status();
        let wait = http::retry_after(&response);
        let again = wait.map_or(Again::Soon, Again::After);
        let message = self.explanation(&mut response).await;
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if by_registry => {
                self.denied(status, what).into()
            }
            StatusCode::NOT_FOUND => RegistryError::NotFound {
                registry: self.reference.registry().to_owned(),
                what: what.to_owned(),
                is_part: false,
            }
            .into(),
            StatusCode::TOO_MANY_REQUESTS => Fault {
                error: RegistryError::RateLimited {
                    registry: self.reference.registry().to_owned(),
                    wait,
                    message,
                },
                again,
            },
            _ => {
                let passes = status.is_server_error()
                    || status == StatusCode::REQUEST_TIMEOUT
                    || !by_registry;
                let why = match message.as_str() {
                    "" => format!("it answered {}", status.as_u16()),
                    message => format!("it answered {}: {message}", status.as_u16()),
                };
                Fault {
                    error: self.unavailable(what, why, Remedy::of_status(passes)),
                    again: if passes { again } else { Again::Never },
                }
            }
        }
    }

    /// The message of the body, when it is in the form that registries share.
    async fn explanation(&self, response: &mut Response) -> String {
        #[derive(Deserialize)]
        struct Body {
            errors: Vec<Said>,
        }
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Said {
            code: String,
            message: String,
        }
        let json = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|kind| kind.contains("json"));
        if !json {
            return String::new();
        }
        http::read(response, EXPLANATION_LIMIT, self.limits.stall)
            .await
            .ok()
            .and_then(|body| serde_json::from_slice::<Body>(&body).ok())
            .and_then(|body| body.errors.into_iter().next())
            .map(|said| match said.message.as_str() {
                "" => plain(&said.code),
                message => plain(message),
            })
            .unwrap_or_default()
    }
}
