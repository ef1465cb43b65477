//! What the host does around an engine that needs the kernel's raw side:
//! starting it confined, asking `/dev/kvm`, reading the time-stamp counter.
//! Knows no engine by name.

pub mod confine;
pub mod kvm;
pub mod spawn;
#[cfg(target_arch = "x86_64")]
pub mod tsc;
