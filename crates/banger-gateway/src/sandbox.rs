//! What a gateway can no longer do once it serves the guest: open, run or
//! change anything. What it has open, and new internet sockets, is all there is.
//!
//! | layer | leaves |
//! |---|---|
//! | capabilities | none, for a gateway of root's |
//! | landlock | no file, no TCP listening, no signals or abstract sockets elsewhere |
//! | seccomp | the calls of [`FREE`] and those of [`bounded`] with these arguments |
//! | limits | descriptors for its flows, memory, no core, no lock |

use banger_sandbox::{Argument, Bounded, Resource, Rules, exactly, own_memory_and_end};

pub use banger_sandbox::SandboxError;

/// Descriptors that a gateway may have: its flows' by their limits, with room.
const MAX_DESCRIPTORS: u64 = 4096;
/// Writable memory that a gateway may have, bytes: what it holds for the guest
/// is bounded far below, so this is for what nobody thought of.
const MAX_DATA: u64 = 512 << 20;
/// Confines this thread and what it starts, for good. The gateway has only this
/// one. A kernel without landlock, or with an older one, gives what it has.
///
/// # Errors
/// [`SandboxError`]: half of it may hold already.
pub fn enter() -> Result<(), SandboxError> {
    banger_sandbox::enter(Rules {
        free: FREE,
        bounded: &bounded(),
        limits: &[
            (Resource::Nofile, MAX_DESCRIPTORS),
            (Resource::Data, MAX_DATA),
        ],
        connect: true,
    })
}

/// Calls that may be made with any arguments: on descriptors that are open, on
/// the own memory, or asking what harms nobody.
const FREE: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpeername,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Calls that may be made with some arguments only.
fn bounded() -> Vec<Bounded> {
    let mut calls = own_memory_and_end();
    calls.extend([
        (libc::SYS_socket, sockets()),
        (
            libc::SYS_setsockopt,
            OPTIONS
                .iter()
                .map(|&(level, option)| vec![exactly(1, level), exactly(2, option)])
                .collect(),
        ),
        (
            libc::SYS_fcntl,
            [
                libc::F_GETFD,
                libc::F_GETFL,
                libc::F_SETFL,
                libc::F_DUPFD_CLOEXEC,
            ]
            .iter()
            .map(|&command| vec![exactly(1, command)])
            .collect(),
        ),
        (libc::SYS_ioctl, vec![vec![exactly(1, FIONBIO)]]),
    ]);
    calls
}

/// As `libc` has it, but an int on every target.
const FIONBIO: libc::c_int = 0x5421;

/// Options of sockets that the flows set.
const OPTIONS: &[(libc::c_int, libc::c_int)] = &[
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (libc::IPPROTO_IP, libc::IP_RECVERR),
    (libc::IPPROTO_IP, libc::IP_TTL),
];

/// Sockets that may be made: TCP, UDP and ping.
fn sockets() -> Vec<Vec<Argument>> {
    // Besides these bits, a type has flags such as SOCK_NONBLOCK.
    let kind = |kind: libc::c_int| (1, 0xf, u64::from(kind.cast_unsigned()));
    let mut all = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (kind_, protocols) in [
            (libc::SOCK_STREAM, [0, libc::IPPROTO_TCP]),
            (libc::SOCK_DGRAM, [0, libc::IPPROTO_UDP]),
        ] {
            for protocol in protocols {
                all.push(vec![exactly(0, family), kind(kind_), exactly(2, protocol)]);
            }
        }
    }
    all.push(vec![
        exactly(0, libc::AF_INET),
        kind(libc::SOCK_DGRAM),
        exactly(2, libc::IPPROTO_ICMP),
    ]);
    all
}

#[cfg(test)]
mod tests;
