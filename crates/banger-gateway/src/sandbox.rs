//! What this process can no longer do once it serves the guest: open, run or
//! change anything. What it has open, and new internet sockets, is all there is.
//!
//! | layer | leaves |
//! |---|---|
//! | capabilities | none, for a gateway of root's |
//! | landlock | no file, no TCP listening, no signals or abstract sockets elsewhere |
//! | seccomp | the calls of [`FREE`] and those of [`bounded`] with these arguments |
//! | limits | descriptors for its flows, memory, no core, no lock |
//!
//! A call that is not allowed fails with `EPERM`: what the standard library
//! tries on its way to telling of a panic must not end the process.

use std::collections::BTreeMap;
use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError,
    Scope,
};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior};
use rustix::process::{getpid, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities, set_no_new_privs,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Descriptors that a gateway may have: its flows' by their limits, with room.
const MAX_DESCRIPTORS: u64 = 4096;
/// Writable memory that a gateway may have, bytes: what it holds for the guest
/// is bounded far below, so this is for what nobody thought of.
const MAX_DATA: u64 = 512 << 20;
/// The newest landlock whose rights are named here.
const KNOWN: ABI = ABI::V9;

/// A step that failed: the process is not confined and must not serve.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A system call of ours.
    #[error("cannot {what}")]
    Step {
        /// What it should have done.
        what: &'static str,
        /// Why it did not.
        #[source]
        cause: io::Error,
    },
    /// The landlock rules.
    #[error("cannot apply landlock")]
    Landlock(#[source] RulesetError),
    /// The filter of system calls, which cannot be built or applied.
    #[error("cannot apply the filter of system calls")]
    Filter(#[source] seccompiler::Error),
}

/// Confines this thread and what it starts, for good. The gateway has only this
/// one. A kernel without landlock, or with an older one, gives what it has.
///
/// # Errors
/// [`SandboxError`]: half of it may hold already.
pub fn enter() -> Result<(), SandboxError> {
    limit()?;
    let step = |what, result: Result<(), Errno>| {
        result.map_err(|cause| SandboxError::Step {
            what,
            cause: cause.into(),
        })
    };
    step("take no new privileges", set_no_new_privs(true))?;
    step("drop ambient capabilities", clear_ambient_capability_set())?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    step("drop capabilities", set_capabilities(None, sets))?;
    // Others of the same user must not look into what the guest sends.
    step(
        "be closed to tracers",
        set_dumpable_behavior(DumpableBehavior::NotDumpable),
    )?;
    forbid_files().map_err(SandboxError::Landlock)?;
    let program = filter().map_err(|error| SandboxError::Filter(error.into()))?;
    seccompiler::apply_filter(&program).map_err(SandboxError::Filter)
}

/// Sets what the process may use.
fn limit() -> Result<(), SandboxError> {
    let limits = [
        (Resource::Nofile, MAX_DESCRIPTORS),
        (Resource::Data, MAX_DATA),
        (Resource::Core, 0),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
        (Resource::Nproc, 0),
    ];
    for (resource, wanted) in limits {
        let most = getrlimit(resource).maximum;
        let limit = Some(most.map_or(wanted, |most| most.min(wanted)));
        let both = Rlimit {
            current: limit,
            maximum: limit,
        };
        setrlimit(resource, both).map_err(|cause| SandboxError::Step {
            what: "limit its resources",
            cause: cause.into(),
        })?;
    }
    Ok(())
}

/// Landlock without a rule: nothing it knows of is allowed but to connect.
fn forbid_files() -> Result<(), RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(KNOWN))?
        .create()?
        .restrict_self()?;
    Ok(())
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

/// Calls that may be made with some arguments only: for each, the sets of
/// (argument, mask, value) of which one must hold.
fn bounded() -> Vec<(libc::c_long, Vec<Vec<Argument>>)> {
    let own = u64::from(getpid().as_raw_nonzero().get().cast_unsigned());
    vec![
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
        // Memory of its own that never holds code.
        (
            libc::SYS_mmap,
            vec![vec![
                without(2, libc::PROT_EXEC),
                with(3, libc::MAP_ANONYMOUS),
            ]],
        ),
        (libc::SYS_mprotect, vec![vec![without(2, libc::PROT_EXEC)]]),
        // To end by abort().
        (
            libc::SYS_tgkill,
            vec![vec![
                (0, u64::from(u32::MAX), own),
                exactly(2, libc::SIGABRT),
            ]],
        ),
    ]
}

/// An argument's number, the bits of it that count, and what they must be.
type Argument = (u8, u64, u64);

fn exactly(number: u8, value: libc::c_int) -> Argument {
    (
        number,
        u64::from(u32::MAX),
        u64::from(value.cast_unsigned()),
    )
}

fn with(number: u8, bits: libc::c_int) -> Argument {
    let bits = u64::from(bits.cast_unsigned());
    (number, bits, bits)
}

fn without(number: u8, bits: libc::c_int) -> Argument {
    (number, u64::from(bits.cast_unsigned()), 0)
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

/// The filter of this machine's system calls.
fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        FREE.iter().map(|&call| (call, Vec::new())).collect();
    for (call, choices) in bounded() {
        let rule = |arguments: &Vec<Argument>| {
            let conditions = arguments.iter().map(|&(number, mask, value)| {
                SeccompCondition::new(number, Length::Dword, Compare::MaskedEq(mask), value)
            });
            SeccompRule::new(conditions.collect::<Result<_, _>>()?)
        };
        let choices = choices.iter().map(rule).collect::<Result<_, _>>()?;
        rules.insert(call, choices);
    }
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    let denied = SeccompAction::Errno(Errno::PERM.raw_os_error().cast_unsigned());
    SeccompFilter::new(rules, denied, SeccompAction::Allow, machine)?.try_into()
}

#[cfg(test)]
mod tests;
