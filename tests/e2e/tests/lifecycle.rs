//! Verbs that meet: a later goal overtakes, a stop ends what runs inside, and
//! nothing that was written is lost.

use std::time::{Duration, Instant};

use e2e::{House, Kernel, Root, disk, wait};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_later_goal_overtakes() {
    let house = House::with(Root::Bare, Kernel::Old);
    let _ = house.banger("create --name box").ok();
    let _ = house.banger("stop box").ok();
    let before = house.census();
    // A stop ends a boot.
    let start = house.call(["start", "box"]).limit(SOON).start();
    wait::until_true("it boots", SOON, || house.state_of("box") == "starting");
    let _ = house.banger("stop box").ok();
    let _ = start.wait().expect(4);
    assert_eq!(house.state_of("box"), "stopped");
    house.assert_as_before(&before, Duration::from_secs(5));
    // A start after a stop that is under way boots after it.
    let _ = house.banger("start box").ok();
    let boot_id = house.boot_id("box");
    let stop = house.call(["stop", "box"]).limit(SOON).start();
    wait::until_true("it stops", SOON, || house.state_of("box") != "running");
    let _ = house.banger("start box").ok();
    let _ = stop.wait();
    assert_eq!(house.state_of("box"), "running");
    assert_ne!(house.boot_id("box"), boot_id);
    // Two starts join, two stops join.
    let _ = house.banger("kill box").ok();
    let both: Vec<_> = (0..2)
        .map(|_| house.call(["start", "box"]).limit(SOON).start())
        .collect();
    for live in both {
        let _ = live.wait().ok();
    }
    assert_eq!(house.engines().len(), 1);
    let both: Vec<_> = (0..2)
        .map(|_| house.call(["stop", "box"]).limit(SOON).start())
        .collect();
    for live in both {
        let _ = live.wait().ok();
    }
    // A delete overtakes everything; an exec waits for a boot.
    let start = house.call(["start", "box"]).limit(SOON).start();
    wait::until_true("it boots", SOON, || house.state_of("box") == "starting");
    let exec = house
        .call([
            "exec",
            "box",
            "--",
            "sh",
            "-c",
            "echo waited; exec sleep 600",
        ])
        .limit(SOON)
        .start();
    exec.wait_for_out("waited", SOON);
    let _ = start.wait().ok();
    let _ = house.banger("restart box").ok();
    // Its end was learned (TERM, KILL) or not.
    let done = exec.wait();
    assert!([125, 137, 143].contains(&done.code), "{done}");
    let start = house.call(["restart", "box"]).limit(SOON).start();
    wait::until_true("it restarts", SOON, || house.state_of("box") != "running");
    let _ = house.banger("rm -f box").ok();
    let _ = start.wait().expect(4);
    assert!(house.vms().is_empty());
    assert!(house.engines().is_empty());
}

#[test]
fn a_stop_waits_for_processes_as_long_as_it_was_told() {
    let house = House::with(Root::Bare, Kernel::New);
    let _ = house.banger("create --name box").ok();
    // One that tidies up when asked, and one that will not go.
    let script =
        "trap 'echo tidied > /root/tidied; exit' TERM; echo up; while :; do sleep 0.1; done";
    let polite = house
        .call(["exec", "box", "--", "sh", "-c", script])
        .limit(SOON)
        .start();
    polite.wait_for_out("up", SOON);
    let stubborn = house
        .call([
            "exec",
            "box",
            "--",
            "sh",
            "-c",
            "trap '' TERM HUP; echo up; while :; do sleep 0.1; done",
        ])
        .limit(SOON)
        .start();
    stubborn.wait_for_out("up", SOON);
    let writer = house.call(["exec", "box", "--", "sh", "-c", "echo up; while :; do dd if=/dev/zero of=/root/busy bs=1M count=8 2>/dev/null; cp /root/busy /srv-busy; done"]).limit(SOON).start();
    writer.wait_for_out("up", SOON);
    let _ = house
        .sh(
            "box",
            "echo unsynced > /root/unsynced; echo unsynced > /unsynced",
        )
        .ok();
    let began = Instant::now();
    let _ = house.banger("stop box --timeout 2s").ok();
    println!(
        "stopped in {:.1} s with a process that ignores TERM",
        began.elapsed().as_secs_f32()
    );
    assert!(began.elapsed() < Duration::from_secs(30));
    // The polite one ended as it chose.
    let _ = polite.wait();
    for live in [stubborn, writer] {
        let done = live.wait();
        assert_ne!(done.code, 0, "{done}");
    }
    for file in house.disks("box") {
        disk::assert_clean(&file);
    }
    let _ = house.banger("start box").ok();
    let found = house
        .sh("box", "cat /root/unsynced /unsynced /root/tidied")
        .ok()
        .out();
    assert_eq!(
        found, "unsynced\nunsynced\ntidied\n",
        "all written before the stop is there"
    );
}

#[test]
fn space_freed_inside_is_free_outside_after_a_stop() {
    let house = House::with(Root::Bare, Kernel::Old);
    let _ = house.banger("create --name box").ok();
    let allocated = || -> u64 {
        use std::os::unix::fs::MetadataExt;
        house
            .disks("box")
            .iter()
            .map(|d| std::fs::metadata(d).expect("a disk").blocks() * 512)
            .sum()
    };
    let _ = house
        .sh(
            "box",
            "dd if=/dev/urandom of=/root/big bs=1M count=64 2>/dev/null; sync",
        )
        .ok();
    let full = allocated();
    assert!(full > 60 << 20, "{full}");
    let _ = house.sh("box", "rm /root/big; sync").ok();
    let _ = house.banger("stop box").ok();
    let after = allocated();
    println!(
        "allocated {} MiB with the file, {} MiB after its removal and a stop",
        full >> 20,
        after >> 20
    );
    assert!(after < full - (50 << 20), "{after} of {full}");
}

#[test]
fn a_power_off_inside_ends_in_stopped_and_events_say_so() {
    let house = House::with(Root::Bare, Kernel::Old);
    let _ = house.banger("list").ok();
    let _ = house.banger("create --name box").ok();
    let wait_for_stop = house
        .call(["wait", "box", "--for", "stopped", "--timeout", "60s"])
        .limit(SOON)
        .start();
    let _ = house.banger("exec box -- poweroff -f");
    let _ = wait_for_stop.wait().ok();
    let record = house.vm("box");
    assert_eq!(record["state"], "stopped", "{record}");
    assert_eq!(record["runtime"]["goal"], "down", "{record}");
    assert!(record["runtime"]["last_error"].is_null(), "{record}");
    for file in house.disks("box") {
        disk::assert_clean(&file);
    }
    // Nothing starts again by itself.
    let _ = house.banger("daemon restart").ok();
    assert_eq!(house.state_of("box"), "stopped");
}
