//! The daemon at rest: measured and printed, for people to judge.

use std::time::Duration;

use e2e::{House, Kernel, Root, wait};

/// Context switches of all threads so far.
fn switches(pid: u32) -> u64 {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        for line in status.lines().filter(|l| l.contains("ctxt_switches")) {
            sum += line
                .split_whitespace()
                .last()
                .and_then(|n| n.parse::<u64>().ok())
                .unwrap_or(0);
        }
    }
    sum
}

fn memory_kib(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with(field)).unwrap_or("");
    line.split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

fn report(house: &House, when: &str) -> u64 {
    let pid = house.daemon_pid().expect("a daemon");
    wait::pause(Duration::from_secs(2));
    let before = switches(pid);
    wait::pause(Duration::from_secs(5));
    // A thread that ended takes its count along.
    let woken = switches(pid).saturating_sub(before);
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    println!(
        "idle daemon {when}: VmRSS {:.1} MiB (of it RssAnon {:.1}), {threads} threads, {woken} context switches in 5 s",
        memory_kib(pid, "VmRSS:") as f64 / 1024.0,
        memory_kib(pid, "RssAnon:") as f64 / 1024.0,
    );
    woken
}

#[test]
fn a_daemon_at_rest_is_measured() {
    let house = House::with(Root::Bare, Kernel::Old);
    house.stop_daemon();
    let _ = house.banger("list").ok();
    let fresh = report(&house, "fresh, no VM");
    let _ = house.banger("run --rm -- true").ok();
    let used = report(&house, "after run --rm, no VM");
    let _ = house.banger("create --name box").ok();
    let _ = report(&house, "one running VM");
    let _ = house.banger("rm -f box").ok();
    // A daemon that polls by the tick would be far above this on any machine.
    assert!(
        fresh < 500 && used < 500,
        "{fresh} and {used} context switches in 5 s of rest"
    );
}
