//! Cgroups of our own: one per VM, where the host lets us make them. What is
//! in such a cgroup is the VM's, whatever its processes call themselves, and
//! one write ends all of it.
//!
//! ```text
//! <cgroup2 mount>[/<our own cgroup>]/banger/<state>/<vm id>
//! ```
//!
//! Sets no limits and needs no controller. Where nothing can be made (an
//! ordinary user outside a delegated cgroup, a read-only mount) there is
//! simply none.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;
use sha2::{Digest, Sha256};
use tokio::io::unix::AsyncFd;

use crate::watch;

/// What killed processes may take to be gone: long, since a process may sit in
/// an uninterruptible read of a slow disk.
const LEAVE: Duration = Duration::from_secs(30);

/// Why a cgroup could not be emptied or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The kernel refused.
    #[error("cannot {what} cgroup {}", path.display())]
    Io {
        /// The verb.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Killed processes did not go.
    #[error("processes in cgroup {} did not end within {} s of SIGKILL", path.display(), LEAVE.as_secs())]
    Stuck {
        /// Which.
        path: PathBuf,
    },
}

/// The directory under which the cgroups of one state directory are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    base: PathBuf,
}

impl Cgroups {
    /// Finds the place for the VMs of this state directory; `None` where
    /// nothing can be made. Trying leaves nothing behind.
    #[must_use]
    pub fn find(state_dir: &Path) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mount = mount_point(&mounts)?;
        let own = mount.join(own_cgroup(&own)?.trim_start_matches('/'));
        // The top is for root. A delegated cgroup of our own is anybody's.
        let mut tops = vec![own];
        if rustix::process::geteuid().is_root() {
            tops.insert(0, mount);
        }
        let state = state_hash(state_dir);
        tops.into_iter()
            .map(|top| Self {
                base: top.join("banger").join(&state),
            })
            .find(Self::usable)
    }

    /// The cgroup of a VM, existing or not.
    #[must_use]
    pub fn of(&self, id: &str) -> PathBuf {
        self.base.join(id)
    }

    /// Whether a process can be moved in: only a try tells, since it also
    /// takes the right to write to a cgroup above both.
    fn usable(&self) -> bool {
        let trial = self.of(&format!("trial-{}", std::process::id()));
        if make(&trial).is_err() {
            return false;
        }
        let can_move = fs::OpenOptions::new()
            .write(true)
            .open(trial.join("cgroup.procs"))
            .is_ok()
            && fs::OpenOptions::new()
                .write(true)
                .open(trial.join("cgroup.kill"))
                .is_ok()
            && common_ancestor_is_writable(&self.base);
        let _ = remove(&trial);
        can_move
    }
}

/// Moving takes write permission on `cgroup.procs` of the nearest cgroup that
/// holds both ends: for a base below our own cgroup our own, else the top.
fn common_ancestor_is_writable(base: &Path) -> bool {
    let Some(above) = base.parent().and_then(Path::parent) else {
        return false;
    };
    rustix::fs::access(above.join("cgroup.procs"), rustix::fs::Access::WRITE_OK).is_ok()
}

/// Makes a cgroup and those above it. One that exists is kept.
///
/// # Errors
/// [`CgroupError::Io`].
pub fn make(path: &Path) -> Result<(), CgroupError> {
    // Another VM's end may take an empty parent away between two steps.
    let mut tries = 0;
    loop {
        match fs::create_dir_all(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < 16 => tries += 1,
            Err(cause) => {
                return Err(CgroupError::Io {
                    what: "make",
                    path: path.to_owned(),
                    cause,
                });
            }
        }
    }
}

/// Removes an empty cgroup, and those of ours above it that are empty then.
/// One that is gone already counts as removed.
///
/// # Errors
/// [`CgroupError::Io`], also where something still lives in it.
pub fn remove(path: &Path) -> Result<(), CgroupError> {
    match fs::remove_dir(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            return Err(CgroupError::Io {
                what: "remove",
                path: path.to_owned(),
                cause,
            });
        }
        _ => {}
    }
    // The state's directory and `banger` itself; others may need them still.
    for above in path.ancestors().skip(1).take(2) {
        if fs::remove_dir(above).is_err() {
            break;
        }
    }
    Ok(())
}

/// Kills everything in a cgroup and returns when it is empty. A cgroup that
/// does not exist is empty.
///
/// # Errors
/// [`CgroupError`]; the cgroup may not be empty then.
pub async fn kill(path: &Path) -> Result<(), CgroupError> {
    let failed = |what| {
        move |cause| CgroupError::Io {
            what,
            path: path.to_owned(),
            cause,
        }
    };
    // The watch comes before the kill, so that no change is missed.
    let Some(watch) = Watch::on(path).map_err(failed("watch"))? else {
        return Ok(());
    };
    match kill_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed("kill"))?,
    }
    match tokio::time::timeout(LEAVE, watch.empty(path)).await {
        Ok(done) => done.map_err(failed("watch")),
        Err(_) => Err(CgroupError::Stuck {
            path: path.to_owned(),
        }),
    }
}

fn kill_all(path: &Path) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path.join("cgroup.kill"))?
        .write_all(b"1")
}

/// Whether anything lives in it; nothing does in one that is gone.
fn populated(path: &Path) -> io::Result<bool> {
    match fs::read_to_string(path.join("cgroup.events")) {
        Ok(text) => Ok(text.lines().any(|line| line == "populated 1")),
        Err(error) if error.raw_os_error() == Some(ENODEV) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What reading a file of a removed cgroup says.
const ENODEV: i32 = rustix::io::Errno::NODEV.raw_os_error();

/// Changes of a cgroup's `populated`.
struct Watch(AsyncFd<std::os::fd::OwnedFd>);

impl Watch {
    /// `None` where there is no such cgroup.
    fn on(path: &Path) -> io::Result<Option<Self>> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        match inotify::add_watch(&fd, path.join("cgroup.events"), inotify::WatchFlags::MODIFY) {
            Ok(_) => Ok(Some(Self(watch::readable(fd)?))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn empty(&self, path: &Path) -> io::Result<()> {
        while populated(path)? {
            let mut ready = self.0.readable().await?;
            let mut events = [0u8; 4096];
            // What changed does not matter, only that something did.
            match rustix::io::read(self.0.get_ref(), &mut events) {
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

/// Where cgroup2 is mounted: at its usual place, beside a version 1, or
/// elsewhere.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // A bind of some cgroup further down would need its own arithmetic.
        (after.split(' ').next()? == "cgroup2" && root == "/")
            .then(|| PathBuf::from(unescape(point)))
    })
}

/// mountinfo writes blanks and backslashes as three octal digits.
fn unescape(field: &str) -> String {
    let mut text = String::new();
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let code = rest
            .get(at + 1..at + 4)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        let skip = match code {
            Some(code) => {
                text.push(char::from(code));
                4
            }
            None => {
                text.push('\\');
                1
            }
        };
        rest = &rest[at + skip..];
    }
    text.push_str(rest);
    text
}

fn own_cgroup(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Names a state directory: two daemons of one host do not meet.
fn state_hash(state_dir: &Path) -> String {
    let real = fs::canonicalize(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    let digest = Sha256::digest(real.as_os_str().as_bytes());
    digest
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_beside_version_1_and_under_a_name_with_a_blank() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(
            mount_point("1 2 0:3 / /a\\040b rw - cgroup2 x rw"),
            Some("/a b".into())
        );
        assert_eq!(mount_point("1 2 0:3 /sub /a rw - cgroup2 x rw"), None);
        assert_eq!(mount_point("nonsense"), None);
        assert_eq!(
            own_cgroup("4:memory:/x\n0::/user.slice\n"),
            Some("/user.slice")
        );
    }

    #[tokio::test]
    async fn a_cgroup_is_killed_emptied_and_removed_with_its_parents() {
        let state = std::env::temp_dir().join(format!("banger-cgroup-{}", std::process::id()));
        let Some(cgroups) = Cgroups::find(&state) else {
            println!("skipped: no cgroup can be made here");
            return;
        };
        let path = cgroups.of("vm");
        make(&path).unwrap();
        make(&path).expect("making twice is fine");
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        fs::write(path.join("cgroup.procs"), child.id().to_string()).unwrap();
        assert!(populated(&path).unwrap());
        assert!(
            remove(&path).is_err(),
            "a cgroup with a process in it stays"
        );
        kill(&path).await.unwrap();
        assert!(!populated(&path).unwrap());
        child.wait().unwrap();
        remove(&path).unwrap();
        remove(&path).expect("gone counts as removed");
        kill(&path).await.expect("gone counts as empty");
        assert!(!cgroups.base.exists());
    }
}
