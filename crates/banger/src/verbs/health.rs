//! `health` and `ping`: is the guest ready, does its agent answer.

use banger_api::endpoint::{VmHealth, VmPing};
use banger_api::error::Code;
use clap::Args;

use crate::client::At;
use crate::client::start::Place;
use crate::complete;
use crate::failure::Failure;
use crate::show::escape;

/// Tell whether a guest is ready; exit 4 where it is not yet
#[derive(Debug, Args)]
pub(crate) struct Health {
    /// VM by name or id
    #[arg(value_name = "VM", add = complete::vms())]
    vm: String,
}

/// Tell whether a guest's agent answers; exit 5 where it does not
#[derive(Debug, Args)]
pub(crate) struct Ping {
    /// VM by name or id
    #[arg(value_name = "VM", add = complete::vms())]
    vm: String,
}

impl Health {
    /// Tells.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let health = client.get::<VmHealth>(At::path(&[&self.vm])).await?;
        let (word, status) = if health.healthy {
            ("healthy", 0)
        } else {
            ("not healthy yet", Code::Busy.exit())
        };
        crate::show::line(&format!("{} {word}", escape(&health.name)))?;
        Ok(status)
    }
}

impl Ping {
    /// Tells.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let ping = client.get::<VmPing>(At::path(&[&self.vm])).await?;
        let (word, status) = if ping.alive {
            ("alive", 0)
        } else {
            ("does not answer", Code::GuestUnreachable.exit())
        };
        crate::show::line(&format!("{} {word}", escape(&ping.name)))?;
        Ok(status)
    }
}
