//! Many at once, and many in a row.

use std::collections::BTreeSet;
use std::time::Duration;

use e2e::{House, Kernel, Root, wait};

#[test]
fn twenty_machines_made_at_once_all_run() {
    const MANY: usize = 20;
    let house = House::with(Root::Bare, Kernel::Old);
    let _ = house.banger("daemon restart");
    let clients: Vec<_> = (0..MANY)
        .map(|_| {
            house
                .call(["create", "--memory", "256"])
                .limit(Duration::from_secs(400))
                .start()
        })
        .collect();
    // Nobody waits for another's boot: all engines run before most guests do.
    let mut running_then = MANY;
    wait::until_true("all engines run at once", Duration::from_secs(120), || {
        let engines = house.engines().len();
        if engines == MANY {
            running_then = house
                .vms()
                .iter()
                .filter(|vm| vm["state"] == "running")
                .count();
        }
        engines == MANY
    });
    println!("{running_then} of {MANY} guests answered when the last engine had started");
    assert!(
        running_then < MANY,
        "the last engine waited for the other guests"
    );
    let names: BTreeSet<String> = clients
        .into_iter()
        .map(|live| live.wait().ok().line())
        .collect();
    assert_eq!(names.len(), MANY, "{names:?}");
    let vms = house.vms();
    let ids: BTreeSet<_> = vms
        .iter()
        .map(|vm| vm["id"].as_str().expect("an id").to_owned())
        .collect();
    assert_eq!(ids.len(), MANY);
    let listed: BTreeSet<_> = vms
        .iter()
        .map(|vm| vm["name"].as_str().expect("a name").to_owned())
        .collect();
    assert_eq!(listed, names);
    for vm in &vms {
        assert_eq!(vm["state"], "running", "{vm}");
    }
    let execs: Vec<_> = names
        .iter()
        .map(|name| {
            (
                name,
                house
                    .call(["exec", name, "--", "hostname"])
                    .limit(Duration::from_secs(120))
                    .start(),
            )
        })
        .collect();
    let mut boots = BTreeSet::new();
    for (name, live) in execs {
        assert_eq!(&live.wait().ok().line(), name);
    }
    for name in &names {
        boots.insert(
            house.vm(name)["runtime"]["boot_id"]
                .as_str()
                .expect("a boot id")
                .to_owned(),
        );
    }
    assert_eq!(boots.len(), MANY, "machines of their own");
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let _ = house
        .call(["rm", "-f"].iter().chain(&all))
        .limit(Duration::from_secs(200))
        .run()
        .ok();
    assert!(house.vms().is_empty());
}

#[test]
fn two_runs_at_once_succeed() {
    let house = House::with(Root::Bare, Kernel::New);
    let before = house.census();
    let runs: Vec<_> = (0..2)
        .map(|i| {
            house
                .call(["run", "--rm", "--", "sh", "-c", &format!("exit {}", 40 + i)])
                .start()
        })
        .collect();
    for (i, live) in runs.into_iter().enumerate() {
        let _ = live.wait().expect(40 + i32::try_from(i).expect("small"));
    }
    house.assert_as_before(&before, Duration::from_secs(1));
}

#[test]
fn a_name_asked_for_twice_at_once_is_given_once() {
    let house = House::with(Root::Bare, Kernel::Old);
    let _ = house.banger("list").ok();
    let both: Vec<_> = (0..6)
        .map(|_| {
            house
                .call(["create", "--name", "same", "--no-start"])
                .start()
        })
        .collect();
    let codes: Vec<i32> = both.into_iter().map(|live| live.wait().code).collect();
    assert_eq!(codes.iter().filter(|c| **c == 0).count(), 1, "{codes:?}");
    assert!(codes.iter().all(|c| *c == 0 || *c == 4), "{codes:?}");
    assert_eq!(house.vms().len(), 1);
}

#[test]
fn twenty_runs_in_a_row_leave_nothing() {
    let house = House::with(Root::Bare, Kernel::Old);
    let _ = house.banger("run --rm -- true").ok();
    let before = house.census();
    for round in 0..20 {
        let done = house
            .call(["run", "--rm", "--", "sh", "-c", "echo $BANGER_VM; exit 3"])
            .run()
            .expect(3);
        let left = house.census().more_than(&before);
        assert!(
            left.is_empty(),
            "round {round} ({}) left\n  {}",
            done.line(),
            left.join("\n  ")
        );
    }
    assert!(house.vms().is_empty());
    let operations = house.banger("operation list --json").ok().json();
    let rows = operations["operations"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    assert!(rows.iter().all(|op| op["done"] == true), "{operations}");
}
