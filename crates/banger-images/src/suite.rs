//! A Debian root of a suite, by mmdebstrap from the host's own entries.
//!
//! ```text
//! mmdebstrap ─ tar ─► dest/.suite/root.tar ─► tree ─ our own touches ─► ext4 (the caller's)
//! ```
//!
//! Owns the run of mmdebstrap, as root or as an ordinary user, in namespaces of its own, so that
//! no mount and no process outlives it; and the last touches: nothing of the host's (name,
//! resolver, machine id, caches) stays. The image's files are never on the host's disk but in
//! one tar file.

mod jail;
mod mmdebstrap;
mod touches;

use std::fs::File;
use std::io;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::ext4;
use crate::ext4::{ImageOptions, RootFiles, WriteError};
use crate::kernel::hex;
use crate::process::RunError;
use crate::progress::{Cancel, Cancelled, Report};
use crate::sources::{self, Entry};
use crate::tar::Limits;
use crate::tree::{self, ReadError, Source};

use jail::Jail;
pub use jail::remove;
use mmdebstrap::run_mmdebstrap;
use touches::{finish, native_arch, package_list};

/// Below the destination; gone at the end.
const WORK: &str = ".suite";
const STATUS_LIMIT: u64 = 64 << 20;

/// What the default image has beside the essential packages and apt.
pub const DEFAULT_PACKAGES: [&str; 16] = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "kmod",
    "passwd",
    "login",
    "libkmod2",
    "procps",
    "iproute2",
    "less",
    "vim-tiny",
    "git",
    "curl",
    "jq",
    "tmux",
    "ca-certificates",
];

/// A root could not be built.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// A program, or a right, is missing.
    #[error("{what}")]
    NoTool {
        /// What is missing.
        what: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The host names no archive of Debian's.
    #[error("the host's apt sources name no Debian archive")]
    NoSources,
    /// A suite or package name that cannot be one.
    #[error("{name:?} is not a name of a {what}")]
    BadName {
        /// As it was given.
        name: String,
        /// Of what.
        what: &'static str,
    },
    /// mmdebstrap failed; its log went to the report.
    #[error("mmdebstrap failed: {log}")]
    Failed {
        /// Its last lines.
        log: String,
    },
    /// The host's disk is full.
    #[error("no space to build the image")]
    NoSpace,
    /// Our own files.
    #[error("cannot {action}")]
    Io {
        /// What was done.
        action: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What it made cannot be read.
    #[error("cannot read what mmdebstrap made")]
    Read(#[source] ReadError),
    /// The image cannot be written.
    #[error(transparent)]
    Write(WriteError),
    /// The caller cancelled; nothing is left.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl From<ReadError> for SuiteError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Cancelled(cancelled) => cancelled.into(),
            other => SuiteError::Read(other),
        }
    }
}

impl From<WriteError> for SuiteError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Cancelled(cancelled) => cancelled.into(),
            error if error.is_no_space() => SuiteError::NoSpace,
            other => SuiteError::Write(other),
        }
    }
}

impl From<RunError> for SuiteError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Missing { program } => SuiteError::NoTool {
                hint: if program == "mmdebstrap" {
                    "sudo apt install mmdebstrap"
                } else {
                    "sudo apt install util-linux"
                },
                what: format!("{program} is not installed"),
            },
            RunError::Io { program, source } => SuiteError::Io {
                action: format!("run {program}"),
                source,
            },
            RunError::Cancelled(cancelled) => cancelled.into(),
        }
    }
}

fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> SuiteError {
    let action = action.into();
    move |source| {
        if crate::is_full(&source) {
            return SuiteError::NoSpace;
        }
        SuiteError::Io { action, source }
    }
}

/// What to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuiteSpec {
    /// `bookworm`, `trixie`.
    pub suite: String,
    /// Beside the essential ones and apt; see [`DEFAULT_PACKAGES`].
    pub packages: Vec<String>,
    /// Size of the image; what [`ext4::roomy_size`] says when absent.
    pub size_bytes: Option<u64>,
    /// Whether the image must be on the disk before this returns.
    pub sync: bool,
}

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuiteInfo {
    /// Debian's name of the architecture.
    pub arch: String,
    /// `debian`.
    pub distro: String,
    /// The suite.
    pub suite: String,
    /// Size of the image in bytes; its file is sparse.
    pub size_bytes: u64,
    /// Bytes of its content.
    pub content_bytes: u64,
    /// SHA-256 of the sorted `package=version` lines.
    pub packages_sha256: String,
    /// Number of packages.
    pub packages: usize,
}

/// Builds a suite's root into [`ext4::ROOTFS`] and [`ext4::SEED`] of `dest`. Nothing is left in `dest` when it fails.
///
/// # Errors
/// See [`SuiteError`].
pub fn build(
    spec: &SuiteSpec,
    dest: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<SuiteInfo, SuiteError> {
    check_names(spec)?;
    let entries = sources::for_suite(&sources::of_host(), &spec.suite);
    if entries.is_empty() {
        return Err(SuiteError::NoSources);
    }
    let jail = Jail::probe(cancel)?;
    let work = dest.join(WORK);
    std::fs::create_dir(&work).map_err(io_error(format!("make {}", work.display())))?;
    let built = in_work(spec, &entries, &jail, &work, dest, cancel, report);
    if let Err(error) = jail::remove(&work) {
        tracing::warn!(work = %work.display(), %error, "cannot remove what mmdebstrap left");
    }
    if built.is_err() {
        RootFiles::keep(dest, false, false);
    }
    built
}

fn in_work(
    spec: &SuiteSpec,
    entries: &[Entry],
    jail: &Jail,
    work: &Path,
    dest: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<SuiteInfo, SuiteError> {
    let tar = work.join("root.tar");
    run_mmdebstrap(spec, entries, jail, work, &tar, cancel, report)?;
    report.stage("read_root", &spec.suite);
    let spool = File::open(&tar).map_err(io_error(format!("open {}", tar.display())))?;
    let mut tree = tree::from_tar(&spool, 0, &Limits::default(), cancel, report)?;
    // The open file keeps the bytes; nobody else needs its name.
    let _ = std::fs::remove_file(&tar);
    let sources = [Source::Plain(spool)];
    let status = tree
        .read("var/lib/dpkg/status", &sources, STATUS_LIMIT)
        .map_err(io_error("read the list of packages"))?
        .unwrap_or_default();
    let packages = package_list(&String::from_utf8_lossy(&status));
    let arch = native_arch(&tree, &packages);
    finish(&mut tree, entries, &sources).map_err(|why| SuiteError::Io {
        action: format!("finish the image: {why}"),
        source: io::ErrorKind::InvalidData.into(),
    })?;
    report.stage("write_image", &spec.suite);
    let options = ImageOptions::of_root(&tree, spec.size_bytes, spec.sync);
    let files = RootFiles::create(dest).map_err(io_error("make the image's files"))?;
    let root = ext4::write_root(&tree, &sources, &files, &options, cancel, report)?;
    RootFiles::keep(dest, true, root.seed);
    let lines: Vec<&str> = packages
        .iter()
        .map(|package| package.line.as_str())
        .collect();
    Ok(SuiteInfo {
        arch,
        distro: "debian".to_owned(),
        suite: spec.suite.clone(),
        size_bytes: options.size_bytes,
        content_bytes: tree.measure().0,
        packages_sha256: hex(&Sha256::digest(lines.join("\n"))),
        packages: packages.len(),
    })
}

fn check_names(spec: &SuiteSpec) -> Result<(), SuiteError> {
    let plain = |name: &str| {
        (2..=128).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && name.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte)
            })
    };
    let bad = |name: &str, what| {
        Err(SuiteError::BadName {
            name: name.to_owned(),
            what,
        })
    };
    if !plain(&spec.suite) {
        return bad(&spec.suite, "suite");
    }
    match spec.packages.iter().find(|name| !plain(name)) {
        Some(name) => bad(name, "package"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
