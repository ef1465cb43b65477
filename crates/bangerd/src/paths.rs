//! Where the daemon keeps its things: state, configuration, cache and the
//! directory of the socket. Owns the XDG rules and the checks of a runtime
//! directory; makes directories, removes none.
//!
//! A runtime directory that is a symlink, belongs to somebody else or lets
//! others in is refused: whoever controls it could put their own socket there.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// File name of the daemon's socket.
const SOCKET: &str = "bangerd.sock";

/// Why the directories cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathError {
    /// Neither `HOME` nor the password file names a home.
    #[error("cannot find the home directory: HOME is not set")]
    NoHome,
    /// A directory could not be made or read.
    #[error("cannot use {} as {what} directory", path.display())]
    Directory {
        /// What it is for.
        what: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A runtime directory somebody else could reach into.
    #[error("runtime directory {} {why}", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// What the command line moves.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--socket`.
    pub socket: Option<PathBuf>,
    /// `--state`.
    pub state: Option<PathBuf>,
    /// `--config`: the file itself.
    pub config: Option<PathBuf>,
}

/// The daemon's places; all absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Paths {
    /// Database, disks, images, kernels, lock and log.
    pub(crate) state: PathBuf,
    /// The configuration file; it may not exist.
    pub(crate) config_file: PathBuf,
    /// What can be made again.
    pub(crate) cache: PathBuf,
    /// Runtime directory.
    pub(crate) run: PathBuf,
    /// The API's socket.
    pub(crate) socket: PathBuf,
}

impl Paths {
    /// The places of this user, as the environment and the command line say.
    pub(crate) fn resolve(
        overrides: &Overrides,
        env: impl Fn(&str) -> Option<OsString>,
        uid: u32,
    ) -> Result<Self, PathError> {
        // As the XDG rules have it, a relative value counts as unset.
        let xdg = |name: &str| {
            env(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let home = || {
            env("HOME")
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
                .or_else(std::env::home_dir)
                .filter(|path| path.is_absolute())
                .ok_or(PathError::NoHome)
        };
        let below = |variable: &str, default: &str| match xdg(variable) {
            Some(base) => Ok(base.join("banger")),
            None => Ok(home()?.join(default).join("banger")),
        };
        let run = match xdg("XDG_RUNTIME_DIR") {
            Some(base) => base.join("banger"),
            None => PathBuf::from(format!("/tmp/banger-runtime-{uid}")),
        };
        let given = |path: &PathBuf, what| {
            std::path::absolute(path).map_err(|cause| PathError::Directory {
                what,
                path: path.clone(),
                cause,
            })
        };
        Ok(Self {
            state: match &overrides.state {
                Some(path) => given(path, "state")?,
                None => below("XDG_STATE_HOME", ".local/state")?,
            },
            config_file: match &overrides.config {
                Some(path) => given(path, "configuration")?,
                None => below("XDG_CONFIG_HOME", ".config")?.join("config.toml"),
            },
            cache: below("XDG_CACHE_HOME", ".cache")?,
            socket: match &overrides.socket {
                Some(path) => given(path, "socket")?,
                None => run.join(SOCKET),
            },
            run,
        })
    }

    /// The lock that says which daemon owns the state.
    pub(crate) fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }

    /// The database.
    pub(crate) fn database(&self) -> PathBuf {
        self.state.join("state.db")
    }

    /// The daemon's log.
    pub(crate) fn log(&self) -> PathBuf {
        self.state.join("bangerd.log")
    }

    /// Directories of VMs.
    pub(crate) fn vms(&self) -> PathBuf {
        self.state.join("vms")
    }

    /// Directories of managed images.
    pub(crate) fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// Directories of kernels.
    pub(crate) fn kernels(&self) -> PathBuf {
        self.state.join("kernels")
    }

    /// Makes the state directory itself.
    pub(crate) fn make_state(&self) -> Result<(), PathError> {
        self.make_all([self.state.clone()])
    }

    /// Makes what is always in it; only once its database is known to be sound.
    pub(crate) fn make_rooms(&self) -> Result<(), PathError> {
        self.make_all([self.vms(), self.images(), self.kernels()])
    }

    fn make_all<const N: usize>(&self, all: [PathBuf; N]) -> Result<(), PathError> {
        for path in all {
            make(&path).map_err(|cause| PathError::Directory {
                what: "state",
                path,
                cause,
            })?;
        }
        Ok(())
    }

    /// Makes the directory of the socket. The runtime directory is also
    /// checked; another one, named by `--socket`, is the caller's affair.
    pub(crate) fn make_run(&self, uid: u32) -> Result<(), PathError> {
        let directory = self.socket.parent().unwrap_or(Path::new("/"));
        make(directory).map_err(|cause| PathError::Directory {
            what: "runtime",
            path: directory.to_owned(),
            cause,
        })?;
        if directory == self.run {
            check_private(&self.run, uid)
        } else {
            Ok(())
        }
    }
}

/// Makes a directory, 0700, with its parents. One that is there stays as it is.
fn make(path: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
    {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(io::Error::from(io::ErrorKind::NotADirectory))
        }
        other => other,
    }
}

/// A directory that only this user reaches: no link, ours, 0700.
fn check_private(path: &Path, uid: u32) -> Result<(), PathError> {
    let unsafe_because = |why| PathError::Unsafe {
        path: path.to_owned(),
        why,
    };
    let found = std::fs::symlink_metadata(path).map_err(|cause| PathError::Directory {
        what: "runtime",
        path: path.to_owned(),
        cause,
    })?;
    if found.file_type().is_symlink() {
        return Err(unsafe_because("is a symbolic link"));
    }
    if !found.is_dir() {
        return Err(unsafe_because("is not a directory"));
    }
    if found.uid() != uid {
        return Err(unsafe_because("belongs to another user"));
    }
    if found.mode() & 0o077 != 0 {
        return Err(unsafe_because(
            "is open to other users; its mode must be 0700",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn resolve(variables: &[(&str, &str)], overrides: &Overrides) -> Paths {
        let env = |name: &str| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| value.into())
        };
        Paths::resolve(overrides, env, 1000).unwrap()
    }

    #[test]
    fn without_xdg_variables_everything_is_below_the_home_and_tmp() {
        let paths = resolve(&[("HOME", "/home/ann")], &Overrides::default());
        assert_eq!(paths.state, Path::new("/home/ann/.local/state/banger"));
        assert_eq!(
            paths.config_file,
            Path::new("/home/ann/.config/banger/config.toml")
        );
        assert_eq!(paths.cache, Path::new("/home/ann/.cache/banger"));
        assert_eq!(
            paths.socket,
            Path::new("/tmp/banger-runtime-1000/bangerd.sock")
        );
    }

    #[test]
    fn xdg_variables_move_the_places_unless_they_are_relative() {
        let paths = resolve(
            &[
                ("HOME", "/home/ann"),
                ("XDG_STATE_HOME", "/s"),
                ("XDG_CACHE_HOME", "relative"),
                ("XDG_RUNTIME_DIR", "/run/user/1000"),
            ],
            &Overrides::default(),
        );
        assert_eq!(paths.state, Path::new("/s/banger"));
        assert_eq!(paths.cache, Path::new("/home/ann/.cache/banger"));
        assert_eq!(
            paths.socket,
            Path::new("/run/user/1000/banger/bangerd.sock")
        );
    }

    #[test]
    fn the_command_line_wins() {
        let overrides = Overrides {
            socket: Some("/x/s.sock".into()),
            state: Some("/x/state".into()),
            config: Some("/x/c.toml".into()),
        };
        let paths = resolve(
            &[("HOME", "/home/ann"), ("XDG_STATE_HOME", "/s")],
            &overrides,
        );
        assert_eq!(paths.state, Path::new("/x/state"));
        assert_eq!(paths.socket, Path::new("/x/s.sock"));
        assert_eq!(paths.config_file, Path::new("/x/c.toml"));
    }

    #[test]
    fn a_linked_foreign_or_open_runtime_directory_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let uid = rustix::process::getuid().as_raw();
        let good = place.path().join("good");
        make(&good).unwrap();
        check_private(&good, uid).unwrap();
        assert!(
            check_private(&good, uid + 1)
                .unwrap_err()
                .to_string()
                .contains("another user")
        );

        let link = place.path().join("link");
        symlink(&good, &link).unwrap();
        assert!(
            check_private(&link, uid)
                .unwrap_err()
                .to_string()
                .contains("symbolic link")
        );

        std::fs::set_permissions(&good, std::fs::Permissions::from_mode(0o750)).unwrap();
        assert!(
            check_private(&good, uid)
                .unwrap_err()
                .to_string()
                .contains("0700")
        );
    }
}
