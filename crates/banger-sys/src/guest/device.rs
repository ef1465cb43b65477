//! Ioctls of the guest: the random generator, discards, the loopback link.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libc::{c_int, c_ulong};

const RNDADDENTROPY: c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: c_ulong = 0x5207;
const FITRIM: c_ulong = 0xc018_5879;
/// Largest seed, bytes.
pub const MAX_SEED: usize = 512;

#[repr(C)]
struct RandomPool {
    entropy_count: c_int,
    buf_size: c_int,
    buf: [u8; MAX_SEED],
}

/// Credits a seed to the kernel's random generator and makes it reseed.
/// `device` is `/dev/random` or `/dev/urandom`. Seeds over [`MAX_SEED`] bytes
/// are cut.
///
/// # Errors
/// That of the ioctl.
pub fn add_entropy(device: BorrowedFd<'_>, seed: &[u8]) -> io::Result<()> {
    let seed = &seed[..seed.len().min(MAX_SEED)];
    let mut pool = RandomPool {
        entropy_count: seed.len() as c_int * 8,
        buf_size: seed.len() as c_int,
        buf: [0; MAX_SEED],
    };
    pool.buf[..seed.len()].copy_from_slice(seed);
    // SAFETY: RNDADDENTROPY reads the two counts and `buf_size` bytes, all
    // inside `pool`; RNDRESEEDCRNG takes no argument.
    unsafe {
        check(libc::ioctl(
            device.as_raw_fd(),
            RNDADDENTROPY,
            &raw const pool,
        ))?;
        check(libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG))
    }
}

#[repr(C)]
struct TrimRange {
    start: u64,
    len: u64,
    min_len: u64,
}

/// Tells the device which blocks of a mounted file system are free, in the
/// byte range given. Answers the bytes discarded.
///
/// # Errors
/// `EOPNOTSUPP` where the device cannot; `EINVAL` past the end.
pub fn trim(directory: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<u64> {
    let mut range = TrimRange {
        start,
        len,
        min_len: 0,
    };
    // SAFETY: FITRIM reads and writes one `fstrim_range`, which `range` is.
    unsafe { check(libc::ioctl(directory.as_raw_fd(), FITRIM, &raw mut range))? };
    Ok(range.len)
}

/// Brings the loopback link up.
///
/// # Errors
/// That of the socket or the ioctls.
pub fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: `ifreq` is plain data, for which zero bytes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: both ioctls read and write one `ifreq`; after SIOCGIFFLAGS the
    // union holds the flags.
    unsafe {
        check(libc::ioctl(
            fd,
            libc::SIOCGIFFLAGS as c_ulong,
            &raw mut request,
        ))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(
            fd,
            libc::SIOCSIFFLAGS as c_ulong,
            &raw mut request,
        ))
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
