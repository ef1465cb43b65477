//! One outside program, run to its end: lines of its output as they come, cancelled at once,
//! and nothing of it left behind.
//!
//! Owns the child, its process group and its pipes. The child leads a group of its own and is
//! tied to the calling thread; whatever of the group still lives when the leader has ended is
//! killed while the leader's pid is still ours.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::progress::{Cancel, Cancelled};

/// Lines kept for an error message.
const TAIL_LINES: usize = 30;
/// A longer line is cut: output is text for people.
const LINE_LIMIT: usize = 4096;
/// Standard output that is kept, at most.
const CAPTURE_LIMIT: usize = 64 << 20;
/// Time between TERM and KILL when cancelled.
const GRACE: Duration = Duration::from_secs(3);
/// How long pipes may stay open after the leader's end.
const DRAIN: Duration = Duration::from_secs(5);

/// A program could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It is not installed.
    #[error("{program} is not installed")]
    Missing {
        /// Its name.
        program: String,
    },
    /// It could not be started or watched.
    #[error("cannot run {program}")]
    Io {
        /// Its name.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller cancelled; the program is dead.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Its status.
    pub(crate) status: ExitStatus,
    /// What it wrote to standard output, unless that went elsewhere.
    pub(crate) stdout: Vec<u8>,
    /// The last lines of both outputs.
    pub(crate) tail: String,
}

/// Finds a program in `PATH` and where administrators keep theirs.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    search_path()
        .split(':')
        .filter(|dir| dir.starts_with('/'))
        .map(|dir| Path::new(dir).join(name))
        .find(|path| {
            rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
        })
}

/// `PATH`, and the directories that an ordinary user's may lack.
fn search_path() -> String {
    let own = std::env::var("PATH").unwrap_or_default();
    format!("{own}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

/// A program to run.
pub(crate) struct Run<'a> {
    name: String,
    command: Command,
    cancel: &'a Cancel,
    stdout: Option<File>,
    stdin: Option<File>,
    tick: Option<Duration>,
    grace: Duration,
}

impl<'a> Run<'a> {
    /// A program by name, with English messages and no input.
    pub(crate) fn new(name: &str, cancel: &'a Cancel) -> Result<Run<'a>, RunError> {
        let path = find_program(name).ok_or_else(|| RunError::Missing {
            program: name.to_owned(),
        })?;
        let mut command = Command::new(path);
        command
            .env("PATH", search_path())
            .env("LC_ALL", "C.UTF-8")
            .env_remove("LANGUAGE")
            .env("DEBIAN_FRONTEND", "noninteractive");
        Ok(Run::of(name, command, cancel))
    }

    /// A program that is known already, as it is; `name` is for errors.
    pub(crate) fn of(name: &str, command: Command, cancel: &'a Cancel) -> Run<'a> {
        Run {
            name: name.to_owned(),
            command,
            cancel,
            stdout: None,
            stdin: None,
            tick: None,
            grace: GRACE,
        }
    }

    /// Waits only this long between TERM and KILL when cancelled: for programs whose mounts and
    /// children end with their namespaces.
    pub(crate) fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// The arguments and environment, to be added to.
    pub(crate) fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Sends standard output to a file.
    pub(crate) fn stdout_to(mut self, file: File) -> Self {
        self.stdout = Some(file);
        self
    }

    /// Feeds standard input from a file.
    pub(crate) fn stdin_from(mut self, file: File) -> Self {
        self.stdin = Some(file);
        self
    }

    /// Calls the watcher with `None` this often, for progress that has to be looked up.
    pub(crate) fn tick(mut self, every: Duration) -> Self {
        self.tick = Some(every);
        self
    }

    /// Runs it. `watch` hears every line of standard error, and `None` at each tick.
    pub(crate) fn watch(
        mut self,
        watch: &mut dyn FnMut(Option<&str>),
    ) -> Result<Finished, RunError> {
        self.cancel.check()?;
        let failed = |source: io::Error| RunError::Io {
            program: self.name.clone(),
            source,
        };
        self.command.stdin(match self.stdin.take() {
            Some(file) => Stdio::from(file),
            None => Stdio::null(),
        });
        self.command.stdout(match self.stdout.take() {
            Some(file) => Stdio::from(file),
            None => Stdio::piped(),
        });
        self.command.stderr(Stdio::piped()).process_group(0);
        banger_sys::child::tie_to_parent(&mut self.command, libc::SIGTERM);
        let mut child = self.command.spawn().map_err(failed)?;
        let leader = Pid::from_child(&child);
        let pidfd = match pidfd_open(leader, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(error.into()));
            }
        };
        let mut pipes = Pipes::new(child.stdout.take(), child.stderr.take());
        let watched = pipes.until_end(&pidfd, leader, &self, watch);
        // The leader is a zombie now, or we gave up on it: its group id cannot be another's.
        let _ = kill_process_group(leader, Signal::KILL);
        let status = child.wait();
        if watched.is_ok() || self.cancel.is_cancelled() {
            pipes.drain(watch);
        }
        watched.map_err(failed)?;
        self.cancel.check()?;
        Ok(Finished {
            status: status.map_err(failed)?,
            tail: pipes.lines.tail(),
            stdout: pipes.captured,
        })
    }

    /// Runs it and gives its log lines to nobody.
    pub(crate) fn quietly(self) -> Result<Finished, RunError> {
        self.watch(&mut |_| {})
    }
}

/// Both outputs of a child.
struct Pipes {
    out: Option<ChildStdout>,
    err: Option<ChildStderr>,
    captured: Vec<u8>,
    lines: Lines,
}

impl Pipes {
    fn new(out: Option<ChildStdout>, err: Option<ChildStderr>) -> Pipes {
        Pipes {
            out,
            err,
            captured: Vec::new(),
            lines: Lines::default(),
        }
    }

    /// Waits until the leader has ended, signalling its group when cancelled.
    fn until_end(
        &mut self,
        pidfd: &OwnedFd,
        leader: Pid,
        run: &Run<'_>,
        watch: &mut dyn FnMut(Option<&str>),
    ) -> io::Result<()> {
        let Run {
            cancel,
            tick,
            grace,
            ..
        } = *run;
        let mut hard_at: Option<Instant> = None;
        let mut next_tick = tick.map(|every| Instant::now() + every);
        loop {
            let now = Instant::now();
            if let (Some(every), Some(at)) = (tick, next_tick)
                && now >= at
            {
                watch(None);
                next_tick = Some(now + every);
            }
            if hard_at.is_some_and(|at| now >= at) {
                let _ = kill_process_group(leader, Signal::KILL);
                hard_at = Some(now + GRACE);
            }
            let deadline = [next_tick, hard_at].into_iter().flatten().min();
            let asked = hard_at.is_some();
            let (ended, cancelled) =
                self.poll_once(pidfd, (!asked).then_some(cancel), deadline, watch)?;
            if ended {
                return Ok(());
            }
            if cancelled {
                let _ = kill_process_group(leader, Signal::TERM);
                hard_at = Some(Instant::now() + grace);
            }
        }
    }

    /// One wait and one read of what is ready: whether the leader ended, and the switch.
    fn poll_once(
        &mut self,
        pidfd: &OwnedFd,
        cancel: Option<&Cancel>,
        deadline: Option<Instant>,
        watch: &mut dyn FnMut(Option<&str>),
    ) -> io::Result<(bool, bool)> {
        let timeout = deadline.map(|at| timespec(at.saturating_duration_since(Instant::now())));
        let (ended, cancelled, out, err) = {
            let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
            let cancel_at = cancel.map(|cancel| {
                fds.push(PollFd::new(cancel, PollFlags::IN));
                fds.len() - 1
            });
            let out_at = self.out.as_ref().map(|pipe| {
                fds.push(PollFd::new(pipe, PollFlags::IN));
                fds.len() - 1
            });
            let err_at = self.err.as_ref().map(|pipe| {
                fds.push(PollFd::new(pipe, PollFlags::IN));
                fds.len() - 1
            });
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) => {}
                Err(Errno::INTR) => return Ok((false, false)),
                Err(error) => return Err(error.into()),
            }
            let ready = |at: Option<usize>| at.is_some_and(|at| !fds[at].revents().is_empty());
            (
                ready(Some(0)),
                ready(cancel_at),
                ready(out_at),
                ready(err_at),
            )
        };
        if out {
            self.read_out()?;
        }
        if err {
            self.read_err(watch)?;
        }
        Ok((ended, cancelled))
    }

    fn read_out(&mut self) -> io::Result<()> {
        let Some(pipe) = &mut self.out else {
            return Ok(());
        };
        let mut buffer = [0; 16384];
        let read = pipe.read(&mut buffer)?;
        if read == 0 {
            self.out = None;
        }
        let room = CAPTURE_LIMIT - self.captured.len();
        self.captured.extend_from_slice(&buffer[..read.min(room)]);
        Ok(())
    }

    fn read_err(&mut self, watch: &mut dyn FnMut(Option<&str>)) -> io::Result<()> {
        let Some(pipe) = &mut self.err else {
            return Ok(());
        };
        let mut buffer = [0; 16384];
        let read = pipe.read(&mut buffer)?;
        if read == 0 {
            self.err = None;
            self.lines.end(watch);
        }
        self.lines.feed(&buffer[..read], watch);
        Ok(())
    }

    /// Reads what is left in the pipes, until nobody holds them or time is up.
    fn drain(&mut self, watch: &mut dyn FnMut(Option<&str>)) {
        let deadline = Instant::now() + DRAIN;
        while self.out.is_some() || self.err.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let (out, err) = {
                let mut fds: Vec<PollFd<'_>> = Vec::new();
                for pipe in [
                    self.out.as_ref().map(AsFd::as_fd),
                    self.err.as_ref().map(AsFd::as_fd),
                ]
                .into_iter()
                .flatten()
                {
                    fds.push(PollFd::from_borrowed_fd(pipe, PollFlags::IN));
                }
                match poll(&mut fds, Some(&timespec(left))) {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
                let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
                (
                    self.out.is_some() && ready.next().unwrap_or(false),
                    self.err.is_some() && ready.next().unwrap_or(false),
                )
            };
            if out && self.read_out().is_err() {
                self.out = None;
            }
            if err && self.read_err(watch).is_err() {
                self.err = None;
            }
        }
        self.lines.end(watch);
    }
}

fn timespec(duration: Duration) -> Timespec {
    // One more millisecond, so that a wait never ends just before its deadline and spins.
    let duration = duration + Duration::from_millis(1);
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// Bytes cut into lines, the last of them kept.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
    kept: std::collections::VecDeque<String>,
}

impl Lines {
    fn feed(&mut self, bytes: &[u8], watch: &mut dyn FnMut(Option<&str>)) {
        for &byte in bytes {
            if byte == b'\n' || byte == b'\r' {
                self.end(watch);
            } else if self.partial.len() < LINE_LIMIT {
                self.partial.push(byte);
            }
        }
    }

    fn end(&mut self, watch: &mut dyn FnMut(Option<&str>)) {
        if self.partial.is_empty() {
            return;
        }
        let line: String = String::from_utf8_lossy(&self.partial)
            .chars()
            .map(|c| {
                if c.is_control() && c != '\t' {
                    '\u{fffd}'
                } else {
                    c
                }
            })
            .collect();
        self.partial.clear();
        watch(Some(&line));
        if self.kept.len() == TAIL_LINES {
            self.kept.pop_front();
        }
        self.kept.push_back(line);
    }

    fn tail(&self) -> String {
        let lines: Vec<&str> = self.kept.iter().map(String::as_str).collect();
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh<'a>(script: &str, cancel: &'a Cancel) -> Run<'a> {
        let mut run = Run::new("sh", cancel).unwrap();
        run.command().args(["-c", script]);
        run
    }

    #[test]
    fn output_and_status_of_a_program_come_back() {
        let cancel = Cancel::new().unwrap();
        let mut heard = Vec::new();
        let end = sh("echo out; echo one >&2; printf 'two' >&2; exit 7", &cancel)
            .watch(&mut |line| heard.extend(line.map(str::to_owned)))
            .unwrap();
        assert_eq!(end.status.code(), Some(7));
        assert_eq!(end.stdout, b"out\n");
        assert_eq!(heard, ["one", "two"]);
        assert_eq!(end.tail, "one\ntwo");
    }

    #[test]
    fn a_missing_program_is_named() {
        let cancel = Cancel::new().unwrap();
        let error = Run::new("no-such-program-of-banger", &cancel)
            .err()
            .unwrap();
        assert!(matches!(error, RunError::Missing { program } if program.starts_with("no-such")));
    }

    #[test]
    fn cancelling_ends_a_program_that_ignores_term_and_its_children() {
        let cancel = Cancel::new().unwrap();
        let thrown = cancel.clone();
        let mut children = String::new();
        let began = Instant::now();
        let result = sh(
            "trap '' TERM; sleep 1000 & echo $! >&2; while :; do sleep 1000; done",
            &cancel,
        )
        .watch(&mut |line| {
            if let Some(line) = line {
                line.clone_into(&mut children);
                thrown.cancel();
            }
        });
        assert!(matches!(result, Err(RunError::Cancelled(_))), "{result:?}");
        assert!(began.elapsed() < GRACE + Duration::from_secs(3));
        let stat = format!("/proc/{}/stat", children.trim());
        let lives = || {
            // Reaped by init, or a zombie that waits for it, or about to be one: it was killed, and
            // it is the kernel's to say when.
            let stat = std::fs::read_to_string(&stat);
            stat.is_ok_and(|stat| !stat.contains(") Z"))
        };
        while lives() {
            assert!(began.elapsed() < GRACE + Duration::from_secs(20));
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_polite_program_ends_at_once_when_cancelled() {
        let cancel = Cancel::new().unwrap();
        let thrown = cancel.clone();
        let began = Instant::now();
        let result = sh("echo go >&2; sleep 1000", &cancel).watch(&mut |_| thrown.cancel());
        assert!(matches!(result, Err(RunError::Cancelled(_))));
        assert!(began.elapsed() < Duration::from_secs(1));
    }
}
