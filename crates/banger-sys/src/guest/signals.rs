//! Signals by number, real-time ones too, and those of a namespace's first
//! process, which takes them one by one instead of by handlers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::time::Duration;

/// Sends a signal by number to the process behind a pidfd.
///
/// # Errors
/// `ESRCH` where it is gone.
pub fn send(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no pointers but a null one, which asks for the usual siginfo.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sends a signal by number to a process group.
///
/// # Errors
/// `ESRCH` where it is gone, `EINVAL` for an id that is no group's.
pub fn send_to_group(group: i32, signal: i32) -> io::Result<()> {
    if group <= 1 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: no memory is involved.
    let sent = unsafe { libc::kill(-group, signal) };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sends a signal to every other process of the caller's PID namespace.
///
/// # Errors
/// `ESRCH` where there is none.
pub fn send_to_all(signal: i32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    let sent = unsafe { libc::kill(-1, signal) };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Every signal that can be blocked, blocked for the calling thread.
#[derive(Clone, Copy)]
pub struct AllBlocked {
    set: libc::sigset_t,
}

impl AllBlocked {
    /// Blocks them.
    #[must_use]
    pub fn block() -> Self {
        // SAFETY: the set is plain data of our own; the calls fill and read it.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut set);
            libc::sigprocmask(libc::SIG_BLOCK, &set, ptr::null_mut());
            Self { set }
        }
    }

    /// Takes the next pending signal, waiting for at most `limit`, or for ever.
    #[must_use]
    pub fn next(&self, limit: Option<Duration>) -> Option<i32> {
        let limit = limit.map(|limit| libc::timespec {
            tv_sec: limit.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(limit.subsec_nanos() as i32),
        });
        let limit = limit.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: reads the set and the time, both alive; no siginfo is wanted.
        let signal = unsafe { libc::sigtimedwait(&self.set, ptr::null_mut(), limit) };
        (signal > 0).then_some(signal)
    }
}

/// The number of the n-th real-time signal that programs may use.
#[must_use]
pub fn real_time(n: i32) -> i32 {
    libc::SIGRTMIN() + n
}
