//! VMs that the daemon deletes by itself.

use std::time::Duration;

use banger_api::vm::{ExecParams, State, VmCreateParams};
use banger_wire::agent::EndReason;

use super::{Clock, Home, Town, breath, op, params};
use crate::vm::Exec;

fn removable() -> VmCreateParams {
    VmCreateParams {
        auto_remove: true,
        ..params("web")
    }
}

async fn main_exec(home: &Home) -> Exec {
    let params = ExecParams {
        command: "true".into(),
        main: true,
        ..ExecParams::default()
    };
    home.vms.exec("web", params).await.unwrap()
}

#[tokio::test]
async fn it_goes_when_its_command_is_over_and_the_client_has_let_go() {
    let town = Town::new();
    let home = town.home().await;
    let create = home.vms.create(removable(), &op()).await.unwrap();
    home.succeeded(create).await;
    assert!(home.vms.live_auto_remove());
    let exec = main_exec(&home).await;
    assert_eq!(home.vms.open_streams(), 1);
    exec.hold.ended();
    for _ in 0..20 {
        breath().await;
    }
    assert_eq!(
        home.state("web").await,
        Some(State::Running),
        "the client still copies"
    );
    exec.hold.gone().await;
    assert_eq!(home.state("web").await, None);
    assert!(!home.vms.live_auto_remove());
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn it_goes_ten_seconds_after_its_client_vanished() {
    let town = Town::new();
    let home = town.home().await;
    let create = home.vms.create(removable(), &op()).await.unwrap();
    home.succeeded(create).await;
    let exec = main_exec(&home).await;
    let clock = Clock::stop();
    clock.forward(Duration::from_secs(60)).await;
    assert_eq!(home.state("web").await, Some(State::Running), "it is held");
    drop(exec);
    clock.forward(Duration::from_secs(9)).await;
    assert_eq!(home.state("web").await, Some(State::Running));
    clock.forward(Duration::from_secs(2)).await;
    home.until("web", None).await;
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn it_goes_when_nobody_follows_its_create() {
    let town = Town::new();
    let home = town.home().await;
    town.world.turn(|knobs| knobs.image_hangs = true);
    let clock = Clock::stop();
    let create = home.vms.create(removable(), &op()).await.unwrap();
    let follow = home.operations.subscribe(&create.id, None).await.unwrap();
    clock.forward(Duration::from_secs(60)).await;
    assert_eq!(
        home.state("web").await,
        Some(State::Starting),
        "it is followed"
    );
    drop(follow);
    clock.forward(Duration::from_secs(11)).await;
    home.until("web", None).await;
    assert_eq!(town.leftovers(&home).await, [""; 0]);
    assert!(home.operations.get(&create.id).await.unwrap().cancelled);
}

#[tokio::test]
async fn it_goes_at_recovery() {
    let town = Town::new();
    let home = town.home().await;
    let create = home.vms.create(removable(), &op()).await.unwrap();
    home.succeeded(create).await;
    home.crash().await;
    let home = town.home().await;
    assert_eq!(home.state("web").await, None);
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn it_goes_when_its_start_fails_and_is_not_booted_again() {
    let town = Town::new();
    let home = town.home().await;
    town.world.turn(|knobs| knobs.boot_fails = true);
    let create = home.vms.create(removable(), &op()).await.unwrap();
    home.failed(create, banger_api::error::Code::GuestFailed)
        .await;
    home.until("web", None).await;
    town.world.turn(|knobs| knobs.boot_fails = false);
    let create = home.vms.create(removable(), &op()).await.unwrap();
    let vm = home.succeeded(create).await.vm.unwrap();
    let exec = main_exec(&home).await;
    let launches = town.world.launches();
    town.world.engine(&vm.id).end_with_word(EndReason::Reboot);
    home.until("web", Some(State::Stopped)).await;
    exec.hold.ended();
    exec.hold.gone().await;
    assert_eq!(home.state("web").await, None);
    assert_eq!(town.world.launches(), launches);
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn another_command_does_not_hold_it_nor_end_it() {
    let town = Town::new();
    let home = town.home().await;
    let create = home.vms.create(removable(), &op()).await.unwrap();
    home.succeeded(create).await;
    let main = main_exec(&home).await;
    let other = home.vms.exec("web", ExecParams::default()).await.unwrap();
    other.hold.ended();
    other.hold.gone().await;
    assert_eq!(home.state("web").await, Some(State::Running));
    main.hold.ended();
    main.hold.gone().await;
    assert_eq!(home.state("web").await, None);
}
