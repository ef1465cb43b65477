//! Layers, or a guest's root, made into an image by a process of their own, which can do
//! nothing else.
//!
//! ```text
//! daemon ── opens the layers and the image's files ──► bangerd --write-image ORDER
//!        ◄── progress, a line of JSON each (stderr) ──   no path, no network, no privilege
//!        ◄── what was written, or why not (stdout) ──    reads layers, writes files
//! ```
//!
//! Layers come from anybody: whoever finds a hole in a decompressor or in a reader of archives is
//! then in a process that has the open files of one image and nothing else. Its memory goes back
//! to the host with it.

mod inside;
mod words;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use command_fds::{CommandFdExt as _, FdMapping};

use crate::ext4::RootFiles;
use crate::oci::{self, Order, Written};
use crate::process::{Finished, Run, RunError};
use crate::progress::{Cancel, Report};
use crate::tree::Source;

pub use inside::work;
use words::{Answer, Content, FIRST, FLAG, News, Task};
pub use words::{Fault, Refused};

/// What is said of an image whose names alone take more memory than there may be.
const TOO_MANY: &str = "the image has too many files";

/// Layers could not be made into an image.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A file that it is given.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The process.
    #[error(transparent)]
    Run(#[from] RunError),
    /// What it said.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It ended without a word.
    #[error("the process that writes the image ended early ({status})")]
    Died {
        /// How.
        status: ExitStatus,
        /// The last it said.
        #[source]
        last: io::Error,
    },
}

impl WorkerError {
    /// The disk is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Open { cause, .. } => crate::is_full(cause),
            Self::Refused(refused) => refused.fault == Fault::NoSpace,
            _ => false,
        }
    }

    /// A size that the image fits into, when that asked for is too small, bytes.
    #[must_use]
    pub fn needs(&self) -> Option<u64> {
        match self {
            Self::Refused(refused) => match refused.fault {
                Fault::Size { least } => Some(least),
                _ => None,
            },
            _ => None,
        }
    }

    /// The caller cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Run(RunError::Cancelled(_)))
    }

    /// The image itself is at fault, not this host.
    #[must_use]
    pub fn is_of_the_image(&self) -> bool {
        matches!(self, Self::Refused(refused) if refused.fault == Fault::Image)
    }
}

/// Makes layers, the lowest first, into [`crate::ext4::ROOTFS`] and, where `/root` holds
/// anything, [`crate::ext4::SEED`] of a directory, in a confined process of this same program,
/// which must call [`work`] when its first argument is the flag. Nothing is left in the directory
/// when that fails.
///
/// # Errors
/// [`WorkerError`].
pub fn write(
    layers: &[PathBuf],
    dir: &Path,
    order: &Order,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Written, WorkerError> {
    kept(dir, || {
        order
            .check(layers.len())
            .map_err(|error| Refused::of(&error))?;
        let content = Content::Layers(layers.len());
        let layers = layers.iter().map(|layer| open(layer).map(OwnedFd::from));
        let layers = layers.collect::<Result<_, _>>()?;
        give(content, layers, dir, order, cancel, report)
    })
}

/// The same in this process and this thread, for tests whose program is another.
///
/// # Errors
/// [`WorkerError`].
pub fn write_here(
    layers: &[PathBuf],
    dir: &Path,
    order: &Order,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Written, WorkerError> {
    kept(dir, || {
        let layers = layers.iter().map(|layer| open(layer).map(Source::Packed));
        let layers = layers.collect::<Result<_, _>>()?;
        let files = files_in(dir)?;
        let written = oci::write(layers, &files, order, cancel, report);
        written.map_err(|error| Refused::of(&error).into())
    })
}

/// Makes a root that a guest packed into the same files, in the same way.
///
/// # Errors
/// [`WorkerError`].
pub fn write_packed(
    packed: File,
    dir: &Path,
    order: &Order,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Written, WorkerError> {
    kept(dir, || {
        give(
            Content::Root,
            vec![packed.into()],
            dir,
            order,
            cancel,
            report,
        )
    })
}

/// Leaves the image's files where they were written, and nothing otherwise.
fn kept(
    dir: &Path,
    write: impl FnOnce() -> Result<Written, WorkerError>,
) -> Result<Written, WorkerError> {
    let written = write();
    let (root, seed) = match &written {
        Ok(written) => (true, written.seed),
        Err(_) => (false, false),
    };
    RootFiles::keep(dir, root, seed);
    written
}

fn open(path: &Path) -> Result<File, WorkerError> {
    File::open(path).map_err(|cause| WorkerError::Open {
        path: path.to_owned(),
        cause,
    })
}

fn files_in(dir: &Path) -> Result<RootFiles, WorkerError> {
    RootFiles::create(dir).map_err(|cause| WorkerError::Open {
        path: dir.to_owned(),
        cause,
    })
}

/// Gives a task with its descriptors to a process.
fn give(
    content: Content,
    sources: Vec<OwnedFd>,
    dir: &Path,
    order: &Order,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Written, WorkerError> {
    let files = files_in(dir)?;
    let (unpacked, keep_bytes) = files.unpacked.into_parts();
    let task = Task {
        content,
        keep_bytes,
        order: order.clone(),
    };
    let files = [files.root, files.seed, files.spool, unpacked];
    let mut given: Vec<OwnedFd> = files.map(OwnedFd::from).into();
    given.extend(sources);
    // Whatever is on disk by that name while this runs: the program that runs now.
    let program = Command::new("/proc/self/exe");
    let mut run = Run::of("the writer of images", program, cancel);
    let command = run.command();
    command.arg0("bangerd").env_clear().current_dir("/");
    command.arg(FLAG).arg(task.to_json());
    let mappings = (FIRST..).zip(given).map(|(child_fd, parent_fd)| FdMapping {
        parent_fd,
        child_fd,
    });
    command
        .fd_mappings(mappings.collect())
        .expect("each number is given once");
    let finished = run.watch(&mut |line| {
        if let Some(line) = line {
            match News::from_line(line) {
                Some(news) => news.tell(report),
                None => tracing::warn!(line, "the writer of images says"),
            }
        }
    })?;
    answer(&finished)
}

fn answer(finished: &Finished) -> Result<Written, WorkerError> {
    // What the allocator says when there is no more memory, of which there is enough for all
    // that is within the limits.
    let out_of_memory = finished.status.signal() == Some(libc::SIGABRT)
        && finished.tail.contains("memory allocation of");
    match Answer::from_json(&finished.stdout) {
        Some(Answer::Written(written)) if finished.status.success() => Ok(written),
        Some(Answer::Refused(refused)) => Err(refused.into()),
        None if out_of_memory => Err(Refused {
            fault: Fault::Image,
            message: TOO_MANY.to_owned(),
            cause: None,
        }
        .into()),
        _ => Err(WorkerError::Died {
            status: finished.status,
            last: io::Error::other(finished.tail.clone()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_memory_left_is_the_image_s_fault_and_any_other_end_is_not() {
        let ended = |signal, tail: &str| {
            answer(&Finished {
                status: ExitStatus::from_raw(signal),
                stdout: Vec::new(),
                tail: tail.to_owned(),
            })
            .unwrap_err()
        };
        let told = "memory allocation of 1073741824 bytes failed";
        let error = ended(libc::SIGABRT, told);
        assert!(error.is_of_the_image(), "{error:?}");
        assert_eq!(error.to_string(), TOO_MANY);
        for (signal, tail) in [(libc::SIGABRT, "a bug"), (libc::SIGKILL, told)] {
            assert!(!ended(signal, tail).is_of_the_image());
        }
    }
}
