//! A command in a guest is like a command here: its exit status, its streams,
//! its signals, its environment are what the caller sees.

use std::time::Duration;

use e2e::{House, Kernel, Root, wait};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_command_ends_as_it_ended_in_the_guest() {
    let house = House::with(Root::Busybox, Kernel::Old);
    let _ = house.banger("create --name box").ok();
    exit_statuses(&house);
    signals_go_to_the_command(&house);
    standard_streams(&house);
    the_environment_is_the_documented_one(&house);
    users_are_the_guests(&house);
    commands_do_not_wait_for_their_children(&house);
    a_client_that_goes_away_hangs_its_command_up(&house);
    an_end_that_was_not_learned_is_125(&house);
}

fn exit_statuses(house: &House) {
    let exec = |line: &str| house.banger(&format!("exec box -- {line}"));
    let _ = exec("true").expect(0);
    let _ = house.sh("box", "exit 42").expect(42);
    let _ = house.sh("box", "exit 255").expect(255);
    let _ = exec("/etc/passwd").expect(126);
    let _ = exec("/bin").expect(126);
    let _ = exec("/nosuch").expect(127);
    let _ = exec("nosuch").expect(127);
    let _ = house.sh("box", "kill -9 $$").expect(137);
    let _ = house.sh("box", "kill -TERM $$").expect(143);
    // Before it ran.
    let _ = house
        .banger("exec nosuch -- true")
        .expect(125)
        .says("error: ");
    let _ = house
        .banger("exec -t box -- true")
        .expect(125)
        .says("terminal");
    let _ = house
        .banger("exec -w /nosuch box -- true")
        .expect(125)
        .says("/nosuch");
    // Wrong usage stays 2.
    let _ = house
        .banger("exec --nosuch box -- true")
        .expect(2)
        .says("usage: banger");
    let _ = house.banger("exec").expect(2);
    // A limit is 124 whether TERM or KILL ended it.
    let _ = house
        .banger("exec --timeout 1s box -- sleep 600")
        .expect(124);
    let done = house
        .call([
            "exec",
            "--timeout",
            "1s",
            "box",
            "--",
            "sh",
            "-c",
            "trap '' TERM; while :; do sleep 1; done",
        ])
        .run()
        .expect(124);
    assert!(
        done.took > Duration::from_secs(10),
        "KILL comes ten seconds after TERM: {done}"
    );
    let _ = house.banger("exec --timeout 60s box -- true").expect(0);
}

fn signals_go_to_the_command(house: &House) {
    // Status of a command that a signal ended.
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let live = house
            .call(["exec", "box", "--", "sh", "-c", "echo up; exec sleep 600"])
            .limit(SOON)
            .start();
        live.wait_for_out("up", SOON);
        live.signal(signal);
        let _ = live.wait().expect(status);
    }
    // A command that handles it decides.
    let live = house
        .call([
            "exec",
            "box",
            "--",
            "sh",
            "-c",
            "trap 'exit 7' INT; echo up; while :; do sleep 0.1; done",
        ])
        .limit(SOON)
        .start();
    live.wait_for_out("up", SOON);
    live.ctrl_c();
    let _ = live.wait().expect(7);
    // A second Ctrl-C within two seconds leaves at once.
    let live = house
        .call([
            "exec",
            "box",
            "--",
            "sh",
            "-c",
            "trap '' INT; echo up; sleep 600",
        ])
        .limit(SOON)
        .start();
    live.wait_for_out("up", SOON);
    live.ctrl_c();
    wait::pause(Duration::from_millis(300));
    live.ctrl_c();
    let _ = live.wait().expect(130);
    // HUP leaves at once.
    let live = house
        .call(["exec", "box", "--", "sh", "-c", "echo up; exec sleep 600"])
        .limit(SOON)
        .start();
    live.wait_for_out("up", SOON);
    live.signal(Signal::HUP);
    let _ = live.wait().expect(129);
}

fn standard_streams(house: &House) {
    let cat = |flags: &[&str]| {
        house
            .call(["exec"].iter().chain(flags).chain(&["box", "--", "cat"]))
            .input("hi\n")
            .run()
            .ok()
    };
    assert_eq!(cat(&["-i"]).out(), "hi\n");
    assert_eq!(
        cat(&[]).out(),
        "",
        "without -i the command's input is empty"
    );
    // Stdout and stderr stay apart, and in order each.
    let done = house
        .sh("box", "for i in 1 2 3; do echo out$i; echo err$i >&2; done")
        .ok();
    assert_eq!(done.out(), "out1\nout2\nout3\n");
    assert_eq!(done.err(), "err1\nerr2\nerr3\n");
    // Input that ends is seen to end while the command goes on.
    let done = house
        .call([
            "exec",
            "-i",
            "box",
            "--",
            "sh",
            "-c",
            "wc -c; sleep 1; echo after",
        ])
        .input(vec![b'x'; 70_000])
        .run()
        .ok();
    assert_eq!(done.out(), "70000\nafter\n");
    // A command that does not read its input is not held up by it.
    let _ = house
        .call(["exec", "-i", "box", "--", "true"])
        .input(vec![b'x'; 8 << 20])
        .limit(SOON)
        .run()
        .ok();
    // Nor is one held up that nobody gives input.
    let live = house
        .call(["exec", "-i", "box", "--", "true"])
        .input_held()
        .limit(SOON)
        .start();
    let _ = live.wait().ok();
    // Arguments arrive as they are.
    let odd = "a b\tc\n'\"$HOME\\ *é";
    let done = house
        .call(["exec", "box", "--", "printf", "%s|", odd, "", "--", "-x"])
        .run()
        .ok();
    assert_eq!(done.out(), format!("{odd}||--|-x|"));
}

fn the_environment_is_the_documented_one(house: &House) {
    let done = house
        .call([
            "exec",
            "-e",
            "A=1 2",
            "-e",
            "FROM_HERE",
            "-e",
            "NOT_SET_ANYWHERE",
            "box",
            "--",
            "env",
        ])
        .env("FROM_HERE", "yes")
        .run()
        .ok();
    let text = done.out();
    let has = |line: &str| assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
    has("A=1 2");
    has("FROM_HERE=yes");
    has("HOME=/root");
    has("USER=root");
    has("SHELL=/bin/sh");
    has("BANGER_VM=box");
    has("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    assert!(text.lines().any(|l| l.starts_with("LANG=")), "{text}");
    assert!(!text.contains("NOT_SET_ANYWHERE"), "{text}");
    assert!(
        !text.contains("XDG_") && !text.contains("BANGER_E2E"),
        "the host's environment is not the guest's:\n{text}"
    );
    let _ = house.banger("exec -e =x box -- true").expect(2);

    assert_eq!(house.banger("exec box -- pwd").ok().line(), "/root");
    assert_eq!(house.banger("exec -w /tmp box -- pwd").ok().line(), "/tmp");
    assert_eq!(house.banger("exec box -- hostname").ok().line(), "box");
    assert!(
        house
            .banger("exec box -- cat /etc/hosts")
            .ok()
            .out()
            .contains("box")
    );
    assert_eq!(
        house.banger("exec box -- cat /root/from-image").ok().line(),
        "seeded",
        "the work disk begins as the image's /root"
    );
    // The clock is the host's.
    let guest: i64 = house
        .banger("exec box -- date +%s")
        .ok()
        .line()
        .parse()
        .expect("seconds");
    let host: i64 = e2e::Call::new("date", ["+%s"])
        .run()
        .ok()
        .line()
        .parse()
        .expect("seconds");
    let source = house
        .sh(
            "box",
            "cat /sys/devices/system/clocksource/clocksource0/current_clocksource",
        )
        .line();
    assert!(
        (host - guest).abs() <= 3,
        "the guest's clock ({source}) is {} s off",
        host - guest
    );
    // The modules of its kernel are there.
    let _ = house
        .sh("box", "ls /lib/modules/$(uname -r)/modules.dep")
        .ok();
    let release = house.banger("exec box -- uname -r").ok().line();
    assert!(release.starts_with(Kernel::Old.version()), "{release}");
}

fn users_are_the_guests(house: &House) {
    let whoami = |user: &str| {
        house
            .call([
                "exec",
                "-u",
                user,
                "box",
                "--",
                "sh",
                "-c",
                "id -u; id -g; echo $HOME $USER",
            ])
            .run()
    };
    assert_eq!(whoami("root").ok().out(), "0\n0\n/root root\n");
    assert_eq!(whoami("bob").ok().out(), "1000\n1000\n/home/bob bob\n");
    assert_eq!(whoami("1000").ok().out(), "1000\n1000\n/home/bob bob\n");
    assert!(whoami("bob:staff").ok().out().starts_with("1000\n50\n"));
    assert!(whoami("1000:1000").ok().out().starts_with("1000\n1000\n"));
    assert!(
        whoami("4711:4712").ok().out().starts_with("4711\n4712\n"),
        "a number needs no entry"
    );
    let groups = house.banger("exec -u bob box -- id -G").ok().line();
    assert!(
        groups.split(' ').any(|g| g == "50"),
        "supplementary groups come from /etc/group: {groups}"
    );
    let _ = whoami("nosuch").expect(125).says("nosuch");
    let _ = whoami("bob:nosuch").expect(125).says("nosuch");
    let _ = house
        .banger("exec -u bob box -- cat /etc/shadow-nosuch")
        .expect(1);
    let _ = house
        .sh("box", "touch /root/secret && chmod 600 /root/secret")
        .ok();
    assert_ne!(house.banger("exec -u bob box -- cat /root/secret").code, 0);
}

fn commands_do_not_wait_for_their_children(house: &House) {
    let done = house
        .call(["exec", "box", "--", "sh", "-c", "sleep 600 & echo started"])
        .limit(Duration::from_secs(20))
        .run()
        .ok();
    assert_eq!(done.out(), "started\n");
    assert_ne!(
        house.sh("box", "ps | grep '[s]leep 600'").ok().line(),
        "",
        "the child lives on"
    );
    let _ = house.sh("box", "killall sleep; true").ok();
}

fn a_client_that_goes_away_hangs_its_command_up(house: &House) {
    let live = house
        .call([
            "exec",
            "box",
            "--",
            "sh",
            "-c",
            "trap 'echo hup > /tmp/hup; exit' HUP; echo up; while :; do sleep 0.2; done",
        ])
        .start();
    live.wait_for_out("up", SOON);
    live.signal(Signal::KILL);
    let _ = live.wait();
    wait::until_true("the command is hung up", Duration::from_secs(15), || {
        house.sh("box", "cat /tmp/hup").line() == "hup"
    });
    let live = house
        .call([
            "exec",
            "box",
            "--",
            "sh",
            "-c",
            "trap '' HUP; echo up; exec sleep 700",
        ])
        .start();
    live.wait_for_out("up", SOON);
    live.signal(Signal::KILL);
    let _ = live.wait();
    wait::until_true(
        "one that ignores it is killed",
        Duration::from_secs(25),
        || house.sh("box", "ps | grep '[s]leep 700'").line().is_empty(),
    );
}

fn an_end_that_was_not_learned_is_125(house: &House) {
    let live = house
        .call(["exec", "box", "--", "sh", "-c", "echo up; exec sleep 600"])
        .limit(SOON)
        .start();
    live.wait_for_out("up", SOON);
    let _ = house.banger("kill box").ok();
    let _ = live.wait().expect(125).says("error: ");
    let _ = house
        .banger("exec box -- true")
        .expect(125)
        .says("hint: banger")
        .says("start box");
}
