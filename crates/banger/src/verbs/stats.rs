//! `stats`: what a VM uses.

use banger_api::Empty;
use banger_api::endpoint::VmStats;
use banger_api::vm::{NETWORK_METRICS, VmStats as Measured, VmStatsResult};
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
        let network = Traffic::of(&stats);
        let mut table = Table::new([
            "NAME",
            "CPU%",
            "RSS",
            "VSZ",
            "OVERLAY",
            "DISK",
            "SENT",
            "RECEIVED",
            "FLOWS",
            "REFUSED",
            "COLLECTED",
        ]);
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
            size(network.sent),
            size(network.received),
            network.flows,
            network.refused,
            stats.collected_at.unwrap_or_default(),
        ]);
        super::print_text(&table.render())
    }
}

/// What went through the gateway of a VM; all of it is empty without one.
#[derive(Debug, Default, PartialEq, Eq)]
struct Traffic {
    sent: Option<u64>,
    received: Option<u64>,
    /// Open ones of TCP and UDP.
    flows: String,
    /// How often, and what for.
    refused: String,
}

impl Traffic {
    fn of(stats: &Measured) -> Self {
        let Some(said) = stats.metrics_raw.get(NETWORK_METRICS) else {
            return Self::default();
        };
        let number = |name: &str| said[name].as_u64();
        let flows = [number("tcp_flows"), number("udp_flows")];
        let reasons: Vec<(&String, u64)> = said["refused"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(reason, count)| Some((reason, count.as_u64()?)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let each: Vec<String> = reasons
            .iter()
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        let total: u64 = reasons.iter().map(|(_, count)| count).sum();
        Self {
            sent: number("bytes_out"),
            received: number("bytes_in"),
            flows: flows.into_iter().flatten().sum::<u64>().to_string(),
            refused: if each.is_empty() {
                "0".to_owned()
            } else {
                format!("{total} ({})", each.join(", "))
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_shown_with_the_reasons_of_what_was_refused() {
        assert_eq!(Traffic::of(&Measured::default()), Traffic::default());
        let mut stats = Measured::default();
        let said = serde_json::json!({
            "bytes_out": 5, "bytes_in": 7, "tcp_flows": 2, "udp_flows": 1, "half_open": 9,
            "refused": {"host_address": 3, "metadata": 1, "route": 0}, "dropped": {"x": 4},
        });
        stats.metrics_raw.insert(NETWORK_METRICS.to_owned(), said);
        let traffic = Traffic::of(&stats);
        assert_eq!((traffic.sent, traffic.received), (Some(5), Some(7)));
        assert_eq!(traffic.flows, "3");
        assert_eq!(traffic.refused, "4 (host_address 3, metadata 1)");

        stats
            .metrics_raw
            .insert(NETWORK_METRICS.to_owned(), serde_json::json!({}));
        assert_eq!(Traffic::of(&stats).refused, "0");
    }
}
