//! A real QEMU, from launch to end: known, controlled, confined, and never
//! lost.

#![allow(clippy::unwrap_used, reason = "tests")]

mod room;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use banger_engine::cgroup::{self, Cgroups};
use banger_engine::machine::{Acceleration, Nic, Transport};
use banger_engine::{LaunchError, Wish};
use banger_sys::engine::spawn::Spawn;
use room::{Guest, Room};

/// Far more than anything here takes, on a busy machine too.
const LONG: Duration = Duration::from_secs(30);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, what)
        .await
        .expect("within half a minute")
}

fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
}

/// Waits for a process that is not our child.
async fn gone(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return;
    };
    let wait = tokio::task::spawn_blocking(move || {
        let mut poll = [rustix::event::PollFd::new(
            &pidfd,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut poll, None).unwrap();
    });
    soon(wait).await.unwrap();
}

fn status(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .unwrap();
    line.trim().to_owned()
}

#[tokio::test]
async fn an_engine_is_launched_controlled_and_ended() {
    let Some(room) = Room::new("life", Guest::Sleeps) else {
        return;
    };
    let engine = room.engine();
    let choice = engine.choose(Wish::Qemu).unwrap();
    assert_eq!(
        (choice.engine, choice.acceleration),
        ("qemu", Acceleration::Tcg)
    );
    assert_eq!(choice.reason, "no usable KVM (BANGER_KVM=off)");

    let facts = soon(engine.launch(&room.machine, Wish::Auto))
        .await
        .unwrap();
    let other = soon(engine.launch(&room.machine, Wish::Firecracker)).await;
    assert!(
        matches!(other, Err(LaunchError::Choose(_))),
        "the wish of the machine counts, not the host's: {other:?}"
    );
    let json = serde_json::to_string(&facts).unwrap();
    assert_eq!(
        serde_json::from_str::<banger_engine::machine::Facts>(&json).unwrap(),
        facts
    );
    assert_eq!(facts.no_kvm.as_deref(), Some("BANGER_KVM=off"));
    let again = soon(engine.launch(&room.machine, Wish::Qemu)).await;
    assert!(
        matches!(again, Err(LaunchError::Lives)),
        "a second engine for one VM: {again:?}"
    );

    let live = soon(engine.attach(&facts))
        .await
        .unwrap()
        .expect("it lives");
    drop(
        soon(live.line())
            .await
            .expect("the channel can be connected before the guest runs"),
    );
    soon(live.pause()).await.unwrap();
    soon(live.resume()).await.unwrap();
    let work = &room.machine.drives[1].path;
    fs::File::options()
        .write(true)
        .open(work)
        .unwrap()
        .set_len(2 << 20)
        .unwrap();
    soon(live.resize_disk("work", 2 << 20)).await.unwrap();
    let nothing = soon(live.resize_disk("nothing", 1)).await.unwrap_err();
    assert_eq!(nothing.to_string(), "cannot resize disk nothing");
    let usage = live.usage().unwrap();
    assert!(
        usage.rss_bytes > 1 << 20 && usage.vsz_bytes > usage.rss_bytes,
        "{usage:?}"
    );
    assert!(live.kill("HUP").is_err(), "a signal outside of the list");

    live.kill("TERM").unwrap();
    let end = soon(live.ended()).await;
    assert_eq!(
        (end.by_guest, end.reason.as_str()),
        (false, "a signal ended the engine")
    );
    assert_eq!(
        soon(live.ended()).await,
        end,
        "who asks later hears the same"
    );
    assert!(live.usage().is_none());
    assert!(
        !Path::new(&format!("/proc/{}", facts.pid)).exists(),
        "the engine was reaped"
    );
    live.kill("KILL")
        .expect("an engine that is gone is killed already");
    assert!(soon(engine.attach(&facts)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_network_card_has_the_only_other_end_of_its_line() {
    let Some(room) = Room::new("card", Guest::Sleeps) else {
        return;
    };
    for transport in [Transport::Mmio, Transport::Pci] {
        let engine = room.engine();
        let (end, ours) = banger_engine::gateway::line().unwrap();
        let mut machine = room.machine.clone();
        machine.transport = transport;
        machine.nic = Some(Nic {
            line: Arc::new(end),
            mac: [0x52, 0x54, 0, 1, 2, 3],
            mtu: 65_520,
        });
        let facts = soon(engine.launch(&machine, Wish::Auto)).await.unwrap();
        drop(machine);
        let live = soon(engine.attach(&facts))
            .await
            .unwrap()
            .expect("it lives");
        soon(live.pause()).await.expect("its devices were made");
        rustix::io::write(&ours, &[0; 60]).expect("somebody is at the other end");
        live.kill("KILL").unwrap();
        soon(live.ended()).await;
        let error = rustix::io::write(&ours, &[0; 60]).unwrap_err();
        assert_eq!(error, rustix::io::Errno::CONNREFUSED, "{transport:?}");
        soon(engine.sweep(&room.machine.id, &room.machine.run_dir, None))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn an_engine_has_no_power_and_no_descriptor_that_it_was_not_given() {
    let Some(room) = Room::new("power", Guest::Sleeps) else {
        return;
    };
    let engine = room.engine();
    // A descriptor that must not get through, inheritable on purpose.
    let stray = fs::File::open("/etc/passwd").unwrap();
    rustix::io::fcntl_setfd(&stray, rustix::io::FdFlags::empty()).unwrap();
    let facts = soon(engine.launch(&room.machine, Wish::Auto))
        .await
        .unwrap();
    let live = soon(engine.attach(&facts)).await.unwrap().unwrap();
    soon(live.resume())
        .await
        .expect("QEMU answers, so it has opened everything");

    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        if set != "CapBnd" || rustix::process::geteuid().is_root() {
            assert_eq!(status(facts.pid, set), "0000000000000000", "{set}");
        }
    }
    assert_eq!(status(facts.pid, "NoNewPrivs"), "1");
    assert_eq!(status(facts.pid, "Seccomp"), "2");
    assert_eq!(status(facts.pid, "Umask"), "0077");
    let stat = fs::read_to_string(format!("/proc/{}/stat", facts.pid)).unwrap();
    let session = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(3)
        .unwrap();
    assert_eq!(session, facts.pid.to_string(), "a session of its own");
    if rustix::process::geteuid().is_root() {
        let mounts = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
        assert_ne!(mounts(&facts.pid.to_string()), mounts("self"));
    }
    let mut files = BTreeSet::new();
    for fd in fs::read_dir(format!("/proc/{}/fd", facts.pid)).unwrap() {
        let target = fs::read_link(fd.unwrap().path()).unwrap();
        if target.is_absolute() && !target.starts_with("/dev") && !target.starts_with("/memfd:") {
            files.insert(
                target
                    .strip_prefix(&room.root)
                    .unwrap_or(&target)
                    .display()
                    .to_string(),
            );
        }
    }
    let given = [
        "console.log",
        "root.img",
        "run/engine.lock",
        "run/engine.log",
        "work,1.img",
    ];
    assert_eq!(files.iter().map(String::as_str).collect::<Vec<_>>(), given);
    soon(engine.sweep(&facts.id, &facts.run_dir, None))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_reset_by_the_guest_is_told_from_a_death() {
    let Some(room) = Room::new("reset", Guest::Resets) else {
        return;
    };
    let engine = room.engine();
    let facts = soon(engine.launch(&room.machine, Wish::Auto))
        .await
        .unwrap();
    let live = soon(engine.attach(&facts))
        .await
        .unwrap()
        .expect("its end is kept for the first who asks");
    let end = soon(live.ended()).await;
    assert!(end.by_guest, "{end:?}");
    assert_eq!(
        fs::read_to_string(&room.machine.console).unwrap().trim(),
        "hi"
    );
}

#[tokio::test]
async fn an_engine_that_cannot_begin_says_why() {
    let Some(mut room) = Room::new("cannot", Guest::Sleeps) else {
        return;
    };
    room.machine.drives[1].path = room.root.join("missing.img");
    let engine = room.engine();
    let facts = soon(engine.launch(&room.machine, Wish::Auto))
        .await
        .unwrap();
    let live = soon(engine.attach(&facts))
        .await
        .unwrap()
        .expect("also of one that ended before");
    let end = soon(live.ended()).await;
    assert!(!end.by_guest);
    assert!(
        end.reason.starts_with("the engine ended with status 1: ")
            && end.reason.contains("missing.img"),
        "{end:?}"
    );

    room.machine.run_dir = room.root.join("nowhere");
    let error = soon(engine.launch(&room.machine, Wish::Auto))
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "cannot open the lock of the engine");
}

#[tokio::test]
async fn another_daemon_takes_an_engine_over_and_hears_of_its_death() {
    let Some(room) = Room::new("adopt", Guest::Sleeps) else {
        return;
    };
    let (first, second) = (room.engine(), room.engine());
    let facts = soon(first.launch(&room.machine, Wish::Auto)).await.unwrap();
    let before = soon(first.attach(&facts)).await.unwrap().unwrap();
    soon(before.pause()).await.unwrap();
    drop(before);

    let mut other = facts.clone();
    other.start_ticks += 1;
    assert!(
        soon(second.attach(&other)).await.unwrap().is_none(),
        "another start time"
    );
    other = facts.clone();
    other.id = "f".repeat(64);
    assert!(
        soon(second.attach(&other)).await.unwrap().is_none(),
        "another VM"
    );
    other = facts.clone();
    other.host_boot_id = "earlier".into();
    assert!(
        soon(second.attach(&other)).await.unwrap().is_none(),
        "before a boot of the host"
    );
    let live = soon(second.attach(&facts))
        .await
        .unwrap()
        .expect("it lives on");
    soon(live.resume())
        .await
        .expect("the control socket passed on");
    let pid = rustix::process::Pid::from_raw(facts.pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let (one, two) = tokio::join!(soon(live.ended()), soon(live.ended()));
    assert_eq!(one, two);
    assert_eq!(
        (one.by_guest, one.reason.as_str()),
        (false, "the engine died")
    );
    assert!(soon(second.attach(&facts)).await.unwrap().is_none());
}

#[tokio::test]
async fn an_engine_of_which_nobody_wrote_is_swept() {
    let Some(mut room) = Room::new("sweep", Guest::Sleeps) else {
        return;
    };
    let cgroup = Cgroups::find(&room.root).map(|cgroups| cgroups.of(&room.machine.id));
    if cgroup.is_none() {
        println!("skipped in part: no cgroup can be made here");
    }
    for cgroup in [None, cgroup].into_iter().take(2) {
        if let Some(cgroup) = &cgroup {
            cgroup::make(cgroup).unwrap();
        }
        room.machine.cgroup.clone_from(&cgroup);
        let facts = soon(room.engine().launch(&room.machine, Wish::Auto))
            .await
            .unwrap();
        if let Some(cgroup) = &cgroup {
            let inside = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
            assert_eq!(inside.trim(), facts.pid.to_string(), "born in its cgroup");
        }
        // A daemon that knows nothing, and does not even know of the cgroup.
        let sweeper = room.engine();
        soon(sweeper.sweep(&"e".repeat(64), &room.root, None))
            .await
            .expect("nothing of another VM");
        assert!(lives(facts.pid));
        soon(sweeper.sweep(&facts.id, &facts.run_dir, cgroup.as_deref()))
            .await
            .unwrap();
        assert!(!lives(facts.pid));
        soon(sweeper.sweep(&facts.id, &facts.run_dir, cgroup.as_deref()))
            .await
            .expect("twice");
        // Linux 6.18 kills at birth in a cgroup that was once killed.
        if let Some(cgroup) = &cgroup {
            cgroup::remove(cgroup).unwrap();
            cgroup::make(cgroup).unwrap();
        }
        let next = soon(sweeper.launch(&room.machine, Wish::Auto))
            .await
            .unwrap();
        let running = soon(sweeper.attach(&next)).await.unwrap();
        assert!(running.is_some() && lives(next.pid), "the next one lives");
        soon(sweeper.sweep(&next.id, &next.run_dir, cgroup.as_deref()))
            .await
            .unwrap();
        if let Some(cgroup) = &cgroup {
            cgroup::remove(cgroup).unwrap();
        }
    }
}

#[tokio::test]
async fn an_engine_is_found_by_its_lock_and_by_its_name_alone() {
    let Some(room) = Room::new("found", Guest::Sleeps) else {
        return;
    };
    let engine = room.engine();
    let facts = soon(engine.launch(&room.machine, Wish::Auto))
        .await
        .unwrap();
    soon(engine.sweep(&"e".repeat(64), &facts.run_dir, None))
        .await
        .expect("by the lock");
    assert!(!lives(facts.pid));
    let facts = soon(engine.launch(&room.machine, Wish::Auto))
        .await
        .unwrap();
    soon(engine.sweep(&facts.id, &room.root, None))
        .await
        .expect("by the name");
    assert!(!lives(facts.pid));
}

/// Runs one of the ignored tests below as a program of its own, and gives the
/// number that it prints.
fn daemon(role: &str, root: &Path) -> (std::process::Child, u32) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", role, "--ignored", "--nocapture"])
        .env("BANGER_ROOM", root)
        .stdout(Stdio::piped())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let pid = lines
        .map_while(Result::ok)
        .find_map(|line| line.split("engine=").nth(1)?.trim().parse().ok());
    (child, pid.expect("the daemon told the engine's pid"))
}

#[tokio::test]
async fn a_daemon_killed_right_after_a_launch_leaves_an_engine_that_is_swept() {
    let Some(room) = Room::new("killed", Guest::Sleeps) else {
        return;
    };
    let (mut child, pid) = daemon("launches_and_waits", &room.root);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(lives(pid), "an engine outlives its daemon");
    let id = fs::read_to_string(room.root.join("id")).unwrap();
    soon(room.engine().sweep(&id, &room.machine.run_dir, None))
        .await
        .unwrap();
    assert!(!lives(pid));
}

#[tokio::test]
async fn a_daemon_killed_between_fork_and_exec_leaves_no_engine() {
    let Some(room) = Room::new("forked", Guest::Sleeps) else {
        return;
    };
    let (mut child, pid) = daemon("forks_and_waits", &room.root);
    assert!(lives(pid), "the child waits for the word");
    // Standard streams, the lock, and three pipes of the waiting itself: what
    // else we had is closed before the wait.
    let holds = move || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let closed = tokio::task::spawn_blocking(move || {
        while holds() != 7 {
            std::thread::yield_now()
        }
    });
    soon(closed).await.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    gone(pid).await;
    assert!(!room.root.join("executed").exists());
    soon(
        room.engine()
            .sweep(&room.machine.id, &room.machine.run_dir, None),
    )
    .await
    .expect("its lock is free");
}

#[tokio::test]
#[ignore = "the daemon of a test above"]
async fn launches_and_waits() {
    let Some(root) = std::env::var_os("BANGER_ROOM") else {
        return;
    };
    let root = Path::new(&root);
    let machine = room::plain_machine(root);
    fs::write(root.join("id"), &machine.id).unwrap();
    let facts = room::engine(root)
        .launch(&machine, Wish::Auto)
        .await
        .unwrap();
    println!("engine={}", facts.pid);
    std::future::pending::<()>().await;
}

#[test]
#[ignore = "the daemon of a test above"]
fn forks_and_waits() {
    let Some(root) = std::env::var_os("BANGER_ROOM") else {
        return;
    };
    let root = Path::new(&root);
    let lock = fs::File::create(root.join("run/engine.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let nothing = fs::File::open("/dev/null").unwrap();
    let script = format!("echo > {}/executed", root.display());
    let held = Spawn {
        program: c"/bin/sh".to_owned(),
        arguments: vec![
            c"sh".to_owned(),
            c"-c".to_owned(),
            std::ffi::CString::new(script).unwrap(),
        ],
        environment: Vec::new(),
        directory: c"/".to_owned(),
        input: nothing.as_fd(),
        output: nothing.as_fd(),
        keep: vec![lock.as_fd()],
        cgroup: None,
        ruleset: None,
        powerless: false,
    }
    .start()
    .unwrap();
    println!("engine={}", held.pid());
    // For ever: the test kills us, and never writes.
    std::io::stdin().lines().next();
    held.go().unwrap();
}
