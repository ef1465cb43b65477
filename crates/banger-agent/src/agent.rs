//! What the routes, the commands and the end share: the machine's state, the
//! events told to the daemon, and the lists of what lives.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use banger_wire::agent::{Boot, Booted, Event, Health};
use bytes::Bytes;
use tokio::sync::{Notify, SetOnce, mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::boot::{self, BootError};
use crate::init::Init;

/// The one agent of the machine.
pub(crate) struct Agent {
    /// Everything that outlives a connection runs in here.
    pub(crate) tasks: TaskTracker,
    /// `/dev/null`, opened before any guest could replace it.
    pub(crate) null: OwnedFd,
    /// The daemon has seen the end.
    pub(crate) end_seen: Notify,
    boot: Mutex<BootState>,
    guest: SetOnce<Guest>,
    events: watch::Sender<Vec<Event>>,
    stop: watch::Sender<Option<Duration>>,
    commands: watch::Sender<Commands>,
    /// Who wants the root packed at the end.
    pack: Mutex<Option<mpsc::Sender<Bytes>>>,
}

/// The machine with its root assembled.
pub(crate) struct Guest {
    /// What was asked for.
    pub(crate) request: Boot,
    /// The process beside the agent.
    pub(crate) init: Init,
}

type BootResult = Option<Result<Booted, Arc<BootError>>>;

enum BootState {
    Fresh,
    Asked {
        request: Box<Boot>,
        result: watch::Receiver<BootResult>,
    },
    Over(Option<watch::Receiver<BootResult>>),
}

/// The commands that live, by number.
#[derive(Default)]
struct Commands {
    next: u64,
    alive: BTreeMap<u64, Stage>,
    closed: bool,
}

/// How far a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It will have a process.
    Starting,
    /// It leads this session.
    Leads(i32),
    /// It ended; its output is still on the way.
    Over,
}

/// Why the agent will not do it now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// A different boot was done.
    #[error("the machine is already booted differently")]
    Booted,
    /// The root could not be assembled.
    #[error("cannot boot: {}", crate::chain(.0.as_ref()))]
    Failed(Arc<BootError>),
    /// Nothing runs before the boot.
    #[error("the machine is not booted yet")]
    NotBooted,
    /// The end has begun.
    #[error("the machine is stopping")]
    Stopping,
    /// As many commands as may run.
    #[error("too many commands at once")]
    TooMany,
}

impl Agent {
    pub(crate) fn new(null: OwnedFd) -> Self {
        Self {
            tasks: TaskTracker::new(),
            null,
            end_seen: Notify::new(),
            boot: Mutex::new(BootState::Fresh),
            guest: SetOnce::new(),
            events: watch::Sender::new(Vec::new()),
            stop: watch::Sender::new(None),
            commands: watch::Sender::new(Commands::default()),
            pack: Mutex::default(),
        }
    }

    /// Boots, or gives the result of the same boot asked for before. The work
    /// goes on when the asker leaves.
    pub(crate) async fn boot(self: &Arc<Self>, request: Boot) -> Result<Booted, Refused> {
        let mut result = match &mut *self.lock_boot() {
            BootState::Over(_) => return Err(Refused::Stopping),
            BootState::Asked {
                request: before,
                result,
            } if same_boot(before, &request) => result.clone(),
            BootState::Asked { .. } => return Err(Refused::Booted),
            state @ BootState::Fresh => {
                let (sender, result) = watch::channel(None);
                *state = BootState::Asked {
                    request: Box::new(request.clone()),
                    result: result.clone(),
                };
                let agent = Arc::clone(self);
                self.tasks.spawn(async move {
                    let booted = boot::run(&agent, request).await.map_err(Arc::new);
                    sender.send_replace(Some(booted));
                });
                result
            }
        };
        let booted = result
            .wait_for(Option::is_some)
            .await
            .map_err(|_| Refused::Stopping)?
            .clone();
        booted.ok_or(Refused::Stopping)?.map_err(Refused::Failed)
    }

    fn lock_boot(&self) -> MutexGuard<'_, BootState> {
        self.boot
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes the assembled machine; called once, by the boot.
    pub(crate) fn set_guest(&self, guest: Guest) {
        let _ = self.guest.set(guest);
    }

    /// The machine, once its root stands.
    pub(crate) fn guest(&self) -> Option<&Guest> {
        self.guest.get()
    }

    /// Waits until the root stands.
    pub(crate) async fn booted(&self) -> &Guest {
        self.guest.wait().await
    }

    pub(crate) fn health(&self) -> Health {
        Health {
            booted: self.guest().is_some(),
            healthy: self.events.borrow().contains(&Event::Healthy),
        }
    }

    /// Tells the daemon, now and whenever it asks.
    pub(crate) fn tell(&self, event: Event) {
        self.events.send_if_modified(|events| {
            let new = !events.contains(&event);
            if new {
                events.push(event);
            }
            new
        });
    }

    pub(crate) fn events(&self) -> watch::Receiver<Vec<Event>> {
        self.events.subscribe()
    }

    /// Whether anybody listens to the events.
    pub(crate) fn is_heard(&self) -> bool {
        self.events.receiver_count() > 0
    }

    /// Asks for the end; the first asking counts.
    pub(crate) fn ask_stop(&self, grace: Duration) {
        self.stop
            .send_if_modified(|asked| asked.replace(grace).is_none());
    }

    /// Asks for the end, and before the disks are put away for the root as
    /// frames of an archive.
    pub(crate) fn ask_pack(&self, grace: Duration) -> Result<mpsc::Receiver<Bytes>, Refused> {
        if self.guest().is_none() {
            return Err(Refused::NotBooted);
        }
        let (to, frames) = mpsc::channel(1);
        let mut first = false;
        self.stop.send_if_modified(|asked| {
            first = asked.is_none();
            if first {
                // Before anybody sees that the end was asked for.
                *self.lock_pack() = Some(to);
                *asked = Some(grace);
            }
            first
        });
        first.then_some(frames).ok_or(Refused::Stopping)
    }

    /// Who asked for the root, once.
    pub(crate) fn take_pack(&self) -> Option<mpsc::Sender<Bytes>> {
        self.lock_pack().take()
    }

    fn lock_pack(&self) -> MutexGuard<'_, Option<mpsc::Sender<Bytes>>> {
        self.pack
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) async fn stop_asked(&self) -> Duration {
        let mut asked = self.stop.subscribe();
        let grace = asked.wait_for(Option::is_some).await.map(|grace| *grace);
        grace.ok().flatten().unwrap_or_default()
    }

    /// Registers a command that is about to run, unless the end has begun or
    /// `limit` of them live.
    pub(crate) fn admit(self: &Arc<Self>, limit: usize) -> Result<Alive, Refused> {
        if self.guest().is_none() {
            return Err(Refused::NotBooted);
        }
        let mut admitted = Err(Refused::Stopping);
        self.commands.send_modify(|commands| {
            if commands.closed {
                return;
            }
            if commands.alive.len() >= limit {
                admitted = Err(Refused::TooMany);
                return;
            }
            commands.next += 1;
            commands.alive.insert(commands.next, Stage::Starting);
            admitted = Ok(commands.next);
        });
        admitted.map(|number| Alive {
            agent: Arc::clone(self),
            number,
        })
    }

    /// How many commands live.
    pub(crate) fn commands_alive(&self) -> usize {
        self.commands.borrow().alive.len()
    }

    /// Admits no command and no boot from now on.
    pub(crate) fn close(&self) {
        let mut state = self.lock_boot();
        let pending = match &*state {
            BootState::Fresh => None,
            BootState::Asked { result, .. } => Some(result.clone()),
            BootState::Over(result) => result.clone(),
        };
        *state = BootState::Over(pending);
        drop(state);
        self.commands.send_modify(|commands| commands.closed = true);
    }

    /// The sessions of the commands that run.
    pub(crate) fn sessions(&self) -> Vec<i32> {
        let commands = self.commands.borrow();
        let session = |stage: &Stage| match stage {
            Stage::Leads(session) => Some(*session),
            Stage::Starting | Stage::Over => None,
        };
        commands.alive.values().filter_map(session).collect()
    }

    /// Waits until no command has a process.
    pub(crate) async fn commands_over(&self) {
        let is_over = |commands: &Commands| commands.alive.values().all(|at| *at == Stage::Over);
        let _ = self.commands.subscribe().wait_for(is_over).await;
    }

    /// Waits until the last output of every command was taken.
    pub(crate) async fn outputs_over(&self) {
        let _ = self
            .commands
            .subscribe()
            .wait_for(|commands| commands.alive.is_empty())
            .await;
    }

    /// Waits for a boot that is under way.
    pub(crate) async fn boot_over(&self) {
        let pending = match &*self.lock_boot() {
            BootState::Over(result) => result.clone(),
            BootState::Fresh | BootState::Asked { .. } => None,
        };
        if let Some(mut result) = pending {
            let _ = result.wait_for(Option::is_some).await;
        }
    }
}

/// A place among the living commands, given back when dropped.
pub(crate) struct Alive {
    agent: Arc<Agent>,
    /// Its number, unique in this machine's life.
    pub(crate) number: u64,
}

impl Alive {
    /// Names the session that the command leads.
    pub(crate) fn leads(&self, session: i32) {
        self.set(Stage::Leads(session));
    }

    /// The command's process is gone.
    pub(crate) fn over(&self) {
        self.set(Stage::Over);
    }

    fn set(&self, stage: Stage) {
        self.agent.commands.send_modify(|commands| {
            commands.alive.insert(self.number, stage);
        });
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.agent.commands.send_modify(|commands| {
            commands.alive.remove(&self.number);
        });
    }
}

/// Whether two requests ask for the same machine. Clock and seed differ from
/// one asking to the next.
fn same_boot(one: &Boot, other: &Boot) -> bool {
    let mut other = other.clone();
    other.clock_unix_ns = one.clock_unix_ns;
    other.entropy_hex.clone_from(&one.entropy_hex);
    *one == other
}
