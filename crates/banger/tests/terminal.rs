//! What happens at a real terminal: PTYs, raw mode, sizes, colours, questions.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod fake;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use banger_wire::frames::{Channel, Control, Frame};
use fake::{Answer, Fake, ID, begun, done, upgrade, vm};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::json;

/// A terminal: the user's side and the program's.
struct Terminal {
    user: File,
    program: File,
}

impl Terminal {
    fn new() -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap().into_string().unwrap();
        let program = File::options().read(true).write(true).open(name).unwrap();
        let terminal = Self {
            user: user.into(),
            program,
        };
        terminal.resize(80, 24);
        terminal
    }

    fn resize(&self, ws_col: u16, ws_row: u16) {
        tcsetwinsize(
            &self.user,
            Winsize {
                ws_col,
                ws_row,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        )
        .unwrap();
    }

    fn raw(&self) -> bool {
        !tcgetattr(&self.program)
            .unwrap()
            .local_modes
            .contains(LocalModes::ICANON)
    }

    fn end(&self) -> Stdio {
        OwnedFd::from(self.program.try_clone().unwrap()).into()
    }

    /// Starts a command with all three streams here.
    fn start(&self, command: &mut Command) -> Child {
        command
            .stdin(self.end())
            .stdout(self.end())
            .stderr(self.end())
            .spawn()
            .unwrap()
    }

    /// Reads until this text has been shown; all text so far.
    fn until(&mut self, text: &str) -> String {
        let mut shown = Vec::new();
        let mut piece = [0; 1024];
        while !String::from_utf8_lossy(&shown).contains(text) {
            let count = self.user.read(&mut piece).unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&shown));
            shown.extend_from_slice(&piece[..count]);
        }
        String::from_utf8_lossy(&shown).into_owned()
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
}

/// A guest's shell that echoes keys until `q`.
fn echoing() -> Fake {
    Fake::new(|_| {
        upgrade(|mut frames| {
            frames.out(b"prompt");
            while let Some(frame) = frames.next() {
                match frame.channel {
                    Channel::Stdin if frame.payload.contains(&b'q') => frames.exit(0),
                    Channel::Stdin => frames
                        .send(Frame::new(Channel::Stdout, frame.payload))
                        .unwrap(),
                    _ => match frame.control().unwrap() {
                        Control::Resize { cols, rows } => {
                            frames.out(format!("resized {cols}x{rows}").as_bytes());
                        }
                        Control::Signal { signal } => {
                            frames.out(format!("signal {signal}").as_bytes())
                        }
                        _ => {}
                    },
                }
            }
        })
    })
}

#[test]
fn a_terminal_is_raw_while_the_command_runs_and_as_before_afterwards() {
    let fake = echoing();
    let mut terminal = Terminal::new();
    let mut child = terminal.start(&mut fake.banger(&["exec", "box", "--", "sh"]));
    terminal.until("prompt");
    assert!(terminal.raw());
    // Ctrl-C is a byte for the guest's terminal, no signal for us.
    terminal.user.write_all(b"\x03x").unwrap();
    terminal.until("\x03x");
    terminal.resize(132, 43);
    kill_process(pid_of(&child), Signal::WINCH).unwrap();
    terminal.until("resized 132x43");
    kill_process(pid_of(&child), Signal::TERM).unwrap();
    terminal.until("signal TERM");
    terminal.user.write_all(b"q").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!terminal.raw());
    let body = fake.body("POST /v1/vms/box/exec");
    assert_eq!(
        (
            &body["tty"],
            &body["stdin"],
            &body["cols"],
            &body["rows"],
            &body["env"]["TERM"]
        ),
        (
            &json!(true),
            &json!(true),
            &json!(80),
            &json!(24),
            &json!("xterm")
        )
    );
}

#[test]
fn a_hangup_and_a_lost_daemon_give_the_terminal_back() {
    let fake = echoing();
    let mut terminal = Terminal::new();
    let mut child = terminal.start(&mut fake.banger(&["exec", "box", "--", "sh"]));
    terminal.until("prompt");
    kill_process(pid_of(&child), Signal::HUP).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(129));
    assert!(!terminal.raw());

    let fake = Fake::new(|_| upgrade(|mut frames| frames.out(b"prompt")));
    let mut child = terminal.start(&mut fake.banger(&["exec", "box", "--", "sh"]));
    terminal.until("error:");
    assert_eq!(child.wait().unwrap().code(), Some(125));
    assert!(!terminal.raw());
}

#[test]
fn output_into_a_file_has_no_pty_though_a_terminal_is_there() {
    let fake = Fake::new(|_| {
        upgrade(|mut frames| {
            frames.out(b"\x7fELF\n\r\n\x00");
            frames.exit(0);
        })
    });
    let terminal = Terminal::new();
    let child = fake
        .banger(&["exec", "box", "--", "cat", "/bin/ls"])
        .stdin(terminal.end())
        .stderr(terminal.end())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(
        child.wait_with_output().unwrap().stdout,
        b"\x7fELF\n\r\n\x00"
    );
    let body = fake.body("POST /v1/vms/box/exec");
    assert_eq!(
        (&body["tty"], &body["stdin"]),
        (&json!(false), &json!(true))
    );
}

#[test]
fn run_tells_spec_ready_and_what_is_left_on_a_terminal() {
    let fake = Fake::new(
        |request| match (request.method.as_str(), request.target.as_str()) {
            ("POST", "/v1/vms") => Answer::Json(202, begun("box")),
            ("POST", _) => upgrade(|mut frames| {
                frames.out(b"guest\r\n");
                frames.exit(0);
            }),
            ("GET", target) if target.ends_with("/events?watched=true") => Answer::Events(vec![
                ("stage", json!({"stage": "boot_kernel", "detail": "6.1.0"})),
                ("progress", json!({"bytes_done": 1024, "bytes_total": 2048})),
                (
                    "log",
                    json!({"line": "note: no usable KVM (absent); emulating, 5 to 20 times slower"}),
                ),
                ("done", done("box")),
            ]),
            ("GET", _) => Answer::Json(200, json!({"vm": vm(ID, "box", "running")})),
            _ => panic!("not expected: {}", request.line()),
        },
    );
    let mut terminal = Terminal::new();
    let mut child = terminal.start(&mut fake.banger(&["run", "--", "true"]));
    let shown = terminal.until("or run --rm");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    for text in [
        "spec: 2 vcpu | 2048 MiB | 8G disk",
        "ready in ",
        "guest\r\n",
        "\"box\" still runs; banger stop box",
    ] {
        assert!(shown.contains(text), "{text} in {shown:?}");
    }
    assert!(
        shown.find("ready in ").unwrap() < shown.find("guest").unwrap(),
        "{shown:?}"
    );
}

#[test]
fn only_who_watches_a_terminal_is_sent_the_daemons_notes() {
    let note = "note: no usable KVM (absent); emulating, 5 to 20 times slower";
    let daemon = move || {
        Fake::new(move |request| match request.target.as_str() {
            "/v1/vms" => Answer::Json(202, begun("box")),
            _ => Answer::Events(vec![("log", json!({"line": note})), ("done", done("box"))]),
        })
    };
    let fake = daemon();
    let mut terminal = Terminal::new();
    let mut child = terminal.start(&mut fake.banger(&["create"]));
    let shown = terminal.until("box\r\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(shown.matches(note).count(), 1, "{shown:?}");
    let events = "GET /v1/operations/op-000000000001/events";
    assert_eq!(fake.lines()[1], format!("{events}?watched=true"));

    let fake = daemon();
    let ran = fake.run(&["create"]);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("box\n", ""));
    assert_eq!(fake.lines()[1], events);
}

#[test]
fn what_goes_on_for_ever_ends_with_130_by_an_interrupt() {
    let commands: [&[&str]; 4] = [
        &["logs", "-f", "box"],
        &["events"],
        &["events", "--json", "box"],
        &["wait", "--for", "stopped", "box"],
    ];
    for command in commands {
        let fake = Fake::new(|request| match request.target.as_str() {
            target if target.contains("/logs?") => Answer::Endless("here\n".into()),
            target if target.starts_with("/v1/events") => {
                let event = json!({"id": ID, "name": "here", "to": "running", "at": "now"});
                Answer::Endless(format!("event: vm\ndata: {event}\n\n"))
            }
            _ => Answer::Json(200, json!({"vm": vm(ID, "box", "running")})),
        });
        for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
            let mut terminal = Terminal::new();
            let before = format!("{:?}", tcgetattr(&terminal.program).unwrap());
            let asked = fake.lines().len();
            let mut child = terminal.start(&mut fake.banger(command));
            if command[0] == "wait" {
                // It says nothing; once it has asked twice it waits.
                while fake.lines().len() < asked + 3 {
                    std::thread::yield_now();
                }
            } else {
                terminal.until("here");
            }
            kill_process(pid_of(&child), signal).unwrap();
            let ended = child.wait().unwrap();
            assert_eq!(
                ended.code(),
                Some(status),
                "{command:?} {signal:?}: {ended}"
            );
            assert_eq!(
                format!("{:?}", tcgetattr(&terminal.program).unwrap()),
                before
            );
        }
    }
}

#[test]
fn a_reader_that_does_not_read_does_not_keep_an_interrupt_from_ending_a_log() {
    // More than any pipe holds.
    let fake = Fake::new(|_| Answer::Endless("much\n".repeat(1 << 20)));
    let mut child = fake
        .banger(&["logs", "-f", "box"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It has begun to write, and nobody takes it from the pipe.
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0]).unwrap();
    kill_process(pid_of(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn colour_is_for_terminals_without_no_color() {
    let fake = Fake::new(|_| fake::error(404, "not_found", "no VM"));
    let mut terminal = Terminal::new();
    let mut child = terminal.start(&mut fake.banger(&["show", "box"]));
    assert!(
        terminal
            .until("(op-0123456789ab)")
            .contains("\x1b[1;31merror:\x1b[0m no VM")
    );
    assert_eq!(child.wait().unwrap().code(), Some(3));
    let mut child = terminal.start(fake.banger(&["show", "box"]).env("NO_COLOR", "1"));
    assert!(!terminal.until("(op-0123456789ab)").contains('\x1b'));
    child.wait().unwrap();
    assert!(!fake.run(&["show", "box"]).err.contains('\x1b'));
}

#[test]
fn deleting_what_runs_asks_and_takes_only_a_yes() {
    for (answer, status, deleted) in [("n\n", 2, false), ("y\n", 0, true)] {
        let fake = Fake::new(|request| match request.method.as_str() {
            "GET" => Answer::Json(200, json!({"vm": vm(ID, "box", "running")})),
            _ => Answer::Json(202, done("box")),
        });
        let mut terminal = Terminal::new();
        let mut child = terminal.start(&mut fake.banger(&["rm", "box"]));
        terminal.until("[y/N] ");
        terminal.user.write_all(answer.as_bytes()).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(status));
        assert_eq!(
            fake.lines().iter().any(|line| line.starts_with("DELETE")),
            deleted
        );
    }
}

#[test]
fn a_console_on_a_terminal_is_escaped() {
    let fake = Fake::new(|_| Answer::Text("\u{1b}]0;evil\u{7}end\n"));
    let mut terminal = Terminal::new();
    let mut child = terminal.start(&mut fake.banger(&["logs", "box"]));
    assert!(terminal.until("end").contains("\\x1b]0;evil\\x07end"));
    child.wait().unwrap();
}

#[test]
fn a_reclaim_asks_and_hands_back_the_plan_that_it_showed() {
    for (answer, status, posts) in [("y\n", 0, 2), ("\n", 2, 1), ("no\n", 2, 1)] {
        let fake = Fake::new(|request| {
            let mut operation = done("");
            operation["operation"]["reclaim"] = json!({"dry_run": request.body["dry_run"] == true, "images": false,
                "bytes_planned": 5 << 20, "bytes_freed": 5 << 20, "items_freed": 1,
                "items": [{"kind": "log", "name": "bangerd.log.1", "bytes": 5 << 20,
                    "identity": "1:2", "outcome": "planned"}]});
            if request.line().contains("/events") {
                // What was asked for is in the request before.
                operation["operation"]["reclaim"]["dry_run"] = false.into();
                return Answer::Events(vec![("done", operation)]);
            }
            Answer::Json(202, operation)
        });
        let mut terminal = Terminal::new();
        let mut child = terminal.start(&mut fake.banger(&["disk", "--reclaim"]));
        let shown = terminal.until("remove 1 item to free 5.0M? [y/N] ");
        assert!(shown.contains("bangerd.log.1"), "{shown}");
        terminal.user.write_all(answer.as_bytes()).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(status), "{answer:?}");
        let seen = fake.seen();
        let bodies: Vec<_> = (seen.iter())
            .filter(|request| request.method == "POST")
            .map(|request| request.body.clone())
            .collect();
        assert_eq!(bodies.len(), posts, "{answer:?}");
        assert_eq!(bodies[0], json!({"dry_run": true}));
        if let Some(body) = bodies.get(1) {
            assert_eq!(*body, json!({"plan": "op-000000000001"}));
        }
    }
}
