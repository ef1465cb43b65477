//! `set` and `rename`: change a VM that exists.

use banger_api::endpoint::VmSet;
use banger_api::vm::VmSetParams;
use clap::{ArgGroup, Args};

use super::create::nat;
use super::power::Vms;
use crate::client::start::Place;
use crate::failure::Failure;
use crate::show::size::{parse_disk, parse_memory};
use crate::{complete, many, show};

/// Change VMs; sizes of stopped ones, and disks only grow
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("change").required(true).multiple(true),
    after_help = "Examples:
  banger set --vcpu 4 --memory 8G box
  banger set --disk-size 20G web db"
)]
pub(crate) struct Set {
    #[command(flatten)]
    vms: Vms,
    /// Virtual CPUs
    #[arg(long, group = "change", value_name = "N", value_parser = clap::value_parser!(i64).range(1..=32), allow_negative_numbers = true)]
    vcpu: Option<i64>,
    /// Memory, like 2G
    #[arg(long, group = "change", value_name = "SIZE", value_parser = parse_memory)]
    memory: Option<i64>,
    /// Size of the work disk
    #[arg(long, group = "change", value_name = "SIZE", value_parser = parse_disk)]
    disk_size: Option<String>,
    /// Size of the disk for changes of the root filesystem
    #[arg(long, group = "change", value_name = "SIZE", value_parser = parse_disk)]
    system_overlay_size: Option<String>,
    /// Let the guest reach the outside
    #[arg(long, group = "change", conflicts_with = "no_nat")]
    nat: bool,
    /// Keep the guest from the outside
    #[arg(long, group = "change")]
    no_nat: bool,
}

/// Rename a VM; its hostname follows at the next start
#[derive(Debug, Args)]
pub(crate) struct Rename {
    /// VM by name or id
    #[arg(value_name = "VM", add = complete::vms())]
    vm: String,
    /// New name
    #[arg(value_name = "NAME")]
    name: String,
}

impl Set {
    /// Changes them.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        let params = VmSetParams {
            vcpu_count: self.vcpu,
            memory_mib: self.memory,
            work_disk_size: self.disk_size,
            nat_enabled: nat(self.nat, self.no_nat),
            system_overlay_size: self.system_overlay_size,
            name: None,
        };
        let client = place.reach().await?;
        let targets = many::targets(&client, &self.vms.vms, false).await;
        many::call(targets, self.vms.quiet, async |target| {
            let shown = client.call::<VmSet>(&[target.path()], &params).await?;
            Ok(shown.vm)
        })
        .await
    }
}

impl Rename {
    /// Renames it.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        let params = VmSetParams {
            name: Some(self.name),
            ..VmSetParams::default()
        };
        let client = place.reach().await?;
        let shown = client.call::<VmSet>(&[&self.vm], &params).await?;
        show::line(&show::escape(&shown.vm.name))?;
        Ok(0)
    }
}
