//! The HTTP clients of a pull: who may be spoken to in the clear, where redirects may lead, and
//! how much of an answer is read.
//!
//! TLS, redirects and headers are reqwest's; it takes `Authorization` off a request that is
//! redirected to another host, port or scheme. Added here: a request that began under TLS never
//! goes on without, and the clear is only for registries that the user named, and for loopback.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Response, Url};

use crate::error::RegistryError;
use crate::limits::Limits;

/// Who is spoken to without TLS.
#[derive(Debug)]
pub(crate) enum Clear {
    /// Loopback, and these.
    Named(HashSet<String>),
    /// Anybody: what comes is known by its digest, and nothing secret is sent.
    Anybody,
}

impl Clear {
    /// From `host` or `host:port` entries; a scheme before and a slash behind are forgiven.
    pub(crate) fn new(entries: &[String]) -> Clear {
        Clear::Named(entries.iter().map(|entry| bare(entry)).collect())
    }

    /// Whether `host` or `host:port` is spoken to without TLS.
    pub(crate) fn covers(&self, host: &str) -> bool {
        match self {
            Clear::Named(hosts) => is_loopback(host) || hosts.contains(&bare(host)),
            Clear::Anybody => true,
        }
    }

    /// Whether that is only supposed, and not what the user says.
    pub(crate) fn supposes(&self, host: &str) -> bool {
        match self {
            Clear::Named(hosts) => is_loopback(host) && !hosts.contains(&bare(host)),
            Clear::Anybody => false,
        }
    }

    /// Whether a request, or its credentials, may go to this address.
    pub(crate) fn allows(&self, url: &Url) -> bool {
        match (url.scheme(), url.host_str(), url.port()) {
            ("https", Some(_), _) => true,
            ("http", Some(host), None) => self.covers(host),
            ("http", Some(host), Some(port)) => self.covers(&format!("{host}:{port}")),
            _ => false,
        }
    }
}

/// One spelling of a host; 80 is what the clear means without a port.
fn bare(host: &str) -> String {
    let host = host
        .trim()
        .trim_start_matches("http://")
        .trim_end_matches('/');
    host.strip_suffix(":80")
        .unwrap_or(host)
        .to_ascii_lowercase()
}

/// Whether `host` or `host:port` is this machine by its name or number alone.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

/// How TLS failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsFault {
    /// The other side speaks it, with a certificate that is not trusted.
    Certificate,
    /// The other side speaks something else.
    NoTls,
}

/// How TLS failed, if that is what an error is about.
pub(crate) fn tls_fault(error: &(dyn std::error::Error + 'static)) -> Option<TlsFault> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref() {
            Some(rustls::Error::InvalidCertificate(_)) => return Some(TlsFault::Certificate),
            Some(rustls::Error::InvalidMessage(_)) => return Some(TlsFault::NoTls),
            _ => {}
        }
        // An I/O error has one inside, which is not its source.
        let inside = error.downcast_ref::<std::io::Error>();
        cause = match inside.and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

#[derive(Debug, thiserror::Error)]
enum BadRedirect {
    #[error("redirected more than {0} times")]
    TooMany(usize),
    #[error("redirected to an address without TLS")]
    Clear,
}

/// The clients, one for each way to the network.
#[derive(Debug)]
pub(crate) struct Clients {
    /// By way of the proxy of the environment, if there is one.
    ordinary: Client,
    /// Loopback is never asked of a proxy.
    direct: Client,
    connect: Duration,
}

impl Clients {
    pub(crate) fn new(clear: &Arc<Clear>, limits: &Limits) -> Result<Clients, RegistryError> {
        // Reqwest takes the process's provider, and panics where there is none. One that is
        // there already is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let connect = limits.connect;
        let some = || redirects(Arc::clone(clear), limits.redirects);
        Ok(Clients {
            ordinary: build(Client::builder(), connect, some())?,
            direct: build(Client::builder().no_proxy(), connect, some())?,
            connect,
        })
    }

    pub(crate) fn to(&self, host: &str) -> &Client {
        match is_loopback(host) {
            true => &self.direct,
            false => &self.ordinary,
        }
    }

    /// For a request with a secret in its body, which a redirect would carry along. Rare: made
    /// when it is wanted.
    pub(crate) fn posting_to(&self, host: &str) -> Result<Client, RegistryError> {
        let builder = match is_loopback(host) {
            true => Client::builder().no_proxy(),
            false => Client::builder(),
        };
        build(builder, self.connect, Policy::none())
    }
}

fn build(
    builder: ClientBuilder,
    connect: Duration,
    redirects: Policy,
) -> Result<Client, RegistryError> {
    builder
        .user_agent(concat!("banger/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(connect)
        .redirect(redirects)
        // A redirect's address may be signed, so the next host has no business with it.
        .referer(false)
        .build()
        .map_err(|cause| RegistryError::Setup {
            cause: Box::new(cause),
        })
}

fn redirects(clear: Arc<Clear>, limit: usize) -> Policy {
    Policy::custom(move |attempt| {
        let began_clear = attempt.previous().iter().all(|url| url.scheme() == "http");
        if attempt.previous().len() > limit {
            attempt.error(BadRedirect::TooMany(limit))
        } else if attempt.url().scheme() == "https" || (began_clear && clear.allows(attempt.url()))
        {
            attempt.follow()
        } else {
            attempt.error(BadRedirect::Clear)
        }
    })
}

/// How long a server asks to wait.
pub(crate) fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// Why a body was not read to its end.
#[derive(Debug)]
pub(crate) enum BodyError {
    /// More than was allowed.
    TooLong,
    /// No byte for this long.
    Stalled(Duration),
    /// The connection ended early.
    Lost(reqwest::Error),
}

/// The whole body, of at most `limit` bytes.
pub(crate) async fn read(
    response: &mut Response,
    limit: u64,
    stall: Duration,
) -> Result<Vec<u8>, BodyError> {
    if response
        .content_length()
        .is_some_and(|length| length > limit)
    {
        return Err(BodyError::TooLong);
    }
    let mut body = Vec::new();
    while let Some(chunk) = tokio::time::timeout(stall, response.chunk())
        .await
        .map_err(|_| BodyError::Stalled(stall))?
        .map_err(BodyError::Lost)?
    {
        if body.len() as u64 + chunk.len() as u64 > limit {
            return Err(BodyError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clear_is_for_loopback_and_for_what_the_user_named() {
        let clear = Clear::new(&[
            "Reg.example:5000".to_owned(),
            "http://plain.example/".to_owned(),
        ]);
        for host in [
            "reg.example:5000",
            "plain.example",
            "plain.example:80",
            "localhost",
            "localhost:5000",
            "127.0.0.1:1",
            "127.8.8.8",
            "[::1]:5000",
        ] {
            assert!(clear.covers(host), "{host}");
        }
        for host in [
            "reg.example",
            "reg.example:5001",
            "plain.example:8080",
            "localhost.example",
            "127.0.0.1.example",
            "10.0.0.1",
            "",
        ] {
            assert!(!clear.covers(host), "{host}");
        }
        for (url, allowed) in [
            ("https://any.example/x", true),
            ("http://any.example/x", false),
            ("http://reg.example:5000/x", true),
            ("http://plain.example:80/x", true),
            ("http://[::1]:5000/x", true),
            ("ftp://localhost/x", false),
        ] {
            let url: Url = url.parse().expect("an address");
            assert_eq!(clear.allows(&url), allowed, "{url}");
        }
    }
}
