//! `list` and `ps`.

use std::collections::HashMap;

use banger_api::Empty;
use banger_api::endpoint::{ImageList, VmList};
use banger_api::vm::{State, VmListResult, VmRecord};
use clap::Args;

use super::delete::at_rest;
use crate::client::start::Place;
use crate::client::{At, Client};
use crate::failure::Failure;
use crate::show::size::exact;
use crate::show::table::Table;
use crate::show::{Style, short_id};

/// How a list is printed.
#[derive(Debug, Args)]
pub(crate) struct ListFlags {
    /// Print the API's answer
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) json: bool,
    /// Print whole ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// List VMs
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only those in this state
    #[arg(long, value_name = "STATE", value_parser = ["created", "starting", "running", "paused", "stopping", "stopped", "error"])]
    state: Option<String>,
    #[command(flatten)]
    flags: ListFlags,
}

/// List VMs that are not at rest
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// All VMs
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    flags: ListFlags,
}

impl List {
    /// Lists.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let query: Vec<(&str, &str)> = self
            .state
            .as_deref()
            .map(|state| ("state", state))
            .into_iter()
            .collect();
        let body = client
            .body::<VmList>(
                At {
                    path: &[],
                    query: &query,
                },
                &Empty {},
            )
            .await?;
        if self.flags.json {
            return super::print_body(&body);
        }
        let list: VmListResult = super::read(&body)?;
        print(&client, &list.vms, self.flags.quiet).await
    }
}

impl Ps {
    /// Lists what lives, or all.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let mut list = client.get::<VmList>(At::default()).await?;
        if !self.all {
            list.vms.retain(|vm| !at_rest(vm.state));
        }
        if self.flags.json {
            let text = serde_json::to_string(&list).expect("records are plain JSON");
            crate::show::line(&text)?;
            return Ok(0);
        }
        print(&client, &list.vms, self.flags.quiet).await
    }
}

async fn print(client: &Client, vms: &[VmRecord], quiet: bool) -> Result<u8, Failure> {
    if quiet {
        return super::print_text(
            &vms.iter()
                .map(|vm| format!("{}\n", vm.id))
                .collect::<String>(),
        );
    }
    // A VM's image may have no name any more; its id is better than nothing.
    let images: HashMap<String, String> = if vms.is_empty() {
        HashMap::new()
    } else {
        let list = client.get::<ImageList>(At::default()).await?;
        list.images
            .into_iter()
            .map(|image| (image.id, image.name))
            .collect()
    };
    super::print_text(&table(vms, &images).render())
}

/// The table of VMs; `images` are names by id.
pub(crate) fn table(vms: &[VmRecord], images: &HashMap<String, String>) -> Table {
    let mut table = Table::new([
        "ID",
        "NAME",
        "STATE",
        "IMAGE",
        "IP",
        "VCPU",
        "MEM",
        "DISK",
        "WORKSPACE",
        "CREATED",
    ]);
    for vm in vms {
        let image = images
            .get(&vm.image_id)
            .map_or_else(|| short_id(&vm.image_id), String::as_str);
        table.row([
            short_id(&vm.id).to_owned(),
            vm.name.clone(),
            vm.state.name().to_owned(),
            image.to_owned(),
            vm.runtime.guest_ip.clone(),
            vm.spec.vcpu_count.to_string(),
            exact(vm.spec.memory_mib << 20),
            exact(vm.spec.work_disk_size_bytes),
            String::new(),
            vm.created_at.clone(),
        ]);
        table.style_last(2, state_style(vm.state));
    }
    table
}

/// Colour of a state.
fn state_style(state: State) -> Style {
    match state {
        State::Running => Style::Good,
        State::Starting | State::Stopping | State::Paused => Style::Busy,
        State::Error => Style::Bad,
        State::Created | State::Stopped => Style::Faint,
    }
}
