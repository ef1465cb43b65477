//! An engine that lives, or lived a moment ago: its line, its end, its
//! controls.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::OnceCell;

use crate::console;
use crate::machine::{End, Facts};
use crate::process::{Exit, Process};
use crate::qemu::qmp::{Qmp, QmpError};
use crate::qemu::{self, drive_index, drive_name};
use crate::sockets;

/// How long the last words of a dead engine may take to arrive.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How much of an engine's log may go into a reason, bytes.
const LOG_TAIL: u64 = 1024;

/// A control that did not work.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct ControlError {
    what: String,
    #[source]
    cause: io::Error,
}

/// What an engine's process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// User and system time since its start, microseconds.
    pub cpu_us: u64,
    /// Resident memory, bytes.
    pub rss_bytes: u64,
    /// Virtual memory, bytes.
    pub vsz_bytes: u64,
}

/// An engine we hold.
#[derive(Debug)]
pub struct Live {
    facts: Facts,
    process: Arc<Process>,
    control: Option<Qmp>,
    /// A signal of ours may have ended it.
    signalled: AtomicBool,
    end: OnceCell<End>,
}

impl Live {
    pub(crate) fn new(facts: Facts, process: Arc<Process>, control: Option<Qmp>) -> Self {
        Self {
            facts,
            process,
            control,
            signalled: AtomicBool::new(false),
            end: OnceCell::new(),
        }
    }

    /// What it was launched as.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Connects to the channel. The engine serves one connection at a time: a
    /// second one is silent until the first is closed.
    ///
    /// # Errors
    /// When the engine is gone.
    pub async fn line(&self) -> io::Result<UnixStream> {
        sockets::connect(&self.facts.run_dir, qemu::CHANNEL).await
    }

    /// A descriptor of its process, readable from its end on.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn pidfd(&self) -> io::Result<OwnedFd> {
        self.process.pidfd()
    }

    /// Returns when the engine has ended. Many may wait; each gets the same.
    pub async fn ended(&self) -> End {
        self.end.get_or_init(|| self.find_end()).await.clone()
    }

    async fn find_end(&self) -> End {
        let exit = self.process.exited().await;
        let mut said = None;
        if let Some(control) = &self.control {
            // The process is gone, so its socket closes at once; whoever holds
            // a copy of it must not hold us.
            let _ = tokio::time::timeout(LAST_WORDS, control.closed()).await;
            said = control
                .shutdown()
                .map(|shutdown| (shutdown.by_guest, shutdown.reason));
        }
        let log: PathBuf = self.facts.run_dir.join(qemu::LOG);
        let log = console::tail(&log, LOG_TAIL);
        describe(
            exit,
            said,
            self.signalled.load(Ordering::Relaxed),
            log.trim(),
        )
    }

    /// The serial of the next drive whose write found no room on the host; the
    /// guest was told of an I/O error. One answer for all the writes since the
    /// last, and none after the engine's end. One may wait.
    pub async fn disk_full(&self) -> String {
        let Some(control) = &self.control else {
            return std::future::pending().await;
        };
        let device = control.disk_full().await;
        let serial = drive_index(&device).and_then(|index| self.facts.drives.get(index));
        serial.cloned().unwrap_or(device)
    }

    /// Freezes the guest.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn pause(&self) -> Result<(), ControlError> {
        self.control("pause the guest", "stop", Value::Null).await
    }

    /// Thaws it.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn resume(&self) -> Result<(), ControlError> {
        self.control("resume the guest", "cont", Value::Null).await
    }

    /// Tells the guest the new size, in bytes, of the drive with this serial.
    ///
    /// # Errors
    /// [`ControlError`], also where there is no such drive.
    pub async fn resize_disk(&self, serial: &str, bytes: u64) -> Result<(), ControlError> {
        let what = format!("resize disk {serial}");
        let Some(index) = self.facts.drives.iter().position(|drive| drive == serial) else {
            return Err(ControlError {
                what,
                cause: io::Error::other("the engine has no such disk"),
            });
        };
        self.control(
            &what,
            "block_resize",
            json!({ "device": drive_name(index), "size": bytes }),
        )
        .await
    }

    async fn control(
        &self,
        what: &str,
        command: &str,
        arguments: Value,
    ) -> Result<(), ControlError> {
        let result = match &self.control {
            Some(control) => control.run(command, arguments).await,
            None => Err(QmpError::Closed),
        };
        result.map(drop).map_err(|error| ControlError {
            what: what.to_owned(),
            cause: io::Error::other(error),
        })
    }

    /// Sends a signal, by name without `SIG`: `TERM`, `INT`, `KILL`. One that
    /// ended already is not an error.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn kill(&self, signal: &str) -> Result<(), ControlError> {
        let failed = |cause| ControlError {
            what: format!("send SIG{signal} to engine {}", self.process.pid()),
            cause,
        };
        let number = match signal {
            "TERM" => Signal::TERM,
            "INT" => Signal::INT,
            "KILL" => Signal::KILL,
            _ => return Err(failed(io::Error::from(io::ErrorKind::InvalidInput))),
        };
        self.signalled.store(true, Ordering::Relaxed);
        self.process.signal(number).map_err(failed)
    }

    /// What it uses; `None` when it is gone.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        let stat = self.process.stat()?;
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Some(Usage {
            cpu_us: stat.cpu_ticks.saturating_mul(1_000_000) / per_second,
            rss_bytes: stat
                .resident_pages
                .saturating_mul(rustix::param::page_size() as u64),
            vsz_bytes: stat.virtual_bytes,
        })
    }
}

/// The end in words, from what the kernel and the engine said.
fn describe(exit: Exit, said: Option<(bool, String)>, signalled: bool, log: &str) -> End {
    let with_log = |what: String| {
        let last = log.lines().next_back().unwrap_or_default();
        if last.is_empty() {
            what
        } else {
            format!("{what}: {last}")
        }
    };
    if let Some((by_guest, reason)) = &said
        && !matches!(exit, Exit::Signal(_) if !by_guest)
    {
        let reason = match reason.as_str() {
            "guest-reset" => "the guest reset the machine".to_owned(),
            "guest-shutdown" => "the guest powered the machine off".to_owned(),
            "guest-panic" => "the guest's kernel panicked".to_owned(),
            "host-signal" => "a signal ended the engine".to_owned(),
            "internal-error" => "the engine met an internal error and froze the guest".to_owned(),
            other => format!("the engine ended: {other}"),
        };
        return End {
            by_guest: *by_guest,
            reason,
        };
    }
    match exit {
        Exit::Signal(signal) => End {
            by_guest: false,
            reason: with_log(format!("the engine was killed by {}", signal_name(signal))),
        },
        // Without its last words: nothing but a guest or a signal ends it so.
        Exit::Status(0) if !signalled => End {
            by_guest: true,
            reason: "the engine ended with status 0".to_owned(),
        },
        Exit::Status(status) => End {
            by_guest: false,
            reason: with_log(format!("the engine ended with status {status}")),
        },
        Exit::Unseen => End {
            by_guest: false,
            reason: with_log("the engine died".to_owned()),
        },
    }
}

/// The name of a signal that ended a process.
pub(crate) fn signal_name(signal: i32) -> String {
    let name = match signal {
        2 => "SIGINT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        15 => "SIGTERM",
        31 => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_the_guests_only_where_something_says_so() {
        let said = |guest, reason: &str| Some((guest, reason.to_owned()));
        let table = [
            (
                Exit::Status(0),
                said(true, "guest-reset"),
                false,
                true,
                "the guest reset the machine",
            ),
            (
                Exit::Unseen,
                said(true, "guest-shutdown"),
                false,
                true,
                "the guest powered the machine off",
            ),
            // Killed while it was ending by itself.
            (
                Exit::Signal(9),
                said(true, "guest-reset"),
                true,
                true,
                "the guest reset the machine",
            ),
            (
                Exit::Status(0),
                said(false, "host-signal"),
                false,
                false,
                "a signal ended the engine",
            ),
            (
                Exit::Status(0),
                None,
                false,
                true,
                "the engine ended with status 0",
            ),
            (
                Exit::Status(0),
                None,
                true,
                false,
                "the engine ended with status 0: last line",
            ),
            (
                Exit::Status(1),
                None,
                false,
                false,
                "the engine ended with status 1: last line",
            ),
            (
                Exit::Signal(9),
                None,
                false,
                false,
                "the engine was killed by SIGKILL: last line",
            ),
            (
                Exit::Unseen,
                None,
                false,
                false,
                "the engine died: last line",
            ),
        ];
        for (exit, said, signalled, by_guest, reason) in table {
            let end = describe(exit, said, signalled, "first\nlast line");
            assert_eq!(
                (end.by_guest, end.reason.as_str()),
                (by_guest, reason),
                "{exit:?}"
            );
        }
    }
}
