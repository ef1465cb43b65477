//! `stats`: what a VM uses.

use banger_api::Empty;
use banger_api::endpoint::VmStats;
use banger_api::vm::VmStatsResult;
use clap::Args;

use crate::client::At;
use crate::client::start::Place;
use crate::complete;
use crate::failure::Failure;
use crate::show::size::about;
use crate::show::table::Table;

/// Show what a VM uses of the host
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// VM by name or id
    #[arg(value_name = "VM", add = complete::vms())]
    vm: String,
    /// Print the API's answer
    #[arg(long)]
    json: bool,
}

impl Stats {
    /// Shows it.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let body = client
            .body::<VmStats>(At::path(&[&self.vm]), &Empty {})
            .await?;
        if self.json {
            return super::print_body(&body);
        }
        let VmStatsResult { vm, stats } = super::read(&body)?;
        let size = |bytes: Option<u64>| bytes.map(about).unwrap_or_default();
        let mut table = Table::new(["NAME", "CPU%", "RSS", "VSZ", "OVERLAY", "DISK", "COLLECTED"]);
        table.row([
            vm.name,
            stats
                .cpu_percent
                .map(|percent| format!("{percent:.1}"))
                .unwrap_or_default(),
            size(stats.rss_bytes),
            size(stats.vsz_bytes),
            size(stats.system_overlay_bytes),
            size(stats.work_disk_bytes),
            stats.collected_at.unwrap_or_default(),
        ]);
        super::print_text(&table.render())
    }
}
