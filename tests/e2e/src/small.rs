//! Small file systems, to be filled.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::house::House;
use crate::run::Call;
use crate::wait;

/// A small file system somewhere in a house; gone when dropped, with the daemon that uses it.
pub struct Small<'h> {
    house: &'h House,
    at: PathBuf,
}

impl<'h> Small<'h> {
    /// Mounts one of a size as `tmpfs` takes it; `None` where this user may not mount.
    ///
    /// # Panics
    /// When its place cannot be made.
    #[must_use]
    pub fn mount(house: &'h House, at: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir_all(&at).expect("an own directory");
        let options = format!("size={size},mode=700");
        let words = ["-t", "tmpfs", "-o", &options, "none"].map(AsRef::as_ref);
        let words = words.into_iter().chain([at.as_os_str()]);
        let done = Call::new("mount", words).run();
        (done.code == 0).then_some(Self { house, at })
    }

    /// Bytes that are free.
    ///
    /// # Panics
    /// When it is not mounted.
    #[must_use]
    pub fn free(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.at).expect("it is mounted");
        found.f_bavail * found.f_frsize
    }

    /// Leaves so many bytes, until the file that it says is removed.
    ///
    /// # Panics
    /// When there are fewer already.
    #[must_use]
    pub fn fill(&self, leave: u64) -> PathBuf {
        let file = self.at.join("filler");
        let size = (self.free() - leave).to_string();
        let words = ["-l".as_ref(), size.as_ref(), file.as_os_str()];
        let _ = Call::new("fallocate", words).run().ok();
        file
    }

    /// Leaves nothing, while others write too, until the file that it says is removed.
    #[must_use]
    pub fn fill_up(&self) -> PathBuf {
        let file = self.at.join("filler");
        let to = format!("of={}", file.display());
        // It ends when there is no more.
        let _ = Call::new("dd", ["if=/dev/zero", &to, "bs=1M"]).run();
        file
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        if self.house.daemon_pid().is_some() {
            let _ = self.house.banger("daemon stop --with-vms");
            let ended = || self.house.daemon_pid().is_none().then_some(());
            wait::eventually(Duration::from_secs(60), ended);
        }
        let _ = Call::new("umount", ["--lazy".as_ref(), self.at.as_os_str()]).run();
    }
}
