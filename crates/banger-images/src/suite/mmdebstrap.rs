//! The run of mmdebstrap: its arguments, and what its lines and files tell of its progress.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::jail::Jail;
use super::{SuiteError, SuiteSpec, io_error};
use crate::process::Finished;
use crate::progress::{Cancel, Report};
use crate::sources::{self, Entry};

const TICK: Duration = Duration::from_millis(500);

pub(super) fn run_mmdebstrap(
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
pub(super) const DPKG_OPTIONS: [&str; 8] = [
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
pub(super) fn needed_bytes(line: &str) -> Option<u64> {
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
