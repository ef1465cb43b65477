//! Networking modes: what each is, what it is not, and what an operating
//! system with ideas of its own makes of it.

use std::time::Duration;

use e2e::{House, Kernel, Root, disk, fixture, wait};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);

#[test]
fn without_a_network_there_is_no_card_and_no_gateway() {
    let house = House::with(Root::Bare, Kernel::New);
    let _ = house.banger("create --name alone --network none").ok();
    assert!(house.gateways().is_empty(), "{:?}", house.gateways());
    let cards = house.sh("alone", "ls /sys/class/net").ok().line();
    assert_eq!(cards, "lo");
    let vm = house.vm("alone");
    assert_eq!(vm["spec"]["network_mode"], "none");
    assert_eq!(vm["spec"]["nat_enabled"], false);
    assert_eq!(vm["runtime"]["guest_ip"], "");
    let _ = house.banger("rm -f alone").ok();

    let _ = house.banger("create --name box --nat").ok();
    let vm = house.vm("box");
    assert_eq!(vm["spec"]["network_mode"], "user");
    assert_eq!(vm["spec"]["nat_enabled"], true);
    assert_eq!(vm["runtime"]["guest_ip"], "", "it leads nowhere");
    assert_eq!(house.gateways().len(), 1);
    let seen = "ls /sys/class/net; cat /sys/class/net/eth0/mtu /etc/resolv.conf; ip -4 -o addr show eth0; ip route; ip -6 addr";
    let seen = house.sh("box", seen).ok().out();
    println!("{seen}");
    for wanted in [
        "65520",
        "nameserver 10.0.2.2",
        "10.0.2.15/24",
        "default via 10.0.2.2",
    ] {
        assert!(seen.contains(wanted), "{wanted}: {seen}");
    }
    assert!(!seen.contains("inet6 fe80"), "there is only IPv4: {seen}");
    // The same card at each start.
    let mac = || {
        house
            .sh("box", "cat /sys/class/net/eth0/address")
            .ok()
            .line()
    };
    let first = mac();
    let _ = house.banger("restart box").ok();
    assert_eq!(mac(), first);
}

#[test]
fn modes_that_are_not_there_or_contradict_are_named() {
    let house = House::with(Root::Bare, Kernel::New);
    let _ = house
        .banger("create --network bridge")
        .expect(2)
        .says("bridge");
    let _ = house
        .banger("create --network user --no-nat")
        .expect(2)
        .says("hint: --network none");
    let _ = house
        .banger("create --network none --nat")
        .expect(2)
        .says("hint: --network user");
    let refused = |body| {
        let reply = house.api("POST", "/v1/vms", Some(&body));
        assert!(reply.status >= 400, "{body}: {reply:?}");
        reply.code().to_owned()
    };
    assert_eq!(
        refused(json!({"name": "x", "network_mode": "bridge"})),
        "unsupported"
    );
    assert_eq!(
        refused(json!({"name": "x", "nat_enabled": false})),
        "bad_request"
    );
    assert!(house.vms().is_empty());
}

#[test]
fn a_systemd_with_a_network_manager_of_its_own_keeps_what_it_was_given() {
    let house = House::new();
    house.furnish(Root::Bookworm, Kernel::New);
    let image = fixture::networkd_root();
    disk::assert_clean(&image);
    let register = ["image", "register", "--name", "networkd", "--rootfs"].map(AsRef::as_ref);
    let _ = house
        .call(register.into_iter().chain([image.as_os_str()]))
        .run()
        .ok();
    let _ = house
        .banger("create --name box --image networkd --memory 512")
        .ok();
    // At first there is no bus yet that could be asked.
    let state = wait::until("systemd answers", SOON, || {
        let said = house.sh("box", "systemctl is-system-running --wait");
        (!said.err().contains("connect to bus")).then_some(said)
    });
    let failed = house.sh("box", "systemctl --failed --no-legend");
    assert_eq!(state.line(), "running", "{failed}");
    let active = |unit: &str| {
        let said = house.sh("box", &format!("systemctl is-active {unit}"));
        assert_eq!(said.line(), "active", "{unit}");
    };
    for unit in [
        "systemd-networkd",
        "systemd-udevd",
        "wants-online",
        "network-online.target",
    ] {
        active(unit);
    }
    let seen = || {
        let all = "ip -4 -o addr show dev eth0; ip route; grep -v '^#' /etc/resolv.conf; cat /sys/class/net/eth0/mtu";
        house.sh("box", all).ok().out()
    };
    let wanted = [
        "inet 10.0.2.15/24",
        "default via 10.0.2.2",
        "nameserver 10.0.2.2",
        "65520",
    ];
    let is_kept = |seen: &str| wanted.iter().all(|wanted| seen.contains(wanted));
    assert!(is_kept(&seen()), "{}", seen());
    // It has seen the card, so this is not what it has not got round to.
    wait::until_true("networkd has judged the card", SOON, || {
        let said = house
            .sh("box", "networkctl list --no-legend --no-pager")
            .out();
        println!("{said}");
        said.contains("eth0") && !said.contains("pending")
    });
    // Long enough for whoever would ask for another address, and give up.
    let _ = house.sh("box", "systemctl restart systemd-networkd").ok();
    wait::pause(Duration::from_secs(20));
    println!(
        "{}",
        house.sh("box", "networkctl status eth0 --no-pager").out()
    );
    assert!(is_kept(&seen()), "{}", seen());
    let state = house.sh("box", "systemctl is-system-running").line();
    assert_eq!(state, "running");
    wait::until_true("the gateway is reached", SOON, || {
        house
            .sh(
                "box",
                "ip neigh flush all; ping -c 1 -W 2 10.0.2.2 || getent hosts 10.0.2.2; ip neigh",
            )
            .out()
            .contains("52:55:0a:00:02:02")
    });
}
