//! The way out of guests: there by default, kept through deaths of gateways
//! and daemons, gone with its engine, and absent where nobody wants one.

use std::time::Duration;

use e2e::{House, Kernel, Root, house, wait};

const SOON: Duration = Duration::from_secs(60);

/// The gateway of the only VM that has one.
fn gateway(house: &House) -> Option<u32> {
    house.gateways().first().map(|process| process.pid)
}

/// Whether the guest's packets come back from its gateway.
fn goes_out(house: &House, vm: &str) -> bool {
    house.sh(vm, "ping -c 1 -W 5 10.0.2.2").code == 0
}

fn network_error(house: &House, vm: &str) -> Option<String> {
    let error = &house.vm(vm)["runtime"]["network_error"];
    error.as_str().map(str::to_owned)
}

#[test]
fn a_guest_keeps_its_way_out_when_gateways_and_daemons_die() {
    let house = House::with(Root::Bare, Kernel::Old);
    let _ = house.banger("list").ok();
    let before = house.census();
    let _ = house.banger("create --name box").ok();
    let first = gateway(&house).expect("a gateway");
    assert!(goes_out(&house, "box"));
    assert_eq!(
        house.sh("box", "cat /etc/resolv.conf").ok().line(),
        "nameserver 10.0.2.2"
    );
    let stats = house.banger("stats box --json").ok().json();
    let network = &stats["stats"]["metrics_raw"]["network"];
    assert!(
        network["bytes_out"].as_u64().is_some_and(|n| n > 0)
            && network["bytes_in"].as_u64().is_some_and(|n| n > 0),
        "{stats}"
    );

    // Replaced, and found and replaced by another daemon.
    house::kill(first);
    wait::until_true("another gateway", SOON, || {
        gateway(&house).is_some_and(|now| now != first)
    });
    assert!(goes_out(&house, "box"));
    let second = gateway(&house).expect("a gateway");
    house.kill_daemon();
    assert!(goes_out(&house, "box"));
    assert_eq!(gateway(&house), Some(second), "taken over");
    house::kill(second);
    wait::until_true("a third gateway", SOON, || {
        gateway(&house).is_some_and(|now| now != second)
    });
    assert!(goes_out(&house, "box"));
    assert_eq!(network_error(&house, "box"), None);

    // Lost with the only other holder of its line, and back after a restart.
    house.kill_daemon();
    house::kill(gateway(&house).expect("a gateway"));
    wait::until_true("the loss is told", SOON, || {
        network_error(&house, "box").is_some_and(|why| why.contains("after a restart"))
    });
    assert_eq!(house.state_of("box"), "running");
    assert!(!goes_out(&house, "box"));
    let _ = house.banger("restart box").ok();
    assert!(goes_out(&house, "box"));
    assert_eq!(network_error(&house, "box"), None);

    // It goes with its engine, however that ends.
    let id = house.vm("box")["id"].as_str().expect("an id").to_owned();
    house::kill(house.engine_pid(&id).expect("an engine"));
    wait::until_true("the end is known", SOON, || {
        house.state_of("box") == "error"
    });
    assert_eq!(gateway(&house), None);
    let _ = house.banger("start box").ok();
    assert!(goes_out(&house, "box"));
    let _ = house.banger("stop box").ok();
    assert_eq!(gateway(&house), None);
    let _ = house.banger("rm box").ok();
    house.assert_as_before(&before, SOON);
}

#[test]
fn a_guest_without_network_has_no_card_and_no_gateway() {
    let house = House::with(Root::Bare, Kernel::New);
    let _ = house.banger("create --name box --network none").ok();
    assert_eq!(gateway(&house), None);
    assert_eq!(house.sh("box", "ls /sys/class/net").ok().line(), "lo");
    assert_eq!(house.vm("box")["spec"]["nat_enabled"], false);
    let engine = house.engines().remove(0);
    assert!(!engine.command.contains("netdev"), "{}", engine.command);
    let stats = house.banger("stats box --json").ok().json();
    assert_eq!(
        stats["stats"]["metrics_raw"]["network"],
        serde_json::Value::Null
    );
    let _ = house.banger("restart box").ok();
    assert_eq!(gateway(&house), None);
}
