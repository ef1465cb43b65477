//! `delete` (`rm`): stop VMs and remove their disks.

use banger_api::Empty;
use banger_api::endpoint::{Endpoint, VmDelete};
use banger_api::vm::State;
use clap::Args;

use super::power::Vms;
use crate::client::At;
use crate::client::start::Place;
use crate::failure::Failure;
use crate::{ask, many};

/// Stop VMs and remove their disks; cannot be undone
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  banger delete box
  banger rm -f box other
  banger rm --unless-running box")]
pub(crate) struct Delete {
    #[command(flatten)]
    vms: Vms,
    /// Do not ask, though one runs
    #[arg(short, long)]
    force: bool,
    /// Refuse a VM that is not at rest
    #[arg(long)]
    unless_running: bool,
}

impl Delete {
    /// Asks where one runs and somebody is there, then deletes.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let asking = !self.force && !self.unless_running && ask::possible();
        let targets = many::targets(&client, &self.vms.vms, asking).await;
        if asking {
            let live: Vec<&str> = targets
                .iter()
                .flatten()
                .filter_map(|target| target.vm.as_ref())
                .filter(|vm| !at_rest(vm.state))
                .map(|vm| vm.name.as_str())
                .collect();
            if !live.is_empty() && !ask::yes(&format!("delete {}, which runs?", live.join(", ")))? {
                return Err(Failure::silent(crate::failure::USAGE));
            }
        }
        let query: &[(&str, &str)] = if self.unless_running {
            &[("unless_running", "true")]
        } else {
            &[]
        };
        many::operate(place, &client, targets, self.vms.quiet, async |target| {
            let at = At {
                path: &[target.path()],
                query,
            };
            let body = client.body::<VmDelete>(at, &Empty {}).await?;
            Ok(super::read::<<VmDelete as Endpoint>::Reply>(&body)?.operation)
        })
        .await
    }
}

/// Whether nothing of the VM lives.
pub(crate) fn at_rest(state: State) -> bool {
    matches!(state, State::Created | State::Stopped | State::Error)
}
