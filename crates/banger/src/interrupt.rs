//! Ctrl-C, TERM and HUP: what they mean while the CLI waits for something.
//!
//! The first interrupt asks the work to be cancelled and waits for its end, a
//! second one leaves it.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use banger_api::error::Code;

use crate::failure::{Failure, INTERRUPTED};

/// A signal that somebody sent to the CLI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blow {
    /// Ctrl-C.
    Int,
    /// A request to end.
    Term,
    /// The terminal is gone.
    Hup,
}

impl Blow {
    /// Exit status of somebody who ends because of it.
    pub(crate) fn status(self) -> u8 {
        match self {
            Self::Int => INTERRUPTED,
            Self::Term => 143,
            Self::Hup => 129,
        }
    }
}

/// The signals, from now on. They no longer end the process by themselves.
pub(crate) struct Interrupts {
    int: Signal,
    term: Signal,
    hup: Signal,
}

impl Interrupts {
    /// Takes the signals over.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let take = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(Code::Internal, "cannot listen to signals").because(&error)
            })
        };
        Ok(Self {
            int: take(SignalKind::interrupt())?,
            term: take(SignalKind::terminate())?,
            hup: take(SignalKind::hangup())?,
        })
    }

    /// The next signal.
    pub(crate) async fn next(&mut self) -> Blow {
        tokio::select! {
            Some(()) = self.int.recv() => Blow::Int,
            Some(()) = self.term.recv() => Blow::Term,
            Some(()) = self.hup.recv() => Blow::Hup,
            else => std::future::pending().await,
        }
    }
}

/// Told to work that can be cancelled.
#[derive(Debug, Clone)]
pub(crate) struct Cancel(watch::Receiver<bool>);

impl Cancel {
    /// Work that nobody cancels.
    pub(crate) fn never() -> Self {
        Self(watch::channel(false).1)
    }

    /// Returns once the work should be cancelled.
    pub(crate) async fn asked(&mut self) {
        if self.0.wait_for(|asked| *asked).await.is_err() {
            std::future::pending().await
        }
    }
}

/// Does work that would go on for ever, or for long, and has nothing to undo:
/// an interrupt ends it.
pub(crate) async fn interruptible<T>(
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut interrupts = Interrupts::listen()?;
    tokio::select! {
        outcome = work => outcome,
        blow = interrupts.next() => Err(Failure::silent(blow.status())),
    }
}

/// Does work that can be cancelled. Whatever it came to, an interrupt decides
/// the exit status.
pub(crate) async fn guarded<T>(
    work: impl AsyncFnOnce(Cancel) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let (ask, asked) = watch::channel(false);
    let work = work(Cancel(asked));
    tokio::pin!(work);
    let first = tokio::select! {
        outcome = &mut work => return outcome,
        blow = interrupts.next() => blow,
    };
    if first == Blow::Hup {
        return Err(Failure::silent(first.status()));
    }
    let _ = ask.send(true);
    tokio::select! {
        outcome = &mut work => match outcome {
            Err(failure) if failure.code != Some(Code::Cancelled) => Err(failure.exiting(first.status())),
            _ => Err(Failure::silent(first.status())),
        },
        blow = interrupts.next() => Err(Failure::silent(blow.status())),
    }
}
