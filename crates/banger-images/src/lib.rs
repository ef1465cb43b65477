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
mod spare;
pub mod suite;
pub mod tar;
pub mod tree;
pub mod worker;
mod xattr;

pub use process::RunError;
pub use progress::{Cancel, Cancelled, Quiet, Report};

/// Whether an error says that there is no room to write: the disk is full, or whoever writes has
/// used up what they may have of it.
#[must_use]
pub fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use std::io::Error;

    use rustix::io::Errno;

    #[test]
    fn a_full_disk_and_a_used_up_quota_are_no_space_alike() {
        for (errno, full) in [
            (Errno::NOSPC, true),
            (Errno::DQUOT, true),
            (Errno::FBIG, false),
            (Errno::IO, false),
        ] {
            assert_eq!(super::is_full(&Error::from(errno)), full, "{errno:?}");
            let source = Error::from(errno);
            let path = String::new();
            let error = crate::ext4::WriteError::Io { path, source };
            assert_eq!(error.is_no_space(), full, "{errno:?}");
        }
    }
}
