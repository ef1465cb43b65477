//! What only the guest agent asks of the kernel: starting processes from a
//! prepared plan, a few ioctls, and the signals of a namespace's first
//! process. Everything here is for a process that is root.

#![allow(unsafe_code)]

pub mod device;
pub mod launch;
pub mod signals;
