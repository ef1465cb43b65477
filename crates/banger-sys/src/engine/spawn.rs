//! Starting a process that outlives us and can never be lost.
//!
//! The child is born in its cgroup where one is given, holds its descriptors
//! (a lock among them) from its first instruction, and waits for one byte
//! before it executes. If we die before that byte, it reads the end of the
//! pipe and is gone; if we die after it, the cgroup or the lock tells who it
//! is.
//!
//! ```text
//! prepare ─► start: clone ─► Held ─► go: byte ─► exec ─► Started
//!                             └─ dropped, or we are killed ─► the child ends
//! ```
//!
//! The child of a program with threads may only make plain system calls:
//! everything it needs is prepared before.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use libc::{c_char, c_int, c_uint};

use super::confine;

/// What to start, and with what.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// Absolute path.
    pub program: CString,
    /// From argument 0 on.
    pub arguments: Vec<CString>,
    /// `K=V`; all there is.
    pub environment: Vec<CString>,
    /// Working directory.
    pub directory: CString,
    /// Standard input.
    pub input: BorrowedFd<'a>,
    /// Standard output and error.
    pub output: BorrowedFd<'a>,
    /// Descriptors that the program finds at 3, 4, and so on.
    pub keep: Vec<BorrowedFd<'a>>,
    /// Directory of a cgroup to be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// A landlock ruleset to be bound by.
    pub ruleset: Option<BorrowedFd<'a>>,
    /// We are root: give up every capability and the host's mount namespace.
    pub powerless: bool,
}

/// The last thing a child did that never became its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Session, descriptors, directory, limits.
    Setup,
    /// Its own mount namespace.
    Mounts,
    /// Giving up capabilities.
    Capabilities,
    /// `no_new_privs`.
    Privileges,
    /// Landlock.
    Landlock,
    /// Executing the program.
    Exec,
}

impl Stage {
    const ALL: [Self; 6] = [
        Self::Setup,
        Self::Mounts,
        Self::Capabilities,
        Self::Privileges,
        Self::Landlock,
        Self::Exec,
    ];

    /// In words, to follow "cannot".
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Setup => "set up its descriptors",
            Self::Mounts => "leave the host's mounts",
            Self::Capabilities => "give up capabilities",
            Self::Privileges => "refuse new privileges",
            Self::Landlock => "apply landlock",
            Self::Exec => "execute the program",
        }
    }
}

/// Why nothing runs.
#[derive(Debug)]
pub enum StartError {
    /// No process was made.
    Clone(io::Error),
    /// It could not be put into its cgroup.
    Cgroup(io::Error),
    /// It ended before it was the program.
    Child(Stage, io::Error),
}

/// A child that waits for the word to execute. Dropped, it ends.
#[derive(Debug)]
pub struct Held {
    pid: u32,
    pidfd: OwnedFd,
    go: Option<OwnedFd>,
    status: OwnedFd,
    gone: bool,
}

/// A child that runs its program. Nobody waits for it yet.
#[derive(Debug)]
pub struct Started {
    /// Its process id, ours to reap.
    pub pid: u32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
}

/// Numbers below this are where the child's descriptors end up.
const MOST_KEPT: usize = 16;
/// Descriptors are moved above this first, so that none is overwritten.
const ASIDE: c_int = 64;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

impl Spawn<'_> {
    /// Makes the child. It waits until [`Held::go`].
    ///
    /// # Errors
    /// [`StartError::Clone`] and [`StartError::Cgroup`].
    pub fn start(&self) -> Result<Held, StartError> {
        assert!(
            self.keep.len() <= MOST_KEPT,
            "an engine is given a handful of descriptors"
        );
        let argv = pointers(&self.arguments);
        let envp = pointers(&self.environment);
        let (go_read, go) = pipe().map_err(StartError::Clone)?;
        let (status, status_write) = pipe().map_err(StartError::Clone)?;
        let plan = Plan {
            program: &self.program,
            argv: &argv,
            envp: &envp,
            directory: &self.directory,
            input: self.input.as_raw_fd(),
            output: self.output.as_raw_fd(),
            keep: &self.keep,
            ruleset: self.ruleset.map(|fd| fd.as_raw_fd()),
            powerless: self.powerless,
            go: go_read.as_raw_fd(),
            status: status_write.as_raw_fd(),
        };

        // No handler of ours may run in the child: it would speak to our own
        // event loop. The child unblocks after it reset every handler.
        let mask = block_signals();
        let born = match self.cgroup {
            Some(cgroup) => clone_child(Some(cgroup), &plan),
            None => clone_child(None, &plan),
        };
        // An old kernel, or a filter, knows no birth in a cgroup: put it there
        // while it waits.
        let born = match (born, self.cgroup) {
            (Ok(child), _) => Ok((child, None)),
            (Err(_), Some(cgroup)) => clone_child(None, &plan).map(|child| (child, Some(cgroup))),
            (Err(error), None) => Err(error),
        };
        restore_signals(&mask);

        let ((pid, pidfd), moved) = born.map_err(StartError::Clone)?;
        let held = Held {
            pid,
            pidfd,
            go: Some(go),
            status,
            gone: false,
        };
        if let Some(cgroup) = moved {
            put_in_cgroup(cgroup, pid).map_err(StartError::Cgroup)?;
        }
        Ok(held)
    }
}

impl Held {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets the child execute and returns when it did.
    ///
    /// # Errors
    /// [`StartError::Child`] where it could not; it is reaped then.
    pub fn go(mut self) -> Result<Started, StartError> {
        let go = self.go.take().expect("taken only here");
        let mut go = std::fs::File::from(go);
        // A child that is gone already is told by its status below.
        let _ = go.write_all(b"g");
        drop(go);
        let mut report = Vec::new();
        let status = self.status.try_clone().map_err(StartError::Clone)?;
        std::fs::File::from(status)
            .take(8)
            .read_to_end(&mut report)
            .map_err(StartError::Clone)?;
        if let Some(&[stage, a, b, c, d]) = report.first_chunk::<5>() {
            let stage = Stage::ALL
                .get(usize::from(stage))
                .copied()
                .unwrap_or(Stage::Setup);
            let cause = io::Error::from_raw_os_error(i32::from_ne_bytes([a, b, c, d]));
            return Err(StartError::Child(stage, cause));
        }
        let pidfd = self.pidfd.try_clone().map_err(StartError::Clone)?;
        self.gone = true;
        Ok(Started {
            pid: self.pid,
            pidfd,
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        // Without the byte, or after a report, the child ends in microseconds.
        self.go = None;
        let _ = rustix::process::waitid(
            rustix::process::WaitId::PidFd(self.pidfd.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        );
    }
}

/// Everything the child reads, prepared before it exists.
struct Plan<'a> {
    program: &'a CStr,
    argv: &'a [*const c_char],
    envp: &'a [*const c_char],
    directory: &'a CStr,
    input: RawFd,
    output: RawFd,
    keep: &'a [BorrowedFd<'a>],
    ruleset: Option<RawFd>,
    powerless: bool,
    go: RawFd,
    status: RawFd,
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([ptr::null()])
        .collect()
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(Into::into)
}

fn block_signals() -> libc::sigset_t {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigfillset` initialises `all`; `pthread_sigmask` reads it and
    // initialises `before`. Neither fails with these arguments.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        before.assume_init()
    }
}

fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: reads one signal set; a null old set is allowed.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, ptr::null_mut()) };
}

/// The child and its pidfd. In the child this never returns.
fn clone_child(cgroup: Option<BorrowedFd<'_>>, plan: &Plan<'_>) -> io::Result<(u32, OwnedFd)> {
    let mut pidfd: c_int = -1;
    // SAFETY: `clone_args` is plain numbers, for which zero means absent.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child gets a copy of our memory and goes on
    // with a copy of this stack, as after fork(2). `args` and `pidfd` outlive
    // the call. The child runs `become_program` only, which neither allocates
    // nor locks nor returns.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            size_of::<libc::clone_args>(),
        )
    };
    if pid == 0 {
        become_program(plan);
    }
    if pid > 0 {
        let pid = u32::try_from(pid).expect("process ids are small and positive");
        // SAFETY: the kernel stored a new descriptor that is ours alone.
        return Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }));
    }
    let error = io::Error::last_os_error();
    if cgroup.is_some() || error.raw_os_error() != Some(libc::ENOSYS) {
        return Err(error);
    }
    fork_child(plan)
}

/// As [`clone_child`], for a filter that hides `clone3`.
fn fork_child(plan: &Plan<'_>) -> io::Result<(u32, OwnedFd)> {
    // SAFETY: as above; the child runs `become_program` only.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        become_program(plan);
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let child = rustix::process::Pid::from_raw(pid).expect("positive");
    // Nobody else reaps our children, so the number is still this child's.
    let pidfd = rustix::process::pidfd_open(child, rustix::process::PidfdFlags::empty())?;
    Ok((u32::try_from(pid).expect("positive"), pidfd))
}

fn put_in_cgroup(cgroup: BorrowedFd<'_>, pid: u32) -> io::Result<()> {
    let procs = rustix::fs::openat(
        cgroup,
        c"cgroup.procs",
        rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    std::fs::File::from(procs).write_all(pid.to_string().as_bytes())
}

/// The child's whole life before its program. Never returns.
fn become_program(plan: &Plan<'_>) -> ! {
    let status = match arrange(plan) {
        Ok(places) => places,
        Err(status) => fail(status, Stage::Setup),
    };
    if plan.powerless && !confine::own_mounts() {
        fail(status, Stage::Mounts);
    }
    if plan.powerless && !confine::drop_capabilities() {
        fail(status, Stage::Capabilities);
    }
    if !confine::no_new_privileges() {
        fail(status, Stage::Privileges);
    }
    if plan.ruleset.is_some() && !confine::landlock(status + 1) {
        fail(status, Stage::Landlock);
    }
    reset_signals();
    // SAFETY: program, argv and envp are null-terminated and live in our copy
    // of the parent's memory. On success nothing of this function is left.
    unsafe {
        libc::execve(
            plan.program.as_ptr(),
            plan.argv.as_ptr(),
            plan.envp.as_ptr(),
        )
    };
    fail(status, Stage::Exec)
}

/// Session, descriptors, the wait for the word, and small settings. Gives the
/// number of the status pipe; the ruleset follows it. An error is the number
/// at which the status pipe is now.
fn arrange(plan: &Plan<'_>) -> Result<RawFd, RawFd> {
    let base = 3 + plan.keep.len() as c_int;
    let (status, go) = (base, base + 2);
    // SAFETY: all calls below take numbers, or pointers to static strings and
    // locals. They run in a process with one thread.
    unsafe {
        if libc::setsid() < 0 {
            return Err(plan.status);
        }
        // Out of the way first: a source may sit where a target goes. The
        // kernel picks numbers above that nobody uses.
        let mut aside = [-1; MOST_KEPT + 6];
        let sources = [plan.input, plan.output, plan.output];
        let kept = plan.keep.iter().map(AsRawFd::as_raw_fd);
        let ours = [plan.status, plan.ruleset.unwrap_or(plan.status), plan.go];
        for (slot, fd) in sources.into_iter().chain(kept).chain(ours).enumerate() {
            aside[slot] = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, ASIDE);
            if aside[slot] < 0 {
                return Err(plan.status);
            }
        }
        let status_aside = aside[status as usize];
        for slot in 0..=go {
            let flags = if slot < base { 0 } else { libc::O_CLOEXEC };
            if libc::dup3(aside[slot as usize], slot, flags) < 0 {
                return Err(status_aside);
            }
        }
        // Everything else goes before the wait: a copy of another child's pipe
        // in here would keep that child waiting for ever.
        if libc::syscall(
            libc::SYS_close_range,
            (go + 1) as c_uint,
            c_uint::MAX,
            0 as c_uint,
        ) < 0
        {
            return Err(status_aside);
        }
        let mut byte = 0u8;
        loop {
            let got = libc::read(go, (&raw mut byte).cast(), 1);
            if got == 1 {
                break;
            }
            if got == 0 || confine::errno() != libc::EINTR {
                libc::_exit(125);
            }
        }
        libc::close(go);
        libc::umask(0o077);
        // A core file would hold the guest's memory.
        let no_core = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
        if libc::chdir(plan.directory.as_ptr()) < 0 {
            return Err(status);
        }
    }
    Ok(status)
}

/// Every signal as a program expects it: default and not blocked.
fn reset_signals() {
    // SAFETY: the signals are numbers; those that cannot be changed are
    // refused without harm. The set is initialised before it is read.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
    }
}

fn fail(status: RawFd, stage: Stage) -> ! {
    let errno = confine::errno().to_ne_bytes();
    let stage = Stage::ALL
        .iter()
        .position(|&each| each == stage)
        .unwrap_or(0) as u8;
    let report = [stage, errno[0], errno[1], errno[2], errno[3]];
    // SAFETY: writes five bytes of a local; then ends without running any
    // handler of the parent's copy.
    unsafe {
        libc::write(status, report.as_ptr().cast(), report.len());
        libc::_exit(126)
    }
}

const _: () = assert!(
    (ASIDE as usize) > 3 + MOST_KEPT + 3,
    "targets lie below where sources are moved to"
);
