//! `show`: one VM, all of it.

use banger_api::Empty;
use banger_api::endpoint::VmShow;
use banger_api::vm::{VmRecord, VmShowResult};
use clap::Args;

use crate::client::At;
use crate::client::start::Place;
use crate::complete;
use crate::failure::Failure;
use crate::show::size::exact;
use crate::show::table::facts;

/// Show a VM
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// VM by name or id
    #[arg(value_name = "VM", add = complete::vms())]
    vm: String,
    /// Print the API's answer
    #[arg(long)]
    json: bool,
}

impl Show {
    /// Shows it.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let body = client
            .body::<VmShow>(At::path(&[&self.vm]), &Empty {})
            .await?;
        if self.json {
            return super::print_body(&body);
        }
        let shown: VmShowResult = super::read(&body)?;
        super::print_text(&text(&shown.vm))
    }
}

fn text(vm: &VmRecord) -> String {
    let run = &vm.runtime;
    let or_empty = |value: &Option<String>| value.clone().unwrap_or_default();
    let engine = [
        or_empty(&run.engine),
        or_empty(&run.engine_version),
        or_empty(&run.acceleration),
    ]
    .into_iter()
    .filter(|word| !word.is_empty())
    .collect::<Vec<_>>()
    .join(" ");
    facts(&[
        ("id", vm.id.clone()),
        ("name", vm.name.clone()),
        ("state", vm.state.name().to_owned()),
        ("goal", run.goal.clone()),
        ("last error", or_empty(&run.last_error)),
        ("image", vm.image_id.clone()),
        ("kernel", vm.spec.kernel_name.clone().unwrap_or_default()),
        ("vcpu", vm.spec.vcpu_count.to_string()),
        ("memory", exact(vm.spec.memory_mib << 20)),
        ("disk", exact(vm.spec.work_disk_size_bytes)),
        ("system overlay", exact(vm.spec.system_overlay_size_bytes)),
        ("network", vm.spec.network_mode.clone()),
        ("network error", or_empty(&run.network_error)),
        (
            "nat",
            if vm.spec.nat_enabled { "yes" } else { "no" }.to_owned(),
        ),
        ("ip", run.guest_ip.clone()),
        (
            "auto remove",
            if vm.spec.auto_remove {
                "yes".to_owned()
            } else {
                String::new()
            },
        ),
        ("engine asked for", vm.spec.engine.clone()),
        ("engine", engine),
        ("agent version", or_empty(&run.agent_version)),
        ("kernel version", or_empty(&run.kernel_version)),
        ("boot id", or_empty(&run.boot_id)),
        ("log", or_empty(&run.log_path)),
        ("directory", run.vm_dir.clone()),
        ("created", vm.created_at.clone()),
        ("updated", vm.updated_at.clone()),
        ("last used", vm.last_touched_at.clone()),
    ])
}
