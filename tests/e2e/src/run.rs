//! Running one program: arguments, input, time limit; status and output.
//!
//! Every process gets a process group of its own, so that a signal sent to it
//! is what a terminal would send, and so that nothing outlives its time limit.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};

use crate::done::{Done, shorten};
use crate::wait;

/// A program about to run.
pub struct Call {
    command: Command,
    shown: String,
    input: Input,
    limit: Duration,
    stdout_file: bool,
}

enum Input {
    Nothing,
    Bytes(Vec<u8>),
    File(PathBuf),
    Held,
}

impl Call {
    /// A program with arguments; nothing on its stdin, five minutes to end.
    pub fn new<A: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        let mut command = Command::new(program.as_ref());
        let mut shown = program.as_ref().to_string_lossy().into_owned();
        for arg in args {
            shown.push(' ');
            shown.push_str(&arg.as_ref().to_string_lossy());
            command.arg(arg.as_ref());
        }
        // What a developer has set for an own banger must not leak in.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("BANGER_") || text.starts_with("XDG_") {
                command.env_remove(&name);
            }
        }
        command.process_group(0);
        Self {
            command,
            shown,
            input: Input::Nothing,
            limit: Duration::from_secs(300),
            stdout_file: false,
        }
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Working directory.
    #[must_use]
    pub fn within(mut self, dir: impl Into<PathBuf>) -> Self {
        self.command.current_dir(dir.into());
        self
    }

    /// Runs as another user, without supplementary groups.
    #[must_use]
    pub fn as_user(mut self, uid: u32, gid: u32) -> Self {
        self.command.uid(uid).gid(gid);
        self
    }

    /// What stdin holds.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// A file as stdin.
    #[must_use]
    pub fn input_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.input = Input::File(path.into());
        self
    }

    /// A pipe as stdin that stays open until the process ends.
    #[must_use]
    pub fn input_held(mut self) -> Self {
        self.input = Input::Held;
        self
    }

    /// A file as stdout, instead of memory.
    ///
    /// # Panics
    /// When the file cannot be made.
    #[must_use]
    pub fn output_file(mut self, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let file =
            File::create(&path).unwrap_or_else(|e| panic!("cannot create {}: {e}", path.display()));
        self.command.stdout(file);
        self.stdout_file = true;
        self
    }

    /// How long it may take.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(mut self) -> Live {
        match &self.input {
            Input::Nothing => self.command.stdin(Stdio::null()),
            Input::Bytes(_) | Input::Held => self.command.stdin(Stdio::piped()),
            Input::File(path) => {
                let file = File::open(path)
                    .unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()));
                self.command.stdin(file)
            }
        };
        if !self.stdout_file {
            self.command.stdout(Stdio::piped());
        }
        self.command.stderr(Stdio::piped());
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run {}: {e}", self.shown));
        let pid = Pid::from_child(&child);
        let mut held = None;
        let mut feeder = None;
        if let Some(mut stdin) = child.stdin.take() {
            match self.input {
                Input::Bytes(bytes) => {
                    // A process that ends early closes its stdin: its own affair.
                    feeder = Some(std::thread::spawn(move || drop(stdin.write_all(&bytes))));
                }
                _ => held = Some(stdin),
            }
        }
        let stdout = child.stdout.take().map(Collector::new);
        let stderr = child.stderr.take().map(Collector::new);
        Live {
            child,
            pid,
            shown: self.shown,
            started: Instant::now(),
            limit: self.limit,
            stdin: held,
            feeder,
            stdout,
            stderr,
            over: false,
        }
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started or takes longer than its limit.
    #[must_use]
    #[track_caller]
    pub fn run(self) -> Done {
        self.start().wait()
    }
}

/// A program that runs. Dropped before its end, it is killed.
pub struct Live {
    child: Child,
    pid: Pid,
    shown: String,
    started: Instant,
    limit: Duration,
    stdin: Option<std::process::ChildStdin>,
    feeder: Option<JoinHandle<()>>,
    stdout: Option<Collector>,
    stderr: Option<Collector>,
    over: bool,
}

impl Live {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(self.pid, signal);
    }

    /// Sends what Ctrl-C in a terminal sends: INT to the whole group.
    pub fn ctrl_c(&self) {
        let _ = kill_process_group(self.pid, Signal::INT);
    }

    /// Writes to its stdin ([`Call::input_held`]).
    ///
    /// # Panics
    /// When stdin was not held, or is closed at the other end.
    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("stdin is held");
        stdin.write_all(bytes).expect("the process reads");
        stdin.flush().expect("the process reads");
    }

    /// Closes its stdin.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    /// What it has written to stdout so far.
    #[must_use]
    pub fn out_so_far(&self) -> String {
        self.stdout
            .as_ref()
            .map(Collector::text)
            .unwrap_or_default()
    }

    /// What it has written to stderr so far.
    #[must_use]
    pub fn err_so_far(&self) -> String {
        self.stderr
            .as_ref()
            .map(Collector::text)
            .unwrap_or_default()
    }

    /// Whether it has ended.
    ///
    /// # Panics
    /// When the system will not tell.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("own child").is_some()
    }

    /// Waits until stdout holds the text.
    ///
    /// # Panics
    /// When it does not appear in time.
    #[track_caller]
    pub fn wait_for_out(&self, text: &str, deadline: Duration) {
        if wait::eventually(deadline, || self.out_so_far().contains(text).then_some(())).is_none() {
            panic!(
                "{}: no {text:?} on stdout after {deadline:?}\nstdout: {}\nstderr: {}",
                self.shown,
                self.out_so_far(),
                self.err_so_far()
            );
        }
    }

    /// Waits for its end, and kills it after its limit: for cleaning up, where
    /// a panic would hide the first one.
    pub fn wait_quietly(mut self) -> Option<i32> {
        let limit = self.limit;
        let status = wait::eventually(limit, || self.child.try_wait().ok().flatten());
        self.over = status.is_some();
        status.map(|s| s.code().unwrap_or(-1))
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it takes longer than its limit; it is killed then.
    #[must_use]
    #[track_caller]
    pub fn wait(mut self) -> Done {
        if self.child.try_wait().expect("own child").is_none() {
            self.wait_for_end();
        }
        let status = self.child.wait().expect("own child");
        self.over = true;
        let took = self.started.elapsed();
        if let Some(feeder) = self.feeder.take() {
            let _ = feeder.join();
        }
        // A background process may hold the pipes: what came within a moment counts.
        let stdout = self
            .stdout
            .take()
            .map(Collector::finish)
            .unwrap_or_default();
        let stderr = self
            .stderr
            .take()
            .map(Collector::finish)
            .unwrap_or_default();
        let code = status
            .code()
            .unwrap_or_else(|| -status.signal().unwrap_or(0));
        Done {
            code,
            stdout,
            stderr,
            took,
            shown: std::mem::take(&mut self.shown),
        }
    }

    #[track_caller]
    fn wait_for_end(&mut self) {
        let pidfd = pidfd_open(self.pid, PidfdFlags::empty()).expect("own child, not yet awaited");
        let left = self.limit.saturating_sub(self.started.elapsed());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).expect("a limit of human size"),
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        let ready = loop {
            match poll(&mut fds, Some(&timeout)) {
                Ok(n) => break n,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => panic!("cannot wait for {}: {e}", self.shown),
            }
        };
        if ready == 0 {
            let _ = kill_process_group(self.pid, Signal::KILL);
            let _ = self.child.wait();
            self.over = true;
            panic!(
                "{} did not end within {:?}\nstdout: {}\nstderr: {}",
                self.shown,
                self.limit,
                shorten(&self.out_so_far()),
                self.err_so_far()
            );
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if !self.over {
            let _ = kill_process_group(self.pid, Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Collector {
    fn new(mut from: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&bytes);
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(n) = from.read(&mut buffer) {
                if n == 0 {
                    break;
                }
                into.lock()
                    .expect("no reader panics")
                    .extend_from_slice(&buffer[..n]);
            }
        });
        Self { bytes, thread }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no reader panics")).into_owned()
    }

    fn finish(self) -> Vec<u8> {
        wait::eventually(Duration::from_secs(5), || {
            self.thread.is_finished().then_some(())
        });
        std::mem::take(&mut self.bytes.lock().expect("no reader panics"))
    }
}
