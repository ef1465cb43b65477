//! The real program, started as the daemon starts it.

use std::fs::{self, File};
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use banger_wire::gateway::{Answer, Counters, MAX_MESSAGE, Request};
use command_fds::{CommandFdExt, FdMapping};
use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, bind, connect, listen, recv, sendmsg, socket_with, socketpair,
};

use super::guest::{Guest, PATIENCE};

/// Memory that it may ever have had, kibibytes.
const MAX_RESIDENT: usize = 64 << 10;

/// A running gateway, and the process that stands for its engine.
pub(crate) struct Gateway {
    child: Child,
    engine: Child,
    control: OwnedFd,
    log: tempfile::TempDir,
    /// What the daemon keeps, too: the gateway's end, and the socket that it
    /// listens on.
    line: OwnedFd,
    listener: OwnedFd,
}

/// Starts the program.
fn launch(line: &OwnedFd, listener: &OwnedFd, directory: &Path, resolvers: &[&str]) -> Child {
    let output = File::options()
        .create(true)
        .append(true)
        .open(directory.join("gateway.log"))
        .expect("a log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_banger-gateway"));
    command
        .args(["--vm", &format!("0a1b2c{}", "0".repeat(58))])
        .args(["--line", "3", "--control", "4"])
        .args(resolvers.iter().flat_map(|address| ["--resolver", address]))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output.try_clone().expect("a copy"))
        .stderr(output);
    let map = |fd: &OwnedFd, child_fd| FdMapping {
        parent_fd: fd.try_clone().expect("a copy"),
        child_fd,
    };
    command
        .fd_mappings(vec![map(line, 3), map(listener, 4)])
        .expect("two different numbers");
    command.spawn().expect("the gateway starts")
}

impl Gateway {
    /// Starts one with these resolvers and tells it of its engine; the other
    /// end of its line.
    pub(crate) fn start(resolvers: &[&str]) -> (Self, Guest) {
        let (gateway, guest) = Self::start_alone(resolvers);
        gateway.follow_the_engine();
        (gateway, guest)
    }

    /// Starts one that knows of no engine.
    pub(crate) fn start_alone(resolvers: &[&str]) -> (Self, Guest) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (line, engine_end) =
            socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).expect("socketpair");
        let log = tempfile::tempdir().expect("a directory");
        let address = SocketAddrUnix::new(log.path().join("gateway.sock")).expect("short");
        let socket = || {
            socket_with(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )
            .expect("socket")
        };
        let listener = socket();
        bind(&listener, &address).expect("bind");
        listen(&listener, 8).expect("listen");
        let child = launch(&line, &listener, log.path(), resolvers);
        // An engine that does nothing until its input ends.
        let engine = Command::new("cat")
            .stdin(Stdio::piped())
            .spawn()
            .expect("cat");
        let control = socket();
        connect(&control, &address).expect("the socket listens");
        let gateway = Self {
            child,
            engine,
            control,
            log,
            line,
            listener,
        };
        (gateway, Guest::new(engine_end))
    }

    /// Kills it and starts another one in its place, as the daemon would, with
    /// the same descriptors.
    pub(crate) fn replace(&mut self) {
        self.child.kill().expect("it lives");
        self.child.wait().expect("it is a child");
        self.child = launch(&self.line, &self.listener, self.log.path(), &[]);
        let address = SocketAddrUnix::new(self.log.path().join("gateway.sock")).expect("short");
        let flags = SocketFlags::CLOEXEC;
        self.control =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("socket");
        connect(&self.control, &address).expect("the socket listens");
        self.follow_the_engine();
    }

    /// Tells it of its engine.
    fn follow_the_engine(&self) {
        let pid = rustix::process::Pid::from_child(&self.engine);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
        let pidfd = pidfd.expect("the engine lives");
        let answer = self.ask(&Request::Engine, Some(pidfd.as_fd()));
        assert_eq!(answer, Answer::Done);
    }

    /// One request and its answer.
    pub(crate) fn ask(&self, request: &Request, beside: Option<BorrowedFd<'_>>) -> Answer {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let beside: Vec<_> = beside.into_iter().collect();
        if !beside.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&beside)));
        }
        let bytes = request.encode();
        let flags = SendFlags::NOSIGNAL;
        sendmsg(&self.control, &[IoSlice::new(&bytes)], &mut control, flags)
            .unwrap_or_else(|error| panic!("{request:?}: {error}; {}", self.log()));
        let mut polled = [PollFd::new(&self.control, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).expect("short");
        let ready = poll(&mut polled, Some(&patience));
        assert_eq!(ready, Ok(1), "no answer to {request:?}; {}", self.log());
        let mut buffer = vec![0; MAX_MESSAGE];
        let (_, length) = recv(&self.control, &mut buffer[..], RecvFlags::empty())
            .unwrap_or_else(|error| panic!("{request:?}: {error}; {}", self.log()));
        Answer::decode(&buffer[..length])
            .unwrap_or_else(|error| panic!("{request:?}: {error}; {}", self.log()))
    }

    pub(crate) fn counters(&self) -> Counters {
        match self.ask(&Request::Counters, None) {
            Answer::Counters(counters) => counters,
            other => panic!("{other:?}"),
        }
    }

    /// A line of `/proc/PID/status`, its first number.
    pub(crate) fn status(&self, key: &str) -> usize {
        let path = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(path).expect("it lives");
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let line = line.unwrap_or_else(|| panic!("no {key} in {text}"));
        let number = line.trim_start_matches(':').split_whitespace().next();
        number
            .and_then(|number| number.parse().ok())
            .expect("a number")
    }

    /// Fails unless it lives, is confined, never panicked and never had more
    /// memory than it may.
    pub(crate) fn check(&mut self) {
        let ended = self.child.try_wait().expect("it is a child");
        assert!(ended.is_none(), "{ended:?}: {}", self.log());
        let counters = self.counters();
        let (now, most) = (self.status("VmRSS"), self.status("VmHWM"));
        println!("resident {now} KiB, at most {most} KiB; {counters:?}");
        assert!(most <= MAX_RESIDENT, "{most} KiB were resident");
        assert!(counters.memory_bytes <= 64 << 20);
        assert_eq!(counters.dropped.get("panic"), None, "{}", self.log());
        assert!(!self.log().contains("panic"), "{}", self.log());
        assert_eq!(self.status("Seccomp"), 2);
        assert_eq!(self.status("NoNewPrivs"), 1);
        assert_eq!(self.status("Threads"), 1);
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Descriptors that it has open.
    pub(crate) fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.child.id());
        fs::read_dir(path).map_or(0, Iterator::count)
    }

    /// What it wrote.
    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        File::open(self.log.path().join("gateway.log"))
            .and_then(|mut log| log.read_to_string(&mut text))
            .expect("a log");
        text
    }

    /// Ends the engine, upon which the gateway must end well.
    pub(crate) fn end(mut self) {
        drop(self.engine.stdin.take());
        self.engine.wait().expect("it is a child");
        self.ends_within(PATIENCE);
    }

    /// Waits for its own end, which must be a good one.
    pub(crate) fn ends_within(&mut self, patience: std::time::Duration) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
        let pidfd = pidfd.expect("not waited for yet");
        let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
        let patience = Timespec::try_from(patience).expect("short");
        assert_eq!(poll(&mut polled, Some(&patience)), Ok(1), "it lives on");
        let status = self.child.wait().expect("it is a child");
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.engine.kill();
        let _ = self.engine.wait();
    }
}
