//! Starting a process from a plan made beforehand.
//!
//! The child of a raw `clone` in a program with threads may allocate nothing
//! and take no lock, and glibc's own wrappers for user ids would wait for
//! threads that the child does not have. So the parent prepares every path,
//! string and pointer, and the child only walks the list of [`Step`]s with
//! plain system calls and then executes. What failed comes back over a pipe
//! that closes by itself when the program runs.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use libc::{c_char, c_int, c_long, c_ulong};

/// One thing the child does before it executes.
#[derive(Debug)]
pub enum Step<'a> {
    /// `setsid`.
    NewSession,
    /// Makes a terminal the controlling one of the new session.
    ControllingTerminal(BorrowedFd<'a>),
    /// Puts a descriptor at a number that stays open over the exec.
    Descriptor {
        /// The descriptor.
        from: BorrowedFd<'a>,
        /// Its number in the program.
        to: i32,
    },
    /// Writes bytes in one call.
    Write {
        /// Where.
        to: BorrowedFd<'a>,
        /// What.
        bytes: &'a [u8],
    },
    /// Blocks until an eventfd is signalled.
    AwaitEvent(BorrowedFd<'a>),
    /// `mount`; absent strings are null pointers.
    Mount {
        /// Device or directory.
        source: Option<&'a CStr>,
        /// Where.
        target: &'a CStr,
        /// File system type.
        kind: Option<&'a CStr>,
        /// `MS_*`.
        flags: c_ulong,
        /// Options of the file system.
        data: Option<&'a CStr>,
    },
    /// Detaches a mount lazily.
    Detach(&'a CStr),
    /// Changes the working directory.
    Directory(&'a CStr),
    /// Changes the root directory.
    Root(&'a CStr),
    /// Soft and hard limit of open files.
    OpenFiles {
        /// Soft limit.
        soft: u64,
        /// Hard limit.
        hard: u64,
    },
    /// Becomes a user for good.
    User {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
        /// All supplementary groups.
        groups: &'a [u32],
    },
}

/// What the child executes.
#[derive(Debug)]
pub enum Program<'a> {
    /// The first of these paths that exists, as `execvp` chooses.
    Paths(&'a [CString]),
    /// The file behind a descriptor.
    File(BorrowedFd<'a>),
}

/// A process to start.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Done in order.
    pub steps: &'a [Step<'a>],
    /// Executed then.
    pub program: Program<'a>,
    /// Arguments, `argv[0]` among them.
    pub argv: &'a [CString],
    /// Environment, `NAME=value`.
    pub env: &'a [CString],
    /// Whether the process is the first of a new PID and mount namespace.
    pub namespaces: bool,
}

/// A process that was started; its program may not run yet.
#[derive(Debug)]
pub struct Launched {
    /// Its id in the caller's PID namespace.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// Reads as empty once the program runs, else as one [`Failure`].
    pub report: OwnedFd,
}

/// Length of a failure on the report pipe, bytes.
pub const FAILURE_LEN: usize = 8;
/// Number of the exec itself in a failure.
const EXEC: u32 = u32::MAX;

/// What stopped a child before its program ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// Index of the step; `None` for the exec itself.
    pub step: Option<usize>,
    /// The kernel's error number.
    pub errno: i32,
}

impl Failure {
    /// Reads what came over the report pipe.
    #[must_use]
    pub fn decode(bytes: [u8; FAILURE_LEN]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        let step = u32::from_ne_bytes([a, b, c, d]);
        Self {
            step: (step != EXEC).then_some(step as usize),
            errno: i32::from_ne_bytes([e, f, g, h]),
        }
    }
}

/// Starts a process.
///
/// # Errors
/// That of `pipe2` or `clone`: `ENOMEM` where the PID namespace that children
/// of this thread enter has lost its first process.
pub fn launch(plan: &Launch<'_>) -> io::Result<Launched> {
    let argv = pointers(plan.argv);
    let env = pointers(plan.env);
    let (report, report_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut flags = c_long::from(libc::CLONE_PIDFD | libc::SIGCHLD);
    if plan.namespaces {
        flags |= c_long::from(libc::CLONE_NEWPID | libc::CLONE_NEWNS);
    }
    let mut pidfd: c_int = -1;
    // SAFETY: without CLONE_VM and with a null stack this is a fork: the child
    // has its own copy of all memory and goes on on its own copy of this
    // stack. The kernel writes one `int` through the third argument, in the
    // parent. The last two arguments belong to flags that are not set.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            flags,
            ptr::null_mut::<libc::c_void>(),
            ptr::from_mut(&mut pidfd),
            ptr::null_mut::<c_int>(),
            0 as c_ulong,
        )
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        // SAFETY: this is the child; all pointers were made before the clone
        // and live in its copy of memory.
        unsafe { run_child(plan, &argv, &env, report_child.as_raw_fd()) }
    }
    // SAFETY: CLONE_PIDFD made this descriptor for us and nobody else has it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Launched {
        pid: pid as i32,
        pidfd,
        report,
    })
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// The child's whole life before its program.
///
/// # Safety
/// To be called in a fresh child of a raw clone only; never returns.
unsafe fn run_child(
    plan: &Launch<'_>,
    argv: &[*const c_char],
    env: &[*const c_char],
    report: c_int,
) -> ! {
    // SAFETY: plain system calls on prepared data; `_exit` ends the child
    // without running anything of the parent's.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        libc::umask(0o022);
        for (index, step) in plan.steps.iter().enumerate() {
            if take(step) < 0 {
                fail(report, index as u32, errno());
            }
        }
        let error = match &plan.program {
            Program::Paths(paths) => execute_first(paths, argv, env),
            Program::File(file) => {
                libc::syscall(
                    libc::SYS_execveat,
                    file.as_raw_fd(),
                    c"".as_ptr(),
                    argv.as_ptr(),
                    env.as_ptr(),
                    libc::AT_EMPTY_PATH,
                );
                errno()
            }
        };
        fail(report, EXEC, error)
    }
}

/// Executes the first path that exists; gives the error to report.
///
/// # Safety
/// `argv` and `env` end with null pointers and point to C strings.
unsafe fn execute_first(paths: &[CString], argv: &[*const c_char], env: &[*const c_char]) -> c_int {
    let mut error = libc::ENOENT;
    for path in paths {
        // SAFETY: as promised by the caller; on success it does not return.
        unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
        match errno() {
            libc::ENOENT | libc::ENOTDIR => {}
            // Found but not ours to run: another directory may have one that is.
            libc::EACCES => error = libc::EACCES,
            other => return other,
        }
    }
    error
}

/// # Safety
/// In the child only.
unsafe fn take(step: &Step<'_>) -> c_long {
    let text = |string: &Option<&CStr>| string.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer comes from a reference in the plan; the calls keep
    // none of them.
    unsafe {
        match step {
            Step::NewSession => c_long::from(libc::setsid()),
            Step::ControllingTerminal(fd) => {
                c_long::from(libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0))
            }
            Step::Descriptor { from, to } => c_long::from(libc::dup2(from.as_raw_fd(), *to)),
            Step::Write { to, bytes } => {
                libc::write(to.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) as c_long
            }
            Step::AwaitEvent(fd) => {
                let mut count = 0_u64;
                loop {
                    let read =
                        libc::read(fd.as_raw_fd(), ptr::from_mut(&mut count).cast(), 8) as c_long;
                    if read >= 0 || errno() != libc::EINTR {
                        return read;
                    }
                }
            }
            Step::Mount {
                source,
                target,
                kind,
                flags,
                data,
            } => c_long::from(libc::mount(
                text(source),
                target.as_ptr(),
                text(kind),
                *flags,
                text(data).cast(),
            )),
            Step::Detach(path) => c_long::from(libc::umount2(path.as_ptr(), libc::MNT_DETACH)),
            Step::Directory(path) => c_long::from(libc::chdir(path.as_ptr())),
            Step::Root(path) => c_long::from(libc::chroot(path.as_ptr())),
            Step::OpenFiles { soft, hard } => {
                let limit = libc::rlimit {
                    rlim_cur: *soft,
                    rlim_max: *hard,
                };
                c_long::from(libc::setrlimit(libc::RLIMIT_NOFILE, &limit))
            }
            Step::User { uid, gid, groups } => {
                // Raw: glibc's wrappers would signal threads that are not here.
                let (uid, gid) = (c_long::from(*uid), c_long::from(*gid));
                let done = libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr());
                if done < 0 {
                    return done;
                }
                let done = libc::syscall(libc::SYS_setresgid, gid, gid, gid);
                if done < 0 {
                    return done;
                }
                libc::syscall(libc::SYS_setresuid, uid, uid, uid)
            }
        }
    }
}

fn errno() -> c_int {
    // SAFETY: the location is valid for the thread's whole life.
    unsafe { *libc::__errno_location() }
}

/// # Safety
/// In the child only.
unsafe fn fail(report: c_int, step: u32, errno: c_int) -> ! {
    let mut bytes = [0; FAILURE_LEN];
    bytes[..4].copy_from_slice(&step.to_ne_bytes());
    bytes[4..].copy_from_slice(&errno.to_ne_bytes());
    // SAFETY: writes eight bytes of our own; `_exit` does not return.
    unsafe {
        libc::write(report, bytes.as_ptr().cast(), bytes.len());
        libc::_exit(127)
    }
}

/// Makes the calling thread enter the namespaces of another process: its own
/// file system view is taken into the mount namespace, its future children
/// into the PID namespace. The thread can start no threads afterwards.
///
/// # Errors
/// That of `unshare` or `setns`.
pub fn enter(mount: BorrowedFd<'_>, pid: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: unshares the file system view of this thread only (root, working
    // directory, umask); no memory or descriptor changes hands.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS)? };
    rustix::thread::move_into_link_name_space(
        mount,
        Some(rustix::thread::LinkNameSpaceType::Mount),
    )?;
    rustix::thread::move_into_link_name_space(
        pid,
        Some(rustix::thread::LinkNameSpaceType::ProcessID),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    fn run(steps: &[Step<'_>], program: &str, args: &[&str]) -> (Option<Failure>, Option<i32>) {
        let paths = [CString::new(program).unwrap()];
        let argv: Vec<CString> = [program]
            .iter()
            .chain(args)
            .map(|a| CString::new(*a).unwrap())
            .collect();
        let launched = launch(&Launch {
            steps,
            program: Program::Paths(&paths),
            argv: &argv,
            env: &[],
            namespaces: false,
        })
        .unwrap();
        let mut report = Vec::new();
        File::from(launched.report)
            .read_to_end(&mut report)
            .unwrap();
        let status = rustix::process::waitid(
            rustix::process::WaitId::PidFd(launched.pidfd.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        )
        .unwrap()
        .unwrap();
        (
            report.try_into().ok().map(Failure::decode),
            status.exit_status(),
        )
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
        let ended = run(&steps, "/bin/sh", &["-c", "echo $$; ps -o sid= $$; exit 7"]);
        assert_eq!(ended, (None, Some(7)));
        drop(child_out);
        let mut text = String::new();
        File::from(out).read_to_string(&mut text).unwrap();
        let ids: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(ids.len(), 2, "{text}");
        assert_eq!(ids[0], ids[1], "the program leads its own session");
    }

    #[test]
    fn a_failing_step_or_exec_is_reported_by_its_place() {
        let steps = [Step::NewSession, Step::Directory(c"/nonexistent")];
        let (failure, status) = run(&steps, "/bin/true", &[]);
        assert_eq!(
            failure,
            Some(Failure {
                step: Some(1),
                errno: libc::ENOENT
            })
        );
        assert_eq!(status, Some(127));
        let (failure, _) = run(&[], "/etc/passwd", &[]);
        assert_eq!(
            failure,
            Some(Failure {
                step: None,
                errno: libc::EACCES
            })
        );
        let (failure, _) = run(&[], "/nonexistent", &[]);
        assert_eq!(
            failure,
            Some(Failure {
                step: None,
                errno: libc::ENOENT
            })
        );
    }
}
