//! Kernel packages by the host's apt, in a state of our own.
//!
//! Owns one directory with lists, cache and configuration; the host's lists, locks and caches
//! are never touched, and none of its hooks run. From the host come Debian's entries, the keys
//! and how to reach archives. apt fetches and verifies; what it verified is returned.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::deb::Control;
use crate::process::{Finished, Run, RunError};
use crate::progress::{Cancel, Cancelled, Report};
use crate::sources;

/// Lists younger than this are not asked for again, unless something is missing.
const FRESH: Duration = Duration::from_secs(3600);
/// Metapackages on the way to a real one.
const DEPTH_LIMIT: usize = 8;
/// How often the file that grows is looked at.
const TICK: Duration = Duration::from_millis(250);

/// A package could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum AptError {
    /// A program is missing.
    #[error("{tool} is not installed")]
    NoTool {
        /// Which.
        tool: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The host names no archive of Debian's.
    #[error("the host's apt sources name no Debian archive")]
    NoSources,
    /// The archives have no such package.
    #[error("no Debian package {package}")]
    NotFound {
        /// Its name.
        package: String,
    },
    /// It is no package of a kernel.
    #[error("{package} is not a kernel package, nor depends on one")]
    NotAKernel {
        /// Its name.
        package: String,
    },
    /// An archive cannot be reached, or does not check out.
    #[error("apt cannot {action}: {log}")]
    Unreachable {
        /// What it was to do.
        action: String,
        /// Its last lines.
        log: String,
    },
    /// What it fetched is not what the archive says, or is not signed.
    #[error("apt cannot verify {what}: {log}")]
    Verify {
        /// What it was to do.
        what: String,
        /// Its last lines.
        log: String,
    },
    /// The host's disk is full.
    #[error("no space left to {what}")]
    NoSpace {
        /// What it was to do.
        what: String,
    },
    /// Our own files.
    #[error("cannot {action}")]
    Io {
        /// What was done.
        action: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl From<RunError> for AptError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Missing { program } => AptError::NoTool {
                tool: program,
                hint: "banger fetches kernels with apt: use a Debian host, or kernel import",
            },
            RunError::Io { program, source } => AptError::Io {
                action: format!("run {program}"),
                source,
            },
            RunError::Cancelled(cancelled) => AptError::Cancelled(cancelled),
        }
    }
}

fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> AptError {
    let action = action.into();
    move |source| {
        if crate::is_full(&source) {
            return AptError::NoSpace { what: action };
        }
        AptError::Io { action, source }
    }
}

/// A fetched package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The file, in the directory asked for.
    pub path: PathBuf,
    /// The real package's name.
    pub package: String,
    /// Its version.
    pub version: String,
}

/// A package that apt knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The real package's name.
    pub package: String,
    /// Its version.
    pub version: String,
    /// Bytes to fetch.
    pub size_bytes: u64,
}

/// The file in apt's directory that is locked by whoever works there. It stays.
pub const LOCK: &str = "lock";

/// apt with a state of its own. One at a time works in a directory; others wait.
#[derive(Debug)]
pub struct Apt {
    dir: PathBuf,
    _lock: File,
}

impl Apt {
    /// Sets the state up below `dir`, which is made when missing, and waits for its lock.
    ///
    /// # Errors
    /// See [`AptError`].
    pub fn open(dir: &Path, cancel: &Cancel) -> Result<Apt, AptError> {
        let entries = sources::of_host();
        if crate::process::find_program("apt-get").is_none() {
            return Err(RunError::Missing {
                program: "apt-get".to_owned(),
            }
            .into());
        }
        if entries.is_empty() {
            return Err(AptError::NoSources);
        }
        let make = |path: &Path| {
            std::fs::create_dir_all(path).map_err(io_error(format!("make {}", path.display())))
        };
        make(dir)?;
        let lock = lock(&dir.join(LOCK), cancel)?;
        // Under the lock: whoever has it may have cleared the rest away.
        make(&dir.join("lists/partial"))?;
        make(&dir.join("cache/archives/partial"))?;
        let text: String = entries.iter().map(|entry| entry.line() + "\n").collect();
        let list = dir.join("sources.list");
        // Other entries make the lists stale, however young they are.
        if std::fs::read_to_string(&list).ok().as_deref() != Some(&text) {
            let _ = std::fs::remove_file(dir.join("updated"));
            write(&list, &text)?;
        }
        write(&dir.join("status"), "")?;
        write(&dir.join("apt.conf"), &configuration(dir, cancel))?;
        Ok(Apt {
            dir: dir.to_owned(),
            _lock: lock,
        })
    }

    /// Finds the real kernel package behind a name.
    ///
    /// # Errors
    /// See [`AptError`].
    pub fn resolve(
        &self,
        package: &str,
        cancel: &Cancel,
        report: &dyn Report,
    ) -> Result<Resolved, AptError> {
        if !is_package_name(package) {
            return Err(AptError::NotFound {
                package: package.to_owned(),
            });
        }
        let mut updated = self.update_when_stale(cancel, report)?;
        report.stage("resolve", package);
        loop {
            match self.resolve_known(package, cancel) {
                Err(AptError::NotFound { .. }) if !updated => {
                    self.update(cancel, report)?;
                    updated = true;
                }
                other => return other,
            }
        }
    }

    fn resolve_known(&self, package: &str, cancel: &Cancel) -> Result<Resolved, AptError> {
        let mut name = package.to_owned();
        for _ in 0..DEPTH_LIMIT {
            let control = self
                .show(&name, cancel)?
                .ok_or_else(|| AptError::NotFound {
                    package: name.clone(),
                })?;
            // A signed one that is not there has a twin without signature.
            match self.kernel_below(&control, cancel)? {
                Some(below) => name = below,
                None if is_kernel_package(&name) => return resolved(&control, &name),
                None => {
                    return Err(AptError::NotAKernel {
                        package: package.to_owned(),
                    });
                }
            }
        }
        Err(AptError::NotAKernel {
            package: package.to_owned(),
        })
    }

    /// The kernel package a metapackage depends on, if it is one.
    fn kernel_below(&self, control: &Control, cancel: &Cancel) -> Result<Option<String>, AptError> {
        let mut missing = None;
        for name in kernels_of(control) {
            let twin = format!("{name}-unsigned");
            for candidate in [name, twin] {
                if self.show(&candidate, cancel)?.is_some() {
                    return Ok(Some(candidate));
                }
                missing.get_or_insert(candidate);
            }
        }
        match missing {
            Some(package) => Err(AptError::NotFound { package }),
            None => Ok(None),
        }
    }

    /// Fetches and verifies a resolved package into `dest`, a directory.
    ///
    /// # Errors
    /// See [`AptError`].
    pub fn fetch(
        &self,
        resolved: &Resolved,
        dest: &Path,
        cancel: &Cancel,
        report: &dyn Report,
    ) -> Result<Fetched, AptError> {
        report.stage(
            "download",
            &format!("{}={}", resolved.package, resolved.version),
        );
        let total = Some(resolved.size_bytes);
        let work = tempfile::Builder::new()
            .prefix(".apt-")
            .tempdir_in(dest)
            .map_err(io_error(format!("make a directory in {}", dest.display())))?;
        let mut run = self.run("apt-get", cancel)?;
        run.command()
            .args(["-q", "download"])
            .arg(format!("{}={}", resolved.package, resolved.version))
            .current_dir(work.path());
        let finished = run.tick(TICK).watch(&mut |line| match line {
            Some(line) => report.log(line),
            None => report.bytes(largest_file(work.path()).min(resolved.size_bytes), total),
        })?;
        let what = format!("fetch {}", resolved.package);
        check(&finished, &what)?;
        let file = std::fs::read_dir(work.path())
            .map_err(io_error(format!("read {}", work.path().display())))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|ending| ending == "deb"))
            .ok_or(AptError::Unreachable {
                action: what,
                log: finished.tail,
            })?;
        let path = dest.join("package.deb");
        std::fs::rename(&file, &path).map_err(io_error(format!("move {}", file.display())))?;
        report.bytes(resolved.size_bytes, total);
        Ok(Fetched {
            path,
            package: resolved.package.clone(),
            version: resolved.version.clone(),
        })
    }

    /// A package's control paragraph: of the version apt would install.
    fn show(&self, package: &str, cancel: &Cancel) -> Result<Option<Control>, AptError> {
        let mut run = self.run("apt-cache", cancel)?;
        run.command().args(["show", "--no-all-versions", package]);
        let finished = run.quietly()?;
        if !finished.status.success() {
            return Ok(None);
        }
        let control = Control::parse(&String::from_utf8_lossy(&finished.stdout));
        Ok(control.get("package").is_some().then_some(control))
    }

    fn update_when_stale(&self, cancel: &Cancel, report: &dyn Report) -> Result<bool, AptError> {
        let age = std::fs::metadata(self.dir.join("updated"))
            .and_then(|stat| stat.modified())
            .ok()
            .and_then(|time| SystemTime::now().duration_since(time).ok());
        if age.is_some_and(|age| age < FRESH) {
            return Ok(false);
        }
        self.update(cancel, report)?;
        Ok(true)
    }

    /// Fetches the archives' lists anew.
    ///
    /// # Errors
    /// See [`AptError`].
    pub fn update(&self, cancel: &Cancel, report: &dyn Report) -> Result<(), AptError> {
        report.stage("package_lists", "");
        let lists = self.dir.join("lists");
        let mut run = self.run("apt-get", cancel)?;
        run.command()
            .args(["-q", "update", "-o", "APT::Update::Error-Mode=any"]);
        let finished = run.tick(TICK).watch(&mut |line| match line {
            Some(line) => report.log(line),
            None => report.bytes(size_below(&lists), None),
        })?;
        check(&finished, "fetch the package lists")?;
        write(&self.dir.join("updated"), "")
    }

    fn run<'a>(&self, program: &str, cancel: &'a Cancel) -> Result<Run<'a>, AptError> {
        let mut run = Run::new(program, cancel)?;
        run.command().env("APT_CONFIG", self.dir.join("apt.conf"));
        Ok(run)
    }
}

/// Resolves and fetches in one go: the package ends up in `dest`, the state in `state`.
///
/// # Errors
/// See [`AptError`].
pub fn fetch_kernel(
    state: &Path,
    package: &str,
    dest: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Fetched, AptError> {
    let apt = Apt::open(state, cancel)?;
    let resolved = apt.resolve(package, cancel, report)?;
    match apt.fetch(&resolved, dest, cancel, report) {
        // The lists may speak of a version that the archive has replaced since.
        Err(AptError::Unreachable { .. }) => {
            apt.update(cancel, report)?;
            let resolved = apt.resolve(package, cancel, report)?;
            apt.fetch(&resolved, dest, cancel, report)
        }
        other => other,
    }
}

fn check(finished: &Finished, what: &str) -> Result<(), AptError> {
    if finished.status.success() {
        return Ok(());
    }
    let log = finished.tail.clone();
    if log.contains("No space left on device") || log.contains("enough free space") {
        return Err(AptError::NoSpace {
            what: what.to_owned(),
        });
    }
    let unverified = [
        "not signed",
        "signatures",
        "Hash Sum mismatch",
        "NO_PUBKEY",
        "unauthenticated",
    ];
    if unverified.iter().any(|word| log.contains(word)) {
        return Err(AptError::Verify {
            what: what.to_owned(),
            log,
        });
    }
    Err(AptError::Unreachable {
        action: what.to_owned(),
        log,
    })
}

/// A configuration that takes from the host only how to reach archives.
fn configuration(dir: &Path, cancel: &Cancel) -> String {
    let mut lines = sources::transport_settings(cancel);
    let dir = dir.display();
    lines.extend([
        // Neither the host's parts, with their hooks, nor its main file.
        r#"Dir::Etc::parts "/dev/null";"#.to_owned(),
        r#"Dir::Etc::main "/dev/null";"#.to_owned(),
        r#"Dir::Etc::sourceparts "/dev/null";"#.to_owned(),
        format!(r#"Dir::Etc::sourcelist "{dir}/sources.list";"#),
        r#"Dir::Etc::preferences "/dev/null";"#.to_owned(),
        r#"Dir::Etc::preferencesparts "/dev/null";"#.to_owned(),
        format!(r#"Dir::State "{dir}";"#),
        format!(r#"Dir::State::lists "{dir}/lists";"#),
        format!(r#"Dir::State::status "{dir}/status";"#),
        format!(r#"Dir::State::extended_states "{dir}/extended_states";"#),
        format!(r#"Dir::Cache "{dir}/cache";"#),
        format!(r#"Dir::Log "{dir}";"#),
        r#"APT::Sandbox::User "root";"#.to_owned(),
        r#"Acquire::Languages "none";"#.to_owned(),
        r#"Acquire::http::Timeout "60";"#.to_owned(),
        r#"Acquire::https::Timeout "60";"#.to_owned(),
        r#"Acquire::Retries "3";"#.to_owned(),
        r#"Dir::Cache::srcpkgcache "";"#.to_owned(),
    ]);
    lines.join("\n") + "\n"
}

/// Whether a name is one that a package may have: it goes to a command line.
fn is_package_name(name: &str) -> bool {
    (2..=128).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte)
        })
}

/// `linux-image-` and a version: what holds a kernel itself.
fn is_kernel_package(name: &str) -> bool {
    name.strip_prefix("linux-image-")
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Names of kernel packages in `Depends`, signed ones first.
fn kernels_of(control: &Control) -> Vec<String> {
    let depends = control.get("depends").unwrap_or_default();
    let mut names: Vec<String> = depends
        .split([',', '|'])
        .filter_map(|one| {
            let name = one.split_whitespace().next()?.split(':').next()?;
            (is_kernel_package(name) && is_package_name(name)).then(|| name.to_owned())
        })
        .collect();
    names.sort_by_key(|name| name.ends_with("-unsigned"));
    names
}

fn resolved(control: &Control, name: &str) -> Result<Resolved, AptError> {
    let field = |field: &str| {
        control.get(field).ok_or_else(|| AptError::NotFound {
            package: name.to_owned(),
        })
    };
    Ok(Resolved {
        package: field("package")?.to_owned(),
        version: field("version")?.to_owned(),
        size_bytes: field("size")?.parse().unwrap_or(0),
    })
}

fn write(path: &Path, text: &str) -> Result<(), AptError> {
    std::fs::write(path, text).map_err(io_error(format!("write {}", path.display())))
}

/// Waits for a lock that another process or task may hold.
fn lock(path: &Path, cancel: &Cancel) -> Result<File, AptError> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .map_err(io_error(format!("open {}", path.display())))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                // Nothing tells of a released lock but taking it, and that cannot be cancelled.
                let mut fds = [PollFd::new(cancel, PollFlags::IN)];
                let pause = Timespec {
                    tv_sec: 0,
                    tv_nsec: 200_000_000,
                };
                let _ = poll(&mut fds, Some(&pause));
                cancel.check()?;
            }
            Err(TryLockError::Error(source)) => {
                return Err(io_error(format!("lock {}", path.display()))(source));
            }
        }
    }
}

fn largest_file(dir: &Path) -> u64 {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()))
        .max()
        .unwrap_or(0)
}

/// Bytes of files in a directory and those in it.
fn size_below(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let stat = entry.metadata().ok()?;
            Some(if stat.is_dir() {
                size_below(&entry.path())
            } else {
                stat.len()
            })
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metapackage_names_its_kernel_in_depends() {
        let control = |depends: &str| Control::parse(&format!("Package: x\nDepends: {depends}\n"));
        assert_eq!(
            kernels_of(&control("linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)")),
            ["linux-image-6.1.0-56-cloud-amd64"]
        );
        assert_eq!(
            kernels_of(&control(
                "linux-base, linux-image-6.12-x-unsigned | linux-image-6.12-x"
            )),
            ["linux-image-6.12-x", "linux-image-6.12-x-unsigned"]
        );
        assert!(
            kernels_of(&control(
                "kmod, linux-base (>= 4.3~), initramfs-tools | linux-initramfs-tool"
            ))
            .is_empty()
        );
    }

    #[test]
    fn names_that_are_options_or_paths_are_no_packages() {
        for bad in ["-o", "a", "a b", "../x", "Linux", "x=1", ""] {
            assert!(!is_package_name(bad), "{bad:?}");
        }
        assert!(is_package_name("linux-image-6.12.117+deb12-cloud-amd64"));
    }
}
