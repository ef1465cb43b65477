//! The processor's time-stamp counter.

#![allow(unsafe_code)]

/// Ticks of this processor's time-stamp counter.
#[must_use]
pub fn ticks() -> u64 {
    // SAFETY: `rdtsc` reads a register and touches no memory. User space may
    // execute it unless the process asked the kernel for PR_TSC_SIGSEGV.
    unsafe { core::arch::x86_64::_rdtsc() }
}
