//! Looking at ext4 files from outside, with e2fsprogs.

use std::path::Path;

use crate::run::Call;

/// Fails the test unless the file system is sound and was cleanly unmounted:
/// nothing in its journal, nothing to repair.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn assert_clean(path: &Path) {
    let head = Call::new("dumpe2fs", ["-h".as_ref(), path.as_os_str()])
        .run()
        .ok()
        .out();
    let feature_line = head
        .lines()
        .find(|l| l.starts_with("Filesystem features:"))
        .unwrap_or("");
    assert!(
        !feature_line.contains("needs_recovery"),
        "{} waits for a journal replay",
        path.display()
    );
    let state = head
        .lines()
        .find(|l| l.starts_with("Filesystem state:"))
        .unwrap_or("")
        .trim_end();
    assert!(state.ends_with(" clean"), "{}: {state}", path.display());
    let check = Call::new("e2fsck", ["-fn".as_ref(), path.as_os_str()]).run();
    assert_eq!(check.code, 0, "{check}");
    assert!(!check.err().contains("journal recovery"), "{check}");
}

/// Fails the test unless the file system is sound once its journal is
/// replayed, on a copy.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn assert_recoverable(path: &Path, scratch: &Path) {
    let copy = scratch.join("fsck-copy.ext4");
    Call::new(
        "cp",
        [
            "--sparse=always".as_ref(),
            path.as_os_str(),
            copy.as_os_str(),
        ],
    )
    .run()
    .ok();
    let replay = Call::new("e2fsck", ["-fp".as_ref(), copy.as_os_str()]).run();
    assert!(replay.code <= 1, "{replay}");
    let check = Call::new("e2fsck", ["-fn".as_ref(), copy.as_os_str()]).run();
    let _ = std::fs::remove_file(&copy);
    assert_eq!(check.code, 0, "{check}");
}

/// `Block count` times `Block size`.
///
/// # Panics
/// When the file holds no ext4.
#[must_use]
pub fn filesystem_bytes(path: &Path) -> u64 {
    let head = Call::new("dumpe2fs", ["-h".as_ref(), path.as_os_str()])
        .run()
        .ok()
        .out();
    let field = |name: &str| -> u64 {
        head.lines()
            .find_map(|l| l.strip_prefix(name))
            .and_then(|v| v.trim().parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {head}"))
    };
    field("Block count:") * field("Block size:")
}
