//! Commands in guests: waits for the guest, and holds the VM for as long as
//! the stream lives.

use std::sync::Arc;
use std::time::Duration;

use banger_api::error::Code;
use banger_api::vm::ExecParams;
use banger_model::VmId;
use banger_model::phase::{Entry, admit_entry};
use banger_wire::agent::{Exec as AgentExec, WindowSize};
use tokio::time::timeout;

use super::Vms;
use super::asks::not_running;
use super::house::{House, OpenStream, Presence};
use super::lease::Held;
use super::record::Vm;
use super::supervisor::Note;
use super::works::silence;
use crate::failure::Failure;
use crate::ports::{ExecStream, Guest};

/// A command that was sent to a guest.
pub(crate) struct Exec {
    /// Its streams.
    pub(crate) stream: ExecStream,
    /// To be kept until the client has let go.
    pub(crate) hold: Hold,
}

/// Holds a VM while a client's command runs in it.
pub(crate) struct Hold {
    presence: Arc<Presence>,
    house: Arc<House>,
    vm: VmId,
    main: bool,
    held: Option<Held>,
    _stream: OpenStream,
}

impl Hold {
    /// The command's end was passed on, or it will never come. Of the main
    /// command of a VM that removes itself, this ends the VM as soon as the
    /// client lets go.
    pub(crate) fn ended(&self) {
        if self.main && self.presence.auto_remove {
            self.presence.lease.over();
        }
    }

    /// Lets go. Where this was the main command of a VM that removes itself
    /// and it is [over](Self::ended), returns when nothing of that VM is left;
    /// otherwise at once.
    pub(crate) async fn gone(mut self) {
        let waits = self.held.take().is_some() && self.presence.lease.is_over();
        if waits {
            let mut live = self.presence.live.subscribe();
            // A sender that is dropped has nothing left to remove.
            let _ = live.wait_for(|live| live.gone).await;
        }
    }

    /// Returns when the VM no longer runs commands: why, where it ended by itself.
    pub(crate) async fn stopped(&self) -> Option<String> {
        let mut live = self.presence.live.subscribe();
        let closed = live
            .wait_for(|live| live.gone || admit_entry(live.phase, live.goal) == Entry::Closed)
            .await;
        closed.ok().and_then(|live| live.ended.clone())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // A stream that ends is a use, so that the time unused begins here.
        let _ = self.presence.queue.try_send(Note::Touch);
        tracing::debug!(vm = %self.vm, streams = self.presence.streams(), "a command's stream ended");
        let _ = &self.house;
    }
}

impl Vms {
    /// Runs a command. Waits while the VM starts.
    ///
    /// # Errors
    /// `not_found ambiguous not_running guest_unreachable`, and the agent's.
    pub(crate) async fn exec(&self, vm: &str, params: ExecParams) -> Result<Exec, Failure> {
        let vm = self.house.find(vm).await?;
        let presence = self
            .house
            .presence(&vm.id)
            .ok_or_else(|| not_running(&vm.name, vm.state().name()))?;
        let main = params.main;
        // Held from here on: the guest may take long to come.
        let held = (main && presence.auto_remove).then(|| presence.lease.clone().hold());
        let stream = presence.open();
        let guest = entered(&presence, &vm).await?;
        let _ = presence.queue.try_send(Note::Touch);
        let streams = guest.exec(agent_exec(params)).await?;
        let hold = Hold {
            presence,
            house: self.house.clone(),
            vm: vm.id,
            main,
            held,
            _stream: stream,
        };
        Ok(Exec {
            stream: streams,
            hold,
        })
    }
}

/// The guest, as soon as commands may run in it.
pub(super) async fn entered(presence: &Presence, vm: &Vm) -> Result<Arc<dyn Guest>, Failure> {
    let mut live = presence.live.subscribe();
    let kvm = loop {
        let now = live.borrow_and_update().clone();
        match (admit_entry(now.phase, now.goal), now.guest) {
            (Entry::Open, Some(guest)) => return Ok(guest),
            (Entry::Open, None) => break now.kvm,
            (Entry::Closed, _) => {
                let state = super::house::state_name(now.phase, now.goal);
                return Err(not_running(&vm.name, state));
            }
            (Entry::Wait, _) => {}
        }
        if live.changed().await.is_err() {
            return Err(not_running(&vm.name, "stopped"));
        }
    };
    // The connection is being made again.
    let limit = silence(kvm);
    let back = timeout(
        limit,
        live.wait_for(|live| {
            live.guest.is_some() || admit_entry(live.phase, live.goal) != Entry::Open
        }),
    )
    .await;
    match back {
        Ok(Ok(now)) => match &now.guest {
            Some(guest) => Ok(guest.clone()),
            None => Err(not_running(
                &vm.name,
                super::house::state_name(now.phase, now.goal),
            )),
        },
        Ok(Err(_)) => Err(not_running(&vm.name, "stopped")),
        Err(_) => Err(unreachable(&vm.name, limit)),
    }
}

pub(super) fn unreachable(name: &str, limit: Duration) -> Failure {
    let message = format!(
        "the agent of {name:?} did not answer for {} s",
        limit.as_secs()
    );
    Failure::new(Code::GuestUnreachable, message).hint(format!("banger logs {name}"))
}

fn agent_exec(params: ExecParams) -> AgentExec {
    let argv = if params.command.is_empty() {
        Vec::new()
    } else {
        std::iter::once(params.command).chain(params.args).collect()
    };
    AgentExec {
        argv,
        env: params.env,
        cwd: params.cwd,
        user: params.user,
        stdin: params.stdin,
        tty: params.tty.then(|| WindowSize {
            cols: params.cols.unwrap_or(80),
            rows: params.rows.unwrap_or(24),
        }),
        timeout_ms: params.timeout_ms,
        main: params.main,
    }
}
