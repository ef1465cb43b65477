//! Ending whatever was launched for a VM, known or not. An engine may live of
//! which nobody wrote anything down, when the daemon was killed at the wrong
//! moment; it is found by its cgroup, by the lock that it holds, and by its
//! command line.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::process::Signal;

use crate::cgroup::{self, CgroupError};
use crate::process::{self, Identity};
use crate::qemu;
use crate::watch;

/// What a killed engine may take to be gone.
const LEAVE: Duration = Duration::from_secs(30);
/// An engine starts nothing, so one round finds all; a second one sees that.
const ROUNDS: usize = 8;

/// Why something of a VM may still live.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Looking through `/proc`, or a signal.
    #[error("cannot end the engine of VM {id}")]
    Io {
        /// Which VM.
        id: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It was killed and stays.
    #[error("engine {pid} of VM {id} did not end within {} s of SIGKILL", LEAVE.as_secs())]
    Stuck {
        /// Which VM.
        id: String,
        /// Its process.
        pid: u32,
    },
    /// A process that we cannot see holds the lock.
    #[error("an unknown process holds {}", lock.display())]
    Held {
        /// The lock.
        lock: PathBuf,
    },
}

/// Ends everything of a VM and returns when it is gone.
pub(crate) async fn sweep(
    id: &str,
    run_dir: &Path,
    cgroup: Option<&Path>,
) -> Result<(), SweepError> {
    if let Some(cgroup) = cgroup {
        cgroup::kill(cgroup).await?;
    }
    let failed = |cause| SweepError::Io {
        id: id.to_owned(),
        cause,
    };
    for _ in 0..ROUNDS {
        let (vm, lock) = (id.to_owned(), run_dir.join(qemu::LOCK));
        let found = tokio::task::spawn_blocking(move || find(&vm, &lock)).await;
        let found = found
            .map_err(io::Error::other)
            .and_then(|found| found)
            .map_err(failed)?;
        if found.is_empty() {
            break;
        }
        for (pid, pidfd) in found {
            tracing::info!(vm = id, pid, "ending an engine that is left");
            process::signal_through(&pidfd, Signal::KILL).map_err(failed)?;
            let pidfd = watch::readable(pidfd).map_err(failed)?;
            match tokio::time::timeout(LEAVE, pidfd.readable()).await {
                Ok(ended) => drop(ended.map_err(failed)?),
                Err(_) => {
                    return Err(SweepError::Stuck {
                        id: id.to_owned(),
                        pid,
                    });
                }
            }
        }
    }
    let lock = run_dir.join(qemu::LOCK);
    if is_free(&lock).map_err(failed)? {
        Ok(())
    } else {
        Err(SweepError::Held { lock })
    }
}

/// Whether nobody holds the lock: the proof that no engine is left.
fn is_free(lock: &Path) -> io::Result<bool> {
    let file = match fs::File::open(lock) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Every process of ours that is an engine of this VM, or is about to be.
fn find(id: &str, lock: &Path) -> io::Result<Vec<(u32, OwnedFd)>> {
    let lock = fs::metadata(lock)
        .ok()
        .map(|metadata| (metadata.dev(), metadata.ino()));
    let own = rustix::process::geteuid().as_raw();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let is_it = || {
            pid != std::process::id()
                && fs::metadata(format!("/proc/{pid}")).is_ok_and(|at| at.uid() == own)
                && { named(pid, id) || lock.is_some_and(|lock| holds(pid, lock)) }
        };
        if !is_it() {
            continue;
        }
        // Looked at again through the pidfd's life: the number may have passed
        // to another process since.
        if let Some(pidfd) = process::open(pid)?
            && is_it()
        {
            found.push((pid, pidfd));
        }
    }
    Ok(found)
}

/// By command line and program.
fn named(pid: u32, id: &str) -> bool {
    Identity::read(pid)
        .is_some_and(|identity| qemu::is_qemu(&identity) && qemu::is_engine_of(&identity, id))
}

/// Whether a process has this file open.
fn holds(pid: u32, (dev, ino): (u64, u64)) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    open.flatten()
        .any(|fd| fs::metadata(fd.path()).is_ok_and(|file| (file.dev(), file.ino()) == (dev, ino)))
}
