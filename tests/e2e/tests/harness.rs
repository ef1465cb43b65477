//! The instruments themselves: they see what they should see.

use std::time::Duration;

use e2e::{Call, House, Terminal, wait};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_census_sees_processes_and_files_of_its_house_only() {
    let house = House::new();
    let other = House::new();
    let before = house.census();
    assert!(before.processes.is_empty(), "{before:?}");
    let live = house.wrap(Call::new("sleep", ["600"])).start();
    let stranger = other.wrap(Call::new("sleep", ["601"])).start();
    wait::until_true("the process is seen", SOON, || {
        house.census().processes.contains("sleep 600")
    });
    assert!(!house.census().processes.contains("sleep 601"));
    std::fs::create_dir_all(house.state().join("vms/x")).expect("an own directory");
    std::fs::write(house.state().join("vms/x/overlay.ext4"), "").expect("an own file");
    let left = house.census().more_than(&before).join("\n");
    assert!(
        left.contains("process: sleep 600") && left.contains("file: vms/x/overlay.ext4"),
        "{left}"
    );
    drop(live);
    drop(stranger);
    std::fs::remove_dir_all(house.state().join("vms")).expect("an own directory");
    wait::until_true("nothing is seen any more", SOON, || {
        house.census().processes.is_empty()
    });
}

#[test]
fn a_terminal_shows_what_is_typed_and_follows_its_size() {
    let house = House::new();
    let window = Terminal::open(&house, 80, 24);
    window.line("stty size; echo $((6*7))");
    let screen = window.wait_for("42", SOON);
    assert!(screen.contains("24 80"), "{screen}");
    window.resize(100, 30);
    window.clear();
    window.line("stty size");
    window.wait_for("30 100", SOON);
    window.clear();
    window.line("sleep 600; echo status=$?");
    window.wait_for("sleep 600", SOON);
    wait::until_true("sleep runs", SOON, || {
        house.census().processes.contains("sleep 600")
    });
    window.press("C-c");
    window.wait_for("host$", SOON);
}

#[test]
fn a_call_knows_status_streams_and_time() {
    let done = Call::new("sh", ["-c", "cat; echo err >&2; exit 3"])
        .input("in")
        .run()
        .expect(3);
    assert_eq!((done.out().as_str(), done.err().as_str()), ("in", "err\n"));
    assert_eq!(Call::new("sh", ["-c", "kill -9 $$"]).run().code, -9);
    let mut live = Call::new(
        "sh",
        [
            "-c",
            "trap 'exit 9' INT; echo up; while :; do sleep 0.1; done",
        ],
    )
    .start();
    live.wait_for_out("up", SOON);
    assert!(!live.has_ended());
    live.ctrl_c();
    let _ = live.wait().expect(9);
    let late = std::panic::catch_unwind(|| {
        Call::new("sleep", ["600"])
            .limit(Duration::from_secs(1))
            .run()
    });
    assert!(late.is_err(), "a time limit fails the test");
}
