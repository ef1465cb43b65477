//! Killing any of the programs at any time: what should live lives on, what
//! should go goes.

use std::time::{Duration, Instant};

use e2e::{Census, House, Kernel, Live, Root, house, wait};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(60);
/// What `run --rm` promises after its client or the daemon died.
const PROMISE: Duration = Duration::from_secs(15);

/// A house that has booted once, and what exists in it then.
fn furnished() -> (House, Census) {
    let house = House::with(Root::Bare, Kernel::Old);
    let _ = house.banger("run --rm -- true").ok();
    let before = house.census();
    (house, before)
}

fn sleeping(house: &House) -> Live {
    let live = house
        .call(["run", "--rm", "--", "sh", "-c", "echo up; exec sleep 600"])
        .limit(SOON)
        .start();
    live.wait_for_out("up", SOON);
    live
}

fn booting(house: &House, args: &[&str]) -> Live {
    let live = house.call(args).limit(SOON).start();
    wait::until_true("an engine runs", SOON, || !house.engines().is_empty());
    live
}

#[test]
fn a_killed_client_of_run_rm_leaves_nothing() {
    let (house, before) = furnished();
    let live = sleeping(&house);
    live.signal(Signal::KILL);
    let _ = live.wait();
    let _ = house.banger("list").ok();
    house.assert_as_before(&before, PROMISE);
    // While it boots, too.
    let live = booting(&house, &["run", "--rm", "--", "sleep", "600"]);
    live.signal(Signal::KILL);
    let _ = live.wait();
    let _ = house.banger("list").ok();
    house.assert_as_before(&before, PROMISE);
}

#[test]
fn a_killed_daemon_during_run_rm_leaves_nothing() {
    let (house, before) = furnished();
    let live = sleeping(&house);
    house.kill_daemon();
    let _ = live.wait().expect(125).says("error: ");
    let _ = house.banger("list").ok();
    house.assert_as_before(&before, PROMISE);
    let live = booting(&house, &["run", "--rm", "--", "sleep", "600"]);
    house.kill_daemon();
    let _ = live.wait().expect(125);
    let _ = house.banger("list").ok();
    house.assert_as_before(&before, PROMISE);
    // Both at once.
    let live = sleeping(&house);
    live.signal(Signal::KILL);
    house.kill_daemon();
    let _ = live.wait();
    let _ = house.banger("list").ok();
    house.assert_as_before(&before, PROMISE);
}

#[test]
fn a_running_guest_does_not_notice_the_daemons_death() {
    let house = House::with(Root::Busybox, Kernel::New);
    let _ = house.banger("create --name box").ok();
    let boot_id = house.boot_id("box");
    let engine = house.engines().first().expect("an engine").pid;
    let _ = house
        .sh(
            "box",
            "sh -c 'while :; do date +%s >> /tmp/ticks; sleep 1; done' >/dev/null 2>&1 &",
        )
        .ok();
    for _ in 0..3 {
        house.kill_daemon();
        let began = Instant::now();
        assert_eq!(house.state_of("box"), "running");
        assert_eq!(house.boot_id("box"), boot_id);
        println!(
            "found and reached again {:.1} s after the daemon's death",
            began.elapsed().as_secs_f32()
        );
        assert_eq!(house.engines().first().map(|e| e.pid), Some(engine));
    }
    // An orderly stop of the daemon leaves it alone as well.
    house.stop_daemon();
    assert_eq!(
        house.engines().first().map(|e| e.pid),
        Some(engine),
        "VMs run on"
    );
    assert_eq!(house.boot_id("box"), boot_id);
    let _ = house.banger("daemon restart").ok();
    assert_eq!(house.boot_id("box"), boot_id);
    wait::until_true("the ticks go on", Duration::from_secs(30), || {
        house.sh("box", "test $(wc -l < /tmp/ticks) -ge 3").code == 0
    });
    // An adopted guest ends as any other.
    house.kill_daemon();
    let _ = house.banger("stop box").ok();
    assert_eq!(house.state_of("box"), "stopped");
    for file in house.disks("box") {
        e2e::disk::assert_clean(&file);
    }
    let _ = house.banger("start box").ok();
    assert_ne!(house.boot_id("box"), boot_id);
}

#[test]
fn an_end_while_the_daemon_was_away_is_known_afterwards() {
    let house = House::with(Root::Bare, Kernel::Old);
    for (name, command, state) in [
        ("off", "sleep 3; poweroff -f", "stopped"),
        ("crash", "sleep 3; echo c > /proc/sysrq-trigger", "error"),
    ] {
        let _ = house.banger(&format!("create --name {name}")).ok();
        let _ = house
            .sh(name, &format!("( {command} ) >/dev/null 2>&1 &"))
            .ok();
        house.kill_daemon();
        wait::until_true("the engine has ended", SOON, || house.engines().is_empty());
        assert_eq!(house.state_of(name), state, "{}", house.vm(name));
    }
    let _ = house.banger("rm -f off crash").ok();
}

#[test]
fn a_killed_engine_is_an_error_within_two_seconds() {
    let house = House::with(Root::Bare, Kernel::Old);
    let _ = house.banger("create --name box").ok();
    let _ = house
        .sh(
            "box",
            "echo a-word-on-the-console > /dev/console; echo kept > /root/kept; sync",
        )
        .ok();
    let id = house.vm("box")["id"].as_str().expect("an id").to_owned();
    let pid = house.engine_pid(&id).expect("an engine");
    let began = Instant::now();
    house::kill(pid);
    wait::until_true("the state is error", Duration::from_secs(2), || {
        house.api("GET", "/v1/vms/box", None).body["vm"]["state"] == "error"
    });
    println!("error after {:.2} s", began.elapsed().as_secs_f32());
    let record = house.vm("box");
    let reason = record["runtime"]["last_error"]
        .as_str()
        .expect("a reason")
        .to_owned();
    assert!(
        reason.contains("signal 9") || reason.to_lowercase().contains("kill"),
        "{reason}"
    );
    assert!(
        reason.contains("a-word-on-the-console"),
        "the console's tail belongs to the reason: {reason}"
    );
    assert!(
        house
            .banger("logs box")
            .ok()
            .out()
            .contains("a-word-on-the-console")
    );
    assert_eq!(record["runtime"]["goal"], "down");
    let left = house.census();
    assert!(
        left.processes.is_empty() && left.cgroups.is_empty(),
        "an error holds nothing of a run: {left:?}"
    );
    let _ = house.banger("exec box -- true").expect(125).says("hint: ");
    // It starts again, and what was synced is there.
    let _ = house.banger("start box").ok();
    assert_eq!(
        house.banger("exec box -- cat /root/kept").ok().line(),
        "kept"
    );
    // Frozen by someone else and killed is the same; a panic inside as well.
    let _ = house.sh(
        "box",
        "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger",
    );
    wait::until_true(
        "a panic inside is an error",
        Duration::from_secs(20),
        || house.state_of("box") == "error",
    );
    let reason = house.vm("box")["runtime"]["last_error"]
        .as_str()
        .unwrap_or("")
        .to_owned();
    println!("{reason}");
    assert!(!reason.is_empty());
}

#[test]
fn ctrl_c_in_boot_is_130_and_leaves_nothing() {
    let (house, before) = furnished();
    for args in [
        &["run", "--rm", "--", "true"][..],
        &["run", "--", "true"],
        &["run"],
        &["create"],
    ] {
        let live = booting(&house, args);
        live.ctrl_c();
        let _ = live.wait().expect(130);
        house.assert_as_before(&before, Duration::from_secs(2));
        assert!(house.vms().is_empty(), "{args:?}");
    }
    // Before there is an engine: at the very start.
    for delay in [0, 5, 20, 60, 150] {
        let live = house
            .call(["run", "--rm", "--", "sleep", "600"])
            .limit(SOON)
            .start();
        wait::pause(Duration::from_millis(delay));
        live.ctrl_c();
        let done = live.wait();
        assert!(
            done.code == 130 || done.code == -2,
            "after {delay} ms: {done}"
        );
        let _ = house.banger("list").ok();
        house.assert_as_before(&before, PROMISE);
    }
}

#[test]
fn a_reboot_inside_too_early_is_a_crash_and_of_run_rm_the_end() {
    let (house, before) = furnished();
    let _ = house.banger("create --name box").ok();
    let _ = house.banger("exec box -- reboot -f");
    wait::until_true(
        "a reboot in the first ten seconds is an error",
        SOON,
        || house.state_of("box") == "error",
    );
    let _ = house.banger("rm box").ok();
    let done = house
        .call([
            "run",
            "--rm",
            "--",
            "sh",
            "-c",
            "sleep 11; reboot -f; sleep 60",
        ])
        .limit(Duration::from_secs(120))
        .run();
    assert!(done.code == 125 || done.code == 137, "{done}");
    house.assert_as_before(&before, PROMISE);
}
