//! Traffic through a gateway is what it would be without one: ends, refusals
//! and errors pass in both directions, nobody's slowness costs memory, and
//! nothing stays of what is over.

use std::time::Duration;

use e2e::world::{NO_HOST, OUTSIDE, SERVICE};
use e2e::{House, Kernel, Root, World, skip, wait};

const SOON: Duration = Duration::from_secs(60);
/// Of the host's net, and nobody has it.
const NOBODY: &str = "10.77.0.99";
const MB: u64 = 1_000_000;

#[test]
fn connections_and_datagrams_pass_as_if_there_were_no_gateway() {
    let house = House::new();
    house.furnish(Root::Bare, Kernel::Old);
    house.configure(&format!(
        "stats_poll_interval = \"1s\"\ndefault_image_name = \"bare\"\ndefault_kernel_name = \"k6.1\"\n{}",
        House::configuration()
    ));
    let Some(world) = World::around(&house, None) else {
        skip!("this user may not make namespaces");
    };
    let _ = house.banger("create --name box").ok();
    world.equip(&house, "box");
    refusals(&house, &world);
    ends(&house, &world);
    datagrams(&house, &world);
    slow_readers(&house, &world);
    short_connections(&house, &world);
}

fn refusals(house: &House, world: &World) {
    let closed = [
        (format!("tcp:{OUTSIDE}:81"), "refused"),
        (format!("udp:{OUTSIDE}:81"), "refused"),
        // The host finds out that nobody answers, or is told by a router. An
        // ordinary UDP socket hears of neither, on any Linux.
        (format!("tcp:{NOBODY}:80"), "unreachable"),
        (format!("tcp:{NO_HOST}:80"), "unreachable"),
    ];
    let specs: Vec<&str> = closed.iter().map(|(spec, _)| spec.as_str()).collect();
    let said = world.ask(house, "box", &format!("try {}", specs.join(" ")));
    println!("{said}");
    for (line, (spec, word)) in said.lines().zip(&closed) {
        assert!(line.starts_with(&format!("{spec} {word} ")), "{line}");
    }
}

fn ends(house: &House, world: &World) {
    let ask = |line: String| world.ask(house, "box", &line);
    let at = format!("{OUTSIDE}:{SERVICE}");
    // The server closes first, and all it said came before its end.
    assert_eq!(ask(format!("down 3000001 {at}")), "3000001 ok");
    // The guest closes its half, and the answer comes all the same, late too.
    assert_eq!(ask(format!("up 3000001 {at}")), "3000001 ok");
    assert_eq!(ask(format!("up 0 {at} 0 7")), "0 ok");
    assert_eq!(ask(format!("up 1 {at} 3 3")), "1 ok");
    // The server closes its half, and what is said to it still arrives.
    let said = ask(format!("bye 3000001 {at}"));
    assert_eq!(said, "0 ok, then 3000001 sent");
    wait::until_true("the server got all of it", SOON, || {
        world.servers_said().contains("bye 3000001 ok")
    });
    // As programs do that know nothing of it.
    let piped = format!("printf 'who\\n' | nc {OUTSIDE} {SERVICE}");
    assert!(house.sh("box", &piped).ok().out().starts_with("from "));
}

fn datagrams(house: &House, world: &World) {
    let fits = |size: u32| {
        let line = format!("datagram {size} {OUTSIDE}:{SERVICE}");
        assert_eq!(world.ask(house, "box", &line), format!("{size} ok"));
    };
    // Fits the line, but not the host's network; then not even the line.
    for size in [1, 1472, 1473, 30_000, 65_507] {
        fits(size);
    }
    let _ = house.sh("box", "ip link set eth0 mtu 1500").ok();
    for size in [1473, 30_000, 65_507] {
        fits(size);
    }
    let _ = house.sh("box", "ip link set eth0 mtu 65520").ok();
}

/// A line of the gateway's status, kibibytes.
fn gateway_kib(house: &House, field: &str) -> u64 {
    let [gateway] = &house.gateways()[..] else {
        panic!("one gateway: {:?}", house.gateways());
    };
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid))
        .expect("the gateway lives");
    let line = status.lines().find(|line| line.starts_with(field));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or_else(|| panic!("{field} in {status}"))
}

fn slow_readers(house: &House, world: &World) {
    let at = format!("{OUTSIDE}:{SERVICE}");
    let size = 100 * MB;
    for line in [format!("down {size} {at} 8"), format!("up {size} {at} 8")] {
        let done = world.call_probe(house, "box", &line).run().ok();
        assert_eq!(done.line(), format!("{size} ok"), "{line}");
        let most = gateway_kib(house, "VmHWM");
        println!(
            "{line}: {:.1} s, at most {most} KiB",
            done.took.as_secs_f32()
        );
        assert!(most < 16 << 10, "{line}: {most} KiB resident");
    }
}

fn short_connections(house: &House, world: &World) {
    let flows = || {
        let stats = house.banger("stats box --json").ok().json();
        let network = &stats["stats"]["metrics_raw"]["network"];
        let number = |name: &str| network[name].as_u64().unwrap_or_else(|| panic!("{stats}"));
        let live = number("tcp_flows") + number("half_open");
        (live, number("tcp_opened"), number("memory_bytes"))
    };
    wait::until_true("all earlier flows are gone", SOON, || flows().0 == 0);
    let (_, opened_before, _) = flows();
    let descriptors = || {
        let pid = house.gateways()[0].pid;
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .map(Iterator::count)
            .ok()
    };
    let before = descriptors();
    let done = world
        .call_probe(house, "box", &format!("short 10000 4 {OUTSIDE}:{SERVICE}"))
        .limit(Duration::from_secs(900))
        .run()
        .ok();
    assert_eq!(done.line(), "10000 ok");
    println!("10,000 connections: {:.1} s", done.took.as_secs_f32());
    wait::until_true("no flow is left", SOON, || {
        let (live, opened, memory) = flows();
        live == 0 && opened >= opened_before + 10_000 && memory < 1 << 20
    });
    // Earlier datagrams' sockets may have been closed as well by now.
    assert!(descriptors() <= before, "every socket is closed");
    println!("{} KiB resident", gateway_kib(house, "VmRSS"));
}
