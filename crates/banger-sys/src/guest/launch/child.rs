//! The child's whole life before its program.
//!
//! It may be on its parent's memory, and in a program with threads it is alone
//! either way: it makes plain system calls on what was prepared and writes
//! nothing but its own stack and `errno`. Where glibc does more than the call,
//! for threads that the child does not have, the call is made raw.

use std::ffi::{CStr, CString};
use std::os::fd::AsRawFd;
use std::ptr;

use libc::{c_char, c_int, c_long};

use super::{Birth, EXEC, FAILURE_LEN, Program, Step, set_mask};

/// Number of the last signal.
const LAST_SIGNAL: c_int = 64;

/// Takes the steps and executes.
///
/// # Safety
/// To be called first thing in the child of a clone only, with all signals
/// blocked; never returns.
pub(super) unsafe fn run(birth: &Birth<'_>) -> ! {
    // SAFETY: plain system calls on prepared data; `_exit` ends the child
    // without running anything of the parent's.
    unsafe {
        reset_signals();
        libc::umask(0o022);
        for (index, step) in birth.plan.steps.iter().enumerate() {
            if take(step) < 0 {
                fail(birth.report, index as u32, errno());
            }
        }
        let error = match &birth.plan.program {
            Program::Paths(paths) => execute_first(paths, birth.argv, birth.env),
            Program::File(file) => {
                libc::syscall(
                    libc::SYS_execveat,
                    file.as_raw_fd(),
                    c"".as_ptr(),
                    birth.argv.as_ptr(),
                    birth.env.as_ptr(),
                    libc::AT_EMPTY_PATH,
                );
                errno()
            }
        };
        fail(birth.report, EXEC, error)
    }
}

/// Every signal as a program expects it: default, and only then unblocked,
/// since one that is pending would find the parent's handler.
fn reset_signals() {
    // What the kernel takes for a signal's action: the default one is all
    // zeros, of which this is as many as any machine's structure has.
    let default = [0_u64; 4];
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: reads one action; a null old one is allowed. The signals
        // whose action cannot be changed are refused without harm.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                size_of::<u64>(),
            );
        }
    }
    set_mask(0);
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
            // Raw, as reading below: glibc's would mark this thread as one that
            // can be cancelled.
            Step::Write { to, bytes } => {
                libc::syscall(libc::SYS_write, to.as_raw_fd(), bytes.as_ptr(), bytes.len())
            }
            Step::AwaitEvent(fd) => {
                let mut count = 0_u64;
                loop {
                    let read = libc::syscall(
                        libc::SYS_read,
                        fd.as_raw_fd(),
                        &raw mut count,
                        size_of::<u64>(),
                    );
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
                // A change of user also closes the memory to that user's other
                // processes: none of them gets at the parent through this one.
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
        libc::syscall(libc::SYS_write, report, bytes.as_ptr(), bytes.len());
        libc::_exit(127)
    }
}
