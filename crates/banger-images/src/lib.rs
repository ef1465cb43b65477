//! Images and kernels: what a VM boots from, made and checked on the host.
#![forbid(unsafe_code)]

pub mod apt;
pub mod bundle;
pub mod bzimage;
pub mod codec;
pub mod deb;
pub mod distribution;
pub mod ext4;
pub mod initramfs;
pub mod kernel;
pub mod modules;
pub mod oci;
mod os_release;
pub mod packed;
pub mod process;
pub mod progress;
pub mod sources;
pub mod suite;
pub mod tar;
pub mod tree;
pub mod worker;
mod xattr;

pub use process::RunError;
pub use progress::{Cancel, Cancelled, Quiet, Report};
