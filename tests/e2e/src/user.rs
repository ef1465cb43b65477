//! An ordinary user, made for one test and removed after it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::run::Call;
use crate::wait;

/// A user with a home and a range of subordinate ids.
#[derive(Debug)]
pub struct User {
    /// Name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Home, mode 0700.
    pub home: PathBuf,
}

impl User {
    /// Makes a user. Needs root.
    ///
    /// # Panics
    /// When the system refuses.
    #[must_use]
    pub fn make() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let nth = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("bgr{}x{nth}", std::process::id());
        let home = PathBuf::from(format!("/tmp/h{}x{nth}", std::process::id()));
        let home_text = home.to_string_lossy().into_owned();
        // Two tests may add users at once; the password file has a lock that does not wait.
        wait::until_true(
            "useradd gets the password file's lock",
            Duration::from_secs(30),
            || {
                Call::new(
                    "useradd",
                    [
                        "--create-home",
                        "--home-dir",
                        &home_text,
                        "--shell",
                        "/bin/sh",
                        &name,
                    ],
                )
                .run()
                .code
                    == 0
            },
        );
        let number = |flag: &str| {
            Call::new("id", [flag, &name])
                .run()
                .ok()
                .line()
                .parse::<u32>()
                .expect("id prints a number")
        };
        let (uid, gid) = (number("-u"), number("-g"));
        if !has_range("/etc/subuid", &name) {
            let first = 10_000_000 + (std::process::id() % 1000 * 4 + nth) * 65_536;
            let range = format!("{first}-{}", first + 65_535);
            let _ = Call::new(
                "usermod",
                ["--add-subuids", &range, "--add-subgids", &range, &name],
            )
            .run()
            .ok();
        }
        Call::new("chmod", ["0700", &home_text]).run().ok();
        Self {
            name,
            uid,
            gid,
            home,
        }
    }

    /// Copies programs where this user may run them.
    ///
    /// # Panics
    /// When they cannot be copied.
    #[must_use]
    pub fn programs(&self, from: &Path) -> PathBuf {
        let bin = self.home.join("bin");
        std::fs::create_dir_all(&bin).expect("root may write to a home");
        for name in ["banger", "bangerd", "banger-agent", "banger-gateway"] {
            std::fs::copy(from.join(name), bin.join(name))
                .unwrap_or_else(|e| panic!("cannot copy {name}: {e}"));
        }
        self.own(&bin);
        bin
    }

    /// Gives a path to this user.
    pub fn own(&self, path: &Path) {
        let owner = format!("{}:{}", self.uid, self.gid);
        let _ = Call::new("chown", ["-R".as_ref(), owner.as_ref(), path.as_os_str()])
            .run()
            .ok();
    }

    /// Its processes.
    #[must_use]
    pub fn processes(&self) -> String {
        Call::new("ps", ["-o", "pid,args", "-u", &self.name, "--no-headers"])
            .run()
            .out()
    }
}

fn has_range(file: &str, name: &str) -> bool {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().any(|l| l.starts_with(&format!("{name}:")))
}

impl Drop for User {
    fn drop(&mut self) {
        // Everything of this user was started by the test that made it.
        let left = Call::new("ps", ["-o", "pid", "-u", &self.name, "--no-headers"])
            .run()
            .out();
        for pid in left.split_whitespace() {
            let _ = Call::new("kill", ["-9", pid]).run();
        }
        wait::eventually(Duration::from_secs(5), || {
            self.processes().is_empty().then_some(())
        });
        wait::eventually(Duration::from_secs(10), || {
            (Call::new("userdel", ["--remove", &self.name]).run().code != 1).then_some(())
        });
        let _ = std::fs::remove_dir_all(&self.home);
    }
}
