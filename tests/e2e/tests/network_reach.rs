//! What a guest reaches, and what it must never reach: a host with two
//! networks, listeners on all its addresses, a resolver that only the host
//! itself can ask, another VM beside it, and a metadata service.

use std::time::Duration;

use e2e::world::{
    Change, FIRST_RESOLVER, HOST, LISTENER, LOOPBACK_LISTENER, NAME, OUTSIDE, SECOND_RESOLVER,
    SERVICE, THIRD_RESOLVER, WHICH,
};
use e2e::{House, Kernel, Root, User, World, am_root, fixture, skip, wait};

const SOON: Duration = Duration::from_secs(60);
/// An address that the host is given while the VM runs.
const LATER: &str = "10.99.0.9";
/// Where the other VM listens.
const NEIGHBOUR: u16 = 7000;

/// A word for each spec.
fn results(text: &str) -> Vec<(String, String)> {
    println!("{text}");
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ').map(str::to_owned);
            Some((words.next()?, words.next()?))
        })
        .collect()
}

/// What the policy keeps from guests, and the host itself reaches.
fn closed_by_policy() -> Vec<String> {
    let addresses = [
        HOST,
        // The second interface's; one that came later; a link-local one.
        "10.88.0.1",
        LATER,
        "169.254.7.7",
        // Of no interface, but a `local` route leads there.
        "10.98.0.5",
    ];
    addresses
        .iter()
        .map(|address| format!("{address}:{LISTENER}"))
        .chain([format!("169.254.169.254:{SERVICE}")])
        .flat_map(|at| [format!("tcp:{at}"), format!("udp:{at}")])
        .collect()
}

/// What nothing leads to, whatever the policy says.
fn closed_by_nature() -> Vec<String> {
    let gateway = [LISTENER, LOOPBACK_LISTENER, NEIGHBOUR];
    let neighbours = ["10.0.2.15", "10.0.2.3", "10.0.2.16"];
    gateway
        .iter()
        .map(|port| format!("10.0.2.2:{port}"))
        .chain(neighbours.map(|address| format!("{address}:{NEIGHBOUR}")))
        .flat_map(|at| [format!("tcp:{at}"), format!("udp:{at}")])
        .chain([format!("cast:10.0.2.255:{NEIGHBOUR}")])
        .collect()
}

/// One of each net of the host: everybody in it.
fn broadcasts() -> [String; 2] {
    ["10.77.0.255", "10.88.0.255"].map(|at| format!("cast:{at}:{LISTENER}"))
}

/// A house in a world, with one VM that has the probe.
fn settled(user: Option<&User>) -> Option<(House, World)> {
    let house = user.map_or_else(House::new, House::of);
    house.furnish(Root::Bare, Kernel::New);
    let world = World::around(&house, user)?;
    let _ = house.banger("create --name box").ok();
    world.equip(&house, "box");
    Some((house, world))
}

fn a_guest_reaches_the_outside_and_nothing_of_the_host(user: Option<&User>) {
    let Some((house, world)) = settled(user) else {
        skip!("this user may not make namespaces");
    };
    outside_by_address_and_name(&house, &world);
    nothing_of_the_host(&house, &world);
    nothing_of_another_vm(&house, &world);
    names_follow_the_host(&house, &world);
    pings(&house, &world);
    refusals_are_told(&house);
}

#[test]
fn a_guest_of_root_reaches_the_outside_and_nothing_of_the_host() {
    if !am_root() {
        skip!("needs root");
    }
    a_guest_reaches_the_outside_and_nothing_of_the_host(None);
}

#[test]
fn a_guest_of_an_ordinary_user_reaches_the_outside_and_nothing_of_the_host() {
    let user = am_root().then(User::make);
    a_guest_reaches_the_outside_and_nothing_of_the_host(user.as_ref());
}

#[test]
fn with_an_open_policy_all_of_it_would_be_reached() {
    let gateway = fixture::programs().join("banger-gateway");
    let program = std::fs::read(gateway).expect("programs are there");
    let name = b"BANGER_GATEWAY_OPEN_POLICY";
    if !program.windows(name.len()).any(|bytes| bytes == name) {
        skip!("the gateway was built without its feature open-policy");
    }
    let house = House::new();
    house.furnish(Root::Bare, Kernel::New);
    house.set_env("BANGER_GATEWAY_OPEN_POLICY", "1");
    let Some(world) = World::around(&house, None) else {
        skip!("this user may not make namespaces");
    };
    let _ = house.banger("create --name box").ok();
    world.equip(&house, "box");
    add_address(&house, &world);
    let line = format!("try {}", closed_by_policy().join(" "));
    for (spec, word) in results(&world.ask(&house, "box", &line)) {
        assert_eq!(word, "reached", "{spec} shows nothing in the other tests");
    }
}

fn outside_by_address_and_name(house: &House, world: &World) {
    let line = format!("try tcp:{OUTSIDE}:{SERVICE} udp:{OUTSIDE}:{SERVICE}");
    for (spec, word) in results(&world.ask(house, "box", &line)) {
        assert_eq!(word, "reached", "{spec}");
    }
    let said = house
        .sh("box", &format!("echo who | nc {NAME} {SERVICE}"))
        .ok();
    assert!(
        said.out().starts_with(&format!("from {HOST}:")),
        "outside the guest is its host: {said}"
    );
}

fn add_address(house: &House, world: &World) {
    let line = format!("ip addr add {LATER}/32 dev lan1");
    let words: Vec<&str> = line.split(' ').collect();
    let _ = world.on_host(house, &words).run().ok();
}

fn nothing_of_the_host(house: &House, world: &World) {
    // Before the address is there, its net is somewhere outside.
    let line = format!("try tcp:{LATER}:{LISTENER} udp:{LATER}:{LISTENER}");
    let _ = results(&world.ask(house, "box", &line));
    add_address(house, world);

    let all = closed_by_policy();
    let probe = world.probe();
    let on_host: Vec<&str> = [&probe[..], "try"]
        .into_iter()
        .chain(all.iter().map(String::as_str))
        .collect();
    for (spec, word) in results(&world.on_host(house, &on_host).run().ok().out()) {
        assert_eq!(word, "reached", "{spec} from the host itself");
    }
    let seen = results(&world.ask(house, "box", &format!("try {}", all.join(" "))));
    assert_eq!(seen.len(), all.len());
    for (spec, word) in seen {
        let refused = if spec.starts_with("tcp") {
            "refused"
        } else {
            "unreachable"
        };
        assert_eq!(word, refused, "{spec}");
    }

    let [first, second] = broadcasts();
    let everybody = [&probe[..], "try", &first, &second];
    for (spec, word) in results(&world.on_host(house, &everybody).run().ok().out()) {
        assert_eq!(word, "reached", "{spec} from the host itself");
    }
    let tcp = [&first, &second].map(|spec| spec.replace("cast", "tcp"));
    let line = format!("try {first} {second} {}", tcp.join(" "));
    for (spec, word) in results(&world.ask(house, "box", &line)) {
        assert!(not_there(&word), "{spec} {word}");
    }
}

/// Whether nobody was there.
fn not_there(word: &str) -> bool {
    ["refused", "unreachable", "timeout"].contains(&word)
}

fn nothing_of_another_vm(house: &House, world: &World) {
    let _ = house.banger("create --name other").ok();
    world.equip(house, "other");
    let listen = [
        "exec",
        "-i",
        "other",
        "--",
        "/root/probe",
        "serve",
        &format!("tcp=0.0.0.0:{NEIGHBOUR}"),
        &format!("udp=0.0.0.0:{NEIGHBOUR}"),
    ];
    let listener = house.call(listen).input_held().start();
    listener.wait_for_out("ready", SOON);
    let own = format!("try tcp:10.0.2.15:{NEIGHBOUR} udp:10.0.2.15:{NEIGHBOUR}");
    for (spec, word) in results(&world.ask(house, "other", &own)) {
        assert_eq!(word, "reached", "{spec} from within");
    }
    let all = closed_by_nature();
    let line = format!("try {}", all.join(" "));
    let seen = results(&world.ask(house, "box", &line));
    assert_eq!(seen.len(), all.len());
    for (spec, word) in seen {
        assert!(not_there(&word), "{spec} {word}");
    }
    drop(listener);
    let _ = house.banger("rm -f other").ok();
}

fn names_follow_the_host(house: &House, world: &World) {
    let asked = |by: &str| world.ask(house, "box", &format!("ask {by} 10.0.2.2:53 {WHICH}"));
    let become_those_of = |(resolver, answer): (&str, &str), by: &str| {
        wait::until_true(&format!("{resolver} answers by {by}"), SOON, || {
            let said = asked(by);
            println!("{by}: {said}");
            said == answer
        });
    };
    for by in ["udp", "tcp"] {
        assert_eq!(asked(by), FIRST_RESOLVER.1, "{by}");
        let unknown = format!("ask {by} 10.0.2.2:53 nosuch.test");
        assert_eq!(world.ask(house, "box", &unknown), "nxdomain");
    }
    for (resolver, change) in [
        (SECOND_RESOLVER, Change::Rename),
        (THIRD_RESOLVER, Change::InPlace),
        (FIRST_RESOLVER, Change::Rename),
    ] {
        world.resolve_by(house, resolver.0, change);
        become_those_of(resolver, "tcp");
        // One announcement holds for both.
        assert_eq!(asked("udp"), resolver.1, "{resolver:?} {change:?}");
    }
}

fn pings(house: &House, world: &World) {
    let ping = |to: &str| house.sh("box", &format!("ping -c 1 -W 3 {to}")).code == 0;
    assert!(ping("10.0.2.2"), "the gateway answers itself");
    let allow = "echo 0 0 > /proc/sys/net/ipv4/ping_group_range";
    assert!(!ping(OUTSIDE), "a new host lets nobody ping");
    let _ = world.on_host(house, &["sh", "-c", allow]).run().ok();
    assert!(ping(OUTSIDE), "the host lets its users ping");
    for own in [HOST, "10.88.0.1", LATER, "169.254.169.254"] {
        assert!(!ping(own), "{own}");
    }
}

fn refusals_are_told(house: &House) {
    let refused = wait::until("the counters have come", SOON, || {
        let stats = house.banger("stats box --json").ok().json();
        let refused = stats["stats"]["metrics_raw"]["network"]["refused"].clone();
        (refused["host_address"].as_u64() > Some(0)).then_some(refused)
    });
    println!("{refused}");
    for reason in ["host_address", "metadata", "route", "gateway_port"] {
        assert!(refused[reason].as_u64() > Some(0), "{reason}: {refused}");
    }
    let shown = house.banger("stats box").ok().out();
    assert!(shown.contains("metadata"), "{shown}");
}

/// The instrument itself: what is closed to guests is open to others.
fn the_world_is_as_it_is_drawn(user: Option<&User>) {
    let house = user.map_or_else(House::new, House::of);
    let Some(world) = World::around(&house, user) else {
        skip!("this user may not make namespaces");
    };
    let probe = world.probe();
    let from_host = |line: String| {
        let words: Vec<&str> = [&probe[..]].into_iter().chain(line.split(' ')).collect();
        world.on_host(&house, &words).run().ok().out()
    };
    for by in ["udp", "tcp"] {
        for (resolver, answer) in [FIRST_RESOLVER, SECOND_RESOLVER, THIRD_RESOLVER] {
            let said = from_host(format!("ask {by} {resolver}:53 {WHICH}"));
            assert_eq!(said.trim(), answer, "{resolver} by {by}");
        }
    }
    let line = format!(
        "try tcp:{OUTSIDE}:{SERVICE} udp:{OUTSIDE}:{SERVICE} tcp:127.0.0.1:{LOOPBACK_LISTENER} udp:127.0.0.1:{LOOPBACK_LISTENER}"
    );
    for (spec, word) in results(&from_host(line)) {
        assert_eq!(word, "reached", "{spec} from the host");
    }
    let far = [&probe[..], "try"]
        .into_iter()
        .map(str::to_owned)
        .chain([HOST, "10.88.0.1"].map(|at| format!("tcp:{at}:{LISTENER}")))
        .collect::<Vec<_>>();
    let far: Vec<&str> = far.iter().map(String::as_str).collect();
    for (spec, word) in results(&world.outside(&house, &far).run().ok().out()) {
        assert_eq!(word, "reached", "{spec} from outside");
    }
    // The daemon is in it, as who lives in the house.
    let pid = house.daemon_pid().expect("it has moved in");
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let seen = world
        .on_host(&house, &["readlink", "/proc/self/ns/net"])
        .run()
        .ok()
        .line();
    let daemon = namespace(&pid.to_string());
    assert_eq!(daemon.map(|at| at.display().to_string()), Some(seen));
    let inside = world.banger(&house, &["daemon", "status", "--json"]).ok();
    println!("{}", inside.out());
    let resolvers = world
        .on_host(&house, &["cat", "/etc/resolv.conf"])
        .run()
        .ok();
    assert!(resolvers.out().contains(FIRST_RESOLVER.0), "{resolvers}");
}

#[test]
fn the_world_of_root_is_as_it_is_drawn() {
    if !am_root() {
        skip!("needs root");
    }
    the_world_is_as_it_is_drawn(None);
}

#[test]
fn the_world_of_an_ordinary_user_is_as_it_is_drawn() {
    let user = am_root().then(User::make);
    the_world_is_as_it_is_drawn(user.as_ref());
}
