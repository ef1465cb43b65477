//! Children that must not outlive the thread that waits for them.
//!
//! Owns the one call between fork and exec that ties a child to its parent. It refuses
//! everything else: signals, waiting and process groups have safe wrappers elsewhere.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Makes the kernel send `signal` to the child when the *thread* that spawns it ends.
///
/// The spawning thread has to stay until the child has ended, as one that waits for it does.
/// A parent that is gone before the call is noticed, and the child then never execs.
pub fn tie_to_parent(command: &mut Command, signal: i32) {
    let parent = std::process::id();
    // SAFETY: the closure runs in the child between fork and exec. `prctl`, `getppid` and
    // building an `io::Error` from a number are async-signal-safe and allocate nothing.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
            // Died between fork and prctl: nobody would ever send the signal.
            if libc::getppid().cast_unsigned() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}
