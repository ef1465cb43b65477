//! What a person sees: real terminals, typed into.

use std::time::Duration;

use e2e::{House, Kernel, Root, Terminal, wait};

const SOON: Duration = Duration::from_secs(40);

#[test]
fn a_terminal_in_the_guest_is_a_terminal() {
    let house = House::with(Root::Bookworm, Kernel::Old);
    let _ = house.banger("create --name box --memory 512").ok();
    let _ = house.banger("wait box --timeout 180s").ok();
    let window = Terminal::open(&house, 90, 25);
    the_size_follows(&window);
    keys_reach_the_command(&window);
    full_screen_programs_work(&window);
    a_typed_redirection_gives_identical_bytes(&window);
    options_of_stdin_follow_the_terminal(&window);
    a_bare_shell_is_a_login_shell(&window);
}

fn enter(window: &Terminal<'_>, line: &str) {
    window.clear();
    window.line(line);
}

fn the_size_follows(window: &Terminal<'_>) {
    enter(window, "banger exec -it box -- sh");
    window.wait_for("#", SOON);
    window.line("stty size");
    window.wait_for("25 90", SOON);
    window.resize(120, 40);
    wait::until_true("the guest's terminal has the new size", SOON, || {
        window.line("stty size");
        wait::eventually(Duration::from_secs(2), || {
            window.screen().contains("40 120").then_some(())
        })
        .is_some()
    });
    window.line("tty; echo term=$TERM");
    window.wait_for("/dev/pts/", SOON);
    window.wait_for("term=screen-256color", SOON);
    window.line("exit 0");
    window.wait_for("host$", SOON);
    window.resize(90, 25);
}

fn keys_reach_the_command(window: &Terminal<'_>) {
    enter(window, "banger exec -it box -- sleep 600; echo status=$?");
    wait::until_true("the command runs", SOON, || {
        !window.house().sh("box", "pgrep -x sleep").line().is_empty()
    });
    window.press("C-c");
    window.wait_for("status=130", SOON);
    // Jobs: Ctrl-Z stops, fg goes on, Ctrl-D ends the shell.
    enter(
        window,
        "banger exec -it box -- bash --norc -i; echo status=$?",
    );
    window.wait_for("#", SOON);
    window.line("sleep 500");
    wait::until_true("the job runs", SOON, || {
        !window.house().sh("box", "pgrep -x sleep").line().is_empty()
    });
    window.press("C-z");
    window.wait_for("Stopped", SOON);
    window.line("fg");
    wait::pause(Duration::from_millis(500));
    window.press("C-c");
    window.line("echo back=$?");
    window.wait_for("back=130", SOON);
    window.press("C-d");
    window.wait_for("status=0", SOON);
}

fn full_screen_programs_work(window: &Terminal<'_>) {
    enter(window, "banger exec -it box -- vi /root/note");
    window.wait_for("~", SOON);
    window.keys("iwritten in vi");
    window.press("Escape");
    window.wait_for("written in vi", SOON);
    window.keys(":wq");
    window.press("Enter");
    window.wait_for("host$", SOON);
    assert_eq!(
        window
            .house()
            .banger("exec box -- cat /root/note")
            .ok()
            .out(),
        "written in vi\n"
    );

    enter(window, "banger exec -it box -- top");
    window.wait_for("PID USER", SOON);
    window.wait_for("%Cpu", SOON);
    window.keys("q");
    window.wait_for("host$", SOON);

    enter(
        window,
        "banger exec -it box -- less /usr/share/common-licenses/GPL-3",
    );
    window.wait_for("GENERAL PUBLIC LICENSE", SOON);
    window.keys("G");
    window.wait_for("(END)", SOON);
    window.keys("q");
    window.wait_gone("(END)", SOON);
    window.wait_for("host$", SOON);
}

fn a_typed_redirection_gives_identical_bytes(window: &Terminal<'_>) {
    let house = window.house();
    let file = house.dir().join("home/ls");
    enter(
        window,
        &format!(
            "banger exec box -- cat /bin/ls > {}; echo status=$?",
            file.display()
        ),
    );
    window.wait_for("status=0", SOON);
    let here = e2e::Call::new("sha256sum", [&file]).run().ok().line();
    let there = house.banger("exec box -- sha256sum /bin/ls").ok().line();
    assert_eq!(
        here.split(' ').next(),
        there.split(' ').next(),
        "the bytes of a file typed into a terminal's redirection"
    );
    let size = std::fs::metadata(&file).expect("written").len();
    assert!(size > 50_000, "{size}");
}

fn options_of_stdin_follow_the_terminal(window: &Terminal<'_>) {
    // Three terminals: -it is implied.
    enter(window, "banger exec box -- tty; echo status=$?");
    window.wait_for("/dev/pts/", SOON);
    window.wait_for("status=0", SOON);
    // Not with -T.
    enter(window, "banger exec -T box -- tty; echo status=$?");
    window.wait_for("not a tty", SOON);
    // A terminal on stdin alone implies -i: what is typed arrives.
    enter(window, "banger exec box -- cat | tr a-z A-Z");
    window.line("typed");
    window.wait_for("TYPED", SOON);
    window.press("C-d");
    window.wait_for("host$", SOON);
    // No terminal, no PTY.
    enter(
        window,
        "banger exec -t box -- true </dev/null; echo status=$?",
    );
    window.wait_for("status=125", SOON);
}

fn a_bare_shell_is_a_login_shell(window: &Terminal<'_>) {
    // The first boot of a VM, seen by a person: stages, then a prompt.
    enter(
        window,
        "banger run --rm --name shell --image bookworm --memory 512",
    );
    window.wait_for("root@shell", Duration::from_secs(120));
    window.line("shopt login_shell; echo vm=$BANGER_VM");
    window.wait_for("vm=shell", SOON);
    window.wait_for("login_shell", SOON);
    assert!(window.screen().contains("on"), "{}", window.screen());
    window.line("exit 9");
    window.wait_for("host$", SOON);
    window.line("echo status=$?");
    window.wait_for("status=9", SOON);
    assert_eq!(window.house().state_of("shell"), "", "--rm leaves nothing");
    // Without --rm the VM stays, and one is told so.
    enter(
        window,
        "banger run --name stays --image bookworm --memory 512 -- true; echo status=$?",
    );
    window.wait_for("status=0", Duration::from_secs(120));
    let screen = window.screen();
    assert!(
        screen.contains("\"stays\" still runs") && screen.contains("banger stop stays"),
        "{screen}"
    );
    assert!(
        screen.contains("spec: ") && screen.contains("ready in "),
        "stages are for people: {screen}"
    );
}

#[test]
fn emulation_is_told_once_and_only_to_a_person() {
    let house = House::with(Root::Bare, Kernel::Old);
    house.stop_daemon();
    house.set_env("BANGER_KVM", "off");
    let note = "note: no usable KVM (BANGER_KVM=off); emulating, 5 to 20 times slower";
    let done = house.banger("run --rm -- true").ok();
    assert_eq!(done.err(), "", "nobody watches");
    let _ = house.banger("create --name box").ok();
    let window = Terminal::open(&house, 120, 25);
    for (time, told) in [("first", 1), ("second", 0)] {
        enter(&window, &format!("banger run --rm -- echo the {time} time"));
        wait::until_true("the command has run", Duration::from_secs(120), || {
            window
                .screen()
                .lines()
                .any(|l| l == format!("the {time} time"))
        });
        window.wait_for("host$", SOON);
        let screen = window.screen();
        assert_eq!(screen.matches(note).count(), told, "{screen}");
    }
    // What goes on for ever ends by Ctrl-C, and the prompt is back.
    for command in ["logs -f box", "events"] {
        enter(&window, &format!("banger {command}; echo status=$?"));
        let _ = house.sh("box", "echo heard > /dev/console").ok();
        if command != "events" {
            window.wait_for("heard", SOON);
        } else {
            wait::pause(Duration::from_millis(500));
        }
        window.press("C-c");
        window.wait_for("status=130", SOON);
    }
}
