//! Killing gateway, daemon or engine in the middle of traffic: what should go
//! on goes on, what should end ends.

use std::time::{Duration, Instant};

use e2e::world::{OUTSIDE, SERVICE};
use e2e::{House, Kernel, Root, World, house, skip, wait};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
/// Bytes that no test waits for.
const WITHOUT_END: u64 = 1 << 50;

fn settled() -> Option<(House, World)> {
    let house = House::new();
    house.furnish(Root::Bare, Kernel::New);
    house.configure(&format!(
        "stats_poll_interval = \"1s\"\ndefault_image_name = \"bare\"\ndefault_kernel_name = \"k6.12\"\n{}",
        House::configuration()
    ));
    let world = World::around(&house, None)?;
    let _ = house.banger("create --name box").ok();
    world.equip(&house, "box");
    Some((house, world))
}

fn gateway(house: &House) -> u32 {
    let [gateway] = &house.gateways()[..] else {
        panic!("one gateway: {:?}", house.gateways());
    };
    gateway.pid
}

fn counters(house: &House) -> Value {
    wait::until("the gateway's counters come", SOON, || {
        let stats = house.banger("stats box --json").ok().json();
        let network = stats["stats"]["metrics_raw"]["network"].clone();
        network.is_object().then_some(network)
    })
}

fn has_ended(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.is_empty() || status.contains(") Z ")
}

#[test]
fn a_killed_gateway_is_replaced_and_the_guest_never_stops() {
    let Some((house, world)) = settled() else {
        skip!("this user may not make namespaces");
    };
    let at = format!("{OUTSIDE}:{SERVICE}");
    let boot_id = house.boot_id("box");
    let engine = house.engines()[0].pid;
    for round in 0..3 {
        let start = |line: &str| world.call_probe(&house, "box", line).start();
        // As fast as the machine can, both ways, far longer than the test.
        let tick = start(&format!("tick {at}"));
        let up = start(&format!("up {WITHOUT_END} {at}"));
        let _down = start(&format!("down {WITHOUT_END} {at}"));
        tick.wait_for_out("3\n", SOON);
        wait::until_true("all are under way", SOON, || {
            counters(&house)["tcp_flows"].as_u64() >= Some(3)
        });
        let knock = start(&format!("knock 8 {at}"));
        knock.wait_for_out("knocking", SOON);
        let killed = gateway(&house);
        house::kill(killed);
        let said = knock.wait().ok().line();
        println!("round {round}: {said}");
        let numbers: Vec<u64> = said
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect();
        let [connections, gap, still] = numbers[..] else {
            panic!("{said}");
        };
        assert!(connections > 3, "{said}");
        // Beside the time that the whole guest stood still, as a busy host makes it.
        let away = gap.saturating_sub(still);
        assert!(away < 1000, "the network was away for {away} ms");
        // Who sends hears that its connection is no more.
        assert!(tick.wait().ok().line().ends_with("reset"));
        assert_eq!(up.wait().ok().line(), "reset");
        assert_ne!(gateway(&house), killed);
        let vm = house.vm("box");
        assert_eq!(vm["state"], "running");
        assert!(vm["runtime"]["network_error"].is_null(), "{vm}");
    }
    assert_eq!(house.boot_id("box"), boot_id);
    assert_eq!(house.engines()[0].pid, engine);
}

#[test]
fn connections_outlive_the_daemon_and_a_new_one_takes_the_gateway_over() {
    let Some((house, world)) = settled() else {
        skip!("this user may not make namespaces");
    };
    let at = format!("{OUTSIDE}:{SERVICE}");
    let _ = house
        .sh(
            "box",
            &format!("/root/probe tick {at} > /root/ticks 2>&1 &"),
        )
        .ok();
    let ticks = || house.sh("box", "tail -n 1 /root/ticks").ok().line();
    let number = || {
        ticks()
            .parse::<u64>()
            .unwrap_or_else(|_| panic!("it ended: {}", ticks()))
    };
    wait::until_true("it ticks", SOON, || {
        ticks().parse::<u64>().is_ok_and(|n| n > 5)
    });
    let (before, sent) = (number(), counters(&house));
    let (pid, engine) = (gateway(&house), house.engines()[0].pid);
    house.kill_daemon();
    wait::pause(Duration::from_secs(3));
    let _ = world.banger(&house, &["list"]).ok();
    assert_eq!(house.state_of("box"), "running");
    assert!(
        number() > before + 20,
        "it ticked while no daemon was there"
    );
    assert_eq!((gateway(&house), house.engines()[0].pid), (pid, engine));
    // Counted on, not anew.
    let after = wait::until("the counters go on", SOON, || {
        let after = counters(&house);
        (after["bytes_out"].as_u64() > sent["bytes_out"].as_u64()).then_some(after)
    });
    assert!(
        after["tcp_opened"].as_u64() >= sent["tcp_opened"].as_u64(),
        "{after}"
    );
    assert!(after["tcp_flows"].as_u64() > Some(0), "{after}");
    // It has the line again: a gateway that dies is replaced by this daemon, too.
    house::kill(pid);
    let there = format!("try tcp:{at}");
    wait::until_true("another gateway serves", SOON, || {
        world.ask(&house, "box", &there).contains(" reached ")
    });
    assert_ne!(gateway(&house), pid);
    wait::until_true("the old connection is known to be over", SOON, || {
        ticks() == "reset"
    });
    assert!(house.vm("box")["runtime"]["network_error"].is_null());
    // Nothing of it is in the way of an end.
    let _ = house.banger("stop box").ok();
    assert!(house.gateways().is_empty(), "{:?}", house.gateways());
}

#[test]
fn a_gateway_ends_with_its_engine_whoever_else_is_there() {
    let Some((house, world)) = settled() else {
        skip!("this user may not make namespaces");
    };
    for with_daemon in [true, false] {
        let (pid, engine) = (gateway(&house), house.engines()[0].pid);
        if !with_daemon {
            house.kill_daemon();
        }
        let began = Instant::now();
        house::kill(engine);
        wait::until_true("the gateway is gone", Duration::from_secs(1), || {
            has_ended(pid)
        });
        println!(
            "gone {} ms after its engine, with a daemon: {with_daemon}",
            began.elapsed().as_millis()
        );
        let _ = world.banger(&house, &["list"]).ok();
        wait::until_true("the end is known", SOON, || {
            house.state_of("box") == "error"
        });
        assert!(house.gateways().is_empty(), "{:?}", house.gateways());
        let _ = house.banger("start box").ok();
    }
    // What was not synced is gone with a killed engine, the probe too.
    world.equip(&house, "box");
    let said = world.ask(&house, "box", &format!("try tcp:{OUTSIDE}:{SERVICE}"));
    assert!(said.contains(" reached "), "{said}");
}

#[test]
fn a_run_leaves_no_gateway() {
    let house = House::with(Root::Bare, Kernel::New);
    let _ = house.banger("run --rm -- true").ok();
    let before = house.census();
    assert!(house.gateways().is_empty(), "{:?}", house.gateways());
    let live = house
        .call(["run", "--rm", "--", "sh", "-c", "echo up; exec sleep 600"])
        .limit(SOON)
        .start();
    live.wait_for_out("up", SOON);
    let pid = gateway(&house);
    live.signal(rustix::process::Signal::KILL);
    let _ = live.wait();
    let _ = house.banger("list").ok();
    house.assert_as_before(&before, Duration::from_secs(15));
    assert!(has_ended(pid));
}
