//! What only the start of a daemon needs: a descriptor that its parent left
//! it, and an allocator that fits a small process.
//!
//! Call both before the first thread is started and before anything else is
//! opened.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes over a descriptor that the parent process left open, and makes sure
/// that no child of ours inherits it.
///
/// # Errors
/// When the number is that of a standard stream or of no open descriptor.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: F_SETFD takes a number and an integer, touches no memory, and
    // fails with EBADF where the number is no open descriptor.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open. Nothing in this process owns it yet: it
    // came from the parent, and the caller has opened nothing before.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Keeps glibc from giving every thread a heap of its own, which in a daemon
/// of few, mostly sleeping threads only costs memory, and makes it hand freed
/// memory back sooner. Does nothing with another C library.
pub fn keep_heap_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers and changes glibc's own settings; it
    // is called before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
    }
}

/// Makes glibc map every allocation of this many bytes and more by itself, so
/// that its memory goes back to the host the moment it is freed, whatever was
/// allocated around it. Call after [`keep_heap_small`]. Does nothing with
/// another C library.
pub fn map_allocations_from(bytes: u16) {
    #[cfg(target_env = "gnu")]
    // SAFETY: as above.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, libc::c_int::from(bytes));
        // What lies free at the heap's end is given out first, of any size.
        libc::mallopt(libc::M_TOP_PAD, 0);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = bytes;
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn a_descriptor_that_was_left_open_is_taken_over() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let taken = take_inherited(OwnedFd::from(writer).into_raw_fd()).unwrap();
        std::fs::File::from(taken).write_all(b"ready\n").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "ready\n");
    }

    #[test]
    fn standard_streams_and_closed_descriptors_are_refused() {
        for number in [-1, 0, 2, 1_000_000] {
            assert!(take_inherited(number).is_err(), "{number}");
        }
    }
}
