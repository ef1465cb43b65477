//! `prune`: delete every VM that is at rest.

use banger_api::Empty;
use banger_api::endpoint::{Endpoint, VmDelete, VmList};
use clap::Args;

use super::delete::at_rest;
use crate::client::At;
use crate::client::start::Place;
use crate::failure::{Failure, USAGE};
use crate::many::{self, Target};
use crate::{ask, show};

/// Delete all VMs that are created, stopped or in error
#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Print whole ids instead of names
    #[arg(short, long)]
    quiet: bool,
}

impl Prune {
    /// Asks, then deletes.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        if !self.force && !ask::possible() {
            return Err(
                Failure::usage("prune", "prune asks first, and there is no terminal").hint("-f"),
            );
        }
        let client = place.reach().await?;
        let mut vms = client.get::<VmList>(At::default()).await?.vms;
        vms.retain(|vm| at_rest(vm.state));
        if vms.is_empty() {
            return Ok(0);
        }
        if !self.force {
            for vm in &vms {
                show::note(&show::escape(&format!("{}  {}", vm.name, vm.state.name())));
            }
            if !ask::yes(&format!("delete these {} VMs with their disks?", vms.len()))? {
                return Err(Failure::silent(USAGE));
            }
        }
        let targets = vms
            .into_iter()
            .map(|vm| {
                Ok(Target {
                    reference: vm.name.clone(),
                    vm: Some(vm),
                })
            })
            .collect();
        many::operate(place, &client, targets, self.quiet, async |target| {
            // One that was started meanwhile stays.
            let at = At {
                path: &[target.path()],
                query: &[("unless_running", "true")],
            };
            let body = client.body::<VmDelete>(at, &Empty {}).await?;
            Ok(super::read::<<VmDelete as Endpoint>::Reply>(&body)?.operation)
        })
        .await
    }
}
