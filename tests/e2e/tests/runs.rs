//! `run`: a machine, a command, its status, and nothing left.

use std::time::Duration;

use e2e::{House, Kernel, Root};

#[test]
fn run_hands_back_the_status_and_takes_input() {
    let house = House::with(Root::Bare, Kernel::Old);
    let before = house.census();
    let run = |args: &[&str]| house.call(["run", "--rm"].iter().chain(args));
    let _ = run(&["--", "true"]).run().ok();
    let _ = run(&["--", "sh", "-c", "exit 42"]).run().expect(42);
    let _ = run(&["--", "nosuch"]).run().expect(127);
    let _ = run(&["--", "/etc/passwd"]).run().expect(126);
    let _ = run(&["--", "sh", "-c", "kill -9 $$"]).run().expect(137);
    let _ = run(&["--timeout", "1s", "--", "sleep", "600"])
        .run()
        .expect(124);
    let _ = run(&["-u", "nosuch", "--", "true"]).run().expect(125);
    let _ = run(&["--image", "nosuch", "--", "true"])
        .run()
        .expect(125)
        .says("nosuch");
    let _ = run(&["-t", "--", "true"])
        .run()
        .expect(125)
        .says("terminal");
    let _ = run(&["--nosuch", "--", "true"]).run().expect(2);
    let _ = house.call(["run", "-d", "--rm"]).run().expect(2);
    let _ = house
        .call(["run", "-d", "--", "true"])
        .run()
        .expect(2)
        .says("hint: banger create");
    assert_eq!(
        run(&["-i", "--", "cat"]).input("hi\n").run().ok().out(),
        "hi\n"
    );
    assert_eq!(run(&["--", "cat"]).input("hi\n").run().ok().out(), "");
    assert_eq!(
        run(&[])
            .input("echo $((6*7))\nexit 3\n")
            .run()
            .expect(3)
            .out(),
        "42\n",
        "a bare shell takes its input"
    );
    let done = run(&["--", "sh", "-c", "echo out; echo err >&2"])
        .run()
        .ok();
    assert_eq!(
        (done.out().as_str(), done.err().as_str()),
        ("out\n", "err\n"),
        "nothing is added when stderr is no terminal"
    );
    let done = run(&["--json", "--timings", "--", "sh", "-c", "exit 5"])
        .run()
        .expect(5);
    let last = done
        .err()
        .lines()
        .last()
        .map(str::to_owned)
        .unwrap_or_default();
    let json: serde_json::Value =
        serde_json::from_str(&last).unwrap_or_else(|e| panic!("{e}: {done}"));
    assert_eq!(json["exit_code"], 5, "{json}");
    assert!(json["vm"].is_string() || json["vm"].is_object(), "{json}");
    assert!(
        json["timings"].as_array().is_some_and(|t| !t.is_empty()),
        "{json}"
    );
    // Ctrl-C while the command runs is the command's.
    let live = run(&["--", "sh", "-c", "echo up; exec sleep 600"])
        .limit(Duration::from_secs(60))
        .start();
    live.wait_for_out("up", Duration::from_secs(60));
    live.ctrl_c();
    let _ = live.wait().expect(130);
    house.assert_as_before(&before, Duration::from_secs(15));
}

/// A firewall, a file system, a tunnel: programs count on their modules to come by themselves.
#[test]
fn modules_come_when_the_kernel_asks_for_them() {
    // By the agent alone, and by the image's own program with the image's own settings.
    for (root, kernel) in [(Root::Bare, Kernel::New), (Root::Bookworm, Kernel::Old)] {
        let house = House::with(root, kernel);
        let script = "mkdir -p /etc/modprobe.d; \
            echo 'alias fs-own btrfs' > /etc/modprobe.d/own.conf; \
            for kind in xfs own; do mount -t $kind /dev/zero /tmp 2>/dev/null; done; \
            grep -ow -e xfs -e btrfs /proc/filesystems";
        let image = root.name();
        let words = ["run", "--rm", "--image", image, "--", "sh", "-c", script];
        let out = house.call(words).run().ok().out();
        let both = ["xfs", "btrfs"];
        let expected = match root {
            Root::Bare => &both[..1],
            _ => &both[..],
        };
        assert_eq!(out.lines().collect::<Vec<_>>(), expected, "{image}");
    }
}
