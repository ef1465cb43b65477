//! The host end of a guest's channel: from a line of bytes to calls, news and
//! commands. The guest is not trusted: every answer is bounded, and whatever
//! it sends ends at most its own connection.
//!
//! ```text
//! line ─► hello (token, nonce; discard until the answer) ─► HTTP/2 ─► Connection
//!                                            calls, news, exec ◄──────┘
//! ```
//!
//! Waits without deadlines of its own: whoever asks knows how long a guest of
//! that engine may take.

mod exec;
mod hello;
mod link;
mod news;

use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use banger_api::error::Code;
use banger_wire::agent::{
    Boot, Booted, Clock, Exec, Health, MAX_STREAMS, Pong, RESERVED_STREAMS, Stop,
};
use banger_wire::frames::Frame;
use banger_wire::hello::Token;
use http::Method;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};

use crate::failure::Failure;
use crate::ports::{EventStream, ExecStream, Guest};
use link::{CallError, Link};

/// A connection to one agent. Dropped, it closes.
pub(crate) struct Connection {
    boot_id: String,
    link: Arc<Link>,
    /// Streams for users; what is beyond is kept for the daemon's own calls.
    users: Arc<Semaphore>,
}

/// Refers to a connection that its owner may drop at any time.
pub(crate) struct Closer(Weak<Link>);

impl Closer {
    /// Closes the connection, whoever holds it still.
    pub(crate) fn close(&self) {
        if let Some(link) = self.0.upgrade() {
            link.close();
        }
    }
}

impl Connection {
    /// Opens a connection over a fresh line: waits for the agent's hello, as
    /// long as it takes.
    pub(crate) async fn open(line: UnixStream, token: [u8; 32]) -> Result<Self, Failure> {
        let opened = hello::open(line, Token(token)).await.map_err(|error| {
            let code = match error {
                hello::HelloError::Version { .. } => Code::GuestFailed,
                _ => Code::GuestUnreachable,
            };
            Failure::new(code, "cannot reach the guest's agent").caused_by(&error)
        })?;
        let link = Link::over(opened.stream)
            .await
            .map_err(|error| unreachable(&error))?;
        let users = Arc::new(Semaphore::new((MAX_STREAMS - RESERVED_STREAMS) as usize));
        Ok(Self {
            boot_id: opened.boot_id,
            link: Arc::new(link),
            users,
        })
    }

    /// For closing it when a newer one takes its place.
    pub(crate) fn closer(&self) -> Closer {
        Closer(Arc::downgrade(&self.link))
    }
}

/// A failed call, where the agent's refusal has this code.
fn failed(what: &str, refused: Code) -> impl FnOnce(CallError) -> Failure {
    let message = format!("cannot {what}");
    move |error| match error {
        CallError::Refused { status: 429, .. } => {
            Failure::new(Code::TooMany, message).caused_by(&error)
        }
        CallError::Refused { .. } => Failure::new(refused, message).caused_by(&error),
        CallError::Lost(_) => Failure::new(Code::GuestUnreachable, message).caused_by(&error),
        CallError::TooLarge | CallError::Unreadable(_) => {
            Failure::new(Code::GuestFailed, message).caused_by(&error)
        }
    }
}

fn unreachable(error: &dyn std::error::Error) -> Failure {
    Failure::new(Code::GuestUnreachable, "the guest's agent does not answer").caused_by(error)
}

#[async_trait]
impl Guest for Connection {
    fn boot_id(&self) -> String {
        self.boot_id.clone()
    }

    async fn boot(&self, boot: &Boot) -> Result<Booted, Failure> {
        self.link
            .ask(Method::POST, "/boot", Some(boot))
            .await
            .map_err(failed("boot the guest", Code::GuestFailed))
    }

    async fn health(&self) -> Result<Health, Failure> {
        let nothing = None::<&()>;
        self.link
            .ask(Method::GET, "/health", nothing)
            .await
            .map_err(failed("ask the guest's health", Code::GuestFailed))
    }

    async fn ping(&self) -> Result<Pong, Failure> {
        let nothing = None::<&()>;
        self.link
            .ask(Method::GET, "/ping", nothing)
            .await
            .map_err(failed("ping the guest", Code::GuestFailed))
    }

    async fn sync(&self) -> Result<(), Failure> {
        let nothing = None::<&()>;
        self.link
            .tell("/sync", nothing)
            .await
            .map_err(failed("sync the guest's disks", Code::GuestFailed))
    }

    async fn stop(&self, stop: &Stop) -> Result<(), Failure> {
        self.link
            .tell("/stop", Some(stop))
            .await
            .map_err(failed("stop the guest", Code::GuestFailed))
    }

    async fn set_clock(&self) -> Result<(), Failure> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let clock = Clock {
            unix_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        };
        self.link
            .tell("/clock", Some(&clock))
            .await
            .map_err(failed("set the guest's clock", Code::GuestFailed))
    }

    async fn acknowledge_end(&self) -> Result<(), Failure> {
        let nothing = None::<&()>;
        self.link
            .tell("/ended", nothing)
            .await
            .map_err(failed("acknowledge the guest's end", Code::GuestFailed))
    }

    async fn events(&self) -> Result<Box<dyn EventStream>, Failure> {
        let body = self
            .link
            .listen("/events")
            .await
            .map_err(failed("listen to the guest", Code::GuestFailed))?;
        Ok(Box::new(news::News::new(body)))
    }

    async fn exec(&self, exec: Exec) -> Result<ExecStream, Failure> {
        let Ok(permit) = Arc::clone(&self.users).try_acquire_owned() else {
            let most = MAX_STREAMS - RESERVED_STREAMS;
            return Err(Failure::new(
                Code::TooMany,
                format!("{most} streams to this guest are open already"),
            ));
        };
        exec::start(&self.link, exec, permit)
            .await
            .map_err(failed("run a command in the guest", Code::NotRunning))
    }

    async fn pack(&self, stop: &Stop) -> Result<mpsc::Receiver<Frame>, Failure> {
        exec::pack(&self.link, stop)
            .await
            .map_err(failed("pack the guest's root", Code::GuestFailed))
    }

    async fn lost(&self) {
        self.link.lost().await;
    }
}

#[cfg(test)]
mod tests;
