//! The first process of the guest's own PID and mount namespace: the image's
//! init, or the agent's stub. Started here, watched here, asked to end here.
//!
//! ```text
//! clone ─► mounts of the namespace ─► "standing" ─► waits at the gate ─► exec
//!                                        └► spawner enters; main command
//! ```

pub(crate) mod kind;
mod namespace;
pub(crate) mod stub;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banger_sys::guest::launch::{FAILURE_LEN, Failure};
use banger_sys::guest::signals;
use banger_wire::agent::{EndReason, Event, Init as Kind};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::{Notify, watch};

use crate::agent::Agent;
use crate::boot::Warnings;
use crate::console::say;
use crate::edge::watched;
use crate::exec::spawner::Spawner;

pub(crate) use kind::{Found, find};
pub(crate) use namespace::{EXEC_GROUP, make_groups, start};

/// How long the init waits for a command that was announced.
const GATE_LIMIT: Duration = Duration::from_secs(5);
/// Largest notification that is read, bytes.
const MAX_NOTIFICATION: usize = 8 << 10;

/// Why there is no init.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    /// The notification socket or another of the agent's own tools.
    #[error("cannot prepare {0}")]
    Prepare(&'static str, #[source] io::Error),
    /// The kernel made no process.
    #[error("cannot make the namespace")]
    Clone(#[source] io::Error),
    /// The namespace's own mounts failed.
    #[error("cannot set the namespace up: {step}")]
    SetUp {
        /// What was done.
        step: String,
        #[source]
        cause: io::Error,
    },
    /// Commands cannot enter.
    #[error("cannot enter the namespace")]
    Enter(#[source] io::Error),
}

/// A namespace that stands, its init waiting at the gate.
#[derive(Debug)]
pub(crate) struct Started {
    kind: Kind,
    pidfd: OwnedFd,
    report: OwnedFd,
    gate: OwnedFd,
    notify: std::os::unix::net::UnixDatagram,
    spawner: Spawner,
    main_follows: bool,
}

/// How the init ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InitEnd {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal; also how a namespace's reboot and power-off look.
    Killed(i32),
}

impl InitEnd {
    /// What the end means, where nobody outside asked for it.
    pub(crate) fn reason(self) -> EndReason {
        match self {
            Self::Killed(1) => EndReason::Reboot,
            Self::Killed(2) => EndReason::Poweroff,
            Self::Killed(_) | Self::Exited(_) => EndReason::Crash,
        }
    }

    /// In words.
    pub(crate) fn words(self) -> String {
        match self {
            Self::Killed(1) => "reboot".to_owned(),
            Self::Killed(2) => "power-off".to_owned(),
            Self::Killed(signal) => format!("init was killed by signal {signal}"),
            Self::Exited(status) => format!("init exited with status {status}"),
        }
    }
}

/// The init that runs, or waits at the gate.
pub(crate) struct Init {
    /// Which one it is.
    pub(crate) kind: Kind,
    /// Starts commands beside it.
    pub(crate) spawner: Spawner,
    pidfd: Arc<AsyncFd<OwnedFd>>,
    gate: Arc<Notify>,
    running: Arc<Mutex<bool>>,
    ended: watch::Receiver<Option<InitEnd>>,
}

impl Init {
    /// Lets the init run: the command it waited for has been started, or will
    /// not be.
    pub(crate) fn open_gate(&self) {
        self.gate.notify_one();
    }

    /// Waits for the init's end.
    pub(crate) async fn ended(&self) -> InitEnd {
        let mut ended = self.ended.clone();
        let end = ended
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|end| *end);
        // The watcher failed: as good as gone.
        end.unwrap_or(InitEnd::Exited(-1))
    }

    /// Asks the init to end in its own way; false where only a kill helps.
    pub(crate) async fn ask_to_end(&self, agent: &Agent) -> bool {
        if !*self
            .running
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
        {
            return false;
        }
        let signal = match kind::farewell(self.kind) {
            kind::Farewell::Signal(signal) => signal,
            kind::Farewell::Command(programs) => {
                return self
                    .spawner
                    .run_aside(programs, &agent.null, &agent.tasks)
                    .await;
            }
        };
        signals::send(self.pidfd.as_fd(), signal).is_ok()
    }

    /// Kills the init and with it everything in its namespace.
    pub(crate) fn kill(&self) {
        let _ = signals::send(self.pidfd.as_fd(), 9);
    }
}

/// Begins to watch a started init, in tasks of the agent.
pub(crate) fn watch(agent: &Arc<Agent>, started: Started, warnings: &mut Warnings) -> Init {
    let Started {
        kind,
        pidfd,
        report,
        gate,
        notify,
        spawner,
        main_follows,
    } = started;
    let pidfd = Arc::new(watched(pidfd).expect("a pidfd can be waited for"));
    let opened = Arc::new(Notify::new());
    let running = Arc::new(Mutex::new(false));
    let (tell_end, ended) = watch::channel(None);

    if !main_follows {
        opened.notify_one();
    }
    let (on_gate, is_running) = (Arc::clone(&opened), Arc::clone(&running));
    let healthy = Arc::clone(agent);
    agent.tasks.spawn(async move {
        let _ = tokio::time::timeout(GATE_LIMIT, on_gate.notified()).await;
        let _ = rustix::io::write(&gate, &1_u64.to_ne_bytes());
        match exec_outcome(report).await {
            Some(failure) => {
                let cause = io::Error::from_raw_os_error(failure.errno);
                say(&format!("the init does not run: {cause}"));
            }
            None => {
                *is_running
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner()) = true;
                if kind != Kind::Systemd {
                    healthy.tell(Event::Healthy);
                }
            }
        }
    });

    let awaited = Arc::clone(&pidfd);
    agent.tasks.spawn(async move {
        tell_end.send_replace(Some(end_of(&awaited).await));
    });

    let listener = notify
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UnixDatagram::from_std(notify));
    if let Some(socket) = warnings.note("notifications", listener) {
        let agent = Arc::clone(agent);
        agent
            .clone()
            .tasks
            .spawn(async move { listen(&agent, &socket, kind).await });
    }
    Init {
        kind,
        spawner,
        pidfd,
        gate: opened,
        running,
        ended,
    }
}

/// Waits until a launched program runs, or gives what stopped it.
pub(crate) async fn exec_outcome(report: OwnedFd) -> Option<Failure> {
    let flags = rustix::fs::OFlags::NONBLOCK;
    rustix::fs::fcntl_setfl(&report, flags).ok()?;
    let mut bytes = [0; FAILURE_LEN];
    let mut report = pipe::Receiver::from_owned_fd(report).ok()?;
    report.read_exact(&mut bytes).await.ok()?;
    Some(Failure::decode(bytes))
}

async fn end_of(pidfd: &AsyncFd<OwnedFd>) -> InitEnd {
    match wait_for_child(pidfd).await {
        Ok(status) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => InitEnd::Exited(code),
            (None, Some(signal)) => InitEnd::Killed(signal),
            (None, None) => InitEnd::Exited(-1),
        },
        Err(error) => {
            say(&format!("cannot wait for the init: {error}"));
            InitEnd::Exited(-1)
        }
    }
}

/// Waits for a child by its pidfd and takes its status. To be called by the
/// child's one owner.
pub(crate) async fn wait_for_child(pidfd: &AsyncFd<OwnedFd>) -> io::Result<WaitIdStatus> {
    loop {
        let mut ready = pidfd.readable().await?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(pidfd.as_fd()), options) {
            Ok(Some(status)) => return Ok(status),
            Ok(None) => ready.clear_ready(),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes notifications until the machine ends. Anybody in the guest may send
/// one; the worst a lie does is a guest that calls itself healthy.
async fn listen(agent: &Agent, socket: &tokio::net::UnixDatagram, kind: Kind) {
    let mut message = vec![0; MAX_NOTIFICATION];
    loop {
        let Ok(count) = socket.recv(&mut message).await else {
            return;
        };
        let ready = message[..count]
            .split(|byte| *byte == b'\n')
            .any(|line| line == b"READY=1");
        if ready && kind == Kind::Systemd {
            agent.tell(Event::Healthy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespaces_reboot_and_power_off_are_told_from_a_crash() {
        assert_eq!(InitEnd::Killed(1).reason(), EndReason::Reboot);
        assert_eq!(InitEnd::Killed(2).reason(), EndReason::Poweroff);
        assert_eq!(InitEnd::Killed(9).reason(), EndReason::Crash);
        assert_eq!(InitEnd::Exited(0).reason(), EndReason::Crash);
    }
}
