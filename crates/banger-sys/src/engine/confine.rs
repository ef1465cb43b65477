//! Giving up power for good, in a child that is about to become an engine.
//!
//! Called between `clone` and `exec`: plain system calls only, no allocation,
//! no lock. Each function reports through `errno`.

#![allow(unsafe_code)]

use libc::{c_int, c_ulong, c_void};

/// A mount namespace of its own, into which the host still propagates but
/// from which nothing comes out. Where the kernel does not let us (a
/// container), the engine stays in ours: it has no capability to mount either.
pub(super) fn own_mounts() -> bool {
    // SAFETY: `unshare` takes flags only; the caller has a single thread.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return true;
    }
    // SAFETY: the target is a static C string and the other pointers are null,
    // which mount(2) allows for a change of propagation.
    unsafe {
        libc::mount(
            std::ptr::null(),
            c"/".as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_SLAVE,
            std::ptr::null::<c_void>(),
        ) == 0
    }
}

/// The header of `capset`.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

/// One half of the three sets of `capset`.
#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// Far more than there are; the kernel refuses numbers beyond its last.
const MOST_CAPABILITIES: c_ulong = 63;

/// No capability now, and none after any exec although the user is root.
pub(super) fn drop_capabilities() -> bool {
    // Being root must give nothing at exec: the bounding set goes first, since
    // emptying it takes a capability itself.
    for capability in 0..=MOST_CAPABILITIES {
        // SAFETY: this prctl takes a number only.
        let status = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if status != 0 && errno() != libc::EINVAL {
            return false;
        }
    }
    let bits = libc::SECBIT_NOROOT
        | libc::SECBIT_NOROOT_LOCKED
        | libc::SECBIT_NO_SETUID_FIXUP
        | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
        | libc::SECBIT_KEEP_CAPS_LOCKED
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    // SAFETY: these prctls take numbers only.
    let fixed = unsafe {
        libc::prctl(libc::PR_SET_SECUREBITS, bits as c_ulong, 0, 0, 0) == 0
            && libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong,
                0,
                0,
                0,
            ) == 0
    };
    let header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let none = [CapData {
        effective: 0,
        permitted: 0,
        inheritable: 0,
    }; 2];
    // SAFETY: version 3 reads one header and two data structs, which both
    // outlive the call; pid 0 is ourselves.
    fixed && unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) } == 0
}

/// No exec gives more power than its caller has.
pub(super) fn no_new_privileges() -> bool {
    // SAFETY: this prctl takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as c_ulong, 0, 0, 0) == 0 }
}

/// Only what the landlock ruleset behind this descriptor allows.
pub(super) fn landlock(ruleset: c_int) -> bool {
    // SAFETY: takes a descriptor and flags; a wrong descriptor is refused.
    unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) == 0 }
}

/// The last error of this thread.
pub(super) fn errno() -> c_int {
    // SAFETY: the pointer is to this thread's own errno, always valid.
    unsafe { *libc::__errno_location() }
}
