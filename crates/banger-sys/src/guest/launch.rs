//! Starting a process from a plan made beforehand.
//!
//! ```text
//! launch: signals blocked ─► clone, on our own memory ─► (asleep) ─► pid, pidfd, report
//!                              └─ child: the steps in order ─► exec ─┘
//! ```
//!
//! The child borrows the parent's memory until its program runs, and the thread
//! that launches sleeps meanwhile: under emulation, copying page tables and
//! taking a fault for every page written afterwards costs more than all the rest
//! of a command. Only a plan that waits for an event gets a copy, since its
//! parent has to go on.
//!
//! Either way the child may allocate nothing and take no lock: other threads may
//! hold one. So the parent prepares every path, string and pointer, and the
//! child only walks the list of [`Step`]s. What failed comes back over a pipe
//! that closes by itself when the program runs.

mod child;
#[cfg(test)]
mod tests;

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use libc::{c_char, c_int, c_long, c_ulong, c_void};

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
    /// Blocks until an eventfd is signalled. A plan with this step costs a copy
    /// of the parent's memory.
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

/// Starts a process. Returns when the program has taken the place of the steps,
/// or one has failed; with [`Step::AwaitEvent`] in the plan it returns at once.
///
/// # Errors
/// That of `pipe2`, `mmap` or `clone`: `ENOMEM` where the PID namespace that
/// children of this thread enter has lost its first process.
pub fn launch(plan: &Launch<'_>) -> io::Result<Launched> {
    let argv = pointers(plan.argv);
    let env = pointers(plan.env);
    let (report, report_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let birth = Birth {
        plan,
        argv: &argv,
        env: &env,
        report: report_child.as_raw_fd(),
    };
    let mut flags = libc::CLONE_PIDFD | libc::SIGCHLD;
    if plan.namespaces {
        flags |= libc::CLONE_NEWPID | libc::CLONE_NEWNS;
    }
    let waits = plan
        .steps
        .iter()
        .any(|step| matches!(step, Step::AwaitEvent(_)));
    let (pid, pidfd) = if waits {
        on_a_copy(&birth, flags)
    } else {
        on_our_memory(&birth, flags)
    }?;
    Ok(Launched { pid, pidfd, report })
}

/// All that the child reads.
struct Birth<'a> {
    plan: &'a Launch<'a>,
    /// Ends with a null pointer, as does the environment.
    argv: &'a [*const c_char],
    env: &'a [*const c_char],
    /// The child's end of the report pipe.
    report: c_int,
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// A child on the parent's memory; the calling thread sleeps until the child
/// has left it, by exec or exit.
fn on_our_memory(birth: &Birth<'_>, flags: c_int) -> io::Result<(i32, OwnedFd)> {
    let stack = Stack::new()?;
    let mut pidfd: c_int = -1;
    let blocked = Blocked::all();
    // SAFETY: the child runs `born` on a stack of its own, whose memory, like
    // `birth` and all that it refers to, stays until this call returns: with
    // CLONE_VFORK that is when the child uses our memory no more. Descriptors,
    // signal handlers, working directory and limits are the child's own, since
    // CLONE_FILES, CLONE_SIGHAND, CLONE_FS and CLONE_THREAD are not given. The
    // thread-local storage is this thread's; the child writes `errno` in it at
    // most, while this thread sleeps. The kernel writes one `int` through the
    // fifth argument; the last two belong to flags that are not set.
    let pid = unsafe {
        libc::clone(
            born,
            stack.top(),
            flags | libc::CLONE_VM | libc::CLONE_VFORK,
            ptr::from_ref(birth).cast_mut().cast::<c_void>(),
            ptr::from_mut(&mut pidfd),
            ptr::null_mut::<c_void>(),
            ptr::null_mut::<c_int>(),
        )
    };
    let result = match pid {
        // SAFETY: CLONE_PIDFD made this descriptor for us and nobody else has it.
        1.. => Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) })),
        _ => Err(io::Error::last_os_error()),
    };
    drop(blocked);
    result
}

/// The child's first function; `birth` is a [`Birth`].
extern "C" fn born(birth: *mut c_void) -> c_int {
    // SAFETY: `on_our_memory` passes a reference that outlives the child's use
    // of it, and this is that child.
    unsafe { child::run(&*birth.cast::<Birth<'_>>()) }
}

/// A child on a copy of the parent's memory; the parent goes on.
fn on_a_copy(birth: &Birth<'_>, flags: c_int) -> io::Result<(i32, OwnedFd)> {
    let mut pidfd: c_int = -1;
    let blocked = Blocked::all();
    // SAFETY: without CLONE_VM and with a null stack this is a fork: the child
    // has its own copy of all memory and goes on on its own copy of this
    // stack. The kernel writes one `int` through the third argument, in the
    // parent. The last two arguments belong to flags that are not set.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            c_long::from(flags),
            ptr::null_mut::<c_void>(),
            ptr::from_mut(&mut pidfd),
            ptr::null_mut::<c_int>(),
            0 as c_ulong,
        )
    };
    let result = match pid {
        // SAFETY: this is the child; all pointers were made before the clone
        // and live in its copy of memory.
        0 => unsafe { child::run(birth) },
        // SAFETY: CLONE_PIDFD made this descriptor for us and nobody else has it.
        1.. => Ok((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) })),
        _ => Err(io::Error::last_os_error()),
    };
    drop(blocked);
    result
}

/// Every signal blocked for the calling thread, glibc's own ones too, until
/// this is dropped. A handler of ours must not run in a child: on shared memory
/// it would do so behind the back of the parent. The child unblocks once it has
/// none.
struct Blocked {
    before: u64,
}

impl Blocked {
    fn all() -> Self {
        Self {
            before: set_mask(u64::MAX),
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        set_mask(self.before);
    }
}

/// Blocks exactly the signals of `mask`; gives the mask before.
fn set_mask(mask: u64) -> u64 {
    let mut before = 0_u64;
    // SAFETY: reads and writes one set of 64 signals each, which the last
    // argument says. By the raw call: glibc's own would leave two signals out.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            &raw mut before,
            size_of::<u64>(),
        )
    };
    before
}

/// Memory for a child's stack, the lowest page of it never to be touched.
struct Stack {
    lowest: *mut c_void,
}

impl Stack {
    /// Bytes: far more than the child's few small frames take, and costing
    /// nothing until they are touched.
    const SIZE: usize = 128 << 10;
    /// Bytes that are a fault: at least a page, on every machine.
    const GUARD: usize = 64 << 10;

    fn new() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let lowest =
            unsafe { libc::mmap(ptr::null_mut(), Self::SIZE, libc::PROT_NONE, flags, -1, 0) };
        if lowest == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self { lowest };
        let usable = Self::SIZE - Self::GUARD;
        // SAFETY: the upper part of the mapping just made, which is ours alone.
        let done = unsafe {
            libc::mprotect(
                lowest.byte_add(Self::GUARD),
                usable,
                libc::PROT_READ | libc::PROT_WRITE,
            )
        };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }

    /// The end of the memory, where a stack that grows down begins; aligned as
    /// every calling convention wants it.
    fn top(&self) -> *mut c_void {
        // SAFETY: one past the end of the mapping.
        unsafe { self.lowest.byte_add(Self::SIZE) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing refers to any more.
        unsafe { libc::munmap(self.lowest, Self::SIZE) };
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
