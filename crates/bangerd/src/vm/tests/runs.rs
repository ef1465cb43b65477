//! Runs that end by themselves, guests that do not come or do not go, lines
//! that break, and daemons that come back.

use std::time::Duration;

use banger_api::error::Code;
use banger_api::vm::{ExecParams, State, VmCreateParams};
use banger_wire::agent::EndReason;

use super::{Clock, Home, Town, breath, op, params};
use crate::vm::{Event, GRACE};

#[tokio::test]
async fn a_guest_gets_what_it_needs_to_boot() {
    let town = Town::new();
    let home = town.home().await;
    let create = VmCreateParams {
        main_follows: true,
        ..params("web")
    };
    let begun = home.vms.create(create, &op()).await.unwrap();
    let vm = home.succeeded(begun).await.vm.unwrap();
    let restart = home.vms.restart("web", &op()).await.unwrap();
    home.succeeded(restart).await;
    let boots = town.world.boots();
    let [first, second] = boots.as_slice() else {
        panic!("{boots:?}")
    };
    assert_eq!(first.hostname, "web");
    assert_eq!(first.machine_id.as_deref(), Some(&vm.id[..32]));
    assert_eq!(first.machine_id, second.machine_id);
    assert_ne!(first.entropy_hex, second.entropy_hex);
    assert_eq!(first.image_env, [("A".to_owned(), "b=c".to_owned())].into());
    assert!(first.fill_work && first.main_follows && first.trim_systemd);
    assert!(!second.fill_work && !second.main_follows);
    assert_eq!(first.disks.modules.as_deref(), Some("modules"));
    let again = home.vms.show("web").await.unwrap();
    assert_ne!(again.runtime.boot_id, vm.runtime.boot_id);
}

#[tokio::test]
async fn a_dead_engine_is_an_error_with_its_reason_and_the_console() {
    let town = Town::new();
    let home = town.home().await;
    let vm = home.create("web").await;
    town.world
        .turn(|knobs| knobs.console = vec!["last words".into()]);
    town.world.engine(&vm.id).die("signal 9", false);
    home.until("web", Some(State::Error)).await;
    let error = home
        .vms
        .show("web")
        .await
        .unwrap()
        .runtime
        .last_error
        .unwrap();
    assert!(
        error.contains("signal 9") && error.ends_with("last words"),
        "{error}"
    );
    assert_eq!(town.leftovers(&home).await, [""; 0]);
    assert_eq!(
        home.vms
            .exec("web", ExecParams::default())
            .await
            .err()
            .unwrap()
            .code,
        Code::NotRunning
    );
}

#[tokio::test]
async fn a_poweroff_inside_stops_and_a_crash_inside_is_an_error() {
    for (reason, state) in [
        (EndReason::Poweroff, State::Stopped),
        (EndReason::Crash, State::Error),
        // Under 10 s of running, which is a crash.
        (EndReason::Reboot, State::Error),
    ] {
        let town = Town::new();
        let home = town.home().await;
        let vm = home.create("web").await;
        town.world.engine(&vm.id).end_with_word(reason);
        home.until("web", Some(state)).await;
        assert_eq!(town.leftovers(&home).await, [""; 0], "{reason:?}");
        assert_eq!(town.world.launches(), 1);
    }
}

#[tokio::test]
async fn the_consoles_last_line_speaks_for_an_agent_that_could_not() {
    let town = Town::new();
    let home = town.home().await;
    let vm = home.create("web").await;
    town.world.turn(|knobs| {
        knobs.console =
            vec![r#"banger-ended {"reason":"poweroff","status":"0","clean":true}"#.into()];
    });
    town.world.engine(&vm.id).die("reset", true);
    home.until("web", Some(State::Stopped)).await;
}

#[tokio::test]
async fn a_reboot_inside_boots_again_when_the_run_was_long_enough() {
    let town = Town::new();
    let home = town.home().await;
    let vm = home.create("web").await;
    let clock = Clock::stop();
    clock.forward(Duration::from_secs(11)).await;
    town.world.engine(&vm.id).end_with_word(EndReason::Reboot);
    while town.world.boots().len() < 2 {
        breath().await;
    }
    home.until("web", Some(State::Running)).await;
    let again = home.vms.show("web").await.unwrap();
    assert_ne!(again.runtime.boot_id, vm.runtime.boot_id);
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn late_news_of_an_ended_run_change_nothing() {
    let town = Town::new();
    let home = town.home().await;
    let vm = home.create("web").await;
    let old = town.world.engine(&vm.id);
    let restart = home.vms.restart("web", &op()).await.unwrap();
    home.succeeded(restart).await;
    old.end_with_word(EndReason::Crash);
    for _ in 0..20 {
        breath().await;
    }
    assert_eq!(home.state("web").await, Some(State::Running));
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn a_hello_that_is_lost_is_said_again() {
    let clock = Clock::stop();
    let town = Town::new();
    let home = town.home().await;
    town.world.turn(|knobs| knobs.lost_hellos = 2);
    let create = home.vms.create(params("web"), &op()).await.unwrap();
    for seconds in [16, 31] {
        clock.forward(Duration::from_secs(seconds)).await;
    }
    home.succeeded(create).await;
    assert_eq!(town.world.launches(), 1, "the same engine");
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        breath().await;
    }
}

#[tokio::test]
async fn a_silent_boot_is_tried_once_more() {
    let clock = Clock::stop();
    for (mute, succeeds) in [(1, true), (2, false)] {
        let town = Town::new();
        let home = town.home().await;
        town.world.turn(|knobs| {
            knobs.mute_launches = mute;
            knobs.console = (0..30).map(|n| format!("line {n}")).collect();
        });
        let create = home.vms.create(params("web"), &op()).await.unwrap();
        let passing = async {
            loop {
                clock.forward(Duration::from_secs(1)).await;
            }
        };
        tokio::pin!(passing);
        for launches in 1..=2 {
            tokio::select! {
                () = until(|| town.world.launches() == launches) => {}
                () = &mut passing => {}
            }
            if launches <= mute {
                // Not much before its 180 s, whenever those began.
                clock.forward(Duration::from_secs(170)).await;
                assert_eq!(town.world.launches(), launches);
            }
        }
        if succeeds {
            home.succeeded(create).await;
        } else {
            let failed = tokio::select! {
                failed = home.failed(create, Code::GuestFailed) => failed,
                () = &mut passing => unreachable!("time passes for ever"),
            };
            let error = failed.error.unwrap();
            assert_eq!(error.lines().count(), 21, "{error}");
            assert_eq!(home.state("web").await, Some(State::Error));
        }
        assert_eq!(town.world.launches(), 2);
        assert_eq!(town.leftovers(&home).await, [""; 0]);
    }
}

#[tokio::test]
async fn an_accelerated_guest_gets_less_time() {
    let town = Town::new();
    let home = town.home().await;
    town.world
        .turn(|knobs| (knobs.mute_launches, knobs.kvm) = (1, true));
    let clock = Clock::stop();
    let create = home.vms.create(params("web"), &op()).await.unwrap();
    clock.forward(Duration::from_secs(31)).await;
    home.succeeded(create).await;
    assert_eq!(town.world.launches(), 2);
}

#[tokio::test]
async fn a_guest_that_cannot_sync_runs_on() {
    let town = Town::new();
    let home = town.home().await;
    home.create("web").await;
    town.world.turn(|knobs| knobs.sync_hangs = true);
    let clock = Clock::stop();
    let stop = home.vms.stop("web", GRACE, &op()).await.unwrap();
    home.until("web", Some(State::Stopping)).await;
    for _ in 0..13 {
        clock.forward(Duration::from_secs(10)).await;
    }
    let failed = home.failed(stop, Code::Timeout).await;
    assert_eq!(failed.hint.as_deref(), Some("banger kill web"));
    let vm = home.vms.show("web").await.unwrap();
    assert_eq!((vm.state, vm.runtime.goal.as_str()), (State::Running, "up"));
    // It can be stopped later, and restarts fail the same way.
    town.world.turn(|knobs| knobs.sync_hangs = false);
    let stop = home.vms.stop("web", GRACE, &op()).await.unwrap();
    home.succeeded(stop).await;
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn a_silent_agent_at_stop_means_force() {
    let town = Town::new();
    let home = town.home().await;
    home.create("web").await;
    town.world
        .turn(|k| (k.sync_hangs, k.ping_hangs) = (true, true));
    let clock = Clock::stop();
    let stop = home.vms.stop("web", GRACE, &op()).await.unwrap();
    clock.forward(Duration::from_secs(59)).await;
    assert_eq!(home.state("web").await, Some(State::Stopping));
    clock.forward(Duration::from_secs(2)).await;
    home.succeeded(stop).await;
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn a_broken_line_is_made_again_and_commands_wait_for_it() {
    let town = Town::new();
    let home = town.home().await;
    let vm = home.create("web").await;
    town.world.turn(|knobs| knobs.hello_hangs = true);
    town.world.engine(&vm.id).break_line();
    for _ in 0..200 {
        breath().await;
    }
    let exec = home.vms.exec(
        "web",
        ExecParams {
            command: "id".into(),
            ..ExecParams::default()
        },
    );
    let (exec, ()) = tokio::join!(exec, async {
        breath().await;
        town.world.turn(|knobs| knobs.hello_hangs = false);
    });
    exec.unwrap();
    assert_eq!(town.world.last_exec().0.argv, ["id"]);
    assert_eq!(home.vms.health("web").await.unwrap(), ("web".into(), true));
}

#[tokio::test]
async fn a_command_waits_for_a_start_and_is_refused_when_that_fails() {
    let town = Town::new();
    let home = town.home().await;
    town.world.turn(|knobs| knobs.hello_hangs = true);
    for boots in [true, false] {
        let create = home.vms.create(params("web"), &op()).await.unwrap();
        let exec = home.vms.exec("web", ExecParams::default());
        let (exec, ()) = tokio::join!(exec, async {
            breath().await;
            town.world
                .turn(|k| (k.hello_hangs, k.boot_fails) = (false, !boots));
        });
        home.done(create).await;
        match exec {
            Ok(_) => assert!(boots),
            Err(failure) => assert!(!boots && failure.code == Code::NotRunning, "{failure:?}"),
        }
        let delete = home.vms.delete("web", false, &op()).await.unwrap();
        home.succeeded(delete).await;
        town.world
            .turn(|k| (k.hello_hangs, k.boot_fails) = (true, false));
    }
}

async fn reborn(town: &Town, home: Home) -> Home {
    home.crash().await;
    town.home().await
}

#[tokio::test]
async fn a_daemon_that_comes_back_finds_its_guests_running() {
    let town = Town::new();
    let home = town.home().await;
    let vm = home.create("web").await;
    home.created("db").await;
    let home = reborn(&town, home).await;
    let found = home.vms.show("web").await.unwrap();
    assert_eq!(
        (found.state, found.runtime.boot_id),
        (State::Running, vm.runtime.boot_id)
    );
    assert_eq!(home.state("db").await, Some(State::Created));
    home.vms.exec("web", ExecParams::default()).await.unwrap();
    assert_eq!(town.leftovers(&home).await, [""; 0]);
    // And knows when they end.
    town.world.engine(&vm.id).die("signal 11", false);
    home.until("web", Some(State::Error)).await;
}

#[tokio::test]
async fn what_ended_while_no_daemon_was_there_is_judged_by_its_last_line() {
    let line = |reason: &str| format!(r#"banger-ended {{"reason":"{reason}"}}"#);
    for (console, state) in [
        (vec![], State::Error),
        (vec!["something".into(), line("poweroff")], State::Stopped),
        (vec![line("crash")], State::Error),
        (vec![line("reboot")], State::Running),
    ] {
        let town = Town::new();
        let home = town.home().await;
        let vm = home.create("web").await;
        home.crash().await;
        town.world.turn(|knobs| knobs.console.clone_from(&console));
        town.world.engine(&vm.id).die("gone", true);
        let home = town.home().await;
        home.until("web", Some(state)).await;
        assert_eq!(town.leftovers(&home).await, [""; 0], "{console:?}");
    }
}

#[tokio::test]
async fn changes_of_state_are_told_in_order() {
    let town = Town::new();
    let home = town.home().await;
    let mut feed = home.vms.events(None);
    home.create("web").await;
    let delete = home.vms.delete("web", false, &op()).await.unwrap();
    home.succeeded(delete).await;
    let mut states = Vec::new();
    while states.last() != Some(&None) {
        match feed.next().await {
            Event::Vm(event) => states.push(event.to),
            Event::Health(event) => assert_eq!(event.name, "web"),
            Event::DiskFull(event) => panic!("{event:?}"),
        }
    }
    let seen = [
        Some(State::Starting),
        Some(State::Running),
        Some(State::Stopping),
        None,
    ];
    assert_eq!(states, seen);
    let mut past = home.vms.events(Some("2000-01-01T00:00:00Z"));
    assert!(matches!(past.next().await, Event::Vm(event) if event.from.is_none()));
}

#[tokio::test]
async fn nothing_supervises_a_vm_at_rest() {
    let town = Town::new();
    let home = town.home().await;
    home.created("web").await;
    home.vms
        .set("web", banger_api::vm::VmSetParams::default())
        .await
        .unwrap();
    for _ in 0..20 {
        breath().await;
    }
    assert_eq!(home.vms.house().presences().len(), 0);
}
