//! The daemon's socket: bound whole, replaced when stale, bound again when
//! somebody took it away.
//!
//! The socket is bound under another name and renamed to its own, so a client
//! finds either nothing or one that listens, and a stale one is replaced in
//! one step. Temporary-file cleaners and logouts remove it under a running
//! daemon: a watch on its directory notices and binds it anew.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, inotify::WatchFlags};
use tokio::net::{UnixListener, UnixStream};

use super::watch::Watch;
use crate::paths::Paths;

/// Longest path that fits a socket address, bytes.
const LONGEST: usize = 107;

/// Does something with a socket's path, which may be longer than a socket
/// address holds: then by way of its directory's descriptor.
pub(crate) fn through_directory<T>(
    path: &Path,
    act: impl FnOnce(PathBuf) -> io::Result<T>,
) -> io::Result<T> {
    if path.as_os_str().len() <= LONGEST {
        return act(path.to_owned());
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    act(Path::new("/proc/self/fd")
        .join(directory.as_raw_fd().to_string())
        .join(name))
}

/// A socket that listens.
pub(crate) struct Socket {
    paths: Paths,
    uid: u32,
    listener: UnixListener,
    /// Device and inode: whether what is at the path is ours.
    identity: (u64, u64),
    watch: Option<Watch>,
}

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// Somebody else answers there.
    #[error("another daemon listens on {}", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket has its name.
    #[error("{} is in the way: it is no socket", path.display())]
    InTheWay {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be bound.
    #[error("cannot listen on {}", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Its directory cannot be used.
    #[error(transparent)]
    Directory(#[from] crate::paths::PathError),
}

impl Socket {
    /// Binds the socket. The caller has the state's lock, so whatever is at
    /// the path and does not answer is left over.
    pub(crate) fn listen(paths: &Paths, uid: u32) -> Result<Self, SocketError> {
        paths.make_run(uid)?;
        let path = &paths.socket;
        match std::fs::symlink_metadata(path) {
            Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
                return Err(SocketError::InTheWay { path: path.clone() });
            }
            Ok(_) if crate::startup::answers(path) => {
                return Err(SocketError::Taken { path: path.clone() });
            }
            _ => {}
        }
        let (listener, identity) = bind(path).map_err(|cause| SocketError::Bind {
            path: path.clone(),
            cause,
        })?;
        let mut socket = Self {
            paths: paths.clone(),
            uid,
            listener,
            identity,
            watch: None,
        };
        socket.watch = socket.watch_directory();
        Ok(socket)
    }

    /// The next client. Comes back with one only; cancelling loses none.
    pub(crate) async fn accept(&mut self) -> io::Result<UnixStream> {
        loop {
            // The watch is looked at in both arms by turns; a lost watch
            // leaves a daemon that only does not notice.
            let changed = async {
                match &mut self.watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                accepted = self.listener.accept() => return accepted.map(|(stream, _)| stream),
                () = changed => {
                    if let Some(stream) = self.look() {
                        return Ok(stream);
                    }
                }
            }
        }
    }

    /// Binds again where what is at the path is no longer ours. A client that
    /// waited at the old socket comes back.
    fn look(&mut self) -> Option<UnixStream> {
        if identity(&self.paths.socket).ok() == Some(self.identity) {
            return None;
        }
        let bound = match std::fs::symlink_metadata(&self.paths.socket) {
            // Whoever put something else there wants it there.
            Ok(_) => None,
            Err(_) => self
                .paths
                .make_run(self.uid)
                .ok()
                .and_then(|()| bind(&self.paths.socket).ok()),
        };
        let mut waiting = None;
        if let Some((listener, identity)) = bound {
            tracing::warn!(socket = %self.paths.socket.display(), "the socket was gone; bound it again");
            let old = std::mem::replace(&mut self.listener, listener);
            self.identity = identity;
            waiting = now_waiting(&old);
        }
        self.watch = self.watch_directory();
        waiting
    }

    /// Watches the socket's directory, or the nearest one above that exists.
    fn watch_directory(&self) -> Option<Watch> {
        let mut directory = self.paths.socket.parent()?;
        let flags = WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::CREATE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        loop {
            match Watch::new(directory, flags) {
                Ok(watch) => return Some(watch),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    directory = directory.parent()?;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot watch the socket; it will not be bound again when it vanishes");
                    return None;
                }
            }
        }
    }

    /// Removes the socket, so that nobody connects to a daemon that ends.
    pub(crate) fn close(self) {
        if identity(&self.paths.socket).ok() == Some(self.identity) {
            let _ = std::fs::remove_file(&self.paths.socket);
        }
    }
}

/// A client in the queue of a listener that nobody can find any more.
fn now_waiting(listener: &UnixListener) -> Option<UnixStream> {
    use futures_util::FutureExt;
    listener
        .accept()
        .now_or_never()?
        .ok()
        .map(|(stream, _)| stream)
}

fn bind(path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let beside = path.with_file_name(name);
    let _ = std::fs::remove_file(&beside);
    let listener = through_directory(&beside, StdListener::bind)?;
    let finish = || {
        listener.set_nonblocking(true)?;
        std::fs::set_permissions(&beside, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let identity = identity(&beside)?;
        std::fs::rename(&beside, path)?;
        Ok(identity)
    };
    let identity = finish().inspect_err(|_: &io::Error| drop(std::fs::remove_file(&beside)))?;
    Ok((UnixListener::from_std(listener)?, identity))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}
