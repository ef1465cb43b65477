//! The one place that decides what may leave: the address that would really be
//! dialled goes in, a verdict comes out.
//!
//! ```text
//! constant ranges ─► addresses of the host ─► the kernel's own route ─► allow
//! ```
//!
//! The guest must not reach what listens on the host, by any address that the
//! host has at the moment of the question. The kernel's answer about the route
//! says that for almost all of them, and for `local` routes that no interface
//! has an address for. The list of addresses says it for those whose local
//! route is in a table of its own (VRFs). A question that fails is a refusal.
//!
//! What it cannot see: a router outside that leads back in, and rules of the
//! host's own packet filter that send outgoing packets somewhere else.

mod netlink;

use std::collections::HashSet;
use std::io;
use std::net::Ipv4Addr;

pub use crate::refusals::Reason;
use netlink::{Kernel, Route, Unknown};

/// May it leave?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allow,
    /// It may not.
    Refuse(Reason),
}

/// Nets that are closed whatever addresses and routes the host has; the first
/// that fits counts.
const CLOSED: [(Ipv4Addr, u8, Reason); 10] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, Reason::Reserved),
    (Ipv4Addr::new(127, 0, 0, 0), 8, Reason::Loopback),
    (Ipv4Addr::new(169, 254, 0, 0), 16, Reason::Metadata),
    // Where Azure, Alibaba and Oracle answer machines with their secrets.
    (Ipv4Addr::new(168, 63, 129, 16), 32, Reason::Metadata),
    (Ipv4Addr::new(100, 100, 100, 200), 32, Reason::Metadata),
    (Ipv4Addr::new(192, 0, 0, 192), 32, Reason::Metadata),
    (Ipv4Addr::new(224, 0, 0, 0), 4, Reason::Multicast),
    (Ipv4Addr::new(255, 255, 255, 255), 32, Reason::Broadcast),
    (Ipv4Addr::new(240, 0, 0, 0), 4, Reason::Reserved),
    // The guest's own net: what is there, the gateway answers itself.
    (
        banger_wire::gateway::GATEWAY,
        banger_wire::gateway::PREFIX_LENGTH,
        Reason::GuestSubnet,
    ),
];

/// What decides.
pub struct Policy {
    kernel: Kernel,
    /// The host's addresses, until the kernel tells of a change.
    own: Option<HashSet<Ipv4Addr>>,
    #[cfg(feature = "open-policy")]
    open: bool,
}

impl Policy {
    /// Opens what the questions need. Nothing is opened later, so that this
    /// works on in a process that may open nothing.
    ///
    /// # Errors
    /// Netlink sockets that cannot be had.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            kernel: Kernel::open()?,
            own: None,
            #[cfg(feature = "open-policy")]
            open: std::env::var_os("BANGER_GATEWAY_OPEN_POLICY").is_some_and(|yes| yes == "1"),
        })
    }

    /// May something be sent there, now? Asked anew for each connection, and
    /// for each datagram of a flow that lives on: the host may have been given
    /// the address since.
    pub fn decide(&mut self, to: Ipv4Addr) -> Verdict {
        #[cfg(feature = "open-policy")]
        if self.open {
            return Verdict::Allow;
        }
        if let Some(reason) = closed(to) {
            return Verdict::Refuse(reason);
        }
        match self.ask(to) {
            Ok(None) => Verdict::Allow,
            Ok(Some(reason)) => Verdict::Refuse(reason),
            Err(Unknown) => Verdict::Refuse(Reason::PolicyUnknown),
        }
    }

    fn ask(&mut self, to: Ipv4Addr) -> Result<Option<Reason>, Unknown> {
        if self.is_own(to)? {
            return Ok(Some(Reason::HostAddress));
        }
        Ok(match self.kernel.route(to)? {
            Route::Out => None,
            Route::NotOut => Some(Reason::Route),
        })
    }

    /// Whether an interface has this address. Asking for all of them holds up
    /// whoever changes a link or an address meanwhile, on older kernels, so
    /// that is done only after a change and not as often as the guest likes.
    fn is_own(&mut self, to: Ipv4Addr) -> Result<bool, Unknown> {
        if self.kernel.addresses_changed() {
            self.own = None;
        }
        let own = match self.own.take() {
            Some(own) => own,
            None => self.kernel.addresses()?,
        };
        let is_own = own.contains(&to);
        self.own = Some(own);
        Ok(is_own)
    }
}

/// Why an address is closed whatever the host looks like.
fn closed(to: Ipv4Addr) -> Option<Reason> {
    CLOSED
        .iter()
        .find(|(net, length, _)| {
            let mask = u32::MAX << (32 - u32::from(*length));
            to.to_bits() & mask == net.to_bits() & mask
        })
        .map(|&(_, _, reason)| reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closed_ranges_begin_and_end_where_they_should() {
        use Reason::*;
        let table = [
            ("0.0.0.0", Some(Reserved)),
            ("0.255.255.255", Some(Reserved)),
            ("1.0.0.0", None),
            ("10.0.1.255", None),
            ("10.0.2.0", Some(GuestSubnet)),
            ("10.0.2.2", Some(GuestSubnet)),
            ("10.0.2.15", Some(GuestSubnet)),
            ("10.0.2.255", Some(GuestSubnet)),
            ("10.0.3.0", None),
            ("100.100.100.199", None),
            ("100.100.100.200", Some(Metadata)),
            ("126.255.255.255", None),
            ("127.0.0.1", Some(Loopback)),
            ("127.255.255.255", Some(Loopback)),
            ("128.0.0.0", None),
            ("168.63.129.16", Some(Metadata)),
            ("168.63.129.17", None),
            ("169.253.255.255", None),
            ("169.254.0.0", Some(Metadata)),
            ("169.254.169.254", Some(Metadata)),
            ("169.254.255.255", Some(Metadata)),
            ("169.255.0.0", None),
            ("192.0.0.192", Some(Metadata)),
            ("192.168.0.1", None),
            ("203.0.113.10", None),
            ("223.255.255.255", None),
            ("224.0.0.1", Some(Multicast)),
            ("239.255.255.255", Some(Multicast)),
            ("240.0.0.0", Some(Reserved)),
            ("255.255.255.254", Some(Reserved)),
            ("255.255.255.255", Some(Broadcast)),
        ];
        for (address, reason) in table {
            assert_eq!(closed(address.parse().unwrap()), reason, "{address}");
        }
    }

    #[test]
    fn the_host_itself_is_refused_before_the_kernel_is_asked() {
        let mut policy = Policy::open().unwrap();
        let loopback = policy.decide(Ipv4Addr::LOCALHOST);
        assert_eq!(loopback, Verdict::Refuse(Reason::Loopback));
        assert!(policy.own.is_none(), "nobody asked for the addresses");
    }
}
