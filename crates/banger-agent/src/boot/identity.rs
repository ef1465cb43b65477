//! What makes this boot this machine's: clock, random seed, hostname, the
//! kernel's boot id.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;

use banger_wire::agent::Boot;
use rustix::time::{ClockId, Timespec, clock_settime};

use super::Warnings;

/// The kernel's boot id as it is printed, or empty.
pub(crate) fn boot_id_text() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// The kernel's boot id; zeros where it cannot be read.
pub(crate) fn boot_id() -> [u8; 16] {
    unhex(&boot_id_text().replace('-', ""))
        .and_then(|id| id.try_into().ok())
        .unwrap_or_default()
}

/// `uname -r`.
pub(crate) fn kernel_version() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// Sets seed, hostname and the loopback link.
pub(super) fn take(request: &Boot, warnings: &mut Warnings) {
    warnings.note("random seed", seed(&request.entropy_hex));
    let name = rustix::system::sethostname(request.hostname.as_bytes());
    warnings.note("hostname", name);
    warnings.note("loopback link", banger_sys::guest::device::loopback_up());
}

/// Sets the wall clock, nanoseconds since 1970.
pub(crate) fn set_clock(unix_ns: u64) -> io::Result<()> {
    let time = Timespec {
        tv_sec: i64::try_from(unix_ns / 1_000_000_000).expect("2^64 ns are 585 years"),
        tv_nsec: (unix_ns % 1_000_000_000) as _,
    };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

fn seed(hex: &str) -> io::Result<()> {
    let seed = unhex(hex)
        .filter(|seed| (32..=512).contains(&seed.len()))
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the seed is not 32 to 512 bytes of base16",
            )
        })?;
    banger_sys::guest::device::add_entropy(File::open("/dev/urandom")?.as_fd(), &seed)
}

/// Reads base16 of either case.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs
        .iter()
        .map(|[high, low]| Some((digit(*high)? * 16 + digit(*low)?) as u8))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base16_is_read_whole_or_not_at_all() {
        assert_eq!(unhex("00ffAb"), Some(vec![0, 255, 0xab]));
        assert_eq!(unhex(""), Some(vec![]));
        assert_eq!(unhex("abc"), None);
        assert_eq!(unhex("zz"), None);
    }
}
