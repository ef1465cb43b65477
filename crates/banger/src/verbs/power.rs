//! `start`, `stop`, `restart`, `kill`: verbs on several VMs at once.

use std::time::Duration;

use banger_api::Empty;
use banger_api::endpoint::{VmKill, VmRestart, VmStart, VmStop};
use banger_api::vm::{VmKillParams, VmStopParams};
use clap::Args;

use crate::client::start::Place;
use crate::failure::Failure;
use crate::show::size::parse_duration;
use crate::{complete, many};

/// VMs by name, id or a unique prefix of an id.
#[derive(Debug, Args)]
pub(crate) struct Vms {
    /// VMs by name or id
    #[arg(required = true, value_name = "VM", add = complete::vms())]
    pub(crate) vms: Vec<String>,
    /// Print whole ids instead of names
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Boot VMs
#[derive(Debug, Args)]
pub(crate) struct Start {
    #[command(flatten)]
    vms: Vms,
}

/// Stop, then boot VMs; each gets a new boot id
#[derive(Debug, Args)]
pub(crate) struct Restart {
    #[command(flatten)]
    vms: Vms,
}

/// Stop VMs; all that was written is on their disks
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  banger stop web db
  banger stop --timeout 30s db")]
pub(crate) struct Stop {
    #[command(flatten)]
    vms: Vms,
    /// For processes of the guest to end
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    timeout: Duration,
}

/// End VMs by force
#[derive(Debug, Args)]
pub(crate) struct Kill {
    #[command(flatten)]
    vms: Vms,
    /// Signal to the engine
    #[arg(long, value_name = "SIGNAL", default_value = "KILL", value_parser = ["TERM", "INT", "KILL"], ignore_case = true)]
    signal: String,
}

impl Start {
    /// Starts them.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let targets = many::targets(&client, &self.vms.vms, false).await;
        many::operate(place, &client, targets, self.vms.quiet, async |target| {
            Ok(client
                .call::<VmStart>(&[target.path()], &Empty {})
                .await?
                .operation)
        })
        .await
    }
}

impl Restart {
    /// Restarts them.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let targets = many::targets(&client, &self.vms.vms, false).await;
        many::operate(place, &client, targets, self.vms.quiet, async |target| {
            Ok(client
                .call::<VmRestart>(&[target.path()], &Empty {})
                .await?
                .operation)
        })
        .await
    }
}

impl Stop {
    /// Stops them.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let timeout_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        let params = VmStopParams {
            timeout_ms: Some(timeout_ms),
        };
        let targets = many::targets(&client, &self.vms.vms, false).await;
        many::operate(place, &client, targets, self.vms.quiet, async |target| {
            Ok(client
                .call::<VmStop>(&[target.path()], &params)
                .await?
                .operation)
        })
        .await
    }
}

impl Kill {
    /// Kills them.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let params = VmKillParams {
            signal: Some(self.signal.to_ascii_uppercase()),
        };
        let targets = many::targets(&client, &self.vms.vms, false).await;
        many::operate(place, &client, targets, self.vms.quiet, async |target| {
            Ok(client
                .call::<VmKill>(&[target.path()], &params)
                .await?
                .operation)
        })
        .await
    }
}
