//! A VM that the daemon itself needs for one piece of work: made for it,
//! removed with it. It removes itself, so that whatever becomes of this daemon
//! nothing of it stays.

use std::sync::Arc;
use std::time::Duration;

use banger_api::error::Code;
use banger_api::vm::{ExecParams, VmCreateParams};
use banger_images::Cancel;
use banger_model::phase::{Entry, admit_entry};
use banger_model::{OpId, VmId};
use banger_wire::agent::Stop;
use banger_wire::frames::Frame;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::exec::entered;
use super::house::Presence;
use super::lease::Held;
use super::{Exec, Vms};
use crate::artifact::cancelled;
use crate::failure::Failure;
use crate::operation::OpEvent;

/// How long the end of an engine and the removal of its disks may take before
/// nobody waits for them any more.
const GONE: Duration = Duration::from_secs(60);

/// A lent VM. Dropped, it is removed a while later.
pub(crate) struct Lent {
    vms: Vms,
    id: VmId,
    presence: Arc<Presence>,
    held: Held,
}

impl Vms {
    /// Makes a VM and waits until commands may run in it, telling what is
    /// being done. Nothing of it is left when this fails.
    ///
    /// # Errors
    /// Those of [`create`](Self::create), of the start, and `cancelled`.
    pub(crate) async fn lend(
        &self,
        params: VmCreateParams,
        cancel: Cancel,
        tell: impl Fn(&str),
    ) -> Result<Lent, Failure> {
        let mut random = [0; 6];
        getrandom::fill(&mut random)
            .map_err(|error| Failure::internal("the host has no random numbers", &error))?;
        let params = VmCreateParams {
            auto_remove: true,
            ..params
        };
        let begun = self.create(params, &OpId::from_random(random)).await?;
        let id = begun.vm_id.as_deref().and_then(|id| VmId::parse(id).ok());
        let id = id.expect("a create operation has the id of its VM");
        let presence = self.house.presence(&id);
        let lent = presence.map(|presence| Lent {
            vms: self.clone(),
            id,
            held: presence.lease.clone().hold(),
            presence,
        });
        let operations = &self.house.operations;
        let mut follow = operations.subscribe(&begun.id, None).await?;
        let mut stop = std::pin::pin!(cancelled(cancel));
        let mut leaving = false;
        let done = loop {
            tokio::select! {
                event = follow.next() => match event.map(|event| event.event) {
                    Some(OpEvent::Stage(stage)) => tell(&stage.stage),
                    Some(OpEvent::Done(done)) => break *done,
                    Some(_) => {}
                    None => break follow.operation(),
                },
                () = &mut stop, if !leaving => {
                    leaving = true;
                    let _ = operations.cancel(&begun.id).await;
                }
            }
        };
        match lent {
            Some(lent) if done.success => Ok(lent),
            lent => {
                if let Some(lent) = lent {
                    lent.give_back().await;
                }
                let code = done.error_code.unwrap_or(Code::GuestFailed);
                let why = done.error.unwrap_or_else(|| "it is gone".to_owned());
                Err(Failure::new(code, why))
            }
        }
    }
}

impl Lent {
    /// Waits until the image's init is up; false where that takes longer than
    /// `limit`, or the VM ends.
    pub(crate) async fn healthy(&self, limit: Duration) -> bool {
        let mut live = self.presence.live.subscribe();
        let up = live.wait_for(|now| {
            now.healthy || now.gone || admit_entry(now.phase, now.goal) == Entry::Closed
        });
        matches!(timeout(limit, up).await, Ok(Ok(now)) if now.healthy)
    }

    /// Returns when the host had no room for what the guest wrote, with the disk's serial: from
    /// then on nothing that the guest has on its disks can be trusted.
    pub(crate) async fn full(&self) -> String {
        let mut live = self.presence.live.subscribe();
        let found = live.wait_for(|now| now.full.is_some()).await;
        match found.ok().and_then(|now| now.full.clone()) {
            Some(disk) => disk,
            None => std::future::pending().await,
        }
    }

    /// Whether the processor runs the guest, or a program does.
    pub(crate) fn kvm(&self) -> bool {
        self.presence.live.borrow().kvm
    }

    /// Runs a command.
    ///
    /// # Errors
    /// Those of [`Vms::exec`].
    pub(crate) async fn exec(&self, params: ExecParams) -> Result<Exec, Failure> {
        self.vms.exec(self.id.as_str(), params).await
    }

    /// Ends the guest, and gives its root as the frames of an archive.
    ///
    /// # Errors
    /// `not_running guest_unreachable guest_failed`.
    pub(crate) async fn pack(&self, grace: Duration) -> Result<mpsc::Receiver<Frame>, Failure> {
        let vm = self.vms.house.find(self.id.as_str()).await?;
        let guest = entered(&self.presence, &vm).await?;
        let stop = Stop {
            grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
        };
        guest.pack(&stop).await
    }

    /// Removes it, and returns when nothing of it is left.
    pub(crate) async fn give_back(self) {
        let Self { presence, held, .. } = self;
        let mut live = presence.live.subscribe();
        presence.lease.over();
        drop(held);
        // What takes longer is the business of its supervisor, or of the next
        // daemon's.
        if timeout(GONE, live.wait_for(|now| now.gone)).await.is_err() {
            tracing::warn!("a VM that was lent is not gone yet");
        }
    }
}
