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

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::deb::Control;
use crate::ext4::{ImageOptions, RootfsWriter as _, WriteError};
use crate::kernel::hex;
use crate::process::{Finished, Run, RunError, find_program};
use crate::progress::{Cancel, Cancelled, Report};
use crate::sources::{self, Entry};
use crate::tar::Limits;
use crate::tree::{self, Meta, ReadError, Tree};
use crate::{ext4, tree::Kind};

/// Below the destination; gone at the end.
const WORK: &str = ".suite";
const TICK: Duration = Duration::from_millis(500);
/// Between TERM and KILL: mounts and processes end with the namespaces, so little is enough.
const JAIL_GRACE: Duration = Duration::from_millis(300);
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
        if source.kind() == io::ErrorKind::StorageFull {
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

/// Builds a suite's root into `dest/rootfs.ext4`. Nothing is left in `dest` when it fails.
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
    jail.remove(&work);
    if built.is_err() {
        let _ = std::fs::remove_file(dest.join("rootfs.ext4"));
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
    let sources = [spool];
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
    let options = ImageOptions {
        size_bytes: spec
            .size_bytes
            .unwrap_or_else(|| ext4::roomy_size(&tree))
            .next_multiple_of(4096),
        label: Some("root".to_owned()),
        uuid: None,
        epoch: ext4::now(),
        read_only: false,
        sync: spec.sync,
    };
    let image = dest.join("rootfs.ext4");
    ext4::InProcess.write(&tree, &sources, &image, &options, cancel, report)?;
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

/// How mmdebstrap is kept apart: which namespaces this user can have.
struct Jail {
    /// Arguments of `unshare`; empty where there are no namespaces to be had.
    wrapper: Vec<&'static str>,
}

impl Jail {
    fn probe(cancel: &Cancel) -> Result<Jail, SuiteError> {
        for program in ["mmdebstrap", "unshare", "tar"] {
            if find_program(program).is_none() {
                return Err(RunError::Missing {
                    program: program.to_owned(),
                }
                .into());
            }
        }
        const COMMON: [&str; 5] = [
            "--mount",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "--mount-proc",
        ];
        if rustix::process::geteuid().is_root() {
            let jail = Jail {
                wrapper: COMMON.to_vec(),
            };
            // In a container that may not mount, mmdebstrap makes do without.
            return match jail.try_out(cancel)? {
                None => Ok(jail),
                Some(_) => Ok(Jail {
                    wrapper: Vec::new(),
                }),
            };
        }
        if find_program("newuidmap").is_none() || find_program("newgidmap").is_none() {
            return Err(SuiteError::NoTool {
                what:
                    "newuidmap is not installed, which building an image as an ordinary user needs"
                        .to_owned(),
                hint: "sudo apt install uidmap",
            });
        }
        for file in ["/etc/subuid", "/etc/subgid"] {
            if !has_range(file) {
                return Err(SuiteError::NoTool {
                    what: format!("{file} has no range of ids for this user"),
                    hint: "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 \"$USER\"",
                });
            }
        }
        let mut wrapper = vec!["--user", "--map-root-user", "--map-auto"];
        wrapper.extend(COMMON);
        let jail = Jail { wrapper };
        match jail.try_out(cancel)? {
            None => Ok(jail),
            Some(why) => Err(SuiteError::NoTool {
                what: format!("this user cannot make user namespaces: {why}"),
                hint: "allow user namespaces (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces), or build as root",
            }),
        }
    }

    /// `None` when the namespaces can be had, else what was said.
    fn try_out(&self, cancel: &Cancel) -> Result<Option<String>, SuiteError> {
        let mut run = Run::new("unshare", cancel)?;
        run.command().args(&self.wrapper).args(["--", "true"]);
        let finished = run.quietly()?;
        Ok((!finished.status.success()).then_some(finished.tail))
    }

    fn run<'a>(&self, program: &str, cancel: &'a Cancel) -> Result<Run<'a>, RunError> {
        if self.wrapper.is_empty() {
            return Run::new(program, cancel);
        }
        let mut run = Run::new("unshare", cancel)?;
        run.command().args(&self.wrapper).arg("--").arg(program);
        Ok(run.grace(JAIL_GRACE))
    }

    /// Removes a directory with files of mapped owners, which the user alone could not. Best
    /// effort: the caller's staging directory is swept again anyway.
    fn remove(&self, work: &Path) {
        if std::fs::remove_dir_all(work).is_ok() || !work.exists() {
            return;
        }
        let Ok(cancel) = Cancel::new() else { return };
        if let Ok(mut run) = self.run("rm", &cancel) {
            run.command().args(["-rf", "--"]).arg(work);
            if let Err(error) = run.quietly() {
                tracing::warn!(work = %work.display(), %error, "cannot remove what mmdebstrap left");
            }
        }
    }
}

/// Whether a file of subordinate ids has a usable range for this user, by name or number.
fn has_range(file: &str) -> bool {
    let uid = rustix::process::getuid().as_raw();
    let name = user_name(uid);
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().any(|line| {
        let mut fields = line.split(':');
        let (Some(who), Some(_), Some(count)) = (fields.next(), fields.next(), fields.next())
        else {
            return false;
        };
        let ours = name.as_deref() == Some(who) || who == uid.to_string();
        ours && count
            .trim()
            .parse::<u64>()
            .is_ok_and(|count| count >= 65_535)
    })
}

fn user_name(uid: u32) -> Option<String> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    let found = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid.to_string()).then(|| name.to_owned())
    });
    // A directory service's users are not in the file.
    found.or_else(|| std::env::var("USER").ok())
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

fn run_mmdebstrap(
    spec: &SuiteSpec,
    entries: &[Entry],
    jail: &Jail,
    work: &Path,
    tar: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<(), SuiteError> {
    let temporary = work.join("tmp");
    std::fs::create_dir(&temporary).map_err(io_error(format!("make {}", temporary.display())))?;
    let list = work.join("sources.list");
    let text: String = entries.iter().map(|entry| entry.line() + "\n").collect();
    std::fs::write(&list, text).map_err(io_error(format!("write {}", list.display())))?;
    let input = File::open(&list).map_err(io_error(format!("open {}", list.display())))?;
    let output = File::create(tar).map_err(io_error(format!("make {}", tar.display())))?;
    report.stage("package_lists", &spec.suite);
    let mut run = jail.run("mmdebstrap", cancel)?;
    let command = run.command();
    command.env("TMPDIR", &temporary).current_dir(work);
    command.args([
        "--verbose",
        "--mode=root",
        "--variant=apt",
        "--format=tar",
        "--components=main",
    ]);
    for setting in sources::transport_settings(cancel) {
        command.arg(format!("--aptopt={setting}"));
    }
    for option in [
        "Acquire::Languages \"none\"",
        "Acquire::http::Timeout \"60\"",
        "Acquire::https::Timeout \"60\"",
        "Acquire::Retries \"3\"",
        "Dpkg::Progress-Fancy \"0\"",
    ] {
        command.arg(format!("--aptopt={option}"));
    }
    for option in DPKG_OPTIONS {
        command.arg(format!("--dpkgopt={option}"));
    }
    // A root that a crash cuts short is thrown away: nothing in it needs to be on the disk.
    command.arg("--dpkgopt=force-unsafe-io");
    if !spec.packages.is_empty() {
        command.arg(format!("--include={}", spec.packages.join(",")));
    }
    command.arg(&spec.suite).arg("-").arg("-");
    let mut progress = Progress {
        spec,
        report,
        temporary,
        tar: tar.to_owned(),
        stage: Stage::Lists,
        total: None,
    };
    let finished = run
        .stdin_from(input)
        .stdout_to(output)
        .tick(TICK)
        .watch(&mut |line| progress.hear(line));
    let finished = finished?;
    check(&finished)
}

fn check(finished: &Finished) -> Result<(), SuiteError> {
    if finished.status.success() {
        return Ok(());
    }
    if finished.tail.contains("No space left on device")
        || finished.tail.contains("enough free space")
    {
        return Err(SuiteError::NoSpace);
    }
    Err(SuiteError::Failed {
        log: finished.tail.clone(),
    })
}

/// Documentation stays out, licences stay in, as in other small images.
const DPKG_OPTIONS: [&str; 8] = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/groff/*",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Lists,
    Packages,
    Install,
    Tar,
}

/// Tells stages by mmdebstrap's own lines, and bytes by the files that grow.
struct Progress<'a> {
    spec: &'a SuiteSpec,
    report: &'a dyn Report,
    temporary: PathBuf,
    tar: PathBuf,
    stage: Stage,
    total: Option<u64>,
}

impl Progress<'_> {
    fn hear(&mut self, line: Option<&str>) {
        let Some(line) = line else {
            self.tell_bytes();
            return;
        };
        self.report.log(line);
        if let Some(text) = line.strip_prefix("I: ") {
            let next = match text {
                _ if text.starts_with("downloading packages") => {
                    Some((Stage::Packages, "download"))
                }
                _ if text.starts_with("extracting archives") => Some((Stage::Install, "extract")),
                _ if text.starts_with("installing essential") => Some((Stage::Install, "install")),
                _ if text.starts_with("installing remaining") => {
                    Some((Stage::Packages, "packages"))
                }
                _ if text.starts_with("creating tarball") => Some((Stage::Tar, "pack")),
                _ => None,
            };
            if let Some((stage, name)) = next {
                self.stage = stage;
                self.total = None;
                self.report.stage(name, &self.spec.suite);
            }
        } else if let Some(size) = needed_bytes(line) {
            self.total = Some(size);
        }
    }

    fn tell_bytes(&self) {
        match self.stage {
            Stage::Lists => self.report.bytes(self.below("var/lib/apt/lists"), None),
            Stage::Packages => {
                let done = self.below("var/cache/apt/archives");
                self.report
                    .bytes(self.total.map_or(done, |total| done.min(total)), self.total);
            }
            Stage::Install => {}
            Stage::Tar => {
                let done = std::fs::metadata(&self.tar).map_or(0, |stat| stat.len());
                self.report.bytes(done, None);
            }
        }
    }

    /// Bytes in a directory of the root that is being made, as far as they can be seen.
    fn below(&self, path: &str) -> u64 {
        let roots = std::fs::read_dir(&self.temporary).into_iter().flatten();
        let mut sum = 0;
        for root in roots.filter_map(Result::ok) {
            for dir in [
                root.path().join(path),
                root.path().join(path).join("partial"),
            ] {
                for file in std::fs::read_dir(dir)
                    .into_iter()
                    .flatten()
                    .filter_map(Result::ok)
                {
                    sum += file
                        .metadata()
                        .map_or(0, |stat| if stat.is_file() { stat.len() } else { 0 });
                }
            }
        }
        sum
    }
}

/// `Need to get 34.2 MB of archives.`, or `12.1 MB/34.2 MB`.
fn needed_bytes(line: &str) -> Option<u64> {
    let rest = line.strip_prefix("Need to get ")?;
    let amount = rest.split(" of archives").next()?;
    let amount = amount.rsplit('/').next()?;
    let (number, unit) = amount.split_once(' ')?;
    let number: f64 = number.replace(',', "").parse().ok()?;
    let scale = match unit {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return None,
    };
    // A size of packages is far below where this would lose bytes.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Some((number * scale) as u64)
}

/// An installed package.
struct Package {
    name: String,
    arch: String,
    line: String,
}

/// Installed packages, sorted.
fn package_list(status: &str) -> Vec<Package> {
    let mut packages: Vec<Package> = status
        .split("\n\n")
        .filter_map(|paragraph| {
            let control = Control::parse(paragraph);
            if !control.get("status")?.ends_with(" installed") {
                return None;
            }
            let (name, version) = (control.get("package")?, control.get("version")?);
            let arch = control.get("architecture")?;
            Some(Package {
                name: name.to_owned(),
                arch: arch.to_owned(),
                line: format!("{name}:{arch}={version}"),
            })
        })
        .collect();
    packages.sort_by(|a, b| a.line.cmp(&b.line));
    packages
}

/// The architecture of dpkg itself is the image's.
fn native_arch(tree: &Tree, packages: &[Package]) -> String {
    let dpkg = packages.iter().find(|package| package.name == "dpkg");
    dpkg.map_or_else(
        || {
            if tree.find("lib64").is_some() {
                "amd64".to_owned()
            } else {
                "unknown".to_owned()
            }
        },
        |package| package.arch.clone(),
    )
}

/// Takes out what is the build's or the host's, and puts in what the image needs to go on.
fn finish(tree: &mut Tree, entries: &[Entry], sources: &[File]) -> Result<(), &'static str> {
    let now = i64::from(ext4::now());
    for path in [
        "etc/hostname",
        "etc/resolv.conf",
        "etc/apt/sources.list",
        "etc/apt/apt.conf.d/99mmdebstrap",
        "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
        "var/lib/dbus/machine-id",
        "var/lib/systemd/random-seed",
        "var/cache/debconf/config.dat-old",
        "var/cache/debconf/templates.dat-old",
        "var/lib/dpkg/status-old",
        "var/lib/dpkg/available-old",
        "var/cache/ldconfig/aux-cache",
    ] {
        tree.remove(path);
    }
    for path in [
        "var/cache/apt",
        "var/lib/apt/lists",
        "var/log/apt",
        "tmp",
        "var/tmp",
        "run",
    ] {
        tree.clear(path);
    }
    for path in [
        "var/log/dpkg.log",
        "var/log/alternatives.log",
        "var/log/bootstrap.log",
    ] {
        tree.remove(path);
    }
    for path in [
        "var/cache/apt/archives/partial",
        "var/lib/apt/lists/partial",
    ] {
        tree.make(
            path,
            Meta::root(0o755, now),
            Kind::Directory(Default::default()),
        )?;
    }
    // Empty, not missing: systemd then takes one per machine and calls nothing a first boot.
    tree.write_file("etc/machine-id", Meta::root(0o444, now), b"")?;
    let excludes = DPKG_OPTIONS.join("\n") + "\n";
    tree.write_file(
        "etc/dpkg/dpkg.cfg.d/50-no-documentation",
        Meta::root(0o644, now),
        excludes.as_bytes(),
    )?;
    // The keys are in the image by apt's own dependency; the host's paths may not be.
    let keyring = tree
        .find("usr/share/keyrings/debian-archive-keyring.gpg")
        .is_some();
    let mut list = String::new();
    for entry in entries {
        let mut entry = entry.without_credentials();
        let in_image = entry
            .signed_by
            .as_deref()
            .is_some_and(|path| path.starts_with('/') && tree.find(path).is_some());
        if !in_image {
            entry.signed_by =
                keyring.then(|| "/usr/share/keyrings/debian-archive-keyring.gpg".to_owned());
        }
        // Files and mirror lists of the host are not there.
        if !entry.uri.starts_with("http") {
            let archive = if entry.is_security() {
                "debian-security"
            } else {
                "debian"
            };
            entry.uri = format!("http://deb.debian.org/{archive}");
        }
        list.push_str(&entry.line());
        list.push('\n');
    }
    tree.write_file(
        "etc/apt/sources.list",
        Meta::root(0o644, now),
        list.as_bytes(),
    )?;
    if tree
        .read("etc/hosts", sources, 1 << 16)
        .ok()
        .flatten()
        .is_none()
    {
        tree.write_file(
            "etc/hosts",
            Meta::root(0o644, now),
            b"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_says_how_much_it_needs() {
        assert_eq!(
            needed_bytes("Need to get 34.2 MB of archives."),
            Some(34_200_000)
        );
        assert_eq!(
            needed_bytes("Need to get 512 B/34.2 kB of archives."),
            Some(34_200)
        );
        assert_eq!(
            needed_bytes("Need to get 1,234 kB of archives."),
            Some(1_234_000)
        );
        assert_eq!(needed_bytes("Get:1 http://x"), None);
    }

    #[test]
    fn only_installed_packages_count() {
        let status = "Package: b\nStatus: install ok installed\nArchitecture: all\nVersion: 2\n\nPackage: c\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n\nPackage: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n";
        let lines: Vec<String> = package_list(status)
            .into_iter()
            .map(|package| package.line)
            .collect();
        assert_eq!(lines, ["a:amd64=1", "b:all=2"]);
    }

    #[test]
    fn names_that_are_options_are_refused() {
        let spec = |suite: &str, package: &str| SuiteSpec {
            suite: suite.to_owned(),
            packages: vec![package.to_owned()],
            size_bytes: None,
            sync: false,
        };
        assert!(check_names(&spec("bookworm", "jq")).is_ok());
        assert!(check_names(&spec("--x", "jq")).is_err());
        assert!(check_names(&spec("bookworm", "a,b")).is_err());
        assert!(check_names(&spec("bookworm", "?x")).is_err());
    }

    #[test]
    fn nothing_of_the_host_stays_in_the_image() {
        let mut tree = Tree::new();
        for path in [
            "etc/hostname",
            "etc/resolv.conf",
            "etc/apt/apt.conf.d/99mmdebstrap",
            "var/lib/apt/lists/x_InRelease",
            "var/cache/apt/pkgcache.bin",
        ] {
            tree.write_file(path, Meta::root(0o644, 0), b"host")
                .unwrap();
        }
        let entry = Entry {
            uri: "https://me:secret@mirror.example/debian".to_owned(),
            suite: "bookworm".to_owned(),
            components: vec!["main".to_owned()],
            signed_by: Some("/home/me/key.gpg".to_owned()),
            trusted: false,
        };
        finish(&mut tree, &[entry], &[]).unwrap();
        for path in [
            "etc/hostname",
            "etc/resolv.conf",
            "etc/apt/apt.conf.d/99mmdebstrap",
            "var/lib/apt/lists/x_InRelease",
            "var/cache/apt/pkgcache.bin",
        ] {
            assert!(tree.find(path).is_none(), "{path}");
        }
        let list = tree
            .read("etc/apt/sources.list", &[], 1 << 16)
            .unwrap()
            .unwrap();
        assert_eq!(
            String::from_utf8(list).unwrap(),
            "deb https://mirror.example/debian/ bookworm main\n"
        );
        assert_eq!(
            tree.read("etc/machine-id", &[], 10).unwrap(),
            Some(Vec::new())
        );
    }
}
