//! A process that is known beyond its number: by pidfd, start time,
//! executable and command line. Reaps it where it is our child.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;
use tokio::sync::OnceCell;

use crate::watch;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// With this status.
    Status(i32),
    /// Killed by this signal.
    Signal(i32),
    /// It was not our child, so nobody told us.
    Unseen,
}

/// A process held by its pidfd.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    start_ticks: u64,
    pidfd: AsyncFd<OwnedFd>,
    ours: bool,
    exit: OnceCell<Exit>,
}

impl Process {
    /// A child of this program, just started.
    pub(crate) fn child(pid: u32, pidfd: OwnedFd) -> io::Result<Self> {
        // A child that ended already is a zombie until we reap it, so its
        // entry is still there.
        let start_ticks = Stat::read(pid)?.start_ticks;
        Self::new(pid, start_ticks, pidfd, true)
    }

    /// Another's process: this number, if it started at this time and is this
    /// program with these arguments. `None` where it is not.
    pub(crate) fn adopt(
        pid: u32,
        start_ticks: u64,
        is_it: impl Fn(&Identity) -> bool,
    ) -> io::Result<Option<Self>> {
        let Some(pidfd) = open(pid)? else {
            return Ok(None);
        };
        // Read after the open, and believed only if the process still lives
        // at the end: then no other process can have had the number between.
        let same =
            Stat::read(pid).is_ok_and(|stat| stat.start_ticks == start_ticks && !stat.dead());
        if !same
            || !Identity::read(pid).is_some_and(|identity| is_it(&identity))
            || has_ended(&pidfd)
        {
            return Ok(None);
        }
        Self::new(pid, start_ticks, pidfd, false).map(Some)
    }

    fn new(pid: u32, start_ticks: u64, pidfd: OwnedFd, ours: bool) -> io::Result<Self> {
        let pidfd = watch::readable(pidfd)?;
        Ok(Self {
            pid,
            start_ticks,
            pidfd,
            ours,
            exit: OnceCell::new(),
        })
    }

    /// Its number.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// When it started, clock ticks after the host's boot.
    pub(crate) fn start_ticks(&self) -> u64 {
        self.start_ticks
    }

    /// Another descriptor of it.
    pub(crate) fn pidfd(&self) -> io::Result<OwnedFd> {
        self.pidfd.get_ref().try_clone()
    }

    /// Waits for its end. Many may wait.
    pub(crate) async fn exited(&self) -> Exit {
        *self.exit.get_or_init(|| self.wait()).await
    }

    /// Whether [`Process::exited`] has seen it.
    pub(crate) fn known_exit(&self) -> Option<Exit> {
        self.exit.get().copied()
    }

    async fn wait(&self) -> Exit {
        // A pidfd is readable from the end on; the readiness is never cleared.
        if let Err(error) = self.pidfd.readable().await {
            tracing::warn!(pid = self.pid, %error, "cannot wait for a process");
        }
        if !self.ours {
            return Exit::Unseen;
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(status), _) => Exit::Status(status),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unseen,
            },
            Ok(None) | Err(_) => Exit::Unseen,
        }
    }

    /// Sends a signal. A process that is gone is not an error.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        signal_through(self.pidfd.as_fd(), signal)
    }

    /// What it uses now; `None` when it is gone.
    pub(crate) fn stat(&self) -> Option<Stat> {
        let stat = Stat::read(self.pid).ok()?;
        (stat.start_ticks == self.start_ticks && !stat.dead()).then_some(stat)
    }
}

/// A pidfd; `None` where there is no such process.
pub(crate) fn open(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sends a signal. A process that is gone is not an error.
pub(crate) fn signal_through(pidfd: impl AsFd, signal: Signal) -> io::Result<()> {
    match rustix::process::pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut poll = [rustix::event::PollFd::new(
        pidfd,
        rustix::event::PollFlags::IN,
    )];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut poll, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// What a process is.
#[derive(Debug)]
pub(crate) struct Identity {
    /// Its program; unknown where it is another user's.
    pub(crate) executable: Option<PathBuf>,
    /// Its arguments.
    pub(crate) arguments: Vec<Vec<u8>>,
}

impl Identity {
    /// Of a running process.
    pub(crate) fn read(pid: u32) -> Option<Self> {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let arguments = line.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect();
        Some(Self {
            executable: executable(pid).ok(),
            arguments,
        })
    }

    /// Whether these two arguments follow each other.
    pub(crate) fn has_pair(&self, option: &str, value: &str) -> bool {
        self.arguments
            .windows(2)
            .any(|pair| pair[0] == option.as_bytes() && pair[1] == value.as_bytes())
    }
}

/// The program of a process, also one that was replaced on disk since.
pub(crate) fn executable(pid: u32) -> io::Result<PathBuf> {
    let path = fs::read_link(format!("/proc/{pid}/exe"))?;
    let bytes = path.as_os_str().as_bytes();
    Ok(match bytes.strip_suffix(b" (deleted)") {
        Some(before) => Path::new(OsStr::from_bytes(before)).to_owned(),
        None => path,
    })
}

/// The numbers of `/proc/<pid>/stat` that we use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    state: u8,
    /// Clock ticks after the host's boot.
    pub(crate) start_ticks: u64,
    /// User and system time, clock ticks.
    pub(crate) cpu_ticks: u64,
    /// Virtual memory, bytes.
    pub(crate) virtual_bytes: u64,
    /// Resident pages.
    pub(crate) resident_pages: u64,
}

impl Stat {
    /// Of a process, living or not yet reaped.
    pub(crate) fn read(pid: u32) -> io::Result<Self> {
        let text = fs::read(format!("/proc/{pid}/stat"))?;
        Self::parse(&text)
            .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is unreadable")))
    }

    /// Ended, and not reaped yet.
    fn dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// The name in parentheses may hold anything, also parentheses: only what
    /// follows the last one counts.
    fn parse(text: &[u8]) -> Option<Self> {
        let close = text.iter().rposition(|&byte| byte == b')')?;
        let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // The state is the third field of the line and the first here.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            state: *fields.first()?.as_bytes().first()?,
            cpu_ticks: number(14)?.checked_add(number(15)?)?,
            start_ticks: number(22)?,
            virtual_bytes: number(23)?,
            resident_pages: number(24)?,
        })
    }
}

/// Boot id of this host.
pub(crate) fn host_boot_id() -> &'static str {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    BOOT_ID.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_or_else(|_| String::new(), |id| id.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_full_of_parentheses_does_not_shift_the_numbers() {
        let line = b"7 (a) R 1 (b) S 1 7 7 0 -1 4194560 1 2 3 4 50 25 0 0 20 0 1 0 12345 4096000 77 1844 1 1";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(
            (stat.start_ticks, stat.cpu_ticks, stat.resident_pages),
            (12345, 75, 77)
        );
        assert_eq!(Stat::parse(b"7 (a"), None);
        assert_eq!(Stat::parse(b"7 (a) S 1 2"), None);
    }

    #[tokio::test]
    async fn a_process_of_another_start_time_is_not_adopted() {
        let pid = std::process::id();
        let stat = Stat::read(pid).unwrap();
        assert!(
            Process::adopt(pid, stat.start_ticks, |_| true)
                .unwrap()
                .is_some()
        );
        assert!(
            Process::adopt(pid, stat.start_ticks + 1, |_| true)
                .unwrap()
                .is_none()
        );
        assert!(
            Process::adopt(pid, stat.start_ticks, |_| false)
                .unwrap()
                .is_none()
        );
    }
}
