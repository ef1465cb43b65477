//! One process at a time: what it is given, what it does, what is reported.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::*;

fn c_strings(words: &[&str]) -> Vec<CString> {
    words.iter().map(|w| CString::new(*w).unwrap()).collect()
}

fn start(steps: &[Step<'_>], argv: &[&str], namespaces: bool) -> io::Result<Launched> {
    let argv = c_strings(argv);
    launch(&Launch {
        steps,
        program: Program::Paths(&argv[..1]),
        argv: &argv,
        env: &[],
        namespaces,
    })
}

/// What was reported and the exit status.
fn finish(launched: Launched) -> (Option<Failure>, Option<i32>) {
    let mut report = Vec::new();
    File::from(launched.report)
        .read_to_end(&mut report)
        .unwrap();
    let pidfd = WaitId::PidFd(launched.pidfd.as_fd());
    let status = waitid(pidfd, WaitIdOptions::EXITED).unwrap().unwrap();
    (
        report.try_into().ok().map(Failure::decode),
        status.exit_status(),
    )
}

fn run(steps: &[Step<'_>], argv: &[&str]) -> (Option<Failure>, Option<i32>) {
    finish(start(steps, argv, false).unwrap())
}

/// What a shell command prints after these steps.
fn output(steps: Vec<Step<'_>>, command: &str, namespaces: bool) -> String {
    let (out, child_out) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let mut all = vec![Step::Descriptor {
        from: child_out.as_fd(),
        to: 1,
    }];
    all.extend(steps);
    let launched = start(&all, &["/bin/sh", "-c", command], namespaces).unwrap();
    drop(all);
    drop(child_out);
    let mut text = String::new();
    File::from(out).read_to_string(&mut text).unwrap();
    assert_eq!(finish(launched), (None, Some(0)), "{text}");
    text
}

fn failure(step: impl Into<Option<usize>>, errno: i32) -> (Option<Failure>, Option<i32>) {
    let step = step.into();
    (Some(Failure { step, errno }), Some(127))
}

fn is_root(of: &str) -> bool {
    let root = rustix::process::getuid().is_root();
    if !root {
        eprintln!("skipped: {of} needs root");
    }
    root
}

#[test]
fn a_program_runs_with_the_descriptors_it_was_given() {
    let (out, child_out) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let steps = [
        Step::NewSession,
        Step::Descriptor {
            from: child_out.as_fd(),
            to: 1,
        },
    ];
    let script = "echo $$; ps -o sid= $$; exit 7";
    assert_eq!(run(&steps, &["/bin/sh", "-c", script]), (None, Some(7)));
    drop(child_out);
    let mut text = String::new();
    File::from(out).read_to_string(&mut text).unwrap();
    let ids: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(ids.len(), 2, "{text}");
    assert_eq!(ids[0], ids[1], "the program leads its own session");
}

#[test]
fn a_failing_step_or_exec_is_reported_by_its_place() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let read_only = File::open("/dev/null").unwrap();
    let steps = [Step::NewSession, Step::Directory(c"/nonexistent")];
    assert_eq!(run(&steps, &["/bin/true"]), failure(1, libc::ENOENT));
    let steps = [Step::ControllingTerminal(reader.as_fd())];
    assert_eq!(run(&steps, &["/bin/true"]), failure(0, libc::ENOTTY));
    let steps = [Step::Write {
        to: read_only.as_fd(),
        bytes: b"0",
    }];
    assert_eq!(run(&steps, &["/bin/true"]), failure(0, libc::EBADF));
    let steps = [Step::Descriptor {
        from: writer.as_fd(),
        to: -1,
    }];
    assert_eq!(run(&steps, &["/bin/true"]), failure(0, libc::EBADF));
    assert_eq!(run(&[], &["/etc/passwd"]), failure(None, libc::EACCES));
    assert_eq!(run(&[], &["/nonexistent"]), failure(None, libc::ENOENT));
}

#[test]
fn the_file_behind_a_descriptor_is_executed() {
    let program = File::open("/bin/sh").unwrap();
    let argv = c_strings(&["any", "-c", "exit 9"]);
    let launched = launch(&Launch {
        steps: &[],
        program: Program::File(program.as_fd()),
        argv: &argv,
        env: &[],
        namespaces: false,
    });
    assert_eq!(finish(launched.unwrap()), (None, Some(9)));
}

#[test]
fn every_step_is_done_by_the_time_that_launch_returns() {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    for program in ["/bin/true", "/nonexistent"] {
        let steps = [Step::Write {
            to: writer.as_fd(),
            bytes: b"done",
        }];
        let launched = start(&steps, &[program], false).unwrap();
        let mut written = [PollFd::new(&reader, PollFlags::IN)];
        assert_eq!(poll(&mut written, Some(&NOW)).unwrap(), 1, "{program}");
        rustix::io::read(&reader, &mut [0; 16]).unwrap();
        finish(launched);
    }
}

const NOW: rustix::event::Timespec = rustix::event::Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

#[test]
fn a_plan_that_waits_does_not_stop_its_parent() {
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let steps = [Step::AwaitEvent(event.as_fd())];
    let launched = start(&steps, &["/bin/sh", "-c", "exit 5"], false).unwrap();
    let mut report = [PollFd::new(&launched.report, PollFlags::IN)];
    assert_eq!(poll(&mut report, Some(&NOW)).unwrap(), 0, "it waits");
    rustix::io::write(&event, &1_u64.to_ne_bytes()).unwrap();
    assert_eq!(finish(launched), (None, Some(5)));
}

#[test]
fn a_program_has_every_signal_at_its_default_whatever_its_parent_does() {
    // The test's own process ignores SIGPIPE and handles SIGSEGV; here one
    // more is blocked.
    let before = set_mask(1 << (libc::SIGUSR1 - 1));
    let text = output(vec![], "cat /proc/self/status", false);
    assert_eq!(set_mask(before), 1 << (libc::SIGUSR1 - 1), "ours is back");
    let signals = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
    };
    assert_eq!(signals("SigBlk:"), 0);
    assert_eq!(signals("SigIgn:"), 0);
    assert_eq!(signals("SigPnd:"), 0);
}

#[test]
fn a_new_namespace_is_entered_by_either_kind_of_child() {
    if !is_root("a namespace") {
        return;
    }
    let event = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
    let private = || Step::Mount {
        source: None,
        target: c"/",
        kind: None,
        flags: libc::MS_REC | libc::MS_PRIVATE,
        data: None,
    };
    let ours = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    for waits in [false, true] {
        let mut steps = vec![private()];
        if waits {
            steps.push(Step::AwaitEvent(event.as_fd()));
        }
        let text = output(steps, "echo $$; readlink /proc/self/ns/mnt", true);
        assert!(text.starts_with("1\nmnt:"), "{text}");
        assert!(!text.contains(ours.to_str().unwrap()), "{text}");
    }
}

#[test]
fn commands_run_in_a_namespace_that_was_entered_until_its_first_process_is_gone() {
    if !is_root("a namespace") {
        return;
    }
    let (stdin, hold) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let steps = [Step::Descriptor {
        from: stdin.as_fd(),
        to: 0,
    }];
    let first = start(&steps, &["/bin/cat"], true).unwrap();
    let namespace = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", first.pid)).unwrap();
    let (mount, pid) = (namespace("mnt"), namespace("pid"));
    // A thread of its own: it can never leave again.
    let inside = std::thread::spawn(move || {
        enter(mount.as_fd(), pid.as_fd()).unwrap();
        let text = output(vec![], "echo $$", false);
        drop(hold);
        assert_eq!(finish(first), (None, Some(0)));
        let late = start(&[], &["/bin/true"], false).map(finish);
        (text, late.map_err(|error| error.raw_os_error()))
    });
    let (text, late) = inside.join().unwrap();
    assert_eq!(text, "2\n", "the namespace's second process");
    assert_eq!(late, Err(Some(libc::ENOMEM)));
}

#[test]
fn a_user_is_another_in_the_child_only() {
    if !is_root("another user") {
        return;
    }
    let steps = vec![Step::User {
        uid: 4321,
        gid: 8765,
        groups: &[8765, 99],
    }];
    let text = output(steps, "id -u; id -g; id -G", false);
    assert_eq!(text, "4321\n8765\n8765 99\n");
    assert!(rustix::process::getuid().is_root());
    assert!(rustix::process::geteuid().is_root());
}
