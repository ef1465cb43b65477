//! The guest's one network card: driver, address, route. All of it is there
//! before the first command may run; whether anything answers on the other end
//! of the wire is nobody's business here.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use banger_wire::agent::Network;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::rtnetlink::{Link, LinkNews, Rtnetlink};
use crate::early::{self, DriverError};

/// How long the card may take to appear once its driver is loaded.
const CARD: Duration = Duration::from_secs(5);

/// Why the guest has no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The request makes no sense.
    #[error("{0:?} is no IPv4 address with the length of its net")]
    Address(String),
    /// The request makes no sense.
    #[error("{0:?} is no IPv4 address of a gateway")]
    Gateway(String),
    /// The kernel has no driver for it.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The kernel does not say which cards there are.
    #[error("cannot look for the network card")]
    Look(#[source] io::Error),
    /// There is none.
    #[error("the machine has no network card")]
    NoCard,
    /// The kernel refuses.
    #[error("cannot {what} of {link}")]
    Refused {
        /// To follow "cannot".
        what: &'static str,
        /// The card.
        link: String,
        #[source]
        cause: io::Error,
    },
}

/// Loads the driver and sets the card up as the request wants it; gives the
/// card.
pub(super) fn bring_up(network: &Network) -> Result<Link, NetworkError> {
    super::beside("nic_driver", early::load_network_drivers)?;
    set_up(network)
}

fn set_up(network: &Network) -> Result<Link, NetworkError> {
    let (address, length) = parse_address(&network.address)
        .ok_or_else(|| NetworkError::Address(network.address.clone()))?;
    let gateway = network
        .gateway
        .parse()
        .map_err(|_| NetworkError::Gateway(network.gateway.clone()))?;
    let mut kernel = Rtnetlink::open().map_err(NetworkError::Look)?;
    let link = card(&mut kernel)?;
    let refused = |what| {
        let link = link.name.clone();
        move |cause| NetworkError::Refused { what, link, cause }
    };
    // Before the link is up: it would take an address by itself.
    without_ipv6(&link).map_err(refused("turn off IPv6"))?;
    kernel
        .add_address(&link, address, length)
        .map_err(refused("set the address"))?;
    kernel
        .bring_up(&link, network.mtu)
        .map_err(refused("set the packet size or the state"))?;
    kernel
        .add_default_route(&link, gateway)
        .map_err(refused("set the route"))?;
    Ok(link)
}

/// The oldest card: a machine of ours has one. The driver has usually made it
/// by the time that it is loaded.
fn card(kernel: &mut Rtnetlink) -> Result<Link, NetworkError> {
    let mut first = || {
        let cards = kernel.cards().map_err(NetworkError::Look)?;
        Ok::<_, NetworkError>(cards.into_iter().next())
    };
    if let Some(card) = first()? {
        return Ok(card);
    }
    let news = LinkNews::open().map_err(NetworkError::Look)?;
    let deadline = Instant::now() + CARD;
    loop {
        // Looked for after listening: a card that came in between is seen.
        if let Some(card) = first()? {
            return Ok(card);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(NetworkError::NoCard);
        }
        let limit = Timespec::try_from(left).expect("five seconds are a time");
        match poll(&mut [PollFd::new(&news, PollFlags::IN)], Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => news.take(),
            Err(error) => return Err(NetworkError::Look(error.into())),
        }
    }
}

fn without_ipv6(link: &Link) -> io::Result<()> {
    let setting = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", link.name);
    match fs::write(setting, "1") {
        // A kernel that knows no IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Address and length of the net, as in `10.0.2.15/24`.
fn parse_address(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, length) = text.split_once('/')?;
    let length = length.parse().ok().filter(|length| *length <= 32)?;
    Some((address.parse().ok()?, length))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;

    /// Says that a test's own copy runs where it may do as it likes.
    const INSIDE: &str = "BANGER_TEST_INSIDE";

    /// Runs a test once more in a network namespace of its own, after a
    /// command; false where this is that run.
    fn is_outside(test: &str, first: &str) -> bool {
        if std::env::var_os(INSIDE).is_some() {
            return false;
        }
        let script = format!("{first}\nexec \"$0\" --exact {test} --nocapture");
        let own = std::env::current_exe().unwrap();
        let done = Command::new("unshare")
            .args(["--map-root-user", "--net", "--", "sh", "-ec", &script])
            .arg(own)
            .env(INSIDE, "1")
            .output();
        let possible = Command::new("unshare")
            .args(["--map-root-user", "--net", "--", "ip", "link", "add"])
            .args(["other", "type", "veth", "peer", "name", "eth0"])
            .status();
        if !possible.is_ok_and(|status| status.success()) {
            eprintln!("skipped: no network cards can be made here");
            return true;
        }
        let done = done.unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let errors = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{said}{errors}");
        assert!(said.contains("1 passed"), "it was run: {said}");
        true
    }

    fn wanted() -> Network {
        Network {
            address: "10.0.2.15/24".to_owned(),
            gateway: "10.0.2.2".to_owned(),
            mtu: 65520,
        }
    }

    fn words(command: &str) -> String {
        let done = Command::new("sh").args(["-c", command]).output().unwrap();
        String::from_utf8(done.stdout).unwrap()
    }

    #[test]
    fn the_oldest_card_gets_address_route_and_packet_size_and_no_ipv6() {
        let test =
            "boot::network::tests::the_oldest_card_gets_address_route_and_packet_size_and_no_ipv6";
        // The peer's end is made first.
        if is_outside(test, "ip link add other type veth peer name eth0") {
            return;
        }
        let link = set_up(&wanted()).unwrap();
        assert_eq!(link.name, "eth0");
        let address = words("ip -4 -o addr show dev eth0");
        assert!(
            address.contains("inet 10.0.2.15/24 brd 10.0.2.255 scope global eth0"),
            "{address}"
        );
        let state = words("ip -o link show dev eth0");
        assert!(
            state.contains(",UP") && state.contains("mtu 65520"),
            "{state}"
        );
        let mac: Vec<String> = link.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(state.contains(&mac.join(":")), "{state}");
        // The other end of the wire is down: no carrier, and the route all the same.
        let routes = words("ip -4 route");
        assert!(routes.contains("default via 10.0.2.2 dev eth0"), "{routes}");
        // Only a carrier would bring it an address by itself: the setting tells.
        let setting = fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/disable_ipv6");
        assert!(
            setting.is_ok_and(|setting| setting == "1\n")
                || !Path::new("/proc/sys/net/ipv6").exists()
        );
        let other = words("ip -o addr show dev other; ip -o link show dev other");
        assert!(!other.contains("inet") && !other.contains(",UP"), "{other}");
        // The same once more changes nothing and is no error.
        assert_eq!(set_up(&wanted()).unwrap(), link);
        let nonsense = Network {
            gateway: "10.9.9.9".to_owned(),
            ..wanted()
        };
        assert!(matches!(
            set_up(&nonsense),
            Err(NetworkError::Refused {
                what: "set the route",
                ..
            })
        ));
    }

    #[test]
    fn a_card_that_comes_late_is_waited_for() {
        let test = "boot::network::tests::a_card_that_comes_late_is_waited_for";
        let late = "(sleep 0.5; ip link add other type veth peer name eth0) & :";
        if is_outside(test, late) {
            return;
        }
        assert_eq!(set_up(&wanted()).unwrap().name, "eth0");
    }

    #[test]
    fn an_address_has_the_length_of_its_net() {
        let address = Ipv4Addr::new(10, 0, 2, 15);
        assert_eq!(parse_address("10.0.2.15/24"), Some((address, 24)));
        for no in ["10.0.2.15", "10.0.2.15/33", "10.0.2/24", "::1/64", "/24"] {
            assert_eq!(parse_address(no), None, "{no}");
        }
    }
}
