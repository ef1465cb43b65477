//! What a process can no longer do once it works on bytes of others: open, run
//! or change anything. What it has open, and the calls that its rules name, is
//! all there is.
//!
//! | layer | leaves |
//! |---|---|
//! | capabilities | none |
//! | landlock | no file, no signals or abstract sockets elsewhere, and of TCP what the rules say |
//! | seccomp | the calls of the rules, with the arguments of the rules |
//! | limits | those of the rules, no core, no lock, no second thread |
//!
//! A call that is not allowed fails with `EPERM`: what the standard library
//! tries on its way to telling of a panic must not end the process.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError,
    Scope,
};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities, set_no_new_privs,
};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

pub use rustix::process::Resource;
pub use seccompiler::BpfProgram;

/// The newest landlock whose rights are named here.
const KNOWN: ABI = ABI::V9;

/// What is left to a process.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// Calls that may be made with any arguments.
    pub free: &'a [libc::c_long],
    /// Calls that may be made with some arguments only: for each, the sets of
    /// which one must hold.
    pub bounded: &'a [Bounded],
    /// What it may use of a resource; those that every process of ours can do
    /// without are none anyway.
    pub limits: &'a [(Resource, u64)],
    /// Whether TCP connections may be made.
    pub connect: bool,
}

/// A call and the sets of arguments that it may have.
pub type Bounded = (libc::c_long, Vec<Vec<Argument>>);

/// An argument's number, the bits of it that count, and what they must be.
pub type Argument = (u8, u64, u64);

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

/// Confines this thread and what it starts, for good; the process has only this
/// one. A kernel without landlock, or with an older one, gives what it has.
///
/// # Errors
/// [`SandboxError`]: half of it may hold already.
pub fn enter(rules: Rules<'_>) -> Result<(), SandboxError> {
    limit(rules.limits)?;
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
    // Others of the same user must not look into what it works on.
    step(
        "be closed to tracers",
        set_dumpable_behavior(DumpableBehavior::NotDumpable),
    )?;
    landlock(rules.connect)?;
    let program = filter(rules.free, rules.bounded)?;
    seccompiler::apply_filter(&program).map_err(SandboxError::Filter)
}

/// Sets what the process may use.
fn limit(limits: &[(Resource, u64)]) -> Result<(), SandboxError> {
    let none = [
        Resource::Core,
        Resource::Memlock,
        Resource::Msgqueue,
        Resource::Nproc,
    ];
    let none = none.map(|resource| (resource, 0));
    for &(resource, wanted) in limits.iter().chain(&none) {
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

/// Landlock without a rule: nothing it knows of is allowed but, where that is
/// said, to connect.
///
/// # Errors
/// [`SandboxError::Landlock`].
pub fn landlock(connect: bool) -> Result<(), SandboxError> {
    let net = if connect {
        AccessNet::BindTcp.into()
    } else {
        AccessNet::from_all(KNOWN)
    };
    let restrict = || -> Result<(), RulesetError> {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(KNOWN))?
            .handle_access(net)?
            .scope(Scope::from_all(KNOWN))?
            .create()?
            .restrict_self()?;
        Ok(())
    };
    restrict().map_err(SandboxError::Landlock)
}

/// An argument that is this number.
#[must_use]
pub fn exactly(number: u8, value: libc::c_int) -> Argument {
    (
        number,
        u64::from(u32::MAX),
        u64::from(value.cast_unsigned()),
    )
}

/// An argument that has all of these bits.
#[must_use]
pub fn with(number: u8, bits: libc::c_int) -> Argument {
    let bits = u64::from(bits.cast_unsigned());
    (number, bits, bits)
}

/// An argument that has none of these bits.
#[must_use]
pub fn without(number: u8, bits: libc::c_int) -> Argument {
    (number, u64::from(bits.cast_unsigned()), 0)
}

/// Memory of its own that never holds code, and to end by `abort()`: what every
/// process of ours needs of calls that are many things.
#[must_use]
pub fn own_memory_and_end() -> Vec<Bounded> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    vec![
        (
            libc::SYS_mmap,
            vec![vec![
                without(2, libc::PROT_EXEC),
                with(3, libc::MAP_ANONYMOUS),
            ]],
        ),
        (libc::SYS_mprotect, vec![vec![without(2, libc::PROT_EXEC)]]),
        (
            libc::SYS_tgkill,
            vec![vec![exactly(0, own), exactly(2, libc::SIGABRT)]],
        ),
    ]
}

/// The filter of this machine's system calls.
///
/// # Errors
/// [`SandboxError::Filter`]: the rules do not make one.
pub fn filter(free: &[libc::c_long], bounded: &[Bounded]) -> Result<BpfProgram, SandboxError> {
    let build = || -> Result<BpfProgram, seccompiler::BackendError> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            free.iter().map(|&call| (call, Vec::new())).collect();
        for (call, choices) in bounded {
            let rule = |arguments: &Vec<Argument>| {
                let conditions = arguments.iter().map(|&(number, mask, value)| {
                    SeccompCondition::new(number, Length::Dword, Compare::MaskedEq(mask), value)
                });
                SeccompRule::new(conditions.collect::<Result<_, _>>()?)
            };
            let choices = choices.iter().map(rule).collect::<Result<_, _>>()?;
            rules.insert(*call, choices);
        }
        let machine = TargetArch::try_from(std::env::consts::ARCH)?;
        let denied = SeccompAction::Errno(Errno::PERM.raw_os_error().cast_unsigned());
        SeccompFilter::new(rules, denied, SeccompAction::Allow, machine)?.try_into()
    };
    build().map_err(|error| SandboxError::Filter(error.into()))
}
