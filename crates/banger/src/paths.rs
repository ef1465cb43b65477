//! Where the personal daemon keeps its things, as far as a client must know:
//! the socket, the lock that names a running daemon, its log.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use banger_api::error::Code;
use serde::Deserialize;

use crate::failure::Failure;

/// The daemon's socket in its run directory.
const SOCKET: &str = "bangerd.sock";

/// What `<state>/lock` says of the daemon that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct LockNote {
    /// Process id of the daemon.
    #[serde(default)]
    pub(crate) pid: u32,
    /// Where it listens.
    pub(crate) socket: PathBuf,
}

/// Absolute directory of a variable; the XDG rules ignore relative ones.
fn directory_of(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

/// State directory of the personal daemon.
pub(crate) fn state_dir() -> Result<PathBuf, Failure> {
    if let Some(dir) = directory_of("XDG_STATE_HOME") {
        return Ok(dir.join("banger"));
    }
    let home = etcetera::home_dir().map_err(|error| {
        Failure::new(Code::BadPath, "cannot find the home directory")
            .because(&error)
            .hint("set HOME")
    })?;
    Ok(home.join(".local/state/banger"))
}

/// Log of the personal daemon.
pub(crate) fn daemon_log() -> Result<PathBuf, Failure> {
    Ok(state_dir()?.join("bangerd.log"))
}

/// The socket of the personal daemon. The fallback below `/tmp`, where anyone
/// may make directories, is refused unless it is ours alone.
pub(crate) fn personal_socket() -> Result<PathBuf, Failure> {
    if let Some(dir) = directory_of("XDG_RUNTIME_DIR") {
        return Ok(dir.join("banger").join(SOCKET));
    }
    let uid = rustix::process::getuid().as_raw();
    let dir = PathBuf::from(format!("/tmp/banger-runtime-{uid}"));
    check_private(&dir, uid)?;
    Ok(dir.join(SOCKET))
}

/// Refuses a directory that somebody else could have made or can enter. One
/// that does not exist yet is fine: the daemon makes it.
fn check_private(dir: &Path, uid: u32) -> Result<(), Failure> {
    let refuse = |why: String| {
        Failure::new(
            Code::BadPath,
            format!("runtime directory {} {why}", dir.display()),
        )
        .hint("remove it, or set XDG_RUNTIME_DIR")
    };
    let metadata = match std::fs::symlink_metadata(dir) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refuse("cannot be read".to_owned()).because(&error)),
    };
    if metadata.file_type().is_symlink() {
        return Err(refuse("is a symbolic link".to_owned()));
    }
    if !metadata.is_dir() {
        return Err(refuse("is not a directory".to_owned()));
    }
    if metadata.uid() != uid {
        return Err(refuse(format!(
            "belongs to uid {}, not {uid}",
            metadata.uid()
        )));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(refuse(format!(
            "has mode {:04o}, not 0700",
            metadata.mode() & 0o7777
        )));
    }
    Ok(())
}

/// What the lock of a daemon says, if a daemon ever wrote it. Whether that
/// daemon lives is not known before its socket answers: probing the lock
/// itself could make a daemon that starts right now believe it lost the race.
pub(crate) fn lock_note() -> Option<LockNote> {
    let path = state_dir().ok()?.join("lock");
    let text = std::fs::read(path).ok()?;
    serde_json::from_slice(&text).ok()
}

/// A path of the caller as the daemon, which runs elsewhere, can use it.
pub(crate) fn absolute(path: &Path) -> Result<String, Failure> {
    let full = std::path::absolute(path).map_err(|error| {
        Failure::new(Code::BadPath, format!("cannot use path {}", path.display())).because(&error)
    })?;
    full.into_os_string().into_string().map_err(|path| {
        Failure::new(
            Code::BadPath,
            format!("path {} is not UTF-8", path.display()),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn uid() -> u32 {
        rustix::process::getuid().as_raw()
    }

    #[test]
    fn a_fallback_that_is_ours_alone_or_missing_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        assert!(check_private(dir.path(), uid()).is_ok());
        assert!(check_private(&dir.path().join("absent"), uid()).is_ok());
    }

    #[test]
    fn a_wide_foreign_or_linked_fallback_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let reason = |path: &Path, uid| check_private(path, uid).unwrap_err().lines()[0].clone();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        assert!(reason(dir.path(), uid()).contains("has mode 0755, not 0700"));
        assert!(reason(dir.path(), uid() + 1).contains("belongs to uid"));
        let link = dir.path().join("link");
        symlink(dir.path(), &link).unwrap();
        assert!(reason(&link, uid()).contains("is a symbolic link"));
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(reason(&file, uid()).contains("is not a directory"));
    }
}
