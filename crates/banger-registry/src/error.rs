//! The ways in which a pull fails, sorted by who can act, and whether a failure may pass by
//! itself.
//!
//! Text that came from a registry or a helper is bounded and has no control characters by the
//! time it is in an error. No error holds a credential, and none a redirect's address, which may
//! be signed.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::document::Platform;
use crate::http::{self, TlsFault};
use crate::limits::Limits;

/// Foreign text kept in an error, in characters.
const TEXT_LIMIT: usize = 240;

/// Why an image could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The text is no image reference.
    #[error("{value:?} is not an image reference: {why}")]
    BadReference {
        /// What was given, cut to a bounded length.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// The registry has no such image, or a part of it is missing there.
    #[error("{registry} has no {what}")]
    NotFound {
        /// The registry as the reference names it.
        registry: String,
        /// What was asked for.
        what: String,
        /// A blob, which an image that is there names.
        is_part: bool,
    },
    /// The registry wants another login, or none will do.
    #[error("{registry} refused {what} ({status})")]
    Denied {
        /// The registry as the reference names it.
        registry: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
    },
    /// The registry has had enough requests from here.
    #[error("{registry} takes no more requests for now{}", told(.message))]
    RateLimited {
        /// The registry as the reference names it.
        registry: String,
        /// How long it asks to wait, when it says so.
        wait: Option<Duration>,
        /// What it said; may be empty.
        message: String,
    },
    /// The network, a server's own failure, or a transfer that stopped moving.
    #[error("cannot fetch {what} from {registry}: {why}")]
    Unavailable {
        /// The registry as the reference names it.
        registry: String,
        /// What was asked for.
        what: String,
        /// What happened.
        why: String,
        /// What may help.
        remedy: Remedy,
        /// The library's error, where there is one.
        #[source]
        cause: Option<Box<dyn Error + Send + Sync>>,
    },
    /// What came is not what was promised.
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// A manifest or blob.
        what: String,
        /// How it differs.
        why: String,
    },
    /// Whole and genuine, but not an image that this host can use.
    #[error("{what} cannot be used: {why}")]
    Unsupported {
        /// An image, manifest or config.
        what: String,
        /// Why not.
        why: String,
    },
    /// A file or directory of this host that cannot be read as what it should be.
    #[error("cannot use {}: {why}", .path.display())]
    BadPath {
        /// What was named, or what is in it.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// The kernel's answer, where there is one.
        #[source]
        cause: Option<io::Error>,
    },
    /// An archive or layout that is malformed or has not all of an image.
    #[error("cannot read an image from {place}: {why}")]
    BadArchive {
        /// As the source is spelled.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// An archive or layout has no image of this name.
    #[error("{place} has no image {tag}")]
    NoTag {
        /// As the source is spelled, without a tag.
        place: String,
        /// What was asked for.
        tag: String,
        /// What it has.
        offered: Vec<String>,
    },
    /// An archive or layout has several images, and none was named.
    #[error("{place} has several images")]
    Ambiguous {
        /// As the source is spelled, without a tag.
        place: String,
        /// What they are called.
        offered: Vec<String>,
    },
    /// The file system of the cache is full, or a quota is.
    #[error("no space left for {}", .path.display())]
    NoSpace {
        /// The file that was being written.
        path: PathBuf,
    },
    /// There would not be, so nothing was fetched.
    #[error("{why}")]
    NoRoom {
        /// What whoever knows the disk says.
        why: String,
    },
    /// The cache could not be read or written for another reason.
    #[error("cannot {doing} {}", .path.display())]
    Cache {
        /// A verb.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// Docker's `config.json` is there and cannot be used.
    #[error("cannot read logins from {}: {why}", .path.display())]
    Logins {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A credential helper failed.
    #[error("credential helper {program} {why}")]
    Helper {
        /// `docker-credential-...`.
        program: String,
        /// What it did.
        why: String,
    },
    /// The HTTP client could not be made; certificates of the host are part of it.
    #[error("cannot prepare secure connections")]
    Setup {
        /// The library's error.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// What may help where a request came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Nobody was reached: the address, or the way there.
    Reach,
    /// It broke off: the next try goes on with what came.
    Repeat,
    /// The server has a trouble of its own, which may pass.
    Wait,
    /// The server answers in a way that no wait changes.
    Operator,
}

impl Remedy {
    /// Of a status that is no success, and whether it may pass.
    pub(crate) fn of_status(passes: bool) -> Remedy {
        match passes {
            true => Remedy::Wait,
            false => Remedy::Operator,
        }
    }

    fn hint(self, registry: &str) -> String {
        match self {
            Remedy::Reach => format!(
                "is {registry} spelled right, and reachable from here? A proxy is taken from \
                 HTTPS_PROXY and HTTP_PROXY of the daemon's environment"
            ),
            Remedy::Repeat => "repeat the command: it goes on with what came already".to_owned(),
            Remedy::Wait => "try again later: what came already is kept".to_owned(),
            Remedy::Operator => format!(
                "is {registry} the registry that is meant? Whoever runs it, or a proxy before it, \
                 is to look into that answer"
            ),
        }
    }
}

impl RegistryError {
    /// As [`RegistryError::hint`], of a file that was fetched by its digest and is no image's.
    #[must_use]
    pub fn hint_of_download(&self) -> Option<String> {
        match self {
            RegistryError::Damaged { .. } => Some(
                "try again; if it stays so, the sha256 that it was asked by, or the file, is wrong"
                    .to_owned(),
            ),
            RegistryError::Unavailable {
                cause: Some(cause), ..
            } if http::tls_fault(&**cause) == Some(TlsFault::NoTls) => {
                Some("http: instead of https: will do: its digest is checked".to_owned())
            }
            _ => self.hint(),
        }
    }

    /// The next step for a person. `None` where somebody else knows it: what makes room, and
    /// whoever cancelled.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            RegistryError::BadReference { value, .. } if value.contains("://") => {
                Some("leave out what stands before the host: HOST/NAME:TAG".to_owned())
            }
            RegistryError::BadReference { .. } => Some(
                "NAME:TAG or HOST/NAME:TAG as docker spells it, \
                 oci-layout:DIR or docker-archive:FILE"
                    .to_owned(),
            ),
            RegistryError::NotFound { is_part: true, .. } => {
                Some("the image is not whole there: have it pushed again".to_owned())
            }
            RegistryError::NotFound { registry, .. } => Some(format!(
                "check the name and the tag; if it is private: {}",
                login_hint(registry)
            )),
            RegistryError::Damaged { .. } => Some(
                "try again; if it stays so, have the image pushed or saved again, and see whether \
                 something on the way changes it"
                    .to_owned(),
            ),
            RegistryError::Unsupported { .. } => {
                let (limits, platform) = (Limits::default(), Platform::host());
                Some(format!(
                    "choose another tag: it takes an image for linux/{}, of at most {} layers and {}G",
                    platform.architecture,
                    limits.layers,
                    limits.image >> 30
                ))
            }
            RegistryError::BadPath { .. } => Some(
                "give the absolute path of an oci-layout directory or a docker-archive file that \
                 you may read"
                    .to_owned(),
            ),
            RegistryError::BadArchive { .. } => Some(
                "make it again with docker save, or with skopeo copy to oci: or docker-archive:"
                    .to_owned(),
            ),
            RegistryError::Logins { path, .. } => Some(format!(
                "correct {0}, or move it away to pull without a login",
                path.display()
            )),
            RegistryError::Cache { path, .. } => Some(format!(
                "see that {} and what is above it is yours and can be written",
                path.display()
            )),
            RegistryError::Setup { .. } => Some("sudo apt install ca-certificates".to_owned()),
            RegistryError::Denied { registry, .. } => Some(login_hint(registry)),
            RegistryError::RateLimited { registry, wait, .. } => Some(match wait {
                Some(wait) => format!(
                    "try again in {} s, or: {}",
                    wait.as_secs(),
                    login_hint(registry)
                ),
                None => format!("wait, or: {}", login_hint(registry)),
            }),
            RegistryError::Helper { program, .. } => Some(format!(
                "try `{program} list`, or take it out of docker's config.json"
            )),
            RegistryError::Unavailable {
                registry,
                remedy,
                cause,
                ..
            } => {
                let fault = cause.as_ref().and_then(|cause| http::tls_fault(&**cause));
                Some(match fault {
                    Some(TlsFault::Certificate) => "put its CA's certificate into \
                     /usr/local/share/ca-certificates and run sudo update-ca-certificates"
                        .to_owned(),
                    Some(TlsFault::NoTls) => format!(
                        "insecure_registries = [{registry:?}] in config.toml, where you trust the network"
                    ),
                    None => remedy.hint(registry),
                })
            }
            RegistryError::Ambiguous { offered, .. } if offered.is_empty() => {
                Some("give each image a tag where it was made".to_owned())
            }
            RegistryError::NoTag { place, offered, .. }
            | RegistryError::Ambiguous { place, offered } => match offered.as_slice() {
                [] => Some(place.clone()),
                [one] => Some(format!("{place}:{one}")),
                several => Some(format!(
                    "{place}:TAG, where TAG is one of {}",
                    several.join(", ")
                )),
            },
            RegistryError::NoSpace { .. }
            | RegistryError::NoRoom { .. }
            | RegistryError::Cancelled => None,
        }
    }

    /// A failed call on a file of the cache.
    pub(crate) fn disk(doing: &'static str, path: &Path, cause: io::Error) -> RegistryError {
        match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => RegistryError::NoSpace {
                path: path.to_owned(),
            },
            _ => RegistryError::Cache {
                doing,
                path: path.to_owned(),
                cause,
            },
        }
    }
}

/// Docker Hub is docker's default, which takes no name.
fn login_hint(registry: &str) -> String {
    match registry {
        "docker.io" => "docker login".to_owned(),
        other => format!("docker login {other}"),
    }
}

/// The request or its answer was lost on the way.
pub(crate) fn lost(host: &str, what: &str, cause: reqwest::Error) -> Fault {
    // Its address can be a signed one.
    let cause = cause.without_url();
    let tls = http::tls_fault(&cause);
    let why = match &cause {
        _ if tls == Some(TlsFault::Certificate) => "its certificate is not trusted",
        _ if tls == Some(TlsFault::NoTls) => "it does not speak TLS",
        cause if cause.is_connect() => "cannot connect",
        cause if cause.is_redirect() => "it leads elsewhere in a way that is not followed",
        _ => "the connection was lost",
    };
    let remedy = match &cause {
        cause if cause.is_redirect() || cause.is_builder() => Remedy::Operator,
        cause if cause.is_connect() => Remedy::Reach,
        _ => Remedy::Repeat,
    };
    let stays = remedy == Remedy::Operator || tls.is_some();
    Fault {
        error: unavailable(host, what, why.to_owned(), remedy, Some(Box::new(cause))),
        again: if stays { Again::Never } else { Again::Soon },
    }
}

/// No byte came for this long.
pub(crate) fn stalled(host: &str, what: &str, limit: Duration) -> Fault {
    let why = format!("nothing came for {} s", limit.as_secs_f32());
    Fault::passing(unavailable(host, what, why, Remedy::Repeat, None))
}

/// [`RegistryError::Unavailable`].
pub(crate) fn unavailable(
    host: &str,
    what: &str,
    why: String,
    remedy: Remedy,
    cause: Option<Box<dyn Error + Send + Sync>>,
) -> RegistryError {
    RegistryError::Unavailable {
        registry: host.to_owned(),
        what: what.to_owned(),
        why,
        remedy,
        cause,
    }
}

fn told(message: &str) -> String {
    match message {
        "" => String::new(),
        message => format!(": {message}"),
    }
}

/// Foreign text made safe to show: bounded, on one line, nothing that moves a cursor.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::new();
    for character in text.trim().chars().take(TEXT_LIMIT) {
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// A failed try, and whether another makes sense.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) error: RegistryError,
    pub(crate) again: Again,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// The next try would end alike.
    Never,
    /// After the usual pause.
    Soon,
    /// After the pause that the server asked for.
    After(Duration),
}

impl Fault {
    /// A failure that may pass.
    pub(crate) fn passing(error: RegistryError) -> Fault {
        Fault {
            error,
            again: Again::Soon,
        }
    }

    /// The same of a part of an image that is there.
    pub(crate) fn of_a_part(mut self) -> Fault {
        if let RegistryError::NotFound { is_part, .. } = &mut self.error {
            *is_part = true;
        }
        self
    }
}

impl From<RegistryError> for Fault {
    /// A failure that stays.
    fn from(error: RegistryError) -> Fault {
        Fault {
            error,
            again: Again::Never,
        }
    }
}

/// The tries of one request: counts them and keeps the pauses between them.
#[derive(Debug)]
pub(crate) struct Tries<'l> {
    limits: &'l Limits,
    failed: u32,
}

impl<'l> Tries<'l> {
    pub(crate) fn new(limits: &'l Limits) -> Tries<'l> {
        Tries { limits, failed: 0 }
    }

    /// Returns when the next try is due, or with the error when there is to be none.
    pub(crate) async fn pause(&mut self, fault: Fault) -> Result<(), RegistryError> {
        self.failed += 1;
        if self.failed >= self.limits.tries {
            return Err(fault.error);
        }
        let pause = match fault.again {
            Again::Never => return Err(fault.error),
            // A longer wait is for a person to decide.
            Again::After(wait) if wait > self.limits.longest_wait => return Err(fault.error),
            Again::After(wait) => wait,
            Again::Soon => self.backoff(),
        };
        tracing::debug!(
            error = %fault.error,
            pause_ms = pause.as_millis() as u64,
            "trying again"
        );
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Doubles with each failure; the upper half is random, so that many clients which failed
    /// together do not come back together.
    fn backoff(&self) -> Duration {
        let full = self
            .limits
            .first_pause
            .saturating_mul(1 << (self.failed - 1).min(16))
            .min(self.limits.longest_wait);
        let draw = getrandom::u32().unwrap_or(0);
        full / 2 + (full / 2).mul_f64(f64::from(draw) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_stays_on_one_line_and_is_bounded() {
        assert_eq!(plain(" a\x1b[2J\nb "), "a\\u{1b}[2J\\nb");
        assert_eq!(plain(&"x".repeat(10_000)).len(), TEXT_LIMIT);
    }

    #[test]
    fn pauses_double_and_stay_within_the_longest() {
        let limits = Limits::default();
        let mut tries = Tries::new(&limits);
        for failed in 1..40u32 {
            tries.failed = failed;
            let pause = tries.backoff();
            let full = limits
                .first_pause
                .saturating_mul(1 << (failed - 1).min(16))
                .min(limits.longest_wait);
            assert!(
                pause >= full / 2 && pause <= full,
                "{failed} failed: {pause:?}"
            );
        }
    }

    #[test]
    fn pauses_after_as_many_failures_differ() {
        let limits = Limits::default();
        let mut tries = Tries::new(&limits);
        tries.failed = 3;
        let drawn: std::collections::HashSet<Duration> = (0..32).map(|_| tries.backoff()).collect();
        // Some may be the same; all are not, but once in far more runs than there will be.
        assert!(drawn.len() > 16, "{drawn:?}");
        let (full, half) = (limits.first_pause * 4, limits.first_pause * 2);
        let spread = drawn.iter().max().copied().unwrap_or_default()
            - drawn.iter().min().copied().unwrap_or_default();
        assert!(spread > (full - half) / 4, "{drawn:?}");
    }

    #[test]
    fn whatever_went_wrong_has_a_next_step_that_is_about_it() {
        let text = || "x".to_owned();
        let unavailable = |remedy| unavailable("reg.lan", "a/b:1", text(), remedy, None);
        let absent = || RegistryError::NotFound {
            registry: "reg.lan".to_owned(),
            what: text(),
            is_part: false,
        };
        let (what, why, path) = (text(), text(), PathBuf::from("/p/q"));
        for (error, step) in [
            (
                RegistryError::BadReference {
                    value: text(),
                    why: text(),
                },
                "HOST/NAME:TAG",
            ),
            (
                RegistryError::BadReference {
                    value: "https://a/b".to_owned(),
                    why: text(),
                },
                "leave out",
            ),
            (
                absent(),
                "check the name and the tag; if it is private: docker login reg.lan",
            ),
            (Fault::from(absent()).of_a_part().error, "pushed again"),
            (unavailable(Remedy::Reach), "is reg.lan spelled right"),
            (unavailable(Remedy::Repeat), "goes on with what came"),
            (unavailable(Remedy::Wait), "try again later"),
            (unavailable(Remedy::Operator), "Whoever runs it"),
            (
                RegistryError::Damaged {
                    what: what.clone(),
                    why: why.clone(),
                },
                "try again",
            ),
            (
                RegistryError::Unsupported {
                    what,
                    why: why.clone(),
                },
                "512 layers and 128G",
            ),
            (
                RegistryError::BadPath {
                    path: path.clone(),
                    why: why.clone(),
                    cause: None,
                },
                "you may read",
            ),
            (
                RegistryError::BadArchive {
                    place: text(),
                    why: why.clone(),
                },
                "docker save",
            ),
            (
                RegistryError::Logins {
                    path: path.clone(),
                    why,
                },
                "correct /p/q",
            ),
            (
                RegistryError::disk("write", &path, io::ErrorKind::PermissionDenied.into()),
                "see that /p/q",
            ),
        ] {
            let hint = error.hint().unwrap_or_default();
            assert!(hint.contains(step), "{error}: no {step:?} in {hint:?}");
        }
    }

    #[test]
    fn the_hint_names_the_registry_but_for_dockers_own() {
        let denied = |registry: &str| RegistryError::Denied {
            registry: registry.to_owned(),
            what: "a/b:1".to_owned(),
            status: 401,
        };
        assert_eq!(
            denied("ghcr.io").hint().as_deref(),
            Some("docker login ghcr.io")
        );
        assert_eq!(denied("docker.io").hint().as_deref(), Some("docker login"));
    }
}
