//! Unix sockets whose paths may be longer than an address can hold: 107 bytes
//! and no more, while a state directory may lie anywhere.

use std::fs::Permissions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixStream;

/// Bytes of a path that fit an address, the final null excluded.
const LONGEST: usize = 107;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 8;

/// A path that fits, and what keeps it valid.
struct Address {
    path: PathBuf,
    _directory: Option<OwnedFd>,
}

fn address(directory: &Path, name: &str) -> io::Result<Address> {
    let path = directory.join(name);
    if path.as_os_str().as_bytes().len() <= LONGEST {
        return Ok(Address {
            path,
            _directory: None,
        });
    }
    let fd = rustix::fs::open(
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", fd.as_raw_fd()));
    Ok(Address {
        path,
        _directory: Some(fd),
    })
}

/// Binds and listens, in place of what an earlier run left there.
pub(crate) fn listen(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    match std::fs::remove_file(directory.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let address = address(directory, name)?;
    Ok(UnixListener::bind(&address.path)?.into())
}

/// As [`listen`], for messages that stay whole (`SOCK_SEQPACKET`); the socket is 0600.
pub(crate) fn listen_packets(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let path = directory.join(name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = packets()?;
    let address = address(directory, name)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(&address.path)?)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Connects to a [`listen_packets`]. Never waits: whoever listens need not
/// have accepted.
pub(crate) fn connect_packets(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let socket = packets()?;
    let address = address(directory, name)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(&address.path)?)?;
    Ok(socket)
}

fn packets() -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// Connects.
pub(crate) async fn connect(directory: &Path, name: &str) -> io::Result<UnixStream> {
    let address = address(directory, name)?;
    UnixStream::connect(&address.path).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_path_longer_than_an_address_is_bound_and_reached() {
        let root = std::env::temp_dir().join(format!("banger-sockets-{}", std::process::id()));
        let deep = root.join("d".repeat(90)).join("e".repeat(90));
        std::fs::create_dir_all(&deep).unwrap();
        for directory in [&root, &deep] {
            let first = listen(directory, "a.sock").unwrap();
            drop(first);
            let listener = listen(directory, "a.sock").expect("a stale socket is replaced");
            let client = connect(directory, "a.sock").await.unwrap();
            let listener = UnixListener::from(listener);
            let (_, _) = listener.accept().unwrap();
            drop(client);

            let packets = listen_packets(directory, "a.sock").expect("in place of the other");
            drop(connect_packets(directory, "a.sock").expect("nobody has to accept"));
            drop(packets);
            connect_packets(directory, "a.sock").expect_err("nobody listens");
        }
        std::fs::remove_dir_all(&root).unwrap();
    }
}
