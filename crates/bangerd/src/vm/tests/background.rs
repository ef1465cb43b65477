//! What happens to running VMs without anybody's asking: they are measured,
//! stopped when nobody uses them, and told of when their disks are full.

use std::time::Duration;

use banger_api::vm::{ExecParams, State, VmCreateParams, VmStats};
use banger_store::vms;

use super::{Clock, Home, Town, op, params};
use crate::vm::{Event, GRACE, Vm};

async fn stats(home: &Home) -> VmStats {
    home.vms.show("web").await.unwrap().stats
}

#[tokio::test]
async fn a_running_vm_is_measured_every_interval_and_no_other() {
    let mut town = Town::new();
    town.tune = |settings| settings.stats_poll_interval = Duration::from_secs(10);
    let clock = Clock::stop();
    let home = town.home().await;
    home.create("web").await;
    clock.forward(Duration::from_secs(9)).await;
    assert_eq!(stats(&home).await, VmStats::default());
    town.world.turn(|knobs| knobs.cpu_us += 5_000_000);
    // Timers go off with the next millisecond.
    clock.forward(Duration::from_millis(1002)).await;
    let first = stats(&home).await;
    let percent = first.cpu_percent.unwrap();
    assert!((49.9..=50.0).contains(&percent), "five of ten: {percent}");
    assert_eq!(
        (first.rss_bytes, first.vsz_bytes),
        (Some(1 << 20), Some(1 << 30))
    );
    assert_eq!(
        (first.system_overlay_bytes, first.work_disk_bytes),
        (Some(4096), Some(4096))
    );
    assert!(first.collected_at.is_some());
    assert_eq!(town.world.trims(), 1, "the console is kept small");
    town.world.turn(|knobs| knobs.cpu_us += 20_000_000);
    clock.forward(Duration::from_millis(10_002)).await;
    let percent = stats(&home).await.cpu_percent.unwrap();
    assert!((199.9..=200.0).contains(&percent), "two CPUs: {percent}");

    let stop = home.vms.stop("web", GRACE, &op()).await.unwrap();
    home.succeeded(stop).await;
    let trims = town.world.trims();
    clock.forward(Duration::from_secs(60)).await;
    assert_eq!(town.world.trims(), trims);
}

/// A VM that was used last an hour ago, and a daemon that finds it running.
async fn left_alone(town: &Town) -> Home {
    let home = town.home().await;
    let vm = home.create("web").await;
    home.vms.drain().await;
    let an_hour_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1);
    let id = vm.id.clone();
    home.store
        .write(move |tx| {
            let rows = vms::all(tx)?;
            for row in rows.into_iter().filter(|row| row.id.as_str() == id) {
                let mut vm = Vm::read(row).unwrap();
                vm.record.last_touched_at = an_hour_ago.to_string();
                vms::update(tx, &vm.row())?;
            }
            Ok(())
        })
        .await
        .unwrap();
    home.crash().await;
    town.home().await
}

fn half_an_hour() -> Town {
    let mut town = Town::new();
    town.tune = |settings| {
        settings.auto_stop_stale_after = Some(Duration::from_secs(1800));
    };
    town
}

#[tokio::test]
async fn a_vm_that_nobody_used_for_long_is_stopped_within_a_minute() {
    let clock = Clock::stop();
    let town = half_an_hour();
    let home = left_alone(&town).await;
    clock.forward(Duration::from_secs(59)).await;
    assert_eq!(home.state("web").await, Some(State::Running));
    clock.forward(Duration::from_secs(2)).await;
    home.until("web", Some(State::Stopped)).await;
    assert_eq!(town.leftovers(&home).await, [""; 0]);
    // It rests until somebody starts it.
    clock.forward(Duration::from_secs(120)).await;
    assert_eq!(home.state("web").await, Some(State::Stopped));
    assert_eq!(town.world.launches(), 1);
}

#[tokio::test]
async fn a_vm_in_use_is_not_stopped() {
    let clock = Clock::stop();
    let town = half_an_hour();
    let home = left_alone(&town).await;
    let exec = home.vms.exec("web", ExecParams::default()).await.unwrap();
    for _ in 0..3 {
        clock.forward(Duration::from_secs(61)).await;
        assert_eq!(home.state("web").await, Some(State::Running));
    }
    // The end of a stream is a use too: from now on it counts.
    drop(exec);
    clock.forward(Duration::from_secs(61)).await;
    assert_eq!(home.state("web").await, Some(State::Running));
}

#[tokio::test]
async fn a_verb_is_a_use_also_where_there_is_nothing_to_do() {
    let clock = Clock::stop();
    for rests in [true, false] {
        let town = half_an_hour();
        let home = left_alone(&town).await;
        if rests {
            clock.forward(Duration::from_secs(61)).await;
            home.until("web", Some(State::Stopped)).await;
        }
        let start = home.vms.start("web", &op()).await.unwrap();
        home.succeeded(start).await;
        clock.forward(Duration::from_secs(61)).await;
        assert_eq!(home.state("web").await, Some(State::Running), "{rests}");
        home.crash().await;
    }
}

#[tokio::test]
async fn no_vm_is_stopped_where_the_owner_wants_none_stopped() {
    let clock = Clock::stop();
    let town = Town::new();
    let home = left_alone(&town).await;
    clock.forward(Duration::from_secs(3000)).await;
    assert_eq!(home.state("web").await, Some(State::Running));
}

#[tokio::test]
async fn a_full_disk_of_the_host_is_told_once_a_minute() {
    let clock = Clock::stop();
    let town = Town::new();
    let home = town.home().await;
    let vm = home.create("web").await;
    let mut feed = home.vms.events(None);
    let mut told = async || loop {
        match feed.next().await {
            Event::DiskFull(event) => return (event.id, event.name, event.disk),
            Event::Vm(_) | Event::Health(_) => {}
        }
    };
    let expected = |disk: &str| (vm.id.clone(), "web".to_owned(), disk.to_owned());
    town.world.engine(&vm.id).fill_disk("work");
    assert_eq!(told().await, expected("work"));
    for _ in 0..3 {
        town.world.engine(&vm.id).fill_disk("overlay");
        clock.forward(Duration::from_secs(15)).await;
    }
    // Told on, but not before the minute is over.
    let mut soon = std::pin::pin!(told());
    let now = futures_util::poll!(soon.as_mut());
    assert!(now.is_pending());
    clock.forward(Duration::from_secs(16)).await;
    assert_eq!(soon.await, expected("overlay"));
    // The guest runs on, and a run that ended says nothing more.
    assert_eq!(home.state("web").await, Some(State::Running));
    let stop = home.vms.stop("web", GRACE, &op()).await.unwrap();
    home.succeeded(stop).await;
}

#[tokio::test]
async fn every_launch_is_of_the_engine_that_its_vm_wants() {
    let town = Town::new();
    let home = town.home().await;
    home.create("any").await;
    let wants = VmCreateParams {
        engine: Some("qemu".into()),
        ..params("web")
    };
    let begun = home.vms.create(wants, &op()).await.unwrap();
    home.succeeded(begun).await;
    let restart = home.vms.restart("web", &op()).await.unwrap();
    home.succeeded(restart).await;
    assert_eq!(town.world.wishes(), ["auto", "qemu", "qemu"]);
}
