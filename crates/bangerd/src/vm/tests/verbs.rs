//! Verbs: what each means when, what joins, what overtakes; and creates.

use std::collections::BTreeSet;

use banger_api::error::Code;
use banger_api::operation::Operation;
use banger_api::vm::{State, VmCreateParams, VmSetParams};
use banger_model::Holding;

use super::{Home, Town, breath, op, params};
use crate::failure::Failure;
use crate::operation::OpEvent;
use crate::vm::GRACE;

/// Brings a fresh "web" to a state.
async fn bring(town: &Town, home: &Home, state: State) -> Option<Operation> {
    match state {
        State::Created => {
            home.created("web").await;
            None
        }
        State::Starting => {
            town.world.turn(|knobs| knobs.hello_hangs = true);
            let op = home.vms.create(params("web"), &op()).await.unwrap();
            while town.world.engines() == 0 {
                breath().await;
            }
            Some(op)
        }
        State::Running => {
            home.create("web").await;
            None
        }
        State::Paused => {
            home.create("web").await;
            let op = home.vms.pause("web", &op()).await.unwrap();
            home.succeeded(op).await;
            None
        }
        State::Stopping => {
            home.create("web").await;
            town.world.turn(|knobs| knobs.sync_hangs = true);
            let op = home.vms.stop("web", GRACE, &op()).await.unwrap();
            home.until("web", Some(State::Stopping)).await;
            Some(op)
        }
        State::Stopped => {
            home.create("web").await;
            let op = home.vms.stop("web", GRACE, &op()).await.unwrap();
            home.succeeded(op).await;
            None
        }
        State::Error => {
            let vm = home.create("web").await;
            town.world.engine(&vm.id).die("segmentation fault", false);
            home.until("web", Some(State::Error)).await;
            None
        }
    }
}

async fn ask(home: &Home, verb: &str) -> Result<Operation, Failure> {
    match verb {
        "start" => home.vms.start("web", &op()).await,
        "restart" => home.vms.restart("web", &op()).await,
        "stop" => home.vms.stop("web", GRACE, &op()).await,
        "kill" => home.vms.kill("web", "KILL", &op()).await,
        "pause" => home.vms.pause("web", &op()).await,
        "resume" => home.vms.resume("web", &op()).await,
        "delete" => home.vms.delete("web", false, &op()).await,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn every_verb_does_in_every_state_what_the_table_says() {
    use State::{Created, Error, Paused, Running, Starting, Stopped, Stopping};
    let rests = [Created, Stopped, Error];
    for state in [Created, Stopped, Error, Starting, Running, Paused, Stopping] {
        for (verb, refused, end) in [
            ("start", false, Some(Running)),
            ("restart", false, Some(Running)),
            (
                "stop",
                false,
                Some(if rests.contains(&state) {
                    state
                } else {
                    Stopped
                }),
            ),
            (
                "kill",
                false,
                Some(if rests.contains(&state) {
                    state
                } else {
                    Stopped
                }),
            ),
            ("pause", !matches!(state, Running | Paused), Some(Paused)),
            ("resume", !matches!(state, Running | Paused), Some(Running)),
            ("delete", false, None),
        ] {
            let town = Town::new();
            let home = town.home().await;
            bring(&town, &home, state).await;
            let launches = town.world.launches();
            let answer = ask(&home, verb).await;
            town.world
                .turn(|knobs| (knobs.hello_hangs, knobs.sync_hangs) = (false, false));
            match answer {
                Err(failure) => {
                    assert!(refused, "{verb} of {state:?}: {failure:?}");
                    assert_eq!(failure.code, Code::NotRunning);
                }
                Ok(begun) => {
                    assert!(!refused, "{verb} of {state:?} was not refused");
                    home.succeeded(begun).await;
                    home.until("web", end).await;
                }
            }
            if verb == "restart" && state != Starting {
                assert_eq!(town.world.launches(), launches + 1, "restart of {state:?}");
            }
            if verb == "start" && matches!(state, Running | Paused | Starting) {
                assert_eq!(town.world.launches(), launches, "start of {state:?}");
            }
            if end != Some(Paused) && !refused {
                assert_eq!(town.leftovers(&home).await, [""; 0], "{verb} of {state:?}");
            }
            home.crash().await;
        }
    }
}

#[tokio::test]
async fn verbs_of_an_absent_vm_are_not_found() {
    let home = Town::new().home().await;
    for verb in ["start", "restart", "stop", "kill", "delete"] {
        assert_eq!(
            ask(&home, verb).await.unwrap_err().code,
            Code::NotFound,
            "{verb}"
        );
    }
}

#[tokio::test]
async fn a_stop_overtakes_a_start_and_a_delete_overtakes_all() {
    let town = Town::new();
    let home = town.home().await;
    let create = bring(&town, &home, State::Starting).await.unwrap();
    let stop = ask(&home, "stop").await.unwrap();
    home.failed(create, Code::Cancelled).await;
    home.succeeded(stop).await;
    assert_eq!(home.state("web").await, Some(State::Stopped));
    let start = ask(&home, "start").await.unwrap();
    let joined = ask(&home, "start").await.unwrap();
    assert_ne!(start.id, joined.id);
    home.until("web", Some(State::Starting)).await;
    let delete = ask(&home, "delete").await.unwrap();
    home.failed(start, Code::Cancelled).await;
    home.failed(joined, Code::Cancelled).await;
    home.succeeded(delete).await;
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

/// What a VM at rest was given holds nothing of a run, so a run that uses it must write down its
/// own part before it takes it.
#[tokio::test]
async fn a_start_while_the_disks_of_a_create_are_made_writes_down_what_it_holds() {
    let town = Town::new();
    let home = town.home().await;
    town.world.turn(|knobs| knobs.take_hangs = true);
    let resting = VmCreateParams {
        no_start: true,
        ..params("web")
    };
    let create = home.vms.create(resting, &op()).await.unwrap();
    let house = home.vms.house();
    let id = house.find("web").await.unwrap().id;
    while house.holdings(&id).await.unwrap().is_empty() {
        breath().await;
    }
    let start = ask(&home, "start").await.unwrap();
    town.world.turn(|knobs| knobs.take_hangs = false);
    home.succeeded(start).await;
    home.done(create).await;
    let held = house.holdings(&id).await.unwrap();
    assert_eq!(held.len(), Holding::ALL.len(), "{held:?}");
    let delete = ask(&home, "delete").await.unwrap();
    home.succeeded(delete).await;
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn a_start_during_a_stop_boots_after_it() {
    let town = Town::new();
    let home = town.home().await;
    let stop = bring(&town, &home, State::Stopping).await.unwrap();
    let start = ask(&home, "start").await.unwrap();
    town.world.turn(|knobs| knobs.sync_hangs = false);
    home.succeeded(stop).await;
    home.succeeded(start).await;
    assert_eq!(town.world.launches(), 2);
}

#[tokio::test]
async fn a_kill_ends_a_stop_that_hangs_and_both_succeed() {
    let town = Town::new();
    let home = town.home().await;
    let stop = bring(&town, &home, State::Stopping).await.unwrap();
    let kill = home.vms.kill("web", "TERM", &op()).await.unwrap();
    home.succeeded(stop).await;
    home.succeeded(kill).await;
    assert_eq!(home.state("web").await, Some(State::Stopped));
    assert_eq!(town.world.signals(), ["TERM"]);
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn a_cancelled_create_leaves_nothing_and_a_cancelled_start_leaves_the_vm() {
    let town = Town::new();
    let home = town.home().await;
    let hangs: [fn(&mut super::fakes::Knobs); 2] = [
        |knobs| knobs.image_hangs = true,
        |knobs| knobs.hello_hangs = true,
    ];
    for hang in hangs {
        town.world.turn(hang);
        let create = home.vms.create(params("web"), &op()).await.unwrap();
        for _ in 0..20 {
            breath().await;
        }
        home.operations.cancel(&create.id).await.unwrap();
        let create = home.failed(create, Code::Cancelled).await;
        assert!(create.cancelled);
        assert_eq!(home.state("web").await, None);
        assert_eq!(town.leftovers(&home).await, [""; 0]);
        town.world
            .turn(|knobs| (knobs.image_hangs, knobs.hello_hangs) = (false, false));
    }
    home.created("web").await;
    town.world.turn(|knobs| knobs.hello_hangs = true);
    let start = ask(&home, "start").await.unwrap();
    while town.world.engines() == 0 {
        breath().await;
    }
    home.operations.cancel(&start.id).await.unwrap();
    home.failed(start, Code::Cancelled).await;
    assert_eq!(home.state("web").await, Some(State::Stopped));
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn a_cancelled_stop_that_still_syncs_lets_the_guest_run_on() {
    let town = Town::new();
    let home = town.home().await;
    let stop = bring(&town, &home, State::Stopping).await.unwrap();
    home.operations.cancel(&stop.id).await.unwrap();
    home.failed(stop, Code::Cancelled).await;
    assert_eq!(home.state("web").await, Some(State::Running));
    town.world.turn(|knobs| knobs.sync_hangs = false);
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn twenty_creates_at_once_are_independent() {
    let town = Town::new();
    let home = town.home().await;
    let creates = (0..20).map(|_| async {
        let params = VmCreateParams::default();
        home.vms.create(params, &op()).await.unwrap()
    });
    let begun = futures_util::future::join_all(creates).await;
    let mut names = BTreeSet::new();
    for create in begun {
        let vm = home.succeeded(create).await.vm.unwrap();
        assert_eq!(vm.state, State::Running);
        assert!(names.insert(vm.name) && names.insert(vm.id));
    }
    assert_eq!(names.len(), 40);
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn no_vm_waits_for_anothers_boot() {
    let town = Town::new();
    let home = town.home().await;
    town.world.turn(|knobs| knobs.image_hangs = true);
    let slow = home.vms.create(params("slow"), &op()).await.unwrap();
    let taken = home.vms.create(params("slow"), &op()).await.unwrap_err();
    assert_eq!(taken.code, Code::AlreadyExists);
    assert_eq!(home.state("slow").await, Some(State::Starting));
    town.world.turn(|knobs| knobs.image_hangs = false);
    home.succeeded(slow).await;
}

#[tokio::test]
async fn what_is_refused_leaves_no_row() {
    let town = Town::new();
    let home = town.home().await;
    let ask = |edit: fn(&mut VmCreateParams)| {
        let mut params = params("web");
        edit(&mut params);
        params
    };
    for (params, code) in [
        (ask(|p| p.name = Some("Web".into())), Code::BadName),
        (ask(|p| p.vcpu_count = Some(0)), Code::BadSize),
        (ask(|p| p.vcpu_count = Some(33)), Code::BadSize),
        (ask(|p| p.memory_mib = Some(127)), Code::BadSize),
        (ask(|p| p.memory_mib = Some(-1)), Code::BadSize),
        (ask(|p| p.memory_mib = Some(1 << 40)), Code::BadSize),
        (ask(|p| p.work_disk_size = Some("8".into())), Code::BadSize),
        (
            ask(|p| p.system_overlay_size = Some("1T".into())),
            Code::BadSize,
        ),
        (
            ask(|p| p.network_mode = Some("bridge".into())),
            Code::Unsupported,
        ),
        (
            ask(|p| p.network_mode = Some("moon".into())),
            Code::BadRequest,
        ),
        (
            ask(|p| p.engine = Some("firecracker".into())),
            Code::Unsupported,
        ),
        (ask(|p| p.kernel_name = Some("../x".into())), Code::BadName),
    ] {
        let failure = home.vms.create(params.clone(), &op()).await.unwrap_err();
        assert_eq!(failure.code, code, "{params:?}");
    }
    let small = ask(|p| p.work_disk_size = Some("8".into()));
    let failure = home.vms.create(small, &op()).await.unwrap_err();
    assert_eq!(failure.hint.as_deref(), Some("8G"));
    for (turn, code) in [
        (
            (|k| k.free_bytes = (1 << 30) - 1) as fn(&mut super::fakes::Knobs),
            Code::NoSpace,
        ),
        (|k| k.available = 100 << 20, Code::NoMemory),
        (
            |k| k.unusable = Some(Failure::new(Code::NoEngine, "no engine found")),
            Code::NoEngine,
        ),
        (
            |k| k.unknown = Some(Failure::new(Code::NotFound, "no image \"x\"")),
            Code::NotFound,
        ),
    ] {
        town.world.turn(turn);
        assert_eq!(
            home.vms
                .create(params("web"), &op())
                .await
                .unwrap_err()
                .code,
            code
        );
        town.world
            .turn(|knobs| *knobs = super::fakes::Knobs::default());
    }
    assert!(home.vms.list(None).await.unwrap().is_empty());
    assert!(home.operations.list(false).await.unwrap().is_empty());
    // What is only found out later leaves no row either.
    town.world
        .turn(|k| k.image_fails = Some(Failure::new(Code::NotInCatalog, "no image")));
    let begun = home.vms.create(params("web"), &op()).await.unwrap();
    home.failed(begun, Code::NotInCatalog).await;
    town.world.turn(|k| {
        k.image_fails = None;
        k.launch_fails = Some(Failure::new(Code::NoEngine, "qemu vanished"));
    });
    let begun = home.vms.create(params("web"), &op()).await.unwrap();
    home.failed(begun, Code::NoEngine).await;
    assert_eq!(home.state("web").await, None);
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn a_failed_first_start_is_kept_as_an_error_and_can_be_started_again() {
    let town = Town::new();
    let home = town.home().await;
    town.world
        .turn(|k| (k.boot_fails, k.console) = (true, vec!["no init".into()]));
    let begun = home.vms.create(params("web"), &op()).await.unwrap();
    let failed = home.failed(begun, Code::GuestFailed).await;
    assert!(failed.error.unwrap().ends_with("no init"));
    assert_eq!(town.leftovers(&home).await, [""; 0]);
    let vm = home.vms.show("web").await.unwrap();
    assert_eq!(vm.state, State::Error);
    assert!(vm.runtime.last_error.unwrap().contains("no disk"));
    town.world.turn(|knobs| knobs.boot_fails = false);
    let start = home.vms.start("web", &op()).await.unwrap();
    home.succeeded(start).await;
    assert_eq!(home.vms.show("web").await.unwrap().runtime.last_error, None);
}

#[tokio::test]
async fn a_refused_start_leaves_the_vm_as_it_was() {
    let town = Town::new();
    let home = town.home().await;
    home.created("web").await;
    town.world.turn(|knobs| knobs.available = 100 << 20);
    let start = home.vms.start("web", &op()).await.unwrap();
    home.failed(start, Code::NoMemory).await;
    assert_eq!(home.state("web").await, Some(State::Created));
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn a_vm_is_changed_at_rest_and_renamed_at_any_time() {
    let town = Town::new();
    let home = town.home().await;
    home.create("web").await;
    home.created("db").await;
    let set = |edit: fn(&mut VmSetParams)| {
        let mut params = VmSetParams::default();
        edit(&mut params);
        params
    };
    for sizes in [
        set(|p| p.vcpu_count = Some(4)),
        set(|p| p.work_disk_size = Some("2G".into())),
    ] {
        let failure = home.vms.set("web", sizes).await.unwrap_err();
        assert_eq!(failure.code, Code::MustBeStopped);
    }
    let taken = home
        .vms
        .set("web", set(|p| p.name = Some("db".into())))
        .await
        .unwrap_err();
    assert_eq!(taken.code, Code::AlreadyExists);
    home.vms
        .set("web", set(|p| p.name = Some("www".into())))
        .await
        .unwrap();
    assert_eq!(home.state("web").await, None);
    assert_eq!(home.state("www").await, Some(State::Running));
    let changed = home
        .vms
        .set("db", set(|p| p.vcpu_count = Some(4)))
        .await
        .unwrap();
    assert_eq!(changed.spec.vcpu_count, 4);
    let grown = home
        .vms
        .set("db", set(|p| p.work_disk_size = Some("2G".into())))
        .await
        .unwrap();
    assert_eq!(grown.spec.work_disk_size_bytes, 2 << 30);
    let shrunk = home
        .vms
        .set("db", set(|p| p.work_disk_size = Some("1G".into())))
        .await;
    assert_eq!(shrunk.unwrap_err().code, Code::BadSize);
    assert_eq!(home.vms.show("db").await.unwrap().spec.vcpu_count, 4);
}

#[tokio::test]
async fn references_are_names_ids_and_unique_beginnings_of_ids() {
    let town = Town::new();
    let home = town.home().await;
    let vm = home.created("web").await;
    for reference in ["web", &vm.id, &vm.id[..12], &vm.id[..4]] {
        assert_eq!(
            home.vms.show(reference).await.unwrap().id,
            vm.id,
            "{reference}"
        );
    }
    for reference in [&vm.id[..3], "we", "", "zzzz"] {
        assert_eq!(
            home.vms.show(reference).await.unwrap_err().code,
            Code::NotFound,
            "{reference}"
        );
    }
}

#[tokio::test]
async fn a_live_vm_is_not_deleted_where_that_is_refused() {
    let town = Town::new();
    let home = town.home().await;
    home.create("web").await;
    assert_eq!(
        home.vms.delete("web", true, &op()).await.unwrap_err().code,
        Code::Running
    );
    let stop = ask(&home, "stop").await.unwrap();
    home.succeeded(stop).await;
    let delete = home.vms.delete("web", true, &op()).await.unwrap();
    home.succeeded(delete).await;
}

#[tokio::test]
async fn what_is_stuck_keeps_only_what_carries_it_and_goes_when_asked_again() {
    let town = Town::new();
    let home = town.home().await;
    let vm = home.create("web").await;
    town.world
        .turn(|knobs| knobs.stuck = Some(Holding::Overlay));
    let delete = ask(&home, "delete").await.unwrap();
    let failed = home.done(delete).await;
    assert!(!failed.success);
    let left: Vec<Holding> = town
        .world
        .things()
        .into_iter()
        .map(|thing| thing.1)
        .collect();
    assert_eq!(left, [Holding::Directory, Holding::Overlay]);
    assert_eq!(home.state("web").await, Some(State::Stopping));
    town.world.turn(|knobs| knobs.stuck = None);
    let delete = ask(&home, "delete").await.unwrap();
    home.succeeded(delete).await;
    assert_eq!(home.state(&vm.id).await, None);
    assert_eq!(town.leftovers(&home).await, [""; 0]);
}

#[tokio::test]
async fn an_operation_tells_its_stages_to_whoever_comes_whenever() {
    let town = Town::new();
    let home = town.home().await;
    let create = home.vms.create(params("web"), &op()).await.unwrap();
    let mut early = home.operations.subscribe(&create.id, None).await.unwrap();
    home.succeeded(create.clone()).await;
    let mut late = home.operations.subscribe(&create.id, None).await.unwrap();
    let mut told = Vec::new();
    for follow in [&mut early, &mut late] {
        let (mut stages, mut last) = (Vec::new(), 0);
        while let Some(numbered) = follow.next().await {
            assert!(numbered.id > last);
            last = numbered.id;
            match numbered.event {
                OpEvent::Stage(stage) => stages.push(stage.stage),
                OpEvent::Done(done) => assert!(done.success),
                OpEvent::Progress(_) | OpEvent::Part(_) | OpEvent::Log(_) | OpEvent::Note(_) => {}
            }
        }
        told.push(stages);
    }
    let expected = [
        "resolve_image",
        "pull_image",
        "reserve",
        "prepare_disks",
        "start_engine",
        "boot_kernel",
        "wait_agent",
        "configure_guest",
        "ready",
    ];
    assert_eq!(told, [expected, expected]);
    let record = home.operations.get(&create.id).await.unwrap();
    let named: Vec<&str> = record.timings.iter().map(|t| t.stage.as_str()).collect();
    let (before, after) = expected.split_at(7);
    let guest = ["guest_oot", "guest_icdriver"];
    assert_eq!(named, [before, &guest, after].concat());
    assert!(record.timings.iter().map(|timing| timing.ms).sum::<f64>() > 0.0);
}
