//! The image's own network managers. The card is set up before any of them
//! runs, and each is told to leave it alone: by files under `/run` that are
//! gone with the run, never by a change of the image.
//!
//! | Manager | How it knows |
//! |---|---|
//! | systemd-networkd, netplan | the first file that fits the card says `Unmanaged` |
//! | systemd-udevd | the first file that fits the card keeps its name |
//! | NetworkManager | the card is unmanaged, `resolv.conf` too |
//! | ifupdown, its like in busybox, ifupdown-ng | the card is in the state of what is up |
//! | dhcpcd | its unit is masked, or openrc finds it started |
//! | systemd-resolved, resolvconf | are told the name servers |
//!
//! What waits for networkd's cards has nothing to wait for: it would do so
//! until it gives up.

use std::io;

use banger_wire::agent::Init as Kind;

use super::Warnings;
use super::root::Root;
use super::rtnetlink::Link;

/// A name that sorts before every letter and digit: of all files that fit a
/// card, the first by name counts, whatever directory it is in.
const FIRST: &str = "!banger";
/// A name that sorts after most: of drop-ins, the last word counts.
const LAST: &str = "zz-banger.conf";
/// Units that would have cards of their own kind to wait for.
const WAITERS: [&str; 2] = [
    "systemd-networkd-wait-online.service",
    "systemd-networkd-wait-online@.service",
];

/// A file under `/run`.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    File(String, String),
    /// A link, and where it leads.
    Link(String, String),
}

/// Writes what the managers of this image read.
pub(super) fn tell(
    root: &Root,
    init: Option<Kind>,
    link: &Link,
    nameservers: &[String],
    warnings: &mut Warnings,
) {
    let starts = |level: &str| {
        root.locate(&format!("etc/runlevels/{level}/dhcpcd"))
            .is_ok()
    };
    let openrc = (starts("boot") || starts("default")).then(started_by_openrc);
    for place in places(init, link, nameservers).into_iter().chain(openrc) {
        match place {
            Place::File(path, text) => warnings.note(&path, root.write(&path, text.as_bytes())),
            Place::Link(path, target) => warnings.note(&path, make_link(root, &path, &target)),
        };
    }
}

fn make_link(root: &Root, path: &str, target: &str) -> io::Result<()> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let directory = root.make_dirs(directory, 0o755)?;
    Ok(rustix::fs::symlinkat(target, &directory, name)?)
}

fn places(init: Option<Kind>, link: &Link, nameservers: &[String]) -> Vec<Place> {
    let file = |path: &str, text: String| Place::File(format!("run/{path}"), text);
    let name = &link.name;
    let up = format!("lo=lo\n{name}={name}\n");
    let mut places = vec![
        file("ifstate", up.clone()),
        file("network/ifstate", up),
        // Newer ones keep one for each card, and believe only that.
        file("network/ifstate.lo", "lo\n".to_owned()),
        file(&format!("network/ifstate.{name}"), format!("{name}\n")),
        file(
            "NetworkManager/conf.d/banger.conf",
            network_manager(&mac(link)),
        ),
    ];
    if !nameservers.is_empty() {
        let path = format!("resolvconf/interface/{name}.banger");
        places.push(file(&path, super::files::resolv_conf(nameservers)));
    }
    if init == Some(Kind::Systemd) {
        places.extend(of_systemd(link, nameservers));
    }
    places
}

/// What openrc finds of a service that runs.
fn started_by_openrc() -> Place {
    Place::Link(
        "run/openrc/started/dhcpcd".to_owned(),
        "/etc/init.d/dhcpcd".to_owned(),
    )
}

fn of_systemd(link: &Link, nameservers: &[String]) -> Vec<Place> {
    let file = |path: String, text: String| Place::File(format!("run/systemd/{path}"), text);
    let (name, mac) = (&link.name, mac(link));
    // By its address: a name may be changed.
    let fits = format!("[Match]\nMACAddress={mac}\n\n[Link]\n");
    let mut places = vec![
        file(
            format!("network/{FIRST}.network"),
            format!("{fits}Unmanaged=yes\n"),
        ),
        file(
            format!("network/{FIRST}.link"),
            format!("{fits}Name={name}\n"),
        ),
    ];
    for unit in WAITERS {
        let nothing = "[Service]\nExecStart=\nExecStart=-/bin/true\n";
        places.push(file(format!("system/{unit}.d/{LAST}"), nothing.to_owned()));
    }
    for unit in ["dhcpcd.service", &format!("dhcpcd@{name}.service")] {
        places.push(Place::Link(
            format!("run/systemd/system/{unit}"),
            "/dev/null".to_owned(),
        ));
    }
    if !nameservers.is_empty() {
        let servers = nameservers.join(" ");
        places.push(file(
            format!("resolved.conf.d/{LAST}"),
            format!("[Resolve]\nDNS={servers}\nDomains=~.\n"),
        ));
    }
    places
}

fn network_manager(mac: &str) -> String {
    // Said twice: the list may be replaced by a file of the image's, which
    // knows no section of ours.
    format!(
        "[main]\ndns=none\n\n\
         [keyfile]\nunmanaged-devices+=mac:{mac}\n\n\
         [device-banger]\nmatch-device=mac:{mac}\nmanaged=0\n"
    )
}

fn mac(link: &Link) -> String {
    let digits: Vec<String> = link.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.join(":")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn link() -> Link {
        Link {
            index: 2,
            name: "eth0".to_owned(),
            mac: [0x52, 0x54, 0, 0xab, 1, 2],
        }
    }

    fn text(places: &[Place], wanted: &str) -> Option<String> {
        places.iter().find_map(|place| match place {
            Place::File(path, text) | Place::Link(path, text) if path == wanted => {
                Some(text.clone())
            }
            Place::File(..) | Place::Link(..) => None,
        })
    }

    #[test]
    fn the_card_is_known_to_networkd_by_its_address_in_the_first_of_all_files() {
        let places = places(Some(Kind::Systemd), &link(), &["10.0.2.2".to_owned()]);
        let network = text(&places, "run/systemd/network/!banger.network").unwrap();
        assert!(
            network.contains("MACAddress=52:54:00:ab:01:02\n"),
            "{network}"
        );
        assert!(network.contains("Unmanaged=yes"), "{network}");
        for other in [
            "00-all.network",
            "0.network",
            "-.network",
            "10-netplan-eth0.network",
        ] {
            assert!("!banger.network" < other, "{other}");
        }
        let resolved = text(&places, "run/systemd/resolved.conf.d/zz-banger.conf").unwrap();
        assert!(resolved.contains("DNS=10.0.2.2\n"), "{resolved}");
    }

    #[test]
    fn only_systemd_finds_traces_of_systemd() {
        // Programs take the directory of its units for a sign that it runs.
        for init in [
            None,
            Some(Kind::Stub),
            Some(Kind::Busybox),
            Some(Kind::Openrc),
        ] {
            let places = places(init, &link(), &["10.0.2.2".to_owned()]);
            let is_systemds = |place: &Place| match place {
                Place::File(path, _) | Place::Link(path, _) => path.starts_with("run/systemd"),
            };
            assert!(!places.iter().any(is_systemds), "{init:?}");
        }
    }

    #[test]
    fn nothing_is_written_but_under_run_and_no_name_server_is_none() {
        for init in [None, Some(Kind::Systemd), Some(Kind::Openrc)] {
            let places = places(init, &link(), &[]);
            for place in &places {
                let (Place::File(path, text) | Place::Link(path, text)) = place;
                assert!(path.starts_with("run/"), "{path}");
                assert!(!text.contains("DNS="), "{path}: {text}");
            }
        }
    }

    #[test]
    fn files_and_links_are_made_with_their_directories() {
        let path = std::env::temp_dir().join(format!("banger-managers-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        let root = Root::open(path.to_str().unwrap()).unwrap();
        let mut warnings = Warnings::default();
        tell(&root, Some(Kind::Systemd), &link(), &[], &mut warnings);
        assert!(warnings.0.is_empty(), "{:?}", warnings.0);
        let state = fs::read_to_string(path.join("run/network/ifstate")).unwrap();
        assert_eq!(state, "lo=lo\neth0=eth0\n");
        let state = fs::read_to_string(path.join("run/network/ifstate.eth0")).unwrap();
        assert_eq!(state, "eth0\n");
        let mask = fs::read_link(path.join("run/systemd/system/dhcpcd@eth0.service")).unwrap();
        assert_eq!(mask.to_str(), Some("/dev/null"));
        fs::remove_dir_all(path).unwrap();
    }
}
