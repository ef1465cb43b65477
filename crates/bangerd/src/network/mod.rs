//! The way out of guests: what a guest in network mode `user` is told of its
//! network, the programs that carry its traffic, and whom the host asks for
//! names. Who keeps a gateway running beside its engine is with the VMs.
//!
//! ```text
//! guest ── line ── gateway ── ordinary sockets of the host
//!                     ▲
//!   daemon ───────────┘ control socket: engine, resolvers, counters, line
//! ```

mod gateway;
mod resolvers;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use banger_engine::machine::Nic;
use banger_model::VmId;
use banger_wire::agent::Network;
use banger_wire::gateway::{GATEWAY, GUEST, MTU, PREFIX_LENGTH, guest_mac};

pub(crate) use gateway::{HostGateways, find_gateway};

use crate::failure::Failure;

/// Where the host keeps the addresses of its resolvers.
pub(crate) const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Whether guests of this mode go out through a gateway.
pub(crate) fn has_gateway(mode: &str) -> bool {
    mode == "user"
}

/// Both ends of a new line, the engine's and the gateway's.
pub(crate) fn line() -> Result<(OwnedFd, Arc<OwnedFd>), Failure> {
    let (engine, gateway) = banger_engine::gateway::line()
        .map_err(|error| Failure::internal("cannot make a line to the gateway", &error))?;
    Ok((engine, Arc::new(gateway)))
}

/// The network card of a VM at the engine's end of its line.
pub(crate) fn card(vm: &VmId, line: OwnedFd) -> Nic {
    Nic {
        line: Arc::new(line),
        mac: guest_mac(vm.as_str()).expect("an id is 64 hex digits"),
        mtu: MTU,
    }
}

/// What a guest is told of its network, and whom it asks for names.
pub(crate) fn of_guest() -> (Network, Vec<String>) {
    let network = Network {
        address: format!("{GUEST}/{PREFIX_LENGTH}"),
        gateway: GATEWAY.to_string(),
        mtu: u32::from(MTU),
    };
    (network, vec![GATEWAY.to_string()])
}

/// Whom this host asks for names now.
pub(crate) fn resolvers_now() -> Vec<std::net::IpAddr> {
    resolvers::read(Path::new(RESOLV_CONF))
}
