//! `banger exec`: streams, signals and exit statuses against a fake daemon.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod fake;

use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use banger_wire::frames::{Channel, Control, Frame};
use fake::{Answer, Fake, Frames, Ran, error, upgrade};
use rustix::process::{Pid, Signal, kill_process};

/// A daemon whose every exec is served by this function.
fn exec_with(talk: impl Fn(Frames) + Clone + Send + Sync + 'static) -> Fake {
    Fake::new(move |request| {
        assert!(request.target.ends_with("/exec"), "{}", request.line());
        let talk = talk.clone();
        upgrade(talk)
    })
}

fn pid_of(child: &std::process::Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
}

#[test]
fn the_exit_status_of_the_command_is_ours() {
    for status in [0, 42, 124, 137] {
        let fake = exec_with(move |mut frames| frames.exit(status));
        assert_eq!(
            fake.run(&["exec", "box", "--", "true"]).status,
            Some(status)
        );
    }
}

#[test]
fn a_command_that_never_ran_says_why_with_126_127_or_125() {
    for (code, status) in [(Some(126), 126), (Some(127), 127), (None, 125)] {
        let fake = exec_with(move |mut frames| {
            let message = Control::Error {
                error: "\"nope\" was not found".into(),
                exit_code: code,
            };
            frames.send(message.frame()).unwrap();
        });
        let ran = fake.run(&["exec", "box", "--", "nope"]);
        assert_eq!(ran.status, Some(status));
        assert_eq!(ran.err, "error: \"nope\" was not found\n");
    }
}

#[test]
fn whatever_fails_before_the_command_is_125_with_the_error_and_its_request() {
    let fake = Fake::new(|_| error(404, "not_found", "no VM \"box\""));
    let ran = fake.run(&["exec", "box", "--", "true"]);
    assert_eq!(ran.status, Some(125));
    assert_eq!(ran.err, "error: no VM \"box\" (op-0123456789ab)\n");
}

#[test]
fn a_stream_that_ends_without_an_exit_is_125() {
    let fake = exec_with(|mut frames| frames.out(b"half"));
    let ran = fake.run(&["exec", "box", "--", "true"]);
    assert_eq!((ran.status, ran.out.as_str()), (Some(125), "half"));
    assert!(
        ran.err.starts_with("error: lost the connection to bangerd"),
        "{}",
        ran.err
    );
}

#[test]
fn a_vm_that_stopped_meanwhile_is_told_without_the_code() {
    let fake = exec_with(|mut frames| {
        let error = "not_running: the VM stopped".to_owned();
        frames
            .send(
                Control::Error {
                    error,
                    exit_code: Some(125),
                }
                .frame(),
            )
            .unwrap();
    });
    let ran = fake.run(&["exec", "box", "--", "true"]);
    assert_eq!(
        (ran.status, ran.err.as_str()),
        (Some(125), "error: the VM stopped\n")
    );
}

#[test]
fn stdout_and_stderr_stay_apart_and_escape_sequences_pass() {
    let fake = exec_with(|mut frames| {
        frames.out(b"\x1b[31mred\x00");
        frames
            .send(Frame::new(Channel::Stderr, &b"oops\n"[..]))
            .unwrap();
        frames.exit(0);
    });
    let ran = fake.run(&["exec", "box", "--", "x"]);
    assert_eq!(
        (ran.out.as_str(), ran.err.as_str()),
        ("\x1b[31mred\x00", "oops\n")
    );
}

#[test]
fn the_request_is_the_command_untouched() {
    let fake = exec_with(|mut frames| frames.exit(0));
    let arguments = [
        "exec",
        "-e",
        "A=1",
        "-w",
        "/srv",
        "-u",
        "www:www",
        "--timeout",
        "90s",
        "a/b",
        "--",
        "ls",
        "-la",
        "--",
        "x y",
    ];
    assert_eq!(fake.run(&arguments).status, Some(0));
    let body = fake.body("POST /v1/vms/a%2Fb/exec");
    assert_eq!(
        body,
        serde_json::json!({"command": "ls", "args": ["-la", "--", "x y"], "cwd": "/srv", "env": {"A": "1"},
            "user": "www:www", "stdin": false, "tty": false, "timeout_ms": 90_000})
    );
}

#[test]
fn standard_input_passes_only_with_i_and_its_end_is_told() {
    let fake = exec_with(|mut frames| {
        let input = frames.stdin();
        frames.out(&input);
        frames.exit(0);
    });
    let mut child = fake
        .banger(&["exec", "-i", "box", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hi\n").unwrap();
    let ran = Ran::of(&child.wait_with_output().unwrap());
    assert_eq!((ran.status, ran.out.as_str()), (Some(0), "hi\n"));
}

#[test]
fn a_hundred_megabytes_pass_unchanged_in_both_directions() {
    const TIMES: usize = 105;
    // No power of two, so that pieces of any buffer's size differ.
    let block: Vec<u8> = (0..1_000_003u32)
        .flat_map(|number| {
            number
                .wrapping_mul(2_654_435_761)
                .to_be_bytes()
                .into_iter()
                .take(1)
        })
        .collect();
    let fake = exec_with(|mut frames| {
        while let Some(frame) = frames.next() {
            if frame.channel == Channel::Stdin {
                frames
                    .send(Frame::new(Channel::Stdout, frame.payload))
                    .unwrap();
            } else if frame.control() == Ok(Control::Eof) {
                frames.exit(0);
            }
        }
    });
    let mut child = fake
        .banger(&["exec", "-i", "box", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = block.clone();
    let writer = std::thread::spawn(move || {
        for _ in 0..TIMES {
            stdin.write_all(&sent).unwrap();
        }
    });
    let mut got = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut got).unwrap();
    writer.join().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(got.len(), TIMES * block.len());
    assert!(got.chunks(block.len()).all(|piece| piece == block));
}

#[test]
fn a_command_that_does_not_read_its_input_still_ends() {
    let fake = exec_with(|mut frames| {
        frames.exit(3);
        // The stream stays open and unread until the client leaves.
        let _ = frames.stream.read(&mut [0; 1]);
    });
    let mut child = fake
        .banger(&["exec", "-i", "box", "--", "true"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let flood = std::thread::spawn(move || while stdin.write_all(&[0; 65536]).is_ok() {});
    assert_eq!(child.wait().unwrap().code(), Some(3));
    flood.join().unwrap();
}

#[test]
fn a_reader_that_went_away_ends_us_like_sigpipe() {
    let fake = exec_with(|mut frames| {
        while frames
            .send(Frame::new(Channel::Stdout, vec![0; 65536]))
            .is_ok()
        {}
    });
    let mut child = fake
        .banger(&["exec", "box", "--", "yes"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ran = Ran::of(&child.wait_with_output().unwrap());
    assert_eq!((ran.status, ran.err.as_str()), (Some(141), ""));
}

#[test]
fn a_pty_without_a_terminal_is_125_before_anything_is_asked() {
    let fake = Fake::new(|_| Answer::Silence);
    let ran = fake.run(&["exec", "-t", "box", "--", "sh"]);
    assert_eq!(ran.status, Some(125));
    assert!(
        ran.err.contains("error: -t needs a terminal") && ran.err.contains("hint: "),
        "{}",
        ran.err
    );
    assert!(fake.lines().is_empty());
}

/// A command under way: its first byte has come through.
fn under_way(fake: &Fake) -> std::process::Child {
    let mut child = fake
        .banger(&["exec", "box", "--", "sleep"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    child
}

#[test]
fn ctrl_c_and_term_go_to_the_command_and_its_status_counts() {
    for (signal, name, status) in [(Signal::INT, "INT", 7), (Signal::TERM, "TERM", 9)] {
        let fake = exec_with(move |mut frames| {
            frames.out(b"x");
            let as_sent = frames.control()
                == Some(Control::Signal {
                    signal: name.to_owned(),
                });
            frames.exit(if as_sent { status } else { 1 });
        });
        let mut child = under_way(&fake);
        kill_process(pid_of(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(status), "{name}");
    }
}

#[test]
fn a_second_ctrl_c_leaves_at_once_and_so_does_a_hangup() {
    for (signals, status) in [
        (&[Signal::INT, Signal::INT][..], 130),
        (&[Signal::HUP], 129),
    ] {
        let (told, wait) = mpsc::channel();
        let fake = exec_with(move |mut frames| {
            frames.out(b"x");
            while frames.next().is_some() {
                told.send(()).unwrap();
            }
        });
        let mut child = under_way(&fake);
        for (index, signal) in signals.iter().enumerate() {
            if index > 0 {
                wait.recv_timeout(Duration::from_secs(10)).unwrap();
            }
            kill_process(pid_of(&child), *signal).unwrap();
        }
        assert_eq!(child.wait().unwrap().code(), Some(status));
    }
}
