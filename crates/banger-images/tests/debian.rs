//! Suites and kernels from real archives. These need the network and minutes, so they run only
//! with `BANGER_TEST_NET=1`, as the end-to-end suite sets it.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use banger_images::apt::{self, Apt, AptError};
use banger_images::suite::{self, DEFAULT_PACKAGES, SuiteError, SuiteSpec};
use banger_images::{Cancel, Report};

fn wanted() -> bool {
    let wanted = std::env::var_os("BANGER_TEST_NET").is_some();
    if !wanted {
        eprintln!("skipped: BANGER_TEST_NET is not set");
    }
    wanted
}

/// Where things are kept for a look, or a directory that goes away.
fn place(name: &str) -> (PathBuf, Option<tempfile::TempDir>) {
    if let Some(keep) = std::env::var_os("BANGER_TEST_KEEP") {
        let path = PathBuf::from(keep).join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        return (path, None);
    }
    let dir = tempfile::tempdir().unwrap();
    (dir.path().to_owned(), Some(dir))
}

/// Hears everything; throws a switch at a stage.
#[derive(Default)]
struct Heard {
    lines: Mutex<Vec<String>>,
    bytes: Mutex<u64>,
    thrown: Mutex<Option<Instant>>,
    at: Option<(String, Cancel)>,
}

impl Report for Heard {
    fn stage(&self, stage: &str, detail: &str) {
        self.lines
            .lock()
            .unwrap()
            .push(format!("== {stage} {detail}"));
        if let Some((at, cancel)) = &self.at
            && at == stage
        {
            *self.thrown.lock().unwrap() = Some(Instant::now());
            cancel.cancel();
        }
    }
    fn part(&self, _: &str, _: u64, _: u64) {}
    fn bytes(&self, done: u64, total: Option<u64>) {
        assert!(
            total.is_none_or(|total| done <= total),
            "{done} of {total:?}"
        );
        let mut bytes = self.bytes.lock().unwrap();
        *bytes = done.max(*bytes);
    }
    fn log(&self, line: &str) {
        self.lines.lock().unwrap().push(line.to_owned());
    }
}

fn fsck(image: &Path) {
    let output = Command::new("/usr/sbin/e2fsck")
        .args(["-fn"])
        .arg(image)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

fn spec(suite: &str, packages: &[&str]) -> SuiteSpec {
    SuiteSpec {
        suite: suite.to_owned(),
        packages: packages.iter().map(|name| (*name).to_owned()).collect(),
        size_bytes: None,
        sync: false,
    }
}

fn mounts() -> usize {
    std::fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .count()
}

#[test]
fn the_default_image_of_each_suite_is_clean_and_has_nothing_of_the_host() {
    if !wanted() {
        return;
    }
    let suites =
        std::env::var("BANGER_TEST_SUITES").unwrap_or_else(|_| "bookworm trixie".to_owned());
    for name in suites.split(' ') {
        let (dest, _gone) = place(name);
        let heard = Heard::default();
        let began = Instant::now();
        let info = suite::build(
            &spec(name, &DEFAULT_PACKAGES),
            &dest,
            &Cancel::new().unwrap(),
            &heard,
        )
        .unwrap_or_else(|error| panic!("{error:?}\n{:#?}", heard.lines.lock().unwrap()));
        eprintln!("{name}: {info:?} in {:?}", began.elapsed());
        let left: Vec<_> = std::fs::read_dir(&dest)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["rootfs.ext4"]);
        let image = dest.join("rootfs.ext4");
        fsck(&image);
        assert!(*heard.bytes.lock().unwrap() > 50 << 20, "bytes were told");
        let debugfs = |command: &str| {
            let output = Command::new("/usr/sbin/debugfs")
                .args(["-R", command])
                .arg(&image)
                .output()
                .unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let list = debugfs("cat /etc/apt/sources.list");
        assert_eq!(list.lines().count(), 3, "{list}");
        assert!(
            list.lines()
                .all(|line| line.contains(name) && line.contains("debian-archive-keyring"))
        );
        assert!(debugfs("stat /etc/hostname").is_empty());
        assert!(debugfs("stat /etc/resolv.conf").is_empty());
        assert!(debugfs("stat /etc/machine-id").contains("Size: 0"));
        assert!(
            debugfs("stat /usr/sbin/init").contains("symlink")
                || debugfs("stat /sbin/init").contains("symlink")
        );
        assert!(
            debugfs("stat /etc/shadow").contains("Group:    42"),
            "ids are the image's own"
        );
    }
}

#[test]
fn a_cancelled_build_leaves_no_file_no_mount_and_no_process() {
    if !wanted() {
        return;
    }
    for stage in [
        "package_lists",
        "download",
        "extract",
        "install",
        "packages",
        "pack",
        "write_image",
    ] {
        let (dest, _gone) = place("cancelled");
        let before = mounts();
        let cancel = Cancel::new().unwrap();
        let heard = Heard {
            at: Some((stage.to_owned(), cancel.clone())),
            ..Heard::default()
        };
        let error = suite::build(&spec("bookworm", &["jq"]), &dest, &cancel, &heard).unwrap_err();
        assert!(
            matches!(error, SuiteError::Cancelled(_)),
            "{stage}: {error:?}"
        );
        let took = heard.thrown.lock().unwrap().unwrap().elapsed();
        eprintln!("cancelled at {stage}, over after {took:?}");
        assert!(took < Duration::from_secs(15), "{stage}: {took:?}");
        assert_eq!(std::fs::read_dir(&dest).unwrap().count(), 0, "{stage}");
        assert_eq!(mounts(), before, "{stage}");
        let path = dest.to_str().unwrap();
        let busy = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let command = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            command.contains(path).then_some(command)
        });
        assert_eq!(busy.collect::<Vec<_>>(), Vec::<String>::new(), "{stage}");
    }
}

#[test]
fn a_suite_or_package_that_does_not_exist_fails_with_mmdebstraps_words() {
    if !wanted() {
        return;
    }
    let (dest, _gone) = place("wrong");
    let heard = Heard::default();
    let error = suite::build(
        &spec("nosuchsuite", &[]),
        &dest,
        &Cancel::new().unwrap(),
        &heard,
    )
    .unwrap_err();
    assert!(
        matches!(&error, SuiteError::Failed { log } if log.contains("nosuchsuite")),
        "{error:?}"
    );
    assert_eq!(std::fs::read_dir(&dest).unwrap().count(), 0);
}

#[test]
fn apt_finds_the_kernel_behind_a_metapackage_and_fetches_it() {
    if !wanted() {
        return;
    }
    let (state, _gone) = place("apt");
    let cancel = Cancel::new().unwrap();
    let heard = Heard::default();
    let fetched = apt::fetch_kernel(&state, "linux-image-cloud-amd64", &state, &cancel, &heard)
        .unwrap_or_else(|error| panic!("{error:?}\n{:#?}", heard.lines.lock().unwrap()));
    assert!(fetched.package.starts_with("linux-image-6."), "{fetched:?}");
    let mut deb =
        banger_images::deb::Deb::open(std::fs::File::open(&fetched.path).unwrap()).unwrap();
    let control = deb.control().unwrap();
    assert_eq!(control.get("package"), Some(fetched.package.as_str()));
    assert_eq!(control.get("version"), Some(fetched.version.as_str()));
    assert!(*heard.bytes.lock().unwrap() > 10 << 20);

    let apt = Apt::open(&state, &cancel).unwrap();
    let began = Instant::now();
    let newer = apt
        .resolve("linux-image-6.12-cloud-amd64", &cancel, &heard)
        .unwrap();
    assert!(newer.package.starts_with("linux-image-6.12."), "{newer:?}");
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "the lists are fresh"
    );
    let error = apt
        .resolve("linux-image-nosuch", &cancel, &heard)
        .unwrap_err();
    assert!(
        matches!(&error, AptError::NotFound { package } if package == "linux-image-nosuch"),
        "{error:?}"
    );
    let error = apt.resolve("bash", &cancel, &heard).unwrap_err();
    assert!(matches!(error, AptError::NotAKernel { .. }), "{error:?}");
}

#[test]
fn a_cancelled_download_leaves_no_package() {
    if !wanted() {
        return;
    }
    let (state, _gone) = place("apt-cancelled");
    let dest = state.join("dest");
    std::fs::create_dir(&dest).unwrap();
    let cancel = Cancel::new().unwrap();
    let heard = Heard {
        at: Some(("download".to_owned(), cancel.clone())),
        ..Heard::default()
    };
    let error =
        apt::fetch_kernel(&state, "linux-image-cloud-amd64", &dest, &cancel, &heard).unwrap_err();
    assert!(matches!(error, AptError::Cancelled(_)), "{error:?}");
    assert_eq!(std::fs::read_dir(&dest).unwrap().count(), 0);
}
