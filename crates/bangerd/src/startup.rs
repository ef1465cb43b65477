//! The first and last moments of a daemon: the lock that makes it the only
//! one of its state directory, and the word it gives to whoever started it.
//!
//! ```text
//! starter ── spawns ──► daemon ── lock taken ──► listens ── "ready\n" ──► starter connects
//!                          └───── lock held by another that listens ── "ready\n", ends
//! ```

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_api::error::{Code, Error};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::failure::Failure;
use crate::http::socket::through_directory;

/// How long a daemon that lost the race waits for the other to listen, or an
/// older one to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at the lock. Only a lost race ever waits here.
const LOOK: Duration = Duration::from_millis(20);
/// Largest lock file that is believed, bytes.
const MAX_LOCK: u64 = 4096 + 64;

/// What the lock file says of its holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// Its process.
    pub(crate) pid: u32,
    /// Where it listens.
    pub(crate) socket: PathBuf,
}

/// The right to the state directory; given back when dropped, or when the
/// process ends in any way.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Who has the state directory.
#[derive(Debug)]
pub(crate) enum Claim {
    /// This process, now.
    Ours(Lock),
    /// Another daemon, which answers.
    Theirs(Holder),
}

/// Takes the lock, or finds the daemon that has it. Waits for one that is
/// just beginning, or just ending.
///
/// # Errors
/// When the state directory cannot be written, or the holder does not answer
/// in time.
pub(crate) async fn claim(path: &Path, socket: &Path) -> Result<Claim, Failure> {
    let cannot = |cause: &io::Error| {
        Failure::new(
            Code::BadPath,
            format!("cannot write the lock {}", path.display()),
        )
        .caused_by(cause)
        .hint("the state directory must be writable; XDG_STATE_HOME moves it")
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map_err(|error| cannot(&error))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(cannot(&error)),
        }
        let holder = read_holder(&mut file);
        if let Some(holder) = &holder
            && answers(&holder.socket)
        {
            return Ok(Claim::Theirs(holder.clone()));
        }
        if Instant::now() >= deadline {
            let pid = holder.map_or_else(String::new, |holder| format!(" (pid {})", holder.pid));
            return Err(Failure::new(
                Code::Busy,
                format!(
                    "another daemon{pid} has {} and does not answer",
                    path.display()
                ),
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
    let holder = Holder {
        pid: std::process::id(),
        socket: socket.to_owned(),
    };
    let text = serde_json::to_vec(&holder).expect("a holder is plain JSON");
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(&text))
        .and_then(|()| file.write_all(b"\n"));
    written.map_err(|error| match banger_images::is_full(&error) {
        true => Failure::new(
            Code::NoSpace,
            format!("no space left to write {}", path.display()),
        ),
        false => cannot(&error),
    })?;
    Ok(Claim::Ours(Lock { _file: file }))
}

/// What the lock says; `None` while its holder is still writing it.
fn read_holder(file: &mut File) -> Option<Holder> {
    let mut text = Vec::new();
    file.rewind().ok()?;
    file.take(MAX_LOCK).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Whether somebody listens there.
pub(crate) fn answers(socket: &Path) -> bool {
    through_directory(socket, UnixStream::connect).is_ok()
}

/// The end of a pipe at which somebody waits to hear how the start went.
#[derive(Debug, Default)]
pub(crate) struct Starter {
    pipe: Option<File>,
}

impl Starter {
    /// Nobody waits, or whoever left this descriptor open does.
    ///
    /// # Errors
    /// When the descriptor is not open.
    pub(crate) fn new(descriptor: Option<RawFd>) -> io::Result<Self> {
        let pipe = match descriptor {
            Some(number) => Some(File::from(banger_sys::daemon::take_inherited(number)?)),
            None => None,
        };
        Ok(Self { pipe })
    }

    /// The socket listens.
    pub(crate) fn ready(&mut self) {
        if self.pipe.is_some() {
            let_go_of_stderr();
        }
        self.say(b"ready\n");
    }

    /// There will be no daemon, and why.
    pub(crate) fn failed(&mut self, error: &Error) {
        let mut line = serde_json::to_vec(error).expect("errors are plain JSON");
        line.push(b'\n');
        self.say(&line);
    }

    /// A starter that left is no reason to end. What is said once is final.
    fn say(&mut self, line: &[u8]) {
        if let Some(mut pipe) = self.pipe.take() {
            let _ = pipe.write_all(line);
        }
    }
}

/// Whoever started this daemon reads its standard error only until it is
/// ready; engines must not inherit a pipe that nobody reads.
fn let_go_of_stderr() {
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn the_second_daemon_finds_the_first_and_its_socket() {
        let place = tempfile::tempdir().unwrap();
        let lock = place.path().join("lock");
        let socket = place.path().join("s");
        let Claim::Ours(_held) = claim(&lock, &socket).await.unwrap() else {
            panic!("not ours")
        };
        let _listener = UnixListener::bind(&socket).unwrap();
        let Claim::Theirs(holder) = claim(&lock, Path::new("/other")).await.unwrap() else {
            panic!("two daemons")
        };
        assert_eq!(
            holder,
            Holder {
                pid: std::process::id(),
                socket
            }
        );
    }

    #[tokio::test]
    async fn a_daemon_waits_for_an_older_one_that_ends() {
        let place = tempfile::tempdir().unwrap();
        let lock = place.path().join("lock");
        let socket = place.path().join("nobody-listens");
        let Claim::Ours(held) = claim(&lock, &socket).await.unwrap() else {
            panic!("not ours")
        };
        let (second, ()) = tokio::join!(claim(&lock, &socket), async {
            tokio::time::sleep(Duration::from_millis(60)).await;
            drop(held);
        });
        assert!(matches!(second.unwrap(), Claim::Ours(_)));
    }

    #[tokio::test]
    async fn a_lock_left_by_a_dead_daemon_is_taken_over() {
        let place = tempfile::tempdir().unwrap();
        let lock = place.path().join("lock");
        std::fs::write(
            &lock,
            "{\"pid\":1,\"socket\":\"/gone\"} and more than before",
        )
        .unwrap();
        assert!(matches!(
            claim(&lock, Path::new("/s")).await.unwrap(),
            Claim::Ours(_)
        ));
        let text = std::fs::read_to_string(&lock).unwrap();
        let holder: Holder = serde_json::from_str(&text).unwrap();
        assert_eq!(holder.socket, Path::new("/s"));
    }

    #[tokio::test]
    async fn a_lock_that_cannot_be_written_is_an_error_with_a_hint() {
        let failure = claim(Path::new("/proc/nowhere/lock"), Path::new("/s"))
            .await
            .unwrap_err();
        assert_eq!(failure.code, Code::BadPath);
        assert!(failure.hint.is_some());
    }

    #[test]
    fn the_starter_hears_one_line() {
        let (mut reader, writer) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let mut starter = Starter { pipe: Some(file) };
        starter.ready();
        starter.failed(&Failure::new(Code::Internal, "late").to_api(""));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "ready\n");
    }
}
