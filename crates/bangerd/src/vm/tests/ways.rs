//! The way out of guests: gateways that die, come back, and are found again.

use std::net::IpAddr;
use std::time::Duration;

use banger_api::error::Code;
use banger_api::operation::VmEvent;
use banger_api::vm::{State, VmCreateParams, VmRecord, VmSetParams};
use banger_model::Holding;
use banger_store::ledger;

use super::{Clock, Home, Town, breath, op, params};
use crate::seam::power::Power;
use crate::vm::{Event, GRACE};

/// Waits until something holds.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    for _ in 0..5000 {
        if holds().await {
            return;
        }
        breath().await;
    }
    panic!("{what} never came");
}

/// Waits until the gateway of a VM is this one, and serves its engine.
async fn served_by(town: &Town, home: &Home, vm: &VmRecord, number: u32) {
    until(&format!("gateway {number}"), async || {
        let gateway = town.world.gateway(&vm.id);
        gateway.is_some_and(|gateway| {
            gateway.number == number && gateway.engine.lock().unwrap().is_some()
        })
    })
    .await;
    until("its row", async || {
        facts(home, vm).await == Some(format!("{{\"number\":{number}}}"))
    })
    .await;
    assert_eq!(town.leftovers(home).await, [""; 0]);
}

async fn facts(home: &Home, vm: &VmRecord) -> Option<String> {
    let entries = home.store.read(ledger::all).await.unwrap();
    let mut rows = entries
        .into_iter()
        .filter(|entry| entry.owner.as_str() == vm.id && entry.holding == Holding::Gateway);
    rows.next()?.facts
}

async fn network_error(home: &Home) -> Option<String> {
    home.vms.show("web").await.unwrap().runtime.network_error
}

fn without_network(name: &str) -> VmCreateParams {
    VmCreateParams {
        network_mode: Some("none".into()),
        ..params(name)
    }
}

#[tokio::test]
async fn a_guest_with_a_way_out_is_told_of_it_and_one_without_costs_nothing() {
    let town = Town::new();
    let home = town.home().await;
    let web = home.create("web").await;
    assert_eq!(web.spec.network_mode, "user");
    assert!(web.spec.nat_enabled);
    assert_eq!(web.runtime.guest_ip, "");
    served_by(&town, &home, &web, 1).await;
    let boot = town.world.boots().pop().unwrap();
    let network = boot.network.unwrap();
    assert_eq!(
        (
            network.address.as_str(),
            network.gateway.as_str(),
            network.mtu
        ),
        ("10.0.2.15/24", "10.0.2.2", 65_520)
    );
    assert_eq!(boot.nameservers, ["10.0.2.2"]);

    let begun = home
        .vms
        .create(without_network("lone"), &op())
        .await
        .unwrap();
    let lone = home.succeeded(begun).await.vm.unwrap();
    assert_eq!(lone.spec.network_mode, "none");
    assert!(!lone.spec.nat_enabled);
    assert!(town.world.gateway(&lone.id).is_none());
    assert_eq!(town.world.gateway_starts(), 1);
    let boot = town.world.boots().pop().unwrap();
    assert!(boot.network.is_none() && boot.nameservers.is_empty());
    // Its mode stays when the daemon and the VM come back.
    home.crash().await;
    let home = town.home().await;
    let again = home.vms.restart("lone", &op()).await.unwrap();
    home.succeeded(again).await;
    assert!(town.world.gateway(&lone.id).is_none());
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn nat_is_what_the_mode_says() {
    let town = Town::new();
    let home = town.home().await;
    let ask = |mode: Option<&str>, nat| VmCreateParams {
        network_mode: mode.map(str::to_owned),
        nat_enabled: nat,
        no_start: true,
        ..VmCreateParams::default()
    };
    for (mode, nat, holds) in [
        (None, None, true),
        (Some("auto"), Some(true), true),
        (Some("user"), Some(true), true),
        (Some("none"), None, false),
        (Some("none"), Some(false), false),
    ] {
        let begun = home.vms.create(ask(mode, nat), &op()).await.unwrap();
        let vm = home.succeeded(begun).await.vm.unwrap();
        assert_eq!(vm.spec.nat_enabled, holds, "{mode:?} {nat:?}");
        let set = |nat| VmSetParams {
            nat_enabled: Some(nat),
            ..VmSetParams::default()
        };
        let shown = home.vms.set(&vm.name, set(holds)).await.unwrap();
        assert_eq!(shown.spec.nat_enabled, holds);
        home.vms.set(&vm.name, set(!holds)).await.unwrap_err();
    }
    let refused = home.vms.create(ask(None, Some(false)), &op()).await;
    let failure = refused.unwrap_err();
    assert_eq!(failure.code, Code::BadRequest);
    assert_eq!(failure.hint.as_deref(), Some("--network none"));
    let refused = home.vms.create(ask(Some("none"), Some(true)), &op()).await;
    assert_eq!(refused.unwrap_err().code, Code::Unsupported);
    let refused = home.vms.create(ask(Some("bridge"), None), &op()).await;
    assert_eq!(refused.unwrap_err().code, Code::Unsupported);
}

#[tokio::test]
async fn a_gateway_that_dies_is_replaced_at_once_and_its_guest_notices_nothing() {
    let town = Town::new();
    let home = town.home().await;
    let web = home.create("web").await;
    let clock = Clock::stop();
    for number in 1..4 {
        served_by(&town, &home, &web, number).await;
        town.world.end_gateway(&web.id);
        clock.forward(Duration::from_secs(3)).await;
    }
    served_by(&town, &home, &web, 4).await;
    assert_eq!(home.state("web").await, Some(State::Running));
    assert_eq!(network_error(&home).await, None);
    assert_eq!(town.world.launches(), 1);
    let (_, stats) = home.vms.stats("web").await.unwrap();
    assert_eq!(stats.metrics_raw["network"]["bytes_out"], 4);

    let stopped = home.vms.stop("web", GRACE, &op()).await.unwrap();
    home.succeeded(stopped).await;
    assert!(town.world.gateway(&web.id).is_none());
    assert_eq!(
        town.world.gateway_starts(),
        4,
        "a killed one is not replaced"
    );
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn a_gateway_that_keeps_dying_is_left_alone_for_longer_and_longer_and_says_so() {
    let town = Town::new();
    let home = town.home().await;
    let web = home.create("web").await;
    served_by(&town, &home, &web, 1).await;
    let mut feed = home.vms.events(None);
    let clock = Clock::stop();
    town.world.turn(|knobs| knobs.short_gateways = 5);
    town.world.end_gateway(&web.id);
    until("the note", async || network_error(&home).await.is_some()).await;
    assert_eq!(town.world.gateway_starts(), 5, "four more were tried");
    assert_eq!(
        network_error(&home).await.unwrap(),
        "the gateway keeps dying (it was killed by SIGKILL), next try in 10s"
    );
    clock.forward(Duration::from_secs(9)).await;
    assert_eq!(town.world.gateway_starts(), 5);
    clock.forward(Duration::from_secs(2)).await;
    until("the next pause", async || {
        network_error(&home)
            .await
            .is_some_and(|note| note.ends_with("20s"))
    })
    .await;
    clock.forward(Duration::from_secs(21)).await;
    served_by(&town, &home, &web, 7).await;
    assert!(
        network_error(&home).await.is_some(),
        "it has yet to prove itself"
    );
    clock.forward(Duration::from_secs(10)).await;
    until("good news", async || network_error(&home).await.is_none()).await;

    let mut reasons = Vec::new();
    while reasons
        .last()
        .is_none_or(|last| last != "the network is back")
    {
        if let Event::Vm(VmEvent {
            from, to, reason, ..
        }) = feed.next().await
        {
            assert_eq!((from, to), (Some(State::Running), Some(State::Running)));
            reasons.push(reason.unwrap());
        }
    }
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    assert!(reasons[0].starts_with("no network: the gateway keeps dying"));
}

#[tokio::test]
async fn a_pause_between_two_gateways_delays_no_stop() {
    let town = Town::new();
    let home = town.home().await;
    let web = home.create("web").await;
    let clock = Clock::stop();
    town.world.turn(|knobs| knobs.short_gateways = 5);
    town.world.end_gateway(&web.id);
    until("the note", async || network_error(&home).await.is_some()).await;
    let gone = home.vms.delete("web", false, &op()).await.unwrap();
    home.succeeded(gone).await;
    clock.forward(Duration::from_secs(60)).await;
    assert_eq!(town.world.gateway_starts(), 5);
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn a_daemon_that_comes_back_takes_the_gateway_over_and_replaces_it_when_it_dies() {
    let town = Town::new();
    let home = town.home().await;
    let web = home.create("web").await;
    served_by(&town, &home, &web, 1).await;
    home.crash().await;
    *town.world.gateway(&web.id).unwrap().engine.lock().unwrap() = None;
    let home = town.home().await;
    served_by(&town, &home, &web, 1).await;
    town.world.end_gateway(&web.id);
    served_by(&town, &home, &web, 2).await;
    assert_eq!(network_error(&home).await, None);
    assert_eq!(town.world.launches(), 1);
}

#[tokio::test]
async fn a_gateway_that_died_without_a_daemon_is_told_until_the_vm_is_started_again() {
    let town = Town::new();
    let home = town.home().await;
    let web = home.create("web").await;
    served_by(&town, &home, &web, 1).await;
    home.crash().await;
    town.world.end_gateway(&web.id);
    let home = town.home().await;
    until("the note", async || network_error(&home).await.is_some()).await;
    let note = network_error(&home).await.unwrap();
    assert!(note.contains("back after a restart"), "{note}");
    assert_eq!(home.state("web").await, Some(State::Running));
    assert_eq!(town.leftovers(&home).await, [""; 0]);
    // The next daemon says the same.
    home.crash().await;
    let home = town.home().await;
    assert_eq!(network_error(&home).await, Some(note));

    let again = home.vms.restart("web", &op()).await.unwrap();
    home.succeeded(again).await;
    served_by(&town, &home, &web, 2).await;
    assert_eq!(network_error(&home).await, None);
}

#[tokio::test]
async fn a_gateway_follows_the_hosts_resolvers() {
    let town = Town::new();
    town.world.resolve_by(&["192.0.2.1"]);
    let home = town.home().await;
    let web = home.create("web").await;
    let asked = async |wanted: &str| {
        let wanted: [IpAddr; 1] = [wanted.parse().unwrap()];
        until("the resolver", async || {
            let gateway = town.world.gateway(&web.id).unwrap();
            *gateway.resolvers.lock().unwrap() == wanted
        })
        .await;
    };
    asked("192.0.2.1").await;
    town.world.resolve_by(&["127.0.0.53"]);
    asked("127.0.0.53").await;
    town.world.end_gateway(&web.id);
    served_by(&town, &home, &web, 2).await;
    asked("127.0.0.53").await;
}

#[tokio::test]
async fn a_silent_first_boot_gets_another_gateway_with_its_second_engine() {
    let town = Town::new();
    let home = town.home().await;
    town.world.turn(|knobs| knobs.mute_launches = 1);
    let clock = Clock::stop();
    let begun = home.vms.create(params("web"), &op()).await.unwrap();
    until("the first engine", async || town.world.launches() == 1).await;
    clock.forward(Duration::from_secs(181)).await;
    let web = home.succeeded(begun).await.vm.unwrap();
    assert_eq!(town.world.launches(), 2);
    served_by(&town, &home, &web, 2).await;
}

#[tokio::test]
async fn without_the_program_a_vm_with_a_way_out_is_refused_and_others_are_not() {
    let town = Town::new();
    let home = town.home().await;
    home.created("web").await;
    town.world.turn(|knobs| knobs.no_gateway = true);
    let refused = home.vms.create(params("new"), &op()).await.unwrap_err();
    assert_eq!(refused.code, Code::NoTool);
    assert_eq!(home.state("new").await, None);
    let start = home.vms.start("web", &op()).await.unwrap();
    home.failed(start, Code::NoTool).await;
    assert_eq!(home.state("web").await, Some(State::Created));
    let begun = home
        .vms
        .create(without_network("new"), &op())
        .await
        .unwrap();
    home.succeeded(begun).await;
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn a_gateway_that_cannot_be_ended_keeps_its_run_directory_and_goes_when_asked_again() {
    let town = Town::new();
    let home = town.home().await;
    let web = home.create("web").await;
    let clock = Clock::stop();
    town.world
        .turn(|knobs| knobs.stuck = Some(Holding::Gateway));
    let stop = home.vms.stop("web", GRACE, &op()).await.unwrap();
    home.failed(stop, Code::Internal).await;
    let held: Vec<_> = town
        .world
        .things()
        .into_iter()
        .map(|thing| thing.1)
        .collect();
    assert!(held.contains(&Holding::Gateway) && held.contains(&Holding::RunDir));
    assert!(!held.contains(&Holding::Engine));
    town.world.turn(|knobs| knobs.stuck = None);
    clock.forward(Duration::from_secs(61)).await;
    home.until("web", Some(State::Stopped)).await;
    assert!(town.world.gateway(&web.id).is_none());
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

/// Cuts the power at every seam of a replacement; false where there was none.
async fn cut(at: usize) -> bool {
    let town = Town::new();
    let home = town.boot(Power::new(None)).await;
    let web = home.create("web").await;
    served_by(&town, &home, &web, 1).await;
    home.power.arm(Some(at));
    town.world.end_gateway(&web.id);
    let replaced = until("the second gateway", async || {
        let passed = home.power.passed();
        passed.last().is_some_and(|seam| seam == "gateway.written")
    });
    let out = tokio::select! {
        biased;
        () = home.power.is_out() => true,
        () = replaced => false,
    };
    let seam = home.power.passed().last().cloned().unwrap_or_default();
    home.crash().await;
    let home = town.home().await;
    if town.world.gateway(&web.id).is_none() {
        until("the note", async || network_error(&home).await.is_some()).await;
    }
    assert_eq!(town.leftovers(&home).await, [""; 0], "cut at {seam}");
    assert_eq!(
        home.state("web").await,
        Some(State::Running),
        "cut at {seam}"
    );
    if town.world.gateway(&web.id).is_some() {
        served_by(&town, &home, &web, 2).await;
    }
    let gone = home.vms.delete("web", false, &op()).await.unwrap();
    home.succeeded(gone).await;
    assert_eq!(town.leftovers(&home).await, [""; 0], "cut at {seam}, later");
    out
}

#[tokio::test]
async fn a_replacement_cut_anywhere_leaves_nothing_behind() {
    let mut seams = 0;
    while cut(seams).await {
        seams += 1;
    }
    assert_eq!(seams, 3, "lost, replaced, written");
}
