//! One command from its first frame to its last.
//!
//! ```text
//! start ─► spawned ─► started ─► streams ─► process ended ─► drained ─► exit
//!                                   └─ client lost: HUP, KILL 10 s later
//!                                   └─ timeout:    TERM, KILL 10 s later, 124
//! ```

use std::fs::{self, OpenOptions};
use std::future::pending;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use banger_wire::agent::Exec;
use banger_wire::frames::{Channel, Control};
use bytes::Bytes;
use hyper::body::Incoming;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::spawner::{CANNOT, Ends, Order, SpawnError, Spawned};
use super::streams::{DRAIN, Frames, Input, feed, pump, signal_session};
use crate::agent::{Agent, Alive};
use crate::chain;
use crate::console::say;
use crate::edge::{Edge, watched};
use crate::init::{EXEC_GROUP, exec_outcome, wait_for_child};

/// How long the first frame may take. It comes with its request, so this is
/// only for a guest that hardly gets to run.
const FIRST_FRAME: Duration = Duration::from_secs(60);
/// How long a command has between the asking signal and KILL.
const KILL_AFTER: Duration = Duration::from_secs(10);
/// Exit code of a command that took too long.
const TIMED_OUT: i32 = 124;
const HUP: i32 = 1;
const KILL: i32 = 9;
const TERM: i32 = 15;

/// Runs one command, its frames from `body` and to `to`.
pub(crate) async fn serve(
    agent: Arc<Agent>,
    body: Incoming,
    alive: Alive,
    to: mpsc::Sender<Bytes>,
) {
    let last = command(&agent, Frames::new(body), &alive, &to).await;
    // No reader, no last word.
    let _ = to.send(last.frame().to_bytes()).await;
}

/// The command's whole life; gives the last frame.
async fn command(
    agent: &Arc<Agent>,
    mut frames: Frames,
    alive: &Alive,
    to: &mpsc::Sender<Bytes>,
) -> Control {
    let exec = match timeout(FIRST_FRAME, frames.next()).await {
        Ok(Ok(Some(frame))) if frame.channel == Channel::Control => match frame.control() {
            Ok(Control::Start { exec }) => *exec,
            _ => return refused("the first frame is no start".to_owned()),
        },
        Ok(Err(broken)) => return refused(broken.to_string()),
        _ => return refused("the first frame is no start".to_owned()),
    };
    let (is_main, limit) = (exec.main, exec.timeout_ms.map(Duration::from_millis));
    let has_terminal = exec.tty.is_some();
    let group = Group::new(alive.number);
    let spawned = spawn(agent, exec, &group).await;
    if let (true, Some(guest)) = (is_main, agent.guest()) {
        guest.init.open_gate();
    }
    let spawned = match spawned {
        Ok(spawned) => spawned,
        Err(error) => return refused(chain(&error)),
    };
    alive.leads(spawned.pid);
    let last = live(spawned, &mut frames, has_terminal, limit, alive, to).await;
    drop(group);
    last
}

async fn spawn(agent: &Agent, exec: Exec, group: &Group) -> Result<Spawned, SpawnError> {
    let guest = agent.guest().ok_or(SpawnError::Stopping)?;
    let null = agent.null.try_clone().map_err(SpawnError::Clone)?;
    let order = Order {
        exec,
        image_env: guest.request.image_env.clone(),
        image_cwd: guest.request.image_cwd.clone(),
        machine: guest.request.hostname.clone(),
        null,
        group: group.open(),
    };
    guest.init.spawner.spawn(order).await
}

fn refused(error: String) -> Control {
    Control::Error {
        error,
        exit_code: Some(CANNOT),
    }
}

/// From process to exit code.
async fn live(
    mut spawned: Spawned,
    frames: &mut Frames,
    has_terminal: bool,
    limit: Option<Duration>,
    alive: &Alive,
    to: &mpsc::Sender<Bytes>,
) -> Control {
    let pid = spawned.pid;
    let (pidfd, report) = match take_descriptors(&mut spawned) {
        Ok(both) => both,
        Err(error) => {
            signal_session(pid, KILL);
            return refused(format!("cannot wait for the command: {error}"));
        }
    };
    let failure = exec_outcome(report).await;
    if let Some(failure) = failure {
        let _ = wait_for_child(&pidfd).await;
        alive.over();
        let (error, code) = spawned.explain(failure);
        return Control::Error {
            error,
            exit_code: Some(code),
        };
    }
    let started = Control::Started {
        pid: guest_pid(pid),
    };
    let is_heard = to.send(started.frame().to_bytes()).await.is_ok();

    // Its output stays open until it is over, heard or not: a shell that is
    // hung up would die of its own last words before its trap runs.
    let mut attached = Attached::new(spawned.ends, pid);
    let end = match &mut attached {
        Ok(attached) if is_heard => {
            attached
                .run(&pidfd, frames, has_terminal, limit, alive, to)
                .await
        }
        Ok(_) => End::Lost,
        Err(error) => {
            say(&format!("cannot hold the streams of a command: {error}"));
            End::Lost
        }
    };
    match end {
        End::Exit { exit_code } => Control::Exit { exit_code },
        End::Lost => {
            signal_session(pid, HUP);
            if timeout(KILL_AFTER, wait_for_child(&pidfd)).await.is_err() {
                signal_session(pid, KILL);
                let _ = wait_for_child(&pidfd).await;
            }
            alive.over();
            drop(attached);
            refused("the stream was lost".to_owned())
        }
    }
}

/// Takes pidfd and report out of the spawned command.
fn take_descriptors(spawned: &mut Spawned) -> std::io::Result<(AsyncFd<OwnedFd>, OwnedFd)> {
    let pidfd = watched(spawned.pidfd.try_clone()?)?;
    Ok((pidfd, spawned.report.try_clone()?))
}

enum End {
    Exit { exit_code: i32 },
    Lost,
}

/// The agent's side of a running command.
struct Attached {
    outputs: Vec<(Channel, Edge)>,
    /// Until it is being fed.
    input: Option<Input>,
    pid: i32,
}

impl Attached {
    fn new(ends: Ends, pid: i32) -> std::io::Result<Self> {
        let (outputs, to, is_terminal) = match ends {
            Ends::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                let outputs = vec![
                    (Channel::Stdout, Edge::new(stdout)?),
                    (Channel::Stderr, Edge::new(stderr)?),
                ];
                (outputs, stdin.map(Edge::new).transpose()?, false)
            }
            Ends::Terminal(terminal) => {
                // Two ways to wait for one terminal: reading must not stop
                // writing.
                let input = Edge::new(terminal.try_clone()?)?;
                (
                    vec![(Channel::Stdout, Edge::new(terminal)?)],
                    Some(input),
                    true,
                )
            }
        };
        Ok(Self {
            outputs,
            input: Some(Input {
                to,
                is_terminal,
                group: pid,
            }),
            pid,
        })
    }

    async fn run(
        &mut self,
        pidfd: &AsyncFd<OwnedFd>,
        frames: &mut Frames,
        has_terminal: bool,
        limit: Option<Duration>,
        alive: &Alive,
        to: &mpsc::Sender<Bytes>,
    ) -> End {
        let Some(input) = self.input.take() else {
            return End::Lost;
        };
        let (outputs, pid) = (&self.outputs, self.pid);
        let over = watch::Sender::new(None);
        let pumps = outputs
            .iter()
            .map(|(channel, from)| pump(from, *channel, has_terminal, over.subscribe(), to));
        let mut pumps = pin!(futures_util::future::try_join_all(pumps));
        let mut feeding = pin!(feed(frames, input));
        let mut deadline = limit.map(|limit| Instant::now() + limit);
        let mut is_late = false;
        let (mut pumped, mut fed) = (false, false);
        let status = loop {
            tokio::select! {
                status = wait_for_child(pidfd) => break status,
                result = &mut pumps, if !pumped => match result {
                    Ok(_) => pumped = true,
                    Err(()) => return End::Lost,
                },
                result = &mut feeding, if !fed => match result {
                    Ok(()) => fed = true,
                    Err(_) => return End::Lost,
                },
                () = to.closed() => return End::Lost,
                () = at(deadline) => {
                    signal_session(pid, if is_late { KILL } else { TERM });
                    deadline = (!is_late).then(|| Instant::now() + KILL_AFTER);
                    is_late = true;
                }
            }
        };
        alive.over();
        over.send_replace(Some(Instant::now() + DRAIN));
        if !pumped {
            tokio::select! {
                _ = &mut pumps => {}
                () = to.closed() => {}
            }
        }
        let code = match status {
            Ok(status) => status
                .exit_status()
                .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
                .unwrap_or(CANNOT),
            Err(error) => {
                say(&format!("cannot wait for a command: {error}"));
                CANNOT
            }
        };
        End::Exit {
            exit_code: if is_late { TIMED_OUT } else { code },
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// The pid that the guest itself sees; zero where it is gone already.
fn guest_pid(pid: i32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.and_then(|ids| ids.split_ascii_whitespace().next_back()?.parse().ok())
        .unwrap_or(0)
}

/// A command's own control group, removed with the command, or by a later one
/// when something of it lives on.
struct Group {
    path: String,
}

impl Group {
    fn new(number: u64) -> Self {
        let path = format!("{EXEC_GROUP}/{number}");
        let _ = fs::create_dir(&path);
        Self { path }
    }

    fn open(&self) -> Option<OwnedFd> {
        let file = OpenOptions::new()
            .write(true)
            .open(format!("{}/cgroup.procs", self.path));
        file.ok().map(OwnedFd::from)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if fs::remove_dir(&self.path).is_ok() {
            return;
        }
        // Something of it lives on. Others that were left may be empty by now.
        let Ok(groups) = fs::read_dir(EXEC_GROUP) else {
            return;
        };
        for group in groups.flatten() {
            let is_empty = fs::read_to_string(group.path().join("cgroup.events"))
                .is_ok_and(|events| events.contains("populated 0"));
            if is_empty {
                let _ = fs::remove_dir(group.path());
            }
        }
    }
}
